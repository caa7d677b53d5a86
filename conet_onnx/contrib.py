"""What onnxruntime's own operators make: onnx knows neither them nor their shapes.

They are in the domain com.microsoft; a few are in ONNX's own, where onnx's checker refuses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import onnx
from onnx import helper

__all__ = ["DOMAIN", "apart_from_onnx", "outputs_of"]

DOMAIN = "com.microsoft"
AMONG_ONNX = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})  # the former below opset 17 only

Shape = tuple[int, ...]
Made = tuple[Shape, int] | None  # an output's shape, and the input whose element type it has; None for unknown
Inputs = Sequence[Shape | None]
Attributes = Mapping[str, Any]


def apart_from_onnx(model: onnx.ModelProto) -> None:
    """Move, in place, operators that onnxruntime has put into ONNX's domain into its own."""
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    moved = AMONG_ONNX if version < 17 else AMONG_ONNX - {"LayerNormalization"}
    found = [n for n in model.graph.node if n.op_type in moved and n.domain in ("", "ai.onnx")]
    for node in found:
        node.domain = DOMAIN
    if found and all(o.domain != DOMAIN for o in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=1)


def outputs_of(node: onnx.NodeProto, inputs: Inputs) -> list[Made]:
    """The shapes of a node's outputs, given those of its inputs; [] for an operator that is not in the table."""
    function = _SHAPES.get(node.op_type)
    if function is None:
        return []
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    try:
        return function(attributes, (*inputs, *[None] * 12))
    except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return []  # inputs that do not fit the operator, or of unknown shape: its outputs stay unknown


def _like_first(a: Attributes, inputs: Inputs) -> list[Made]:
    return [_made(inputs[0])]


def _normalised(a: Attributes, inputs: Inputs) -> list[Made]:
    x = _sure(inputs[0])
    first = a.get("axis", -1) % len(x)
    statistics = (*x[:first], *(1 for _ in x[first:]))
    return [(x, 0), (statistics, 0), (statistics, 0)]


def _skipped(a: Attributes, inputs: Inputs) -> list[Made]:
    """SkipLayerNormalization: the result, two statistics that inference does not make, and the sum."""
    return [_made(inputs[0]), None, None, _made(inputs[0])]


def _twice(a: Attributes, inputs: Inputs) -> list[Made]:
    return [_made(inputs[0]), _made(inputs[0])]


def _halved(a: Attributes, inputs: Inputs) -> list[Made]:
    *outer, last = _sure(inputs[0])
    return [((*outer, last // 2), 0)]


def _embedded(a: Attributes, inputs: Inputs) -> list[Made]:
    n, s = _sure(inputs[0])
    hidden = (n, s, _sure(inputs[2])[1])
    return [(hidden, 2), ((n,), 0), (hidden, 2)]


def _conv(channels_last: bool, own_weight: bool, a: Attributes, inputs: Inputs) -> list[Made]:
    x, w = _sure(inputs[0]), _sure(inputs[1])
    space, kernel = (x[1:-1] if channels_last else x[2:]), (w[1:-1] if own_weight else w[2:])
    rank = len(space)
    strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
    pads, how = a.get("pads", [0] * (2 * rank)), a.get("auto_pad", b"NOTSET")
    if len(kernel) != rank or how not in (b"NOTSET", b"VALID", b"SAME_UPPER", b"SAME_LOWER"):
        return []
    made = []
    for k in range(rank):
        padded = space[k] + (pads[k] + pads[rank + k] if how == b"NOTSET" else 0)
        extent = (padded - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1
        made.append(math.ceil(space[k] / strides[k]) if how.startswith(b"SAME") else extent)
    return [((x[0], *made, w[0]) if channels_last else (x[0], w[0], *made), 0)]


def _gemm(a: Attributes, inputs: Inputs) -> list[Made]:
    m, n = _sure(inputs[0]), _sure(inputs[1])
    return [((m[1] if a.get("transA", 0) else m[0], n[0] if a.get("transB", 0) else n[1]), 0)]


def _matmul(a: Attributes, inputs: Inputs) -> list[Made]:
    if a.get("transBatchA", 0) or a.get("transBatchB", 0):
        return []
    m, n = _sure(inputs[0]), _sure(inputs[1])
    if a.get("transA", 0) and len(m) > 1:
        m = (*m[:-2], m[-1], m[-2])
    if a.get("transB", 0) and len(n) > 1:
        n = (*n[:-2], n[-1], n[-2])
    outer = _broadcast(m[:-2], n[:-2])
    return [((*outer, *m[-2:-1], *(n[-1:] if len(n) > 1 else ())), 0)]


def _broadcast(a: Shape, b: Shape) -> Shape:
    rank = max(len(a), len(b))
    pairs = zip((*[1] * (rank - len(a)), *a), (*[1] * (rank - len(b)), *b), strict=True)
    return tuple(n if m == 1 else m for m, n in pairs)


def _attention(a: Attributes, inputs: Inputs) -> list[Made]:
    n, s, _ = _sure(inputs[0])
    third = _sure(inputs[1])[1] // 3
    q, _, v = a.get("qkv_hidden_sizes") or (third, third, third)
    past = inputs[4][3] if inputs[4] else 0
    heads = a["num_heads"]
    return [((n, s, v), 0), ((2, n, heads, past + s, q // heads), 0)]


def _multi_head(a: Attributes, inputs: Inputs) -> list[Made]:
    (n, s, hidden), k, v, heads = _sure(inputs[0]), _sure(inputs[1]), _sure(inputs[2]), a["num_heads"]
    if len(k) not in (3, 4) or len(v) != len(k):
        return []
    length = (k[1] if len(k) == 3 else k[2]) + (inputs[6][2] if inputs[6] else 0)
    size = v[2] // heads if len(v) == 3 else v[3]
    key, value = (n, heads, length, hidden // heads), (n, heads, length, size)
    return [((n, s, heads * size), 0), (key, 0), (value, 0), ((n, heads, s, length), 0)]


def _group_query(a: Attributes, inputs: Inputs) -> list[Made]:
    """How long the caches become is in the data."""
    n, s, hidden = _sure(inputs[0])
    heads, shared = a["num_heads"], a["kv_num_heads"]
    return [((n, s, hidden if inputs[1] else hidden // (heads + 2 * shared) * heads), 0)]


def _linear_attention(a: Attributes, inputs: Inputs) -> list[Made]:
    if a.get("state_window", 0):
        return []
    (n, t, q), v = _sure(inputs[0]), _sure(inputs[2])
    heads, shared = a["q_num_heads"], a["kv_num_heads"]
    return [((n, t, v[2] // shared * heads), 0), ((n, shared, q // heads, v[2] // shared), 0)]


def _causal_conv(a: Attributes, inputs: Inputs) -> list[Made]:
    if a.get("state_window", 0) or a.get("channels_last", 0) or a.get("ndim", 1) != 1:
        return []
    x = _sure(inputs[0])
    return [(x, 0), ((*x[:2], (_sure(inputs[1])[2] - 1) * a.get("dilation", 1)), 0)]


def _sure(shape: Shape | None) -> Shape:
    if shape is None:
        raise ValueError("a shape is unknown")
    return shape


def _made(shape: Shape | None) -> Made:
    return None if shape is None else (shape, 0)


_SHAPES: Mapping[str, Callable[[Attributes, Inputs], list[Made]]] = {
    **dict.fromkeys(("BiasAdd", "BiasGelu", "FastGelu", "Gelu", "QuickGelu", "ScaledSiLU"), _like_first),
    **dict.fromkeys(("GroupNorm", "RotaryEmbedding"), _like_first),
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization"), _normalised),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skipped),
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul"), _matmul),
    "SkipGroupNorm": _twice,
    "BiasSplitGelu": _halved,
    "EmbedLayerNormalization": _embedded,
    "FusedConv": partial(_conv, False, False),
    "NhwcConv": partial(_conv, True, True),
    "NhwcFusedConv": partial(_conv, True, False),
    "FusedGemm": _gemm,
    "Attention": _attention,
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _group_query,
    "LinearAttention": _linear_attention,
    "CausalConvWithState": _causal_conv,
}
