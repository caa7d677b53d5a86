"""Meet a limit on latency by what is measured: choose by the prediction, measure, tighten, and measure again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from conet_onnx import allocating
from conet_onnx.errors import BudgetUnreachable
from conet_onnx.latency.operators import FINEST, Operators
from conet_onnx.latency.prediction import Predictor
from conet_onnx.latency.timing import Comparison

__all__ = ["MARGIN", "TIGHTENINGS", "Met", "Most", "fast_multiples", "in_units", "least_widths", "limit", "met"]

T = TypeVar("T")
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TIGHTENINGS = 3
MARGIN = 0.01  # how much below the limit a tightened choice is to be, for what two measurements differ by
NOTABLE = 0.03  # share of the source's time that a measured cliff must be in, to matter
EXACTLY = 2  # widths that a term may read and be a table; of more, each counts alone


@dataclass(frozen=True, slots=True)
class Most:
    """A limit on latency: seconds, or, if `relative`, a share of the source's."""

    amount: float
    relative: bool

    def share(self, found: Comparison) -> float:
        """How much of the limit a result takes that was measured in turns with its source; above 1 is too much."""
        measured = found.ratio.p50 if self.relative else found.b.p50_ms / 1e3
        return measured / self.amount

    def seconds(self, source: float) -> float:
        """The limit where the source takes so many seconds."""
        return self.amount * source if self.relative else self.amount

    def at(self, found: Comparison) -> str:
        """What a comparison found, in the units of the limit, rounded up."""
        if self.relative:
            return f"latency={math.ceil(1e3 * found.ratio.p50) / 1e3:g} ({found.b.p50_ms:.3f} ms)"
        return f"latency={in_units(found.b.p50_ms / 1e3)} ({found.ratio.p50:.3f} of the source)"

    def __str__(self) -> str:
        return f"{self.amount:g} of the source" if self.relative else in_units(self.amount)


@dataclass(frozen=True, slots=True)
class Met(Generic[T]):
    """What was made within a limit, how it was measured beside the source, and how often the limit was tightened."""

    made: T
    found: Comparison
    tightened: int


def met(choose: Callable[[float], T], measure: Callable[[T], Comparison], most: Most) -> Met[T]:
    """The first of some models that is within a limit as it is measured.

    `choose(f)` makes one that is predicted to take f times the limit at most. Where it takes more of it as it is
    measured, f falls by as much, TIGHTENINGS times at most. Raises BudgetUnreachable, saying the nearest that was
    reached, where that is not enough, and what `choose` raises the first time.
    """
    factor = 1.0
    tried: list[Comparison] = []
    for k in range(1 + TIGHTENINGS):
        try:
            made = choose(factor)
        except BudgetUnreachable:
            if not tried:
                raise
            break
        found = measure(made)
        share = most.share(found)
        if share <= 1:
            return Met(made, found, k)
        tried.append(found)
        factor *= (1 - MARGIN) / share
    nearest = min(tried, key=most.share)
    raise BudgetUnreachable(
        f"The budget (latency {most}) is not met by what was measured, chosen {len(tried)} "
        f"time{'' if len(tried) == 1 else 's'}: the nearest that was reached is {most.at(nearest)}."
    )


def limit(predictor: Predictor, seconds: float) -> allocating.Limit:
    """What a model is predicted to take, as a limit of planning.allocated."""
    terms: list[allocating.Term] = []
    for widths, cost in predictor.terms():
        if len(widths) <= EXACTLY:
            terms.append(allocating.Term(widths, cost))
        else:
            terms += _apart(widths, cost)
    return allocating.Limit(terms, predictor.predict_many, seconds)


def fast_multiples(operators: Operators, predictor: Predictor | None = None) -> dict[str, int]:
    """The multiple of each width that the operators that read it run fast at; 1 where there is none.

    It is the largest of these: a block that the runtime rounds one of their sizes up to; the multiple below which it
    lays them out otherwise; and, by a `predictor`, the block by which an operator of some share of the source's time
    was measured to take its steps (Entry.blocks).
    """
    made = dict.fromkeys(operators.widths, 1)

    def raised(column: int, block: int) -> None:
        ratio, polynomial, _ = operators.expressions[column]
        for monomial, times in polynomial.items():
            if len(monomial) == 1:  # of a product, one factor would be enough: none is asked for it
                name = operators.widths[monomial[0]]
                each = int(ratio * times) if (ratio * times).denominator == 1 else 1
                made[name] = max(made[name], block // math.gcd(block, each))

    for column, (_, _, block) in enumerate(operators.expressions):
        raised(column, block)
    for one, reads in zip(operators.listed, operators.reads, strict=True):
        if one.when != "always":
            for k in reads:
                made[operators.widths[k]] = max(made[operators.widths[k]], operators.multiple)
    if predictor is not None:
        for one, share in predictor.shares():
            blocks = predictor.curves[one.kind].blocks
            for column, block in zip(one.columns, blocks, strict=False):
                raised(column, block if share >= NOTABLE else 1)
    return made


def least_widths(multiples: Mapping[str, int]) -> dict[str, int]:
    """What each width is to be at least, where it has room, for a prediction to hold: its multiple, or the smallest
    size at which operators are measured. Between these, the table knows whether it is faster than the multiple."""
    return {name: min(multiple, FINEST) for name, multiple in multiples.items()}


def in_units(seconds: float) -> str:
    """As a budget has it, rounded up to three decimals: 0.0051234 -> 5.124ms."""
    unit, factor = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-4 else ("us", 1e-6)
    return f"{math.ceil(round(1e3 * seconds / factor, 6)) / 1e3:g}{unit}"


def _apart(widths: tuple[int, ...], cost: Callable[[Ints], Floats]) -> list[allocating.Term]:
    """One term for each width while the others are at one, and what all at one take.

    A product grows faster than that, so that the sum is below the cost, as an allocation's bound needs it.
    """

    def alone(k: int) -> Callable[[Ints], Floats]:
        def seconds(sizes: Ints) -> Floats:
            rows = np.ones((len(sizes), len(widths)), dtype=np.int64)
            least = cost(rows[:1])
            rows[:, k] = sizes[:, 0]
            return np.maximum(cost(rows) - least, 0.0)

        return seconds

    least = float(cost(np.ones((1, len(widths)), dtype=np.int64))[0])
    constant = allocating.Term((), lambda sizes: np.full(len(sizes), least))
    return [constant, *(allocating.Term((w,), alone(k)) for k, w in enumerate(widths))]
