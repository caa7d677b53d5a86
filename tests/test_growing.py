"""Sums over two activations: what can share its copies between them grows, and all else only shrinks.

The laws of every case are those of test_rules: both oracles compare every tensor.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracles
import pytest
from cli_support import call
from onnx import TensorProto
from strategies import Builder
from test_rules import Build, Case, check, dense, grid, made

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.errors import UsageError, VerificationFailed
from conet_onnx.graph import Graph
from conet_onnx.planning import plan, scaled
from conet_onnx.plans import WidthPlan
from conet_onnx.rewriting import rewrite
from conet_onnx.runtime import run_all
from conet_onnx.verification import verify

HEADS, SIZE = 2, 6
Step = Callable[[Builder, str], str]
Flat = Callable[[Builder, str, str], str]  # with the tokens that were projected


def same(b: Builder, x: str, tokens: str = "") -> str:
    return x


def unary(op: str, **attributes: Any) -> Step:
    return lambda b, x: b.node(op, [x], b.shapes[x], **attributes)


def biased(b: Builder, x: str, _: str) -> str:
    return b.node("Add", [x, b.weight(b.floats(b.shapes[x][-1]))], b.shapes[x])


def normed(b: Builder, x: str, _: str) -> str:
    """BatchNormalization of (N, L, C): over C."""
    turned = b.transpose(x, (0, 2, 1))
    return b.transpose(b.norm(turned), (0, 2, 1))


def gated(b: Builder, x: str, tokens: str) -> str:
    """Times another projection of the same tokens."""
    return b.node("Mul", [x, unary("Sigmoid")(b, dense(b, tokens, b.shapes[x][-1]))], b.shapes[x])


def turned(b: Builder, x: str) -> str:
    """Rotary positions on (N, H, L, d): half of the numbers of a head by cosines, the others by sines."""
    *_, length, size = b.shapes[x]
    first, second = b.split(x, 3, [size // 2, size // 2])
    other = b.node("Concat", [b.node("Neg", [second], b.shapes[second]), first], b.shapes[x], axis=3)
    angles = np.arange(length)[:, None] / 3.0 ** np.arange(size // 2)
    tables = [b.weight(np.tile(f(angles), 2).astype(np.float32)) for f in (np.cos, np.sin)]
    parts = [b.node("Mul", [y, t], b.shapes[x]) for y, t in zip((x, other), tables, strict=True)]
    return b.node("Add", parts, b.shapes[x])


def by_frequency(b: Builder, x: str) -> str:
    """Times the cosine of positions by frequencies: positions are data, frequencies are weights."""
    n, _, length, size = b.shapes[x]
    shape = (n, 1, length, size)
    positions = b.input(f"places of {x}", (n, 1, length, 1))
    angles = b.node("MatMul", [positions, b.weight(b.floats(1, size))], shape)
    return b.node("Mul", [x, b.node("Cos", [angles], shape)], b.shapes[x])


def scaled_by_channel(b: Builder, x: str) -> str:
    return b.node("Mul", [x, b.weight(b.floats(b.shapes[x][-1], around=1))], b.shapes[x])


def shifted(b: Builder, x: str) -> str:
    return b.node("Add", [x, b.weight(np.array(0.5, np.float32))], b.shapes[x])


def by_root_of_size(b: Builder, x: str) -> str:
    """Over the root of the size of a head, which the model computes."""
    size = b.node("Gather", [b.node("Shape", [x], (4,)), b.weight(np.array(3))], (), axis=0)
    root = b.node("Sqrt", [b.node("Cast", [size], (), to=TensorProto.FLOAT)], ())
    return b.node("Div", [x, root], b.shapes[x])


def squared(b: Builder, x: str) -> str:
    return b.node("Mul", [x, x], b.shapes[x])


def signs(b: Builder, x: str) -> str:
    """x / |x|: what is below the line cancels what is above it."""
    return b.node("Div", [x, b.node("Abs", [x], b.shapes[x])], b.shapes[x])


def linear_pieces(b: Builder, x: str) -> str:
    """Functions that keep positive factors."""
    for op in ("LeakyRelu", "Abs", "Neg"):
        x = unary(op)(b, x)
    return x


def sums(b: Builder, x: str, _: str) -> str:
    """Every operator that adds, with vectors in front and behind."""

    def vector() -> str:
        return b.weight(b.floats(b.shapes[x][-1]))

    for inputs in (
        ["Sub", x, vector()],
        ["Sub", vector(), ""],
        ["Sum", vector(), "", vector()],
        ["Mean", "", vector()],
    ):
        op, *names = inputs
        x = b.node(op, [name or x for name in names], b.shapes[x])
    return b.node("Mean", [vector(), x], b.shapes[x])


def passing(b: Builder, x: str) -> str:
    """What leaves every number as it is."""
    for op in ("Tile", "Expand"):
        x = b.node(op, [x, b.integers([1] * len(b.shapes[x]))], b.shapes[x])
    for op in ("Identity", "Dropout"):
        x = b.node(op, [x], b.shapes[x])
    return b.node("Cast", [x], b.shapes[x], to=TensorProto.FLOAT)


def sloped(b: Builder, x: str) -> str:
    """A slope for each channel below zero."""
    return b.node("PRelu", [x, b.weight(b.floats(b.shapes[x][-1]))], b.shapes[x])


def in_another_order(*sizes: int) -> Step:
    """Pieces of a head, the last ones first."""
    return lambda b, x: b.node("Concat", b.split(x, 3, list(sizes))[::-1], b.shapes[x], axis=3)


@dataclass(frozen=True)
class Attention:
    """Self-attention over the places of an image; `flat` acts on (N, L, H·d), `heads` on queries and keys by head."""

    flat: Flat = same
    heads: Step = same
    fused: str = ""
    key_only: Step = same
    linear: bool = False

    def __call__(self, b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        length, inner = h * w, HEADS * SIZE
        tokens = b.transpose(b.reshape(x, (n, c, length)), (0, 2, 1))
        if self.fused == "Split":
            parts = b.split(self.flat(b, dense(b, tokens, 3 * inner), tokens), 2, [inner] * 3)
            q, k, v = (self._in_heads(b, part) for part in parts)
        elif self.fused:
            y = b.reshape(self.flat(b, dense(b, tokens, 3 * inner), tokens), (n, length, 3, HEADS, SIZE))
            y = b.transpose(y, (2, 0, 3, 1, 4))
            shape = (n, HEADS, length, SIZE)
            q, k, v = (b.node("Gather", [y, b.weight(np.array(i))], shape, axis=0) for i in range(3))
        else:
            q, k, v = (self._in_heads(b, self.flat(b, dense(b, tokens, inner), tokens)) for _ in range(3))
        q, k = self.heads(b, q), self.key_only(b, self.heads(b, k))
        mixed = self._linear(b, q, k, v) if self.linear else self._softmax(b, q, k, v)
        joined = b.reshape(b.transpose(mixed, (0, 2, 1, 3)), (n, length, inner))
        return b.reshape(b.transpose(dense(b, joined, 5), (0, 2, 1)), (n, 5, h, w))

    def _in_heads(self, b: Builder, x: str) -> str:
        n, length, _ = b.shapes[x]
        return b.transpose(b.reshape(x, (n, length, HEADS, SIZE)), (0, 2, 1, 3))

    def _softmax(self, b: Builder, q: str, k: str, v: str) -> str:
        n, heads, length, _ = b.shapes[q]
        square = (n, heads, length, length)
        scores = b.node("MatMul", [q, b.transpose(k, (0, 1, 3, 2))], square)
        scaled = b.node("Mul", [scores, b.weight(np.array(0.4, np.float32))], square)
        return b.node("MatMul", [b.node("Softmax", [scaled], square, axis=3), v], b.shapes[v])

    def _linear(self, b: Builder, q: str, k: str, v: str) -> str:
        n, heads, _, size = b.shapes[q]
        inner = b.node("MatMul", [b.transpose(k, (0, 1, 3, 2)), v], (n, heads, size, size))
        return b.node("MatMul", [q, inner], b.shapes[v])


def shared_projection(b: Builder, x: str) -> str:
    """Keys are the queries."""
    n, c, h, w = b.shapes[x]
    tokens = b.transpose(b.reshape(x, (n, c, h * w)), (0, 2, 1))
    y = dense(b, tokens, SIZE)
    scores = b.node("MatMul", [y, b.transpose(y, (0, 2, 1))], (n, h * w, h * w))
    return b.reshape(b.transpose(b.node("MatMul", [scores, tokens], b.shapes[tokens]), (0, 2, 1)), (n, c, h, w))


def read_elsewhere(reader: Step, project: Callable[[Builder, str, int], str] = dense) -> Build:
    """Keys are read by something besides."""

    def build(b: Builder, x: str) -> Sequence[str]:
        n, c, h, w = b.shapes[x]
        tokens = b.transpose(b.reshape(x, (n, c, h * w)), (0, 2, 1))
        q, k = project(b, tokens, SIZE), project(b, tokens, SIZE)
        scores = b.node("MatMul", [q, b.transpose(k, (0, 2, 1))], (n, h * w, h * w))
        mixed = b.node("MatMul", [scores, tokens], b.shapes[tokens])
        return [b.reshape(b.transpose(mixed, (0, 2, 1)), (n, c, h, w)), b.transpose(reader(b, k), (0, 2, 1))]

    return build


def by_function_of_weight(b: Builder, k: str) -> str:
    weight = b.weight(b.floats(SIZE, 4, scale=0.5))
    return b.node("MatMul", [k, b.node("Tanh", [weight], (SIZE, 4))], (*b.shapes[k][:2], 4))


def by_whole_numbers(b: Builder, k: str) -> str:
    """A weight of 8 bits."""
    whole = b.weight((b.floats(SIZE, 4) * 40).astype(np.int8))
    weight = b.node("DequantizeLinear", [whole, b.weight(np.array(0.02, np.float32))], (SIZE, 4))
    return b.node("MatMul", [k, weight], (*b.shapes[k][:2], 4))


def by_factor(b: Builder, k: str) -> str:
    """Times a weight, and then summed with it."""
    weight = b.weight(b.floats(SIZE, 1, around=1))
    factor = b.node("Reshape", [weight, b.integers([SIZE])], (SIZE,))
    return b.node("MatMul", [b.node("Mul", [k, factor], b.shapes[k]), weight], (*b.shapes[k][:2], 1))


def by_all_pairs(b: Builder, k: str) -> str:
    """Every number of a key times every number of a weight, as one long axis."""
    n, length, size = b.shapes[k]
    weight = b.weight(b.floats(1, size, around=1))
    scaled = b.node("Mul", [k, weight], b.shapes[k])
    pairs = b.node("Mul", [b.unsqueeze(scaled, [3]), weight], (n, length, size, size))
    return dense(b, b.reshape(pairs, (n, length, size * size)), 4)


def bias_and_scale(b: Builder, x: str) -> str:
    """One vector is added and multiplied."""
    vector = b.weight(b.floats(b.shapes[x][-1], around=1))
    return b.node("Mul", [b.node("Add", [x, vector], b.shapes[x]), vector], b.shapes[x])


def turned_dense(b: Builder, x: str, o: int) -> str:
    """A layer whose weight is turned in the graph."""
    *outer, k = b.shapes[x]
    weight = b.transpose(b.weight(b.floats(o, k, scale=1 / np.sqrt(k))), (1, 0))
    return b.node("MatMul", [x, weight], (*outer, o))


def fused_dense(op: str) -> Callable[[Builder, str, int], str]:
    """A layer as one of onnxruntime's own operators."""

    def project(b: Builder, x: str, o: int) -> str:
        *outer, k = b.shapes[x]
        return b.node(op, [x, b.weight(b.floats(k, o, scale=1 / np.sqrt(k)))], (*outer, o), domain="com.microsoft")

    return project


def by_letters(b: Builder, x: str, o: int) -> str:
    """A layer as an Einsum."""
    *outer, k = b.shapes[x]
    weight = b.weight(b.floats(o, k, scale=1 / np.sqrt(k)))
    return b.node("Einsum", [x, weight], (*outer, o), equation="nlc,dc->nld")


def by_rows(b: Builder, x: str, o: int) -> str:
    """A Gemm with a bias, over rows of samples and places alike."""
    n, length, k = b.shapes[x]
    rows = b.node("Flatten", [x], (n * length, k), axis=2)
    inputs = [rows, b.weight(b.floats(k, o, scale=1 / np.sqrt(k))), b.weight(b.floats(o))]
    made = b.node("Gemm", inputs, (n * length, o))
    flat = b.node("Flatten", [made], (n * length, o), axis=1)
    return b.reshape(flat, (n, length, o))


def by_kernel(op: str, **attributes: Any) -> Callable[[Builder, str, int], str]:
    """A convolution of size one, with a bias, over the places as an image of one row."""

    def project(b: Builder, x: str, o: int) -> str:
        n, length, k = b.shapes[x]
        row = b.unsqueeze(b.transpose(x, (0, 2, 1)), [2])
        shape = (k, o, 1, 1) if op == "ConvTranspose" else (o, k, 1, 1)
        inputs = [row, b.weight(b.floats(*shape, scale=1 / np.sqrt(k))), b.weight(b.floats(o))]
        made = b.node(op, inputs, (n, o, 1, length), **attributes)
        return b.transpose(b.squeeze(b.norm(made), [2]), (0, 2, 1))

    return project


def partly_turned(b: Builder, x: str) -> str:
    """Rotary positions for the first four numbers of a head."""
    first, rest = b.split(x, 3, [4, SIZE - 4])
    return b.node("Concat", [turned(b, first), rest], b.shapes[x], axis=3)


def norm_of_a_head(b: Builder, x: str) -> str:
    size = b.shapes[x][-1]
    scale, bias = b.weight(b.floats(size, around=1, scale=0.2)), b.weight(b.floats(size))
    return b.node("LayerNormalization", [x, scale, bias], b.shapes[x], axis=-1)


PLAIN = [6, 2, 6, 6, 5]  # channels, heads, the sizes of keys and of values, the layer behind
TIED = [6, 2, 6, 5]  # keys and values are one tensor's
SHARED = [
    Case("attention", Attention(), PLAIN),
    Case("with biases", Attention(flat=biased), PLAIN),
    Case("scaled before heads are apart", Attention(flat=lambda b, x, _: scaled_by_channel(b, x)), PLAIN),
    Case("with a scale by channel", Attention(heads=scaled_by_channel), PLAIN),
    Case("queries, keys and values of one matrix, split", Attention(flat=biased, fused="Split"), PLAIN),
    Case("queries, keys and values of one matrix, reshaped", Attention(flat=biased, fused="Gather"), TIED),
    Case("rotary positions", Attention(heads=turned), [6, 2, 3, 6, 5]),
    Case("rotary positions, one matrix", Attention(heads=turned, fused="Gather"), [6, 2, 3, 5]),
    Case("a scale that is computed", Attention(heads=by_root_of_size), PLAIN),
    Case("rotary positions on a part of a head", Attention(heads=partly_turned), [6, 2, 2, 2, 6, 5]),
    Case("weights that are turned in the graph", read_elsewhere(same, turned_dense), [6, 6]),
    Case("fused products", read_elsewhere(same, fused_dense("FusedMatMul")), [6, 6]),
    Case("fused products of old", read_elsewhere(same, fused_dense("TransposeMatMul")), [6, 6]),
    Case("layers as an Einsum", read_elsewhere(same, by_letters), [6, 6], opsets=(13, 21)),
    Case("layers over rows", read_elsewhere(same, by_rows), [6, 6]),
    Case("layers as convolutions", read_elsewhere(same, by_kernel("Conv")), [6, 6]),
    Case("layers as convolutions, turned round", read_elsewhere(same, by_kernel("ConvTranspose")), [6, 6]),
    Case("keys that a layer reads", read_elsewhere(lambda b, k: dense(b, k, 4)), [6, 6, 4]),
    Case("positions by frequency", Attention(heads=by_frequency), PLAIN),
    Case("normalised by channel", Attention(flat=normed), PLAIN),
    Case("Relu before a linear attention", Attention(heads=unary("Relu"), linear=True), PLAIN),
    Case("functions that keep positive factors", Attention(heads=linear_pieces), PLAIN),
    Case("sums of all kinds", Attention(flat=sums), PLAIN),
    Case("what changes nothing", Attention(heads=passing), PLAIN),
    Case("a slope by channel", Attention(heads=sloped), PLAIN),
    Case("three pieces in another order", Attention(heads=in_another_order(2, 2, 2)), [6, 2, 2, 2, 2, 6, 5]),
    Case("four pieces in another order", Attention(heads=in_another_order(2, 1, 1, 2)), [6, 2, 2, 2, 6, 5]),
    Case("a gate", Attention(flat=gated), PLAIN),
    Case("one projection", shared_projection, [6, 6]),
]
BOUNDED = [
    Case("a function of both", Attention(heads=unary("Tanh")), PLAIN, bounded=[6]),
    Case("squares", Attention(heads=squared), PLAIN, bounded=[6]),
    Case("signs", Attention(heads=signs), PLAIN, bounded=[6]),
    Case("a function of keys", Attention(key_only=unary("Exp")), PLAIN, bounded=[6]),
    Case("a function that makes something of zero", Attention(heads=unary("Exp"), linear=True), PLAIN, bounded=[6]),
    Case("a constant in both", Attention(heads=shifted, linear=True), PLAIN, bounded=[6]),
    Case("a norm of a head", Attention(heads=norm_of_a_head), PLAIN, bounded=[6], mixed=[6], opsets=(17, 21)),
    Case("one vector added and multiplied", Attention(heads=bias_and_scale), PLAIN, bounded=[6]),
    Case("keys read elsewhere", read_elsewhere(unary("Tanh")), [6, 6], bounded=[6]),
    Case("keys and a function of a weight", read_elsewhere(by_function_of_weight), [6, 6, 4], bounded=[6]),
    Case("keys and a quantised weight", read_elsewhere(by_whole_numbers), [6, 6, 4], bounded=[6], opsets=(13, 21)),
    Case("keys and a weight twice", read_elsewhere(by_factor), [6, 6], bounded=[6]),
    Case("keys and all pairs", read_elsewhere(by_all_pairs), [6, 6, 4], bounded=[6]),
]


@pytest.mark.parametrize(("case", "opset", "dynamic"), grid(SHARED + BOUNDED))
def test_a_sum_over_two_activations_resizes_exactly(case: Case, opset: int, dynamic: bool) -> None:
    check(case, opset, dynamic)


def of(name: str, opset: int = 21) -> Analysis:
    """The analysis of one of the cases."""
    return analyze(Graph(made(next(c for c in SHARED + BOUNDED if c.name == name), opset)))


@pytest.mark.parametrize("case", SHARED, ids=str)
@pytest.mark.parametrize("transfer", ["slice", "net2net", "zero"])
def test_growth_keeps_the_outputs(case: Case, transfer: str) -> None:
    analysis = of(case.name)
    assert analysis.growth.shared
    assert not analysis.growth.limits
    grown = plan(analysis, {n: w.size * 2 + 1 for n, w in analysis.widths.items()}, transfer=transfer, seed=3)
    feeds = oracles.feeds_of(analysis.graph)
    before, after = (run_all(graph, feeds) for graph in (analysis.graph, rewrite(analysis.graph, grown)))
    for value in analysis.graph.outputs:
        assert oracles.distance(after[value.name], before[value.name]) < 1e-5


@pytest.mark.parametrize("case", BOUNDED, ids=str)
def test_what_cannot_be_shared_says_so(case: Case) -> None:
    analysis = of(case.name)
    (width,) = (w for w in analysis.widths.values() if w.max is not None)
    with pytest.raises(UsageError, match=rf"{width.id} .* MatMul .* sums over it.*: it cannot grow beyond 6, got 9"):
        plan(analysis, {width.id: 9}, inexact=True)
    assert width.id not in scaled(analysis, 2)[0]
    assert "sums over it" in scaled(analysis, 2)[1][width.id]


def test_weights_that_are_rounded_in_the_graph_cannot_be_divided() -> None:
    b = Builder(random.Random(7), opset=13, batch=0)
    step = b.weight(np.array(0.02, np.float32))
    x = dense(b, b.input("x", (4, 3)), 6)
    weight = b.node("QuantizeLinear", [b.weight(b.floats(6, 5)), step, b.weight(np.array(0, np.int8))], (6, 5))
    y = b.node("MatMul", [x, b.node("DequantizeLinear", [weight, step], (6, 5))], (4, 5))
    widths = analyze(Graph(b.model([dense(b, y, 2)]))).widths.values()
    limits = {w.size: w.limit for w in widths}
    assert limits.keys() == {6, 5}
    assert limits[6].startswith("quantised weights sum over it, which cannot be divided among copies")
    assert not limits[5]


def test_analyze_says_what_only_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(of("a function of both").graph.proto(), "model.onnx")
    (row,) = (line for line in call("analyze", "model.onnx").out.splitlines() if "only shrinks" in line)
    name = row.split()[0]
    out = call("analyze", "model.onnx", "--explain", name).out
    assert "It cannot grow: MatMul " in out
    assert "cannot be divided among copies" in out
    page = tmp_path / "page.html"
    assert call("analyze", "model.onnx", "--html", page).code == 0
    assert "; only shrinks" in page.read_text()


ADMITTED = ["a function that makes something of zero", "a constant in both"]
PROVED = [
    *(case.name for case in SHARED if "Einsum" not in case.name),  # no mask is made for its weights
    *("a function of both", "a function of keys", "keys read elsewhere"),
]


@pytest.mark.parametrize("name", PROVED)
def test_the_proof_hides_what_was_dropped(name: str) -> None:
    analysis = of(name)
    halved = plan(analysis, {n: max(1, w.size // 2) for n, w in analysis.widths.items()})
    proof = verify(analysis.graph, rewrite(analysis.graph, halved), halved)
    assert not proof.skipped
    assert any("the masked source's" in check.detail for check in proof.checks)


@pytest.mark.parametrize("name", ADMITTED)
def test_the_proof_admits_what_it_cannot_hide(name: str) -> None:
    analysis = of(name)
    (width,) = (w for w in analysis.widths.values() if w.max is not None)
    halved = plan(analysis, {width.id: 3})
    (skipped,) = verify(analysis.graph, rewrite(analysis.graph, halved), halved).skipped
    assert "mixes channels that were resized" in skipped.detail


def test_the_proof_finds_a_key_that_is_not_the_querys() -> None:
    """Queries keep some numbers of a head, and keys others: the shapes are right, and the function is not."""
    analysis = of("attention")
    (dim,) = analysis.growth.shared
    (width,) = (w for w in analysis.widths.values() if w.dim == dim)
    kept = plan(analysis, {width.id: 3})
    assert not verify(analysis.graph, rewrite(analysis.graph, kept), kept).skipped
    wrong = kept.as_json()
    names = [name for name, entry in wrong["initializers"].items() if "1" in entry.get("take", {})]
    listed = wrong["initializers"][names[-1]]["take"]["1"]
    others = sorted(set(range(SIZE)) - {i % SIZE for i in listed})
    wrong["initializers"][names[-1]]["take"]["1"] = [i - i % SIZE + others[k % 3] for k, i in enumerate(listed)]
    broken = WidthPlan.from_json(wrong)
    with pytest.raises(VerificationFailed, match="outputs differ"):
        verify(analysis.graph, rewrite(analysis.graph, broken), broken)
