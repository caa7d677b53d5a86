"""Decode image files to pixels: all at once where they fit in memory, else when they are asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conet_onnx.data.dataset import Array, Images
from conet_onnx.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DECODED_LIMIT", "Encoded", "decode"]

DECODED_LIMIT = 1 << 30  # bytes of pixels that a split may hold decoded; CIFAR's 50,000 images take 154 MB
PROBES = 64  # headers that are read to tell whether a set is grayscale
GRAY = ("1", "L")


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Image files of one size, decoded whenever they are asked for."""

    files: Sequence[bytes | Path]
    where: Callable[[int], str]  # how to call the i-th file in a complaint
    shape: tuple[int, ...]  # (images, channels, height, width)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any, /) -> Array:
        chosen = np.arange(len(self))[index]
        pixels = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for place, i in zip(pixels, chosen.tolist(), strict=True):
            place[:] = _pixels(self.files[i], self.where(i), self.shape[1:])
        return pixels


def decode(files: Sequence[bytes | Path], where: Callable[[int], str], *, limit: int = DECODED_LIMIT) -> Images:
    """The images as uint8 [n, channels, height, width], decoded now if that takes at most `limit` bytes.

    Channels are 3 (RGB), or 1 if the images are grayscale; grayscale among colour becomes RGB, which is exact, and
    transparency is dropped. Raises DataError where a file is no readable image, or not of the others' size.
    """
    height, width = _header(files[0], where(0))[:2]
    probes = np.linspace(0, len(files) - 1, min(PROBES, len(files)), dtype=int).tolist()
    channels = 1 if all(_header(files[i], where(i))[2] in GRAY for i in probes) else 3
    encoded = Encoded(files, where, (len(files), channels, height, width))
    return encoded[:] if np.prod(encoded.shape, dtype=np.int64) <= limit else encoded


def _header(file: bytes | Path, where: str) -> tuple[int, int, str]:
    with _opened(file, where) as image:
        return image.height, image.width, image.mode


def _pixels(file: bytes | Path, where: str, shape: tuple[int, ...]) -> Array:
    channels, height, width = shape
    with _opened(file, where) as image:
        if (image.height, image.width) != (height, width):
            raise DataError(
                f"{where} is {image.height}x{image.width}, the first image {height}x{width}; images are not resized "
                "here: give all of them the size that the model takes."
            )
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{where} has more than 8 bits a pixel ({image.mode}); store the arrays in an .npz.")
        if channels == 1 and image.mode not in GRAY:
            raise DataError(f"{where} is in colour, others are grayscale; convert all of them to one of the two.")
        if channels == 1:
            return np.asarray(image.convert("L"))[None]
        if image.mode == "P" and "transparency" in image.info:
            return np.asarray(image.convert("RGBA").convert("RGB")).transpose(2, 0, 1)
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@contextmanager
def _opened(file: bytes | Path, where: str) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        text = " ".join(str(error).split())
        raise DataError(
            f"{where} is not a readable image ({type(error).__name__}: {text}); replace or remove it."
        ) from error
