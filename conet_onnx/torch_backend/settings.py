"""How a model is trained: plain values, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from conet_onnx.errors import UsageError
from conet_onnx.torch_backend.norms import HOW, BatchNorm

__all__ = ["AUGMENTATIONS", "Init", "LossKind", "Optimizer", "Schedule", "Settings"]

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "onecycle", "step", "decay", "adas", "constant"]
LossKind = Literal["auto", "kl", "mse", "cosine", "none"]
Init = Literal["inherit", "fresh"]
AUGMENTATIONS = ("crop", "flip", "cutout", "mixup", "randaugment")

LR = {"sgd": 0.02, "adamw": 1e-3}
DECAY = {"sgd": 5e-4, "adamw": 1e-2}
CLIP = 5.0  # gradients longer than this are shortened: without BatchNormalization, one bad step can end a training


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train; raises UsageError where that makes no sense.

    Steps. SGD with (Nesterov's) `momentum` or AdamW; `lr` and `weight_decay` are theirs by default. The learning rate
    rises over the first `warmup` of the steps, stays until `hold` of them (as of MiniCPM, Hu et al., 2024,
    arXiv:2404.06395), then falls to zero along a cosine, or as `schedule` says: to a tenth at
    half and again at three quarters of the steps ("step"; He et al., 2016), times `decay_factor` every `decay_every`
    epochs ("decay"), along torch's OneCycleLR ("onecycle"; Smith and Topin, 2017, arXiv:1708.07120), each layer's by
    what it gained in the last epoch ("adas", adas.py), not at all ("constant"). `accumulate` batches make one step;
    with `ema` the result is the moving average of the weights over the steps, with that decay. Weights with one axis
    (biases, norms) do not decay. Gradients longer than `clip` are shortened.

    Losses. (1 - distill) · labels + distill · teacher, where there are both. With `correct`, a teacher that takes a
    sample for another class than its label is followed with the scores of these two in each other's place
    (losses.corrected), unless it has all of the weight: a student is not taught its errors. `loss` says how an output
    follows the teacher's, by name or for all: "kl", the divergence of classes at a `temperature`; "mse", the square of
    the difference over the variance of the teacher's; "cosine", one minus the cosine of each sample; "none". "auto" is
    kl for scores of classes (labels are learned too, or a Softmax is the end) and for what an image model says as
    [batch, numbers], where the mean of the numbers follows too, in case they are no scores; mse for all else.
    `features` are tensors inside of the model that follow the teacher's too, {student's name: teacher's name}, by "mse"
    or as `loss` says for them; `feature_weight` times the mean of their losses is added.

    Model. With `batchnorm="reinsert"` folded convolutions are trained with a BatchNormalization, which begins as the
    identity and is folded away again; "auto" does so where the graph has no norms at all (norms.py). `init="fresh"`
    forgets the weights (fresh.py). `augment`: of AUGMENTATIONS, in that order (augment.py). `channel_dropout` is a
    regulariser (Network Adjustment, arXiv:2004.02767, with 0.05): channels are dropped wherever they are summed over
    (dropping.py), in epoch e of E, from 0, at the rate channel_dropout · (e + 1) / E, all widths alike. With
    `dropout_by_depth` width k of the n that can be dropped, from 0, in the order in which the graph makes them, is
    dropped at (k + 1) / n of that.

    Machine. `accelerator`, `devices`, `strategy` and `precision` are Fabric's, `compile` is torch's. `channels_last` is
    how images and the weights of convolutions are held; None: where that is faster (learner.Learner.prefers_last). The
    same seed on the same CPU with as many threads gives the same bits.
    """

    epochs: int
    batch: int = 64
    optimizer: Optimizer = "sgd"
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float = 0.9
    nesterov: bool = True
    warmup: float = 0.1
    hold: float = 0.0
    schedule: Schedule = "cosine"
    decay_every: float = 25.0
    decay_factor: float = 0.5
    adas_beta: float = 0.8
    accumulate: int = 1
    ema: float | None = None
    clip: float | None = CLIP
    distill: float = 0.5
    temperature: float = 4.0
    correct: bool = True
    loss: Mapping[str, LossKind] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)
    feature_weight: float = 1.0
    batchnorm: BatchNorm = "auto"
    init: Init = "inherit"
    augment: tuple[str, ...] = ()
    channel_dropout: float = 0.0
    dropout_by_depth: bool = False
    seed: int = 0
    threads: int | None = None
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: Any = "32-true"
    channels_last: bool | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch < 1:
            raise UsageError(f"{self.epochs} epochs with batches of {self.batch}: neither can be trained.")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UsageError(f"learning rate {self.lr}: it must be positive.")
        if not 0 <= self.distill <= 1 or not 0 < self.temperature < math.inf:
            raise UsageError(
                f"distill {self.distill}, temperature {self.temperature}: a share of 0..1, and a positive number."
            )
        if not 0 <= self.momentum < 1 or not 0 <= self.adas_beta < 1:
            raise UsageError(f"momentum {self.momentum}, adas_beta {self.adas_beta}: they lie between 0 and 1.")
        if not 0 <= self.hold < 1 or (self.hold and self.schedule != "cosine"):
            raise UsageError(f"hold={self.hold}: a share of the steps, of 0..1, before the rate falls along a cosine.")
        if not self.decay_every > 0 or not 0 < self.decay_factor <= 1:
            raise UsageError(f"times {self.decay_factor} every {self.decay_every} epochs: a factor of 0..1, and some.")
        if self.accumulate < 1:
            raise UsageError(f"accumulate={self.accumulate}: expected at least one batch a step.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema {self.ema}: a decay lies between 0 and 1.")
        if not 0 <= self.feature_weight < math.inf:
            raise UsageError(f"feature weight {self.feature_weight}: it must not be negative.")
        if not 0 <= self.channel_dropout < 1:
            raise UsageError(f"channel_dropout {self.channel_dropout}: a rate of dropping lies between 0 and 1.")
        if self.sharded and self.ema is not None:
            raise UsageError("an average (ema) of weights that are spread over devices is not kept: leave one out.")
        if self.devices < 1:
            raise UsageError(f"devices={self.devices}: expected at least one.")
        for what, value, known in (
            ("optimizer", self.optimizer, get_args(Optimizer)),
            ("schedule", self.schedule, get_args(Schedule)),
            ("batchnorm", self.batchnorm, HOW),
            ("init", self.init, get_args(Init)),
            *(("loss", kind, get_args(LossKind)) for kind in self.loss.values()),
            *(("augmentation", name, AUGMENTATIONS) for name in self.augment),
        ):
            if value not in known:
                raise UsageError(f"{what} {value!r}: it is one of {', '.join(known)}.")

    @property
    def rate(self) -> float:
        """The learning rate at its height."""
        return LR[self.optimizer] if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """The weight decay."""
        return DECAY[self.optimizer] if self.weight_decay is None else self.weight_decay

    def dropping_rate(self, epoch: int, width: int, widths: int) -> float:
        """The rate at which a width, by its number of so many, is dropped in an epoch; both count from 0."""
        share = (width + 1) / widths if self.dropout_by_depth else 1.0
        return self.channel_dropout * (epoch + 1) / self.epochs * share

    @property
    def sharded(self) -> bool:
        """Whether weights are spread over the devices (Fabric's fsdp, which needs GPUs): no checkpoints then."""
        return self.strategy.startswith("fsdp")

    def kind(self, name: str) -> LossKind:
        """How an output or a feature follows the teacher's; "" stands for all that are not named."""
        return self.loss.get(name, self.loss.get("", "auto"))
