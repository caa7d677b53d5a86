"""Carry out a plan: the user's own graph with other numbers in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from conet_onnx.errors import UsageError
from conet_onnx.graph import Draft, Graph, Node
from conet_onnx.plans import Integer, Take, WidthPlan
from conet_onnx.slicing import Slices, apply

__all__ = ["rewrite"]

Array = np.ndarray[Any, Any]


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

    draft = Draft(graph)
    for name, made in plan.initializers.items():
        if isinstance(made, Take):
            draft.put(name, Slices(graph.array(name), made))
            continue
        for use in made:
            if name not in graph.weights:
                draft.add(use.name, apply(_number(graph, name), use.take))
                draft.node(by_name[use.node]).input[use.input] = use.name
                continue
            value = Slices(graph.array(name), use.take)
            if use.name == name:
                draft.put(name, value)
            else:
                draft.add(use.name, value, like=name)
            draft.node(by_name[use.node]).input[use.input] = use.name
    _edit_integers(graph, draft, plan.integers, by_name)
    resized = draft.graph()
    if left := _left_over(graph, resized):
        draft.drop(left)
        resized = draft.graph()
    _refresh_shapes(resized)
    return resized


def _check_names(graph: Graph, plan: WidthPlan, by_name: Mapping[str, Node]) -> None:
    for name, made in plan.initializers.items():
        if name not in graph.weights and (isinstance(made, Take) or graph.constant(name) is None):
            raise UsageError(f"the plan resizes {name!r}, which is not a weight of {graph.file or 'this model'}.")
    uses = (use for made in plan.initializers.values() if isinstance(made, tuple) for use in made)
    for name in (*(use.node for use in uses), *(edit.node for edit in plan.integers)):
        if name not in by_name:
            raise UsageError(f"the plan edits {name!r}, which is not a node of {graph.file or 'this model'}.")


def _number(graph: Graph, name: str) -> Array:
    """A number that the source computes from sizes."""
    found = graph.constant(name)
    assert found is not None  # _check_names has looked
    return found


def _edit_integers(graph: Graph, draft: Draft, integers: Sequence[Integer], by_name: Mapping[str, Node]) -> None:
    places: dict[tuple[str, str], dict[int, int]] = {}
    for edit in integers:
        places.setdefault((edit.node, edit.where), {})[edit.position] = edit.new
    taken = {*graph.names, *(tensor.name for tensor in draft.model.graph.initializer)}
    for (name, where), edits in places.items():
        node = by_name[name]
        kind, _, what = where.partition(":")
        if kind == "attribute":
            _edit_attribute(draft.node(node), what, edits)
        else:
            _edit_input(graph, draft, node, int(what), edits, taken)


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


def _edit_input(graph: Graph, draft: Draft, node: Node, index: int, edits: Mapping[int, int], taken: set[str]) -> None:
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
        draft.put(tensor, values)
        return
    name = f"{node.name}.{index}"
    while name in taken:
        name += "_"
    taken.add(name)
    draft.add(name, values)
    proto = draft.node(node)
    proto.input.extend([""] * (index + 1 - len(proto.input)))
    proto.input[index] = name
    for k, attribute in enumerate(proto.attribute):
        if (
            node.op == "Split" and attribute.name == "num_outputs"
        ):  # ONNX Split 18: sizes or a number of outputs, not both
            del proto.attribute[k]
            break


def _left_over(source: Graph, made: Graph) -> set[str]:
    """Initializers that were read, and are not any more: all readers have constants of their own."""
    own = {tensor.name for tensor in made.model.graph.initializer}
    return own & _read(source) - _read(made)


def _read(graph: Graph) -> set[str]:
    """All that nodes, their subgraphs and the model's outputs read."""
    return {value.name for value in graph.outputs}.union(*(n.inputs + n.captured for n in graph.nodes))


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
