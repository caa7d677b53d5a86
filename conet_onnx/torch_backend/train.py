"""Train a graph's weights on data, on labels and on what a teacher says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conet_onnx.errors import DataError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend.distill import Classifier, Data, Lessons, Normalise, divergence, flat
from conet_onnx.torch_backend.known import Array
from conet_onnx.torch_backend.lower import from_torch
from conet_onnx.torch_backend.norms import BATCHES, BatchNorm, calibrate, fold, insert, wanted

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Diverged", "Fitted", "Progress", "fit"]

Progress = Callable[[float], None]  # the share of the work that is done, 0..1
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "onecycle", "step", "constant"]

LR = {"sgd": 0.02, "adamw": 1e-3}
DECAY = {"sgd": 5e-4, "adamw": 1e-2}
SCHEDULES = ("cosine", "onecycle", "step", "constant")
CLIP = 5.0  # gradients longer than this are shortened: without BatchNormalization, one bad step can end a training


class Diverged(UsageError):
    """The loss is no longer a number."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained graph, and for each epoch its mean losses, accuracy on what it trained on, last rate, and seconds.

    `untrained`: outputs that no gradient reaches, with the reason (lower.untrained_of).
    """

    graph: Graph
    history: tuple[dict[str, float], ...]
    seconds: float
    untrained: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Objective:
    """(1 - distill) · cross-entropy + distill · divergence from a teacher; one of them where there is no other."""

    distill: float
    temperature: float

    def __call__(
        self, scores: torch.Tensor, labels: torch.Tensor | None, told: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """`loss`, and what it is made of; scores and what the teacher told: [batch, classes]."""
        parts: dict[str, torch.Tensor] = {}
        if labels is not None:
            parts["cross_entropy"] = F.cross_entropy(scores, labels)
        if told is not None:
            parts["distillation"] = divergence(scores, told, self.temperature)
        if not parts:
            raise UsageError("there is nothing to learn from: the data has no labels, and there is no teacher.")
        if len(parts) == 1:
            return {"loss": next(iter(parts.values())), **parts}
        loss = (1 - self.distill) * parts["cross_entropy"] + self.distill * parts["distillation"]
        return {"loss": loss, **parts}


def fit(
    student: Graph,
    data: Data,
    *,
    epochs: int,
    teacher: Graph | Array | None = None,
    labels: bool = True,
    normalise: Normalise | None = None,
    batch: int = 64,
    optimizer: Optimizer = "sgd",
    lr: float | None = None,
    weight_decay: float | None = None,
    warmup: float = 0.1,
    schedule: Schedule = "cosine",
    accumulate: int = 1,
    ema: float | None = None,
    distill: float = 0.5,
    temperature: float = 4.0,
    clip: float | None = CLIP,
    batchnorm: BatchNorm = "auto",
    seed: int = 0,
    threads: int | None = None,
    accelerator: str = "auto",
    precision: Any = "32-true",
    progress: Progress | None = None,
) -> Fitted:
    """Train all learned weights, by SGD with Nesterov momentum or by AdamW; return the graph with the new ones.

    The learning rate rises over the first `warmup` of the steps, then falls to zero along a cosine, or as `schedule`
    says: to a tenth at half and again at three quarters of the steps ("step"; He et al., 2016), along torch's
    OneCycleLR ("onecycle"; Smith and Topin, 2017, arXiv:1708.07120), not at all ("constant"). `accumulate` batches make
    one step; with `ema` the result is the moving average of the weights over the steps, with that decay. Weights with
    one axis (biases, norms) do not decay. `teacher` is a graph, or its scores of `data` in order (`teacher_scores`);
    `labels=False` learns from the teacher alone. `normalise` turns what `data` yields into what the model takes. A
    graph that only runs at its own batch size is trained at that. With `batchnorm="reinsert"` folded convolutions are
    trained with a BatchNormalization, which begins as the identity and is folded away again; "auto" does so where the
    graph has no norms at all (see norms). `accelerator` and `precision` are Fabric's; one device is used. The same seed
    on the same CPU with as many threads gives the same bits; global random state is left as it was.

    Raises UsageError where the settings make no sense, DataError where the data does not fit, Diverged.
    """
    _check(epochs, batch, lr, distill, temperature, optimizer)
    _check_steps(schedule, accumulate, ema)
    from lightning_fabric import Fabric  # a second to import, which lowering alone need not pay
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    begun = time.perf_counter()
    with _repeatable(seed, threads):
        try:
            fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
        except (MisconfigurationException, ValueError) as error:
            raise UsageError(f"cannot train on {accelerator} with precision {precision}: {_line(error)}") from error
        lessons = Lessons.of(data, teacher, normalise, epochs, fabric.device)
        model = Classifier(student, lessons.sample, fabric.device)
        if wanted(student, batchnorm) and insert(model.module):
            drawn = lessons.batches(model.batch or batch, seed=seed)
            calibrate(model.module, (model.tensor(x) for x, _, _ in islice(drawn, BATCHES)))
        rate, decay = LR[optimizer] if lr is None else lr, DECAY[optimizer] if weight_decay is None else weight_decay
        fixed = model.batch is not None
        plan = _Plan.of(len(data), model.batch or batch, accumulate, fixed=fixed, epochs=epochs, warmup=warmup)
        run = _Run(fabric, model, lessons, optimizer, rate, decay, Objective(distill, temperature), labels, clip)
        run.prepare(plan, schedule, ema)
        history = []
        for epoch in range(epochs):
            history.append(run.epoch(epoch, plan, seed, progress))
        run.settle()
        fold(model.module)
        trained = from_torch(student, model.module)
    return Fitted(trained, tuple(history), time.perf_counter() - begun, model.untrained)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How many steps of which size."""

    size: int
    least: int  # samples in a batch: one that is left over has no statistics of a batch
    batches: int  # in an epoch
    steps: int  # of the optimizer, in an epoch: several batches each, where gradients are accumulated
    total: int
    rising: int  # steps until the learning rate is at its height

    @classmethod
    def of(cls, samples: int, size: int, accumulate: int, *, fixed: bool, epochs: int, warmup: float) -> _Plan:
        if fixed and samples < size:
            raise DataError(
                f"{samples} samples do not fill one batch of {size}, the model's fixed batch size; export it with a "
                "dynamic one."
            )
        least = size if fixed else min(2, samples, size)
        full, rest = divmod(samples, size)
        batches = full + (least <= rest)
        steps = math.ceil(batches / accumulate)
        return cls(size, least, batches, steps, steps * epochs, round(steps * epochs * warmup))

    def share(self, schedule: Schedule, step: int) -> float:
        """The learning rate's share of its height at a step."""
        if step < self.rising:
            return (step + 1) / (self.rising + 1)
        done = (step - self.rising) / max(1, self.total - self.rising)
        if schedule == "step":
            return 0.1 ** sum(step >= part * self.total for part in (0.5, 0.75))
        return 1.0 if schedule == "constant" else 0.5 + 0.5 * math.cos(math.pi * done)

    def scheduler(self, optimizer: torch.optim.Optimizer, schedule: Schedule, lr: float) -> LRScheduler:
        """What sets the learning rate, step by step."""
        if schedule == "onecycle":
            total = max(2, self.total)
            return OneCycleLR(optimizer, lr, total, pct_start=max(1, self.rising) / total, cycle_momentum=False)
        return LambdaLR(optimizer, partial(self.share, schedule))


class _Run:
    """A student in training."""

    def __init__(
        self,
        fabric: Fabric,
        model: Classifier,
        lessons: Lessons,
        optimizer: Optimizer,
        lr: float,
        weight_decay: float,
        objective: Objective,
        labels: bool,
        clip: float | None,
    ) -> None:
        self.fabric = fabric
        self.model = model
        self.lessons = lessons
        self.objective = objective
        self.labels = labels
        self.clip = clip
        self.lr = lr
        made = _optimizer(model.module, optimizer, lr, weight_decay)
        self.module, self.optimizer = fabric.setup(model.module.train(), made)
        self.accumulate = 1
        self.average: AveragedModel | None = None

    def prepare(self, plan: _Plan, schedule: Schedule, ema: float | None) -> None:
        """Set the schedule, and the average if there is to be one."""
        self.plan = plan
        self.accumulate = math.ceil(plan.batches / plan.steps)
        self.scheduler = plan.scheduler(self.optimizer, schedule, self.lr)
        if ema is not None:
            average = get_ema_multi_avg_fn(ema)  # type: ignore[no-untyped-call]  # torch's has no types
            self.average = AveragedModel(self.model.module, multi_avg_fn=average, use_buffers=True)

    def settle(self) -> None:
        """Take the average for the weights."""
        if self.average is not None:
            self.model.module.load_state_dict(self.average.module.state_dict())

    def epoch(self, epoch: int, plan: _Plan, seed: int, progress: Progress | None) -> dict[str, float]:
        """All samples once, in an order of the epoch's own."""
        begun = time.perf_counter()
        sums: dict[str, float] = {}
        seen, at, rate = 0, 0, 0.0
        for x, y, told in self.lessons.batches(plan.size, seed=(seed + epoch) % 2**63):
            if len(x) < plan.least:
                continue
            at += 1
            rate = self.optimizer.param_groups[0]["lr"]
            for name, value in self.step(x, y if self.labels else None, told, at).items():
                sums[name] = sums.get(name, 0.0) + value * len(x)
            if not math.isfinite(sums["loss"]):
                raise Diverged(
                    f"training diverged: the loss is {sums['loss']} in batch {at} of epoch {epoch + 1}, at learning "
                    f"rate {rate:g} of {self.lr:g}. Lower it, or check that the input is normalised as the model wants."
                )
            seen += len(x)
            if progress is not None:
                progress((epoch * plan.batches + at) / (plan.total // plan.steps * plan.batches))
        means = {name: value / seen for name, value in sums.items()}
        return {"epoch": float(epoch + 1), **means, "lr": rate, "seconds": time.perf_counter() - begun}

    def step(self, x: Array, y: Array | None, told: Array | None, at: int) -> dict[str, float]:
        """The at-th batch of an epoch: losses and the share of labels that were guessed right, before the step."""
        device = self.fabric.device
        images = self.model.tensor(x)
        labels = None if y is None else torch.from_numpy(y).to(device)
        target = None if told is None else torch.from_numpy(told).to(device)
        if self.lessons.teacher is not None:
            target = self.lessons.teacher.scores(images)
        scores = flat(self._forward(images))
        _check_classes(scores, labels, target)
        losses = self.objective(scores, labels, target)
        gathered = (at - 1) % self.accumulate + 1  # batches since the last step; an epoch's last ones may be fewer
        last = self.plan.batches % self.accumulate
        together = last if last and at > self.plan.batches - last else self.accumulate
        self.fabric.backward(losses["loss"] / together)
        if gathered == together:
            self._step()
        if labels is not None:
            losses["accuracy"] = (scores.argmax(1) == labels).float().mean()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _step(self) -> None:
        if self.clip is not None:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model.module)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        try:
            made: torch.Tensor = self.module(images)
        except (RuntimeError, ValueError) as error:  # torch's way to say that shapes do not fit
            where = self.model.graph.file or "the model"
            raise DataError(f"{where} does not take images of shape {tuple(images.shape)}: {_line(error)}") from error
        return made


def _optimizer(module: nn.Module, name: Optimizer, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():
        axes = sum(size > 1 for size in parameter.shape)
        (decayed if axes > 1 else plain).append(parameter)
    if not decayed and not plain:
        raise UsageError("the model has no weights that training could change.")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr)


def _check(epochs: int, batch: int, lr: float | None, distill: float, temperature: float, optimizer: str) -> None:
    if epochs < 0 or batch < 1:
        raise UsageError(f"{epochs} epochs with batches of {batch}: neither can be trained.")
    if lr is not None and not 0 < lr < math.inf:
        raise UsageError(f"learning rate {lr}: it must be positive.")
    if not 0 <= distill <= 1 or not 0 < temperature < math.inf:
        raise UsageError(f"distill {distill}, temperature {temperature}: a share of 0..1, and a positive number.")
    if optimizer not in LR:
        raise UsageError(f"optimizer {optimizer!r}: it is one of {', '.join(LR)}.")


def _check_steps(schedule: str, accumulate: int, ema: float | None) -> None:
    if schedule not in SCHEDULES:
        raise UsageError(f"schedule {schedule!r}: it is one of {', '.join(SCHEDULES)}.")
    if accumulate < 1:
        raise UsageError(f"accumulate={accumulate}: expected at least one batch a step.")
    if ema is not None and not 0 < ema < 1:
        raise UsageError(f"ema {ema}: a decay lies between 0 and 1.")


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_classes(scores: torch.Tensor, labels: torch.Tensor | None, told: torch.Tensor | None) -> None:
    classes = scores.shape[1]
    if labels is not None and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise DataError(f"labels run from {int(labels.min())} to {int(labels.max())}; the model has {classes} classes.")
    if told is not None and told.shape[1] != classes:
        raise UsageError(f"the teacher has {told.shape[1]} classes, the student {classes}: they must be the same.")


@contextmanager
def _repeatable(seed: int, threads: int | None) -> Iterator[None]:
    """Seeded, with repeatable algorithms; everything is put back at the end."""
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:]
