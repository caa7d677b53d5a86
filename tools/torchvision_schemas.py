"""Let torchvision be imported where its compiled operators do not load, as beside a CPU-only torch."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import torch

__all__ = ["define_missing_schemas"]

SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def define_missing_schemas() -> None:
    """Define torchvision::nms and torchvision::qnms where torchvision's own library does not; call before importing it.

    Without them `import torchvision` raises "operator torchvision::nms does not exist". They have a schema and no
    kernel: models build and export, and non-maximum suppression still cannot run. Does nothing the second time.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob("_C.*"):
        with contextlib.suppress(OSError):  # built for another torch: the very case that this file is for
            torch.ops.load_library(str(library))
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", schema)
