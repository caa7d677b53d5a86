"""Lower reductions over axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from conet_onnx.torch_backend.building import Builder, Node, Result, has
from conet_onnx.torch_backend.ops.registry import lowers

__all__ = ["of_nothing"]

_REDUCE: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceSumSquare": torch.sum,
    "ReduceL1": torch.sum,
    "ReduceLogSum": torch.sum,
    "ReduceL2": torch.linalg.vector_norm,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceLogSumExp": torch.logsumexp,
}
_BEFORE: dict[str, Callable[..., Any]] = {"ReduceL1": torch.abs, "ReduceSumSquare": torch.square}


_OF_NOTHING = {"ReduceMax": -math.inf, "ReduceMin": math.inf}


@lowers(*_REDUCE, "ReduceProd")
def reduce(b: Builder, node: Node) -> Result:
    """Axes are an attribute, or an input since opset 18 (ReduceSum: 13); none means all, unless the node says no-op."""
    axes = _axes(b, node)
    x = b.tensor(node.inputs[0])
    keep = bool(node.attributes.get("keepdims", 1))
    if node.op in _BEFORE:
        x = b.call(_BEFORE[node.op], x)
    if axes and node.op == "ReduceProd":
        for axis in sorted(axes, reverse=True):
            x = b.call(torch.prod, x, axis, keepdim=keep)
    elif node.op == "ReduceL2" and not axes:
        x = b.call(torch.abs, x)  # of each element alone
    elif node.op == "ReduceL2":
        x = b.call(torch.linalg.vector_norm, x, 2, axes, keepdim=keep)
    elif axes and node.op in _OF_NOTHING and 0 in (b.shape(node, node.inputs[0])[axis] for axis in axes):
        x = b.call(of_nothing, x, axes, keep, _OF_NOTHING[node.op])
    elif axes:
        dtype = b.graph.dtype(node.inputs[0])
        # torch sums small integers in int64.
        more = (
            {"dtype": _integer(b, node)}
            if _REDUCE[node.op] is torch.sum and dtype is not None and dtype.kind in "iu"
            else {}
        )
        x = b.call(_REDUCE[node.op], x, axes, keepdim=keep, **more)
    return b.call(torch.log, x) if node.op == "ReduceLogSum" else x


def of_nothing(x: torch.Tensor, axes: tuple[int, ...], keep: bool, value: float) -> torch.Tensor:
    """A reduction of no elements, for which torch has no answer; of integers the farthest that there is."""
    if x.dtype == torch.bool:
        value = value > 0
    elif not x.is_floating_point():
        value = torch.iinfo(x.dtype).min if value < 0 else torch.iinfo(x.dtype).max
    return torch.full_like(x.sum(axes, keepdim=keep, dtype=x.dtype), value)


def _integer(b: Builder, node: Node) -> torch.dtype:
    from conet_onnx.torch_backend.weights import torch_dtype

    dtype = b.graph.dtype(node.inputs[0])
    assert dtype is not None
    return torch_dtype(dtype)


def _axes(b: Builder, node: Node) -> tuple[int, ...]:
    """Not negative; () where nothing is reduced."""
    rank = b.rank(node, node.inputs[0])
    given: Any = node.attributes.get("axes")
    if has(node, 1):
        found = b.setting(node, 1, "the axes")
        given = None if found is None else found.flatten().tolist()
    if given is None or len(given) == 0:
        return () if node.attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({axis % rank for axis in given}))
