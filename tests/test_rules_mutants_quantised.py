"""What tools/mutate_rules.py breaks and no other test notices, on quantised numbers: a width at every axis in turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from strategies import Builder
from test_rules import Build
from test_rules_mutants import MIXED, SPATIAL, Told, cast, hold


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


def conv_integer(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    y, _, zero = rounded(b, x)
    weight = b.weight(b.rng.integers(0, 9, (3, c, 1, 1)).astype(np.uint8))
    return cast(b, b.node("ConvInteger", [y, weight, zero, zeros(b)], (n, 3, h, w)))


def qlinear_conv(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    y, scale, zero = rounded(b, x)
    weight = b.weight(b.rng.integers(-9, 9, (3, c, 1, 1)).astype(np.int8))
    made = [b.weight(np.float32(0.01)), zeros(b)]
    bias = b.weight(b.rng.integers(-50, 50, 3).astype(np.int32))
    inputs = [y, scale, zero, weight, scales(b, 3), b.weight(np.zeros(3, np.int8)), *made, bias]
    return b.node("DequantizeLinear", [b.node("QLinearConv", inputs, (n, 3, h, w)), *made], (n, 3, h, w))


CASES: dict[str, Told] = {
    "scales along the first axis": Told(there_and_back(0)),
    "scales along the last axis": Told(there_and_back(-1)),
    "DynamicQuantizeLinear": Told(dynamic, mixed=dict.fromkeys(range(4), MIXED)),
    "MatMulInteger": Told(matmul_integer, also=[3]),
    "MatMulInteger behind a weight": Told(stacked_integers, also=[3]),
    "QLinearMatMul": Told(qlinear_matmul, also=[3]),
    "ConvInteger": Told(conv_integer, also=[3], frozen=SPATIAL),
    "QLinearConv": Told(qlinear_conv, also=[3], frozen=SPATIAL),
}


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("name", CASES)
def test_a_width_at_any_axis_is_followed_or_frozen(name: str, place: int) -> None:
    hold(CASES[name], place)
