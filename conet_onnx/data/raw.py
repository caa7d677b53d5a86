"""Samples for models that take no images: .npz and .npy files with an array for each of the model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conet_onnx.data.arrays import archive, feeds_of
from conet_onnx.data.dataset import Array, DataSet, Split, Splits, split_named, split_within
from conet_onnx.errors import DataError

__all__ = ["array_places", "raw_file", "raw_folder"]

LABELS = ("y", "labels")  # arrays of these names are labels, never inputs: nothing here knows the model
EXPECTED = "an array for each of the model's inputs, by its name (and perhaps y or labels)"

Place = tuple[str | None, Path, list[Path]]  # the split that its name tells; what to call it; its files


def raw_file(path: Path) -> DataSet:
    """An .npz with an array for each of the model's inputs by its name, or an .npy: the only input of a model.

    `y` or `labels` in an .npz are labels. It is the split that the file's name tells, else train. An .npy is mapped
    into memory and read where it is used. Raises DataError, when the split is read, where it is no such file, or the
    arrays do not fit each other.
    """
    return DataSet(str(path), Splits({split_within(path.stem) or "train": partial(_read, path, [path])}))


def raw_folder(root: Path, places: Iterable[Place]) -> DataSet:
    """A folder of train.npz, val.npz and test.npz, or of folders train, validation|val and test that hold an .npz or a
    NAME.npy for each input each, or one that holds these itself, which is train; see `array_places` and `raw_file`.

    Raises DataError where a split is there twice, or cannot be told.
    """
    found: dict[str | None, tuple[Path, list[Path]]] = {}
    for split, where, files in places:
        if split in found:
            which = f"the {split} split" if split else "without a split in their names"
            raise DataError(f"{found[split][0]} and {where} are both {which}; keep one, or name its split.")
        found[split] = where, files
    if None in found and len(found) > 1:
        where = found[None][0]
        held = f"{where} holds arrays beside its splits" if where == root else f"{where}: its name tells no split"
        raise DataError(f"{held}; name them train, validation or test.")
    readers: dict[str, Callable[[], Split]] = {
        split or "train": partial(_read, where, files) for split, (where, files) in found.items()
    }
    return DataSet(str(root), Splits(readers))


def array_places(root: Path) -> list[Place]:
    """Where a folder holds arrays: each .npz, its .npy files together, and folders in it that are named as splits."""
    inside = [(split_named(folder.name), folder, _files(folder)) for folder in sorted(root.glob("*/"))]
    own = _files(root)
    single = [file for file in own if file.suffix == ".npy"]
    return [
        *((split_within(file.stem), file, [file]) for file in own if file.suffix == ".npz"),
        *([(None, root, single)] if single else []),
        *((split, folder, files) for split, folder, files in inside if split and files),
    ]


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix in (".npz", ".npy") and not f.name.startswith("."))


def _read(where: Path, files: list[Path]) -> Split:
    if len(files) > 1 and any(file.suffix == ".npz" for file in files):
        names = ", ".join(file.name for file in files)
        raise DataError(f"{where} holds {names}; keep one .npz, or a NAME.npy for each of the model's inputs.")
    if files[0].suffix == ".npz":
        arrays = _archived(files[0])
    elif where == files[0]:
        return feeds_of({"": _mapped(where)}, None, str(where))
    else:
        arrays = {file.stem: _mapped(file) for file in files}
    labels = [name for name in LABELS if name in arrays]
    if len(labels) > 1:
        raise DataError(f"{where} holds both {' and '.join(labels)}, which are labels; keep one.")
    inputs = {name: array for name, array in arrays.items() if name not in labels}
    if not inputs:
        held = f"only {labels[0]}" if labels else "nothing"
        raise DataError(f"{where} holds {held}; expected {EXPECTED}, or x_train, y_train, x_test, y_test for images.")
    return feeds_of(inputs, np.asarray(arrays[labels[0]]) if labels else None, str(where))


def _archived(path: Path) -> Mapping[str, Array]:
    with archive(path) as stored:
        of_splits = [name for name in stored.files if name.startswith("x_") and split_named(name[2:])]
        if of_splits:
            raise DataError(f"{path} holds splits of its own ({', '.join(of_splits)}); name that file as the data.")
        arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
    strange = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if strange:
        raise DataError(f"{path}: {', '.join(strange)} is not stored as an array; store it with np.savez.")
    return arrays


def _mapped(path: Path) -> Array:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"Cannot read {path} as an .npy array of numbers: {text}.") from error
