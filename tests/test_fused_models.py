"""Models as onnxruntime's own optimisers write them, resized."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import onnxruntime
import oracles
import pytest
from strategies import Builder

import conet_onnx as co
from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph
from conet_onnx.verification import Proof


def operators(model: Graph) -> Counter[str]:
    return Counter(node.operator for node in model.nodes)


def optimised(b: Builder, outputs: list[str], file: Path, level: str = "EXTENDED") -> Graph:
    """The model as a session of onnxruntime optimises it for CPUs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(file)
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.log_severity_level = 4
    model = b.model(outputs)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return co.load(file)


def resize_and_prove(model: Graph, scale: float) -> Proof:
    analysis = analyze(model)
    decided = co.plan(analysis, {n: max(1, int(w.size * scale)) for n, w in analysis.widths.items()})
    resized = co.rewrite(model, decided)
    return co.verify(model, resized, decided, provider="cpu")


def convolutional() -> tuple[Builder, list[str]]:
    """Convolutions with activations, a residual block, and a classifier."""
    b = Builder(random.Random(5), opset=17)
    b.tidy = True
    x = b.input("x", (2, 3, 8, 8))
    y = b.conv(x, 12, kernel=3)
    y = b.node("Relu", [y], b.shapes[y])
    z = b.conv(y, 8, kernel=3)
    z = b.node("LeakyRelu", [z], b.shapes[z], alpha=0.2)
    z = b.conv(z, 12, kernel=3)
    y = b.node("Relu", [b.node("Add", [z, y], b.shapes[y])], b.shapes[y])
    y = b.conv(y, 12, kernel=3, group=12)
    y = b.node("Sigmoid", [y], b.shapes[y])
    y = b.node("Flatten", [b.node("GlobalAveragePool", [y], (2, 12, 1, 1))], (2, 12))
    hidden = b.node("Gemm", [y, b.weight(b.floats(12, 10)), b.weight(b.floats(10))], (2, 10))
    hidden = b.node("Relu", [hidden], (2, 10))
    return b, [b.node("Gemm", [hidden, b.weight(b.floats(10, 4)), b.weight(b.floats(4))], (2, 4))]


def test_a_convolutional_network_that_a_session_has_optimised(tmp_path: Path) -> None:
    b, outputs = convolutional()
    model = optimised(b, outputs, tmp_path / "optimised.onnx")
    found = operators(model)
    assert found["com.microsoft.FusedConv"] >= 3
    assert found["com.microsoft.FusedGemm"] == 1
    analysis = analyze(model)
    assert sorted(w.size for w in analysis.widths.values()) == [8, 10, 12]
    oracles.keep_all_laws(model.proto())
    for scale in (0.5, 2):
        assert not resize_and_prove(model, scale).skipped


def test_the_same_widths_are_found_before_and_after(tmp_path: Path) -> None:
    b, outputs = convolutional()
    model = optimised(b, outputs, tmp_path / "optimised.onnx")
    before, after = analyze(Graph(b.model(outputs))), analyze(model)
    assert [w.size for w in before.widths.values()] == [w.size for w in after.widths.values()]
    assert before.costs.source.macs == after.costs.source.macs
    assert before.costs.coverage == pytest.approx(after.costs.coverage)


def test_what_is_laid_out_for_one_machine_is_frozen(tmp_path: Path) -> None:
    b, outputs = convolutional()
    model = optimised(b, outputs, tmp_path / "optimised.onnx", "ALL")
    blocked = {op for op in operators(model) if op.startswith("com.microsoft.nchwc.")}
    if not blocked:
        pytest.skip("this machine has no blocked layout of its own")
    analysis = analyze(model)
    read = {name for node in model.nodes if node.operator in blocked for name in node.inputs}
    assert {f.reason.kind for f in analysis.frozen if f.tensor in read} <= {"unknown op", "unknown shape"}
    assert not any(m.tensor in read for w in analysis.widths.values() for m in w.members)
    assert not resize_and_prove(model, 0.5).skipped or not analysis.widths
