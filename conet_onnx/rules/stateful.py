"""Operators that carry a state from position to position, beside recurrent layers."""

from __future__ import annotations

from conet_onnx.contrib import DOMAIN
from conet_onnx.dims import Axis, Segment, axis, product
from conet_onnx.rules.registry import Contraction, Facts, Op, Opaque, Shape, Site, rule, spatial
from conet_onnx.solving import Reason

__all__ = ["causal_conv", "linear_attention"]

Equal = tuple[Axis | Segment, Axis | Segment]


@rule("CausalConvWithState", since=27)
@rule("CausalConvWithState", domain=DOMAIN)
def causal_conv(op: Op, x: Shape, w: Shape, b: Shape | None = None, past: Shape | None = None) -> Facts:
    """ONNX CausalConvWithState: X (N, c, L), W (c, 1, k), depthwise; the state (N, c, k - 1) is the end of X."""
    if op.attribute("state_window", 0) or op.attribute("channels_last", 0) or op.attribute("ndim", 1) != 1:
        raise Opaque("layout", f"{op.node} is more than one dimension, channels first, with one state")
    if len(x) != 3 or len(w) != 3:
        raise Opaque("rank", f"{op.node} does not read (N, c, L) and (c, 1, k)")
    length = (w[2].size[0] - 1) * op.attribute("dilation", 1)
    equal: list[Equal] = [(x[1], w[0]), *([] if b is None else [(x[1], b[0])])]
    equal += [] if past is None else [(past[0], x[0]), (past[1], x[1])]
    return Facts(
        outputs=(x, (*x[:2], product(length)))[: len(op.node.outputs)],
        equal=tuple(equal),
        contracts=(Contraction(operands=(), produces=(), macs=product(*x, w[2])),),
        frozen=spatial(op, x[2:]) + spatial(op, w[2:]) + spatial(op, () if past is None else past[2:]),
    )


@rule("LinearAttention", since=27)
@rule("LinearAttention", domain=DOMAIN)
def linear_attention(
    op: Op,
    q: Shape,
    k: Shape,
    v: Shape,
    past: Shape | None = None,
    decay: Shape | None = None,
    beta: Shape | None = None,
) -> Facts:
    """ONNX LinearAttention: query and key (N, T, h·d), value (N, T, h·d_v), a state (N, h, d, d_v) for each position.

    The decay is (N, T, h·d) or (N, T, h), the rate (N, T, h) or (N, T, 1). MACs: the state is made, read, and for the
    delta rules read once more.
    """
    n = op.attribute("kv_num_heads", 0)
    if op.attribute("state_window", 0):
        raise Opaque("layout", f"{op.node} keeps more than one state")
    if n < 1 or op.attribute("q_num_heads", 0) != n:
        raise Opaque("shared heads", f"{op.node} has several queries for a key: which ones is not said")
    (d, rest), (d_v, rest_v) = divmod(k[2].size[0], n), divmod(v[2].size[0], n)
    if rest or rest_v or any(s.size[0] != s.size[1] for s in (k[2], v[2])):
        raise Opaque("bad heads", f"{op.node} has hidden sizes that {n} heads do not divide")
    heads, size, value = (product(op.fresh(name, (s, s))) for name, s in (("h", n), ("d", d), ("d_v", d_v)))
    equal: list[Equal] = [(q[2], product(heads, size)), (k[2], product(heads, size)), (v[2], product(heads, value))]
    equal += [(q[i], other[i]) for i in (0, 1) for other in (k, v, decay, beta) if other is not None]
    if past is not None:
        equal += list(zip(past, (q[0], heads, size, value), strict=True))
    if decay is not None:
        equal += [(decay[2], heads if decay[2].size == (n, n) else product(heads, size))]
    if beta is not None and beta[2].size != (1, 1):
        equal += [(beta[2], heads)]
    steps = 3 if "delta" in op.attribute("update_rule", "gated_delta") else 2
    inner = Reason("activations", op.node.name, f"{op.node} sums over the size of a head between two activations")
    along = Reason("positions", op.node.name, f"{op.node} goes along it step by step")
    sites = tuple(Site(f"attribute:{name}", 0, axis(heads), n) for name in ("q_num_heads", "kv_num_heads"))
    return Facts(
        outputs=((*q[:2], product(heads, value)), (q[0], heads, size, value))[: len(op.node.outputs)],
        equal=tuple(equal),
        contracts=(Contraction(operands=(), produces=(), macs=product(q[0], q[1], heads, size, value)),) * steps,
        sites=sites if heads.factors else (),
        frozen=((size, inner), (q[1], along)),
    )
