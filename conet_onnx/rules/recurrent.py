"""Recurrent layers: LSTM, GRU, RNN."""

from __future__ import annotations

from conet_onnx.dims import ONE, Axis, Segment, axis, product
from conet_onnx.rules.registry import Contraction, Facts, Op, Opaque, Operand, Shape, Site, rule
from conet_onnx.solving import Reason

__all__ = ["recurrent"]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule(*GATES, since=7)
def recurrent(
    op: Op,
    x: Shape,
    w: Shape,
    r: Shape,
    b: Shape | None = None,
    lengths: Shape | None = None,
    hidden: Shape | None = None,
    cell: Shape | None = None,
    p: Shape | None = None,
) -> Facts:
    """ONNX LSTM, GRU, RNN with G gates: X (T, N, i), W (D, G·h, i), R (D, G·h, h), B (D, 2·G·h), P (D, 3·h).

    Y (T, D, N, h), states (D, N, h); with layout = 1 the batch stands first everywhere. A unit meets others in R's last
    axis only: gates, activations, peepholes and the clip work on each unit by itself, in both forms of GRU's reset.
    """
    gates, directions = GATES[op.node.op], 2 if op.attribute("direction", "forward") == "bidirectional" else 1
    first = op.attribute("layout", 0)
    batch, steps = (x[0], x[1]) if first else (x[1], x[0])
    i, h, d = w[2], r[2], product(directions)
    if op.attribute("hidden_size", h.size[0]) != h.size[0]:
        raise Opaque("bad size", f"{op.node} has weights of another size than its hidden_size")
    states = (batch, d, h) if first else (d, batch, h)
    counts = ((w, gates), (r, gates), (b, 2 * gates), (p, 3))
    equal: list[tuple[Axis | Segment, Axis | Segment]] = [(x[2], i)]
    equal += [(some[1], product(n, h)) for some, n in counts if some is not None]
    equal += [(lengths[0], batch)] if lengths is not None else []
    equal += [pair for some in (hidden, cell) if some is not None for pair in zip(some, states, strict=True)]
    equal += [(some[0], d) for some in (w, r, b, p) if some is not None]
    applied = product(batch, steps, d, gates, h)
    reason = Reason("steps", op.node.name, f"{op.node} goes along it step by step")
    return Facts(
        outputs=((batch, steps, d, h) if first else (steps, d, batch, h), states, states)[: len(op.node.outputs)],
        equal=tuple(equal),
        contracts=(
            Contraction((Operand(0, 2, ONE, x[2]), Operand(1, 2, ONE, i)), produces=(h,), macs=product(applied, i)),
            Contraction((Operand(2, 2, ONE, h),), produces=(h,), macs=product(applied, h)),
        ),
        sites=(Site("attribute:hidden_size", 0, axis(h), h.size[0]),) if op.attribute("hidden_size") else (),
        frozen=((steps, reason),),
    )
