"""What a method asks of each trial beside its widths: how it begins, how it is trained, what is measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["DISTILL", "Measure", "QualityMeasure", "Recipe", "UtilisationMeasure", "from_scratch"]

# Share of the teacher in the loss, as Cho and Hariharan (2019) have it: the source knows more than a label says.
DISTILL = 0.9


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


Measure: TypeAlias = QualityMeasure | UtilisationMeasure


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
    goes on from the chosen trial's weights ("inherit"), or begins anew. `training` and `final_training` are settings
    of torch_backend.settings.Settings, beside epochs, seed and threads. `transfer` says how weights survive a resize.
    """

    start: Literal["source", "fresh"] = "source"
    final: Literal["inherit", "fresh"] = "inherit"
    transfer: str = "net2net"
    training: Mapping[str, Any] = field(default_factory=lambda: {"distill": DISTILL})
    final_training: Mapping[str, Any] = field(default_factory=lambda: {"distill": DISTILL})
    measure: Measure | None = None
