"""Image folders: one folder a class, perhaps below one folder a split; images without a class have no labels.

Files and classes are those of torchvision.datasets.ImageFolder, in its order (a test compares them), found without it:
`evaluate`, `resize` and `score` read folders too, and need neither torch, which torchvision imports, nor a torchvision
that was built for the torch that is installed. What it would save is one walk through a folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from conet_onnx.data.dataset import DataSet, Split, Splits, split_named
from conet_onnx.data.images import AS_STORED, Sizing, decode
from conet_onnx.errors import DataError

__all__ = ["class_folders", "holds_images"]

# ImageFolder's, since models were trained with that.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def class_folders(root: Path, sizing: Sizing = AS_STORED) -> DataSet:
    """`root/train/CLASS/*.png` with validation|val and test beside train, or only `root/CLASS/*.png`, which is train.

    Classes are numbered in the alphabetical order of train's folder names, or of all names where it has none. A split
    without class folders that holds images itself has no labels. Raises DataError where there are neither, or a split
    has a class that train lacks.
    """
    folders = _folders(root)
    named: dict[str, Path] = {}
    for folder in folders:
        split = split_named(folder.name)
        if split is None:
            continue
        if split in named:
            raise DataError(f"{named[split]} and {folder} are both the {split} split; keep one.")
        named[split] = folder
    named = named or {"train": root}
    found = {split: [f.name for f in _folders(folder)] for split, folder in named.items()}
    for split, classes in found.items():
        if not classes and not holds_images(named[split]):
            raise DataError(f"{named[split]} holds no class folders; expected {named[split]}/CLASS/*.png.")
    classes = sorted(found["train"]) if found.get("train") else sorted({c for names in found.values() for c in names})
    readers: dict[str, Callable[[], Split]] = {}
    for split, names in found.items():
        unknown = sorted(set(names) - set(classes))
        if unknown:
            raise DataError(f"{named[split] / unknown[0]}: train has no class {unknown[0]!r}, so it has no number.")
        numbers = {name: classes.index(name) for name in sorted(names)}
        read = partial(_read, classes=numbers) if names else _without_labels
        readers[split] = partial(read, named[split], sizing=sizing)
    return DataSet(str(root), Splits(readers))


def holds_images(folder: Path) -> bool:
    """Whether there are images in it, however deep."""
    return next(_images(folder), None) is not None


def _read(folder: Path, sizing: Sizing, classes: Mapping[str, int]) -> Split:
    files: list[Path] = []
    labels: list[int] = []
    for name, label in classes.items():
        images = sorted(_images(folder / name))
        if not images:
            raise DataError(f"{folder / name} holds no images ({', '.join(EXTENSIONS)}); fill or remove it.")
        files += images
        labels += [label] * len(images)
    return Split(decode(files, lambda i: str(files[i]), sizing), np.array(labels, np.int64))


def _without_labels(folder: Path, sizing: Sizing) -> Split:
    files = sorted(_images(folder))
    return Split(decode(files, lambda i: str(files[i]), sizing))


def _images(folder: Path) -> Iterator[Path]:
    for at, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(at, name)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith((".", "_")))
    except OSError as error:
        raise DataError(f"Cannot read {folder}: {error.strerror or error}.") from error
