"""The widths that a search may choose from: bounds, steps, and the projection of any wish onto a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np

from conet_onnx.searching.budget import Limits, Priced

__all__ = ["WidthSpace"]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

GRID = 32  # multipliers priced at once; three rounds divide any range by 32768


class _Width(Protocol):
    @property
    def size(self) -> int: ...
    @property
    def min(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    @property
    def exact(self) -> bool: ...


class _Costs(Protocol):
    def price(self, widths: Mapping[str, int]) -> Priced: ...
    def price_many(self, widths: Any) -> np.ndarray[Any, Any]: ...


class _Priceable(Protocol):
    """What a space needs of an analysis."""

    @property
    def widths(self) -> Mapping[str, Any]: ...
    @property
    def costs(self) -> Any: ...


class WidthSpace:
    """Widths between their analysis's minimum and `growth` times their size (mixed widths never grow).

    A width moves in steps of its own multiple times the largest power of two that keeps the step at most `multiple`, a
    divisor of the source's size, and at most an eighth of the width: 64 moves by 8, 16 by 2, what is small by 1.
    """

    def __init__(self, analysis: _Priceable, *, multiple: int = 8, growth: float = 2.0) -> None:
        widths: Mapping[str, _Width] = analysis.widths
        self.names = tuple(widths)
        self.source = {name: width.size for name, width in widths.items()}
        self._costs: _Costs = analysis.costs
        self._sizes = np.array([w.size for w in widths.values()], dtype=np.int64)
        self._multiples = np.array([w.multiple for w in widths.values()], dtype=np.int64)
        self._low = np.array([_ceil_to(max(w.min, 1), w.multiple) for w in widths.values()], dtype=np.int64)
        grown = [w.size if not w.exact else int(w.size * growth) // w.multiple * w.multiple for w in widths.values()]
        self._high = np.maximum(self._low, np.array(grown, dtype=np.int64))
        self._coarsest = np.array([_coarsest(w.size, w.multiple, multiple) for w in widths.values()], dtype=np.int64)

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        """The smallest and the largest value of each width."""
        return {name: (int(a), int(b)) for name, a, b in zip(self.names, self._low, self._high, strict=True)}

    def price(self, widths: Mapping[str, int]) -> Priced:
        """What these widths cost."""
        return self._costs.price(widths)

    def snap(self, widths: Mapping[str, float]) -> dict[str, int]:
        """The nearest allowed widths."""
        return self._named(self._snap(self._array(widths)))

    def project(self, wish: Mapping[str, float], limits: Limits) -> dict[str, int]:
        """The wish times one multiplier, as large as the limits allow, snapped; then what rounding left is given back.

        Deterministic. Raises BudgetUnreachable where even the smallest widths cost more than the limits.
        """
        wanted = self._array(wish)
        smallest = self.price(self._named(self._low))
        if not limits.fits(smallest):
            raise limits.unreachable(smallest, self.price(self.source))
        if not self.names:
            return {}
        low = float(np.min(self._low / wanted))  # so small that every width is at its lower bound,
        high = float(np.max(self._high / wanted))  # so large that every one is at its upper bound
        for _ in range(3):
            multipliers = np.geomspace(low, high, GRID + 1)
            rows = self._snap(multipliers[:, None] * wanted)
            fits = limits.utilisations(self._costs.price_many(rows)) <= 1
            last = GRID if fits.all() else max(int(np.argmin(fits)) - 1, 0)  # prices only grow with the multiplier
            low, high = float(multipliers[last]), float(multipliers[min(last + 1, GRID)])
        return self._named(self._fill(low * wanted, limits))

    def shares(self, widths: Mapping[str, int], limits: Limits) -> Floats:
        """For each width, d log(utilisation) / d log(width): what one percent more of it costs, in percent."""
        at = self._array(widths).astype(np.int64)
        step = self._steps(at)
        other = np.where(at + step <= self._high, at + step, at - step)
        rows = np.tile(at, (len(at) + 1, 1))
        np.fill_diagonal(rows[1:], np.maximum(other, 1))
        used = np.log(limits.utilisations(self._costs.price_many(rows)))
        moved = np.log(np.maximum(other, 1) / at)
        shares: Floats = np.divide(used[1:] - used[0], moved, out=np.zeros(len(at)), where=moved != 0)
        return shares

    def can_grow(self, widths: Mapping[str, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which widths are below their upper bound."""
        grown: np.ndarray[Any, np.dtype[np.bool_]] = self._array(widths) < self._high
        return grown

    def can_shrink(self, widths: Mapping[str, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which widths are above their lower bound."""
        shrunk: np.ndarray[Any, np.dtype[np.bool_]] = self._array(widths) > self._low
        return shrunk

    def _fill(self, wanted: Floats, limits: Limits) -> Ints:
        """Snap; then let the widths that were rounded down most take one step up, where that still fits."""
        at = self._snap(wanted)
        shortfall = np.log(np.minimum(wanted, self._high) / at)
        for i in np.argsort(-shortfall, kind="stable"):
            if shortfall[i] <= 0:
                break
            more = at.copy()
            more[i] += self._steps(at)[i]
            if more[i] <= self._high[i] and limits.fits(self.price(self._named(more))):
                at = more
        return at

    def _steps(self, widths: Any) -> Ints:
        """Each width's step at that value."""
        finer = np.floor(np.log2(np.maximum(widths / self._multiples / 8, 1))).astype(np.int64)
        steps: Ints = np.minimum(self._coarsest, self._multiples * 2**finer)
        return steps

    def _snap(self, widths: Any) -> Ints:
        steps = self._steps(widths)
        rounded = np.floor(widths / steps + 0.5).astype(np.int64) * steps
        snapped: Ints = np.clip(rounded, self._low, self._high)
        return snapped

    def _array(self, widths: Mapping[str, float]) -> Floats:
        return np.array([widths[name] for name in self.names], dtype=np.float64)

    def _named(self, widths: Ints) -> dict[str, int]:
        return dict(zip(self.names, widths.tolist(), strict=True))


def _ceil_to(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _coarsest(size: int, own: int, multiple: int) -> int:
    """The largest step of a width: its own multiple, doubled while it divides the size and stays within `multiple`."""
    step = own
    while 2 * step <= multiple and size % (2 * step) == 0:
        step *= 2
    return step
