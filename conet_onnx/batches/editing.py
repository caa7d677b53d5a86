"""The edits that free a batch, and the graph that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from conet_onnx.graph import Draft, Graph, Node

__all__ = ["NEEDS_NODES", "Edit", "Integers", "Place", "Size", "Spread", "edited"]

NEEDS_NODES = 9  # opset: Where, by which a computed size gets among constant ones, is as old
WITH_SIZES = {"Expand": 1, "Tile": 1, "ConstantOfShape": 0}  # these make copies: which input says how many

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the samples of a batch lie in a tensor: along one axis, each with `inner` of its elements in a row."""

    axis: int
    inner: int = 1


@dataclass(frozen=True, slots=True)
class Size:
    """A size that may depend on the batch: `times` batches, or a plain number."""

    number: int = 0
    times: int = 0

    def at(self, batch: int) -> int:
        """The size at a batch."""
        return self.number + self.times * batch

    def __str__(self) -> str:
        return str(self.number) if not self.times else "batch" if self.times == 1 else f"{self.times}·batch"


@dataclass(frozen=True, slots=True)
class Integers:
    """Other elements in a vector of sizes that a node reads."""

    node: Node
    input: int
    sizes: tuple[tuple[int, Size], ...]  # by position

    def at(self, vector: Array, batch: int) -> Array:
        """The vector with these elements, at a batch."""
        made = vector.copy()
        for position, size in self.sizes:
            made[position] = size.at(batch)
        return made

    def __str__(self) -> str:
        elements = ", ".join(f"[{position}] is {size}" for position, size in self.sizes)
        return f"{self.node}: {self.node.inputs[self.input]}{elements}"


@dataclass(frozen=True, slots=True)
class Spread:
    """What is the same for every sample is given to as many samples as there are."""

    node: Node
    input: int
    axis: int

    def __str__(self) -> str:
        return f"{self.node}: {self.node.inputs[self.input]} is repeated for every sample"


Edit = Integers | Spread


def edited(
    graph: Graph,
    edits: Sequence[Edit],
    *,
    inputs: Mapping[str, int],
    places: Mapping[str, Place],
    size: int,
    symbol: str,
) -> Graph:
    """The graph with these edits, whose `inputs` (by name, and the axis) have the symbol in place of the size.

    Weights keep their names and values; vectors of sizes that change are new, and old ones that nothing reads are gone.
    """
    return _Editing(graph, inputs, size, symbol).carry_out(edits, places)


class _Editing:
    def __init__(self, graph: Graph, inputs: Mapping[str, int], size: int, symbol: str) -> None:
        self.graph = graph
        self.inputs = inputs
        self.size = size
        self.symbol = symbol
        self.draft = Draft(graph)
        self.taken = set(graph.names)
        self.first: list[onnx.NodeProto] = []  # what computes the batch size
        self.before: dict[int, list[onnx.NodeProto]] = {}  # new nodes, by the index of the node that needs them
        self.spread: dict[tuple[str, int], str] = {}  # what is already repeated along an axis
        self.constants: dict[tuple[Any, ...], str] = {}

    def carry_out(self, edits: Sequence[Edit], places: Mapping[str, Place]) -> Graph:
        """Edit, insert, and say in the model's own declarations what is symbolic now."""
        stale = {name for edit in edits if (name := self._edit(edit))}
        model = self.draft.model
        nodes = [*self.first]
        for index, node in enumerate(model.graph.node):
            nodes += [*self.before.get(index, ()), node]
        read = {value.name for value in model.graph.output}.union(*map(_reads, nodes))
        was_read = {value.name for value in model.graph.output}.union(
            *(n.inputs + n.captured for n in self.graph.nodes)
        )
        kept = [n for n in nodes if n.op_type != "Constant" or n.output[0] in read or n.output[0] not in was_read]
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        self.draft.drop({tensor.name for tensor in model.graph.initializer} & was_read - read)
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            place = Place(self.inputs[value.name]) if value.name in self.inputs else places.get(value.name)
            if place is not None:
                self._declare(value, place)
        infos = [value for value in model.graph.value_info if value.name not in stale and value.name in read]
        del model.graph.value_info[:]
        model.graph.value_info.extend(infos)
        return Graph(
            model, arrays=self.draft.arrays, external=self.graph.external, input_shapes=self.graph.input_shapes
        )

    def _edit(self, edit: Edit) -> str:
        """Carry one out; returns the tensor whose recorded shape is not true any more, if there is one."""
        if isinstance(edit, Integers):
            self._replace(edit.node, edit.input, self._vector(edit.node, edit.input, edit.sizes))
            return ""
        name = edit.node.inputs[edit.input]
        if (maker := self._maker(name, edit.axis)) is not None:
            node, at, position = maker
            self._replace(node, at, self._vector(node, at, ((position, Size(times=1)),)))
            return name
        if (name, edit.axis) not in self.spread:
            self.spread[name, edit.axis] = self._repeat(edit, name)
        self._replace(edit.node, edit.input, self.spread[name, edit.axis])
        return ""

    def _maker(self, name: str, axis: int) -> tuple[Node, int, int] | None:
        """The node that makes the copies, where it is asked for as many as the batch was: node, input, position."""
        node = self.graph.producer(name)
        if node is None or node.op not in WITH_SIZES or node.domain or self.graph.readings(name) != 1:
            return None
        asked = self.graph.constant(node.inputs[WITH_SIZES[node.op]])
        rank = len(self.graph.sizes(name) or ())
        if asked is None or asked.dtype != np.int64 or not (position := axis - rank + len(asked)) >= 0:
            return None
        if node.op != "ConstantOfShape":
            copied = self.graph.shape(node.inputs[0])
            if copied is None or ((0,) * (rank - len(copied)) + copied)[axis] not in (0, 1):
                return None
        return (node, WITH_SIZES[node.op], position) if asked[position] == self.size else None

    def _repeat(self, edit: Spread, name: str) -> str:
        """One sample's part, expanded."""
        if self.size > 1:
            part = self._fresh(f"{name}.one")
            first = self._constant(np.zeros(1, np.int64))
            self._insert(edit.node, helper.make_node("Gather", [name, first], [part], part, axis=edit.axis))
            source = part
        else:
            source = name
        ones = np.ones(len(self.graph.sizes(name) or ()), np.int64)
        shape = self._patched(edit.node, self._constant(ones), len(ones), ((edit.axis, Size(times=1)),))
        made = self._fresh(f"{name}.each")
        self._insert(edit.node, helper.make_node("Expand", [source, shape], [made], made))
        return made

    def _vector(self, node: Node, at: int, sizes: Iterable[tuple[int, Size]]) -> str:
        """A vector of sizes with other elements: a constant where it can be one."""
        name, sizes = node.inputs[at], tuple(sizes)
        constant = self.graph.constant(name)
        if constant is None or any(size.times for _, size in sizes):
            length = len(constant) if constant is not None else (self.graph.sizes(name) or ((0, 0),))[0][0]
            return self._patched(node, name, length, sizes)
        values = constant.copy()
        for position, size in sizes:
            values[position] = size.number
        made = self._fresh(f"{node.name}.{at}")
        self.draft.add(made, values)
        return made

    def _patched(self, node: Node, name: str, length: int, sizes: Sequence[tuple[int, Size]]) -> str:
        """Where(those positions, their sizes, the vector)."""
        mask, numbers, times = np.zeros(length, bool), np.zeros(length, np.int64), np.zeros(length, np.int64)
        for position, size in sizes:
            mask[position], numbers[position], times[position] = True, size.number, size.times
        values = self._constant(numbers)
        if times.any():
            values = self._batch()
            if set(times[mask]) != {1}:
                values = self._computed(node, "Mul", values, self._constant(times))
            if numbers.any():
                values = self._computed(node, "Add", values, self._constant(numbers))
        return self._computed(node, "Where", self._constant(mask), values, name)

    def _computed(self, node: Node, op: str, *inputs: str) -> str:
        made = self._fresh(f"{node.name}.{op}")
        self._insert(node, helper.make_node(op, inputs, [made], made))
        return made

    def _batch(self) -> str:
        """The batch size, of shape [1], as it is in the first input that has one."""
        if not self.first:
            (name, axis), *_ = self.inputs.items()
            shape, made = self._fresh(f"{self.symbol}.shape"), self._fresh(f"{self.symbol}.size")
            index = self._constant(np.array([axis], np.int64))
            self.first.append(helper.make_node("Shape", [name], [shape], shape))
            self.first.append(helper.make_node("Gather", [shape, index], [made], made, axis=0))
        return str(self.first[-1].output[0])

    def _constant(self, value: Array) -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self.constants:
            self.constants[key] = self._fresh(f"{self.symbol}.constant")
            self.draft.add(self.constants[key], value)
        return self.constants[key]

    def _insert(self, node: Node, made: onnx.NodeProto) -> None:
        self.before.setdefault(node.index, []).append(made)

    def _replace(self, node: Node, at: int, name: str) -> None:
        self.draft.node(node).input[at] = name

    def _fresh(self, name: str) -> str:
        made, count = name, 1
        while made in self.taken:
            count += 1
            made = f"{name}.{count}"
        self.taken.add(made)
        return made

    def _declare(self, value: onnx.ValueInfoProto, place: Place) -> None:
        dims = value.type.tensor_type.shape.dim
        if place.axis >= len(dims):
            return  # its shape is not declared
        exact = dims[place.axis].dim_value == self.size
        dims[place.axis].Clear()
        if exact:
            dims[place.axis].dim_param = self.symbol


def _reads(node: onnx.NodeProto) -> set[str]:
    """All that a node reads, its subgraphs too."""
    found = set(node.input)
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            found |= {value.name for value in inner.output}.union(*map(_reads, inner.node))
    return found
