"""The answer of a search: the best of its trials, trained to the end, measured beside the source, and tested once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from conet_onnx.errors import BudgetUnreachable
from conet_onnx.latency import Comparison, compare
from conet_onnx.latency.limits import TIGHTENINGS
from conet_onnx.latency.slowdowns import Layer, by_profiles, by_table, slowdown
from conet_onnx.loading import load
from conet_onnx.planning import plan
from conet_onnx.records.run import ModelRecord, Run
from conet_onnx.records.trial import Trial
from conet_onnx.searching.budget import KINDS, Limits
from conet_onnx.searching.folder import copy_file
from conet_onnx.searching.loop import Clock, Loop, seed_of
from conet_onnx.searching.searcher import Proposal
from conet_onnx.searching.space import WidthSpace
from conet_onnx.searching.task import last_step
from conet_onnx.searching.timing import WARNING, Held, Timing
from conet_onnx.searching.trial import Workshop
from conet_onnx.torch_backend.train import Fitted

__all__ = ["Answering", "front", "within"]

LATENCY_SECONDS = 4.0
ANSWERS = 12  # models at most that are held against a limit on latency


@dataclass(frozen=True, slots=True)
class Answering:
    """What becomes of a search's trials when all of them have ended."""

    folder: Path
    workshop: Workshop
    space: WidthSpace
    limits: Limits
    settings: Mapping[str, Any]
    clock: Clock
    timing: Timing | None = None

    def expected_seconds(self, judged: float) -> float:
        """What measuring and testing the answer takes, about, where judging a model on validation takes `judged`."""
        parts, measured = self.workshop.dataset.splits, 1 if self._held() is None else 2
        tested = 2 * judged * len(parts["test"]) / len(parts["validation"]) if "test" in parts else 0.0
        return measured * LATENCY_SECONDS + tested

    def answered(self, run: Run, loop: Loop) -> tuple[Run, Comparison, float, float]:
        """With the best model, which was measured beside the source; seconds of training and of evaluation.

        Where a limit on latency is not met by what is measured, it is tightened by as much: the next best trial within
        it is taken, or another one tried. Raises BudgetUnreachable where that does not help.
        """
        held = self._held()
        training, evaluation, further, epochs = 0.0, 0.0, 0, 0
        for _ in range(ANSWERS):
            limits = self.limits if held is None else self.limits.scaled(held.factor, "latency")
            fitting = within(run.trials, limits)
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
        base = loop.searcher.choose(within(run.trials, self.limits))
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
            begin = last_step(loop.weights(chosen.number))
            before = load(begin, input_shapes=self.workshop.source.input_shapes) if begin.exists() else model
            start, phase = self.clock.done, f"training the best, trial {chosen.number + 1}"
            trained, training = self.workshop.train(
                before,
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
        copy_file(loop.plan(chosen.number), self.folder / "plans" / "best.json")
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

    def save(self, trials: Sequence[Trial], loop: Loop) -> tuple[ModelRecord, ...]:
        """These trials' models and no others in DIR/pareto."""
        folder = self.folder / "pareto"
        files = [folder / f"{trial.number}.onnx" for trial in trials]
        for trial, file in zip(trials, files, strict=True):
            copy_file(loop.weights(trial.number), file)
        for stale in set(folder.glob("*.onnx")) - set(files):  # of a run that has been extended since
            stale.unlink()
        return tuple(map(_record, trials, files))

    def _compared(self, file: str) -> Comparison:
        """A model in turns with the source."""
        provider, threads = self.settings["provider"], self.settings["threads"]
        source, other = self.workshop.source, load(file, input_shapes=self.workshop.source.input_shapes)
        self.clock.says("measuring latency")
        return compare(source, other, provider=provider, threads=threads, seconds=LATENCY_SECONDS)

    def timed(self, run: Run, found: Comparison) -> Run:
        """With what was measured. A share of the source's time is one of what the source took beside the best."""
        assert run.best
        macs = run.source.macs, run.best.macs
        if line := slowdown("the best model", found, macs, partial(self._slower, run.best)):
            self.clock.says(WARNING + line)
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

    def _slower(self, best: ModelRecord) -> Sequence[Layer]:
        """The layers that take longer in the best model than in the source."""
        if self.timing is not None:
            row = self.workshop.analysis.costs.row(best.widths)
            return by_table(self.workshop.source, self.timing.predicted, row)
        other = load(best.file, input_shapes=self.workshop.source.input_shapes)
        how = {name: self.settings[name] for name in ("provider", "threads")}
        return by_profiles(self.workshop.source, other, **how)

    def tested(self, run: Run) -> Run:
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


def within(trials: Iterable[Trial], limits: Limits) -> list[Trial]:
    """Those that are done and within limits."""
    return [trial for trial in trials if trial.state == "complete" and limits.fits(trial)]


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
