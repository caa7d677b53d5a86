"""Labelled images as the package datasets loads them, from a hub or a folder; tried with its versions 3.6 and 5.2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conet_onnx.data.dataset import Array, DataSet, Split, Splits, split_named
from conet_onnx.data.images import Sizing, decode
from conet_onnx.data.parquet import IMAGES, LABELS, WITHHELD
from conet_onnx.errors import DataError

__all__ = ["hugging_face"]


def hugging_face(source: str, sizing: Sizing, root: Path) -> DataSet:
    """`ID` or `ID:CONFIG` of the hub, which is downloaded and kept as the package does, or a folder of `save_to_disk`.

    Splits go by their names; others than train, validation and test are left out. Raises DataError where the package is
    missing, it cannot load that, or there is no column of images.
    """
    where = f"hf:{source}"
    try:
        from datasets import load_dataset, load_from_disk  # a folder of this name may be found, and has neither
    except ImportError as error:
        raise DataError(f"{where} needs the package datasets: pip install 'conet-onnx[hf]'.") from error
    folder = root / Path(source).expanduser()
    name, _, config = source.partition(":")
    try:
        made = load_from_disk(str(folder)) if folder.is_dir() else load_dataset(name, config or None)
    except Exception as error:  # the hub, the disk and the set's own files fail in many ways
        raise DataError(
            f"Cannot load {where} ({type(error).__name__}: {_line(error)}). Name a data set of the hub as hf:ID or "
            "hf:ID:CONFIG, or a folder that save_to_disk wrote."
        ) from error
    if not isinstance(made, Mapping):
        made = {next(filter(None, map(split_named, (str(made.split), folder.name))), "train"): made}
    readers: dict[str, Callable[[], Split]] = {}
    for key, rows in made.items():
        split = split_named(str(key))
        if split in readers:
            raise DataError(
                f"{where} has two {split} splits among {', '.join(map(str, made))}; save one of them apart."
            )
        if split is not None:
            readers[split] = partial(_read, rows, f"{where} ({key})", sizing)
    if not readers:
        raise DataError(f"{where} has the splits {', '.join(map(str, made))}; expected train, validation or test.")
    return DataSet(where, Splits(readers))


def _read(rows: Any, where: str, sizing: Sizing) -> Split:
    from datasets import Image

    if not len(rows):
        raise DataError(f"{where}: there are no rows.")
    image, label = _image(rows.features, where), _label(rows.features, where)
    files = _Files(rows.cast_column(image, Image(decode=False)).select_columns([image]), image, where)
    pixels = decode(files, files.name, sizing)
    labels = None if label is None else _labels(rows, label, where)
    return Split(pixels, None if labels is None or (labels == WITHHELD).all() else labels)


def _image(features: Mapping[str, Any], where: str) -> str:
    from datasets import Image

    found = [name for name, feature in features.items() if isinstance(feature, Image)]
    chosen = next((name for name in (*IMAGES, *found[:1]) if name in found), None)
    if chosen is None or (len(found) > 1 and chosen not in IMAGES):
        raise DataError(f"{where} has columns {_listed(features)}; expected one of images, or called `image`.")
    return chosen


def _label(features: Mapping[str, Any], where: str) -> str | None:
    from datasets import ClassLabel

    named = next((name for name in LABELS if name in features), None)
    found = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    integer = named is not None and "int" in str(getattr(features[named], "dtype", ""))
    if (named is not None and not integer) or (named is None and len(found) > 1):
        raise DataError(f"{where} has columns {_listed(features)}; expected labels as integers in `label`.")
    return named or (found[0] if found else None)


def _labels(rows: Any, column: str, where: str) -> Array:
    labels = np.asarray(rows[column][:])
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: some rows have no {column}; every row needs its label.")
    return labels.astype(np.int64)


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items()) or "none"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Files(Sequence[bytes | Path]):
    """The images of a data set as their files' bytes, or where these lie."""

    def __init__(self, rows: Any, column: str, where: str) -> None:
        self.rows = rows
        self.column = column
        self.where = where

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            file = self.rows[index][self.column] or {}
        except Exception as error:  # pyarrow's errors, and those of a disk
            raise DataError(f"Cannot read {self.name(index)} ({type(error).__name__}: {_line(error)}).") from error
        if file.get("bytes") is None and file.get("path") is None:
            raise DataError(f"{self.name(index)} has no image; every row needs one.")
        return Path(file["path"]) if file.get("bytes") is None else file["bytes"]

    def name(self, index: int) -> str:
        return f"{self.where}: row {index}"
