"""Colours of the report in daylight and in the dark, told apart with any kind of colour vision."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["DARK", "LIGHT", "Palette", "swaps"]


@dataclass(frozen=True, slots=True)
class Palette:
    """Neutrals, two accents (Okabe and Ito's blue and vermilion), and ColorBrewer's BrBG for narrower and wider."""

    paper: str
    panel: str
    ink: str
    muted: str
    faint: str
    rule: str
    front: str
    best: str
    narrowest: str
    narrower: str
    same: str
    wider: str
    widest: str

    def css(self) -> str:
        """As custom properties."""
        return " ".join(f"--{name}: {value};" for name, value in asdict(self).items())


LIGHT = Palette(
    paper="#ffffff",
    panel="#f6f7f8",
    ink="#1d2329",
    muted="#5b6570",
    faint="#8a949f",
    rule="#e2e6ea",
    front="#0072b2",
    best="#d55e00",
    narrowest="#01665e",
    narrower="#5ab4ac",
    same="#eff1f3",
    wider="#d8b365",
    widest="#8c510a",
)

DARK = Palette(
    paper="#14181c",
    panel="#1b2026",
    ink="#e4e8ec",
    muted="#9fa9b4",
    faint="#78838f",
    rule="#2c333b",
    front="#56b4e9",
    best="#ff8f4a",
    narrowest="#a9ebe2",
    narrower="#3f9d94",
    same="#232a31",
    wider="#b8862f",
    widest="#f6dfae",
)


def swaps() -> dict[str, str]:
    """Each daylight colour's counterpart in the dark."""
    dark = asdict(DARK)
    return {colour: dark[name] for name, colour in asdict(LIGHT).items()}
