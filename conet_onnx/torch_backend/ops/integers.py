"""Lower shapes and what is computed from them; on numbers that are known, at once and without tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper

from conet_onnx.torch_backend.building import SMALL, Builder, Node, Result
from conet_onnx.torch_backend.known import Known, Scalar, static
from conet_onnx.torch_backend.ops.layout import axes_of, slices_of
from conet_onnx.torch_backend.ops.registry import lowers
from conet_onnx.torch_backend.weights import onnx_dtype, torch_dtype

__all__ = ["KNOWN"]

# What to do where every input is known: the same operators, on Python numbers. None means: use tensors after all.
KNOWN: dict[str, Callable[[Builder, Node, list[Known]], Known | None]] = {}


@lowers("Shape")
def shape(b: Builder, node: Node) -> Result:
    """Sizes as numbers: fixed ones as they are, others read at run time."""
    name = node.inputs[0]
    rank = b.rank(node, name)
    start, end, _ = slice(node.attributes.get("start"), node.attributes.get("end")).indices(rank)
    elements = np.empty(max(0, end - start), object)
    elements[:] = [b.size(name, axis) for axis in range(start, end)]
    return Known(elements, np.dtype(np.int64))


@lowers("Size")
def size(b: Builder, node: Node) -> Result:
    """The product of all sizes."""
    name = node.inputs[0]
    sizes = [b.size(name, axis) for axis in range(b.rank(node, name))]
    element = np.empty((), object)
    element[()] = reduce(lambda x, y: _apply(b, operator.mul, x, y), sizes, 1)
    return Known(element, np.dtype(np.int64))


@lowers("Constant")
def constant(b: Builder, node: Node) -> Result:
    """Tensors in `value` are weights, and never come here; the short forms (opset 12) do."""
    for name, dtype in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if name in node.attributes:
            return Known.of(np.array(node.attributes[name], dtype))
    raise b.unsupported(node, f"a constant of {', '.join(node.attributes) or 'nothing'}")


@lowers("ConstantOfShape")
def constant_of_shape(b: Builder, node: Node) -> Result:
    """One number everywhere."""
    tensor = node.attributes.get("value")
    value = np.zeros(1, np.float32) if tensor is None else numpy_helper.to_array(tensor)
    sizes = b.integers(node, 0)
    if all(map(static, sizes)) and np.prod(np.array(sizes, np.int64)) <= SMALL:
        return Known.of(np.full(tuple(sizes), value.item(), value.dtype))
    return b.call(torch.full, tuple(sizes), value.item(), dtype=torch_dtype(value.dtype), device=b.device())


@lowers("Range")
def range_(b: Builder, node: Node) -> Result:
    """From start to limit, without it."""
    dtype = b.graph.dtype(node.inputs[0])
    if dtype is None or dtype.kind != "i":
        raise b.unsupported(node, "a range of other than integers")
    start, limit, step = (b.integers(node, i)[0] for i in range(3))
    return b.call(torch.arange, start, limit, step, dtype=torch_dtype(dtype), device=b.device())


def known(*ops: str) -> Callable[[Callable[[Builder, Node, list[Known]], Known | None]], Any]:
    """Register what to do where every input is known."""

    def register(function: Callable[[Builder, Node, list[Known]], Known | None]) -> Any:
        KNOWN.update(dict.fromkeys(ops, function))
        return function

    return register


def truncated(x: int, y: int) -> int:
    """Division towards zero, as ONNX Div on integers."""
    return x // y if (x >= 0) == (y > 0) else -(-x // y)


def choose(condition: bool, x: Any, y: Any) -> Any:
    """ONNX Where on one element."""
    return x if condition else y


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": truncated,
    "Max": max,
    "Min": min,
    "Neg": operator.neg,
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Not": operator.not_,
    "Where": choose,
}
_BOOLEAN = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not"})


@known(*_ARITHMETIC)
def arithmetic(b: Builder, node: Node, inputs: list[Known]) -> Known | None:
    """Element by element; integers only, since Python's floating point is not float32."""
    if inputs[-1].dtype.kind not in "ib":
        return None
    arrays = np.broadcast_arrays(*(k.elements for k in inputs))
    made = np.empty(arrays[0].shape, object)
    for index in np.ndindex(made.shape):
        elements: list[Any] = [array[index] for array in arrays]
        made[index] = _apply(b, _ARITHMETIC[node.op], *elements)
    return Known(made, np.dtype(bool) if node.op in _BOOLEAN else inputs[-1].dtype)


@known("Cast")
def cast(b: Builder, node: Node, inputs: list[Known]) -> Known | None:
    """Between integers."""
    dtype = onnx_dtype(node.attributes["to"])
    return Known(inputs[0].elements, dtype) if {dtype.kind, inputs[0].dtype.kind} == {"i"} else None


@known("Gather")
def gather(b: Builder, node: Node, inputs: list[Known]) -> Known | None:
    """Indices must be fixed."""
    indices = inputs[1].array
    return None if indices is None else inputs[0].map(lambda x: np.take(x, indices, node.attributes.get("axis", 0)))


@known("Concat")
def concat(b: Builder, node: Node, inputs: list[Known]) -> Known:
    """Along one axis."""
    return Known(np.concatenate([k.elements for k in inputs], node.attributes["axis"]), inputs[0].dtype)


@known("Slice")
def slice_(b: Builder, node: Node, inputs: list[Known]) -> Known | None:
    """Bounds must be fixed."""
    index = [slice(None)] * inputs[0].elements.ndim
    for axis, start, end, step in slices_of(b, node, inputs[0].elements.shape):
        if not static(start) or not static(end):
            return None
        # As in numpy, except that an end far below zero includes the first element.
        index[axis] = slice(start, None if step < 0 and end < -inputs[0].elements.shape[axis] else end, step)
    return inputs[0].map(lambda x: x[tuple(index)])


@known("Squeeze")
def squeeze(b: Builder, node: Node, inputs: list[Known]) -> Known:
    """Axes of size one go."""
    axes = axes_of(b, node)
    return inputs[0].map(lambda x: np.squeeze(x, None if axes is None else tuple(axes)))


@known("Unsqueeze")
def unsqueeze(b: Builder, node: Node, inputs: list[Known]) -> Known:
    """Axes of size one come."""
    axes = axes_of(b, node)
    assert axes is not None
    return inputs[0].map(lambda x: np.expand_dims(x, tuple(axes)))


@known("Reshape")
def reshape(b: Builder, node: Node, inputs: list[Known]) -> Known | None:
    """To a fixed shape without zeros."""
    target = inputs[1].array
    return None if target is None or 0 in target else inputs[0].map(lambda x: x.reshape(target))


@known("ReduceProd")
def product(b: Builder, node: Node, inputs: list[Known]) -> Known | None:
    """Of a vector."""
    if inputs[0].elements.ndim != 1 or inputs[0].dtype.kind != "i":
        return None
    element = np.empty((), object)
    element[()] = reduce(lambda x, y: _apply(b, operator.mul, x, y), inputs[0].elements, 1)
    return Known(element, inputs[0].dtype).map(lambda x: x.reshape(1) if node.attributes.get("keepdims", 1) else x)


@known("Identity")
def identity(b: Builder, node: Node, inputs: list[Known]) -> Known:
    """The same."""
    return inputs[0]


def _apply(b: Builder, function: Callable[..., Any], *elements: Scalar) -> Any:
    """Now if all numbers are known, else in the generated code."""
    if all(map(static, elements)):
        return function(*elements)
    if function is operator.mul and 1 in elements:
        return elements[0] if elements[1] == 1 and static(elements[1]) else elements[1]
    return b.call(function, *elements)
