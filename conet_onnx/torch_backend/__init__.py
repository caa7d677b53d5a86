"""Train ONNX graphs in torch: lower a graph, fit its weights, bring them back by name."""

from __future__ import annotations

from conet_onnx.torch_backend.distill import teacher_scores
from conet_onnx.torch_backend.lower import from_torch, lower
from conet_onnx.torch_backend.train import Diverged, Fitted, fit

__all__ = ["Diverged", "Fitted", "fit", "from_torch", "lower", "teacher_scores", "to_torch"]

to_torch = lower  # the facade's name for it
