"""What trials of a search learn: the user's own task, named outputs, inner tensors of the source."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import call, only_line, save, small_model
from test_finetuning import TASK
from torch.nn import functional as F

import conet_onnx as co
from conet_onnx.data import DataSet, Feeds, Split
from conet_onnx.errors import DataError, UsageError
from conet_onnx.evaluation import RAW_INPUTS, Normalisation
from conet_onnx.searching import answering
from conet_onnx.searching.recipe import Recipe
from conet_onnx.searching.task import TrialTask
from conet_onnx.searching.trial import TrialSettings, Workshop, evaluate_trial

PLAIN = Normalisation(mean=(0.0,), std=(1.0,), scale=1.0)


class Height:
    """The first score is the mean of the image, which the data is asked for in another way where it `collates`."""

    def loss(self, outputs: Any, targets: Any) -> Any:
        return F.mse_loss(outputs["y"][:, 0], targets)


class Collating(Height):
    """Data that holds squares."""

    def collate(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        return inputs, np.sqrt(targets)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save(small_model(classes=4), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(answering, "LATENCY_SECONDS", 0.02)
    return tmp_path


def heights() -> DataSet:
    space: dict[str, Any] = {}
    exec(TASK, space)
    data: DataSet = space["data"]()
    return data


def opened(data: DataSet, recipe: Recipe | None = None, **settings: Any) -> Workshop:
    settings = {"normalisation": PLAIN, "epochs": 1, "provider": "cpu", "threads": 1, "recipe": recipe, **settings}
    return Workshop.open(co.load("model.onnx"), data, **settings)


class TestOwnTask:
    def test_trials_learn_it_and_are_judged_by_it(self, folder: Path, request: pytest.FixtureRequest) -> None:
        """The source knows nothing of heights; with the teacher left out, half of it does."""
        name = f"lesson_{abs(hash(request.node.name))}"  # modules are imported once
        (folder / f"{name}.py").write_text(TASK)
        line = f"search model.onnx --data {name}:data --task {name}:Height --distill 0 --budget macs=0.6 --trials 2 "
        line += "--epochs-per-trial 6 --epochs 10 --threads 1 --provider cpu --mean 0 --std 1 --out run --json out.json"
        result = call(line)
        assert result.code == 0, result.err
        found = json.loads((folder / "out.json").read_text())
        assert set(found["best"]["test"]) == {"loss", "off"}
        assert found["best"]["test"]["off"] < found["source"]["test"]["off"] / 2
        assert found["settings"]["task"] == f"{name}:Height"
        assert all(set(trial["validation"]) == {"loss", "off"} for trial in found["history"])
        assert "test off" in result.out
        assert "agreement" not in result.out + result.err
        report = (folder / "run" / "report.html").read_text()
        assert "validation loss" in report
        assert "Loss against MACs" in report
        again = call(f"{line} --resume".replace("Height", "Other"))
        assert again.code == 2
        assert "no attribute 'Other'" in only_line(again)

    def test_another_process_learns_the_same(self, folder: Path) -> None:
        """By its name, or as an object; not what would be learned without it."""
        (folder / "lesson_by_name.py").write_text(TASK)
        outcomes = []
        for task in ("lesson_by_name:Height", Height(), "lesson_by_name:Height"):
            settings = TrialSettings("model.onnx", heights(), PLAIN, threads=1, task=task)
            trial = TrialTask(0, {"w0": 3, "w1": 4}, None, "t.onnx", "t.json", "", seed=7)
            outcomes.append(evaluate_trial(trial, pickle.loads(pickle.dumps(settings))).validation)
        assert outcomes[0] == outcomes[2]
        assert outcomes[0]["loss"] == outcomes[1]["loss"]
        assert set(outcomes[1]) == {"loss"}

    def test_the_teacher_counts_as_much_as_is_said(self, folder: Path) -> None:
        """The more the source teaches, the less is learned of the task."""
        off = []
        for share in (0.0, 0.9, 1.0):
            workshop = opened(heights(), Recipe(training={"distill": share}), task=Height())
            trained, _ = workshop.train(workshop.source, epochs=8, seed=0, report=lambda _: None)
            off.append(workshop.judge(trained)[0]["loss"])
        assert off[0] < off[1] < off[2]

    def test_what_reads_samples_by_itself_is_refused_with_a_collate(self, folder: Path) -> None:
        assert opened(heights(), task=Collating()).own_task is not None
        for how in ({"transfer": "least-squares", "algorithm": "anneal"}, {"algorithm": "auto"}):
            with pytest.raises(UsageError, match=r"the task's collate makes them anew.* choose another"):
                co.search(co.load("model.onnx"), data=heights(), budget="macs=0.5", task=Collating(), out="run", **how)
        assert not (folder / "run").exists()

    def test_measures_of_widths_are_taken_without_labels(self, folder: Path) -> None:
        """A loss of classes would read heights as classes."""
        run = co.search(
            co.load("model.onnx"), data=heights(), algorithm="reallocate", budget="macs=0.6", task=Height(), trials=2,
            epochs_per_trial=1, epochs=0, threads=1, normalisation=PLAIN, out="run",
        ).run  # fmt: skip
        assert json.loads(Path("run/measures/source.json").read_text())["widths"]
        assert run.best is not None

    def test_a_normalisation_cannot_be_found_by_trying(self, folder: Path) -> None:
        with pytest.raises(DataError, match="labels are not classes, candidates cannot be tried: say it with --mean"):
            opened(heights(), normalisation=None, task=Height())


class TestOutputsAndFeatures:
    def test_a_feature_follows_the_source(self, folder: Path) -> None:
        """An inner tensor of half the channels, through a linear map, comes nearer to the source's."""
        small = DataSet("bare", {name: Split(heights().split(name).images) for name in ("train", "validation")})
        (inner,) = [node.outputs[0] for node in co.load("model.onnx").nodes if node.op == "Relu"][:1]
        trained = []
        for features in ({}, {inner: inner}):
            training = {"distill": 0.9, "features": features, "feature_weight": 10.0}
            workshop = opened(small, Recipe(training=training))
            trained.append(workshop.train(workshop.source, epochs=1, seed=0, report=lambda _: None)[0])
        arrays = [{name: graph.array(name) for name in graph.weights} for graph in trained]
        assert any((arrays[0][name] != arrays[1][name]).any() for name in arrays[0])

    def test_an_output_follows_as_is_said(self, folder: Path) -> None:
        """`none` leaves nothing to learn from, without labels."""
        bare = DataSet("bare", {name: Split(heights().split(name).images) for name in ("train", "validation")})
        assert isinstance(opened(bare).teacher, co.load("model.onnx").__class__)
        workshop = opened(bare, Recipe(training={"distill": 0.9, "loss": {"": "none"}}))
        with pytest.raises(UsageError, match="nothing to learn from"):
            workshop.train(workshop.source, epochs=1, seed=0, report=lambda _: None)

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ("--loss boxes=mse", "a loss is named for 'boxes', which is neither an output (y) nor a feature."),
            ("--feature nowhere", "computes no tensor 'nowhere', which a feature is to be."),
            ("--loss square", "'square' is none of auto, kl, mse, cosine, none"),
        ],
    )
    def test_names_that_are_not_there_are_said_first(self, folder: Path, words: str, expected: str) -> None:
        result = call(f"search model.onnx --data digits --budget macs=0.5 --out run {words}")
        assert result.code == 2
        assert expected in only_line(result)
        assert not (folder / "run").exists()


def test_feeds_need_no_normalisation(folder: Path) -> None:
    data = heights()
    fed = {name: Split(Feeds({"x": data.split(name).images}), data.split(name).labels) for name in data.splits}
    assert opened(DataSet("fed", fed), normalisation=None, task=Height()).choice == RAW_INPUTS
