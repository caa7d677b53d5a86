"""The dimension algebra: named sizes, their products, and sums of those products.

A Dim is a named positive integer; a Segment is a product, outermost factor first (row-major); an Axis is a sum, which
is a concatenation. Fixed sizes are plain integers inside segments, and size one is the empty product.

Every size is a pair: its value at two assignments of the model's symbolic input sizes, (n, n) for what is static.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Final

__all__ = ["ONE", "Axis", "Dim", "Factor", "Segment", "Size", "axis", "concatenation", "plain", "product", "total"]

Size = tuple[int, int]


@dataclass(slots=True, eq=False)  # not frozen, nor are the others: thousands are made, each in a third of the time
class Dim:
    """A named size, equal only to itself. A rigid one follows a symbolic input size: never cut, factored or resized."""

    name: Final[str]
    size: Final[Size]
    rigid: Final[bool] = False

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


Factor = Dim | int


@dataclass(slots=True, unsafe_hash=True)
class Segment:
    """A product of dimensions, outermost first; () has size one. Make one with `product`, which normalises."""

    factors: Final[tuple[Factor, ...]]
    size: Final[Size] = field(compare=False)
    dims: Final[tuple[Dim, ...]] = field(compare=False)  # the named factors
    origin: Final[Segment | None] = field(default=None, compare=False, repr=False)  # what became this plain integer

    def __str__(self) -> str:
        return "·".join(str(f) for f in self.factors) or "1"

    @property
    def lone(self) -> Dim | None:
        """The one Dim that the segment consists of."""
        return self.dims[0] if len(self.factors) == len(self.dims) == 1 else None

    @property
    def fixed(self) -> bool:
        """Whether it is a plain integer."""
        return not self.dims


@dataclass(slots=True, unsafe_hash=True)
class Axis:
    """A concatenation of segments. Make one with `axis` or `total`, which normalise."""

    segments: Final[tuple[Segment, ...]]
    size: Final[Size] = field(compare=False)
    dims: Final[tuple[Dim, ...]] = field(compare=False)  # the named factors of all segments, with repetitions

    def __str__(self) -> str:
        return " + ".join(str(s) for s in self.segments) or "0"

    @property
    def lone(self) -> Dim | None:
        """The one Dim that the axis consists of."""
        return self.segments[0].lone if len(self.segments) == 1 else None

    @property
    def fixed(self) -> bool:
        """Whether it is a plain integer."""
        return not self.dims


def product(*factors: Factor | Segment) -> Segment:
    """The normal form of a product: no ones, no two integers side by side."""
    if len(factors) == 1:
        only = factors[0]
        if isinstance(only, int):
            return plain(only)
        if isinstance(only, Dim):
            if only.size == (1, 1):
                return ONE
            alone = (only,)  # one tuple for both: thousands are made
            return Segment(alone, only.size, alone)
        if only.origin is None:
            return only
    flat: list[Factor] = []
    dims: list[Dim] = []
    first = second = 1
    for factor in factors:
        for f in factor.factors if isinstance(factor, Segment) else (factor,):
            if isinstance(f, Dim):
                a, b = f.size
                if a == b == 1:
                    continue
                first, second = first * a, second * b
                flat.append(f)
                dims.append(f)
            elif f != 1:
                first, second = first * f, second * f
                if flat and isinstance(flat[-1], int):
                    flat[-1] *= f
                else:
                    flat.append(f)
    named = tuple(dims)
    return Segment(named if len(dims) == len(flat) else tuple(flat), (first, second), named)


@lru_cache(4096)
def plain(n: int) -> Segment:
    """A size that is a plain integer."""
    return Segment(() if n == 1 else (n,), (n, n), ())


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
    return concatenation(merged)


def concatenation(segments: Sequence[Segment]) -> Axis:
    """Segments side by side, as they are."""
    if len(segments) == 1:
        return Axis((segments[0],), segments[0].size, segments[0].dims)
    first = second = 0
    for segment in segments:
        first, second = first + segment.size[0], second + segment.size[1]
    return Axis(tuple(segments), (first, second), tuple(chain.from_iterable(s.dims for s in segments)))


def axis(*factors: Factor | Segment) -> Axis:
    """An axis of one segment."""
    segment = product(*factors)
    if not segment.dims:
        return _plain_axis(segment.size[0])
    return total((segment,)) if segment.size == (0, 0) else Axis((segment,), segment.size, segment.dims)


@lru_cache(4096)
def _plain_axis(n: int) -> Axis:
    return Axis((plain(n),) if n else (), (n, n), ())


def _split_leading(segment: Segment) -> tuple[int, tuple[Factor, ...]]:
    first = segment.factors[0] if segment.factors else 1
    return (first, segment.factors[1:]) if isinstance(first, int) else (1, segment.factors)


ONE = plain(1)
