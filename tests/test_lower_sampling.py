"""Operators on coordinates, windows, matrices and bits compute what onnxruntime computes, and have gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from conet_onnx.errors import UnsupportedOp
from tests.onnx_parity import Array, Case, X, check, check_gradients, check_or_refused, grid, ints

RNG = np.random.default_rng(3)
GRID = RNG.uniform(-1.3, 1.3, (2, 5, 3, 2)).astype(np.float32)
CUBES = RNG.uniform(-1.3, 1.3, (2, 4, 5, 3, 3)).astype(np.float32)
CLASSES, PICTURES = RNG.integers(0, 5, 6), RNG.integers(0, 5, (6, 3, 2))


def unsigned(*values: int) -> Array:
    return np.array(values, np.uint8)


def maxima(size: int) -> Any:
    """Places in an output of that many elements, each once."""
    return RNG.permutation(size)[: 2 * 3 * 2 * 2].reshape(2, 3, 2, 2)


BOXES = np.array([[0.5, 1.0, 3.5, 4.0], [-2.0, 0.2, 1.1, 2.7], [2.0, 3.0, 2.2, 3.1], [1.0, -3.0, 9.1, 8.8]], np.float32)
ROIS = [BOXES, ints(0, 1, 1, 0)]

CASES = [
    *grid("RoiAlign", [10, 16], [X, *ROIS], output_height=[2], output_width=[3], sampling_ratio=[1, 2],
          spatial_scale=[None, 0.7]),
    *grid("RoiAlign", [16], [X, *ROIS], output_height=[2], output_width=[2], sampling_ratio=[2],
          coordinate_transformation_mode=["half_pixel", "output_half_pixel"]),
    *grid("GridSample", [16], [X, GRID], mode=[None, "bilinear", "nearest", "bicubic"], align_corners=[None, 1]),
    *grid("GridSample", [20, 22], [X, GRID], mode=["linear", "nearest", "cubic"],
          padding_mode=["zeros", "border", "reflection"]),
    *grid("GridSample", [20], [(2, 3, 4, 5, 6), CUBES], mode=["linear", "nearest"], align_corners=[None, 1]),
    *grid("AffineGrid", [20], [(2, 2, 3)], [ints(2, 3, 5, 6)], align_corners=[None, 1], free=False),
    Case("AffineGrid", 20, [(2, 3, 4)], [ints(2, 3, 4, 5, 6)], free=False),
    *grid("LpPool", [11, 18, 22], [X], kernel_shape=[[3, 2]], strides=[None, [2, 2]], p=[None, 3],
          pads=[None, [1, 0, 1, 1]]),
    *grid("LpPool", [18], [X], kernel_shape=[[3, 2]], dilations=[[2, 1]], ceil_mode=[None, 1], strides=[[2, 2]]),
    *grid("LpPool", [18], [X], kernel_shape=[[3, 2]], strides=[[2, 2]], auto_pad=["SAME_UPPER", "SAME_LOWER", "VALID"]),
    Case("LpPool", 18, [(2, 3, 9)], [], {"kernel_shape": [3], "p": 1}),
    *grid("MaxUnpool", [9, 11], [(2, 3, 2, 2), maxima(2 * 3 * 4 * 4)], kernel_shape=[[2, 2]], strides=[[2, 2]]),
    Case("MaxUnpool", 11, [(2, 3, 2, 2), maxima(2 * 3 * 3 * 3)], [], {"kernel_shape": [2, 2], "pads": [0] * 4}),
    Case("MaxUnpool", 11, [(2, 3, 2, 2), maxima(2 * 3 * 3 * 4)], [],
         {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 0, 0, 0]}),
    *grid("Col2Im", [18], [(2, 12, 12)], [ints(4, 5), ints(2, 2)], free=False),
    Case("Col2Im", 18, [(2, 12, 9)], [ints(6, 6), ints(2, 2)], {"strides": [2, 2]}, free=False),
    Case("Col2Im", 18, [(2, 12, 12)], [ints(4, 5), ints(2, 2)], {"pads": [1, 1, 0, 0], "dilations": [2, 2]},
         free=False),
    *(Case("NonZero", opset, [np.array([[1, 0, 2], [0, 0, 3]], np.float32)]) for opset in (9, 13)),
    *grid("Compress", [9, 11], [(2, 4, 3), np.array([True, False, True])], axis=[None, 1, -1]),
    *grid("ReverseSequence", [10], [(4, 3, 2), ints(4, 1, 2)], time_axis=0, batch_axis=1),
    *grid("ReverseSequence", [10], [(3, 4, 2, 2), ints(4, 1, 2)], time_axis=1, batch_axis=0),
    *(Case("Det", opset, [shape]) for opset in (11, 22) for shape in ((3, 3), (2, 4, 4))),
    *grid("EyeLike", [9, 22], [(3, 5)], k=[None, 2, -1], dtype=[None, TensorProto.INT64]),
    *grid("BitShift", [11], [unsigned(16, 4, 255), unsigned(1, 2, 7)], direction=["LEFT", "RIGHT"]),
    *grid("SoftmaxCrossEntropyLoss", [12, 13], [(6, 5), CLASSES], reduction=["none", "sum", "mean"], outputs=2),
    *grid("SoftmaxCrossEntropyLoss", [13], [(6, 5, 3, 2), PICTURES], [(5,)], ignore_index=[None, 2], outputs=2),
    *grid("NegativeLogLikelihoodLoss", [12, 13], [(6, 5), CLASSES], reduction=["none", "sum", "mean"]),
    *grid("NegativeLogLikelihoodLoss", [13], [(6, 5, 3, 2), PICTURES], [(5,)], ignore_index=[None, 2]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_lowered_operator_computes_what_onnxruntime_computes(case: Case) -> None:
    for symbolic in ("batch", "all"):
        (check if symbolic == "batch" or case.free else check_or_refused)(case, symbolic)


FLAT = ("NonZero", "BitShift")  # no gradients
ONCE = {(c.op, c.attributes.get("mode"), len(c.weights)): c for c in CASES if c.op not in FLAT}


@pytest.mark.parametrize("case", ONCE.values(), ids=str)
def test_gradients_are_what_finite_differences_say(case: Case) -> None:
    check_gradients(case)


def test_a_window_of_zeros_has_gradients_that_are_numbers() -> None:
    """The root of a sum has none at zero; finite differences see the kink, and are not asked."""
    import torch

    from conet_onnx.torch_backend.ops.window import norm_of_windows

    x = torch.zeros(1, 1, 4, requires_grad=True)
    norm_of_windows(x, (2,), (2,), (1,), ((0,), (0,)), False, 2).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(1, 1, 4))


REFUSED = [
    Case("GridSample", 20, [(2, 3, 4, 5, 6), CUBES], [], {"mode": "cubic"}),
    Case("Col2Im", 18, [(2, 12, 12), ints(4, 5)], [ints(2, 2)]),
    Case("Col2Im", 18, [(2, 6, 4)], [ints(5), ints(2)]),
    Case("BitShift", 11, [np.array([1], np.uint32), np.array([1], np.uint32)], [], {"direction": "LEFT"}),
    Case("LpPool", 18, [(1, 1, 4, 4, 4, 4)], [], {"kernel_shape": [2, 2, 2, 2]}),
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_is_not_known_to_the_letter_is_refused(case: Case) -> None:
    with pytest.raises(UnsupportedOp, match=f"{case.op} 'the_node' \\(opset {case.opset}\\)"):
        check(case)


def test_no_box_is_none() -> None:
    check(Case("RoiAlign", 16, [X, np.zeros((0, 4), np.float32), ints()], [], {"sampling_ratio": 2}))
