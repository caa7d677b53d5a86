"""Lower quantised operators: whole numbers are carried as floats, and rounding passes gradients through.

A gradient is that of the number before it was rounded, and zero where it was cut off (straight-through: Bengio et al.,
2013, arXiv:1308.3432). Sums of products are computed on whole numbers, as onnxruntime does: in single precision they
are exact up to 2^24.
"""

from __future__ import annotations

import operator

import numpy as np
import torch
from torch import fx

from conet_onnx.torch_backend.building import Builder, Node, Result, has
from conet_onnx.torch_backend.ops.contract import convolve
from conet_onnx.torch_backend.ops.registry import lowers
from conet_onnx.torch_backend.stepped import STEPS
from conet_onnx.torch_backend.weights import onnx_dtype

__all__ = ["MOVES", "from_steps", "less", "measured", "rescaled", "to_steps"]

Tensor = torch.Tensor

MOVES = {  # what takes whole numbers that are carried as floats for what they are
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad"),
    *("Reshape", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
    *("Unsqueeze", "Where", "GlobalMaxPool", "Max", "MaxPool", "Min", "ReduceMax", "ReduceMin", "Relu"),
}


@lowers("QuantizeLinear")
def quantise(b: Builder, node: Node) -> Result:
    """Saturate(round(x / scale) + zero), halves to even; scales along `axis`, or for each block of channels there."""
    low, high = _limits(b, node, 2, node.attributes.get("output_dtype", 0))
    if node.attributes.get("precision", 0):
        raise b.unsupported(node, "a precision of its own")
    x, scale, zero = b.tensor(node.inputs[0]), b.tensor(node.inputs[1]), b.optional(node, 2)
    b.carried.update(node.outputs)
    return b.call(to_steps, x, scale, zero, low, high, *_places(node))


@lowers("DequantizeLinear")
def dequantise(b: Builder, node: Node) -> Result:
    """(x - zero) * scale. A weight is trained as what it stands for, and rounded each time that it is used."""
    if node.attributes.get("output_dtype", 0):
        raise b.unsupported(node, "an output type of its own")
    scale, zero = b.tensor(node.inputs[1]), b.optional(node, 2)
    return b.call(from_steps, _steps(b, node, 0, 1, 2), scale, zero, *_places(node))


@lowers("DynamicQuantizeLinear")
def dynamic(b: Builder, node: Node) -> Result:
    """To eight bits without a sign, by the smallest and the largest element, and zero."""
    made = b.call(measured, b.tensor(node.inputs[0]))
    b.carried.update((node.outputs[0], node.outputs[2]))
    return [b.call(operator.getitem, made, k) for k in range(3)]


@lowers("QLinearConv")
def qlinear_conv(b: Builder, node: Node) -> Result:
    """Conv of whole numbers; B is in steps of x_scale · w_scale."""
    x = b.call(less, _steps(b, node, 0, 1, 2), b.tensor(node.inputs[2]), None)
    w = b.call(less, _steps(b, node, 3, 4, 5), b.tensor(node.inputs[5]), 0)
    bias = b.call(less, b.tensor(node.inputs[8]), None, None) if has(node, 8) else None
    return _rescaled(b, node, convolve(b, node, x, w, bias, 3), (1, 4, 6, 7), 1)


@lowers("QLinearMatMul")
def qlinear_matmul(b: Builder, node: Node) -> Result:
    """MatMul of whole numbers; the scales of B are one a column."""
    first = b.call(less, _steps(b, node, 0, 1, 2), b.tensor(node.inputs[2]), -2)
    second = b.call(less, _steps(b, node, 3, 4, 5), b.tensor(node.inputs[5]), -1)
    return _rescaled(b, node, b.call(torch.matmul, first, second), (1, 4, 6, 7), -1)


@lowers("ConvInteger")
def conv_integer(b: Builder, node: Node) -> Result:
    """Conv of whole numbers, without a scale."""
    x, w = (b.call(less, b.tensor(node.inputs[k]), b.optional(node, k + 2), axis) for k, axis in ((0, None), (1, 0)))
    b.carried.update(node.outputs)
    return convolve(b, node, x, w, None)


@lowers("MatMulInteger")
def matmul_integer(b: Builder, node: Node) -> Result:
    """MatMul of whole numbers, without a scale; zero points are one a row of A, one a column of B."""
    first, second = (b.call(less, b.tensor(node.inputs[k]), b.optional(node, k + 2), k - 2) for k in (0, 1))
    b.carried.update(node.outputs)
    return b.call(torch.matmul, first, second)


def to_steps(
    x: Tensor, scale: Tensor, zero: Tensor | None, low: int, high: int, axis: int = 0, block: int = 0
) -> Tensor:
    """Whole numbers from low to high, as floats."""
    scale = _along(scale, x, axis, block)
    origin = torch.zeros_like(scale) if zero is None else _along(zero, x, axis, block).to(scale.dtype)
    return _rounded(x.to(scale.dtype) / scale, low - origin, high - origin) + origin


def from_steps(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int = 0, block: int = 0) -> Tensor:
    """The numbers that whole ones stand for, in the scale's precision."""
    scale = _along(scale, x, axis, block)
    x = x.to(scale.dtype)
    return (x if zero is None else x - _along(zero, x, axis, block).to(scale.dtype)) * scale


def measured(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DynamicQuantizeLinear's outputs: whole numbers, scale, zero point."""
    largest, smallest = x.amax().clamp(min=0), x.amin().clamp(max=0)
    scale = (largest - smallest) / 255
    scale = torch.where(scale == 0, 1, scale)
    zero = torch.round(-smallest / scale).clamp(0, 255).detach()
    return _rounded(x / scale, -zero, 255 - zero) + zero, scale, zero


def less(x: Tensor, zero: Tensor | None, axis: int | None) -> Tensor:
    """Whole numbers without their zero point, which is one or, along an axis, several; in single precision."""
    x = x.to(torch.float32)
    return x if zero is None else x - _along(zero, x, 0 if axis is None else axis, 0).to(x.dtype)


def rescaled(total: Tensor, a: Tensor, b: Tensor, y: Tensor, zero: Tensor, low: int, high: int, axis: int) -> Tensor:
    """Sums of products in steps of a · b, in steps of y."""
    factor = _along((a * b) / y, total, axis, 0)
    origin = zero.to(total.dtype)
    return _rounded(total * factor, low - origin, high - origin) + origin


def _rounded(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Cut off and rounded, halves to even; the difference of a number and its round is exact, and so is their sum."""
    x = torch.clamp(x, low, high)
    return x + (x.round() - x).detach()


def _along(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point as it broadcasts to what it is for."""
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.size(axis))
    if parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.dim() > 1:
        return parameter
    return parameter.reshape([-1 if k == axis % x.dim() else 1 for k in range(x.dim())])


def _rescaled(b: Builder, node: Node, total: fx.Node, places: tuple[int, int, int, int], axis: int) -> fx.Node:
    low, high = _limits(b, node, places[-1], 0)
    b.carried.update(node.outputs)
    return b.call(rescaled, total, *(b.tensor(node.inputs[k]) for k in places), low, high, axis)


def _steps(b: Builder, node: Node, index: int, scale: int, zero: int) -> fx.Node:
    """An input in whole numbers: rounded where it is a weight that is trained as what it stands for."""
    name = node.inputs[index]
    if name not in b.stepped:
        return b.tensor(name)
    axis = _places(node)[0] if node.op == "DequantizeLinear" else 0 if "Conv" in node.op else -1
    low, high = STEPS[b.stepped[name].dtype]
    return b.call(to_steps, b.tensor(name), b.tensor(node.inputs[scale]), b.optional(node, zero), low, high, axis)


def _places(node: Node) -> tuple[int, int]:
    """The axis that scales lie along, and the size of the blocks that have one (0: no blocks)."""
    return node.attributes.get("axis", 1), node.attributes.get("block_size", 0)


def _limits(b: Builder, node: Node, zero: int, declared: int) -> tuple[int, int]:
    """What the type of a zero point can hold; of what is declared, or eight bits, where there is none."""
    dtype = (
        b.graph.dtype(node.inputs[zero]) if has(node, zero) else onnx_dtype(declared) if declared else np.dtype("u1")
    )
    if dtype not in STEPS:
        raise b.unsupported(node, f"steps of type {dtype}")
    return STEPS[dtype]
