"""Our own searcher: curves, what they are worth, which widths are trained on, and what it finds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching_fakes import chain, tried

import conet_onnx as co
from conet_onnx.data import DataSet, Feeds, Normalisation, Split, load_data
from conet_onnx.evaluation import evaluate
from conet_onnx.finetuning import choose_inputs
from conet_onnx.graph import Graph
from conet_onnx.records.trial import Trial
from conet_onnx.searching.algorithms import find_method
from conet_onnx.searching.budget import Budget, Limits
from conet_onnx.searching.curves import Curve, Worth
from conet_onnx.searching.halving import Halving
from conet_onnx.searching.probing import MEASURING, TRYING
from conet_onnx.searching.reallocate import Reallocate, Reallocation
from conet_onnx.searching.recipe import CurveMeasure
from conet_onnx.searching.space import WidthSpace
from conet_onnx.searching.trial import OF_CURVES, OF_PROBED, PROBED, Workshop, at_most
from conet_onnx.transfer import drawn, transferred

SHARES = CurveMeasure().quantities
masked = st.lists(st.floats(-0.5, 5.0), min_size=len(SHARES), max_size=len(SHARES))


class TestCurve:
    @given(st.integers(1, 300), masked)
    def test_the_loss_never_rises_with_the_size(self, size: int, lost: list[float]) -> None:
        curve = Curve.of(size, list(zip(SHARES.values(), lost, strict=True)))
        changes = curve.change(np.arange(1, 4 * size + 1))
        assert (np.diff(changes) <= 1e-9).all()
        assert changes[size - 1] == 0

    @given(st.integers(2, 300), masked)
    def test_each_channel_more_is_worth_less_than_the_one_before(self, size: int, lost: list[float]) -> None:
        curve = Curve.of(size, list(zip(SHARES.values(), lost, strict=True)))
        gains = -np.diff(curve.change(np.arange(size, 4 * size + 1)))
        assert (np.diff(gains) <= 1e-9).all()
        assert gains[0] <= curve.margin + 1e-12
        kept = -np.diff(curve.change(np.arange(1, size + 1)))
        assert gains[0] <= kept[-1] + 1e-9

    def test_it_goes_through_what_was_measured(self) -> None:
        curve = Curve.of(16, [(k / 8, 0.1 * k * k) for k in range(1, 8)])
        assert curve.change([16 - 2 * k for k in range(8)]) == pytest.approx([0.1 * k * k for k in range(8)])


class TestWorth:
    def test_what_trials_show_is_found(self) -> None:
        rng = np.random.default_rng(0)
        truth = np.array([0.2, 0.05, 0.6, 0.1])
        moved = [rng.normal(size=4) for _ in range(200)]
        worth = Worth.of(moved, [float(truth @ x) - 0.03 + 0.01 * rng.normal() for x in moved], 4)
        draws = np.stack([worth.drawn(rng) for _ in range(400)])
        assert draws.mean(0) == pytest.approx(truth, rel=0.15)
        assert (draws > 0).all()

    def test_before_any_trial_all_are_alike_and_draws_differ(self) -> None:
        rng = np.random.default_rng(0)
        draws = np.stack([Worth.of([], [], 3).drawn(rng) for _ in range(4000)])
        assert draws.mean(0) == pytest.approx([1, 1, 1], rel=0.05)
        assert draws.std(0) == pytest.approx([0.5, 0.5, 0.5], rel=0.15)


def trial(number: int, objective: float, parent: int | None = None, width: int | None = None) -> Trial:
    widths = {"w0": number + 1 if width is None else width}
    return Trial(number, widths, 1, 1, 1, parent, "", "complete", {}, objective)


class TestHalving:
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=30, unique=True), st.integers(2, 4))
    def test_widths_are_trained_on_where_they_are_among_the_best_of_their_rung(
        self, found: list[float], eta: int
    ) -> None:
        halving = Halving(eta, 2)
        for number, objective in enumerate(found):
            halving.tell(one := trial(number, objective), None)
            rank = sum(other < objective for other in found[:number])
            assert halving.promoted(one) == (rank < max((number + 1) // eta, 1))

    def test_between_two_rungs_training_goes_on_and_after_the_last_it_ends(self) -> None:
        halving, parent = Halving(2, 2), None
        trials = [trial(0, 0.5)]
        for number in range(1, 4):
            trials.append(trial(number, 0.5 - 0.1 * number, parent=number - 1, width=1))
        for one in trials:
            halving.tell(one, parent)
            parent = one
        assert [halving.promoted(one) for one in trials] == [True, True, True, False]
        assert halving.trained(trials[-1]) == 4

    def test_trained_on_twice_from_the_same_model_both_count(self) -> None:
        """Each by its own objective, and without a warning of Optuna's."""
        halving, first = Halving(2, 2), trial(0, 1.0, width=1)
        halving.tell(first, None)
        told = ((1, 0.5), (2, 0.4), (3, 0.9))
        ends = [replace(trial(number, objective, width=1), parent=0) for number, objective in told]
        for one in ends:
            halving.tell(one, first)
        assert [halving.trained(one) for one in ends] == [2, 2, 2]
        assert [halving.promoted(one) for one in ends] == [True, True, False]

    def test_a_failed_trial_is_not_promoted(self) -> None:
        halving = Halving(3, 2)
        halving.tell(one := trial(0, math.nan), None)
        assert not halving.promoted(one)


SIZES = (32, 64, 64, 128, 128)
EXPONENT = 0.8


def true_loss(widths: Mapping[str, int], a: Mapping[str, float]) -> float:
    """Sum of a / n^b."""
    return 0.05 + sum(a[name] / n**EXPONENT for name, n in widths.items())


def measured(widths: Mapping[str, int], a: Mapping[str, float], bias: Mapping[str, float]) -> dict[str, Any]:
    """What masking would say, wrong by a factor for each width."""

    def lost(name: str, n: int, share: float) -> float:
        return bias[name] * a[name] * ((n - int(share * n)) ** -EXPONENT - n**-EXPONENT)

    return {q: {name: lost(name, n, share) for name, n in widths.items()} for q, share in SHARES.items()}


@dataclass
class Told:
    """A probe that knows the law: untrained, a model loses what masking says."""

    space: WidthSpace
    a: Mapping[str, float]
    bias: Mapping[str, float]
    asked: list[Mapping[str, int]] = field(default_factory=list)

    def curves(self, trial: Trial | None) -> dict[str, Any]:
        return measured(self.space.source if trial is None else trial.widths, self.a, self.bias)

    def kept(self) -> dict[str, Any]:
        """As a criterion has it that knows what a channel is worth: none is worth more than another."""
        found = {}
        for name, size in self.space.source.items():
            n = np.arange(1, size + 1)
            gained = -self.bias[name] * self.a[name] * (n**-EXPONENT - size**-EXPONENT)
            found[name] = np.concatenate([[-np.inf], gained])
        return found

    def untrained(self, widths: Mapping[str, int]) -> float:
        self.asked.append(widths)
        return true_loss(widths, {name: self.bias[name] * a for name, a in self.a.items()})


def best_of(algorithm: str, seed: int, *, budget: float, trials: int = 16) -> tuple[float, list[Trial], WidthSpace]:
    rng = np.random.default_rng([seed, 99])
    names = [f"w{i}" for i in range(len(SIZES))]
    a = dict(zip(names, np.exp(rng.normal(0, 1, len(SIZES))).tolist(), strict=True))
    bias = dict(zip(names, (10 * np.exp(rng.normal(0, 0.5, len(SIZES)))).tolist(), strict=True))
    analysis, method = chain(*SIZES), find_method(algorithm)
    limits = Budget(macs=budget).resolve(analysis.costs.price({}))
    space = method.space(analysis, limits)
    searcher = method.searcher(space, limits, trials=trials, seed=seed, probe=Told(space, a, bias))
    played = []
    for number in range(trials):
        noise = 0.002 * float(rng.standard_normal())
        played.append(
            tried(
                searcher,
                space,
                number,
                objective=lambda widths, noise=noise: true_loss(widths, a) + noise,
                validation=lambda widths, noise=noise: {"loss": true_loss(widths, a) + noise},
            )
        )
    return true_loss(searcher.choose(played).widths, a), played, space


def beginning(seed: int, *, probes: int) -> tuple[Reallocate, WidthSpace, Limits, Told]:
    """A searcher of half the MACs that has tried nothing, and its probe, by laws that a seed draws."""
    analysis, rng = chain(*SIZES), np.random.default_rng(seed)
    names = [f"w{i}" for i in range(len(SIZES))]
    a, bias = (dict(zip(names, np.exp(rng.normal(0, 1, len(SIZES))).tolist(), strict=True)) for _ in range(2))
    limits = Budget(macs=0.5).resolve(analysis.costs.price({}))
    space = WidthSpace(analysis)
    probe = Told(space, a, bias)
    searcher = Reallocate(space, limits, Reallocation(probes=probes), trials=16, seed=seed, probe=probe)
    return searcher, space, limits, probe


class TestReallocate:
    @pytest.mark.parametrize("budget", [0.3, 0.6])
    def test_it_comes_nearer_to_the_optimum_than_chance_and_one_multiplier(self, budget: float) -> None:
        found = {
            name: np.array([best_of(name, seed, budget=budget)[0] for seed in range(8)])
            for name in ("reallocate", "random", "compound")
        }
        assert (found["reallocate"] < found["compound"]).mean() >= 0.75
        assert found["reallocate"].mean() < 0.97 * min(found["random"].mean(), found["compound"].mean())

    def test_at_the_sources_cost_some_widths_grow_while_others_shrink(self) -> None:
        _, played, space = best_of("reallocate", 0, budget=1.0)
        assert played[0].widths != space.source
        moved = [trial.widths for trial in played if trial.widths != space.source]
        assert all(any(w[n] > space.source[n] for n in w) and any(w[n] < space.source[n] for n in w) for w in moved[:1])

    @pytest.mark.parametrize("seed", range(4))
    def test_from_the_source_itself_the_first_step_is_small_and_no_chance(self, seed: int) -> None:
        """No other widths that are as near, within the budget, are better by the source's curves."""
        analysis, names = chain(*SIZES), [f"w{i}" for i in range(len(SIZES))]
        a, bias = (dict(zip(names, drawn, strict=True)) for drawn in np.random.default_rng(seed).lognormal(size=(2, 5)))
        limits = Budget(macs=1.0).resolve(analysis.costs.price({}))
        space, method = WidthSpace(analysis), Reallocation()
        probe = Told(space, a, bias)
        searchers = [Reallocate(space, limits, method, trials=16, seed=k, probe=probe) for k in range(3)]
        first = searchers[0].ask(0).widths
        assert all(other.ask(0).widths == first for other in searchers[1:])
        assert first != space.source
        assert limits.fits(space.price(first))
        assert all(1 / method.timidest <= n / space.source[name] <= method.timidest for name, n in first.items())
        assert searchers[0].ask(1, [first]).widths not in (first, space.source)  # beside it, chance decides
        curves = searchers[0].curves(None)

        def gained(widths: Mapping[str, int]) -> float:
            return -sum(float(curve.change([widths[name]])[0]) for name, curve in zip(names, curves, strict=True))

        near = [
            [n for n in space.levels[k].tolist() if 1 / method.timidest <= n / space.source[k] <= method.timidest]
            for k in names
        ]
        every = (dict(zip(names, sizes, strict=True)) for sizes in product(*near))
        best = max(gained(widths) for widths in every if limits.fits(space.price(widths)))
        assert gained(first) >= best - 0.01 * abs(best) - 1e-9

    def test_widths_that_do_well_are_trained_on_from_their_own_weights(self) -> None:
        _, played, _ = best_of("reallocate", 1, budget=0.5)
        again = [t for t in played if t.parent is not None and played[t.parent].widths == t.widths]
        assert again
        assert all(played[t.parent or 0].accepted and t.number == (t.parent or 0) + 1 for t in again)

    def test_from_the_same_state_other_numbers_try_something_else(self) -> None:
        analysis = chain(*SIZES)
        limits = Budget(macs=0.5).resolve(analysis.costs.price({}))
        space = WidthSpace(analysis)
        searcher = Reallocate(space, limits, Reallocation(), trials=16)
        first = tried(searcher, space, 0, objective=0.5, validation={"loss": 0.5})
        proposals = []
        for number in range(1, 6):
            proposals.append(searcher.ask(number, [first.widths, *proposals]).widths)
        assert len({tuple(widths.values()) for widths in proposals}) == 5
        assert searcher.ask(1).widths == first.widths  # which was promoted, and nobody tries it beside

    @pytest.mark.parametrize("seed", range(4))
    def test_it_begins_with_the_best_of_what_it_has_probed_within_the_budget(self, seed: int) -> None:
        searcher, space, limits, probe = beginning(seed, probes=12)
        first = searcher.ask(0).widths
        assert len(probe.asked) <= 12
        assert len({tuple(w.values()) for w in probe.asked}) == len(probe.asked)
        assert all(limits.fits(space.price(widths)) for widths in probe.asked)
        losses = [replace(probe, asked=[]).untrained(widths) for widths in probe.asked]
        assert first == probe.asked[int(np.argmin(losses))]
        assert min(losses) <= losses[0]  # the first of them is all widths scaled alike
        assert probe.asked[0] == space.project(space.source, limits)
        assert searcher.ask(0).widths == first

    @pytest.mark.parametrize("seed", range(4))
    def test_the_knapsack_of_what_channels_are_worth_is_among_what_is_probed(self, seed: int) -> None:
        """However far from widths that are scaled alike: no others that are probed keep more."""
        searcher, space, _, probe = beginning(seed, probes=8)
        searcher.ask(0)
        kept = probe.kept()
        inside = [widths for widths in probe.asked if all(n <= space.source[name] for name, n in widths.items())]
        values = [sum(kept[name][n] for name, n in widths.items()) for widths in inside]
        assert len(values) > 3
        assert sum(kept[name][n] for name, n in probe.asked[2].items()) >= 1.01 * max(values)  # they are negative

    def test_where_steps_are_larger_than_the_hedge_probes_leap(self) -> None:
        analysis = chain(*[16] * 8)
        limits = Budget(macs=0.5).resolve(analysis.costs.price({}))
        space = WidthSpace(analysis).aligned(dict.fromkeys(analysis.widths, 8), {})
        a = {name: 1.0 + k for k, name in enumerate(space.names)}
        probe = Told(space, a, dict.fromkeys(a, 1.0))
        Reallocate(space, limits, Reallocation(probes=8), trials=16, probe=probe).ask(0)
        assert len(probe.asked) >= 4
        assert all(limits.fits(space.price(widths)) for widths in probe.asked)

    def test_a_knapsack_of_a_space_counts_what_the_space_prices(self) -> None:
        space = WidthSpace(chain(*SIZES))
        limits = Budget(macs=0.5, params=0.5, bytes=0.7).resolve(space.price(space.source))
        rng = np.random.default_rng(0)
        rows = np.stack([rng.choice(space.levels[name], 20) for name in space.names], 1)
        for kind, limit in zip(limits.by_kind, space.constraints(limits), strict=True):
            prices = [getattr(space.price(dict(zip(space.names, row.tolist(), strict=True))), kind) for row in rows]
            assert limit.spent(rows) == pytest.approx(prices)
            assert sum(term.cost(rows[:, list(term.widths)]) for term in limit.terms) == pytest.approx(prices)


class TestTheSourceAsAnAnswer:
    def test_within_its_own_cost_nothing_worse_than_the_source_is_returned(self, tmp_path: Path) -> None:
        source = co.load("models/digits_resnet8.onnx")
        found = co.search(
            source,
            data="digits",
            algorithm="reallocate",
            budget="macs=1.0",
            trials=1,
            epochs_per_trial=1,
            epochs=0,
            out=tmp_path / "run",
        )
        assert found.run.best is not None
        assert found.run.best.validation["loss"] <= found.run.source.validation["loss"]
        if found.run.best.trial is None:
            assert found.best.array("conv1.weight").tobytes() == source.array("conv1.weight").tobytes()


class TestTrainingOn:
    def test_a_trial_is_judged_by_its_average_and_goes_on_from_its_last_step(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, begun = co.load("models/digits_resnet8.onnx"), []
        train = Workshop.train

        def seen(self: Workshop, student: Graph, **how: Any) -> Any:
            begun.append(student)
            return train(self, student, **how)

        monkeypatch.setattr(Workshop, "train", seen)
        how: dict[str, Any] = {"data": "digits", "budget": "macs=0.4", "options": {"probes": 1}, "threads": 1}
        run = co.search(source, trials=2, epochs=1, out=tmp_path / "run", **how).run
        first, second = run.trials
        assert first.widths == second.widths
        weights = tmp_path / "run" / "weights"
        judged, last = (co.load(weights / name) for name in ("0.onnx", "0.last.onnx"))
        *_, again, final = begun
        name = "conv1.weight"
        assert again.array(name).tobytes() == last.array(name).tobytes() != judged.array(name).tobytes()
        chosen = co.load(weights / f"{run.best.trial if run.best else 0}.last.onnx")
        assert final.array(name).tobytes() == chosen.array(name).tobytes()
        data = load_data("digits").with_validation()
        normalisation = choose_inputs(source, data).normalisation
        loss = evaluate(judged, data, split="validation", normalisation=normalisation).loss
        assert loss == pytest.approx(first.validation["loss"], rel=1e-5)


class TestProbing:
    def test_what_is_asked_is_kept_in_the_folder_and_not_asked_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, folder = co.load("models/digits_resnet8.onnx"), tmp_path / "run"
        how: dict[str, Any] = {"data": "digits", "algorithm": "reallocate", "budget": "macs=0.4", "out": folder}
        how |= {"options": {"probes": 2, "rungs": 0}, "epochs_per_trial": 1, "epochs": 0}
        first = co.search(source, trials=1, **how)
        assert [file.name for file in (folder / "measures").iterdir()] == ["source.json"]
        found = json.loads((folder / "measures" / "source.json").read_text())["widths"]
        assert found.keys() == SHARES.keys()
        assert set(found["without 0.5"]) == set(co.analyze(source).widths)
        assert first.run.seconds["evaluation"] > 0
        monkeypatch.setattr(Workshop, "untrained", None)
        more = co.search(source, trials=2, resume=True, **how)
        assert more.run.trials[0].widths == first.run.trials[0].widths
        assert {file.name for file in (folder / "measures").iterdir()} == {"source.json", "0.json"}

    @pytest.mark.parametrize(("train", "asked"), [(100_000, 256), (1600, 100), (64, 32), (20, 20)])
    def test_of_few_samples_few_are_asked(self, train: int, asked: int) -> None:
        """256 of them, or one in 16, but not fewer than 32 or than there are."""
        assert at_most(256, OF_CURVES, train) == asked

    def test_before_training_a_model_says_what_its_trial_begins_with(self) -> None:
        source, method = co.load("models/digits_resnet8.onnx"), Reallocation()
        recipe = method.recipe()
        workshop = Workshop.open(
            source, "digits", normalisation=None, epochs=1, provider="cpu", threads=1, recipe=recipe
        )
        same = {name: width.size for name, width in workshop.analysis.widths.items()}
        half = {name: size // 2 for name, size in same.items()}
        train = workshop.dataset.split("train")
        some = drawn(train, at_most(PROBED, OF_PROBED, len(train)), seed=1)
        data = replace(workshop.dataset, splits={"validation": some})
        fitted = transferred(
            workshop.analysis,
            half,
            "least-squares",
            scores=workshop.scores(workshop.analysis),
            calibration=workshop.calibration,
        ).graph
        for widths, graph in ((same, source), (half, fitted)):
            expected = evaluate(graph, data, split="validation", normalisation=workshop.choice.normalisation).loss
            assert workshop.untrained(widths) == pytest.approx(expected, rel=1e-4)

    def test_what_it_takes_is_told_before_and_counted_as_evaluation(self, tmp_path: Path) -> None:
        told: list[tuple[str, float | None]] = []
        found = co.search(
            co.load("models/digits_resnet8.onnx"),
            data="digits",
            budget="macs=0.4",
            trials=1,
            epochs=0,
            threads=1,
            out=tmp_path / "run",
            progress=lambda phase, _done, _work, left: told.append((phase, left)),
        ).run
        asked = [(phase, left) for phase, left in told if phase in (MEASURING, TRYING)]
        # What channels are worth, and the first probe, are asked before anything is foretold, and are what it goes by.
        assert [left for _, left in asked[:2]] == [None, None]
        assert sum(phase == TRYING for phase, _ in asked) == Reallocation().probes
        known = [left for _, left in asked[2:]]
        assert all(left is not None and left > 0 for left in known)
        assert known[0] > known[-1]
        spent = sum(trial.seconds + trial.evaluation_seconds for trial in found.trials)
        assert found.seconds["training"] + found.seconds["evaluation"] > spent


@pytest.mark.parametrize("labels", [True, False])
def test_inputs_by_name_are_searched_on(tmp_path: Path, labels: bool) -> None:
    """From curves and probes to the answer. With labels it is that of the same samples as images; without, outputs of
    what is no image are not taken for scores of classes."""
    whole, source = load_data("digits"), co.load("models/digits_resnet8.onnx")
    found = []
    for named in (False, True):
        splits = {}
        for name in whole.splits:
            split = whole.split(name).take(np.arange(120))
            images = split.images[:].astype(np.float32) / 16
            splits[name] = Split(Feeds({"image": images}) if named else images, split.labels if labels else None)
        out = tmp_path / f"{named}"
        how: dict[str, Any] = {} if named else {"normalisation": Normalisation()}
        run = co.search(
            source, data=DataSet("d", splits), budget="macs=0.5", trials=1, epochs_per_trial=1, epochs=1, out=out, **how
        ).run
        found.append((run.trials[0].widths, run.trials[0].validation["loss"]))
    assert found[0] == found[1] or not labels
    assert all(math.isfinite(loss) for _, loss in found)


def test_losses_without_channels_are_those_of_the_model_with_their_weights_at_zero() -> None:
    from conet_onnx.data import fed, load_data
    from conet_onnx.evaluation import evaluate
    from conet_onnx.finetuning import choose_inputs
    from conet_onnx.torch_backend.utilisation import losses_without

    source, dataset = co.load("models/digits_resnet8.onnx"), load_data("digits").with_validation()
    analysis, choice = co.analyze(source), choose_inputs(source, dataset)
    name = "w1"
    mask = np.ones(analysis.widths[name].size)
    mask[[0, 3, 7]] = 0
    readers = {m.tensor: m.axis for m in analysis.widths[name].members if m.role == "in"}
    zeroed = {}
    for tensor, axis in readers.items():
        array = source.array(tensor).copy()
        np.moveaxis(array, axis, 0)[mask == 0] = 0
        zeroed[tensor] = array
    how: dict[str, Any] = {"split": "validation", "normalisation": choice.normalisation}
    before, after = (evaluate(graph, dataset, **how).loss for graph in (source, source.with_arrays(zeroed)))
    normalise = lambda x: fed(source, x, choice.normalisation)  # noqa: E731 - one expression, used once
    lost = losses_without(source, analysis, dataset.split("validation"), {name: [mask]}, normalise=normalise)
    assert lost[name] == pytest.approx([after - before], abs=2e-5)
    held_out = dataset.split("validation")
    named = Split(Feeds(fed(source, held_out.images[:], choice.normalisation)), held_out.labels)
    assert losses_without(source, analysis, named, {name: [mask]})[name] == pytest.approx(lost[name], rel=1e-6)
    assert after - before > 1e-4
