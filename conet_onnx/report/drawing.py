"""The graph of a model as an SVG: a box for each node, in the colours of the widths of what it makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape

from conet_onnx.coupling import Coupling
from conet_onnx.dims import Segment
from conet_onnx.report.layout import Layout, Wire, arrange

__all__ = ["Box", "Drawing"]

BOX = 204, 36  # width and height
PITCH = 228, 60  # from column to column, from row to row
LANE = 11
MARGIN = 14
PIECES = 48  # of a concatenation are drawn, at most
LETTERS, OPERATOR = 32, 18  # of a name and of an operator fit into a box


@dataclass(frozen=True, slots=True)
class Box:
    """A node of the drawing: one of the graph, or an input or output of the model."""

    name: str
    op: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    mixes: bool = False


class Drawing:
    """The nodes of a graph through which its inputs go, or in which a width is, each in its place.

    Left out are those that make numbers out of sizes, and those that compute with weights or such numbers alone.
    """

    def __init__(self, coupling: Coupling) -> None:
        self._coupling = coupling
        self._number = {width.dim: k for k, width in enumerate(coupling.widths.values())}
        self._ids = tuple(coupling.widths)
        self.boxes = tuple(_boxes(coupling))

    @property
    def left_out(self) -> int:
        """How many nodes are not drawn."""
        graph = self._coupling.graph
        return len(graph.nodes) + len(graph.inputs) + len(graph.outputs) - len(self.boxes)

    @cached_property
    def _layout(self) -> Layout:
        makers: dict[str, int] = {}
        reads: list[list[int]] = []
        for k, box in enumerate(self.boxes):
            reads.append(list(dict.fromkeys(makers[name] for name in box.reads if name in makers)))
            makers.update(dict.fromkeys(filter(None, box.makes), k))
        return arrange(reads, inputs=len(self._coupling.graph.inputs))

    def svg(self) -> str:
        """The picture, which names no colour: class hN is that of the N-th width, and data-w lists ids."""
        layout = self._layout
        self._left = MARGIN + layout.lanes * LANE
        width = self._left + (max(layout.columns, default=0) + 1) * PITCH[0] - (PITCH[0] - BOX[0]) + MARGIN
        height = 2 * MARGIN + (max(layout.rows, default=0) + 1) * PITCH[1] - (PITCH[1] - BOX[1])
        wires = "\n".join(self._wire(wire) for wire in sorted(layout.wires, key=lambda w: (w.source, w.target)))
        boxes = "\n".join(self._box(k) for k in range(len(self.boxes)))
        return (
            f'<svg id="graph" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'data-row="{PITCH[1]}" role="img" aria-label="The graph of the model">\n'
            f'<g class="wires">\n{wires}\n</g>\n{boxes}\n</svg>'
        )

    def _place(self, box: int) -> tuple[int, int]:
        return self._left + self._layout.columns[box] * PITCH[0], MARGIN + self._layout.rows[box] * PITCH[1]

    def _wire(self, wire: Wire) -> str:
        (x, y), (to_x, to_y) = self._place(wire.source), self._place(wire.target)
        x, y, to_x = x + BOX[0] // 2, y + BOX[1], to_x + BOX[0] // 2
        gap, half = PITCH[1] - BOX[1], (PITCH[1] - BOX[1]) // 2
        if wire.column is None and wire.lane is None:
            path = f"M{x} {y}C{x} {y + half} {to_x} {to_y - half} {to_x} {to_y}"
        else:
            between = (
                self._left - (wire.lane + 1) * LANE + LANE // 2
                if wire.lane is not None
                else self._left + (wire.column or 0) * PITCH[0] + BOX[0] // 2
            )
            down = f"C{x} {y + half} {between} {y + half} {between} {y + gap}V{to_y - gap}"
            path = f"M{x} {y}{down}C{between} {to_y - half} {to_x} {to_y - half} {to_x} {to_y}"
        held = self._held(name for name in self.boxes[wire.target].reads if name in self.boxes[wire.source].makes)
        return f'<path d="{path}"{self._classes(held)}/>'

    def _box(self, number: int) -> str:
        box = self.boxes[number]
        x, y = self._place(number)
        pieces = self._pieces(box.makes)
        held = tuple(dict.fromkeys(k for k, _ in pieces if k is not None))
        label = "+".join(self._ids[k] for k in held) if len(held) <= 2 else f"{len(held)} widths"
        op = box.op if len(box.op) <= OPERATOR else f"{box.op[: OPERATOR - 1]}…"
        data = f' data-w="{" ".join(self._ids[k] for k in held)}"' if held else ""
        name = box.name if len(box.name) <= LETTERS else f"…{box.name[1 - LETTERS :]}"
        title = escape(f"{box.op} {box.name}{''.join(f'{chr(10)}{self._ids[k]}' for k in held[:PIECES])}")
        return (
            f'<g class="b{" mix" if box.mixes else ""}" data-n="{number}"{data} transform="translate({x} {y})">'
            f"<title>{title}</title>{_fill(pieces)}"
            f'<rect class="o" width="{BOX[0]}" height="{BOX[1]}" rx="5"/><text x="8" y="15">{escape(op)}</text>'
            f'<text class="n" x="8" y="29">{escape(name)}</text>'
            f'<text class="w" x="{BOX[0] - 8}" y="15">{label}</text></g>'
        )

    def _classes(self, held: Sequence[int]) -> str:
        if not held:
            return ""
        return f' class="h{held[0]}" data-w="{" ".join(self._ids[k] for k in held)}"'

    def _held(self, tensors: Iterable[str]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(k for k, _ in self._pieces(tensors) if k is not None))

    def _pieces(self, tensors: Iterable[str]) -> list[tuple[int | None, float]]:
        """What the resizable axes of some tensors are made of: the number of a width (None: frozen), and a share."""
        shapes = [shape for t in tensors if (shape := self._coupling.shapes.get(t)) is not None]
        axes = dict.fromkeys(tuple(found) for shape in shapes for segment in shape if (found := self._along(segment)))
        return [(k, size / sum(s for _, s in axis) / len(axes)) for axis in axes for k, size in axis]

    def _along(self, segment: Segment) -> list[tuple[int | None, int]]:
        found: list[tuple[int | None, int]] = []
        for part in self._coupling.solver.resolve(segment).segments:
            held = dict.fromkeys(self._number[d] for d in self._coupling.solver.leaves(part) if d in self._number)
            found += [(k, part.size[0] // len(held)) for k in held] or [(None, part.size[0])]
        return found if any(k is not None for k, _ in found) else []


def _fill(pieces: Sequence[tuple[int | None, float]]) -> str:
    shown = pieces[:PIECES]
    whole = sum(share for _, share in shown)
    made, at = [f'<rect class="f" width="{BOX[0]}" height="{BOX[1]}" rx="5"/>'], 0.0
    for number, share in shown:
        end = at + BOX[0] * share / whole
        if number is not None:
            rounded = ' rx="5"' if len(shown) == 1 else ""
            made.append(f'<rect class="h{number}" x="{at:.4g}" width="{end - at:.4g}" height="{BOX[1]}"{rounded}/>')
        at = end
    return "".join(made)


def _boxes(coupling: Coupling) -> Iterator[Box]:
    graph = coupling.graph
    mixing = {node for node, _ in coupling.mixes}
    for value in graph.inputs:
        yield Box(value.name, "input", (), (value.name,))
    fed = {value.name for value in graph.inputs}
    for node in graph.nodes:
        reads = tuple(name for name in (*node.inputs, *node.captured) if name)
        if node.index in coupling.region.nodes or coupling.constants.issuperset(filter(None, node.outputs)):
            continue
        if not fed.isdisjoint(reads):
            fed.update(node.outputs)
        elif not any(_holds_width(coupling, name) for name in node.outputs):
            continue
        yield Box(node.name, node.op, reads, tuple(filter(None, node.outputs)), node.index in mixing)
    for value in graph.outputs:
        yield Box(value.name, "output", (value.name,), ())


def _holds_width(coupling: Coupling, tensor: str) -> bool:
    shape = coupling.shapes.get(tensor, ())
    return any(not coupling.resizable.isdisjoint(coupling.solver.leaves(segment)) for segment in shape)
