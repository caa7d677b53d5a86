"""Follow integers that a model computes from shapes: which axis each element came from.

Exporters write `x.view(x.shape[0], -1)` as Shape, Gather, Unsqueeze, Concat, Reshape. The nodes between Shape and the
consumer form the integer region; it runs inside the deployed model, and so it follows a resized tensor by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conet_onnx.graph import Graph, Node
from conet_onnx.rules.registry import Origin
from conet_onnx.shapes import SMALL

__all__ = ["Region", "trace"]

Reads = frozenset[tuple[str, int]]  # axes, each a tensor's


@dataclass(frozen=True, slots=True)
class Region:
    """The nodes that compute with shapes, the source of each element they make, and whose shapes each value reads."""

    nodes: frozenset[int]
    origins: Mapping[str, tuple[Origin, ...]]
    reads: Mapping[str, Reads]


def trace(graph: Graph) -> Region:
    """Find the integer region: Shape and Size, and what reads nothing but them and constants."""
    nodes: set[int] = set()
    origins: dict[str, tuple[Origin, ...]] = {}
    reads: dict[str, Reads] = {}
    for node in graph.nodes:
        begins = node.op in ("Shape", "Size")
        if node.domain or (not begins and reads.keys().isdisjoint(node.inputs)):
            continue
        if node.has_subgraph or _shapes_weights(node, graph, reads):
            continue
        if _counts_integers(node, graph, origins):
            found: tuple[Origin, ...] | None = (len(origins[node.inputs[0]]),)  # which no resize adds to
            touched: Reads = frozenset()
        elif begins:
            sizes = graph.sizes(node.inputs[0])
            rank = len(sizes) if sizes is not None else 0
            part = slice(
                node.attributes.get("start", 0), node.attributes.get("end", rank)
            )  # of Shape, from opset 15 on
            axes = tuple((node.inputs[0], axis) for axis in range(rank)[part])
            touched = frozenset(axes)
            found = axes if node.op == "Shape" else (touched,)
        elif all(not name or name in reads or graph.constant(name) is not None for name in node.inputs):
            found = _move(node, graph, origins)
            touched = Reads().union(*(reads.get(name, ()) for name in node.inputs))
        else:
            continue
        for name in node.outputs:
            origins[name] = found if found is not None else _unknown(name, graph, touched)
            reads[name] = Reads().union(*map(_touched, found)) if found else touched
        nodes.add(node.index)
    return Region(frozenset(nodes), origins, reads)


def _touched(origin: Origin) -> Reads:
    """The axes whose sizes an element depends on."""
    return frozenset((origin,)) if isinstance(origin, tuple) else Reads() if isinstance(origin, int) else origin


def _unknown(name: str, graph: Graph, touched: Reads) -> tuple[Origin, ...]:
    """As many elements that are computed as a value has; none where it has no fixed number of them."""
    sizes = graph.sizes(name)
    if sizes is None or any(a != b for a, b in sizes):
        return ()
    count = math.prod(a for a, _ in sizes)
    return (touched,) * count if count <= SMALL else ()


def _counts_integers(node: Node, graph: Graph, origins: Mapping[str, tuple[Origin, ...]]) -> bool:
    """Whether a node reads how many integers there are in a row of them."""
    if node.op != "Shape" or node.attributes:
        return False
    return bool(origins.get(node.inputs[0])) and len(graph.sizes(node.inputs[0]) or ()) == 1


def _shapes_weights(node: Node, graph: Graph, reads: Container[str]) -> bool:
    """Whether integers say where some numbers go that are not integers themselves, as in a table of positions, an
    Expand of a token or zeros to start from: its rule is asked."""
    dtype = graph.dtype(node.outputs[0])
    if dtype is None or dtype.kind in "iub":
        return False
    if node.op == "ConstantOfShape" or (node.op in ("Expand", "Reshape") and node.inputs[0] not in reads):
        return True
    numbers = (graph.constant(name) for name in node.inputs if name and name not in reads)
    return any(value is not None and value.size > 1 and value.dtype.kind not in "iub" for value in numbers)


def _move(node: Node, graph: Graph, origins: Mapping[str, tuple[Origin, ...]]) -> tuple[Origin, ...] | None:
    """The sources of a node's elements, where the node only moves one-dimensional integers about."""

    def sources(index: int) -> tuple[Origin, ...]:
        name = node.inputs[index]
        if name in origins:
            return origins[name]
        value = graph.constant(name)
        if value is not None and value.dtype.kind not in "iub":
            return (Reads(),) * value.size  # they scale a size, say: no literal that could be edited
        return () if value is None else tuple(int(v) for v in np.ravel(value))

    def constant(index: int) -> list[int] | None:
        value = graph.constant(node.inputs[index]) if index < len(node.inputs) and node.inputs[index] else None
        return None if value is None else [int(v) for v in np.ravel(value)]

    if len(node.outputs) != 1:
        return None
    if any(not sources(i) for i, name in enumerate(node.inputs) if name and name in origins):
        return None  # how many there are is not known
    if node.op in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"):
        return sources(0)
    if node.op == "ConstantOfShape":
        value = graph.constant(node.outputs[0])
        settled = all(isinstance(origin, int) for origin in sources(0))
        return tuple(int(v) for v in np.ravel(value)) if value is not None and settled else None
    if node.op in _ELEMENTWISE:
        return _each(node.op, [sources(i) for i in range(len(node.inputs))])
    if node.op == "Concat":
        return tuple(o for i in range(len(node.inputs)) for o in sources(i))
    if node.op == "Gather" and (indices := constant(1)) is not None:
        items = sources(0)
        inside = all(-len(items) <= i < len(items) for i in indices)
        return tuple(items[i] for i in indices) if inside else None
    if node.op == "Slice" and node.since >= 10:
        start, end, step = constant(1), constant(2), constant(4) or [1]
        return None if start is None or end is None else sources(0)[start[0] : end[0] : step[0]]
    return None


def _equal(a: Origin, b: Origin) -> Origin:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    never = any(isinstance(x, tuple) and isinstance(y, int) and y < 1 for x, y in ((a, b), (b, a)))
    return 0 if never else _computed(a, b)  # an axis is one long, at the least


def _where(condition: Origin, a: Origin, b: Origin) -> Origin:
    return (a if condition else b) if isinstance(condition, int) else _computed(condition, a, b)


def _product(a: Origin, b: Origin) -> Origin:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return b if a == 1 else a if b == 1 else _computed(a, b)


def _computed(*of: Origin) -> Origin:
    return Reads().union(*map(_touched, of))


_ELEMENTWISE: Mapping[str, Callable[..., Origin]] = {
    "Equal": _equal,
    "Where": _where,
    "Mul": _product,
    **dict.fromkeys(("Add", "Sub", "Div", "Mod", "Max", "Min", "Neg", "Floor", "Ceil", "Sqrt", "Pow"), _computed),
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not"), _computed),
}


def _each(op: str, operands: Sequence[tuple[Origin, ...]]) -> tuple[Origin, ...] | None:
    """The operator's sources element by element, as in `Where(target == -1, 1, target)`, which asks for an Expand."""
    length = max(map(len, operands))
    if any(len(items) not in (1, length) for items in operands):
        return None
    whole = (items * length if len(items) == 1 else items for items in operands)
    return tuple(_ELEMENTWISE[op](*items) for items in zip(*whole, strict=True))
