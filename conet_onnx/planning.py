"""Decide a resize: new widths and channel scores become a plan, a plain value that rewriting only carries out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from conet_onnx.allocating import Limit, Term, allocate, climb
from conet_onnx.analysis import Analysis
from conet_onnx.costs import Costs, Price
from conet_onnx.coupling import Width
from conet_onnx.dims import Axis, Dim
from conet_onnx.errors import BudgetUnreachable, UsageError
from conet_onnx.folding import Use
from conet_onnx.plans import NULL, Floats, Indices, Integer, Take, UsePlan, WidthChange, WidthPlan
from conet_onnx.scoring import importance
from conet_onnx.sites import places
from conet_onnx.sizes import Polynomials, compile_table

__all__ = [
    "TRANSFERS",
    "Allocated",
    "Selection",
    "allocated",
    "budgeted",
    "check_transfer",
    "kept",
    "plan",
    "ranked",
    "scaled",
    "select",
]

Ints = NDArray[np.int64]
Multiple: TypeAlias = int | Mapping[str, int] | None
TRANSFERS = ("slice", "svd", "evbmf", "net2net", "zero", "least-squares")
TINY, SMALL = 1e-300, 1e-9
LEVELS = 32  # of each width, that an allocation chooses among
FIRST = ("svd", "evbmf")  # they keep the first channels, whatever the scores


@dataclass(frozen=True, slots=True)
class Allocated:
    """New widths, and those that were left alone with the reason.

    `loss` is what the scores say is lost by them. `gap` is by how much, as a share, the loss of the choice that they
    were begun from may exceed the least, among the sizes that were tried for each width (see `allocated`).
    """

    widths: dict[str, int]
    left: dict[str, str]
    loss: float
    gap: float

    @property
    def note(self) -> str:
        """In words."""
        share = f"within {100 * self.gap:.2g}%" if self.gap >= 5e-5 else "within 0.01%"
        return (
            f"Widths: {share} of the least that can be lost by these scores, among about {LEVELS} sizes for each; then "
            "single channels."
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """Which source channels a width keeps, in order, a repeated one being a copy; and each copy's divisor.

    Where a contraction sums over the width, its weight is divided: sum(1/divide) over the copies of a channel is 1, so
    that the sum stays. Two activations are divided by the square root each. An infinite divisor makes zeros.
    """

    indices: Indices
    divide: Floats


def plan(
    analysis: Analysis,
    widths: Mapping[str, int],
    scores: Mapping[str, NDArray[np.float64]] | None = None,
    *,
    transfer: str = "slice",
    seed: int = 0,
    exact: bool = False,
    inexact: bool = False,
) -> WidthPlan:
    """Decide how to give some widths new sizes.

    Shrinking keeps the channels of highest score (by default l2 importance; see `ranked`), in their order. Growing
    copies channels and divides them where they are summed, which keeps the function: evenly (`slice`), in
    uneven, seeded shares that training can pull apart (`net2net`, `least-squares`; Chen et al., 2016,
    arXiv:1511.05641), or with nothing for the copies (`zero`; where two activations share them, evenly: zeros on both
    sides would never learn). `svd` and `evbmf` do as CONETv2 has it (arXiv:2110.06830): the first channels stay, the
    last ones are copied, and nothing is divided, so that growth changes the function. What becomes of values other
    than their places is not a plan's: see transfer. A width whose channels are averaged (mixed) grows by whole
    multiples only, unless `inexact`; with `exact` it must not shrink. One with a `max` does not grow (see growing).
    Raises UsageError for an unknown id, a size that is not a positive integer, or such a width.
    """
    check_transfer(transfer)
    for name, size in widths.items():
        _check(analysis, name, size, exact=exact, inexact=inexact)
    if not inexact:
        for name, node in _uneven(analysis, widths).items():
            raise UsageError(
                f"width {name} ({analysis.widths[name].name}) is averaged over by {node} together with others: all of "
                "them must grow by the same whole multiple. Grow them so, or allow an approximation (--inexact)."
            )
    moving = {name: int(size) for name, size in widths.items() if int(size) != analysis.widths[name].size}
    if scores is None:
        asked = [] if transfer in FIRST else ranked(analysis, moving)
        scores = importance(analysis.graph, "l2", analysis=analysis, widths=asked)
    rng = np.random.default_rng(seed)
    chosen = {}
    for name in analysis.widths:
        if name in moving:
            score = np.asarray(scores.get(name, np.ones(analysis.widths[name].size)), dtype=np.float64)
            width = analysis.widths[name]
            how = "slice" if transfer == "zero" and width.dim in analysis.growth.shared else transfer
            chosen[name] = _choose(width, moving[name], score, how, rng)
    return select(analysis, chosen)


def check_transfer(transfer: str) -> None:
    """Raise UsageError for a policy that is none."""
    if transfer not in TRANSFERS:
        raise UsageError(f"transfer {transfer!r} is not known; choose one of {', '.join(TRANSFERS)}.")


def ranked(analysis: Analysis, widths: Mapping[str, int]) -> list[str]:
    """Those of some widths with new sizes for which it matters how their channels rank: whole multiples take all."""
    return [name for name, width in analysis.widths.items() if widths.get(name, width.size) % width.size]


class Fits(Protocol):
    """Anything that says whether a price is within limits."""

    def fits(self, price: Price, /) -> bool:
        """Whether all limits hold."""


def scaled(
    analysis: Analysis, scale: float, *, multiple: Multiple = None, exact: bool = False, inexact: bool = False
) -> tuple[dict[str, int], dict[str, str]]:
    """Every width times `scale`, rounded (to a multiple of `multiple`, where the width has room for one; by width
    where that is a mapping), at least 1.

    Returns the new widths, and those that were left alone with the reason: mixed widths shrink unless `exact`, and
    grow by whole multiples unless `inexact`; those with a `max` only shrink. Raises UsageError for a scale or multiple
    that is not positive.
    """
    if not scale > 0 or not np.isfinite(scale):
        raise UsageError(f"a scale must be a positive number, got {scale!r}.")
    if isinstance(multiple, int) and multiple < 1:
        raise UsageError(f"a multiple must be at least 1, got {multiple}.")
    widths, left = {}, {}
    for name, width in analysis.widths.items():
        step = _of(multiple, name)
        size = (
            max(1, round(width.size * scale / step) * step)
            if width.size * scale >= step
            else max(1, round(width.size * scale))
        )
        if width.max is not None and size > width.max:
            left[name] = f"{width.limit}: it cannot grow"
        elif width.mixed_by and size < width.size and exact:
            left[name] = f"averaged over by {width.mixed_by[0]}: shrinking it is not exact"
        elif width.mixed_by and size > width.size and not inexact:
            times = int(scale + 1e-9)
            widths[name] = width.size * times
            if times * width.size != size:
                left[name] = f"averaged over by {width.mixed_by[0]}: it keeps its function only at whole multiples"
        else:
            widths[name] = size
    if not inexact:
        while uneven := _uneven(analysis, widths):
            for name in uneven:
                widths[name] = analysis.widths[name].size
                left[name] = f"averaged over by {uneven[name]}, together with channels that do not grow as much"
    return {n: s for n, s in widths.items() if s != analysis.widths[n].size}, left


def budgeted(
    analysis: Analysis, limits: Fits, *, multiple: Multiple = None, exact: bool = False
) -> tuple[dict[str, int], dict[str, str]]:
    """The largest scale of at most one whose price is within the limits, by bisection; returns what `scaled` does.

    Raises BudgetUnreachable, saying the nearest price, where even the smallest widths exceed a limit.
    """
    costs = analysis.costs
    if limits.fits(costs.source):
        return {}, {}
    low, high = 0.0, 1.0
    best = scaled(analysis, 1e-9, multiple=multiple, exact=exact)
    if not limits.fits(smallest := costs.price(best[0])):
        raise _unreachable(smallest)
    for _ in range(40):
        middle = (low + high) / 2
        trial = scaled(analysis, middle, multiple=multiple, exact=exact)
        if limits.fits(costs.price(trial[0])):
            low, best = middle, trial
        else:
            high = middle
    return best


def allocated(
    analysis: Analysis,
    most: Mapping[str, float],
    scores: Mapping[str, NDArray[np.float64]],
    *,
    further: Sequence[Limit] = (),
    multiple: Multiple = None,
    least: Multiple = 1,
    exact: bool = False,
    tolerance: float = 1e-3,
    seconds: float = 1.5,
) -> Allocated:
    """The widths, none above the source's, that keep most of the scores within limits (allocating.allocate).

    `most`: by params, macs and bytes, the largest price. `further` limits read sizes in the order of `costs.row`.
    `scores`: for each channel of each width what is lost without it, all on one scale (criteria); the loss of those
    that go is total · log(total / kept), their sum where they are few. Sizes are multiples of `multiple` (of a width's
    own, where that is a mapping, as `least` may be), below the first of them powers of two; of these about LEVELS are
    tried for each width, evenly spread, and `gap` is how far the loss may be above the smallest among them; none is
    below `least`, where a width has room. What that leaves of a limit is then spent in single steps. Mixed widths stay
    if `exact`.

    Raises BudgetUnreachable, saying the nearest price, where even the smallest widths exceed a limit.
    """
    costs = analysis.costs
    limits = [*(_limit(costs, kind, value) for kind, value in most.items()), *further]
    every = [(n, width, _levels(width, _of(multiple, n), exact=exact)) for n, width in analysis.widths.items()]
    fine = [some[some >= min(_of(least, n), width.size)] for n, width, some in every]
    coarse = [np.unique(np.append(some[:: -max(1, len(some) // LEVELS)], some[0])) for some in fine]
    curves = [kept(w, np.asarray(scores.get(name, np.ones(w.size)))) for name, w in analysis.widths.items()]
    found = allocate(coarse, _at(curves, coarse), limits, tolerance=tolerance, seconds=seconds)
    if found is None:
        smallest = costs.price(dict(zip(analysis.widths, (int(some[0]) for some in fine), strict=True)))
        raise _unreachable(smallest)
    spent = climb(fine, _at(curves, fine), limits, found.sizes, seconds=seconds / 2)
    widths = {n: int(s) for (n, w), s in zip(analysis.widths.items(), spent, strict=True) if int(s) != w.size}
    lost = -sum(float(curve[size]) for curve, size in zip(curves, spent, strict=True))
    left = {
        n: f"averaged over by {w.mixed_by[0]}: shrinking it is not exact"
        for n, w in analysis.widths.items()
        if w.mixed_by and exact
    }
    return Allocated(widths, left, lost, found.gap)


def kept(width: Width, scores: Floats) -> Floats:
    """What its best n channels are worth, [size + 1] for n from none to all: total · log(kept / total), never above 0.

    That is minus the sum of what went, where it is little; without any channel the model would be cut. Raises
    UsageError for another number of scores.
    """
    if scores.shape != (width.size,):
        raise UsageError(
            f"scores of {width.id} ({width.name}): expected {width.size} numbers, got shape {scores.shape}."
        )
    best = np.cumsum(np.sort(np.maximum(np.asarray(scores, dtype=np.float64), 0))[::-1])
    total = max(float(best[-1]), TINY)
    return np.concatenate([[-np.inf], total * np.log(np.maximum(best, SMALL * total) / total)])


def _at(curves: Sequence[Floats], levels: Sequence[Ints]) -> list[Floats]:
    return [curve[some] for curve, some in zip(curves, levels, strict=True)]


def select(analysis: Analysis, selections: Mapping[str, Selection]) -> WidthPlan:
    """The plan that gives each named width exactly these channels. Raises UsageError for copies of what cannot grow."""
    for name, selection in selections.items():
        if analysis.widths[name].max is not None and len(set(selection.indices.tolist())) < len(selection.indices):
            width = analysis.widths[name]
            raise UsageError(f"width {name} ({width.name}): {width.limit}: it cannot grow.")
    return _Compiler(analysis, selections).run()


def _of(multiple: Multiple, name: str) -> int:
    """The multiple of one width."""
    return (multiple.get(name, 1) if isinstance(multiple, Mapping) else multiple) or 1


def _unreachable(smallest: Price) -> BudgetUnreachable:
    return BudgetUnreachable(
        "the budget cannot be met: with every width at its smallest there still are "
        f"params={smallest.params}, macs={smallest.macs}, bytes={smallest.bytes}. Ask for at least that."
    )


def _limit(costs: Costs, kind: str, most: float) -> Limit:
    column = Price._fields.index(kind)
    terms = [Term(*term) for term in costs.terms(kind)]
    return Limit(terms, lambda rows: costs.price_many(rows)[:, column].astype(np.float64), most)


def _levels(width: Width, step: int, *, exact: bool) -> Ints:
    """The sizes that a width may shrink to, and its own: multiples of a step, and powers of two below the first."""
    if width.mixed_by and exact:
        return np.array([width.size])
    if width.size < step:
        return np.arange(1, width.size + 1)
    below = 2 ** np.arange((step - 1).bit_length())
    return np.unique(np.concatenate([below, np.arange(step, width.size + 1, step), [width.size]]))


def _check(analysis: Analysis, name: str, size: int, *, exact: bool, inexact: bool) -> None:
    width = analysis.widths.get(name)
    if width is None:
        why = "is frozen" if name in analysis.all_widths else "is not a width of this model"
        raise UsageError(f"{name!r} {why}; see `conet-onnx analyze` for the ids ({len(analysis.widths)} widths).")
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise UsageError(f"width {name} ({width.name}): expected a whole number of at least 1, got {size!r}.")
    if width.max is not None and size > width.max:
        raise UsageError(f"width {name} ({width.name}): {width.limit}: it cannot grow beyond {width.max}, got {size}.")
    if not width.mixed_by or size == width.size:
        return
    by = ", ".join(width.mixed_by)
    if size < width.size and exact:
        raise UsageError(f"width {name} ({width.name}) is averaged over by {by}: shrinking it is not exact (--exact).")
    if size > width.size and size % width.size and not inexact:
        raise UsageError(
            f"width {name} ({width.name}) is averaged over by {by}: it keeps its function only at multiples of "
            f"{width.size}, got {size}. Choose one, or allow an approximation (--inexact)."
        )


def _uneven(analysis: Analysis, widths: Mapping[str, int]) -> dict[str, str]:
    """Widths that grow inside an average whose other parts grow by another factor; and the node that averages.

    A mean over copies is the mean over the originals only where every part of the axis has as many copies.
    """
    factors = {
        analysis.widths[name].dim: Fraction(int(size), analysis.widths[name].size) for name, size in widths.items()
    }
    ids = {width.dim: name for name, width in analysis.widths.items()}
    found = {}
    for node, segment in analysis.mixes:
        ax = analysis.axis(segment)
        grown = [d for d in analysis.solver.leaves(ax) if factors.get(d, 1) > 1]
        ratios = {prod((factors.get(d, Fraction(1)) for d in s.dims), start=Fraction(1)) for s in ax.segments}
        composite = any(analysis.solver.is_composite(d) for d in ax.dims)
        if grown and (composite or len(ratios) > 1):
            found.update({ids[d]: analysis.graph.nodes[node].name for d in grown})
    return found


def _choose(width: Width, size: int, scores: Floats, transfer: str, rng: np.random.Generator) -> Selection:
    if scores.shape != (width.size,):
        raise UsageError(
            f"scores of {width.id} ({width.name}): expected {width.size} numbers, got shape {scores.shape}."
        )
    rounds, rest = divmod(size, width.size)
    if transfer in FIRST:  # more than twice as many: all of them in turn, and then the last ones
        copied = np.arange(width.size - rest if rounds else 0, width.size if rounds else size)
        return Selection(np.concatenate([np.tile(np.arange(width.size), rounds), copied]), np.ones(size))
    best = np.sort(np.argsort(-scores, kind="stable")[:rest])  # in their order: neighbours are copied together
    indices = np.concatenate([np.tile(np.arange(width.size), rounds), best])
    if not rounds:
        return Selection(indices, np.ones(size))
    extra = indices[width.size :]
    copies = np.bincount(indices, minlength=width.size)
    if transfer == "zero":
        return Selection(indices, np.concatenate([np.ones(width.size), np.full(len(extra), np.inf)]))
    if transfer == "slice":
        return Selection(indices, copies[indices].astype(np.float64))
    shares = np.where(copies[indices] > 1, rng.uniform(0.5, 1.5, size), 1.0)
    return Selection(indices, np.bincount(indices, weights=shares)[indices] / shares)


class _Compiler:
    """Carries selections of dims over to the axes of weights and to integers."""

    def __init__(self, analysis: Analysis, selections: Mapping[str, Selection]) -> None:
        self._analysis = analysis
        self._solver = analysis.solver
        self._chosen: dict[Dim, Selection] = {}
        self._positions: dict[Axis, Indices | None] = {}
        for name, selection in selections.items():
            width = analysis.widths[name]
            same = len(selection.indices) == width.size and np.array_equal(selection.indices, np.arange(width.size))
            if not same:
                self._chosen[width.dim] = selection
        self._selections = selections
        self._new = np.array(
            [[len(self._chosen[w.dim].indices) if w.dim in self._chosen else w.size for w in analysis.widths.values()]]
        )
        self._summed = {(part.tensor, part.axis): part.leaves for f in analysis.contractions for part in f.parts}
        shared = {dim: axes for dim, axes in analysis.growth.shared.items() if dim in self._chosen}
        for dim, axes in shared.items():
            chosen = self._chosen[dim]
            self._chosen[dim] = replace(chosen, divide=np.sqrt(chosen.divide))
            for place in axes:
                self._summed[place] = self._summed.get(place, frozenset()) | {dim}

    def run(self) -> WidthPlan:
        graph = self._analysis.graph
        graph.hash_ahead()  # the plan names the file by it
        initializers: dict[str, Take | tuple[UsePlan, ...]] = {}
        integers: tuple[Integer, ...] = ()
        if self._chosen:
            uses: dict[str, list[Use]] = {}
            for use in self._analysis.distinct_uses:
                uses.setdefault(use.tensor, []).append(use)
            for tensor, readers in uses.items():
                if (made := self._weight(tensor, readers)) is not None:
                    initializers[tensor] = made
            initializers.update(self._numbers())
            integers = tuple(self._integers())
        widths = {
            name: WidthChange(w.name, w.size, len(self._selections[name].indices))
            for name, w in self._analysis.widths.items()
            if name in self._selections
        }
        return WidthPlan(graph.file, graph.sha256, widths, initializers, integers)

    def _weight(self, tensor: str, uses: list[Use]) -> Take | tuple[UsePlan, ...] | None:
        if len(uses) == 1:
            take = self._take(uses[0])
            return take if take.take else None
        nodes = self._analysis.graph.nodes
        names = [tensor, *(self._unused(f"{tensor}.{nodes[u.node].name}.{u.input}") for u in uses[1:])]
        return tuple(
            UsePlan(nodes[u.node].name, u.input, name, self._take(u)) for u, name in zip(uses, names, strict=True)
        )

    def _numbers(self) -> dict[str, tuple[UsePlan, ...]]:
        """Numbers that the source computes from sizes: their readers get them as they are in the source."""
        graph = self._analysis.graph
        found: dict[str, list[UsePlan]] = {}
        for index, k in self._analysis.settled:
            node = graph.nodes[index]
            tensor = node.inputs[k]
            take = Take(tuple(a for a, _ in graph.sizes(tensor) or ()))
            made = UsePlan(node.name, k, self._unused(f"{tensor}.{node.name}.{k}"), take)
            found.setdefault(tensor, []).append(made)
        return {tensor: tuple(uses) for tensor, uses in found.items()}

    def _unused(self, name: str) -> str:
        while name in self._analysis.graph.names:
            name += "_"
        return name

    def _take(self, use: Use) -> Take:
        takes, divides = {}, {}
        for k, segment in enumerate(use.shape):
            ax = self._analysis.axis(segment)
            if (indices := self._taken(ax)) is None:
                continue
            takes[k] = indices
            summed = self._summed.get((use.tensor, k), frozenset())
            if not summed.isdisjoint(self._chosen.keys() & self._solver.leaves(ax)):
                divide = self._divisors(ax, summed)
                takes[k] = np.where(np.isinf(divide), NULL, takes[k])
                divide = self._as_precise(use.tensor, np.where(np.isinf(divide), 1.0, divide))
                if (divide != 1).any():
                    divides[k] = divide
        return Take(tuple(s.size[0] for s in use.shape), takes, divides)

    def _taken(self, ax: Axis) -> Indices | None:
        """Source positions along an axis, made once for all that lie along it; None where they stay as they are."""
        if ax not in self._positions:
            changed = not self._chosen.keys().isdisjoint(self._solver.leaves(ax))
            self._positions[ax] = self._indices(ax) if changed else None
        return self._positions[ax]

    def _as_precise(self, tensor: str, divide: Floats) -> Floats:
        """Divisors of single precision where the weight has no more: a plan says them shortly, and they are applied
        without another type."""
        double = self._analysis.graph.weights[tensor].data_type == TensorProto.DOUBLE
        return divide if double else divide.astype(np.float32).astype(np.float64)

    def _indices(self, ax: Axis) -> Indices:
        """Source positions along an axis, in the order of the new ones: row-major over products, in turn over sums."""
        parts, offset = [], 0
        for segment in ax.segments:
            found: Indices | None = None
            for factor in segment.factors:
                n = factor if isinstance(factor, int) else factor.size[0]
                own = self._of_factor(factor, n)
                found = own if found is None else (found[:, None] * n + own).ravel()
            parts.append(np.array([offset]) if found is None else found + offset)
            offset += segment.size[0]
        return np.concatenate(parts)

    def _of_factor(self, factor: Dim | int, n: int) -> Indices:
        if isinstance(factor, Dim):
            if factor in self._chosen:
                return self._chosen[factor].indices
            if self._solver.is_composite(factor):
                return self._indices(self._solver.resolve_dim(factor))
        return np.arange(n, dtype=np.int64)

    def _divisors(self, ax: Axis, summed: frozenset[Dim]) -> Floats:
        """The divisor at each new position along an axis; those of the dims that are summed over multiply."""
        parts = []
        for segment in ax.segments:
            found: Floats | None = None
            for factor in segment.factors:
                if isinstance(factor, Dim) and factor in self._chosen:
                    chosen = self._chosen[factor]
                    own = chosen.divide if factor in summed else np.ones(len(chosen.indices))
                elif isinstance(factor, Dim) and self._solver.is_composite(factor):
                    own = self._divisors(self._solver.resolve_dim(factor), summed)
                else:
                    own = np.ones(factor if isinstance(factor, int) else factor.size[0])
                found = own if found is None else np.outer(found, own).ravel()
            parts.append(np.ones(1) if found is None else found)
        return np.concatenate(parts)

    def _integers(self) -> list[Integer]:
        polynomials = Polynomials(self._analysis)
        count = len(self._analysis.widths)

        def size(ax: Axis) -> int:
            return int(compile_table([polynomials.of(ax)], count)(self._new)[0, 0])

        made = []
        for place in places(self._analysis):
            new = place.edits(size)
            for k, (a, b) in enumerate(zip(place.values, new or (), strict=False)):
                if a != b or place.whole:
                    made.append(Integer(place.node.name, place.where, k, a, b))
        return made
