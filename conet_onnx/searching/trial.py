"""One evaluation: resize the parent to a trial's widths, train it against the source, judge it on validation data."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conet_onnx.agreement import agreement
from conet_onnx.analysis import Analysis, analyze
from conet_onnx.data import DataSet, DataSpec, Normalisation, Split, check_fits, classes_of, fed, load_data
from conet_onnx.data.dataset import Array
from conet_onnx.errors import UsageError
from conet_onnx.evaluation import Choice, Evaluation, evaluate, resolve_normalisation
from conet_onnx.files import atomic_write
from conet_onnx.graph import REALS, Graph
from conet_onnx.loading import load
from conet_onnx.planning import kept, plan, ranked
from conet_onnx.rewriting import rewrite
from conet_onnx.searching.recipe import CurveMeasure, Measured, Recipe
from conet_onnx.searching.task import Report, TrialOutcome, TrialTask, last_step
from conet_onnx.tasks import judge, load_task
from conet_onnx.torch_backend.distill import teacher_scores
from conet_onnx.torch_backend.norms import BatchNorm, wanted
from conet_onnx.torch_backend.stepped import stepped_weights
from conet_onnx.torch_backend.threads import torch_threads
from conet_onnx.torch_backend.train import After, Diverged, Fitted, fit
from conet_onnx.transfer import SAMPLES, calibration_batches, drawn, transferred

if TYPE_CHECKING:
    from conet_onnx.latency.prediction import Predictor
    from conet_onnx.searching.measuring import Measuring
    from conet_onnx.torch_backend.losses import Task

__all__ = ["TrialSettings", "Workshop", "at_most", "evaluate_trial", "inherit", "open_workshop"]

MOST_SCORES = 2**28  # bytes of a teacher's scores that are kept
BATCH = 64
PROBED, OF_PROBED = 1024, 1 / 4  # samples by which widths are compared before any training: of all, at most
OF_CURVES = 1 / 16  # of all samples, at most, that each masked width of a curve is asked of
FEW = 32  # samples that are asked in any case
TIMED = (2, 6)  # steps of training
GRAIN = 10**9  # MACs of a batch that are worth a thread


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """All that an evaluation needs beside its task, as plain values: a process anywhere can start from them."""

    source: str  # files
    data: str | DataSpec | DataSet
    normalisation: Normalisation | None = None
    epochs: int = 1
    provider: str = "auto"
    threads: int | None = None
    batchnorm: BatchNorm = "auto"
    recipe: Recipe = field(default_factory=Recipe)
    task: str | Task | None = None
    freeze: Sequence[str] = ()
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    cores: int | None = None
    said: str | None = None
    table: str | None = None


def open_workshop(settings: TrialSettings) -> Workshop:
    """What evaluates trials, from nothing but files. In a process of its own, torch too keeps to its cores."""
    if settings.cores is not None:
        torch.set_num_threads(settings.threads or settings.cores)
    return Workshop.open(
        load(settings.source, input_shapes=settings.input_shapes),
        settings.data,
        normalisation=settings.normalisation,
        epochs=settings.epochs,
        provider=settings.provider,
        threads=settings.threads,
        batchnorm=settings.batchnorm,
        recipe=settings.recipe,
        task=settings.task,
        freeze=settings.freeze,
        cores=settings.cores,
        said=settings.said,
        table=settings.table,
    )


def evaluate_trial(task: TrialTask, settings: TrialSettings) -> TrialOutcome:
    """One evaluation from nothing but files: the same values give the same outcome and the same bytes, wherever."""
    return open_workshop(settings)(task, lambda _: None)


@dataclass(frozen=True)
class Workshop:
    """What all evaluations of one run share: the source, the data, and how to train.

    `cores` are those that there are for it (None: all of them; `threads` is what the user wants), `said` the file of
    the teacher's scores where several processes share them, `table` that of what the model's operators take.
    """

    source: Graph
    analysis: Analysis
    dataset: DataSet
    data: str  # what the data set was asked for as
    choice: Choice
    epochs: int
    provider: str
    threads: int | None
    batchnorm: BatchNorm = "auto"
    recipe: Recipe = field(default_factory=Recipe)
    task: str | Task | None = None
    cores: int | None = None
    said: str | None = None
    table: str | None = None

    @classmethod
    def open(
        cls,
        graph: Graph,
        data: str | os.PathLike[str] | DataSpec | DataSet,
        *,
        normalisation: Normalisation | None,
        epochs: int,
        provider: str,
        threads: int | None,
        batchnorm: BatchNorm = "auto",
        recipe: Recipe | None = None,
        task: str | Task | None = None,
        freeze: Iterable[str] = (),
        cores: int | None = None,
        said: str | None = None,
        table: str | None = None,
    ) -> Workshop:
        """Read the data and check that it fits; `test` is left alone. Raises DataError, UsageError."""
        wanted(graph, batchnorm)  # a wrong word is said now
        recipe = recipe or Recipe()
        _check_names(graph, recipe)
        own = load_task(task) if isinstance(task, str) else task
        collates = getattr(own, "collate", None) is not None
        if collates and (reader := recipe.reads_samples):
            raise UsageError(
                f"{reader} reads samples as the model takes them, and the task's collate makes them anew from what the "
                "data holds: choose another (algorithm anneal reads none), or let the data hold what the model takes."
            )
        if isinstance(data, DataSet):
            dataset, name = data.with_validation(), data.name
        else:
            dataset, name = load_data(data), str(data)
        if not collates:
            check_fits(graph, dataset, "train", "validation", classes=own is None)
        choice = resolve_normalisation(
            graph, dataset, given=normalisation, provider=provider, threads=threads or cores, classifies=own is None
        )
        analysis = analyze(graph, freeze=freeze)
        how = (epochs, provider, threads, batchnorm, recipe, task, cores, said, table)
        return cls(graph, analysis, dataset, name, choice, *how)

    def settings(self, source: str, freeze: Sequence[str], *, cores: int) -> TrialSettings:
        """What another process needs to open the same; `source` is the file of this one."""
        splits = {name: self.dataset.split(name) for name in ("train", "validation")} if not self.dataset.spec else {}
        return TrialSettings(
            source=source,
            data=self.dataset.spec or DataSet(self.dataset.name, splits),
            normalisation=self.choice.normalisation,
            epochs=self.epochs,
            provider=self.provider,
            threads=self.threads,
            batchnorm=self.batchnorm,
            recipe=self.recipe,
            task=self.task,
            freeze=freeze,
            input_shapes=self.source.input_shapes,
            cores=cores,
            said=self.said,
            table=self.table,
        )

    def __call__(self, task: TrialTask, report: Report) -> TrialOutcome:
        """The outcome of a task. Its weights and its plan are written, whole, before this returns."""
        begun = time.perf_counter()
        structure = plan(self.analysis, task.widths, inexact=True).changed()
        student = rewrite(self.source, structure)
        anew = task.parent is None and self.recipe.start == "fresh"
        fitting = time.perf_counter()
        if not anew:
            student = self.inherited(student, task)
        fitting = time.perf_counter() - fitting  # channels are scored and weights fitted: neither training nor overhead
        measuring = self.measuring(student)
        fitted: list[Fitted] = []
        try:
            trained, seconds = self.train(
                student,
                epochs=self.epochs,
                seed=task.seed,
                report=report,
                anew=anew,
                after=None if measuring is None else measuring.after,
                told=fitted.append,
            )
        except Diverged:
            return TrialOutcome({}, time.perf_counter() - begun, 0.0)
        validation, evaluation_seconds = self.judge(trained)
        measured: Measured = {}
        if measuring is not None:
            asked = time.perf_counter()
            measured = measuring.measured(
                trained,
                self.samples("validation"),
                normalise=self.normalise,
                seed=task.seed,
                threads=self.training_threads,
            )
            measuring.save(task.measures, measured)
            evaluation_seconds += time.perf_counter() - asked
        structure.save(task.plan, durable=False)  # it follows from the widths
        for last in (one.last for one in fitted if one.last is not None):
            last.save(last_step(task.weights), durable=True)
        trained.save(task.weights, durable=True)
        flushed = sum(one.flushed for one in fitted)
        return TrialOutcome(validation, seconds, evaluation_seconds + fitting, measured, flushed)

    def inherited(self, student: Graph, task: TrialTask) -> Graph:
        """The student with the weights of the task's parent, by the recipe."""
        how: dict[str, Any] = {"transfer": self.recipe.transfer, "calibration": self.calibration}
        how |= {"recalibrate": self.recipe.recalibrate}
        with torch_threads(self.training_threads):
            return inherit(student, self.source, task, analysis=self.analysis, score=self.scores, **how)

    def untrained(self, widths: Mapping[str, int]) -> float:
        """The loss, as `judge` has it, of the source at these widths, with what it inherits and without any training:
        of the first PROBED training samples that a seed draws, or fewer, so that validation data stays unseen."""
        task = TrialTask(number=0, widths=widths, parent=None, weights="", plan="", measures="", seed=0)
        student = rewrite(self.source, plan(self.analysis, widths, inexact=True).changed())
        return self.probed.judge(self.inherited(student, task))[0]["loss"]

    @cached_property
    def probed(self) -> Workshop:
        """The same, whose validation data are a few training samples, of which most are not calibrated on."""
        train = self.dataset.split("train")
        some = drawn(train, at_most(PROBED, OF_PROBED, len(train)), seed=1)
        return replace(self, dataset=replace(self.dataset, splits={"validation": some}))

    def measuring(self, student: Graph) -> Measuring | None:
        """What the method wants to know of every trial's model, if anything."""
        if self.recipe.measure is None or isinstance(self.recipe.measure, CurveMeasure):
            return None
        from conet_onnx.searching.measuring import Measuring  # most methods measure nothing

        return Measuring(self.recipe.measure, self.analysis, analyze(student), predicted=self.predicted)

    @cached_property
    def predicted(self) -> Predictor | None:
        """What the table foretells of the source at any widths, if there is one."""
        if self.table is None:
            return None
        from conet_onnx.latency.preparing import remembered
        from conet_onnx.latency.table import Table

        return remembered(self.analysis, Table.read(self.table))

    def curves(self, graph: Graph) -> Measured:
        """What masked channels cost a trained model, or the source, where the method asks for it. In widths of the
        source's: nothing of a model that has lost one of them."""
        asked = self.recipe.measure
        if not isinstance(asked, CurveMeasure):
            return {}
        from conet_onnx.searching.measuring import curves

        analysis = analyze(graph)
        if analysis.all_widths.keys() != self.analysis.all_widths.keys():
            return {}
        train = self.samples("train")
        with torch_threads(self.training_threads):
            found = curves(
                replace(asked, samples=at_most(asked.samples, OF_CURVES, len(train))),
                graph,
                analysis,
                train,
                criterion=self.recipe.criterion,
                normalise=self.normalise,
                seed=0,
            )
        return {q: {name: by[name] for name in self.analysis.widths if name in by} for q, by in found.items()}

    def scores(self, analysis: Analysis) -> Mapping[str, Array] | None:
        """What each channel is worth by the recipe's criterion; None: by their weights, as plans have it."""
        if self.recipe.criterion == "l2":
            return None
        return self.source_scores if analysis is self.analysis else self._scores(analysis)

    @cached_property
    def source_scores(self) -> Mapping[str, Array]:
        """What each channel of the source is worth by the recipe's criterion."""
        return self._scores(self.analysis)

    @cached_property
    def kept(self) -> Mapping[str, Array]:
        """What the best n channels of each width of the source are worth, by the recipe's criterion (planning.kept)."""
        return {name: kept(self.analysis.widths[name], scores) for name, scores in self.source_scores.items()}

    def _scores(self, analysis: Analysis) -> Mapping[str, Array]:
        from conet_onnx.criteria import channel_scores

        asked = self.recipe.measure
        samples = asked.samples if isinstance(asked, CurveMeasure) else SAMPLES
        some = drawn(self.samples("train"), samples)
        return channel_scores(analysis, self.recipe.criterion, data=some, normalise=self.normalise)

    def train(
        self,
        student: Graph,
        *,
        epochs: int,
        seed: int,
        report: Report,
        anew: bool = False,
        last: bool = False,
        after: After | None = None,
        samples: int | None = None,
        told: Callable[[Fitted], None] = lambda _: None,
    ) -> tuple[Graph, float]:
        """Train on the train split, against labels and the source; also the seconds that it took. Raises Diverged.

        `anew` begins with fresh weights, `last` is the answer's training, `after` each epoch the weights are shown;
        `samples` are the first so many (None: all). `told` hears all that came of it.
        """
        recipe, data = self.recipe, self.dataset.split("train")
        settings = {"batch": BATCH, **(recipe.final_training if last else recipe.training)}
        span = recipe.average * epochs * math.ceil(len(data) / settings["batch"])
        if span > 1 and not last:
            settings["ema"] = 1 - 1 / span
        anew = anew or (last and recipe.final == "fresh")
        taught = self.taught(last=last)
        begun = time.perf_counter()
        # What it says of images as they are is nothing to learn from those that are varied. It answers once for all
        # trials: part of the first one's training.
        teacher = None if not taught else self.source if settings.get("augment") else self.teacher
        if samples is not None:
            data = data.take(np.arange(min(samples, len(data))))
            teacher = teacher[: len(data)] if isinstance(teacher, np.ndarray) else teacher
        fitted = fit(
            student,
            data,
            epochs=epochs,
            teacher=teacher,
            normalise=self.normalise,
            labels=data.labels is not None,
            task=self.own_task,
            seed=seed,
            threads=self.training_threads,
            batchnorm=self.batchnorm,
            init="fresh" if anew else "inherit",
            progress=report,
            after=after,
            **settings,
        )
        told(fitted)
        return fitted.graph, time.perf_counter() - begun

    def expected_seconds(self, widths: Mapping[str, int]) -> tuple[float, float]:
        """What a trial of these widths takes, going by some steps of training. And what these took, of which the first
        pays, as any first one does, for all that training imports.

        It is a line through two trainings of few steps: what every training costs, and what each step does.
        """
        size = int({"batch": BATCH, **self.recipe.training}["batch"])
        steps = math.ceil(len(self.dataset.split("train")) / size)
        how: dict[str, Any] = {"epochs": 1, "seed": 0, "report": lambda _: None}
        student = rewrite(self.source, plan(self.analysis, widths, inexact=True).changed())
        try:
            first, *taken = (self.train(student, samples=size * many, **how)[1] for many in (1, *TIMED))
        except Diverged:
            return math.nan, 0.0
        few, more = (min(many, steps) for many in TIMED)
        step = max(taken[1] - taken[0], 0.0) / (more - few) if more > few else taken[0] / few
        return max(taken[0] - few * step, 0.0) + self.epochs * steps * step, first + sum(taken)

    def expected_beside(self, seconds: float, trials: int) -> float:
        """What curves take, about, where a trial takes so many seconds: in samples through the model, each a third of
        what training on it costs. A third of the trials are taken to begin with curves of their own."""
        asked, train = self.recipe.measure, len(self.dataset.split("train"))
        if not isinstance(asked, CurveMeasure):
            return 0.0
        many = at_most(asked.samples, OF_CURVES, train)
        passes = len(asked.shares) * len(self.analysis.widths) / 2 + 3  # behind a width only; and scores of channels
        return passes * many * (1 + trials / 3) * seconds / (3 * self.epochs * train)

    @property
    def all_threads(self) -> int:
        """Threads that there are for all that this process and its workers do at the same time."""
        return torch.get_num_threads()

    def taught(self, *, last: bool = False) -> bool:
        """Whether the source teaches."""
        settings = self.recipe.final_training if last else self.recipe.training
        alone = self.own_task is None and self.dataset.split("train").labels is None
        return alone or settings["distill"] > 0 or bool(settings.get("features"))

    @cached_property
    def own_task(self) -> Task | None:
        """The user's, where there is one."""
        return load_task(self.task) if isinstance(self.task, str) else self.task

    def samples(self, split: str) -> Split:
        """A split as what measures a model by its classes reads it: where they are not what it is judged by, without
        labels, so that it measures how far the outputs go instead."""
        data = self.dataset.split(split)
        return data if self.own_task is None else replace(data, labels=None)

    @cached_property
    def training_threads(self) -> int:
        """As asked, else as many as have enough to do: on small models, threads mostly wait for each other."""
        if self.threads is not None:
            return self.threads
        return max(1, min(self.cores or torch.get_num_threads(), BATCH * self.analysis.costs.price({}).macs // GRAIN))

    @cached_property
    def teacher(self) -> Graph | Array:
        """The source's scores of the train split, computed once; the source itself where they would fill the memory,
        or where more is learned than classes from labels: more outputs, then, or other ones."""
        data, classes = self.dataset.split("train"), classes_of(self.source)
        settings = {**self.recipe.training, **self.recipe.final_training}
        more = self.own_task is not None or settings.get("loss") or settings.get("features")
        if more or data.labels is None or classes is None or 4 * classes * len(data) > MOST_SCORES:
            return self.source
        if self.said is None:
            return teacher_scores(self.source, data, normalise=self.normalise)
        if not os.path.exists(self.said):
            with atomic_write(self.said) as part, open(part, "wb") as stream:
                np.save(stream, teacher_scores(self.source, data, normalise=self.normalise))
        kept: Array = np.load(self.said, mmap_mode="c")  # memory that all processes of a host share
        return kept

    @cached_property
    def calibration(self) -> Sequence[Mapping[str, Array]] | None:
        """Training samples that weights are fitted on, or statistics measured, by the policy that does so."""
        if self.recipe.transfer != "least-squares" and not self.recipe.recalibrate:
            return None
        return calibration_batches(self.source, self.dataset.split("train"), self.choice.normalisation)

    def normalise(self, samples: Array | Mapping[str, Array]) -> dict[str, Array]:
        """Samples as the source takes them."""
        return fed(self.source, samples, self.choice.normalisation)

    def judge(self, graph: Graph, split: str = "validation") -> tuple[dict[str, float], float]:
        """Numbers on one split, and the seconds that they took.

        `loss` and `top1` where there are labels; else `loss`, the error against what the source says, and `agreement`,
        the share of samples of which it says the same class, or of the source's variance that it explains. Of a task
        of the user's own, its `loss` and its metrics.
        """
        begun = time.perf_counter()
        how: dict[str, Any] = {"split": split, "normalisation": self.choice.normalisation}
        how |= {"provider": self.provider, "threads": self.threads or self.cores}
        if self.own_task is not None:
            numbers = dict(judge(graph, self.dataset, self.own_task, **how).measures)
        elif self.dataset.split(split).labels is not None:
            numbers = _numbers(evaluate(graph, self.dataset, **how))
        else:
            found = agreement(graph, self.source, self.dataset, **how)
            numbers = {"loss": found.error, "agreement": 1 - found.error if found.same is None else found.same}
        return numbers, time.perf_counter() - begun


def at_most(samples: int, share: float, of: int) -> int:
    """So many of these samples, or that share where it is less: what is asked beside trials must not take longer than
    they do. Not fewer than FEW, unless there are fewer."""
    return min(samples, max(int(share * of), FEW), of)


def inherit(
    skeleton: Graph,
    source: Graph,
    task: TrialTask,
    *,
    analysis: Analysis,
    transfer: str = "net2net",
    calibration: Sequence[Mapping[str, Array]] | None = None,
    recalibrate: bool = False,
    score: Callable[[Analysis], Mapping[str, Array] | None] = lambda _: None,
) -> Graph:
    """The skeleton with its parent's weights, resized by a policy (transfer.transferred): by default, channels are kept
    by importance (what `score` says of the parent's channels; None: by their weights) and new ones added as Net2Net
    does.

    The skeleton is the source resized to these widths, so that the result's structure is that of one plan, however
    many trials its weights have come through. Where the parent has lost a width (a single channel is no axis to grow),
    or one could not grow again (it has a maximum), the skeleton keeps its own weights, which are the source's.
    """
    parent = source
    if task.parent is not None:
        again = last_step(task.parent.file)
        trained_on = task.parent.widths == task.widths and again.exists()
        parent = load(again if trained_on else task.parent.file, input_shapes=source.input_shapes)
        known = {name: width.size for name, width in analysis.all_widths.items()} | dict(task.parent.widths)
        analysis = analyze(parent)
        sizes = {name: width.size for name, width in analysis.widths.items()}
        bounded = (name for name, width in analysis.widths.items() if width.max is not None)
        if any(task.widths.get(name, 0) > sizes[name] for name in bounded) or sizes != known:
            return skeleton
    if {name: width.size for name, width in analysis.widths.items()} == dict(task.widths):
        calibration, recalibrate, transfer = None, False, "slice"  # nothing is resized
    how: dict[str, Any] = {"calibration": calibration, "recalibrate": recalibrate and calibration is not None}
    scores = score(analysis) if ranked(analysis, task.widths) else None
    made = transferred(analysis, task.widths, transfer, scores=scores, seed=task.seed, inexact=True, **how)
    resized = made.graph
    stepped = stepped_weights(skeleton)  # what trials train, and no sizes
    arrays = {name: resized.array(name) for name in skeleton.weights if name in resized.weights}
    return skeleton.with_arrays(
        {
            name: array
            for name, array in arrays.items()
            if (name in stepped or skeleton.weights[name].data_type in REALS)
            and array.shape == tuple(skeleton.weights[name].dims)
        }
    )


def _check_names(graph: Graph, recipe: Recipe) -> None:
    """What a loss or a feature is named for must be there; said before anything is written."""
    for settings in (recipe.training, recipe.final_training):
        features, outputs = settings.get("features", {}), [value.name for value in graph.outputs]
        for name in (*features, *features.values()):
            if graph.producer(name) is None:
                raise UsageError(f"{graph.file or 'the model'} computes no tensor {name!r}, which a feature is to be.")
        for name in settings.get("loss", {}):
            if name not in ("", *features, *outputs):
                raise UsageError(
                    f"a loss is named for {name!r}, which is neither an output ({', '.join(outputs)}) nor a feature."
                )


def _numbers(found: Evaluation) -> dict[str, float]:
    numbers = {"top1": found.top1, "loss": found.loss}
    return numbers if found.top5 is None else {**numbers, "top5": found.top5}
