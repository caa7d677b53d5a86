"""What ties an axis to others, or freezes it, and what would free it: the answers of `analyze --explain`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from conet_onnx.coupling import Coupling, Member, Width
from conet_onnx.dims import Axis, Factor, Segment
from conet_onnx.errors import UsageError
from conet_onnx.graph import Node
from conet_onnx.hints import hint
from conet_onnx.solving import Reason
from conet_onnx.ties import Link

__all__ = ["Answer", "Asked", "Bond", "bonds", "explain", "formula", "look_up"]

DETAILED = 3  # widths of one axis that get a path each; a concatenation may hold hundreds


@dataclass(frozen=True, slots=True)
class Asked:
    """What a name stands for: widths, or axes of tensors (an axis of None: the tensor has none that are followed)."""

    name: str
    widths: tuple[Width, ...] = ()
    axes: tuple[tuple[str, int | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One axis, or one width by its name (axis None).

    `state` is "resizable", "frozen", "follows" (an input's symbolic size), "one" (a size of one) or "unknown" (the axis
    is not followed). `near` has for each of the first widths the path to the nearest layer besides; `path` leads from a
    frozen axis to where its reason comes from, and is one link long where that is here.
    """

    place: str
    axis: int | None
    state: str
    size: int | None = None
    made_of: str = ""
    widths: tuple[Width, ...] = ()
    near: tuple[tuple[Link, ...], ...] = ()
    reason: Reason | None = None
    path: tuple[Link, ...] = ()

    @property
    def hint(self) -> str:
        """Which change to the model would free it."""
        return hint(self.reason.kind) if self.reason is not None else ""

    def __str__(self) -> str:
        return self.place if self.axis is None else f"{self.place}[{self.axis}]"

    def as_json(self) -> dict[str, Any]:
        """As in `analyze --explain A --json`."""
        reason = self.reason
        return {
            "tensor": None if self.axis is None and self.widths else self.place,
            "axis": self.axis,
            "state": self.state,
            "size": self.size,
            "made_of": self.made_of,
            "widths": [width.id for width in self.widths],
            "near": [_path(path) for path in self.near],
            "reason": reason and {"kind": reason.kind, "node": reason.node, "detail": reason.detail},
            "hint": self.hint,
            "path": _path(self.path),
        }


@dataclass(frozen=True, slots=True)
class Bond:
    """A width that two names share, and the shortest path from the one to the other."""

    width: Width
    path: tuple[Link, ...]

    def as_json(self) -> dict[str, Any]:
        """As in `analyze --explain A --explain B --json`."""
        return {"width": self.width.id, "path": _path(self.path)}


def look_up(coupling: Coupling, name: str) -> Asked:
    """A width's id; a tensor; TENSOR[AXIS]; a node, which stands for its weights, or for what it makes; a width's name.

    What comes first here is tried first: widths are often named after the weight or the node that makes them, which say
    more. Raises UsageError for anything else, with the nearest names.
    """
    graph = coupling.graph
    if name in coupling.all_widths:
        return Asked(name, (coupling.all_widths[name],))
    tensors = dict.fromkeys((*graph.weights, *(v.name for v in graph.inputs)))
    tensors |= dict.fromkeys(output for node in graph.nodes for output in node.outputs if output)
    if name in tensors:
        return Asked(name, axes=tuple(_axes(coupling, name)))
    if (written := re.fullmatch(r"(.+)\[(\d+)\]", name, re.DOTALL)) and written[1] in tensors:
        coupling.ties.at(written[1], int(written[2]))
        return Asked(name, axes=((written[1], int(written[2])),))
    nodes = {node.name: node for node in graph.nodes}
    if name in nodes:
        return Asked(name, axes=tuple(axis for t in _tensors(coupling, nodes[name]) for axis in _axes(coupling, t)))
    if widths := tuple(width for width in coupling.all_widths.values() if width.name == name):
        return Asked(name, widths)
    known = dict.fromkeys((*coupling.all_widths, *tensors, *nodes, *(w.name for w in coupling.all_widths.values())))
    close = get_close_matches(written[1] if written else name, known, n=3, cutoff=0.5)
    did_you_mean = f" Did you mean {', '.join(map(repr, close))}?" if close else ""
    raise UsageError(
        f"--explain {name!r}: no width, tensor or node has this name.{did_you_mean} "
        "Name a width (w0), a tensor, one of its axes as TENSOR[1], or a node."
    )


def explain(coupling: Coupling, asked: Asked) -> tuple[Answer, ...]:
    """Why each axis that was asked for is frozen, or what it is tied to."""
    return (
        *(_about_width(coupling, width) for width in asked.widths),
        *(_about(coupling, tensor, axis) for tensor, axis in asked.axes),
    )


def bonds(coupling: Coupling, a: Asked, b: Asked) -> tuple[Bond, ...]:
    """Every width that two names have in common; () where they are not coupled."""
    found = []
    for width in coupling.widths.values():
        starts, ends = _holding(coupling, a, width), _holding(coupling, b, width)
        if starts and ends and (path := coupling.ties.along(width.dim, starts, ends)):
            found.append(Bond(width, path))
    return tuple(found)


def formula(coupling: Coupling, ax: Axis | Segment) -> str:
    """What an axis is made of, in the ids of widths: `w0 + 2·w3 + 16`."""

    def factor(f: Factor) -> str:
        if isinstance(f, int):
            return str(f)
        if coupling.solver.is_composite(f):
            return f"({written(coupling.solver.resolve_dim(f))})"
        return coupling.ids.get(f) or (str(f.size[0]) if f.size[0] == f.size[1] else f.name)

    def written(resolved: Axis) -> str:
        return " + ".join("·".join(map(factor, s.factors)) or "1" for s in resolved.segments) or "0"

    return written(coupling.solver.resolve(ax))


def _axes(coupling: Coupling, tensor: str) -> Iterator[tuple[str, int | None]]:
    readings = coupling.ties.readings(tensor)
    rank = len(readings[0][1]) if readings else 0
    yield from ((tensor, axis) for axis in range(rank)) if rank else ((tensor, None),)


def _tensors(coupling: Coupling, node: Node) -> tuple[str, ...]:
    """A node's weights, where they are numbers to compute with; else what it makes."""
    weights = (coupling.alias(name) or name for name in node.inputs if name)
    found = dict.fromkeys(w for w in weights if w in coupling.graph.weights and coupling.is_real(w))
    return tuple(found) or tuple(filter(None, node.outputs))


def _holding(coupling: Coupling, asked: Asked, width: Width) -> tuple[tuple[str, int], ...]:
    """The axes of a name that hold a width."""
    if width in asked.widths:
        return tuple((m.tensor, m.axis) for m in width.members)
    return tuple(
        (tensor, axis)
        for tensor, axis in asked.axes
        if axis is not None and width.dim in coupling.dims_at(tensor, axis)
    )


def _about_width(coupling: Coupling, width: Width) -> Answer:
    first = next((m for m in width.members if m.role == "out"), width.members[0])
    if width.id not in coupling.widths:
        reason = Reason("asked", first.tensor, "it was frozen by request")
        return Answer(width.id, None, "frozen", width.size, widths=(width,), reason=reason)
    path = _to_another_layer(coupling, width, first.tensor, first.axis)
    return Answer(width.id, None, "resizable", width.size, widths=(width,), near=(path,))


def _about(coupling: Coupling, tensor: str, axis: int | None) -> Answer:
    if axis is None:
        return Answer(tensor, None, "unknown")
    readings = coupling.ties.at(tensor, axis)
    sizes = readings[0].size
    size = sizes[0] if sizes[0] == sizes[1] else None
    made_of = " or ".join(dict.fromkeys(formula(coupling, segment) for segment in readings))
    held = {dim for segment in readings for dim in coupling.solver.leaves(segment)}
    widths = tuple(width for width in coupling.widths.values() if width.dim in held)
    if sizes == (1, 1):
        return Answer(tensor, axis, "one", 1)
    if widths:
        near = tuple(_to_another_layer(coupling, width, tensor, axis) for width in widths[:DETAILED])
        return Answer(tensor, axis, "resizable", size, made_of, widths, near)
    if size is None:
        return Answer(tensor, axis, "follows", None, made_of)
    reason = coupling.obstacle(tensor, readings[0])
    return Answer(tensor, axis, "frozen", size, made_of, (), (), reason, coupling.ties.origin(tensor, axis, reason))


def _to_another_layer(coupling: Coupling, width: Width, tensor: str, axis: int) -> tuple[Link, ...]:
    """The shortest path to a weight that another layer contracts; to any other member where there is none."""
    graph = coupling.graph
    producer = graph.producer(tensor)
    here = graph.consumers(tensor) if tensor in graph.weights else () if producer is None else (producer,)
    own = {tensor, *(name for node in here for name in node.inputs)}
    others = [m for m in width.members if m.tensor not in own]
    for ends in ([m for m in others if m.role != "channel"], others):
        if ends and (path := coupling.ties.along(width.dim, {(tensor, axis)}, _places(ends))):
            return path
    return ()


def _places(members: Iterable[Member]) -> frozenset[tuple[str, int]]:
    return frozenset((m.tensor, m.axis) for m in members)


def _path(links: Iterable[Link]) -> list[dict[str, Any]]:
    return [{"tensor": link.tensor, "axis": link.axis, "node": link.node} for link in links]
