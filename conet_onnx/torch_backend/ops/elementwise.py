"""Lower arithmetic, comparisons and whatever else treats every element alike."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node, Result
from conet_onnx.torch_backend.ops.registry import lowers
from conet_onnx.torch_backend.weights import onnx_dtype, torch_dtype

__all__ = ["UNARY", "shrunk"]

UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,  # both round halves to even
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}
_BINARY: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}


_STORED = tuple(map(np.dtype, ("uint16", "uint32", "uint64")))


@lowers(*UNARY)
def unary(b: Builder, node: Node) -> Result:
    """One tensor in, one out."""
    _check_types(b, node)
    return b.call(UNARY[node.op], b.tensor(node.inputs[0]))


@lowers(*_BINARY)
def binary(b: Builder, node: Node) -> Result:
    """Broadcasting is numpy's in both."""
    _check_types(b, node)
    function = _BINARY[node.op]
    if function.__module__ == operator.add.__module__:
        return b.call(function, *_operands(b, node))
    return b.call(function, *map(b.tensor, node.inputs))  # torch's own want tensors


@lowers("IsInf")
def is_infinite(b: Builder, node: Node) -> Result:
    """Either infinity, or one of them."""
    x = b.tensor(node.inputs[0])
    below, above = (node.attributes.get(name, 1) for name in ("detect_negative", "detect_positive"))
    if below and above:
        return b.call(torch.isinf, x)
    if not below and not above:
        return b.call(torch.zeros_like, x, dtype=torch.bool)
    return b.call(torch.isposinf if above else torch.isneginf, x)


@lowers("Shrink")
def shrink(b: Builder, node: Node) -> Result:
    """Towards zero by `bias` outside of [-lambd, lambd]; zero inside."""
    return b.call(shrunk, b.tensor(node.inputs[0]), node.attributes.get("lambd", 0.5), node.attributes.get("bias", 0.0))


def shrunk(x: torch.Tensor, inside: float, bias: float) -> torch.Tensor:
    """x + bias below, x - bias above."""
    return torch.where(x < -inside, x + bias, torch.where(x > inside, x - bias, torch.zeros_like(x)))


@lowers("Div")
def div(b: Builder, node: Node) -> Result:
    """Integers are divided towards zero."""
    _check_types(b, node)
    x, y = _operands(b, node)
    if _is_float(b, node):
        return b.call(operator.truediv, x, y)
    return b.call(torch.div, b.tensor(node.inputs[0]), y, rounding_mode="trunc")


@lowers("Mod")
def mod(b: Builder, node: Node) -> Result:
    """The sign is the divisor's, or the dividend's with `fmod`."""
    _check_types(b, node)
    function = torch.fmod if node.attributes.get("fmod", 0) else torch.remainder
    return b.call(function, b.tensor(node.inputs[0]), _operands(b, node)[1])


@lowers("Pow")
def power(b: Builder, node: Node) -> Result:
    """The result has the base's type, whatever the exponent's."""
    x, y = _operands(b, node)
    made = b.call(torch.pow, x, y)
    base = b.graph.dtype(node.inputs[0])
    if base is None:
        raise b.unsupported(node, f"the type of {node.inputs[0]!r} is not known")
    differs = b.graph.dtype(node.inputs[1]) != base if isinstance(y, fx.Node) else base.kind == "i"
    return b.method("to", made, torch_dtype(base)) if differs else made


@lowers("Sum", "Max", "Min", "Mean")
def variadic(b: Builder, node: Node) -> Result:
    """Any number of tensors, broadcast."""
    _check_types(b, node)
    function: Callable[..., Any] = {"Max": torch.maximum, "Min": torch.minimum}.get(node.op, operator.add)
    tensors = [b.tensor(name) for name in node.inputs]
    made = reduce(lambda x, y: b.call(function, x, y), tensors)
    return b.call(operator.truediv, made, len(tensors)) if node.op == "Mean" else made


@lowers("Where")
def where(b: Builder, node: Node) -> Result:
    """A condition chooses."""
    return b.call(torch.where, *map(b.tensor, node.inputs))


@lowers("Clip")
def clip(b: Builder, node: Node) -> Result:
    """Bounds are attributes before opset 11, inputs since; either may be absent."""
    x = b.tensor(node.inputs[0])
    if node.since < 11:
        low, high = node.attributes.get("min"), node.attributes.get("max")
    else:
        low, high = b.number(node, 1, "the minimum"), b.number(node, 2, "the maximum")
    # float32's extremes are what exporters write for "no bound".
    low = None if low is not None and low <= np.finfo(np.float32).min else low
    high = None if high is not None and high >= np.finfo(np.float32).max else high
    if low is None and high is None:
        return x
    if low == 0 and high is None:
        return b.call(F.relu, x)
    if low is None or high is None or low > high or not _is_float(b, node):
        return b.call(torch.clamp, x, low, high)
    return b.call(F.hardtanh, x, low, high)


@lowers("Cast")
def cast(b: Builder, node: Node) -> Result:
    """To the type that the attribute names."""
    return _to(b, node, onnx_dtype(node.attributes["to"]))


@lowers("CastLike")
def cast_like(b: Builder, node: Node) -> Result:
    """To the type of the second input."""
    dtype = b.graph.dtype(node.inputs[1])
    if dtype is None:
        raise b.unsupported(node, f"the type of {node.inputs[1]!r} is not known")
    return _to(b, node, dtype)


def _to(b: Builder, node: Node, dtype: np.dtype[Any]) -> fx.Node:
    x = b.tensor(node.inputs[0])
    if b.graph.dtype(node.inputs[0]) == dtype:
        return x
    try:
        return b.method("to", x, torch_dtype(dtype))
    except TypeError as error:
        raise b.unsupported(node, f"torch has no element type {dtype}") from error


def _operands(b: Builder, node: Node) -> list[fx.Node | int | float | bool]:
    """Both inputs; at most one of them as a number."""
    first, second = node.inputs
    x, y = b.operand(first), b.operand(second)
    return [x if isinstance(x, fx.Node) or isinstance(y, fx.Node) else b.tensor(first), y]


def _check_types(b: Builder, node: Node) -> None:
    """Raise UnsupportedOp for unsigned integers that torch stores and does not compute with."""
    if any(b.graph.dtype(name) in _STORED for name in node.inputs if name):
        raise b.unsupported(node, "torch does not compute with unsigned integers of more than 8 bits")


def _is_float(b: Builder, node: Node) -> bool:
    dtype = b.graph.dtype(node.inputs[0])
    if dtype is None:
        raise b.unsupported(node, f"the type of {node.inputs[0]!r} is not known")
    return dtype.kind not in "iub"
