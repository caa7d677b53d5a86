"""torchvision's networks, by both of torch's exporters, with random weights and small inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

from tools.zoo_models.entry import Entry, NotBuilt, from_torch, share

__all__ = ["entries"]

BASES = {"alexnet": 224, "inception_v3": 96, "vgg": 224, "swin": 64, "vit": 224, "maxvit": 224}  # heights of images
VIDEO = {"mvit": (8, 64), "swin3d": (8, 64), "s3d": (16, 224)}  # frames, height
RCNN = {  # detectors enlarge their images to 800 rows and look at 1,000 places: fewer of both do what many do
    "min_size": 160,
    "max_size": 160,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 20,
    "box_detections_per_img": 10,
    "box_score_thresh": 0.0,  # untrained, no class is likely
}
ONE_STAGE = {"score_thresh": 0.0, "topk_candidates": 50, "detections_per_img": 10}
RESIZING = {"min_size": 160, "max_size": 160}  # what SSD has no choice of
TRANSFORMERS = ("vit", "swin", "maxvit", "mvit")


def entries() -> list[Entry]:
    """Classification, segmentation, video and detection, by both exporters."""
    try:
        families = _families()
    except ImportError as error:
        reason = str(error)
        return [Entry("all", "torchvision", "torchscript", partial(_refuse, reason))]
    made = []
    for family, names in families.items():
        opsets = share(names)
        for exporter in ("torchscript", "dynamo"):
            for name in names:
                kind = "transformer" if name.startswith(TRANSFORMERS) else "cnn"
                # older operator sets lack what these need: Einsum, rolls, LayerNormalization's parts
                opset = opsets[name] if kind == "cnn" else max(14, opsets[name])
                build = partial(_build, family, name, exporter, opset)
                made.append(Entry(name, f"torchvision {family}", exporter, build, kind))
    return made


def _refuse(reason: str) -> Any:
    raise NotBuilt(reason)


def _families() -> dict[str, list[str]]:
    from tools.torchvision_schemas import define_missing_schemas

    define_missing_schemas()
    from torchvision import models

    return {
        "classification": models.list_models(module=models),
        "segmentation": models.list_models(module=models.segmentation),
        "video": models.list_models(module=models.video),
        "detection": models.list_models(module=models.detection),
    }


def _build(family: str, name: str, exporter: str, opset: int) -> Any:
    # detectors take a batch apart, image by image
    return from_torch(partial(_make, family, name), exporter, opset=opset, batch=family != "detection")


def _make(family: str, name: str) -> tuple[Any, tuple[Any, ...]]:
    import torch
    from torchvision import models

    settings: dict[str, Any] = {"weights": None}
    if family in ("segmentation", "detection"):
        settings["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": False}
    if family == "detection":
        settings |= RCNN if "rcnn" in name else ONE_STAGE if "ssd" in name else ONE_STAGE | RESIZING
    with _small_clips() if name.startswith("mvit") else nullcontext():
        model = models.get_model(name, **settings)
    if family == "video":
        frames, side = next((v for k, v in VIDEO.items() if name.startswith(k)), (8, 64))
        return model, (torch.randn(1 if side > 64 else 2, 3, frames, side, side),)
    if family == "segmentation":
        return _Only(model), (torch.randn(2, 3, 64, 64),)
    if family == "detection":
        from tools.torchvision_schemas import define_missing_kernels

        define_missing_kernels()
        return model, (torch.randn(1, 3, 128, 128),)
    side = next((v for k, v in BASES.items() if name.startswith(k)), 64)
    return model, (torch.randn(2, 3, side, side),)


@contextmanager
def _small_clips() -> Iterator[None]:
    """MViT's tables of positions are as large as its clips, of which torchvision's builders leave no choice: at full
    size, all tensors at once do not fit into memory."""
    from torchvision.models.video import mvit

    frames, side = VIDEO["mvit"]
    small = {"temporal_size": frames, "spatial_size": (side, side)}
    with mock.patch.object(mvit, "MViT", lambda original=mvit.MViT, **settings: original(**(settings | small))):
        yield


def _Only(model: Any) -> Any:  # noqa: N802  (a class, made where torch has been imported)
    from torch import nn

    class Only(nn.Module):
        """Segmentation networks return a dictionary; this returns its entry `out`."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return self.model(x)["out"]

    return Only()
