"""Operators that pick elements by their positions along an axis, or add up to a position."""

from __future__ import annotations

from conet_onnx.rules.registry import Facts, Op, Opaque, Shape, each, rule
from conet_onnx.solving import Reason

__all__ = ["cumulative", "gather", "trilu"]


@rule("Gather")
def gather(op: Op, x: Shape, indices: Shape) -> Facts:
    """ONNX Gather: positions along `axis` are looked up by number, as words in an embedding; other axes pass."""
    along = op.attribute("axis", 0) % max(len(x), 1)
    reason = Reason("picked", op.node.name, f"{op.node} picks positions of it by number")
    others = (*x[:along], *x[along + 1 :])
    table = op.node.inputs[0] in op.graph.weights and op.node.inputs[1] not in op.origins
    return Facts(
        outputs=((*x[:along], *indices, *x[along + 1 :]),),
        frozen=((x[along], reason),),
        makes=others if table else (),
        terms=each(1),
    )


@rule("CumSum", "CumProd")
def cumulative(op: Op, x: Shape, _: Shape) -> Facts:
    """ONNX CumSum, CumProd: every position depends on all before it."""
    given = op.integers(1)
    if given is None:
        raise Opaque("computed axes", f"{op.node} computes its axis while the model runs")
    reason = Reason("positions", op.node.name, f"{op.node} adds up along it")
    return Facts(outputs=(x,), frozen=((x[given[0] % len(x)], reason),))


@rule("Trilu")
def trilu(op: Op, x: Shape, _: Shape | None = None) -> Facts:
    """ONNX Trilu: keeps a triangle of the last two axes."""
    reason = Reason("positions", op.node.name, f"{op.node} compares positions along it")
    return Facts(outputs=(x,), frozen=tuple((segment, reason) for segment in x[-2:]))
