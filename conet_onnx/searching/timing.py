"""What a search knows of latency: a table in its folder, what that predicts, and whether a limit is met as measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from conet_onnx.analysis import Analysis
from conet_onnx.errors import BudgetUnreachable, OutputError, UsageError
from conet_onnx.latency.limits import MARGIN, Most, fast_multiples
from conet_onnx.latency.prediction import Predictor
from conet_onnx.latency.preparing import File, fast_widths, prepared, remembered
from conet_onnx.latency.profiling import Profile
from conet_onnx.latency.table import Table
from conet_onnx.latency.timing import Comparison, measure
from conet_onnx.records.study import locked
from conet_onnx.runtime import resolve
from conet_onnx.searching.budget import Budget
from conet_onnx.searching.loop import POLL, Clock
from conet_onnx.searching.recipe import Recipe, UtilisationMeasure

__all__ = ["PROFILING", "TABLE_FILE", "WARNING", "Held", "Multiple", "Timing", "multiples", "needed", "timed"]

Multiple = int | Literal["auto", "none"]

TABLE_FILE = "latency.json"
SOURCE_SECONDS = 0.5
PROFILING, WARNING = "profiling", "warning: "  # how phases begin that say so


@dataclass(frozen=True, slots=True)
class Timing:
    """What predicts latency in a search, the table that this comes from, and the limit, if there is one.

    `seconds` is what it took to measure, by this process.
    """

    predicted: Predictor
    table: Table
    most: Most | None
    seconds: float = 0.0


def needed(budget: Budget | None, recipe: Recipe) -> bool:
    """Whether a search needs to predict latency: for its budget, or for what is measured of its trials."""
    asked = recipe.measure
    return (budget is not None and budget.time is not None) or (
        isinstance(asked, UtilisationMeasure) and asked.cost == "latency"
    )


def timed(
    analysis: Analysis,
    folder: Path,
    tables: Sequence[File],
    *,
    budget: Budget | None,
    provider: str,
    threads: int | None,
    clock: Clock,
    shared: bool,
) -> Timing:
    """Read the folder's table, or make one of `tables`; without any the model is profiled first.

    Where processes share the folder, one makes the table and writes it, while the others wait; else it is for the
    caller to write. Raises UsageError for a table of another provider, number of threads or model.
    """
    provider = resolve(provider)
    time_limit = budget.time if budget is not None else None
    most = None if time_limit is None else Most(*time_limit)

    def made() -> Timing:
        file = folder / TABLE_FILE
        if file.exists():
            table = Table.read(file)
            for line in table.check(provider, threads, name=str(file)):
                clock.says(WARNING + line)
            return Timing(remembered(analysis, table), table, most)
        text, seconds = "", 0.0
        begun = asked_at = time.monotonic()

        def begins(asked: Profile) -> None:
            nonlocal text, begun, seconds
            points = len(asked.asked)
            run = measure(analysis.graph, provider=provider, threads=threads, seconds=SOURCE_SECONDS).p50_ms / 1e3
            seconds, begun = asked.estimate(run), time.monotonic()
            text = (
                f"{PROFILING} {analysis.graph.file or 'the model'} first, for there is no --table: {points} points of "
                f"its operators and {asked.missing_anchors} whole models, about {math.ceil(seconds / 10) * 10} s"
            )
            _say(clock, text, seconds)

        def progress(done: float) -> None:
            spent = time.monotonic() - begun
            _say(clock, text, spent / done * (1 - done) if done > 0.05 else seconds)

        found = prepared(
            analysis,
            tables,
            provider=provider,
            threads=threads,
            warn=lambda line: clock.says(WARNING + line),
            begins=begins,
            progress=progress,
        )
        if shared:
            found.table.save(file)
        return Timing(found.predicted, found.table, most, time.monotonic() - asked_at)

    if not shared:
        return made()
    with _alone(folder, clock):
        return made()


def multiples(
    asked: Multiple,
    analysis: Analysis,
    timing: Timing | None,
    tables: Sequence[File],
    *,
    provider: str,
    threads: int | None,
    warn: Callable[[str], None],
) -> dict[str, int]:
    """What each width is to be a multiple of; `auto` names those that the machine runs faster so, `none` names none.

    Raises ModelError where the model does not run, DataError and UsageError for tables that cannot be used."""
    if isinstance(asked, int):
        return dict.fromkeys(analysis.widths, asked)
    if asked == "none":
        return {}
    if timing is not None:
        fast = fast_multiples(timing.predicted.operators, timing.predicted)
    else:
        fast = fast_widths(analysis, tables, provider=resolve(provider), threads=threads, warn=warn)
    return {name: multiple for name, multiple in fast.items() if multiple > 1}


@dataclass
class Held:
    """Holds models against a limit on latency as they are measured.

    `factor` is the share of the limit that a prediction may be, so that what is measured is within it: where a model
    took more than its share, by as much less.
    """

    most: Most
    limit: float  # milliseconds, as predictions count
    measure: Callable[[str], Comparison]
    factor: float = 1.0
    tried: list[Comparison] = field(default_factory=list)

    def meets(self, file: str, predicted: float, *, source: bool = False) -> tuple[bool, Comparison]:
        """Measure a model in turns with the source. One that has the `source`'s sizes takes what that takes."""
        found = self.measure(file)
        same = source and self.most.relative
        share = 1 / self.most.amount if same else self.most.share(found)
        if share <= 1:
            return True, found
        self.tried.append(found)
        self.factor = min(self.factor, (1 - MARGIN) * predicted / self.limit / share)
        return False, found

    def unmet(self) -> BudgetUnreachable:
        """What is said in the end."""
        many = len(self.tried)
        if not many:
            return BudgetUnreachable(f"The budget (latency {self.most}) is not met: no trial within it has ended.")
        nearest = self.most.at(min(self.tried, key=self.most.share))
        return BudgetUnreachable(
            f"The budget (latency {self.most}) is not met by what was measured of {many} "
            f"model{'' if many == 1 else 's'}, chosen for ever tighter limits: the nearest that was reached is "
            f"{nearest}. The trials are kept: --resume with more --trials goes on."
        )


def _say(clock: Clock, text: str, left: float | None) -> None:
    if clock.progress is not None:
        clock.progress(text, clock.done, clock.work, left)


@contextmanager
def _alone(folder: Path, clock: Clock) -> Iterator[None]:
    """Hold the folder, after who holds it now."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except OutputError:
                raise
            except UsageError:
                clock.says("another process profiles the model")
                time.sleep(POLL)
        yield
