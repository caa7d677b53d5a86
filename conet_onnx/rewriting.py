"""Carry out a plan: the user's own graph with other numbers in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph, Node, with_values, with_weights
from conet_onnx.plans import NULL, Integer, Take, WidthPlan

__all__ = ["apply", "rewrite"]


def rewrite(graph: Graph, plan: WidthPlan) -> Graph:
    """The resized model. Weights that the plan does not list keep their bytes; all else in the model is kept as it is.

    Raises UsageError where the plan was made for another model.
    """
    if plan.sha256 != graph.sha256:
        raise UsageError(
            f"the plan is for a model with SHA-256 {plan.sha256[:12]}..., {graph.file or 'this model'} has "
            f"{graph.sha256[:12]}...: give it the source that it was made from."
        )
    if not plan.initializers and not plan.integers:
        return graph
    by_name = {node.name: node for node in graph.nodes}
    _check_names(graph, plan, by_name)

    def make(name: str, tensor: onnx.TensorProto) -> onnx.TensorProto | None:
        made = plan.initializers.get(name)
        take = made if isinstance(made, Take) else next((u.take for u in made or () if u.name == name), None)
        return None if take is None else with_values(tensor, apply(numpy_helper.to_array(tensor), take))

    model = with_weights(graph.model, make)
    for name, made in plan.initializers.items():
        for use in made if isinstance(made, tuple) else ():
            if use.name != name:
                tensor = with_values(graph.weights[name], apply(graph.array(name), use.take))
                tensor.name = use.name
                model.graph.initializer.append(tensor)
            model.graph.node[by_name[use.node].index].input[use.input] = use.name
    _edit_integers(graph, model, plan.integers, by_name)
    made_graph = Graph(model, external=graph.external, input_shapes=graph.input_shapes)
    _drop_left_over(graph, made_graph)
    _refresh_shapes(made_graph)
    return made_graph


def _check_names(graph: Graph, plan: WidthPlan, by_name: Mapping[str, Node]) -> None:
    for name in plan.initializers:
        if name not in graph.weights:
            raise UsageError(f"the plan resizes {name!r}, which is not a weight of {graph.file or 'this model'}.")
    uses = (use for made in plan.initializers.values() if isinstance(made, tuple) for use in made)
    for name in (*(use.node for use in uses), *(edit.node for edit in plan.integers)):
        if name not in by_name:
            raise UsageError(f"the plan edits {name!r}, which is not a node of {graph.file or 'this model'}.")


def apply(source: np.ndarray[Any, Any], made: Take) -> np.ndarray[Any, Any]:
    """take(source) / divide along every listed axis; dtype is kept. Raises UsageError where the shape is another."""
    if source.shape != made.shape:
        raise UsageError(f"the plan expects a weight of shape {made.shape}, got {source.shape}.")
    result, dtype = source, source.dtype
    del source  # a large weight is not kept beside its first slice
    for axis, indices in sorted(made.take.items(), key=lambda item: len(item[1]) / max(made.shape[item[0]], 1)):
        result = np.take(result, np.maximum(indices, 0), axis=axis)
        if (indices == NULL).any():
            result[(slice(None),) * axis + (indices == NULL,)] = 0
    for axis, divide in made.divide.items():
        shape = [1] * result.ndim
        shape[axis] = len(divide)
        result = (result / divide.reshape(shape)).astype(dtype)
    return np.asarray(result, order="C")  # not ascontiguousarray, which gives a scalar an axis


def _edit_integers(
    graph: Graph, model: onnx.ModelProto, integers: Sequence[Integer], by_name: Mapping[str, Node]
) -> None:
    places: dict[tuple[str, str], dict[int, int]] = {}
    for edit in integers:
        places.setdefault((edit.node, edit.where), {})[edit.position] = edit.new
    taken = {*graph.names, *(tensor.name for tensor in model.graph.initializer)}
    for (name, where), edits in places.items():
        node = by_name[name]
        kind, _, what = where.partition(":")
        if kind == "attribute":
            _edit_attribute(model.graph.node[node.index], what, edits)
        else:
            _edit_input(graph, model, node, int(what), edits, taken)


def _edit_attribute(proto: onnx.NodeProto, name: str, edits: Mapping[int, int]) -> None:
    for attribute in proto.attribute:
        if attribute.name == name and attribute.type == onnx.AttributeProto.INTS:
            for position, value in edits.items():
                attribute.ints[position] = value
            return
        if attribute.name == name:
            attribute.i = edits[0]
            return
    proto.attribute.append(helper.make_attribute(name, [edits[k] for k in range(len(edits))]))


def _edit_input(
    graph: Graph, model: onnx.ModelProto, node: Node, index: int, edits: Mapping[int, int], taken: set[str]
) -> None:
    """Edit a constant in place where this node is all that reads it; else give the node one of its own."""
    tensor = node.inputs[index] if index < len(node.inputs) else ""
    constant = graph.constant(tensor) if tensor else None
    if constant is None:
        values = np.array([edits[k] for k in range(len(edits))], dtype=np.int64)
    else:
        values = constant.copy()
        for position, new in edits.items():
            values.reshape(-1)[position] = new
    if tensor in graph.weights and graph.readings(tensor) == 1:
        _overwrite(model, tensor, values)
        return
    name = f"{node.name}.{index}"
    while name in taken:
        name += "_"
    taken.add(name)
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    proto = model.graph.node[node.index]
    proto.input.extend([""] * (index + 1 - len(proto.input)))
    proto.input[index] = name
    for k, attribute in enumerate(proto.attribute):
        if (
            node.op == "Split" and attribute.name == "num_outputs"
        ):  # ONNX Split 18: sizes or a number of outputs, not both
            del proto.attribute[k]
            break


def _overwrite(model: onnx.ModelProto, tensor: str, values: np.ndarray[Any, Any]) -> None:
    for initializer in model.graph.initializer:
        if initializer.name == tensor:
            initializer.CopyFrom(with_values(initializer, values))
            return
    for node in model.graph.node:
        if tensor in node.output:
            node.attribute[0].t.CopyFrom(with_values(node.attribute[0].t, values))
            return


def _drop_left_over(source: Graph, made: Graph) -> None:
    """Remove initializers that were read, and are not any more: all readers have constants of their own."""
    kept = [t for t in made.model.graph.initializer if made.readings(t.name) or not source.readings(t.name)]
    if len(kept) < len(made.model.graph.initializer):
        left = {t.name for t in made.model.graph.initializer} - {t.name for t in kept}
        for k in reversed(range(len(made.model.graph.initializer))):
            if made.model.graph.initializer[k].name in left:
                del made.model.graph.initializer[k]


def _refresh_shapes(graph: Graph) -> None:
    """Bring the shapes that the model itself records up to date: of values, and of weights listed as inputs."""
    for value in graph.model.graph.input:
        if value.name in graph.weights:
            _set_sizes(value, tuple(graph.weights[value.name].dims))
    for value in graph.model.graph.value_info:
        sizes = graph.shape(value.name)
        dims = value.type.tensor_type.shape.dim
        if sizes is not None and len(sizes) == len(dims):
            static = (d.HasField("dim_value") for d in dims)
            _set_sizes(value, [s if known else None for s, known in zip(sizes, static, strict=True)])


def _set_sizes(value: onnx.ValueInfoProto, sizes: Sequence[int | None]) -> None:
    for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
        if size is not None:
            dim.dim_value = size
