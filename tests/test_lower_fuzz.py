"""Lowered operators agree with onnxruntime on drawn sizes and attributes, and on the shape arithmetic of exporters."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from conet_onnx.errors import UnsupportedOp
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import lower
from tests.onnx_parity import (
    FLOAT,
    INT64,
    Array,
    Case,
    X,
    assert_same,
    build,
    check,
    check_or_refused,
    ints,
    run_lowered,
    run_reference,
    some,
)

fuzz = settings(deadline=None, max_examples=50, derandomize=True)
sizes = st.integers(1, 12)
scales = st.floats(0.25, 4, width=32)

MODES = [
    ("nearest", coordinates, {"nearest_mode": rounding})
    for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
] + [
    ("linear", coordinates, {}) for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
] + [("cubic", coordinates, {}) for coordinates in ("half_pixel", "align_corners")]  # fmt: skip


@pytest.mark.parametrize("symbolic", ["none", "batch"])
@pytest.mark.parametrize(
    ("mode", "coordinates", "more"), MODES, ids=lambda x: x if isinstance(x, str) else "".join(x.values())
)
@pytest.mark.parametrize(
    "target", [[14, 12], [7, 6], [4, 9], [1, 3], [10, 100], [1.0, 2.0], [2.0, 2.0], [1.7, 0.6]], ids=str
)
@pytest.mark.parametrize("opset", [11, 13, 19])
def test_resize_computes_what_onnxruntime_computes(
    mode: str, coordinates: str, more: dict[str, str], target: list[Any], opset: int, symbolic: str
) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, **more}
    if isinstance(target[0], int):
        weights = [np.zeros(0, np.float32), np.zeros(0, np.float32), ints(2, 4, *target)]
    else:
        weights = [np.zeros(0, np.float32), np.array([1, 1, *target], np.float32)]
    weights[0] = np.zeros(0, np.float32) if opset == 11 else None
    if opset == 19 and isinstance(target[0], int):
        attributes["axes"], weights[1:] = [2, 3], [None, ints(*target)]
    case = Case("Resize", opset, [X], weights, attributes)
    if mode == "cubic" and coordinates == "half_pixel" and target == [1.7, 0.6]:
        with pytest.raises(UnsupportedOp, match="the_node"):
            check(case, symbolic)
    else:
        check(case, symbolic)


@pytest.mark.parametrize("op", ["Upsample", "Resize"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("factors", [[2, 2], [1, 3], [1.5, 2.25]], ids=str)
def test_old_upsampling_agrees(op: str, mode: str, factors: list[float]) -> None:
    check(Case(op, 9 if op == "Upsample" else 10, [X], [np.array([1, 1, *factors], np.float32)], {"mode": mode}))
    if op == "Upsample":
        check(Case(op, 7, [X], [], {"mode": mode, "scales": [1.0, 1.0, *map(float, factors)]}))


@fuzz
@given(st.sampled_from(MODES), st.tuples(sizes, sizes), st.tuples(sizes, sizes))
def test_resize_to_any_size_agrees(mode: tuple[str, str, dict[str, str]], before: Any, after: Any) -> None:
    kind, coordinates, more = mode
    attributes = {"mode": kind, "coordinate_transformation_mode": coordinates, **more}
    check(Case("Resize", 13, [(2, 3, *before)], [None, None, ints(2, 3, *after)], attributes))


@fuzz
@given(st.sampled_from(MODES), st.tuples(sizes, sizes), st.tuples(scales, scales))
def test_resize_by_any_scale_agrees_or_is_refused(
    mode: tuple[str, str, dict[str, str]], before: Any, factors: Any
) -> None:
    kind, coordinates, more = mode
    after = tuple(int(n * s) for n, s in zip(before, factors, strict=True))
    assume(min(after) >= 1)
    attributes = {"mode": kind, "coordinate_transformation_mode": coordinates, **more}
    case = Case("Resize", 13, [(2, 3, *before)], [None, np.array([1, 1, *factors], np.float32)], attributes)
    (check_or_refused if kind == "cubic" else check)(case, "none")
    if after != before:  # else onnxruntime copies, whatever the scale
        check_or_refused(case, "all")


@st.composite
def windows(draw: st.DrawFn, axes: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Attributes of a window, and sizes that it fits into."""
    kernel = draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes))
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes)),
    }
    automatic = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    attributes["auto_pad"] = automatic
    if automatic.startswith("SAME"):  # onnxruntime's pools refuse negative padding
        attributes["strides"] = [min(s, k) for s, k in zip(attributes["strides"], kernel, strict=True)]
    if not automatic.startswith("SAME"):
        attributes["dilations"] = draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    if automatic == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, attributes.get("dilations", [1] * axes), strict=True)]
    return attributes, tuple(draw(st.integers(r, r + 7)) for r in reach)


@fuzz
@given(
    st.data(),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([(1, 2, 3), (2, 4, 2), (3, 3, 3)]),
    st.sampled_from(["none", "all"]),
)
def test_any_convolution_agrees(data: st.DataObject, axes: int, groups: tuple[int, int, int], symbolic: str) -> None:
    attributes, shape = data.draw(windows(axes))
    group, channels, outputs = groups
    weight = (outputs // group * group, channels // group, *attributes["kernel_shape"])
    check(Case("Conv", 11, [(2, channels, *shape)], [weight, weight[:1]], {**attributes, "group": group}), symbolic)


@fuzz
@given(st.data(), st.sampled_from([1, 2, 3]), st.booleans(), st.sampled_from(["none", "all"]))
def test_any_max_pool_agrees(data: st.DataObject, axes: int, ceil: bool, symbolic: str) -> None:
    attributes, shape = data.draw(windows(axes))
    ceil = ceil and attributes["auto_pad"] == "NOTSET"
    check(Case("MaxPool", 12, [(2, 3, *shape)], [], {**attributes, "ceil_mode": int(ceil)}), symbolic)


@fuzz
@given(st.data(), st.sampled_from([1, 2, 3]), st.booleans(), st.booleans(), st.sampled_from(["none", "all"]))
def test_any_average_pool_agrees(data: st.DataObject, axes: int, ceil: bool, include: bool, symbolic: str) -> None:
    attributes, shape = data.draw(windows(axes))
    ceil = ceil and attributes["auto_pad"] == "NOTSET"
    more = {"ceil_mode": int(ceil), "count_include_pad": int(include)}
    check(Case("AveragePool", 19, [(2, 3, *shape)], [], {**attributes, **more}), symbolic)


@fuzz
@given(
    st.lists(
        st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([-3, -2, -1, 1, 2, 3])),
        min_size=3,
        max_size=3,
    )
)
def test_any_slice_agrees(bounds: list[tuple[int, int, int]]) -> None:
    starts, ends, steps = (ints(*column) for column in zip(*bounds, strict=True))
    check(Case("Slice", 13, [(5, 6, 7)], [starts, ends, ints(0, 1, 2), steps]))


def shape_arithmetic(batch_first: bool) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """As exporters write x.view(x.size(0), groups, x.size(1) // groups, -1), transposed and put back."""
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"], axis=0),
        node("Gather", ["shape", "one"], ["channels"], axis=0),
        node("Div", ["channels", "groups"], ["each"]),
        node("Cast", ["each"], ["each_cast"], to=INT64),
        node("Unsqueeze", ["batch", "axes"], ["u0"]),
        node("Unsqueeze", ["groups", "axes"], ["u1"]),
        node("Unsqueeze", ["each_cast", "axes"], ["u2"]),
        node("Concat", ["u0", "u1", "u2", "minus"] if batch_first else ["u1", "u2", "u0", "minus"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["split"]),
        node("Transpose", ["split"], ["swapped"], perm=[0, 2, 1, 3]),
        node("Slice", ["shape", "start", "end"], ["tail"]),
        node("Mul", ["tail", "tail"], ["squared"]),
        node("Concat", ["u0", "minus"], ["flat"], axis=0),
        node("Reshape", ["swapped", "flat"], ["y"]),
        node("ConstantOfShape", ["squared"], ["zeros"]),
        node("ReduceProd", ["shape"], ["count"], keepdims=0),
        node("Equal", ["shape", "one"], ["ones"]),
        node("Where", ["ones", "zero", "shape"], ["chosen"]),
        node("Cast", ["chosen"], ["chosen_float"], to=FLOAT),
        node("Sub", ["shape", "ten"], ["negative"]),
        node("Div", ["negative", "groups"], ["halved"]),
    ]
    constants = {"zero": ints(0)[0], "one": ints(1)[0], "groups": ints(2)[0], "axes": ints(0), "minus": ints(-1)}
    constants["ten"] = ints(11)[0]
    return nodes, {**constants, "start": ints(2), "end": ints(2**62)}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("symbolic", ["none", "batch", "all"])
def test_shape_arithmetic_agrees(symbolic: str, batch_first: bool) -> None:
    nodes, weights = shape_arithmetic(batch_first)
    inputs = {"x": some(X, np.random.default_rng(0))}
    outputs = ["y", "halved", "zeros", "count", "chosen_float", "target", "tail"]
    model = build(nodes, inputs, weights, outputs, 13, symbolic)
    assert_same(run_lowered(model, inputs), run_reference(model, inputs))


@pytest.mark.parametrize("symbolic", ["none", "batch"])
def test_shape_arithmetic_fits_any_batch_and_makes_no_tensors(symbolic: str) -> None:
    nodes, weights = shape_arithmetic(batch_first=True)
    x = some((5, *X[1:]), np.random.default_rng(0))
    model = build(nodes, {"x": x[:2]}, weights, ["y"], 13, symbolic)
    module = lower(Graph(model))
    dynamic = build(nodes, {"x": x}, weights, ["y"], 13, "batch")
    assert_same([module(torch.from_numpy(x)).numpy()], run_reference(dynamic, {"x": x}))
    assert "tensor(" not in module.code
    assert not list(module.buffers())


def test_sizes_that_are_computed_as_floats_agree() -> None:
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Slice", ["shape", "start", "end"], ["tail"]),
        node("Cast", ["tail"], ["floats"], to=FLOAT),
        node("Mul", ["floats", "factor"], ["grown"]),
        node("Floor", ["grown"], ["floored"]),
        node("Cast", ["floored"], ["integers"], to=INT64),
        node("Slice", ["shape", "first", "start"], ["head"]),
        node("Concat", ["head", "integers"], ["sizes"], axis=0),
        node(
            "Resize", ["x", "", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
        ),
    ]
    weights = {"start": ints(2), "end": ints(4), "first": ints(0), "factor": np.array([1.7], np.float32)}
    x = some(X, np.random.default_rng(0))
    for symbolic in ("none", "batch", "all"):
        model = build(nodes, {"x": x}, weights, ["y"], 13, symbolic)
        assert_same(run_lowered(model, {"x": x}), run_reference(model, {"x": x}))


def test_constants_in_short_form_agree() -> None:
    node = helper.make_node
    nodes = [
        node("Constant", [], ["axes"], value_ints=[-1]),
        node("Constant", [], ["one"], value_int=1),
        node("Constant", [], ["target"], value_ints=[2, -1]),
        node("Constant", [], ["half"], value_float=0.5),
        node("Constant", [], ["shift"], value_floats=[0.5, -1.5, 1.0, 0.0]),
        node("Unsqueeze", ["x", "axes"], ["column"]),
        node("Gather", ["column", "one"], ["row"], axis=1),
        node("Reshape", ["row", "target"], ["flat"]),
        node("Mul", ["flat", "half"], ["halved"]),
        node("Add", ["halved", "shift"], ["y"]),
    ]
    x = some((2, 3, 4), np.random.default_rng(0))
    model = build(nodes, {"x": x}, {}, ["y"], 13)
    assert_same(run_lowered(model, {"x": x}), run_reference(model, {"x": x}))
