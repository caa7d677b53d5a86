"""What CONETv2 and Network Adjustment measure of a network to decide its widths."""

from __future__ import annotations

from conet_onnx.metrics.evbmf import Evbmf, evbmf
from conet_onnx.metrics.layers import Layer, layers
from conet_onnx.metrics.quality import FORMAT, METRICS, LayerQuality, Quality, as_json, by_width, score

__all__ = [
    "FORMAT",
    "METRICS",
    "Evbmf",
    "Layer",
    "LayerQuality",
    "Quality",
    "as_json",
    "by_width",
    "evbmf",
    "layers",
    "score",
]
