"""What tools/mutate_rules.py breaks and no other test notices, on quantised numbers: a width at every axis in turn."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from strategies import Builder
from test_rules import Build, prove
from test_rules_mutants import MIXED, SPATIAL, Told, cast, hold, model

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph


def scales(b: Builder, *shape: int) -> str:
    return b.weight((np.abs(b.floats(*shape)) * 0.01 + 0.005).astype(np.float32))


def zeros(b: Builder, *shape: int, dtype: type = np.uint8) -> str:
    return b.weight(b.rng.integers(0, 5, shape).astype(dtype))


def rounded(b: Builder, x: str) -> tuple[str, str, str]:
    """One scale and zero point for all."""
    scale, zero = scales(b), zeros(b)
    return b.node("QuantizeLinear", [x, scale, zero], b.shapes[x]), scale, zero


def there_and_back(axis: int) -> Build:
    """Scales along an axis, with zero points and without."""

    def build(b: Builder, x: str) -> Sequence[str]:
        shape = b.shapes[x]
        ends = []
        for parameters in ([scales(b, shape[axis])], [scales(b, shape[axis]), zeros(b, shape[axis])]):
            y = b.node("QuantizeLinear", [x, *parameters], shape, axis=axis)
            ends.append(b.node("DequantizeLinear", [y, *parameters], shape, axis=axis))
        return ends

    return build


def dynamic(b: Builder, x: str) -> str:
    names = b.node_of("DynamicQuantizeLinear", [x], [b.shapes[x], (), ()])
    return b.node("DequantizeLinear", names, b.shapes[x])


def matmul_integer(b: Builder, x: str) -> str:
    *outer, k = b.shapes[x]
    y, _, zero = rounded(b, x)
    weight = b.weight(b.rng.integers(-9, 9, (k, 3)).astype(np.int8))
    return cast(b, b.node("MatMulInteger", [y, weight, zero, zeros(b, 3, dtype=np.int8)], (*outer, 3)))


def stacked_integers(b: Builder, x: str) -> str:
    """A weight of rank four in front."""
    p, q, r, s = b.shapes[x]
    y, _, zero = rounded(b, x)
    weight = b.weight(b.rng.integers(0, 9, (p, q, 3, r)).astype(np.uint8))
    return cast(b, b.node("MatMulInteger", [weight, y, zeros(b), zero], (p, q, 3, s)))


def qlinear_matmul(b: Builder, x: str) -> str:
    *outer, k = b.shapes[x]
    y, scale, zero = rounded(b, x)
    weight = b.weight(b.rng.integers(-9, 9, (k, 3)).astype(np.int8))
    made = [b.weight(np.float32(0.01)), zeros(b)]
    inputs = [y, scale, zero, weight, scales(b, 3), zeros(b, 3, dtype=np.int8), *made]
    y = b.node("QLinearMatMul", inputs, (*outer, 3))
    return b.node("DequantizeLinear", [y, *made], (*outer, 3))


def conv_integer(group: int | None = 1) -> Build:
    """So many groups; with None, one for each channel."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        y, _, zero = rounded(b, x)
        o, groups = (c, c) if group is None else (3 + (group > 1), group)
        weight = b.weight(b.rng.integers(0, 9, (o, c // groups, 1, 1)).astype(np.uint8))
        return cast(b, b.node("ConvInteger", [y, weight, zero, zeros(b)], (n, o, h, w), group=groups))

    return build


def qlinear_conv(group: int | None = 1) -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        y, scale, zero = rounded(b, x)
        o, groups = (c, c) if group is None else (3 + (group > 1), group)
        weight = b.weight(b.rng.integers(-9, 9, (o, c // groups, 1, 1)).astype(np.int8))
        made = [b.weight(np.float32(0.01)), zeros(b)]
        bias = b.weight(b.rng.integers(-50, 50, o).astype(np.int32))
        inputs = [y, scale, zero, weight, scales(b, o), b.weight(np.zeros(o, np.int8)), *made, bias]
        y = b.node("QLinearConv", inputs, (n, o, h, w), group=groups)
        return b.node("DequantizeLinear", [y, *made], (n, o, h, w))

    return build


def conv_of_a_constant(op: str, group: int) -> Build:
    """The map is a weight, and the kernel is computed."""

    def build(b: Builder, x: str) -> str:
        o, i, h, w = b.shapes[x]
        kernel, scale, zero = rounded(b, x)
        pixels = b.weight(b.rng.integers(0, 9, (2, group * i, h, w)).astype(np.uint8))
        shape = (2, o, 1, 1)
        if op == "ConvInteger":
            return cast(b, b.node(op, [pixels, kernel, zeros(b), zero], shape, group=group))
        made = [b.weight(np.float32(0.01)), zeros(b)]
        y = b.node(op, [pixels, scales(b), zeros(b), kernel, scale, zero, *made], shape, group=group)
        return b.node("DequantizeLinear", [y, *made], shape)

    return build


def matmul_of_a_constant(b: Builder, x: str) -> str:
    """A weight in front, with scales for all of it."""
    p, q, r, s = b.shapes[x]
    y, scale, zero = rounded(b, x)
    weight = b.weight(b.rng.integers(0, 9, (p, q, 3, r)).astype(np.uint8))
    made = [b.weight(np.float32(0.01)), zeros(b)]
    y = b.node("QLinearMatMul", [weight, scales(b), zeros(b), y, scale, zero, *made], (p, q, 3, s))
    return b.node("DequantizeLinear", [y, *made], (p, q, 3, s))


EVEN = {0: (6, 4, 5, 3), 1: (2, 6, 5, 4), 2: (2, 4, 6, 3), 3: (2, 4, 5, 6)}
CASES: dict[str, Told] = {
    "scales along the first axis": Told(there_and_back(0)),
    "scales along the last axis": Told(there_and_back(-1)),
    "DynamicQuantizeLinear": Told(dynamic, mixed=dict.fromkeys(range(4), MIXED)),
    "MatMulInteger": Told(matmul_integer, also=[3]),
    "MatMulInteger behind a weight": Told(stacked_integers, also=[3]),
    "QLinearMatMul behind a weight": Told(matmul_of_a_constant, also=[3]),
    **{
        f"{op} of a constant": Told(conv_of_a_constant(op, 1), also=[2], frozen=SPATIAL)
        for op in ("ConvInteger", "QLinearConv")
    },
    "QLinearMatMul": Told(qlinear_matmul, also=[3]),
    **{
        f"{op} in {group} groups": Told(build(group), widths=widths, also=also, frozen=SPATIAL, shapes=EVEN)
        for op, build in (("ConvInteger", conv_integer), ("QLinearConv", qlinear_conv))
        for group, widths, also in ((1, {}, [3]), (2, {1: [2, 3]}, [2]), (None, {}, []))
    },
}


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("name", CASES)
def test_a_width_at_any_axis_is_followed_or_frozen(name: str, place: int) -> None:
    hold(CASES[name], place)


@pytest.mark.parametrize(
    ("build", "place", "axis", "bounded"),
    [
        pytest.param(matmul_integer, 3, 0, [6], id="MatMulInteger"),
        pytest.param(stacked_integers, 2, 3, [6], id="MatMulInteger behind a weight"),
        pytest.param(qlinear_matmul, 3, 0, [6], id="QLinearMatMul"),
        pytest.param(matmul_of_a_constant, 2, 3, [6], id="QLinearMatMul behind a weight"),
        pytest.param(conv_integer(), 1, 1, [6], id="ConvInteger"),
        pytest.param(qlinear_conv(), 1, 1, [6], id="QLinearConv"),
        *(
            pytest.param(conv_of_a_constant(op, group), 1, 1, [6], id=f"{op} of a constant, {group} groups")
            for op in ("ConvInteger", "QLinearConv")
            for group in (1, 2)
        ),
        *(
            pytest.param(conv_of_a_constant(op, 2), 0, None, [], id=f"{op} of a constant, groups alone")
            for op in ("ConvInteger", "QLinearConv")
        ),
    ],
)
def test_what_a_weight_of_integers_sums_over_and_nothing_else_cannot_grow(
    build: Build, place: int, axis: int | None, bounded: Sequence[int]
) -> None:
    analysis = analyze(Graph(model(Told(build), place)))
    assert [w.max for w in analysis.widths.values() if w.max is not None] == bounded
    small = {name for name, t in analysis.graph.weights.items() if t.data_type in (2, 3) and len(t.dims) > 1}
    summed = {(m.tensor, m.axis) for w in analysis.widths.values() for m in w.members if m.role == "in"}
    assert {at for at in summed if at[0] in small} == ({(*small, axis)} if axis is not None else set())


def test_a_weight_of_integers_in_front_makes_rows() -> None:
    for op in ("MatMulInteger", "QLinearMatMul"):
        b = Builder(random.Random(7), opset=21, batch=0)
        b.tidy = True
        x = b.transpose(b.node("MatMul", [b.input("x", (2, 3)), b.weight(b.floats(3, 6))], (2, 6)), (1, 0))
        y, scale, zero = rounded(b, b.node("Sigmoid", [x], (6, 2)))
        weight = b.weight(b.rng.integers(0, 9, (5, 6)).astype(np.uint8))
        made = [b.weight(np.float32(0.01)), zeros(b)]
        if op == "MatMulInteger":
            y = cast(b, b.node(op, [weight, y, zeros(b), zero], (5, 2)))
        else:
            y = b.node(op, [weight, scales(b), zeros(b), y, scale, zero, *made], (5, 2))
            y = b.node("DequantizeLinear", [y, *made], (5, 2))
        y = b.node("MatMul", [b.transpose(y, (1, 0)), b.weight(b.floats(5, 2))], (2, 2))
        analysis = analyze(Graph(b.model([y])))
        assert sorted((w.size, w.max) for w in analysis.widths.values()) == [(5, None), (6, 6)]
        prove(analysis)
