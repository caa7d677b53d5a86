"""The dimension algebra: named sizes, their products, and sums of those products.

A Dim is a named positive integer; a Segment is a product, outermost factor first (row-major); an Axis is a sum, which
is a concatenation. Fixed sizes are plain integers inside segments, and size one is the empty product.

Every size is a pair: its value at two assignments of the model's symbolic input sizes, (n, n) for what is static.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ONE", "Axis", "Dim", "Factor", "Segment", "Size", "axis", "product", "total"]

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Dim:
    """A named size, equal only to itself. A rigid one follows a symbolic input size: never cut, factored or resized."""

    name: str
    size: Size
    rigid: bool = False

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


Factor = Dim | int


@dataclass(frozen=True, slots=True)
class Segment:
    """A product of dimensions, outermost first; () has size one. Make one with `product`, which normalises."""

    factors: tuple[Factor, ...]
    size: Size

    def __str__(self) -> str:
        return "·".join(str(f) for f in self.factors) or "1"

    @property
    def lone(self) -> Dim | None:
        """The one Dim that the segment consists of."""
        first = self.factors[0] if len(self.factors) == 1 else None
        return first if isinstance(first, Dim) else None

    @property
    def fixed(self) -> bool:
        """Whether it is a plain integer."""
        return not any(isinstance(f, Dim) for f in self.factors)

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The named factors."""
        return tuple(f for f in self.factors if isinstance(f, Dim))


@dataclass(frozen=True, slots=True)
class Axis:
    """A concatenation of segments. Make one with `axis` or `total`, which normalise."""

    segments: tuple[Segment, ...]
    size: Size

    def __str__(self) -> str:
        return " + ".join(str(s) for s in self.segments) or "0"

    @property
    def lone(self) -> Dim | None:
        """The one Dim that the axis consists of."""
        return self.segments[0].lone if len(self.segments) == 1 else None

    @property
    def fixed(self) -> bool:
        """Whether it is a plain integer."""
        return all(s.fixed for s in self.segments)

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The named factors of all segments, with repetitions."""
        return tuple(d for s in self.segments for d in s.dims)


def product(*factors: Factor | Segment) -> Segment:
    """The normal form of a product: no ones, no two integers side by side."""
    flat: list[Factor] = []
    first = second = 1
    for factor in factors:
        for f in factor.factors if isinstance(factor, Segment) else (factor,):
            a, b = f.size if isinstance(f, Dim) else (f, f)
            if a == b == 1:
                continue
            first, second = first * a, second * b
            if isinstance(f, int) and flat and isinstance(flat[-1], int):
                flat[-1] *= f
            else:
                flat.append(f)
    return Segment(tuple(flat), (first, second))


def total(segments: Iterable[Segment]) -> Axis:
    """The normal form of a sum: neighbours that differ only in a leading integer are merged (2·k + k is 3·k)."""
    merged: list[Segment] = []
    for segment in segments:
        if segment.size == (0, 0):
            continue
        if merged:
            (m, rest), (n, other) = _split_leading(merged[-1]), _split_leading(segment)
            if rest == other:
                merged[-1] = product(m + n, *rest)
                continue
        merged.append(segment)
    return Axis(tuple(merged), (sum(s.size[0] for s in merged), sum(s.size[1] for s in merged)))


def axis(*factors: Factor | Segment) -> Axis:
    """An axis of one segment."""
    return total((product(*factors),))


def _split_leading(segment: Segment) -> tuple[int, tuple[Factor, ...]]:
    first = segment.factors[0] if segment.factors else 1
    return (first, segment.factors[1:]) if isinstance(first, int) else (1, segment.factors)


ONE = product()
