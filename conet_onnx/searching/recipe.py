"""What a method asks of each trial beside its widths: how it begins, how it is trained, what is measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from conet_onnx.criteria import MEASURED

__all__ = [
    "DISTILL",
    "EQUALS",
    "CurveMeasure",
    "Measure",
    "Measured",
    "QualityMeasure",
    "Recipe",
    "UtilisationMeasure",
    "from_scratch",
]

Measured: TypeAlias = Mapping[str, Mapping[str, float]]  # by the quantity, then the width

# Share of the teacher in the loss, as Cho and Hariharan (2019) have it: the source knows more than a label says.
DISTILL = 0.9
# Its share where students may be as large as it is: a teacher that is no better than its student holds that back.
EQUALS = 0.5


@dataclass(frozen=True, slots=True)
class QualityMeasure:
    """A metric of the weights after every epoch (metrics.quality); of the epochs the largest ("max"), the "mean" or the
    "last" value of each layer; per width the mean over the layers that hold it."""

    metric: str = "qc"
    epoch: str = "max"


@dataclass(frozen=True, slots=True)
class UtilisationMeasure:
    """What dropping a width's channels does to the loss on validation data (metrics.utilisation), after the training.

    A width's rate is `rate` where it costs as much as the mean; `noise` and `of` as in torch_backend.utilisation.
    """

    rate: float
    passes: int = 5
    of: Literal["loss", "accuracy"] = "loss"
    noise: Literal["bernoulli", "gaussian"] = "bernoulli"
    cost: Literal["macs", "latency"] = "macs"


@dataclass(frozen=True, slots=True)
class CurveMeasure:
    """What the loss gains, in nats, where a share of a width's channels is masked, the least important ones first by
    the recipe's criterion: of the source, and of trials that widths are proposed from.

    Quantity "without 0.25" is that of floor(0.25 of the channels); `samples` of the training data are read, or fewer
    where there are few (trial.at_most).
    """

    shares: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
    samples: int = 256

    @property
    def quantities(self) -> dict[str, float]:
        """The share that is masked, by the quantity."""
        return {f"without {share:g}": share for share in self.shares}


Measure: TypeAlias = QualityMeasure | UtilisationMeasure | CurveMeasure


def from_scratch(lr: float = 0.1, every: float = 25.0, factor: float = 0.5, decay: float = 5e-4) -> dict[str, Any]:
    """CONETv2's last training (arXiv:2110.06830), for labels alone: SGD with momentum 0.9, batches of 128, a learning
    rate that is multiplied by `factor` every so many epochs, weight decay."""
    training: dict[str, Any] = {"distill": 0.0, "batch": 128, "momentum": 0.9, "nesterov": False, "warmup": 0.0}
    training |= {"clip": None, "lr": lr, "schedule": "decay", "decay_every": every, "decay_factor": factor}
    return training | {"weight_decay": decay}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a method's models come about.

    `start`: trials without a parent begin with the source's weights, or with fresh ones. `final`: the last training
    goes on from the chosen trial's weights ("inherit"), or begins anew. `training` and `final_training` are
    settings of torch_backend.settings.Settings, beside epochs, seed and threads. `probes` models are tried before
    any training, by which a first trial is chosen. `average`: a trial's model has the moving average of its weights
    over that share of its steps, by which it is judged, and what is trained on at its widths goes on from the last
    step's. `transfer` says how weights survive a resize, `criterion` which channels stay (criteria.channel_scores;
    on training samples), and `recalibrate` whether statistics are measured again before the training
    (torch_backend.recalibration).
    """

    start: Literal["source", "fresh"] = "source"
    final: Literal["inherit", "fresh"] = "inherit"
    transfer: str = "net2net"
    criterion: str = "l2"
    recalibrate: bool = False
    training: Mapping[str, Any] = field(default_factory=lambda: {"distill": DISTILL})
    final_training: Mapping[str, Any] = field(default_factory=lambda: {"distill": DISTILL})
    measure: Measure | None = None
    probes: int = 0
    average: float = 0.0

    def among_equals(self) -> Recipe:
        """The recipe where the source itself is within the budget: its share of the loss is EQUALS at most."""
        training, final = (
            {**some, "distill": min(some["distill"], EQUALS)} for some in (self.training, self.final_training)
        )
        return replace(self, training=training, final_training=final)

    @property
    def reads_samples(self) -> str | None:
        """What of this feeds training samples to a model by itself, if anything does."""
        if isinstance(self.measure, UtilisationMeasure | CurveMeasure):
            return "what this algorithm measures"
        if self.transfer == "least-squares":
            return f"transfer {self.transfer}"
        if self.criterion in MEASURED:
            return f"criterion {self.criterion}"
        return "measuring statistics again" if self.recalibrate else None
