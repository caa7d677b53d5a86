"""What attention as one operator says about its axes, ONNX's and onnxruntime's, and what comes with it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import oracles
import pytest
from strategies import Builder
from test_rules import HEIGHT, WIDTH, Build, Case, check, dense, grid, made
from test_rules_fused import image, sequence, vector

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph
from conet_onnx.planning import plan
from conet_onnx.rewriting import rewrite
from conet_onnx.verification import verify

OWN = "com.microsoft"
LENGTH = HEIGHT * WIDTH
ONNX = (23, 24)


def in_heads(b: Builder, x: str, heads: int) -> str:
    """[N, S, h·d] as [N, h, S, d]."""
    n, s, hidden = b.shapes[x]
    apart = b.node("Reshape", [x, b.integers([0, 0, heads, hidden // heads])], (n, s, heads, hidden // heads))
    return b.transpose(apart, (0, 2, 1, 3))


def out_of_heads(b: Builder, x: str) -> str:
    n, h, s, d = b.shapes[x]
    return b.node("Reshape", [b.transpose(x, (0, 2, 1, 3)), b.integers([0, 0, h * d])], (n, s, h * d))


def added(b: Builder, *names: str) -> str:
    """What is left of several caches, so that they matter: their means over heads, positions and sizes."""
    means = [b.mean(name, [1, 2, 3]) for name in names]
    y = means[0]
    for mean in means[1:]:
        y = b.node("Add", [y, mean], b.shapes[y])
    n = b.shapes[y][0]
    return b.node("Reshape", [y, b.integers([-1, 1, 1])], (n, 1, 1))


def back(b: Builder, x: str, y: str, *caches: str) -> str:
    """The output projection, added to what came in."""
    c = b.shapes[x][1]
    y = b.node("Add", [dense(b, y, c), sequence(b, x)], (b.shapes[y][0], LENGTH, c))
    if caches:
        y = b.node("Add", [y, added(b, *caches)], b.shapes[y])
    return image(b, y, HEIGHT, WIDTH)


def tables(b: Builder, rows: int, columns: int) -> list[str]:
    """Cosines and sines by position."""
    angles = np.arange(rows)[:, None] / 3.0 ** np.arange(columns)
    return [b.weight(f(angles).astype(np.float32)) for f in (np.cos, np.sin)]


def multi_head(
    *,
    bias: bool = False,
    padded: bool = False,
    added_to: Sequence[int] = (),
    past: int = 0,
    given: str = "flat",
    outputs: int = 1,
    **more: Any,
) -> Build:
    """Two heads of 4 numbers; of 3 for values."""

    def build(b: Builder, x: str) -> str:
        y = sequence(b, x)
        n, tied = b.shapes[y][0], bool(past) or given == "heads"
        q, k, v = (dense(b, y, size) for size in (8, 8, 8 if tied else 6))
        if given == "heads":
            k, v = (in_heads(b, t, 2) for t in (k, v))
        inputs = [q, k, v, b.weight(b.floats(22)) if bias else "", ""]
        if padded:
            inputs[4] = b.weight((np.arange(n * LENGTH).reshape(n, -1) % 3 > 0).astype(np.int32))
        inputs.append(b.weight(b.floats(*added_to)) if added_to else "")
        if past:
            inputs += [b.weight(b.floats(n, 2, past, 4)) for _ in range(2)]
        size = 4 if tied else 3
        whole = LENGTH + past
        shapes = [(n, LENGTH, 2 * size), (n, 2, whole, 4), (n, 2, whole, size)][:outputs]
        names = b.node_of("MultiHeadAttention", inputs, shapes, domain=OWN, num_heads=2, **more)
        return back(b, x, *names)

    return build


def packed(
    *,
    sizes: Sequence[int] = (),
    added_to: Sequence[int] = (),
    mask: bool = False,
    past: int = 0,
    outputs: int = 1,
    **more: Any,
) -> Build:
    """com.microsoft Attention of two heads of 4 numbers."""

    def build(b: Builder, x: str) -> str:
        y = sequence(b, x)
        n, s, c = b.shapes[y]
        total = sum(sizes) or 24
        inputs = [y, b.weight(b.floats(c, total, scale=0.4)), vector(b, total), "", "", ""]
        if mask:
            inputs[3] = b.weight((np.arange(n * LENGTH).reshape(n, -1) % 3 > 0).astype(np.int32))
        if past:
            inputs[4] = b.weight(b.floats(2, n, 2, past, 4))
        if added_to:
            inputs[5] = b.weight(b.floats(*added_to))
        shapes = [(n, s, sizes[2] if sizes else 8), (2, n, 2, past + s, 4)][:outputs]
        said = {"qkv_hidden_sizes": list(sizes)} if sizes else {}
        names = b.node_of("Attention", inputs, shapes, domain=OWN, num_heads=2, **said, **more)
        caches = (
            [b.node("Gather", [names[1], b.weight(np.array(k))], shapes[1][1:], axis=0) for k in range(2)]
            if names[1:]
            else []
        )
        return back(b, x, names[0], *caches)

    return build


def group_query(
    *, at_once: bool = False, outputs: int = 1, rotary: bool = False, heads: tuple[int, int] = (4, 2), size: int = 8
) -> Build:
    def build(b: Builder, x: str) -> str:
        y = sequence(b, x)
        n, s, _ = b.shapes[y]
        n_q, n_kv = heads
        if at_once:
            inputs = [dense(b, y, (n_q + 2 * n_kv) * size), "", ""]
        else:
            inputs = [dense(b, y, heads * size) for heads in (n_q, n_kv, n_kv)]
        inputs += ["", "", b.weight(np.full(n, s - 1, np.int32)), b.weight(np.array(s, np.int32))]
        inputs += tables(b, s, size // 2) if rotary else []
        shapes = [(n, s, n_q * size), (n, n_kv, s, size), (n, n_kv, s, size)][:outputs]
        said = {"num_heads": n_q, "kv_num_heads": n_kv, "do_rotary": int(rotary)}
        return back(b, x, *b.node_of("GroupQueryAttention", inputs, shapes, domain=OWN, **said))

    return build


def attention(
    *,
    heads: tuple[int, int] = (2, 2),
    flat: bool = True,
    mask: Sequence[int] = (),
    past: int = 0,
    outputs: int = 1,
    **more: Any,
) -> Build:
    """ONNX Attention: heads of 4 numbers; of 3 for values."""

    def build(b: Builder, x: str) -> str:
        y = sequence(b, x)
        n, s, _ = b.shapes[y]
        n_q, n_kv = heads
        inputs = [dense(b, y, size) for size in (n_q * 4, n_kv * 4, n_kv * 3)]
        if not flat:
            inputs = [in_heads(b, t, h) for t, h in zip(inputs, (n_q, n_kv, n_kv), strict=True)]
        inputs.append(b.weight(b.floats(*mask)) if mask else "")
        if past:
            inputs += [b.weight(b.floats(n, n_kv, past, size)) for size in (4, 3)]
        whole = past + s
        first = (n, s, n_q * 3) if flat else (n, n_q, s, 3)
        shapes = [first, (n, n_kv, whole, 4), (n, n_kv, whole, 3), (n, n_q, s, whole)][:outputs]
        said = {"q_num_heads": n_q, "kv_num_heads": n_kv} if flat else {}
        names = b.node_of("Attention", inputs, shapes, **said, **more)
        y = names[0] if flat else out_of_heads(b, names[0])
        return back(b, x, y, *names[1:])

    return build


def turned(*, own: bool, flat: bool, part: int = 0, said: bool = True, **more: Any) -> Build:
    """Queries turned by position, then a projection. Two heads of 8 numbers."""

    def build(b: Builder, x: str) -> str:
        y = dense(b, sequence(b, x), 16)
        n, s, _ = b.shapes[y]
        y = y if flat else in_heads(b, y, 2)
        angles = tables(b, s, (part or 8) // 2)
        places = b.weight(np.tile(np.arange(s)[::-1], (n, 1)).astype(np.int64))
        inputs = [y, places, *angles] if own else [y, *angles, places]
        attributes = {"num_heads": 2} if said else {}
        attributes |= {"rotary_embedding_dim": part} if part else {}
        y = b.node("RotaryEmbedding", inputs, b.shapes[y], domain=OWN if own else "", **attributes, **more)
        return back(b, x, y if flat else out_of_heads(b, y))

    return build


def turned_without_places(b: Builder, x: str) -> str:
    """ONNX RotaryEmbedding of tables that have a row for each token."""
    y = dense(b, sequence(b, x), 16)
    n, s, _ = b.shapes[y]
    angles = np.arange(n * s).reshape(n, s, 1) / 3.0 ** np.arange(4)
    rows = [b.weight(f(angles).astype(np.float32)) for f in (np.cos, np.sin)]
    return back(b, x, b.node("RotaryEmbedding", [y, *rows], b.shapes[y], num_heads=2, interleaved=1))


OLD: Any = {"opsets": (17, 21)}
STATIC: Any = {"dynamic": (False,)}
NEW: Any = {"opsets": ONNX}
SCORES: Any = {"frozen": ("positions",)}
CACHE = ("activations", "positions")
CASES = [
    Case("MultiHeadAttention", multi_head(), [2, 3, 6], **OLD),
    Case("MultiHeadAttention with a bias", multi_head(bias=True), [2, 3, 6], **OLD),
    Case("MultiHeadAttention, causal", multi_head(unidirectional=1, scale=0.3), [2, 3, 6], **OLD),
    Case("MultiHeadAttention with padding", multi_head(padded=True), [2, 3, 6], **OLD, **STATIC),
    Case(
        "MultiHeadAttention with scores by head",
        multi_head(added_to=(1, 2, LENGTH, LENGTH)),
        [2, 3, 6],
        **OLD,
        **SCORES,
    ),
    Case("MultiHeadAttention with scores", multi_head(added_to=(1, 1, LENGTH, LENGTH)), [2, 3, 6], **OLD, **SCORES),
    Case("MultiHeadAttention of heads", multi_head(given="heads"), [2, 6], **OLD),
    Case("MultiHeadAttention with a past", multi_head(past=2, outputs=3), [2, 6], CACHE, mixed=[2], **OLD, **STATIC),
    Case("Attention of packed weights", packed(), [2, 4, 6], **OLD),
    Case("Attention of packed weights, causal", packed(unidirectional=1), [2, 4, 6], **OLD),
    Case("Attention of packed weights and sizes", packed(sizes=(8, 8, 6)), [2, 3, 6], **OLD),
    Case("Attention of packed weights and equal sizes", packed(sizes=(8, 8, 8)), [2, 4, 6], **OLD),
    Case("Attention of packed weights with a mask", packed(mask=True), [2, 4, 6], **OLD, **STATIC),
    Case(
        "Attention of packed weights with scores", packed(added_to=(1, 2, LENGTH, LENGTH)), [2, 4, 6], **OLD, **SCORES
    ),
    Case("Attention of packed weights, present", packed(outputs=2), [2, 6], mixed=[2], **OLD),
    Case("Attention of packed weights, past", packed(past=2, outputs=2), [2, 6], CACHE, mixed=[2], **OLD, **STATIC),
    Case(
        "Attention of packed weights and sizes, past",
        packed(sizes=(8, 8, 8), past=2, outputs=2),
        [2, 6],
        CACHE,
        mixed=[2],
        **OLD,
        **STATIC,
    ),
    Case("GroupQueryAttention", group_query(), [2, 2, 6], **OLD, **STATIC),
    Case("GroupQueryAttention of one key", group_query(heads=(4, 1)), [4, 6], ["activations"], **OLD, **STATIC),
    Case("GroupQueryAttention of many keys", group_query(heads=(4, 4)), [4, 6], **OLD, **STATIC),
    Case("GroupQueryAttention, packed", group_query(at_once=True), [2, 2, 6], **OLD, **STATIC),
    Case("GroupQueryAttention, turned", group_query(rotary=True, size=16), [2, 2, 6], ["positions"], **OLD, **STATIC),
    Case("GroupQueryAttention, present", group_query(outputs=3), [2], ["cache", "unknown shape"], **OLD, **STATIC),
    Case("Attention", attention(), [2, 3, 6], **NEW),
    Case("Attention of heads", attention(flat=False), [2, 3, 6], **NEW),
    Case("Attention, grouped", attention(heads=(6, 2)), [2, 3, 3, 6], **NEW),
    Case("Attention of heads, grouped", attention(heads=(6, 2), flat=False), [2, 3, 3, 6], **NEW),
    Case("Attention of one key", attention(heads=(4, 1)), [3, 4, 6], ["activations"], **NEW),
    Case("Attention, causal and capped", attention(is_causal=1, softcap=2.0, scale=0.4), [2, 3, 6], **NEW),
    Case("Attention with a mask", attention(mask=(LENGTH, LENGTH)), [2, 3, 6], **NEW, **SCORES),
    Case(
        "Attention with a mask by head",
        attention(heads=(4, 2), mask=(4, LENGTH, LENGTH)),
        [2, 2, 3, 6],
        **NEW,
        **SCORES,
    ),
    Case(
        "Attention, present", attention(heads=(4, 2), outputs=4), [2, 2, 3], ["unknown shape"], mixed=[2, 2, 3], **NEW
    ),
    Case(
        "Attention, past",
        attention(heads=(4, 2), past=2, outputs=3),
        [2, 2, 3, 6],
        CACHE,
        mixed=[2, 3],
        **NEW,
        **STATIC,
    ),
    Case("RotaryEmbedding", turned(own=False, flat=True), [2, 6], ["positions"], **NEW, **STATIC),
    Case("RotaryEmbedding of heads", turned(own=False, flat=False), [2, 6], ["positions"], **NEW, **STATIC),
    Case(
        "RotaryEmbedding of heads, unsaid",
        turned(own=False, flat=False, said=False),
        [2, 6],
        ["positions"],
        **NEW,
        **STATIC,
    ),
    Case("RotaryEmbedding of a part", turned(own=False, flat=True, part=4), [2, 6], ["positions"], **NEW, **STATIC),
    Case("RotaryEmbedding, interleaved", turned_without_places, [2, 6], ["positions"], **NEW, **STATIC),
    Case("onnxruntime's RotaryEmbedding", turned(own=True, flat=True), [2, 6], ["positions"], **OLD, **STATIC),
    Case(
        "onnxruntime's RotaryEmbedding, unsaid",
        turned(own=True, flat=True, said=False),
        [2, 6],
        ["positions"],
        **OLD,
        **STATIC,
    ),
    Case(
        "onnxruntime's RotaryEmbedding of a part",
        turned(own=True, flat=True, part=4),
        [2, 6],
        ["positions"],
        **OLD,
        **STATIC,
    ),
    Case(
        "onnxruntime's RotaryEmbedding of heads", turned(own=True, flat=False), [2, 6], ["positions"], **OLD, **STATIC
    ),
]


@pytest.mark.parametrize(("case", "opset", "dynamic"), grid(CASES))
def test_an_operator_resizes_exactly_or_freezes(case: Case, opset: int, dynamic: bool) -> None:
    check(case, opset, dynamic)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_laws_hold(case: Case) -> None:
    oracles.keep_all_laws(made(case, case.opsets[-1]))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_proof_masks_it_too(case: Case) -> None:
    """Of widths that a mean is taken across, growing is proved; halving says that it is an approximation."""
    source = Graph(made(case, case.opsets[-1]))
    analysis = analyze(source)
    for scale in (0.5, 2):
        decided = plan(analysis, {n: max(1, int(w.size * scale)) for n, w in analysis.widths.items()})
        proof = verify(source, rewrite(source, decided), decided, provider="cpu")
        assert ("function" in {check.name for check in proof.checks}) == (not case.mixed or scale == 2), proof.lines()


def projected(op: str, inputs: Sequence[Sequence[int] | str], **attributes: Any) -> set[str]:
    """The reasons for which an operator is frozen that reads dense layers, or constants where a shape is given."""
    b = Builder(random.Random(3), opset=attributes.pop("opset", 21))
    b.tidy = True
    x = b.input("x", (2, 5, 3))
    names = []
    for given in inputs:
        layer = isinstance(given, str)
        names.append((dense(b, x, int(given)) if given else "") if layer else b.weight(b.floats(*given)))
    y = b.node(op, names, (2, 5, 8), **attributes)
    return {f.reason.kind for f in analyze(Graph(b.model([y]))).frozen if f.reason.kind != "input"}


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "kind"),
    [
        ("MultiHeadAttention", ["24"], {"num_heads": 2}, "packed"),
        ("MultiHeadAttention", ["8", "8", "8"], {"num_heads": 3}, "bad heads"),
        ("MultiHeadAttention", ["8", "8", "8"], {}, "bad heads"),
        ("MultiHeadAttention", ["8", "8", "8", "", "", "", "", "", (1,)], {"num_heads": 2}, "cache"),
        ("Attention", ["8", (8, 24), (24,)], {"num_heads": 2, "do_rotary": 1}, "cache"),
        ("Attention", ["8", (8, 24), (24,)], {"num_heads": 2, "qkv_hidden_sizes": [8, 4, 12]}, "bad heads"),
        ("Attention", ["8", (8, 23), (23,)], {"num_heads": 2}, "bad heads"),
        ("GroupQueryAttention", ["8", "4", "4", *[""] * 9, (1,)], {"num_heads": 4, "kv_num_heads": 2}, "cache"),
        ("GroupQueryAttention", ["8", "4", "4"], {"num_heads": 3, "kv_num_heads": 2}, "bad heads"),
        ("RotaryEmbedding", ["16", (2, 5), (5, 4), (5, 4)], {"num_heads": 3}, "bad heads"),
        ("RotaryEmbedding", ["16", (2, 5), (5, 4), (5, 4)], {"rotary_embedding_dim": 8}, "bad heads"),
        ("LinearAttention", ["8", "4", "4"], {"q_num_heads": 4, "kv_num_heads": 2}, "shared heads"),
        ("LinearAttention", ["8", "8", "8"], {"q_num_heads": 2, "kv_num_heads": 2, "state_window": 2}, "layout"),
        ("CausalConvWithState", ["8", (5, 1, 3)], {"channels_last": 1}, "layout"),
        ("PackedMultiHeadAttention", ["8", "8", "8"], {"num_heads": 2}, "unknown op"),
    ],
)
def test_what_cannot_be_proved_is_frozen(op: str, inputs: Sequence[Any], attributes: dict[str, Any], kind: str) -> None:
    assert kind in projected(op, inputs, domain=OWN, **attributes)


def test_the_size_of_a_head_is_frozen_for_a_reason() -> None:
    """One head: its size is all that there is of a projection's output."""
    case = Case("one head", attention(heads=(1, 1)), [3, 6])
    frozen = analyze(Graph(made(case, 23))).frozen
    reasons = {f.reason.detail for f in frozen if f.reason.kind == "activations"}
    assert any("between two activations: there is no weight to rescale" in reason for reason in reasons)


def test_an_attention_without_sizes_is_given_them_where_values_get_others() -> None:
    analysis = analyze(Graph(made(Case("", packed(), []), 21)))
    sizes = {w.size: n for n, w in analysis.widths.items()}
    fewer = rewrite(analysis.graph, plan(analysis, {sizes[4]: 3}))
    assert next(n for n in fewer.nodes if n.op == "Attention").attributes["qkv_hidden_sizes"] == (8, 8, 6)
    one = rewrite(analysis.graph, plan(analysis, {sizes[2]: 1}))
    attributes = next(n for n in one.nodes if n.op == "Attention").attributes
    assert (attributes["num_heads"], attributes["qkv_hidden_sizes"]) == (1, (4, 4, 4))


@pytest.mark.parametrize("op", ["Attention", "GroupQueryAttention"])
def test_heads_of_a_cache_that_comes_and_goes_are_frozen_and_queries_for_each_are_not(op: str) -> None:
    """Decoding, a token at a time: four heads of queries for two of keys, whose past is the model's input."""
    own = op != "Attention"
    b = Builder(random.Random(5), opset=21 if own else 23)
    b.tidy = True
    x, *past = (b.input(name, shape) for name, shape in (("x", (2, 1, 6)), *((p, (2, 2, 3, 8)) for p in ("k", "v"))))
    q, k, v = (dense(b, x, size) for size in (32, 16, 16))
    shapes = [(2, 1, 32), (2, 2, 4, 8), (2, 2, 4, 8)]
    if own:
        inputs = [q, k, v, *past, b.weight(np.full(2, 3, np.int32)), b.weight(np.array(4, np.int32))]
        names = b.node_of(op, inputs, shapes, domain=OWN, num_heads=4, kv_num_heads=2)
    else:
        names = b.node_of(op, [q, k, v, "", *past], shapes, q_num_heads=4, kv_num_heads=2)
    model = b.model([dense(b, names[0], 2), *names[1:]])
    analysis = analyze(Graph(model))
    assert [w.size for w in analysis.widths.values()] == [2]
    oracles.keep_all_laws(model)
    grown = rewrite(analysis.graph, plan(analysis, {"w0": 3}))
    attributes = next(n for n in grown.nodes if n.op == op).attributes
    assert [attributes[n] for n in ("num_heads" if own else "q_num_heads", "kv_num_heads")] == [6, 2]
