"""Follow a batch of another size through a graph, and find which edits let it pass.

Shapes are inferred node by node at a second batch size and held against the source's: along one axis, and no other, a
tensor may be longer, in proportion to the batch. Where a node refuses, loses the batch or puts it where it cannot be,
other integers and repeated constants are tried. What can be read in two ways (a Reshape of a batch of one, say) is a
choice: it is taken back when a later node refuses, as in conflict-directed backjumping (Prosser 1993).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from conet_onnx.batches.editing import NEEDS_NODES, Edit, Integers, Place, Size, Spread
from conet_onnx.graph import Graph, Node
from conet_onnx.shapes import Done, settle, skeleton

__all__ = ["Found", "Refusal", "follow"]

OTHER = (211, 199)  # the second batch size: prime, and unlikely beside the sizes of a model
STEPS, TRIALS = 2000, 4  # how often a choice is taken back, and how many whole models are tried, before it is given up
COMBINATIONS = 128  # of constants that one node could want repeated
LONGEST = 16  # elements of a vector of sizes
RESHAPES = frozenset({"Reshape", "Flatten"})
ENDS = 2**63 - 1  # in a Slice: as far as there is
LITERALS = {"Expand": (1,), "Slice": (ENDS,)}  # what an operator takes for "as long as that axis is"

Array = np.ndarray[Any, Any]
Choices = frozenset[int]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a batch does not pass, and which of the choices before may have led there."""

    reason: str
    choices: Choices = frozenset()


@dataclass(frozen=True, slots=True)
class Found:
    """Edits that let a batch pass; where the samples lie in each tensor; the node behind which they are lost."""

    edits: tuple[Edit, ...]
    places: Mapping[str, Place]
    lost: Mapping[str, Node]  # tensors that depend on the input and have no axis for its samples


@dataclass(frozen=True, slots=True)
class _Seen:
    """A tensor at the other batch, where it is not as at the source's."""

    type: onnx.TypeProto
    constant: Array | None = None
    place: Place | None = None
    live: bool = True  # whether it depends on the data, and not on its shape alone
    choices: Choices = frozenset()
    lost: Node | None = None


@dataclass(frozen=True, slots=True)
class _Option:
    """One way to take a node."""

    edits: tuple[Edit, ...]
    made: Mapping[str, _Seen]


@dataclass(slots=True)
class _Choice:
    """A node that can be taken in several ways: which of them is tried, and what the earlier ones ran into."""

    index: int
    options: Sequence[_Option]
    at: int = 0
    conflicts: Choices = frozenset()


def follow(
    graph: Graph, axes: Mapping[str, int], size: int, accept: Callable[[Found], Refusal | None]
) -> Found | Refusal:
    """Let the inputs' axes, all of one size, have any; the first way is returned that `accept` has nothing against.

    Outputs are wanted with the samples along their first axis, if that is as long as the batch was; or else (as in
    states of recurrent layers, of one direction) along another.
    """
    walk = _Walk(graph, axes, size)
    found = walk.search(accept)
    return _Walk(graph, axes, size, first=False).search(accept) if walk.elsewhere else found


class _Walk:
    def __init__(self, graph: Graph, axes: Mapping[str, int], size: int, *, first: bool = True) -> None:
        self.graph = graph
        self.first = first
        self.elsewhere = False  # whether an output was refused for its samples' axis, and nothing was found
        self.size = size
        self.other = OTHER[size == OTHER[0]]
        self.base = graph.inference.first
        self.done = Done()
        self.protos = {next(filter(None, node.output), ""): node for node in skeleton(graph.model)[0].graph.node}
        self.seen: dict[str, _Seen] = {}
        for value in graph.inputs:
            sizes = list(self.base.size(value.name) or ())
            place = None
            if value.name in axes:
                sizes[axes[value.name]] = self.other
                place = Place(axes[value.name])
            self.seen[value.name] = _Seen(self._typed(value.name, sizes), place=place)

    def search(self, accept: Callable[[Found], Refusal | None]) -> Found | Refusal:
        """Walk the nodes in order; go back to a choice where one refuses."""
        stack: list[_Choice] = []
        taken: dict[int, tuple[Edit, ...]] = {}
        furthest, told, trials = -1, Refusal(""), 0
        nodes, k = self.graph.nodes, 0
        for _ in range(STEPS + len(nodes)):
            while k < len(nodes) and not self._is_touched(nodes[k]):
                k += 1
            refusal: Refusal | None = None
            if k == len(nodes):
                found = self._found(taken)
                refusal = self._ends()
                if refusal is None:
                    trials += 1
                    if (refusal := accept(found)) is None:
                        self.elsewhere = False
                        return found
                    refusal = replace(refusal, choices=frozenset(choice.index for choice in stack))
            else:
                options = self._options(nodes[k])
                if isinstance(options, Refusal):
                    refusal = options
                else:
                    if len(options) > 1:
                        stack.append(_Choice(k, options))
                    self._take(k, options[0], taken, several=len(options) > 1)
                    k += 1
                    continue
            if k > furthest:
                furthest, told = k, refusal
            back = None if trials >= TRIALS else self._back(stack, taken, refusal.choices)
            if back is None:
                break
            k = back
        return told

    def _take(self, index: int, option: _Option, taken: dict[int, tuple[Edit, ...]], *, several: bool) -> None:
        for name, seen in option.made.items():
            self.seen[name] = replace(seen, choices=seen.choices | {index}) if several else seen
        taken[index] = option.edits

    def _back(self, stack: list[_Choice], taken: dict[int, tuple[Edit, ...]], conflicts: Choices) -> int | None:
        """Take the latest choice back that has to do with the conflict; the next node's index, None at the end."""
        while stack:
            choice = stack.pop()
            for node in self.graph.nodes[choice.index :]:
                taken.pop(node.index, None)
                for name in node.outputs:
                    self.seen.pop(name, None)
            if choice.index not in conflicts:
                continue
            choice.conflicts |= conflicts - {choice.index}
            choice.at += 1
            if choice.at < len(choice.options):
                stack.append(choice)
                self._take(choice.index, choice.options[choice.at], taken, several=True)
                return choice.index + 1
            conflicts = choice.conflicts | self._choices(self.graph.nodes[choice.index])
        return None

    def _found(self, taken: Mapping[int, tuple[Edit, ...]]) -> Found:
        edits = tuple(edit for index in sorted(taken) for edit in taken[index])
        places = {name: seen.place for name, seen in self.seen.items() if seen.place is not None}
        return Found(edits, places, {name: seen.lost for name, seen in self.seen.items() if seen.lost is not None})

    def _ends(self) -> Refusal | None:
        """What the model's outputs have against it."""
        per_sample = False
        for value in self.graph.outputs:
            seen = self.seen.get(value.name)
            sizes = self.base.size(value.name)
            if seen is None or not seen.live:
                continue
            per_sample |= seen.place is not None
            if self.first and seen.place is not None and seen.place.axis != 0 and sizes and sizes[0] == self.size:
                self.elsewhere = True
                return Refusal(f"output {value.name!r} has its samples along axis {seen.place.axis}.", seen.choices)
            if seen.place is None and seen.lost is not None and sizes and sizes[0] == self.size:
                return Refusal(
                    f"output {value.name!r} has {_rows(self.size)} whatever the batch: {seen.lost} "
                    "leaves nothing to tell the samples by.",
                    seen.choices,
                )
        if per_sample:
            return None
        lost = next((s.lost for v in self.graph.outputs if (s := self.seen.get(v.name)) is not None and s.lost), None)
        why = f": {lost} leaves nothing to tell the samples by" if lost else ""
        return Refusal(f"no output has something for each sample{why}.")

    # What a node can do

    def _options(self, node: Node) -> list[_Option] | Refusal:
        reshaped = self._seen(node.inputs[0]) if node.op in RESHAPES and not node.domain else None
        if reshaped is not None and reshaped.place is not None:
            return self._reshaped(node, reshaped.place)
        plain = self._judged(node, ())
        keeps = isinstance(plain, _Option) and not self._loses(node, plain)
        if isinstance(plain, _Option) and keeps:
            return [plain]
        options = []
        for edits in self._edits(node, refused=isinstance(plain, Refusal)):
            option = self._judged(node, edits)
            if isinstance(option, _Option) and not self._loses(node, option):
                options.append(option)
        if isinstance(plain, _Option):
            return [*options, plain]
        return options or plain

    def _loses(self, node: Node, option: _Option) -> bool:
        """Whether samples go in and none come out."""
        came = any(seen.place is not None and seen.live for seen in map(self._seen, node.inputs) if seen is not None)
        return came and any(seen.lost is not None for seen in option.made.values())

    def _edits(self, node: Node, *, refused: bool) -> Iterator[tuple[Edit, ...]]:
        """Other sizes, likelier ones first; then repeated constants, few ones first."""
        for at, name in enumerate(node.inputs):
            vector = self.base.constants.get(name) if name else None
            if vector is None or vector.dtype != np.int64 or vector.ndim != 1 or len(vector) > LONGEST:
                continue
            fits = [(v != self.size, i) for i, v in enumerate(vector) if 0 < v < ENDS and v % self.size == 0]
            for _, i in sorted(fits):
                sizes = [Size(number) for number in LITERALS.get(node.op, ())]
                if self.graph.opset >= NEEDS_NODES:
                    sizes.append(Size(times=int(vector[i]) // self.size))
                for size in sizes:
                    yield (Integers(node, at, ((i, size),)),)
        if not refused or self.graph.opset < NEEDS_NODES:
            return
        axes = [[None, *self._spreads(name)] if name else [None] for name in node.inputs]
        combinations = sorted(
            itertools.islice(itertools.product(*axes), COMBINATIONS), key=lambda c: len(c) - c.count(None)
        )
        for chosen in combinations[1:]:
            yield tuple(Spread(node, at, axis) for at, axis in enumerate(chosen) if axis is not None)

    def _spreads(self, name: str) -> list[int]:
        """The axes along which a constant is the same for every sample."""
        if (seen := self._seen(name)) is not None and (seen.live or seen.place is not None):
            return []
        sizes = self.base.size(name)
        if not sizes or self.size not in sizes:
            return []
        if self.size == 1:
            return [axis for axis, size in enumerate(sizes) if size == 1]
        value = self.graph.constant(name)
        if value is None:
            value = self._run(name)
        return [a for a, s in enumerate(sizes) if s == self.size and bool((value == value.take([0], a)).all())]

    def _run(self, name: str) -> Array:
        """What a large constant is; nothing that it is computed from is data."""
        from conet_onnx.runtime import random_feeds, run

        found: Array = run(self.graph, random_feeds(self.graph), [name], provider="cpu", optimise=False)[name]
        return found

    def _reshaped(self, node: Node, place: Place) -> list[_Option] | Refusal:
        """A batch keeps its stride; where it may lie thereby is known, up to axes of size one."""
        x = self._sizes_at(node.inputs[0])
        before, after = self.base.size(node.inputs[0]), self.base.size(node.outputs[0])
        if before is None or after is None or x is None:
            return Refusal(f"{node}: its shape is not known.", self._choices(node))
        stride = place.inner * math.prod(before[place.axis + 1 :])
        fits = []
        for axis, size in enumerate(after):
            inner, short = divmod(stride, max(math.prod(after[axis + 1 :]), 1))
            if not short and inner and size and size % (inner * self.size) == 0:
                fits.append(Place(axis, inner))

        def likelihood(found: Place) -> tuple[bool, bool, bool, int]:
            alone = after[found.axis] == self.size
            outermost = after[found.axis] == self.size * found.inner
            return not alone, not outermost, found.axis != place.axis, found.axis

        options = []
        for found in sorted(fits, key=likelihood):
            wanted = tuple(s // self.size * self.other if axis == found.axis else s for axis, s in enumerate(after))
            for edits in self._targets(node, wanted, found.axis):
                option = self._judged(node, edits, found)
                if isinstance(option, _Option) and self._sizes(option.made[node.outputs[0]].type) == wanted:
                    options.append(option)
                    break
        if options:
            return options
        return Refusal(
            f"{node} makes {list(after)} of {list(before)}: there is no one axis for the samples.", self._choices(node)
        )

    def _targets(self, node: Node, wanted: Sequence[int], axis: int) -> Iterator[tuple[Edit, ...]]:
        """As it is; or with a 0, a -1 or a computed size for the batch."""
        yield ()
        if node.op != "Reshape" or len(node.inputs) < 2:
            return
        target = self._constant_at(node.inputs[1])
        if target is None or target.ndim != 1 or len(target) != len(wanted):
            return
        x, static = self._sizes_at(node.inputs[0]) or (), self.graph.shape(node.outputs[0]) or ()
        others = [i for i in range(len(target)) if i != axis]
        copied = [(i, Size(wanted[i])) for i in others if target[i] == 0 and x[i] != wanted[i]]  # the batch, of one
        opened = [(i, Size(wanted[i])) for i in others if target[i] == -1 and static[i] is not None]
        yield (Integers(node, 1, ((axis, Size(0)),)),)  # whether it fits is judged by what comes of it
        yield (Integers(node, 1, (*copied, *opened, (axis, Size(-1)))),)
        if self.graph.opset >= NEEDS_NODES:
            yield (Integers(node, 1, (*copied, (axis, Size(times=wanted[axis] // self.other)))),)

    # What comes of it

    def _judged(self, node: Node, edits: Sequence[Edit], place: Place | None = None) -> _Option | Refusal:
        """The node's outputs under these edits, if every one is the source's but for the batch."""
        choices = self._choices(node)
        proto = onnx.NodeProto.FromString(self.protos[next(filter(None, node.outputs))].SerializeToString())
        types, constants = self._given(node, proto, edits)
        if isinstance(types, Refusal):
            return types
        wrong = settle(proto, self.graph.model, types, constants, self.done)
        wrong = _clash(node, [self._sizes(types[name]) if name in types else None for name in proto.input]) or wrong
        if wrong:
            return Refusal(f"{node} does not take another batch size: {wrong}", choices)
        live = node.op not in ("Shape", "Size") and any(
            seen.live for seen in map(self._seen, (*node.inputs, *node.captured)) if seen is not None
        )
        repeated = {edit.input: edit.axis for edit in edits if isinstance(edit, Spread)}
        given = [self._place_of(name, repeated.get(at)) for at, name in enumerate(node.inputs)]
        lost = next((s.lost for s in map(self._seen, node.inputs) if s is not None and s.lost is not None), node)
        made = {}
        for name in filter(None, node.outputs):
            seen = self._made(node, name, types.get(name), constants.get(name), given, place)
            if isinstance(seen, Refusal):
                return replace(seen, choices=choices)
            if seen is None:
                continue
            known = seen.constant is not None
            as_before = self.base.constants.get(name)
            if seen.constant is not None and as_before is not None and np.array_equal(seen.constant, as_before):
                continue
            gone = live and not known and seen.place is None and (any(given) or lost is not node)
            made[name] = replace(seen, live=live and not known, choices=choices, lost=lost if gone else None)
        return _Option(tuple(edits), made)

    def _given(
        self, node: Node, proto: onnx.NodeProto, edits: Sequence[Edit]
    ) -> tuple[dict[str, onnx.TypeProto] | Refusal, dict[str, Array]]:
        """Types and constants of what the node reads at the other batch; edited inputs get names of their own."""
        types: dict[str, onnx.TypeProto] = {}
        constants: dict[str, Array] = {}
        changed = {edit.input: edit for edit in edits}
        for at, name in enumerate(node.inputs):
            if not name:
                continue
            found, value, edit = self._type_at(name), self._constant_at(name), changed.get(at)
            if edit is not None:
                name = f"{name} {at}"
                proto.input[at] = name
            if found is None:
                return Refusal(f"{node} reads {name!r}, whose shape is not known.", self._choices(node)), {}
            if isinstance(edit, Spread):
                sizes = list(self._sizes(found) or ())
                sizes[edit.axis] = self.other
                found, value = helper.make_tensor_type_proto(found.tensor_type.elem_type, sizes), None
            elif edit is not None:
                assert value is not None  # an edit of integers is offered where they are known
                value = edit.at(value, self.other)
            types[name] = found
            if value is not None:
                constants[name] = value
        return types, constants

    def _made(
        self,
        node: Node,
        name: str,
        found: onnx.TypeProto | None,
        constant: Array | None,
        given: Sequence[Place | None],
        place: Place | None,
    ) -> _Seen | Refusal | None:
        """One output, held against the source's."""
        before, after = self.base.size(name), self._sizes(found)
        if found is None or after is None or before is None:
            if not self.graph.readings(name):
                return None
            return Refusal(f"{node}: the shape of what it makes is not known at another batch size.")
        seen = _Seen(found, constant)
        if len(before) != len(after):
            return Refusal(f"{node} makes {len(before)} axes, and {len(after)} at another batch size.")
        longer = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        if not longer:
            return seen
        axis, *more = longer
        if more:
            return Refusal(f"{node} has the batch in {len(longer)} axes: it combines samples with one another.")
        times, rest = divmod(before[axis], self.size)
        if rest or after[axis] != times * self.other:
            return Refusal(
                f"{node}: axis {axis} of {list(before)} is {after[axis]} long at batch {self.other}, and not "
                f"{before[axis] * self.other // self.size}."
            )
        if place is not None:
            return replace(seen, place=place) if place.axis == axis else Refusal(f"{node} moves the batch.")
        alike = (
            source.inner
            for source, reads in zip(given, node.inputs, strict=True)
            if source is not None and (sizes := self.base.size(reads)) and sizes[source.axis] == before[axis]
        )
        return replace(seen, place=Place(axis, next(alike, times)))

    def _place_of(self, name: str, repeated: int | None) -> Place | None:
        if repeated is not None:
            return Place(repeated)
        seen = self._seen(name)
        return seen.place if seen is not None else None

    # What is known of a tensor at the other batch

    def _seen(self, name: str) -> _Seen | None:
        return self.seen.get(name) if name else None

    def _is_touched(self, node: Node) -> bool:
        return any(name in self.seen for name in (*node.inputs, *node.captured))

    def _choices(self, node: Node) -> Choices:
        return Choices().union(*(s.choices for s in map(self._seen, (*node.inputs, *node.captured)) if s is not None))

    def _type_at(self, name: str) -> onnx.TypeProto | None:
        return seen.type if (seen := self._seen(name)) is not None else self.base.types.get(name)

    def _constant_at(self, name: str) -> Array | None:
        return seen.constant if (seen := self._seen(name)) is not None else self.base.constants.get(name)

    def _sizes_at(self, name: str) -> tuple[int, ...] | None:
        return self._sizes(self._type_at(name))

    def _sizes(self, found: onnx.TypeProto | None) -> tuple[int, ...] | None:
        if found is None or not found.tensor_type.HasField("shape"):
            return None
        dims = found.tensor_type.shape.dim
        return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None

    def _typed(self, name: str, sizes: Sequence[int]) -> onnx.TypeProto:
        made: onnx.TypeProto = helper.make_tensor_type_proto(self.base.types[name].tensor_type.elem_type, sizes)
        return made


def _clash(node: Node, sizes: Sequence[tuple[int, ...] | None]) -> str:
    """What onnx's shape inference does not look at: sizes that are summed over, and those of states."""
    check = _CLASHES.get(node.op) if not node.domain else None
    return check(node, sizes) if check is not None and all(s is not None for s in sizes[:2]) else ""


def _summed(node: Node, sizes: Sequence[Any]) -> str:
    a, b = sizes[0], sizes[1]
    if node.op == "Gemm":
        x, w = a[0 if node.attributes.get("transA", 0) else 1], b[1 if node.attributes.get("transB", 0) else 0]
    else:
        x, w = a[1], b[0] if node.op == "ConvTranspose" else b[1] * node.attributes.get("group", 1)
    return "" if x == w else f"its weight is for {w} inputs; samples would have to be summed over."


def _recurrent(node: Node, sizes: Sequence[Any]) -> str:
    x, layout = sizes[0], node.attributes.get("layout", 0)
    batch = x[0 if layout else 1]
    if x[2] != sizes[1][2]:
        return f"its weight is for {sizes[1][2]} inputs; samples would have to be summed over."
    for at, what in ((4, "lengths"), (5, "initial state"), (6, "initial cell state")):
        found = sizes[at] if at < len(sizes) else None
        if found is not None and found[0 if at == 4 or layout else 1] != batch:
            return f"its {what} {node.inputs[at]!r} has one for each of a fixed number of samples."
    return ""


_CLASHES: Mapping[str, Callable[[Node, Sequence[Any]], str]] = {
    **dict.fromkeys(("Gemm", "Conv", "ConvTranspose"), _summed),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}


def _rows(count: int) -> str:
    return "one row" if count == 1 else f"{count} rows"
