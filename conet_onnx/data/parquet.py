"""Parquet in the layout that the Hugging Face hub uses for labelled images."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conet_onnx.data.dataset import Array, DataSet, Split, Splits, split_named, split_within
from conet_onnx.data.images import AS_STORED, Sizing, decode
from conet_onnx.errors import DataError

if TYPE_CHECKING:
    import pyarrow

__all__ = ["parquet"]

IMAGES = ("img", "image")  # struct<bytes: binary, path: string>
LABELS = ("label", "labels", "fine_label")
WITHHELD = -1  # what the hub writes where a split's labels are not published


def parquet(root: Path, sizing: Sizing = AS_STORED) -> DataSet:
    """One parquet file, or a folder of them, at most one folder deeper; the split is in the file's or folder's name.

    Files without a split in any name are train, if that holds for all. Raises DataError where that cannot be told, and
    where a file is not parquet or lacks an image column.
    """
    files = [root] if root.is_file() else sorted({*root.glob("*.parquet"), *root.glob("*/*.parquet")})
    found: dict[str | None, list[Path]] = {}
    for file in files:
        parent = file.parent.name if file.parent != root else ""
        found.setdefault(split_within(file.stem) or split_named(parent), []).append(file)
    if None in found and len(found) > 1:
        raise DataError(f"{found[None][0]}: its name tells no split; name it or its folder train, validation or test.")
    readers: dict[str, Callable[[], Split]] = {
        name or "train": partial(_read, paths, sizing) for name, paths in found.items()
    }
    return DataSet(str(root), Splits(readers))


def _read(files: Sequence[Path], sizing: Sizing) -> Split:
    images, labels = zip(*(_columns(file) for file in files), strict=True)
    blobs = _Blobs(images)
    if not len(blobs):
        raise DataError(f"{files[0]}: there are no rows.")
    pixels = decode(blobs, lambda i: blobs.name(files, i), sizing)
    if all(column is None for column in labels):
        return Split(pixels)
    if any(column is None for column in labels):
        raise DataError(f"{files[0].parent}: some files of a split have labels and some have none.")
    numbers = np.concatenate(labels)
    return Split(pixels, None if (numbers == WITHHELD).all() else numbers)


def _columns(file: Path) -> tuple[pyarrow.ChunkedArray, Array | None]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        names, kinds = schema.names, dict(zip(schema.names, schema.types, strict=True))
        image = next((n for n in IMAGES if n in names and _holds_images(kinds[n])), None)
        label = next((n for n in LABELS if n in names), None)
        if image is None:
            raise DataError(
                f"{file} has columns {_listed(kinds)}; expected `img` or `image`, a struct of bytes and path."
            )
        others = [n for n in names if label is None and pa.types.is_integer(kinds[n])]
        if others or (label is not None and not pa.types.is_integer(kinds[label])):
            raise DataError(f"{file} has columns {_listed(kinds)}; expected labels as integers in `label`.")
        table = pq.read_table(file, columns=[image] + ([label] if label else []))
        blobs = pc.struct_field(table[image], "bytes")
    except (OSError, pa.ArrowException) as error:
        text = " ".join(str(error).split())
        raise DataError(f"Cannot read {file} as parquet: {text}") from error
    for name, column in ((image, blobs), (label, table[label] if label else None)):
        if column is not None and column.null_count:
            raise DataError(
                f"{file}: {column.null_count} rows have no {name}; every row needs its bytes and its label."
            )
    return blobs, table[label].to_numpy().astype(np.int64) if label else None


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0


def _listed(kinds: dict[str, Any]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"


class _Blobs(Sequence[bytes]):
    """The rows of several binary columns, as bytes, without a copy of them all."""

    def __init__(self, columns: Sequence[pyarrow.ChunkedArray]) -> None:
        self.columns = columns
        self.starts = np.cumsum([0, *map(len, columns)]).tolist()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part, row = self._place(index)
        return self.columns[part][row].as_py()

    def __iter__(self) -> Iterator[bytes]:
        return (value.as_py() for column in self.columns for value in column)

    def name(self, files: Sequence[Path], index: int) -> str:
        part, row = self._place(index)
        return f"{files[part]}: row {row}"

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect_right(self.starts, index) - 1
        return part, index - self.starts[part]
