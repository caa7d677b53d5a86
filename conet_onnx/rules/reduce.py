"""Reductions: an axis is averaged away."""

from __future__ import annotations

from conet_onnx.dims import ONE
from conet_onnx.rules.registry import Facts, Op, Opaque, Shape, rule

__all__ = ["reduce_mean"]


@rule("ReduceMean")
def reduce_mean(op: Op, x: Shape, _: Shape | None = None) -> Facts:
    """ONNX ReduceMean: `axes` is an attribute before opset 18 and an input after. A mean over channels mixes them."""
    given = op.integers(1) if op.has(1) else op.attribute("axes")
    if op.has(1) and given is None:
        raise Opaque("computed axes", f"{op.node} computes its axes while the model runs")
    if not given:
        given = () if op.attribute("noop_with_empty_axes", 0) else tuple(range(len(x)))
    axes = {a % len(x) for a in given}
    keep = op.attribute("keepdims", 1)
    output = tuple(ONE if i in axes else s for i, s in enumerate(x) if keep or i not in axes)
    return Facts(outputs=(output,), mixes=tuple(x[a] for a in sorted(axes)))
