"""Statistics of a resized model, measured again: those of BatchNormalization, and what folded ones have become.

A BatchNormalization normalises by what its input was in training; with fewer channels before it, its input is another.
Li et al. (2020, EagleEye, arXiv:2007.02491) measure it again. Where it was folded into a layer, the same is said by the
layer's outputs: they get the mean and variance back that they had in the source (of the mean alone: bias correction,
Nagel et al., 2019, arXiv:1906.04721, section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from conet_onnx.graph import Graph
from conet_onnx.plans import Take, WidthPlan
from conet_onnx.torch_backend.known import Array
from conet_onnx.torch_backend.lower import from_torch, lower
from conet_onnx.torch_backend.ops.normalize import BatchNormalization
from conet_onnx.torch_backend.reconstruction import Layer, Steps, layer_of

__all__ = ["Recalibration", "recalibrate"]

FLAT = 1e-12  # a variance, over the mean square, below which a channel is a constant


@dataclass(frozen=True, slots=True)
class Recalibration:
    """A model with new statistics; how many BatchNormalizations were measured, and which weights were rescaled."""

    graph: Graph
    norms: int
    layers: tuple[str, ...]


def recalibrate(
    source: Graph,
    resized: Graph,
    plan: WidthPlan,
    shrunk: Iterable[str],
    batches: Sequence[Mapping[str, Array]],
    *,
    device: torch.device | None = None,
) -> Recalibration:
    """Measure statistics on some inputs, in the order in which the model computes, all before them settled already.

    Every BatchNormalization of `resized` that has statistics of its own gets the mean and the variance, over all
    samples and places, of its input. Each layer of the `shrunk` weights that none of them follows is rescaled, weight
    and bias, so that each channel's mean and variance are those of the source (`resized` is `source` by `plan`); that
    needs a bias that nobody else reads, and a layer that torch knows as one (reconstruction.layer_of). Nothing is
    trained, and labels are not needed. `batches` hold an array for each input. Raises UnsupportedOp where torch
    cannot compute a model.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher, student = (lower(graph).to(device) for graph in (source, resized))
    teacher.eval()
    student.eval()
    feeds = [tuple(torch.from_numpy(batch[v.name]).to(device) for v in source.inputs) for batch in batches]
    norms = {node for node in student.graph.nodes if _is_norm(student, node)}
    tasks = dict(_tasks(teacher, student, plan, shrunk, norms))
    done: list[str] = []
    with torch.no_grad():
        run = Steps(student, feeds)
        model = Steps(teacher, feeds) if tasks else None
        for node in run.nodes:
            if node in norms:
                mean, variance = _moments(run.values(_given(node, 0)), 1)
                for k, value in ((3, mean), (4, variance)):
                    held = getattr(student, str(_given(node, k).target))
                    held.copy_(value.to(held.dtype))
            if node in tasks and model is not None:
                theirs, ours, take = tasks[node]
                model.until(theirs.node)
                if _match(ours, run.ahead(node), [theirs.kept(y, take) for y in model.values(theirs.node)]):
                    done.append(ours.tensor)
            run.step(node)
    return Recalibration(from_torch(resized, student), len(norms), tuple(done))


def _tasks(
    teacher: fx.GraphModule, student: fx.GraphModule, plan: WidthPlan, shrunk: Iterable[str], norms: set[fx.Node]
) -> Iterable[tuple[fx.Node, tuple[Layer, Layer, Take]]]:
    for tensor in shrunk:
        take = plan.initializers.get(tensor)
        theirs, ours = (layer_of(module, tensor) for module in (teacher, student))
        if not (isinstance(theirs, Layer) and isinstance(ours, Layer) and isinstance(take, Take)):
            continue
        if ours.free and ours.bias is not None and norms.isdisjoint(ours.node.users):
            yield ours.node, (theirs, ours, take)


def _match(layer: Layer, found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
    """Rescale a layer by what it says and what it is to say; False where one of the two is not finite."""
    axis = 1 if layer.convolves else -1
    (mean, variance), (aim, spread) = _moments(found, axis), _moments(wanted, axis)
    if layer.bias is None or not all(bool(t.isfinite().all()) for t in (mean, variance, aim, spread)):
        return False
    alive = (variance > FLAT * (variance + mean.square())) & (spread > FLAT * (spread + aim.square()))
    scale = torch.where(alive, (spread / torch.where(alive, variance, 1.0)).sqrt(), 1.0)
    matrices = layer.matrices() * scale.reshape(layer.groups, -1, 1)
    layer.weight.copy_(layer.stored(matrices))
    bias = (layer.bias.double().flatten() - mean) * scale + aim
    layer.bias.copy_(bias.reshape(layer.bias.shape))
    return True


def _moments(values: Sequence[torch.Tensor], axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel over all batches, samples and places, in double precision."""
    flat = [value.movedim(axis, 0).flatten(1).double() for value in values]
    count = sum(value.shape[1] for value in flat)
    mean = torch.stack([value.sum(1) for value in flat]).sum(0) / count
    squares = torch.stack([(value - mean[:, None]).square().sum(1) for value in flat]).sum(0)
    return mean, squares / count


def _is_norm(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), BatchNormalization)


def _given(node: fx.Node, k: int) -> Any:
    return node.args[k]
