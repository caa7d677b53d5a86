"""CONETv2's searchers: the published rule, its constants, and its known traits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import pytest
from searching_fakes import chain, tried

from conet_onnx.errors import UsageError
from conet_onnx.records.trial import Trial
from conet_onnx.searching.algorithms import find_method
from conet_onnx.searching.budget import Budget, Limits
from conet_onnx.searching.conet import ConetAnnealing, ConetGreedy, ConetSearch
from conet_onnx.searching.method import options

Metric = Callable[[int, str, int], float]  # trial, width's id, channels
SIZES = (64, 128, 256)


def play(
    method: ConetGreedy,
    metric: Metric,
    *,
    sizes: tuple[int, ...] = SIZES,
    trials: int = 36,
    seed: int = 0,
    limits: Limits | None = None,
    failing: frozenset[int] = frozenset(),
) -> tuple[ConetSearch, list[Trial]]:
    limits = limits or Limits({})
    space = method.space(chain(*sizes), limits)
    searcher = method.searcher(space, limits, trials=trials, seed=seed)
    played = [
        tried(
            searcher,
            space,
            number,
            objective=math.nan if number in failing else 1.0,
            measured=lambda widths, at=number: {
                method.metric: {name: metric(at, name, widths[name]) for name in widths}
            },
        )
        for number in range(trials)
    ]
    return searcher, played


def widths_of(trials: list[Trial], name: str = "w0") -> list[int]:
    return [trial.widths[name] for trial in trials]


class TestKnownTraits:
    @pytest.mark.parametrize(("gamma", "final"), [(0.6, 56), (0.7, 74), (0.8, 132), (0.9, 256)])
    def test_growth_comes_from_the_momentums_sum(self, gamma: float, final: int) -> None:
        method = ConetGreedy(gamma=gamma, start=32, first_step=0)
        _, played = play(method, lambda *_: 0.4)
        assert played[-1].widths["w0"] == final

    def test_annealing_never_rejects(self) -> None:
        _, played = play(ConetAnnealing(), lambda number, *_: 1.5 if number < 3 else 0.0)
        assert all(trial.accepted for trial in played)
        assert [trial.parent for trial in played] == [None, *range(35)]

    def test_what_was_never_read_is_read_here(self) -> None:
        def metric(*_: object) -> float:
            return 0.4

        plain = widths_of(play(ConetGreedy(), metric)[1])
        assert widths_of(play(ConetGreedy(scale=2.0), metric)[1]) != plain
        assert max(widths_of(play(ConetGreedy(largest=40), metric)[1])) == 40 < max(plain)
        assert min(widths_of(play(ConetGreedy(smallest=8, start=8), metric)[1])) == 8 < min(plain)


class TestTheRule:
    def test_the_defaults_are_the_published_ones(self) -> None:
        method = ConetAnnealing()
        assert (method.trials, method.epochs_per_trial, method.epochs) == (36, 2, 250)
        assert options(method) == {
            "gamma": 0.8,
            "scale": 1.0,
            "metric": "qc",
            "epoch": "max",
            "start": 16,
            "smallest": 16,
            "largest": 256,
            "first_step": 16,
            "burn_in": 5,
            "lr": 0.03,
            "momentum": 0.9,
            "beta": 0.8,
            "batch": 128,
            "final_lr": 0.1,
            "final_every": 25.0,
            "final_factor": 0.5,
            "final_decay": 5e-4,
            "heat": 5.0,
        }

    def test_it_begins_with_all_alike_and_takes_one_step_up(self) -> None:
        _, played = play(ConetGreedy(), lambda *_: 0.4, trials=2)
        assert [set(trial.widths.values()) for trial in played] == [{16}, {32}]
        assert played[0].parent is None

    def test_greedy_is_the_recurrence_by_hand(self) -> None:
        """Computed here again, one width alone, in plain numbers."""
        rng = np.random.default_rng(3)
        draws = rng.uniform(0, 1.2, (36, 3))
        _, played = play(ConetGreedy(gamma=0.7), lambda number, name, _: float(draws[number, int(name[1:])]))
        for index in range(3):
            momentum, width, expected = draws[0, index], 16, [16, 32]
            for number in range(1, 35):
                before = momentum
                momentum = 0.7 * momentum + draws[number, index]
                factor = min(max(1 + (momentum - before), 0.5), 2.0)
                width = min(max(2 * round(expected[-1] * factor / 2), 16), 256)
                expected.append(width)
            assert widths_of(played, f"w{index}") == expected

    def test_annealing_doubles_a_change_as_often_as_its_temperature_says(self) -> None:
        """With gamma = 0 the momentum is the metric, which swings by 0.2 here: the change is known at every trial."""
        trials, heat, doubled, steps = 12, 20.0, 0, 0
        expected = 0.0
        method = ConetAnnealing(start=2000, smallest=2, largest=100_000, first_step=0, gamma=0.0, heat=heat)
        for seed in range(40):
            _, played = play(method, lambda number, *_: 0.2 * (number % 2), sizes=(64,), trials=trials, seed=seed)
            for measured, (before, after) in enumerate(pairwise(played[1:]), start=1):
                change = 0.2 if measured % 2 else -0.2
                ratio = after.widths["w0"] / before.widths["w0"] - 1
                assert min(abs(ratio - change), abs(ratio - 2 * change)) < 0.01
                doubled += abs(ratio - 2 * change) < 0.01
                expected += math.exp(-1 / (0.2 * heat * (trials - measured) / trials))
                steps += 1
        assert 0.2 < expected / steps < 0.8
        assert doubled == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected / steps)))

    def test_a_width_at_most_doubles_or_halves(self) -> None:
        jumps = {2: 3.0, 4: 0.0}
        _, played = play(ConetGreedy(gamma=0.0, start=32), lambda number, *_: jumps.get(number, 1.0), trials=6)
        assert widths_of(played) == [32, 48, 48, 96, 48, 24]

    def test_no_change_is_never_doubled(self) -> None:
        method = ConetAnnealing(gamma=0.0, first_step=0)
        _, played = play(method, lambda *_: 0.7)
        assert set(widths_of(played)) == {16}

    def test_it_keeps_the_best_mean_momentum_after_the_fifth_trial(self) -> None:
        peaks = {4: 9.0, 5: 3.0}  # trials count from 0
        searcher, played = play(ConetGreedy(gamma=0.0), lambda number, *_: peaks.get(number, 0.1))
        assert searcher.choose(played).number == 5
        assert searcher.choose(played[:5]).number == 4

    @pytest.mark.parametrize("epoch", ["max", "mean", "last"])
    def test_a_method_says_what_is_measured(self, epoch: str) -> None:
        measure = find_method("conet-sa", [f"epoch={epoch}", "metric=newqc"]).recipe().measure
        assert (getattr(measure, "metric", None), getattr(measure, "epoch", None)) == ("newqc", epoch)


class TestHere:
    def test_a_failed_trial_is_gone_back_from(self) -> None:
        _, played = play(ConetGreedy(), lambda *_: 0.4, trials=8, failing=frozenset({0, 4}))
        assert [trial.parent for trial in played] == [None, None, 1, 2, 3, 3, 5, 6]
        assert played[1].widths == played[0].widths
        assert set(played[2].widths.values()) == {32}
        assert played[5].widths == played[4].widths

    def test_a_width_that_is_not_measured_stays(self) -> None:
        def metric(number: int, name: str, _: int) -> float:
            return 0.4

        method = ConetGreedy()
        limits = Limits({})
        searcher = method.searcher(method.space(chain(*SIZES), limits), limits, trials=9, seed=0)
        seen = []
        for number in range(9):
            proposal = searcher.ask(number)
            seen.append(proposal.widths)
            measured = {"qc": {name: metric(number, name, 0) for name in proposal.widths if name != "w1"}}
            searcher.tell(
                Trial(number, proposal.widths, 1, 1, 1, None, "", objective=1.0, accepted=True, measured=measured)
            )
        assert {widths["w1"] for widths in seen[1:]} == {32}
        assert seen[-1]["w0"] > 32

    @pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 1.5])
    def test_within_a_budget_every_proposal_fits(self, fraction: float) -> None:
        analysis = chain(*SIZES)
        limits = Budget(macs=fraction).resolve(analysis.costs.price({}))
        _, played = play(ConetAnnealing(), lambda *_: 1.2, limits=limits)
        assert all(limits.fits(trial) for trial in played)
        if fraction < 0.1:
            assert min(min(trial.widths.values()) for trial in played) < 16

    def test_told_again_it_is_where_it_was(self) -> None:
        rng = np.random.default_rng(0)
        draws: Mapping[tuple[int, str], float] = {
            (number, name): float(rng.random()) for number in range(12) for name in ("w0", "w1", "w2")
        }
        method = ConetAnnealing()
        searcher, played = play(method, lambda number, name, _: draws[number, name], trials=12, seed=4)
        again = method.searcher(method.space(chain(*SIZES), Limits({})), Limits({}), trials=12, seed=4)
        for trial in played:
            again.tell(Trial.from_json(trial.as_json()))
        assert again.ask(12) == searcher.ask(12)
        assert again.choose(played) == searcher.choose(played)

    @pytest.mark.parametrize("given", [{"gamma": 1.0}, {"start": 8}, {"smallest": 0}, {"largest": 4}])
    def test_constants_that_make_no_sense_are_refused(self, given: Mapping[str, float]) -> None:
        with pytest.raises(UsageError):
            find_method("conet-greedy", given)
