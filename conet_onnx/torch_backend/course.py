"""The course of a training: the optimizer, and how many steps it takes, of which size, at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from conet_onnx.errors import DataError, UsageError
from conet_onnx.torch_backend.settings import Settings

__all__ = ["Course", "optimizer"]


@dataclass(frozen=True, slots=True)
class Course:
    """How many steps of which size."""

    size: int
    least: int  # samples in a batch: one that is left over has no statistics of a batch
    batches: int  # in an epoch
    each: int  # steps of the optimizer in an epoch: several batches each, where gradients are accumulated
    total: int
    rising: int  # steps until the learning rate is at its height
    accumulate: int

    @classmethod
    def of(cls, samples: int, fixed: int | None, settings: Settings) -> Course:
        """For so many samples; `fixed` is the only batch size that the model takes. DataError where there are fewer."""
        size = fixed or settings.batch
        if fixed and samples < size:
            raise DataError(
                f"{samples} samples do not fill one batch of {size}, the model's fixed batch size; export it with a "
                "dynamic one."
            )
        least = size if fixed else min(2, samples, size)
        full, rest = divmod(samples, size)
        batches = full + (least <= rest)
        each = math.ceil(batches / settings.accumulate)
        total = each * settings.epochs
        return cls(size, least, batches, each, total, round(total * settings.warmup), math.ceil(batches / each))

    def together(self, at: int) -> tuple[bool, int]:
        """Whether the at-th batch of an epoch, from 1, ends a step, and how many batches that step has."""
        last = self.batches % self.accumulate
        count = last if last and at > self.batches - last else self.accumulate
        return (at - 1) % self.accumulate + 1 == count, count

    def share(self, settings: Settings, step: int) -> float:
        """The learning rate's share of its height at a step."""
        if step < self.rising:
            return (step + 1) / (self.rising + 1)
        begins = max(self.rising, round(self.total * settings.hold))
        done = max(step - begins, 0) / max(1, self.total - begins)
        if settings.schedule == "step":
            return 0.1 ** sum(step >= part * self.total for part in (0.5, 0.75))
        if settings.schedule == "decay":
            return float(settings.decay_factor ** (step // (self.each * settings.decay_every)))
        return 0.5 + 0.5 * math.cos(math.pi * done) if settings.schedule == "cosine" else 1.0

    def scheduler(self, optimizer: torch.optim.Optimizer, settings: Settings) -> LRScheduler:
        """What sets the learning rate, step by step."""
        if settings.schedule == "onecycle":
            total = max(3, self.total)  # both of its parts divide by their steps but one
            rising = min(max(2, self.rising), total - 1)
            return OneCycleLR(optimizer, settings.rate, total, pct_start=rising / total, cycle_momentum=False)
        return LambdaLR(optimizer, partial(self.share, settings))


def optimizer(parts: Iterable[Iterable[nn.Parameter]], settings: Settings) -> torch.optim.Optimizer:
    """SGD or AdamW; what is in different parts can have different learning rates. Weights with one axis do not decay.

    Raises UsageError where there are no parameters.
    """
    groups = []
    for part in parts:
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for parameter in part:
            axes = sum(size > 1 for size in parameter.shape)
            (decayed if axes > 1 else plain).append(parameter)
        groups += [{"params": decayed, "weight_decay": settings.decay}, {"params": plain, "weight_decay": 0.0}]
    if not any(group["params"] for group in groups):
        raise UsageError("the model has no weights that training could change.")
    if settings.optimizer == "sgd":
        nesterov = settings.nesterov and settings.momentum > 0
        return torch.optim.SGD(groups, settings.rate, momentum=settings.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, settings.rate)
