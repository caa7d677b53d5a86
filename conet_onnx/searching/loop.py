"""Ask, evaluate, tell: the trials of a search, in order, resumable after any of its steps."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from conet_onnx.records.study import TrialStudy
from conet_onnx.records.trial import Trial
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.searcher import Proposal, Searcher, objective
from conet_onnx.searching.space import WidthSpace

__all__ = ["Clock", "Evaluate", "Loop", "Parent", "Progress", "Report", "TrialOutcome", "TrialTask", "seed_of"]

Progress: TypeAlias = Callable[[str, float, float, float | None], None]
"""Called with what is being done, how much of the work is done, how much there is, and the seconds left (or None)."""

Report: TypeAlias = Callable[[float], None]
"""Called with the share of one piece of work that is done, 0..1."""


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
    and what its method asked to be measured, by quantity and width."""

    validation: Mapping[str, float]
    seconds: float
    evaluation_seconds: float
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Evaluate(Protocol):
    """Train a task's widths and judge them on validation data: the same task gives the same outcome."""

    def __call__(self, task: TrialTask, report: Report, /) -> TrialOutcome: ...


@dataclass
class Clock:
    """Wall time against work: tells how long the rest takes, and when the time is up."""

    work: float  # in units of a trial
    limit: float | None = None  # seconds
    progress: Progress | None = None
    started: float = field(default_factory=time.monotonic)
    done: float = 0.0
    spared: float = 0.0  # work that an earlier process had done,
    earlier: float = 0.0  # and the seconds that it took

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def left(self, work: float) -> float | None:
        """Seconds for so much work at the speed so far; None where nothing has been done yet."""
        done = self.done - self.spared
        return self.elapsed / done * work if done > 0 else None

    def says(self, phase: str, done: float | None = None) -> None:
        """Report; `done` is in units of a trial."""
        self.done = self.done if done is None else done
        if self.progress:
            self.progress(phase, self.done, self.work, self.left(self.work - self.done))

    def allows(self, work: float) -> bool:
        """Whether so much more work ends within the limit, as far as can be told."""
        return self.limit is None or self.elapsed + (self.left(work) or 0.0) < self.limit


@dataclass(frozen=True, slots=True)
class Loop:
    """What the trials of one run share. Files: DIR/weights/N.onnx, plans/N.json, measures/N.json, and the study."""

    directory: Path
    space: WidthSpace
    limits: Limits
    searcher: Searcher
    study: TrialStudy
    evaluate: Evaluate
    seed: int

    def run(self, trials: int, clock: Clock, *, reserve: float = 0.0) -> tuple[Trial, ...]:
        """Finish what an earlier process left, go on to `trials` in all, and return them.

        Finished trials are only told; one left running runs again as it was noted, under its number. Stops early
        where the clock does not allow another trial and the `reserve` (in units of a trial) after it, but never
        before the first.
        """
        known = {trial.number: trial for trial in self.study.trials()}
        finished: dict[int, Trial] = {}
        for number in range(max(trials, len(known))):
            trial = known.get(number)
            if trial is None or trial.state == "running":
                if finished and not clock.allows(1 + reserve):
                    break
                trial = trial or self._begin(number)
                parent = None if trial.parent is None else finished[trial.parent]
                trial = self._finish(trial, parent, clock, f"trial {number + 1} of {trials}: {trial.reason}")
            else:
                clock.spared = clock.done = number + 1
            self.searcher.tell(trial)
            finished[number] = trial
        clock.done = max(trials, len(known))
        return tuple(finished.values())

    def weights(self, number: int) -> Path:
        """Where a trial's trained model is."""
        return self.directory / "weights" / f"{number}.onnx"

    def plan(self, number: int) -> Path:
        """Where the plan from the source to a trial is."""
        return self.directory / "plans" / f"{number}.json"

    def _begin(self, number: int) -> Trial:
        trial = self._priced(number, self.searcher.ask(number))
        self.study.begin(trial)
        return trial

    def _priced(self, number: int, proposal: Proposal) -> Trial:
        price = self.space.price(proposal.widths)
        return Trial(
            number=number,
            widths=proposal.widths,
            params=price.params,
            macs=price.macs,
            bytes=price.bytes,
            parent=proposal.parent,
            reason=proposal.reason,
        )

    def _finish(self, trial: Trial, parent: Trial | None, clock: Clock, phase: str) -> Trial:
        """Evaluate, judge, note. The weights are in place before the study hears of it."""
        task = TrialTask(
            number=trial.number,
            widths=trial.widths,
            parent=Parent(os.fspath(self.weights(parent.number)), parent.widths) if parent else None,
            weights=os.fspath(self.weights(trial.number)),
            plan=os.fspath(self.plan(trial.number)),
            measures=os.fspath(self.directory / "measures" / f"{trial.number}.json"),
            seed=seed_of(self.seed, trial.number),
        )
        clock.says(phase, trial.number)
        outcome = self.evaluate(task, lambda share: clock.says(phase, trial.number + share))
        loss = outcome.validation.get("loss", math.nan)
        done = replace(
            trial,
            state="complete" if math.isfinite(loss) else "failed",
            validation={name: value for name, value in outcome.validation.items() if math.isfinite(value)},
            objective=self._objective(loss, trial),
            measured=outcome.measured,
            seconds=outcome.seconds,
            evaluation_seconds=outcome.evaluation_seconds,
        )
        done = replace(done, accepted=self.searcher.accepts(done))
        self.study.finish(done)
        return done

    def _objective(self, loss: float, trial: Trial) -> float:
        if not math.isfinite(loss):
            return math.nan
        return objective(loss, self.limits.utilisation(trial)) if self.limits.by_kind else loss


def seed_of(seed: int, number: int) -> int:
    """A trial's own seed, independent of every other's (numpy's SeedSequence); the final training's is number -1."""
    return int(np.random.SeedSequence([seed, number + 1]).generate_state(1)[0])
