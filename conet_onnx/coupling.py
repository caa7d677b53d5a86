"""What may be resized: widths and all that changes along with each, what is frozen and why, the paths between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from conet_onnx.collecting import collector_paused
from conet_onnx.dims import Dim, Segment
from conet_onnx.errors import UsageError
from conet_onnx.folding import Findings, Use
from conet_onnx.graph import Graph
from conet_onnx.growing import Growth, find_growth
from conet_onnx.solving import Reason
from conet_onnx.ties import Link, Ties

__all__ = ["Coupling", "Frozen", "Link", "Member", "Width"]


@dataclass(frozen=True, slots=True)
class Member:
    """A place where a width appears: "out" is made by a contraction, "in" is summed by one, "channel" is neither."""

    tensor: str
    axis: int
    role: str


@dataclass(frozen=True, slots=True)
class Width:
    """A size that may change, with everything that changes along with it.

    With a `max` it cannot grow beyond that, and `limit` says why.
    """

    id: str
    name: str
    size: int
    min: int
    multiple: int
    mixed_by: tuple[str, ...]
    members: tuple[Member, ...]
    dim: Dim = field(compare=False, repr=False)
    max: int | None = None
    limit: str = field(default="", compare=False)

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


class Coupling(Findings):
    """The findings, read as widths."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.dropped: frozenset[Dim] = frozenset()

    def freeze(self, names: Iterable[str]) -> None:
        """Take widths out by id or name, or all that touch a tensor or a node. Raises UsageError for another name."""
        wanted = tuple(names)
        self.dropped = frozenset(_named(self, wanted)) if wanted else frozenset()

    @cached_property
    def distinct_uses(self) -> tuple[Use, ...]:
        """The readings that a resize keeps apart: all, but for one alone of a weight in which nothing can change."""
        fixed, leaves = self.resizable.isdisjoint, self.solver.leaves
        resizable = {u.tensor for u in self.every_use for s in u.shape if s.dims and not fixed(leaves(s))}
        first = {u.tensor: u for u in reversed(self.every_use)}
        return tuple(u for u in self.every_use if u.tensor in resizable or first[u.tensor] is u)

    @cached_property
    def _offered(self) -> tuple[Mapping[str, Width], Growth]:
        return _find_widths(self)

    @property
    def all_widths(self) -> Mapping[str, Width]:
        """Every width, those that --freeze took out included: ids are stable for the same file."""
        return self._offered[0]

    @property
    def growth(self) -> Growth:
        """What keeps widths from growing, and which are shared between two activations when they grow."""
        return self._offered[1]

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

    @cached_property
    def settled(self) -> tuple[tuple[int, int], ...]:
        """Inputs, each of a node, at which a number that was computed from a width becomes a constant."""
        nodes, reads = self.graph.nodes, self.region.reads

        def follows(name: str) -> bool:
            sizes = (self.shapes[tensor][axis] for tensor, axis in reads[name] if tensor in self.shapes)
            return any(self.resizable.intersection(self.solver.leaves(size)) for size in sizes)

        return tuple((node, k) for node, k in self.numbers if follows(nodes[node].inputs[k]))

    @cached_property
    def ties(self) -> Ties:
        """What ties one axis to another, node by node."""
        return Ties(self)

    @cached_property
    def ids(self) -> Mapping[Dim, str]:
        """The id of each dim that is a width, those that --freeze took out included."""
        return {width.dim: width.id for width in self.all_widths.values()}

    def obstacle(self, tensor: str, segment: Segment) -> Reason:
        """Why an axis of a tensor, which holds nothing to resize, keeps its size."""
        if self.dropped.intersection(self.solver.leaves(segment)):
            return Reason("asked", tensor, "it was frozen by request")
        nothing = "no convolution or matrix product makes it: there is nothing to resize it by"
        return self.solver.reason(segment) or Reason("not made", tensor, nothing)

    def why(self, a: tuple[str, int], b: tuple[str, int]) -> tuple[Link, ...]:
        """The shortest path by which two axes, each (tensor, axis), are coupled; () where they are not."""
        there = self.dims_at(*b)
        paths = (self.ties.along(dim, {a}, {b}) for dim in dict.fromkeys(self.dims_at(*a)) if dim in there)
        return min(filter(None, paths), key=len, default=())

    def dims_at(self, tensor: str, axis: int) -> tuple[Dim, ...]:
        """The unbound dims of an axis, at all of its readers. Raises UsageError where there is no such axis."""
        return tuple(dim for segment in self.ties.at(tensor, axis) for dim in self.solver.leaves(segment))


@collector_paused()
def _find_widths(coupling: Coupling) -> tuple[dict[str, Width], Growth]:
    solver = coupling.solver
    names: dict[Dim, str] = {}
    inner: dict[tuple[str, int], frozenset[Dim]] = {}
    contracted: set[str] = set()
    made: list[tuple[int, str, Segment]] = []
    for facing in coupling.contractions:
        for part in facing.parts:
            inner[part.tensor, part.axis] = part.leaves
            contracted.add(part.tensor)
        # torch's exporter calls folded weights onnx::Conv_123; the node's name says more
        named = facing.parts and "::" not in facing.parts[0].tensor
        label = facing.parts[0].tensor if named else coupling.graph.nodes[facing.node].name
        made += ((facing.node, label, segment) for segment in facing.contraction.produces)
    made += ((node, coupling.graph.nodes[node].inputs[0], segment) for node, segment in coupling.makes)
    for _, label, segment in sorted(made, key=lambda one: one[0]):
        for dim, piece in _parts(coupling, segment):
            names.setdefault(dim, label.removesuffix(".weight") + piece)
    members: dict[Dim, dict[Member, None]] = {dim: {} for dim in names}
    for use in coupling.every_use:
        for axis, segment in enumerate(use.shape):
            if not segment.dims:
                continue
            here = inner.get((use.tensor, axis), frozenset())
            summed = Member(use.tensor, axis, "in")
            other = Member(use.tensor, axis, "out" if use.tensor in contracted else "channel")
            for dim in solver.leaves(segment):  # hundreds, where layers are joined
                if dim in members:
                    members[dim][summed if dim in here else other] = None
    mixed: dict[Dim, dict[str, None]] = {}
    for node_index, segment in coupling.mixes:
        for dim in solver.leaves(segment):
            mixed.setdefault(dim, {})[coupling.graph.nodes[node_index].name] = None

    offered = [d for d in names if members[d] and not d.rigid and d.size[0] == d.size[1]]
    growth = find_growth(coupling, frozenset(offered))
    widths = {}
    for k, d in enumerate(offered):
        by, largest = tuple(mixed.get(d, ())), d.size[0] if d in growth.limits else None
        limit = growth.limits.get(d, "")
        widths[f"w{k}"] = Width(f"w{k}", names[d], d.size[0], 1, 1, by, tuple(members[d]), d, largest, limit)
    return widths, growth


def _parts(coupling: Coupling, segment: Segment) -> Iterator[tuple[Dim, str]]:
    """The dims that an axis is made of, each with what tells it from the others: #k in a sum, ·k in a product."""
    pieces = coupling.axis(segment).segments
    for n, piece in enumerate(pieces):
        dims = coupling.solver.leaves(piece)
        for k, dim in enumerate(dims):
            yield dim, (f"#{n}" if len(pieces) > 1 else "") + (f"·{k}" if len(dims) > 1 else "")


def _find_frozen(coupling: Coupling) -> Iterator[Frozen]:
    fixed, leaves = coupling.resizable.isdisjoint, coupling.solver.leaves
    for use in coupling.every_use:
        for axis, segment in enumerate(use.shape):
            if segment.size != (1, 1) and coupling.is_real(use.tensor) and fixed(leaves(segment)):
                yield Frozen(use.tensor, axis, segment.size[0], coupling.obstacle(use.tensor, segment))


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
