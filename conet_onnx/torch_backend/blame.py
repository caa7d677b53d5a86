"""Where a computation stopped to be numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from conet_onnx.torch_backend.learner import Learner

__all__ = ["blame"]


def blame(learner: Learner, inputs: Sequence[torch.Tensor]) -> str:
    """A sentence on the first thing that is not a number when the model takes these inputs, in the order in which it
    is computed; nothing where all that it computes is finite."""
    for value, tensor in zip(learner.graph.inputs, inputs, strict=True):
        if not _finite(tensor):
            return f" It began in the data: input {value.name!r} holds {_what(tensor)}."
    for name, parameter in learner.parameters().items():
        if not _finite(parameter):
            return f" It began in the step before, which made weight {name!r} {_what(parameter)}."
    watch = _Watch(learner.module)
    with torch.no_grad():
        watch.run(*inputs)
    found = next(filter(None, (watch.nan, watch.infinite)), None)
    if found is None:
        return ""
    node = learner.graph.producer(next(iter(found.meta.get("values", ())), ""))
    what = "nan" if found is watch.nan else "inf"
    return f" It began at {node or found.format_node()}, the first whose result holds {what}."


class _Watch(fx.Interpreter):
    """Notes the first node that makes a NaN, and the first that makes an infinity of finite values: masks hold some."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.nan: fx.Node | None = None
        self.infinite: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        """What fx runs, looked at."""
        result = super().run_node(n)
        tensors = [t for t in _tensors(result) if t.is_floating_point()]
        if n.op not in ("placeholder", "get_attr", "output"):
            if self.nan is None and any(bool(t.isnan().any()) for t in tensors):
                self.nan = n
            if self.infinite is None and any(bool(t.isinf().any()) for t in tensors):
                given = [self.env[a] for a in n.all_input_nodes if a in self.env]
                if all(_finite(t) for t in _tensors(given)):
                    self.infinite = n
        return result


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.detach().isfinite().all())


def _what(tensor: torch.Tensor) -> str:
    return "nan" if bool(tensor.detach().isnan().any()) else "inf"
