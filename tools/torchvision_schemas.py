"""Let torchvision be imported where its compiled operators do not load, as beside a CPU-only torch."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import torch

__all__ = ["define_missing_kernels", "define_missing_schemas"]

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


def define_missing_kernels() -> None:
    """Kernels in Python for what detectors call while they are exported; they need not be fast. After the schemas.

    Does nothing where torchvision's own library loads, and nothing the second time.
    """
    from torchvision import extension
    from torchvision.ops import boxes

    roi_align = importlib.import_module("torchvision.ops.roi_align")
    if extension._has_ops() or hasattr(torch.ops.torchvision, "roi_align"):
        return
    torch.library.define(
        "torchvision::roi_align",
        "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, int sampling_ratio, "
        "bool aligned) -> Tensor",
    )
    torch.library.impl("torchvision::roi_align", "CPU", roi_align._roi_align)
    torch.library.impl("torchvision::nms", "CPU", _suppress)
    roi_align._has_ops = _there_are
    roi_align._assert_has_ops = boxes._assert_has_ops = _fine


def _suppress(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """The places of the boxes that no better one covers, the best first."""
    from torchvision.ops.boxes import box_iou

    covers = box_iou(boxes, boxes) > iou_threshold
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    kept = []
    for place in scores.argsort(descending=True, stable=True).tolist():
        if not gone[place]:
            kept.append(place)
            gone |= covers[place]
    return torch.tensor(kept, dtype=torch.long)


def _there_are() -> bool:  # what stands for torchvision's own function must be one that TorchScript can read
    return True


def _fine() -> None:
    return None
