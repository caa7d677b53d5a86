"""The masked source: its contracted weights are zero where a plan drops the index that they are summed over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from conet_onnx.errors import ConetError, ModelError
from conet_onnx.graph import Graph, Node
from conet_onnx.verification.constants import Constants, closure, constant_names, evaluate, is_float
from conet_onnx.verification.plans import Planned, Take

__all__ = ["masked_model", "masked_operands", "mixers"]

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


def masked_operands(source: Graph, planned: Planned) -> tuple[dict[tuple[int, int], Array], list[str]]:
    """Contracted weights with zeros outside the kept indices, by (node index, input); what could not be masked."""
    masked: dict[tuple[int, int], Array] = {}
    excuses = []
    constants = constant_names(source)
    for node in source.nodes:
        for which, name in enumerate(node.inputs):
            take = planned.of(node, which)
            if node.operator in _CONTRACTED:
                if which not in _CONTRACTED[node.operator][0] or name not in constants:
                    continue
                try:
                    found = _kept_along(source, node, which, take, planned)
                except _Unmaskable as error:
                    excuses.append(f"{node} contracts {name!r}, which comes from {error}")
                    continue
                if found is not None and not found[1].all():
                    axis, kept = found
                    value = Constants(source, [name], "the source")[name]
                    try:
                        zero = _zero_of(source, node, which, value)
                    except _Unmaskable as error:
                        excuses.append(f"{node} contracts {name!r}, which has {error}")
                        continue
                    away = ~kept.reshape([-1 if a == axis else 1 for a in range(value.ndim)])
                    masked[node.index, which] = np.where(away, zero, value)
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


def _kept_along(source: Graph, node: Node, which: int, take: Take | None, planned: Planned) -> tuple[int, Array] | None:
    """The contracted axis of a constant operand and which indices along it are kept; None where nothing is planned."""
    name = node.inputs[which]
    if take is not None:
        axis = _CONTRACTED[node.operator][1](node, which, len(take.shape))
        return axis, take.kept(axis)
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
            kept = np.ones(leaf_take.shape, bool)
            for axis, length in enumerate(leaf_take.shape):
                kept &= leaf_take.kept(axis).reshape([length if a == axis else 1 for a in range(kept.ndim)])
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
        operand: Array = np.concatenate(flags)[evaluate(source, [name], tags)[name]]
    except ModelError as error:
        raise _Unmaskable(f"nodes that do not run on tags ({error})") from error
    axis = _CONTRACTED[node.operator][1](node, which, operand.ndim)
    return axis, np.asarray(operand.any(axis=tuple(a for a in range(operand.ndim) if a != axis)))


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
    for (index, which), value in operands.items():
        name = f"masked {index} {which}"  # a space keeps it apart from names that exporters give
        made.graph.node[index].input[which] = name
        made.graph.initializer.append(numpy_helper.from_array(value, name))
    read = {name for node in made.graph.node for name in node.input} | {value.name for value in made.graph.output}
    read.update(name for node in source.nodes for name in node.captured)
    kept = [tensor for tensor in source.model.graph.initializer if tensor.name in read]
    made.graph.initializer.extend(kept)
    return Graph(made, arrays={t.name: source.arrays[t.name] for t in kept if t.name in source.arrays})


# Statistics across a resized axis: there a resize is an approximation


def mixers(source: Graph, resized: Graph) -> list[str]:
    """Nodes that normalise, reduce or contract activations over an axis whose size has changed."""
    found = []
    constants = constant_names(source)
    for node in source.nodes:
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
    return ()


def _pooled_by_fused(node: Node, rank: int, constants: Container[str]) -> Sequence[int]:
    """The same of onnxruntime's own operators."""
    if node.op in ("FusedMatMul", "TransposeMatMul"):
        return () if any(name in constants for name in node.inputs[:2]) else (_inner(node, 0, rank),)
    if node.op in ("GroupNorm", "SkipGroupNorm"):
        return range(1, rank)
    return (rank - 1,) if node.op.endswith("LayerNormalization") else ()
