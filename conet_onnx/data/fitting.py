"""Whether a data set can be fed to a model: nothing is resized, recoloured or relabelled to make it fit."""

from __future__ import annotations

import numpy as np

from conet_onnx.data.dataset import DataSet, Split
from conet_onnx.errors import DataError
from conet_onnx.graph import Graph

__all__ = ["check_fits", "check_labels", "classes_of"]


def check_fits(graph: Graph, dataset: DataSet, *splits: str, classes: bool = True) -> None:
    """Raise DataError unless the model takes these splits' images (default: all) and has a class for every label,
    unless labels are no `classes`."""
    count = classes_of(graph) if classes else None
    for name in splits or tuple(dataset.splits):
        split = dataset.split(name)
        _check_shape(graph, split, f"{dataset.name} ({name})")
        if count is not None:
            check_labels(split, count, f"{dataset.name} ({name})")


def classes_of(graph: Graph) -> int | None:
    """How many classes the first output scores, [batch, classes] or with trailing ones; None if the file tells not."""
    shape = graph.outputs[0].shape if graph.outputs else ()
    if len(shape) < 2 or any(size != 1 for size in shape[2:]) or not isinstance(shape[1], int):
        return None
    return shape[1]


def check_labels(split: Split, classes: int, where: str) -> None:
    """Raise DataError unless every label is one of 0..classes-1."""
    if split.labels is None:
        return
    wrong = (split.labels < 0) | (split.labels >= classes)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(
            f"{where}: label {split.labels[at]} of sample {at} is out of range; the model has {classes} classes, "
            f"0..{classes - 1}. Is it another data set than the model was trained on?"
        )


def _check_shape(graph: Graph, split: Split, where: str) -> None:
    if len(graph.inputs) != 1:
        names = ", ".join(value.name for value in graph.inputs) or "none"
        raise DataError(f"{where}: the model has {len(graph.inputs)} inputs ({names}); images feed exactly one.")
    value = graph.inputs[0]
    wanted, got = value.shape[1:], split.shape
    if len(wanted) == len(got) and all(isinstance(w, str) or w == g for w, g in zip(wanted, got, strict=True)):
        return
    what = "convert the data, or take a model for such data"
    if len(wanted) == 3 and len(got) == 3 and wanted == (got[1], got[2], got[0]):
        what = "it takes channels last, and images are fed channels first; export it with a channels-first input"
    elif len(wanted) == 3 and wanted[0] == got[0]:
        what = "images are not resized here; store them at the size that the model takes"
    raise DataError(
        f"{where}: images are {_times(got)}, the model's input {value.name!r} takes {_times(wanted)}: {what}."
    )


def _times(shape: tuple[int | str, ...]) -> str:
    return "x".join(str(size) or "?" for size in shape) or "scalars"
