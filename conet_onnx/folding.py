"""Fold the rules over a graph in one topological pass: which axes are which sizes, and what carries them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from conet_onnx.collecting import collector_paused
from conet_onnx.dims import Axis, Dim, Segment, product
from conet_onnx.graph import FLOATS, REALS, Graph, Node
from conet_onnx.integers import Region, trace
from conet_onnx.rules import WITHOUT, Contraction, Facts, Op, Opaque, Operand, Shape, Site, find_rule, fixed
from conet_onnx.solving import Conflict, Reason, Solver

__all__ = ["Facing", "Findings", "Part", "Use", "fold"]


@dataclass(frozen=True, slots=True)
class Use:
    """One reading of a weight: by which node, as which input, with which axes. Scales and biases may have several."""

    tensor: str
    node: int
    input: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class Part:
    """A weight's axis in which a contraction's sum can be rescaled, and the dims that are summed over."""

    tensor: str
    axis: int
    leaves: frozenset[Dim]


@dataclass(frozen=True, slots=True)
class Facing:
    """A contraction as planning needs it: the node, its weight's part (None between activations), and what it makes."""

    node: int
    part: Part | None
    contraction: Contraction


class Findings:
    """What the rules and the solver found about one graph, before anybody asks what may be resized."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.solver = Solver()
        self.shapes: dict[str, Shape] = {}
        self.uses: list[Use] = []
        self.unsettled: list[tuple[Node, Contraction]] = []
        self.contractions: list[Facing] = []
        self.mixes: list[tuple[int, Segment]] = []
        self.sites: list[tuple[int, Site]] = []
        self.computed: set[tuple[int, int]] = (
            set()
        )  # (node, input): integers computed from shapes, that become constants
        self.view: dict[str, tuple[str, ...]] = {}  # values whose elements are another's, moved or scaled
        self.region: Region = trace(graph)
        self.constants = {*graph.weights, *(name for n in graph.nodes if not n.inputs for name in n.outputs)}

    # What is what

    def alias(self, name: str) -> str | None:
        """The scale or bias (rank at most one) that a value is, itself or through Identity; None for anything else.

        Exporters store equal scales and biases once: to share one does not mean to be one, so each reading has its own
        axes. Weights of higher rank stay tied, and so do those that a subgraph, the model's outputs or Shape read.
        """
        while name not in self.graph.weights:
            node = self.graph.producer(name)
            if node is None or not self.is_alias(node):
                return None
            name = node.inputs[0]
        return name if len(self.graph.weights[name].dims) <= 1 and name not in self._pinned else None

    def is_alias(self, node: Node) -> bool:
        """Whether a node gives a value a second name inside the graph."""
        return node.op == "Identity" and not node.domain and node.outputs[0] not in self._pinned

    @cached_property
    def _pinned(self) -> frozenset[str]:
        captured = (name for node in self.graph.nodes for name in node.captured)
        measured = (node.inputs[0] for node in self.graph.nodes if node.op in ("Shape", "Size"))
        return frozenset((*captured, *measured, *(value.name for value in self.graph.outputs)))

    def is_real(self, tensor: str) -> bool:
        """Whether a weight holds numbers to compute with, and not sizes or indices."""
        return self.graph.weights[tensor].data_type in FLOATS

    def follows_input(self, node: int) -> bool:
        """Whether a node computes with the model's inputs, not with weights alone."""
        return any(name not in self.constants for name in self.graph.nodes[node].outputs)

    # Results

    def axis(self, segment: Segment) -> Axis:
        """An axis in terms of the dims that are left."""
        return self.solver.resolve(segment)

    @cached_property
    def every_use(self) -> tuple[Use, ...]:
        """All readings of weights; a weight that ties its readers together has one, with node -1."""
        tied = (Use(name, -1, -1, shape) for name, shape in self.shapes.items() if name in self.graph.weights)
        return (*tied, *self.uses)


@collector_paused()
def fold(findings: Findings) -> None:
    """Visit every node of the findings' graph once, in topological order, and fill the findings in."""
    _Fold(findings).run()


class _Fold:
    """One topological pass."""

    def __init__(self, findings: Findings) -> None:
        self.a = findings
        self.graph = findings.graph
        self.solver = findings.solver

    def run(self) -> None:
        for value in self.graph.inputs:
            sizes = self.graph.sizes(value.name)
            if sizes is not None:
                self.a.shapes[value.name] = tuple(
                    product(Dim(f"{value.name}[{i}]", size, rigid=size[0] != size[1])) for i, size in enumerate(sizes)
                )
        for node in self.graph.nodes:
            if node.index not in self.a.region.nodes and not (node.op == "Constant" and not node.domain):
                self._visit(node)
        self._settle_contractions()
        for values, kind in ((self.graph.outputs, "output"), (self.graph.inputs, "input")):
            for value in values:
                name = value.name
                self._pin(name, Reason(kind, name, f"the model's {kind} {name!r} is computed from it"))
                for segment in self._known(name) or ():
                    self.solver.freeze(segment, Reason(kind, name, f"it is an axis of the model's {kind} {name!r}"))

    def _visit(self, node: Node) -> None:
        shapes = [self._shape(node, k) for k in range(len(node.inputs))]
        try:
            facts = self._facts(node, shapes)
            for left, right in facts.equal:
                self.solver.equate(left, right, str(node))
        except Opaque as obstacle:
            facts = self._opaque(node, shapes, Reason(obstacle.kind, node.name, obstacle.detail))
        except (IndexError, ValueError):  # fewer inputs, axes or integers than the operator's text demands
            detail = f"{node} does not fit its operator's definition: its inputs have the wrong ranks or lengths"
            facts = self._opaque(node, shapes, Reason("malformed", node.name, detail))
        except Conflict as error:
            facts = self._opaque(node, shapes, Reason("conflict", node.name, f"{node} contradicts the shapes: {error}"))
        self._record(node, shapes, facts)

    def _facts(self, node: Node, shapes: list[Shape | None]) -> Facts:
        rule = find_rule(node)
        if rule is None:
            kind = "control flow" if node.has_subgraph else "unknown op"
            stranger = "nothing is known of how its channels depend on each other"
            other = stranger if node.domain else "it has no rule for this version of the operator"
            raise Opaque(kind, f"{node} is not understood: {WITHOUT.get(node.operator, other)}")
        if any(shape is None for shape, name in zip(shapes, node.inputs, strict=True) if name):
            raise Opaque("unknown shape", f"{node} reads a tensor of unknown shape")
        while shapes and shapes[-1] is None:
            shapes = shapes[:-1]
        op = Op(node, self.graph, self.a.region.origins, self.a.shapes)
        facts = rule(op, *shapes)
        self._check_computed(node, facts)
        return facts

    def _check_computed(self, node: Node, facts: Facts) -> None:
        """Integers that the model computes itself, and that the rule has not accounted for, pin what they read."""
        for k, name in enumerate(node.inputs):
            if name not in self.a.region.reads:
                continue
            if k in facts.sees:
                if self.graph.constant(name) is not None or any(s.where == f"input:{k}" for s in facts.sites):
                    self.a.computed.add((node.index, k))
            else:
                self._pin(name, Reason("computed", node.name, f"{node} reads a number that is computed from this size"))

    def _pin(self, name: str, reason: Reason) -> None:
        for tensor, axis in self.a.region.reads.get(name, ()):
            if (shape := self._known(tensor)) is not None:
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
        self.a.mixes.extend((node.index, segment) for segment in facts.mixes)
        self.a.sites.extend((node.index, site) for site in facts.sites)
        constant = bool(node.inputs) and all(not name or name in self.a.constants for name in node.inputs)
        self.a.constants.update(name for name in node.outputs if constant)
        sources = tuple(node.inputs[k] for k in (*facts.passes, *(facts.scales if constant else ())))
        self.a.view.update({name: sources for name in node.outputs if name and sources})
        self.a.unsettled.extend((node, contraction) for contraction in facts.contracts)

    def _agrees(self, name: str, shape: Shape) -> bool:
        sizes = self.graph.sizes(name)
        return sizes is None or sizes == tuple(s.size for s in shape)

    def _shape(self, node: Node, index: int) -> Shape | None:
        """The axes of a node's input; None where it is absent or unknown."""
        name = node.inputs[index]
        if not name:
            return None
        root = self.a.alias(name)
        if root is not None:
            use = Use(root, node.index, index, self._new(root, f"{node.name}.{index}"))
            if not self.a.is_alias(node):
                self.a.uses.append(use)
            return use.shape
        return self._known(name)

    def _known(self, name: str) -> Shape | None:
        if name in self.graph.weights and name not in self.a.shapes:
            self.a.shapes[name] = self._new(name, name)
        shape = self.a.shapes.get(name)
        if shape is None and (name in self.a.region.reads or name in self.a.constants):
            sizes = self.graph.sizes(name)
            return None if sizes is None else fixed(name, sizes)
        return None if shape is None else tuple(self._settled(s) for s in shape)

    def _new(self, tensor: str, label: str) -> Shape:
        dims = self.graph.weights[tensor].dims
        return tuple(product(Dim(f"{label}[{i}]", (n, n))) for i, n in enumerate(dims))

    def _settled(self, segment: Segment) -> Segment:
        """The segment with what is known of it by now, where that is still one product."""
        if self.solver.is_resolved(segment):
            return segment
        resolved = self.solver.resolve(segment)
        if len(resolved.segments) != 1:
            return segment
        settled = resolved.segments[0]
        return replace(settled, origin=segment) if settled.fixed and segment.dims else settled

    # After the pass: where can each sum be rescaled?

    def _settle_contractions(self) -> None:
        self.a.contractions = [self._with_part(node, contraction) for node, contraction in self.a.unsettled]
        demands: dict[str, set[tuple[int, frozenset[Dim]]]] = {}
        readers: dict[str, set[int]] = {}
        for facing in self.a.contractions:
            if facing.part is not None:
                demands.setdefault(facing.part.tensor, set()).add((facing.part.axis, facing.part.leaves))
                readers.setdefault(facing.part.tensor, set()).add(facing.node)
        for tensor, wanted in demands.items():
            if len(wanted) == 1 and self._readers(tensor) <= readers[tensor]:
                continue
            reason = Reason("tied", tensor, f"weight {tensor!r} is shared by nodes that use its axes differently")
            for axis, _ in wanted:
                self.solver.freeze(self.a.shapes[tensor][axis], reason)

    def _with_part(self, node: Node, contraction: Contraction) -> Facing:
        part = None
        for operand in reversed(contraction.operands):
            if part is None and (root := self._root(node.inputs[operand.index])) is not None:
                part = self._part(root, operand, root == node.inputs[operand.index])
        if part is None:
            detail = f"{node} sums over it between two activations: there is no weight to rescale"
            for operand in contraction.operands[:1]:
                self.solver.freeze(operand.summed, Reason("activations", node.name, detail))
        return Facing(node.index, part, contraction)

    def _part(self, root: str, operand: Operand, direct: bool) -> Part | None:
        leaves = frozenset(self.solver.leaves(operand.summed))
        if leaves & set(self.solver.leaves(operand.outer)):
            return None
        shape = self.a.shapes[root]
        holding = [i for i, s in enumerate(shape) if leaves & set(self.solver.leaves(s))]
        if direct:
            return Part(root, operand.axis, leaves)
        whole = [i for i in holding if leaves <= set(self.solver.leaves(shape[i]))]
        if not leaves:
            return Part(root, 0, leaves)
        return Part(root, whole[0], leaves) if len(holding) == len(whole) == 1 else None

    def _root(self, name: str) -> str | None:
        """The weight that a value is a view of: its elements moved, or scaled by other constants."""
        if name in self.graph.weights:
            weight = self.graph.weights[name]
            return name if len(weight.dims) > 1 and weight.data_type in REALS else None
        roots = [root for source in self.a.view.get(name, ()) if (root := self._root(source)) is not None]
        return roots[0] if len(roots) == len(set(roots)) > 0 else None  # a weight times itself is not linear in it

    def _readers(self, name: str) -> set[int]:
        """The nodes that use a weight or a view of it, but for those that only pass it on."""
        found: set[int] = {-1} if any(v.name == name for v in self.graph.outputs) else set()
        for node in self.graph.consumers(name):
            sources = self.a.view.get(node.outputs[0], ())
            views = [o for o in node.outputs if self._root(o) is not None]
            if not views or node.inputs.count(name) > sources.count(name):
                found.add(node.index)
            for view in views:
                found |= self._readers(view)
        return found
