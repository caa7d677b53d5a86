"""Lower operators on matrices, on bits, and the losses that a training graph ends in."""

from __future__ import annotations

import torch
from torch import fx
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node, Result
from conet_onnx.torch_backend.ops.registry import lowers
from conet_onnx.torch_backend.weights import onnx_dtype, torch_dtype

__all__ = ["eye_like", "loss_of", "shifted"]


@lowers("Det")
def det(b: Builder, node: Node) -> Result:
    """ONNX Det-11, 22: of the last two axes."""
    return b.call(torch.linalg.det, b.tensor(node.inputs[0]))


@lowers("EyeLike")
def eye_like_node(b: Builder, node: Node) -> Result:
    """ONNX EyeLike-9, 22: ones on the k-th diagonal of a matrix of the input's size."""
    dtype = torch_dtype(onnx_dtype(node.attributes["dtype"])) if "dtype" in node.attributes else None
    return b.call(eye_like, b.tensor(node.inputs[0]), node.attributes.get("k", 0), dtype)


def eye_like(x: torch.Tensor, k: int, dtype: torch.dtype | None) -> torch.Tensor:
    """Of the input's type, or of another."""
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape)
    return (columns == rows[:, None] + k).to(dtype or x.dtype)


@lowers("BitShift")
def bit_shift(b: Builder, node: Node) -> Result:
    """ONNX BitShift-11: unsigned integers; torch shifts those of 8 bits. BitShift-28: signed ones too."""
    x, y = (b.tensor(name) for name in node.inputs)
    dtype = b.graph.dtype(node.inputs[0])
    if dtype is None or (dtype.kind == "u" and dtype.itemsize > 1):
        raise b.unsupported(node, "torch does not compute with unsigned integers of more than 8 bits")
    return b.call(shifted, x, y, node.attributes["direction"] == "LEFT", 8 * dtype.itemsize)


def shifted(x: torch.Tensor, y: torch.Tensor, left: bool, bits: int) -> torch.Tensor:
    """By a number of bits; what is out of range shifts everything out."""
    inside = (y >= 0) & (y < bits)
    amount = torch.where(inside, y, 0)
    if left:
        return torch.where(inside, x << amount, 0)
    return torch.where(inside, x >> amount, -(x < 0).to(x.dtype) if x.dtype.is_signed else 0)


@lowers("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def loss(b: Builder, node: Node) -> Result:
    """ONNX's losses since opset 12: of (N, c, ...) and classes (N, ...); the second also gives log probabilities."""
    x, classes = (b.tensor(name) for name in node.inputs[:2])
    logs: fx.Node = x if node.op == "NegativeLogLikelihoodLoss" else b.call(torch.log_softmax, x, 1)
    reduction = node.attributes.get("reduction", "mean")
    return b.call(loss_of, logs, classes, b.optional(node, 2), node.attributes.get("ignore_index"), reduction), logs


def loss_of(
    logs: torch.Tensor, classes: torch.Tensor, weight: torch.Tensor | None, ignored: int | None, reduction: str
) -> torch.Tensor:
    """The mean is by the classes' weights, of those that are not ignored."""
    return F.nll_loss(
        logs, classes.long(), weight, ignore_index=-100 if ignored is None else ignored, reduction=reduction
    )
