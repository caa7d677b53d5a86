"""What the zoo knows of one model, and how torch modules become entries."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx

__all__ = ["Entry", "NotBuilt", "enliven", "from_torch", "share"]

Symbols = dict[int, str]  # axis of every input -> the name of its size
LEGACY_OPSETS = (11, 12, 13, 14, 15, 16, 17, 18, 19, 20)


class NotBuilt(Exception):
    """A model that cannot be made on this machine; says why."""


@dataclass(frozen=True)
class Entry:
    """A model of the zoo: `build` makes it, and raises NotBuilt where it cannot be made here."""

    name: str
    family: str
    exporter: str
    build: Callable[[], onnx.ModelProto]
    kind: str = "cnn"  # or "transformer", "other": medians are reported by kind

    @property
    def key(self) -> str:
        """What its record is called."""
        return f"{self.family}-{self.name}-{self.exporter}".replace("/", "_").replace(".", "_").replace(" ", "_")


def from_torch(
    make: Callable[[], tuple[Any, tuple[Any, ...]]],
    exporter: str,
    *,
    opset: int = 17,
    names: Sequence[str] = (),
    lengths: bool = False,
    batch: bool = True,
) -> onnx.ModelProto:
    """Export a torch module with a batch size that stays symbolic, where the exporter can keep it so (never without
    `batch`); with `lengths` the second axis of every input too.

    `make` returns the module and its inputs, of batch size two; the module comes to life here.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, which are not ours to change
        torch.manual_seed(0)
        try:
            module, inputs = make()
        except (ImportError, RuntimeError, NotImplementedError) as error:
            raise NotBuilt(f"{type(error).__name__}: {_first_line(error)}") from error
        enliven(module, inputs)
        names = list(names) or [f"x{k}" if k else "x" for k in range(len(inputs))]
        export = {"torchscript": _torchscript, "dynamo": _dynamo}[exporter]
        last: Exception | None = None
        for symbolic in ({0: "batch", 1: "length"},) if lengths else ({0: "batch"}, {}) if batch else ({},):
            try:
                return export(module, inputs, names, opset, symbolic)
            except Exception as error:  # exporters raise whatever they like; the table says what
                last = error
        root = _root(last)
        raise NotBuilt(f"{exporter} exporter: {type(root).__name__}: {_first_line(root)}") from last


def _torchscript(module: Any, inputs: tuple[Any, ...], names: Sequence[str], opset: int, symbolic: Symbols) -> Any:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        axes = dict.fromkeys(names, symbolic) if symbolic else None
        export = partial(
            torch.onnx.export, module, inputs, path, dynamo=False, input_names=list(names), dynamic_axes=axes
        )
        try:
            export(opset_version=opset)
        except torch.onnx.errors.UnsupportedOperatorError as error:  # it says from which opset on there is one
            later = re.search(r"added in version (\d+)", str(error))
            if later is None:
                raise
            export(opset_version=int(later[1]))
        return onnx.load(path)


def _dynamo(module: Any, inputs: tuple[Any, ...], names: Sequence[str], opset: int, symbolic: Symbols) -> Any:
    import torch

    sizes = {axis: torch.export.Dim(name) for axis, name in symbolic.items()}
    shapes = (sizes,) * len(inputs) if sizes else None
    program: Any = torch.onnx.export(
        module, inputs, dynamo=True, input_names=list(names), dynamic_shapes=shapes, verbose=False
    )
    return program.model_proto


def enliven(module: Any, inputs: tuple[Any, ...]) -> None:
    """Make every channel matter: no constant weights, norm statistics from data, layer scales of order one."""
    import torch
    from torch import nn

    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.is_floating_point() or parameter.numel() < 2 or parameter.std() > 1e-12:
                continue
            if parameter.ndim > 1 and parameter.flatten()[0] == 0:
                nn.init.normal_(parameter, std=0.05)
            elif abs(float(parameter.flatten()[0])) > 0.5 or 0 < abs(float(parameter.flatten()[0])) < 0.1:
                # Scales, and the tiny ones that damp layers; about one, deep networks would be chaotic.
                nn.init.uniform_(parameter, 0.2, 0.6)
            else:
                nn.init.normal_(parameter, std=0.2)
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    with torch.no_grad():
        for _ in range(2 if norms else 0):
            module(*(torch.cat([torch.randn_like(x)] * 4) if x.is_floating_point() else x for x in inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def share(names: Sequence[str]) -> dict[str, int]:
    """An opset for each name, so that all that the exporter writes take part."""
    return {name: LEGACY_OPSETS[k % len(LEGACY_OPSETS)] for k, name in enumerate(names)}


def _first_line(error: BaseException | None) -> str:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [""]
    return lines[0][:200]


def _root(error: BaseException | None) -> BaseException | None:
    """What an error came from: exporters wrap theirs several times."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return error
