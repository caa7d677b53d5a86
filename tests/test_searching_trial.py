"""One evaluation with real training: what is inherited, what is written, and that it depends on its task alone."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_quantised_models import by_onnxruntime

import conet_onnx as co
from conet_onnx.data.dataset import Array
from conet_onnx.graph import Graph
from conet_onnx.planning import TRANSFERS
from conet_onnx.plans import WidthPlan
from conet_onnx.records.trial import Trial
from conet_onnx.runtime import run
from conet_onnx.searching import read_run
from conet_onnx.searching.recipe import Recipe
from conet_onnx.searching.task import Parent, TrialTask
from conet_onnx.searching.trial import TrialSettings, Workshop, evaluate_trial, inherit
from conet_onnx.torch_backend.train import Diverged, Fitted
from conet_onnx.transfer import calibration_batches, transferred

MODEL = Path(__file__).parent.parent / "models" / "digits_resnet8.onnx"
SETTINGS = TrialSettings(str(MODEL), "digits", threads=1)
SOURCE = {"w0": 16, "w1": 16, "w2": 32, "w3": 32, "w4": 64, "w5": 64}


@pytest.fixture(scope="module")
def source() -> Graph:
    return co.load(MODEL)


@pytest.fixture
def images() -> Array:
    return np.random.default_rng(0).random((16, 1, 8, 8), dtype=np.float32)


def task(folder: Path, widths: Mapping[str, int], parent: Parent | None = None, *, number: int = 0) -> TrialTask:
    weights, plan, measures = (folder / f"{number}.{kind}" for kind in ("onnx", "json", "measures.json"))
    return TrialTask(number, {**SOURCE, **widths}, parent, str(weights), str(plan), str(measures), seed=7 + number)


def asked_of_training(monkeypatch: pytest.MonkeyPatch, setting: str) -> list[Any]:
    """What each training is given as one of its settings; none gets any further."""
    seen: list[Any] = []

    def fit(*_: object, **settings: Any) -> object:
        seen.append(settings[setting])
        raise Diverged("seen")

    monkeypatch.setattr("conet_onnx.searching.trial.fit", fit)
    return seen


def start_of(source: Graph, one: TrialTask) -> Graph:
    """What a task's training starts from."""
    analysis = co.analyze(source)
    return inherit(co.rewrite(source, co.plan(analysis, one.widths, inexact=True)), source, one, analysis=analysis)


def scores(graph: Graph, images: Array) -> Array:
    return next(iter(run(graph, {graph.inputs[0].name: images}).values()))


class TestInheritance:
    def test_growing_from_a_trained_parent_keeps_its_function(
        self, source: Graph, tmp_path: Path, images: Array
    ) -> None:
        small = task(tmp_path, {"w1": 9, "w4": 30, "w0": 12})
        evaluate_trial(small, SETTINGS)
        trained = co.load(small.weights)
        grown = start_of(source, task(tmp_path, {"w1": 13, "w4": 70, "w0": 12}, Parent(small.weights, small.widths)))
        expected, before = scores(trained, images), scores(source, images)
        assert scores(grown, images) == pytest.approx(expected, abs=1e-4)
        assert np.abs(before - expected).max() > 1e-2

    def test_added_channels_are_copies_that_training_can_pull_apart(self, source: Graph, tmp_path: Path) -> None:
        start = start_of(source, task(tmp_path, {"w5": 72}))
        last = next(n for n, t in source.weights.items() if tuple(t.dims) == (10, 64))
        before, after = source.array(last), start.array(last)
        assert (np.abs(after).max(axis=0) > 1e-6).all()
        assert len({column.tobytes() for column in np.ascontiguousarray(after.T)}) == 72
        assert after.sum(axis=1) == pytest.approx(before.sum(axis=1), abs=1e-4)

    def test_the_parents_own_widths_give_the_parents_own_weights(self, source: Graph, tmp_path: Path) -> None:
        small = task(tmp_path, {"w1": 9, "w4": 30})
        evaluate_trial(small, SETTINGS)
        same = start_of(source, task(tmp_path, small.widths, Parent(small.weights, small.widths), number=1))
        trained = co.load(small.weights)
        assert trained.weights.keys() == same.weights.keys()
        for name in trained.weights:
            np.testing.assert_array_equal(trained.array(name), same.array(name))

    @pytest.mark.parametrize("augment", [(), ("flip",)])
    def test_the_teacher_sees_the_images_as_they_are_varied(
        self, source: Graph, monkeypatch: pytest.MonkeyPatch, augment: tuple[str, ...]
    ) -> None:
        """Its scores are computed once for images that always are the same."""
        seen = asked_of_training(monkeypatch, "teacher")
        recipe = replace(Recipe(), training={**Recipe().training, "augment": augment})
        how: dict[str, Any] = {"normalisation": None, "epochs": 1, "provider": "cpu", "threads": 1, "recipe": recipe}
        workshop = Workshop.open(source, "digits", **how)
        with pytest.raises(Diverged):
            workshop.train(source, epochs=1, seed=0, report=lambda _: None)
        assert isinstance(seen[0], Graph) == bool(augment)
        assert isinstance(seen[0], np.ndarray) != bool(augment)

    @pytest.mark.parametrize("how", ["auto", "reinsert", "none"])
    def test_batchnorm_reaches_the_training(
        self, source: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        asked = asked_of_training(monkeypatch, "batchnorm")
        outcome = evaluate_trial(task(tmp_path, {"w1": 9}), replace(SETTINGS, batchnorm=how))
        assert asked == [how]
        assert outcome.validation == {}

    @pytest.mark.parametrize("transfer", TRANSFERS)
    def test_every_policy_hands_on_what_it_makes_of_the_parent(
        self, source: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transfer: str
    ) -> None:
        """From the source, and from a trial that was trained; in the structure of the plan that is written."""
        small, starts = task(tmp_path, {"w1": 9, "w4": 30}), []

        def fit(student: Graph, *_: object, **__: object) -> object:
            starts.append(student)
            return Fitted(student, (), 0.0)

        monkeypatch.setattr("conet_onnx.searching.trial.fit", fit)
        again = task(tmp_path, {"w1": 12, "w4": 20}, Parent(small.weights, small.widths), number=1)
        for one in (small, again):
            evaluate_trial(one, replace(SETTINGS, recipe=Recipe(transfer=transfer)))
            co.verify(source, co.load(one.weights), WidthPlan.load(one.plan), provider="cpu")
        workshop = Workshop.open(source, "digits", normalisation=None, epochs=1, provider="auto", threads=1)
        batches = None
        if transfer == "least-squares":
            batches = calibration_batches(source, workshop.dataset.split("train"), workshop.choice.normalisation)
            assert sum(len(batch["image"]) for batch in batches) == 256
        for start, parent, one in zip(starts, (source, co.load(small.weights)), (small, again), strict=True):
            how = {"seed": one.seed, "inexact": True, "calibration": batches}
            expected = transferred(co.analyze(parent), one.widths, transfer, **how).graph
            for name in start.weights:
                np.testing.assert_array_equal(start.array(name), expected.array(name))

    def test_weights_of_eight_bits_are_handed_on(self, tmp_path: Path) -> None:
        source = Graph(by_onnxruntime("layers", channels=True, unsigned=False))
        analysis = co.analyze(source)
        widths = {name: width.size - 2 for name, width in analysis.widths.items()}
        small = co.rewrite(source, co.plan(analysis, widths))
        trained = small.with_arrays({n: small.array(n) // 2 for n, t in small.weights.items() if len(t.dims) == 2})
        trained.save(tmp_path / "small.onnx")
        one = TrialTask(1, widths, Parent(str(tmp_path / "small.onnx"), widths), "", "", "", seed=0)
        start = inherit(small, source, one, analysis=analysis)
        assert sum(t.dims[1:] != [] for t in start.weights.values()) == 3
        for name in trained.weights:
            np.testing.assert_array_equal(start.array(name), trained.array(name))

    def test_shrinking_keeps_rows_of_the_parent(self, source: Graph, tmp_path: Path) -> None:
        small = task(tmp_path, {"w5": 40})
        evaluate_trial(small, SETTINGS)
        start = start_of(source, task(tmp_path, {"w5": 24}, Parent(small.weights, small.widths), number=1))
        trained = co.load(small.weights)
        last = next(n for n, t in trained.weights.items() if tuple(t.dims) == (10, 40))
        columns = {column.tobytes() for column in np.ascontiguousarray(trained.array(last).T)}
        assert all(column.tobytes() in columns for column in np.ascontiguousarray(start.array(last).T))

    def test_a_parent_that_has_lost_a_width_leaves_the_sources_weights(self, source: Graph, tmp_path: Path) -> None:
        """At one channel an axis is no width any more; ids would shift, and nothing may be inherited by a wrong one."""
        thin = task(tmp_path, {"w1": 1})
        evaluate_trial(thin, SETTINGS)
        again = task(tmp_path, {"w1": 5}, Parent(thin.weights, thin.widths), number=1)
        start, plain = start_of(source, again), start_of(source, task(tmp_path, {"w1": 5}))
        for name in plain.weights:
            np.testing.assert_array_equal(start.array(name), plain.array(name))


class TestPurity:
    def test_the_same_task_gives_the_same_bytes_in_any_process(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        here = task(tmp_path / "a", {"w2": 20})
        there = task(tmp_path / "b", {"w2": 20})
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            future = pool.submit(evaluate_trial, there, SETTINGS)
            first, second = evaluate_trial(here, SETTINGS), future.result()
        assert first.validation == second.validation
        assert Path(here.weights).read_bytes() == Path(there.weights).read_bytes()
        assert Path(here.plan).read_bytes() == Path(there.plan).read_bytes()

    def test_tasks_are_plain_values(self, tmp_path: Path) -> None:
        one = task(tmp_path, {"w2": 20}, Parent("x", SOURCE))
        assert pickle.loads(pickle.dumps((one, SETTINGS))) == (one, SETTINGS)

    def test_another_seed_trains_otherwise(self, source: Graph) -> None:
        workshop = Workshop.open(source, "digits", normalisation=None, epochs=1, provider="auto", threads=1)
        a, b = (workshop.train(source, epochs=1, seed=seed, report=lambda _: None)[0] for seed in (0, 1))
        assert any((a.array(name) != b.array(name)).any() for name in a.weights)

    def test_a_small_model_trains_on_one_thread_unless_asked(self, source: Graph) -> None:
        for asked, got in ((None, 1), (2, 2)):
            workshop = Workshop.open(source, "digits", normalisation=None, epochs=1, provider="auto", threads=asked)
            assert workshop.training_threads == got

    def test_a_diverging_training_is_a_failed_trial(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from conet_onnx.searching import trial
        from conet_onnx.torch_backend.train import Diverged

        def fit(*_: object, **__: object) -> None:
            raise Diverged("loss is nan")

        monkeypatch.setattr(trial, "fit", fit)
        outcome = evaluate_trial(task(tmp_path, {"w2": 20}), SETTINGS)
        assert "loss" not in outcome.validation
        assert not list(tmp_path.iterdir())


SEARCH = """
import sys
import conet_onnx as co

if __name__ == "__main__":
    co.search(
        co.load(sys.argv[1]), data="digits", budget="macs=0.5", trials=3, epochs_per_trial=2, epochs=2, threads=1,
        out=sys.argv[2], resume=True,
    )
"""


def test_a_search_halves_the_macs_and_survives_kills(tmp_path: Path) -> None:
    """Real training, killed twice; another search is left alone. Both end with the same model."""
    script = tmp_path / "search.py"
    script.write_text(SEARCH)
    command = [sys.executable, str(script), str(MODEL)]
    for trials in (1, 2):
        with subprocess.Popen([*command, str(tmp_path / "killed")]) as victim:
            while len(_trials(tmp_path / "killed")) < trials and victim.poll() is None:
                time.sleep(0.02)
            time.sleep(0.3)
            victim.send_signal(signal.SIGKILL)
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    killed, whole = (read_run(tmp_path / name) for name in ("killed", "whole"))
    assert [_untimed(trial) for trial in killed.trials] == [_untimed(trial) for trial in whole.trials]
    assert (tmp_path / "killed" / "best.onnx").read_bytes() == (tmp_path / "whole" / "best.onnx").read_bytes()
    assert whole.best is not None
    assert whole.best.macs <= whole.source.macs / 2
    assert whole.best.validation["top1"] > whole.source.validation["top1"] - 0.03
    assert os.path.getsize(whole.best.file) < os.path.getsize(MODEL)


def _trials(folder: Path) -> tuple[Trial, ...]:
    return read_run(folder).trials if (folder / "run.json").exists() else ()


def _untimed(trial: Trial) -> dict[str, object]:
    return {name: value for name, value in trial.as_json().items() if "seconds" not in name}
