"""Which learned weights of a lowered graph no gradient reaches, and what stands in the way."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from onnx import GraphProto, TensorProto
from torch import fx, nn

from conet_onnx.errors import UnsupportedOp
from conet_onnx.graph import Graph, Node
from conet_onnx.torch_backend.outside import Outside, ancestors
from conet_onnx.torch_backend.weights import trainable

__all__ = ["untrained_weights"]


def untrained_weights(
    graph: Graph,
    lowered: fx.Graph,
    root: nn.Module,
    attributes: Mapping[str, str],
    stopped: Mapping[int, UnsupportedOp],
    ends: Collection[str],
) -> dict[str, str]:
    """Names of weights that stay as they are, each with the reason.

    `attributes` of the module that weights have become, by name; `stopped` are the nodes, by index, that onnxruntime
    runs, with what kept each from torch; `ends` the graph's outputs that are trained. What a graph inside of control
    flow holds itself has the name that it has there. Weights that no output depends on are not listed.
    """
    flow = [node for node in graph.nodes if node.has_subgraph]
    if not stopped and not flow:
        return {}
    alive = {node.index for value in graph.outputs for node in ancestors(graph, graph.producer(value.name))}
    needed = {index: why for index, why in stopped.items() if index in alive}
    reached = _reached(lowered, root, [value.name in ends for value in graph.outputs])
    found = {}
    for name in sorted(trainable(graph, inner=True)):
        if attributes.get(name) not in reached and (why := _obstacle(graph, name, needed)) is not None:
            found[name] = str(why)
    for node in (node for node in flow if node.index in alive):
        own = f"{node.op} {node.name!r} holds it in a graph of its own, which is only read."
        reason = str(stopped[node.index]) if node.index in stopped else own
        found |= {name: reason for name in _held(node) if name not in graph.weights}
    return found


def _reached(lowered: fx.Graph, root: nn.Module, trained: Sequence[bool]) -> Collection[str]:
    """The attributes to which gradients of the outputs that are trained come: not through onnxruntime."""
    (made,) = next(node for node in lowered.nodes if node.op == "output").args
    outputs = made if isinstance(made, tuple) else (made,)
    waiting = [node for node, wanted in zip(outputs, trained, strict=True) if wanted and isinstance(node, fx.Node)]
    seen = set(waiting)
    while waiting:
        at = waiting.pop()
        if at.op == "call_module" and isinstance(root.get_submodule(str(at.target)), Outside):
            continue
        new = set(at.all_input_nodes) - seen
        waiting.extend(new)
        seen |= new
    return {str(node.target) for node in seen if node.op == "get_attr"}


def _obstacle(graph: Graph, name: str, stopped: Mapping[int, UnsupportedOp]) -> UnsupportedOp | None:
    """What stopped the first node in the order of the graph that depends on a value and was stopped."""
    after, waiting = set[int](), [name]
    while waiting:
        readers = [node for node in graph.consumers(waiting.pop()) if node.index not in after]
        after.update(node.index for node in readers)
        waiting.extend(output for node in readers for output in node.outputs if output)
    return next((stopped[index] for index in sorted(after) if index in stopped), None)


def _held(node: Node) -> Iterator[str]:
    """The tensors of two axes or more that the graphs of a node hold themselves."""
    for graph in node.attributes.values():
        if isinstance(graph, GraphProto):
            yield from _held_within(graph)


def _held_within(graph: GraphProto) -> Iterator[str]:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _held_within(attribute.g)
            elif node.op_type == "Constant" and attribute.HasField("t"):
                tensors[node.output[0]] = attribute.t
    for name, tensor in tensors.items():
        real = tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
        if real and len(tensor.dims) > 1 and math.prod(tensor.dims) > 1:
            yield name
