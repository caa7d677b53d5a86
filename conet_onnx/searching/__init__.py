"""Search for better widths under a budget."""

from __future__ import annotations

from conet_onnx.searching.budget import Budget, Limits
from conet_onnx.searching.record import ModelRecord, Run, Trial, read_run

__all__ = ["Budget", "Limits", "ModelRecord", "Run", "Trial", "read_run"]
