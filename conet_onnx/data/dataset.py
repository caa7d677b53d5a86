"""Samples in named splits, as numpy arrays: images, or what a model's inputs take; nothing here knows their origin."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from conet_onnx.errors import DataError

if TYPE_CHECKING:
    from conet_onnx.data.loading import DataSpec

__all__ = ["SPLITS", "Array", "DataSet", "Feeds", "Images", "Rows", "Split", "Splits", "split_named", "split_within"]

Array = np.ndarray[Any, Any]

SPLITS = ("train", "validation", "test")
HELD_OUT = 10  # without a validation split, one in ten of train


class Rows(Protocol):
    """What a split needs of its samples: an array is it, in memory or not, and so is what makes rows when asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(samples, ...)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every row."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any:
        """The rows at an array of indices, as an array [indices, ...]."""


class Images(Rows, Protocol):
    """Rows [images, channels, height, width], uint8, or float32 for data that came as floats."""


@dataclass(frozen=True, slots=True, eq=False)
class Feeds:
    """What a model takes as it is, an array [n, ...] for each of its inputs by name: row i of all is sample i.

    The name "" is the only input of a model that has one, whatever it is called. Raises DataError for no array, and for
    arrays of different lengths.
    """

    arrays: Mapping[str, Rows]

    def __post_init__(self) -> None:
        lengths = {name: len(rows) for name, rows in self.arrays.items()}
        if not lengths:
            raise DataError("there is no array; give one for each of the model's inputs.")
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name!r} has {length:,}" for name, length in lengths.items())
            raise DataError(f"the inputs differ in samples: {found}; give each one row a sample.")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values()), ()))

    def __getitem__(self, index: Any, /) -> dict[str, Array]:
        """The samples at an array of indices."""
        return {name: array[index] for name, array in self.arrays.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Samples and their labels, int64 [n], if any.

    Images are [n, channels, height, width] as they are stored (not normalised); Feeds are for models that take others.
    """

    images: Images | Feeds
    labels: Array | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: (channels, height, width); nothing for Feeds."""
        return () if isinstance(self.images, Feeds) else tuple(self.images.shape[1:])

    def take(self, index: Array) -> Split:
        """The samples at these indices, in this order."""
        labels = None if self.labels is None else self.labels[index]
        if isinstance(self.images, Feeds):
            return Split(Feeds({name: _taken(rows, index) for name, rows in self.images.arrays.items()}), labels)
        return Split(_taken(self.images, index), labels)

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[tuple[Any, Array | None]]:
        """Yield (images, labels) `size` at a time, Feeds as a dict: in order, or in the order that a seed draws."""
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        end = len(self) - len(self) % size if drop_last else len(self)
        for start in range(0, end, size):
            index = order[start : start + size]
            yield self.images[index], None if self.labels is None else self.labels[index]


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """Splits by name (`train`, `validation`, `test`); a search never reads `test`.

    `spec` is what another process opens the same with; None where it was made in memory.
    """

    name: str
    splits: Mapping[str, Split]
    spec: DataSpec | None = None

    def split(self, name: str) -> Split:
        """One split. Raises DataError where the data set has none of that name."""
        if name not in self.splits:
            has = ", ".join(self.splits) or "none"
            raise DataError(
                f"{self.name} has no {name} split (it has: {has}). Add one: {_HOW.get(name, 'see --data')}."
            )
        return self.splits[name]

    def with_validation(self) -> DataSet:
        """The same, with a tenth of train, drawn with seed 0, held out for validation where there is no such split."""
        if "validation" in self.splits or "train" not in self.splits:
            return self
        whole = self.splits.read if isinstance(self.splits, Splits) else self.splits.__getitem__
        halves = cache(lambda: _held_out(self.name, whole("train")))
        readers: dict[str, Callable[[], Split]] = {"train": lambda: halves()[0], "validation": lambda: halves()[1]}
        if "test" in self.splits:
            readers["test"] = lambda: self.splits["test"]
        return DataSet(self.name, Splits(readers))


class Splits(Mapping[str, Split]):
    """Splits by name, each read when it is first asked for, so that evaluating one does not decode the others."""

    def __init__(self, readers: Mapping[str, Callable[[], Split]]) -> None:
        self._readers = {name: readers[name] for name in SPLITS if name in readers}
        self._kept = {name: cache(reader) for name, reader in self._readers.items()}

    def read(self, name: str) -> Split:
        """A split that is not kept here."""
        return self._readers[name]()

    def __getitem__(self, name: str) -> Split:
        return self._kept[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, name: object) -> bool:
        return name in self._readers


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """Some of the rows of what is not in memory, made when they are asked for."""

    rows: Rows
    index: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.rows.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.rows.dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any, /) -> Any:
        return self.rows[self.index[index]]


def split_named(text: str) -> str | None:
    """The split that a name stands for: `val` and `validation` are validation; None if none."""
    return _WORDS.get(text.lower())


def split_within(text: str) -> str | None:
    """The split that the first such word of a file's name stands for: `train-00000-of-00001` is train; None if none."""
    return next(filter(None, map(split_named, re.split(r"[^A-Za-z]+", text))), None)


_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}

_HOW = {
    "test": "a folder or file named test, or x_test and y_test in an .npz",
    "validation": "a folder or file named validation, or x_val and y_val in an .npz",
    "train": "a folder or file named train, or x_train and y_train in an .npz",
}


def _taken(rows: Rows, index: Array) -> Rows:
    """A copy of rows that are in memory; of others, only which ones."""
    in_memory = isinstance(rows, np.ndarray) and not isinstance(rows, np.memmap)
    return rows[index] if in_memory else Taken(rows, index)


def _held_out(name: str, train: Split) -> tuple[Split, Split]:
    if len(train) < 2:
        raise DataError(f"{name}: {len(train)} training sample(s) leave none for validation; at least 2 are needed.")
    order = np.random.default_rng(0).permutation(len(train))
    count = max(1, len(train) // HELD_OUT)
    return train.take(np.sort(order[count:])), train.take(np.sort(order[:count]))
