"""The masked source: its contracted weights are zero where a plan drops the index that they are summed over.

Where two activations are multiplied there is no such weight. Then what makes the dropped channels is zero as well: rows
of weights, and biases. Functions that make something else of zeros come to light when the activations are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from conet_onnx.errors import ConetError, ModelError
from conet_onnx.graph import Graph, Node
from conet_onnx.storing import Data, apart
from conet_onnx.verification.constants import Constants, closure, constant_names, evaluate, is_float
from conet_onnx.verification.plans import Planned, Take

__all__ = ["Meeting", "masked_model", "masked_operands", "meetings", "mixers"]

Array = np.ndarray[Any, Any]


def _inner(node: Node, which: int, rank: int) -> int:
    """Of two matrices, each of which an attribute may transpose."""
    turned = bool(node.attributes.get(("transA", "transB")[which], 0))
    return rank - 2 + (turned == bool(which))


_CONTRACTED: Mapping[str, tuple[Collection[int], Callable[[Node, int, int], int]]] = {
    # the inputs that are multiplied; (node, one of them, its rank) -> the axis that is summed over
    "Conv": ((0, 1), lambda node, which, rank: 1),
    "ConvTranspose": ((0, 1), lambda node, which, rank: 0 if which else 1),
    "Gemm": ((0, 1), _inner),
    "MatMul": ((0, 1), lambda node, which, rank: max(rank - 2, 0) if which else rank - 1),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), ((0, 1, 2), lambda node, which, rank: rank - 1)),  # X, W and R
    "QLinearConv": ((0, 3), lambda node, which, rank: 1),
    "ConvInteger": ((0, 1), lambda node, which, rank: 1),
    "QLinearMatMul": ((0, 3), lambda node, which, rank: max(rank - 2, 0) if which else rank - 1),
    "MatMulInteger": ((0, 1), lambda node, which, rank: max(rank - 2, 0) if which else rank - 1),
    "com.microsoft.Attention": ((0, 1), lambda node, which, rank: 0 if which else rank - 1),
    "com.microsoft.FusedConv": ((0, 1), lambda node, which, rank: 1),
    "com.microsoft.FusedGemm": ((0, 1), _inner),
    "com.microsoft.FusedMatMul": ((0, 1), _inner),
    "com.microsoft.TransposeMatMul": ((0, 1), _inner),
    "com.microsoft.NhwcConv": ((0, 1), lambda node, which, rank: rank - 1),
    "com.microsoft.NhwcFusedConv": ((0, 1), lambda node, which, rank: 1 if which else rank - 1),
}
_ADDED: Mapping[str, Collection[int]] = {  # inputs that a channel which is zero before needs to be zero after
    "Add": (0, 1),
    "Sub": (0, 1),
    "Gather": (0,),
    "BatchNormalization": (1, 2, 3),
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "com.microsoft.FusedConv", "com.microsoft.FusedGemm"), (2,)),
}
_ZEROS: Mapping[str, Mapping[int, int]] = {  # of quantised inputs: the input that says which number is zero
    "QLinearConv": {0: 2, 3: 5},
    "ConvInteger": {0: 2, 1: 3},
    "QLinearMatMul": {0: 2, 3: 5},
    "MatMulInteger": {0: 2, 1: 3},
}
_ROUNDS = frozenset({"QuantizeLinear", "DequantizeLinear"})  # element by element, as zero points and scales say
_MOVES = frozenset(  # they only move elements, so that tags in place of weights come through
    {"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat"}
    | {"Gather", "Expand", "Tile", "Constant"}
)
_BY_CHANNEL = frozenset(  # they read weights, and sum over none of their axes
    {"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "PRelu", "Where", "Pad", "Clip", "Equal"}
    | {"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"}
    | {"SimplifiedLayerNormalization", "Attention", "CausalConvWithState", "com.microsoft.CausalConvWithState"}
    | {"com.microsoft.BiasAdd", "com.microsoft.BiasGelu", "com.microsoft.BiasSplitGelu", "com.microsoft.FastGelu"}
    | {"com.microsoft.EmbedLayerNormalization", "com.microsoft.GroupNorm", "com.microsoft.SkipGroupNorm"}
    | {"com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization"}
    | {"com.microsoft.GroupQueryAttention", "com.microsoft.MultiHeadAttention"}
)


def masked_operands(
    source: Graph, planned: Planned, *, makers: bool = False
) -> tuple[dict[tuple[int, int], Array], list[str]]:
    """Contracted weights with zeros outside the kept indices, by (node index, input); what could not be masked.

    With `makers`, so are weights and biases that make channels which are dropped.
    """
    masked: dict[tuple[int, int], Array] = {}
    excuses = []
    constants = constant_names(source)
    for node in source.nodes:
        alive = not constants.issuperset(node.outputs)
        for which, name in enumerate(node.inputs):
            take = planned.of(node, which)
            contracted = which in _CONTRACTED[node.operator][0] if node.operator in _CONTRACTED else False
            if contracted or (makers and alive and which in _ADDED.get(node.operator, ())):
                if name not in constants:
                    continue
                try:
                    kept = _kept(source, node, which, take, planned)
                    if kept is not None and not (makers and alive):
                        axis = _CONTRACTED[node.operator][1](node, which, kept.ndim)
                        others = tuple(a for a in range(kept.ndim) if a != axis)
                        kept = np.asarray(kept.any(axis=others, keepdims=True))
                except _Unmaskable as error:
                    excuses.append(f"{node} contracts {name!r}, which comes from {error}")
                    continue
                if kept is not None and not kept.all():
                    value = Constants(source, [name], "the source")[name]
                    try:
                        zero = _zero_of(source, node, which, value)
                    except _Unmaskable as error:
                        excuses.append(f"{node} contracts {name!r}, which has {error}")
                        continue
                    masked[node.index, which] = np.where(kept, value, zero)
            elif node.operator in _CONTRACTED:
                continue
            elif take and take.drops and node.operator not in _MOVES | _BY_CHANNEL | _ROUNDS:
                excuses.append(f"{node} may sum over {name!r}")
    return masked, excuses


class _Unmaskable(ConetError):
    """A weight reaches its contraction through something that does more than move its elements."""


def _zero_of(source: Graph, node: Node, which: int, value: Array) -> Array:
    """What stands for zero in an operand, by channel where its zero points are."""
    position = _ZEROS.get(node.operator, {}).get(which, len(node.inputs))
    name = node.inputs[position] if position < len(node.inputs) else ""
    if not name:
        return np.zeros((), value.dtype)
    if name not in constant_names(source):
        raise _Unmaskable(f"the zero point {name!r}, which is computed")
    zero = Constants(source, [name], "the source")[name]
    if zero.ndim == 1 and node.op in ("QLinearConv", "ConvInteger"):
        return zero.reshape(-1, *[1] * (value.ndim - 1))
    return zero.reshape(-1, 1) if zero.ndim == 1 and not which else zero


def _kept(source: Graph, node: Node, which: int, take: Take | None, planned: Planned) -> Array | None:
    """Which elements of a constant input are kept; None where nothing is planned."""
    name = node.inputs[which]
    if take is not None:
        return _elements(take)
    if name in source.weights:
        return None
    # Through Transpose, Reshape and the like: run the same nodes on tags in place of the weights.
    nodes, _ = closure(source, [name])
    flags, tags, size = [np.zeros(1, bool)], {}, 1
    for step in nodes:
        for position, leaf in enumerate(step.inputs):
            leaf_take = planned.of(step, position)
            if leaf_take is None or leaf in tags or (step.operator in _ROUNDS and position):
                continue
            if leaf not in source.weights:
                raise _Unmaskable(f"{leaf!r}, which is planned on its own")
            kept = _elements(leaf_take)
            flags.append(kept.reshape(-1))
            tags[leaf] = np.arange(size, size + kept.size, dtype=np.int64).reshape(kept.shape)
            size += kept.size
    if not tags:
        return None
    if stranger := next((step for step in nodes if step.operator not in _MOVES | _ROUNDS), None):
        raise _Unmaskable(str(stranger))
    for step in nodes:  # a weight without a plan, joined to one with: all of it is kept
        for leaf in step.inputs:
            if leaf in source.weights and leaf not in tags and is_float(source.array(leaf)):
                tags[leaf] = np.full(source.weights[leaf].dims, size, np.int64)
    flags.append(np.ones(1, bool))
    try:
        return np.asarray(np.concatenate(flags)[evaluate(source, [name], tags)[name]])
    except ModelError as error:
        raise _Unmaskable(f"nodes that do not run on tags ({error})") from error


def _elements(take: Take) -> Array:
    """Which elements of a weight are kept."""
    kept = np.ones(take.shape, bool)
    for axis, length in enumerate(take.shape):
        kept &= take.kept(axis).reshape([length if a == axis else 1 for a in range(kept.ndim)])
    return kept


def masked_model(source: Graph, operands: Mapping[tuple[int, int], Array]) -> Graph:
    """The source with fresh weights at some inputs; weights that nothing reads any more are left out."""
    made = onnx.ModelProto(ir_version=max(source.model.ir_version, 4))  # from 4 on, weights need not be inputs
    made.opset_import.extend(source.model.opset_import)
    made.graph.name = "masked"
    made.graph.node.extend(source.model.graph.node)
    made.graph.sparse_initializer.extend(source.model.graph.sparse_initializer)
    weights = {tensor.name for tensor in source.model.graph.initializer}
    made.graph.input.extend(value for value in source.model.graph.input if value.name not in weights)
    made.graph.output.extend(source.model.graph.output)
    arrays: dict[str, Data] = {}
    for (index, which), value in operands.items():
        name = f"masked {index} {which}"  # a space keeps it apart from names that exporters give
        made.graph.node[index].input[which] = name
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=value.shape)
        if apart(tensor):  # of a model of gigabytes, protobuf would not serialise them
            arrays[name] = value
            made.graph.initializer.append(tensor)
        else:
            made.graph.initializer.append(numpy_helper.from_array(value, name))
    read = {name for node in made.graph.node for name in node.input} | {value.name for value in made.graph.output}
    read.update(name for node in source.nodes for name in node.captured)
    kept = [tensor for tensor in source.model.graph.initializer if tensor.name in read]
    made.graph.initializer.extend(kept)
    return Graph(made, arrays=arrays | {t.name: source.arrays[t.name] for t in kept if t.name in source.arrays})


# Two activations that are multiplied over a resized axis


@dataclass(frozen=True, slots=True)
class Meeting:
    """A product of two activations over an axis of each, of which so many positions were dropped."""

    node: Node
    operands: tuple[tuple[str, int], tuple[str, int]]
    dropped: int

    def is_hidden(self, runs: Sequence[Mapping[str, Any]]) -> bool:
        """Whether as many positions as were dropped add nothing to the sum, in all runs."""
        silent: Array | bool = True
        for run in runs:
            sides = (np.moveaxis(run[name], axis, -1) for name, axis in self.operands)
            silent = silent & np.logical_or(*((side == 0).all(axis=tuple(range(side.ndim - 1))) for side in sides))
        return bool(np.count_nonzero(silent) >= self.dropped)


def meetings(source: Graph, resized: Graph) -> list[Meeting]:
    """Where matrix products of two activations sum over fewer positions than they did."""
    constants = constant_names(source)
    found = []
    for node in source.nodes:
        if node.operator not in ("MatMul", "Gemm", "com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul"):
            continue
        a, b = node.inputs[:2]
        before, other, after = source.shape(a), source.shape(b), resized.shape(a)
        if {a, b} & constants or before is None or other is None or after is None:
            continue
        i, j = (_CONTRACTED[node.operator][1](node, which, len(s)) for which, s in enumerate((before, other)))
        m, n = before[i], after[i]
        if m is not None and n is not None and n < m:
            found.append(Meeting(node, ((a, i), (b, j)), m - n))
    return found


# Statistics across a resized axis: there a resize is an approximation


def mixers(source: Graph, resized: Graph, hidden: Collection[str] = ()) -> list[str]:
    """Nodes that normalise, reduce or contract activations over an axis whose size has changed.

    Nodes of which no dropped channel is visible, by name, are `hidden`.
    """
    found = []
    constants = constant_names(source)
    for node in source.nodes:
        if node.name in hidden:
            continue
        of = node.inputs[2:3] if node.operator == "com.microsoft.EmbedLayerNormalization" else node.inputs[:1]
        before, after = (g.shape(of[0]) if of else None for g in (source, resized))
        if before is None or after is None or before == after:
            continue
        axes = _pooled_axes(source, node, len(before), constants)
        if any(before[axis] != after[axis] for axis in axes):
            found.append(f"{node} mixes channels that were resized")
    return found


def _pooled_axes(graph: Graph, node: Node, rank: int, constants: Container[str]) -> Sequence[int]:
    """The axes of a node's first input that it takes together."""
    every, spatial = range(rank), range(min(2, rank), rank)
    if node.domain:
        return _pooled_by_fused(node, rank, constants)
    axis = node.attributes.get("axis", -1)
    if node.op.startswith("Reduce"):
        given = graph.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
        axes = node.attributes.get("axes") if given is None else tuple(int(a) for a in given)
        return every if not axes else [a % rank for a in axes]
    if node.op in ("MatMul", "Gemm", "Einsum"):
        if any(name in constants for name in node.inputs[:2]):
            return ()  # contracted with weights, which are masked
        return every if node.op == "Einsum" else [0 if node.attributes.get("transA") else rank - 1]
    if node.op in ("Softmax", "LogSoftmax", "Hardmax") and node.since < 13:
        return every[node.attributes.get("axis", 1) :]
    if node.op in ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "TopK"):
        return [axis % rank]
    if node.op in ("ArgMax", "ArgMin"):
        return [node.attributes.get("axis", 0) % rank]
    if node.op in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"):
        return every[axis % rank :]
    if node.op in ("LRN", "GroupNormalization"):
        return every[1:]
    if node.op == "MeanVarianceNormalization":
        return tuple(node.attributes.get("axes", (0, 2, 3)))
    if node.op in ("CumSum", "DynamicQuantizeLinear"):
        return every
    if node.op == "InstanceNormalization" or "Pool" in node.op:
        return spatial
    if node.op == "BatchNormalization" and (node.attributes.get("training_mode", 0) or len(node.outputs) > 1):
        return (0, *spatial)
    return ()


def _pooled_by_fused(node: Node, rank: int, constants: Container[str]) -> Sequence[int]:
    """The same of onnxruntime's own operators."""
    if node.op in ("FusedMatMul", "TransposeMatMul"):
        return () if any(name in constants for name in node.inputs[:2]) else (_inner(node, 0, rank),)
    if node.op in ("GroupNorm", "SkipGroupNorm"):
        return range(1, rank)
    return (rank - 1,) if node.op.endswith("LayerNormalization") else ()
