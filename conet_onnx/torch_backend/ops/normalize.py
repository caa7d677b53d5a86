"""Lower normalisation layers and Dropout: what may differ between training and inference."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node, Result, has
from conet_onnx.torch_backend.ops.registry import lowers

__all__ = ["BatchNormalization", "Dropout", "DropoutWithMask", "by_norm", "by_rms", "standardised", "statistics"]


class BatchNormalization(nn.Module):
    """Statistics of the batch in training, running ones else; the weights are the lowered module's."""

    def __init__(self, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum = momentum  # torch's: the share of the batch in the running statistics
        self.eps = eps

    def forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
    ) -> torch.Tensor:
        """x: [batch, channels, ...], the others [channels]."""
        return F.batch_norm(x, mean, variance, weight, bias, self.training, self.momentum, self.eps)

    def extra_repr(self) -> str:
        """What the constructor was given."""
        return f"momentum={self.momentum}, eps={self.eps}"


class Dropout(nn.Module):
    """Zero elements at random in training, nothing else."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return F.dropout(x, self.ratio, self.training)

    def extra_repr(self) -> str:
        """What the constructor was given."""
        return f"ratio={self.ratio}"


class DropoutWithMask(Dropout):
    """The same, and which elements are left: all of them, except in training."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]  # two results
        """Any shape."""
        left = torch.rand_like(x) >= self.ratio if self.training else torch.ones_like(x, dtype=torch.bool)
        larger = 1 / (1 - self.ratio) if self.ratio < 1 else 0.0
        return (x * left * larger if self.training else x), left


@lowers("BatchNormalization")
def batch_normalization(b: Builder, node: Node) -> Result:
    """ONNX's momentum is the share of the old statistics, torch's of the new.

    A node whose own training_mode is set (before opset 14: one with further outputs) uses the batch's statistics, as
    onnxruntime does. Statistics that several nodes share, or that are computed, are used as they are, in training too:
    nothing could update them.
    """
    if node.attributes.get("spatial", 1) != 1:
        raise b.unsupported(node, "statistics for each position (spatial=0)")
    if b.uses_more(node):
        raise b.unsupported(node, "its running statistics are used as outputs")
    x, weight, bias, mean, variance = (b.tensor(name) for name in node.inputs)
    eps = node.attributes.get("epsilon", 1e-5)
    if node.attributes.get("training_mode", 0) or (node.since < 14 and any(node.outputs[1:])):
        return b.call(F.batch_norm, x, None, None, weight, bias, True, 0.0, eps)
    own = {b.registered[name] for name in b.registered.keys() - b.shared_statistics}
    if mean.target not in own or variance.target not in own or mean is variance:
        return b.call(F.batch_norm, x, mean, variance, weight, bias, False, 0.0, eps)
    return b.module(BatchNormalization(1 - node.attributes.get("momentum", 0.9), eps), x, weight, bias, mean, variance)


@lowers("Dropout")
def dropout(b: Builder, node: Node) -> Result:
    """The ratio is an attribute before opset 12, an input since; the mask says nothing before."""
    x = b.tensor(node.inputs[0])
    ratio: Any = node.attributes.get("ratio", 0.5)
    if has(node, 1):
        ratio = b.number(node, 1, "the ratio")
    if not b.uses_more(node):
        return b.module(Dropout(float(ratio)), x) if ratio else x
    if node.since < 12:  # onnxruntime fills it with zeros
        raise b.unsupported(node, "its mask is used as an output, which says nothing before opset 12")
    if has(node, 2) and b.number(node, 2, "training_mode"):
        raise b.unsupported(node, "its mask is used as an output, and drawn at random")
    both = b.module(DropoutWithMask(float(ratio)), x)
    return [b.call(operator.getitem, both, i) for i in range(2)]


@lowers("InstanceNormalization")
def instance_normalization(b: Builder, node: Node) -> Result:
    """Statistics of each channel of each sample."""
    x, weight, bias = (b.tensor(name) for name in node.inputs)
    return b.call(F.instance_norm, x, weight=weight, bias=bias, eps=node.attributes.get("epsilon", 1e-5))


@lowers("LayerNormalization")
def layer_normalization(b: Builder, node: Node) -> Result:
    """Statistics over the axes from `axis` on, which are outputs too; scale and bias broadcast to them."""
    name = node.inputs[0]
    x, weight, bias = b.tensor(name), b.tensor(node.inputs[1]), b.optional(node, 2)
    rank = b.rank(node, name)
    axes = range(node.attributes.get("axis", -1) % rank, rank)
    shape = [b.size(name, axis) for axis in axes]
    eps = node.attributes.get("epsilon", 1e-5)
    affine = [b.shape(node, n) for n in node.inputs[1:] if n]
    if all(list(sizes) == shape for sizes in affine):
        made = b.call(F.layer_norm, x, shape, weight, bias, eps)
    else:
        made = b.call(torch.mul, b.call(F.layer_norm, x, shape, None, None, eps), weight)
        made = made if bias is None else b.call(torch.add, made, bias)
    if not b.uses_more(node):
        return made
    both = b.call(statistics, x, tuple(axes), eps)
    return made, *(b.call(operator.getitem, both, i) for i in range(2))


def statistics(x: torch.Tensor, axes: tuple[int, ...], eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean, and 1 / sqrt(variance + eps), over some axes, which stay; of half precision in single."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return mean, torch.rsqrt(variance + eps)


@lowers("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(b: Builder, node: Node) -> Result:
    """The mean square over the axes from `axis` on; the scale broadcasts to them. The second is onnxruntime's name."""
    if b.uses_more(node):
        raise b.unsupported(node, "its deviation is used as an output")
    name = node.inputs[0]
    rank = b.rank(node, name)
    axes = tuple(range(node.attributes.get("axis", -1) % rank, rank))
    return b.call(by_rms, *map(b.tensor, node.inputs), axes, node.attributes.get("epsilon", 1e-5))


def by_rms(x: torch.Tensor, scale: torch.Tensor, axes: tuple[int, ...], eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * scale."""
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + eps) * scale


@lowers("MeanVarianceNormalization")
def mean_variance_normalization(b: Builder, node: Node) -> Result:
    """Statistics over some axes, by default all but the channels'."""
    axes: Any = node.attributes.get("axes") or (0, 2, 3)
    return b.call(standardised, b.tensor(node.inputs[0]), tuple(axes))


def standardised(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """(x - mean) / (deviation + 1e-9), as in the operator's function."""
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


@lowers("LpNormalization")
def lp_normalization(b: Builder, node: Node) -> Result:
    """Along one axis by the sum of magnitudes, or the root of the sum of squares; zeros stay zeros."""
    x, p = b.tensor(node.inputs[0]), node.attributes.get("p", 2)
    return b.call(by_norm, x, node.attributes.get("axis", -1), p)


def by_norm(x: torch.Tensor, axis: int, p: int) -> torch.Tensor:
    """x / its norm."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@lowers("GlobalLpPool")
def global_lp_pool(b: Builder, node: Node) -> Result:
    """The p-norm of each channel of each sample."""
    rank = b.rank(node, node.inputs[0])
    axes = tuple(range(2, rank))
    return b.call(torch.linalg.vector_norm, b.tensor(node.inputs[0]), node.attributes.get("p", 2), axes, keepdim=True)


@lowers("GroupNormalization")
def group_normalization(b: Builder, node: Node) -> Result:
    """Scale and bias are one a channel since opset 21; before, one a group."""
    x, weight, bias = (b.tensor(name) for name in node.inputs)
    groups = node.attributes["num_groups"]
    if node.since < 21:
        channels = b.shape(node, node.inputs[0])[1]
        if channels is None:
            raise b.unsupported(node, "the number of channels varies")
        weight, bias = (b.call(torch.repeat_interleave, t, channels // groups) for t in (weight, bias))
    return b.call(F.group_norm, x, groups, weight, bias, node.attributes.get("epsilon", 1e-5))
