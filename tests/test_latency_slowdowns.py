"""Fewer MACs that take longer are told of, with the layers that do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_support import call
from test_latency_prediction import plain

from conet_onnx.analysis import analyze
from conet_onnx.errors import ModelError
from conet_onnx.latency import Comparison, Latency, Ratio
from conet_onnx.latency.operators import resized
from conet_onnx.latency.slowdowns import Layer, by_profiles, by_table, node_seconds, slowdown
from conet_onnx.loading import load

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "digits_resnet8.onnx"


def comparison(ratio: float) -> Comparison:
    a, b = (Latency(file, ms, ms, 10) for file, ms in (("a.onnx", 10.0), ("b.onnx", 10 * ratio)))
    return Comparison(a, b, Ratio(ratio, 0.99 * ratio, 1.01 * ratio))


def test_the_sentence_has_the_numbers_and_the_layers() -> None:
    layers = [Layer("/conv1/Conv", 1e-3, 2.5e-3), Layer("Reorder", 0.0, 1e-4)]
    line = slowdown("b.onnx", comparison(1.2), (100, 90), lambda: layers)
    assert line is not None
    assert "fewer MACs (×0.90)" in line
    assert "longer (×1.20" in line
    assert "/conv1/Conv (1.000 to 2.500 ms), Reorder (new, 0.100 ms)" in line


def test_what_cannot_be_explained_is_said_all_the_same() -> None:
    def fails() -> list[Layer]:
        raise ModelError("b.onnx does not run.")

    line = slowdown("b.onnx", comparison(1.2), (100, 90), fails)
    assert line is not None
    assert "longer (×1.20" in line
    assert "Layers that take longer: not known (b.onnx does not run). " in line
    assert slowdown("b.onnx", comparison(1.2), (100, 100), fails) is None
    assert slowdown("b.onnx", comparison(1.005), (100, 90), fails) is None


def test_by_a_table_it_is_the_layers_that_read_what_is_laid_out_otherwise() -> None:
    """A world in which an operator takes as long as it is large: a width that grows makes its layers longer."""
    made, _, predicted = plain("digits_resnet8")
    costs = made.analysis.costs
    layers = by_table(made.analysis.graph, predicted, costs.row({"w4": 128, "w0": 8}))
    assert {one.name for one in layers} == {"/layer3/layer3.0/conv1/Conv", "/layer3/layer3.0/conv2/Conv"}
    assert all(one.after > one.before > 0 for one in layers)
    assert by_table(made.analysis.graph, predicted, costs.row({})) == []


def test_a_profile_knows_what_each_node_takes_and_the_layers_that_grew() -> None:
    graph = load(MODEL)
    seconds = node_seconds(graph, provider="cpu", threads=1, runs=5)
    assert len(seconds) > 8
    assert all(0 <= taken < 0.1 for taken in seconds.values())
    larger = resized(analyze(graph), {"w4": 1024})
    layers = by_profiles(graph, larger, provider="cpu", threads=1, runs=5)
    assert [one.name for one in layers[:2]] == ["/layer3/layer3.0/conv2/Conv", "/layer3/layer3.0/conv1/Conv"] or [
        one.name for one in layers[:2]
    ] == ["/layer3/layer3.0/conv1/Conv", "/layer3/layer3.0/conv2/Conv"]


class TestBench:
    @pytest.fixture
    def odd(self, tmp_path: Path) -> Path:
        graph = load(MODEL)
        sizes = {"w0": 15, "w1": 15, "w2": 31, "w3": 31, "w4": 63, "w5": 63}
        resized(analyze(graph), sizes).save(tmp_path / "odd.onnx")
        return tmp_path / "odd.onnx"

    def line(self, a: Path, b: Path, ratio: float, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setattr("conet_onnx.latency.compare", lambda *_, **__: comparison(ratio))
        made = call(f"bench {a} {b} --provider cpu --threads 1 --json -")
        assert made.code == 0
        return made.err

    def test_it_warns_where_fewer_macs_take_longer(self, odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        line = self.line(MODEL, odd, 1.2, monkeypatch)
        assert "odd.onnx has fewer MACs" in line
        assert "Conv (" in line

    def test_it_does_not_where_they_take_less_or_there_are_more(
        self, odd: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "Warning" not in self.line(MODEL, odd, 0.8, monkeypatch)
        assert "Warning" not in self.line(MODEL, odd, 1.005, monkeypatch)  # as far as it can be told
        assert "Warning" not in self.line(odd, MODEL, 1.2, monkeypatch)


def test_nothing_is_named_that_did_not_grow() -> None:
    made, _, predicted = plain("digits_resnet8")
    smaller = np.minimum(predicted.source, 16)
    assert by_table(made.analysis.graph, predicted, smaller) == []
