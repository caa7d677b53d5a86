"""What each ONNX operator becomes in torch: one small function an operator, in one table."""

from __future__ import annotations

from conet_onnx.torch_backend.ops import (
    activations,
    attention,
    contract,
    elementwise,
    fused,
    layout,
    matrices,
    normalize,
    picking,
    quantise,
    recurrent,
    reduce,
    resize,
    rotary,
    sampling,
    window,
)
from conet_onnx.torch_backend.ops.integers import KNOWN
from conet_onnx.torch_backend.ops.quantise import MOVES
from conet_onnx.torch_backend.ops.registry import LOWER, REVIEWED

__all__ = ["KNOWN", "LOWER", "MOVES", "REVIEWED"]

# They were imported to fill the table.
del (
    activations,
    attention,
    contract,
    elementwise,
    fused,
    layout,
    matrices,
    normalize,
    picking,
    quantise,
    recurrent,
    reduce,
    resize,
    rotary,
    sampling,
    window,
)
