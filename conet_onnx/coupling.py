"""What may be resized: widths and all that changes along with each, what is frozen and why, the paths between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from conet_onnx.collecting import collector_paused
from conet_onnx.dims import Dim, Segment
from conet_onnx.errors import UsageError
from conet_onnx.folding import Findings, Use
from conet_onnx.graph import Graph
from conet_onnx.solving import Reason

__all__ = ["Coupling", "Frozen", "Link", "Member", "Width"]


@dataclass(frozen=True, slots=True)
class Member:
    """A place where a width appears: "out" is made by a contraction, "in" is summed by one, "channel" is neither."""

    tensor: str
    axis: int
    role: str


@dataclass(frozen=True, slots=True)
class Width:
    """A size that may change, with everything that changes along with it."""

    id: str
    name: str
    size: int
    min: int
    multiple: int
    mixed_by: tuple[str, ...]
    members: tuple[Member, ...]
    dim: Dim = field(compare=False, repr=False)

    @property
    def exact(self) -> bool:
        """Whether shrinking equals masking: no statistic is taken across the channels."""
        return not self.mixed_by


@dataclass(frozen=True, slots=True)
class Frozen:
    """A weight's axis that keeps its size, and why."""

    tensor: str
    axis: int
    size: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Link:
    """One step of a path: an axis of a tensor, and the node that ties it to the next (none after the last)."""

    tensor: str
    axis: int
    node: str | None


class Coupling(Findings):
    """The findings, read as widths."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.dropped: frozenset[Dim] = frozenset()

    def freeze(self, names: Iterable[str]) -> None:
        """Take widths out by id or name, or all that touch a tensor or a node. Raises UsageError for another name."""
        self.dropped = frozenset(_named(self, names))

    @cached_property
    def distinct_uses(self) -> tuple[Use, ...]:
        """The readings that a resize keeps apart: all, but for one alone of a weight in which nothing can change."""
        resizable = {u.tensor for u in self.every_use for s in u.shape if self.resizable & set(self.solver.leaves(s))}
        first = {u.tensor: u for u in reversed(self.every_use)}
        return tuple(u for u in self.every_use if u.tensor in resizable or first[u.tensor] is u)

    @cached_property
    def all_widths(self) -> Mapping[str, Width]:
        """Every width, those that --freeze took out included: ids are stable for the same file."""
        return _find_widths(self)

    @cached_property
    def widths(self) -> Mapping[str, Width]:
        """The widths that may change, by id, in the order in which the graph makes them."""
        return {i: w for i, w in self.all_widths.items() if w.dim not in self.dropped}

    @cached_property
    def frozen(self) -> tuple[Frozen, ...]:
        """Every weight axis longer than one without anything to resize in it, with the reason."""
        with collector_paused():
            return tuple(_find_frozen(self))

    @cached_property
    def resizable(self) -> frozenset[Dim]:
        """The dims of the widths."""
        return frozenset(w.dim for w in self.widths.values())

    def why(self, a: tuple[str, int], b: tuple[str, int]) -> tuple[Link, ...]:
        """The shortest path by which two axes, each (tensor, axis), are coupled; () where they are not."""
        import networkx as nx  # 0.1 s to import, and only explanations need it

        for dim in self._dims_at(*a):
            if dim not in self._dims_at(*b):
                continue
            graph = self._coupled(dim)
            if a in graph and b in graph and nx.has_path(graph, a, b):
                path = nx.shortest_path(graph, a, b)
                nodes = [graph.edges[u, v]["node"] for u, v in pairwise(path)]
                return tuple(
                    Link(tensor, axis, node) for (tensor, axis), node in zip(path, [*nodes, None], strict=True)
                )
        return ()

    def _dims_at(self, tensor: str, axis: int) -> tuple[Dim, ...]:
        shapes = [u.shape for u in self.every_use if u.tensor == tensor] or [self.shapes.get(tensor, ())]
        if not any(axis < len(shape) for shape in shapes):
            raise UsageError(f"{tensor!r} has no axis {axis} that is known; see `conet-onnx analyze`.")
        return tuple(d for shape in shapes for d in self.solver.leaves(shape[axis]))

    def _coupled(self, dim: Dim) -> Any:
        """The networkx graph of the axes that hold a dim: one edge for each node that two of them meet at."""
        import networkx as nx

        graph = nx.Graph()
        own = {(u.node, u.input): u for u in self.uses}
        for node in self.graph.nodes:
            places = []
            for k, name in enumerate((*node.inputs, *node.outputs)):
                use = own.get((node.index, k)) if k < len(node.inputs) else None
                tensor, shape = (use.tensor, use.shape) if use is not None else (name, self.shapes.get(name, ()))
                places += [(tensor, i) for i, s in enumerate(shape) if dim in self.solver.leaves(s)]
            for place in places[1:]:
                graph.add_edge(places[0], place, node=node.name)
        return graph


@collector_paused()
def _find_widths(coupling: Coupling) -> dict[str, Width]:
    solver = coupling.solver
    names: dict[Dim, str] = {}
    inner: dict[tuple[str, int], frozenset[Dim]] = {}
    contracted: set[str] = set()
    for facing in coupling.contractions:
        node = coupling.graph.nodes[facing.node]
        for part in facing.parts:
            inner[part.tensor, part.axis] = part.leaves
            contracted.add(part.tensor)
        # torch's exporter calls folded weights onnx::Conv_123; the node's name says more
        label = facing.parts[0].tensor if facing.parts and "::" not in facing.parts[0].tensor else node.name
        for segment in facing.contraction.produces:
            for dim, piece in _parts(coupling, segment):
                names.setdefault(dim, label.removesuffix(".weight") + piece)
    members: dict[Dim, dict[Member, None]] = {dim: {} for dim in names}
    for use in coupling.every_use:
        for axis, segment in enumerate(use.shape):
            for dim in solver.leaves(segment):
                if dim not in names:
                    continue
                summed = dim in inner.get((use.tensor, axis), ())
                role = "in" if summed else "out" if use.tensor in contracted else "channel"
                members[dim][Member(use.tensor, axis, role)] = None
    mixed: dict[Dim, dict[str, None]] = {}
    for node_index, segment in coupling.mixes:
        for dim in solver.leaves(segment):
            mixed.setdefault(dim, {})[coupling.graph.nodes[node_index].name] = None
    offered = [d for d in names if members[d] and not d.rigid and d.size[0] == d.size[1]]
    return {
        f"w{k}": Width(f"w{k}", names[d], d.size[0], 1, 1, tuple(mixed.get(d, ())), tuple(members[d]), d)
        for k, d in enumerate(offered)
    }


def _parts(coupling: Coupling, segment: Segment) -> Iterator[tuple[Dim, str]]:
    """The dims that an axis is made of, each with what tells it from the others: #k in a sum, ·k in a product."""
    pieces = coupling.axis(segment).segments
    for n, piece in enumerate(pieces):
        dims = coupling.solver.leaves(piece)
        for k, dim in enumerate(dims):
            yield dim, (f"#{n}" if len(pieces) > 1 else "") + (f"·{k}" if len(dims) > 1 else "")


def _find_frozen(coupling: Coupling) -> Iterator[Frozen]:
    for use in coupling.every_use:
        if not coupling.is_real(use.tensor):
            continue
        for axis, segment in enumerate(use.shape):
            leaves = set(coupling.solver.leaves(segment))
            if segment.size == (1, 1) or leaves & coupling.resizable:
                continue
            reason = coupling.solver.reason(segment)
            if leaves & coupling.dropped:
                reason = Reason("asked", use.tensor, "it was frozen by request")
            elif reason is None:
                reason = Reason(
                    "not made",
                    use.tensor,
                    "no convolution or matrix product makes it: there is nothing to resize it by",
                )
            yield Frozen(use.tensor, axis, segment.size[0], reason)


def _named(coupling: Coupling, names: Iterable[str]) -> Iterator[Dim]:
    """The dims that --freeze names: by width id or name, by tensor, or by node."""
    nodes = {node.name: node for node in coupling.graph.nodes}
    for name in names:
        found = [w.dim for w in coupling.all_widths.values() if name in (w.id, w.name)]
        tensors = {name, *(nodes[name].outputs if name in nodes else ())}
        for use in coupling.every_use:
            if use.tensor == name or (name in nodes and use.tensor in nodes[name].inputs):
                found += [d for s in use.shape for d in coupling.solver.leaves(s)]
        found += [d for t in tensors for s in coupling.shapes.get(t, ()) for d in coupling.solver.leaves(s)]
        if not found and name not in nodes and name not in coupling.shapes:
            raise UsageError(f"--freeze {name!r}: no width, tensor or node has this name; see `conet-onnx analyze`.")
        yield from found
