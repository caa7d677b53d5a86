"""Tell the weights that are learned from the constants that a model merely carries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, TensorProto, helper

from conet_onnx.graph import Graph, Node
from conet_onnx.torch_backend.known import Array

__all__ = ["onnx_dtype", "shared_statistics", "to_numpy", "to_tensor", "torch_dtype", "trainable", "uses_of"]

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
# Inputs that set how an operator works, by Node.operator; None: all of them.
_SETTINGS: dict[str, frozenset[int] | None] = {
    "Attention": frozenset({3, 4, 5}),  # a mask and a cache
    "BatchNormalization": frozenset({3, 4}),
    "CastLike": frozenset({1}),
    "Clip": frozenset({1, 2}),
    "ConstantOfShape": None,
    "Dropout": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "Equal": None,
    "Expand": frozenset({1}),
    "Greater": None,
    "GreaterOrEqual": None,
    "GRU": frozenset({4, 5}),
    "GridSample": frozenset({1}),
    "Less": None,
    "LessOrEqual": None,
    "LSTM": frozenset({4, 5, 6}),
    "NegativeLogLikelihoodLoss": frozenset({2}),  # weights of classes
    "Pad": frozenset({1, 2, 3}),
    "Pow": frozenset({1}),
    "RNN": frozenset({4, 5}),
    "QLinearConv": None,
    "QLinearMatMul": None,
    "QuantizeLinear": frozenset({1, 2}),
    "Range": None,
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "Shape": None,
    "Size": None,
    "SoftmaxCrossEntropyLoss": frozenset({2}),
    "RotaryEmbedding": frozenset({1, 2}),  # tables of angles
    "Upsample": frozenset({1}),
    "com.microsoft.Attention": frozenset({4, 5}),  # a cache, and what is added to scores
    "com.microsoft.GroupQueryAttention": frozenset({3, 4, 7, 8, 10}),  # and tables; heads may learn their sinks (11)
    "com.microsoft.MultiHeadAttention": frozenset({5, 6, 7}),
    "com.microsoft.RotaryEmbedding": frozenset({2, 3}),
    "com.microsoft.ScaledSiLU": frozenset({1}),
}
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Mod", "Where"})
_BFLOAT16 = np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
_COLOURS = 4  # a mean or deviation that prepares raw images has at most so many elements


def trainable(graph: Graph, *, inner: bool = False) -> frozenset[str]:
    """Names of the floating-point weights that training may change; with `inner`, also those that only the graphs
    inside of control flow read.

    Not: running statistics; what bounds, pads or scales (Clip, Pad, Resize ...); numbers without an axis, and single
    numbers in element-wise arithmetic (GELU's 0.5, an attention's 1/sqrt(d)); a mean and deviation that prepare the
    raw input.
    """
    raw = _raw(graph)
    return frozenset(
        name
        for name, tensor in graph.weights.items()
        if tensor.data_type in _FLOATS
        and len(tensor.dims) > 0
        and (uses := [*_outer_uses(graph, name), *(_inner_uses(graph, name) if inner else ())])
        and not any(_is_setting(use, int(np.prod(tensor.dims)), raw) for use in uses)
    )


def shared_statistics(graph: Graph) -> frozenset[str]:
    """Running means and variances that more than one BatchNormalization reads, or that one reads twice.

    Exporters merge equal initializers. Two layers cannot update one statistic, so such layers use it as it is.
    """
    return frozenset(
        name
        for name in graph.weights
        if sum(node.op == "BatchNormalization" and index in (3, 4) for node, index in uses_of(graph, name)) > 1
    )


def to_tensor(array: Array) -> torch.Tensor:
    """A tensor of its own with the array's values and type. Raises TypeError for types that torch has not."""
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def to_numpy(tensor: torch.Tensor) -> Array:
    """The values of a tensor, bit by bit."""
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.int16).numpy().view(_BFLOAT16)
    return plain.numpy()


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """The torch type that a numpy type is. Raises TypeError where there is none."""
    return to_tensor(np.zeros((), dtype)).dtype


def onnx_dtype(code: int) -> np.dtype[Any]:
    """The numpy type of an ONNX element type, as in Cast's `to`."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(code))


def uses_of(graph: Graph, name: str) -> Iterator[tuple[Node, int]]:
    """Who reads a value, and as which input, also through Identity, by which exporters merge equal initializers."""
    for node in graph.consumers(name):
        for index, read in enumerate(node.inputs):
            if read == name and node.op == "Identity":
                yield from uses_of(graph, node.outputs[0])
            elif read == name:
                yield node, index


@dataclass(frozen=True, slots=True)
class _Use:
    """A weight as the input of an operator, in the graph or in one inside of it."""

    operator: str
    inputs: Sequence[str]
    index: int


def _outer_uses(graph: Graph, name: str) -> Iterator[_Use]:
    for node, index in uses_of(graph, name):
        yield _Use(node.operator, node.inputs, index)


def _inner_uses(graph: Graph, name: str) -> Iterator[_Use]:
    for node in graph.consumers(name):
        if name in node.captured:
            for inner in node.attributes.values():
                if isinstance(inner, GraphProto):
                    yield from _uses_within(inner, name)
        elif node.op == "Identity":
            yield from _inner_uses(graph, node.outputs[0])


def _uses_within(graph: GraphProto, name: str) -> Iterator[_Use]:
    for node in graph.node:
        domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
        for index, read in enumerate(node.input):
            if read == name and node.op_type == "Identity":
                yield from _uses_within(graph, node.output[0])
            elif read == name:
                yield _Use(f"{domain}{node.op_type}", node.input, index)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _uses_within(attribute.g, name)


def _is_setting(use: _Use, size: int, raw: frozenset[str]) -> bool:
    if use.operator in _ELEMENTWISE:
        return size == 1 or (size <= _COLOURS and not raw.isdisjoint(use.inputs))
    settings = _SETTINGS.get(use.operator, frozenset())
    return settings is None or use.index in settings


def _raw(graph: Graph) -> frozenset[str]:
    """The graph's inputs, and what is computed from them and constants alone by element-wise arithmetic."""
    found = {value.name for value in graph.inputs}
    for node in graph.nodes:
        if node.op not in {*_ELEMENTWISE, "Cast", "Identity", "Transpose"} or found.isdisjoint(node.inputs):
            continue
        if all(not name or name in found or name in graph.weights for name in node.inputs):
            found.update(node.outputs)
    return frozenset(found)
