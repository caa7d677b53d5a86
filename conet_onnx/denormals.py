"""Numbers below the smallest normal float32: processors may take a hundred times as long with them, for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import TensorProto

from conet_onnx.graph import Graph

__all__ = ["SMALLEST", "denormal", "denormals"]

Array = np.ndarray[Any, Any]

SMALLEST = float(np.finfo(np.float32).tiny)
EXPONENT, ALL_BUT_SIGN = 0x7F800000, 0x7FFFFFFF  # of a float32's bits
AT_ONCE = 1 << 18  # elements: what is computed of them stays in the cache
# Of bits without the sign, moved up by one, and one less: zero is the largest of these
BELOW_NORMAL = (EXPONENT & -EXPONENT) * 2 - 1


def denormal(array: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which elements of a float32 array are denormal; none of another type's are."""
    if array.dtype != np.float32:
        return np.zeros(array.shape, dtype=np.bool_)
    bits = np.ascontiguousarray(array).view(np.uint32).reshape(array.shape)
    found: np.ndarray[Any, np.dtype[np.bool_]] = ((bits & EXPONENT) == 0) & ((bits & ALL_BUT_SIGN) != 0)
    return found


def denormals(graph: Graph) -> dict[str, int]:
    """How many each weight of a graph has, where there are any.

    One pass over weights that are in memory: a file's are, external data too, once it has been loaded. What a rewrite
    makes of a weight when it is asked for is looked at block by block, and not kept.
    """
    found = {}
    for name, tensor in graph.weights.items():
        if tensor.data_type == TensorProto.FLOAT and (count := sum(map(_count, _blocks(graph, name)))):
            found[name] = count
    return found


def _blocks(graph: Graph, name: str) -> Iterator[Array]:
    data = graph.arrays.get(name)
    if data is None or isinstance(data, np.ndarray):
        yield graph.array(name)
    else:
        yield from data.blocks()


def _count(array: Array) -> int:
    """As denormal(array).sum(), in few passes over little memory."""
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    moved, less = np.empty(min(AT_ONCE, bits.size), np.uint32), np.empty(min(AT_ONCE, bits.size), np.bool_)
    count = 0
    for at in range(0, bits.size, AT_ONCE):
        some = bits[at : at + AT_ONCE]
        np.left_shift(some, 1, out=moved[: some.size])
        np.subtract(moved[: some.size], 1, out=moved[: some.size])
        np.less(moved[: some.size], BELOW_NORMAL, out=less[: some.size])
        count += int(np.count_nonzero(less[: some.size]))
    return count
