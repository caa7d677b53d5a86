"""Lower attention as one operator: ONNX's, and onnxruntime's three."""

from __future__ import annotations

import operator
from functools import reduce

import torch
from torch import fx
from torch.nn import functional as F

from conet_onnx.contrib import DOMAIN
from conet_onnx.torch_backend.building import Builder, Node, Result, has
from conet_onnx.torch_backend.ops.registry import lowers
from conet_onnx.torch_backend.ops.rotary import in_heads, offset_places, out_of_heads, rotated, rows_of
from conet_onnx.torch_backend.weights import onnx_dtype, torch_dtype

__all__ = ["allowing", "attend", "attend_and_show", "followed", "with_padding", "with_sink"]

AFTER_MASK = 2  # the stage of the scores that com.microsoft's operators give away; ONNX's qk_matmul_output_mode


@lowers("Attention")
def attention(b: Builder, node: Node) -> Result:
    """ONNX Attention-23 to 25: Q (N, S, h·d) or (N, h, S, d), K and V alike with kv heads; a past before K and V.

    A query that may look at no key gives zeros.
    """
    q, k, v = (b.tensor(name) for name in node.inputs[:3])
    flat = b.rank(node, node.inputs[0]) == 3
    if flat:
        said = node.attributes["q_num_heads"], *(node.attributes["kv_num_heads"],) * 2
        q, k, v = (b.call(in_heads, t, heads) for t, heads in zip((q, k, v), said, strict=True))
    past_k, past_v, lengths = (b.optional(node, i) for i in (4, 5, 6))
    k, v = (t if past is None else b.call(followed, past, t) for past, t in ((past_k, k), (past_v, v)))
    mask = b.optional(node, 3)
    causal = bool(node.attributes.get("is_causal", 0))
    left, right = (node.attributes.get(f"{side}_window_size", -1) for side in ("left", "right"))
    softcap, precision = node.attributes.get("softcap", 0.0), _precision(b, node)
    show = len(node.outputs) > 3 and node.outputs[3] != ""
    given = any(t is not None for t in (mask, past_k, lengths)) or max(left, right) >= 0
    bias = None
    if given or (causal and (softcap or precision or show)):
        before = None if past_k is None else b.fx.call_method("size", (past_k, 2))
        bias = b.call(allowing, q, k, mask, lengths, before or 0, causal, left, right)
    options = {"scale": node.attributes.get("scale"), "softcap": softcap, "precision": precision}
    if show:
        stage = node.attributes.get("qk_matmul_output_mode", 0)
        both = b.call(attend_and_show, q, k, v, bias, stage, **options)
        y, shown = (b.call(operator.getitem, both, i) for i in range(2))
    else:
        y = b.call(attend, q, k, v, bias, causal and bias is None, **options)
        shown = y
    return (b.call(out_of_heads, y) if flat else y), k, v, shown


def _precision(b: Builder, node: Node) -> torch.dtype | None:
    """The type in which softmax is computed, None where it is the queries' own."""
    said = node.attributes.get("softmax_precision")
    if said is None or onnx_dtype(said) == b.graph.dtype(node.inputs[0]):
        return None
    return torch_dtype(onnx_dtype(said))


@lowers("MultiHeadAttention", domain=DOMAIN)
def multi_head_attention(b: Builder, node: Node) -> Result:
    """com.microsoft MultiHeadAttention: query (N, S, h·d), key (N, T, h·d) or (N, h, T, d), value alike with d_v.

    Padding is hidden by a large negative number, so a query whose keys are all padding weighs them all.
    """
    if not has(node, 1) or not has(node, 2) or b.rank(node, node.inputs[1]) == 5 or b.rank(node, node.inputs[0]) != 3:
        raise b.unsupported(node, "queries, keys and values packed into one tensor")
    _refuse(b, node, {8: "one buffer for past and present keys", 9: "keys of other beams"})
    if has(node, 4):
        _check_padding(b, node, 4)
    heads = node.attributes["num_heads"]
    q, k, v = (b.tensor(name) for name in node.inputs[:3])
    flat = b.rank(node, node.inputs[1]) == 3
    if has(node, 3):
        if not flat:
            raise b.unsupported(node, "a bias for keys that come in heads")
        q, k, v = _biased(b, node, (q, k, v))
    q = b.call(in_heads, q, heads)
    if flat:
        k, v = (b.call(in_heads, t, heads) for t in (k, v))
    past = b.optional(node, 6), b.optional(node, 7)
    k, v = (t if before is None else b.call(followed, before, t) for before, t in zip(past, (k, v), strict=True))
    return _own_attention(b, node, (q, k, v), past[0], mask=b.optional(node, 4), added=b.optional(node, 5))


def _biased(b: Builder, node: Node, parts: tuple[fx.Node, ...]) -> list[fx.Node]:
    """Queries, keys and values, plus their parts of one bias."""
    bias, sizes = b.tensor(node.inputs[3]), [b.shape(node, name)[2] for name in node.inputs[:3]]
    if None in sizes:
        raise b.unsupported(node, "a bias for sizes that vary")
    pieces = b.call(torch.split, bias, sizes)
    return [b.call(torch.add, t, b.call(operator.getitem, pieces, i)) for i, t in enumerate(parts)]


@lowers("Attention", domain=DOMAIN)
def packed_attention(b: Builder, node: Node) -> Result:
    """com.microsoft Attention: x (N, S, c) by weights (c, h·d + h·d + h·d_v); past and present (2, N, h, T, d)."""
    if node.attributes.get("do_rotary", 0):
        raise b.unsupported(node, "queries that are turned inside (do_rotary)")
    if node.attributes.get("past_present_share_buffer", 0) or has(node, 6):
        raise b.unsupported(node, "one buffer for past and present keys")
    if has(node, 3):
        _check_padding(b, node, 3)
    heads, sizes = node.attributes["num_heads"], list(node.attributes.get("qkv_hidden_sizes") or ())
    if not sizes:
        columns = b.shape(node, node.inputs[1])[1]
        if columns is None:
            raise b.unsupported(node, "the number of heads varies")
        sizes = [columns // 3] * 3
    x, weight, bias = b.tensor(node.inputs[0]), b.tensor(node.inputs[1]), b.optional(node, 2)
    pieces = b.call(torch.split, b.call(F.linear, x, b.call(torch.t, weight), bias), sizes, -1)
    q, k, v = (b.call(in_heads, b.call(operator.getitem, pieces, i), heads) for i in range(3))
    past = before = b.optional(node, 4)
    if past is not None:
        before = b.call(operator.getitem, past, 0)
        k, v = (b.call(followed, b.call(operator.getitem, past, i), t) for i, t in enumerate((k, v)))
    mask, added = b.optional(node, 3), b.optional(node, 5)
    y, *_ = _own_attention(b, node, (q, k, v), before, mask=mask, added=added)
    if len(node.outputs) == 1:
        return y
    return y, b.call(torch.stack, (k, v))


def _own_attention(
    b: Builder,
    node: Node,
    parts: tuple[fx.Node, fx.Node, fx.Node],
    past: fx.Node | None,
    *,
    mask: fx.Node | None,
    added: fx.Node | None,
) -> tuple[fx.Node, ...]:
    """What com.microsoft's Attention and MultiHeadAttention do with queries, keys and values in heads."""
    q, k, v = parts
    causal, scale = bool(node.attributes.get("unidirectional", 0)), node.attributes.get("scale", 0.0) or None
    queries, keys = (b.shape(node, name) for name in node.inputs[:2])
    if causal and node.op == "MultiHeadAttention" and queries[1] != keys[-2] and None not in (queries[1], keys[-2]):
        raise b.unsupported(node, "unidirectional, where onnxruntime shows the last query keys that come later")
    show = len(node.outputs) > 3 and node.outputs[3] != ""
    bias = added
    if mask is not None:
        bias = b.call(with_padding, q, k, mask, bias, node.attributes.get("mask_filter_value", -10000.0))
    if causal and (bias is not None or past is not None or show):
        before = 0 if past is None else b.fx.call_method("size", (past, 2))
        bias = b.call(allowing, q, k, bias, None, before, causal)
    if show:
        both = b.call(attend_and_show, q, k, v, bias, AFTER_MASK, scale=scale)
        y, shown = (b.call(operator.getitem, both, i) for i in range(2))
        return b.call(out_of_heads, y), k, v, shown
    y = b.call(attend, q, k, v, bias, causal and bias is None, scale=scale)
    return b.call(out_of_heads, y), k, v


def _check_padding(b: Builder, node: Node, index: int) -> None:
    """Raise UnsupportedOp for kinds of masks that onnxruntime's CPU kernels do not know, or that need the batch."""
    shape, batch = b.shape(node, node.inputs[index]), b.shape(node, node.inputs[0])[0]
    if len(shape) > 3:
        raise b.unsupported(node, f"a mask of {len(shape)} axes")
    if len(shape) == 1 and batch is not None and shape[0] not in (None, batch, 2 * batch):
        raise b.unsupported(node, f"a mask of {shape[0]} numbers for {batch} samples")


@lowers("GroupQueryAttention", domain=DOMAIN)
def group_query_attention(b: Builder, node: Node) -> Result:
    """com.microsoft GroupQueryAttention: query (N, S, kv·g·d), key and value (N, S, kv·d), or all behind each other.

    Of samples with padding behind them, which the lengths say, the rows of the padding are as if it were none:
    onnxruntime leaves them open.
    """
    n_q, n_kv = node.attributes["num_heads"], node.attributes["kv_num_heads"]
    refused = {9: "positions of its own", 12: "a quantised cache", 13: "a quantised cache", 14: "norms of its own"}
    _refuse(b, node, refused)
    for name in ("sliding_window_cache", "qk_output"):
        if node.attributes.get(name, 0):
            raise b.unsupported(node, f"{name} {node.attributes[name]}")
    if has(node, 1):
        q, k, v = (b.tensor(name) for name in node.inputs[:3])
    else:
        hidden = b.shape(node, node.inputs[0])[2]
        if hidden is None:
            raise b.unsupported(node, "the size of a head varies")
        size = hidden // (n_q + 2 * n_kv)
        pieces = b.call(torch.split, b.tensor(node.inputs[0]), [n_q * size, n_kv * size, n_kv * size], -1)
        q, k, v = (b.call(operator.getitem, pieces, i) for i in range(3))
    q, k, v = (b.call(in_heads, t, heads) for t, heads in ((q, n_q), (k, n_kv), (v, n_kv)))
    before = _length_of_past(b, node)
    if node.attributes.get("do_rotary", 0):
        q, k = _turned(b, node, (q, k), before)
    if before:
        k, v = (b.call(followed, b.tensor(node.inputs[3 + i]), t) for i, t in enumerate((k, v)))
    causal, added = bool(node.attributes.get("causal", 1)), b.optional(node, 10)
    softcap, window = node.attributes.get("softcap", 0.0), node.attributes.get("local_window_size", -1)
    sink = b.optional(node, 11)
    if sink is None and node.attributes.get("smooth_softmax", 0):
        sink = b.call(torch.zeros, n_q, device=b.device())
    lengths, bias = None, None
    if not causal:
        lengths = b.call(operator.add, b.tensor(node.inputs[5]), 1)
    if lengths is not None or added is not None or before or softcap or sink is not None or window > 0:
        bias = b.call(allowing, q, k, added, lengths, before, causal, window - 1 if window > 0 else -1)
    options = {"scale": node.attributes.get("scale", 0.0) or None, "softcap": softcap, "sink": sink}
    y = b.call(attend, q, k, v, bias, causal and bias is None, **options)
    return b.call(out_of_heads, y), k, v


def _length_of_past(b: Builder, node: Node) -> int:
    """How many positions come before the queries. Raises UnsupportedOp where only the data says."""
    if not has(node, 3):
        return 0
    past, queries = b.shape(node, node.inputs[3])[2], b.shape(node, node.inputs[0])[1]
    last = b.constant(node.inputs[5])
    if past is None or queries is None or last is None or any(last.reshape(-1) != past + queries - 1):
        raise b.unsupported(node, "a cache whose length depends on the data")
    return past


def _turned(b: Builder, node: Node, parts: tuple[fx.Node, ...], before: int) -> list[fx.Node]:
    """Queries and keys, turned by position."""
    if not (has(node, 7) and has(node, 8)):
        raise b.unsupported(node, "do_rotary without tables")
    length = b.fx.call_method("size", (parts[0], 2))
    first = b.call(torch.tensor, [before], device=b.device())
    places = b.call(offset_places, first, length)
    tables = [b.call(rows_of, b.tensor(node.inputs[i]), places) for i in (7, 8)]
    interleaved = bool(node.attributes.get("rotary_interleaved", 0))
    return [b.call(rotated, t, *tables, interleaved) for t in parts]


def _refuse(b: Builder, node: Node, inputs: dict[int, str]) -> None:
    for index, fact in inputs.items():
        if has(node, index):
            raise b.unsupported(node, fact)


# What the generated code calls. q: [N, h, S, d], k: [N, kv, T, d], v: [N, kv, T, d_v].


def followed(past: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Keys or values behind those of the past."""
    return torch.cat((past, x), 2)


def allowing(
    q: torch.Tensor,
    k: torch.Tensor,
    mask: torch.Tensor | None,
    lengths: torch.Tensor | None,
    before: int,
    causal: bool,
    left: int = -1,
    right: int = -1,
) -> torch.Tensor:
    """What is added to the scores [N, h, S, T]: minus infinity where a query must not look at a key.

    Query i has position i + before, or i + lengths - S where each sample has a length of its own [N]. It looks at no
    later key if causal, and at no key further than `left` or `right` (-1: any). The mask is boolean (True: look) or
    added; its last axis may be shorter than T.
    """
    s, t = q.size(2), k.size(2)
    keys, own = torch.arange(t, device=q.device), torch.arange(s, device=q.device)[:, None]
    ends = None if lengths is None else lengths.reshape(-1, 1, 1, 1)
    own = own + before if ends is None else own + ends - s
    rules = [keys <= own] if causal else []
    rules += [keys >= own - left] if left >= 0 else []
    rules += [keys <= own + right] if right >= 0 else []
    rules += [] if ends is None else [keys < ends]
    bias = q.new_zeros(s, t)
    if mask is not None and mask.dtype == torch.bool:
        rules.append(F.pad(mask, (0, t - mask.size(-1)), value=False))
    elif mask is not None:
        bias = F.pad(mask, (0, t - mask.size(-1)), value=-torch.inf).expand(*mask.shape[:-2], s, t)
    return torch.where(reduce(operator.and_, rules), bias, -torch.inf) if rules else bias


def with_padding(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor, added: torch.Tensor | None, hidden: float
) -> torch.Tensor:
    """What is added to the scores, and `hidden` where padding is (com.microsoft Attention, MultiHeadAttention).

    mask: 1 for keys that count, [N, T] or [N, S, T]; or how many of them do, [N]; or where they end and begin, [2·N].
    """
    if mask.dim() == 1:
        keys = torch.arange(k.size(2), device=q.device)
        ends, *begins = mask.reshape(-1, q.size(0), 1)
        seen = reduce(operator.and_, [keys >= begin for begin in begins], keys < ends)
    else:
        seen = mask > 0
    bias = torch.where(seen[:, None, None] if seen.dim() == 2 else seen[:, None], 0.0, hidden).to(q.dtype)
    return bias if added is None else added + bias


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    causal: bool = False,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sink: torch.Tensor | None = None,
    precision: torch.dtype | None = None,
) -> torch.Tensor:
    """softmax(scale · q kᵀ + bias) v, [N, h, S, d_v]; head i reads the keys of head i // (h / kv).

    `causal` is for queries and keys that begin together, and without a bias.
    """
    if softcap or sink is not None or precision is not None:
        return attend_and_show(q, k, v, bias, 0, scale=scale, softcap=softcap, sink=sink, precision=precision)[0]
    shared = q.size(1) != k.size(1)
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=shared)
    bias, blind = _opened(bias)
    made = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=shared)
    return made.masked_fill(blind, 0)


def attend_and_show(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    stage: int,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sink: torch.Tensor | None = None,
    precision: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attend`, step by step, and the scores: 0 of the product, 1 capped, 2 with the bias, 3 after softmax.

    A cap c makes them c · tanh(x / c); a sink [h] is a score of each head that takes its weight to nowhere.
    """
    k, v = (t.repeat_interleave(q.size(1) // t.size(1), 1) for t in (k, v))
    scores = q @ k.mT * (q.size(-1) ** -0.5 if scale is None else scale)
    shown = [scores, torch.tanh(scores / softcap) * softcap if softcap else scores]
    blind = None
    shown.append(shown[-1] if bias is None else shown[-1] + bias)
    scores = shown[-1]
    if bias is not None:
        opened, blind = _opened(bias)
        scores = shown[1] + opened
    scores = scores if precision is None else scores.to(precision)
    weights = torch.softmax(scores, -1) if sink is None else with_sink(scores, sink)
    weights = (weights if blind is None else weights.masked_fill(blind, 0)).to(q.dtype)
    shown.append(weights)
    return weights @ v, shown[stage]


def with_sink(scores: torch.Tensor, sink: torch.Tensor) -> torch.Tensor:
    """Softmax of scores [N, h, S, T] and of one more number for each head [h], whose share is left out."""
    more = sink.to(scores.dtype).reshape(-1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat((scores, more), -1), -1)[..., :-1]


def _opened(bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A bias without rows that hide every key, of which softmax would make no numbers; and which rows those are."""
    blind = (bias == -torch.inf).all(-1, keepdim=True)
    return bias.masked_fill(blind, 0), blind
