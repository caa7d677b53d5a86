"""What each ONNX operator becomes in torch: one small function an operator, in one table."""

from __future__ import annotations

from conet_onnx.torch_backend.ops import (
    activations,
    contract,
    elementwise,
    layout,
    normalize,
    picking,
    recurrent,
    reduce,
    resize,
    window,
)
from conet_onnx.torch_backend.ops.integers import KNOWN
from conet_onnx.torch_backend.ops.registry import LOWER, REVIEWED

__all__ = ["KNOWN", "LOWER", "REVIEWED"]

# They were imported to fill the table.
del activations, contract, elementwise, layout, normalize, picking, recurrent, reduce, resize, window
