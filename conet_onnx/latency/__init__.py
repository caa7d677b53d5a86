"""Time in onnxruntime: whole models in turns, single operators at many sizes, and predictions from these tables."""

from __future__ import annotations

from conet_onnx.latency.timing import FORMAT, Comparison, Latency, Ratio, compare, measure

__all__ = ["FORMAT", "Comparison", "Latency", "Ratio", "compare", "measure"]
