"""What an optimizer remembers of each weight, and how that follows a resize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from conet_onnx.errors import UsageError
from conet_onnx.plans import Take, WidthPlan
from conet_onnx.slicing import apply
from conet_onnx.torch_backend.known import Array

__all__ = ["Moments", "moments_of", "resized", "with_moments"]

Moments = Mapping[str, Mapping[str, Array]]  # weight -> torch's name of a moment -> values; a step count is a number


def moments_of(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Array]]:
    """What an optimizer (torch's, or Fabric's around it) remembers of weights by name."""
    found = {}
    for name, parameter in parameters.items():
        kept = optimizer.state.get(parameter, {})
        if kept:
            found[name] = {key: value.detach().cpu().numpy().copy() for key, value in kept.items() if value is not None}
    return found


def with_moments(optimizer: Any, parameters: Mapping[str, nn.Parameter], moments: Moments) -> None:
    """Let an optimizer remember them; weights without any begin anew. Raises UsageError for another shape."""
    for name, parameter in parameters.items():
        for key, value in moments.get(name, {}).items():
            if value.shape not in ((), tuple(parameter.shape)):
                raise UsageError(
                    f"the moments of {name!r} have shape {value.shape}, the weight {tuple(parameter.shape)}: take them "
                    "through the plan first (moments.resized)."
                )
            tensor = torch.from_numpy(np.array(value))
            device = "cpu" if key == "step" else parameter.device
            optimizer.state.setdefault(parameter, {})[key] = tensor.to(device)


def resized(moments: Moments, plan: WidthPlan) -> dict[str, dict[str, Array]]:
    """The moments of a model's weights as those of the model that a plan makes of it.

    They are taken along the plan's indices: copies of a channel begin with what is remembered of it, and where a plan
    puts zeros there is nothing to remember. (A divisor is not applied: the gradient of a copy that is one of several
    summands is that of the weight itself.) Step counts stay.
    """
    made: dict[str, dict[str, Array]] = {}
    for name, kept in moments.items():
        how = plan.initializers.get(name)
        uses = {name: how} if how is None or isinstance(how, Take) else {use.name: use.take for use in how}
        for new, take in uses.items():
            made[new] = {key: _taken(value, take) for key, value in kept.items()}
    return made


def _taken(value: Array, take: Take | None) -> Array:
    if take is None or value.shape != take.shape:
        return value
    return apply(value, Take(take.shape, take.take))
