"""Which axes a node ties to each other by itself, and the paths that such ties make through a graph.

A node's rule is asked once more, about axes of which nothing else is known: what is equal then is equal because of
this node. A convolution between two tensors of one width, which an addition elsewhere makes equal, ties neither to the
other, and no path leads through it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from conet_onnx.collecting import collector_paused
from conet_onnx.dims import Dim, Segment, product
from conet_onnx.errors import UsageError
from conet_onnx.folding import Findings
from conet_onnx.graph import Node
from conet_onnx.rules import Op, Opaque, Shape, find_rule, fixed
from conet_onnx.solving import Conflict, Reason, Solver

__all__ = ["Axes", "Link", "Ties"]

Axes = Collection[tuple[str, int]]  # each a tensor and the number of its axis


@dataclass(frozen=True, slots=True)
class Link:
    """One step of a path: an axis of a tensor, and the node that ties it to the next (none after the last)."""

    tensor: str
    axis: int
    node: str | None


class _Place(NamedTuple):
    """An axis of a tensor; a scale or bias has axes of its own at each of its readers."""

    tensor: str
    axis: int
    reader: int = -1


_Groups = tuple[tuple[_Place, ...], ...]  # a place that stands twice in one is tied to itself: its parts are


class Ties:
    """The axes at every node of some findings, and the paths between them."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._own = {(use.node, use.input): use for use in findings.uses}
        self._readings: dict[str, list[tuple[int, Shape]]] = {}
        for use in findings.uses:
            self._readings.setdefault(use.tensor, []).append((use.node, use.shape))
        self._groups: dict[int, _Groups] = {}

    def readings(self, tensor: str) -> tuple[tuple[int, Shape], ...]:
        """A tensor's axes; of a scale or bias those at each reader, with the reader; () where they are not followed."""
        known = self._findings.shapes.get(tensor)
        return (*self._readings.get(tensor, ()), *(() if known is None else ((-1, known),)))

    def at(self, tensor: str, axis: int) -> tuple[Segment, ...]:
        """An axis, once for each reading. Raises UsageError where there is no such axis."""
        found = tuple(shape[axis] for _, shape in self.readings(tensor) if 0 <= axis < len(shape))
        if not found:
            raise UsageError(f"{tensor!r} has no axis {axis} that is known; see `conet-onnx analyze`.")
        return found

    def along(self, dim: Dim, starts: Axes, ends: Axes) -> tuple[Link, ...]:
        """The shortest path from one of some axes to one of others, over axes that hold a dim; () where none is."""

        def holds(segment: Segment) -> bool:
            return dim in self._findings.solver.leaves(segment)

        return self._path(starts, lambda place: (place.tensor, place.axis) in ends, holds)

    def origin(self, tensor: str, axis: int, reason: Reason) -> tuple[Link, ...]:
        """The shortest path from a frozen axis to the node or value that its reason names; () where none is known."""
        solver, graph = self._findings.solver, self._findings.graph
        blamed = {name for n in graph.nodes if reason.node in (n.name, str(n)) for name in _values(n)} or {reason.node}
        measured = {place for name in blamed for place in self._findings.region.reads.get(name, ())}

        def is_end(place: _Place) -> bool:
            return place.tensor in blamed or (place.tensor, place.axis) in measured

        return self._path({(tensor, axis)}, is_end, lambda segment: solver.reason(segment) == reason)

    @collector_paused()
    def _path(
        self, starts: Axes, is_end: Callable[[_Place], bool], holds: Callable[[Segment], bool]
    ) -> tuple[Link, ...]:
        """The shortest path over places whose axis passes `holds`.

        A path never takes two ties of one node in turn: Split ties each piece to the whole, and none to another.
        A Reshape of a sum to equal rows does tie the parts of the sum: there a path steps from an axis to itself.
        Where the nodes by themselves leave a gap, places that meet at a node count as tied.
        """
        nodes = self._findings.graph.nodes
        begin = [
            _Place(tensor, axis, reader)
            for tensor, axis in dict.fromkeys(starts)
            for reader, shape in self.readings(tensor)
            if axis < len(shape) and holds(shape[axis])
        ]
        if (alone := next(filter(is_end, begin), None)) is not None:
            return (Link(alone.tensor, alone.axis, None),)
        meeting = {
            node.index: found
            for node in nodes
            if len(found := tuple(dict.fromkeys(p for p, s in self._places(node) if holds(s)))) > 1
        }
        tied = {index: _within(self._tied(nodes[index]), places) for index, places in meeting.items()}
        path = _shortest(tied, begin, is_end) or _shortest({i: (p,) for i, p in meeting.items()}, begin, is_end)
        return tuple(Link(p.tensor, p.axis, None if i is None else nodes[i].name) for p, i in path)

    def _places(self, node: Node) -> Iterator[tuple[_Place, Segment]]:
        """The axes that a node reads and makes, with what is known of them."""
        for tensor, reader, shape in self._values(node):
            for axis, segment in enumerate(shape or ()):
                yield _Place(tensor, axis, reader), segment

    def _values(self, node: Node) -> Iterator[tuple[str, int, Shape | None]]:
        """What a node reads and makes: tensor, whose reading it is, axes (None where they are not followed)."""
        for k, name in enumerate((*node.inputs, *node.outputs)):
            use = self._own.get((node.index, k)) if k < len(node.inputs) else None
            if use is not None:
                yield use.tensor, node.index, use.shape
            else:
                yield name, -1, self._findings.shapes.get(name)

    def _tied(self, node: Node) -> _Groups:
        """The places that a node ties together, whatever the rest of the graph does; () where it has no rule."""
        if node.index not in self._groups:
            try:
                self._groups[node.index] = tuple(self._ask(node))
            except (Opaque, Conflict, IndexError, ValueError):  # the fold has frozen what such a node reads
                self._groups[node.index] = ()
        return self._groups[node.index]

    def _ask(self, node: Node) -> Iterator[tuple[_Place, ...]]:
        findings, rule = self._findings, find_rule(node)
        if rule is None or node.index in findings.region.nodes:
            return
        values = tuple(self._values(node))
        fresh = {(tensor, reader): _fresh(tensor, shape) for tensor, reader, shape in values if shape is not None}
        read = [fresh.get(value[:2]) or self._constant(value[0]) for value in values[: len(node.inputs)]]
        while read and read[-1] is None:
            read.pop()
        facts = rule(Op(node, findings.graph, findings.region.origins, findings.shapes), *read)
        solver = Solver()
        for left, right in facts.equal:
            solver.equate(left, right, str(node))
        made = {(name, -1): shape for name, shape in zip(node.outputs, facts.outputs, strict=False) if name and shape}
        tied: dict[Dim, list[_Place]] = {}
        for (tensor, reader), shape in (fresh | made).items():
            for axis, segment in enumerate(shape):
                for part in solver.resolve(segment).segments:
                    for dim in solver.leaves(part):
                        tied.setdefault(dim, []).extend([_Place(tensor, axis, reader)] * (1 if part.lone else 2))
        yield from dict.fromkeys(tuple(places) for places in tied.values() if len(places) > 1)

    def _constant(self, name: str) -> Shape | None:
        sizes = self._findings.graph.sizes(name) if name else None
        return None if sizes is None else fixed(name, sizes)


def _values(node: Node) -> tuple[str, ...]:
    return tuple(name for name in (*node.inputs, *node.captured, *node.outputs) if name)


def _fresh(tensor: str, shape: Shape) -> Shape:
    """Axes of the same sizes of which nothing is known."""
    return tuple(product(Dim(f"{tensor}[{i}]", s.size, rigid=s.size[0] != s.size[1])) for i, s in enumerate(shape))


def _within(groups: _Groups, places: Collection[_Place]) -> _Groups:
    kept = (tuple(p for p in group if p in places) for group in groups)
    return tuple(group for group in kept if len(group) > 1)


def _shortest(
    tied: Mapping[int, _Groups], starts: Iterable[_Place], is_end: Callable[[_Place], bool]
) -> list[tuple[_Place, int | None]]:
    """Places, each with the index of the node after it."""
    import networkx as nx  # 0.1 s to import, and only explanations need it

    at: dict[_Place, list[tuple[int, tuple[_Place, ...]]]] = {}
    for index, groups in tied.items():
        for group in groups:
            for place in dict.fromkeys(group):
                at.setdefault(place, []).append((index, group))
    graph = nx.DiGraph()  # its vertices are places, each as one node reaches it
    graph.add_edges_from(("start", (place, None)) for place in starts)
    for place, around in at.items():
        for reached_by in dict.fromkeys((None, *(index for index, _ in around))):
            here = (place, reached_by)
            if is_end(place):
                graph.add_edge(here, "end")
                continue
            for index, group in around:
                if index != reached_by:
                    others = group if group.count(place) > 1 else (other for other in group if other != place)
                    graph.add_edges_from((here, (other, index)) for other in others)
    try:
        states = nx.shortest_path(graph, "start", "end")[1:-1]
    except (nx.NodeNotFound, nx.NetworkXNoPath):
        return []
    return [(here[0], after[1]) for here, after in pairwise([*states, (None, None)])]
