"""Search: a trained model and a budget in; a smaller trained model out, and the record of how it was found."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from conet_onnx.ahead import Ahead
from conet_onnx.errors import BudgetUnreachable, DataError, OutputError, UsageError
from conet_onnx.files import atomic_write
from conet_onnx.graph import Graph
from conet_onnx.latency import Comparison, compare
from conet_onnx.latency.limits import TIGHTENINGS, least_widths
from conet_onnx.latency.pricing import TimedAnalysis
from conet_onnx.latency.slowdowns import by_profiles, by_table, slowdown
from conet_onnx.loading import load
from conet_onnx.planning import check_transfer, plan
from conet_onnx.plans import WidthPlan
from conet_onnx.records.claims import Claims, Shared, Sole
from conet_onnx.records.database import check_url, prepare, said
from conet_onnx.records.run import RUN_FILE, TRIALS_FILE, ModelRecord, Run, read_run, write_run
from conet_onnx.records.study import LOCK_FILE, STUDY_FILE, TrialStudy, copied, locked, study_of
from conet_onnx.records.trial import Trial
from conet_onnx.report import write_report
from conet_onnx.searching.algorithms import find_method
from conet_onnx.searching.budget import KINDS, Budget, Limits
from conet_onnx.searching.crew import Alone, Crew
from conet_onnx.searching.loop import POLL, Clock, Loop, Progress, seed_of
from conet_onnx.searching.method import Method
from conet_onnx.searching.method import options as constants
from conet_onnx.searching.recipe import Recipe
from conet_onnx.searching.searcher import Proposal
from conet_onnx.searching.space import Priceable, WidthSpace
from conet_onnx.searching.timing import TABLE_FILE, WARNING, Held, Multiple, Timing, multiples, needed, timed
from conet_onnx.searching.trial import Workshop, open_workshop
from conet_onnx.searching.workers import Workers
from conet_onnx.torch_backend.settings import Settings
from conet_onnx.torch_backend.train import Fitted, fabric_of

if TYPE_CHECKING:
    from conet_onnx.data import DataSet, DataSpec, Normalisation
    from conet_onnx.torch_backend.losses import Task
    from conet_onnx.torch_backend.norms import BatchNorm
    from conet_onnx.torch_backend.settings import LossKind

__all__ = ["SearchResult", "front", "search"]

BACKENDS = ("torch",)
# What a resumed run cannot change without becoming another one.
FIXED = (
    *("source", "data", "normalisation", "backend", "algorithm", "options", "budget", "seed", "epochs_per_trial"),
    *("batchnorm", "transfer", "augment", "freeze", "precision", "jobs", "task", "distill", "loss", "features"),
    "multiples",
)
FOLDERS = ("weights", "plans", "pareto", "measures")
REPORT_FILE = "report.html"
SAID_FILE = ".said.npy"  # what the source says of the training data, while several processes need it
LATENCY_SECONDS = 4.0
ANSWERS = 12  # models at most that are held against a limit on latency
PRECISION = "32-true"


@dataclass(frozen=True)
class SearchResult:
    """The models that a search found, and its record."""

    source: Graph
    run: Run

    @cached_property
    def best(self) -> Graph:
        """The answer: within the budget, trained to the end."""
        assert self.run.best is not None
        return load(self.run.best.file, input_shapes=self.source.input_shapes)

    @cached_property
    def pareto(self) -> tuple[Graph, ...]:
        """Trials within the budget that no other one beats in both price and loss, cheapest first."""
        return tuple(load(model.file, input_shapes=self.source.input_shapes) for model in self.run.pareto)


def search(
    graph: Graph,
    *,
    data: str | os.PathLike[str] | DataSpec | DataSet,
    budget: Budget | str | Iterable[str] | None = None,
    backend: str = "torch",
    algorithm: str = "auto",
    options: Mapping[str, Any] | Iterable[str] = (),
    trials: int | None = None,
    epochs_per_trial: int | None = None,
    epochs: int | None = None,
    final: Literal["inherit", "fresh"] | None = None,
    transfer: str | None = None,
    augment: Sequence[str] = (),
    precision: str = PRECISION,
    task: str | Task | None = None,
    distill: float | None = None,
    loss: Mapping[str, LossKind] | None = None,
    features: Mapping[str, str] | None = None,
    freeze: Iterable[str] = (),
    time_limit: float | None = None,
    seed: int = 0,
    provider: str = "auto",
    threads: int | None = None,
    batchnorm: BatchNorm = "auto",
    normalisation: Normalisation | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    jobs: int = 1,
    workers: int | None = None,
    storage: str | None = None,
    tables: Sequence[str | os.PathLike[str]] = (),
    multiple: Multiple = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Find better widths within a budget. Writes best.onnx, pareto/, plans/, trials.db, run.json, report.html in `out`.

    Every trial trains for `epochs_per_trial` against the labels and the source model, and is judged on validation
    data; the best one then trains for `epochs` more. Test data is read once, at the end, for the source and the best.
    `algorithm` is one of searching.algorithms; published ones train otherwise, as their docstrings say, have `options`
    (their constants, by name), other defaults for `trials` and both epochs, and need no `budget`. `final` says whether
    the last training goes on from what the best trial learned or begins anew, `transfer` how weights survive a resize
    (conet_onnx.transfer), `augment` how training images are varied (torch_backend.augment), `precision` is Fabric's
    ("bf16-mixed", say): none of them need be said.
    `task`, of the user's own (torch_backend.losses.Task, or "module:Class" of one), takes the place of labels; trials
    are judged by its loss then. `distill`, `loss` and `features` say how the source is followed, as in training
    (torch_backend.settings.Settings). `freeze` keeps widths as they are, as that of `analyze`. `batchnorm` says whether
    folded convolutions are trained with one (torch_backend.norms). `time_limit`, in seconds, ends the trials early
    enough for that last training, never before one has ended. The same seed on the same machine gives the same models.
    `out` defaults to runs/MODEL_STEM; `resume` goes on with what is there, finished or killed, and may change `trials`
    and `epochs`.

    `jobs` trials are tried at a time: proposed together, evaluated in `workers` processes of this host (default: as
    many as jobs), and told in order, so that the same seed and `jobs` give the same search, whichever ends first.
    Methods whose trials follow from the one before try one at a time. `storage` is the URL of a database: processes
    that are given the same one, the same `out` and the same settings share the trials of one search (docs/parallel.md);
    `out` may then exist.

    A budget of latency holds for the best model as it is measured in turns with the source; widths are chosen by what a
    latency table predicts: `tables` (files of `profile`), or one that is made first, and is kept in `out`. `multiple`:
    widths are multiples of it; "auto", the default for latency: of what this machine runs fast (docs/latency.md).

    Raises UsageError for settings that make no sense, an existing `out` without `resume`, or a `resume` with other
    settings; BudgetUnreachable, also where no model meets a limit on latency as it is measured; DataError where the
    data does not fit the model; OutputError where `out` cannot be written. A KeyboardInterrupt leaves a folder that can
    be resumed.
    """
    if budget is not None and not isinstance(budget, Budget):
        budget = Budget.parse(budget)
    method = find_method(algorithm, options)
    if budget is None and method.needs_budget:
        raise UsageError(f"algorithm {algorithm!r} needs a budget: macs=0.5, say.")
    trials = method.trials if trials is None else trials
    epochs_per_trial = method.epochs_per_trial if epochs_per_trial is None else epochs_per_trial
    epochs = method.epochs if epochs is None else epochs
    varied: dict[str, Any] = {"augment": tuple(augment)} if augment else {}
    varied |= {"precision": precision} if precision != PRECISION else {}
    varied |= {} if distill is None else {"distill": distill}
    varied |= {name: dict(value) for name, value in (("loss", loss), ("features", features)) if value}
    recipe = _recipe(method, final, transfer, varied)
    freeze = tuple(freeze)
    ones = {"trials": trials, "epochs_per_trial": epochs_per_trial, "jobs": jobs, "workers": workers or 1}
    _check(backend, ones, epochs, time_limit)
    at_once = min(jobs, method.at_once or jobs)
    here = min(jobs if workers is None else workers, at_once)
    if storage is not None:
        check_url(storage)
        if time_limit is not None:
            raise UsageError("time_limit ends the trials of one process, and storage has others go on: leave one out.")
    folder = Path(out) if out is not None else Path("runs") / (Path(graph.file).stem or "model")
    _check_folder(folder, resume=resume, shared=storage is not None)
    # In units of a trial as long as some are trained at the same time; the last training is one alone.
    clock = Clock(trials + here * epochs / epochs_per_trial, time_limit, progress)
    clock.says("reading the model and the data")
    imported = Ahead(prepare)
    workshop = Workshop.open(
        graph,
        data,
        normalisation=normalisation,
        epochs=epochs_per_trial,
        provider=provider,
        threads=threads,
        batchnorm=batchnorm,
        recipe=recipe,
        task=task,
        freeze=freeze,
    )
    if not workshop.analysis.widths:
        raise UsageError(f"{graph.file or 'the model'} has no width that may change; `conet-onnx analyze` says why.")
    timing = None
    if needed(budget, recipe):
        if storage is not None:
            _make_folder(folder, resume=True)  # who shares it makes one table
        imported.result()  # nothing else runs while times are measured
        how: dict[str, Any] = {"provider": provider, "threads": threads, "clock": clock, "shared": storage is not None}
        timing = timed(workshop.analysis, folder, tables, budget=budget, **how)
        workshop = replace(workshop, table=os.fspath(folder / TABLE_FILE))
    elif tables and multiple != "auto":
        raise UsageError("a latency table helps with a budget of latency, or with multiple 'auto': leave it out.")
    where: dict[str, Any] = {"provider": provider, "threads": threads, "warn": lambda line: clock.says(WARNING + line)}
    steps = multiples(multiple, workshop.analysis, timing, tables, **where)
    # What holds time goes no further than to what was measured; other budgets may.
    holds = timing is not None and (budget is None or budget.time is not None)
    least = least_widths(multiples("auto", workshop.analysis, timing, (), **where)) if holds else {}
    priced: Priceable = workshop.analysis if timing is None else TimedAnalysis(workshop.analysis, timing.predicted)
    limits = budget.resolve(priced.costs.price({})) if budget else Limits({})
    space = method.space(priced, limits).aligned(steps, least)
    space.project(space.source, limits)  # an unreachable budget is found before anything is written
    settings = {
        "source": graph.sha256,
        "data": workshop.data,
        "normalisation": workshop.choice.as_json(),
        "backend": backend,
        "algorithm": algorithm,
        "options": constants(method),
        "budget": str(budget or ""),
        "trials": trials,
        "epochs_per_trial": epochs_per_trial,
        "epochs": epochs,
        "time_limit": time_limit,
        "seed": seed,
        "provider": provider,
        "threads": threads,
        "batchnorm": batchnorm,
        "final": recipe.final,
        "transfer": recipe.transfer,
        "augment": list(augment),
        "precision": precision,
        "task": task if task is None or isinstance(task, str) else type(task).__qualname__,
        "distill": distill,
        "loss": dict(loss or {}),
        "features": dict(features or {}),
        "freeze": sorted(freeze),
        "jobs": at_once,
        "workers": here,
        "storage": None if storage is None else said(storage),
        "multiple": multiple,
        "multiples": steps or None,
    }
    _make_folder(folder, resume=resume or storage is not None)
    with nullcontext() if storage else locked(folder):
        if timing is not None and not (folder / TABLE_FILE).exists():
            timing.table.save(folder / TABLE_FILE)
        return SearchResult(
            graph, _Job(folder, workshop, method, space, limits, settings, clock, storage, timing).run()
        )


@dataclass(frozen=True, slots=True)
class _Job:
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
        with self._study() as (study, claims):
            return self._run(study, claims)

    def _run(self, study: TrialStudy, claims: Claims) -> Run:
        seed, trials = self.settings["seed"], self.settings["trials"]
        run = self._earlier(study)
        if run and run.best and _enough(run, trials):
            if not (self.folder / REPORT_FILE).exists():  # killed before its last line
                write_report(self.folder)
            return run
        run = run or self._begun()
        if not claims.shared or not self._same_end():
            write_run(run)
        ended = [trial for trial in run.trials if trial.state != "running"]
        self._replanned(ended)
        if len(ended) < trials:
            self._expect()
        searcher = self.method.searcher(self.space, self.limits, trials=trials, seed=seed, source=run.measured)
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

    @contextmanager
    def _study(self) -> Iterator[tuple[TrialStudy, Claims]]:
        """The trials, and who does them."""
        if self.storage is None:
            study = TrialStudy(self.folder / TRIALS_FILE, bounds=self.space.bounds)
            try:
                for folder in (self.folder, *(self.folder / name for name in FOLDERS)):
                    for part in folder.glob(".*.part"):  # what a killed process was writing
                        part.unlink()
                yield study, Sole()
            finally:
                study.close()
            return
        name = study_of(self.folder)
        study = TrialStudy(self.storage, name=name, bounds=self.space.bounds)
        try:
            claims = Shared(study.storage.engine, name)
            try:
                yield study, claims
            finally:
                claims.close()
        finally:
            study.close()

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
        keeper = replace(workshop, said=os.fspath(self.folder / SAID_FILE))
        cores = max(workshop.all_threads // workers, 1)
        settings = keeper.settings(source, self.settings["freeze"], cores=cores)
        with Workers(partial(open_workshop, settings), workers) as crew:
            if workshop.taught():
                _ = keeper.teacher  # while they begin
            yield crew

    def _expect(self) -> None:
        """Let the clock say how long it takes, before anything has been done."""
        if self.clock.progress is None and self.clock.limit is None:
            return
        self.clock.says("timing some steps of training", self.clock.done)
        workers = self.settings["workers"]
        slower = self.workshop.training_threads / max(self.workshop.all_threads // workers, 1) if workers > 1 else 1.0
        expected, self.clock.trained = self.workshop.expected_seconds()
        self.clock.expected = expected * max(slower, 1.0) / workers

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

    def _begun(self) -> Run:
        """A new run, with what is known of the source."""
        asked = time.perf_counter()
        validation, _ = self.workshop.judge(self.workshop.source)
        measured = self.workshop.curves(self.workshop.source)
        self.clock.judged = time.perf_counter() - asked
        price = self.space.price(self.space.source)
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
            measured=measured,
        )

    def _finish(self, run: Run, loop: Loop, study: TrialStudy) -> Run:
        """Train the best trial to the end; write the models, the record and the report."""
        if not self._fitting(run.trials, self.limits):
            raise DataError(
                f"none of {len(run.trials)} trials within the budget ended with a finite loss: was the model trained "
                "on such data, normalised so?"
            )
        run, found, training, evaluation = self._answered(run, loop)
        tried = sum(trial.state in ("complete", "failed") for trial in run.trials)
        run = replace(run, epochs=run.epochs + tried * self.settings["epochs_per_trial"])
        pareto = self._save(front(self._fitting(run.trials, self.limits), self.limits), loop)
        asked = time.perf_counter()
        run = self._tested(self._timed(replace(run, pareto=pareto), found))
        evaluation += time.perf_counter() - asked
        evaluation += 0.0 if self.timing is None else self.timing.seconds
        evaluation += self.clock.judged
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
        write_report(self.folder)
        self.clock.says("done", self.clock.work)
        return run

    @staticmethod
    def _fitting(trials: Iterable[Trial], limits: Limits) -> list[Trial]:
        return [trial for trial in trials if trial.state == "complete" and limits.fits(trial)]

    def _answered(self, run: Run, loop: Loop) -> tuple[Run, Comparison, float, float]:
        """With the best model, which was measured beside the source; seconds of training and of evaluation.

        Where a limit on latency is not met by what is measured, it is tightened by as much: the next best trial within
        it is taken, or another one tried. Raises BudgetUnreachable where that does not help.
        """
        held = self._held()
        training, evaluation, further, epochs = 0.0, 0.0, 0, 0
        for _ in range(ANSWERS):
            limits = self.limits if held is None else self.limits.scaled(held.factor, "latency")
            fitting = self._fitting(run.trials, limits)
            if held is not None and not fitting:
                if further == TIGHTENINGS:
                    break
                further += 1
                tried = loop.further(self._tighter(run, limits, loop, held), self.workshop, self.clock)
                run = replace(run, trials=(*run.trials, tried))
                continue
            chosen = loop.searcher.choose(fitting)
            same = dict(chosen.widths) == self.space.source
            if held is not None:  # before it is trained to the end
                asked = time.perf_counter()
                met, _ = held.meets(os.fspath(loop.weights(chosen.number)), chosen.latency or 0.0, source=same)
                evaluation += time.perf_counter() - asked
                if not met:
                    continue
            best, trained, judged = self._train(chosen, loop)
            training, evaluation, epochs = training + trained, evaluation + judged, epochs + self.settings["epochs"]
            predicted = chosen.latency or 0.0
            if self._keeps_source(run.source, best, limits):
                best, same, predicted = self._source_itself(run.source), True, run.source.predicted_ms or 0.0
            asked = time.perf_counter()
            if held is None:
                met, found = True, self._compared(best.file)
            else:
                met, found = held.meets(best.file, predicted, source=same)
            evaluation += time.perf_counter() - asked
            if met:
                return replace(run, best=best, epochs=epochs), found, training, evaluation
        assert held is not None
        raise held.unmet()

    def _held(self) -> Held | None:
        """What holds models against a limit on latency, if there is one."""
        if self.timing is None or self.timing.most is None:
            return None
        return Held(self.timing.most, self.limits.by_kind["latency"], self._compared)

    def _tighter(self, run: Run, limits: Limits, loop: Loop, held: Held) -> Proposal:
        """The best of the trials within the budget as it was predicted, scaled onto what meets it as measured."""
        base = loop.searcher.choose(self._fitting(run.trials, self.limits))
        try:
            widths = self.space.project(base.widths, limits)
        except BudgetUnreachable:
            raise held.unmet() from None
        parent = base.number if self.workshop.recipe.start == "source" else None
        return Proposal(widths, parent, f"scaled onto {limits}, since more was measured than predicted")

    def _train(self, chosen: Trial, loop: Loop) -> tuple[ModelRecord, float, float]:
        """The chosen trial, trained further where that helps; seconds of training and of evaluation."""
        model = load(loop.weights(chosen.number), input_shapes=self.workshop.source.input_shapes)
        validation, training, evaluation, flushed = chosen.validation, 0.0, 0.0, chosen.flushed
        fitted: list[Fitted] = []
        if self.settings["epochs"]:
            start, phase = self.clock.done, f"training the best, trial {chosen.number + 1}"
            trained, training = self.workshop.train(
                model,
                epochs=self.settings["epochs"],
                seed=seed_of(self.settings["seed"], -1),
                last=True,
                told=fitted.append,
                report=lambda share: self.clock.says(phase, start + (self.clock.work - start) * share),
            )
            after, evaluation = self.workshop.judge(trained)
            if after["loss"] <= validation["loss"]:
                model, validation, flushed = trained, after, sum(one.flushed for one in fitted)
        file = self.folder / "best.onnx"
        model.save(file, durable=True)
        _copy(loop.plan(chosen.number), self.folder / "plans" / "best.json")
        return replace(_record(chosen, file), validation=validation, flushed=flushed), training, evaluation

    def _keeps_source(self, source: ModelRecord, best: ModelRecord, limits: Limits) -> bool:
        """Whether a search that began with the source's weights, and limits that they are within, found no better."""
        recipe = self.workshop.recipe
        ours = recipe.start == "source" and recipe.final == "inherit" and bool(self.limits.by_kind)
        fits = limits.fits(self.space.price(self.space.source))
        return ours and fits and source.validation["loss"] < best.validation["loss"]

    def _source_itself(self, source: ModelRecord) -> ModelRecord:
        """The source as the answer."""
        file, widths = self.folder / "best.onnx", dict(self.space.source)
        self.workshop.source.save(file, durable=True)
        plan(self.workshop.analysis, widths).save(self.folder / "plans" / "best.json")
        return replace(source, file=os.fspath(file), widths=widths)

    def _save(self, trials: Sequence[Trial], loop: Loop) -> tuple[ModelRecord, ...]:
        """These trials' models and no others in DIR/pareto."""
        folder = self.folder / "pareto"
        files = [folder / f"{trial.number}.onnx" for trial in trials]
        for trial, file in zip(trials, files, strict=True):
            _copy(loop.weights(trial.number), file)
        for stale in set(folder.glob("*.onnx")) - set(files):  # of a run that has been extended since
            stale.unlink()
        return tuple(map(_record, trials, files))

    def _compared(self, file: str) -> Comparison:
        """A model in turns with the source."""
        provider, threads = self.settings["provider"], self.settings["threads"]
        source, other = self.workshop.source, load(file, input_shapes=self.workshop.source.input_shapes)
        self.clock.says("measuring latency")
        return compare(source, other, provider=provider, threads=threads, seconds=LATENCY_SECONDS)

    def _timed(self, run: Run, found: Comparison) -> Run:
        """With what was measured. A share of the source's time is one of what the source took beside the best."""
        assert run.best
        if found.ratio.low > 1 and run.best.macs < run.source.macs:
            self.clock.says(WARNING + self._slower(run.best, run.source, found))
        most, budget = None if self.timing is None else self.timing.most, dict(run.budget)
        if most is not None and most.relative:
            budget["latency"] = most.amount * found.a.p50_ms
        return replace(
            run,
            source=replace(run.source, latency_ms=found.a.p50_ms),
            best=replace(run.best, latency_ms=found.b.p50_ms),
            latency={"p50": found.ratio.p50, "low": found.ratio.low, "high": found.ratio.high},
            budget=budget,
        )

    def _slower(self, best: ModelRecord, source: ModelRecord, found: Comparison) -> str:
        """What is said of a best model that takes longer than the source, for all that it has fewer MACs."""
        if self.timing is not None:
            row = self.workshop.analysis.costs.row(best.widths)
            layers = by_table(self.workshop.source, self.timing.predicted, row)
        else:
            other = load(best.file, input_shapes=self.workshop.source.input_shapes)
            layers = by_profiles(
                self.workshop.source, other, provider=self.settings["provider"], threads=self.settings["threads"]
            )
        return slowdown("the best model", found, (source.macs, best.macs), layers)

    def _tested(self, run: Run) -> Run:
        """With, for the first and only time, the test split."""
        assert run.best
        source, best = self.workshop.source, load(run.best.file, input_shapes=self.workshop.source.input_shapes)
        tests: list[Mapping[str, float] | None] = [None, None]
        if "test" in self.workshop.dataset.splits:
            self.clock.says("testing")
            tests = [self.workshop.judge(graph, "test")[0] for graph in (source, best)]
        return replace(
            run,
            source=replace(run.source, test=tests[0]),
            best=replace(run.best, test=tests[1]),
        )


def front(trials: Iterable[Trial], limits: Limits) -> list[Trial]:
    """The trials that no other one beats in loss and in what the budget limits (all there is to pay, where it limits
    nothing), cheapest first; of equals, one."""
    trials = list(trials)
    known = [kind for kind in KINDS if all(getattr(trial, kind) is not None for trial in trials)]
    kinds = tuple(limits.by_kind) or known
    rows = [(*(getattr(t, kind) for kind in kinds), t.validation["loss"], t.number, t) for t in trials]
    rows.sort(key=lambda row: row[:-1])

    def beats(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
        return a is not b and all(x <= y for x, y in zip(a[:-2], b[:-2], strict=True)) and a[:-1] < b[:-1]

    return [row[-1] for row in rows if not any(beats(other, row) for other in rows)]


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


def _record(trial: Trial, file: Path) -> ModelRecord:
    return ModelRecord(
        os.fspath(file),
        trial.params,
        trial.macs,
        trial.bytes,
        validation=trial.validation,
        widths=trial.widths,
        trial=trial.number,
        predicted_ms=trial.latency,
        flushed=trial.flushed,
    )


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as part:
        shutil.copyfile(source, part)


def _recipe(
    method: Method,
    final: Literal["inherit", "fresh"] | None,
    transfer: str | None,
    varied: Mapping[str, Any],
) -> Recipe:
    """The method's, with what the user wants otherwise."""
    recipe = method.recipe()
    if final not in (None, "inherit", "fresh"):
        raise UsageError(f"final={final!r}: the last training goes on (inherit) or begins anew (fresh).")
    if transfer is not None:
        check_transfer(transfer)
    made = replace(
        recipe,
        final=final or recipe.final,
        transfer=transfer or recipe.transfer,
        training={**recipe.training, **varied},
        final_training={**recipe.final_training, **varied},
    )
    for training in (made.training, made.final_training):
        settings = Settings(epochs=0, **training)  # what makes no sense is said before anything is read
        if "precision" in varied:
            fabric_of(settings)
    return made


def _check(backend: str, at_least_one: Mapping[str, int], epochs: int, time_limit: float | None) -> None:
    if backend not in BACKENDS:
        raise UsageError(f"no backend {backend!r}: there is {', '.join(BACKENDS)}.")
    for name, count in (*at_least_one.items(), ("epochs", epochs)):
        if count < (name in at_least_one):
            raise UsageError(f"{name}={count}: expected at least {int(name in at_least_one)}.")
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"time_limit={time_limit}: expected seconds, more than 0.")


def _check_folder(folder: Path, *, resume: bool, shared: bool) -> None:
    if not folder.exists():
        return
    holds = (STUDY_FILE, RUN_FILE) if shared else (TRIALS_FILE,)
    if not resume and not (shared and (folder / STUDY_FILE).exists()):
        raise UsageError(f"{folder} exists: go on with what is there (--resume), or choose another --out.")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: there is nothing to resume.")
    known = {LOCK_FILE, STUDY_FILE, TABLE_FILE, *FOLDERS}
    if not any((folder / name).exists() for name in holds) and {entry.name for entry in folder.iterdir()} - known:
        raise UsageError(f"{folder} does not hold a search: there is nothing to resume. Choose another --out.")


def _make_folder(folder: Path, *, resume: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=resume)
        for name in FOLDERS:
            (folder / name).mkdir(exist_ok=True)
    except FileExistsError as error:  # made by another process since the check
        raise UsageError(f"{folder} exists: choose another --out.") from error
    except OSError as error:
        raise OutputError(f"Cannot write in {folder}: {error.strerror or error}. Choose another --out.") from error
