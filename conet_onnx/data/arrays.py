"""Data sets that are arrays already: the embedded digits, .npz files of images, and what a user's function returns."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from conet_onnx.data.dataset import SPLITS, Array, DataSet, Feeds, Split, Splits, split_named
from conet_onnx.errors import DataError

__all__ = ["archive", "digits", "feeds_of", "from_arrays", "npz", "split_of"]


def digits() -> DataSet:
    """The UCI handwritten digits, 1,797 images of 1x8x8 pixels of 0..16; see digits.md for origin and split."""
    with files(__package__).joinpath("digits.npz").open("rb") as stream, np.load(stream) as stored:
        images, labels = stored["images"][:, None], stored["labels"].astype(np.int64)
        splits = {name: Split(images[stored[name]], labels[stored[name]]) for name in SPLITS}
    return DataSet("digits", splits)


def npz(path: Path) -> DataSet | None:
    """An .npz with x_train, y_train, x_test, y_test and perhaps x_val, y_val; images as NCHW, NHWC or NHW.

    None where no array is named so. Raises DataError where it is no .npz, or the shapes do not fit.
    """
    with archive(path) as stored:
        keys = tuple(stored.files)
    if not keys:
        raise DataError(
            f"{path} holds nothing; expected x_train, y_train, x_test, y_test (and perhaps x_val, y_val), or an array "
            "for each of the model's inputs."
        )
    readers: dict[str, Callable[[], Split]] = {}
    for key in keys:
        name = split_named(key.removeprefix("x_")) if key.startswith("x_") else None
        if name is None:
            continue
        if name in readers:
            raise DataError(f"{path} holds two {name} splits among {', '.join(keys)}; keep one.")
        label = f"y_{key.removeprefix('x_')}"
        readers[name] = partial(_read, path, key, label if label in keys else None, name)
    return DataSet(str(path), Splits(readers)) if readers else None


def from_arrays(name: str, splits: Mapping[Any, Any]) -> DataSet:
    """A data set of {split name: Split, or pair (x, y)}: x are images, or an array for each of a model's inputs in a
    dict; y may be None. Raises DataError for anything else.
    """
    checked: dict[str, Split] = {}
    for key, value in splits.items():
        split = split_named(str(key))
        if split is None or split in checked:
            raise DataError(f"{name}: {key!r} names no split of its own; use train, validation and test, each once.")
        if not isinstance(value, Split) and not (isinstance(value, tuple | list) and len(value) == 2):
            raise DataError(f"{name}: split {key!r} is a {type(value).__name__}; expected a pair (images, labels).")
        checked[split] = _checked(value, f"{name}: {split}")
    if not checked:
        raise DataError(f"{name}: it has no splits; expected at least one of train, validation, test.")
    return DataSet(name, {split: checked[split] for split in SPLITS if split in checked})


def split_of(x: Array, y: Array | None, where: str) -> Split:
    """A split of images NCHW, NHWC or NHW and their labels; `where` opens every complaint.

    Raises DataError for shapes that do not fit or are ambiguous, pixels that are not finite numbers, and labels that
    are not one integer an image.
    """
    images = _numbers(_channels_first(x, where), where)
    if not len(images):
        raise DataError(f"{where}: there are no images.")
    if y is None:
        return Split(images)
    return Split(images, _labels(y, len(images), "image", where))


def feeds_of(arrays: Mapping[str, Array], y: Array | None, where: str) -> Split:
    """A split of an array for each of a model's inputs and their labels; `where` opens every complaint.

    Raises DataError for arrays that hold no numbers or have no axis of samples, for different lengths, and for labels
    that are not one integer a sample.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DataError(f"{where}: input {name!r} is {array.dtype}; expected numbers or booleans.")
        if not array.ndim:
            raise DataError(f"{where}: input {name!r} is a single number; expected a row for each sample.")
    try:
        feeds = Feeds(arrays)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if not len(feeds):
        raise DataError(f"{where}: there are no samples.")
    return Split(feeds, None if y is None else _labels(y, len(feeds), "sample", where))


def _labels(y: Array, count: int, what: str, where: str) -> Array:
    labels = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        one = "an image" if what == "image" else f"a {what}"
        raise DataError(f"{where}: labels are {y.dtype} of shape {y.shape}; expected one integer {one}.")
    if len(labels) != count:
        raise DataError(f"{where}: {count} {what}s and {len(labels)} labels; expected as many of each.")
    return labels.astype(np.int64)


def _checked(value: Any, where: str) -> Split:
    if isinstance(value, Split):
        return value
    x, y = value
    if x is None:
        raise DataError(f"{where}: there are no images.")
    named = isinstance(x, Mapping)
    try:  # asanyarray: a file that is mapped into memory stays one
        arrays = {str(name): np.asanyarray(rows) for name, rows in (x.items() if named else [("", x)])}
        labels = None if y is None else np.asarray(y)
    except ValueError as error:  # rows of different lengths
        what = "inputs" if named else "images"
        raise DataError(f"{where}: its {what} and labels do not make arrays: {error}.") from error
    return feeds_of(arrays, labels, where) if named else split_of(arrays[""], labels, where)


@contextmanager
def archive(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """An .npz; whatever numpy raises while it is open is a DataError. It lets files leak that it cannot read."""
    try:
        with path.open("rb") as stream:
            stored = np.load(stream, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise TypeError("it is one array; store it with np.savez(path, x_test=..., y_test=...)")
            yield stored
    except (OSError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"Cannot read {path} as an .npz archive of arrays: {error}.") from error


def _read(path: Path, x: str, y: str | None, name: str) -> Split:
    with archive(path) as stored:
        images, labels = stored[x], None if y is None else stored[y]
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray | None):
        raise DataError(f"{path}: {x} and {y} are not stored as arrays; store them with np.savez.")
    return split_of(images, labels, f"{path}: {name}")


def _channels_first(x: Array, where: str) -> Array:
    """NCHW. An axis is the channels if it has 1 or 3 entries, or if the other two are equal and it is not."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4:
        raise DataError(f"{where}: images have shape {x.shape}; expected NCHW, NHWC or NHW.")
    _, a, b, c = x.shape
    first, last = a in (1, 3) or (b == c != a), c in (1, 3) or (a == b != c)
    if first == last:
        raise DataError(f"{where}: shape {x.shape} could be NCHW or NHWC; give the images another size.")
    return x if first else x.transpose(0, 3, 1, 2)


def _numbers(x: Array, where: str) -> Array:
    """uint8 where it loses nothing, else float32."""
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where}: images are {x.dtype}; expected integers or floats.")
    if x.dtype.kind != "f":
        whole = x.size and x.min() >= 0 and x.max() <= 255
        return x.astype(np.uint8 if whole else np.float32)
    if not np.isfinite(x).all():
        raise DataError(f"{where}: images hold NaN or infinite values.")
    return x.astype(np.float32, copy=False)
