"""Gradients of every lowered operator are those of finite differences, in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import test_lower_attention
import test_lower_fused
import test_lower_ops
import test_lower_sampling

from conet_onnx.torch_backend.ops import LOWER
from tests.onnx_parity import Case, check_gradients

# What has none: results that are no floats, or constant between jumps.
DISCRETE = {
    *("And", "Or", "Xor", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf", "IsNaN"),
    *("ArgMax", "ArgMin", "NonZero", "Hardmax", "OneHot", "Shape", "Size", "EyeLike", "BitShift", "BitwiseAnd"),
    *("BitwiseNot", "BitwiseOr", "BitwiseXor", "Constant", "ConstantOfShape", "Range"),
}
# Their gradient is that of the number before it was rounded (tests/test_lower_quantised.py).
ROUNDED = {
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
    *("ConvInteger", "MatMulInteger"),
}
# Checked beside their own tests, on their module; the last two are the functions of ONNX's operators of these names.
ELSEWHERE = {"LSTM", "GRU", "RNN", "com.microsoft.LayerNormalization", "com.microsoft.SimplifiedLayerNormalization"}
TWICE = np.array([1, 1, 2, 2], np.float32)
MORE = [
    *(Case("CumProd", 26, [(3, 4)], [np.array(1)], {"exclusive": e, "reverse": r}) for e in (0, 1) for r in (0, 1)),
    *(Case("Resize", 13, [(1, 2, 4, 3)], [None, TWICE], {"mode": mode}) for mode in ("nearest", "linear", "cubic")),
    Case("Upsample", 9, [(1, 2, 4, 3)], [TWICE], {"mode": "linear"}),
]


def differentiable(case: Case) -> bool:
    return any(
        isinstance(i, tuple) or np.asarray(i).dtype.kind == "f" for i in (*case.inputs, *case.weights) if i is not None
    )


def chosen() -> list[Case]:
    """The first cases of each operator with different attributes, as many as are quick."""
    found: dict[str, list[Case]] = {}
    for case in (*test_lower_ops.CASES, *MORE):
        kept = found.setdefault(case.op, [])
        if len(kept) < 3 and differentiable(case) and all(other.attributes != case.attributes for other in kept):
            kept.append(case)
    return [case for name, cases in found.items() if name not in DISCRETE | ROUNDED for case in cases]


@pytest.mark.parametrize("case", chosen(), ids=str)
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    check_gradients(case)


def test_no_operator_is_left_out() -> None:
    checked = {case.op for case in chosen()}
    checked |= {case.op for case in test_lower_attention.CASES[::5]}
    checked |= {case.op for case in (*test_lower_fused.DIFFERENTIABLE, *test_lower_sampling.ONCE.values())}
    assert sorted(LOWER.keys() - checked - DISCRETE - ROUNDED - ELSEWHERE) == []
