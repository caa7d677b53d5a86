"""Prices are what is counted on the rewritten model, for any widths, without rewriting it."""

from __future__ import annotations

import random

import numpy as np
import onnx
import oracles
import pytest
import strategies
from onnx import helper, numpy_helper
from strategies import Builder

from conet_onnx.analysis import analyze
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.planning import plan
from conet_onnx.rewriting import rewrite


def builder(**options) -> Builder:
    b = Builder(random.Random(1), **{"opset": 17, "batch": 2, **options})
    b.tidy = True
    return b


def small(batch: int = 2, dynamic: bool = False) -> onnx.ModelProto:
    """conv 3 -> 6, conv 6 -> 8 of 3x3, Gemm 8 -> 5."""
    b = builder(batch=batch, dynamic=dynamic)
    x = b.conv(b.input("x", (batch, 3, 4, 4)), 6)
    x = b.node("GlobalAveragePool", [b.conv(x, 8, kernel=3)], (batch, 8, 1, 1))
    flat = b.node("Flatten", [x], (batch, 8), axis=1)
    return b.model([b.node("Gemm", [flat, b.weight(b.floats(8, 5)), b.weight(b.floats(5))], (batch, 5))])


PARAMS = 6 * 3 + 6 + 8 * 6 * 9 + 8 + 8 * 5 + 5
MACS = 16 * 6 * 3 + 16 * 8 * 6 * 9 + 8 * 5


@pytest.mark.parametrize(("batch", "dynamic"), [(1, False), (2, False), (7, False), (3, True)])
def test_the_source_is_priced_at_batch_one(batch, dynamic):
    analysis = analyze(Graph(small(batch, dynamic)))
    assert analysis.costs.source == (PARAMS, MACS, 4 * PARAMS)
    assert analysis.costs.price({}) == analysis.costs.source


def test_a_width_is_priced_where_it_is_made_and_where_it_is_read():
    analysis = analyze(Graph(small()))
    price = analysis.costs.price({"w0": 2})
    assert price.params == PARAMS - 4 * 3 - 4 - 8 * 4 * 9
    assert price.macs == MACS - 16 * 4 * 3 - 16 * 8 * 4 * 9


def test_many_candidates_are_priced_as_one_by_one():
    analysis = analyze(Graph(strategies.random_model(random.Random(11), steps=12)))
    rng = np.random.default_rng(0)
    sizes = np.array([w.size for w in analysis.widths.values()])
    assert len(sizes) > 2
    rows = np.vstack([rng.integers(1, 2 * sizes + 1) for _ in range(50)] + [sizes])
    together = analysis.costs.price_many(rows)
    assert together.shape == (51, 3)
    for row, found in zip(rows, together, strict=True):
        assert analysis.costs.price(dict(zip(analysis.widths, row.tolist(), strict=True))) == tuple(found)


@pytest.mark.parametrize("seed", range(12))
def test_prices_are_what_is_counted_on_the_rewritten_model(seed):
    model = strategies.random_model(random.Random(f"costs {seed}"))
    analysis = analyze(Graph(model))
    rng = np.random.default_rng(seed)
    for _ in range(3):
        widths = {n: int(rng.integers(1, (w.max or 2 * w.size) + 1)) for n, w in analysis.widths.items()}
        if all(analysis.widths[n].size == s for n, s in widths.items()):
            continue
        resized = rewrite(analysis.graph, plan(analysis, widths, inexact=True))
        assert tuple(analysis.costs.price(widths)) == oracles.counted(resized)


def test_an_unknown_id_is_a_usage_error():
    with pytest.raises(UsageError, match="w99"):
        analyze(Graph(small())).costs.price({"w99": 3})


def test_a_model_without_widths_has_a_price():
    b = builder()
    model = b.model([b.conv(b.input("x", (2, 3, 4, 4)), 6)])
    analysis = analyze(Graph(model))
    assert not analysis.widths
    assert analysis.costs.price({}) == (24, 16 * 18, 96)
    assert analysis.costs.coverage == (0, 0)


def test_weights_that_nobody_reads_scalars_and_integers():
    """Parameters are elements of floating-point weights of rank one or more; bytes are those of all initializers."""
    model = small()
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in (
            ("unused", np.zeros(10, np.float32)),
            ("scalar", np.float32(3).reshape(())),
            ("integers", np.zeros(7, np.int64)),
            ("doubles", np.zeros(2, np.float64)),
        )
    )
    constant = numpy_helper.from_array(np.zeros(5, np.float32), "value")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["of a node"], value=constant))
    analysis = analyze(Graph(model))
    more = 40 + 4 + 56 + 16
    assert analysis.costs.source == (PARAMS + 17, MACS, 4 * PARAMS + more)
    resized = rewrite(analysis.graph, plan(analysis, {"w0": 3}))
    assert tuple(analysis.costs.price({"w0": 3})) == oracles.counted(resized)


def test_weights_in_constant_nodes_count_as_parameters_and_not_as_bytes():
    model = small()
    bias = model.graph.initializer[1]
    model.graph.node.insert(0, helper.make_node("Constant", [], [bias.name], value=bias))
    del model.graph.initializer[1]
    analysis = analyze(Graph(model))
    assert analysis.costs.source == (PARAMS, MACS, 4 * (PARAMS - 6))
    assert analysis.costs.price({"w0": 2}).bytes == 4 * (analysis.costs.price({"w0": 2}).params - 2)


@pytest.mark.parametrize("node", [False, True])
def test_copies_of_a_shared_bias_are_priced(node):
    """A bias that two layers share is stored once before and twice after; in a Constant node, only the copy is new."""
    b = builder()
    x = b.input("x", (2, 3, 4, 4))
    bias = b.weight(b.floats(5))
    model = b.model([b.conv(b.conv(x, 5, bias=bias), 2) for _ in range(2)])
    if node:
        tensor = next(t for t in model.graph.initializer if t.name == bias)
        model.graph.node.insert(0, helper.make_node("Constant", [], [bias], value=tensor))
        model.graph.initializer.remove(tensor)
    analysis = analyze(Graph(model))
    resized = rewrite(analysis.graph, plan(analysis, {"w0": 3}))
    price = analysis.costs.price({"w0": 3})
    assert tuple(price) == oracles.counted(resized)
    assert analysis.costs.source.params - price.params == 2 * 3 + 2 * 2 + 2 - 5


def test_a_product_of_weights_is_not_divided_by_the_batch():
    b = builder(batch=2)
    low = b.node("MatMul", [b.weight(b.floats(4, 2)), b.weight(b.floats(2, 3))], (4, 3))
    model = b.model([b.node("MatMul", [b.input("x", (2, 4)), low], (2, 3))])
    assert analyze(Graph(model)).costs.source.macs == 4 * 2 * 3 + 4 * 3


def test_share_and_coverage():
    analysis = analyze(Graph(small()))
    share = analysis.costs.share("w0")
    assert share.params == 6 * 3 + 6 + 8 * 6 * 9
    assert share.macs == 16 * 6 * 3 + 16 * 8 * 6 * 9
    assert analysis.costs.coverage == ((PARAMS - 5) / PARAMS, 1)
