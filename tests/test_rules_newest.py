"""Operators of operator sets that onnxruntime does not have yet, by onnx's reference evaluator in double precision."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from strategies import Builder
from test_rules import Case, kinds, made
from test_rules_stateful import causal, linear

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph
from conet_onnx.planning import select
from conet_onnx.rewriting import rewrite

NEWEST = 28


def products(b: Builder, x: str) -> str:
    """Products along rows, of numbers near one."""
    y = b.node("Tanh", [x], b.shapes[x])
    y = b.node("Exp", [y], b.shapes[x])
    return b.node("CumProd", [y, b.weight(np.array(3))], b.shapes[x])


def gated(b: Builder, x: str) -> str:
    return b.node("SwiGLU", [x, b.conv(x, b.shapes[x][1])], b.shapes[x], alpha=0.7)


CASES = [
    Case("CumProd", products, [6]),
    Case("SwiGLU", gated, [6]),
    Case("CausalConvWithState", causal(domain="", activation="silu"), [6]),
    *(
        Case(f"LinearAttention, {r}", linear(r, domain=""), [2, 3, 6], mixed=[2, 3])
        for r in ("linear", "gated", "delta")
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_resizes_exactly(case: Case) -> None:
    analysis = analyze(Graph(made(case, NEWEST)))
    assert sorted(w.size for w in analysis.widths.values()) == sorted(case.widths)
    assert sorted(w.size for w in analysis.widths.values() if not w.exact) == sorted(case.mixed)
    assert kinds(analysis) == set(case.frozen)
    rng = np.random.default_rng(0)
    for chosen in (oracles.shrunk(analysis, rng), oracles.halved_shares(oracles.doubled(analysis, rng))):
        resized = rewrite(analysis.graph, select(analysis, chosen))
        outcome = oracles.compare_with(analysis, resized, chosen, double=True)
        assert outcome.compared > 3
        sizes = {name: len(selection.indices) for name, selection in chosen.items()}
        assert tuple(analysis.costs.price(sizes)) == oracles.counted(resized)
    assert tuple(analysis.costs.price({})) == oracles.counted(analysis.graph)
