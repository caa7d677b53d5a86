"""Batches as a student sees them: prepared samples, their labels, and what a teacher says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from conet_onnx.data.dataset import Split
from conet_onnx.errors import DataError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend.known import Array
from conet_onnx.torch_backend.learner import Inputs, Learner, Tensors
from conet_onnx.torch_backend.losses import flat

__all__ = ["Batch", "Data", "Lessons", "Normalise", "prepared", "teacher_scores"]

Normalise = Callable[[Any], Inputs]  # samples as they are stored -> what the model takes

Item = TypeVar("Item")

KEPT = 2**28  # bytes: what a teacher says, up to here, is computed once and not in every epoch


class Data(Protocol):
    """Samples to train on: a data.Split, or anything that does the same."""

    def __len__(self) -> int: ...

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[tuple[Any, Any]]:
        """(images [batch, ...] or an array for each input by name, labels int64 [batch] or None); in order without a
        seed, else in the order it draws."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples as they are stored, their labels, and what the teacher was heard to say of them."""

    x: Inputs
    labels: Any
    told: Mapping[str, Array] | None = None


@dataclass(frozen=True, slots=True)
class Lessons:
    """Batches, and where what the teacher says is known beforehand, that too, in the order of the data."""

    data: Data
    told: Mapping[str, Array] | None = None

    @classmethod
    def of(cls, data: Data, teacher: Learner | None, prepare: Callable[[Inputs], Inputs], *, once: bool) -> Lessons:
        """With what the teacher says of every sample, if it is to be asked only `once` and its samples can be
        recognised, and all of it is not too much to be kept."""
        if teacher is None or not once or not isinstance(data, Split):
            return cls(data)
        sample = prepare(first(data)[0])
        size = sum(value.element_size() * value[0].numel() for value in teacher.said(teacher.tensors(sample)).values())
        return cls(data, said_of_all(teacher, data, prepare)) if size * len(data) <= KEPT else cls(data)

    def batches(self, size: int, seed: int) -> Iterator[Batch]:
        """All samples once, in the order that the seed draws."""
        if self.told is None or not isinstance(self.data, Split):
            for x, y in self.data.batches(size, seed=seed):
                yield Batch(x, y)
            return
        labels = self.data.labels
        for x, index in Split(self.data.images, np.arange(len(self.data))).batches(size, seed=seed):
            told = {name: array[index] for name, array in self.told.items()}
            yield Batch(x, None if labels is None else labels[index], told)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, of which the next is made in a thread while one is used."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


def first(data: Data) -> tuple[Inputs, Any]:
    """One sample, as it is stored, and its label. Raises DataError where there is none."""
    for x, y in data.batches(1, seed=None):
        return x, y
    raise DataError("there are no samples to train on.")


def prepared(x: Inputs, normalise: Normalise | None) -> Inputs:
    """Samples as the model takes them."""
    return x if normalise is None else normalise(x)


def said_of_all(
    teacher: Learner, data: Data, prepare: Callable[[Inputs], Inputs], batch: int = 256
) -> dict[str, Array]:
    """What a model says of every sample, in order."""
    found: dict[str, list[Array]] = {}
    for x, _ in data.batches(batch, seed=None):
        for name, value in teacher.said(teacher.tensors(prepare(x))).items():
            found.setdefault(name, []).append(value.float().cpu().numpy())
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def known_scores(scores: Array, data: Data, name: str) -> Mapping[str, Array]:
    """Scores that were computed before, for Lessons. Raises UsageError where they are not one row a sample."""
    if not isinstance(data, Split) or len(scores) != len(data):
        raise UsageError(f"{len(scores)} scores for {len(data)} samples: a Split and one row for each is needed.")
    return {name: scores}


def as_tensors(told: Mapping[str, Array], device: torch.device) -> Tensors:
    """What the teacher said, where the student is."""
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in told.items()}


def teacher_scores(
    teacher: Graph,
    data: Data,
    *,
    normalise: Normalise | None = None,
    batch: int = 256,
    device: torch.device | None = None,
) -> Array:
    """What a model says of every sample, in order: float32 [samples, classes], before any final Softmax.

    For `fit(teacher=...)` of several students on the same data. Runs on the first GPU where there is one.
    """

    def prepare(x: Inputs) -> Inputs:
        return prepared(x, normalise)

    asked = Learner(teacher, device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    name = asked.first()
    asked.keep([name], bare=[name])
    asked.use_channels_last(None)
    asked.settle(prepare(first(data)[0]))
    scores = said_of_all(asked, data, prepare, batch)[name]
    return flat(torch.from_numpy(scores)).numpy()
