"""Searchers: what they propose, what they accept, and what they find."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from searching_fakes import chain, ideal_loss, tried

from conet_onnx.errors import UsageError
from conet_onnx.records.trial import Trial
from conet_onnx.searching.algorithms import ALGORITHMS, find_method
from conet_onnx.searching.anneal import Anneal
from conet_onnx.searching.budget import Budget, Limits
from conet_onnx.searching.searcher import Searcher, moves, objective
from conet_onnx.searching.space import WidthSpace

TRIALS = 14
MEASURED = ("qc", "fur")  # what methods ask for
OPTIONS = {"network-adjustment": {"floor": 1}}  # so that a budget may ask for anything
CHANCE = ("auto", "anneal", "reallocate", "random", "conet-sa")  # those in which it has a part


def play(
    searcher: Searcher, space: WidthSpace, ideal: Mapping[str, int], *, trials: int = TRIALS, noise: float = 0.0
) -> list[Trial]:
    rng = np.random.default_rng(7)
    played = []
    for number in range(trials):
        draws, error = rng.random((len(MEASURED), len(ideal))).tolist(), noise * float(rng.standard_normal())
        measured = {name: dict(zip(ideal, row, strict=True)) for name, row in zip(MEASURED, draws, strict=True)}

        def loss(widths: Mapping[str, int], error: float = error) -> float:
            return ideal_loss(widths, ideal) + error

        validation = {"loss": float(number)}
        trial = tried(searcher, space, number, objective=loss, validation=validation, measured=measured)
        played.append(trial)
    return played


def searcher_of(
    algorithm: str, *sizes: int, budget: float = 0.5, trials: int = TRIALS, seed: int = 0
) -> tuple[Searcher, WidthSpace]:
    method, analysis = find_method(algorithm, OPTIONS.get(algorithm, {})), chain(*sizes)
    limits = Budget(macs=budget).resolve(analysis.costs.price({}))
    space = method.space(analysis, limits)
    return method.searcher(space, limits, trials=trials, seed=seed), space


SIZES = (16, 32, 64, 64)
IDEAL = {"w0": 24, "w1": 40, "w2": 30, "w3": 30}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
class TestEverySearcher:
    @pytest.mark.parametrize("sizes", [SIZES, (16,), (2, 3), (64, 64)])
    @pytest.mark.parametrize("budget", [0.5, 1.0, 1.7])
    def test_every_proposal_is_allowed_and_fits(self, algorithm: str, sizes: tuple[int, ...], budget: float) -> None:
        searcher, space = searcher_of(algorithm, *sizes, budget=budget)
        limit = budget * space.price(space.source).macs
        ideal = dict(zip(space.names, reversed(sizes), strict=True))
        for trial in play(searcher, space, ideal):
            assert trial.macs <= limit
            assert all(low <= trial.widths[name] <= high for name, (low, high) in space.bounds.items())

    def test_the_same_seed_gives_the_same_trials_and_another_seed_others(self, algorithm: str) -> None:
        first, second, other = (
            play(*searcher_of(algorithm, *SIZES, seed=seed), IDEAL, noise=0.01) for seed in (3, 3, 4)
        )
        assert first == second
        assert ([trial.widths for trial in first] != [trial.widths for trial in other]) == (algorithm in CHANCE)

    def test_told_again_it_is_where_it_was(self, algorithm: str) -> None:
        searcher, space = searcher_of(algorithm, *SIZES)
        played = play(searcher, space, IDEAL, noise=0.05)
        for at in range(TRIALS):
            replayed, _ = searcher_of(algorithm, *SIZES)
            for trial in played[:at]:
                replayed.tell(trial)
            assert replayed.ask(at).widths == played[at].widths
            assert replayed.accepts(played[at]) == played[at].accepted

    def test_asking_changes_nothing(self, algorithm: str) -> None:
        searcher, space = searcher_of(algorithm, *SIZES)
        for trial in play(searcher, space, IDEAL)[-1:]:
            assert searcher.ask(trial.number + 1) == searcher.ask(trial.number + 1)

    def test_a_failed_trial_is_never_accepted_and_never_inherited_from(self, algorithm: str) -> None:
        searcher, _ = searcher_of(algorithm, *SIZES)
        for number in range(4):
            proposal = searcher.ask(number)
            trial = Trial(number, proposal.widths, 1, 1, 1, proposal.parent, "", "failed", objective=math.nan)
            assert not searcher.accepts(trial)
            assert proposal.parent is None
            searcher.tell(trial)

    def test_the_answer_is_one_of_the_trials(self, algorithm: str) -> None:
        searcher, space = searcher_of(algorithm, *SIZES)
        played = play(searcher, space, IDEAL, noise=0.05)
        assert searcher.choose(played) in played
        assert searcher.choose(played[3:4]) == played[3]


class TestAnneal:
    def test_the_first_trial_is_the_source_scaled_onto_the_budget(self) -> None:
        searcher, space = searcher_of("anneal", 128, 256, 512)
        first = searcher.ask(0)
        ratios = [first.widths[name] / size for name, size in space.source.items()]
        assert first.parent is None
        assert max(ratios) / min(ratios) < 1.1

    def test_a_far_budget_is_approached_in_strides(self) -> None:
        searcher, space = searcher_of("anneal", *SIZES, budget=0.05, trials=12)
        prices = [space.price(space.source).macs, *(t.macs for t in play(searcher, space, IDEAL)[:4])]
        assert all(before / after < 3 for before, after in pairwise(prices))
        assert prices[4] <= 0.05 * prices[0]

    def test_better_is_always_accepted_and_much_worse_never(self) -> None:
        searcher, space = searcher_of("anneal", *SIZES)
        played = play(searcher, space, IDEAL)
        current = [trial for trial in played if trial.accepted][-1]
        for number in range(TRIALS, TRIALS + 200):
            ahead = replace(current, number=number)
            assert searcher.accepts(replace(ahead, objective=current.objective - 1e-9))
            assert not searcher.accepts(replace(ahead, objective=current.objective + 10))

    def test_worse_is_accepted_as_often_as_metropolis_says(self) -> None:
        accepted, expected = 0, 0.0
        for seed in range(400):
            searcher, space = searcher_of("anneal", *SIZES, seed=seed)
            assert isinstance(searcher, Anneal)
            first, second = play(searcher, space, IDEAL, trials=2)
            change = 0.1 * abs(second.objective - first.objective)
            current = second if second.accepted else first
            worse = replace(second, number=5, objective=current.objective + change)
            accepted += searcher.accepts(worse)
            changes = [second.objective - first.objective, change]
            expected += math.exp(-change / searcher.metropolis.temperature(5, changes))
        assert abs(accepted - expected) < 4 * math.sqrt(expected)
        assert 100 < expected < 390

    def test_it_cools(self) -> None:
        searcher, _ = searcher_of("anneal", *SIZES)
        assert isinstance(searcher, Anneal)
        temperatures = [searcher.metropolis.temperature(number, [1.0, -1.0]) for number in range(TRIALS)]
        assert temperatures[1:] == sorted(temperatures[1:], reverse=True)
        assert temperatures[-1] == pytest.approx(0.1 * temperatures[1])

    def test_a_child_inherits_from_the_last_accepted_trial(self) -> None:
        played = play(*searcher_of("anneal", *SIZES), IDEAL, noise=0.05)
        parent = None
        for trial in played:
            assert trial.parent == parent
            parent = trial.number if trial.accepted else parent
        assert not all(trial.accepted for trial in played)

    def test_it_finds_better_proportions_than_scaling_and_than_chance(self) -> None:
        sizes = (64, 64, 128, 128, 128, 256, 256, 256)
        ideal = dict(zip([f"w{i}" for i in range(8)], (96, 40, 120, 60, 60, 200, 250, 90), strict=True))
        found, chance, scaled = [], [], []
        for seed in range(12):
            annealed = play(*searcher_of("anneal", *sizes, seed=seed, trials=24), ideal, trials=24, noise=0.002)
            drawn = play(*searcher_of("random", *sizes, seed=seed, trials=24), ideal, trials=24, noise=0.002)
            found.append(min(ideal_loss(t.widths, ideal) for t in annealed))
            chance.append(min(ideal_loss(t.widths, ideal) for t in drawn))
            scaled.append(ideal_loss(annealed[0].widths, ideal))
        assert np.mean(found) < np.mean(chance) < np.mean(scaled)

    def test_a_trade_leaves_an_eighth_of_the_sources_width(self) -> None:
        for seed in range(5):
            searcher, space = searcher_of("anneal", *SIZES, seed=seed, trials=40)
            for trial in play(searcher, space, {**IDEAL, "w2": 1}, trials=40):
                assert all(8 * width >= space.source[name] for name, width in trial.widths.items())

    def test_it_does_not_try_the_same_widths_twice(self) -> None:
        played = play(*searcher_of("anneal", *SIZES), IDEAL, noise=0.05)
        assert len({tuple(trial.widths.values()) for trial in played}) == TRIALS


class TestObjective:
    def test_cheaper_is_better_at_the_same_loss_and_beyond_the_budget_is_much_worse(self) -> None:
        assert objective(0.2, 0.5) < objective(0.2, 1.0) < objective(0.2, 1.1)
        assert objective(0.2, 1.1) == pytest.approx(0.22)
        assert objective(0.2, 0.5) > objective(0.19, 1.0)

    def test_moves_are_named_largest_first(self) -> None:
        assert moves({"a": 8, "b": 8, "c": 8, "d": 4}, {"a": 9, "b": 4, "c": 8, "d": 4}) == "b 8→4, a 8→9"
        assert moves(dict.fromkeys("abcd", 8), dict.fromkeys("abcd", 6)).endswith("…")
        assert moves({"a": 8}, {"a": 8}) == "no change"


class TestWithoutABudget:
    @pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if not find_method(name).needs_budget])
    def test_every_proposal_is_allowed(self, algorithm: str) -> None:
        method, analysis = find_method(algorithm), chain(*SIZES)
        space = method.space(analysis, Limits({}))
        played = play(method.searcher(space, Limits({}), trials=TRIALS, seed=0), space, IDEAL)
        assert len({tuple(trial.widths.values()) for trial in played}) > 4
        for trial in played:
            assert all(low <= trial.widths[name] <= high for name, (low, high) in space.bounds.items())

    def test_compound_is_one_multiplier(self) -> None:
        method = find_method("compound", ["step=0.5", "largest=2"])
        space = method.space(chain(64, 128, 256), Limits({}))
        searcher = method.searcher(space, Limits({}), trials=4, seed=0)
        assert [tuple(searcher.ask(k).widths.values()) for k in range(4)] == [
            (128, 256, 512),
            (64, 128, 256),
            (32, 64, 128),
            (16, 32, 64),
        ]


class TestNames:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (["gama=0.9"], "did you mean 'gamma'"),
            (["gamma"], "NAME=VALUE"),
            (["gamma=much"], "a number"),
            (["start=1.5"], "a whole number"),
            (["metric=size"], "qc, newqc"),
            (["gamma=0.5", "gamma=0.6"], "twice"),
            (["trials=3"], "no option 'trials'"),
        ],
    )
    def test_options_are_checked(self, given: list[str], expected: str) -> None:
        with pytest.raises(UsageError, match=expected):
            find_method("conet-sa", given)

    def test_yes_and_no_are_words(self) -> None:
        assert find_method("network-adjustment", ["by_depth=no"]) == find_method(
            "network-adjustment", {"by_depth": False}
        )
        with pytest.raises(UsageError, match="yes or no"):
            find_method("network-adjustment", ["by_depth=2"])

    def test_options_may_be_values(self) -> None:
        assert find_method("conet-sa", {"gamma": 0.5}) == find_method("conet-sa", ["gamma=0.5"])
        with pytest.raises(UsageError, match="a whole number"):
            find_method("conet-sa", {"start": 16.5})

    def test_an_unknown_algorithm_is_a_usage_error(self) -> None:
        with pytest.raises(UsageError, match="'anneal'"):
            searcher_of("aneal", *SIZES)
