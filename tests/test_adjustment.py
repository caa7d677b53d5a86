"""Network Adjustment's searcher: the published rule, its constants, and its cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import pytest
from searching_fakes import FakeAnalysis, FakeWidth, chain, tried

from conet_onnx.errors import UsageError
from conet_onnx.latency.pricing import TimedPrice
from conet_onnx.records.trial import Trial
from conet_onnx.searching.adjustment import Adjustment, NetworkAdjustment
from conet_onnx.searching.algorithms import find_method
from conet_onnx.searching.budget import Budget, Limits
from conet_onnx.searching.method import options
from conet_onnx.searching.recipe import UtilisationMeasure

FUR = {"fur": {"w0": 3.0, "w1": 2.0, "w2": 1.0}}


class Timely:
    """A chain whose latency is its channels and 10 ms for each layer."""

    def __init__(self, plain: FakeAnalysis) -> None:
        self.widths, self._plain = plain.widths, plain.costs

    @property
    def costs(self) -> Timely:
        return self

    def price(self, widths: Mapping[str, int]) -> TimedPrice:
        params, macs, raw, latency = self.price_many(np.array([[*widths.values()]]))[0].tolist()
        return TimedPrice(int(params), int(macs), int(raw), latency)

    def price_many(self, rows: np.ndarray) -> np.ndarray:
        taken = (rows + 10.0).sum(axis=1, keepdims=True)
        return np.concatenate([self._plain.price_many(rows), taken], axis=1)


SIZES = (64, 64, 128, 128, 256, 256)
Ratio = Callable[[int, str], float]  # of a trial's number and a width's id


def play(
    method: NetworkAdjustment, ratio: Ratio, *, sizes: tuple[int, ...] = SIZES, trials: int = 10, budget: float = 0
) -> tuple[Adjustment, list[Trial]]:
    analysis = chain(*sizes)
    limits = Budget(macs=budget).resolve(analysis.costs.price({})) if budget else Limits({})
    space = method.space(analysis, limits)
    searcher = method.searcher(space, limits, trials=trials, seed=0)
    played = [
        tried(
            searcher,
            space,
            number,
            objective=1.0,
            validation={"loss": 1 + abs(number - 4)},
            measured=lambda widths, at=number: {"fur": {name: ratio(at, name) for name in widths}},
        )
        for number in range(trials)
    ]
    return searcher, played


def by_index(_: int, name: str) -> float:
    return -float(name[1:])  # the first layers are used best


class TestTheRule:
    def test_the_defaults_are_the_published_ones(self) -> None:
        method = NetworkAdjustment()
        assert (method.trials, method.epochs_per_trial) == (10, 200)
        published = {"u": 6, "decay": 0.5, "a": 0.15, "decay_a": 0.01, "p0": 0.05, "passes": 5, "floor": 4}
        published |= {"lr": 0.15, "batch": 128, "weight_decay": 3e-4, "dropout": 0.05}
        assert published.items() <= options(method).items()
        assert method.recipe().training["dropout_by_depth"] is True
        assert find_method("network-adjustment", ["by_depth=no"]).recipe().training["dropout_by_depth"] is False
        assert method.recipe().measure == UtilisationMeasure(0.05, 5, "loss", "bernoulli", "macs")

    def test_the_first_trial_has_the_original_widths(self) -> None:
        _, played = play(NetworkAdjustment(), by_index, trials=1)
        assert tuple(played[0].widths.values()) == SIZES

    def test_every_trial_is_trained_from_scratch(self) -> None:
        _, played = play(NetworkAdjustment(), by_index)
        assert {trial.parent for trial in played} == {None}
        assert NetworkAdjustment().recipe().start == "fresh"

    def test_an_update_is_the_published_one_brought_back_to_the_cost(self) -> None:
        """By hand: u = 3 of six widths, shares of 0.15, 0.14 and 0.13 of the original sizes, one multiplier."""
        _, played = play(NetworkAdjustment(), by_index, trials=2)
        moved = np.array(
            [64 + 10, 64 + 9, 128 + 17, 128 - 17, 256 - 36, 256 - 38], dtype=float
        )  # round(.15 64), round(.14 64), round(.13 128), ...
        found = np.array([*played[1].widths.values()], dtype=float)
        multiplier = found / moved
        assert multiplier.max() / multiplier.min() < 1 + 1.5 / moved.min()
        assert 0.99 <= played[1].macs / played[0].macs <= 1

    def test_fewer_widths_move_by_and_by_and_none_in_the_end(self) -> None:
        method = NetworkAdjustment(u=3, decay=1.0, a=0.1, decay_a=0.0)
        _, played = play(method, by_index, trials=6)
        changes = []
        for before, after in pairwise(played):
            ratios = np.array([after.widths[name] / before.widths[name] for name in before.widths])
            changes.append(int((np.abs(ratios - np.median(ratios)) > 0.05).sum()))
        assert changes[2:] == [2, 0, 0] or changes[2:] == [2, 0, 0, 0]
        assert played[-1].widths == played[-2].widths == played[3].widths

    def test_top_and_bottom_never_overlap(self) -> None:
        _, played = play(NetworkAdjustment(u=6), by_index, sizes=(64, 64, 64), trials=2)
        multiplier = played[1].widths["w1"] / 64
        assert played[1].widths["w0"] > 64 * multiplier
        assert played[1].widths["w2"] < 64 * multiplier

    @pytest.mark.parametrize("budget", [0, 0.5, 1.3])
    def test_the_cost_stays_within_a_percent(self, budget: float) -> None:
        rng = np.random.default_rng(0)
        _, played = play(NetworkAdjustment(), lambda *_: float(rng.normal()), budget=budget)
        source = chain(*SIZES).costs.price({}).macs
        wanted = source if budget in (0, 1.3) else source * budget
        first = played[0].macs / source
        assert first == pytest.approx(min(budget or 1, 1), rel=0.01)
        after = source * (budget or 1)
        assert all(0.99 <= trial.macs / after <= 1 for trial in played[1:]), wanted

    def test_the_floor_and_the_bounds_hold_after_rescaling(self) -> None:
        method = NetworkAdjustment(a=0.9, decay_a=0.0, decay=0.0, floor=7)
        _, played = play(method, by_index, sizes=(16, 16, 16, 16), trials=10)
        assert min(min(trial.widths.values()) for trial in played) == 7

    def test_the_answer_is_the_trial_of_least_validation_loss(self) -> None:
        searcher, played = play(NetworkAdjustment(), by_index)
        assert searcher.choose(played).number == 4


class TestHere:
    def test_a_failed_trial_is_tried_again(self) -> None:
        method = NetworkAdjustment()
        space = method.space(chain(*SIZES), Limits({}))
        searcher = method.searcher(space, Limits({}), trials=3, seed=0)
        first = searcher.ask(0)
        failed = Trial(0, first.widths, 1, 1, 1, None, "", "failed", objective=math.nan)
        assert not searcher.accepts(failed)
        searcher.tell(failed)
        assert searcher.ask(1) == first

    def test_what_was_not_measured_does_not_move_but_with_all(self) -> None:
        _, played = play(NetworkAdjustment(), lambda number, name: by_index(number, name), trials=2)
        assert played[1].widths != played[0].widths
        method = NetworkAdjustment()
        space = method.space(chain(*SIZES), Limits({}))
        searcher = method.searcher(space, Limits({}), trials=3, seed=0)
        searcher.tell(Trial(0, space.source, 1, 1, 1, None, "", objective=1.0, accepted=True, measured={}))
        assert searcher.ask(1).widths == space.source

    def test_a_width_that_cannot_grow_does_not(self) -> None:
        analysis = FakeAnalysis({"w0": FakeWidth(64, max=64), "w1": FakeWidth(64), "w2": FakeWidth(64)})
        method = NetworkAdjustment()
        space = method.space(analysis, Limits({}))
        assert space.bounds == {"w0": (4, 64), "w1": (4, 256), "w2": (4, 256)}

    def test_of_latency_the_source_s_own_is_the_cost_that_is_kept(self) -> None:
        """By hand: a layer of w channels takes w + 10 ms, so that what one gains, another loses."""
        method = NetworkAdjustment(cost="latency", u=1)
        analysis = Timely(chain(100, 100, 100))
        space = method.space(analysis, Limits({}))
        searcher = method.searcher(space, Limits({}), trials=3, seed=0)
        first = tried(searcher, space, 0, objective=1.0, validation={"loss": 1.0}, measured=lambda ws: FUR)
        assert first.widths == space.source
        second = searcher.ask(1).widths
        assert second == {"w0": 115, "w1": 100, "w2": 85}
        assert method.recipe().measure == UtilisationMeasure(0.05, 5, "loss", "bernoulli", "latency")

    @pytest.mark.parametrize("given", [{"p0": 0.0}, {"p0": 1.0}, {"u": -1}, {"floor": 0}])
    def test_constants_that_make_no_sense_are_refused(self, given: Mapping[str, float]) -> None:
        with pytest.raises(UsageError):
            find_method("network-adjustment", given)
