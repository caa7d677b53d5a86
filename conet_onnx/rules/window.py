"""Operators that move a window over space, or collapse it, channel by channel."""

from __future__ import annotations

from conet_onnx.dims import ONE, axis
from conet_onnx.rules.registry import Facts, Op, Opaque, Shape, Site, fixed, rule, spatial

__all__ = ["global_pool", "pool", "resize"]


@rule("MaxPool", "AveragePool", "LpPool")
def pool(op: Op, x: Shape) -> Facts:
    """ONNX pools: batch and channels pass, space is windowed."""
    if len(op.node.outputs) > 1 and op.node.outputs[1]:
        raise Opaque("indices", f"{op.node} returns indices into the whole tensor")
    return Facts(outputs=((*x[:2], *fixed(op.node.name, op.sizes()[2:])),), frozen=spatial(op, x[2:]))


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(op: Op, x: Shape) -> Facts:
    """ONNX global pools: space becomes one."""
    return Facts(outputs=((*x[:2], *(ONE for _ in x[2:])),), frozen=spatial(op, x[2:]))


@rule("Upsample", "Resize")
def resize(op: Op, x: Shape, *_: Shape | None) -> Facts:
    """ONNX Resize: axes that keep their size are passed through; the others are space. `sizes` carries all of them."""
    if op.attribute("axes") is not None:
        raise Opaque("resize axes", f"{op.node} names its axes")
    if op.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise Opaque("crop", f"{op.node} crops by data")
    sizes = op.sizes()
    scales = _scales(op)
    keeps = tuple(
        s.size == new and (scales is None or scales[i] == 1) for i, (s, new) in enumerate(zip(x, sizes, strict=True))
    )
    space = fixed(op.node.name, sizes)
    y = tuple(s if keep else new for s, new, keep in zip(x, space, keeps, strict=True))
    moved = spatial(op, tuple(s for i, s in enumerate(x) if i > 1 or not keeps[i]))
    if op.node.since < 11 or not op.has(3):
        if scales is None:
            raise Opaque("computed scales", f"{op.node} computes its scales while the model runs")
        return Facts(outputs=(y,), frozen=moved)
    target = op.integers(3)
    if target is not None:
        sites = tuple(Site("input:3", i, axis(s), target[i]) for i, s in enumerate(y))
        return Facts(outputs=(y,), sites=sites, frozen=moved, sees=(3,))
    equal = []
    for segment, origin in zip(y, op.origin(3) or (None,) * len(y), strict=False):
        if isinstance(origin, tuple):
            equal.append((segment, op.source(origin)))
        elif segment.dims and not (len(segment.dims) == 1 and segment.dims[0].rigid):
            raise Opaque("computed sizes", f"{op.node} computes its sizes while the model runs")
    return Facts(outputs=(y,), equal=tuple(equal), frozen=moved, sees=(3,))


def _scales(op: Op) -> tuple[float, ...] | None:
    """The constant scale of each axis; None where sizes are given instead, or scales are computed."""
    if op.attribute("scales") is not None:
        return tuple(op.attribute("scales"))
    index = 2 if op.node.op == "Resize" and op.node.since >= 11 else 1
    value = op.value(index)
    return tuple(float(v) for v in value) if value is not None and value.size else None
