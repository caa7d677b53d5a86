"""Train ONNX graphs in torch: lower a graph, fit its weights, bring them back by name."""

from __future__ import annotations

from conet_onnx.torch_backend.lower import from_torch, lower

__all__ = ["from_torch", "lower", "to_torch"]

to_torch = lower  # the facade's name for it
