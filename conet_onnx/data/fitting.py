"""Whether a data set can be fed to a model, and feeding it: nothing is resized, recoloured or relabelled to fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from conet_onnx.data.dataset import Array, DataSet, Feeds, Split
from conet_onnx.data.normalisation import RAW, Normalisation
from conet_onnx.errors import DataError
from conet_onnx.graph import Graph, Value

__all__ = ["check_fits", "check_labels", "classes_of", "fed", "fixed_batch", "padded"]


def check_fits(graph: Graph, dataset: DataSet, *splits: str, classes: bool = True) -> None:
    """Raise DataError unless the model takes these splits' samples (default: all) and has a class for every label,
    unless labels are no `classes`."""
    count = classes_of(graph) if classes else None
    for name in splits or tuple(dataset.splits):
        split, where = dataset.split(name), f"{dataset.name} ({name})"
        if isinstance(split.images, Feeds):
            _check_feeds(graph, split.images, where)
        else:
            _check_shape(graph, split, where)
        if count is not None and split.labels is not None:
            check_labels(split.labels, count, where)


def classes_of(graph: Graph) -> int | None:
    """How many classes the first output scores, [batch, classes] or with trailing ones; None if the file tells not."""
    shape = graph.outputs[0].shape if graph.outputs else ()
    if len(shape) < 2 or any(size != 1 for size in shape[2:]) or not isinstance(shape[1], int):
        return None
    return shape[1]


def check_labels(labels: Array, classes: int, where: str) -> None:
    """Raise DataError unless every label is one of 0..classes-1."""
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(
            f"{where}: label {labels[at]} of sample {at} is out of range; the model has {classes} classes, "
            f"0..{classes - 1}. Is it another data set than the model was trained on?"
        )


def fixed_batch(graph: Graph) -> int | None:
    """How many samples the model takes at a time; None for any number. Raises DataError where its inputs disagree."""
    fixed = {value.name: value.shape[0] for value in graph.inputs if value.shape and isinstance(value.shape[0], int)}
    sizes = sorted(set(fixed.values()))
    if len(sizes) > 1:
        found = ", ".join(f"{name!r} {size}" for name, size in fixed.items())
        raise DataError(
            f"the model's inputs have first axes of different sizes ({found}): samples are fed along the first axis of "
            "all inputs. Export it with a constant in place of an input that is not of samples."
        )
    return sizes[0] if sizes else None


def fed(graph: Graph, samples: Array | Mapping[str, Array], normalisation: Normalisation = RAW) -> dict[str, Array]:
    """A batch by the model's inputs: images normalised, the arrays of Feeds as they are; cast to their types."""
    first = graph.inputs[0]
    if not isinstance(samples, Mapping):
        return {first.name: np.ascontiguousarray(normalisation.apply(samples, first.dtype))}
    kinds = {value.name: value.dtype for value in graph.inputs}
    named = {name or first.name: array for name, array in samples.items()}
    return {name: np.ascontiguousarray(array, kinds[name]) for name, array in named.items()}


def padded(array: Array, size: int) -> Array:
    """As many samples as the model takes, the last one repeated."""
    return array if len(array) == size else np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def _check_feeds(graph: Graph, feeds: Feeds, where: str) -> None:
    wanted = {value.name: value for value in graph.inputs}
    given = dict(feeds.arrays)
    if list(given) == [""]:
        if len(wanted) != 1:
            raise DataError(
                f"{where}: the model has {len(wanted)} inputs ({_listed(wanted)}); one array without a name feeds "
                "exactly one. Give an array for each by its name."
            )
        given = dict(zip(wanted, given.values(), strict=True))
    if given.keys() != wanted.keys():
        missing = _listed(name for name in wanted if name not in given)
        unknown = _listed(name for name in given if name not in wanted)
        raise DataError(
            f"{where}: the model takes {_listed(wanted)}, the data holds {_listed(given)} (missing: {missing}; "
            f"unknown: {unknown}). Name each array as the input that it feeds."
        )
    for name, value in wanted.items():
        rows, shape = given[name], tuple(given[name].shape[1:])
        if not value.shape:
            raise DataError(f"{where}: the model's input {name!r} has no axis of samples; export it with one.")
        if not _alike(value.shape[1:], shape):
            raise DataError(
                f"{where}: input {name!r} takes {_times(value.shape[1:])} for each sample, the data holds "
                f"{_times(shape)}: store it so, or take a model for such data."
            )
        if not _castable(rows.dtype, value):
            raise DataError(
                f"{where}: input {name!r} takes {value.dtype}, the data holds {rows.dtype}, which does not fit into it "
                f"without loss: store it as {value.dtype}."
            )
    try:
        fixed_batch(graph)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _castable(stored: np.dtype[Any], value: Value) -> bool:
    """Without loss; and float64, which is what numpy makes of numbers, as any float."""
    floats = np.issubdtype(stored, np.floating) and np.issubdtype(value.dtype, np.floating)
    return floats or np.can_cast(stored, value.dtype, "safe")


def _check_shape(graph: Graph, split: Split, where: str) -> None:
    if len(graph.inputs) != 1:
        names = ", ".join(value.name for value in graph.inputs) or "none"
        raise DataError(f"{where}: the model has {len(graph.inputs)} inputs ({names}); images feed exactly one.")
    value = graph.inputs[0]
    wanted, got = value.shape[1:], split.shape
    if _alike(wanted, got):
        return
    what = "convert the data, or take a model for such data"
    if len(wanted) == 3 and len(got) == 3 and wanted == (got[1], got[2], got[0]):
        what = "it takes channels last, and images are fed channels first; export it with a channels-first input"
    elif len(wanted) == 3 and wanted[0] == got[0]:
        what = "resize files with --resize and --crop, or store them at the size that the model takes"
    raise DataError(
        f"{where}: images are {_times(got)}, the model's input {value.name!r} takes {_times(wanted)}: {what}."
    )


def _alike(wanted: tuple[int | str, ...], got: tuple[int, ...]) -> bool:
    return len(wanted) == len(got) and all(isinstance(w, str) or w == g for w, g in zip(wanted, got, strict=True))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _times(shape: tuple[int | str, ...]) -> str:
    return "x".join(str(size) or "?" for size in shape) or "scalars"
