"""What each ONNX operator becomes in torch: one small function an operator, in one table."""

from __future__ import annotations

from importlib import import_module

from conet_onnx.torch_backend.ops.integers import KNOWN
from conet_onnx.torch_backend.ops.quantise import MOVES
from conet_onnx.torch_backend.ops.registry import FLOW, LOWER, REVIEWED

__all__ = ["FLOW", "KNOWN", "LOWER", "MOVES", "REVIEWED"]

FAMILIES = (
    "activations",
    "attention",
    "contract",
    "elementwise",
    "flow",
    "fused",
    "layout",
    "matrices",
    "normalize",
    "picking",
    "quantise",
    "recurrent",
    "reduce",
    "resize",
    "rotary",
    "sampling",
    "window",
)
for _family in FAMILIES:  # each fills the table
    import_module(f"{__name__}.{_family}")
