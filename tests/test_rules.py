"""What every operator says about its axes: small models around one operator, resized and compared by both oracles."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import oracles
import pytest
from onnx import TensorProto, helper, numpy_helper
from strategies import INT_MAX, Builder

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.contrib import apart_from_onnx
from conet_onnx.graph import Graph
from conet_onnx.planning import select
from conet_onnx.rewriting import rewrite

HEIGHT, WIDTH = 4, 3
Build = Callable[[Builder, str], str | Sequence[str]]


@dataclass(frozen=True)
class Case:
    """conv -> something -> conv or dense layer: the sizes of the widths, and what kinds of reasons freeze the rest."""

    name: str
    build: Build
    widths: Sequence[int]
    frozen: Sequence[str] = ()  # beside "input" and "output"
    opsets: Sequence[int] = (11, 13, 18, 21)
    channels: int = 6
    mixed: Sequence[int] = ()
    bounded: Sequence[int] | None = ()  # those that cannot grow; None: not asked
    dynamic: Sequence[bool] = (False, True)
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def made(case: Case, opset: int, dynamic: bool = False) -> onnx.ModelProto:
    """The model of a case: a convolution, what the case builds, and a layer for every end."""
    b = Builder(random.Random(7), opset=opset, batch=3 if dynamic else 2, dynamic=dynamic)
    b.tidy = True
    h = b.conv(b.input("x", (b.batch, 3, HEIGHT, WIDTH)), case.channels)
    ends = case.build(b, h)
    outputs = []
    for end in [ends] if isinstance(ends, str) else ends:
        if len(b.shapes[end]) == 4:
            outputs.append(b.conv(end, 2))
        else:  # [N, C, L] as [N, L, C]
            outputs.append(dense(b, b.transpose(end, (0, 2, 1)) if len(b.shapes[end]) == 3 else end, 2))
    return b.model(outputs)


def dense(b: Builder, x: str, o: int) -> str:
    """A matrix product over the last axis."""
    *outer, k = b.shapes[x]
    return b.node("MatMul", [x, b.weight(b.floats(k, o, scale=1 / np.sqrt(k)))], (*outer, o))


def prove(analysis: Analysis, seeds: int = 3, alive: float = 1e-3) -> None:
    """Both oracles, mixtures of them, validity and price."""
    rng = np.random.default_rng(0)
    smaller = oracles.shrunk(analysis, rng)
    outcome = oracles.compare(analysis, smaller)
    assert outcome.compared
    assert not smaller or outcome.moved > alive
    oracles.compare(analysis, oracles.doubled(analysis, rng))
    for selections in (
        smaller,
        oracles.single(analysis),
        *(oracles.resized_at_random(analysis, rng) for _ in range(seeds)),
    ):
        oracles.compare(analysis, selections)
        resized = rewrite(analysis.graph, select(analysis, selections))
        oracles.assert_valid(resized, analysis.graph)
        sizes = {n: len(s.indices) for n, s in selections.items()}
        if any(size != analysis.widths[n].size for n, size in sizes.items()):
            assert tuple(analysis.costs.price(sizes)) == oracles.counted(resized)
    assert tuple(analysis.costs.price({})) == oracles.counted(analysis.graph)


def kinds(analysis: Analysis) -> set[str]:
    """Why weights' axes are frozen, but for the model's own inputs and outputs and what no layer makes."""
    return {f.reason.kind for f in analysis.frozen} - {"input", "output", "not made", "spatial", "fixed"}


# The table


def unary(op: str, **attributes: Any) -> Build:
    return lambda b, x: b.node(op, [x], b.shapes[x], **attributes)


def constant(op: str, *shape: int, first: bool = False, around: float = 1.0) -> Build:
    def build(b: Builder, x: str) -> str:
        c = b.weight(b.floats(*(b.shapes[x][1] if s == -1 else s for s in shape), scale=0.2, around=around))
        return b.node(op, [c, x] if first else [x, c], b.shapes[x])

    return build


def sliced(start: int, end: int, step: int | None = None, axis: int = 1) -> Build:
    def build(b: Builder, x: str) -> Sequence[str]:
        shape = list(b.shapes[x])
        shape[axis] = len(range(shape[axis])[start : min(end, 2**31) : step])
        inputs = [x, b.integers([start]), b.integers([end]), b.integers([axis])]
        return [x, b.node("Slice", inputs + ([b.integers([step])] if step else []), tuple(shape))]

    return build


def grouped(op: str, group: int, channels: int) -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        if op == "Conv":
            return b.conv(x, channels, kernel=3, group=group)
        weight = b.weight(b.floats(c, channels // group, 3, 3, scale=0.3))
        bias = b.weight(b.floats(channels))
        return b.node("ConvTranspose", [x, weight, bias], (n, channels, h, w), group=group, pads=[1] * 4)

    return build


def concat_of_three(b: Builder, x: str) -> str:
    """8 + 12 + 4 channels in two groups."""
    n, _, h, w = b.shapes[x]
    parts = [b.conv(x, c, kernel=3) for c in (8, 12, 4)]
    return b.conv(b.node("Concat", parts, (n, 24, h, w), axis=1), 10, group=2)


def concat_with_itself(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    return b.node("Concat", [x, x], (n, 2 * c, h, w), axis=1)


def shuffle(groups: int, times: int = 1) -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        for _ in range(times):
            apart = b.node("Reshape", [x, b.integers([n, groups, c // groups, h, w])], (n, groups, c // groups, h, w))
            if b.dynamic:
                b.initializers[-1] = numpy_helper.from_array(
                    np.array([-1, groups, c // groups, h, w]), b.initializers[-1].name
                )
            x = b.node("Reshape", [b.transpose(apart, (0, 2, 1, 3, 4)), b.integers([-1, c, h, w])], (n, c, h, w))
        return x

    return build


def shuffled_halves(b: Builder, x: str) -> Sequence[str]:
    """ShuffleNet: split, shuffle, split again."""
    n, c, h, w = b.shapes[x]
    x = shuffle(2)(b, x)  # type: ignore[assignment]  # it gives what it was given
    left, right = b.split(x, 1, [c // 2, c // 2])
    joined = b.node("Concat", [left, b.conv(right, c // 2)], (n, c, h, w), axis=1)
    return shuffle(2)(b, joined)


def flattened(how: str) -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        if how == "flatten":
            return b.node("Flatten", [x], (n, c * h * w), axis=1)
        if how == "negative axis":
            return b.node("Flatten", [x], (n, c * h * w), axis=-3)
        target = {"-1 behind": [0, -1], "-1 in front": [-1, c * h * w]}[how]
        return b.node("Reshape", [x, b.integers(target)], (n, c * h * w))

    return build


def computed_flatten(element: str) -> Build:
    """x.view(x.size(0), ...) in the ways of several exporters."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        sizes = b.node("Shape", [x], (4,))
        if element == "gather":
            batch = b.unsqueeze(b.node("Gather", [sizes, b.weight(np.array(0))], (), axis=0), [0])
        else:
            batch = b.node("Slice", [sizes, b.integers([0]), b.integers([1])], (1,))
        rest = b.integers([-1])
        if element == "product":  # c·h·w multiplied out of the shape
            axes = [b.node("Gather", [sizes, b.weight(np.array([k]))], (1,), axis=0) for k in (1, 2, 3)]
            rest = b.node("Mul", [b.node("Mul", axes[:2], (1,)), axes[2]], (1,))
        target = b.node("Concat", [batch, rest], (2,), axis=0)
        return b.node("Reshape", [x, target], (n, c * h * w))

    return build


def three_parts_in_front(b: Builder, x: str) -> str:
    """Channels as three axes, in the first places, and the other way round."""
    n, c, h, w = b.shapes[x]
    y = b.transpose(x, (1, 0, 2, 3))
    y = b.node("Reshape", [y, b.integers([2, 3, c // 6, n, h, w])], (2, 3, c // 6, n, h, w))
    y = b.transpose(y, (3, 2, 1, 0, 4, 5))
    return b.node("Reshape", [y, b.integers([n, c, h, w])], (n, c, h, w))


def computed_shuffle(b: Builder, x: str) -> str:
    """n, c, h, w = x.shape; x.view(n, 2, c // 2, h, w): c is computed while the model runs."""
    n, c, h, w = b.shapes[x]
    sizes = b.node("Shape", [x], (4,))
    axes = [b.node("Gather", [sizes, b.weight(np.array([k]))], (1,), axis=0) for k in range(4)]
    half = b.node("Div", [axes[1], b.integers([2])], (1,))
    apart = b.node("Concat", [axes[0], b.integers([2]), half, axes[2], axes[3]], (5,), axis=0)
    y = b.node("Reshape", [x, apart], (n, 2, c // 2, h, w))
    y = b.transpose(y, (0, 2, 1, 3, 4))
    return b.node("Reshape", [y, b.node("Concat", axes, (4,), axis=0)], (n, c, h, w))


def zero_reshape(b: Builder, x: str) -> str:
    """0 copies an axis, -1 takes the rest."""
    n, c, h, w = b.shapes[x]
    flat = b.node("Reshape", [x, b.integers([0, 0, -1])], (n, c, h * w))
    return b.node("Reshape", [b.node("Relu", [flat], (n, c, h * w)), b.integers([0, 0, h, w])], (n, c, h, w))


def split_as(spelling: str) -> Build:
    def build(b: Builder, x: str) -> Sequence[str]:
        n, c, h, w = b.shapes[x]
        sizes = [2, 3, 1] if spelling == "uneven" else [c // 3] * 3
        shapes = [(n, s, h, w) for s in sizes]
        if spelling == "num_outputs":
            return b.node_of("Split", [x], shapes, axis=1, num_outputs=3)
        if spelling == "equal":
            return b.node_of("Split", [x], shapes, axis=-3)
        if b.opset < 13:
            return b.node_of("Split", [x], shapes, axis=1, split=sizes)
        return b.node_of("Split", [x, b.integers(sizes)], shapes, axis=1)

    return build


def padded(low: int, high: int, **kwargs: Any) -> Build:
    def build(b: Builder, x: str) -> str:
        y = b.pad(x, 1, low, high, **kwargs)
        return b.node("Add", [y, b.conv(x, b.shapes[y][1])], b.shapes[y])

    return build


def pooled(op: str, **attributes: Any) -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        shape = (n, c, 1, 1) if op.startswith("Global") else (n, c, h - 1, w - 1)
        return b.node(op, [x], shape, **attributes)

    return build


def excited(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    gate = b.conv(b.node("GlobalAveragePool", [x], (n, c, 1, 1)), 4)
    gate = b.conv(b.node("Relu", [gate], (n, 4, 1, 1)), c)
    return b.node("Mul", [x, b.node("Sigmoid", [gate], (n, c, 1, 1))], (n, c, h, w))


def squeezed(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    flat = b.squeeze(b.mean(x, [2, 3]), [2, 3])
    back = b.unsqueeze(dense(b, b.node("Tanh", [flat], (n, c)), c), [2, 3])
    return b.node("Mul", [x, back], (n, c, h, w))


def mean_over(axes: Sequence[int], keep: bool = True, then: bool = True) -> Build:
    def build(b: Builder, x: str) -> str:
        mean = b.mean(x, axes, keep)
        return b.node("Mul", [x, mean], b.shapes[x]) if then else mean

    return build


def mean_of_sum(b: Builder, x: str) -> str:
    """The mean over a concat."""
    n, c, h, w = b.shapes[x]
    y = b.node("Concat", [x, b.conv(x, 4)], (n, c + 4, h, w), axis=1)
    return b.node("Mul", [y, b.mean(y, [1])], (n, c + 4, h, w))


def mean_of_all(b: Builder, x: str) -> str:
    """No axes at all: everything is averaged."""
    mean = b.node("ReduceMean", [x], (1, 1, 1, 1), keepdims=1)
    return b.node("Mul", [x, mean], b.shapes[x])


def channels_last(b: Builder, x: str) -> str:
    y = b.transpose(x, (0, 2, 3, 1))
    c = b.shapes[y][3]
    y = b.node("Add", [y, b.weight(b.floats(c))], b.shapes[y])
    y = b.node("Mul", [dense(b, y, 5), b.weight(b.floats(5, around=1))], (*b.shapes[y][:3], 5))
    return b.transpose(y, (0, 3, 1, 2))


def gemm(trans_a: int = 0, trans_b: int = 0, bias: Sequence[int] | None = (-1,)) -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        flat = b.node("Flatten", [x], (n, c * h * w), axis=1)
        for o in (7, 5):
            k = b.shapes[flat][1]
            weight = b.floats(k, o, scale=1 / np.sqrt(k))
            source = b.transpose(flat, (1, 0)) if trans_a else flat
            inputs = [source, b.weight(weight.T.copy() if trans_b else weight)]
            if bias is not None:
                inputs.append(b.weight(b.floats(*(o if s == -1 else s for s in bias))))
            flat = b.node("Gemm", inputs, (n, o), transA=trans_a, transB=trans_b, alpha=0.5, beta=1.5)
        return flat

    return build


def gemm_weight_first(b: Builder, x: str) -> str:
    """Y = W·X: the weight is A, and the batch is a column."""
    n, c, h, w = b.shapes[x]
    flat = b.node("Flatten", [x], (n, c * h * w), axis=1)
    k = c * h * w
    made = b.node("Gemm", [b.weight(b.floats(5, k, scale=1 / np.sqrt(k))), flat], (5, n), transB=1)
    return b.transpose(made, (1, 0))


def weight_on_the_left(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    flat = b.node("Reshape", [x, b.integers([0, c, h * w])], (n, c, h * w))
    y = b.node("MatMul", [b.weight(b.floats(5, c)), flat], (n, 5, h * w))
    return b.node("Reshape", [y, b.integers([-1, 5, h, w])], (n, 5, h, w))


def stacked_matmul(b: Builder, x: str) -> str:
    """A weight of rank three: one matrix for each head."""
    n, c, h, w = b.shapes[x]
    heads = b.node("Reshape", [x, b.integers([-1, 2, c // 2, h * w])], (n, 2, c // 2, h * w))
    turned = b.transpose(heads, (0, 1, 3, 2))
    y = b.node("MatMul", [turned, b.weight(b.floats(2, c // 2, 4))], (n, 2, h * w, 4))
    y = b.transpose(y, (0, 1, 3, 2))
    return b.node("Reshape", [y, b.integers([-1, 8, h * w])], (n, 8, h * w))


def vector_product(b: Builder, x: str) -> str:
    """MatMul with a vector: the axis disappears."""
    n, c, h, w = b.shapes[x]
    y = b.node("MatMul", [b.transpose(x, (0, 2, 3, 1)), b.weight(b.floats(c))], (n, h, w))
    y = b.unsqueeze(y, [1])
    return b.node("Mul", [x, y], (n, c, h, w))


def residual(op: str) -> Build:
    def build(b: Builder, x: str) -> str:
        other = b.conv(b.node("Relu", [x], b.shapes[x]), b.shapes[x][1], kernel=3)
        return b.node(op, [x, other], b.shapes[x])

    return build


def shared_norm(b: Builder, x: str) -> Sequence[str]:
    """One set of parameters for two branches: exporters store equal vectors once."""
    parameters = b.norm_parameters(b.shapes[x][1])
    return [b.norm(x, parameters), b.norm(b.conv(x, b.shapes[x][1]), parameters)]


def shared_bias(alias: bool) -> Build:
    """One bias for layers whose channels have nothing to do with each other; read directly or through Identity."""

    def build(b: Builder, x: str) -> Sequence[str]:
        bias = b.weight(b.floats(5))
        names = [bias, b.node("Identity", [bias], (5,)) if alias else bias]
        names.append(b.node("Identity", [names[1]], (5,)) if alias else bias)
        return [b.conv(x, 5, bias=name) for name in names]

    return build


def alias_through(op: str) -> Build:
    """A scale that two layers read, one through a node that is not Identity."""

    def build(b: Builder, x: str) -> Sequence[str]:
        scale = b.weight(b.floats(b.shapes[x][1], around=1))
        viewed = b.unsqueeze(scale, [1, 2])
        if op == "Cast":
            viewed = b.node("Cast", [viewed], b.shapes[viewed], to=TensorProto.FLOAT)
        other = b.conv(x, b.shapes[x][1])
        return [
            b.node("Mul", [x, viewed], b.shapes[x]),
            b.node("BatchNormalization", [other, scale, *b.norm_parameters(b.shapes[x][1])[1:]], b.shapes[other]),
        ]

    return build


def tied_weight(b: Builder, x: str) -> str:
    """One weight in two places: the same layer twice."""
    c = b.shapes[x][1]
    weight = b.weight(b.floats(c, c, 1, 1, scale=0.4))
    return b.conv(b.node("Relu", [b.conv(x, c, weight=weight)], b.shapes[x]), c, weight=weight)


def tied_transposed(b: Builder, x: str) -> str:
    """One matrix in two places, the second time transposed."""
    y = b.transpose(x, (0, 2, 3, 1))
    *outer, c = b.shapes[y]
    weight = b.weight(b.floats(c, 5, scale=0.5))
    y = b.node("MatMul", [y, weight], (*outer, 5))
    y = b.node("MatMul", [b.node("Tanh", [y], (*outer, 5)), b.transpose(weight, (1, 0))], (*outer, c))
    return b.transpose(y, (0, 3, 1, 2))


def square_transposed(b: Builder, x: str) -> str:
    """A layer as wide as what it is added to: only its nodes tell which axis of its weight is summed over."""
    y = b.transpose(x, (0, 2, 3, 1))
    c = b.shapes[y][3]
    product = b.node("MatMul", [y, b.transpose(b.weight(b.floats(c, c, scale=0.5)), (1, 0))], b.shapes[y])
    return b.transpose(b.node("Add", [y, product], b.shapes[y]), (0, 3, 1, 2))


def tied_as_constant(b: Builder, x: str) -> str:
    """A convolution's weight is read once more, as a number to add."""
    c = b.shapes[x][1]
    weight = b.weight(b.floats(c, c, 1, 1, scale=0.4))
    total = b.mean(b.node("Reshape", [weight, b.integers([1, c * c, 1, 1])], (1, c * c, 1, 1)), [1])
    return b.node("Add", [b.conv(x, c, weight=weight), total], b.shapes[x])


def weight_through(*ops: str) -> Build:
    """The second convolution's weight passes through nodes."""

    def build(b: Builder, x: str) -> str:
        c, o = b.shapes[x][1], 5
        array = b.floats(o, c, 1, 1, scale=0.5)
        if ops == ("Transpose",):
            weight = b.transpose(b.weight(array.transpose(2, 1, 3, 0).copy()), (3, 1, 0, 2))
        elif ops == ("Reshape",):
            weight = b.node("Reshape", [b.weight(array.reshape(o, c)), b.integers([o, c, 1, 1])], array.shape)
        elif ops == ("Unsqueeze",):
            weight = b.unsqueeze(b.weight(array.reshape(o, c)), [2, 3])
        elif ops == ("Cast",):
            weight = b.node("Cast", [b.weight(array.astype(np.float64))], array.shape, to=TensorProto.FLOAT)
        elif ops == ("Mul out",):
            weight = b.node("Mul", [b.weight(array), b.weight(b.floats(o, 1, 1, 1, around=1))], array.shape)
        elif ops == ("Mul in",):
            weight = b.node("Mul", [b.weight(b.floats(1, c, 1, 1, around=1)), b.weight(array)], array.shape)
        elif ops == ("Mul twice",):
            weight = b.node("Mul", [b.weight(array), b.weight(b.floats(o, c, 1, 1, around=1))], array.shape)
        elif ops == ("Div",):
            weight = b.node("Div", [b.weight(array), b.weight(b.floats(o, c, 1, 1, scale=0.1, around=1))], array.shape)
        elif ops == ("Add",):
            weight = b.node("Add", [b.weight(array), b.weight(b.floats(o, c, 1, 1))], array.shape)
        elif ops == ("Tanh",):
            weight = b.node("Tanh", [b.weight(array)], array.shape)
        elif ops == ("Split",):
            both = b.weight(np.concatenate([array, b.floats(o, c, 1, 1)]))
            halves = b.split(both, 0, [o, o])
            return b.node(
                "Add", [b.conv(x, o, weight=halves[0]), b.conv(x, o, weight=halves[1])], (b.batch, o, HEIGHT, WIDTH)
            )
        elif ops == ("Split in",):
            both = b.weight(np.concatenate([array, b.floats(o, 4, 1, 1)], axis=1))
            halves = b.split(both, 1, [c, 4])
            other = b.conv(b.conv(x, 4), o, weight=halves[1])
            return b.node("Add", [b.conv(x, o, weight=halves[0]), other], (b.batch, o, HEIGHT, WIDTH))
        elif ops == ("Concat",):
            parts = [b.weight(array[:2].copy()), b.weight(array[2:].copy())]
            weight = b.node("Concat", parts, array.shape, axis=0)
        elif ops == ("Concat", "Tanh"):
            bent = b.node("Tanh", [b.weight(array[2:].copy())], (o - 2, c, 1, 1))
            weight = b.node("Concat", [b.weight(array[:2].copy()), bent], array.shape, axis=0)
        elif ops == ("Concat twice",):
            once = b.weight(array)
            weight = b.node("Concat", [once, once], (o, 2 * c, 1, 1), axis=1)
            x = b.node("Concat", [x, b.node("Tanh", [x], b.shapes[x])], (b.batch, 2 * c, HEIGHT, WIDTH), axis=1)
        elif ops == ("Concat in",):
            parts = [b.weight(array[:, :2].copy()), b.weight(array[:, 2:].copy())]
            weight = b.node("Concat", parts, array.shape, axis=1)
        elif ops == ("Slice",):
            larger = b.weight(np.concatenate([array, b.floats(3, c, 1, 1)]))
            weight = b.slice(larger, 0, 0, o)
        else:
            assert ops == ("ReduceMean",)
            weight = b.mean(b.weight(b.floats(o, c, 1, 4)), [3])
        return b.conv(x, o, weight=weight)

    return build


def in_constant_nodes(b: Builder, x: str) -> str:
    """Weights in Constant nodes."""
    names = [f"constant{k}" for k in range(2)]
    arrays = [b.floats(5, b.shapes[x][1], 1, 1), b.floats(5)]
    for name, array in zip(names, arrays, strict=True):
        b.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        b.shapes[name] = array.shape
    return b.node("Conv", [x, *names], (b.batch, 5, HEIGHT, WIDTH))


def resized_by(how: str) -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        roi = b.weight(np.zeros(0, np.float32)) if b.opset < 13 else ""
        shape = (n, c, 2 * h, 2 * w)
        if how == "scales":
            inputs = [x, roi, b.weight(np.array([1, 1, 2, 2], np.float32))]
        else:
            empty = b.weight(np.zeros(0, np.float32)) if b.opset < 13 else ""
            sizes = b.integers(shape)
            if how == "computed":
                front = b.node("Slice", [b.node("Shape", [x], (4,)), b.integers([0]), b.integers([2])], (2,))
                sizes = b.node("Concat", [front, b.integers([2 * h, 2 * w])], (4,), axis=0)
            inputs = [x, roi, empty, sizes]
        return b.node("Resize", inputs, shape, mode="nearest")

    return build


def across(op: str, **attributes: Any) -> Build:
    return lambda b, x: b.node(op, [x], b.shapes[x], **attributes)


def cumulative(b: Builder, x: str) -> str:
    return b.node("CumSum", [x, b.weight(np.array(1, np.int64))], b.shapes[x])


def argmax(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    index = b.node("Cast", [b.node("ArgMax", [x], (n, 1, h, w), axis=1)], (n, 1, h, w), to=TensorProto.FLOAT)
    return b.node("Mul", [x, index], (n, c, h, w))


def gathered(b: Builder, x: str) -> str:
    n, _, h, w = b.shapes[x]
    return b.node("Gather", [x, b.integers([2, 0, 1])], (n, 3, h, w), axis=1)


def gram(b: Builder, x: str) -> str:
    """Queries times keys: two activations meet."""
    n, c, h, w = b.shapes[x]
    flat = b.node("Reshape", [x, b.integers([0, c, -1])], (n, c, h * w))
    turned = b.transpose(flat, (0, 2, 1))
    return b.node("MatMul", [turned, flat], (n, h * w, h * w))


def size_as_number(b: Builder, x: str) -> str:
    """x / sqrt(c), with c read from the shape."""
    sizes = b.node("Shape", [x], (4,))
    c = b.node("Gather", [sizes, b.weight(np.array(1))], (), axis=0)
    root = b.node("Sqrt", [b.node("Cast", [c], (), to=TensorProto.FLOAT)], ())
    return b.node("Div", [x, root], b.shapes[x])


def branching(b: Builder, x: str) -> str:
    """If, whose branches read the map from outside."""
    shape = b.shapes[x]
    branches = []
    for name, op in (("yes", "Relu"), ("no", "Neg")):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        branches.append(helper.make_graph([helper.make_node(op, [x], [name])], name, [], [out]))
    flag = b.node("Greater", [b.mean(x, [0, 1, 2, 3], keep=False), b.weight(np.float32(0).reshape(()))], ())
    return b.node("If", [flag], shape, then_branch=branches[0], else_branch=branches[1])


def where(b: Builder, x: str) -> str:
    mask = b.node("Greater", [x, b.weight(np.float32(0).reshape(()))], b.shapes[x])
    return b.node("Mul", [x, b.node("Cast", [mask], b.shapes[x], to=TensorProto.FLOAT)], b.shapes[x])


def clip(b: Builder, x: str) -> str:
    bounds = [b.weight(np.float32(v).reshape(())) for v in (-0.5, 1.5)]
    return b.node("Clip", [x, *bounds], b.shapes[x])


def one_channel(b: Builder, x: str) -> str:
    """A layer of one channel, broadcast over the others."""
    return b.node("Mul", [b.conv(x, 1), x], b.shapes[x])


def zero_padded_shortcut(b: Builder, x: str) -> str:
    """CIFAR ResNets: half of the new channels in front, half behind."""
    c = b.shapes[x][1]
    y = b.pad(x, 1, c // 2, c // 2)
    return b.node("Add", [y, b.conv(b.node("Relu", [x], b.shapes[x]), 2 * c)], b.shapes[y])


def dropout(b: Builder, x: str) -> str:
    return b.node("Dropout", [x], b.shapes[x])


def pixel_shuffle(b: Builder, x: str) -> str:
    n, _, h, w = b.shapes[x]
    y = b.conv(x, 12)
    y = b.node("Reshape", [y, b.integers([-1, 3, 2, 2, h, w])], (n, 3, 2, 2, h, w))
    y = b.transpose(y, (0, 1, 4, 2, 5, 3))
    return b.node("Reshape", [y, b.integers([-1, 3, 2 * h, 2 * w])], (n, 3, 2 * h, 2 * w))


# Weights that do not reach their sum linearly, numbers read from shapes, constants with several readers


def rounded(b: Builder, x: str) -> str:
    """A weight that is rounded to integers on its way."""
    shape = (5, b.shapes[x][1], 1, 1)
    whole = b.node("Cast", [b.weight(b.floats(*shape, scale=3))], shape, to=TensorProto.INT32)
    return b.conv(x, 5, weight=b.node("Cast", [whole], shape, to=TensorProto.FLOAT))


def times_itself(op: str, alias: bool) -> Build:
    """A weight times or over itself: to halve it does not halve that."""

    def build(b: Builder, x: str) -> str:
        shape = (5, b.shapes[x][1], 1, 1)
        weight = b.weight(b.floats(*shape, scale=0.2, around=1))
        other = b.node("Identity", [weight], shape) if alias else weight
        return b.conv(x, 5, weight=b.node(op, [weight, other], shape))

    return build


def divided_by(b: Builder, x: str) -> str:
    """A weight that something is divided by."""
    shape = (5, b.shapes[x][1], 1, 1)
    weight = b.weight(b.floats(*shape, scale=0.1, around=1))
    return b.conv(x, 5, weight=b.node("Div", [b.weight(np.float32(1).reshape(())), weight], shape))


def product_of_weights(b: Builder, x: str) -> str:
    """A weight of low rank."""
    c = b.shapes[x][1]
    low = b.node("MatMul", [b.weight(b.floats(5, 2)), b.weight(b.floats(2, c))], (5, c))
    return b.conv(x, 5, weight=b.node("Reshape", [low, b.integers([5, c, 1, 1])], (5, c, 1, 1)))


def scaled_gram(both: bool) -> Build:
    """Two activations meet; one or both have been scaled by a weight of rank four."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        scaled = b.node("Mul", [x, b.weight(b.floats(1, c, 1, 1, around=1))], (n, c, h, w))
        flat = b.node("Reshape", [scaled, b.integers([0, c, -1])], (n, c, h * w))
        other = flat if both else b.node("Reshape", [x, b.integers([0, c, -1])], (n, c, h * w))
        return b.node("MatMul", [b.transpose(flat, (0, 2, 1)), other], (n, h * w, h * w))

    return build


def outer_product(b: Builder, x: str) -> str:
    """A (c, c) matrix, flattened: both axes are one width."""
    n, c, _, _ = b.shapes[x]
    pooled = b.mean(x, [2, 3])
    column = b.node("Reshape", [pooled, b.integers([-1, c, 1])], (n, c, 1))
    row = b.node("Reshape", [pooled, b.integers([-1, 1, c])], (n, 1, c))
    return b.node("Reshape", [b.node("Mul", [column, row], (n, c, c)), b.integers([-1, c * c])], (n, c * c))


def squeeze_everything(b: Builder, x: str) -> str:
    """Squeeze without axes would drop a channel axis of size one."""
    return b.node("Squeeze", [b.mean(x, [2, 3])], b.shapes[x][:2])


def into_the_batch(how: str) -> Build:
    """Channels are moved into the batch and back."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        if how == "Conv":
            y = b.conv(b.node("Reshape", [x, b.integers([-1, 1, h, w])], (n * c, 1, h, w)), 4)
            return b.node("Reshape", [y, b.integers([-1, c * 4, h, w])], (n, c * 4, h, w))
        if how == "Flatten":
            y = b.node("Flatten", [x], (n * c, h * w), axis=2)
        else:
            y = b.node("Reshape", [x, b.integers([-1, h * w])], (n * c, h * w))
        y = dense(b, y, 4)
        y = b.node("Reshape", [b.node("Relu", [y], (n * c, 4)), b.integers([-1, c, 4])], (n, c, 4))
        return b.node("Reshape", [y, b.integers([-1, c * 4])], (n, c * 4))

    return build


def number_from_shape(of: str) -> Build:
    """The size of a weight is multiplied in."""

    def build(b: Builder, x: str) -> str:
        c = b.shapes[x][1]
        if of == "matrix":
            weight = b.weight(b.floats(5, c, 1, 1))
            size = b.node("Gather", [b.node("Shape", [weight], (4,)), b.weight(np.array(1))], (), axis=0)
            scaled = b.node("Mul", [x, b.node("Cast", [size], (), to=TensorProto.FLOAT)], b.shapes[x])
            return b.conv(scaled, 5, weight=weight)
        scale, *others = b.norm_parameters(c)
        size = b.node("Cast", [b.node("Shape", [scale], (1,))], (1,), to=TensorProto.FLOAT)
        return b.norm(b.node("Mul", [x, size], b.shapes[x]), [scale, *others])

    return build


def target_from_vector(b: Builder, x: str) -> str:
    """A Reshape target that holds the size of a scale."""
    n, c, h, w = b.shapes[x]
    scale, *others = b.norm_parameters(c)
    parts = [b.integers([-1]), b.node("Shape", [scale], (1,)), b.integers([h * w])]
    target = b.node("Concat", parts, (3,), axis=0)
    return b.node("Reshape", [b.norm(x, [scale, *others]), target], (n, c, h * w))


def part_of_shape(start: int, end: int) -> Build:
    """Shape with start and end."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        part = b.node("Shape", [x], (len(range(4)[start:end]),), start=start, end=end)
        before, after = ([], [b.integers([-1])]) if start == 0 else ([b.integers([-1])], [b.integers([h * w])])
        return b.node("Reshape", [x, b.node("Concat", [*before, part, *after], (3,), axis=0)], (n, c, h * w))

    return build


def half_of_shape(b: Builder, x: str) -> str:
    """c // 2, with c read from the shape."""
    size = b.node("Gather", [b.node("Shape", [x], (4,)), b.weight(np.array([1]))], (1,), axis=0)
    return b.node("Div", [size, b.integers([2])], (1,))


def halves_by_shape(op: str) -> Build:
    """x[:, :c // 2] * x[:, c // 2:] with c read from the shape."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        half, shape = half_of_shape(b, x), (n, c // 2, h, w)
        if op == "Split":
            sizes = b.node("Concat", [half, half], (2,), axis=0)
            return b.node("Mul", b.node_of("Split", [x, sizes], [shape, shape], axis=1), shape)
        first = b.node("Slice", [x, b.integers([0]), half, b.integers([1])], shape)
        second = b.node("Slice", [x, half, b.integers([INT_MAX]), b.integers([1])], shape)
        return b.node("Mul", [first, second], shape)

    return build


def padded_by_shape(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    pads = b.node("Concat", [b.integers([0] * 5), half_of_shape(b, x), b.integers([0, 0])], (8,), axis=0)
    shape = (n, c + c // 2, h, w)
    return b.node("Add", [b.node("Pad", [x, pads], shape), b.conv(x, shape[1])], shape)


def filled_by_shape(op: str) -> Build:
    """A constant tensor of the map's shape."""

    def build(b: Builder, x: str) -> str:
        shape = b.shapes[x]
        sizes = b.node("Shape", [x], (4,))
        if op == "Expand":
            filled = b.node("Expand", [b.weight(b.floats(1, shape[1], 1, 1)), sizes], shape)
        else:
            filled = b.node("ConstantOfShape", [sizes], shape, value=numpy_helper.from_array(np.float32([2])))
        return b.node("Add", [x, filled], shape)

    return build


def shared_target(b: Builder, x: str) -> Sequence[str]:
    """One Reshape target for maps whose channels have nothing to do with each other."""
    n, c, h, w = b.shapes[x]
    target = b.integers([-1, c, h * w])
    other = b.conv(x, c)
    return [b.node("Reshape", [y, target], (n, c, h * w)) for y in (x, other)]


def shared_sizes(b: Builder, x: str) -> Sequence[str]:
    """One vector of Split sizes for maps whose channels have nothing to do with each other."""
    n, c, h, w = b.shapes[x]
    sizes = b.integers([2, c - 2])
    pieces = [b.node_of("Split", [y, sizes], [(n, s, h, w) for s in (2, c - 2)], axis=1) for y in (x, b.conv(x, c))]
    return [p for both in pieces for p in both]


def shared_rank_three(b: Builder, x: str) -> Sequence[str]:
    """A scale of rank three with two readers ties them."""
    scale = b.weight(b.floats(b.shapes[x][1], 1, 1, around=1))
    return [b.node("Mul", [y, scale], b.shapes[x]) for y in (x, b.conv(x, b.shapes[x][1]))]


def one_vector_thrice(b: Builder, x: str) -> str:
    """One vector as scale, bias and mean of a norm."""
    vector = b.weight(b.floats(b.shapes[x][1], around=1))
    return b.norm(x, [vector, vector, vector, b.norm_parameters(b.shapes[x][1])[3]])


def reshaped_bias(*target: int) -> Build:
    def build(b: Builder, x: str) -> str:
        c = b.shapes[x][1]
        shape = tuple(c if t in (-1, 6) else t for t in target)
        bias = b.node("Reshape", [b.weight(b.floats(c)), b.integers(target)], shape)
        return b.node("Add", [x, bias], b.shapes[x])

    return build


def constant_of(**value: Any) -> Build:
    """Constant nodes that spell their value as lists of numbers."""

    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        b.nodes.append(helper.make_node("Constant", [], ["listed"], **value))
        if "value_ints" in value:
            return b.node("Reshape", [x, "listed"], (n, c, h * w))
        return b.node("Conv", [x, b.weight(b.floats(5, c, 1, 1)), "listed"], (n, 5, h, w))

    return build


def no_axes(given: str) -> Build:
    """ReduceMean of opset 18 with no axes: of everything, or of nothing."""

    def build(b: Builder, x: str) -> str:
        inputs = [x, b.weight(np.zeros(0, np.int64))] if given == "empty" else [x]
        if given == "noop":
            return b.node("ReduceMean", inputs, b.shapes[x], noop_with_empty_axes=1)
        return b.node("Mul", [x, b.node("ReduceMean", inputs, (1, 1, 1, 1))], b.shapes[x])

    return build


def centred_groups(b: Builder, x: str) -> str:
    """A mean over each of two groups of channels."""
    n, c, h, w = b.shapes[x]
    y = b.node("Reshape", [x, b.integers([-1, 2, c // 2, h * w])], (n, 2, c // 2, h * w))
    y = b.node("Sub", [y, b.mean(y, [2, 3])], b.shapes[y])
    return b.node("Reshape", [y, b.integers([-1, c, h, w])], (n, c, h, w))


def grouped_after_shuffle(b: Builder, x: str) -> str:
    return b.conv(shuffle(2)(b, x), 6, group=3)  # type: ignore[arg-type]  # it gives what it was given


def rolled(b: Builder, x: str) -> str:
    """Channels moved round by two, and added: a cut and a concat tie them all."""
    c = b.shapes[x][1]
    parts = [b.slice(x, 1, 2, c), b.slice(x, 1, 0, 2)]
    return b.node("Add", [x, b.node("Concat", parts, b.shapes[x], axis=1)], b.shapes[x])


def conv_1d(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    y = b.node("Reshape", [x, b.integers([-1, c, h * w])], (n, c, h * w))
    return b.node("Conv", [y, b.weight(b.floats(5, c, 3)), b.weight(b.floats(5))], (n, 5, h * w), pads=[1, 1])


UNARY = ("Abs", "Atan", "Cos", "Elu", "Erf", "Exp", "HardSigmoid", "LeakyRelu", "Neg", "Relu", "Selu", "Sigmoid")
UNARY += ("Sin", "Softplus", "Softsign", "Tanh")

CASES = [
    *(Case(op, unary(op), [6], opsets=(11, 21), dynamic=(False,)) for op in UNARY),
    Case("HardSwish", unary("HardSwish"), [6], opsets=(14, 21)),
    Case("Gelu", unary("Gelu"), [6], opsets=(20, 21)),
    Case("Mish", unary("Mish"), [6], opsets=(18, 21)),
    Case("Identity", unary("Identity"), [6]),
    Case("Dropout", dropout, [6]),
    Case("Clip", clip, [6]),
    Case("comparison", where, [6]),
    Case("PRelu per channel", constant("PRelu", -1, 1, 1, around=0.2), [6]),
    Case("PRelu shared", constant("PRelu", 1, around=0.2), [6]),
    *(Case(f"{op} of a rank-three constant", constant(op, -1, 1, 1), [6]) for op in ("Add", "Sub", "Mul", "Div")),
    Case("Add of a rank-four constant", constant("Add", 1, -1, 1, 1), [6]),
    Case("Mul of a scalar", constant("Mul"), [6]),
    Case("Mul of a vector along the width of the image", constant("Mul", WIDTH), [6]),
    Case("a constant on the left", constant("Sub", -1, 1, 1, first=True), [6]),
    Case("Pow of a constant", lambda b, x: constant("Pow", -1, 1, 1)(b, b.node("Abs", [x], b.shapes[x])), [6]),
    Case("Add of a residual", residual("Add"), [6]),
    Case("Mul of two maps", residual("Mul"), [6]),
    Case("Max of two maps", residual("Max"), [6]),
    Case("Mean of two maps", residual("Mean"), [6]),
    Case("one channel against many", one_channel, [6]),
    Case("Conv", grouped("Conv", 1, 5), [6, 5]),
    Case("Conv in two groups", grouped("Conv", 2, 8), [3, 2, 4]),
    Case("Conv in six groups of two", grouped("Conv", 6, 12), [6, 2, 2], channels=12),
    Case("depthwise Conv", grouped("Conv", 6, 6), [6]),
    Case("depthwise Conv with two outputs each", grouped("Conv", 6, 12), [6, 2]),
    Case("ConvTranspose", grouped("ConvTranspose", 1, 5), [6, 5]),
    Case("ConvTranspose in two groups", grouped("ConvTranspose", 2, 8), [3, 2, 4]),
    Case("depthwise ConvTranspose", grouped("ConvTranspose", 6, 6), [6]),
    Case("depthwise ConvTranspose with two outputs each", grouped("ConvTranspose", 6, 12), [6, 2]),
    Case("Concat of 8, 12 and 4 in two groups", concat_of_three, [4, 5, 6, 8]),
    Case("Concat with itself", concat_with_itself, [6]),
    Case("channel shuffle", shuffle(2), [2, 3]),
    Case("channels as three axes", three_parts_in_front, [2, 2, 3], channels=12, dynamic=[False]),
    Case("three channel shuffles in a row", shuffle(2, 3), [2, 2, 2], channels=8),
    Case("ShuffleNet's halves", shuffled_halves, [2, 2, 2], channels=8),
    Case("Flatten", flattened("flatten"), [6]),
    Case("Flatten, negative axis", flattened("negative axis"), [6]),
    Case("Reshape to (0, -1)", flattened("-1 behind"), [6]),
    Case("Reshape to (-1, c·h·w)", flattened("-1 in front"), [6]),
    Case("Reshape with two zeros", zero_reshape, [6]),
    Case("a computed flatten, Gather", computed_flatten("gather"), [6]),
    Case("a computed flatten, Slice", computed_flatten("slice"), [6]),
    Case("a computed flatten, c·h·w multiplied", computed_flatten("product"), [6]),
    Case("a computed shuffle", computed_shuffle, [2, 3]),
    Case("PixelShuffle", pixel_shuffle, [6, 3]),
    Case("Split, uneven", split_as("uneven"), [2, 3]),
    Case("Split, equal without sizes", split_as("equal"), [2, 2, 2], opsets=(11, 13)),
    Case("Split, sizes", split_as("sizes"), [2, 2, 2]),
    Case("Split, num_outputs", split_as("num_outputs"), [2, 2, 2], opsets=(18, 21)),
    Case("Slice from the front", sliced(0, 4), [4, 2]),
    Case("Slice to the end", sliced(2, INT_MAX), [2, 4]),
    Case("Slice in the middle", sliced(2, 4), [2, 2, 2]),
    Case("Slice of one channel", sliced(1, 2), [4]),
    Case("Slice, negative start", sliced(-4, INT_MAX), [2, 4]),
    Case("Slice, negative end", sliced(0, -2), [4, 2]),
    Case("Slice, both bounds negative", sliced(-5, -2), [3, 2]),
    Case("Slice, end beyond the axis", sliced(2, 100), [2, 4]),
    Case("Slice, finite full range", sliced(0, 6), [6]),
    Case("Slice of height", sliced(1, 3, axis=2), [6]),
    Case("Slice, every second", sliced(0, INT_MAX, 2), [], frozen=("strided",)),
    Case("Slice, reversed", sliced(INT_MAX, -INT_MAX, -1), [], frozen=("strided",)),
    Case("Pad in front", padded(2, 0), [2, 6]),
    Case("Pad behind", padded(0, 3), [6, 3]),
    Case("Pad on both sides", padded(2, 3), [2, 6, 3]),
    Case("Pad with a value", padded(2, 3, value=0.7), [2, 6, 3]),
    Case("Pad by reflection", padded(2, 0, mode="reflect"), [], frozen=("padding",)),
    Case("a zero-padded shortcut", zero_padded_shortcut, [3, 6, 3]),
    Case("MaxPool", pooled("MaxPool", kernel_shape=[2, 2]), [6]),
    Case("AveragePool", pooled("AveragePool", kernel_shape=[2, 2]), [6]),
    Case("GlobalAveragePool", pooled("GlobalAveragePool"), [6]),
    Case("GlobalMaxPool", pooled("GlobalMaxPool"), [6]),
    Case("Resize by scales", resized_by("scales"), [6]),
    Case("Resize to sizes", resized_by("sizes"), [6], dynamic=(False,)),
    Case("Resize to computed sizes", resized_by("computed"), [6]),
    Case("squeeze and excitation", excited, [6, 4]),
    Case("Squeeze, MatMul, Unsqueeze", squeezed, [6]),
    Case("ReduceMean over space", mean_over([2, 3]), [6]),
    Case("ReduceMean over space, axes lost", mean_over([2, 3], keep=False, then=False), [6]),
    Case("ReduceMean over channels", mean_over([1]), [6], mixed=[6]),
    Case("ReduceMean over channels and height", mean_over([1, 2]), [6], mixed=[6]),
    Case("ReduceMean over a concat", mean_of_sum, [6, 4], mixed=[6, 4]),
    Case("ReduceMean over everything", mean_of_all, [6], mixed=[6], dynamic=(False,)),
    Case("BatchNormalization", lambda b, x: b.norm(x), [6]),
    Case("BatchNormalization with shared parameters", shared_norm, [6, 6]),
    Case("a shared bias", shared_bias(False), [6, 5, 5, 5]),
    Case("a shared bias through Identity", shared_bias(True), [6, 5, 5, 5]),
    Case("a shared scale through Unsqueeze", alias_through("Unsqueeze"), [6, 6]),
    Case("a shared scale through Cast", alias_through("Cast"), [6, 6]),
    Case("channels last", channels_last, [6, 5]),
    Case("Gemm", gemm(), [6, 7, 5]),
    Case("Gemm, B transposed", gemm(trans_b=1), [6, 7, 5]),
    Case("Gemm, A transposed", gemm(trans_a=1), [6, 7, 5]),
    Case("Gemm, both transposed", gemm(trans_a=1, trans_b=1), [6, 7, 5]),
    Case("Gemm without C", gemm(bias=None), [6, 7, 5]),
    Case("Gemm with C of rank two", gemm(bias=(1, -1)), [6, 7, 5]),
    Case("Gemm with a scalar C", gemm(bias=()), [6, 7, 5]),
    Case("Gemm with the weight first", gemm_weight_first, [6, 5]),
    Case("MatMul with the weight on the left", weight_on_the_left, [6, 5]),
    Case("MatMul with stacked weights", stacked_matmul, [2, 3, 4]),
    Case("MatMul with a vector", vector_product, [6], bounded=[6]),
    Case("a tied convolution", tied_weight, [6]),
    Case("a tied matrix, transposed", tied_transposed, [6, 5], bounded=[6, 5]),
    Case("a weight read as a number too", tied_as_constant, [6, 6], bounded=[6], mixed=[6, 6]),
    *(
        Case(f"a weight through {op}", weight_through(op), [6, 5])
        for op in ("Transpose", "Reshape", "Unsqueeze", "Cast", "Mul out", "Mul in", "Mul twice", "Div", "Split")
    ),
    Case("a weight through Split along its input", weight_through("Split in"), [6, 4, 5], bounded=[6, 4]),
    Case("a weight through Concat", weight_through("Concat"), [6, 2, 3]),
    Case("a weight through Concat and Tanh", weight_through("Concat", "Tanh"), [6, 2, 3], bounded=[6]),
    Case("a weight joined to itself", weight_through("Concat twice"), [6, 5]),
    Case("a square weight through Transpose", square_transposed, [6]),
    Case("a weight through ReduceMean", weight_through("ReduceMean"), [6, 5], bounded=[6]),
    Case("a weight through Slice", weight_through("Slice"), [6, 5]),
    Case("a weight through Concat along its input", weight_through("Concat in"), [2, 4, 5]),
    Case("a weight through Add", weight_through("Add"), [6, 5], bounded=[6]),
    Case("a weight through Tanh", weight_through("Tanh"), [6, 5], bounded=[6]),
    Case("weights in Constant nodes", in_constant_nodes, [6, 5]),
    Case("Softmax over channels", across("Softmax", axis=1), [], frozen=("softmax",)),
    Case("Softmax over space", across("Softmax", axis=3), [6], opsets=(13, 21)),
    Case("Softmax from the channels on", across("Softmax", axis=1), [], frozen=("softmax",), opsets=(11,)),
    Case("CumSum", cumulative, [], frozen=("positions",)),
    Case("ArgMax", argmax, [], frozen=("positions",)),
    Case("Gather of channels", gathered, [], frozen=("picked",)),
    Case("a product of two activations", gram, [6]),
    Case("a size that is used as a number", size_as_number, [6]),
    Case("a weight that is rounded", rounded, [6, 5], bounded=[6]),
    Case("a weight times itself", times_itself("Mul", False), [6, 5], bounded=[6]),
    Case("a weight times its alias", times_itself("Mul", True), [6, 5], bounded=[6]),
    Case("a weight over itself", times_itself("Div", False), [6, 5], bounded=[6]),
    Case("a weight over its alias", times_itself("Div", True), [6, 5], bounded=[6]),
    Case("a weight in a denominator", divided_by, [6, 5], bounded=[6]),
    Case("a product of weights", product_of_weights, [6, 5], bounded=[6]),
    Case("a scaled product of two activations", scaled_gram(False), [6]),
    Case("a scaled product with itself", scaled_gram(True), [6]),
    Case("an outer product", outer_product, [6]),
    Case("Squeeze without axes", squeeze_everything, [], frozen=("squeeze",)),
    Case("channels into the batch, Reshape", into_the_batch("Reshape"), [6, 4]),
    Case("channels into the batch, Flatten", into_the_batch("Flatten"), [6, 4]),
    Case("channels into the batch, Conv", into_the_batch("Conv"), [6, 4]),
    Case("the size of a weight as a number", number_from_shape("matrix"), [6, 5]),
    Case("the size of a scale as a number", number_from_shape("vector"), [6]),
    Case("a target with the size of a scale", target_from_vector, [6]),
    Case("Shape from the front", part_of_shape(0, 2), [6], opsets=(15, 21)),
    Case("Shape in the middle", part_of_shape(1, -2), [6], opsets=(15, 21)),
    Case("Slice at a computed half", halves_by_shape("Slice"), [3]),
    Case("Split at a computed half", halves_by_shape("Split"), [3], opsets=(13, 21)),
    Case("Pad by a computed half", padded_by_shape, [6, 3]),
    Case("Expand to a computed shape", filled_by_shape("Expand"), [6]),
    Case("ConstantOfShape", filled_by_shape("ConstantOfShape"), [6]),
    Case("a shared target", shared_target, [6, 6]),
    Case("shared sizes", shared_sizes, [2, 4, 2, 4], opsets=(13, 21)),
    Case("a shared scale of rank three", shared_rank_three, [6]),
    Case("one vector three times", one_vector_thrice, [6]),
    Case("a reshaped bias", reshaped_bias(1, 6, 1, 1), [6]),
    Case("a bias reshaped with -1", reshaped_bias(-1, 1, 1), [6]),
    Case("Constant of integers", constant_of(value_ints=[-1, 6, HEIGHT * WIDTH]), [6], opsets=(13, 21)),
    Case("Constant of floats", constant_of(value_floats=[0.5] * 5), [6], opsets=(13, 21)),
    Case("ReduceMean, absent axes", no_axes("absent"), [6], mixed=[6], opsets=(18, 21)),
    Case("ReduceMean, empty axes", no_axes("empty"), [6], mixed=[6], opsets=(18, 21)),
    Case("ReduceMean of nothing", no_axes("noop"), [6], opsets=(18, 21)),
    Case("a mean over each group", centred_groups, [2, 3], mixed=[3]),
    Case("groups after a shuffle", grouped_after_shuffle, [2, 2, 3]),
    Case("channels rolled", rolled, [2]),
    Case("Conv over one dimension", conv_1d, [6, 5]),
    Case("If", branching, [], frozen=("control flow",), dynamic=(False,)),
]


def grid(cases: Sequence[Case]) -> list[Any]:
    """Every case at every opset of its own, and with a symbolic batch at the last."""
    return [
        pytest.param(case, opset, dynamic, id=f"{case}-{opset}{'-dynamic' if dynamic else ''}")
        for case in cases
        for dynamic in case.dynamic
        for opset in (case.opsets if not dynamic else case.opsets[-1:])
    ]


def check(case: Case, opset: int, dynamic: bool) -> None:
    """Its widths and reasons are those of the case, and every law holds."""
    model = made(case, opset, dynamic)
    valid = onnx.ModelProto.FromString(model.SerializeToString())
    apart_from_onnx(valid)
    onnx.checker.check_model(valid, full_check=True)
    analysis = analyze(Graph(model))
    assert sorted(w.size for w in analysis.widths.values()) == sorted(case.widths)
    assert sorted(w.size for w in analysis.widths.values() if not w.exact) == sorted(case.mixed)
    if case.bounded is not None:
        assert sorted(w.size for w in analysis.widths.values() if w.max is not None) == sorted(case.bounded)
    assert kinds(analysis) == set(case.frozen)
    prove(analysis, seeds=2)


@pytest.mark.parametrize(("case", "opset", "dynamic"), grid(CASES))
def test_an_operator_resizes_exactly_or_freezes(case, opset, dynamic):
    check(case, opset, dynamic)


SPACE = ["Conv", "depthwise Conv", "ConvTranspose in two groups", "Concat with itself", "Split, uneven", "Split, sizes"]
SPACE += ["Slice, negative start", "a zero-padded shortcut", "squeeze and excitation", "Resize by scales", "MaxPool"]
SPACE += ["ReduceMean over channels", "channels last", "Slice at a computed half", "Pad by a computed half"]
SPACE += ["Shape from the front", "BatchNormalization with shared parameters", "a computed shuffle"]


@pytest.mark.parametrize("name", SPACE)
def test_with_symbolic_height_and_width_too(name):
    case = next(c for c in CASES if c.name == name)
    model = made(case, case.opsets[-1], dynamic=True)
    for axis, symbol in ((2, "H"), (3, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = symbol
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim[2:] or value.type.tensor_type.shape.dim[1:]:
            dim.Clear()
    onnx.checker.check_model(model, full_check=True)
    analysis = analyze(Graph(model, input_shapes={"x": (3, 3, HEIGHT, WIDTH)}))
    found = sorted(w.size for w in analysis.widths.values())
    assert found == ([] if name == "a computed shuffle" else sorted(case.widths))
    prove(analysis)
