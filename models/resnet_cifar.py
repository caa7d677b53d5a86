"""Residual networks for CIFAR-size images (He et al., 2016, "Deep Residual Learning", section 4.2), in torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["BLOCKS", "SHORTCUTS", "ResNet", "resnet8", "resnet20", "resnet32", "resnet56", "resnet110"]

BLOCKS = {8: 1, 20: 3, 32: 5, 56: 9, 110: 18}  # depth = 6n + 2, n blocks in each of three stages
SHORTCUTS = {
    "A": "zero-padded",
    "B": "1x1 convolution",
    "pad": "zero-padded in front, any widths",
    "none": "no shortcuts",
}
STEM = 16  # channels, where each convolution after it has a width of its own


class ZeroPad(nn.Module):
    """Shortcut A: every second pixel, and zero channels around the input's. No weights."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class FrontPad(nn.Module):
    """So many zero channels in front of the input's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, 0, 0, 0, self.channels, 0))


class Block(nn.Module):
    """Two 3x3 convolutions, of `middle` and `outputs` channels, around a shortcut; it gives `self.channels`."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.residual = shortcut != "none"
        self.channels = max(inputs, outputs) if shortcut == "pad" else outputs
        self.align = _front(outputs, self.channels)
        self.downsample: nn.Module = nn.Identity()
        if shortcut == "pad":
            pool = (nn.AvgPool2d(stride),) if stride != 1 else ()
            self.downsample = nn.Sequential(*pool, _front(inputs, self.channels))
        elif self.residual and (stride != 1 or inputs != outputs):
            self.downsample = (
                ZeroPad(inputs, outputs, stride)
                if shortcut == "A"
                else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.align(y) + self.downsample(x) if self.residual else y)


class ResNet(nn.Module):
    """A stem, three stages of `blocks` blocks at strides 1, 2, 2, a global average, a classifier.

    `shortcut` is one of SHORTCUTS: "A" (zero-padded around; widths must not fall), "B" (a 1x1 convolution where the
    size changes), "none" (a plain network), or "pad", as in the public code of Network Adjustment (Chen et al., 2020):
    the narrower of a block's output and its input gets zero channels in front up to the width of the other, so a block
    that is narrower than its input adds to the last of its input's channels, and the width never falls along the
    network; the shortcut of a stride averages 2x2 pixels, so sizes must divide by 4. (That code has no ReLU after the
    stem; this has, as He et al. have.)

    `widths` are the channels of the three stages; with "pad" and "none" they may also be those of each convolution
    after the stem, in order, which makes 6 * blocks. `stem` are the stem's: by default the first stage's, or 16 where
    each convolution has its own. Input [batch, channels, height, width], output logits [batch, classes]. Raises
    ValueError for an unknown shortcut, and for widths that do not fit.
    """

    def __init__(
        self,
        blocks: int,
        *,
        widths: Sequence[int] = (16, 32, 64),
        stem: int | None = None,
        channels: int = 3,
        classes: int = 10,
        shortcut: str = "A",
    ) -> None:
        super().__init__()
        pairs, first = list(_pairs(blocks, widths, shortcut)), stem or (widths[0] if len(widths) == 3 else STEM)
        if shortcut == "A" and [first, *widths] != sorted([first, *widths]):
            raise ValueError(f"widths {tuple(widths)}; expected three, not falling where shortcuts are zero-padded.")
        self.conv1 = nn.Conv2d(channels, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, pairs[:blocks], 1, shortcut)
        self.layer2 = _stage(self.layer1[-1].channels, pairs[blocks : 2 * blocks], 2, shortcut)
        self.layer3 = _stage(self.layer2[-1].channels, pairs[2 * blocks :], 2, shortcut)
        self.fc = nn.Linear(self.layer3[-1].channels, classes)
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
    """Three blocks a stage; 0.27M parameters, 40.6M MACs at 3x32x32 (40.8M with shortcuts B)."""
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


def _pairs(blocks: int, widths: Sequence[int], shortcut: str) -> Iterator[tuple[int, int]]:
    """The channels of each block's two convolutions."""
    if shortcut not in SHORTCUTS:
        known = ", ".join(f"{name!r} ({meaning})" for name, meaning in SHORTCUTS.items())
        raise ValueError(f"shortcut {shortcut!r}; expected one of {known}.")
    each = 6 * blocks if shortcut in ("pad", "none") else 3
    if len(widths) not in (3, each):
        many = f" or {each}, one for each convolution after the stem" if each != 3 else ""
        raise ValueError(f"widths {tuple(widths)}; expected three, one for each stage{many}.")
    if len(widths) == 3:
        return ((width, width) for width in widths for _ in range(blocks))
    return ((first, second) for first, second in zip(widths[::2], widths[1::2], strict=True))


def _stage(inputs: int, pairs: Sequence[tuple[int, int]], stride: int, shortcut: str) -> nn.Sequential:
    made: list[Block] = []
    for middle, outputs in pairs:
        made.append(Block(made[-1].channels if made else inputs, middle, outputs, 1 if made else stride, shortcut))
    return nn.Sequential(*made)


def _front(channels: int, wanted: int) -> nn.Module:
    return FrontPad(wanted - channels) if wanted > channels else nn.Identity()
