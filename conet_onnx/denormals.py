"""Numbers below the smallest normal float32: processors may take a hundred times as long with them, for nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from conet_onnx.graph import Graph

__all__ = ["SMALLEST", "denormal", "denormals"]

Array = np.ndarray[Any, Any]

SMALLEST = float(np.finfo(np.float32).tiny)
EXPONENT, ALL_BUT_SIGN = 0x7F800000, 0x7FFFFFFF  # of a float32's bits
AT_ONCE = 1 << 20


def denormal(array: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which elements of a float32 array are denormal; none of another type's are."""
    if array.dtype != np.float32:
        return np.zeros(array.shape, dtype=np.bool_)
    bits = np.ascontiguousarray(array).view(np.uint32).reshape(array.shape)
    found: np.ndarray[Any, np.dtype[np.bool_]] = ((bits & EXPONENT) == 0) & ((bits & ALL_BUT_SIGN) != 0)
    return found


def denormals(graph: Graph) -> dict[str, int]:
    """How many each weight of a graph has, where there are any."""
    found = {}
    for name in graph.weights:
        flat = graph.array(name).reshape(-1)
        count = sum(int(denormal(flat[at : at + AT_ONCE]).sum()) for at in range(0, flat.size, AT_ONCE))
        if count:
            found[name] = count
    return found
