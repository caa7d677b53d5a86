"""Reductions: an axis is averaged, summed or searched away."""

from __future__ import annotations

from conet_onnx.dims import ONE
from conet_onnx.rules.registry import Facts, Op, Opaque, Shape, fixed, rule
from conet_onnx.solving import Reason

__all__ = ["arg_reduce", "reduce_alike", "reduce_sum"]


@rule("ReduceMean", "ReduceMax", "ReduceMin")
def reduce_alike(op: Op, x: Shape, _: Shape | None = None) -> Facts:
    """ONNX ReduceMean, ReduceMax, ReduceMin: over channels they mix them, and copies of all change nothing."""
    axes = _axes(op, x)
    return Facts(outputs=(_output(op, x, axes),), mixes=tuple(x[a] for a in sorted(axes)))


@rule("ReduceSum", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare")
def reduce_sum(op: Op, x: Shape, _: Shape | None = None) -> Facts:
    """ONNX ReduceSum and the like: there is no weight to make up for a copy of what is summed over."""
    axes = _axes(op, x)
    reason = Reason("sum", op.node.name, f"{op.node} sums over it: there is no weight to rescale")
    return Facts(outputs=(_output(op, x, axes),), frozen=tuple((x[a], reason) for a in sorted(axes)))


@rule("ArgMax", "ArgMin")
def arg_reduce(op: Op, x: Shape) -> Facts:
    """ONNX ArgMax, ArgMin: positions along `axis` are numbers in the result."""
    along = op.attribute("axis", 0) % max(len(x), 1)
    return Facts(outputs=(_output(op, x, {along}),), frozen=((x[along], _numbered(op)),))


@rule("TopK")
def top_k(op: Op, x: Shape, _: Shape | None = None) -> Facts:
    """ONNX TopK: the largest along `axis`, and their positions as numbers."""
    along = op.attribute("axis", -1) % max(len(x), 1)
    kept = fixed(op.node.name, (op.sizes()[along],))
    output = (*x[:along], *kept, *x[along + 1 :])
    return Facts(outputs=tuple(output for _ in op.node.outputs), frozen=((x[along], _numbered(op)),))


def _numbered(op: Op) -> Reason:
    return Reason("positions", op.node.name, f"{op.node} numbers the positions along it")


def _axes(op: Op, x: Shape) -> set[int]:
    """The axes: an attribute in older versions, an input in newer ones."""
    given = op.integers(1) if op.has(1) else op.attribute("axes")
    if op.has(1) and given is None:
        raise Opaque("computed axes", f"{op.node} computes its axes while the model runs")
    if not given:
        given = () if op.attribute("noop_with_empty_axes", 0) else tuple(range(len(x)))
    return {a % len(x) for a in given}


def _output(op: Op, x: Shape, axes: set[int]) -> Shape:
    keep = op.attribute("keepdims", 1)
    return tuple(ONE if i in axes else s for i, s in enumerate(x) if keep or i not in axes)
