"""Normalisation layers."""

from __future__ import annotations

from conet_onnx.dims import ONE, Segment, axis, product
from conet_onnx.rules.elementwise import joined
from conet_onnx.rules.registry import Facts, Op, Opaque, Shape, Site, rule
from conet_onnx.solving import Reason

__all__ = ["batch_normalization", "group_normalization", "grouped", "instance_normalization", "layer_normalization"]


@rule("BatchNormalization")
def batch_normalization(op: Op, x: Shape, *parameters: Shape) -> Facts:
    """ONNX BatchNormalization: scale, bias, mean and variance have one value per channel; channels do not meet.

    In training mode (before opset 14: with more than one output) mean and variance are those of the input, over all
    axes but the channels'.
    """
    _has_channels(op, x)
    if op.node.since < 9 and op.attribute("spatial", 1) == 0:
        raise Opaque("per activation", f"{op.node} normalises every activation by itself (spatial = 0)")
    statistics = tuple((x[1],) for _ in op.node.outputs[1:])
    training = op.attribute("training_mode", 0) or len(op.node.outputs) > 1
    return Facts(
        outputs=(x, *statistics),
        equal=tuple((x[1], p[0]) for p in parameters),
        mixes=(x[0], *x[2:]) if training else (),
        terms=() if training else ((0, 1), (3, 1), (2,)),  # (x - mean)·scale / deviation + bias
    )


@rule("InstanceNormalization")
def instance_normalization(op: Op, x: Shape, scale: Shape, bias: Shape) -> Facts:
    """ONNX InstanceNormalization: statistics over all axes after the channels', which may hold channels of a group."""
    _has_channels(op, x)
    return Facts(outputs=(x,), equal=((x[1], scale[0]), (x[1], bias[0])), mixes=x[2:])


@rule("GroupNormalization", since=21)
def group_normalization(op: Op, x: Shape, scale: Shape, bias: Shape) -> Facts:
    """ONNX GroupNormalization: X (N, g·k, ...), scale and bias (g·k), statistics over k and space. 18 is withdrawn."""
    _has_channels(op, x)
    return grouped(op, "num_groups", x, x[1], x[2:], (scale[0], bias[0]))


def grouped(op: Op, name: str, x: Shape, channels: Segment, places: Shape, parameters: Shape) -> Facts:
    """Statistics over the channels of each group, whose number is attribute `name`, and over the places."""
    groups, (first, second) = op.attribute(name), channels.size
    if not groups or first % groups or second % groups:
        raise Opaque("bad groups", f"{op.node} has {first} channels in {groups} groups")
    g = product(op.fresh("g", (groups, groups)))
    k = product(op.fresh("k", (first // groups, second // groups)))
    equal = ((channels, product(g, k)), *((channels, p) for p in parameters))
    sites = (Site(f"attribute:{name}", 0, axis(g), groups),) if g.factors else ()
    return Facts(outputs=(x,), equal=equal, mixes=(k, *places), sites=sites)


@rule("LayerNormalization", "RMSNormalization")
def layer_normalization(op: Op, x: Shape, *parameters: Shape | None) -> Facts:
    """ONNX LayerNormalization, RMSNormalization: statistics over all axes from `axis` on; scale and bias broadcast."""
    first = op.attribute("axis", -1) % max(len(x), 1)
    equal = tuple(pair for p in parameters if p is not None for pair in joined((x, p))[1])
    statistics = (*x[:first], *(ONE for _ in x[first:]))
    return Facts(outputs=(x, *(statistics for _ in op.node.outputs[1:])), equal=equal, mixes=x[first:])


@rule("MeanVarianceNormalization")
def mean_variance_normalization(op: Op, x: Shape) -> Facts:
    """ONNX MeanVarianceNormalization: statistics over `axes`, by default all but the channels'."""
    return Facts(outputs=(x,), mixes=tuple(x[a % len(x)] for a in op.attribute("axes", (0, 2, 3))))


@rule("LpNormalization")
def lp_normalization(op: Op, x: Shape) -> Facts:
    """ONNX LpNormalization: x divided by its norm along `axis`, which every copy of a channel makes larger."""
    along = x[op.attribute("axis", -1) % max(len(x), 1)]
    reason = Reason("norm", op.node.name, f"{op.node} divides by a norm over it, which grows with every copy")
    return Facts(outputs=(x,), frozen=((along, reason),))


@rule("LRN")
def lrn(op: Op, x: Shape) -> Facts:
    """ONNX LRN: every channel is divided by a sum over its neighbours."""
    _has_channels(op, x)
    reason = Reason("neighbours", op.node.name, f"{op.node} divides every channel by a sum over those beside it")
    return Facts(outputs=(x,), frozen=((x[1], reason),))


def _has_channels(op: Op, x: Shape) -> None:
    if len(x) < 2:
        raise Opaque("rank", f"{op.node} normalises a tensor without a channel axis")
