"""Positions that a model counts itself: tables that are cut at the length of a sequence, tokens put in front of it."""

from __future__ import annotations

import random

import numpy as np
import oracles
import pytest
from strategies import Builder

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph

LENGTH = 16  # what the analysis assumes for a symbolic axis of integers


def words(c: int = 6) -> tuple[Builder, str]:
    """Words [N, T] looked up in a table and taken through a dense layer: [N, T, c]."""
    b = Builder(random.Random(4), opset=17, batch=3, dynamic=True)
    b.tidy, b.length = True, LENGTH
    ids = b.ids("ids", (3, LENGTH))
    x = b.node("Gather", [b.weight(b.floats(5, 4)), ids], (3, LENGTH, 4))
    return b, b.node("MatMul", [x, b.weight(b.floats(4, c))], (3, LENGTH, c))


def size_of(b: Builder, x: str, axis: int) -> str:
    sizes = b.node("Shape", [x], (len(b.shapes[x]),))
    return b.node("Slice", [sizes, b.integers([axis]), b.integers([axis + 1])], (1,))


def out(b: Builder, x: str) -> str:
    n, t, c = b.shapes[x]
    return b.node("MatMul", [b.node("Relu", [x], (n, t, c)), b.weight(b.floats(c, 2))], (n, t, 2))


@pytest.mark.parametrize("axes", [[0], [0, 1]])
def test_a_table_that_is_cut_at_the_length_is_as_wide_as_what_it_is_added_to(axes):
    """With both axes named, the columns are cut by a number too, and keep their size."""
    b, x = words()
    table, end = b.weight(b.floats(24, 6)), size_of(b, x, 1)
    if len(axes) > 1:
        end = b.node("Concat", [end, b.integers([6])], (2,), axis=0)
    rows = b.node("Slice", [table, b.integers([0] * len(axes)), end, b.integers(axes)], (LENGTH, 6))
    model = b.model([out(b, b.node("Add", [x, rows], b.shapes[x]))])
    tied = [w for w in analyze(Graph(model)).widths.values() if (table, 1) in {(m.tensor, m.axis) for m in w.members}]
    assert [w.size for w in tied] == ([6] if len(axes) == 1 else [])
    assert all(f.reason.kind == "computed bounds" for f in analyze(Graph(model)).frozen if f.tensor == table)
    oracles.keep_all_laws(model)


def test_a_size_that_something_is_cut_at_can_be_cut():
    """Six rows of a table, since the layer before it has six channels: fewer are fewer, and more have no rows."""
    b, x = words()
    table = b.weight(b.floats(8, 3))
    rows = b.node("Slice", [table, b.integers([0]), size_of(b, x, 2), b.integers([0])], (6, 3))
    weights = b.node("Reshape", [rows, b.integers([18])], (18,))
    y = b.node("Reshape", [b.node("Tanh", [weights], (18,)), b.integers([6, 3])], (6, 3))
    model = b.model([b.node("MatMul", [x, y], (3, LENGTH, 3))])
    analysis = analyze(Graph(model))
    assert [(w.size, w.max) for w in analysis.widths.values()] == [(4, None), (6, 6)]
    oracles.keep_all_laws(model)


@pytest.mark.parametrize("positions", ["added", "compared"])
def test_tokens_in_front_of_a_sequence_are_counted_with_it(positions):
    """One more than the symbolic length: a sum of sizes on one side, as many numbers as were counted on the other."""
    b, x = words()
    token = b.node("Expand", [b.weight(b.floats(1, 1, 6)), b.computed(x, (3, 1, 6), {0: 0})], (3, 1, 6))
    t = LENGTH + 1
    x = b.node("Concat", [token, x], (3, t, 6), axis=1)
    length = b.squeeze(size_of(b, x, 1), [0])
    ends = [b.weight(np.array(k, np.int64)) for k in (0, 1)]
    places = b.node("Range", [ends[0], length, ends[1]], (t,))
    if positions == "added":
        x = b.node("Add", [x, b.node("Gather", [b.weight(b.floats(24, 6)), places], (t, 6))], (3, t, 6))
    else:
        scores = b.node("MatMul", [x, b.transpose(x, (0, 2, 1))], (3, t, t))
        later = b.node("Less", [b.unsqueeze(places, [1]), b.unsqueeze(places, [0])], (t, t))
        scores = b.node("Where", [later, b.weight(np.array(-1e4, np.float32)), scores], (3, t, t))
        value = b.node("MatMul", [x, b.weight(b.floats(6, 4))], (3, t, 4))
        x = b.node("MatMul", [b.node("Softmax", [scores], (3, t, t), axis=-1), value], (3, t, 4))
    model = b.model([out(b, x)])
    analysis = analyze(Graph(model))
    assert max(w.size for w in analysis.widths.values()) == 6
    assert not [f for f in analysis.frozen if f.reason.kind == "conflict"]
    oracles.keep_all_laws(model)
