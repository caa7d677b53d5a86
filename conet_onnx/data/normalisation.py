"""What turns stored pixels into what a model was trained on: (pixel · scale - mean) / std."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conet_onnx.data.dataset import Array
from conet_onnx.errors import DataError
from conet_onnx.files import atomic_write

__all__ = ["RAW", "Normalisation", "candidates"]

FORMAT = "conet-onnx-data/1"


@dataclass(frozen=True, slots=True)
class Normalisation:
    """x = (pixel · scale - mean) / std, with one mean and std for all channels or one for each.

    Raises DataError where mean and std differ in number, are not finite, or std is not positive.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise DataError(f"{self}: mean and std need one number for all channels, or one for each, in both.")
        if not all(map(math.isfinite, (*self.mean, *self.std, self.scale))) or min(*self.std, self.scale) <= 0:
            raise DataError(f"{self}: mean must be finite, std and scale finite and positive.")

    def __str__(self) -> str:
        scale = f"/{1 / self.scale:g}" if self.scale != 1 else ""
        return f"(pixel{scale} - {_short(self.mean)}) / {_short(self.std)}"

    def affine(self, channels: int) -> tuple[Array, Array]:
        """The same as x = pixel · factor + offset; both float32 [channels, 1, 1]. Raises DataError if it fits not."""
        if len(self.mean) not in (1, channels):
            raise DataError(f"{self} is for {len(self.mean)} channels, the images have {channels}.")
        mean, std = np.array(self.mean)[:, None, None], np.array(self.std)[:, None, None]
        shape = (channels, 1, 1)
        factor, offset = np.broadcast_to(self.scale / std, shape), np.broadcast_to(-mean / std, shape)
        return factor.astype(np.float32), offset.astype(np.float32)

    def apply(self, pixels: Array, dtype: Any = np.float32) -> Array:
        """Pixels [batch, channels, height, width] as the model takes them. Integer models take them as they are."""
        if self == RAW:
            return pixels.astype(dtype, copy=False)
        if not np.issubdtype(dtype, np.floating):
            raise DataError(f"The model takes {np.dtype(dtype)} pixels: they cannot be normalised by {self}.")
        factor, offset = self.affine(pixels.shape[1])
        return (pixels * factor + offset).astype(dtype, copy=False)

    @classmethod
    def explicit(cls, mean: Sequence[float], std: Sequence[float], pixels: Any = np.uint8) -> Normalisation:
        """What `--mean --std` say: uint8 pixels are first scaled to 0..1 (as torchvision does), floats are not."""
        scale = 1 / 255 if np.dtype(pixels) == np.uint8 else 1.0
        if scale != 1 and max(map(abs, mean), default=0.0) > 1:
            raise DataError(f"mean {_short(mean)}: pixels are scaled to 0..1 first; divide mean and std by 255.")
        return cls(tuple(map(float, mean)), tuple(map(float, std)), scale)

    @classmethod
    def beside(cls, model: str | os.PathLike[str]) -> Normalisation | None:
        """What MODEL.data.json beside MODEL.onnx says; None where there is no such file. Raises DataError if broken."""
        path = Path(model).with_suffix(".data.json")
        if not path.is_file():
            return None
        try:
            return cls.from_json(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, DataError) as error:
            raise DataError(f"{path} does not say how to normalise: {error}") from error

    def save_beside(self, model: str | os.PathLike[str]) -> None:
        """Write MODEL.data.json beside MODEL.onnx, for `beside` to find."""
        with atomic_write(Path(model).with_suffix(".data.json")) as part:
            part.write_text(json.dumps(self.as_json()) + "\n", "utf-8")

    def as_json(self) -> dict[str, Any]:
        """For MODEL.data.json and for a run's records."""
        return {"format": FORMAT, "scale": self.scale, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Normalisation:
        """The reverse of `as_json`. Raises DataError where it is not that."""
        try:
            if data["format"] != FORMAT:
                raise DataError(f"its format is {data['format']!r}; expected {FORMAT!r}.")
            mean, std = (tuple(float(v) for v in data[key]) for key in ("mean", "std"))
            return cls(mean, std, float(data["scale"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"expected format, scale, mean and std, got {json.dumps(data)}.") from error


RAW = Normalisation()

# Means and standard deviations of training pixels scaled to 0..1, as torchvision and most CIFAR code have them.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def candidates(sample: Array) -> dict[str, Normalisation]:
    """What a model may have been trained on, by name, judged by a sample of training images [n, c, h, w].

    Floats up to 1 are taken to be scaled already. Data that ends elsewhere than at 255 or 1, like the digits' 16, is
    also offered divided by its largest value.
    """
    largest = float(sample.max())
    unit = 1.0 if sample.dtype != np.uint8 and largest <= 1 else 1 / 255
    found = {"raw": RAW, "/255": Normalisation(scale=1 / 255)}
    if largest > 0 and largest not in (1.0, 255.0):
        found["/max"] = Normalisation(scale=1 / largest)
    found["-1..1"] = Normalisation((0.5,), (0.5,), unit)
    if sample.shape[1] == 3:
        found["imagenet"] = Normalisation(*_IMAGENET, unit)
        found["cifar10"] = Normalisation(*_CIFAR10, unit)
    return found


def _short(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values) if len(values) == 1 else f"[{', '.join(f'{v:g}' for v in values)}]"
