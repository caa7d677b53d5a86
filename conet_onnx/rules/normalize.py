"""Normalisation layers."""

from __future__ import annotations

from conet_onnx.rules.registry import Facts, Op, Opaque, Shape, rule

__all__ = ["batch_normalization"]


@rule("BatchNormalization")
def batch_normalization(op: Op, x: Shape, *parameters: Shape) -> Facts:
    """ONNX BatchNormalization: scale, bias, mean and variance have one value per channel; channels do not meet."""
    if len(x) < 2:
        raise Opaque("rank", f"{op.node} normalises a tensor without a channel axis")
    if op.node.since < 9 and op.attribute("spatial", 1) == 0:
        raise Opaque("per activation", f"{op.node} normalises every activation by itself (spatial = 0)")
    statistics = tuple((x[1],) for _ in op.node.outputs[1:])
    return Facts(outputs=(x, *statistics), equal=tuple((x[1], p[0]) for p in parameters))
