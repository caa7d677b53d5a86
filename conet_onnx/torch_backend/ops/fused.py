"""Lower what onnxruntime's optimisers make out of several operators, apart from attention: the domain com.microsoft.

Their text is in onnxruntime's docs/ContribOperators.md. Each is lowered as the operators that it stands for.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from functools import reduce

import torch
from torch import fx
from torch.nn import functional as F

from conet_onnx.contrib import DOMAIN
from conet_onnx.torch_backend.building import Builder, Node, Result, has
from conet_onnx.torch_backend.ops.activations import swish
from conet_onnx.torch_backend.ops.contract import convolve, gemm
from conet_onnx.torch_backend.ops.normalize import by_rms, layer_normalization, rms_normalization
from conet_onnx.torch_backend.ops.registry import LOWER, lowers

__all__ = ["counted", "embedded", "halves_gated"]

# What may follow a convolution or a product, and the names of its parameters in the order of activation_params.
_SIMPLE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Relu", "Tanh", "Sigmoid"), ()),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}
_AFTER_CONV = {**_SIMPLE, "HardSwish": (), "Clip": ("min", "max")}
_AFTER_GEMM = {
    **_SIMPLE,
    **dict.fromkeys(("Softplus", "Softsign"), ()),
    **dict.fromkeys(("Elu", "Celu", "ThresholdedRelu"), ("alpha",)),
    "Selu": ("alpha", "gamma"),
}

lowers("LayerNormalization", domain=DOMAIN)(layer_normalization)
lowers("SimplifiedLayerNormalization", domain=DOMAIN)(rms_normalization)


@lowers("BiasAdd", domain=DOMAIN)
def bias_add(b: Builder, node: Node) -> Result:
    """com.microsoft BiasAdd: X (N, S, c) + bias (c) + skip (N, S, c)."""
    return _sum(b, node, 0, 1, 2)


@lowers("Gelu", "BiasGelu", "FastGelu", domain=DOMAIN)
def gelu(b: Builder, node: Node) -> Result:
    """com.microsoft Gelu and BiasGelu by the error function, FastGelu by tanh; of x, or of x plus a bias."""
    return b.call(F.gelu, _sum(b, node, 0, 1), approximate="tanh" if node.op == "FastGelu" else "none")


@lowers("QuickGelu", domain=DOMAIN)
def quick_gelu(b: Builder, node: Node) -> Result:
    """com.microsoft QuickGelu: x · sigmoid(alpha · x)."""
    return swish(b, b.tensor(node.inputs[0]), node.attributes.get("alpha", 1.702))


@lowers("ScaledSiLU", domain=DOMAIN)
def scaled_silu(b: Builder, node: Node) -> Result:
    """com.microsoft ScaledSiLU: silu(scale · x); the scale is an input or the attribute alpha."""
    x, scale = b.tensor(node.inputs[0]), node.attributes.get("alpha", 1.0)
    return b.call(F.silu, b.call(torch.mul, x, b.operand(node.inputs[1]) if has(node, 1) else scale))


@lowers("BiasSplitGelu", domain=DOMAIN)
def bias_split_gelu(b: Builder, node: Node) -> Result:
    """com.microsoft BiasSplitGelu: X (N, S, 2·c) plus bias (2·c); the first half times the Gelu of the second."""
    return b.call(halves_gated, _sum(b, node, 0, 1))


def halves_gated(x: torch.Tensor) -> torch.Tensor:
    """The first half of the last axis, times the Gelu of the second."""
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)


@lowers("FusedConv", domain=DOMAIN)
def fused_conv(b: Builder, node: Node) -> Result:
    """com.microsoft FusedConv: Conv, plus Z, and an activation."""
    made = convolve(b, node, b.tensor(node.inputs[0]), b.tensor(node.inputs[1]), b.optional(node, 2))
    made = b.call(operator.add, made, b.tensor(node.inputs[3])) if has(node, 3) else made
    return _activated(b, node, made, _AFTER_CONV)


@lowers("NhwcFusedConv", domain=DOMAIN)
def nhwc_fused_conv(b: Builder, node: Node) -> Result:
    """com.microsoft NhwcFusedConv: FusedConv of X (N, ..., c) and Z alike; W as Conv's."""
    if node.attributes.get("auto_pad", "NOTSET") not in ("", "NOTSET", "VALID"):
        raise b.unsupported(node, f"auto_pad {node.attributes['auto_pad']!r} with channels last")
    x = b.call(torch.movedim, b.tensor(node.inputs[0]), -1, 1)
    made = convolve(b, node, x, b.tensor(node.inputs[1]), b.optional(node, 2))
    made = b.call(torch.movedim, made, 1, -1)
    made = b.call(operator.add, made, b.tensor(node.inputs[3])) if has(node, 3) else made
    return _activated(b, node, made, _AFTER_CONV)


@lowers("FusedGemm", domain=DOMAIN)
def fused_gemm(b: Builder, node: Node) -> Result:
    """com.microsoft FusedGemm: Gemm, and an activation whose parameters are attributes of their own."""
    made = gemm(b, node)
    assert isinstance(made, fx.Node)
    return _activated(b, node, made, _AFTER_GEMM)


def _activated(b: Builder, node: Node, made: fx.Node, table: dict[str, tuple[str, ...]]) -> Result:
    """An activation of what a node has made so far, as the ONNX operator of that name is lowered."""
    name = node.attributes.get("activation", "")
    if not name:
        return made
    if name not in table:
        raise b.unsupported(node, f"the activation {name!r}")
    given = dict(zip(table[name], node.attributes.get("activation_params", ()), strict=False))
    given |= {
        key: node.attributes[f"activation_{key}"] for key in table[name] if f"activation_{key}" in node.attributes
    }
    if len(given) != len(table[name]):
        raise b.unsupported(node, f"the activation {name!r} without its {' and '.join(table[name])}")
    b.assign(node.outputs[0], made)
    # Below opset 11 Clip's bounds are attributes.
    return LOWER[name](b, replace(node, op=name, domain="", since=7, inputs=node.outputs[:1], attributes=given))


@lowers("FusedMatMul", "TransposeMatMul", domain=DOMAIN)
def fused_matmul(b: Builder, node: Node) -> Result:
    """com.microsoft FusedMatMul: alpha · A' B', whose last two axes may be the other way round.

    With transBatchA the first axis of A is the last but one of A', with transBatchB that of B.
    """
    sides = []
    for name, side in zip(node.inputs, "AB", strict=True):
        x, rank = b.tensor(name), b.rank(node, name)
        batch, turned = (node.attributes.get(f"{what}{side}", 0) for what in ("transBatch", "trans"))
        if (batch or turned) and rank < 2:
            raise b.unsupported(node, "a vector that is to be transposed")
        x = b.call(torch.movedim, x, 0, -2) if batch else x
        sides.append(b.call(torch.transpose, x, -1, -2) if turned else x)
    made, alpha = b.call(torch.matmul, *sides), node.attributes.get("alpha", 1.0)
    return made if alpha == 1 else b.call(operator.mul, made, alpha)


@lowers("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=DOMAIN)
def skip_normalization(b: Builder, node: Node) -> Result:
    """com.microsoft SkipLayerNormalization: x + skip (+ bias), normalised along the last axis; and the sum itself.

    x: (N, S, c); skip alike, or without the batch. The simplified one has no mean and no beta.
    """
    if any(node.outputs[1:3]):
        raise b.unsupported(node, "its mean or deviation is used as an output")
    plain = node.op == "SkipLayerNormalization"
    made, eps = _sum(b, node, 0, 1, 4 if plain else 3), node.attributes.get("epsilon", 1e-12 if plain else 1e-5)
    gamma = b.tensor(node.inputs[2])
    if not plain:
        return b.call(by_rms, made, gamma, (-1,), eps), made, made, made
    return _normalised(b, made, node.inputs[2], gamma, b.optional(node, 3), eps), made, made, made


@lowers("EmbedLayerNormalization", domain=DOMAIN)
def embed_layer_normalization(b: Builder, node: Node) -> Result:
    """com.microsoft EmbedLayerNormalization: rows of up to three tables, by number, added up and normalised.

    Words and segments (N, S); tables (rows, c): words, positions, segments. Then how many words of each sample the
    mask (N, S) counts, and the sum.
    """
    words, table, places = (b.tensor(node.inputs[i]) for i in (0, 2, 3))
    segments = (b.tensor(node.inputs[1]), b.tensor(node.inputs[4])) if has(node, 1) and has(node, 4) else (None, None)
    made = b.call(embedded, words, table, b.optional(node, 8), places, *segments)
    gamma, beta, eps = b.tensor(node.inputs[5]), b.optional(node, 6), node.attributes.get("epsilon", 1e-12)
    count = b.call(counted, words, b.optional(node, 7)) if any(node.outputs[1:2]) else made
    return _normalised(b, made, node.inputs[5], gamma, beta, eps), count, made


def embedded(
    words: torch.Tensor,
    table: torch.Tensor,
    places: torch.Tensor | None,
    place_table: torch.Tensor,
    segments: torch.Tensor | None,
    segment_table: torch.Tensor | None,
) -> torch.Tensor:
    """Rows by number, added up, [N, S, c]. Positions count from zero where they are not given."""
    made = F.embedding(words.long(), table)
    made = made + (place_table[: words.size(1)] if places is None else F.embedding(places.long(), place_table))
    if segments is None or segment_table is None:
        return made
    return made + F.embedding(segments.long(), segment_table)


def counted(words: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """How many words of each sample count, [N]; none where there is no mask."""
    seen = torch.zeros_like(words) if mask is None else mask == 1
    return seen.sum(1, dtype=torch.int32)


@lowers("GroupNorm", "SkipGroupNorm", domain=DOMAIN)
def group_norm(b: Builder, node: Node) -> Result:
    """com.microsoft GroupNorm: X (N, ..., c) or (N, c, ...), then SiLU. SkipGroupNorm: of a sum, and that sum.

    The sum is X + skip + bias; skip is as X, (N, 1, 1, c) or (N, c).
    """
    last, activation = node.attributes.get("channels_last", 1), node.attributes.get("activation", 0)
    if activation not in (0, 1):
        raise b.unsupported(node, f"activation {activation}")
    made = b.tensor(node.inputs[0])
    if node.op == "SkipGroupNorm":
        if not last:
            raise b.unsupported(node, "channels first, with something added")
        skip = b.tensor(node.inputs[3])
        for _ in range(b.rank(node, node.inputs[0]) - b.rank(node, node.inputs[3])):
            skip = b.call(torch.unsqueeze, skip, 1)
        made = b.call(operator.add, made, skip)
        made = b.call(operator.add, made, b.tensor(node.inputs[4])) if has(node, 4) else made
    y = b.call(torch.movedim, made, -1, 1) if last else made
    weights, eps = map(b.tensor, node.inputs[1:3]), node.attributes.get("epsilon", 1e-5)
    y = b.call(F.group_norm, y, node.attributes["groups"], *weights, eps)
    y = b.call(torch.movedim, y, 1, -1) if last else y
    return (b.call(F.silu, y) if activation else y), made


def _normalised(b: Builder, x: fx.Node, name: str, gamma: fx.Node, beta: fx.Node | None, eps: float) -> fx.Node:
    """Along the last axis, which is as long as gamma."""
    return b.call(F.layer_norm, x, [b.size(name, 0)], gamma, beta, eps)


def _sum(b: Builder, node: Node, *places: int) -> fx.Node:
    """Some inputs, as far as they are there, added up."""
    found = [b.tensor(node.inputs[i]) for i in places if has(node, i)]
    return reduce(lambda x, y: b.call(operator.add, x, y), found)
