"""Values that nodes compute from weights alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from conet_onnx.errors import ModelError, VerificationFailed
from conet_onnx.graph import Graph, Node
from conet_onnx.runtime import run

__all__ = ["Constants", "closure", "constant_names", "evaluate", "is_float", "values_of"]

Array = np.ndarray[Any, Any]


class Constants:
    """Weights, and constants that nodes compute from them or from sizes that never change, by name."""

    def __init__(self, graph: Graph, names: Iterable[str], whose: str) -> None:
        self.graph = graph
        self.whose = whose
        computed = [name for name in dict.fromkeys(names) if name not in graph.weights and graph.producer(name)]
        followed = constant_names(graph) if computed else set()
        known = {name: graph.constant(name) for name in computed if name not in followed}
        self.computed = {name: value for name, value in known.items() if value is not None}
        computed = [name for name in computed if name not in self.computed]
        try:
            self.computed |= evaluate(graph, computed) if computed else {}
        except ModelError as error:
            raise VerificationFailed(f"constants of {whose} cannot be computed: {error}") from error

    def __getitem__(self, name: str) -> Array:
        if name in self.computed:
            return self.computed[name]
        if name not in self.graph.weights:
            raise VerificationFailed(f"the plan names tensor {name!r}, which {self.whose} lacks.")
        return values_of(self.graph, name)


def values_of(graph: Graph, weight: str) -> Array:
    """The values of a weight. Raises VerificationFailed where there are not as many as its shape needs."""
    try:
        return graph.array(weight)
    except (ValueError, TypeError) as error:
        raise VerificationFailed(f"tensor {weight!r} holds data that does not fit its shape.") from error


def is_float(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating)) or array.dtype.name.startswith(("bfloat", "float"))


def constant_names(graph: Graph) -> set[str]:
    """Weights, and what nodes compute from nothing else."""
    found = set(graph.weights)
    for node in graph.nodes:
        if not node.captured and all(name in found for name in node.inputs if name):
            found.update(node.outputs)
    return found


def closure(graph: Graph, names: Sequence[str]) -> tuple[list[Node], set[str]]:
    """The nodes that compute some values from weights alone, in order, and those weights."""
    wanted, nodes, weights = set(names), [], set()
    for node in reversed(graph.nodes):
        if wanted.intersection(node.outputs) and node.outputs[0] not in graph.weights:
            nodes.append(node)
            wanted.update((*filter(None, node.inputs), *node.captured))
    weights = wanted & graph.weights.keys()
    made = {name for node in nodes for name in node.outputs}
    if unknown := wanted - weights - made:
        raise VerificationFailed(f"the plan names {names[0]!r}, which depends on {min(unknown)!r}: it is not constant.")
    return nodes[::-1], weights


def evaluate(graph: Graph, names: Sequence[str], tags: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Values that nodes compute from weights, or from whole-number tags in place of some weights."""
    nodes, weights = closure(graph, names)
    made = onnx.ModelProto(ir_version=max(graph.model.ir_version, 4))
    made.opset_import.extend(graph.model.opset_import)
    made.graph.name = "constants"
    for node in nodes:
        proto = made.graph.node.add()
        proto.CopyFrom(graph.model.graph.node[node.index])
        changes = node.op in ("Cast", "QuantizeLinear", "DequantizeLinear")  # the elements, and not their places
        if tags is not None and changes and node.inputs[0] not in weights - tags.keys():
            proto.op_type = "Identity"
            del proto.input[1:]
            del proto.attribute[:]
    for name in sorted(weights):
        tensor = graph.tensor(name) if name not in (tags or {}) else numpy_helper.from_array((tags or {})[name])
        made.graph.initializer.add().CopyFrom(tensor)
        made.graph.initializer[-1].name = name
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return run(made, {}, names, provider="cpu", optimise=False)
