"""Torch-Pruning on a network of models/catalogue.py whose weights are a file's: what bench_quality compares with.

Torch-Pruning takes padding with zero channels for an operator that keeps channels where they are, and the networks
that it leaves behind do not run. Such shortcuts are given to it as layers of their own (`Placed`), which its own
interface for layers of the user's allows: what goes in and what comes out is pruned apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from models.catalogue import built
from models.exporting import exported
from models.resnet_cifar import ZeroPad
from tools.torchvision_schemas import define_missing_schemas

__all__ = ["KINDS", "Placed", "module_of", "placed", "pruned"]

KINDS = {"tp-global": (True, "magnitude"), "tp-local": (False, "magnitude"), "tp-group": (True, "group")}


class Placed(nn.Module):
    """Every `stride`-th pixel, and of each output channel the input's at `places`, or zeros where that is -1."""

    def __init__(self, inputs: int, places: Sequence[int], stride: int) -> None:
        super().__init__()
        self.inputs, self.places, self.stride = inputs, list(places), stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        taken = [place for place in self.places if place >= 0]
        if taken == list(range(self.inputs)):
            first = self.places.index(0)
            if self.places[first : first + self.inputs] == taken:  # as the source has it: a Pad
                return F.pad(x, (0, 0, 0, 0, first, len(self.places) - first - self.inputs))
        index = [self.inputs if place < 0 else place for place in self.places]
        return F.pad(x, (0, 0, 0, 0, 0, 1))[:, torch.tensor(index)]


def placed(module: nn.Module) -> nn.Module:
    """The same function, with Placed for each shortcut of zero channels; the module itself is changed."""
    for name, child in list(module.named_modules()):
        for own, part in list(child.named_children()):
            if isinstance(part, ZeroPad):
                inputs = _inputs(module, f"{name}.{own}" if name else own)
                places = [*[-1] * part.before, *range(inputs), *[-1] * part.after]
                setattr(child, own, Placed(inputs, places, part.stride))
    return module


def module_of(source: Graph, network: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """The catalogue's network with the source's weights, by their names, and the shape of an image.

    Raises UsageError where there is no such network, or the file's weights are another one's.
    """
    define_missing_schemas()
    (image, *_), (scores, *_) = source.inputs, source.outputs
    classes, size = scores.shape[-1], image.shape[-1]
    module, shape = built(network, classes=int(classes), size=int(size))
    own = module.state_dict()
    arrays = {name: torch.from_numpy(np.array(source.array(name))) for name in source.weights if name in own}
    lacking = [name for name in own if name not in arrays and not name.endswith("num_batches_tracked")]
    other = [name for name, array in arrays.items() if array.shape != own[name].shape]
    if lacking or other:
        raise UsageError(
            f"{source.file} is not {network}: "
            + "; ".join(
                f"{what} {', '.join(names[:3])}"
                for what, names in (("it lacks", lacking), ("it has other sizes of", other))
                if names
            )
            + ". Name its network of models/catalogue.py with --network."
        )
    module.load_state_dict(arrays, strict=False)
    return module, shape


def pruned(module: nn.Module, shape: Sequence[int], method: str, ratio: float) -> Graph:
    """What Torch-Pruning leaves of a module in one step at a ratio, exported; the module is used up.

    `method` is one of KINDS: which channels go is decided over all layers together or in each alone, by the l2 norm of
    their filters in the first layer of a group ("magnitude"), or of all that a group has of them. The last linear layer
    keeps its outputs.
    """
    import torch_pruning as tp

    is_global, kind = KINDS[method]
    # MagnitudeImportance is GroupMagnitudeImportance by another name, and means a group's layers unless told otherwise.
    importance = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean" if kind == "group" else "first")
    module = placed(module.eval())
    pruner = (tp.pruner.GroupNormPruner if kind == "group" else tp.pruner.MagnitudePruner)(
        module,
        torch.zeros(1, *shape),
        importance=importance,
        global_pruning=is_global,
        pruning_ratio=ratio,
        ignored_layers=[m for m in module.modules() if isinstance(m, nn.Linear)][-1:],
        customized_pruners={Placed: _places_pruned()},
    )
    pruner.step()
    return Graph(exported(module, shape, keep_norms=True))


def _places_pruned() -> Any:
    """How Torch-Pruning prunes a Placed."""
    from torch_pruning.pruner.function import BasePruningFunc

    class Places(BasePruningFunc):  # type: ignore[misc]  # Torch-Pruning has no types
        def prune_out_channels(self, layer: Placed, idxs: Sequence[int]) -> Placed:
            gone = set(idxs)
            layer.places = [place for k, place in enumerate(layer.places) if k not in gone]
            return layer

        def prune_in_channels(self, layer: Placed, idxs: Sequence[int]) -> Placed:
            gone = set(idxs)
            kept = [k for k in range(layer.inputs) if k not in gone]
            new = {old: k for k, old in enumerate(kept)}
            layer.inputs, layer.places = len(kept), [new.get(place, -1) for place in layer.places]
            return layer

        def get_out_channels(self, layer: Placed) -> int:
            return len(layer.places)

        def get_in_channels(self, layer: Placed) -> int:
            return layer.inputs

    return Places()


def _inputs(module: nn.Module, name: str) -> int:
    """Channels that a block's shortcut takes: what the block's first convolution does."""
    block = module.get_submodule(name.rpartition(".")[0])
    return int(block.conv1.in_channels)
