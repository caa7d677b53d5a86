"""Decode image files to pixels: all at once where they fit in memory, else when they are asked for."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conet_onnx.data.dataset import Array, Images
from conet_onnx.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["AS_STORED", "DECODED_LIMIT", "Encoded", "Sizing", "decode"]

DECODED_LIMIT = 1 << 30  # bytes of pixels that a split may hold decoded; CIFAR's 50,000 images take 154 MB
PROBES = 64  # headers that are read to tell whether a set is grayscale
GRAY = ("1", "L")
MOST_THREADS = 16
CHUNK = 16  # files that a thread decodes at a time
# Pixels of a file that are worth a thread. Two decode JPEG of 500x500 1.6 times as fast as one, of 128x128 1.1 times;
# of smaller files Python's own work, which threads do in turns, takes most of the time: 32x32 PNG gain nothing.
THREADED = 128 * 128


@dataclass(frozen=True, slots=True)
class Sizing:
    """How images come to one size, as torchvision's Resize(resize) and CenterCrop(crop) do, each if it is not None.

    `resize` is what the shorter side becomes, `crop` both sides of what is cut from the middle. Raises UsageError
    where one is below 1.
    """

    resize: int | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and size < 1:
                raise UsageError(f"{name}={size}: expected at least 1 pixel.")

    def __bool__(self) -> bool:
        return self != AS_STORED

    def __str__(self) -> str:
        """`resize 256, crop 224`; nothing for images as they are stored."""
        return ", ".join(f"{name} {n}" for name, n in (("resize", self.resize), ("crop", self.crop)) if n is not None)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before cropping; the longer side is rounded down, as torchvision does."""
        if self.resize is None:
            return height, width
        longer = int(self.resize * max(height, width) / min(height, width))
        return (longer, self.resize) if height >= width else (self.resize, longer)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """What an image of this height and width becomes. Raises DataError where it is too small to be cropped."""
        resized = self.resized(height, width)
        if self.crop is None:
            return resized
        if min(resized) < self.crop:
            raise DataError(f"{_by(resized)} is too small for --crop {self.crop}; give --resize {self.crop} or more")
        return self.crop, self.crop

    def apply(self, image: Image.Image) -> Image.Image:
        """The image at its size; in the modes L and RGB, the pixels are torchvision's to the bit."""
        from PIL import Image

        height, width = self.resized(image.height, image.width)
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased, as Pillow always does
        if self.crop is not None:
            top, left = round((height - self.crop) / 2), round((width - self.crop) / 2)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return image


AS_STORED = Sizing()


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Image files that come to one size, decoded whenever they are asked for, by several threads where that pays."""

    files: Sequence[bytes | Path]
    where: Callable[[int], str]  # how to call the i-th file in a complaint
    shape: tuple[int, ...]  # (images, channels, height, width)
    sizing: Sizing = AS_STORED
    threads: int = 1

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any, /) -> Array:
        chosen = np.arange(len(self))[index].tolist()
        pixels = np.empty((len(chosen), *self.shape[1:]), np.uint8)

        def fill(start: int) -> None:
            for place, i in enumerate(chosen[start : start + CHUNK], start):
                pixels[place] = _pixels(self.files[i], self.where(i), self.shape[1:], self.sizing)

        starts = range(0, len(chosen), CHUNK)
        threads = min(self.threads, len(starts))
        if threads < 2:
            list(map(fill, starts))
        else:
            with ThreadPoolExecutor(
                threads
            ) as pool:  # map raises in order: the first bad file is the one that is named
                list(pool.map(fill, starts))
        return pixels


def decode(
    files: Sequence[bytes | Path],
    where: Callable[[int], str],
    sizing: Sizing = AS_STORED,
    *,
    limit: int = DECODED_LIMIT,
) -> Images:
    """The images as uint8 [n, channels, height, width], decoded now if that takes at most `limit` bytes.

    Channels are 3 (RGB), or 1 if the images are grayscale; grayscale among colour becomes RGB, which is exact, and
    transparency is dropped. Raises DataError where a file is no readable image, or does not come to the others' size.
    """
    height, width = _header(files[0], where(0))[:2]
    probes = np.linspace(0, len(files) - 1, min(PROBES, len(files)), dtype=int).tolist()
    channels = 1 if all(_header(files[i], where(i))[2] in GRAY for i in probes) else 3
    threads = min(os.cpu_count() or 1, MOST_THREADS) if height * width >= THREADED else 1
    encoded = Encoded(files, where, (len(files), channels, *_size(sizing, height, width, where(0))), sizing, threads)
    return encoded[:] if np.prod(encoded.shape, dtype=np.int64) <= limit else encoded


def _size(sizing: Sizing, height: int, width: int, where: str) -> tuple[int, int]:
    try:
        return sizing.size(height, width)
    except DataError as error:
        raise DataError(f"{where} is {_by((height, width))}: {error}.") from error


def _header(file: bytes | Path, where: str) -> tuple[int, int, str]:
    with _opened(file, where) as image:
        return image.height, image.width, image.mode


def _pixels(file: bytes | Path, where: str, shape: tuple[int, ...], sizing: Sizing) -> Array:
    channels, height, width = shape
    with _opened(file, where) as image:
        size = _size(sizing, image.height, image.width, where)
        if size != (height, width):
            after, what = (f", resized {_by(size)}", "give --crop too") if sizing else ("", "give --resize and --crop")
            raise DataError(
                f"{where} is {_by((image.height, image.width))}{after}, the first image {_by((height, width))}; all "
                f"must have the size that the model takes: {what}, or store them so."
            )
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{where} has more than 8 bits a pixel ({image.mode}); store the arrays in an .npz.")
        if channels == 1 and image.mode not in GRAY:
            raise DataError(f"{where} is in colour, others are grayscale; convert all of them to one of the two.")
        if channels == 1:
            return np.asarray(sizing.apply(_converted(image, "L")))[None]
        if image.mode == "P" and "transparency" in image.info:
            return np.asarray(sizing.apply(image.convert("RGBA").convert("RGB"))).transpose(2, 0, 1)
        return np.asarray(sizing.apply(_converted(image, "RGB"))).transpose(2, 0, 1)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """In a mode; Pillow would copy an image that is in it, which takes a fifth of the time."""
    return image if image.mode == mode else image.convert(mode)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


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
