"""Operators that treat every element alike: unary functions, and binary ones with broadcasting."""

from __future__ import annotations

from onnx import TensorProto

from conet_onnx.dims import ONE, Axis, Segment
from conet_onnx.graph import REALS
from conet_onnx.rules.registry import Facts, Op, Opaque, Shape, rule
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
)
LINEAR = {"Mul": (0, 1), "Div": (0,)}


def same_shape(op: Op, x: Shape, *_: Shape | None) -> Facts:
    """ONNX unary functions: every output has the input's axes. Further inputs (Clip's bounds) are scalars."""
    return Facts(outputs=tuple(x for _ in op.node.outputs))


def moved(op: Op, x: Shape, *_: Shape | None) -> Facts:
    """ONNX Identity, Cast, Dropout: the input's elements in their places; not so where a Cast rounds to integers."""
    rounds = op.attribute("to", TensorProto.FLOAT) not in REALS
    return Facts(outputs=tuple(x for _ in op.node.outputs), passes=() if rounds else (0,))


def broadcast(op: Op, *shapes: Shape) -> Facts:
    """ONNX multidirectional broadcasting: axes are aligned from the right, and a size of one gives way."""
    if op.node.since < 7 and (op.attribute("broadcast", 0) or op.node.op == "PRelu"):
        raise Opaque("old broadcast", f"{op.node} broadcasts along an axis of its own (opset below 7)")
    output, equal = joined(shapes)
    return Facts(outputs=(output,), equal=equal, scales=LINEAR.get(op.node.op, ()))


def joined(shapes: tuple[Shape, ...]) -> tuple[Shape, tuple[tuple[Axis | Segment, Axis | Segment], ...]]:
    """The broadcast shape, and the equations between axes that meet."""
    rank = max((len(s) for s in shapes), default=0)
    output: list[Segment] = []
    equal: list[tuple[Axis | Segment, Axis | Segment]] = []
    for place in range(-rank, 0):
        meeting = [s[place] for s in shapes if len(s) >= -place and s[place].size != (1, 1)]
        output.append(meeting[0] if meeting else ONE)
        equal.extend((meeting[0], other) for other in meeting[1:])
    return tuple(output), tuple(equal)


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
