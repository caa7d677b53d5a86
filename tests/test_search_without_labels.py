"""Any model and inputs are enough: without labels a search keeps what the source says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_support import call, save, small_model
from test_losses import dense, two_inputs

import conet_onnx as co
from conet_onnx.agreement import agreement
from conet_onnx.data import RAW, DataSet, Feeds, Split
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.runtime import run

ONE = ("--threads", "1", "--provider", "cpu", "--trials", "3", "--epochs-per-trial", "2", "--epochs", "2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(folder: Path) -> dict[str, Any]:
    """What is recorded of the source and the best, whose front and report are there."""
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    source, best = found["source"], found["best"]
    assert source["validation"] == {"loss": 0.0, "agreement": 1.0}
    assert best["macs"] <= 0.5 * source["macs"]
    report = (folder / "report.html").read_text()
    assert "validation agreement" in report
    assert " accuracy" not in report.split("<script")[0]
    return found


def test_a_classifier_on_images_without_labels(folder: Path) -> None:
    save(small_model(classes=4), folder / "model.onnx")
    images = np.random.default_rng(0).normal(0, 1, (300, 1, 8, 8)).astype(np.float32)
    np.savez("images.npz", x_train=images, x_test=images[:40] + 1)
    result = call("search model.onnx --data images.npz --budget macs=0.5 --out run --mean 0 --std 1", *ONE)
    assert result.code == 0, result.err
    assert "there are no labels, so that trials are judged by how far they say what it says" in result.err
    assert "test agreement" in result.out
    assert "accuracy" not in result.out
    found = check(folder / "run")
    best, source = co.load("run/best.onnx"), co.load("model.onnx")
    x = images[:40] + 1
    same = run(best, {"x": x}, provider="cpu")["y"].argmax(1) == run(source, {"x": x}, provider="cpu")["y"].argmax(1)
    assert found["best"]["test"]["agreement"] == pytest.approx(float(same.mean()))


def test_an_image_model_that_is_no_classifier(folder: Path) -> None:
    save(onnx.shape_inference.infer_shapes(dense().model), folder / "model.onnx")
    np.savez("images.npz", x_train=np.random.default_rng(0).normal(0, 1, (200, 1, 6, 6)).astype(np.float32))
    result = call("search model.onnx --data images.npz --budget macs=0.5 --out run --mean 0 --std 1", *ONE)
    assert result.code == 0, result.err
    found = check(folder / "run")
    validation = found["best"]["validation"]
    assert validation["agreement"] == pytest.approx(1 - validation["loss"])


def test_a_model_that_eats_no_images(folder: Path) -> None:
    save(onnx.shape_inference.infer_shapes(two_inputs(16).model), folder / "model.onnx")
    rng = np.random.default_rng(0)
    np.savez("tokens.npz", ids=rng.integers(0, 20, (200, 5)), mask=rng.uniform(0, 1, (200, 5, 1)).astype(np.float32))
    result = call("search model.onnx --data tokens.npz --budget params=0.5 --out run", *ONE)
    assert result.code == 0, result.err
    small = onnx.load("run/best.onnx")
    assert sum(np.prod(t.dims) for t in small.graph.initializer if t.name != "axes") <= 0.5 * (20 * 16 + 16 * 3)


class TestAgreement:
    def data(self, samples: int = 50) -> DataSet:
        x = np.random.default_rng(0).normal(0, 1, (samples, 1, 6, 6)).astype(np.float32)
        return DataSet("images", {"test": Split(x)})

    def test_with_itself_it_is_whole(self) -> None:
        graph = Graph(small_model(classes=4, size=6))
        found = agreement(graph, graph, self.data(), split="test", normalisation=RAW, provider="cpu")
        assert (found.samples, found.error, found.same) == (50, 0.0, 1.0)

    def test_it_is_what_numpy_says(self) -> None:
        graph, teacher = dense(seed=1), dense(seed=0)
        data = self.data(300)  # more than one batch
        found = agreement(graph, teacher, data, split="test", normalisation=RAW, provider="cpu")
        x = data.split("test").images[:]
        mine, theirs = (run(g, {"x": x}, provider="cpu") for g in (graph, teacher))
        errors = [np.square(mine[n] - theirs[n]).mean() / theirs[n].var() for n in ("map", "sum")]
        assert found.error == pytest.approx(float(np.mean(errors)), rel=1e-4)
        assert found.same is None  # the first output is a map

    def test_models_of_different_fixed_batches(self) -> None:
        plain = small_model(classes=4, size=6)
        fixed = []
        for batch in (8, 3):
            model = onnx.ModelProto()
            model.CopyFrom(plain)
            model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
            model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = batch
            fixed.append(Graph(model))
        found = agreement(*fixed, self.data(), split="test", normalisation=RAW, provider="cpu")
        assert (found.samples, found.same) == (50, 1.0)
        assert found.error < 1e-10

    def test_outputs_that_cannot_be_compared(self) -> None:
        with pytest.raises(UsageError, match="'y' has shape"):
            agreement(
                Graph(small_model(classes=4, size=6)),
                Graph(small_model(classes=5, size=6)),
                self.data(),
                split="test",
                normalisation=RAW,
                provider="cpu",
            )

    def test_inputs_by_name(self) -> None:
        rng = np.random.default_rng(0)
        feeds = {"ids": rng.integers(0, 20, (30, 5)), "mask": rng.uniform(0, 1, (30, 5, 1)).astype(np.float32)}
        data = DataSet("tokens", {"test": Split(Feeds(feeds))})
        found = agreement(two_inputs(), two_inputs(), data, split="test", normalisation=RAW, provider="cpu")
        assert (found.error, found.same) == (0.0, 1.0)
