"""Feed a model's samples to onnxruntime, batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from conet_onnx.data import Normalisation, Split, fed
from conet_onnx.data.dataset import Array
from conet_onnx.data.fitting import fixed_batch, padded
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
    """A model's outputs by name and the labels, for each `batch` samples, in order. A fixed batch size is met by
    repeating the last sample."""
    started = session(graph, provider=provider, threads=threads)
    fixed = fixed_batch(graph)
    outputs = [value.name for value in graph.outputs]
    for stored, labels in split.batches(batch):
        x, y = (stored, labels) if collate is None else collate(stored, labels)
        feeds = fed(graph, x, normalisation)
        count = len(next(iter(feeds.values())))
        size = fixed or count
        parts = [
            run_session(started, {name: padded(a[k : k + size], size) for name, a in feeds.items()}, outputs)
            for k in range(0, count, size)
        ]
        whole = {name: [part[name] for part in parts] for name in outputs}
        yield {name: (np.concatenate(made)[:count] if made[0].ndim else made[0]) for name, made in whole.items()}, y
