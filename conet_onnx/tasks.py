"""A task of the user's own: how a model is judged where it is no classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conet_onnx.data import DataSet, Normalisation
from conet_onnx.errors import UsageError
from conet_onnx.feeding import said
from conet_onnx.graph import Graph
from conet_onnx.importing import imported

if TYPE_CHECKING:
    from conet_onnx.torch_backend.losses import Task

__all__ = ["Judgement", "judge", "load_task"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a task says of a model on one split: means over the samples, `loss` among them."""

    split: str
    samples: int
    measures: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """For `finetune --json`."""
        return {
            "format": "conet-onnx-judgement/1",
            "split": self.split,
            "samples": self.samples,
            "measures": dict(self.measures),
        }


def load_task(spec: str, *, root: Path | None = None) -> Task:
    """An instance of `module:Class` (torch_backend.losses.Task), made without arguments; found in `root`, by default
    the current folder, or among what is installed. Raises UsageError where it is none."""
    kind = imported(spec, root or Path(), "--task")
    try:
        made = kind()
    except Exception as error:  # it is the user's code: it may raise anything
        text = " ".join(str(error).split())
        raise UsageError(
            f"--task {spec} failed ({type(error).__name__}: {text}); it is made without arguments."
        ) from error
    if not callable(getattr(made, "loss", None)):
        raise UsageError(f"--task {spec}: it has no method loss(outputs, targets), which is all that a task must have.")
    task: Task = made
    return task


def judge(
    graph: Graph,
    dataset: DataSet,
    task: Task,
    *,
    split: str,
    normalisation: Normalisation,
    provider: str = "auto",
    threads: int | None = None,
) -> Judgement:
    """The task's loss and metrics of a model, through onnxruntime."""
    import torch

    from conet_onnx.torch_backend.losses import as_target

    sums: dict[str, float] = {}
    samples = 0
    metric = getattr(task, "metric", None)
    for outputs, targets in said(
        graph,
        dataset.split(split),
        normalisation,
        collate=getattr(task, "collate", None),
        provider=provider,
        threads=threads,
    ):
        count = len(next(iter(outputs.values())))
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in outputs.items()}
        given = task.loss(tensors, as_target(targets, torch.device("cpu")))
        losses = given.values() if isinstance(given, Mapping) else [given]
        found = {"loss": float(sum(float(value) for value in losses))}
        found |= {} if metric is None else {name: float(value) for name, value in metric(outputs, targets).items()}
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value * count
        samples += count
    return Judgement(split, samples, {name: value / samples for name, value in sums.items()})
