"""What tools/mutate_rules.py breaks and no other test notices: every axis of every operator is held to its rule.

In most models the positions keep their size whatever a rule says of them: a convolution freezes them. Here a weight
holds every axis of what the operator makes, and a matrix product makes them all: an axis whose equation with the
model's input is lost would be offered as a width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from strategies import Builder
from test_rules import Build, prove

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph

WIDTH, LAST = 6, 7
MAKES = "p0"  # the weight that makes the width, along its last axis
OTHERS = (2, 5, 4)


@dataclass(frozen=True)
class Told:
    """An operator on a tensor in which one axis is a width, each axis in turn.

    For each place of the width: what it becomes, which of that is mixed, and the kind of the reason for which it is
    frozen. At a place that is not named it stays as it is, and exact.
    """

    build: Build
    also: Sequence[int] = ()  # widths that the operator has of its own
    widths: Mapping[int, Sequence[int]] = field(default_factory=dict)
    mixed: Mapping[int, Sequence[int]] = field(default_factory=dict)
    frozen: Mapping[int, str] = field(default_factory=dict)
    shapes: Mapping[int, Sequence[int]] = field(default_factory=dict)
    opset: int = 21


def model(told: Told, place: int) -> onnx.ModelProto:
    """A matrix product makes the width, which is moved to its place; every axis of what is built is summed over."""
    shape = told.shapes.get(place) or (*OTHERS[:place], WIDTH, *OTHERS[place:])
    others = (*shape[:place], *shape[place + 1 :])
    b = Builder(random.Random(7), opset=told.opset, batch=0)
    b.tidy = True
    weight = b.weight(b.floats(3, shape[place], scale=0.7))
    assert weight == MAKES
    x = b.node("MatMul", [b.input("x", (*others, 3)), weight], (*others, shape[place]))
    order = [*range(place), len(others), *range(place, len(others))]
    x = b.transpose(b.node("Sigmoid", [x], b.shapes[x]), order)
    ends = told.build(b, x)
    return b.model([closed(b, end) for end in ([ends] if isinstance(ends, str) else ends)])


def closed(b: Builder, x: str) -> str:
    """A weight of x's shape is added; every axis is made by one matrix product, and summed over by another."""
    shape = b.shapes[x]
    size = int(np.prod(shape))
    x = b.node("Add", [b.weight(b.floats(*shape)), x], shape)
    rows = b.node("Reshape", [x, b.integers([size, 1])], (size, 1))
    rows = b.node("Tanh", [b.node("MatMul", [rows, b.weight(b.floats(1, LAST))], (size, LAST))], (size, LAST))
    whole = b.node("Reshape", [rows, b.integers([1, size * LAST])], (1, size * LAST))
    return b.node("MatMul", [whole, b.weight(b.floats(size * LAST, 5, scale=1 / np.sqrt(size)))], (1, 5))


def hold(told: Told, place: int) -> None:
    """The widths and reasons are those that are told, and every law holds."""
    analysis = analyze(Graph(model(told, place)))
    found = [w for w in analysis.widths.values() if w.size != LAST]
    own = told.shapes.get(place, {place: WIDTH})[place]
    frozen = next((f.reason.kind for f in analysis.frozen if (f.tensor, f.axis) == (MAKES, 1)), None)
    assert frozen == told.frozen.get(place)
    assert sorted(w.size for w in found) == sorted((*told.also, *told.widths.get(place, () if frozen else (own,))))
    assert sorted(w.size for w in found if not w.exact) == sorted(told.mixed.get(place, ()))
    prove(analysis, seeds=1)


def cast(b: Builder, x: str, to: int = TensorProto.FLOAT) -> str:
    return b.node("Cast", [x], b.shapes[x], to=to)


def unary(op: str, *, add: float = 0.0, of: int = 0, **attributes: Any) -> Build:
    """An operator of one input (plus so much, as elements of another type), and back to floats."""

    def build(b: Builder, x: str) -> str:
        if add:
            x = b.node("Add", [x, b.weight(np.float32(add).reshape(()))], b.shapes[x])
        made = b.node(op, [cast(b, x, of) if of else x], b.shapes[x], **attributes)
        return cast(b, made)

    return build


def nary(op: str, *, of: int = 0, scale: float = 0.3, around: float = 0.5, **attributes: Any) -> Build:
    """An operator with a weight of every axis: in front, behind, and along the channels alone."""

    def build(b: Builder, x: str) -> Sequence[str]:
        shape = b.shapes[x]

        def number(*own: int) -> str:
            made = b.weight(b.floats(*own, scale=scale, around=around))
            return cast(b, made, of) if of else made

        x = cast(b, x, of) if of else x
        made = [b.node(op, [x, number(*shape)], shape, **attributes)]
        if op != "PRelu":  # its slope is broadcast to the other input, and not the other way round
            made += [b.node(op, [number(*shape), x], shape, **attributes)]
            made += [b.node(op, [number(1, 1, 1, 1), x], shape, **attributes)]
        made += [b.node(op, [x, number(shape[-1])], shape, **attributes)]
        return [cast(b, y) for y in made]

    return build


def where(b: Builder, x: str) -> Sequence[str]:
    """A condition, and what is taken where it holds and where not: a weight of every axis in each place."""
    shape = b.shapes[x]
    weights = [b.weight(b.floats(*shape)) for _ in range(3)]
    flags = [b.node("Greater", [y, b.weight(np.float32(0.5).reshape(()))], shape) for y in (weights[0], x)]
    return [b.node("Where", [flags[0], x, weights[1]], shape), b.node("Where", [flags[1], weights[2], x], shape)]


BOOL, INT32, UINT8 = TensorProto.BOOL, TensorProto.INT32, TensorProto.UINT8

UNARY: dict[str, tuple[Build, int]] = {
    **{op: (unary(op), 21) for op in ("Abs", "Acos", "Asin", "Atan", "Atanh", "Asinh", "Celu", "Cos", "Cosh", "Elu")},
    **{op: (unary(op), 21) for op in ("Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish")},
    **{op: (unary(op), 21) for op in ("Neg", "Reciprocal", "Relu", "Selu", "Shrink", "Sigmoid", "Sign", "Sin")},
    **{op: (unary(op), 21) for op in ("Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu")},
    **{op: (unary(op, add=0.2), 21) for op in ("Ceil", "Floor", "Round")},
    **{op: (unary(op), 21) for op in ("IsNaN", "IsInf", "Identity", "Dropout", "Clip")},
    "Acosh": (unary("Acosh", add=1), 21),
    "Not": (unary("Not", add=-0.5, of=BOOL), 21),
    "BitwiseNot": (unary("BitwiseNot", of=INT32), 21),
    "Swish": (unary("Swish"), 24),
    **{f"com.microsoft.{op}": (unary(op, domain="com.microsoft"), 21) for op in ("Gelu", "QuickGelu")},
}
NARY: dict[str, tuple[Build, int]] = {
    **{op: (nary(op), 21) for op in ("Add", "Sub", "Mul", "Min", "Max", "Sum", "Mean", "PRelu")},
    **{op: (nary(op, scale=0.1, around=2), 21) for op in ("Div", "Pow")},
    **{op: (nary(op, of=BOOL), 21) for op in ("And", "Or", "Xor")},
    **{op: (nary(op), 21) for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
    "Mod": (nary("Mod", scale=0.1, around=0.3, fmod=1), 21),
    "BitShift": (nary("BitShift", of=UINT8, scale=0.1, around=1, direction="LEFT"), 21),
    **{op: (nary(op, of=INT32, scale=3), 21) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")},
    "Where": (where, 21),
    "CastLike": (lambda b, x: b.node("CastLike", [x, b.weight(np.float32(0).reshape(()))], b.shapes[x]), 21),
}


@pytest.mark.parametrize(("build", "opset"), [pytest.param(*c, id=op) for op, c in (UNARY | NARY).items()])
def test_element_by_element_every_axis_is_the_inputs(build: Build, opset: int) -> None:
    hold(Told(build, opset=opset), 3)


def on(op: str, *made: Callable[[tuple[int, ...]], Sequence[int]], ends: int = 1, **attributes: Any) -> Build:
    """An operator that keeps its input's shape, with weights whose shapes follow from that."""

    def build(b: Builder, x: str) -> str:
        shape = b.shapes[x]
        inputs = [x, *(b.weight(b.floats(*of(shape), scale=0.2, around=1.0)) for of in made)]
        return b.node(op, inputs, shape, **attributes)

    return build


def channels(shape: tuple[int, ...]) -> Sequence[int]:
    return shape[1:2]


def variances(b: Builder, x: str) -> str:
    return b.norm(x)


def group_norm(b: Builder, x: str) -> str:
    shape = b.shapes[x]
    given = [b.weight(b.floats(shape[1], scale=0.2, around=1.0)) for _ in range(2)]
    return b.node("GroupNormalization", [x, *given], shape, num_groups=5 if shape[1] == 5 else 2)


def single_norm(b: Builder, x: str) -> str:
    """As many groups as channels."""
    shape = b.shapes[x]
    given = [b.weight(b.floats(shape[1], scale=0.2, around=1.0)) for _ in range(2)]
    return b.node("GroupNormalization", [x, *given], shape, num_groups=shape[1])


def layer_norm(b: Builder, x: str) -> Sequence[str]:
    """Two axes, with their mean and deviation."""
    shape = b.shapes[x]
    given = [b.weight(b.floats(*shape[2:], scale=0.2, around=1.0)) for _ in range(2)]
    shapes = [shape, (*shape[:2], 1, 1), (*shape[:2], 1, 1)]
    return b.node_of("LayerNormalization", [x, *given], shapes, axis=-2)


def pooled(op: str, **attributes: Any) -> Build:
    def build(b: Builder, x: str) -> str:
        *outer, h, w = b.shapes[x]
        shape = (*outer, 1, 1) if op.startswith("Global") else (*outer, h - 1, w - 1)
        return b.node(op, [x], shape, **attributes)

    return build


def enlarged(how: str) -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        shape = (n, c, 2 * h, 2 * w)
        if how == "sizes":
            return b.node("Resize", [x, "", "", b.integers(shape)], shape, mode="nearest")
        inputs = [x, b.weight(np.array([1, 1, 2, 2], np.float32))]
        if how == "scales":
            inputs.insert(1, "")
        return b.node("Resize" if how == "scales" else "Upsample", inputs, shape, mode="nearest")

    return build


def reduced(op: str, keep: bool, over: Sequence[int] = (-2,)) -> Build:
    def build(b: Builder, x: str) -> str:
        shape = b.shapes[x]
        if over != (-2,):
            made = tuple(1 if k in over else size for k, size in enumerate(shape))
            return b.node(op, [x, b.integers(over)], made)
        made = (*shape[:2], *((1,) if keep else ()), shape[3])
        if op.startswith("Arg"):
            return cast(b, b.node(op, [x], made, axis=-2, keepdims=int(keep)))
        return b.node(op, [x, b.integers([-2])], made, keepdims=int(keep))

    return build


def largest(b: Builder, x: str) -> Sequence[str]:
    shape = b.shapes[x]
    made = (*shape[:2], 2, shape[3])
    values, places = b.node_of("TopK", [x, b.integers([2])], [made, made], axis=2)
    return [values, cast(b, places)]


def cumulative(b: Builder, x: str) -> str:
    return b.node("CumSum", [x, b.weight(np.array(2))], b.shapes[x])


def picked(b: Builder, x: str) -> Sequence[str]:
    """Several positions, and one, which takes the axis away."""
    shape = b.shapes[x]
    several = b.node("Gather", [x, b.integers([1, 0, 1])], (*shape[:2], 3, shape[3]), axis=2)
    return [several, b.node("Gather", [x, b.weight(np.array(1))], (*shape[:2], shape[3]), axis=-2)]


def turned(*order: int) -> Build:
    def build(b: Builder, x: str) -> str:
        shape = b.shapes[x]
        attributes = {"perm": list(order)} if order else {}
        return b.node("Transpose", [x], tuple(shape[k] for k in order or (3, 2, 1, 0)), **attributes)

    return build


def six_axes(b: Builder, x: str) -> Sequence[str]:
    p, q, r, s = b.shapes[x]
    y = b.node("Unsqueeze", [x, b.integers([1, 3])], (p, 1, q, 1, r, s))
    ends = [b.node("Transpose", [y], (s, 1, q, 1, r, p), perm=[5, 1, 2, 3, 4, 0])]
    y = b.node("Unsqueeze", [x, b.integers([0, 1])], (1, 1, p, q, r, s))
    return [*ends, b.node("Transpose", [y], (1, 1, r, q, p, s), perm=[0, 1, 4, 3, 2, 5])]


def flattened(b: Builder, x: str) -> str:
    p, q, r, s = b.shapes[x]
    return b.node("Flatten", [x], (p * q, r * s), axis=2)


def five_axes(b: Builder, x: str) -> str:
    p, q, r, s = b.shapes[x]
    y = b.node("Unsqueeze", [x, b.integers([1])], (p, 1, q, r, s))
    return b.node("Mul", [y, b.weight(b.floats(s, around=1.0))], (p, 1, q, r, s))


def wrapped(b: Builder, x: str) -> str:
    """Axes of size one come and go."""
    p, q, r, s = b.shapes[x]
    y = b.node("Unsqueeze", [x, b.integers([0, 3])], (1, p, q, 1, r, s))
    return b.node("Squeeze", [y, b.integers([0])], (p, q, 1, r, s))


def squeezed(b: Builder, x: str) -> str:
    """All axes of size one go."""
    p, q, r, s = b.shapes[x]
    return b.node("Squeeze", [b.node("Unsqueeze", [x, b.integers([2])], (p, q, 1, r, s))], (p, q, r, s))


def folded(b: Builder, x: str) -> Sequence[str]:
    """Neighbours are multiplied, and what was multiplied is split again."""
    p, q, r, s = b.shapes[x]
    targets = ((p * q, r, s), (p, q * r, s), (p, q, r * s), (1, p, 1, q, r, s))
    made = [b.node("Reshape", [x, b.integers(t)], t) for t in targets]
    return [*made, b.node("Reshape", [made[1], b.integers([p, q, r, s])], (p, q, r, s))]


def fixed_places(b: Builder, x: str) -> Sequence[str]:
    """Axes that are plain numbers, together, and apart again in another way."""
    p, q, r, s = b.shapes[x]
    r, s = r - 1, s - 1
    y = b.node("MaxPool", [x], (p, q, r, s), kernel_shape=[2, 2])
    targets = ((p, q, r * s), (p * q, r * s), (p, q, 1, r * s), (p * q * r * s,))
    ends = [b.node("Reshape", [y, b.integers(t)], t) for t in targets]
    turned_round = b.node("Reshape", [ends[0], b.integers([p, q, s, r])], (p, q, s, r))
    return [*ends, turned_round, b.node("Flatten", [y], (p * q, r * s), axis=2)]


def fixed_behind(b: Builder, x: str) -> Sequence[str]:
    """A plain number behind another axis: the two as one, and the other way round."""
    p, q, r, s = b.shapes[x]
    n = (r - 1) * (s - 1)
    y = b.node("MaxPool", [x], (p, q, r - 1, s - 1), kernel_shape=[2, 2])
    y = b.transpose(b.node("Reshape", [y, b.integers([p, q, n])], (p, q, n)), (1, 2, 0))
    return [b.node("Flatten", [y], (q * n, p), axis=2), b.node("Reshape", [y, b.integers([n, q, p])], (n, q, p))]


def askew(b: Builder, x: str) -> str:
    """Six by twelve as four by three by six: no boundary meets another."""
    p, q, _, _ = b.shapes[x]
    y = b.node("MaxPool", [x], (p, q, 3, 4), kernel_shape=[2, 2])
    return b.node("Reshape", [y, b.integers([4, 3, 6])], (4, 3, 6))


def depth_to_space(mode: str) -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        return b.node("DepthToSpace", [x], (n, c // 4, 2 * h, 2 * w), blocksize=2, mode=mode)

    return build


def space_to_depth(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    return b.node("SpaceToDepth", [x], (n, 4 * c, h // 2, w // 2), blocksize=2)


def repeated(b: Builder, x: str) -> str:
    p, q, r, s = b.shapes[x]
    return b.node("Tile", [x, b.integers([1, 2, 1, 3])], (p, 2 * q, r, 3 * s))


def expanded(b: Builder, x: str) -> Sequence[str]:
    """One more axis in front, and one that was of size one; as long as it was, or as ones say."""
    p, q, r, s = b.shapes[x]
    y = b.node("Unsqueeze", [x, b.integers([2])], (p, q, 1, r, s))
    targets = ((3, p, q, 2, r, s), (p, q, 2, 1, s))
    return [b.node("Expand", [y, b.integers(t)], (3, p, q, 2, r, s)[-max(len(t), 5) :]) for t in targets]


def filled(b: Builder, x: str) -> str:
    """One number everywhere."""
    shape = b.shapes[x]
    return b.node("Add", [b.node("ConstantOfShape", [b.integers(shape)], shape), x], shape)


def joined(b: Builder, x: str) -> Sequence[str]:
    """With a weight in front, and behind."""
    p, q, r, s = b.shapes[x]
    weights = [b.weight(b.floats(p, 3, r, s)) for _ in range(3)]
    ends = [b.node("Concat", [weights[0], x], (p, q + 3, r, s), axis=1)]
    return [*ends, b.node("Concat", [x, *weights[1:]], (p, q + 6, r, s), axis=-3)]


def stacked(b: Builder, x: str) -> str:
    p, q, r, s = b.shapes[x]
    y = b.node("Unsqueeze", [x, b.integers([2])], (p, q, 1, r, s))
    return b.node("Concat", [y, y], (p, q, 2, r, s), axis=2)


def cut(b: Builder, x: str) -> Sequence[str]:
    p, q, r, s = b.shapes[x]
    sizes = (1, 1, q - 2)
    return b.node_of("Split", [x, b.integers(sizes)], [(p, size, r, s) for size in sizes], axis=1)


def cut_in_four(b: Builder, x: str) -> Sequence[str]:
    p, q, r, s = b.shapes[x]
    sizes = (1, 1, 1, q - 3)
    return b.node_of("Split", [x, b.integers(sizes)], [(p, size, r, s) for size in sizes], axis=1)


def sliced(axis: int, start: int, end: int) -> Build:
    def build(b: Builder, x: str) -> str:
        shape = list(b.shapes[x])
        shape[axis] = len(range(shape[axis])[start:end])
        return b.node("Slice", [x, b.integers([start]), b.integers([end]), b.integers([axis])], tuple(shape))

    return build


def strided(b: Builder, x: str) -> str:
    p, q, r, s = b.shapes[x]
    inputs = [x, b.integers([0]), b.integers([q]), b.integers([1]), b.integers([2])]
    return b.node("Slice", inputs, (p, (q + 1) // 2, r, s))


def padded(**attributes: Any) -> Build:
    def build(b: Builder, x: str) -> str:
        p, q, r, s = b.shapes[x]
        return b.node("Pad", [x, b.integers([0, 1, 0, 0, 0, 1, 0, 0])], (p, q + 2, r, s), **attributes)

    return build


SPATIAL = {2: "spatial", 3: "spatial"}
MIXED = [WIDTH]
CASES: dict[str, Told] = {
    "BatchNormalization": Told(variances),
    "InstanceNormalization": Told(on("InstanceNormalization", channels, channels), mixed={2: MIXED, 3: MIXED}),
    "GroupNormalization": Told(group_norm, widths={1: [2, 3]}, mixed={1: [3], 2: MIXED, 3: MIXED}),
    "GroupNormalization of single channels": Told(single_norm, mixed={2: MIXED, 3: MIXED}),
    "LayerNormalization": Told(layer_norm, mixed={2: MIXED, 3: MIXED}),
    "LayerNormalization before it was ONNX's": Told(
        on("LayerNormalization", lambda s: s[3:], lambda s: s[3:]), mixed={3: MIXED}, opset=13
    ),
    "RMSNormalization": Told(on("RMSNormalization", lambda s: s[3:]), mixed={3: MIXED}, opset=23),
    "MeanVarianceNormalization": Told(
        on("MeanVarianceNormalization", axes=[0, 2, 3]), mixed={0: MIXED, 2: MIXED, 3: MIXED}
    ),
    "LpNormalization": Told(on("LpNormalization", axis=2), frozen={2: "norm"}),
    "LRN": Told(on("LRN", size=3), frozen={1: "neighbours"}),
    **{
        f"{op}-{opset}": Told(on(op, axis=2), frozen=frozen, opset=opset)
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for opset, frozen in ((11, {2: "softmax", 3: "softmax"}), (21, {2: "softmax"}))
    },
    **{
        op: Told(pooled(op, kernel_shape=[2, 2]), frozen=SPATIAL, shapes={0: (3, 5, 4, 4), 1: (2, 6, 4, 7)})
        for op in ("MaxPool", "AveragePool", "LpPool")
    },
    **{op: Told(pooled(op), frozen=SPATIAL) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")},
    "Resize by scales": Told(enlarged("scales"), frozen=SPATIAL),
    "Resize to sizes": Told(enlarged("sizes"), frozen=SPATIAL),
    "Upsample": Told(enlarged("Upsample"), frozen=SPATIAL, opset=9),
    **{
        f"{op}{'' if keep else ', axis lost'}": Told(reduced(op, keep), mixed={2: MIXED}, opset=20)
        for op in ("ReduceMean", "ReduceMax", "ReduceMin")
        for keep in (True, False)
    },
    **{
        f"{op} over both ends": Told(reduced(op, True, (0, 3)), mixed={0: MIXED, 3: MIXED})
        for op in ("ReduceMean", "ReduceMax", "ReduceMin")
    },
    "ReduceSum over both ends": Told(reduced("ReduceSum", True, (0, 3)), frozen={0: "sum", 3: "sum"}),
    **{
        f"{op}{'' if keep else ', axis lost'}": Told(reduced(op, keep), frozen={2: "sum"})
        for op in (f"Reduce{of}" for of in ("Sum", "L1", "L2", "LogSum", "LogSumExp", "Prod", "SumSquare"))
        for keep in (True, False)
    },
    **{
        f"{op}{'' if keep else ', axis lost'}": Told(reduced(op, keep), frozen={2: "positions"})
        for op in ("ArgMax", "ArgMin")
        for keep in (True, False)
    },
    "TopK": Told(largest, frozen={2: "positions"}, shapes={0: (2, 5, 4, 2), 1: (5, 2, 4, 3), 3: (3, 5, 4, 2)}),
    "CumSum": Told(cumulative, frozen={2: "positions"}),
    "Trilu": Told(on("Trilu"), frozen={2: "positions", 3: "positions"}),
    "Gather": Told(picked, also=[3], frozen={2: "picked"}, shapes={1: (2, 4, 5, 4)}),
    "Transpose": Told(turned(2, 0, 3, 1)),
    "Transpose, reversed": Told(turned()),
    "Transpose of six axes": Told(six_axes, shapes={0: (4, 2, 3, 4), 1: (2, 4, 5, 4)}),
    "Flatten": Told(flattened),
    "Unsqueeze and Squeeze": Told(wrapped),
    "Squeeze without axes": Told(squeezed, frozen=dict.fromkeys(range(4), "squeeze")),
    "Reshape": Told(folded),
    **{
        f"DepthToSpace, {mode}": Told(
            depth_to_space(mode),
            shapes={0: (6, 4, 5, 3), 1: (2, 12, 5, 3), 2: (2, 4, 6, 3), 3: (2, 4, 5, 6)},
            widths={1: [3]},
            frozen=SPATIAL,
        )
        for mode in ("DCR", "CRD")
    },
    "DepthToSpace to one channel": Told(
        depth_to_space("DCR"),
        shapes={0: (6, 4, 5, 3), 1: (2, 4, 5, 3), 2: (2, 4, 6, 3), 3: (2, 4, 5, 6)},
        frozen={1: "fixed"} | SPATIAL,
    ),
    "SpaceToDepth": Told(
        space_to_depth, shapes={0: (2, 3, 4, 4), 1: (2, 6, 4, 2), 2: (2, 3, 6, 4), 3: (2, 3, 4, 6)}, frozen=SPATIAL
    ),
    "Reshape of fixed places": Told(fixed_places, frozen=SPATIAL),
    "Reshape of an axis and a number": Told(fixed_behind, frozen=SPATIAL),
    "Reshape askew": Told(
        askew,
        shapes={0: (6, 1, 4, 5), **dict.fromkeys((1, 2, 3), (1, 6, 4, 5))},
        frozen={0: "misaligned", 1: "misaligned"} | SPATIAL,
    ),
    "Tile": Told(repeated),
    "PRelu": Told(on("PRelu", lambda shape: shape)),
    "Where": Told(where),
    "Mul of five axes": Told(five_axes),
    "Cast": Told(
        lambda b, x: cast(b, cast(b, x, TensorProto.DOUBLE)), shapes={0: (4, 2, 4, 3), 1: (2, 4, 3, 4), 3: (4, 2, 3, 4)}
    ),
    "Expand": Told(expanded, also=[2, 2, 3]),
    "ConstantOfShape": Told(filled),
    "Concat": Told(joined, also=[3, 3, 3]),
    "Concat of ones": Told(stacked),
    "Split": Told(cut, widths={1: [4]}, shapes={0: (6, 3, 5, 4)}),
    "Split into four": Told(
        cut_in_four,
        widths={1: [3]},
        shapes={0: (6, 5, 3, 4), 1: (2, 6, 5, 4), 2: (2, 5, 6, 4), 3: (2, 5, 4, 6)},
    ),
    "Split into ones": Told(cut, shapes={0: (6, 3, 5, 4), 1: (2, 3, 5, 4)}, frozen={1: "fixed"}),
    "Slice": Told(sliced(1, 1, -1), widths={1: [4]}, shapes={0: (6, 3, 5, 4)}),
    "Slice into ones": Told(sliced(1, 1, -1), shapes={0: (6, 4, 5, 3), 1: (2, 3, 5, 4)}, frozen={1: "fixed"}),
    "Slice of rows into ones": Told(sliced(0, 1, 2), shapes={0: (3, 5, 4, 2)}, frozen={0: "fixed"}),
    "Slice of the first": Told(sliced(0, 0, 1), widths={0: [5]}),
    "Slice of the second": Told(sliced(0, 1, 2), widths={0: [4]}),
    "Slice of the last but one": Told(sliced(0, -2, -1), widths={0: [4]}),
    "Slice, every second": Told(strided, frozen={1: "strided"}),
    "Pad": Told(padded(), shapes={1: (2, 6, 5, 8)}),
    "Pad by reflection": Told(padded(mode="reflect"), frozen={1: "padding"}),
}


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("name", CASES)
def test_a_width_at_any_axis_is_followed_or_frozen(name: str, place: int) -> None:
    hold(CASES[name], place)


@pytest.mark.parametrize("op", ["Dropout", "Identity", "Flatten", "Squeeze"])
def test_a_weight_is_rescaled_behind_what_moves_it(op: str) -> None:
    b = Builder(random.Random(7), opset=21, batch=0)
    b.tidy = True
    x = b.node("MatMul", [b.input("x", (4, 3)), b.weight(b.floats(3, WIDTH))], (4, WIDTH))
    weight = b.weight(b.floats(*((1,) if op == "Squeeze" else ()), WIDTH, LAST))
    inputs = [weight, b.integers([0])] if op == "Squeeze" else [weight]
    y = b.node("MatMul", [x, b.node(op, inputs, (WIDTH, LAST))], (4, LAST))
    analysis = analyze(Graph(b.model([b.node("MatMul", [y, b.weight(b.floats(LAST, 2))], (4, 2))])))
    assert [w.size for w in analysis.widths.values()] == [WIDTH, LAST]
    prove(analysis)
