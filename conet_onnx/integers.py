"""Follow integers that a model computes from shapes: which axis each element came from.

Exporters write `x.view(x.shape[0], -1)` as Shape, Gather, Unsqueeze, Concat, Reshape. The nodes between Shape and the
consumer form the integer region; it runs inside the deployed model, and so it follows a resized tensor by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conet_onnx.graph import Graph, Node
from conet_onnx.rules.registry import Origin

__all__ = ["Region", "trace"]


@dataclass(frozen=True, slots=True)
class Region:
    """The nodes that compute with shapes, the source of each element they make, and whose shapes each value reads."""

    nodes: frozenset[int]
    origins: Mapping[str, tuple[Origin, ...]]
    reads: Mapping[str, frozenset[tuple[str, int]]]


def trace(graph: Graph) -> Region:
    """Find the integer region: Shape and Size, and what reads nothing but them and constants."""
    nodes: set[int] = set()
    origins: dict[str, tuple[Origin, ...]] = {}
    reads: dict[str, frozenset[tuple[str, int]]] = {}
    for node in graph.nodes:
        if node.domain or node.has_subgraph or _shapes_weights(node, graph, reads):
            continue
        if _counts_integers(node, graph, origins):
            origins[node.outputs[0]] = (len(origins[node.inputs[0]]),)  # of integers, which no resize adds to
            reads[node.outputs[0]] = frozenset()
        elif node.op in ("Shape", "Size"):
            sizes = graph.sizes(node.inputs[0])
            rank = len(sizes) if sizes is not None else 0
            axes = range(rank)[node.attributes.get("start", 0) : node.attributes.get("end", rank)]
            origins[node.outputs[0]] = tuple((node.inputs[0], a) for a in axes) if node.op == "Shape" else (None,)
            reads[node.outputs[0]] = frozenset(
                (node.inputs[0], a) for a in (axes if node.op == "Shape" else range(rank))
            )
        elif any(name in reads for name in node.inputs) and all(
            not name or name in reads or graph.constant(name) is not None for name in node.inputs
        ):
            found = _move(node, graph, origins)
            touched = frozenset[tuple[str, int]]().union(*(reads.get(name, frozenset()) for name in node.inputs))
            exact = found is not None and None not in found
            for name in node.outputs:
                origins[name] = found if found is not None else ()
                reads[name] = frozenset(o for o in found or () if isinstance(o, tuple)) if exact else touched
        else:
            continue
        nodes.add(node.index)
    return Region(frozenset(nodes), origins, reads)


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
        return () if value is None else tuple(int(v) for v in np.ravel(value))

    def constant(index: int) -> list[int] | None:
        value = graph.constant(node.inputs[index]) if index < len(node.inputs) and node.inputs[index] else None
        return None if value is None else [int(v) for v in np.ravel(value)]

    if len(node.outputs) != 1:
        return None
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
    return 0 if never else None  # an axis is one long, at the least


def _where(condition: Origin, a: Origin, b: Origin) -> Origin:
    return (a if condition else b) if isinstance(condition, int) else None


def _product(a: Origin, b: Origin) -> Origin:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return b if a == 1 else a if b == 1 else None


_ELEMENTWISE: Mapping[str, Callable[..., Origin]] = {"Equal": _equal, "Where": _where, "Mul": _product}


def _each(op: str, operands: Sequence[tuple[Origin, ...]]) -> tuple[Origin, ...] | None:
    """The operator's sources element by element, as in `Where(target == -1, 1, target)`, which asks for an Expand."""
    length = max(map(len, operands))
    if any(len(items) not in (1, length) for items in operands):
        return None
    whole = (items * length if len(items) == 1 else items for items in operands)
    return tuple(_ELEMENTWISE[op](*items) for items in zip(*whole, strict=True))
