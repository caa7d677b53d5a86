"""Tell rounding that a model amplifies from a node that is lowered wrongly: run each part alone.

A lowered module that is off by more than rounding explains may have one wrong node, or none: a detector reads pixels at
coordinates that it computed itself, so that the last bits of a coordinate move whole masks. Given what onnxruntime
computed for its inputs, a wrong node is off by as much as before, and an amplified error is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import oracles
import torch
from torch import fx

__all__ = ["each_alone", "moved_by_rounding"]

Array = np.ndarray[Any, Any]


def each_alone(
    module: fx.GraphModule, given: Sequence[torch.Tensor], expected: Mapping[str, Array], ends: Sequence[str]
) -> dict[str, float]:
    """How far each value of a lowered graph is off, where it is computed from onnxruntime's values alone.

    `expected` are these, of every tensor of the graph by name; `ends` are the names of the graph's outputs. What has
    no name of its own in the module (parts of what was fused, sizes, what runs in onnxruntime) is judged by the first
    value with a name that is computed from it, or by an output.
    """
    alone = _Alone(module, expected)
    with torch.no_grad():
        made = alone.run(*given)
    for name, value in zip(ends, made if isinstance(made, tuple) else (made,), strict=True):
        alone.errors[name] = max(alone.errors.get(name, 0.0), _off(value, expected[name]))
    return alone.errors


def moved_by_rounding(module: fx.GraphModule, given: Sequence[torch.Tensor], seed: int = 0) -> list[float]:
    """How far each output of a lowered graph goes when each of its values moves to a neighbouring float, up or down."""
    with torch.no_grad():
        before, after = fx.Interpreter(module).run(*given), _Moved(module, seed).run(*given)
    both = (made if isinstance(made, tuple) else (made,) for made in (after, before))
    return [_off(one, other.numpy()) for one, other in zip(*both, strict=True)]


class _Alone(fx.Interpreter):
    """Puts onnxruntime's value in the place of each that it has computed, and notes how far the two are apart."""

    def __init__(self, module: fx.GraphModule, expected: Mapping[str, Array]) -> None:
        super().__init__(module)
        self.expected = expected
        self.errors: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        """What fx runs, and then what onnxruntime made of it."""
        made = super().run_node(n)
        for name in _names(n, made):
            if name in self.expected:
                self.errors[name] = _off(made, self.expected[name])
        known = [self.expected[name] for name in _names(n, made) if name in self.expected]
        # A type of its own: whole numbers of quantised models are floats in torch.
        return torch.from_numpy(np.array(known[0])).to(made.dtype) if known else made


class _Moved(fx.Interpreter):
    """Moves what it has computed to neighbouring floats; whole numbers stay, since they are seldom rounded."""

    def __init__(self, module: fx.GraphModule, seed: int) -> None:
        super().__init__(module)
        self.chance = torch.Generator().manual_seed(seed)

    def run_node(self, n: fx.Node) -> Any:
        """What fx runs, moved."""
        made = super().run_node(n)
        if not any(_names(n, made)) or not made.is_floating_point():
            return made
        up = torch.rand(made.shape, generator=self.chance) < 0.5
        towards = torch.where(up, torch.inf, -torch.inf).to(made.dtype)
        return torch.where(made.isfinite() & (made != made.round()), torch.nextafter(made, towards), made)


def _names(n: fx.Node, made: object) -> Iterator[str]:
    """The graph's names of a tensor that is computed."""
    if isinstance(made, torch.Tensor) and n.op != "placeholder":
        yield from n.meta.get("values", ())


def _off(made: torch.Tensor, wanted: Array) -> float:
    """As oracles.distance; infinite where even the shapes differ."""
    got = made.detach().numpy().astype(wanted.dtype)
    return oracles.distance(got, wanted) if got.shape == wanted.shape else np.inf
