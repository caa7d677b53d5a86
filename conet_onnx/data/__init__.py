"""Data sets: load them, tell whether they fit a model, normalise them."""

from __future__ import annotations

from conet_onnx.data.dataset import DataSet, Feeds, Images, Split
from conet_onnx.data.fitting import check_fits, classes_of, fed
from conet_onnx.data.loading import DataSpec, load_data
from conet_onnx.data.normalisation import RAW, Normalisation

__all__ = [
    "RAW",
    "DataSet",
    "DataSpec",
    "Feeds",
    "Images",
    "Normalisation",
    "Split",
    "check_fits",
    "classes_of",
    "fed",
    "load_data",
]
