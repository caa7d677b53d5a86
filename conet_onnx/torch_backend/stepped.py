"""Weights that a file stores in steps of a scale: trained as the real numbers that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from conet_onnx.graph import Graph, Node
from conet_onnx.torch_backend.known import Array

__all__ = ["STEPS", "Steps", "stepped_weights"]

STEPS = {  # element types that hold steps, and how far they go
    np.dtype(np.int8): (-128, 127),
    np.dtype(np.uint8): (0, 255),
    np.dtype(np.int16): (-32768, 32767),
    np.dtype(np.uint16): (0, 65535),
    np.dtype(np.int32): (-(2**31), 2**31 - 1),
}
# The input that is the weight, after which its scale and its zero point come, and the axis of several of them.
_READ_BY = {"DequantizeLinear": (0, 1), "QLinearConv": (3, 0), "QLinearMatMul": (3, -1)}


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """How a weight is stored: round(real / scale) + zero. Both are as they broadcast to the weight."""

    scale: Array
    zero: Array
    dtype: np.dtype[Any]

    def real(self, stored: Array) -> Array:
        """What stored numbers stand for, in the scale's precision."""
        made: Array = (stored.astype(self.scale.dtype) - self.zero.astype(self.scale.dtype)) * self.scale
        return made

    def stored(self, real: Array, before: Array) -> Array:
        """Real numbers as they are stored; those that are what `before` stands for stay as they are there."""
        low, high = STEPS[self.dtype]
        steps = np.round(real.astype(np.float64) / self.scale.astype(np.float64)) + self.zero.astype(np.float64)
        return np.where(real == self.real(before), before, np.clip(steps, low, high)).astype(self.dtype)


def stepped_weights(graph: Graph) -> dict[str, Steps]:
    """The integer weights that stand for real numbers wherever they are read, with one scale that the file gives.

    They are what DequantizeLinear, QLinearConv and QLinearMatMul read as theirs (ONNX 10 and later). A scale for each
    block of channels is not among them, nor are types of less than eight bits.
    """
    found = {}
    for name, tensor in graph.weights.items():
        consumers = graph.consumers(name)
        if not consumers or not tensor.dims or graph.readings(name) != len(consumers):
            continue
        read = [_read(graph, node, name) for node in consumers]
        first, *others = read
        if first is not None and all(other is not None and _same(first, other) for other in others):
            found[name] = first
    return found


def _read(graph: Graph, node: Node, name: str) -> Steps | None:
    """How one node takes a weight, if it takes it for real numbers."""
    index, axis = _READ_BY.get(node.operator, (-1, 0))
    if node.inputs[index : index + 1] != (name,):
        return None
    array = graph.array(name)
    scale_name, zero_name = (*node.inputs, "", "")[index + 1 : index + 3]
    scale = graph.array(scale_name) if scale_name in graph.weights else None
    zero = graph.array(zero_name) if zero_name in graph.weights else np.zeros((), array.dtype)
    if array.dtype not in STEPS or scale is None or (zero_name and zero_name not in graph.weights):
        return None
    axis = node.attributes.get("axis", axis) if node.op == "DequantizeLinear" else axis
    shape = [-1 if k == axis % array.ndim else 1 for k in range(array.ndim)]
    if any(some.size > 1 and some.shape != (array.shape[axis],) for some in (scale, zero)):
        return None
    one = [1] * array.ndim
    scale, zero = (some.reshape(shape if some.size > 1 else one) for some in (scale, zero))
    return Steps(scale, zero, array.dtype)


def _same(a: Steps, b: Steps) -> bool:
    return np.array_equal(a.scale, b.scale) and np.array_equal(a.zero, b.zero)
