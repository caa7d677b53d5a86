"""Operators on quantised numbers: to them, back from them, and sums of products of them.

A scale or zero point is one for a tensor, or one for each channel along an axis, which it follows.
"""

from __future__ import annotations

from dataclasses import replace

from conet_onnx.dims import Axis, Segment
from conet_onnx.rules.contract import conv, matmul
from conet_onnx.rules.elementwise import joined
from conet_onnx.rules.registry import Facts, Op, Opaque, Shape, rule

__all__ = ["conv_integer", "dynamic_quantise", "matmul_integer", "qlinear_conv", "qlinear_matmul", "quantise"]

Equal = tuple[tuple[Axis | Segment, Axis | Segment], ...]


@rule("QuantizeLinear", "DequantizeLinear", since=10)
def quantise(op: Op, x: Shape, scale: Shape, zero: Shape | None = None) -> Facts:
    """ONNX QuantizeLinear, DequantizeLinear: element by element, scales along `axis` (10: one scale; 21: blocks)."""
    if op.attribute("block_size", 0) or len(scale) > 1:
        raise Opaque("blocks", f"{op.node} has a scale for each block of channels")
    along = op.attribute("axis", 1)
    equal = tuple((x[along], p[0]) for p in (scale, zero) if p is not None and not _is_one(p))
    return Facts(outputs=(x,), equal=equal, quantises=(0,))


@rule("DynamicQuantizeLinear", since=11)
def dynamic_quantise(op: Op, x: Shape) -> Facts:
    """ONNX DynamicQuantizeLinear: element by element, with a scale from the smallest and the largest element of all."""
    return Facts(outputs=(x, (), ()), mixes=x)


@rule("QLinearConv", since=10)
def qlinear_conv(
    op: Op,
    x: Shape,
    x_scale: Shape,
    x_zero: Shape,
    w: Shape,
    w_scale: Shape,
    w_zero: Shape,
    y_scale: Shape,
    y_zero: Shape,
    b: Shape | None = None,
) -> Facts:
    """ONNX QLinearConv: Conv, with scales and zero points of W for a tensor or for each output channel."""
    _check_ones(op, x_scale, x_zero, y_scale, y_zero)
    return _with(conv(op, x, w, b), 3, _vectors(op, w[0], w_scale, w_zero))


@rule("ConvInteger", since=10)
def conv_integer(op: Op, x: Shape, w: Shape, x_zero: Shape | None = None, w_zero: Shape | None = None) -> Facts:
    """ONNX ConvInteger: Conv, with zero points of W for a tensor or for each output channel."""
    _check_ones(op, x_zero)
    return _with(conv(op, x, w), 1, _vectors(op, w[0], w_zero))


@rule("QLinearMatMul", since=10)
def qlinear_matmul(
    op: Op,
    a: Shape,
    a_scale: Shape,
    a_zero: Shape,
    b: Shape,
    b_scale: Shape,
    b_zero: Shape,
    y_scale: Shape,
    y_zero: Shape,
) -> Facts:
    """ONNX QLinearMatMul: MatMul, with scales and zero points of B for a tensor or for each column."""
    _check_ones(op, a_scale, a_zero, y_scale, y_zero)
    return _with(matmul(op, a, b), 3, _columns(op, b, b_scale, b_zero))


@rule("MatMulInteger", since=10)
def matmul_integer(op: Op, a: Shape, b: Shape, a_zero: Shape | None = None, b_zero: Shape | None = None) -> Facts:
    """ONNX MatMulInteger: MatMul, with zero points of B for a tensor or for each column."""
    _check_ones(op, a_zero)
    return _with(matmul(op, a, b), 1, _columns(op, b, b_zero))


def _with(facts: Facts, weight: int, equal: Equal) -> Facts:
    """A contraction's facts, where the weight is another input."""
    (contraction,) = facts.contracts
    x, w = contraction.operands
    moved = replace(contraction, operands=(x, replace(w, index=weight)))
    return replace(facts, equal=(*facts.equal, *equal), contracts=(moved,), terms=())


def _is_one(parameter: Shape) -> bool:
    """Whether it is one number for all of a tensor."""
    return all(segment.size == (1, 1) for segment in parameter)


def _check_ones(op: Op, *parameters: Shape | None) -> None:
    if not all(_is_one(p) for p in parameters if p is not None):
        raise Opaque("scales", f"{op.node} has scales or zero points for each row of its input or output")


def _vectors(op: Op, channels: Segment, *parameters: Shape | None) -> Equal:
    several = [p for p in parameters if p is not None and not _is_one(p)]
    if any(len(p) != 1 for p in several):
        raise Opaque("scales", f"{op.node} has scales or zero points of more than one axis")
    return tuple((channels, p[0]) for p in several)


def _columns(op: Op, b: Shape, *parameters: Shape | None) -> Equal:
    """A vector is one number a column; a tensor of B's rank has one row."""
    several = [p for p in parameters if p is not None and not _is_one(p)]
    if any(len(b) < 2 or len(p) not in (1, len(b)) or (len(p) > 1 and p[-2].size != (1, 1)) for p in several):
        raise Opaque("scales", f"{op.node} has scales or zero points that are not one for each column")
    return tuple(pair for p in several for pair in joined((b, p))[1])
