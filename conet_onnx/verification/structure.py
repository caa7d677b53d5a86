"""Compare two models field by field, outside of what a plan changes."""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import partial
from itertools import zip_longest

import onnx
from google.protobuf.message import Message
from onnx import TensorProto

from conet_onnx.errors import VerificationFailed
from conet_onnx.graph import Graph, Node
from conet_onnx.verification.plans import Edits, Planned

__all__ = ["STORAGE", "Pairs", "compare_fields", "compare_structure"]

Pairs = Sequence[tuple[Node, Node]]  # a source's node and the resized model's

STORAGE = frozenset(  # what a resize may change in a tensor; its values are compared apart
    {"dims", "data_location", *(name for name in TensorProto.DESCRIPTOR.fields_by_name if name.endswith("_data"))}
)


def _check_names(source: Graph, planned: Planned) -> None:
    """What the plan names is in the source."""
    nodes = {node.name: node for node in source.nodes}
    for name in (*planned.integers, *planned.uses):
        if name not in nodes:
            raise VerificationFailed(f"the plan names node {name!r}, which the source lacks.")
    for name, uses in planned.uses.items():
        for position, use in uses.items():
            read = nodes[name].inputs[position : position + 1]
            if use.tensor not in (*read, *map(partial(_original, source), read)):
                raise VerificationFailed(
                    f"the plan has input {position} of {nodes[name]} read {use.tensor!r}; it does not."
                )


def _original(source: Graph, name: str) -> str:
    """The weight that a value is another name of: exporters alias equal weights through Identity."""
    while name not in source.weights and (node := source.producer(name)) is not None and node.op == "Identity":
        name = node.inputs[0]
    return name


def compare_structure(source: Graph, resized: Graph, planned: Planned) -> Pairs:
    """The nodes of the two models, paired. Raises VerificationFailed at the first field that differs."""
    _check_names(source, planned)
    a, b = source.model, resized.model
    compare_fields(a, b, "model", but={"graph"})
    compare_fields(a.graph, b.graph, "graph", but={"node", "initializer", "input", "value_info"})
    pairs, removed = _pair(source, resized)
    for old, new in pairs:
        _compare_node(a.graph.node[old.index], b.graph.node[new.index], old, planned)
    _check_removed(source, resized, planned, removed)
    weights = {tensor.name for tensor in a.graph.initializer}  # before IR version 4 they are inputs as well
    new_weights = {tensor.name for tensor in b.graph.initializer}
    added = new_weights - weights.union(*(node.outputs for node in source.nodes))
    gone = (weights - new_weights).union(*(node.outputs for node in removed))
    for part, sized in (("input", weights), ("value_info", None)):
        after = [value for value in getattr(b.graph, part) if value.name not in added]
        named = {value.name for value in after}
        before = [value for value in getattr(a.graph, part) if value.name in named or value.name not in gone]
        _compare_values(before, after, f"graph.{part}", sized)
    return pairs


def _pair(source: Graph, resized: Graph) -> tuple[Pairs, list[Node]]:
    """The source's nodes with the resized model's, in order; and those that are no longer there."""
    pairs, removed = [], []
    rest = list(reversed(resized.nodes))
    for node in source.nodes:
        if rest and (rest[-1].outputs == node.outputs or (rest[-1].name, rest[-1].op) == (node.name, node.op)):
            pairs.append((node, rest.pop()))
        else:
            removed.append(node)
    if rest:
        raise VerificationFailed(f"node {rest[-1]} is not in the source, or not at this place.")
    return pairs, removed


def _check_removed(source: Graph, resized: Graph, planned: Planned, removed: Sequence[Node]) -> None:
    """A node may only be gone if it was alive, and what it made is now read by none or planned as a weight."""
    needed = {value.name for value in source.outputs}
    for node in reversed(source.nodes):
        if needed.intersection(node.outputs):
            needed.update((*node.inputs, *node.captured))
    read = {name for node in resized.nodes for name in (*node.inputs, *node.captured)}
    read.update(value.name for value in resized.outputs)
    read -= {tensor.name for tensor in resized.model.graph.initializer} & planned.takes.keys()
    for node in removed:
        if not needed.intersection(node.outputs):
            raise VerificationFailed(f"node {node} is missing, and nothing read it in the source either.")
        if lost := read.intersection(filter(None, node.outputs)):
            raise VerificationFailed(
                f"node {node} is missing or not at its place, and its {min(lost)!r} is still read."
            )


def _compare_node(a: onnx.NodeProto, b: onnx.NodeProto, node: Node, planned: Planned) -> None:
    """The node is the source's with the plan's edits; the tensor of a Constant is compared with the weights."""
    sites, uses = planned.integers.get(node.name, {}), planned.uses.get(node.name, {})
    if a == b and not sites and not uses:
        return
    expected, actual = onnx.NodeProto(), onnx.NodeProto()
    expected.CopyFrom(a)
    actual.CopyFrom(b)
    for where, edits in sites.items():
        kind, _, what = where.partition(":")
        if kind == "attribute":
            _edit_attribute(expected, actual, what, edits, node)
        elif kind == "input" and what.isdecimal() and int(what) < len(b.input):
            _reread(expected, int(what), b.input[int(what)])  # any name will do: its value is compared
        else:
            raise VerificationFailed(f"{node}: the plan changes {where!r}, and there is no such place.")
    for position, use in uses.items():
        _reread(expected, position, use.alias)
    if node.op == "Split" and len(node.inputs) < 2 and "input:1" in sites:
        _drop_attribute(expected, "num_outputs")  # Split 18 takes either the sizes or their number
    if node.op == "Constant":
        for proto in (expected, actual):
            for attribute in proto.attribute:
                if attribute.name == "value":
                    for name in STORAGE:
                        attribute.t.ClearField(name)
    compare_fields(expected, actual, f"node {node}")


def _reread(proto: onnx.NodeProto, position: int, name: str) -> None:
    proto.input.extend([""] * (position + 1 - len(proto.input)))
    proto.input[position] = name


def _drop_attribute(proto: onnx.NodeProto, name: str) -> None:
    for index, attribute in enumerate(proto.attribute):
        if attribute.name == name:
            del proto.attribute[index]
            return


def _edit_attribute(expected: onnx.NodeProto, actual: onnx.NodeProto, name: str, edits: Edits, node: Node) -> None:
    """Put the planned numbers into an attribute; one that the source leaves to its default is made."""
    attribute = next((a for a in expected.attribute if a.name == name), None)
    if attribute is None:
        made = next((a for a in actual.attribute if a.name == name), None)
        if made is None:
            raise VerificationFailed(f"{node}: attribute {name!r} is missing, which the plan changes.")
        attribute = expected.attribute.add(name=name, type=made.type)
        if sorted(edits) != list(range(len(edits))):
            raise VerificationFailed(f"{node}: the plan changes attribute {name!r} in part; the source lacks it.")
        edits = {position: (None, to) for position, (_, to) in edits.items()}
        attribute.ints.extend([0] * (len(edits) if attribute.type == onnx.AttributeProto.INTS else 0))
    for position, (old, new) in edits.items():
        numbers = attribute.floats if attribute.type == onnx.AttributeProto.FLOATS else attribute.ints
        single = {onnx.AttributeProto.INT: "i", onnx.AttributeProto.FLOAT: "f"}.get(attribute.type)
        if (position != 0) if single else (position >= len(numbers)):
            raise VerificationFailed(f"{node}: the plan changes {name}[{position}], and there is no such place.")
        was = getattr(attribute, single) if single else numbers[position]
        if old is not None and was != old:
            raise VerificationFailed(f"{node}: {name}[{position}] of the source is {was}, the plan says {old}.")
        if single:
            setattr(attribute, single, new)
        else:
            numbers[position] = new


def _compare_values(
    a: Sequence[onnx.ValueInfoProto], b: Sequence[onnx.ValueInfoProto], where: str, sized: Container[str] | None
) -> None:
    """Declarations in the same order, equal but for the sizes of those in `sized` (None: of all)."""
    for old, new in zip_longest(a, b):
        if old is None or new is None or old.name != new.name:
            names = [value.name if value is not None else None for value in (old, new)]
            raise VerificationFailed(f"{where}: expected {names[0]!r}, got {names[1]!r}.")
        if old != new and (sized is None or old.name in sized):
            plain = onnx.ValueInfoProto()
            plain.CopyFrom(old)
            dims = plain.type.tensor_type.shape.dim
            for dim, other in zip(dims, new.type.tensor_type.shape.dim, strict=False):
                if dim.HasField("dim_value") and other.HasField("dim_value"):
                    dim.dim_value = other.dim_value
            old = plain
        compare_fields(old, new, f"{where} {old.name!r}")


def compare_fields(a: Message, b: Message, where: str, but: Container[str] = ()) -> None:
    """Raise VerificationFailed at the first field that differs, other than those in `but`."""
    if a == b:
        return
    for descriptor in a.DESCRIPTOR.fields:
        name = descriptor.name
        old, new = getattr(a, name), getattr(b, name)
        if name in but or (old == new and (not descriptor.has_presence or a.HasField(name) == b.HasField(name))):
            continue
        path = f"{where}.{name}"
        if descriptor.is_repeated:
            for index, (x, y) in enumerate(zip_longest(old, new)):
                label = getattr(x, "name", "") or getattr(x, "key", "") or index
                if isinstance(x, Message) and isinstance(y, Message):
                    compare_fields(x, y, f"{path}[{label}]")
                elif x != y:
                    raise VerificationFailed(f"{path}[{label}] is {_show(y)}, the source has {_show(x)}.")
        elif descriptor.message_type is not None and a.HasField(name) == b.HasField(name):
            compare_fields(old, new, path)
        else:
            x, y = (m if not descriptor.has_presence or m.HasField(name) else None for m in (a, b))
            shown = [_show(None if m is None else getattr(m, name)) for m in (x, y)]
            raise VerificationFailed(f"{path} is {shown[1]}, the source has {shown[0]}.")
    if not but and a.SerializeToString(deterministic=True) != b.SerializeToString(deterministic=True):
        raise VerificationFailed(f"{where} differs in a field that this version of onnx does not know.")


def _show(value: object) -> str:
    if isinstance(value, bytes) and len(value) > 60:
        return f"{len(value)} bytes"
    text = "nothing" if value is None else " ".join(str(value).split()) if isinstance(value, Message) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
