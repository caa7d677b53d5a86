"""Fold the rules over a graph in one topological pass: which axes are which sizes, and what carries them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Final

import numpy as np

from conet_onnx.dims import ONE, Axis, Dim, Segment, product
from conet_onnx.graph import FLOATS, REALS, Graph, Node
from conet_onnx.integers import Region, trace
from conet_onnx.rules import WITHOUT, Contraction, Facts, Op, Opaque, Operand, Rule, Shape, Site, each, find_rule, fixed
from conet_onnx.solving import Conflict, Reason, Solver

__all__ = ["Facing", "Findings", "Part", "Use", "fold"]

_SINGLE = (ONE,)  # the axes of most integers that say where to cut
_SETTLED = tuple(map(np.dtype, ("float16", "float32", "float64")))


@dataclass(slots=True, unsafe_hash=True)  # not frozen: as in `rules`
class Use:
    """One reading of a weight: by which node, as which input, with which axes. Scales and biases may have several."""

    tensor: Final[str]
    node: Final[int]
    input: Final[int]
    shape: Final[Shape]


@dataclass(frozen=True, slots=True)
class Part:
    """A weight's axis in which a contraction's sum can be rescaled, and the dims that are summed over.

    A weight that is quantised cannot be divided: the sum can be cut, and not shared among copies.
    """

    tensor: str
    axis: int
    leaves: frozenset[Dim]
    divides: bool = True


@dataclass(frozen=True, slots=True)
class Facing:
    """A contraction as planning needs it: the node, its weights' parts (none between activations), what it makes.

    Where a weight is joined of several, each of them has a part, and all are rescaled together.
    """

    node: int
    parts: tuple[Part, ...]
    contraction: Contraction


class Findings:
    """What the rules and the solver found about one graph, before anybody asks what may be resized."""

    def __init__(self, graph: Graph, region: Region | None = None) -> None:
        self.graph = graph
        self.solver = Solver()
        self.shapes: dict[str, Shape] = {}
        self.uses: list[Use] = []
        self.unsettled: list[tuple[Node, Contraction]] = []
        self.contractions: list[Facing] = []
        self.makes: list[tuple[int, Segment]] = []
        self.mixes: list[tuple[int, Segment]] = []
        self.sites: list[tuple[int, Site]] = []
        self.computed: set[tuple[int, int]] = (
            set()
        )  # (node, input): integers computed from shapes, that become constants
        self.numbers: list[tuple[int, int]] = []  # (node, input): numbers computed from shapes, that become constants
        self.moved: dict[str, tuple[str, ...]] = {}  # values whose elements are those of others, moved
        self.scaled: dict[str, tuple[str, ...]] = {}  # constants that are linear in others, in each by itself
        self.quantised: dict[str, tuple[str, ...]] = {}  # values that are another, rounded or back from that
        self.terms: dict[int, tuple[tuple[int, ...], ...]] = {}  # by node (see rules.each)
        self.undivided: list[tuple[Segment, str]] = []  # what cannot grow as a sum over weights can, and why
        self.region: Region = trace(graph) if region is None else region
        self.constants = set(graph.given)

    # What is what

    def alias(self, name: str) -> str | None:
        """The scale or bias (rank at most one) that a value is, itself or through Identity; None for anything else.

        Exporters store equal scales and biases once: to share one does not mean to be one, so each reading has its own
        axes. Weights of higher rank stay tied, and so do those that a subgraph, the model's outputs or Shape read.
        """
        weights, renamed = self.graph.weights, self._renamed
        while name not in weights:
            if name not in renamed:
                return None
            name = renamed[name]
        return name if len(weights[name].dims) <= 1 and name not in self._pinned else None

    def is_alias(self, node: Node) -> bool:
        """Whether a node gives a value a second name inside the graph."""
        return node.op == "Identity" and not node.domain and node.outputs[0] not in self._pinned

    @cached_property
    def _pinned(self) -> frozenset[str]:
        captured = chain.from_iterable([node.captured for node in self.region.outside if node.captured])
        return self.region.measured.union([value.name for value in self.graph.outputs], captured)

    @cached_property
    def _renamed(self) -> Mapping[str, str]:
        """The first name of values that have a second one."""
        return {n.outputs[0]: n.inputs[0] for n in self.region.outside if n.op == "Identity" and self.is_alias(n)}

    def is_real(self, tensor: str) -> bool:
        """Whether a weight holds numbers to compute with, and not sizes or indices."""
        return self.graph.weights[tensor].data_type in FLOATS

    def follows_input(self, node: int) -> bool:
        """Whether a node computes with the model's inputs, not with weights alone."""
        return any(name not in self.constants for name in self.graph.nodes[node].outputs)

    def roots(self, name: str) -> tuple[str, ...]:
        """The weights that a value is a view of: their elements moved, or those of one scaled by other constants."""
        if name in self.graph.weights:
            weight = self.graph.weights[name]
            return (name,) if len(weight.dims) > 1 and weight.data_type in FLOATS else ()
        if name in self.quantised:
            return self.roots(self.quantised[name][0])
        if name in self.moved:
            parts = [self.roots(source) for source in self.moved[name]]
            return tuple(dict.fromkeys(root for part in parts for root in part)) if all(parts) else ()
        found = [roots for source in self.scaled.get(name, ()) if (roots := self.roots(source))]
        every = [root for roots in found for root in roots]
        return found[0] if found and len(every) == len(set(every)) else ()  # a weight times itself is not linear in it

    def making(self, name: str) -> list[Node]:
        """The nodes that make a value, in their order."""
        found: dict[int, Node] = {}
        pending = [name]
        while pending:
            node = self.graph.producer(pending.pop())
            if node is not None and node.index not in found and node.index not in self.region.nodes and node.inputs:
                found[node.index] = node
                pending.extend(filter(None, node.inputs))
        return [found[index] for index in sorted(found)]

    def alone(self, name: str) -> Findings:
        """What the nodes that make a value say of it, whatever the rest of the graph makes equal or freezes."""
        found = Findings(self.graph, self.region)
        fold_alone = _Fold(found)
        for node in self.making(name):
            fold_alone.visit(node)
        return found

    # Results

    def axis(self, segment: Segment) -> Axis:
        """An axis in terms of the dims that are left."""
        return self.solver.resolve(segment)

    @cached_property
    def every_use(self) -> tuple[Use, ...]:
        """All readings of weights; a weight that ties its readers together has one, with node -1."""
        tied = (Use(name, -1, -1, shape) for name, shape in self.shapes.items() if name in self.graph.weights)
        return (*tied, *self.uses)


def fold(findings: Findings) -> None:
    """Visit every node of the findings' graph once, in topological order, and fill the findings in."""
    _Fold(findings).run()


class _Fold:
    """One topological pass."""

    def __init__(self, findings: Findings) -> None:
        self.a = findings
        self.graph = findings.graph
        self.solver = findings.solver
        self._followed = findings.region.makers.keys()
        self._rules: dict[tuple[str, str, int], Rule | None] = {}

    def run(self) -> None:
        for value in self.graph.inputs:
            sizes = self.graph.sizes(value.name)
            if sizes is not None:
                self.a.shapes[value.name] = tuple(
                    product(Dim(f"{value.name}[{i}]", size, rigid=size[0] != size[1])) for i, size in enumerate(sizes)
                )
        for node in self.a.region.outside:
            self.visit(node)
        self._settle_contractions()
        for values, kind in ((self.graph.outputs, "output"), (self.graph.inputs, "input")):
            for value in values:
                name = value.name
                self._pin(name, Reason(kind, name, f"the model's {kind} {name!r} is computed from it"))
                for segment in self._known(name) or ():
                    self.solver.freeze(segment, Reason(kind, name, f"it is an axis of the model's {kind} {name!r}"))

    def visit(self, node: Node) -> None:
        """Ask a node's rule, and record what it says."""
        shapes = [self._shape(node, k) for k in range(len(node.inputs))]
        try:
            facts = self._facts(node, shapes)
            if facts.equal:
                blamed = str(node)
                for left, right in facts.equal:
                    self.solver.equate(left, right, blamed)
        except Opaque as obstacle:
            facts = self._opaque(node, shapes, Reason(obstacle.kind, node.name, obstacle.detail))
        except (IndexError, ValueError):  # fewer inputs, axes or integers than the operator's text demands
            detail = f"{node} does not fit its operator's definition: its inputs have the wrong ranks or lengths"
            facts = self._opaque(node, shapes, Reason("malformed", node.name, detail))
        except Conflict as error:
            facts = self._opaque(node, shapes, Reason("conflict", node.name, f"{node} contradicts the shapes: {error}"))
        self._record(node, shapes, facts)

    def _facts(self, node: Node, shapes: list[Shape | None]) -> Facts:
        rule = self._rule(node)
        if rule is None:
            kind = "control flow" if node.has_subgraph else "unknown op"
            stranger = "nothing is known of how its channels depend on each other"
            other = stranger if node.domain else "it has no rule for this version of the operator"
            raise Opaque(kind, f"{node} is not understood: {WITHOUT.get(node.operator, other)}")
        if None in shapes:
            if any(shape is None for shape, name in zip(shapes, node.inputs, strict=True) if name):
                raise Opaque("unknown shape", f"{node} reads a tensor of unknown shape")
            while shapes and shapes[-1] is None:
                shapes = shapes[:-1]
        op = Op(node, self.graph, self.a.region.origins, self.a.shapes)
        facts = rule(op, *shapes)
        self._check_computed(node, facts)
        return facts

    def _rule(self, node: Node) -> Rule | None:
        """The rule for a node, looked up once for each operator."""
        if node.captured or node.has_subgraph:
            return find_rule(node)
        key = node.op, node.domain, node.since
        if key not in self._rules:
            self._rules[key] = find_rule(node)
        return self._rules[key]

    def _check_computed(self, node: Node, facts: Facts) -> None:
        """Integers that the model computes itself, and that the rule has not accounted for, pin what they read."""
        followed = self._followed
        if followed.isdisjoint(node.inputs):
            return
        for k, name in enumerate(node.inputs):
            if name not in followed:
                continue
            if k in facts.sees:
                own = [site.where for site in facts.sites if site.holder is None]
                if self.graph.constant(name) is not None or f"input:{k}" in own:
                    self.a.computed.add((node.index, k))  # all of it will be a constant
                else:
                    computed = (origin for origin in self.a.region.origins[name] if isinstance(origin, frozenset))
                    reason = Reason("computed", node.name, f"{node} computes a size from it while the model runs")
                    self._freeze(frozenset[tuple[str, int]]().union(*computed), reason)
            elif self._is_settled(name):
                self.a.numbers.append((node.index, k))  # the square root of a size, say: it stays what it is
            else:
                self._pin(name, Reason("computed", node.name, f"{node} reads a number that is computed from this size"))

    def _is_settled(self, name: str) -> bool:
        """Whether a number is computed from static sizes alone.

        That it agrees at both assignments of the symbolic ones is not enough: the largest of them might.
        """
        if self.graph.dtype(name) not in _SETTLED or self.graph.constant(name) is None:
            return False
        known = ((self.graph.sizes(tensor) or ())[axis : axis + 1] for tensor, axis in self.a.region.reads[name])
        return all(size and size[0][0] == size[0][1] for size in known)

    def _pin(self, name: str, reason: Reason) -> None:
        if name in self._followed:
            self._freeze(self.a.region.reads[name], reason)

    def _freeze(self, axes: Iterable[tuple[str, int]], reason: Reason) -> None:
        for tensor, axis in axes:
            if tensor in self._followed:
                continue  # integers: none of their axes ever changes
            shape = self.a.shapes.get(tensor) or self._known(tensor)
            if shape is not None:
                self.solver.freeze(shape[axis], reason)

    def _opaque(self, node: Node, shapes: Sequence[Shape | None], reason: Reason) -> Facts:
        for name, shape in zip(
            (*node.inputs, *node.captured), (*shapes, *map(self._known, node.captured)), strict=True
        ):
            self._pin(name, reason)
            for segment in shape or ():
                self.solver.freeze(segment, reason)
        return Facts(outputs=tuple(self._frozen(name, reason) for name in node.outputs))

    def _frozen(self, name: str, reason: Reason) -> Shape | None:
        """Axes that keep their size, for this reason, which others can find there."""
        sizes = self.graph.sizes(name) if name else None
        if sizes is None:
            return None
        shape = tuple(product(Dim(f"{name}[{i}]", size, rigid=size[0] != size[1])) for i, size in enumerate(sizes))
        for segment in shape:
            self.solver.freeze(segment, reason)
        return shape

    def _record(self, node: Node, shapes: Sequence[Shape | None], facts: Facts) -> None:
        for segment, reason in facts.frozen:
            self.solver.freeze(segment, reason)
        for name, shape in zip(node.outputs, facts.outputs, strict=False):
            if name and shape is not None and self._agrees(name, shape):
                self.a.shapes[name] = shape
        found, index = self.a, node.index
        constant = bool(node.inputs)
        for name in node.inputs:
            if name and name not in found.constants:
                constant = False
                break
        if constant:
            found.constants.update(node.outputs)
        if facts.mixes:
            found.mixes.extend([(index, segment) for segment in facts.mixes])
        if facts.sites:
            found.sites.extend([(index if site.holder is None else site.holder, site) for site in facts.sites])
        if facts.contracts:
            found.unsettled.extend([(node, contraction) for contraction in facts.contracts])
        if facts.makes and not constant:
            found.makes.extend([(index, segment) for segment in facts.makes])
        if facts.passes:
            self._record_views(node, found.moved, facts.passes)
        if facts.terms or facts.passes:
            found.terms[index] = facts.terms or each(len(facts.passes))
        if constant:
            if len(facts.terms) == 1 and not facts.contracts:
                self._record_views(node, found.scaled, facts.terms[0])
            if facts.quantises:
                self._record_views(node, found.quantised, facts.quantises)

    def _record_views(self, node: Node, views: dict[str, tuple[str, ...]], inputs: Sequence[int]) -> None:
        if inputs:
            sources = tuple([node.inputs[k] for k in inputs])
            views.update(dict.fromkeys(filter(None, node.outputs), sources))

    def _agrees(self, name: str, shape: Shape) -> bool:
        sizes = self.graph.sizes(name)
        return sizes is None or sizes == tuple([s.size for s in shape])

    def _shape(self, node: Node, index: int) -> Shape | None:
        """The axes of a node's input; None where it is absent or unknown."""
        name = node.inputs[index]
        if not name:
            return None
        root = self.a.alias(name)
        if root is None:
            return self._known(name)
        shape = self._new(root, node, index)
        if node.op != "Identity" or not self.a.is_alias(node):
            self.a.uses.append(Use(root, node.index, index, shape))
        return shape

    def _known(self, name: str) -> Shape | None:
        shape = self.a.shapes.get(name)
        if shape is None and (shape := self._first(name)) is None:
            if name not in self._followed and name not in self.a.constants:
                return None
            sizes = self.graph.sizes(name)
            return None if sizes is None else fixed(name, sizes)
        return shape if self.solver.are_resolved(shape) else tuple([self._settled(s) for s in shape])

    def _first(self, name: str) -> Shape | None:
        """The axes of a weight that is met for the first time."""
        shape: Shape | None = None
        if name in self.graph.weights:
            shape = self._new(name)
        elif name in self.graph.sparse:
            detail = f"weight {name!r} is sparse: where its elements stand is not followed"
            shape = self._frozen(name, Reason("sparse", name, detail))
        if shape is not None:
            self.a.shapes[name] = shape
        return shape

    def _new(self, tensor: str, reader: Node | None = None, index: int = 0) -> Shape:
        """Axes of a weight, or of one reading of it."""
        dims = self.graph.weights[tensor].dims
        if dims == [1]:
            return _SINGLE
        label = tensor if reader is None else f"{reader.name}.{index}"
        return tuple([ONE if n == 1 else product(Dim(f"{label}[{i}]", (n, n))) for i, n in enumerate(dims)])

    def _settled(self, segment: Segment) -> Segment:
        """The segment with what is known of it by now, where that is still one product."""
        if self.solver.is_resolved(segment):
            return segment
        resolved = self.solver.resolve(segment)
        if len(resolved.segments) != 1:
            return segment
        settled = resolved.segments[0]
        if settled.dims or not segment.dims:
            return settled
        return Segment(settled.factors, settled.size, settled.dims, origin=segment)

    # After the pass: where can each sum be rescaled?

    def _settle_contractions(self) -> None:
        self.a.contractions = [self._with_parts(node, contraction) for node, contraction in self.a.unsettled]
        demands: dict[str, set[tuple[int, frozenset[Dim]]]] = {}
        readers: dict[str, set[int]] = {}
        for facing in self.a.contractions:
            for part in (part for part in facing.parts if part.divides):
                demands.setdefault(part.tensor, set()).add((part.axis, part.leaves))
                readers.setdefault(part.tensor, set()).add(facing.node)
        for tensor, wanted in demands.items():
            if not any(leaves for _, leaves in wanted):
                continue  # nothing that is summed over ever changes
            if len(wanted) == 1 and self._readers(tensor) <= readers[tensor]:
                continue
            why = f"weight {tensor!r}, which is summed over it, is shared by nodes that use its axes differently"
            self.a.undivided.extend([(self.a.shapes[tensor][axis], why) for axis, _ in wanted])

    def _with_parts(self, node: Node, contraction: Contraction) -> Facing:
        parts: tuple[Part, ...] = ()
        for operand in reversed(contraction.operands):
            parts = parts or self._parts(node.inputs[operand.index], operand)
        for operand in contraction.operands[:1]:
            if not parts:
                why = f"{node} sums over it, and what it multiplies there cannot be divided among copies"
                self.a.undivided.append((operand.summed, why))
            elif not all(part.divides for part in parts):
                why = f"quantised weights sum over it, which cannot be divided among copies ({node})"
                self.a.undivided.append((operand.summed, why))
        return Facing(node.index, parts, contraction)

    def _parts(self, name: str, operand: Operand) -> tuple[Part, ...]:
        """Where the sum over an operand's axis can be rescaled in weights; () where it is no view of any."""
        leaves = frozenset(self.solver.leaves(operand.summed))
        roots = self.a.roots(name)
        if leaves & set(self.solver.leaves(operand.outer)):
            return ()
        if roots == (name,):
            return (Part(name, operand.axis, leaves, self._divides(name, name)),)
        found = []
        for root in roots:
            holding = {k: leaves & set(self.solver.leaves(s)) for k, s in enumerate(self.a.shapes[root])}
            axes = [k for k, held in holding.items() if held] if leaves else [0]
            if len(axes) > 1:
                axes = [k for tensor, k in self._origins(name, operand.axis) if tensor == root]
            if len(axes) == 1:
                found.append(Part(root, axes[0], holding[axes[0]], self._divides(name, root)))
        every = len(found) == len(roots) and leaves == frozenset().union(*(part.leaves for part in found))
        return tuple(found) if every else ()

    def _divides(self, name: str, root: str) -> bool:
        """Whether a view of a weight is divided by dividing the weight."""
        rounded = (output in self.a.quantised for node in self.a.making(name) for output in node.outputs)
        return self.graph.weights[root].data_type in REALS and not any(rounded)

    def _origins(self, name: str, axis: int) -> tuple[tuple[str, int], ...]:
        """The axes of weights that an axis of a view of them is made of, whatever the rest of the graph makes equal."""
        alone = self.a.alone(name)
        leaves = set(alone.solver.leaves(alone.shapes[name][axis])) if name in alone.shapes else set()
        axes = ((tensor, k, s) for tensor, shape in alone.shapes.items() for k, s in enumerate(shape))
        return tuple((t, k) for t, k, s in axes if t in self.graph.weights and leaves & set(alone.solver.leaves(s)))

    def _readers(self, name: str) -> set[int]:
        """The nodes that use a weight or a view of it, but for those that only pass it on."""
        found: set[int] = {-1} if any(v.name == name for v in self.graph.outputs) else set()
        for node in self.graph.consumers(name):
            if node.index in self.a.region.nodes:
                continue  # it asks for sizes
            views_of = (self.a.moved, self.a.scaled, self.a.quantised)
            sources = [source for views in views_of for source in views.get(node.outputs[0], ())]
            views = [o for o in node.outputs if self.a.roots(o)]
            if not views or node.inputs.count(name) > sources.count(name):
                found.add(node.index)
            for view in views:
                found |= self._readers(view)
        return found
