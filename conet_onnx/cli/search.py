"""`search`: the main job, from a trained model and a budget to a smaller trained model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conet_onnx.cli.command import Command, Interrupted, State
from conet_onnx.cli.evaluate import check_pair, describe_choice, given_normalisation, noun
from conet_onnx.cli.options import (
    augment_option,
    batchnorm_option,
    data_options,
    freeze_option,
    input_shape_option,
    json_option,
    lesson_options,
    model_argument,
    multiple_option,
    provider_option,
    table_option,
    threads_option,
    transfer_option,
)
from conet_onnx.cli.output import (
    Bar,
    check_writable,
    command,
    count,
    duration,
    flushed,
    log,
    says,
    several,
    size,
    table,
    write,
)
from conet_onnx.cli.slower import asking_for_time
from conet_onnx.errors import ConetError

if TYPE_CHECKING:
    from conet_onnx.data import DataSet
    from conet_onnx.searching import ModelRecord, Run

__all__ = ["Show", "search"]

SHARES = {"top1": "accuracy", "agreement": "agreement"}
SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """90, 90s, 10min, 2h."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?([a-z]*)", value, re.ASCII)
    if not match or match[2] not in SECONDS or float(match[1]) == 0:
        raise click.BadParameter(f"{value!r} is not a time; write it as 90s, 10min or 2h.")
    return float(match[1]) * SECONDS[match[2]]


@click.command(cls=Command)
@model_argument
@data_options
@click.option("--budget", multiple=True, metavar="KIND=V", help="macs=0.5, bytes=4MB, latency=5ms... (repeatable).")
@click.option("--backend", default="torch", show_default=True, metavar="B", help="What trains: torch.")
@click.option(
    "--algorithm",
    default="auto",
    show_default=True,
    metavar="A",
    help="auto (reallocate), reallocate, anneal, conet-sa, conet-greedy, network-adjustment, compound or random.",
)
@click.option("--option", "options", multiple=True, metavar="NAME=V", help="A constant of the algorithm: gamma=0.9.")
@click.option("--cost", metavar="C", help="What network-adjustment keeps: macs or latency.")
@table_option
@multiple_option
@click.option("--trials", type=click.IntRange(min=1), metavar="N", help="Sets of widths to try (default: 6).")
@click.option("--epochs-per-trial", type=click.IntRange(min=1), metavar="E", help="Training of each (default: 1).")
@click.option("--epochs", type=click.IntRange(min=0), metavar="E", help="Further training of the best (default: 5).")
@click.option("--final", type=click.Choice(("inherit", "fresh")), help="Train the best further, or anew.")
@lesson_options
@augment_option
@freeze_option
@click.option("--time-limit", metavar="T", callback=_seconds, help="Ends the trials in time: 90s, 10min, 2h.")
@batchnorm_option
@transfer_option(None)
@click.option(
    "--precision", default="32-true", show_default=True, metavar="P", help="Of training: bf16-mixed, 16-mixed."
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same models.")
@provider_option
@threads_option
@click.option(
    "--training-threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Those of training, where latency is measured on --threads (default: --threads).",
)
@click.option("--out", metavar="DIR", help="Where everything goes (default: runs/MODEL_STEM).")
@click.option("--resume", is_flag=True, help="Go on with what --out holds.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Trials at a time.")
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Processes for them on this host (default: --jobs)."
)
@click.option("--storage", metavar="URL", help="A database: searches with the same one and --out share the trials.")
@json_option
@input_shape_option
@click.pass_context
def search(
    ctx: click.Context,
    /,
    model: str,
    data: str,
    resize: int | None,
    crop: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    budget: tuple[str, ...],
    options: tuple[str, ...],
    tables: tuple[str, ...],
    cost: str | None,
    trials: int | None,
    epochs_per_trial: int | None,
    epochs: int | None,
    out: str | None,
    storage: str | None,
    jobs: int,
    json_to: str | None,
    input_shapes: dict[str, tuple[int, ...]],
    augment: tuple[str, ...] | None,
    **settings: Any,
) -> None:
    """Search for better widths within a budget, training on data. Says in advance how long it takes.

    Defaults are those of auto; other algorithms have their own, and published ones need no budget (docs/methods.md).
    """
    check_pair(mean, std)
    check_writable(json_to)
    from conet_onnx.searching import Budget

    limits = Budget.parse(budget) if budget else None
    chosen = [*options, *([] if cost is None else [f"cost={cost}"])]
    from conet_onnx.data import load_data
    from conet_onnx.loading import load
    from conet_onnx.searching import search as run_search

    graph = load(model, input_shapes=input_shapes)
    dataset = load_data(data, resize=resize, crop=crop)
    folder = Path(out) if out is not None else Path("runs") / (Path(model).stem or "model")
    settings |= {"trials": trials, "epochs_per_trial": epochs_per_trial, "epochs": epochs}
    try:
        what = f"{model} within {limits}" if limits else model
        with Show(folder, dataset, what, storage, jobs, goes_on=settings["resume"] or storage is not None) as show:
            result = run_search(
                graph,
                data=dataset,
                budget=limits,
                options=chosen,
                augment=augment or (),
                normalisation=given_normalisation(dataset, mean, std, "train"),
                out=folder,
                jobs=jobs,
                storage=storage,
                tables=tables,
                progress=show,
                **settings,
            )
    except KeyboardInterrupt as interrupt:
        raise Interrupted(_how_to_go_on(folder, ctx.find_object(State), storage)) from interrupt
    document = result.run.as_json()
    if json_to:
        write(json_to, document)
    if json_to != "-":
        _report(result.run)


class Show:
    """Tells on stderr what a search does: facts as lines; progress as a bar, or as lines where there is no terminal."""

    def __init__(
        self,
        folder: Path,
        dataset: DataSet,
        what: str,
        storage: str | None = None,
        jobs: int = 1,
        *,
        goes_on: bool = True,
    ) -> None:
        """`goes_on` says that there may be trials already."""
        self._folder = folder
        self._storage = storage
        self._jobs = jobs
        self._goes_on = goes_on
        self._dataset = dataset
        self._what = what
        self._bar = Bar(guess=False)
        self._phase = ""
        self._begun: float | None = None
        self._introduced = False
        self._estimated = False

    def __enter__(self) -> Show:
        train, validation = (len(self._dataset.split(name)) for name in ("train", "validation"))
        log(
            f"Searching widths for {self._what}, on {self._dataset.name}: {train:,} training and {validation:,} "
            f"validation {noun(self._dataset, 'validation')}; its test split is used once, at the end."
        )
        self._bar.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._bar.__exit__(*failure)

    def __call__(self, phase: str, done: float, work: float, left: float | None) -> None:
        """As searching.loop.Progress."""
        from conet_onnx.searching.probing import MEASURING, TRYING
        from conet_onnx.searching.timing import PROFILING, WARNING

        if phase.startswith(WARNING):
            self._bar.log(phase[0].upper() + phase[1:])
            return
        if phase.startswith(PROFILING):
            self._profiled(phase, left)
            return
        foretold = phase.startswith((MEASURING, TRYING)) and left is not None  # the first of these are what tells it
        if (foretold or phase.startswith("trial")) and not self._introduced:
            self._introduced = True
            self._introduce(left)
        self._begun = done if self._begun is None else self._begun
        # The first trial also pays for imports, so what it foretells in its middle is far off.
        if done < self._begun + 1 or done >= work:
            left = None
        if left is not None and not self._estimated:
            self._estimated = True
            self._bar.log(f"The first trial is done: about {duration(left)} to go.")
        if phase != self._phase and not self._bar.drawn:
            self._bar.log(phase + (f" ({duration(left)} left)" if left else ""))
        self._phase = phase
        self._bar.at(done / work, phase, left=left)

    def _profiled(self, phase: str, left: float | None) -> None:
        if phase != self._phase:
            self._bar.log(f"{phase[0].upper()}{phase[1:]}. It is kept in {self._folder}.")
        self._phase = phase
        self._bar.at(0.0, "profiling", left=left)

    def _introduce(self, left: float | None) -> None:
        from conet_onnx.searching import read_run

        run = read_run(self._folder, storage=self._storage, trials=None if self._goes_on else ())
        chosen = run.settings
        limits = ", ".join(f"{kind} at most {_amount(kind, limit)}" for kind, limit in run.budget.items())
        finished = _finished(run)
        trained = f"{several(chosen['trials'], 'trial')} of {several(chosen['epochs_per_trial'], 'epoch')}"
        for line in (
            f"Source: {count(run.source.params)} parameters, {count(run.source.macs)} MACs, "
            f"{_source_score(run.source)} Budget: {limits or 'none'}.",
            describe_choice(chosen["normalisation"]),
            *_fast(chosen),
            f"{trained}{f' ({finished} done already)' if finished else ''}, then "
            f"{several(chosen['epochs'], 'epoch')} on the best; all in {self._folder}.",
            *_together(chosen, self._jobs),
            "How long it takes is said soon."
            if left is None
            else f"About {duration(left)}, going by some steps of training.",
        ):
            self._bar.log(line)


def _fast(chosen: Mapping[str, Any]) -> Sequence[str]:
    """What widths are multiples of, where the machine says so."""
    if chosen["multiple"] != "auto" or not chosen["multiples"]:
        return ()
    *some, last = map(str, sorted(set(chosen["multiples"].values())))
    said = f"{', '.join(some)} or {last}" if some else last
    return (f"Widths: multiples of {said}, which run fast here, or powers of two below (--multiple none: others too).",)


def _together(chosen: Mapping[str, Any], jobs: int) -> Sequence[str]:
    """How many trials run at a time, where that is not one, or not what was asked for."""
    if jobs > chosen["jobs"]:
        return (
            f"{chosen['algorithm']} tries {chosen['jobs']} at a time, each trial following from the one before: "
            f"--jobs {jobs} has no effect.",
        )
    if jobs == 1:
        return ()
    shared = f", shared by all who search with --storage {chosen['storage']}" if chosen["storage"] else ""
    processes = "one process" if chosen["workers"] == 1 else f"{chosen['workers']} processes"
    return (f"{jobs} trials at a time, in {processes} of this host{shared}.",)


def _source_score(source: ModelRecord) -> str:
    if "top1" in source.validation:
        return f"{source.validation['top1']:.2%} right on validation."
    if "agreement" not in source.validation:
        return f"{', '.join(f'{name} {value:.4g}' for name, value in source.validation.items())} on validation."
    return "there are no labels, so that trials are judged by how far they say what it says."


def _amount(kind: str, limit: float) -> str:
    if kind == "latency":
        return f"{limit:.3f} ms (as predicted)"
    return size(limit) if kind == "bytes" else count(limit)


def _how_to_go_on(folder: Path, state: State | None, storage: str | None) -> str:
    if not folder.is_dir():
        return "interrupted; nothing was written."
    words = [word for word in (state.arguments if state else ()) if word != "--resume"]
    again = command(*words, "--resume") if words else "the same command with --resume"
    try:
        from conet_onnx.searching import read_run

        run = read_run(folder, storage=storage)
        kept = f"{several(sum(trial.state != 'running' for trial in run.trials), 'finished trial')} kept in {folder}"
    except ConetError:  # it had not begun
        kept = f"{folder} is there, without a finished trial"
    return f"interrupted; {kept}. Go on with: {again}"


def _finished(run: Run) -> int:
    return sum(trial.state == "complete" for trial in run.trials)


def _report(run: Run) -> None:
    assert run.best is not None
    table(("", "source", "best", "change"), _rows(run, run.source, run.best), right=("source", "best", "change"))
    says()
    seconds = run.seconds
    jobs = run.settings["jobs"]
    together = f", {jobs} at a time" if jobs > 1 else ""
    says(
        f"{several(_finished(run), 'trial')} in {duration(seconds['total'])}{together}: "
        f"training {duration(seconds['training'])}, evaluation {duration(seconds['evaluation'])}, "
        f"the rest {duration(seconds['overhead'])} ({seconds['overhead'] / seconds['total']:.1%})."
    )
    if run.best.flushed:
        says(flushed(run.best.flushed))
    if "latency" in run.budget:
        _say_latency(run, run.best)
    elif hint := _faster(run, run.source, run.best):
        says(hint)
    folder = run.directory
    more = several(len(run.pareto), "model")
    says(f"Written: {run.best.file}, {more} in {folder / 'pareto'}, {folder / 'report.html'}.")
    says()
    says("What next")
    says(f"  {command('bench', run.source.file, run.best.file)}")
    says(f"  {command('verify', run.source.file, run.best.file, '--plan', str(folder / 'plans' / 'best.json'))}")
    says(f"  open {folder / 'report.html'} in a browser; it needs no network")


def _say_latency(run: Run, best: ModelRecord) -> None:
    foretold = ""
    if best.predicted_ms is not None and run.source.predicted_ms:
        foretold = f"; predicted ×{best.predicted_ms / run.source.predicted_ms:.2f}"
    says(
        f"Latency: {best.latency_ms or 0:.3f} ms as measured beside the source{foretold}; at most "
        f"{run.budget['latency']:.3f} ms was asked for."
    )


def _faster(run: Run, source: ModelRecord, best: ModelRecord) -> str:
    """What to ask for where time fell by much less than MACs did."""
    share = best.macs / source.macs
    how = run.settings["multiple"]
    if isinstance(how, int) or not run.latency:
        return ""
    return asking_for_time(share, run.latency["p50"], aligned=how == "auto")


def _rows(run: Run, source: ModelRecord, best: ModelRecord) -> Sequence[tuple[str, str, str, str]]:
    rows = []
    for split, a, b in (("validation", source.validation, best.validation), ("test", source.test, best.test)):
        if a and b and (split == "test" or not source.test):
            shares = {key: name for key, name in SHARES.items() if key in a and key in b}
            for key, name in shares.items():
                points = 100 * (b[key] - a[key])
                rows.append((f"{split} {name}", f"{a[key]:.2%}", f"{b[key]:.2%}", f"{points:+.2f} points"))
            for key in [] if shares else (key for key in a if key in b):  # of a task
                rows.append((f"{split} {key}", f"{a[key]:.4f}", f"{b[key]:.4f}", f"{b[key] - a[key]:+.4f}"))
    rows.append(("parameters", count(source.params), count(best.params), f"×{best.params / source.params:.2f}"))
    rows.append(("MACs", count(source.macs), count(best.macs), f"×{best.macs / source.macs:.2f}"))
    files = [os.path.getsize(file) for file in (source.file, best.file)]
    rows.append(("file size", size(files[0]), size(files[1]), f"×{files[1] / files[0]:.2f}"))
    if source.latency_ms is not None and best.latency_ms is not None:
        rows.append(("latency p50", f"{source.latency_ms:.3f} ms", f"{best.latency_ms:.3f} ms", _interval(run.latency)))
    return rows


def _interval(ratio: Mapping[str, float] | None) -> str:
    return f"×{ratio['p50']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""
