"""What an evaluation is given and what it gives back: plain values, so that it runs in this process or in any other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

__all__ = ["Evaluate", "Parent", "Report", "TrialOutcome", "TrialTask", "last_step"]

Report: TypeAlias = Callable[[float], None]
"""Called with the share of one piece of work that is done, 0..1."""


def last_step(weights: str | os.PathLike[str]) -> Path:
    """Where the model with a trial's last weights is, beside the one with their average (recipe.Recipe.average)."""
    return Path(weights).with_suffix(".last.onnx")


@dataclass(frozen=True, slots=True)
class Parent:
    """A model to inherit weights from, and the widths that it has."""

    file: str
    widths: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TrialTask:
    """What an evaluation needs to know of one trial; files by path, so that it can run in another process."""

    number: int
    widths: Mapping[str, int]
    parent: Parent | None  # None: the source
    weights: str  # where the trained model goes, whole or not at all
    plan: str  # where the plan from the source to these widths goes
    measures: str  # where what was measured of it goes, epoch by epoch and layer by layer, if its method asks for that
    seed: int


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """What came of a trial: validation numbers (a finite `loss`, or it failed), seconds of training and evaluation,
    what its method asked to be measured, by quantity and width, and how many denormal numbers were set to zero."""

    validation: Mapping[str, float]
    seconds: float
    evaluation_seconds: float
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    flushed: int = 0


class Evaluate(Protocol):
    """Train a task's widths and judge them on validation data: the same task gives the same outcome."""

    def __call__(self, task: TrialTask, report: Report, /) -> TrialOutcome: ...
