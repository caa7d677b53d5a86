"""The rule table, what a rule is given, and what it may say.

A rule is a function `rule(op, *shapes) -> Facts`: shapes are those of the node's inputs (None for an absent optional
one), one Segment per axis. It states facts and touches nothing. A rule that meets what it cannot prove raises Opaque,
and everything that the node reads is frozen with that reason; so is everything that an operator without a rule reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np

from conet_onnx.dims import Axis, Dim, Segment, Size, axis, plain, product, total
from conet_onnx.graph import Graph, Node
from conet_onnx.solving import Reason

__all__ = [
    "RULES",
    "Contraction",
    "Facts",
    "Op",
    "Opaque",
    "Operand",
    "Rule",
    "Shape",
    "Site",
    "each",
    "find_rule",
    "fixed",
    "flat_integers",
    "held",
    "rule",
    "spatial",
]

Shape = tuple[Segment, ...]
# An integer's source: a literal, an axis that Shape read, or the axes that it is computed from
Origin = int | tuple[str, int] | frozenset[tuple[str, int]]


class Opaque(Exception):
    """The node does what its rule cannot prove: freeze what it reads, for this reason."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass(slots=True, eq=False)  # not frozen, nor is what rules make: thousands of each, in a third of the time
class Op:
    """What a rule may know of its node: attributes, constant inputs, output sizes."""

    node: Final[Node]
    graph: Final[Graph]
    origins: Final[Mapping[str, tuple[Origin, ...]]] = field(default_factory=dict)
    shapes: Final[Mapping[str, Shape]] = field(default_factory=dict)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or the operator's default for it."""
        return self.node.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def value(self, index: int) -> np.ndarray[Any, Any] | None:
        """An input's value where it is the same for every model input."""
        return self.graph.constant(self.node.inputs[index]) if self.has(index) else None

    def integers(self, index: int) -> tuple[int, ...] | None:
        """A constant input as a flat tuple of integers."""
        value = self.value(index)
        return None if value is None else flat_integers(value)

    def origin(self, index: int) -> tuple[Origin, ...]:
        """Where each element of an integer input comes from."""
        return self.origins.get(self.node.inputs[index], ()) if self.has(index) else ()

    def holder(self, index: int, position: int) -> tuple[Node, int, int] | None:
        """Where a literal element of a computed input stands: the node that reads it as a constant, the input of that
        node, and the position; None where it is moved about in other ways, or read by others on its way."""
        node, graph = self.node, self.graph
        while node.inputs[index] in self.origins:
            name = node.inputs[index]
            producer = graph.producer(name)
            if producer is None or graph.readings(name) != 1:
                return None
            if producer.op == "Concat":
                lengths = [len(self._elements(part)) for part in producer.inputs]
                index = next(k for k in range(len(lengths)) if position < sum(lengths[: k + 1]))
                position -= sum(lengths[:index])
            elif producer.op in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"):
                index = 0
            else:
                return None
            node = producer
        return node, index, position

    def _elements(self, name: str) -> tuple[Origin, ...]:
        value = self.graph.constant(name)
        known = () if value is None else flat_integers(value)
        return self.origins.get(name, known)

    def sizes(self, output: int = 0) -> tuple[Size, ...]:
        """An output's sizes. Raises Opaque where they are unknown."""
        found = self.graph.sizes(self.node.outputs[output])
        if found is None:
            raise Opaque(
                "unknown shape", f"the shape of {self.node.outputs[output]!r}, made by {self.node}, is unknown"
            )
        return found

    def source(self, origin: tuple[str, int]) -> Segment:
        """The axis that an integer was read from. Raises Opaque where it is unknown."""
        if origin[0] not in self.shapes:
            raise Opaque("unknown shape", f"{self.node} reads the size of {origin[0]!r}, whose shape is unknown")
        return self.shapes[origin[0]][origin[1]]

    def fresh(self, name: str, size: Size) -> Dim:
        """A new dim, named after the node."""
        return Dim(f"{self.node.name}.{name}", size)


@dataclass(slots=True, unsafe_hash=True)
class Operand:
    """One side of a contraction: input `index`, whose axis `axis` is outer·summed."""

    index: Final[int]
    axis: Final[int]
    outer: Final[Segment]
    summed: Final[Segment]


@dataclass(slots=True, unsafe_hash=True)
class Contraction:
    """A sum of products: over what, on which sides, what it makes, and its multiply-accumulates."""

    operands: Final[tuple[Operand, ...]]
    produces: Final[tuple[Segment, ...]]
    macs: Final[Segment]


@dataclass(slots=True, unsafe_hash=True)
class Site:
    """An integer that carries a size: attribute:NAME or input:N, at a position, equal to an axis's size.

    `literal` is what stands there in the source; None where it is computed while the model runs. Where it is negative,
    so is what takes its place: Slice counts from the end. `holder` is the index of the node that it stands at, where
    that is not the node itself but one that computes its input.
    """

    where: Final[str]
    position: Final[int]
    size: Final[Axis]
    literal: Final[int | None]
    holder: Final[int | None] = None


@dataclass(slots=True)
class Facts:
    """All that a rule says. `sees` are the inputs whose computed integers the rule has accounted for."""

    outputs: Final[tuple[Shape | None, ...]]
    equal: Final[tuple[tuple[Axis | Segment, Axis | Segment], ...]] = ()
    contracts: Final[tuple[Contraction, ...]] = ()
    makes: Final[
        tuple[Segment, ...]
    ] = ()  # axes of a table that what is in the data picks from: made as if by a product
    mixes: Final[tuple[Segment, ...]] = ()
    sites: Final[tuple[Site, ...]] = ()
    frozen: Final[tuple[tuple[Segment, Reason], ...]] = ()
    sees: Final[tuple[int, ...]] = ()
    passes: Final[tuple[int, ...]] = ()  # inputs whose elements appear in the outputs unchanged (possibly moved)
    terms: Final[tuple[tuple[int, ...], ...]] = ()  # the output is a sum of these products of inputs (see `each`)
    quantises: Final[tuple[int, ...]] = ()  # inputs whose elements appear in the outputs rounded, or back from that


Rule = Callable[..., Facts]

RULES: dict[str, list[tuple[int, Rule]]] = {}  # by operator; those of other domains with the domain before the name


def rule(*ops: str, since: int = 1, domain: str = "") -> Callable[[Rule], Rule]:
    """Enter a function in the table for these operators, from schema version `since` on.

    Version 0 is that of operators for which onnx knows no schema: all in a domain other than its own.
    """

    def enter(function: Rule) -> Rule:
        for op in ops:
            entries = RULES.setdefault(f"{domain}.{op}" if domain else op, [])
            entries.append((0 if domain else since, function))
            entries.sort(key=lambda entry: entry[0])
        return function

    return enter


def flat_integers(value: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """The elements of an array, in order, as Python's integers."""
    # At once: tables of positions have thousands
    elements: list[Any] = value.tolist() if value.ndim == 1 else value.ravel().tolist()
    return tuple(elements if value.dtype.kind in "iu" else map(int, elements))


@cache
def each(count: int) -> tuple[tuple[int, ...], ...]:
    """The terms of a sum of so many inputs.

    In general the output is a sum of products: a convolution's is ((0, 1), (2,)), its bias on its own. Where one factor
    of every product has each of its channels multiplied by a positive number, so has the output; what is no factor
    (a variance, a divisor) does not take part, and functions such as Relu, which keep such numbers, count as linear.
    """
    return tuple((k,) for k in range(count))


def find_rule(node: Node) -> Rule | None:
    """The rule for a node's operator at its schema version; None for control flow."""
    if node.captured or node.has_subgraph:
        return None
    found = [function for since, function in RULES.get(node.operator, ()) if since <= node.since]
    return found[-1] if found else None


def fixed(name: str, sizes: tuple[Size, ...]) -> Shape:
    """A shape that never changes: plain integers, and rigid dims where a size follows a symbolic one."""
    made = [plain(a) if a == b else product(Dim(f"{name}[{i}]", (a, b), rigid=True)) for i, (a, b) in enumerate(sizes)]
    return tuple(made)


def spatial(op: Op, shape: Shape) -> tuple[tuple[Segment, Reason], ...]:
    """Freeze axes that a window or a pool moves along."""
    reason = Reason("spatial", op.node.name, f"{op.node} moves a window along it")
    return tuple((segment, reason) for segment in shape if segment.dims)


def summed(segments: tuple[Segment, ...]) -> Axis:
    """The axis that lies before (or consists of) some segments: a prefix sum."""
    return total(segments)


def held(op: Op, index: int, position: int, segment: Segment) -> Site:
    """The site of a literal that stands in a target whose other elements are computed."""
    origins = op.origin(index)
    literal = origins[position] if position < len(origins) else None
    found = op.holder(index, position) if isinstance(literal, int) else None
    if found is None or segment.size != (literal, literal):
        raise Opaque("computed target", f"{op.node} computes its target while the model runs")
    node, k, place = found
    return Site(f"input:{k}", place, axis(segment), segment.size[0], node.index)
