"""Fewer MACs that take longer: what is measured and said of it wherever a model comes of another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from conet_onnx.cli.profile import warning

if TYPE_CHECKING:
    from conet_onnx.graph import Graph
    from conet_onnx.latency import Comparison
    from conet_onnx.latency.slowdowns import Layer

__all__ = ["asking_for_time", "in_turns", "warn_if_slower"]

NOTABLE = 0.9  # of the source's MACs: above that, nobody expects to see it in time
BEHIND = 0.3  # of what MACs fell by: where time falls by so much less, something can be done
SECONDS, PRECISION = 2.0, 0.02  # at most, and enough to tell what is slower


def in_turns(a: Graph, b: Graph, *, provider: str, threads: int | None) -> Comparison:
    """Two models in turns, briefly. Raises ModelError where they do not run."""
    from conet_onnx.latency import compare

    return compare(a, b, provider=provider, threads=threads, seconds=SECONDS, precision=PRECISION)


def asking_for_time(macs: float, latency: float, *, aligned: bool = False) -> str:
    """What to ask for where time fell by much less than MACs did (both as shares of the source's); else nothing.
    `aligned`: widths are such as the machine runs fast already."""
    if macs > NOTABLE or latency - macs < BEHIND * (1 - macs):
        return ""
    return f"MACs are ×{macs:.2f}, and latency is ×{latency:.2f}: --budget latency={macs:.2g} asks for time itself" + (
        "." if aligned else ", and --multiple auto for widths that this machine runs fast, where some are."
    )


def warn_if_slower(name: str, found: Comparison, macs: tuple[int, int], layers: Callable[[], Sequence[Layer]]) -> None:
    """On stderr, where the second model has fewer MACs (`macs` of both) and takes longer: which layers do."""
    from conet_onnx.latency.slowdowns import slowdown

    line = slowdown(name, found, macs, layers)
    if line is not None:
        warning(line)
