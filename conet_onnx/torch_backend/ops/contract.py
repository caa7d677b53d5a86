"""Lower convolutions and matrix products."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node, Result, has
from conet_onnx.torch_backend.ops.padding import resolve, same_padding, torch_order
from conet_onnx.torch_backend.ops.registry import lowers

__all__ = ["convolve"]

_CONV: dict[int, Callable[..., Any]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Any]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@lowers("Conv")
def conv(b: Builder, node: Node) -> Result:
    """W: [out, in / group, *kernel]."""
    return convolve(b, node, b.tensor(node.inputs[0]), b.tensor(node.inputs[1]), b.optional(node, 2))


def convolve(b: Builder, node: Node, x: fx.Node, w: fx.Node, bias: fx.Node | None, weight: int = 1) -> fx.Node:
    """A convolution with a node's attributes, whose weight is one of its inputs. Unequal padding is its own step."""
    kernel, strides, dilations = _window(b, node, _CONV, weight)
    begin, end = resolve(b, node, kernel, strides, dilations)
    if begin is None or end is None:
        upper = node.attributes["auto_pad"] == "SAME_UPPER"
        x = b.call(same_padding, x, kernel, strides, dilations, upper, 0.0)
        begin = end = (0,) * len(kernel)
    if begin != end:
        x = b.call(F.pad, x, torch_order(begin, end))
        begin = (0,) * len(kernel)
    group = node.attributes.get("group", 1)
    return b.call(_CONV[len(kernel)], x, w, bias, strides, begin, dilations, group)


@lowers("ConvTranspose")
def conv_transpose(b: Builder, node: Node) -> Result:
    """W: [in, out / group, *kernel]. What padding cuts off the two ends may differ."""
    x, w, bias = b.tensor(node.inputs[0]), b.tensor(node.inputs[1]), b.optional(node, 2)
    kernel, strides, dilations = _window(b, node, _TRANSPOSED)
    extra = tuple(node.attributes.get("output_padding") or (0,) * len(kernel))
    begin, end = _cut(b, node, kernel, strides, dilations, extra)
    group = node.attributes.get("group", 1)
    # An end that is cut less than the beginning is output padding.
    more = tuple(o + p - e for o, p, e in zip(extra, begin, end, strict=True))
    fits = all(0 <= m < max(s, d) for m, s, d in zip(more, strides, dilations, strict=True))
    if fits:
        return b.call(_TRANSPOSED[len(kernel)], x, w, bias, strides, begin, more, group, dilations)
    if not all(o < max(s, d) for o, s, d in zip(extra, strides, dilations, strict=True)):
        raise b.unsupported(node, f"output_padding {extra} is not below strides {strides} or dilations {dilations}")
    made = b.call(_TRANSPOSED[len(kernel)], x, w, bias, strides, 0, extra, group, dilations)
    return b.call(F.pad, made, torch_order([-p for p in begin], [-e for e in end]))


def _window(
    b: Builder, node: Node, table: dict[int, Callable[..., Any]], weight: int = 1
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    kernel = b.shape(node, node.inputs[weight])[2:]
    if len(kernel) not in table or None in kernel:
        raise b.unsupported(node, f"a kernel of shape {kernel}; 1, 2 or 3 fixed axes can be trained")
    sizes = tuple(size for size in kernel if size is not None)
    ones = (1,) * len(sizes)
    strides, dilations = node.attributes.get("strides") or ones, node.attributes.get("dilations") or ones
    return sizes, tuple(strides), tuple(dilations)


def _cut(
    b: Builder,
    node: Node,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    extra: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How much is cut off each end of a transposed convolution's output (ONNX ConvTranspose-11)."""
    mode = node.attributes.get("auto_pad", "NOTSET") or "NOTSET"
    target = node.attributes.get("output_shape")
    if mode == "VALID" and not target:
        return (0,) * len(kernel), (0,) * len(kernel)
    if mode == "NOTSET" and not target:
        pads = node.attributes.get("pads") or (0,) * 2 * len(kernel)
        return tuple(pads[: len(kernel)]), tuple(pads[len(kernel) :])
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    if target:
        sizes = b.shape(node, node.inputs[0])[2:]
        if None in sizes:
            raise b.unsupported(node, "output_shape with an input whose size varies")
        full = [
            (size - 1) * s + r + o
            for size, s, r, o in zip(sizes, strides, reach, extra, strict=True)
            if size is not None
        ]
        total = [f - t for f, t in zip(full, target[-len(kernel) :], strict=True)]
    else:  # SAME: the output is `strides` times as large as the input
        total = [r - s + o for r, s, o in zip(reach, strides, extra, strict=True)]
    if min(total) < 0:
        raise b.unsupported(node, "an output larger than the kernel reaches")
    less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (less, more) if mode == "SAME_UPPER" else (more, less)


@lowers("MatMul")
def matmul(b: Builder, node: Node) -> Result:
    """As numpy's."""
    return b.call(torch.matmul, b.tensor(node.inputs[0]), b.tensor(node.inputs[1]))


@lowers("Einsum")
def einsum(b: Builder, node: Node) -> Result:
    """As torch's and numpy's; a letter may stand next to a space."""
    return b.call(torch.einsum, node.attributes["equation"].replace(" ", ""), *map(b.tensor, node.inputs))


@lowers("Gemm")
def gemm(b: Builder, node: Node) -> Result:
    """alpha · A' B' + beta · C, where C broadcasts; a linear layer where that is what it is."""
    first, second = b.tensor(node.inputs[0]), b.tensor(node.inputs[1])
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    transposed = bool(node.attributes.get("transB", 0))
    if node.attributes.get("transA", 0):
        first = b.call(torch.t, first)
    bias = has(node, 2) and beta != 0
    if alpha == 1 and (not bias or (beta == 1 and len(b.shape(node, node.inputs[2])) == 1 and _is_row(b, node))):
        weight = second if transposed else b.call(torch.t, second)
        return b.call(F.linear, first, weight, b.tensor(node.inputs[2]) if bias else None)
    second = b.call(torch.t, second) if transposed else second
    if bias:
        return b.call(torch.addmm, b.tensor(node.inputs[2]), first, second, beta=beta, alpha=alpha)
    return b.call(operator.mul, b.call(torch.mm, first, second), alpha)


def _is_row(b: Builder, node: Node) -> bool:
    """Whether C has one number for each output: one number for all would broadcast, which torch's linear does not."""
    weight = b.shape(node, node.inputs[1])
    return b.shape(node, node.inputs[2])[0] == weight[0 if node.attributes.get("transB", 0) else 1]
