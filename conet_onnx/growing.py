"""What keeps a width from growing, and where two activations can share its copies between them.

A copied channel must be summed as if it were one. Where a sum is over a weight, the weight is divided among the copies.
Where two activations are multiplied, as queries and keys are, both are divided by the square root of the divisor: if a
channel has copies of divisors c[1], c[2], ..., with sum(1/c[i]) = 1, then sum((q/sqrt(c[i]))·(k/sqrt(c[i]))) = q·k.
They are divided in the weights that make them, and everything between there and the sums has to be linear, or at least
to keep positive factors. All that has channels of such a width is divided alike; so a weight that sums over it
elsewhere (values come out of the same projection) is divided by the square root too.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from conet_onnx.dims import Axis, Dim
from conet_onnx.folding import Facing, Findings
from conet_onnx.graph import Node
from conet_onnx.rules import Shape

__all__ = ["Growth", "find_growth"]

Axes = frozenset[tuple[str, int]]  # weights, each with an axis


@dataclass(frozen=True, slots=True)
class Growth:
    """Dims that cannot grow, each with the reason; and those that are shared, with the axes that make them."""

    limits: Mapping[Dim, str]
    shared: Mapping[Dim, Axes]


def find_growth(findings: Findings, dims: Container[Dim]) -> Growth:
    """Ask which of some dims are summed over without a weight to divide, and of these which can be shared."""
    limits: dict[Dim, str] = {}
    for segment, why in findings.undivided:
        for dim in findings.solver.leaves(segment):
            if dim in dims:
                limits.setdefault(dim, why)
    if not limits:
        return Growth({}, {})
    places = _Places(findings)
    shared = {}
    for dim in list(limits):
        axes = _Sharing(places, dim).axes()
        if axes is not None:
            shared[dim] = axes
            del limits[dim]
    return Growth(limits, shared)


class _Places:
    """The axes of everything that a node reads or makes, and who sums over what."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.uses = {(use.node, use.input): use for use in findings.uses}
        self.readers: dict[str, list[int]] = {}
        for use in findings.uses:
            self.readers.setdefault(use.tensor, []).append(use.node)
        self.facings: dict[int, list[Facing]] = {}
        for facing in findings.contractions:
            self.facings.setdefault(facing.node, []).append(facing)

    def read(self, node: Node, index: int) -> tuple[str, Shape]:
        """What a node reads at an input, a scale or bias under its first name; and its axes."""
        use = self.uses.get((node.index, index))
        if use is not None:
            return use.tensor, use.shape
        return node.inputs[index], self.findings.shapes.get(node.inputs[index], ())

    def around(self, name: str) -> Iterator[Node]:
        """The nodes that make or read a value."""
        graph = self.findings.graph
        producer = graph.producer(name)
        if producer is not None:
            yield producer
        yield from graph.consumers(name)
        yield from (graph.nodes[index] for index in self.readers.get(name, ()))


@dataclass(slots=True)
class _Touched:
    """A node that reads or makes channels of a dim: as which inputs, and as which outputs."""

    node: Final[Node]
    holding: Final[list[int]]
    makes: Final[list[str]]


class _Unshared(Exception):
    """Something on the way is not linear, or is needed both divided and as it is; and who began to divide it."""

    def __init__(self, maker: int | None = None) -> None:
        super().__init__()
        self.maker = maker


class _Sharing:
    """One dim: what has its channels is divided (1) or as it is (0), by name.

    All that makes such channels is divided, until something is met that is not linear: then its maker is not.
    """

    def __init__(self, places: _Places, dim: Dim) -> None:
        self._places = places
        self._findings = places.findings
        self._dim = dim
        self._plain: set[int] = set()
        self._divided: dict[str, int] = {}
        self._makers: dict[str, int] = {}
        self._axes: set[tuple[str, int]] = set()

    def axes(self) -> Axes | None:
        """The axes of weights to divide; None where that does not keep the function."""
        try:
            nodes = self._nodes()
        except _Unshared:
            return None
        while True:
            self._divided, self._makers, self._axes = {}, {}, set()
            try:
                for touched in nodes:
                    self._visit(touched)
            except _Unshared as error:
                if error.maker is None:
                    return None
                self._plain.add(error.maker)
            else:
                return frozenset(self._axes)

    def _nodes(self) -> list[_Touched]:
        """Every node that reads or makes channels of the dim, in order."""
        findings = self._findings
        found: dict[int, _Touched] = {}
        summing = (f for f in findings.contractions if not f.parts and f.contraction.operands)
        nodes = findings.graph.nodes
        pending = [
            nodes[f.node].inputs[operand.index]
            for f in summing
            if self._dim in findings.solver.leaves(f.contraction.operands[0].summed)
            for operand in f.contraction.operands
        ]
        if not pending:
            raise _Unshared
        seen = set(pending)
        while pending:
            for node in self._places.around(pending.pop()):
                if node.index in found or node.index in findings.region.nodes:
                    continue
                holding = self._holding(node)
                makes = [name for name in node.outputs if self._held(findings.shapes.get(name, ()))]
                found[node.index] = _Touched(node, holding, makes)
                for name in (*[self._places.read(node, k)[0] for k in holding], *makes):
                    if name not in seen:
                        seen.add(name)
                        pending.append(name)
        return [found[index] for index in sorted(found)]

    def _holding(self, node: Node) -> list[int]:
        """The inputs of a node that hold the dim. Raises _Unshared as `_held` does."""
        return [k for k, name in enumerate(node.inputs) if name and self._held(self._places.read(node, k)[1])]

    def _held(self, shape: Shape) -> tuple[int, ...]:
        """The axes that hold the dim. Raises _Unshared where an element is in two of its channels at once."""
        solver, dim = self._findings.solver, self._dim
        held = tuple([k for k, segment in enumerate(shape) if segment.dims and dim in solver.leaves(segment)])
        if held and (len(held) > 1 or self._often(solver.resolve(shape[held[0]])) > 1):
            raise _Unshared
        return held

    def _often(self, ax: Axis) -> int:
        """In how many channels of the dim an element of an axis is: products count, sums do not."""
        solver, most = self._findings.solver, 0
        for segment in ax.segments:
            times = 0
            for dim in segment.dims:
                if dim is self._dim:
                    times += 1
                elif solver.is_composite(dim):
                    times += self._often(solver.resolve_dim(dim))
            most = max(most, times)
        return most

    def _visit(self, touched: _Touched) -> None:
        constants = self._findings.constants
        node, holding, makes = touched.node, touched.holding, touched.makes
        if (not holding and not makes) or all(name in constants for name in node.outputs):
            return  # constants are divided when they are needed so
        alive = [k for k in holding if node.inputs[k] not in constants]
        summed = self._summing(node)
        if summed is not None:
            wanted = {operand.index for operand in summed.contraction.operands}
            if makes or set(holding) != wanted or any(not self._divided.get(node.inputs[k]) for k in alive):
                raise _Unshared
            if not summed.parts and len(alive) != len(wanted):
                raise _Unshared
            for part in summed.parts:
                if not part.divides:
                    raise _Unshared
                if self._dim in part.leaves:
                    self._note(part.tensor, 1)
            return
        terms = self._terms(node, holding)
        divided = {k for k in alive if self._divided.get(node.inputs[k])}
        maker = min((self._makers[node.inputs[k]] for k in divided), default=node.index)
        degree = int(bool(divided) or (not alive and node.index not in self._plain))
        if degree and (not terms or divided - {k for term in terms for k in term}):
            raise _Unshared(maker)
        for k in holding:
            if k not in alive and (not degree or not any(self._factor(t, divided, alive) == k for t in terms)):
                self._require(node, k, 0)
        for term in terms if degree else ():
            factor = self._factor(term, divided, alive)
            if len(divided & set(term)) > 1 or factor is None:
                raise _Unshared(maker)
            if factor not in alive:
                self._require(node, factor, 1)
        self._divided.update(dict.fromkeys(makes, degree))
        self._makers.update(dict.fromkeys(makes, maker))

    def _summing(self, node: Node) -> Facing | None:
        """The node's contraction over the dim."""
        leaves = self._findings.solver.leaves
        for facing in self._places.facings.get(node.index, ()):
            operands = facing.contraction.operands
            if operands and self._dim in leaves(operands[0].summed):
                return facing
        return None

    def _terms(self, node: Node, holding: list[int]) -> list[list[int]]:
        """The inputs with the dim in each of the node's products; none of an absent input, nor one that lies beside."""
        count = len(node.inputs)
        given = [t for t in self._findings.terms.get(node.index, ()) if all(k < count and node.inputs[k] for k in t)]
        terms = [[k for k in term if k in holding] for term in given]
        return [term for term in terms if term] if node.outputs[0] in self._findings.moved else terms

    def _factor(self, term: list[int], divided: set[int], alive: list[int]) -> int | None:
        """The input of a product that is divided: one that is already, or the first constant; None where none is."""
        already = [k for k in term if k in divided]
        return next(iter(already or [k for k in term if k not in alive]), None)

    def _note(self, name: str, degree: int) -> None:
        if self._divided.setdefault(name, degree) != degree:
            raise _Unshared

    def _require(self, node: Node, index: int, degree: int) -> None:
        """Note that a constant is needed divided, or as it is."""
        name, shape = self._places.read(node, index)
        held = self._held(shape)
        if not held:
            return
        self._note(name, degree)
        producer = None if name in self._findings.graph.weights else self._findings.graph.producer(name)
        if producer is None:
            if degree and name not in self._findings.graph.weights:
                raise _Unshared
            if degree:
                self._axes.update((name, k) for k in held)
            return
        terms = self._terms(producer, holding := self._holding(producer))
        if degree and (not terms or any(not term for term in terms)):
            raise _Unshared
        chosen = {term[0] for term in terms} if degree else set[int]()
        for k in holding:
            self._require(producer, k, int(k in chosen))
