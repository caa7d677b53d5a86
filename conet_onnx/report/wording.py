"""Numbers and names as the report writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["KINDS", "MINUS", "count", "duration", "listed", "percent", "points", "quantity", "ratio"]

KINDS = {"macs": "MACs", "params": "parameters", "bytes": "of weights", "latency": "latency"}

MINUS = "−"


def count(number: int, noun: str) -> str:
    """ "1 trial", "2 trials"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def quantity(value: float, kind: str) -> str:
    """Params or MACs ("78,042", "12.53 M"), bytes in powers of ten ("312.2 kB"), latency in ms ("0.151 ms")."""
    if kind == "latency":
        return f"{value:.3g} ms"
    if kind == "bytes":
        return _scaled(value, 1e3, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), "B")
    return _scaled(value, 1e6, (("T", 1e12), ("G", 1e9), ("M", 1e6)), "")


def percent(fraction: float) -> str:
    """0.98333 as "98.33%"."""
    return f"{100 * fraction:.2f}%"


def points(difference: float) -> str:
    """A difference of two fractions in percentage points, with its sign."""
    size = f"{abs(100 * difference):.2f}"
    sign = "±" if size == "0.00" else "+" if difference > 0 else MINUS
    return f"{sign}{size} points"


def ratio(share: float) -> str:
    """ "×0.49"; small ratios keep two digits."""
    return f"×{share:.2f}" if share >= 0.1 or not share else f"×{share:.2g}"


def duration(seconds: float) -> str:
    """ "2 h 05 min", "2 min 31 s", "41 s", "0.4 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _scaled(value: float, plain_below: float, units: tuple[tuple[str, float], ...], unit: str) -> str:
    for name, size in units:
        if value >= max(size, plain_below):
            return f"{value / size:.4g} {name}"
    text = f"{value:,.0f}" if math.isfinite(value) and value == int(value) else f"{value:,.4g}"
    return f"{text} {unit}".rstrip()
