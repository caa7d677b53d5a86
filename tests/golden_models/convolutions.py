"""Convolutional blocks as the libraries that are not installed here write them, each in a small network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["MODELS"]

Made = tuple[nn.Module, tuple[Any, ...]]
Tensor = torch.Tensor


def conv(i: int, o: int, k: int = 3, s: int = 1, g: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o), nn.ReLU())


def network(c: int, *blocks: nn.Module, out: int | None = None) -> Made:
    """A stem, the blocks, and a head."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out or c, 5)]
    return nn.Sequential(conv(3, c, 3, 2), *blocks, *head), (torch.randn(2, 3, 16, 16),)


class GlobalResponse(nn.Module):
    """ConvNeXtV2's block: channels last, and each channel's norm over the mean of all channels' norms."""

    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(c, c, 7, 1, 3, groups=c), nn.LayerNorm(c)
        self.up, self.down = nn.Linear(c, hidden), nn.Linear(hidden, c)
        self.gamma, self.beta = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1))))
        size = y.norm(p=2, dim=(1, 2), keepdim=True)
        y = y + torch.addcmul(self.beta, self.gamma, y * (size / (size.mean(-1, keepdim=True) + 1e-6)))
        return x + self.down(y).permute(0, 3, 1, 2)


class Ghost(nn.Module):
    """Half of the channels by a convolution, the other half from those, cheaply; cut to the number wanted."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        half = (o + 1) // 2
        self.o, self.primary, self.cheap = o, conv(i, half, 1), conv(half, half, 3, 1, half)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat((x, self.cheap(x)), 1)[:, : self.o]


class GhostBottleneck(nn.Module):
    def __init__(self, i: int, hidden: int, o: int) -> None:
        super().__init__()
        self.first, self.second = Ghost(i, hidden), Ghost(hidden, o)
        self.shortcut = conv(i, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.shortcut(x)


class SplitAttention(nn.Module):
    """ResNeSt: two sets of channels by one grouped convolution, weighted against each other by a softmax."""

    def __init__(self, c: int, radix: int = 2, hidden: int = 6) -> None:
        super().__init__()
        self.radix, self.c = radix, c
        self.conv, self.bn = nn.Conv2d(c, c * radix, 3, 1, 1, groups=radix, bias=False), nn.BatchNorm2d(c * radix)
        self.fc1, self.fc2 = nn.Conv2d(c, hidden, 1), nn.Conv2d(hidden, c * radix, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        n, _, h, w = x.shape
        x = x.reshape(n, self.radix, self.c, h, w)
        gap = x.sum(1).mean((2, 3), keepdim=True)
        weights = self.fc2(F.relu(self.fc1(gap))).view(n, 1, self.radix, -1).transpose(1, 2).softmax(1)
        return (x * weights.reshape(n, self.radix, self.c, 1, 1)).sum(1)


class Neighbours(nn.Module):
    """ECA: a gate for each channel from those beside it."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.first, self.gate, self.last = conv(i, o), nn.Conv1d(1, 1, 3, padding=1, bias=False), conv(o, i)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        gate = self.gate(y.mean((2, 3)).unsqueeze(1)).view(y.shape[0], -1, 1, 1).sigmoid()
        return x + self.last(y * gate)


class Standardised(nn.Conv2d):
    """A convolution whose kernels are standardised by BatchNorm while the model runs, as in timm."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, eps=1e-6)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardisedBlock(nn.Module):
    """As in BiT: group norms, and standardised kernels."""

    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList((nn.GroupNorm(2, c), nn.GroupNorm(2, hidden)))
        self.first, self.second = Standardised(c, hidden, 1), Standardised(hidden, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(F.relu(self.norms[0](x)))
        return x + self.second(F.relu(self.norms[1](y)))


class PaddedShortcut(nn.Module):
    """ResNet on CIFAR: every second place, and zeros for the new channels."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.more, self.first = o - i, conv(i, o, 3, 2)
        self.second, self.bn = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return F.relu(self.bn(self.second(self.first(x))) + short)


def grn() -> Made:
    return network(8, GlobalResponse(8, 16), GlobalResponse(8, 12))


def ghost() -> Made:
    return network(8, GhostBottleneck(8, 15, 12), GhostBottleneck(12, 16, 12), out=12)


def split_attention() -> Made:
    return network(8, SplitAttention(8), conv(8, 12, 1), out=12)


def eca() -> Made:
    return network(8, Neighbours(8, 12))


def standardised() -> Made:
    return network(8, StandardisedBlock(8, 12), conv(8, 12, 1), out=12)


def padded_shortcut() -> Made:
    return network(8, PaddedShortcut(8, 12), PaddedShortcut(12, 16), out=16)


MODELS = {
    "conv_next_v2": grn,
    "ghost": ghost,
    "split_attention": split_attention,
    "eca": eca,
    "standardised": standardised,
    "padded_shortcut": padded_shortcut,
}
