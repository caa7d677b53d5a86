"""Residual networks for CIFAR-size images (He et al., 2016, "Deep Residual Learning", section 4.2), in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["BLOCKS", "ResNet", "resnet8", "resnet20", "resnet32", "resnet56", "resnet110"]

BLOCKS = {8: 1, 20: 3, 32: 5, 56: 9, 110: 18}  # depth = 6n + 2, n blocks in each of three stages


class ZeroPad(nn.Module):
    """Shortcut A: every second pixel, and zero channels around the input's. No weights."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = (
                ZeroPad(inputs, outputs, stride)
                if shortcut == "A"
                else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet(nn.Module):
    """A stem, three stages of `blocks` blocks at strides 1, 2, 2, a global average, a classifier.

    `widths` are the channels of the stages (the stem has the first's). `shortcut` is "A" (zero-padded; widths must not
    fall) or "B" (a 1x1 convolution where the size changes). Input [batch, channels, height, width], output logits
    [batch, classes].
    """

    def __init__(
        self,
        blocks: int,
        *,
        widths: Sequence[int] = (16, 32, 64),
        channels: int = 3,
        classes: int = 10,
        shortcut: str = "A",
    ) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut {shortcut!r}; expected 'A' (zero-padded) or 'B' (1x1 convolution).")
        if len(widths) != 3 or (shortcut == "A" and list(widths) != sorted(widths)):
            raise ValueError(f"widths {tuple(widths)}; expected three, not falling where shortcuts are zero-padded.")
        first, second, third = widths
        self.conv1 = nn.Conv2d(channels, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, 1, blocks, shortcut)
        self.layer2 = _stage(first, second, 2, blocks, shortcut)
        self.layer3 = _stage(second, third, 2, blocks, shortcut)
        self.fc = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def resnet8(
    *, widths: Sequence[int] = (16, 32, 64), channels: int = 3, classes: int = 10, shortcut: str = "A"
) -> ResNet:
    """One block a stage."""
    return ResNet(BLOCKS[8], widths=widths, channels=channels, classes=classes, shortcut=shortcut)


def resnet20(
    *, widths: Sequence[int] = (16, 32, 64), channels: int = 3, classes: int = 10, shortcut: str = "A"
) -> ResNet:
    """Three blocks a stage; 0.27M parameters, 41M MACs at 3x32x32."""
    return ResNet(BLOCKS[20], widths=widths, channels=channels, classes=classes, shortcut=shortcut)


def resnet32(
    *, widths: Sequence[int] = (16, 32, 64), channels: int = 3, classes: int = 10, shortcut: str = "A"
) -> ResNet:
    """Five blocks a stage; 0.46M parameters."""
    return ResNet(BLOCKS[32], widths=widths, channels=channels, classes=classes, shortcut=shortcut)


def resnet56(
    *, widths: Sequence[int] = (16, 32, 64), channels: int = 3, classes: int = 10, shortcut: str = "A"
) -> ResNet:
    """Nine blocks a stage; 0.85M parameters."""
    return ResNet(BLOCKS[56], widths=widths, channels=channels, classes=classes, shortcut=shortcut)


def resnet110(
    *, widths: Sequence[int] = (16, 32, 64), channels: int = 3, classes: int = 10, shortcut: str = "A"
) -> ResNet:
    """Eighteen blocks a stage; 1.7M parameters."""
    return ResNet(BLOCKS[110], widths=widths, channels=channels, classes=classes, shortcut=shortcut)


def _stage(inputs: int, outputs: int, stride: int, blocks: int, shortcut: str) -> nn.Sequential:
    first = Block(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(Block(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)))
