"""What tools/mutate_rules.py breaks and no other test notices, where a target is computed from another layer's shape.

Each model has two layers of as many channels, which nothing ties but that the shape of one is asked for of the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from strategies import Builder
from test_rules import HEIGHT, WIDTH, dense, prove

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.graph import Graph

CHANNELS = 8
Build = Callable[[Builder, str, str], Sequence[str]]


def parts_of_shape(b: Builder, x: str, *parts: int | str) -> str:
    """A target: of each axis that is named its size in x, and other integers as they are (as "4")."""
    sizes = b.node("Shape", [x], (len(b.shapes[x]),))
    made = [
        b.integers([int(part)])
        if isinstance(part, str)
        else b.node("Slice", [sizes, b.integers([part]), b.integers([part + 1])], (1,))
        for part in parts
    ]
    return b.node("Concat", made, (len(parts),), axis=0)


def analysed(build: Build, symbols: Sequence[str]) -> Analysis:
    """Two convolutions, what is built of them, and a layer for each end; some axes are symbolic."""
    b = Builder(random.Random(7), opset=17, batch=3, dynamic=True)
    b.tidy = True
    x = b.input("x", (3, 3, HEIGHT, WIDTH))
    ends = build(b, b.conv(x, CHANNELS), b.conv(x, CHANNELS))
    model = b.model([b.conv(end, 2) if len(b.shapes[end]) == 4 else dense(b, end, 2) for end in ends])
    for axis, symbol in enumerate(symbols):
        if symbol:
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = symbol
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return analyze(Graph(model, input_shapes={"x": (3, 3, HEIGHT, WIDTH)}))


def expanded(*shape: int) -> Build:
    """A weight becomes as large as a map that it is not added to."""

    def build(b: Builder, x: str, y: str) -> Sequence[str]:
        target = b.node("Shape", [x], (4,))
        return [x, y, b.node("Expand", [b.weight(b.floats(*shape)), target], b.shapes[x])]

    return build


def expanded_map(b: Builder, x: str, y: str) -> Sequence[str]:
    """A map becomes as large as another one, which it is as large as already."""
    return [x, b.node("Expand", [y, b.node("Shape", [x], (4,))], b.shapes[x])]


def reshaped(b: Builder, x: str, y: str) -> Sequence[str]:
    """One map as long as the other has channels; in rows."""
    n, c, h, w = b.shapes[x]
    rows = b.node("Reshape", [y, parts_of_shape(b, x, 0, 1, "-1")], (n, c, h * w))
    return [x, b.transpose(rows, (0, 2, 1))]


def as_the_other(*order: int) -> Build:
    """One map in the shape of the other, which it has already; the channels stand anywhere."""

    def build(b: Builder, x: str, y: str) -> Sequence[str]:
        x, y = (b.transpose(t, order) for t in (x, y))
        y = b.node("Reshape", [y, parts_of_shape(b, x, 0, 1, 2, 3)], b.shapes[x])
        return [b.transpose(t, [order.index(k) for k in range(4)]) for t in (x, y)]

    return build


def apart(*parts: int | str) -> Build:
    """Channels in two groups, of as many as a third layer has."""

    def build(b: Builder, x: str, y: str) -> Sequence[str]:
        n, _, h, w = b.shapes[x]
        third = b.conv(x, 4)
        shape = (n, *((4, 2) if parts[1] == 1 else (2, 4)), h, w)
        y = b.node("Reshape", [y, parts_of_shape(b, third, *parts)], shape)
        return [third, b.transpose(y, (0, 3, 4, 1, 2))]

    return build


def as_long_as_a_row(b: Builder, x: str, y: str) -> Sequence[str]:
    """A layer along the height is asked to be as long as a map that no layer makes so long."""
    n, c, h, w = b.shapes[x]
    kernel, wide = b.weight(b.floats(c, c, 1, 1, scale=0.3)), (n, c, h + 1, w)
    x = b.node("Conv", [x, kernel], wide, pads=[1, 0, 0, 0])
    y = b.transpose(dense(b, b.transpose(y, (0, 1, 3, 2)), h + 1), (0, 1, 3, 2))
    y = b.node("Expand", [y, b.node("Shape", [x], (4,))], wide)
    return [x, b.node("Flatten", [y], (n, c * (h + 1) * w), axis=1)]


def repeated(b: Builder, x: str, y: str) -> Sequence[str]:
    """Five tokens for each sample: a literal in front of a computed size."""
    n = b.shapes[x][0]
    tokens = b.node("Expand", [b.weight(b.floats(1, 1, 6)), parts_of_shape(b, x, "5", 0, "1")], (5, n, 6))
    tokens = b.transpose(b.node("Add", [tokens, b.weight(b.floats(5, 1, 6))], (5, n, 6)), (1, 0, 2))
    tokens = b.node("Tanh", [dense(b, tokens, 4)], (n, 5, 4))
    return [x, y, b.node("Flatten", [tokens], (n, 20), axis=1)]


def resized(b: Builder, x: str, y: str) -> Sequence[str]:
    """One map with as many channels as the other has."""
    n, c, h, w = b.shapes[x]
    sizes = b.node("Concat", [parts_of_shape(b, x, 0, 1), b.integers([2 * h, 2 * w])], (4,), axis=0)
    return [x, b.node("Resize", [y, "", "", sizes], (n, c, 2 * h, 2 * w), mode="nearest")]


def halved(*order: int) -> Build:
    """Two heads of half as many channels as the other map has; the channels stand anywhere."""

    def build(b: Builder, x: str, y: str) -> Sequence[str]:
        half = b.node("Div", [parts_of_shape(b, x, 1), b.integers([2])], (1,))
        y = b.transpose(y, order)
        shape, at = list(b.shapes[y]), order.index(1)
        elements = [parts_of_shape(b, y, k) for k in range(4)]
        elements[at : at + 1], shape[at : at + 1] = [b.integers([2]), half], [2, shape[at] // 2]
        y = b.node("Reshape", [y, b.node("Concat", elements, (5,), axis=0)], tuple(shape))
        return [x, b.transpose(y, [k for k in range(5) if k != at + 1] + [at + 1])]

    return build


def in_heads(b: Builder, x: str, y: str) -> Sequence[str]:
    """Heads, whose number and size are literals between computed sizes."""
    n, _, h, w = b.shapes[x]
    y = b.node("Reshape", [y, parts_of_shape(b, x, 0, "2", "4", 2, 3)], (n, 2, 4, h, w))
    y = b.node("Mul", [y, b.weight(b.floats(2, 4, 1, 1))], (n, 2, 4, h, w))
    return [x, b.transpose(y, (0, 3, 4, 1, 2))]


BATCH, ALL = ("N",), ("N", "", "H", "W")


@pytest.mark.parametrize(
    ("build", "symbols", "widths"),
    [
        pytest.param(expanded(CHANNELS, 1, 1), BATCH, [8, 8], id="Expand of a vector"),
        pytest.param(expanded(1, CHANNELS, HEIGHT, 1), BATCH, [8, 8], id="Expand of a tensor"),
        pytest.param(expanded(1), BATCH, [8, 8], id="Expand of one number"),
        pytest.param(expanded_map, BATCH, [8], id="Expand of a map"),
        pytest.param(expanded_map, ALL, [8], id="Expand of a map, symbolic height and width"),
        pytest.param(reshaped, BATCH, [8, 8], id="Reshape"),
        pytest.param(reshaped, ALL, [8], id="Reshape, symbolic height and width"),
        *(
            pytest.param(as_the_other(*order), ALL, [8], id=f"Reshape to a shape, {order}")
            for order in ((0, 1, 2, 3), (0, 2, 1, 3), (0, 2, 3, 1))
        ),
        pytest.param(apart(0, 1, "2", 2, 3), ALL, [2, 8], id="Reshape to as many channels in front"),
        pytest.param(apart(0, "2", 1, 2, 3), ALL, [4, 8], id="Reshape to as many channels behind"),
        pytest.param(repeated, BATCH, [4, 5, 8, 8], id="Expand, a literal in front"),
        pytest.param(as_long_as_a_row, BATCH, [8, 8], id="Expand to a size that stays"),
        pytest.param(resized, BATCH, [8], id="Resize"),
        *(
            pytest.param(halved(*order), ALL, [], id=f"Reshape to a computed size, {order}")
            for order in ((0, 1, 2, 3), (0, 2, 1, 3))
        ),
        pytest.param(in_heads, ALL, [4, 8], id="Reshape with literals, symbolic height and width"),
    ],
)
def test_what_is_asked_of_one_layer_holds_for_the_other(
    build: Build, symbols: Sequence[str], widths: Sequence[int]
) -> None:
    analysis = analysed(build, symbols)
    assert sorted(w.size for w in analysis.widths.values()) == widths
    prove(analysis)
    if not widths:
        kinds = {f.reason.kind for f in analysis.frozen}
        assert {"computed", "computed target"} <= kinds
