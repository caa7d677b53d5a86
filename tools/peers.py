"""Torch-Pruning beside conet-onnx: the groups of a network, and halving it, each on one thread.

Torch-Pruning reads the torch module, conet-onnx its export. Groups: DependencyGraph.build_dependency and all groups of
convolutions and linear layers, against `analyze` of a loaded file with known shapes. Halving: a BasePruner with l2
importance and its one step, in memory, against load, analyze, importance, plan, rewrite and save, file to file.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tools.measuring import Row

__all__ = ["beside"]

CAP = 120.0  # seconds: what takes longer is stopped
FASTER = 100  # times, where the peer is slow: many connections, attention
LIMITS = {"densenet201": 1 / FASTER, "swin_t": 1 / FASTER}
NETWORKS = (
    *("alexnet", "vgg16", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "densenet201"),
    *("squeezenet1_0", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_large", "regnet_x_400mf"),
    *("mnasnet1_0", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t"),
)


def beside(
    folder: Path, analysis: Callable[[Path], float], halving: Callable[[Path, Path], float], repeats: int
) -> Iterator[Row]:
    """Two rows a network; the peer is measured once, since it may take minutes."""
    for name in NETWORKS:
        path, out = folder / f"{name}.onnx", folder / "halved.onnx"
        _in_process(_export, name, str(path), cap=600.0)
        halving(path, out)  # what is imported late is imported here
        groups, step = _peer(name)
        for case, times, peer in (
            ("groups", [analysis(path) for _ in range(repeats)], groups),
            ("halved", [halving(path, out) for _ in range(repeats)], step),
        ):
            times.sort()
            what = "Torch-Pruning" if peer is not None else f"Torch-Pruning, stopped after {CAP:.0f} s"
            against = CAP if peer is None else peer
            ratios = [t / against for t in times]
            middle, low, high = (ratios[k * (len(ratios) - 1) // 4] for k in (2, 1, 3))
            limit = LIMITS.get(name, 1.0) if case == "groups" else 1.0
            yield Row("peers", f"{name}, {case}", middle * against, against, "s", what, middle, low, high, limit)
        path.unlink()


def _peer(name: str) -> tuple[float | None, float | None]:
    """Its seconds for the groups and for one step; None for what did not end. Raises RuntimeError where it failed."""
    said = _in_process(_prune, name, cap=CAP), _in_process(_prune, name, True, cap=CAP)
    if failed := [value for values in said for value in values if isinstance(value, str)]:
        raise RuntimeError(f"Torch-Pruning on {name}: {failed[0]}")
    groups, step = (values[0] if values else None for values in said)
    return groups, step


def _in_process(work: Callable[..., None], *arguments: Any, cap: float) -> list[Any]:
    """What a process of its own says before it ends or the time is over."""
    context = multiprocessing.get_context("spawn")
    listening, saying = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(saying, *arguments))
    process.start()
    saying.close()
    said, until = [], time.monotonic() + cap
    try:
        while listening.poll(max(0.0, until - time.monotonic())):
            said.append(listening.recv())
    except EOFError:
        pass
    process.kill()
    process.join()
    return said


def _export(said: Connection, name: str, path: str) -> None:
    import warnings

    import torch

    model, x = _network(name)
    warnings.simplefilter("ignore")  # the tracer warns of every Python integer
    torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"])
    said.send("done")


def _prune(said: Connection, name: str, whole: bool = False) -> None:
    import warnings

    import torch_pruning as tp
    from torch import nn

    model, x = _network(name)
    warnings.simplefilter("ignore")  # of parameters outside of layers
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    try:
        begun = time.perf_counter()
        if whole:
            importance = tp.importance.GroupMagnitudeImportance(p=2)
            tp.pruner.BasePruner(model, x, importance, pruning_ratio=0.5, ignored_layers=[last]).step()
        else:
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
            list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
        said.send(time.perf_counter() - begun)
    except Exception as error:  # whatever stops the peer
        said.send(f"{type(error).__name__}: {error}")


def _network(name: str) -> tuple[Any, Any]:
    import torch

    from tools.torchvision_schemas import define_missing_schemas

    torch.set_num_threads(1)
    torch.manual_seed(0)
    define_missing_schemas()
    from torchvision import models

    size = 299 if name == "inception_v3" else 224
    special = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, **special).eval(), torch.randn(1, 3, size, size)
