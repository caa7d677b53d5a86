"""The network that DARTS found for CIFAR-10 (Liu, Simonyan and Yang, 2019, figure 4: genotype DARTS_V2), in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["DARTS_V2", "Darts", "Genotype", "darts7", "darts20"]


@dataclass(frozen=True, slots=True)
class Genotype:
    """A normal and a reducing cell: for each node its two operations, each with the state it reads.

    States 0 and 1 are the outputs of the cell before the last and of the last, 2 to 5 the nodes in order; a node is
    the sum of its two operations, a cell's output all four nodes, concatenated.
    """

    normal: Sequence[tuple[str, int]]
    reduce: Sequence[tuple[str, int]]


DARTS_V2 = Genotype(
    normal=(
        *(("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 1), ("skip_connect", 0)),
        *(("skip_connect", 0), ("dil_conv_3x3", 2)),
    ),
    reduce=(
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1)),
        *(("skip_connect", 2), ("max_pool_3x3", 1)),
        *(("max_pool_3x3", 0), ("skip_connect", 2)),
        *(("skip_connect", 2), ("max_pool_3x3", 1)),
    ),
)
STEM = 3  # the stem has so many times the channels of a cell's node


class Fit(nn.Module):
    """ReLU, a 1x1 convolution, BatchNorm: a cell's input in the cell's width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(F.relu(x)))


class Halve(nn.Module):
    """ReLU, two 1x1 convolutions at stride 2, one a pixel further, concatenated, BatchNorm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.conv2 = nn.Conv2d(inputs, outputs - outputs // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        return self.norm(torch.cat((self.conv1(x), self.conv2(x[:, :, 1:, 1:])), 1))


class Separable(nn.Module):
    """ReLU, a depthwise 3x3 convolution, a 1x1 convolution, BatchNorm."""

    def __init__(self, channels: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, dilation, dilation, channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.pointwise(self.depthwise(F.relu(x))))


class Cell(nn.Module):
    """Four nodes over the outputs of the two cells before it, each brought to `channels` first."""

    def __init__(
        self, steps: Sequence[tuple[str, int]], inputs: tuple[int, int], channels: int, reduce: bool, after_reduce: bool
    ) -> None:
        super().__init__()
        self.steps = tuple(state for _, state in steps)
        self.fit0 = (Halve if after_reduce else Fit)(inputs[0], channels)
        self.fit1 = Fit(inputs[1], channels)
        self.ops = nn.ModuleList(_operation(name, channels, 2 if reduce and state < 2 else 1) for name, state in steps)

    def forward(self, before: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        states = [self.fit0(before), self.fit1(last)]
        for k in range(0, len(self.ops), 2):
            first, second = self.steps[k : k + 2]
            states.append(self.ops[k](states[first]) + self.ops[k + 1](states[second]))
        return torch.cat(states[2:], 1)


class Darts(nn.Module):
    """A stem, cells that halve the size and double the width at a third and two thirds, an average, a classifier.

    `channels` are those of a node in the first cells. No auxiliary head and no dropped paths: both are of the paper's
    training only. Input [batch, 3, height, width], sizes that divide by 4; output logits [batch, classes].
    """

    def __init__(
        self, cells: int, *, channels: int = 36, classes: int = 10, genotype: Genotype = DARTS_V2, image: int = 3
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(image, STEM * channels, 3, 1, 1, bias=False), nn.BatchNorm2d(STEM * channels)
        )
        inputs, after_reduce = (STEM * channels, STEM * channels), False
        self.cells = nn.ModuleList()
        for k in range(cells):
            reduce = k in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduce else 1
            steps = genotype.reduce if reduce else genotype.normal
            self.cells.append(Cell(steps, inputs, channels, reduce, after_reduce))
            inputs, after_reduce = (inputs[1], channels * len(steps) // 2), reduce
        self.fc = nn.Linear(inputs[1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = last = self.stem(x)
        for cell in self.cells:
            before, last = last, cell(before, last)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(last, 1), 1))


def darts7(*, channels: int = 16, classes: int = 10) -> Darts:
    """Seven cells, as CONETv2 uses it, at the 16 channels of DARTS's own search network."""
    return Darts(7, channels=channels, classes=classes)


def darts20(*, channels: int = 36, classes: int = 10) -> Darts:
    """The paper's network for CIFAR-10: 3.3M parameters at 36 channels."""
    return Darts(20, channels=channels, classes=classes)


def _operation(name: str, channels: int, stride: int) -> nn.Module:
    if name == "sep_conv_3x3":
        return nn.Sequential(Separable(channels, stride), Separable(channels, 1))
    if name == "dil_conv_3x3":
        return Separable(channels, stride, dilation=2)
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else Halve(channels, channels)
    raise ValueError(f"operation {name!r}; expected sep_conv_3x3, dil_conv_3x3, max_pool_3x3 or skip_connect.")
