"""Ask, evaluate, tell: the trials of a search, some at a time, resumable after any of its steps."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from conet_onnx.records.claims import Claims, Sole
from conet_onnx.records.study import TrialStudy
from conet_onnx.records.trial import Trial
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.crew import Crew
from conet_onnx.searching.searcher import Proposal, Searcher, objective
from conet_onnx.searching.space import WidthSpace
from conet_onnx.searching.task import Evaluate, Parent, TrialOutcome, TrialTask

__all__ = ["Clock", "Loop", "Progress", "seed_of"]

POLL = 0.5  # seconds between two looks at what other processes have done

Progress: TypeAlias = Callable[[str, float, float, float | None], None]
"""Called with what is being done, how much of the work is done, how much there is, and the seconds left (or None)."""


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
    expected: float | None = None  # seconds for a unit of work, until there is something to go by
    beside: float = 0.0  # seconds that looking at models beside trials is still expected to take,
    after: float = 0.0  # and those that measuring and testing the answer is
    trained: float = 0.0  # seconds of training that were spent to know it
    judged: float = 0.0  # seconds of evaluating models beside trials
    begun: float | None = None  # when the first trial did: what comes before it says nothing of the speed

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def left(self, work: float) -> float | None:
        """Seconds for so much work at the speed so far, as far as it was expected before; None where nothing is known.

        What was expected counts as much as the share of the first unit that is yet to be done.
        """
        done, spent = self.done - self.spared, time.monotonic() - (self.begun or self.started)
        beside = self.beside + self.after if work > 0 else 0.0
        if self.expected is None:
            return spent / done * work + beside if done > 0 else None
        weight = min(max(done, 0.0), 1.0)
        seen = spent / done if done > 0 else 0.0
        return (weight * seen + (1 - weight) * self.expected) * work + beside

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
    """What the trials of one run share. Files: DIR/weights/N.onnx, plans/N.json, measures/N.json, and the study.

    Trials are tried `at_once`, a batch: all of them are proposed from what was told before, evaluated in any order, by
    this process's crew and by those of others that share the study, and told in the order of their numbers. So what
    comes out follows from the seed and `at_once`, whoever ends first. A batch begins at each multiple of `at_once`.
    """

    directory: Path
    space: WidthSpace
    limits: Limits
    searcher: Searcher
    study: TrialStudy
    crew: Crew
    seed: int
    at_once: int = 1
    claims: Claims = field(default_factory=Sole)
    poll: float = POLL

    def run(self, trials: int, clock: Clock, *, reserve: float = 0.0) -> tuple[Trial, ...]:
        """Finish what an earlier process left, go on to `trials` in all, and return them.

        Finished trials are only told; what is left running runs again as it was noted, under its number. Stops early
        where the clock does not allow another batch and the `reserve` (in units of a trial) after it, but never before
        the first.
        """
        known = {trial.number: trial for trial in self.study.trials()}
        total = max(trials, len(known))
        finished: dict[int, Trial] = {}
        clock.begun = time.monotonic()
        for first in range(0, total, self.at_once):
            numbers = range(first, min(first + self.at_once, total))
            missing = sum(number not in known or known[number].state == "running" for number in numbers)
            if missing and finished and not clock.allows(missing + reserve):
                break
            batch = self._begun(numbers, known) if missing else [known[number] for number in numbers]
            if missing:
                batch = self._evaluated(batch, finished, clock, trials)
            else:
                clock.spared = clock.done = numbers.stop
            for trial in batch:
                finished[trial.number] = self._judged(trial)
                self.searcher.tell(finished[trial.number])
        clock.done = total
        return tuple(finished.values())

    def further(self, proposal: Proposal, evaluate: Evaluate, clock: Clock) -> Trial:
        """One more trial after those that were planned, evaluated by this process; told as they were."""
        trials = self.study.trials()
        trial = self._priced(len(trials), proposal)
        phase = f"trial {trial.number + 1}, a further one: {trial.reason}"
        clock.says(phase)
        self.claims.take(f"trial {trial.number}")  # lest who joins now runs it too
        self.study.begin(trial)
        parent = next((other for other in trials if other.number == trial.parent), None)
        ended = _with(trial, evaluate(self._task(trial, parent), lambda _: clock.says(phase)))
        self.study.note(ended)
        self.claims.done(f"trial {trial.number}")
        judged = self._judged(ended)
        self.searcher.tell(judged)
        return judged

    def weights(self, number: int) -> Path:
        """Where a trial's trained model is."""
        return self.directory / "weights" / f"{number}.onnx"

    def plan(self, number: int) -> Path:
        """Where the plan from the source to a trial is."""
        return self.directory / "plans" / f"{number}.json"

    def _begun(self, numbers: range, known: dict[int, Trial]) -> list[Trial]:
        """The batch's trials, noted; by one process, which others wait for."""
        work = f"begin {numbers.start} to {numbers.stop}"
        while any(number not in known for number in numbers):
            if self.claims.take(work):
                if self.claims.shared:
                    known |= self._noted()
                for number in numbers:
                    if number not in known:
                        beside = [known[other].widths for other in range(numbers.start, number)]
                        known[number] = self._priced(number, self.searcher.ask(number, beside))
                        self.study.begin(known[number])
                self.claims.done(work)
            else:
                time.sleep(self.poll)
                known |= self._noted()
        return [known[number] for number in numbers]

    def _evaluated(self, batch: Sequence[Trial], finished: dict[int, Trial], clock: Clock, trials: int) -> list[Trial]:
        """The same trials with their outcomes, in order, which are noted as they come."""
        found = {trial.number: trial for trial in batch}
        progress = _Progress(clock, [*found], trials, ended={n for n, trial in found.items() if _ended(trial)})
        mine: set[int] = set()
        while waiting := [trial for trial in found.values() if not _ended(trial)]:
            for trial in waiting:
                work = f"trial {trial.number}"
                if trial.number in mine or len(mine) == self.crew.size or not self.claims.take(work):
                    continue
                if self.claims.shared and _ended(now := self._noted()[trial.number]):  # by one who then died
                    found[trial.number] = now
                    continue
                mine.add(trial.number)
                parent = None if trial.parent is None else finished[trial.parent]
                progress.starts(trial)
                self.crew.start(self._task(trial, parent), progress.of(trial.number))
            if not mine:
                time.sleep(self.poll)
            for number, outcome in self.crew.ended(self.poll if self.claims.shared else None) if mine else ():
                mine.discard(number)
                found[number] = _with(found[number], outcome)
                if self.claims.holds(f"trial {number}"):
                    self.study.note(found[number])
                    self.claims.done(f"trial {number}")
                progress.ends(number)
            if self.claims.shared:
                for number, trial in self._noted().items():
                    if number in found and number not in mine and _ended(trial):
                        found[number] = trial
                        progress.ends(number)
        return [found[trial.number] for trial in batch]

    def _noted(self) -> dict[int, Trial]:
        return {trial.number: trial for trial in self.study.trials()}

    def _priced(self, number: int, proposal: Proposal) -> Trial:
        price = self.space.price(proposal.widths)
        return Trial(
            number=number,
            widths=proposal.widths,
            params=price.params,
            macs=price.macs,
            bytes=price.bytes,
            latency=getattr(price, "latency", None),
            parent=proposal.parent,
            reason=proposal.reason,
        )

    def _task(self, trial: Trial, parent: Trial | None) -> TrialTask:
        return TrialTask(
            number=trial.number,
            widths=trial.widths,
            parent=Parent(os.fspath(self.weights(parent.number)), parent.widths) if parent else None,
            weights=os.fspath(self.weights(trial.number)),
            plan=os.fspath(self.plan(trial.number)),
            measures=os.fspath(self.directory / "measures" / f"{trial.number}.json"),
            seed=seed_of(self.seed, trial.number),
        )

    def _judged(self, trial: Trial) -> Trial:
        """Whether the search goes on from it, told to the study. Its weights were in place before that heard of it."""
        if trial.state != "evaluated":
            return trial
        loss = trial.validation.get("loss", math.nan)
        done = replace(
            trial, state="complete" if math.isfinite(loss) else "failed", objective=self._objective(loss, trial)
        )
        done = replace(done, accepted=self.searcher.accepts(done))
        self.study.finish(done)
        return done

    def _objective(self, loss: float, trial: Trial) -> float:
        if not math.isfinite(loss):
            return math.nan
        return objective(loss, self.limits.utilisation(trial)) if self.limits.by_kind else loss


@dataclass
class _Progress:
    """How far a batch is: tells the clock."""

    clock: Clock
    numbers: Sequence[int]
    trials: int
    ended: set[int]
    shares: dict[int, float] = field(default_factory=dict)
    phase: str = ""

    def starts(self, trial: Trial) -> None:
        """Say what it tries."""
        self.shares[trial.number] = 0.0
        self._says(f"trial {trial.number + 1} of {self.trials}: {trial.reason}")

    def of(self, number: int) -> Callable[[float], None]:
        """What hears of one trial's share that is done."""

        def heard(share: float) -> None:
            self.shares[number] = max(share, self.shares[number])
            self._says(None)

        return heard

    def ends(self, number: int) -> None:
        """One is done, here or elsewhere."""
        self.shares.pop(number, None)
        if number not in self.ended:
            self.ended.add(number)
            if self.phase and len(self.numbers) > 1:
                self._says(None)

    def _says(self, phase: str | None) -> None:
        """`phase`, or of a batch of one what was said last, of others how many are done."""
        if phase is not None:
            self.phase = phase
        elif len(self.numbers) > 1:
            first, last = self.numbers[0] + 1, self.numbers[-1] + 1
            self.phase = f"trials {first} to {last} of {self.trials}: {len(self.ended)} done"
        self.clock.says(self.phase, self.numbers[0] + len(self.ended) + sum(self.shares.values()))


def _ended(trial: Trial) -> bool:
    return trial.state != "running"


def _with(trial: Trial, outcome: TrialOutcome) -> Trial:
    """With what came of it, to be judged."""
    return replace(
        trial,
        state="evaluated",
        validation={name: value for name, value in outcome.validation.items() if math.isfinite(value)},
        measured=outcome.measured,
        seconds=outcome.seconds,
        evaluation_seconds=outcome.evaluation_seconds,
        flushed=outcome.flushed,
    )


def seed_of(seed: int, number: int) -> int:
    """A trial's own seed, independent of every other's (numpy's SeedSequence); the final training's is number -1."""
    return int(np.random.SeedSequence([seed, number + 1]).generate_state(1)[0])
