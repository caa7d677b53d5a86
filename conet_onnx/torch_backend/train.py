"""Train a graph's weights on data: on labels or a user's own task, and on what a teacher says."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conet_onnx.analysis import analyze
from conet_onnx.data.dataset import Split
from conet_onnx.errors import DataError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend.augment import Augmentation
from conet_onnx.torch_backend.blame import blame
from conet_onnx.torch_backend.checkpoints import Checkpoint, Progressed, Stopped, stoppable
from conet_onnx.torch_backend.course import Course, optimizer
from conet_onnx.torch_backend.distill import (
    Batch,
    Data,
    Lessons,
    Normalise,
    ahead,
    as_tensors,
    first,
    known_scores,
    prepared,
)
from conet_onnx.torch_backend.dropping import Dropping, insert_drops, seeded
from conet_onnx.torch_backend.fresh import fresh
from conet_onnx.torch_backend.known import Array
from conet_onnx.torch_backend.learner import Inputs, Learner, Tensors, samples_in
from conet_onnx.torch_backend.losses import Adapters, Objective, Task, as_target, flat
from conet_onnx.torch_backend.lower import returned
from conet_onnx.torch_backend.memory import memory_kept
from conet_onnx.torch_backend.moments import Moments, moments_of, with_moments
from conet_onnx.torch_backend.norms import BATCHES, calibrate, fold, insert, wanted
from conet_onnx.torch_backend.settings import Settings
from conet_onnx.torch_backend.threads import torch_threads

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from conet_onnx.batches import Freed
    from conet_onnx.torch_backend.adas import Adas

__all__ = ["After", "Diverged", "Fitted", "Progress", "fabric_of", "fit"]

Progress = Callable[[float], None]  # the share of the work that is done, 0..1
After = Callable[[Mapping[str, Array]], None]  # shown the trained weights by name after an epoch, not to be kept

WINDOW = 16  # batches after which a GPU is asked for its losses: to ask is to wait for it


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained graph, and for each epoch its mean losses, accuracy on what it trained on, last rate, and seconds.

    `untrained`: outputs that no gradient reaches, with the reason (lower.untrained_of); `untrained_weights` likewise,
    with nothing that training could not have changed anyway (untrained). `undropped`: widths that
    channel dropout left alone, with the reason (dropping.insert_drops). `moments`: the optimizer's, by the weight's
    name (moments.py). `flushed`: how many denormal numbers became zero. `last`: with the weights of the last step,
    where `graph` has their moving average.
    """

    graph: Graph
    history: tuple[dict[str, float], ...]
    seconds: float
    untrained: Mapping[str, str] = field(default_factory=dict)
    undropped: Mapping[str, str] = field(default_factory=dict)
    moments: Moments = field(default_factory=dict, repr=False)
    flushed: int = 0
    untrained_weights: Mapping[str, str] = field(default_factory=dict)
    last: Graph | None = None


class Diverged(UsageError):
    """The loss is no longer a number. `good` is what there was after the last epoch in which it was, if any."""

    good: Fitted | None = None


def fit(
    student: Graph,
    data: Data,
    *,
    teacher: Graph | Array | None = None,
    labels: bool = True,
    task: Task | None = None,
    normalise: Normalise | None = None,
    moments: Moments | None = None,
    progress: Progress | None = None,
    after: After | None = None,
    checkpoint: Path | None = None,
    **settings: Any,
) -> Fitted:
    """Train all learned weights; return the graph with the new ones. `settings` are those of settings.Settings.

    `teacher` is a graph, or its scores of `data` in order (`teacher_scores`); `labels=False` learns from the teacher
    alone. `normalise` turns images that `data` yields into what the model takes. A `task` brings a loss of its own.
    A batch size that is baked into the graph is freed for the training (batches.freed); where it cannot be, the graph
    is trained at that. `moments` are an optimizer's to begin with, of the same weights (`Fitted.moments`,
    `moments.resized`). `after` each epoch the weights are shown, as they are in training: convolutions that are trained
    with a norm (batchnorm) without it.

    With a `checkpoint` the state is written there after every epoch, and on SIGTERM and SIGINT, whereupon Stopped is
    raised; where that file is there already, training goes on from it and ends with the same weights as if it had
    never been stopped. Several `devices` share each batch; all of them return the same.

    Global random state is left as it was. Raises UsageError where the settings make no sense, DataError where the data
    does not fit, Diverged.
    """
    wished = Settings(**settings)
    begun = time.perf_counter()
    with _repeatable(wished.seed, wished.threads):
        fabric = fabric_of(wished)
        source = fresh(student, wished.seed) if wished.init == "fresh" else student
        prepare = partial(prepared, normalise=normalise)
        dropped = wished.channel_dropout > 0
        freed = _freed(source, _sample(data, task, prepare), fabric.device, always=dropped)
        graph = source if freed is None else freed.graph
        run = _Run.of(fabric, wished, graph, data, teacher, labels, task, prepare)
        run.source, run.freed = student, freed
        if moments is not None:
            with_moments(run.optimizer, run.parameters(), moments)
        kept = None
        if checkpoint is not None and not wished.sharded:
            kept = Checkpoint(checkpoint, _about(student, data, teacher, labels, task, wished))
            run.resume(kept.load(fabric))
        try:
            with stoppable() if kept is not None else _never() as asked:
                while run.done.epoch < wished.epochs:
                    run.epoch(progress, kept, asked)
                    if after is not None:
                        after(run.weights())
        except Diverged as error:
            if run.good is not None:
                run.restore(run.good)
                error.good = run.fitted(time.perf_counter() - begun)
            raise
        return run.fitted(run.earlier + time.perf_counter() - begun)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A batch as the model takes it: of `length` samples, `own` fall to this process."""

    x: Inputs
    targets: Any
    told: Mapping[str, Array] | None
    length: int
    own: int


class _Student(nn.Module):
    """The module that is trained: the model, and what makes its features as wide as the teacher's."""

    def __init__(self, learner: Learner, adapters: Adapters) -> None:
        super().__init__()
        self.model = learner.module
        self.adapters = adapters
        self.names = learner.names

    def forward(self, *x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors that are asked for, by name."""
        made: dict[str, torch.Tensor] = self.adapters(dict(zip(self.names, self.model(*x), strict=True)))
        return made


class _Run:
    """A student in training."""

    def __init__(
        self,
        fabric: Fabric,
        settings: Settings,
        learner: Learner,
        teacher: Learner | None,
        lessons: Lessons,
        objective: Objective,
        adapters: Adapters,
        augmentation: Augmentation | None,
        dropping: Dropping | None,
        prepare: Callable[[Inputs], Inputs],
    ) -> None:
        self.fabric = fabric
        self.settings = settings
        self.learner = learner
        self.teacher = teacher
        self.lessons = lessons
        self.objective = objective
        self.augmentation = augmentation
        self.dropping = dropping
        self.prepare = prepare
        self.course = Course.of(len(lessons.data), learner.batch, settings)
        self.student = _Student(learner, adapters).to(fabric.device).train()
        self.adas = _adas(learner, self.student) if settings.schedule == "adas" else None
        parts = [[p for p in self.student.parameters() if p.requires_grad]] if self.adas is None else self.adas.parts
        module: Any = torch.compile(self.student) if settings.compile else self.student
        self.module, self.optimizer = fabric.setup(module, optimizer(parts, settings))
        self.scheduler = self.course.scheduler(self.optimizer, settings)
        self.average: AveragedModel | None = None
        if settings.ema is not None:
            decay = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]  # torch's has no types
            self.average = AveragedModel(self.student, multi_avg_fn=decay, use_buffers=True)
        self.source = learner.graph  # what the weights go back into
        self.freed: Freed | None = None  # how its batch was freed, if it was
        self.done = Progressed()
        self.good: dict[str, Any] | None = None
        self.earlier = 0.0  # seconds of training before it was resumed

    @classmethod
    def of(
        cls,
        fabric: Fabric,
        settings: Settings,
        student: Graph,
        data: Data,
        teacher: Graph | Array | None,
        labels: bool,
        task: Task | None,
        prepare: Callable[[Inputs], Inputs],
    ) -> _Run:
        """Lower, find out what can be asked of whom, insert norms, and ask the teacher if it is to be asked once."""
        x, y = first(data)
        sample = _sample(data, task, prepare)
        learner = Learner(student, fabric.device, inner=tuple(settings.features))
        asked = None
        if isinstance(teacher, Graph):
            asked = Learner(teacher, fabric.device, inner=tuple(settings.features.values()))
        scored = isinstance(teacher, np.ndarray)
        objective = Objective.of(
            settings,
            learner,
            asked,
            scored=scored,
            labels=labels and y is not None,
            images=not isinstance(x, Mapping),
            task=task,
        )
        for one in filter(None, (learner, asked)):
            one.use_channels_last(settings.channels_last)
            one.settle(sample)
        course = Course.of(len(data), learner.batch, settings)
        dropping = _dropping(learner) if settings.channel_dropout else None

        def drawn() -> Iterator[tuple[torch.Tensor, ...]]:
            for x, y in data.batches(course.size, seed=settings.seed):
                if samples_in(x) in (course.size, len(data)):
                    yield learner.tensors(prepare(_collated(task, x, y)[0]))

        if wanted(student, settings.batchnorm) and insert(learner.module):
            calibrate(learner.module, islice(drawn(), BATCHES), identity=settings.init != "fresh")
        lessons = Lessons(data)
        found: Tensors = {}
        told: Tensors = {}
        if isinstance(teacher, np.ndarray):
            if settings.augment:
                raise UsageError(
                    f"augment={','.join(settings.augment)} varies images, of which a teacher's scores that are known "
                    "beforehand say nothing: give the teacher's graph."
                )
            lessons = Lessons(data, known_scores(teacher, data, objective.first))
            found = learner.said(learner.tensors(sample))
            told = as_tensors({objective.first: teacher[:1]}, fabric.device)
        elif asked is not None:
            inputs = next(drawn())
            found, told = learner.said(inputs), asked.said(asked.taken(learner.named(inputs)))
        settled = objective.settled(found, told)
        adapters = Adapters([(match, found[match.student], told[match.teacher]) for match in settled.matches])
        if asked is not None:
            once = settings.epochs > 1 and not settings.augment and task is None
            lessons = Lessons.of(data, asked, prepare, once=once)
        augmentation = None
        if settings.augment:
            shape = data.shape if isinstance(data, Split) else ()
            scores = learner.said(learner.tensors(sample))[settled.first] if settled.by_class else None
            classes = None if scores is None else flat(scores).shape[1]
            augmentation = Augmentation(settings.augment, shape, classes)
        keeper = None if lessons.told is not None else asked
        return cls(fabric, settings, learner, keeper, lessons, settled, adapters, augmentation, dropping, prepare)

    def epoch(self, progress: Progress | None, kept: Checkpoint | None, asked: Any) -> None:
        """All samples once, in an order of the epoch's own; what was done of it before is left out."""
        begun, done, course = time.perf_counter(), self.done, self.course
        losses: list[tuple[dict[str, torch.Tensor], int]] = []  # not yet looked at
        rate = 0.0
        for at, batch in enumerate(self._batches(), done.batch + 1):
            rate = self.optimizer.param_groups[0]["lr"]
            losses.append((self.step(batch, at), batch.own))
            done.batch = at
            if len(losses) == (1 if self.fabric.device.type == "cpu" else WINDOW) or at == course.batches:
                self._count(losses, at, rate)
                losses.clear()
            if progress is not None:
                progress((done.epoch * course.batches + at) / (self.settings.epochs * course.batches))
            ended, _ = course.together(at)
            if kept is not None and ended and at < course.batches and self._any(asked.is_set()):
                self._count(losses, at, rate)
                done.seconds += time.perf_counter() - begun
                kept.save(self.fabric, self.state())
                raise Stopped
        means = {name: value / done.seen for name, value in done.sums.items()}
        seconds = done.seconds + time.perf_counter() - begun
        done.history.append({"epoch": float(done.epoch + 1), **means, "lr": rate, "seconds": seconds})
        self.done = Progressed(epoch=done.epoch + 1, history=done.history, gains=done.gains)
        if self.adas is not None:
            self.done.gains = self.adas.gains(self.weights())
            self.adas.follow(done.gains, self.done.gains, self.settings.adas_beta, self.scheduler)
        self.good = None if self.settings.sharded else self.snapshot()
        if kept is not None:
            kept.save(self.fabric, self.state())
            if self._any(asked.is_set()) and self.done.epoch < self.settings.epochs:
                raise Stopped

    def step(self, batch: _Ready, at: int) -> dict[str, torch.Tensor]:
        """The at-th batch of an epoch: losses and the share of labels that were guessed right, before the step, of the
        samples that fall to this process."""
        inputs = self.learner.tensors(batch.x)
        labels = target = as_target(batch.targets, self.fabric.device)
        if self.augmentation is not None and isinstance(target, torch.Tensor) and self.objective.by_class:
            mixed, target = self.augmentation.mixed(inputs[0], target)
            inputs = (mixed, *inputs[1:])
        said = None if batch.told is None else as_tensors(batch.told, self.fabric.device)
        if self.teacher is not None:
            said = self.teacher.said(self.teacher.taken(self.learner.named(inputs)))
        self._drop(batch, at, len(inputs[0]))
        outputs = self._forward(inputs)
        self._check_classes(outputs, batch.targets)
        losses = self.objective(outputs, target, said)
        ended, together = self.course.together(at)
        self._check_finite(losses, inputs, at)
        weight = batch.own / batch.length * self.fabric.world_size / together
        self.fabric.backward(losses["loss"] * weight)
        if ended:
            self._update()
        if isinstance(labels, torch.Tensor) and self.objective.by_class:
            losses["accuracy"] = (flat(outputs[self.objective.first]).argmax(1) == labels).float().mean()
        return {name: value.detach() for name, value in losses.items()}

    def _batches(self) -> Iterator[_Ready]:
        """What is left of the epoch. While one batch is trained on, the next one is decoded; it is made ready too,
        unless chance has a part in that, whose draws come in the order of the steps."""
        drawn = self.lessons.batches(self.course.size, seed=(self.settings.seed + self.done.epoch) % 2**63)
        full = (batch for batch in drawn if samples_in(batch.x) >= self.course.least)
        rest = islice(full, self.done.batch, None)
        if self.augmentation is None and self.objective.task is None:
            return ahead(map(self._ready, rest))
        return map(self._ready, ahead(rest))

    def _ready(self, batch: Batch) -> _Ready:
        """What falls to this process of a batch, as the model takes it."""
        length = samples_in(batch.x)
        x, y, told, own = self._own(batch, length)
        if self.augmentation is not None and not isinstance(x, Mapping):
            x = self.augmentation(x)
        x, targets = _collated(self.objective.task, x, y if self.objective.labels else None)
        return _Ready(self.prepare(x), targets, told, length, own)

    def fitted(self, seconds: float) -> Fitted:
        """What has become of the source; the run is over."""
        moments = {} if self.settings.sharded else moments_of(self.optimizer, self.parameters())
        last = None
        if self.average is not None:
            last, _ = self._graph(copy.deepcopy(self.learner.module))
            self.student.load_state_dict(self.average.module.state_dict())
        with self._whole():
            trained, flushed = self._graph(self.learner.module)
        undropped = {} if self.dropping is None else self.dropping.missing
        return Fitted(
            trained,
            tuple(self.done.history),
            seconds,
            self.learner.untrained,
            undropped,
            moments,
            flushed,
            self.learner.untrained_weights,
            last,
        )

    def _graph(self, module: fx.GraphModule) -> tuple[Graph, int]:
        """The source with a module's weights, of which norms are folded into others, and how many were denormal."""
        fold(module)
        trained, flushed = returned(self.source if self.freed is None else self.freed.graph, module)
        return trained if self.freed is None else self.freed.returned(trained), flushed

    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights in training, by the name that they have in the graph."""
        return self.learner.parameters()

    def weights(self) -> dict[str, Array]:
        """The weights in training as arrays, by the same names; views, where they are in the processor's memory."""
        with self._whole():
            return {name: one.detach().float().cpu().numpy() for name, one in self.parameters().items()}

    def state(self) -> dict[str, Any]:
        """All that training needs to go on as if it had not been stopped."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            **self.snapshot(copied=False),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"},
            "precision": self.fabric.strategy.precision.state_dict(),
            "rng": [torch.get_rng_state(), *cuda],
        }

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a state; None: begin."""
        if state is None:
            return
        self.restore(state)
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **state["scheduler"]})
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        cpu, *cuda = state["rng"]
        torch.set_rng_state(cpu.cpu())
        if cuda and len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([one.cpu() for one in cuda])
        self.earlier = sum(epoch["seconds"] for epoch in self.done.history) + self.done.seconds

    def snapshot(self, *, copied: bool = True) -> dict[str, Any]:
        """The weights, their average, and how far training is."""
        modules = {"student": self.student, **({} if self.average is None else {"average": self.average})}
        weights = {name: module.state_dict() for name, module in modules.items()}
        if copied:
            weights = {name: {k: v.clone() for k, v in state.items()} for name, state in weights.items()}
        return {**weights, "progressed": asdict(self.done)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a snapshot back."""
        self.student.load_state_dict(state["student"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.done = Progressed(**state["progressed"])

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """All weights here, where a strategy has spread them over several devices."""
        if not self.settings.sharded:
            yield
            return
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(self.module, writeback=False):
            yield

    def _own(self, batch: Batch, length: int) -> tuple[Inputs, Any, Mapping[str, Array] | None, int]:
        """Those samples of a batch that fall to this process, and how many they are; where there are none, one that
        does not count."""
        if self.fabric.world_size == 1:
            return batch.x, batch.labels, batch.told, length
        index, chosen = self._rows(length)
        x = {k: v[chosen] for k, v in batch.x.items()} if isinstance(batch.x, Mapping) else batch.x[chosen]
        told = None if batch.told is None else {k: v[chosen] for k, v in batch.told.items()}
        return x, None if batch.labels is None else batch.labels[chosen], told, len(index)

    def _rows(self, length: int) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
        """Which samples of a batch fall to this process, and which it takes: where none do, one that does not count."""
        index = np.arange(self.fabric.global_rank, length, self.fabric.world_size)
        return index, index if len(index) else np.zeros(1, np.int64)

    def _drop(self, batch: _Ready, at: int, samples: int) -> None:
        """Draw which channels the at-th batch of the epoch goes without, from what was asked for and nothing that was
        done before: a training that is resumed draws the same, and so do several processes together."""
        if self.dropping is None:
            return
        epoch, widths = self.done.epoch, self.dropping.widths
        rates = {name: self.settings.dropping_rate(epoch, k, len(widths)) for k, name in enumerate(widths)}
        self.dropping.rates.update(rates)
        generator = seeded(self.settings.seed, epoch, at)
        if self.fabric.world_size == 1:
            self.dropping.draw(samples, generator)
        else:
            self.dropping.draw(batch.length, generator, rows=self._rows(batch.length)[1].tolist())

    def _forward(self, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        try:
            made: dict[str, torch.Tensor] = self.module(*inputs)
        except (RuntimeError, ValueError) as error:  # torch's way to say that shapes do not fit
            raise self.learner.misfit(inputs, error) from error
        return made

    def _update(self) -> None:
        if self.settings.clip is not None:
            self.fabric.clip_gradients(
                self.module, self.optimizer, max_norm=self.settings.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.student)

    def _count(self, losses: Sequence[tuple[dict[str, torch.Tensor], int]], at: int, rate: float) -> None:
        """Add losses to the epoch's; raises Diverged where one is no number."""
        for k, (values, count) in enumerate(losses):
            row = torch.stack(
                [value.float() * count for value in values.values()]
                + [torch.tensor(float(count), device=self.fabric.device)]
            )
            row = self._summed(row.double())
            *numbers, seen = row.tolist()
            for name, value in zip(values, numbers, strict=True):
                self.done.sums[name] = self.done.sums.get(name, 0.0) + value
            self.done.seen += round(seen)
            if not math.isfinite(self.done.sums["loss"]):
                raise self._diverged(self.done.sums["loss"], at - len(losses) + k + 1, rate, "")

    def _check_finite(self, losses: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor], at: int) -> None:
        """On a CPU, where to look costs nothing: say where it began, before the weights are lost."""
        if self.fabric.device.type != "cpu" or self.fabric.world_size > 1:
            return
        value = float(losses["loss"].detach())
        if not math.isfinite(value):
            rate = self.optimizer.param_groups[0]["lr"]
            raise self._diverged(value, at, rate, blame(self.learner, inputs))

    def _diverged(self, value: float, at: int, rate: float, began: str) -> Diverged:
        return Diverged(
            f"training diverged: the loss is {value} in batch {at} of epoch {self.done.epoch + 1}, at learning rate "
            f"{rate:g} of {self.settings.rate:g}. Lower it, or check that the input is normalised as the model wants."
            f"{began}"
        )

    def _check_classes(self, outputs: Tensors, labels: Any) -> None:
        if not self.objective.by_class or labels is None:
            return
        classes = flat(outputs[self.objective.first]).shape[1]
        least, most = int(np.min(labels)), int(np.max(labels))
        if least < 0 or most >= classes:
            raise DataError(f"labels run from {least} to {most}; the model has {classes} classes.")

    def _summed(self, row: torch.Tensor) -> torch.Tensor:
        if self.fabric.world_size == 1:
            return row
        summed: Any = self.fabric.all_reduce(row.to(self.fabric.device), reduce_op="sum")
        return torch.as_tensor(summed)

    def _any(self, here: bool) -> bool:
        """Whether something holds in any process."""
        return bool(self._summed(torch.tensor([float(here)]))[0] > 0)


def fabric_of(settings: Settings) -> Fabric:
    """Lightning Fabric, launched. Raises UsageError where it knows no such precision, or has no such device here."""
    from lightning_fabric import Fabric  # a second to import, which lowering alone need not pay
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            strategy=settings.strategy,
            precision=settings.precision,
        )
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(
            f"cannot train on {settings.accelerator} with precision {settings.precision}: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    fabric.launch()
    return fabric


def _adas(learner: Learner, student: nn.Module) -> Adas:
    from conet_onnx.torch_backend.adas import Adas  # it analyses the graph, which other schedules need not pay

    return Adas(learner, student.parameters())


def _collated(task: Task | None, x: Inputs, y: Any) -> tuple[Inputs, Any]:
    collate = getattr(task, "collate", None)
    return (x, y) if collate is None else collate(x, y)


def _sample(data: Data, task: Task | None, prepare: Callable[[Inputs], Inputs]) -> Inputs:
    """One sample as the model takes it."""
    return prepare(_collated(task, *first(data))[0])


def _dropping(learner: Learner) -> Dropping:
    """Places for channel dropout in a learner's module, before norms are inserted there. Raises UsageError for none."""
    made = insert_drops(learner.module, analyze(learner.graph))
    if not made.widths:
        why = next((f": {name}: {reason}" for name, reason in made.missing.items()), ", which has no widths")
        raise UsageError(
            f"no channels can be dropped in {learner.graph.file or 'the model'}{why}. Train without dropout."
        )
    return made


def _freed(graph: Graph, sample: Inputs, device: torch.device, *, always: bool) -> Freed | None:
    """The graph for any batch, where it has one of its own that holds it back, and can be freed from it; with `always`
    also where it takes any batch as it is, which does not tell whose sample a position belongs to."""
    if not any(value.shape and isinstance(value.shape[0], int) for value in graph.inputs):
        return None
    learner = Learner(graph, device)
    learner.keep(learner.outputs)
    learner.settle(sample)
    if learner.batch is None and not always:
        return None
    from conet_onnx.batches import freed  # it runs the model, in onnxruntime

    made = freed(graph)
    return None if made.reason else made


def _about(
    student: Graph, data: Data, teacher: Graph | Array | None, labels: bool, task: Task | None, settings: Settings
) -> dict[str, Any]:
    """What a training's weights depend on, in plain values: a checkpoint of another one is not gone on from."""
    return {
        "source": student.sha256,
        "samples": len(data),
        "teacher": teacher.sha256 if isinstance(teacher, Graph) else teacher is not None,
        "labels": labels,
        "task": None if task is None else f"{type(task).__module__}:{type(task).__qualname__}",
        **asdict(settings),
    }


@contextmanager
def _never() -> Iterator[None]:
    yield None


@contextmanager
def _repeatable(seed: int, threads: int | None) -> Iterator[None]:
    """Seeded, with repeatable algorithms; everything is put back at the end."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices), torch_threads(threads), memory_kept():
        torch.manual_seed(seed)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        try:
            yield
        finally:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
