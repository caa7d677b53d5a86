"""Lower activation functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node, Result
from conet_onnx.torch_backend.ops.registry import lowers

__all__ = ["swish", "swished"]

_PLAIN: dict[str, Callable[..., Any]] = {
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
}
# The attribute that torch takes as its second argument, and its default in ONNX.
_ONE_PARAMETER: dict[str, tuple[Callable[..., Any], str, float]] = {
    "LeakyRelu": (F.leaky_relu, "alpha", 0.01),
    "Elu": (F.elu, "alpha", 1.0),
    "Celu": (F.celu, "alpha", 1.0),
}
SELU_ALPHA, SELU_GAMMA = 1.6732632423543772, 1.0507009873554805  # ONNX's defaults and torch's constants


@lowers(*_PLAIN)
def plain(b: Builder, node: Node) -> Result:
    """No parameter."""
    return b.call(_PLAIN[node.op], b.tensor(node.inputs[0]))


@lowers(*_ONE_PARAMETER)
def one_parameter(b: Builder, node: Node) -> Result:
    """One attribute."""
    function, attribute, default = _ONE_PARAMETER[node.op]
    return b.call(function, b.tensor(node.inputs[0]), node.attributes.get(attribute, default))


@lowers("ThresholdedRelu")
def thresholded_relu(b: Builder, node: Node) -> Result:
    """x where x > alpha, else 0."""
    return b.call(F.threshold, b.tensor(node.inputs[0]), node.attributes.get("alpha", 1.0), 0.0)


@lowers("Selu")
def selu(b: Builder, node: Node) -> Result:
    """gamma · (x, or alpha · (exp(x) - 1) below zero)."""
    x = b.tensor(node.inputs[0])
    alpha, gamma = node.attributes.get("alpha", SELU_ALPHA), node.attributes.get("gamma", SELU_GAMMA)
    if _same(alpha, SELU_ALPHA) and _same(gamma, SELU_GAMMA):
        return b.call(F.selu, x)
    return b.call(torch.mul, b.call(F.elu, x, alpha), gamma)


@lowers("Gelu")
def gelu(b: Builder, node: Node) -> Result:
    """By the error function, or its approximation by tanh."""
    return b.call(F.gelu, b.tensor(node.inputs[0]), approximate=node.attributes.get("approximate", "none"))


@lowers("Swish", "SwiGLU")
def swish_node(b: Builder, node: Node) -> Result:
    """ONNX Swish-24: x · sigmoid(alpha · x). ONNX SwiGLU-28: that of A, times B."""
    made = swish(b, b.tensor(node.inputs[0]), node.attributes.get("alpha", 1.0))
    return b.call(torch.mul, made, b.tensor(node.inputs[1])) if node.op == "SwiGLU" else made


def swish(b: Builder, x: fx.Node, alpha: float) -> fx.Node:
    """x · sigmoid(alpha · x)."""
    return b.call(F.silu, x) if alpha == 1 else b.call(swished, x, alpha)


def swished(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """x · sigmoid(alpha · x)."""
    return x * torch.sigmoid(alpha * x)


@lowers("HardSigmoid")
def hard_sigmoid(b: Builder, node: Node) -> Result:
    """max(0, min(1, alpha · x + beta)); torch's own has alpha 1/6."""
    x = b.tensor(node.inputs[0])
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    if _same(alpha, 1 / 6) and beta == 0.5:
        return b.call(F.hardsigmoid, x)
    return b.call(torch.clamp, b.call(torch.add, b.call(torch.mul, x, alpha), beta), 0, 1)


@lowers("PRelu")
def prelu(b: Builder, node: Node) -> Result:
    """A slope below zero, one for all, one a channel, or any that broadcasts to x."""
    x, slope = b.tensor(node.inputs[0]), b.tensor(node.inputs[1])
    rank, shape = b.rank(node, node.inputs[0]), b.shape(node, node.inputs[1])
    single = all(size == 1 for size in shape)
    a_channel = rank >= 2 and len(shape) == rank - 1 and all(size == 1 for size in shape[1:])
    if single or a_channel:
        return b.call(F.prelu, x, slope if len(shape) == 1 else b.call(torch.flatten, slope))
    return b.call(torch.where, b.call(torch.lt, x, 0), b.call(torch.mul, slope, x), x)


@lowers("Softmax", "LogSoftmax")
def softmax(b: Builder, node: Node) -> Result:
    """Along one axis since opset 13; before, along all axes from `axis` on, as if they were one."""
    function = torch.softmax if node.op == "Softmax" else torch.log_softmax
    x, rank = b.tensor(node.inputs[0]), b.rank(node, node.inputs[0])
    axis = node.attributes.get("axis", -1 if node.since >= 13 else 1)
    if node.since >= 13 or axis % rank == rank - 1:
        return b.call(function, x, axis)
    flat = b.call(torch.flatten, x, axis % rank)
    return b.method("view_as", b.call(function, flat, -1), x)


def _same(x: float, y: float) -> bool:
    """Equal as float32, the type of ONNX attributes."""
    return bool(np.float32(x) == np.float32(y))
