"""Knapsacks of products: against all choices, one by one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import zoo

from conet_onnx import allocating
from conet_onnx.allocating import Limit, Term, allocate, climb
from conet_onnx.analysis import Analysis, analyze
from conet_onnx.criteria import channel_scores
from conet_onnx.errors import BudgetUnreachable, UsageError
from conet_onnx.planning import allocated, budgeted
from conet_onnx.searching.budget import Budget

Problem = tuple[list[Any], list[Any], list[Limit]]


def product(by: float, sizes: Any) -> Any:
    return by * np.prod(sizes, axis=1).astype(np.float64)


def total(scopes: list[tuple[int, ...]], factors: Any, rows: Any) -> Any:
    made = np.zeros(len(rows))
    for scope, factor in zip(scopes, factors, strict=True):
        made += product(factor, rows[:, list(scope)])
    return made


def drawn(seed: int, *, kinds: int = 1, triple: bool = False) -> Problem:
    """A few widths in a chain with some more products among them, and limits somewhere between nothing and all."""
    rng = np.random.default_rng(seed)
    n, count = int(rng.integers(3, 6)), int(rng.integers(2, 7))
    levels = [np.arange(1, count + 1) * int(rng.integers(1, 4)) for _ in range(n)]
    values = [np.concatenate([[0], np.cumsum(np.sort(rng.random(count - 1))[::-1])]) * rng.random() for _ in range(n)]
    limits = []
    for _ in range(kinds):
        scopes = [(i, i + 1) for i in range(n - 1)] + [(0,)]
        scopes += [tuple(sorted(rng.choice(n, 2, replace=False).tolist())) for _ in range(int(rng.integers(0, 4)))]
        scopes += [(0, 1, 2)] if triple else []
        factors = rng.random(len(scopes))
        terms = [Term(scope, partial(product, factor)) for scope, factor in zip(scopes, factors, strict=True)]
        spent = partial(total, scopes, factors)
        limits.append(
            Limit(terms, spent, float(spent(np.array([[some[-1] for some in levels]]))[0] * rng.uniform(0.1, 0.9)))
        )
    return levels, values, limits


def best_of_all(levels: list[Any], values: list[Any], limits: list[Limit]) -> float | None:
    """The largest value within the limits, of every choice that there is."""
    best = None
    for chosen in itertools.product(*(range(len(some)) for some in levels)):
        row = np.array([[some[k] for some, k in zip(levels, chosen, strict=True)]])
        if all(limit.spent(row)[0] <= limit.most for limit in limits):
            value = sum(v[k] for v, k in zip(values, chosen, strict=True))
            best = value if best is None else max(best, value)
    return best


def within(limits: list[Limit], sizes: tuple[int, ...]) -> bool:
    return all(limit.spent(np.array([sizes]))[0] <= limit.most for limit in limits)


EXACT, MESSAGES = allocating.LARGEST, 1


def bounding(monkeypatch: pytest.MonkeyPatch, largest: int = EXACT, few: int = 0) -> None:
    """Up to so `few` choices are gone through, and tables up to the `largest` eliminated exactly."""
    monkeypatch.setattr(allocating, "FEW", few)
    monkeypatch.setattr(allocating, "LARGEST", largest)


@pytest.mark.parametrize("few", [0, 12, allocating.FEW])
@pytest.mark.parametrize("largest", [EXACT, MESSAGES], ids=["elimination", "messages"])
@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_best_of_all_choices_to_its_gap(
    seed: int, kinds: int, largest: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounding(monkeypatch, largest, few)
    problem = drawn(seed, kinds=kinds, triple=seed % 4 == 3)
    best = best_of_all(*problem)
    found = allocate(*problem, tolerance=1e-9, seconds=1.0)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert within(problem[2], found.sizes)
    assert found.value <= best * (1 + 1e-12)
    assert found.bound >= best * (1 - 1e-12)
    assert found.value >= best - found.gap * abs(found.bound) - 1e-9
    if largest == EXACT or len(list(itertools.product(*problem[0]))) <= few:
        assert found.value == pytest.approx(best)


@pytest.mark.parametrize("largest", [EXACT, MESSAGES], ids=["elimination", "messages"])
@pytest.mark.parametrize("seed", range(6))
def test_a_bound_of_the_first_moment_is_a_bound(seed: int, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without time to branch the gap is what it is, and true."""
    bounding(monkeypatch, largest)
    problem = drawn(seed)
    best, found = best_of_all(*problem), allocate(*problem, tolerance=0.0, seconds=0.0)
    assert best is not None
    assert found is not None
    assert within(problem[2], found.sizes)
    assert found.value <= best * (1 + 1e-12) <= found.bound * (1 + 1e-9)


def test_parting_more_of_it_only_tightens_a_bound_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    bounding(monkeypatch)
    bounds = []
    for seed in range(6):
        problem = drawn(seed, kinds=2)
        best = best_of_all(*problem)
        if best is None:
            continue
        found = [allocate(*problem, tolerance=0.0, seconds=10.0, parted=many) for many in (0, 2, 8)]
        assert all(one is not None and within(problem[2], one.sizes) for one in found)
        known = [one for one in found if one is not None]
        assert all(one.value <= best * (1 + 1e-12) <= one.bound * (1 + 1e-9) for one in known)
        assert sorted((one.bound for one in known), reverse=True) == [one.bound for one in known]
        bounds.append([one.bound - best for one in known])
    assert any(first > last + 1e-6 for first, *_, last in bounds)


@pytest.mark.parametrize("few", [0, allocating.FEW])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_spent_is_not_asked_where_the_terms_alone_are_too_much(
    seed: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounding(monkeypatch, few=few)
    levels, values, (limit,) = drawn(seed)
    asked: list[Any] = []

    def spent(rows: Any) -> Any:
        asked.extend(rows)
        return limit.spent(rows)

    found = allocate(levels, values, [Limit(limit.terms, spent, limit.most)], tolerance=0.0, seconds=10.0)
    assert asked
    assert max(limit.spent(np.array(asked))) <= limit.most * (1 + 1e-5)
    assert found == allocate(levels, values, [limit], tolerance=0.0, seconds=10.0)


def test_the_smallest_levels_beyond_a_limit_are_no_answer() -> None:
    levels, values, limits = drawn(1)
    small = float(limits[0].spent(np.array([[some[0] for some in levels]]))[0])
    assert allocate(levels, values, [Limit(limits[0].terms, limits[0].spent, small * 0.99)]) is None
    found = allocate(levels, values, [Limit(limits[0].terms, limits[0].spent, small)])
    assert found is not None
    assert found.sizes == tuple(int(some[0]) for some in levels)


def test_a_few_choices_of_many_widths_are_gone_through() -> None:
    """Most of a hundred widths have a single level."""
    some = [np.array([4, 8]) if k % 20 == 0 else np.array([8]) for k in range(100)]
    pairs = [(k, k + 1) for k in range(99)]
    spent = partial(total, pairs, [1.0] * 99)
    least = float(spent(np.array([[one[0] for one in some]]))[0])
    values = [np.arange(len(one)) * (1.0 + k) for k, one in enumerate(some)]
    found = allocate(some, values, [Limit([Term(p, partial(product, 1.0)) for p in pairs], spent, least + 70)])
    assert found is not None
    # a width in the middle costs 64 more, and the first one 32
    assert [k for k, size in enumerate(found.sizes) if size == 8 and len(some[k]) == 2] == [80]
    assert found.gap == 0


def test_all_of_it_where_all_of_it_fits() -> None:
    levels, values, limits = drawn(2)
    found = allocate(levels, values, [Limit(limits[0].terms, limits[0].spent, 1e9)])
    assert found is not None
    assert found.sizes == tuple(int(some[-1]) for some in levels)
    assert found.gap == 0


def test_widths_may_grow_where_their_levels_do() -> None:
    """A worthless width gives what a worthy one may grow by."""
    terms = [Term((0, 1), partial(product, 1.0))]
    limit = Limit(terms, partial(total, [(0, 1)], [1.0]), 64.0)
    levels = [np.array([2, 4, 8, 16, 32])] * 2
    found = allocate(levels, [np.array([0, 1, 2, 3, 4.0]), np.array([0, 0.1, 0.2, 0.3, 0.4])], [limit], tolerance=0)
    assert found is not None
    assert found.sizes == (32, 2)


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_is_gained_what_rounding_leaves_is_no_gap(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths that no growth makes better, at the source's own cost: nothing exceeds 0, but sums of rounded numbers."""
    monkeypatch.setattr(allocating, "LARGEST", MESSAGES)
    rng, count = np.random.default_rng(seed), 20
    levels = [np.arange(10, 23)] * count
    slopes = rng.uniform(0, 0.1, count) * (rng.random(count) > 0.3)
    values = [
        slope * np.minimum((some - 16) * rng.uniform(0.5, 1.5, len(some)), 0.0)
        for slope, some in zip(slopes, levels, strict=True)
    ]
    pairs = [(a, b) for a in range(count) for b in rng.choice(np.arange(count), 3).tolist() if a < b]
    scales = rng.uniform(0.5, 2, len(pairs)).tolist()
    terms = [Term(pair, partial(product, scale)) for pair, scale in zip(pairs, scales, strict=True)]
    spent = partial(total, pairs, scales)
    most = float(spent(np.full((1, count), 16))[0])
    begun = time.perf_counter()
    found = allocate(levels, values, [Limit(terms, spent, most)], tolerance=0.01, seconds=60.0)
    assert found is not None
    assert (found.value, found.gap) == (0.0, 0.0)
    assert time.perf_counter() - begun < 30  # a busy machine; it takes a tenth of a second


def test_climbing_ends_within_the_limits_and_no_lower() -> None:
    levels, values, limits = drawn(4)
    start = [int(some[0]) for some in levels]
    sizes = climb(levels, values, limits, start, seconds=1.0)
    assert within(limits, sizes)
    worth = [
        sum(v[list(some).index(s)] for v, some, s in zip(values, levels, chosen, strict=True))
        for chosen in (start, sizes)
    ]
    assert worth[1] > worth[0]


def scored(name: str) -> tuple[Analysis, dict[str, Any]]:
    analysis = analyze(zoo.graph(name))
    return analysis, dict(channel_scores(analysis, "l2"))


def lost(analysis: Analysis, scores: dict[str, Any], widths: dict[str, int]) -> float:
    """By hand: of each width total · log(total / kept)."""
    found = 0.0
    for name, width in analysis.widths.items():
        best = sorted(scores[name], reverse=True)
        found += sum(best) * np.log(sum(best) / sum(best[: widths.get(name, width.size)]))
    return found


class TestAModel:
    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
    @pytest.mark.parametrize("budget", [("macs=0.5",), ("params=0.4", "macs=0.7"), ("bytes=0.3",)])
    def test_the_price_is_within_the_budget_and_less_is_lost_than_by_one_scale(
        self, name: str, budget: tuple[str, ...]
    ) -> None:
        analysis, scores = scored(name)
        limits = Budget.parse(budget).resolve(analysis.costs.source)
        found = allocated(analysis, limits.by_kind, scores, tolerance=0.02, seconds=30.0)  # on a busy machine too
        assert limits.fits(analysis.costs.price(found.widths))
        assert found.loss == pytest.approx(lost(analysis, scores, found.widths))
        assert found.loss < lost(analysis, scores, budgeted(analysis, limits)[0])
        assert all(size < analysis.widths[w].size for w, size in found.widths.items())
        assert found.gap < 0.05

    def test_many_readers_of_many_widths_end_in_seconds_with_a_gap(self) -> None:
        """In a DenseNet each layer reads all before it: no elimination is small."""
        analysis, scores = scored("densenet121")
        limits = Budget.parse(["macs=0.5"]).resolve(analysis.costs.source)
        started = time.perf_counter()
        found = allocated(analysis, limits.by_kind, scores, tolerance=0.02, seconds=30.0)
        assert time.perf_counter() - started < 60  # a busy machine; it takes about two
        assert limits.fits(analysis.costs.price(found.widths))
        assert 0 <= found.gap < 0.05
        assert found.loss < lost(analysis, scores, budgeted(analysis, limits)[0])

    def test_sizes_are_multiples(self) -> None:
        analysis, scores = scored("resnet18")
        found = allocated(analysis, {"macs": analysis.costs.source.macs / 2}, scores, multiple=16)
        assert found.widths
        assert all(size % 16 == 0 for size in found.widths.values())

    def test_a_limit_of_another_kind_is_met_too(self) -> None:
        """Latency, say: steps of 16 in a width, and a product of two."""
        analysis, scores = scored("resnet18")

        def steps(sizes: Any) -> Any:
            return np.ceil(sizes[:, 0] / 16) * np.ceil(sizes[:, 1] / 16)

        terms = [Term((0, 1), steps), Term((2, 3), steps)]

        def spent(rows: Any) -> Any:
            return steps(rows[:, :2]) + steps(rows[:, 2:4])

        limit = Limit(terms, spent, 0.5 * float(spent(analysis.costs.row({})[None])[0]))
        found = allocated(analysis, {}, scores, further=[limit])
        assert spent(analysis.costs.row(found.widths)[None])[0] <= limit.most
        assert list(found.widths)
        assert set(found.widths) <= set(list(analysis.widths)[:4])

    def test_what_cannot_be_reached_is_said(self) -> None:
        analysis, scores = scored("resnet18")
        with pytest.raises(BudgetUnreachable, match="params="):
            allocated(analysis, {"params": 10}, scores)

    def test_scores_of_another_length_are_refused(self) -> None:
        analysis, scores = scored("resnet18")
        with pytest.raises(UsageError, match="expected 64 numbers"):
            allocated(analysis, {"params": 1e6}, {**scores, "w0": np.ones(3)})

    @pytest.mark.parametrize("name", ["resnet18", "densenet121", "shufflenet_v2_x0_5"])
    @pytest.mark.parametrize("kind", ["params", "macs", "bytes"])
    def test_terms_add_up_to_the_price(self, name: str, kind: str) -> None:
        """Bytes: or to less, by integers that a resize writes anew."""
        costs = analyze(zoo.graph(name)).costs
        rng = np.random.default_rng(0)
        rows = rng.integers(1, costs.row({}) + 1, (20, len(costs.row({}))))
        call: Callable[[Any], Any]
        summed = np.zeros(len(rows))
        for widths, call in costs.terms(kind):
            summed += call(rows[:, list(widths)])
        price = costs.price_many(rows)[:, ("params", "macs", "bytes").index(kind)]
        if kind == "bytes":
            assert (summed <= price).all()
            assert (summed > price - 4096).all()
        else:
            np.testing.assert_array_equal(np.rint(summed), price)
