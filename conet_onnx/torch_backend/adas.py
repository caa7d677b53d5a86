"""AdaS: each layer's learning rate follows what its weights gained in the last epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from conet_onnx.analysis import analyze
from conet_onnx.metrics import score
from conet_onnx.torch_backend.known import Array
from conet_onnx.torch_backend.learner import Learner
from conet_onnx.torch_backend.lower import names_of

__all__ = ["Adas"]

LOWEST = 1e-10  # a rate never falls below: a layer that has lost gain would be trained backwards


class Adas:
    """rate_t = beta · rate_(t-1) + G_t - G_(t-1) after each epoch but the first (Hosseini and Plataniotis, 2020,
    arXiv:2006.06587, with their zeta of 1). G is the mean of a layer's two knowledge gains (metrics.quality).

    Layers are convolutions' and linear weights, in the order in which they are used; what is used between one and the
    next (norms, biases) has its rate. `parts` are the parameters of each layer; the last one is what belongs to none,
    whose rate stays.
    """

    def __init__(self, learner: Learner, others: Iterator[nn.Parameter]) -> None:
        self._analysis = analyze(learner.graph)
        weights = {name: one.detach().cpu().numpy() for name, one in learner.parameters().items()}
        layers = [layer.tensor for layer in score(self._analysis, weights=weights)]
        attributes = {attribute: name for name, attribute in names_of(learner.module) if name in weights}
        parts: list[list[nn.Parameter]] = []
        self._layers: list[str] = []
        seen: set[int] = set()
        early: list[nn.Parameter] = []
        for attribute, parameter in _in_order(learner.module):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            name = attributes.get(attribute, "")
            if name in layers:
                self._layers.append(name)
                parts.append([parameter, *early])
                early = []
            else:
                (parts[-1] if parts else early).append(parameter)
        self.parts = [*parts, [*early, *(one for one in others if id(one) not in seen and one.requires_grad)]]

    def gains(self, weights: Mapping[str, Array]) -> dict[str, float]:
        """The knowledge gain of each layer."""
        found = {
            layer.tensor: (layer.ins.gain + layer.outs.gain) / 2 for layer in score(self._analysis, weights=weights)
        }
        return {name: found[name] for name in self._layers}

    def follow(
        self, before: Mapping[str, float], now: Mapping[str, float], beta: float, scheduler: LRScheduler
    ) -> None:
        """Set the rates that the next epoch has, by the gains after the last two; the first one changes nothing."""
        if not before:
            return
        index = {id(one): k for k, part in enumerate(self.parts[:-1]) for one in part}
        rates: list[Any] = list(scheduler.base_lrs)
        for k, group in enumerate(scheduler.optimizer.param_groups):
            part = next((index[id(one)] for one in group["params"] if id(one) in index), None)
            if part is not None:
                name = self._layers[part]
                rates[k] = max(beta * rates[k] + now[name] - before[name], LOWEST)
                group["lr"] = rates[k]
        scheduler.base_lrs = rates


def _in_order(module: torch.fx.GraphModule) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters by the order of their use."""
    known = dict(module.named_parameters(remove_duplicate=False))
    used = (str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module"))
    inside = ((name, *(one for one in known if one.startswith(f"{name}."))) for name in used)
    for name in chain.from_iterable(inside):
        if name in known:
            yield name, known[name]
