"""Who evaluates: this process, one trial after the other, or several processes that it starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from conet_onnx.searching.task import Evaluate, Report, TrialOutcome, TrialTask

__all__ = ["Alone", "Crew"]


class Crew(Protocol):
    """Evaluates tasks, `size` of them at a time, and gives their outcomes in any order."""

    @property
    def size(self) -> int:
        """How many."""

    def start(self, task: TrialTask, report: Report) -> None:
        """Begin one; no more than `size` may be under way. `report` hears how far it is while `ended` waits."""

    def ended(self, seconds: float | None) -> Iterable[tuple[int, TrialOutcome]]:
        """Wait until a task ends, or so many seconds; the numbers and outcomes of those that have ended."""


class Alone:
    """This process."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._started: list[tuple[TrialTask, Report]] = []

    @property
    def size(self) -> int:
        """One."""
        return 1

    def start(self, task: TrialTask, report: Report) -> None:
        """Keep it for `ended`."""
        self._started.append((task, report))

    def ended(self, seconds: float | None) -> Iterable[tuple[int, TrialOutcome]]:
        """Evaluate what was started, however long it takes."""
        started, self._started = self._started, []
        return [(task.number, self._evaluate(task, report)) for task, report in started]
