"""What operators that carry a state from position to position say about their axes, beside recurrent layers."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
from strategies import Builder
from test_rules import Build, Case, check, dense, grid, made
from test_rules_attention import LENGTH, OLD, OWN, STATIC, back
from test_rules_fused import sequence, vector


def linear(
    rule: str, *, per_number: bool = False, one_rate: bool = False, past: bool = False, domain: str = OWN
) -> Build:
    """LinearAttention of two heads of 4 numbers; of 3 for values."""

    def build(b: Builder, x: str) -> str:
        y = sequence(b, x)
        n = b.shapes[y][0]
        q, k, v = (dense(b, y, size) for size in (8, 8, 6))
        k = b.node("Tanh", [k], b.shapes[k])
        inputs = [q, k, v, b.weight(b.floats(n, 2, 4, 3)) if past else "", "", ""]
        if "gated" in rule:
            gate = b.node("Sigmoid", [dense(b, y, 8 if per_number else 2)], (n, LENGTH, 8 if per_number else 2))
            inputs[4] = b.node("Neg", [gate], b.shapes[gate])
        if "delta" in rule:
            inputs[5] = b.node("Sigmoid", [dense(b, y, 1 if one_rate else 2)], (n, LENGTH, 1 if one_rate else 2))
        attributes = {"q_num_heads": 2, "kv_num_heads": 2, "update_rule": rule, "scale": 0.3}
        shapes = [(n, LENGTH, 6), (n, 2, 4, 3)]
        y, state = b.node_of("LinearAttention", inputs, shapes, domain=domain, **attributes)
        return back(b, x, y, state)

    return build


def causal(*, past: bool = False, bias: bool = True, domain: str = OWN, **more: Any) -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        y = b.node("Reshape", [x, b.integers([0, 0, h * w])], (n, c, h * w))
        inputs = [y, b.weight(b.floats(c, 1, 3)), vector(b, c) if bias else ""]
        inputs += [b.weight(b.floats(n, c, 2))] if past else []
        y, state = b.node_of("CausalConvWithState", inputs, [(n, c, h * w), (n, c, 2)], domain=domain, **more)
        y = b.node("Add", [y, b.mean(state, [2])], (n, c, h * w))
        return b.node("Reshape", [y, b.integers([0, 0, h, w])], (n, c, h, w))

    return build


CASES = [
    *(Case(f"LinearAttention, {r}", linear(r), [2, 3, 6], mixed=[2, 3], **OLD) for r in ("linear", "gated", "delta")),
    Case("LinearAttention, gated delta", linear("gated_delta", one_rate=True), [2, 3, 6], mixed=[2, 3], **OLD),
    Case("LinearAttention, gated by number", linear("gated", per_number=True), [2, 3, 6], mixed=[2, 3], **OLD),
    Case(
        "LinearAttention with a past",
        linear("linear", past=True),
        [2, 3, 6],
        ["activations"],
        mixed=[2, 3],
        **OLD,
        **STATIC,
    ),
    Case("CausalConvWithState", causal(activation="silu"), [6], **OLD),
    Case("CausalConvWithState with a past", causal(past=True, bias=False), [6], **OLD, **STATIC),
]


@pytest.mark.parametrize(("case", "opset", "dynamic"), grid(CASES))
def test_an_operator_resizes_exactly_or_freezes(case: Case, opset: int, dynamic: bool) -> None:
    check(case, opset, dynamic)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_laws_hold(case: Case) -> None:
    oracles.keep_all_laws(made(case, case.opsets[-1]))
