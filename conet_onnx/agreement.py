"""How far a model says what another one says, where no labels tell which is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from conet_onnx.data import DataSet, Normalisation
from conet_onnx.errors import UsageError
from conet_onnx.feeding import said
from conet_onnx.graph import Graph

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two models say of one split.

    `error` is the mean over the outputs of: mean squared difference / variance of the teacher's (0: the same; 1: no
    better than the teacher's mean). `same` is the share of samples for which the first output is highest for the same
    class; None where that is not [batch, two or more].
    """

    split: str
    samples: int
    error: float
    same: float | None

    @property
    def measures(self) -> Mapping[str, float]:
        """For a table."""
        return {**({} if self.same is None else {"same class as the teacher": self.same}), "error": self.error}

    def as_json(self) -> dict[str, Any]:
        """For `finetune --json`."""
        return {
            "format": "conet-onnx-agreement/1",
            "split": self.split,
            "samples": self.samples,
            "error": self.error,
            "same": self.same,
        }


def agreement(
    graph: Graph,
    teacher: Graph,
    dataset: DataSet,
    *,
    split: str,
    normalisation: Normalisation,
    provider: str = "auto",
    threads: int | None = None,
) -> Agreement:
    """Compare the outputs of the same name, or, where none has, in order; through onnxruntime.

    Raises UsageError where no output can be compared.
    """
    pairs = _pairs(graph, teacher)
    how: dict[str, Any] = {"provider": provider, "threads": threads}
    data = dataset.split(split)
    sums = {mine: np.zeros(4) for mine, _ in pairs}  # squared difference, the teacher's sum, its squares, and count
    hits, samples, classes = 0, 0, False
    first = pairs[0]
    for (mine, _), (theirs, _) in zip(
        said(graph, data, normalisation, **how),
        said(teacher, data, normalisation, **how),
        strict=True,
    ):
        for a, b in pairs:
            x, y = mine[a].astype(np.float64), theirs[b].astype(np.float64)
            if x.shape != y.shape:
                raise UsageError(
                    f"output {a!r} has shape {x.shape}, the teacher's {b!r} {y.shape}: they must be the same."
                )
            sums[a] += (np.square(x - y).sum(), y.sum(), np.square(y).sum(), y.size)
        scores = mine[first[0]], theirs[first[1]]
        classes = scores[0].ndim == 2 and scores[0].shape[1] > 1
        samples += len(scores[0])
        hits += int((scores[0].argmax(1) == scores[1].argmax(1)).sum()) if classes else 0
    errors = [
        s / count / max(squares / count - (total / count) ** 2, 1e-12) for s, total, squares, count in sums.values()
    ]
    return Agreement(split, samples, float(np.mean(errors)), hits / samples if classes else None)


def _pairs(graph: Graph, teacher: Graph) -> list[tuple[str, str]]:
    """Outputs of real numbers."""
    mine, theirs = ([v.name for v in g.outputs if v.dtype.kind == "f"] for g in (graph, teacher))
    pairs = [(name, name) for name in mine if name in theirs] or list(zip(mine, theirs, strict=False))
    if not pairs:
        raise UsageError(f"{graph.file or 'the model'} and its teacher have no output of numbers that can be compared.")
    return pairs
