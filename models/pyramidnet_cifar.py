"""Pyramidal residual networks for CIFAR-size images (Han et al., 2017), in torch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["PyramidNet", "pyramidnet20"]


class Block(nn.Module):
    """The paper's own unit (figure 6d): BatchNorm before and after two convolutions, a ReLU between them only."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.pool = nn.AvgPool2d(stride) if stride != 1 else nn.Identity()
        self.more = outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn3(self.conv2(F.relu(self.bn2(self.conv1(self.bn1(x))))))
        short = self.pool(x)
        return y + (F.pad(short, (0, 0, 0, 0, 0, self.more)) if self.more else short)


class PyramidNet(nn.Module):
    """A stem, three stages of `blocks` blocks at strides 1, 2, 2, BatchNorm, ReLU, a global average, a classifier.

    The additive form (equation 2): of N = 3 * blocks blocks the k-th has floor(stem + alpha * k / N) channels, so the
    last has stem + alpha. (The equation floors at each step, which would never grow where alpha < N; the authors'
    code adds up the fractions, as here.) Shortcuts are zero-padded behind (section 3.3), and averages of 2x2 pixels at
    a stride. Input [batch, channels, height, width], sizes that divide by 4; output logits [batch, classes].
    """

    def __init__(self, blocks: int, *, alpha: float = 48, stem: int = 16, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        count = 3 * blocks
        widths = [stem, *(int(stem + alpha * k / count) for k in range(1, count + 1))]
        if widths != sorted(widths):
            raise ValueError(f"alpha {alpha}; expected at least 0: shortcuts are zero-padded.")
        self.conv1 = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        strides = [2 if k in (blocks, 2 * blocks) else 1 for k in range(count)]
        self.blocks = nn.Sequential(*map(Block, widths[:-1], widths[1:], strides))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.blocks(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def pyramidnet20(*, alpha: float = 48, stem: int = 16, channels: int = 3, classes: int = 10) -> PyramidNet:
    """Three blocks a stage. Alpha 48 ends at 64 channels, as ResNet-20 does; Network Adjustment names no alpha."""
    return PyramidNet(3, alpha=alpha, stem=stem, channels=channels, classes=classes)
