"""Change images at random while they are trained on, by torchvision.transforms.v2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from conet_onnx.errors import UsageError
from conet_onnx.importing import needs_torchvision
from conet_onnx.torch_backend.known import Array

__all__ = ["Augmentation"]

GROUP = (
    8  # neighbours in a (shuffled) batch that are changed alike: one call for each image would take as long as a step
)
PADDING = 8  # crop: an image is padded by its height / 8 on each side (CIFAR's 4 pixels; He et al., 2016, section 4.2)
HOLE = (
    0.25  # cutout: the share of the image that is blanked (DeVries and Taylor, 2017, arXiv:1708.04552: 16 of 32 pixels)
)


class Augmentation:
    """Some of settings.AUGMENTATIONS, in order, on batches of stored pixels [batch, channels, height, width].

    Chance comes from torch's global generator. Raises UsageError where torchvision cannot be used, or the data is not
    images.
    """

    def __init__(self, names: Sequence[str], shape: Sequence[int], classes: int | None) -> None:
        """`shape`: of one image; `classes`: of the model, which mixup needs."""
        if len(shape) != 3:
            raise UsageError(f"augmentations ({', '.join(names)}) change images; the data holds something else.")
        with needs_torchvision(f"augmentation ({', '.join(names)})"):
            from torchvision.transforms import v2
        height, width = shape[1:]
        known: dict[str, Callable[[], Any]] = {
            "crop": lambda: v2.RandomCrop((height, width), padding=max(1, height // PADDING)),
            "flip": v2.RandomHorizontalFlip,
            "cutout": lambda: v2.RandomErasing(p=1, scale=(HOLE, HOLE), ratio=(1, 1)),
            "randaugment": v2.RandAugment,
        }
        self.transforms = [known[name]() for name in names if name in known]
        self.classes = classes
        self.mix = v2.MixUp(num_classes=classes) if "mixup" in names else None
        if self.mix is not None and classes is None:
            raise UsageError("mixup mixes labels of classes too; this training has none.")

    def __call__(self, pixels: Array) -> Array:
        """As many images, of the same type."""
        if not self.transforms:
            return pixels
        images = torch.from_numpy(np.ascontiguousarray(pixels))
        return torch.cat([self._changed(images[k : k + GROUP]) for k in range(0, len(images), GROUP)]).numpy()

    def mixed(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs of images laid over each other, and the shares of their classes [batch, classes]."""
        if self.mix is None:
            return images, labels
        made: tuple[torch.Tensor, torch.Tensor] = self.mix(images, labels)
        return made

    def _changed(self, group: torch.Tensor) -> torch.Tensor:
        for transform in self.transforms:
            group = transform(group)
        return group
