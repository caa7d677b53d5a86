"""Which widths a command line asks for: one factor, a list, or a budget."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conet_onnx.errors import UsageError

if TYPE_CHECKING:
    from conet_onnx.analysis import Analysis

__all__ = ["by_reason", "check_widths", "read_widths"]


def read_widths(text: str) -> dict[str, int]:
    """`w3=48,w5=16`, or a JSON file `{"w3": 48, ...}`. Raises UsageError for anything but sizes of at least one."""
    listed = "=" in text and not Path(text).is_file()
    pairs = _pairs(text) if listed else _file(Path(text))
    found: dict[str, int] = {}
    for name, value in pairs:
        if name in found:
            raise UsageError(f"--widths says {name!r} twice; say it once.")
        found[name] = _size(name, value)
    return found


def check_widths(asked: Iterable[str], analysis: Analysis) -> None:
    """Raise UsageError for an id that the model does not have, with the nearest that it has."""
    known = {width.id: width.name for width in analysis.all_widths.values()}
    for name in asked:
        if name in known:
            continue
        named = [identity for identity, called in known.items() if called == name]
        close = named or get_close_matches(name, known, n=3, cutoff=0.5) or list(known)[:3]
        hint = f"Did you mean {', '.join(close)}?" if close else "This model has none."
        raise UsageError(f"Unknown width group {name!r}. {hint} `conet-onnx analyze` lists them.")


def by_reason(left_alone: Mapping[str, str]) -> dict[str, list[str]]:
    """Group ids by the reason why they keep their size."""
    found: dict[str, list[str]] = {}
    for identity, reason in left_alone.items():
        found.setdefault(reason, []).append(identity)
    return found


def _pairs(text: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not (name.strip() and equals):
            raise UsageError(f"--widths: {part!r} is not ID=N; write it as w3=48,w5=16.")
        try:
            pairs.append((name.strip(), int(value)))
        except ValueError:
            pairs.append((name.strip(), value))
    return pairs


def _file(file: Path) -> list[tuple[str, Any]]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
    except OSError as error:
        raise UsageError(
            f"--widths: cannot read {file}: {error.strerror}. Name a JSON file, or write w3=48,w5=16."
        ) from error
    except ValueError as error:  # JSON and UTF-8 errors are both
        raise UsageError(f'--widths: {file} is not JSON ({error}); it should read {{"w3": 48, ...}}.') from error
    if not isinstance(document, _Pairs):
        raise UsageError(f'--widths: {file} should hold an object {{"w3": 48, ...}}.')
    return document


class _Pairs(list[tuple[str, Any]]):
    """A JSON object before its repeated names are lost."""


def _size(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"--widths: {name}={value} is not a whole number of channels.")
    if value < 1:
        raise UsageError(f"--widths: {name}={value} is below 1; a width is at least 1.")
    return value
