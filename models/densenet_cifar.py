"""Densely connected networks for CIFAR-size images (Huang et al., 2017, table 2), in torch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["DenseNet", "densenet40"]


class Layer(nn.Module):
    """BatchNorm, ReLU, a 3x3 convolution: its channels come after the input's."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, self.conv(F.relu(self.norm(x)))), 1)


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution that keeps the width, and averages of 2x2 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """A stem, three blocks of `layers` layers with transitions between them, a global average, a classifier.

    Without bottlenecks and without compression: the basic DenseNet of the paper. Each layer makes `growth` channels,
    the stem `stem`. Input [batch, channels, height, width], sizes that divide by 4; output logits [batch, classes].
    """

    def __init__(self, layers: int, *, growth: int = 12, stem: int = 16, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        widths = [stem + growth * layers * block for block in range(4)]
        self.block1 = _block(widths[0], layers, growth)
        self.transition1 = Transition(widths[1])
        self.block2 = _block(widths[1], layers, growth)
        self.transition2 = Transition(widths[2])
        self.block3 = _block(widths[2], layers, growth)
        self.norm = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.transition1(self.block1(self.conv1(x)))
        x = self.block3(self.transition2(self.block2(x)))
        x = F.relu(self.norm(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def densenet40(*, growth: int = 12, stem: int = 16, channels: int = 3, classes: int = 10) -> DenseNet:
    """Twelve layers a block: 3 * 12 + 4 = 40; 1.0M parameters at growth 12."""
    return DenseNet(12, growth=growth, stem=stem, channels=channels, classes=classes)


def _block(inputs: int, layers: int, growth: int) -> nn.Sequential:
    return nn.Sequential(*(Layer(inputs + growth * k, growth) for k in range(layers)))
