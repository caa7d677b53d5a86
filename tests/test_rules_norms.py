"""What normalisations, reductions and other moves of elements say about their axes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from strategies import Builder
from test_rules import HEIGHT, WIDTH, Build, Case, check, dense, grid

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph
from conet_onnx.rules import RULES, WITHOUT


def by_channel(op: str, parameters: int = 2, **attributes: Any) -> Build:
    """With a scale, and a bias, of one number a channel."""

    def build(b: Builder, x: str) -> str:
        shape = b.shapes[x]
        given = [b.weight(b.floats(shape[1], scale=0.2, around=1.0)) for _ in range(parameters)]
        return b.node(op, [x, *given], shape, **attributes)

    return build


def last(op: str, parameters: int, *, mean: bool = False, axes: int = 1) -> Build:
    """Channels last, normalised, and first again."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        y = b.transpose(x, (0, 2, 3, 1))
        own = (c,) if axes == 1 else (w, c)
        given = [b.weight(b.floats(*own, scale=0.2, around=1.0)) for _ in range(parameters)]
        outputs = b.node_of(op, [y, *given], [(n, h, w, c), (n, h, *(1 for _ in own))][: 1 + mean], axis=-axes)
        y = b.node("Mul", outputs, (n, h, w, c)) if mean else outputs[0]
        return b.transpose(y, (0, 3, 1, 2))

    return build


def group_norm_by_hand(groups: int) -> Build:
    """Reshape, InstanceNormalization, Reshape, and a scale: how exporters say GroupNorm before opset 18."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        y = b.reshape(x, (n, groups, c // groups * h * w))
        ones, zeros = b.weight(np.ones(groups, np.float32)), b.weight(np.zeros(groups, np.float32))
        y = b.reshape(b.node("InstanceNormalization", [y, ones, zeros], b.shapes[y]), (n, c, h, w))
        return b.node("Mul", [y, b.weight(b.floats(c, 1, 1, scale=0.2, around=1.0))], (n, c, h, w))

    return build


def reduced(op: str, axes: Sequence[int], keep: bool = True, input_from: int = 18) -> Build:
    def build(b: Builder, x: str) -> str:
        shape = b.shapes[x]
        y = b.node("Sigmoid", [x], shape)  # positive, for logarithms
        inputs, attributes = [y], {}
        if b.opset >= input_from:
            inputs.append(b.integers(axes))
        else:
            attributes["axes"] = list(axes)
        out = tuple(1 if i in axes else s for i, s in enumerate(shape) if keep or i not in axes)
        y = b.node(op, inputs, out, keepdims=int(keep), **attributes)
        return b.node("Mul", [x, y], shape) if keep else y

    return build


def top_k(axis: int) -> Build:
    def build(b: Builder, x: str) -> str:
        shape = tuple(2 if i == axis else s for i, s in enumerate(b.shapes[x]))
        return b.node_of("TopK", [x, b.integers([2])], [shape, shape], axis=axis)[0]

    return build


def triangle(axes: tuple[int, int, int, int]) -> Build:
    def build(b: Builder, x: str) -> str:
        y = b.transpose(x, axes)
        y = b.node("Trilu", [y], b.shapes[y], upper=0)
        return b.transpose(y, tuple(int(a) for a in np.argsort(axes)))

    return build


def rows_picked(b: Builder, x: str) -> str:
    n, c, _, w = b.shapes[x]
    return b.node("Gather", [x, b.integers([2, 0, 2])], (n, c, 3, w), axis=2)


def embedded(b: Builder, x: str) -> str:
    """Words by number, made as wide as the channels, and added to them."""
    n, c, h, w = b.shapes[x]
    words = b.node("Gather", [b.weight(b.floats(9, c)), b.integers([7, 0, 3])], (w, c))
    y = b.node("Add", [b.transpose(x, (0, 2, 3, 1)), words], (n, h, w, c))
    return b.transpose(y, (0, 3, 1, 2))


def tiled(*repeats: int) -> Build:
    def build(b: Builder, x: str) -> str:
        shape = tuple(n * s for n, s in zip(repeats, b.shapes[x], strict=True))
        return b.node("Tile", [x, b.integers(repeats)], shape)

    return build


def expanded(source: tuple[int, ...], target: Sequence[int] | None = None) -> Build:
    """A constant (-1: as many as there are channels), repeated to a shape, and added."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        shape = b.integers([c if s == -1 else s for s in target]) if target else b.node("Shape", [x], (4,))
        out = np.broadcast_shapes(tuple(c if s == -1 else s for s in source), (*(target or (n, c, h, w)),))
        y = b.node("Expand", [b.weight(b.floats(*(c if s == -1 else s for s in source))), shape], out)
        return b.node("Add", [x, y], (n, c, h, w))

    return build


def einsum(equation: str, weight: Sequence[int] = (), then: Sequence[int] = ()) -> Build:
    """With a weight (-1: as many as there are channels), or with the map itself."""

    def build(b: Builder, x: str) -> str:
        shape = [b.shapes[x][1] if s == -1 else s for s in weight]
        other = b.weight(b.floats(*shape, scale=0.5)) if weight else x
        left, output = equation.split("->")
        sizes = dict(zip(left.replace(",", ""), (*b.shapes[x], *b.shapes[other]), strict=True))
        y = b.node("Einsum", [x, other], tuple(sizes[letter] for letter in output), equation=equation)
        return b.transpose(y, then) if then else y

    return build


def where(b: Builder, x: str) -> str:
    """A mask of channels that is a constant, and a value for each channel that it hides."""
    c = b.shapes[x][1]
    mask = b.weight(np.arange(c).reshape(c, 1, 1) % 2 == 0)
    return b.node("Where", [mask, x, b.weight(b.floats(c, 1, 1))], b.shapes[x])


def remainder(b: Builder, x: str) -> str:
    c = b.shapes[x][1]
    return b.node("Mod", [x, b.weight(b.floats(c, 1, 1, scale=0.1, around=2.0))], b.shapes[x], fmod=1)


def to_space(mode: str) -> Build:
    def build(b: Builder, x: str) -> str:
        n, _, h, w = b.shapes[x]
        return b.node("DepthToSpace", [b.conv(x, 12)], (n, 3, 2 * h, 2 * w), blocksize=2, mode=mode)

    return build


def to_depth(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    x = b.pad(x, 3, 0, 1)
    return b.node("SpaceToDepth", [x], (n, 4 * c, h // 2, (w + 1) // 2), blocksize=2)


def cast_like(b: Builder, x: str) -> str:
    return b.node("CastLike", [x, b.weight(b.floats(1))], b.shapes[x])


def feed_forward(b: Builder, x: str) -> str:
    """A transformer's block without attention: two normalised layers, each added to what it reads."""
    n, c, h, w = b.shapes[x]
    y = b.transpose(b.reshape(x, (n, c, h * w)), (0, 2, 1))
    for wide in (5, 7):
        z = b.node("LayerNormalization", [y, b.weight(b.floats(c)), b.weight(b.floats(c))], (n, h * w, c))
        z = dense(b, b.node("Tanh", [dense(b, z, wide)], (n, h * w, wide)), c)
        y = b.node("Add", [y, z], (n, h * w, c))
    return b.reshape(b.transpose(y, (0, 2, 1)), (n, c, h, w))


NEWER = (13, 18, 21)
SUMS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare")
CASES = [
    Case("InstanceNormalization", by_channel("InstanceNormalization"), [6]),
    Case("GroupNorm by hand", group_norm_by_hand(2), [2, 3], mixed=[3]),
    Case("GroupNorm by hand of one group", group_norm_by_hand(1), [6], mixed=[6]),
    Case("GroupNormalization", by_channel("GroupNormalization", num_groups=2), [2, 3], mixed=[3], opsets=(21,)),
    Case("GroupNormalization of one group", by_channel("GroupNormalization", num_groups=1), [6], [], (21,), mixed=[6]),
    Case("LayerNormalization", last("LayerNormalization", 2), [6], mixed=[6], opsets=(18, 21)),
    Case("LayerNormalization without bias", last("LayerNormalization", 1), [6], mixed=[6], opsets=(18,)),
    Case("LayerNormalization with its mean", last("LayerNormalization", 2, mean=True), [6], mixed=[6], opsets=(18,)),
    Case("LayerNormalization of two axes", last("LayerNormalization", 2, axes=2), [6], mixed=[6], opsets=(18,)),
    Case("RMSNormalization", last("RMSNormalization", 1), [6], mixed=[6], opsets=(23,)),
    Case("MeanVarianceNormalization", by_channel("MeanVarianceNormalization", 0, axes=[2, 3]), [6]),
    Case(
        "MeanVarianceNormalization over channels", by_channel("MeanVarianceNormalization", 0, axes=[1]), [6], mixed=[6]
    ),
    Case("LpNormalization", by_channel("LpNormalization", 0, axis=1), [], frozen=("norm",)),
    Case("LpNormalization over space", by_channel("LpNormalization", 0, axis=3), [6]),
    Case("LRN", by_channel("LRN", 0, size=3), [], frozen=("neighbours",)),
    Case("ReduceMax over channels", reduced("ReduceMax", [1]), [6], mixed=[6]),
    Case("ReduceMin over channels and height", reduced("ReduceMin", [1, 2]), [6], mixed=[6]),
    Case("ReduceMax over space", reduced("ReduceMax", [2, 3], keep=False), [6]),
    Case("ReduceSum over channels", reduced("ReduceSum", [1], input_from=13), [], frozen=("sum",)),
    Case("ReduceSum over space", reduced("ReduceSum", [2, 3], input_from=13), [6]),
    *(Case(f"{op} over channels", reduced(op, [1]), [], frozen=("sum",), opsets=(11, 18)) for op in SUMS),
    *(Case(f"{op} over space", reduced(op, [2, 3]), [6], opsets=(11, 18)) for op in SUMS),
    Case("TopK of channels", top_k(1), [], frozen=("positions",)),
    Case("TopK along space", top_k(3), [6]),
    Case("Tile of channels", tiled(1, 3, 1, 1), [6]),
    Case("Tile of space", tiled(1, 1, 2, 1), [6]),
    Case("Expand of channels", expanded((6, 1, 1), [6, HEIGHT, 1]), [6]),
    Case("Expand to more axes", expanded((6, 1, 1), [1, 6, 1, WIDTH]), [6]),
    Case("Expand by a smaller target", expanded((1, 6, 1, 1), [HEIGHT, WIDTH]), [6]),
    Case("Expand by a target of ones", expanded((6, 1, 1), [1, 1, 1]), [6]),
    Case("Expand from one to the channels", expanded((1, 1, 1), [6, HEIGHT, 1]), [6]),
    Case("Expand to the shape of another", expanded((6, 1, 1)), [6]),
    Case("Expand from one to the shape of another", expanded((1,)), [6]),
    Case("Einsum with a weight", einsum("nchw,co->nohw", (-1, 5)), [6, 5], opsets=NEWER),
    Case("Einsum with a weight, transposed", einsum("nchw,oc->nhwo", (5, -1), (0, 3, 1, 2)), [6, 5], opsets=NEWER),
    Case("Einsum with a scale", einsum("nchw,c->nchw", (-1,)), [6], opsets=NEWER),
    Case("Einsum by channel and row", einsum("nchw,chk->nckw", (-1, HEIGHT, 2)), [6], opsets=NEWER),
    Case("Einsum over channels and rows", einsum("nchw,chk->nkw", (-1, HEIGHT, 5)), [6, 5], opsets=NEWER),
    Case("Einsum of two activations", einsum("nchw,nchv->nwvh", (), (0, 3, 1, 2)), [6], opsets=NEWER),
    Case("Einsum of channels by channels", einsum("nchw,ndhw->ncd", ()), [], dynamic=(False,), opsets=NEWER),
    Case("Trilu of space", triangle((0, 1, 2, 3)), [6], opsets=(18, 21)),
    Case("Trilu with channels", triangle((0, 2, 3, 1)), [], frozen=("positions",), opsets=(18, 21)),
    Case("Gather of rows", rows_picked, [6]),
    Case("Gather of words", embedded, [6], frozen=("picked",)),
    Case("Where with a mask of channels", where, [6]),
    Case("Mod", remainder, [6]),
    Case("CastLike", cast_like, [6], opsets=(18, 21)),
    Case("DepthToSpace", to_space("DCR"), [6, 3]),
    Case("DepthToSpace, columns first", to_space("CRD"), [6, 3]),
    Case("SpaceToDepth", to_depth, [6]),
    Case("a feed-forward block", feed_forward, [6, 5, 7], mixed=[6], opsets=(18, 21)),
]


def test_every_operator_has_a_rule_or_a_reason_why_not() -> None:
    ops = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    current = {op for op in ops if not onnx.defs.get_schema(op).deprecated}
    assert current <= RULES.keys() | WITHOUT.keys()
    assert {op for op in RULES.keys() | WITHOUT.keys() if "." not in op} <= ops | {"SimplifiedLayerNormalization"}
    assert RULES.keys().isdisjoint(WITHOUT)
    assert all(len(why.split()) > 3 for why in WITHOUT.values())


def test_the_reason_is_what_a_user_reads() -> None:
    b = Builder(random.Random(0), opset=18)
    b.tidy = True
    x = b.conv(b.input("x", (2, 3, HEIGHT, WIDTH)), 6)
    y = b.node("RandomUniformLike", [x], b.shapes[x])
    details = {frozen.reason.detail for frozen in analyze(Graph(b.model([b.conv(y, 2)]))).frozen}
    assert any("RandomUniformLike" in detail and WITHOUT["RandomUniformLike"] in detail for detail in details)


@pytest.mark.parametrize(("case", "opset", "dynamic"), grid(CASES))
def test_an_operator_resizes_exactly_or_freezes(case: Case, opset: int, dynamic: bool) -> None:
    check(case, opset, dynamic)
