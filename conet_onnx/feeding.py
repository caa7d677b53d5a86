"""Feed a model's samples to onnxruntime, batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from conet_onnx.data import Normalisation, Split
from conet_onnx.data.dataset import Array
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.runtime import run_session, session

__all__ = ["Collate", "said"]

Collate = Callable[[Any, Any], tuple[Any, Any]]

BATCH = 256


def said(
    graph: Graph,
    split: Split,
    normalisation: Normalisation,
    *,
    collate: Collate | None = None,
    batch: int = BATCH,
    provider: str = "auto",
    threads: int | None = None,
) -> Iterator[tuple[dict[str, Array], Any]]:
    """A model's outputs by name and the labels, for each batch, in order. A fixed batch size is met by repeating the
    last sample. Raises UsageError where images are to feed several inputs."""
    started = session(graph, provider=provider, threads=threads)
    fixed = {value.shape[0] for value in graph.inputs if value.shape and isinstance(value.shape[0], int)}
    size = min(fixed, default=batch)
    outputs = [value.name for value in graph.outputs]
    for stored, labels in split.batches(size):
        x, y = (stored, labels) if collate is None else collate(stored, labels)
        feeds = _fed(graph, x, normalisation)
        count = len(next(iter(feeds.values())))
        if fixed and count < size:
            feeds = {name: np.concatenate([a, np.repeat(a[-1:], size - count, axis=0)]) for name, a in feeds.items()}
        made = run_session(started, feeds, outputs)
        yield {name: array[:count] if array.ndim else array for name, array in made.items()}, y


def _fed(graph: Graph, x: Any, normalisation: Normalisation) -> dict[str, Array]:
    if isinstance(x, Mapping):
        return {value.name: np.ascontiguousarray(x[value.name], dtype=value.dtype) for value in graph.inputs}
    if len(graph.inputs) != 1:
        names = ", ".join(value.name for value in graph.inputs)
        raise UsageError(f"{graph.file or 'the model'} has {len(graph.inputs)} inputs ({names}); images feed one.")
    (value,) = graph.inputs
    return {value.name: np.ascontiguousarray(normalisation.apply(x, value.dtype))}
