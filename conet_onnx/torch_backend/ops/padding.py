"""Padding around windows: what ONNX says in three ways, as numbers or, where sizes vary, as code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node

__all__ = ["resolve", "same_padding", "torch_order", "window_padding"]

Sizes = tuple[int, ...]


def resolve(
    b: Builder, node: Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[Sizes, Sizes] | tuple[None, None]:
    """Padding at the beginning and end of each axis; None where SAME depends on sizes that vary."""
    none = (0,) * len(kernel)
    mode = node.attributes.get("auto_pad", "NOTSET") or "NOTSET"
    if mode == "VALID":
        return none, none
    if mode == "NOTSET":
        pads = tuple(node.attributes.get("pads") or none * 2)
        return pads[: len(kernel)], pads[len(kernel) :]
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise b.unsupported(node, f"auto_pad {mode!r}")
    sizes = b.shape(node, node.inputs[0])[2:]
    begin, end = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        if size is None and s != 1:
            return None, None
        low, high = _same(1 if size is None else size, k, s, d, mode == "SAME_UPPER")
        begin.append(low)
        end.append(high)
    return tuple(begin), tuple(end)


def torch_order(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """The last axis first, as torch.nn.functional.pad has it."""
    return [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]


def same_padding(
    x: torch.Tensor, kernel: Sizes, strides: Sizes, dilations: Sizes, upper: bool, value: float
) -> torch.Tensor:
    """Pad so that the output's size is the input's divided by the stride, rounded up (ONNX auto_pad SAME_*)."""
    pairs = [_same(n, k, s, d, upper) for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)]
    return F.pad(x, torch_order([p for p, _ in pairs], [e for _, e in pairs]), value=value)


def window_padding(
    x: torch.Tensor,
    kernel: Sizes,
    strides: Sizes,
    dilations: Sizes,
    begin: Sizes,
    end: Sizes,
    ceil: bool,
    value: float,
) -> torch.Tensor:
    """Pad so that windows fit exactly: rounding up adds at the end, rounding down cuts off what no window reaches."""
    last = []
    for n, k, s, d, p, e in zip(x.shape[2:], kernel, strides, dilations, begin, end, strict=True):
        reach = d * (k - 1) + 1
        steps = n + p + e - reach
        count = (-(-steps // s) if ceil else steps // s) + 1
        if ceil and (count - 1) * s >= n + p:  # a window must begin inside the input or its first padding
            count -= 1
        last.append((count - 1) * s + reach - n - p)
    return F.pad(x, torch_order(begin, last), value=value)


def _same(size: int, kernel: int, stride: int, dilation: int, upper: bool) -> tuple[int, int]:
    count = -(-size // stride)
    total = max(0, (count - 1) * stride + dilation * (kernel - 1) + 1 - size)
    less, more = total // 2, total - total // 2
    return (less, more) if upper else (more, less)
