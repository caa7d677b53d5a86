"""What operators on quantised numbers say about their axes: such models shrink exactly, and do not grow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto
from strategies import Builder
from test_rules import Build, Case, check, grid, made

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.planning import Selection, plan, scaled, select
from conet_onnx.rewriting import rewrite
from conet_onnx.scoring import importance
from conet_onnx.searching.task import Parent, TrialTask
from conet_onnx.searching.trial import inherit
from conet_onnx.verification import verify

STEP = 2.0**-5  # scales are powers of two: no rounding but that of the operators themselves


def number(b: Builder, value: float, dtype: Any = np.float32) -> str:
    """A scale or zero point of a whole tensor."""
    return b.weight(np.array(value, dtype))


def rounded(b: Builder, x: str, *, zero: int = 128, step: float = STEP) -> str:
    """A map as unsigned bytes."""
    return b.node("QuantizeLinear", [x, number(b, step), number(b, zero, np.uint8)], b.shapes[x])


def back(b: Builder, x: str, *, zero: int = 128, step: float = STEP) -> str:
    """Unsigned bytes as a map."""
    return b.node("DequantizeLinear", [x, number(b, step), number(b, zero, np.uint8)], b.shapes[x])


def whole_numbers(b: Builder, *shape: int, dtype: Any = np.int8, zero: int = 0, largest: int = 60) -> np.ndarray:
    """A weight as bytes."""
    return (b.rng.integers(-largest, largest + 1, shape) + zero).astype(dtype)


def steps(b: Builder, n: int | None, dtype: Any = np.int8, zero: int = 0) -> list[str]:
    """A scale and a zero point: of a tensor, or of n channels, each with others."""
    if n is None:
        return [number(b, STEP / 4), number(b, zero, dtype)]
    scale = STEP / 2.0 ** b.rng.integers(1, 4, n)
    return [b.weight(scale.astype(np.float32)), b.weight((zero + np.arange(n) % 5 * (zero > 0)).astype(dtype))]


def weight(b: Builder, *shape: int, axis: int | None = 0, dtype: Any = np.int8, zero: int = 0) -> str:
    """A weight that is stored as bytes, with scales along an axis or one for all."""
    n = None if axis is None else shape[axis]
    inputs = [b.weight(whole_numbers(b, *shape, dtype=dtype, zero=zero)), *steps(b, n, dtype, zero)]
    return b.node("DequantizeLinear", inputs, shape, **({} if axis is None else {"axis": axis}))


def convolved(*, bias: bool = False, group: int = 1, channels: int = 5, **stored: Any) -> Build:
    """Activations and weights to bytes and back, as tools write it: a convolution between them."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        inputs = [back(b, rounded(b, x)), weight(b, channels, c // group, 1, 1, **stored)]
        if bias:
            per_channel = stored.get("axis", 0) is not None
            scale = b.weight(np.full(channels if per_channel else 1, STEP / 8, np.float32))
            wide = b.weight(b.rng.integers(-99, 99, channels).astype(np.int32))
            zero = b.weight(np.zeros(channels, np.int32)) if per_channel else number(b, 0, np.int32)
            axis = {"axis": 0} if per_channel else {}
            inputs.append(b.node("DequantizeLinear", [wide, scale, zero], (channels,), **axis))
        return b.node("Conv", inputs, (n, channels, h, w), group=group)

    return build


def multiplied(how: str, **stored: Any) -> Build:
    """The last axis with a matrix of bytes, in either order, or through nodes."""

    def build(b: Builder, x: str) -> str:
        y = back(b, rounded(b, b.transpose(x, (0, 2, 3, 1))))
        *outer, c = b.shapes[y]
        if how == "MatMul":
            y = b.node("MatMul", [y, weight(b, c, 5, **stored)], (*outer, 5))
        elif how == "Transpose":
            y = b.node("MatMul", [y, b.transpose(weight(b, 5, c, **stored), (1, 0))], (*outer, 5))
        else:
            rows = b.reshape(y, (int(np.prod(outer)), c))
            y = b.node("Gemm", [rows, weight(b, 5, c, **stored)], (b.shapes[rows][0], 5), transB=1)
            y = b.reshape(y, (*outer, 5))
        return b.transpose(y, (0, 3, 1, 2))

    return build


def trained_so(b: Builder, x: str) -> str:
    """A weight in full that is rounded and put back, as training for quantisation leaves it."""
    n, c, h, w = b.shapes[x]
    stored = b.weight(b.floats(5, c, 1, 1))
    for op in ("QuantizeLinear", "DequantizeLinear"):
        stored = b.node(op, [stored, *steps(b, 5)], (5, c, 1, 1), axis=0)
    return b.node("Conv", [x, stored], (n, 5, h, w))


def cast_and_scaled(b: Builder, x: str) -> str:
    """A weight in bytes that is cast and multiplied, without an operator that says so."""
    n, c, h, w = b.shapes[x]
    stored = b.node("Cast", [b.weight(whole_numbers(b, 5, c, 1, 1))], (5, c, 1, 1), to=TensorProto.FLOAT)
    stored = b.node("Mul", [stored, b.weight(b.floats(5, 1, 1, 1, scale=0.1))], (5, c, 1, 1))
    return b.node("Conv", [x, stored], (n, 5, h, w))


def blocks(b: Builder, x: str) -> str:
    """Every second channel of the input has a scale of its own."""
    n, c, h, w = b.shapes[x]
    stored = b.weight(whole_numbers(b, 5, c, 1, 1))
    scale, zero = b.weight(np.full((5, c // 2, 1, 1), STEP, np.float32)), b.weight(np.zeros((5, c // 2, 1, 1), np.int8))
    stored = b.node("DequantizeLinear", [stored, scale, zero], (5, c, 1, 1), axis=1, block_size=2)
    return b.node("Conv", [x, stored], (n, 5, h, w))


def four_bits(b: Builder, x: str) -> str:
    """Two elements a byte."""
    n, c, h, w = b.shapes[x]
    stored = b.weight(whole_numbers(b, 5, c, 1, 1, dtype=ml_dtypes.int4, largest=7))
    stored = b.node("DequantizeLinear", [stored, b.weight(np.full(5, STEP, np.float32))], (5, c, 1, 1), axis=0)
    return b.node("Conv", [x, stored], (n, 5, h, w))


def tied(b: Builder, x: str) -> str:
    """One weight in bytes for two layers, the second time transposed."""
    y = b.transpose(x, (0, 2, 3, 1))
    *outer, c = b.shapes[y]
    stored = weight(b, c, 5, axis=1)
    y = b.node("MatMul", [y, stored], (*outer, 5))
    y = b.node("MatMul", [b.node("Tanh", [y], (*outer, 5)), b.transpose(stored, (1, 0))], (*outer, c))
    return b.transpose(y, (0, 3, 1, 2))


def recurrent(b: Builder, x: str) -> str:
    """A layer whose weights are both stored as bytes: its own units are summed over too."""
    n, c, h, w = b.shapes[x]
    y = b.transpose(b.reshape(x, (n, c, h * w)), (2, 0, 1))
    inputs = [y, weight(b, 1, 15, c, axis=None), weight(b, 1, 15, 5, axis=None)]
    y = b.node("GRU", inputs, (h * w, 1, n, 5), hidden_size=5)
    return b.transpose(b.squeeze(y, [1]), (1, 2, 0))


def per_channel(b: Builder, x: str) -> str:
    """Activations with a scale for each channel."""
    c = b.shapes[x][1]
    both = [b.weight((STEP * 2.0 ** (np.arange(c) % 3)).astype(np.float32)), b.weight(np.full(c, 100, np.uint8))]
    y = b.node("QuantizeLinear", [x, *both], b.shapes[x], axis=1)
    return b.node("DequantizeLinear", [y, *both], b.shapes[x], axis=-3)


def qlinear_conv(*, channels: int = 5, group: int = 1, bias: bool = False, vector: bool = True) -> Build:
    """One operator on bytes."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        inputs = [rounded(b, x), number(b, STEP), number(b, 128, np.uint8)]
        dtype, zero = (np.int8, 0) if vector else (np.uint8, 120)
        inputs.append(b.weight(whole_numbers(b, channels, c // group, 1, 1, dtype=dtype, zero=zero)))
        inputs += [*steps(b, channels if vector else None, dtype, zero), number(b, STEP * 2), number(b, 100, np.uint8)]
        if bias:
            inputs.append(b.weight(b.rng.integers(-999, 999, channels).astype(np.int32)))
        return back(b, b.node("QLinearConv", inputs, (n, channels, h, w), group=group), zero=100, step=STEP * 2)

    return build


def qlinear_matmul(columns: str) -> Build:
    def build(b: Builder, x: str) -> str:
        y = rounded(b, b.transpose(x, (0, 2, 3, 1)))
        *outer, c = b.shapes[y]
        of_b = [b.weight(whole_numbers(b, c, 5)), *steps(b, 5 if columns == "vector" else None)]
        inputs = [y, number(b, STEP), number(b, 128, np.uint8), *of_b, number(b, STEP * 2), number(b, 100, np.uint8)]
        y = back(b, b.node("QLinearMatMul", inputs, (*outer, 5)), zero=100, step=STEP * 2)
        return b.transpose(y, (0, 3, 1, 2))

    return build


def integer(op: str, *, zeros: str = "", dynamic: bool = False) -> Build:
    """Sums in 32 bits that are scaled afterwards."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        y = x if op == "ConvInteger" else b.transpose(x, (0, 2, 3, 1))
        if dynamic:
            y, scale, zero = b.node_of("DynamicQuantizeLinear", [y], [b.shapes[y], (), ()])
        else:
            y, scale, zero = rounded(b, y), number(b, STEP), number(b, 128, np.uint8)
        dtype, middle = (np.uint8, 120) if zeros else (np.int8, 0)
        shape, out = ((5, c, 1, 1), (n, 5, h, w)) if op == "ConvInteger" else ((c, 5), (n, h, w, 5))
        inputs = [y, b.weight(whole_numbers(b, *shape, dtype=dtype, zero=middle)), zero]
        if zeros:
            inputs.append(steps(b, 5 if zeros == "vector" else None, dtype, middle)[1])
        y = b.node("Cast", [b.node(op, inputs, out)], out, to=TensorProto.FLOAT)
        y = b.node("Mul", [b.node("Mul", [y, scale], out), number(b, STEP / 8)], out)
        return y if op == "ConvInteger" else b.transpose(y, (0, 3, 1, 2))

    return build


OPSETS = (13, 19, 21, 23)
UNSIGNED: dict[str, Any] = {"dtype": np.uint8, "zero": 120}
CASES = [
    Case("activations", lambda b, x: back(b, rounded(b, x)), [6], opsets=(11, *OPSETS)),
    Case("activations by channel", per_channel, [6], opsets=OPSETS),
    Case("Conv, one scale", convolved(axis=None), [6, 5], opsets=(11, *OPSETS)),
    Case("Conv, a scale a channel", convolved(axis=0), [6, 5], opsets=OPSETS),
    Case("Conv, negative axis", convolved(axis=-4), [6, 5], opsets=(13,)),
    Case("Conv, a scale an input", convolved(axis=1), [6, 5], opsets=OPSETS),
    Case("Conv with bias", convolved(axis=0, bias=True), [6, 5], opsets=OPSETS),
    Case("Conv with bias, one scale", convolved(axis=None, bias=True), [6, 5], opsets=(11, 13)),
    Case("Conv, unsigned", convolved(axis=0, **UNSIGNED), [6, 5], opsets=OPSETS),
    Case("Conv, unsigned, one scale", convolved(axis=None, **UNSIGNED), [6, 5], opsets=(11, 13)),
    Case("Conv in two groups", convolved(group=2, channels=8), [3, 2, 4], opsets=OPSETS),
    Case("depthwise Conv", convolved(group=6, channels=6), [6], opsets=OPSETS),
    *(
        Case(f"{how}, a scale a channel", multiplied(how, axis=how == "MatMul"), [6, 5], opsets=OPSETS)
        for how in ("MatMul", "Transpose", "Gemm")
    ),
    Case("MatMul, one scale", multiplied("MatMul", axis=None), [6, 5], opsets=(11, 13)),
    Case("a weight trained for it", trained_so, [6, 5], opsets=OPSETS),
    Case("a weight cast and scaled", cast_and_scaled, [6, 5], opsets=(13,)),
    Case("a weight in blocks", blocks, [], frozen=("blocks",), opsets=(21, 23)),
    Case("a weight of four bits", four_bits, [6, 5], opsets=(21, 23)),
    Case("a weight of two layers", tied, [6, 5], opsets=(13,)),
    Case("GRU", recurrent, [6, 5], opsets=(14,)),
    Case("QLinearConv", qlinear_conv(), [6, 5], opsets=(11, 21)),
    Case("QLinearConv with bias", qlinear_conv(bias=True), [6, 5], opsets=(11, 21)),
    Case("QLinearConv, one scale", qlinear_conv(vector=False), [6, 5], opsets=(11, 21)),
    Case("QLinearConv in two groups", qlinear_conv(group=2, channels=8), [3, 2, 4], opsets=(11, 21)),
    Case("depthwise QLinearConv", qlinear_conv(group=6, channels=6, bias=True), [6], opsets=(11, 21)),
    *(Case(f"QLinearMatMul, {how}", qlinear_matmul(how), [6, 5], opsets=(11, 21)) for how in ("scalar", "vector")),
    Case("MatMulInteger", integer("MatMulInteger"), [6, 5], opsets=(11, 21)),
    Case("MatMulInteger, a zero point", integer("MatMulInteger", zeros="scalar"), [6, 5], opsets=(11, 21)),
    Case("MatMulInteger, a zero point a column", integer("MatMulInteger", zeros="vector"), [6, 5], opsets=(11, 21)),
    Case("ConvInteger, a zero point", integer("ConvInteger", zeros="scalar"), [6, 5], opsets=(11, 21)),
    Case("DynamicQuantizeLinear", integer("MatMulInteger", dynamic=True), [6, 5], mixed=[6], opsets=(11, 21)),
]


@pytest.mark.parametrize(("case", "opset", "dynamic"), grid(CASES))
def test_quantised_layers_shrink_exactly(case: Case, opset: int, dynamic: bool) -> None:
    check(replace(case, bounded=None), opset, dynamic)


PROVED = ["Conv, unsigned", "a weight trained for it", "QLinearConv", "QLinearConv, one scale", "QLinearMatMul, vector"]
PROVED += ["MatMulInteger", "MatMulInteger, a zero point a column", "ConvInteger, a zero point", "GRU"]


@pytest.mark.parametrize("case", PROVED)
def test_the_proof_hides_channels_by_zero_points(case: str) -> None:
    analysis = quantised(case)
    halved = plan(analysis, {name: width.size // 2 for name, width in analysis.widths.items()})
    proof = verify(analysis.graph, rewrite(analysis.graph, halved), halved)
    assert not proof.skipped
    assert any("masked" in check.detail for check in proof.checks)


# Growing


def quantised(case: str, opset: int = 21) -> Analysis:
    """The analysis of one of the cases."""
    return analyze(Graph(made(next(c for c in CASES if c.name == case), opset)))


@pytest.mark.parametrize(
    ("case", "grows"),
    [
        ("activations", {6}),
        ("activations by channel", {6}),
        ("Conv, a scale a channel", {5}),
        ("Conv, unsigned", {5}),
        ("Conv in two groups", {2, 4}),
        ("depthwise Conv", {6}),
        ("a weight trained for it", {5}),
        ("a weight cast and scaled", {5}),
        ("a weight of two layers", set()),
        ("GRU", set()),
        ("QLinearConv", {5}),
        ("QLinearMatMul, vector", {5}),
        ("MatMulInteger", {5}),
        ("DynamicQuantizeLinear", {5}),
    ],
)
def test_what_a_quantised_weight_sums_over_does_not_grow(case: str, grows: set[int]) -> None:
    widths = quantised(case).widths.values()
    assert {w.size for w in widths if w.max is None} == grows
    assert all(w.max == w.size for w in widths if w.max is not None)


def test_growing_is_refused_with_the_reason() -> None:
    analysis = quantised("Conv, a scale a channel")
    (name,) = (w.id for w in analysis.widths.values() if w.max is not None)
    with pytest.raises(UsageError, match=f"width {name} .* quantised weights sum over it.* beyond 6, got 7"):
        plan(analysis, {name: 7})
    with pytest.raises(UsageError, match="quantised weights sum over it"):
        plan(analysis, {name: 12}, transfer="zero", inexact=True)
    with pytest.raises(UsageError, match="quantised weights sum over it"):
        select(analysis, {name: Selection(np.array([0, 0, 1]), np.array([2.0, 2.0, 1.0]))})
    assert plan(analysis, {name: 6}).initializers == {}
    assert plan(analysis, {name: 5}).initializers


def test_a_scale_above_one_leaves_it_alone_and_says_so() -> None:
    analysis = quantised("Conv, a scale a channel")
    widths, left = scaled(analysis, 2)
    assert {analysis.widths[name].size: size for name, size in widths.items()} == {5: 10}
    assert [analysis.widths[name].size for name in left] == [6]
    assert "quantised weights sum over it" in " ".join(left.values())
    assert scaled(analysis, 0.5)[1] == {}
    grown = plan(analysis, widths)
    proof = verify(analysis.graph, rewrite(analysis.graph, grown), grown)
    assert not proof.skipped


def test_a_search_that_grows_again_starts_from_the_source(tmp_path: Path) -> None:
    analysis = quantised("a weight cast and scaled", 13)
    small, again = ({name: width.size - less for name, width in analysis.widths.items()} for less in (3, 1))
    rewrite(analysis.graph, plan(analysis, small)).save(tmp_path / "small.onnx")
    task = TrialTask(1, again, Parent(str(tmp_path / "small.onnx"), small), "", "", "", seed=0)
    resized = rewrite(analysis.graph, plan(analysis, again))
    assert inherit(resized, analysis.graph, task, analysis=analysis) is resized


def test_the_largest_size_is_in_the_report() -> None:
    groups = quantised("Conv, a scale a channel").as_json()["groups"]
    assert {group["size"]: group["max"] for group in groups} == {6: 6, 5: None}


# Scores


@pytest.mark.parametrize(
    "case", ["Conv, a scale a channel", "Conv, unsigned", "QLinearConv", "Gemm, a scale a channel"]
)
def test_scores_are_those_of_the_numbers_that_are_stored(case: str) -> None:
    """Bytes of channels with other scales cannot be compared."""
    analysis = quantised(case)
    graph = analysis.graph
    node = next(n for n in graph.nodes if n.op in ("DequantizeLinear", "QLinearConv") and _is_weight(graph, n))
    first = 3 if node.op == "QLinearConv" else 0
    stored, scale, zero = (graph.array(name).astype(np.float64) for name in node.inputs[first : first + 3])
    by_channel = (-1, *[1] * (stored.ndim - 1))
    norms = np.linalg.norm(
        ((stored - zero.reshape(by_channel)) * scale.reshape(by_channel)).reshape(len(stored), -1), axis=1
    )
    (name,) = (w.id for w in analysis.widths.values() if w.size == 5)
    other = [m.tensor for m in analysis.widths[name].members if m.role == "in"]
    (last,) = (np.linalg.norm(graph.array(t).reshape(2, 5), axis=0) for t in other)
    expected = (norms / norms.mean() + last / last.mean()) / 2
    np.testing.assert_allclose(importance(graph, analysis=analysis)[name], expected, rtol=1e-5)


def _is_weight(graph: Graph, node: Any) -> bool:
    stored = node.inputs[3 if node.op == "QLinearConv" else 0]
    return stored in graph.weights and len(graph.weights[stored].dims) > 1
