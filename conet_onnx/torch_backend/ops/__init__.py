"""What each ONNX operator becomes in torch: one small function an operator, in one table."""

from __future__ import annotations

from conet_onnx.torch_backend.ops import (
    activations,
    contract,
    elementwise,
    layout,
    normalize,
    picking,
    reduce,
    resize,
    window,
)
from conet_onnx.torch_backend.ops.integers import KNOWN
from conet_onnx.torch_backend.ops.registry import LOWER, REVIEWED

__all__ = ["KNOWN", "LOWER", "REVIEWED"]

del activations, contract, elementwise, layout, normalize, picking, reduce, resize, window  # imported to fill the table
