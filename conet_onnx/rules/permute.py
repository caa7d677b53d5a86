"""Transposes."""

from __future__ import annotations

from conet_onnx.rules.registry import Facts, Op, Shape, rule

__all__ = ["transpose"]


@rule("Transpose")
def transpose(op: Op, x: Shape) -> Facts:
    """ONNX Transpose: axes in the order of `perm`, by default reversed."""
    order = op.attribute("perm", tuple(reversed(range(len(x)))))
    return Facts(outputs=(tuple(x[i] for i in order),), passes=(0,))
