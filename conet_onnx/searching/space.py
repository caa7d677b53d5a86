"""The widths that a search may choose from: bounds, steps, and the projection of any wish onto a budget."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np

from conet_onnx.allocating import Limit, Term
from conet_onnx.searching.budget import KINDS, Limits, Priced

__all__ = ["Priceable", "WidthSpace"]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

LARGEST, FINENESS = 8, 8  # of steps, and of the steps that a source's size is divided into at the least
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
    @property
    def max(self) -> int | None: ...


class _Costs(Protocol):
    def price(self, widths: Mapping[str, int]) -> Priced: ...
    def price_many(self, widths: Any) -> np.ndarray[Any, Any]: ...
    def terms(self, kind: str) -> Any: ...


class Priceable(Protocol):
    """What a space needs of an analysis."""

    @property
    def widths(self) -> Mapping[str, Any]: ...
    @property
    def costs(self) -> Any: ...


class WidthSpace:
    """Widths between their analysis's minimum and `growth` times their size (mixed widths, and those with a
    maximum, never grow).

    Allowed are multiples of `multiple`, below that powers of two, each times the width's own multiple; and always the
    source's size and the bounds. With a `multiple` of 1 every width is allowed. By default it is 8, which tensor cores
    want, or the power of two below an eighth of the source's size where that is less: on narrow networks steps of 8
    are too far apart to say what a channel is worth. `between` gives all widths the same
    bounds, whatever their sizes, as far as they may grow; mixed ones too, for trials that do not inherit.
    """

    def __init__(
        self,
        analysis: Priceable,
        *,
        multiple: int | None = None,
        growth: float = 2.0,
        between: tuple[int, int] | None = None,
    ) -> None:
        widths: Mapping[str, _Width] = analysis.widths
        self.names = tuple(widths)
        self.source = {name: width.size for name, width in widths.items()}
        self._costs: _Costs = analysis.costs
        self._sizes = np.array([w.size for w in widths.values()], dtype=np.int64)
        self._own = np.array([w.multiple for w in widths.values()], dtype=np.int64)
        steps = np.minimum(LARGEST, self._sizes / FINENESS) if multiple is None else np.full(len(self._own), multiple)
        self._largest = self._own * 2 ** np.floor(np.log2(np.maximum(steps / self._own, 1))).astype(np.int64)
        self._low = np.array([-(-max(w.min, 1) // w.multiple) * w.multiple for w in widths.values()], dtype=np.int64)
        grown = np.array([w.size * growth if w.exact and w.max is None else w.size for w in widths.values()])
        self._high = np.maximum(self._sizes, (grown // self._steps(grown) * self._steps(grown)).astype(np.int64))
        if between is not None:
            most = np.array([np.inf if w.max is None else w.max for w in widths.values()])
            low, high = (np.maximum(bound // self._own, 1) * self._own for bound in between)
            self._high = np.minimum(high, most).astype(np.int64)
            self._low = np.minimum(np.maximum(self._low, low), self._high)

    def aligned(self, multiples: Mapping[str, int], least: Mapping[str, int]) -> WidthSpace:
        """The same with widths that are multiples of these instead, where they are named, and powers of two below; and
        with none below its `least`, where the source's is not."""
        made = copy(self)
        made.__dict__.pop("levels", None)  # of the other one's steps
        asked, floor = (
            np.array([some.get(name, 0) for name in self.names], dtype=np.int64) for some in (multiples, least)
        )
        made._largest = np.where(asked > 0, np.lcm(self._own, np.maximum(asked, 1)), self._largest)
        steps = made._steps(np.maximum(floor, 1))
        floor = np.minimum(-(-floor // steps) * steps, -(-self._sizes // self._own) * self._own)
        made._low = np.minimum(np.maximum(self._low, floor), self._high)
        grown = self._high // made._largest * made._largest
        made._high = np.maximum(np.maximum(np.minimum(self._sizes, self._high), grown), made._low)
        return made

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        """The smallest and the largest value of each width."""
        return {name: (int(a), int(b)) for name, a, b in zip(self.names, self._low, self._high, strict=True)}

    def price(self, widths: Mapping[str, int]) -> Priced:
        """What these widths cost."""
        return self._costs.price(widths)

    @cached_property
    def levels(self) -> dict[str, Ints]:
        """The allowed sizes of each width, ascending."""
        rows = [self._named(self._low)]
        while (row := self.above(rows[-1])) != rows[-1]:
            rows.append(row)
        return {name: np.unique([row[name] for row in rows]) for name in self.names}

    def constraints(self, limits: Limits) -> list[Limit]:
        """Limits as a knapsack reads them (allocating.allocate), sizes in the order of `names`."""

        def limit(kind: str, most: float) -> Limit:
            column = KINDS.index(kind)
            terms = [Term(*term) for term in self._costs.terms(kind)]
            return Limit(terms, lambda sizes: self._costs.price_many(sizes)[:, column].astype(np.float64), most)

        return [limit(kind, most) for kind, most in limits.by_kind.items()]

    def snap(self, widths: Mapping[str, float]) -> dict[str, int]:
        """The nearest allowed widths."""
        return self._named(self._snap(self._array(widths)))

    def project(self, wish: Mapping[str, float], limits: Limits) -> dict[str, int]:
        """The wish times one multiplier, as large as the limits allow, snapped; then what rounding left is given back.

        Without limits the wish itself, snapped. Deterministic. Raises BudgetUnreachable where even the smallest
        widths cost more than the limits.
        """
        wanted = self._array(wish)
        if not limits.by_kind:
            return self._named(self._snap(wanted))
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
        at, up, down = (self._array(some) for some in (widths, self.above(widths), self.below(widths)))
        other = np.where(up > at, up, down)
        rows = np.tile(at, (len(at) + 1, 1))
        np.fill_diagonal(rows[1:], other)
        used = np.log(limits.utilisations(self._costs.price_many(rows)))
        moved = np.log(other / at)
        shares: Floats = np.divide(used[1:] - used[0], moved, out=np.zeros(len(at)), where=moved != 0)
        return shares

    def above(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Each width's next larger value; its own at the upper bound."""
        at = self._array(widths).astype(np.int64)
        steps = self._steps(at)
        up = (at // steps + 1) * steps
        up = np.where(at < self._largest, np.minimum(up, self._largest), up)
        return self._named(np.minimum(np.where((at < self._sizes) & (self._sizes < up), self._sizes, up), self._high))

    def below(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Each width's next smaller value; its own at the lower bound."""
        at = self._array(widths).astype(np.int64)
        steps = self._steps(at - 1)
        down = (at - 1) // steps * steps
        return self._named(
            np.maximum(np.where((down < self._sizes) & (self._sizes < at), self._sizes, down), self._low)
        )

    def _fill(self, wanted: Floats, limits: Limits) -> Ints:
        """Snap; then let the widths that were rounded down most take one step up, where that still fits."""
        at = self._snap(wanted)
        shortfall = np.log(np.minimum(wanted, self._high) / at)
        for i in np.argsort(-shortfall, kind="stable"):
            if shortfall[i] <= 0:
                break
            more = at.copy()
            more[i] = self.above(self._named(at))[self.names[i]]
            if limits.fits(self.price(self._named(more))):
                at = more
        return at

    def _steps(self, widths: Any) -> Ints:
        """What each width is a multiple of at such a value."""
        doublings = np.floor(np.log2(np.maximum(widths / self._own, 1))).astype(np.int64)
        steps: Ints = np.where(widths >= self._largest, self._largest, self._own * 2**doublings)
        return steps

    def _snap(self, widths: Any) -> Ints:
        steps = self._steps(widths)
        rounded = np.floor(widths / steps + 0.5) * steps
        first = np.where(widths < self._largest, np.minimum(rounded, self._largest), rounded)  # 16, 25, and not 32
        rounded = np.clip(first, self._low, self._high)
        nearest = rounded
        for special in (np.clip(self._sizes, self._low, self._high), self._low, self._high):
            nearest = np.where(np.abs(widths - special) < np.abs(widths - nearest), special, nearest)
        snapped: Ints = nearest.astype(np.int64)
        return snapped

    def _array(self, widths: Mapping[str, float]) -> Floats:
        return np.array([widths[name] for name in self.names], dtype=np.float64)

    def _named(self, widths: Ints) -> dict[str, int]:
        return dict(zip(self.names, widths.tolist(), strict=True))
