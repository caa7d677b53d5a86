"""The reference networks by name: what builds each, from which paper, and what is free in it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn

from conet_onnx.errors import UsageError
from models import torchvision_networks as tv
from models.darts_cifar import Darts
from models.densenet_cifar import densenet40
from models.pyramidnet_cifar import pyramidnet20
from models.resnet_cifar import BLOCKS, ResNet

__all__ = ["NETWORKS", "Network", "built"]

SMALLEST = 8  # pixels: below, nothing is left after three or four strides


@dataclass(frozen=True, slots=True)
class Network:
    """A network: `build(classes=, size=)`, and `width=` where it `scales`; by default at the paper's setting.

    Heights and widths of its images must divide by `divisor`.
    """

    build: Callable[..., nn.Module]
    paper: str
    classes: int = 10
    size: int = 32
    scales: bool = True
    divisor: int = 1


def built(
    name: str, *, classes: int | None = None, size: int | None = None, width: float = 1.0
) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network of that name in torch, with random weights, and the shape of one of its images.

    Raises UsageError for an unknown name, and for settings that it cannot have.
    """
    if name not in NETWORKS:
        close = difflib.get_close_matches(name.lower(), NETWORKS)
        hint = f" Did you mean {' or '.join(close)}?" if close else f" There are {', '.join(NETWORKS)}."
        raise UsageError(f"There is no network {name!r}.{hint}")
    network = NETWORKS[name]
    classes, size = network.classes if classes is None else classes, network.size if size is None else size
    if classes < 1:
        raise UsageError(f"{name}: {classes} classes; expected at least one.")
    if size < SMALLEST or size % network.divisor:
        many = f" that divides by {network.divisor}" if network.divisor > 1 else ""
        raise UsageError(f"{name}: images of {size} pixels; expected a size from {SMALLEST}{many}.")
    if width <= 0 or (width != 1 and not network.scales):
        what = "expected a positive multiplier" if network.scales else "its paper has one width; leave it out"
        raise UsageError(f"{name}: width {width:g}; {what}.")
    try:
        model = network.build(classes=classes, size=size, **({"width": width} if network.scales else {}))
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
    return model, (3, size, size)


def _times(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _residual(depth: int, shortcut: str, times: float, *, classes: int, size: int, width: float) -> ResNet:
    widths = [_times(channels, times * width) for channels in (16, 32, 64)]
    return ResNet(BLOCKS[depth], widths=widths, classes=classes, shortcut=shortcut)


def _dense(*, classes: int, size: int, width: float) -> nn.Module:
    return densenet40(growth=_times(12, width), stem=_times(16, width), classes=classes)


def _pyramid(*, classes: int, size: int, width: float) -> nn.Module:
    return pyramidnet20(alpha=48 * width, stem=_times(16, width), classes=classes)


def _darts(cells: int, channels: int, *, classes: int, size: int, width: float) -> nn.Module:
    return Darts(cells, channels=_times(channels, width), classes=classes)


def _named() -> Iterator[tuple[str, Network]]:
    he, adjustment = "He et al., 2016", "Chen et al., 2020"
    for depth in (20, 32, 56, 110):
        for times in (1, 2, 4):
            label = f"-{times}x" if times > 1 else ""
            yield f"resnet{depth}{label}", Network(partial(_residual, depth, "A", times), he)
        yield f"resnet{depth}-padded", Network(partial(_residual, depth, "pad", 1), adjustment, 100, divisor=4)
    yield "plain20", Network(partial(_residual, 20, "none", 1), he)
    yield "densenet40", Network(_dense, "Huang et al., 2017")
    yield "pyramidnet20", Network(_pyramid, "Han et al., 2017", divisor=4)
    yield "darts7", Network(partial(_darts, 7, 16), "Liu et al., 2019", divisor=4)
    yield "darts20", Network(partial(_darts, 20, 36), "Liu et al., 2019", divisor=4)
    yield "resnet18", Network(tv.resnet18, he, 1000, 224, scales=False)
    yield "resnet34", Network(tv.resnet34, he, 100, 32, scales=False)
    yield "resnext50", Network(tv.resnext50, "Xie et al., 2017", 100)
    yield "mobilenet_v2", Network(tv.mobilenet_v2, "Sandler et al., 2018", 100)
    yield "shufflenet_v2", Network(tv.shufflenet_v2, "Ma et al., 2018", 100)
    yield "squeezenet", Network(tv.squeezenet, "Iandola et al., 2016", 100, scales=False)
    yield "mnasnet", Network(tv.mnasnet, "Tan et al., 2019", 1000, 224)


NETWORKS = dict(_named())
