"""ONNX exports of torchvision's networks with random weights and a signal that is alive, made once per machine."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from conet_onnx.graph import Graph
from conet_onnx.loading import load

__all__ = ["MODELS", "SIZE", "example", "file", "graph", "module", "onnx_model"]

MODELS: tuple[str, ...] = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "densenet121",
    "squeezenet1_0",
    "shufflenet_v2_x0_5",
    "googlenet",
    "efficientnet_b0",
    "regnet_y_400mf",
    "deeplabv3_mobilenet_v3_large",
)
SIZE = 64  # height and width of the inputs
CLASSES = 10
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Only(nn.Module):
    """Segmentation networks return a dictionary; this returns its entry `out`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)["out"]


@functools.cache
def module(name: str) -> nn.Module:
    """The torch network in eval mode; shared by all who ask in this process, so copy it before changing it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(name))
        model = _build(name)
        _enliven(model)
    return model


def example(name: str, batch: int = 2) -> np.ndarray:
    """A seeded input, [batch, 3, SIZE, SIZE], standard normal; the first rows are the same for every batch size."""
    return np.random.default_rng(_seed(name)).standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)


@functools.cache
def onnx_model(
    name: str, exporter: str = "legacy", dynamic_batch: bool = False, keep_norms: bool = False
) -> onnx.ModelProto:
    """The model in `file` of the same arguments; shared in this process, never to be changed."""
    return onnx.load(file(name, exporter, dynamic_batch, keep_norms))


def graph(name: str, exporter: str = "legacy", dynamic_batch: bool = False, keep_norms: bool = False) -> Graph:
    """The model in `file` of the same arguments, loaded as users load it."""
    return load(file(name, exporter, dynamic_batch, keep_norms))


def file(name: str, exporter: str = "legacy", dynamic_batch: bool = False, keep_norms: bool = False) -> Path:
    """An ONNX file of the network: input `x`, output `y`, batch 2 or symbolic.

    `exporter` is "legacy" (TorchScript) or "dynamo". Exporters may fold BatchNormalization into convolutions;
    with `keep_norms` the nodes stay.
    """
    path = (
        _cache() / f"{name}-{exporter}-{'dynamic' if dynamic_batch else 'static'}{'-norms' if keep_norms else ''}.onnx"
    )
    if not path.exists():
        made = EXPORTERS[exporter](module(name), torch.from_numpy(example(name)), dynamic_batch, keep_norms)
        handle, part = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(made.SerializeToString())
        os.replace(part, path)
    return path


def _legacy(model: nn.Module, x: torch.Tensor, dynamic_batch: bool, keep_norms: bool) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated, and its tracer warns of every Python integer
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(
            model,
            (x,),
            path,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}} if dynamic_batch else None,
            training=torch.onnx.TrainingMode.PRESERVE if keep_norms else torch.onnx.TrainingMode.EVAL,
            do_constant_folding=not keep_norms,
        )
        return onnx.load(path)


def _dynamo(model: nn.Module, x: torch.Tensor, dynamic_batch: bool, keep_norms: bool) -> onnx.ModelProto:
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants_ir

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            model,
            (x,),
            dynamo=True,
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic_batch else None,
            optimize=not keep_norms,
            verbose=False,
        )
    if keep_norms:  # the exporter's own optimiser folds norms; without it, even zero biases are computed by nodes
        fold_constants_ir(program.model)
        RemoveUnusedNodesPass()(program.model)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program.model)
    return program.model_proto


EXPORTERS: dict[str, Callable[[nn.Module, torch.Tensor, bool, bool], onnx.ModelProto]] = {
    "legacy": _legacy,
    "dynamo": _dynamo,
}


def _build(name: str) -> nn.Module:
    from tools.torchvision_schemas import define_missing_schemas

    define_missing_schemas()
    from torchvision import models

    special: dict[str, dict[str, Any]] = {
        "googlenet": {"aux_logits": False, "init_weights": True},
        "deeplabv3_mobilenet_v3_large": {"weights_backbone": None, "aux_loss": False},
    }
    classes = 21 if name.startswith("deeplab") else CLASSES
    model = models.get_model(name, weights=None, num_classes=classes, **special.get(name, {}))
    return Only(model) if name.startswith("deeplab") else model


def _enliven(model: nn.Module) -> None:
    """Make every channel matter: random affine weights, statistics from data, layer scales of order one."""
    for key, parameter in model.named_parameters():
        if key.endswith(("layer_scale", "gamma")):
            nn.init.uniform_(parameter, 0.5, 1.5)
    norms = [m for m in model.modules() if isinstance(m, NORMS)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    with torch.no_grad():
        for _ in range(3 if norms else 0):
            model(torch.randn(8, 3, SIZE, SIZE))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


@functools.cache
def _cache() -> Path:
    """A folder that is new for every version of torch and of this file."""
    key = hashlib.sha256(torch.__version__.encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"conet-onnx-zoo-{os.getuid()}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
