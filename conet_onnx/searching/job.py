"""Search: a trained model and a budget in; a smaller trained model out, and the record of how it was found."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from conet_onnx.ahead import Ahead
from conet_onnx.errors import ModelError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.latency.limits import least_widths
from conet_onnx.latency.pricing import TimedAnalysis
from conet_onnx.loading import load
from conet_onnx.records.database import check_url, prepare, said
from conet_onnx.records.run import RUN_FILE, Run, read_run
from conet_onnx.records.study import locked
from conet_onnx.searching.algorithms import find_method
from conet_onnx.searching.budget import Budget, Limits
from conet_onnx.searching.folder import check_folder, make_folder
from conet_onnx.searching.loop import Clock, Progress
from conet_onnx.searching.method import Method
from conet_onnx.searching.method import options as constants
from conet_onnx.searching.running import Job
from conet_onnx.searching.space import Priceable
from conet_onnx.searching.timing import TABLE_FILE, WARNING, Multiple, Timing, multiples, needed, timed
from conet_onnx.searching.trial import Workshop
from conet_onnx.searching.wishes import PRECISION, check, recipe_of

if TYPE_CHECKING:
    from conet_onnx.analysis import Analysis
    from conet_onnx.data import DataSet, DataSpec, Normalisation
    from conet_onnx.torch_backend.losses import Task
    from conet_onnx.torch_backend.norms import BatchNorm
    from conet_onnx.torch_backend.settings import LossKind

__all__ = ["SearchResult", "search"]


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
    training_threads: int | None = None,
    batchnorm: BatchNorm = "auto",
    normalisation: Normalisation | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    jobs: int = 1,
    workers: int | None = None,
    storage: str | None = None,
    tables: Sequence[str | os.PathLike[str]] = (),
    multiple: Multiple | None = None,
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
    (torch_backend.settings.Settings); by default the source has recipe.DISTILL of the loss, or EQUALS of it if it is
    within the budget itself. `freeze` keeps widths as they are, as that of `analyze`. `batchnorm` says whether
    folded convolutions are trained with one (torch_backend.norms). `time_limit`, in seconds, ends the trials early
    enough for that last training, never before one has ended. The same seed on the same machine gives the same models.
    Latency is measured on `threads`; so is all else, unless `training_threads` says another number for it.
    `out` defaults to runs/MODEL_STEM; `resume` goes on with what is there, finished or killed, and may change `trials`
    and `epochs`.

    `jobs` trials are tried at a time: proposed together, evaluated in `workers` processes of this host (default: as
    many as jobs), and told in order, so that the same seed and `jobs` give the same search, whichever ends first.
    Methods whose trials follow from the one before try one at a time. `storage` is the URL of a database: processes
    that are given the same one, the same `out` and the same settings share the trials of one search (docs/parallel.md);
    `out` may then exist.

    A budget of latency holds for the best model as it is measured in turns with the source; widths are chosen by what a
    latency table predicts: `tables` (files of `profile`), or one that is made first, and is kept in `out`. `multiple`:
    widths are multiples of it; "auto": of what this machine runs fast (docs/latency.md); "none": of the steps of the
    method's own. By default it is "auto" for latency, and else as the method has it; a run that goes on keeps its own.

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
    recipe = recipe_of(method, final, transfer, varied)
    freeze = tuple(freeze)
    ones = {"trials": trials, "epochs_per_trial": epochs_per_trial, "jobs": jobs, "workers": workers or 1}
    check(backend, ones, epochs, time_limit)
    at_once = min(jobs, method.at_once or jobs)
    here = min(jobs if workers is None else workers, at_once)
    if storage is not None:
        check_url(storage)
        if time_limit is not None:
            raise UsageError("time_limit ends the trials of one process, and storage has others go on: leave one out.")
    folder = Path(out) if out is not None else Path("runs") / (Path(graph.file).stem or "model")
    check_folder(folder, resume=resume, shared=storage is not None)
    # In units of a trial as long as some are trained at the same time; the last training is one alone.
    clock = Clock(trials + here * epochs / epochs_per_trial, time_limit, progress)
    clock.says("reading the model and the data")
    times = needed(budget, recipe)
    if not times:  # nothing else runs while times are measured
        Ahead(prepare)
    workshop = Workshop.open(
        graph,
        data,
        normalisation=normalisation,
        epochs=epochs_per_trial,
        provider=provider,
        threads=threads if training_threads is None else training_threads,
        batchnorm=batchnorm,
        recipe=recipe,
        task=task,
        freeze=freeze,
    )
    if not workshop.analysis.widths:
        raise UsageError(f"{graph.file or 'the model'} has no width that may change; `conet-onnx analyze` says why.")
    timing = None
    if times:
        if storage is not None:
            make_folder(folder, resume=True)  # who shares it makes one table
        how: dict[str, Any] = {"provider": provider, "threads": threads, "clock": clock, "shared": storage is not None}
        timing = timed(workshop.analysis, folder, tables, budget=budget, **how)
        Ahead(prepare)
        workshop = replace(workshop, table=os.fspath(folder / TABLE_FILE))
    elif tables and (multiple or method.multiple) != "auto":
        raise UsageError("a latency table helps with a budget of latency, or with multiple 'auto': leave it out.")
    where: dict[str, Any] = {"provider": provider, "threads": threads, "warn": lambda line: clock.says(WARNING + line)}
    multiple, steps = _steps(multiple, method, workshop.analysis, timing, tables, folder, clock, where)
    # What holds time goes no further than to what was measured; other budgets may.
    holds = timing is not None and (budget is None or budget.time is not None)
    least = least_widths(multiples("auto", workshop.analysis, timing, (), **where)) if holds else {}
    priced: Priceable = workshop.analysis if timing is None else TimedAnalysis(workshop.analysis, timing.predicted)
    limits = budget.resolve(priced.costs.price({})) if budget else Limits({})
    space = method.space(priced, limits).aligned(steps, least)
    space.project(space.source, limits)  # an unreachable budget is found before anything is written
    if distill is None and limits.fits(priced.costs.price({})):
        workshop = replace(workshop, recipe=recipe.among_equals())
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
        "training_threads": training_threads,
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
    make_folder(folder, resume=resume or storage is not None)
    with nullcontext() if storage else locked(folder):
        if timing is not None and not (folder / TABLE_FILE).exists():
            timing.table.save(folder / TABLE_FILE)
        return SearchResult(graph, Job(folder, workshop, method, space, limits, settings, clock, storage, timing).run())


def _steps(
    asked: Multiple | None,
    method: Method,
    analysis: Analysis,
    timing: Timing | None,
    tables: Sequence[str | os.PathLike[str]],
    folder: Path,
    clock: Clock,
    where: Mapping[str, Any],
) -> tuple[Multiple, dict[str, int]]:
    """What widths are multiples of: as it is asked for, or as the folder's run has it, or as the method does. Where the
    method alone wants what runs fast, a model that does not run has steps of the method's own."""
    if asked is not None:
        return asked, multiples(asked, analysis, timing, tables, **where)
    if (folder / RUN_FILE).exists():
        noted = read_run(folder, trials=()).settings
        return noted.get("multiple") or "none", noted.get("multiples") or {}
    chosen: Multiple = "auto" if timing is not None else method.multiple
    begun = time.perf_counter()
    try:
        steps = multiples(chosen, analysis, timing, tables, **where)
    except ModelError as error:
        where["warn"](f"which widths this machine runs fast is not known, so none is preferred: {error}")
        return "none", {}
    clock.judged += time.perf_counter() - begun
    return chosen, steps
