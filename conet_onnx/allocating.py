"""Which sizes keep most value within limits: a knapsack whose costs are products of neighbouring sizes.

With multipliers p for the limits, the best of value - p · cost over all choices bounds what any choice within the
limits can keep (Everett, 1963; Fisher, 1981). That best is found exactly by eliminating one width after another where
the widths that meet in a cost are few (Bertelè and Brioschi, 1972; Dechter, 1999), and else bounded by passing shares
of the costs between them (max-sum diffusion, sequential as TRW-S: Kolmogorov, 2006). Branching on one width's range
closes what the multipliers leave open, down to ranges whose few choices are gone through.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

__all__ = ["Allocation", "Limit", "Term", "allocate", "climb"]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Scope: TypeAlias = tuple[int, ...]

FEW = 4096  # choices that are gone through sooner than bounded
LARGEST = 1 << 18  # elements of a table in an exact elimination
ROUNDS = 12  # of each search for a multiplier
HIGHEST = 1e12  # of a multiplier, times the value: no cost is worth that
SWEEPS = 30  # of messages, forth and back, at one multiplier
ROUNDING = 1e-12  # of the largest values' sum
SLACK = 1e-6  # share of a limit by which adding its terms up may differ from what is spent
SETTLED = 1e-4  # a bound that falls by a smaller share stays
DOWN = 3  # steps that one width gives for one of another
STARTS = 65  # choices with the same share of levels everywhere, that are tried first
AT_ONCE = 256  # moves that are priced together


class Term(NamedTuple):
    """A part of a cost: which widths it reads, and what it makes of their sizes, [n, widths] -> [n], never negative and
    never less for larger sizes."""

    widths: Scope
    cost: Callable[[Ints], Floats]


@dataclass(frozen=True, slots=True)
class Limit:
    """An upper limit: the sum of the terms and what `spent` says of whole rows of sizes, [n, widths] -> [n].

    `spent` is what must be within `most`. The terms are what the bound is made of: their sum must not exceed `spent`.
    """

    terms: Sequence[Term]
    spent: Callable[[Ints], Floats]
    most: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """Sizes, what they keep, and what no choice among the levels can exceed."""

    sizes: tuple[int, ...]
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the value may be below the best, at most, as a share of the bound; 0 is optimal."""
        return max(0.0, self.bound - self.value) / max(abs(self.bound), 1e-300)


def allocate(
    levels: Sequence[Ints],
    values: Sequence[Floats],
    limits: Sequence[Limit],
    *,
    tolerance: float = 1e-3,
    seconds: float = 1.0,
    parted: float = math.inf,
) -> Allocation | None:
    """The levels, one a width, with the largest sum of values within all limits; None where the smallest exceed one.

    `levels` are ascending sizes of each width, `values` what a width is worth at each of them. Ends when the gap is at
    most the tolerance, when ranges of choices have been `parted` so often, or soon after so many seconds: the gap is
    stated in any case, and holds for these levels.
    """
    problem = _Problem.of(levels, values, limits)
    start = np.zeros(len(levels), dtype=np.int64)
    if not problem.fits(start[None])[0]:
        return None
    full = np.array([len(some) - 1 for some in levels])
    if problem.fits(full[None])[0] and all(v.argmax() == len(v) - 1 for v in problem.values):
        return problem.allocation(full, problem.value(full))
    best, bound = _search(problem, time.perf_counter() + seconds, tolerance, parted)
    return problem.allocation(best, bound)


def climb(
    levels: Sequence[Ints], values: Sequence[Floats], limits: Sequence[Limit], start: Sequence[int], *, seconds: float
) -> tuple[int, ...]:
    """From sizes among the levels that are within the limits, moves that add value, until there is none or time is up:
    one width to any level, or one a step up and another down. The arguments are `allocate`'s; terms are not read."""
    problem = _Problem.made(levels, values, limits, {}, np.zeros(len(limits)))
    chosen = np.array(
        [int(np.searchsorted(some, size)) for some, size in zip(levels, start, strict=True)], dtype=np.int64
    )
    found = _climbed(problem, chosen, time.perf_counter() + seconds)
    return tuple(problem.sizes(found[None])[0].tolist())


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Sums of the elements that choices read in some tables, in one go."""

    elements: Floats  # [rows, all tables' elements], one table behind the other
    first: Ints  # [tables]
    strides: Ints  # [widths, tables]

    @classmethod
    def of(cls, tables: Mapping[Scope, Floats], rows: int, widths: int) -> _Gathered:
        """Tables are [rows, levels of the first width of the scope, ...]."""
        flat = [np.zeros((rows, 0)), *(table.reshape(rows, -1) for table in tables.values())]
        strides = np.zeros((widths, len(tables)), dtype=np.int64)
        for k, (scope, table) in enumerate(tables.items()):
            for axis, width in enumerate(scope):
                strides[width, k] = math.prod(table.shape[axis + 2 :])
        ends = np.cumsum([0, *(part.shape[1] for part in flat[1:])])
        return cls(np.concatenate(flat, axis=1), ends[:-1], strides)

    def __call__(self, chosen: Ints) -> Floats:
        """[..., widths] -> [..., rows]."""
        sums: Floats = self.elements.T[self.first + chosen @ self.strides].sum(-2)
        return sums


@dataclass(frozen=True, slots=True)
class _Problem:
    """Choices as indices into the levels, [widths]; costs as shares of their limits."""

    levels: Sequence[Ints]
    values: Sequence[Floats]
    limits: Sequence[Limit]
    tables: dict[Scope, Floats]  # [limits, levels of the first width, ...]
    base: Floats  # [limits]: what is spent in any case
    worth: _Gathered  # the values,
    spends: _Gathered  # and the tables, of whole choices

    @classmethod
    def of(cls, levels: Sequence[Ints], values: Sequence[Floats], limits: Sequence[Limit]) -> _Problem:
        levels = [np.asarray(some, dtype=np.int64) for some in levels]
        tables: dict[Scope, Floats] = {}
        base = np.zeros(len(limits))
        for k, limit in enumerate(limits):
            for widths, cost in limit.terms:
                scope = tuple(sorted(set(widths)))
                sizes = [levels[w] for w in scope]
                grid = np.stack(np.meshgrid(*sizes, indexing="ij"), -1).reshape(-1, len(scope)) if scope else None
                if grid is None:
                    base[k] += float(cost(np.zeros((1, 0), dtype=np.int64))[0]) / limit.most
                    continue
                made = np.asarray(cost(grid[:, [scope.index(w) for w in widths]]), dtype=np.float64) / limit.most
                shape = tuple(len(some) for some in sizes)
                table = tables.setdefault(scope, np.zeros((len(limits), *shape)))
                table[k] += made.reshape(shape)
        return cls.made(levels, values, limits, tables, base)

    @classmethod
    def made(
        cls,
        levels: Sequence[Ints],
        values: Sequence[Floats],
        limits: Sequence[Limit],
        tables: dict[Scope, Floats],
        base: Floats,
    ) -> _Problem:
        values = [np.asarray(v, dtype=np.float64) for v in values]
        worth = _Gathered.of({(w,): v[None] for w, v in enumerate(values)}, 1, len(levels))
        return cls(levels, values, limits, tables, base, worth, _Gathered.of(tables, len(limits), len(levels)))

    def sizes(self, chosen: Ints) -> Ints:
        """[n, widths] indices -> sizes."""
        return np.stack([some[chosen[:, w]] for w, some in enumerate(self.levels)], 1) if self.levels else chosen

    def spent(self, chosen: Ints) -> Floats:
        """[n, widths] -> [n], the largest share of a limit."""
        sizes = self.sizes(chosen)
        shares = [np.asarray(limit.spent(sizes), dtype=np.float64) / limit.most for limit in self.limits]
        return np.max(shares, axis=0) if shares else np.zeros(len(chosen))

    def fits(self, chosen: Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """[n, widths] -> [n]. What is spent is asked only where the terms, which do not exceed it, leave it open."""
        within: np.ndarray[Any, np.dtype[np.bool_]] = np.all(self.costs(chosen) <= 1 + SLACK, axis=1)
        if within.any():
            within[within] = self.spent(chosen[within]) <= 1
        return within

    def value(self, chosen: Ints) -> float:
        """Of one choice."""
        return float(self.worth(chosen)[0])

    def costs(self, chosen: Ints) -> Floats:
        """The terms' sums, [..., widths] -> [..., limits]."""
        return self.spends(chosen) + self.base

    def allocation(self, chosen: Ints, bound: float) -> Allocation:
        """As the caller wants it."""
        value = self.value(chosen)
        above = bound - value
        return Allocation(tuple(self.sizes(chosen[None])[0].tolist()), value, bound if above > self.rounding else value)

    @property
    def rounding(self) -> float:
        """What adding up values in another order may change: a bound is no nearer than that."""
        return ROUNDING * sum(float(np.abs(v[np.isfinite(v)]).max(initial=0.0)) for v in self.values)


# Bounds


class _Node(NamedTuple):
    """A part of the choices, from `low` to `high` inclusive, and what none of them exceeds."""

    low: Ints
    high: Ints
    bound: float
    multipliers: Floats
    apart: tuple[Ints, Ints]  # two choices that are best at these multipliers, on either side of a limit


class _Answer(NamedTuple):
    """What multipliers say: a bound, the choice that is best (or near it), and its terms beyond each limit."""

    bound: float
    chosen: Ints
    over: Floats
    value: float


class _Relaxed(Protocol):
    """Bounds value - cost over a range of choices."""

    def best(self, multipliers: Floats, low: Ints, high: Ints) -> tuple[float, Ints]:
        """An upper bound of value - multipliers · tables from low to high, and a choice that is at it or near it."""


def _search(problem: _Problem, deadline: float, tolerance: float, parted: float) -> tuple[Ints, float]:
    """Best first, until the best bound is near the best choice, or enough has been parted, or time is up."""
    low = np.zeros(len(problem.levels), dtype=np.int64)
    high = np.array([len(some) - 1 for some in problem.levels])
    found = _Incumbent(problem, low, tolerance)
    if _few(low, high):
        found.go_through(low, high)
        return found.chosen, found.value
    relaxed: _Relaxed = _Eliminating.of(problem) or _Passing.of(problem)
    root = _bounded(problem, relaxed, low, high, _along(problem, found, high), found, deadline)
    found.improve(deadline)
    count = itertools.count()
    waiting = [(-root.bound, next(count), root)]
    while waiting:
        bound = -waiting[0][0]
        if found.near(bound) or parted <= 0 or time.perf_counter() > deadline:
            return found.chosen, bound
        node = heapq.heappop(waiting)[2]
        parted -= 1
        for below, above in _halves(node):
            if _few(below, above):
                found.go_through(below, above)
                continue
            part = _bounded(problem, relaxed, below, above, node.multipliers, found, deadline)
            if part.bound > found.value:
                heapq.heappush(waiting, (-min(part.bound, node.bound), next(count), part))
    return found.chosen, found.value


def _few(low: Ints, high: Ints) -> bool:
    """Whether so few choices are in a range that each can be looked at."""
    choices: int = math.prod((high - low + 1).tolist())
    return choices <= FEW


def _along(problem: _Problem, found: _Incumbent, high: Ints) -> Floats:
    """Offer choices with the same share of the levels everywhere; multipliers to begin with: what more of the limit
    that is met first is worth along this way."""
    shares = np.linspace(0, 1, STARTS)
    rows = np.floor(shares[:, None] * high + 1e-9).astype(np.int64)
    last = max(int(np.count_nonzero(problem.fits(rows))) - 1, 0)
    found.offer(rows[last])
    here, there = rows[last], rows[min(last + 1, STARTS - 1)]
    more = problem.costs(there) - problem.costs(here)
    first = int(problem.costs(there).argmax())
    multipliers = np.zeros(len(more))
    gained = problem.value(there) - problem.value(here)
    multipliers[first] = max(gained, 0.0) / more[first] if more[first] > 0 else 0.0
    return multipliers


def _halves(node: _Node) -> Iterator[tuple[Ints, Ints]]:
    """The choices parted at the width in which the two best ones differ most, or else at the widest range."""
    a, b = node.apart
    spread = np.abs(a - b)
    width = int(spread.argmax() if spread.any() else (node.high - node.low).argmax())
    if node.low[width] == node.high[width]:  # a single choice, which was offered
        return
    ends = (a, b) if spread.any() else (node.low, node.high)
    middle = min(max(int(ends[0][width] + ends[1][width]) // 2, int(node.low[width])), int(node.high[width]) - 1)
    below, above = node.high.copy(), node.low.copy()
    below[width], above[width] = middle, middle + 1
    yield node.low, below
    yield above, node.high


def _bounded(
    problem: _Problem, relaxed: _Relaxed, low: Ints, high: Ints, start: Floats, found: _Incumbent, deadline: float
) -> _Node:
    """The smallest bound that multipliers give; it is convex in each, and found by chords, one limit after another."""
    if (problem.costs(low) > 1 + 1e-12).any():
        return _Node(low, high, -np.inf, start, (low, low))
    best = _Node(low, high, np.inf, start, (low, high))

    def ask(multipliers: Floats, other: Ints | None = None) -> _Answer:
        nonlocal best
        bound, chosen = relaxed.best(multipliers, low, high)
        over, value = problem.costs(chosen) - 1, problem.value(chosen)
        if (over <= SLACK).all():
            found.offer(chosen)
        made = _Answer(bound + float(multipliers @ (1 - problem.base)), chosen, over, value)
        if made.bound < best.bound:
            best = _Node(low, high, made.bound, multipliers, (chosen, chosen if other is None else other))
        return made

    nothing = np.zeros_like(start)
    free = ask(nothing)
    for k in [*range(len(start))] * (2 if len(start) > 1 else 1):
        at = best.multipliers
        over = ask(_with(at, k, 0.0)) if at.any() else free
        if over.over[k] <= 0:
            continue
        p = (
            float(start[k])
            or float(start.max())
            or (free.value - problem.value(low)) / float((free.over - problem.costs(low) + 1).max())
        )
        under = ask(_with(at, k, p), over.chosen)
        while under.over[k] > 0 and p < HIGHEST * max(abs(free.bound), 1.0):
            over, p = under, 2 * p
            under = ask(_with(at, k, p), over.chosen)
        for _ in range(ROUNDS):
            if found.near(best.bound) or over.over[k] <= under.over[k] or time.perf_counter() > deadline:
                break
            # Each answer is a line in p, below which the bound cannot fall; the two meet here.
            lines = [one.value - float(_with(at, k, 0.0) @ one.over) for one in (over, under)]
            p = max(0.0, (lines[0] - lines[1]) / float(over.over[k] - under.over[k]))
            made = ask(_with(at, k, p), over.chosen)
            if best.multipliers[k] == p:
                best = best._replace(apart=(over.chosen, under.chosen))
            meeting = made.bound - (lines[0] - p * float(over.over[k])) <= 1e-9 * abs(made.bound)
            if meeting or any(np.array_equal(made.chosen, one.chosen) for one in (over, under)):
                break
            over, under = (made, under) if made.over[k] > 0 else (over, made)
    return best


def _with(multipliers: Floats, k: int, p: float) -> Floats:
    made = multipliers.copy()
    made[k] = p
    return made


@dataclass(frozen=True, slots=True)
class _Step:
    """Of an elimination: the width that goes, the factors that it is in, and what is left of their scopes."""

    width: int
    factors: tuple[tuple[int, tuple[slice | None, ...]], ...]  # and how each is spread over the scope
    scope: Scope  # the width first, then the others in the order in which they go


@dataclass(frozen=True, slots=True)
class _Eliminating:
    """The exact maximum, one width maximised away after another (bucket elimination)."""

    problem: _Problem
    scopes: tuple[Scope, ...]  # of each table, in the order of elimination
    shapes: tuple[tuple[int, ...], ...]
    tables: Floats  # [limits, elements], one behind the other
    steps: tuple[_Step, ...]

    @classmethod
    def of(cls, problem: _Problem) -> _Eliminating | None:
        """None where a table would become too large."""
        counts = [len(some) for some in problem.levels]
        order, largest = _order(counts, problem.tables)
        if largest > LARGEST:
            return None
        place = {width: k for k, width in enumerate(order)}
        scopes, shapes, tables = [], [], [np.zeros((len(problem.limits), 0))]
        for scope, table in problem.tables.items():
            axes = sorted(range(len(scope)), key=[place[w] for w in scope].__getitem__)
            scopes.append(tuple(scope[a] for a in axes))
            shapes.append(tuple(counts[w] for w in scopes[-1]))
            tables.append(table.transpose(0, *(a + 1 for a in axes)).reshape(len(table), -1))
        known: list[Scope] = [*((w,) for w in range(len(counts))), *scopes]
        waiting: dict[int, list[int]] = {}
        for f, scope in enumerate(known):
            waiting.setdefault(min(scope, key=place.__getitem__), []).append(f)
        steps = []
        for width in order:
            mine = waiting[width]
            rest = tuple(sorted({w for f in mine for w in known[f]} - {width}, key=place.__getitem__))
            over = (width, *rest)
            spread = [(f, tuple(slice(None) if w in known[f] else None for w in over)) for f in mine]
            steps.append(_Step(width, tuple(spread), over))
            known.append(rest)
            if rest:
                waiting.setdefault(rest[0], []).append(len(known) - 1)
        return cls(problem, tuple(scopes), tuple(shapes), np.concatenate(tables, axis=1), tuple(steps))

    def best(self, multipliers: Floats, low: Ints, high: Ints) -> tuple[float, Ints]:
        """As _Relaxed says; the bound is the maximum."""
        ranges = [slice(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
        factors: list[Floats] = [v[r] for v, r in zip(self.problem.values, ranges, strict=True)]
        costs, first = -(multipliers @ self.tables), 0
        for scope, shape in zip(self.scopes, self.shapes, strict=True):
            last = first + math.prod(shape)
            factors.append(costs[first:last].reshape(shape)[tuple(ranges[w] for w in scope)])
            first = last
        total, sums = 0.0, []
        for step in self.steps:
            joined = reduce(np.add, [factors[f][spread] for f, spread in step.factors])
            sums.append(joined)
            factors.append(joined.max(0))
            if len(step.scope) == 1:
                total += float(factors[-1])
        chosen = np.zeros(len(ranges), dtype=np.int64)
        for step, joined in zip(reversed(self.steps), reversed(sums), strict=True):
            chosen[step.width] = joined[(slice(None), *chosen[list(step.scope[1:])])].argmax()
        return total, chosen + low


def _order(counts: Sequence[int], scopes: Iterable[Scope]) -> tuple[list[int], int]:
    """An order of elimination, each time the width whose table is smallest; and the largest table's elements."""
    beside: dict[int, set[int]] = {w: set() for w in range(len(counts))}
    for scope in scopes:
        for w in scope:
            beside[w] |= set(scope) - {w}
    order, largest = [], 1
    while beside:
        sizes = {w: math.prod(counts[o] for o in others) * counts[w] for w, others in beside.items()}
        width = min(sizes, key=lambda w: (sizes[w], w))
        largest = max(largest, sizes[width])
        others = beside.pop(width)
        for o in others:
            beside[o] = (beside[o] | others) - {o, width}
        order.append(width)
    return order, largest


class _Side(NamedTuple):
    """The tables of one width."""

    tables_at: Ints  # [tables], which messages
    side: Ints  # [tables], whether the width is their first or second
    others: Ints  # [tables], the other width
    tables: Floats  # [limits, tables, levels of this width, levels of the other]: costs
    own: Floats  # [limits, levels]: costs of this width alone


@dataclass(frozen=True, slots=True)
class _Passing:
    """A bound of the maximum where many widths meet: what each table says is moved to its widths, and on.

    A message is what has moved from a table to one of its widths. Whatever the messages are, the maximum is at most the
    sum of the maxima of widths and tables after the moves; they are kept from call to call and only get better. Tables
    of two widths, all filled up to the same number of levels; of more widths, at the smallest sizes of the others.
    """

    problem: _Problem
    values: Floats  # [widths, levels], -inf where there is none
    messages: Floats  # [tables, 2, levels]
    sides: tuple[_Side, ...]

    @classmethod
    def of(cls, problem: _Problem) -> _Passing:
        count, most = len(problem.levels), max((len(some) for some in problem.levels), default=1)
        values = np.full((count, most), -np.inf)
        for w, own in enumerate(problem.values):
            values[w, : len(own)] = own
        pairs: dict[Scope, Floats] = {}
        for scope, table in problem.tables.items():
            flat = table.reshape(*table.shape[:3], -1)[..., 0] if len(scope) > 1 else table[..., None]
            key = scope[:2] if len(scope) > 1 else (scope[0], scope[0])
            made = pairs.setdefault(key, np.zeros((len(table), most, most)))
            made[:, : flat.shape[1], : flat.shape[2]] += flat
        sides = []
        for w in range(count):
            mine = [(f, key.index(w)) for f, key in enumerate(pairs) if w in key and key[0] != key[1]]
            tables = [list(pairs.values())[f].transpose(0, 1 + side, 2 - side) for f, side in mine]
            others = np.array([list(pairs)[f][1 - side] for f, side in mine], dtype=np.int64)
            own = pairs.get((w, w), np.zeros((len(problem.limits), most, 1)))[:, :, 0]
            stack = np.stack(tables, 1) if tables else np.zeros((len(problem.limits), 0, most, most))
            at = np.array(mine, dtype=np.int64).reshape(-1, 2)
            sides.append(_Side(at[:, 0], at[:, 1], others, stack, own))
        return cls(problem, values, np.zeros((len(pairs), 2, most)), tuple(sides))

    def best(self, multipliers: Floats, low: Ints, high: Ints) -> tuple[float, Ints]:
        """As _Relaxed says."""
        level = np.arange(self.values.shape[1])
        outside = np.where((level >= low[:, None]) & (level <= high[:, None]), 0.0, -np.inf)
        own = np.stack([np.tensordot(multipliers, side.own, 1) for side in self.sides])
        values = self.values - own + outside
        tables = [outside[s.others][:, None, :] - np.tensordot(multipliers, s.tables, 1) for s in self.sides]
        bound = np.inf
        for _ in range(SWEEPS):
            self._sweep(tables, values, backwards=False)
            made = self._sweep(tables, values, backwards=True)
            settled = bound - made < SETTLED * abs(made)
            bound = min(bound, made)
            if settled:
                break
        return bound, self._chosen(tables, values)

    def _sweep(self, tables: list[Floats], values: Floats, *, backwards: bool) -> float:
        """One width after another takes all that its tables say, and gives it to those that lead on; the bound then."""
        for w in range(len(values))[:: -1 if backwards else 1]:
            side = self.sides[w]
            taken = (tables[w] - self.messages[side.tables_at, 1 - side.side][:, None, :]).max(2)
            ahead = side.others < w if backwards else side.others > w
            share = (values[w] + taken.sum(0)) / max(int(ahead.sum()), int((~ahead).sum()), 1)
            share = np.where(np.isfinite(share), share, 0)  # levels that are not there neither take nor give
            self.messages[side.tables_at, side.side] = taken - ahead[:, None] * share
        return self._bound(tables, values)

    def _bound(self, tables: list[Floats], values: Floats) -> float:
        total = 0.0
        for w, side in enumerate(self.sides):
            mine = self.messages[side.tables_at, side.side]
            total += float((values[w] + mine.sum(0)).max())
            first = side.side == 0
            left = (tables[w][first] - self.messages[side.tables_at, 1][first][:, None, :]).max(2) - mine[first]
            total += float(left[:, np.isfinite(values[w])].max(1).sum())
        return total

    def _chosen(self, tables: list[Floats], values: Floats) -> Ints:
        """One width after another: what is chosen already counts in full, the rest by its messages."""
        chosen = np.zeros(len(values), dtype=np.int64)
        for w, side in enumerate(self.sides):
            known = side.others < w
            score = values[w] + self.messages[side.tables_at, side.side][~known].sum(0)
            for k in np.flatnonzero(known).tolist():
                score = score + tables[w][k][:, chosen[side.others[k]]]
            chosen[w] = score.argmax()
        return chosen


# Choices


class _Incumbent:
    """The best choice within the limits so far."""

    def __init__(self, problem: _Problem, chosen: Ints, tolerance: float) -> None:
        self._problem = problem
        self._tolerance = tolerance
        self._rounding = problem.rounding
        self.chosen, self.value = chosen, problem.value(chosen)

    def offer(self, chosen: Ints) -> None:
        """Another choice, which counts if it is better and fits."""
        value = self._problem.value(chosen)
        if value > self.value and self._problem.fits(chosen[None])[0]:
            self.chosen, self.value = chosen.copy(), value

    def go_through(self, low: Ints, high: Ints) -> None:
        """Offer the best of all choices from low to high."""
        wide = np.flatnonzero(high > low)  # few, where choices are: arrays have no more than some dozens of axes
        counts = (high - low + 1)[wide].tolist()
        rows = np.tile(low, (math.prod(counts), 1))
        rows[:, wide] += np.indices(counts).reshape(len(wide), len(rows)).T
        values = self._problem.worth(rows)[:, 0]
        better = np.flatnonzero(values > self.value)
        rows = rows[better[np.argsort(-values[better], kind="stable")]]
        for at in range(0, len(rows), AT_ONCE):
            some = rows[at : at + AT_ONCE]
            fits = self._problem.fits(some)
            if fits.any():
                self.chosen = some[int(fits.argmax())].copy()
                self.value = self._problem.value(self.chosen)
                return

    def near(self, bound: float) -> bool:
        """Whether a bound leaves no more than the tolerance to gain."""
        return bound - self.value <= max(self._tolerance * abs(bound), self._rounding)

    def improve(self, deadline: float) -> None:
        """Moves of one width, and of two against each other, as long as one is better and fits."""
        self.chosen = _climbed(self._problem, self.chosen, deadline)
        self.value = self._problem.value(self.chosen)


def _climbed(problem: _Problem, chosen: Ints, deadline: float) -> Ints:
    """A choice to which no move of one width, or of one step up against some steps down, adds value within limits."""
    chosen = chosen.copy()
    while time.perf_counter() < deadline:
        move = _first_fitting(problem, chosen, _raises(problem, chosen)) or _first_fitting(
            problem, chosen, _trades(problem, chosen)
        )
        if move is None:
            break
        for width, level in move:
            chosen[width] = level
    return chosen


Move: TypeAlias = tuple[tuple[int, int], ...]  # widths and their new levels


def _raises(problem: _Problem, chosen: Ints) -> list[tuple[float, Move]]:
    """Each width to each level that is worth more."""
    found: list[tuple[float, Move]] = []
    for w, (values, at) in enumerate(zip(problem.values, chosen.tolist(), strict=True)):
        for level in np.flatnonzero(values > values[at]).tolist():
            found.append((float(values[level] - values[at]), ((w, level),)))
    return found


def _trades(problem: _Problem, chosen: Ints) -> list[tuple[float, Move]]:
    """One width a step up, another some steps down, worth more in the sum."""
    ups, downs = [], []
    for w, (values, at) in enumerate(zip(problem.values, chosen.tolist(), strict=True)):
        if at + 1 < len(values):
            ups.append((float(values[at + 1] - values[at]), (w, at + 1)))
        downs += [(float(values[k] - values[at]), (w, k)) for k in range(max(0, at - DOWN), at)]
    return [(a + b, (up, down)) for a, up in ups for b, down in downs if a + b > 0 and up[0] != down[0]]


def _first_fitting(problem: _Problem, chosen: Ints, moves: list[tuple[float, Move]]) -> Move | None:
    """The move that adds most of those that fit."""
    moves.sort(key=lambda move: (-move[0], move[1]))
    for at in range(0, len(moves), AT_ONCE):
        some = moves[at : at + AT_ONCE]
        rows = np.tile(chosen, (len(some), 1))
        for row, (_, move) in zip(rows, some, strict=True):
            for width, level in move:
                row[width] = level
        fits = problem.fits(rows)
        if fits.any():
            return some[int(fits.argmax())][1]
    return None
