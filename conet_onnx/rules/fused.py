"""Operators that onnxruntime's optimisers make out of several: all in its own domain, com.microsoft.

Their text is in onnxruntime's docs/ContribOperators.md. SimplifiedLayerNormalization, and LayerNormalization below
opset 17, are onnxruntime's own as well, though it writes them into ONNX's domain.
"""

from __future__ import annotations

from dataclasses import replace

from conet_onnx.contrib import DOMAIN
from conet_onnx.dims import ONE, axis, product, total
from conet_onnx.rules.contract import conv, matrix_product
from conet_onnx.rules.elementwise import joined, same_shape
from conet_onnx.rules.normalize import grouped, layer_normalization
from conet_onnx.rules.registry import Contraction, Facts, Op, Opaque, Operand, Shape, Site, fixed, rule, spatial
from conet_onnx.solving import Reason

__all__ = ["biased", "embedding", "fused_conv", "fused_gemm", "fused_matmul", "skip_normalization"]

ELEMENTWISE = frozenset(  # activations that treat every element by itself
    {"", "Relu", "Tanh", "Sigmoid", "LeakyRelu", "Clip", "HardSigmoid", "Elu", "Selu", "Softplus", "Softsign"}
    | {"ThresholdedRelu", "Gelu", "QuickGelu", "HardSwish", "Affine", "ScaledTanh", "ParametricSoftplus"}
)


@rule("BiasAdd", "BiasGelu", "FastGelu", domain=DOMAIN)
def biased(op: Op, x: Shape, *others: Shape | None) -> Facts:
    """com.microsoft BiasAdd, BiasGelu, FastGelu: x plus a bias along its last axis (and a residual), then Gelu."""
    output, equal = joined((x, *(o for o in others if o is not None)))
    return Facts(outputs=(output,), equal=equal)


@rule("BiasSplitGelu", domain=DOMAIN)
def bias_split_gelu(op: Op, x: Shape, bias: Shape) -> Facts:
    """com.microsoft BiasSplitGelu: x plus bias; its first half times the Gelu of its second, along the last axis."""
    first, second = x[-1].size
    half = product(op.fresh("half", (first // 2, second // 2)))
    both = total((half, half))
    return Facts(outputs=((*x[:-1], half),), equal=((x[-1], both), (bias[0], both)))


@rule("FusedConv", domain=DOMAIN)
def fused_conv(op: Op, x: Shape, w: Shape, b: Shape | None = None, z: Shape | None = None) -> Facts:
    """com.microsoft FusedConv: Conv, plus Z, and an activation."""
    _check_activation(op)
    facts = replace(conv(op, x, w, b), terms=())
    y = facts.outputs[0] or ()
    return facts if z is None else replace(facts, equal=(*facts.equal, *zip(y, z, strict=True)))


@rule("NhwcConv", "NhwcFusedConv", domain=DOMAIN)
def nhwc_conv(op: Op, x: Shape, w: Shape, b: Shape | None = None, z: Shape | None = None) -> Facts:
    """com.microsoft NhwcFusedConv: X (N, ..., g·i), W (g·o, i, ...), Y (N, ..., g·o). NhwcConv: W (g·o, ..., i)."""
    _check_activation(op)
    groups, channel = op.attribute("group", 1), len(w) - 1 if op.node.op == "NhwcConv" else 1
    kernel = tuple(s for k, s in enumerate(w) if k not in (0, channel))
    said = op.attribute("kernel_shape")
    if w[0].size[0] % groups or (said is not None and tuple(said) != tuple(s.size[0] for s in kernel)):
        raise Opaque("bad groups", f"{op.node} has a weight that fits neither its groups nor its kernel")
    g = product(op.fresh("g", (groups, groups)))
    i = product(op.fresh("i", w[channel].size))
    o = product(op.fresh("o", (w[0].size[0] // groups,) * 2))
    places = fixed(op.node.name, op.sizes()[1:-1])
    y = (x[0], *places, product(g, o))
    own = ((x[-1], product(g, i)), (w[0], product(g, o)), (w[channel], i))
    added = () if z is None else tuple(zip(y, z, strict=True))
    sides = (Operand(0, len(x) - 1, g, i), Operand(1, channel, ONE, i))
    return Facts(
        outputs=(y,),
        equal=(*own, *(() if b is None else ((b[0], product(g, o)),)), *added),
        contracts=(Contraction(operands=sides, produces=(o,), macs=product(x[0], g, o, *places, i, *kernel)),),
        sites=(Site("attribute:group", 0, axis(g), groups),) if g.factors else (),
        frozen=spatial(op, x[1:-1]) + spatial(op, kernel),
    )


@rule("FusedGemm", domain=DOMAIN)
def fused_gemm(op: Op, a: Shape, b: Shape, c: Shape | None = None) -> Facts:
    """com.microsoft FusedGemm: Gemm and an activation."""
    _check_activation(op)
    return matrix_product(op, a, b, c)


@rule("FusedMatMul", "TransposeMatMul", domain=DOMAIN)
def fused_matmul(op: Op, a: Shape, b: Shape) -> Facts:
    """com.microsoft FusedMatMul: alpha·A'·B', where A' and B' may have their last two axes the other way round."""
    if op.attribute("transBatchA", 0) or op.attribute("transBatchB", 0):
        raise Opaque("transposed batch", f"{op.node} moves its outermost axis inwards")
    if min(len(a), len(b)) < 2:
        raise Opaque("rank", f"{op.node} multiplies by a vector")
    turned_a, turned_b = op.attribute("transA", 0) != 0, op.attribute("transB", 0) != 0
    rows, summed = a[-2:][::-1] if turned_a else a[-2:]
    also, columns = b[-2:][::-1] if turned_b else b[-2:]
    outer, equal = joined((a[:-2], b[:-2]))
    contraction = Contraction(
        operands=(
            Operand(0, len(a) - 1 - turned_a, ONE, summed),
            Operand(1, len(b) - 2 + turned_b, ONE, also),
        ),
        produces=(rows, columns),
        macs=product(*outer, rows, columns, summed),
    )
    y = (*outer, rows, columns)
    return Facts(outputs=(y,), equal=((summed, also), *equal), contracts=(contraction,), terms=((0, 1),))


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=DOMAIN)
def skip_normalization(op: Op, x: Shape, skip: Shape, *parameters: Shape | None) -> Facts:
    """com.microsoft SkipLayerNormalization: x + skip (+ bias), normalised along the last axis; and the sum itself."""
    pairs = joined((x, skip))[1]
    equal = (*pairs, *((x[-1], p[0]) for p in parameters if p is not None))
    return Facts(outputs=(x, None, None, x)[: len(op.node.outputs)], equal=equal, mixes=x[-1:])


@rule("EmbedLayerNormalization", domain=DOMAIN)
def embedding(
    op: Op,
    words: Shape,
    segments: Shape | None,
    word_table: Shape,
    place_table: Shape,
    segment_table: Shape | None,
    *others: Shape | None,
) -> Facts:
    """com.microsoft EmbedLayerNormalization: rows of up to three tables, by number, added up and normalised.

    Others: gamma and beta along the hidden axis, then a mask and positions, both (N, S).
    """
    hidden = word_table[1]
    tables = tuple(t for t in (word_table, place_table, segment_table) if t is not None)
    numbers = tuple(s for s in (segments, *others[2:]) if s is not None)
    reason = Reason("picked", op.node.name, f"{op.node} picks positions of it by number")
    along = Reason("positions", op.node.name, f"{op.node} numbers the positions along it, or counts them")
    output = (*words, hidden)
    return Facts(
        outputs=(output, words[:1], output)[: len(op.node.outputs)],
        equal=(
            *((hidden, t[1]) for t in tables[1:]),
            *((hidden, p[0]) for p in others[:2] if p is not None),
            *joined((words, *numbers))[1],
        ),
        mixes=(hidden,),
        frozen=(*((t[0], reason) for t in tables), *((s, along) for s in words[1:])),
    )


@rule("GroupNorm", "SkipGroupNorm", domain=DOMAIN)
def group_norm(op: Op, x: Shape, gamma: Shape, beta: Shape, *added: Shape | None) -> Facts:
    """com.microsoft GroupNorm: X (N, ..., g·k), or (N, g·k, ...). SkipGroupNorm: of X + skip + bias, and that sum."""
    skip, bias = (*added, None, None)[:2]
    last = op.attribute("channels_last", 1) != 0
    channels, places = (x[-1], x[1:-1]) if last else (x[1], x[2:])
    if skip is not None and len(skip) == 2:  # (N, C)
        skip = (skip[0], *(ONE for _ in places), skip[1]) if last else (*skip, *(ONE for _ in places))
    facts = grouped(op, "groups", x, channels, places, (gamma[0], beta[0], *(() if bias is None else bias)))
    pairs = () if skip is None else joined((x, skip))[1]
    return replace(facts, outputs=(x, x)[: len(op.node.outputs)], equal=(*facts.equal, *pairs))


def _check_activation(op: Op) -> None:
    if (name := op.attribute("activation", "")) not in ELEMENTWISE:
        raise Opaque("activation", f"{op.node} ends in {name!r}, which may not treat every element by itself")


rule("Gelu", "QuickGelu", "ScaledSiLU", domain=DOMAIN)(same_shape)
rule("LayerNormalization", "SimplifiedLayerNormalization", since=0)(layer_normalization)
