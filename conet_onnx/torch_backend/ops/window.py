"""Lower pooling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node, Result
from conet_onnx.torch_backend.ops.padding import Sizes, resolve, same_padding, window_padding
from conet_onnx.torch_backend.ops.registry import lowers

__all__ = ["norm_of_windows"]

_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV: dict[int, Callable[..., Any]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@lowers("MaxPool")
def max_pool(b: Builder, node: Node) -> Result:
    """Padding never wins: it is minus infinity."""
    if b.uses_more(node):
        raise b.unsupported(node, "the indices of the maxima")
    x = b.tensor(node.inputs[0])
    kernel, strides, dilations, begin, end, ceil = _window(b, node, _MAX)
    pool = _MAX[len(kernel)]
    if begin is None or end is None:
        x = b.call(same_padding, x, kernel, strides, dilations, _upper(node), -math.inf)
        return b.call(pool, x, kernel, strides, 0, dilations)
    if begin == end and all(2 * p <= k for p, k in zip(begin, kernel, strict=True)):
        return b.call(pool, x, kernel, strides, begin, dilations, ceil_mode=ceil)
    x = b.call(window_padding, x, kernel, strides, dilations, begin, end, ceil, -math.inf)
    return b.call(pool, x, kernel, strides, 0, dilations)


@lowers("AveragePool")
def average_pool(b: Builder, node: Node) -> Result:
    """Padding counts only with `count_include_pad`; what rounding up adds never counts."""
    x = b.tensor(node.inputs[0])
    kernel, strides, dilations, begin, end, ceil = _window(b, node, _AVERAGE)
    include = bool(node.attributes.get("count_include_pad", 0))
    plain = set(dilations) == {1}
    if begin is not None and begin == end and plain and all(2 * p <= k for p, k in zip(begin, kernel, strict=True)):
        return b.call(_AVERAGE[len(kernel)], x, kernel, strides, begin, ceil, include)
    if begin is None or end is None:
        pads: tuple[Sizes, Sizes] | bool = _upper(node)
    else:
        pads = (begin, end)
    return b.call(average_of_windows, x, kernel, strides, dilations, pads, ceil, include)


def average_of_windows(
    x: torch.Tensor,
    kernel: Sizes,
    strides: Sizes,
    dilations: Sizes,
    pads: tuple[Sizes, Sizes] | bool,
    ceil: bool,
    include: bool,
) -> torch.Tensor:
    """The general average pooling: sums by a convolution with ones, divided by how many elements count.

    `pads` is (begin, end), or whether SAME padding puts the odd element at the end.
    """

    def pad(y: torch.Tensor, value: float) -> torch.Tensor:
        if isinstance(pads, bool):
            return same_padding(y, kernel, strides, dilations, pads, value)
        return window_padding(y, kernel, strides, dilations, *pads, ceil, value)

    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if include and not isinstance(pads, bool):
        # The padding counts, but not what is added to it so that the last window fits.
        begin, end = pads
        counted = F.pad(
            counted, [amount for pair in zip(begin[::-1], end[::-1], strict=True) for amount in pair], value=1.0
        )
        none = (0,) * len(kernel)
        padded = pad(x, 0.0)
        short = [n - m for n, m in zip(padded.shape[2:], counted.shape[2:], strict=True)]
        counted = F.pad(counted, [amount for n in reversed(short) for amount in (none[0], n)])
    else:
        padded, counted = pad(x, 0.0), pad(counted, 1.0 if include else 0.0)
    ones = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    conv = _CONV[len(kernel)]
    sums = conv(padded.flatten(0, 1).unsqueeze(1), ones, stride=strides, dilation=dilations)
    counts = conv(counted, ones, stride=strides, dilation=dilations)
    return torch.reshape(sums / counts, (x.shape[0], x.shape[1], *sums.shape[2:]))


@lowers("LpPool")
def lp_pool(b: Builder, node: Node) -> Result:
    """ONNX LpPool-2 to 22: the p-norm of each window; padding is zero."""
    kernel, strides, dilations, begin, end, ceil = _window(b, node, _CONV)
    pads = _upper(node) if begin is None or end is None else (begin, end)
    p = node.attributes.get("p", 2)
    return b.call(norm_of_windows, b.tensor(node.inputs[0]), kernel, strides, dilations, pads, ceil, p)


def norm_of_windows(
    x: torch.Tensor,
    kernel: Sizes,
    strides: Sizes,
    dilations: Sizes,
    pads: tuple[Sizes, Sizes] | bool,
    ceil: bool,
    p: int,
) -> torch.Tensor:
    """Sums of powers by a convolution with ones, and their root; `pads` is as in `average_of_windows`."""
    if isinstance(pads, bool):
        padded = same_padding(x, kernel, strides, dilations, pads, 0.0)
    else:
        padded = window_padding(x, kernel, strides, dilations, *pads, ceil, 0.0)
    ones = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    powers = padded.abs().pow(p).flatten(0, 1).unsqueeze(1)
    sums = _CONV[len(kernel)](powers, ones, stride=strides, dilation=dilations)
    sums = torch.reshape(sums, (x.shape[0], x.shape[1], *sums.shape[2:]))
    empty = sums == 0  # the root has no gradient there
    return torch.where(empty, sums, torch.where(empty, 1, sums).pow(1 / p))


@lowers("GlobalAveragePool", "GlobalMaxPool")
def global_pool(b: Builder, node: Node) -> Result:
    """One number a channel; the axes stay."""
    axes = tuple(range(2, b.rank(node, node.inputs[0])))
    x = b.tensor(node.inputs[0])
    return b.call(torch.mean if node.op == "GlobalAveragePool" else torch.amax, x, axes, keepdim=True)


@lowers("LRN")
def local_response_norm(b: Builder, node: Node) -> Result:
    """Over neighbouring channels."""
    size = node.attributes["size"]
    if size % 2 == 0:
        raise b.unsupported(node, f"an even window ({size})")
    alpha, beta = node.attributes.get("alpha", 1e-4), node.attributes.get("beta", 0.75)
    return b.call(F.local_response_norm, b.tensor(node.inputs[0]), size, alpha, beta, node.attributes.get("bias", 1.0))


def _window(
    b: Builder, node: Node, table: dict[int, Callable[..., Any]]
) -> tuple[Sizes, Sizes, Sizes, Sizes | None, Sizes | None, bool]:
    kernel = tuple(node.attributes["kernel_shape"])
    if len(kernel) not in table:
        raise b.unsupported(node, f"a window of shape {kernel}; 1, 2 or 3 axes can be trained")
    ones = (1,) * len(kernel)
    strides = tuple(node.attributes.get("strides") or ones)
    dilations = tuple(node.attributes.get("dilations") or ones)
    return (
        kernel,
        strides,
        dilations,
        *resolve(b, node, kernel, strides, dilations),
        bool(node.attributes.get("ceil_mode", 0)),
    )


def _upper(node: Node) -> bool:
    return str(node.attributes.get("auto_pad")) == "SAME_UPPER"
