"""The zoo's verdict on training tells a node that is lowered wrongly from rounding that a model amplifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import conet_onnx as co
from conet_onnx.graph import Graph
from conet_onnx.runtime import run_all
from conet_onnx.torch_backend.ops import LOWER
from tools.zoo_nodes import each_alone
from tools.zoo_table import _trained
from tools.zoo_training import PARITY, examine

pytestmark = pytest.mark.usefixtures("one_thread")


def model(*nodes: onnx.NodeProto, **weights: Any) -> onnx.ModelProto:
    """y [2, 64] of x [2, 512], by these nodes."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, size]) for n, size in (("x", 512), ("y", 64))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items())
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def amplifying(seed: int = 0) -> onnx.ModelProto:
    """The sine of large numbers, whose last bits are all that it sees."""
    weight = np.random.default_rng(seed).standard_normal((512, 64)).astype(np.float32)
    return model(
        helper.make_node("MatMul", ["x", "w"], ["sum"], name="product"),
        helper.make_node("Tanh", ["sum"], ["bent"]),
        helper.make_node("Mul", ["bent", "large"], ["steep"]),
        helper.make_node("Sin", ["steep"], ["y"], name="last"),
        w=weight,
        large=np.float32(3e4),
    )


def plain(seed: int = 0) -> onnx.ModelProto:
    """A product and what follows it, without anything that amplifies."""
    weight = np.random.default_rng(seed).standard_normal((512, 64)).astype(np.float32)
    return model(
        helper.make_node("MatMul", ["x", "w"], ["sum"], name="product"),
        helper.make_node("Tanh", ["sum"], ["y"], name="last"),
        w=weight / 512,
    )


def off_by(factor: float) -> Any:
    """A lowering of Tanh that is wrong by a factor."""

    def wrong(b: Any, node: Any) -> Any:
        return b.call(torch.mul, b.call(torch.tanh, b.tensor(node.inputs[0])), factor)

    return wrong


def saved(folder: Path, made: onnx.ModelProto) -> Path:
    onnx.save(made, folder / "m.onnx")
    return folder / "m.onnx"


class TestVerdict:
    def test_rounding_that_is_amplified_passes_and_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("oracles.rounding", lambda graph: {})  # as if weights told too little of it
        record = examine(saved(tmp_path, amplifying()))
        assert record["worst"] > PARITY
        assert record["verdict"] == "passed", record
        assert record["message"].startswith("rounding amplified: every node agrees to")
        assert record["alone"]["worst"] < PARITY / 10
        assert record["alone"]["moved"] > PARITY
        assert _trained(record) == f"{record['worst']:.0e}, alone {record['alone']['worst']:.0e}"

    @pytest.mark.parametrize("made", [amplifying(), plain()], ids=["amplifying", "plain"])
    def test_a_wrong_lowering_fails_and_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: onnx.ModelProto
    ) -> None:
        monkeypatch.setitem(LOWER, "Tanh", off_by(1.001))
        record = examine(saved(tmp_path, made))
        assert record["verdict"] == "failed"
        assert record["alone"]["worst"] == pytest.approx(1e-3, rel=0.01)
        assert "Tanh" in record["alone"]["at"]
        assert "Tanh" in record["message"]

    def test_what_agrees_is_not_looked_into(self, tmp_path: Path) -> None:
        record = examine(saved(tmp_path, plain()))
        assert record["verdict"] == "passed"
        assert "alone" not in record


class TestAlone:
    @staticmethod
    def errors(made: onnx.ModelProto) -> dict[str, float]:
        graph = Graph(made)
        x = np.random.default_rng(1).standard_normal((2, 512)).astype(np.float32)
        values = run_all(graph, {"x": x})
        return each_alone(co.to_torch(graph), [torch.from_numpy(x)], values, ["y"])

    def test_one_wrong_node_leaves_all_others_right(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(LOWER, "Tanh", off_by(1.001))
        errors = self.errors(amplifying())
        assert [name for name, error in errors.items() if error > PARITY] == ["bent"]

    def test_an_output_without_a_name_in_the_module_is_judged_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from conet_onnx.torch_backend.building import Builder

        monkeypatch.setattr(Builder, "_note", lambda *args: None)
        monkeypatch.setitem(LOWER, "Tanh", off_by(1.001))
        errors = self.errors(plain())
        assert list(errors) == ["y"]
        assert errors["y"] == pytest.approx(1e-3, rel=0.01)

    def test_a_wrong_shape_is_infinitely_far(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(LOWER, "Tanh", lambda b, node: b.call(torch.sum, b.tensor(node.inputs[0]), dim=0))
        assert self.errors(plain())["y"] == np.inf
