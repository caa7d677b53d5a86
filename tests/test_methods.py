"""Published methods, from a file to a file: what they train, measure, record, and give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conet_onnx as co
from conet_onnx.data import DataSet, load_data
from conet_onnx.graph import Graph
from conet_onnx.metrics import score
from conet_onnx.searching import Run, answering, trial
from conet_onnx.searching.measuring import Measuring
from conet_onnx.searching.recipe import QualityMeasure
from conet_onnx.searching.task import Parent, TrialTask

MODEL = Path(__file__).parent.parent / "models" / "digits_resnet8.onnx"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "LATENCY_SECONDS", 0.02)


@pytest.fixture(scope="module")
def source() -> Graph:
    return co.load(MODEL)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    whole = load_data("digits")
    return DataSet("digits", {name: whole.split(name).take(np.arange(192)) for name in whole.splits})


def searched(source: Graph, digits: DataSet, folder: Path, algorithm: str, **settings: Any) -> Run:
    settings = {"trials": 4, "epochs_per_trial": 2, "epochs": 1, "threads": 1, **settings}
    return co.search(source, data=digits, algorithm=algorithm, out=folder, **settings).run


def measures(folder: Path, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "measures" / f"{number}.json").read_text())
    return found


class TestConet:
    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, source: Graph, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
        folder = tmp_path_factory.mktemp("conet") / "run"
        return searched(source, digits, folder, "conet-sa", trials=7, options=["start=8", "smallest=8", "first_step=4"])

    def test_trials_go_on_from_each_other(self, run: Run) -> None:
        assert [t.parent for t in run.trials] == [None, *range(6)]
        assert set(run.trials[0].widths.values()) == {8}
        assert set(run.trials[1].widths.values()) == {12}

    def test_every_layer_is_measured_after_every_epoch(self, run: Run, source: Graph) -> None:
        layers = [layer.tensor for layer in score(source)]
        for number in range(7):
            document = measures(run.directory, number)
            assert document["format"] == "conet-onnx-measures/1"
            assert document["asked"] == {"metric": "qc", "epoch": "max"}
            assert [[one["tensor"] for one in epoch["layers"]] for epoch in document["epochs"]] == [layers] * 2
            assert document["widths"] == dict(run.trials[number].measured)

    def test_the_metrics_of_the_last_epoch_are_those_of_the_file(self, run: Run) -> None:
        trained = co.load(run.directory / "weights" / "2.onnx")
        noted = measures(run.directory, 2)["epochs"][-1]["layers"]
        for layer, one in zip(score(trained), noted, strict=True):
            assert layer.outs.qc == pytest.approx(one["out"]["qc"], rel=1e-5)

    def test_the_answer_is_the_best_by_the_metric_and_not_by_the_loss(self, run: Run) -> None:
        assert run.best is not None
        assert run.best.trial in (5, 6)

    def test_the_records_hold_the_constants(self, run: Run) -> None:
        assert run.settings["options"]["gamma"] == 0.8
        assert run.settings["options"]["start"] == 8
        assert run.settings["budget"] == ""
        assert (run.settings["final"], run.settings["transfer"]) == ("fresh", "svd")
        assert run.budget == {}

    def test_the_same_seed_gives_the_same_trajectory(self, source: Graph, digits: DataSet, tmp_path: Path) -> None:
        def trajectory(name: str, seed: int) -> list[Mapping[str, int]]:
            options = {"start": 8, "smallest": 8, "first_step": 4}
            run = searched(source, digits, tmp_path / name, "conet-sa", options=options, seed=seed, epochs=0)
            return [t.widths for t in run.trials]

        assert trajectory("a", 1) == trajectory("b", 1)

    def test_a_budget_holds(self, source: Graph, digits: DataSet, tmp_path: Path) -> None:
        run = searched(source, digits, tmp_path / "run", "conet-greedy", trials=3, budget="macs=0.2")
        assert max(t.macs for t in run.trials) <= 0.2 * run.source.macs
        assert run.best is not None
        assert run.best.macs <= 0.2 * run.source.macs


@pytest.mark.parametrize(("metric", "epoch"), [("qc", "max"), ("newqc", "mean"), ("qc", "last")])
def test_a_widths_value_is_the_mean_over_its_layers_of_the_epochs(source: Graph, metric: str, epoch: str) -> None:
    """Weights of known ranks, epoch after epoch; computed here again from what is noted of the layers."""
    analysis = co.analyze(source)
    measuring = Measuring(QualityMeasure(metric, epoch), analysis, analysis)
    assert measuring.after is not None
    rng = np.random.default_rng(0)
    shapes = {layer.tensor: tuple(source.weights[layer.tensor].dims) for layer in score(analysis)}
    sides: dict[tuple[str, str], list[float]] = {}
    for _ in range(3):
        weights = {}
        for name, shape in shapes.items():
            rank = int(rng.integers(1, 6))
            signal = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, int(np.prod(shape[1:]))))
            weights[name] = (signal + 0.05 * rng.standard_normal(signal.shape)).reshape(shape).astype(np.float32)
        measuring.after(weights)
        for layer in score(analysis, weights=weights):
            sides.setdefault((layer.tensor, "in"), []).append(getattr(layer.ins, metric))
            sides.setdefault((layer.tensor, "out"), []).append(getattr(layer.outs, metric))
    over = {"max": max, "mean": np.mean, "last": lambda values: values[-1]}[epoch]
    found = measuring.measured(source, load_data("digits").split("validation"))[metric]
    for name, width in analysis.widths.items():
        held = [over(sides[m.tensor, m.role]) for m in width.members if (m.tensor, m.role) in sides]
        assert found[name] == pytest.approx(np.mean(held))
        assert found[name] > 0


def test_a_width_of_one_channel_does_not_shift_the_others(source: Graph) -> None:
    """The model that is trained has one width less then, and numbers them otherwise."""
    analysis = co.analyze(source)
    student = co.rewrite(source, co.plan(analysis, {"w1": 1}))
    trained = co.analyze(student)
    assert len(trained.widths) == len(analysis.widths) - 1
    rng = np.random.default_rng(0)
    weights = {}
    for layer in score(trained):
        shape = tuple(student.weights[layer.tensor].dims)
        rows = rng.standard_normal((shape[0], 1)) * rng.standard_normal((1, int(np.prod(shape[1:]))))
        weights[layer.tensor] = (rows + 0.02 * rng.standard_normal(rows.shape)).reshape(shape).astype(np.float32)
    measuring = Measuring(QualityMeasure(), analysis, trained)
    assert measuring.after is not None
    measuring.after(weights)
    found = measuring.measured(student, load_data("digits").split("validation"))["qc"]
    assert found.keys() == analysis.widths.keys() - {"w1"}
    sides = {
        (q.tensor, side): one.qc
        for q in score(trained, weights=weights)
        for side, one in (("in", q.ins), ("out", q.outs))
    }
    for name, value in found.items():
        held = [sides[m.tensor, m.role] for m in analysis.widths[name].members if (m.tensor, m.role) in sides]
        assert value == pytest.approx(np.mean(held))


@pytest.mark.parametrize("algorithm", ["anneal", "conet-sa", "network-adjustment"])
def test_a_frozen_width_stays_and_trials_inherit_all_the_same(
    source: Graph, digits: DataSet, tmp_path: Path, algorithm: str
) -> None:
    settings = {"trials": 3, "epochs_per_trial": 1, "epochs": 0, "budget": "macs=0.6"}
    run = searched(source, digits, tmp_path / "run", algorithm, **settings, freeze=["w0"])
    assert all("w0" not in t.widths for t in run.trials)
    assert all(co.analyze(co.load(run.directory / "weights" / f"{k}.onnx")).widths["w0"].size == 16 for k in range(3))
    if algorithm != "network-adjustment":
        one, other = (co.load(run.directory / "weights" / f"{k}.onnx") for k in (0, 1))
        task = TrialTask(1, run.trials[1].widths, Parent(one.file, run.trials[0].widths), "", "", "", seed=0)
        analysis = co.analyze(source, freeze=["w0"])
        skeleton = co.rewrite(source, co.plan(analysis, task.widths, inexact=True))
        assert trial.inherit(skeleton, source, task, analysis=analysis) is not skeleton
        assert other.weights.keys() == skeleton.weights.keys()


class TestNetworkAdjustment:
    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, source: Graph, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
        folder = tmp_path_factory.mktemp("adjustment") / "run"
        return searched(source, digits, folder, "network-adjustment", trials=3, epochs=0, options=["passes=2", "u=2"])

    def test_the_cost_is_the_sources(self, run: Run) -> None:
        assert [t.macs / run.source.macs for t in run.trials] == pytest.approx([1, 1, 1], abs=0.01)
        assert dict(run.trials[0].widths) == {name: width["size"] for name, width in run.widths.items()}
        assert run.trials[1].widths != run.trials[0].widths

    def test_utilisation_decides_what_moves(self, run: Run) -> None:
        """By hand: the two widths of largest ratio grow, relative to the others, and the two of least shrink."""
        ratios = run.trials[0].measured["fur"]
        order = sorted(ratios, key=lambda name: -ratios[name])
        change = {name: run.trials[1].widths[name] / size for name, size in run.trials[0].widths.items()}
        middle = np.median([change[name] for name in order[2:-2]])
        assert all(change[name] > middle for name in order[:2])
        assert all(change[name] < middle for name in order[-2:])

    def test_rates_make_all_widths_equally_dear(self, run: Run) -> None:
        rates = run.trials[0].measured["rate"]
        assert rates.keys() == run.widths.keys()
        assert min(rates.values()) < 0.05 < max(rates.values())

    def test_the_answer_is_the_trial_of_least_loss(self, run: Run) -> None:
        assert run.best is not None
        losses = [t.validation["loss"] for t in run.trials]
        assert run.best.trial == int(np.argmin(losses))


def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """The settings of every training from now on; images are not varied, for which torchvision would be needed."""
    asked: list[Mapping[str, Any]] = []
    real = trial.fit

    def fit(*arguments: Any, **settings: Any) -> Any:
        asked.append(settings)
        return real(*arguments, **{**settings, "augment": ()})

    monkeypatch.setattr(trial, "fit", fit)
    return asked


class TestTraining:
    @pytest.mark.parametrize(
        ("algorithm", "expected"),
        [
            ("conet-sa", {"lr": 0.03, "schedule": "adas", "batch": 128, "nesterov": False, "distill": 0.0}),
            ("network-adjustment", {"lr": 0.15, "weight_decay": 3e-4, "channel_dropout": 0.05, "distill": 0.0}),
            ("anneal", {"distill": 0.9}),
        ],
    )
    def test_a_method_trains_as_it_says(
        self,
        source: Graph,
        digits: DataSet,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        algorithm: str,
        expected: Mapping[str, Any],
    ) -> None:
        asked = trainings(monkeypatch)
        searched(
            source,
            digits,
            tmp_path / "run",
            algorithm,
            trials=2,
            epochs_per_trial=1,
            budget="macs=0.5",
            augment=["crop"],
            precision="bf16-mixed",
        )
        assert len(asked) == 3
        for settings in asked[:2]:
            assert expected.items() <= settings.items()
            assert settings["augment"] == ("crop",)
            assert settings["precision"] == "bf16-mixed"
        fresh = [settings["init"] == "fresh" for settings in asked]
        assert (
            fresh
            == {
                "conet-sa": [True, False, True],
                "network-adjustment": [True, True, True],
                "anneal": [False, False, False],
            }[algorithm]
        )
        if algorithm == "conet-sa":
            assert {"lr": 0.1, "schedule": "decay", "decay_every": 25, "weight_decay": 5e-4}.items() <= asked[2].items()

    @pytest.mark.parametrize(
        ("budget", "wish", "expected"),
        [
            ("macs=0.5", {}, 0.9),
            ("macs=1.0", {}, 0.5),
            ("macs=1.0 params=0.9", {}, 0.9),
            ("macs=1", {"distill": 0.8}, 0.8),
        ],
    )
    def test_a_source_within_the_budget_says_less(
        self,
        source: Graph,
        digits: DataSet,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        budget: str,
        wish: Mapping[str, float],
        expected: float,
    ) -> None:
        asked = trainings(monkeypatch)
        lengths = {"trials": 1, "epochs_per_trial": 1, "budget": budget.split()}
        searched(source, digits, tmp_path / "run", "anneal", **lengths, **wish)
        assert [settings["distill"] for settings in asked] == [expected, expected]

    @pytest.mark.parametrize(("algorithm", "final"), [("conet-greedy", "inherit"), ("compound", "fresh")])
    def test_the_last_training_may_go_on_or_begin_anew(
        self,
        source: Graph,
        digits: DataSet,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        algorithm: str,
        final: str,
    ) -> None:
        asked = trainings(monkeypatch)
        lengths = {"trials": 1, "epochs_per_trial": 1, "budget": "macs=0.5"}
        run = searched(source, digits, tmp_path / "run", algorithm, **lengths, final=final)
        assert asked[-1]["init"] == final
        assert run.settings["final"] == final
