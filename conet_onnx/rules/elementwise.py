"""Operators that treat every element alike: unary functions, and binary ones with broadcasting."""

from __future__ import annotations

from onnx import TensorProto

from conet_onnx.dims import ONE, Axis, Segment, axis, product
from conet_onnx.graph import REALS
from conet_onnx.rules.registry import Facts, Op, Opaque, Shape, Site, each, fixed, held, rule
from conet_onnx.solving import Reason

__all__ = ["broadcast", "same_shape"]

UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp"),
    *("Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu"),
    *("Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan"),
    *("Tanh", "ThresholdedRelu", "IsNaN", "IsInf", "BitwiseNot"),
)
NARY = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu", "And", "Or", "Xor", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Mod", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Where"),
    "SwiGLU",
)
HOMOGENEOUS = ("Abs", "LeakyRelu", "Neg", "Relu")  # f(k·x) = k·f(x) for every positive k
PRODUCTS = {"Mul": ((0, 1),), "Div": ((0,),), "PRelu": ((0,),)}
SUMS = ("Add", "Sub", "Sum", "Mean")


def same_shape(op: Op, x: Shape, *_: Shape | None) -> Facts:
    """ONNX unary functions: every output has the input's axes. Further inputs (Clip's bounds) are scalars."""
    return Facts(outputs=tuple(x for _ in op.node.outputs), terms=((0,),) if op.node.op in HOMOGENEOUS else ())


def moved(op: Op, x: Shape, *_: Shape | None) -> Facts:
    """ONNX Identity, Cast, Dropout: the input's elements in their places; not so where a Cast rounds to integers."""
    rounds = op.attribute("to", TensorProto.FLOAT) not in REALS
    return Facts(outputs=tuple(x for _ in op.node.outputs), passes=() if rounds else (0,))


def broadcast(op: Op, *shapes: Shape) -> Facts:
    """ONNX multidirectional broadcasting: axes are aligned from the right, and a size of one gives way."""
    if op.node.since < 7 and (op.attribute("broadcast", 0) or op.node.op == "PRelu"):
        raise Opaque("old broadcast", f"{op.node} broadcasts along an axis of its own (opset below 7)")
    output, equal = joined(shapes)
    terms = each(len(shapes)) if op.node.op in SUMS else PRODUCTS.get(op.node.op, ())
    return Facts(outputs=(output,), equal=equal, terms=terms)


def joined(shapes: tuple[Shape, ...]) -> tuple[Shape, tuple[tuple[Axis | Segment, Axis | Segment], ...]]:
    """The broadcast shape, and the equations between axes that meet."""
    rank = max(map(len, shapes), default=0)
    output: list[Segment] = []
    equal: list[tuple[Axis | Segment, Axis | Segment]] = []
    for place in range(-rank, 0):
        first = None
        for shape in shapes:
            if len(shape) >= -place and (segment := shape[place]).size != (1, 1):
                if first is None:
                    first = segment
                elif first is not segment:
                    equal.append((first, segment))
        output.append(ONE if first is None else first)
    return tuple(output), tuple(equal)


@rule("Expand")
def expand(op: Op, x: Shape, _: Shape) -> Facts:
    """ONNX Expand: x broadcast with a target shape. An axis of size one that is repeated takes any size."""
    sizes, target = op.sizes(), op.integers(1)
    origins = (op.origin(1) if target is None else ()) or (None,) * len(sizes)
    output: list[Segment] = []
    equal: list[tuple[Axis | Segment, Axis | Segment]] = []
    sites: list[Site] = []
    frozen: list[tuple[Segment, Reason]] = []
    for place, size in enumerate(sizes):
        own = place - len(sizes) + len(x)
        asked = place - len(sizes) + (len(origins) if target is None else len(target))
        segment = x[own] if own >= 0 else ONE
        literal = None if target is None or asked < 0 else target[asked]
        if segment.size != size:
            read = origins[asked] if target is None and asked >= 0 else None
            if isinstance(read, tuple):
                segment = op.source(read)  # repeated as often as that axis is long
            elif size[0] == size[1] and (literal is not None or isinstance(read, int)):
                segment = product(op.fresh(f"out{place}", size))
            else:
                segment = fixed(f"{op.node.name}{place}", (size,))[0]
        output.append(segment)
        if asked < 0 or not segment.dims or all(d.rigid for d in segment.dims):
            continue
        if literal is not None and literal != 1:
            sites.append(Site("input:1", asked, axis(segment), literal))
        elif target is None and isinstance(origin := origins[asked], tuple):
            equal.append((segment, op.source(origin)))
        elif target is None and origin != 1:
            try:
                sites.append(held(op, 1, asked, segment))
            except Opaque as obstacle:
                if not op.origin(1):
                    raise
                frozen.append((segment, Reason(obstacle.kind, op.node.name, obstacle.detail)))
    return Facts((tuple(output),), tuple(equal), sites=tuple(sites), frozen=tuple(frozen), sees=(1,), terms=each(1))


@rule("ConstantOfShape")
def constant_of_shape(op: Op, _: Shape) -> Facts:
    """ONNX ConstantOfShape: one number everywhere, as in the zeros that a recurrent layer starts from."""
    sizes, target, origins = op.sizes(), op.integers(0), op.origin(0)
    output: list[Segment] = []
    sites: list[Site] = []
    for place, size in enumerate(sizes):
        origin = origins[place] if place < len(origins) else None
        segment = op.source(origin) if isinstance(origin, tuple) else product(op.fresh(f"out{place}", size))
        output.append(segment)
        if target is not None:
            sites.append(Site("input:0", place, axis(segment), target[place]))
        elif not isinstance(origin, tuple):
            sites.append(held(op, 0, place, segment))
    return Facts(outputs=(tuple(output),), sites=tuple(sites), sees=(0,))


@rule("Tile", since=6)
def tile(op: Op, x: Shape, _: Shape) -> Facts:
    """ONNX Tile: a whole axis again and again, so that `repeats` is a factor outside of it."""
    repeats = op.integers(1)
    if repeats is None or len(repeats) != len(x) or min(repeats, default=1) < 1:
        raise Opaque("computed repeats", f"{op.node} computes how often it repeats its input")
    return Facts(outputs=(tuple(product(n, s) for n, s in zip(repeats, x, strict=True)),), terms=each(1))


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: Op, x: Shape) -> Facts:
    """ONNX Softmax: normalises along `axis`; before opset 13 along all axes from `axis` on."""
    first = op.attribute("axis", -1 if op.node.since >= 13 else 1) % max(len(x), 1)
    along = x[first : first + 1] if op.node.since >= 13 else x[first:]
    reason = Reason("softmax", op.node.name, f"{op.node} normalises along it, so that every channel depends on all")
    return Facts(outputs=(x,), frozen=tuple((segment, reason) for segment in along))


for name in UNARY:
    rule(name)(same_shape)
for name in ("Clip", "CastLike"):
    rule(name)(same_shape)
for name in ("Identity", "Cast", "Dropout"):
    rule(name)(moved)
for name in NARY:
    rule(name)(broadcast)
