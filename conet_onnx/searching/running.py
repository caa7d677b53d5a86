"""A search from what its folder holds to its end: the trials, who does them, and the record of it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from conet_onnx.ahead import Ahead
from conet_onnx.errors import DataError, UsageError
from conet_onnx.planning import plan
from conet_onnx.plans import WidthPlan
from conet_onnx.records.claims import Claims, Shared, Sole
from conet_onnx.records.run import RUN_FILE, TRIALS_FILE, ModelRecord, Run, read_run, write_run
from conet_onnx.records.study import TrialStudy, copied, study_of
from conet_onnx.records.trial import Trial
from conet_onnx.report import write_report
from conet_onnx.searching.answering import Answering, front, within
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.crew import Alone, Crew
from conet_onnx.searching.folder import FOLDERS, REPORT_FILE, SAID_FILE
from conet_onnx.searching.loop import POLL, Clock, Loop
from conet_onnx.searching.method import Method
from conet_onnx.searching.probing import Probing
from conet_onnx.searching.space import WidthSpace
from conet_onnx.searching.timing import WARNING, Timing
from conet_onnx.searching.trial import Workshop, open_workshop
from conet_onnx.searching.wishes import PRECISION
from conet_onnx.searching.workers import Workers, crowded

__all__ = ["Job"]

# What a resumed run cannot change without becoming another one.
FIXED = (
    *("source", "data", "normalisation", "backend", "algorithm", "options", "budget", "seed", "epochs_per_trial"),
    *("batchnorm", "transfer", "augment", "freeze", "precision", "jobs", "task", "distill", "loss", "features"),
    "multiples",
)


@dataclass(frozen=True, slots=True)
class Job:
    """A search whose folder is held, by this process or by those that share its storage."""

    folder: Path
    workshop: Workshop
    method: Method
    space: WidthSpace
    limits: Limits
    settings: Mapping[str, Any]
    clock: Clock
    storage: str | None
    timing: Timing | None = None

    def run(self) -> Run:
        """Go on from what is there to the end."""
        probe = Probing(self.folder, self.workshop, self.clock)
        if self.storage is None:
            self._sweep()
        with ExitStack() as held:
            opening = Ahead(partial(held.enter_context, self._study()))  # while the source is judged and timed
            try:
                new = None if (self.folder / RUN_FILE).exists() else self._begun(probe)
            finally:
                study, claims = opening.result()
            return self._run(study, claims, probe, new)

    def _run(self, study: TrialStudy, claims: Claims, probe: Probing, new: Run | None) -> Run:
        seed, trials = self.settings["seed"], self.settings["trials"]
        run = self._earlier(study)
        if run and run.best and _enough(run, trials):
            if not (self.folder / REPORT_FILE).exists():  # killed before its last line
                write_report(self.folder)
            return run
        run = run or new or self._begun(probe)
        if not claims.shared or not self._same_end():
            write_run(run)
        ended = [trial for trial in run.trials if trial.state != "running"]
        self._replanned(ended)
        if self.clock.expected is None and len(ended) < trials:
            self._expect(probe, len(ended), 0.0)
        searcher = self.method.searcher(self.space, self.limits, trials=trials, seed=seed, probe=probe)
        with self._crew(idle=len(ended) >= trials) as crew:
            at_once = self.settings["jobs"]
            loop = Loop(self.folder, self.space, self.limits, searcher, study, crew, seed, at_once, claims)
            finished = loop.run(trials, self.clock, reserve=self.clock.work - trials)
        self.clock.earlier = sum(map(_seconds, ended)) / self.settings["workers"]
        while not claims.take("the rest"):
            self.clock.says("another process trains the best", self.clock.done)
            time.sleep(POLL)
        if claims.shared and (other := self._earlier(study)) and other.best and _enough(other, trials):
            return other
        return self._finish(replace(run, trials=finished), loop, study)

    def _sweep(self) -> None:
        """Remove what a killed process was writing."""
        for folder in (self.folder, *(self.folder / name for name in FOLDERS)):
            for part in folder.glob(".*.part"):
                part.unlink()

    @contextmanager
    def _study(self) -> Iterator[tuple[TrialStudy, Claims]]:
        """The trials, and who does them."""
        if self.storage is None:
            with closing(TrialStudy(self.folder / TRIALS_FILE, bounds=self.space.bounds)) as study:
                yield study, Sole()
            return
        name = study_of(self.folder)
        with (
            closing(TrialStudy(self.storage, name=name, bounds=self.space.bounds)) as study,
            closing(Shared(study.storage.engine, name)) as claims,
        ):
            yield study, claims

    @contextmanager
    def _crew(self, *, idle: bool) -> Iterator[Crew]:
        """Who evaluates."""
        workers, workshop = self.settings["workers"], self.workshop
        if idle or workers == 1:
            yield Alone(workshop)
            return
        source = workshop.source.file
        if not source:
            source = os.fspath(self.folder / "source.onnx")
            workshop.source.save(source)
        if workshop.threads and (line := crowded(workers, workshop.threads, workshop.all_threads)):
            self.clock.says(WARNING + line)
        keeper = replace(workshop, said=os.fspath(self.folder / SAID_FILE))
        cores = max(workshop.all_threads // workers, 1)
        settings = keeper.settings(source, self.settings["freeze"], cores=cores)
        with Workers(partial(open_workshop, settings), workers) as crew:
            if workshop.taught():
                _ = keeper.teacher  # while they begin
            yield crew

    def _expect(self, probe: Probing, ended: int, judged: float) -> None:
        """Let the clock say how long it takes, before anything has been done: by some steps of training of the source
        scaled onto the budget, and, where widths will be tried without any, by these, the first that may be. To judge
        a model takes `judged` seconds."""
        if self.clock.progress is None and self.clock.limit is None:
            return
        self.clock.says("timing some steps of training", self.clock.done)
        workers, trials = self.settings["workers"], self.settings["trials"]
        slower = self.workshop.training_threads / max(self.workshop.all_threads // workers, 1) if workers > 1 else 1.0
        scaled = self.space.project(self.space.source, self.limits)
        expected, self.clock.trained = self.workshop.expected_seconds(scaled)
        probes, probed, curves = self.workshop.recipe.probes, 0.0, 0.0
        if math.isfinite(expected):
            curves = self.workshop.expected_beside(expected, trials)
            if probes and not ended and not self.limits.fits(self.space.price(self.space.source)):
                probe.kept()
                begun = time.perf_counter()
                probe.untrained(scaled)
                probed = time.perf_counter() - begun
        fitting = probed * trials / self.clock.work  # trials fit weights too, the last training does not
        self.clock.expected = (expected * max(slower, 1.0) + judged + fitting) / workers
        self.clock.after = self.answering.expected_seconds(judged)
        self.clock.beside = curves + (probes - 1) * probed

    def _replanned(self, ended: Iterable[Trial]) -> None:
        """Plans that a power cut has taken are made again: they follow from the widths, and no trial waits for them."""
        for trial in (one for one in ended if one.state != "failed"):
            file = self.folder / "plans" / f"{trial.number}.json"
            try:
                WidthPlan.load(file)
            except UsageError:
                plan(self.workshop.analysis, trial.widths, inexact=True).changed().save(file)

    def _earlier(self, study: TrialStudy) -> Run | None:
        """The run that the folder holds, if it holds one; its best counts where nothing changes it."""
        if not (self.folder / RUN_FILE).exists():
            return None
        run = read_run(self.folder, trials=study.trials())
        before, now = (_fixed(settings) for settings in (run.settings, self.settings))
        for key in (*FIXED, "storage"):
            if before[key] != now[key]:
                raise UsageError(
                    f"{self.folder} holds a search with another {key} ({before[key]!r}, now {now[key]!r}): resume with "
                    "the same, or choose another --out."
                )
        return replace(run, settings=self.settings, best=run.best if self._same_end() else None)

    def _same_end(self) -> bool:
        """Whether what the folder holds goes to the same end."""
        if not (self.folder / RUN_FILE).exists():
            return False
        noted = read_run(self.folder, trials=()).settings
        return all(noted.get(key) == self.settings[key] for key in ("epochs", "final"))

    def _begun(self, probe: Probing) -> Run:
        """A new run, with what is known of the source; how long it takes is expected."""
        validation, judged = self.workshop.judge(self.workshop.source)
        self.clock.judged += judged
        price = self.space.price(self.space.source)
        self._expect(probe, 0, judged)
        return Run(
            directory=self.folder,
            source=ModelRecord(
                self.workshop.source.file,
                price.params,
                price.macs,
                price.bytes,
                validation=validation,
                predicted_ms=getattr(price, "latency", None),
            ),
            widths={name: {"name": w.name, "size": w.size} for name, w in self.workshop.analysis.widths.items()},
            settings=self.settings,
            budget=self.limits.by_kind,
        )

    def _finish(self, run: Run, loop: Loop, study: TrialStudy) -> Run:
        """Train the best trial to the end; write the models, the record and the report."""
        answering = self.answering
        if not within(run.trials, self.limits):
            raise DataError(
                f"none of {len(run.trials)} trials within the budget ended with a finite loss: was the model trained "
                "on such data, normalised so?"
            )
        run, found, training, evaluation = answering.answered(run, loop)
        tried = sum(trial.state in ("complete", "failed") for trial in run.trials)
        run = replace(run, epochs=run.epochs + tried * self.settings["epochs_per_trial"])
        pareto = answering.save(front(within(run.trials, self.limits), self.limits), loop)
        asked = time.perf_counter()
        run = answering.tested(answering.timed(replace(run, pareto=pareto), found))
        evaluation += time.perf_counter() - asked
        evaluation += 0.0 if self.timing is None else self.timing.seconds
        evaluation += self.clock.judged + self.workshop.choice.seconds
        training += self.clock.trained
        # Of the time on the wall, trials take what they took themselves over those that were under way; all else is
        # overhead, processes that wait for others too.
        total, trials = self.clock.earlier + self.clock.elapsed, sum(map(_seconds, run.trials))
        overhead = total - training - evaluation - trials / (self.settings["jobs" if self.storage else "workers"])
        training += sum(trial.seconds for trial in run.trials)
        evaluation += sum(trial.evaluation_seconds for trial in run.trials)
        seconds = {"total": total, "training": training, "evaluation": evaluation}
        run = replace(run, seconds={**seconds, "overhead": max(overhead, 0.0)})
        if self.storage is not None:
            copied(study, self.folder / TRIALS_FILE, bounds=self.space.bounds)
        (self.folder / SAID_FILE).unlink(missing_ok=True)
        write_run(run)
        write_report(self.folder, run)
        self.clock.says("done", self.clock.work)
        return run

    @property
    def answering(self) -> Answering:
        """What becomes of the trials."""
        how = self.folder, self.workshop, self.space, self.limits, self.settings, self.clock, self.timing
        return Answering(*how)


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    chosen = (settings.get("normalisation") or {}).get("normalisation")  # without scores, which are rounded anew
    # What runs did before they noted it.
    known = {"transfer": "net2net", "precision": PRECISION, "jobs": 1, "loss": {}, "features": {}, **settings}
    # One database may have several names: it matters whether there is one.
    shared = "a database" if known.get("storage") else None
    return {**{key: known.get(key) for key in FIXED}, "normalisation": chosen, "storage": shared}


def _enough(run: Run, trials: int) -> bool:
    return sum(trial.state in ("complete", "failed") for trial in run.trials) >= trials


def _seconds(trial: Trial) -> float:
    return trial.seconds + trial.evaluation_seconds
