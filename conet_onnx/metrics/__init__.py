"""What CONETv2 and Network Adjustment measure of a network to decide its widths."""

from __future__ import annotations

from conet_onnx.metrics.quality import FORMAT, METRICS, LayerQuality, Quality, as_json, by_width, score
from conet_onnx.metrics.unfolding import Layer, layers

__all__ = [
    "FORMAT",
    "METRICS",
    "Layer",
    "LayerQuality",
    "Quality",
    "as_json",
    "by_width",
    "layers",
    "score",
]
