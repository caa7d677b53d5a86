"""Which weights are layers, and which of their axes are groups, outputs, inputs and kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from conet_onnx.dims import Axis, Dim, Segment, product
from conet_onnx.folding import Findings
from conet_onnx.graph import Node
from conet_onnx.rules import Op, Shape, find_rule
from conet_onnx.solving import Solver

__all__ = ["Layer", "layers"]

ROLES = "goik"  # groups, outputs, inputs, kernel: the axes of an unfolded weight


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight that a convolution or a matrix product sums over: `outs` and `ins` are the channels of one group.

    `kernel` counts what else is summed over. `shape` is the weight's in the file, where its axes may lie in any order.
    """

    tensor: str
    node: str
    kind: str  # "conv" or "linear"
    shape: tuple[int, ...]
    groups: int
    outs: int
    ins: int
    kernel: int
    factors: tuple[int, ...] = field(repr=False)  # the sizes of what is moved, as it lies in the file
    order: tuple[int, ...] = field(repr=False)  # in which these are read

    def unfolded(self, array: NDArray[Any]) -> NDArray[Any]:
        """The weight's values as [groups, outs, ins, kernel]; a view of them where the axes lie so in the file."""
        moved = array.reshape(self.factors).transpose(self.order)
        return moved.reshape(self.groups, self.outs, self.ins, self.kernel)

    def folded(self, unfolded: NDArray[Any]) -> NDArray[Any]:
        """The reverse: values in the order of `unfolded`, of any shape, in the weight's shape."""
        moved = unfolded.reshape([self.factors[k] for k in self.order])
        return moved.transpose([self.order.index(k) for k in range(len(self.order))]).reshape(self.shape)


def layers(findings: Findings) -> tuple[Layer, ...]:
    """The layers of a graph, in its order, each weight once: as the first node uses it that sums over it.

    A weight may reach that node through what moves its elements (Transpose, Reshape, Identity, Cast, dequantising); one
    that is joined of several, or of which a part is used, is no layer. Neither is a table that data picks rows from.
    """
    found: dict[str, Layer] = {}
    for facing in findings.contractions:
        node = findings.graph.nodes[facing.node]
        if not findings.follows_input(facing.node):
            continue
        for operand in facing.contraction.operands:
            roots = findings.roots(node.inputs[operand.index])
            if len(roots) == 1 and roots[0] not in found and 0 not in findings.graph.weights[roots[0]].dims:
                layer = _layer(findings, node, operand.index, roots[0])
                if layer is not None:
                    found[roots[0]] = layer
    return tuple(found.values())


class _Named(NamedTuple):
    """A factor of an axis: the dim of the weight in the file that it is, or is a part of."""

    dim: Dim
    size: int


class _Meant(NamedTuple):
    """A factor of an axis: what it is to the node."""

    role: str
    size: int


class _Piece(NamedTuple):
    """A factor of both."""

    dim: Dim
    role: str
    size: int


def _layer(findings: Findings, node: Node, index: int, root: str) -> Layer | None:
    moves = _moves(findings, root, node.inputs[index])
    if moves is None:
        return None
    stored, read = moves
    axes = [_refined(named, meant) for named, meant in zip(read, _roles(findings, node, index), strict=True)]
    if any(axis is None for axis in axes):
        return None
    pieces = [piece for axis in axes for piece in axis or ()]
    placed = [k for dim in stored for k, piece in enumerate(pieces) if piece.dim is dim]
    mine = {role: [k for k, piece in enumerate(pieces) if piece.role == role] for role in ROLES}
    groups, outs, ins, kernel = (math.prod(pieces[k].size for k in mine[role]) for role in ROLES)
    return Layer(
        tensor=root,
        node=node.name,
        kind="conv" if "Conv" in node.op else "linear",
        shape=tuple(findings.graph.weights[root].dims),
        groups=groups,
        outs=outs,
        ins=ins,
        kernel=kernel,
        factors=tuple(pieces[k].size for k in placed),
        order=tuple(placed.index(k) for role in ROLES for k in mine[role]),
    )


def _moves(findings: Findings, root: str, name: str) -> tuple[list[Dim], list[list[_Named]]] | None:
    """The dims of a weight as they lie in the file, and the axes of a view of it in these dims.

    None where the view is not the same elements in another order.
    """
    if name == root:
        solver, shape = Solver(), _fresh(root, findings.graph.sizes(root))
        shapes = {root: shape}
    else:
        alone = findings.alone(name)
        solver, shapes = alone.solver, {key: alone.shapes.get(key) for key in (root, name)}
    found: dict[str, list[list[_Named]]] = {}
    for key, shape in shapes.items():
        axes = [solver.resolve(segment) for segment in shape or ()]
        if shape is None or any(len(ax.segments) != 1 or len(_factors(ax)) != len(ax.dims) for ax in axes):
            return None
        found[key] = [[_Named(dim, dim.size[0]) for dim in ax.dims] for ax in axes]
    stored = [named.dim for axis in found[root] for named in axis]
    read = [named.dim for axis in found[name] for named in axis]
    once = len(set(stored)) == len(stored) == len(read)
    return (stored, found[name]) if once and set(stored) == set(read) else None


def _roles(findings: Findings, node: Node, index: int) -> list[list[_Meant]]:
    """What each axis of a node's input is, outermost factor first.

    The node's rule is asked once more, about axes of which nothing else is known: in the graph some are tied to each
    other, and some are plain numbers. What is neither summed over as channels nor in the output is the kernel.
    """
    graph, solver = findings.graph, Solver()
    shapes = [_fresh(name, graph.sizes(name)) if name else None for name in node.inputs]
    while shapes and shapes[-1] is None:
        shapes.pop()
    rule, shape = find_rule(node), shapes[index]
    assert rule is not None
    assert shape is not None  # the same rule has said before that the node sums over it
    facts = rule(Op(node, graph, findings.region.origins, findings.shapes), *shapes)
    for left, right in facts.equal:
        solver.equate(left, right, str(node))
    sides = ((c.produces, side) for c in facts.contracts for side in c.operands if side.index == index)
    produces, operand = next(sides)
    outer, produced = _dims(solver, (operand.outer,)), _dims(solver, produces)
    outputs = _dims(solver, (segment for output in facts.outputs for segment in output or ()))

    roles: list[list[_Meant]] = []
    for axis, segment in enumerate(shape):
        ax = solver.resolve(segment)
        summed, made = axis == operand.axis, not _dims(solver, ax.segments).isdisjoint(produced)
        plain = "i" if summed else "o" if made else "g"  # numbers: gates beside units, the two directions of a layer
        if len(ax.segments) > 1:  # queries, keys and values, say, in one weight
            roles.append([_Meant(plain, ax.size[0])])
            continue
        meant = []
        for factor in _factors(ax):
            dims = _dims(solver, (factor,))
            role = plain
            if dims and summed:
                role = "g" if dims <= outer else "i"
            elif dims:
                role = "o" if dims & produced else "g" if dims & outputs else "k"
            meant.append(_Meant(role, factor.size[0]))
        roles.append(meant)
    return roles


def _refined(named: Sequence[_Named], meant: Sequence[_Meant]) -> list[_Piece] | None:
    """One axis, factored in two ways, in factors of both; None where there are none."""
    left, right = list(reversed(named)), list(reversed(meant))
    pieces: list[_Piece] = []
    while left and right:
        (dim, a), (role, b) = left.pop(), right.pop()
        size = min(a, b)
        if a % size or b % size:
            return None
        pieces.append(_Piece(dim, role, size))
        if a > size:
            left.append(_Named(dim, a // size))
        if b > size:
            right.append(_Meant(role, b // size))
    return None if left or right else pieces


def _fresh(name: str, sizes: Sequence[tuple[int, int]] | None) -> Shape | None:
    """Axes of which nothing is known but their sizes."""
    if sizes is None:
        return None
    return tuple(product(Dim(f"{name}[{k}]", size, rigid=size[0] != size[1])) for k, size in enumerate(sizes))


def _factors(ax: Axis) -> tuple[Segment, ...]:
    """The factors of an axis of one segment, each as a segment."""
    return tuple(product(factor) for factor in ax.segments[0].factors)


def _dims(solver: Solver, segments: Iterable[Segment]) -> frozenset[Dim]:
    return frozenset(dim for segment in segments for dim in solver.leaves(segment))
