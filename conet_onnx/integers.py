"""Follow integers that a model computes from shapes: which axis each element came from.

Exporters write `x.view(x.shape[0], -1)` as Shape, Gather, Unsqueeze, Concat, Reshape. The nodes between Shape and the
consumer form the integer region; it runs inside the deployed model, and so it follows a resized tensor by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from conet_onnx.graph import Graph, Node
from conet_onnx.rules.registry import Origin, flat_integers
from conet_onnx.shapes import SMALL

__all__ = ["Region", "trace"]

Reads = frozenset[tuple[str, int]]  # axes, each a tensor's
FEW = 8  # elements: of more, many are alike
BEGINNINGS = frozenset({"Shape", "Size"})
MOVING = frozenset({"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"})
KEEPING = frozenset({"Cast", "Identity", "Unsqueeze", "Squeeze", "Concat"})  # their outputs have all of their elements


@dataclass(frozen=True, slots=True)
class Region:
    """The nodes that compute with shapes, the source of each element they make, and whose shapes each value reads.

    `outside` are all other nodes but those that hold a constant, in their order; `measured` are the values whose shapes
    are read; `makers` is the node of each value of the region. Sources and reads are found when they are asked for: of
    most values, which are on their way to a Reshape or a Slice whose target is known, nobody does.
    """

    nodes: frozenset[int]
    outside: tuple[Node, ...]
    measured: frozenset[str]
    makers: Mapping[str, Node]
    origins: Mapping[str, tuple[Origin, ...]]
    reads: Mapping[str, Reads]


def trace(graph: Graph) -> Region:
    """Find the integer region: Shape and Size, and what reads nothing but them and constants."""
    nodes: list[int] = []
    outside: list[Node] = []
    measured: list[str] = []
    makers: dict[str, Node] = {}
    followed = makers.keys()
    for node in graph.computing:
        begins = node.op in BEGINNINGS
        if (not begins and followed.isdisjoint(node.inputs)) or node.domain or node.has_subgraph:
            outside.append(node)
            continue
        if begins:
            measured.append(node.inputs[0])
        elif not _is_followed(node, graph, makers):
            outside.append(node)
            continue
        nodes.append(node.index)
        for name in node.outputs:
            if name:
                makers[name] = node
    following = _Following(graph, makers)
    origins, reads = (
        _Late(makers, following.origins, following.follow),
        _Late(makers, following.reads, following.follow),
    )
    return Region(frozenset(nodes), tuple(outside), frozenset(measured), makers, origins, reads)


def _is_followed(node: Node, graph: Graph, makers: Container[str]) -> bool:
    """Whether a node reads nothing but constants beside what is followed, and makes integers of them.

    It does not where integers say where some numbers go that are not integers themselves, as in a table of positions,
    an Expand of a token or zeros to start from: its rule is asked.
    """
    shapes_weights = node.op == "ConstantOfShape" or (node.op in ("Expand", "Reshape") and node.inputs[0] not in makers)
    for name in node.inputs:
        if not name or name in makers:
            continue
        value = graph.constant(name)
        if value is None:
            return False
        if value.size > 1 and value.dtype.kind not in "iub":
            shapes_weights = True
    if not shapes_weights:
        return True
    dtype = graph.dtype(node.outputs[0])
    return dtype is None or dtype.kind in "iub"


T = TypeVar("T")


class _Late(Mapping[str, T]):
    """What is known of each followed value, found when it is asked for."""

    def __init__(self, makers: Mapping[str, Node], known: Mapping[str, T], follow: Callable[[str], None]) -> None:
        self._makers = makers
        self._known = known
        self._follow = follow

    def __getitem__(self, name: str) -> T:
        if name not in self._known:
            self._follow(name)
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class _Following:
    """Sources and reads of the values that somebody asked for, and of those that they are made of."""

    def __init__(self, graph: Graph, makers: Mapping[str, Node]) -> None:
        self.origins: dict[str, tuple[Origin, ...]] = {}
        self.reads: dict[str, Reads] = {}
        self._graph = graph
        self._makers = makers
        self._counted: set[str] = set()  # values of which no size says how many elements there are
        self._axes: dict[str, tuple[tuple[tuple[str, int], ...], Reads]] = {}  # of what Shape and Size read

    def follow(self, name: str) -> None:
        """Find what a value is made of, in the order of the nodes: chains of them may be long. Raises KeyError."""
        wanted = {self._makers[name].index: self._makers[name]}
        pending = [*self._makers[name].inputs]
        makers, reads = self._makers, self.reads
        while pending:
            name = pending.pop()
            if name in reads or name not in makers:
                continue
            node = makers[name]
            if node.index not in wanted:
                wanted[node.index] = node
                pending.extend(node.inputs)
        for index in sorted(wanted):
            self._visit(wanted[index])

    def _visit(self, node: Node) -> None:
        graph, origins, reads = self._graph, self.origins, self.reads
        found: tuple[Origin, ...] | None
        followed = [name for name in node.inputs if name in reads]
        if node.op in BEGINNINGS:
            found, touched = self._begun(node)
            counted = True
        else:
            found = _move(node, graph, origins)
            touched = _computed(*(found if found and node.op not in KEEPING else [reads[name] for name in followed]))
            counted = found is not None and self._counted.issuperset(followed)
        for name in node.outputs:
            if name:
                origins[name] = _unknown(name, graph, touched) if found is None else found
                reads[name] = touched
                if counted or graph.sizes(name) == ():
                    self._counted.add(name)

    def _begun(self, node: Node) -> tuple[tuple[Origin, ...], Reads]:
        """What Shape or Size makes, and the axes whose sizes it reads."""
        name = node.inputs[0]
        sizes = self._graph.sizes(name) or ()
        if name in self.reads:
            elements = self.origins[name]
            if len(sizes) == 1 and node.op == "Shape" and not node.attributes and elements and name in self._counted:
                return (len(elements),), Reads()  # how many there are in a row of them, which no resize adds to
            touched = self.reads[name]  # Range(0, C) has C elements
            shown = range(len(sizes))[node.attributes.get("start", 0) : node.attributes.get("end", len(sizes))]
            return (touched,) * (len(shown) if node.op == "Shape" else 1), touched
        if name not in self._axes:
            every = tuple([(name, axis) for axis in range(len(sizes))])
            self._axes[name] = every, Reads(every)
        axes, touched = self._axes[name]
        if node.op == "Size":
            return (touched,), touched
        if node.attributes:  # from opset 15 on
            axes = axes[node.attributes.get("start", 0) : node.attributes.get("end", len(axes))]
            touched = Reads(axes)
        return axes, touched


def _unknown(name: str, graph: Graph, touched: Reads) -> tuple[Origin, ...]:
    """As many elements that are computed as a value has; none where it has no fixed number of them."""
    sizes = graph.sizes(name)
    if sizes is None:
        return ()
    count = 1
    for a, b in sizes:
        if a != b:
            return ()
        count *= a
    return (touched,) * count if count <= SMALL else ()


def _move(node: Node, graph: Graph, origins: Mapping[str, tuple[Origin, ...]]) -> tuple[Origin, ...] | None:
    """The sources of a node's elements, where the node only moves one-dimensional integers about."""
    if len(node.outputs) != 1:
        return None
    if () in [origins.get(name) for name in node.inputs]:
        return None  # how many there are is not known
    if node.op in MOVING:
        return _sources(node.inputs[0], graph, origins)
    move = _MOVES.get(node.op)
    if move is None:
        return None
    for name in node.inputs:
        sizes = graph.sizes(name) if name else None
        if sizes is not None and len(sizes) > 1:
            return None  # in tables neither an axis nor a place among the elements is what it is in a vector
    return move(node, graph, origins)


def _filled(node: Node, graph: Graph, origins: Mapping[str, tuple[Origin, ...]]) -> tuple[Origin, ...] | None:
    value = graph.constant(node.outputs[0])
    settled = all(isinstance(origin, int) for origin in _sources(node.inputs[0], graph, origins))
    return flat_integers(value) if value is not None and settled else None


def _joined(node: Node, graph: Graph, origins: Mapping[str, tuple[Origin, ...]]) -> tuple[Origin, ...]:
    return tuple(chain.from_iterable([_sources(name, graph, origins) for name in node.inputs]))


def _picked(node: Node, graph: Graph, origins: Mapping[str, tuple[Origin, ...]]) -> tuple[Origin, ...] | None:
    indices = _constant(node, 1, graph)
    if indices is None:
        return None
    items = _sources(node.inputs[0], graph, origins)
    try:
        return tuple([items[i] for i in indices])
    except IndexError:
        return None


def _cut(node: Node, graph: Graph, origins: Mapping[str, tuple[Origin, ...]]) -> tuple[Origin, ...] | None:
    if node.since < 10:
        return None
    start, end, step = [_constant(node, k, graph) for k in (1, 2, 4)]
    if start is None or end is None:
        return None
    return _sources(node.inputs[0], graph, origins, slice(start[0], end[0], step[0] if step else 1))


def _sources(
    name: str, graph: Graph, origins: Mapping[str, tuple[Origin, ...]], part: slice = slice(None)
) -> tuple[Origin, ...]:
    """What an input's elements are, or those of a part of it: where they come from, or literals."""
    found = origins.get(name)
    if found is not None:
        return found[part]
    value = graph.constant(name)
    if value is None:
        return ()
    elements = value.ravel()[part]  # first: tables of positions have thousands
    # Those that are no integers scale a size, say: no literals that could be edited
    return flat_integers(elements) if value.dtype.kind in "iub" else (Reads(),) * elements.size


def _constant(node: Node, index: int, graph: Graph) -> tuple[int, ...] | None:
    value = graph.constant(node.inputs[index]) if index < len(node.inputs) and node.inputs[index] else None
    return None if value is None else flat_integers(value)


def _equal(a: Origin, b: Origin) -> Origin:
    if isinstance(a, int):
        if isinstance(b, int):
            return int(a == b)
        a, b = b, a
    never = isinstance(a, tuple) and isinstance(b, int) and b < 1  # an axis is one long, at the least
    return 0 if never else _computed(a, b)


def _where(condition: Origin, a: Origin, b: Origin) -> Origin:
    return (a if condition else b) if isinstance(condition, int) else _computed(condition, a, b)


def _product(a: Origin, b: Origin) -> Origin:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return b if a == 1 else a if b == 1 else _computed(a, b)


def _computed(*of: Origin) -> Reads:
    """The axes whose sizes elements depend on: of hundreds, most are alike."""
    few = of[:1] if len(of) > 1 and of.count(of[0]) == len(of) else of if len(of) <= FEW else set(of)
    different = [origin for origin in few if not isinstance(origin, int)]
    if len(different) == 1 and isinstance(different[0], frozenset):
        return different[0]
    return Reads().union(*[origin if isinstance(origin, frozenset) else (origin,) for origin in different])


_ELEMENTWISE: Mapping[str, Callable[..., Origin]] = {
    "Equal": _equal,
    "Where": _where,
    "Mul": _product,
    **dict.fromkeys(("Add", "Sub", "Div", "Mod", "Max", "Min", "Neg", "Floor", "Ceil", "Sqrt", "Pow"), _computed),
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not"), _computed),
}


def _each(node: Node, graph: Graph, origins: Mapping[str, tuple[Origin, ...]]) -> tuple[Origin, ...] | None:
    """The operator's sources element by element, as in `Where(target == -1, 1, target)`, which asks for an Expand."""
    operands = [_sources(name, graph, origins) for name in node.inputs]
    combined = _ELEMENTWISE[node.op]
    length = max(map(len, operands))
    whole = [items if len(items) == length else items * length if len(items) == 1 else () for items in operands]
    if length and () in whole:
        return None
    if length <= FEW:
        return tuple(map(combined, *whole))
    made: dict[tuple[Origin, ...], Origin] = {}
    found = []
    for items in zip(*whole, strict=True):  # of hundreds, most are alike
        if items not in made:
            made[items] = combined(*items)
        found.append(made[items])
    return tuple(found)


_MOVES: Mapping[str, Callable[[Node, Graph, Mapping[str, tuple[Origin, ...]]], tuple[Origin, ...] | None]] = {
    **dict.fromkeys(_ELEMENTWISE, _each),
    "ConstantOfShape": _filled,
    "Concat": _joined,
    "Gather": _picked,
    "Slice": _cut,
}
