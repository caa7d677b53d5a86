"""What tools/mutate_rules.py breaks and no other test notices, where an operator has several inputs.

Each input in turn is made by a layer, each of its axes in turn is the layer's width, and all other inputs are weights:
where they meet that axis they must follow it, or it is frozen. Every axis of what comes out is held by a weight, made
by a matrix product and summed over by another, as in test_rules_mutants.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracles
import pytest
from onnx import helper
from strategies import Builder
from test_rules import prove
from test_rules_mutants import LAST, MAKES, closed

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.graph import Graph
from conet_onnx.planning import select
from conet_onnx.rewriting import rewrite

OWN = "com.microsoft"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """An operator, the shapes of its inputs (or values that are given), and those of its outputs.

    rules_mutants_found.txt has what is found, a text for each input: for each of its axes, the sizes of all widths
    where this one is, beside the last layer's, or the kind of the reason for which it is frozen. A width with a ~ is
    mixed, one with a ! only shrinks. Of values that are given the axes are asked for too, and nothing is run.
    """

    op: str
    inputs: Sequence[Shape | np.ndarray | None]
    outputs: Sequence[Shape | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 23
    runs: bool = True  # whether onnxruntime has a kernel for it


def model(asked: Asked, which: int, place: int) -> onnx.ModelProto:
    """One input is made by a matrix product, whose width is moved to its place."""
    given = asked.inputs[which]
    assert given is not None
    shape = given if isinstance(given, tuple) else given.shape
    others = (*shape[:place], *shape[place + 1 :])
    b = Builder(random.Random(7), opset=asked.opset, batch=0)
    b.tidy = True
    weight = b.weight(b.floats(3, shape[place], scale=0.7))
    assert weight == MAKES
    made = b.node("MatMul", [b.input("x", (*others, 3)), weight], (*others, shape[place]))
    order = [*range(place), len(others), *range(place, len(others))]
    made = b.transpose(b.node("Sigmoid", [made], b.shapes[made]), order)
    inputs = []
    for k, given in enumerate(asked.inputs):
        if k == which and isinstance(given, np.ndarray):
            inputs.append(b.node("Cast", [made], shape, to=helper.np_dtype_to_tensor_dtype(given.dtype)))
        elif k == which:
            inputs.append(made)
        elif given is None:
            inputs.append("")
        else:
            inputs.append(b.weight(given if isinstance(given, np.ndarray) else abs(b.floats(*given, scale=0.5)) + 0.1))
    domain = {"domain": OWN} if asked.op.startswith(OWN) else {}
    names = b.node_of(asked.op.rpartition(".")[2], inputs, asked.outputs, **{**asked.attributes, **domain})
    if "Skip" in asked.op:  # onnxruntime has no kernel for the statistics
        b.nodes[-1].output[:] = [n if made else "" for n, made in zip(names, asked.outputs, strict=True)]
    return b.model([closed(b, name) for name, shape in zip(names, asked.outputs, strict=True) if shape is not None])


def told(analysis: Analysis) -> str:
    """The sizes of the widths, or why the first layer's is none."""
    frozen = next((f.reason.kind for f in analysis.frozen if (f.tensor, f.axis) == (MAKES, 1)), None)
    marks = {True: "", False: "~"}
    found = [w for w in analysis.widths.values() if w.size != LAST]
    widths = sorted((w.size, marks[w.exact] + ("" if w.max is None else "!")) for w in found)
    return frozen or " ".join(f"{size}{mark}" for size, mark in widths)


def resizes(analysis: Analysis) -> None:
    """What is doubled has the sizes that were asked for, and all that carries them agrees, kernel or not."""
    selections = oracles.doubled(analysis, np.random.default_rng(0))
    made = analyze(rewrite(analysis.graph, select(analysis, selections)))
    assert [w.size for w in made.widths.values()] == [
        len(selections[name].indices) if name in selections else width.size for name, width in analysis.widths.items()
    ]


def conv(op: str, group: int, x: Shape, w: Shape, y: Shape, **more: Any) -> Asked:
    return Asked(op, [x, w, y[1:2]], [y], {"group": group, **more})


IDS = np.array([[1, 0, 1, 1], [0, 1, 1, 0]], np.int32)
PLACES = np.array([[0, 1, 2, 3, 4], [2, 0, 1, 8, 3]])
HIDDEN = (np.arange(14).reshape(2, 7) % 3 > 0).astype(np.int32)
LSTM = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op: str, *, first: int = 0, both: bool = False) -> Asked:
    gates, d, n, t, i, h = LSTM[op], 1 + both, 2, 4 if both else 2, 5, 3
    states = (n, d, h) if first else (d, n, h)
    inputs: list[Shape | np.ndarray] = [(n, t, i) if first else (t, n, i), (d, gates * h, i), (d, gates * h, h)]
    inputs += [(d, 2 * gates * h), np.full(n, t, np.int32), states]
    inputs += [states, (d, 3 * h)] if op == "LSTM" else []
    outputs = [(n, t, d, h) if first else (t, d, n, h), states, *([states] if op == "LSTM" else [])]
    direction = "bidirectional" if both else "forward"
    return Asked(op, inputs, outputs, {"hidden_size": h, "direction": direction, "layout": first}, runs=not first)


CASES: dict[str, Asked] = {
    "Conv": conv("Conv", 1, (3, 4, 5, 5), (6, 4, 3, 3), (3, 6, 3, 3)),
    "Conv as deep as it is wide": conv("Conv", 1, (2, 4, 5, 8), (6, 4, 3, 3), (2, 6, 3, 6)),
    "Conv in groups": conv("Conv", 2, (3, 4, 5, 5), (6, 2, 3, 3), (3, 6, 3, 3)),
    "depthwise Conv": conv("Conv", 4, (3, 4, 5, 5), (4, 1, 3, 3), (3, 4, 3, 3)),
    "ConvTranspose": conv("ConvTranspose", 1, (4, 2, 3, 3), (2, 3, 2, 2), (4, 3, 4, 4)),
    "ConvTranspose in groups": conv("ConvTranspose", 2, (4, 6, 3, 3), (6, 3, 2, 2), (4, 6, 4, 4)),
    "Gemm": Asked("Gemm", [(4, 5), (5, 3), (4, 3)], [(4, 3)]),
    "Gemm, transposed": Asked("Gemm", [(5, 4), (3, 5), (3,)], [(4, 3)], {"transA": 1, "transB": 1}),
    "Gemm with a column": Asked("Gemm", [(4, 5), (5, 3), (4, 1)], [(4, 3)]),
    "MatMul": Asked("MatMul", [(2, 4, 5), (5, 3)], [(2, 4, 3)]),
    "MatMul of stacks": Asked("MatMul", [(2, 4, 5), (2, 5, 3)], [(2, 4, 3)]),
    "MatMul of a stack behind": Asked("MatMul", [(4, 5), (2, 5, 3)], [(2, 4, 3)]),
    "MatMul of stacks of stacks": Asked("MatMul", [(2, 1, 4, 5), (6, 5, 3)], [(2, 6, 4, 3)]),
    "MatMul by a vector": Asked("MatMul", [(2, 4, 5), (5,)], [(2, 4)]),
    "MatMul of a vector": Asked("MatMul", [(5,), (2, 5, 3)], [(2, 3)]),
    **{
        f"Einsum {equation}": Asked("Einsum", [a, b], [y], {"equation": equation})
        for equation, a, b, y in (
            ("abc,cd->abd", (2, 4, 5), (5, 3), (2, 4, 3)),
            ("ijk,kl->ijl", (3, 4, 5), (5, 3), (3, 4, 3)),
            ("abc,adc->abd", (2, 4, 5), (2, 3, 5), (2, 4, 3)),
            ("abc,acd->dab", (2, 4, 5), (2, 5, 3), (3, 2, 4)),
            ("abc,abd->acd", (2, 4, 5), (2, 4, 3), (2, 5, 3)),
            ("ab,ab->ba", (4, 5), (4, 5), (5, 4)),
            ("abc,bd->ad", (2, 4, 5), (4, 3), (2, 3)),
        )
    },
    "BatchNormalization": Asked("BatchNormalization", [(2, 6, 4, 3), *[(6,)] * 4], [(2, 6, 4, 3)]),
    "InstanceNormalization": Asked("InstanceNormalization", [(2, 6, 4, 3), (6,), (6,)], [(2, 6, 4, 3)]),
    "GroupNormalization": Asked("GroupNormalization", [(2, 6, 4, 3), (6,), (6,)], [(2, 6, 4, 3)], {"num_groups": 2}),
    "LayerNormalization": Asked("LayerNormalization", [(2, 4, 3), (4, 3), (4, 3)], [(2, 4, 3)], {"axis": 1}),
    "RMSNormalization": Asked("RMSNormalization", [(2, 4, 3), (3,)], [(2, 4, 3)]),
    "Concat": Asked("Concat", [(2, 4, 3), (2, 5, 3), (2, 6, 3)], [(2, 15, 3)], {"axis": 1}),
    "PRelu": Asked("PRelu", [(2, 4, 3), (4, 3)], [(2, 4, 3)]),
    **{op: recurrent(op) for op in LSTM},
    **{f"{op} of both directions": recurrent(op, both=True) for op in LSTM},
    **{f"{op}, batch first": recurrent(op, first=1) for op in LSTM},
    "Attention, flat": Asked(
        "Attention",
        [(2, 3, 8), (2, 5, 8), (2, 5, 6), (2, 2, 3, 5)],
        [(2, 3, 6)],
        {"q_num_heads": 2, "kv_num_heads": 2},
    ),
    "Attention in heads": Asked("Attention", [(2, 4, 3, 4), (2, 2, 5, 4), (2, 2, 5, 3), (3, 5)], [(2, 4, 3, 3)]),
    "Attention in square heads": Asked("Attention", [(2, 4, 3, 4), (2, 2, 5, 4), (2, 2, 5, 4)], [(2, 4, 3, 4)]),
    "Attention of one head": Asked(
        "Attention", [(2, 3, 4), (2, 5, 4), (2, 5, 3)], [(2, 3, 3)], {"q_num_heads": 1, "kv_num_heads": 1}
    ),
    "Attention with a past": Asked(
        "Attention",
        [(2, 3, 8), (2, 5, 8), (2, 5, 6), (1, 2, 3, 7), (2, 2, 2, 4), (2, 2, 2, 3)],
        [(2, 3, 6), (2, 2, 7, 4), (2, 2, 7, 3), (2, 2, 3, 7)],
        {"q_num_heads": 2, "kv_num_heads": 2},
    ),
    "Attention with a square past": Asked(
        "Attention",
        [(2, 3, 12), (2, 5, 12), (2, 5, 9), None, (2, 3, 2, 4), (2, 3, 2, 3)],
        [(2, 3, 9), (2, 3, 7, 4), (2, 3, 7, 3)],
        {"q_num_heads": 3, "kv_num_heads": 3},
    ),
    "Attention of so many keys": Asked(
        "Attention",
        [(2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 3), None, None, None, np.array([4, 5])],
        [(2, 2, 3, 3)],
        opset=24,
    ),
    "MultiHeadAttention": Asked(
        f"{OWN}.MultiHeadAttention",
        [(2, 3, 8), (2, 5, 8), (2, 5, 6), (22,), HIDDEN[:, :5], (2, 2, 3, 5)],
        [(2, 3, 6)],
        {"num_heads": 2},
    ),
    "MultiHeadAttention in heads": Asked(
        f"{OWN}.MultiHeadAttention", [(2, 3, 8), (2, 2, 5, 4), (2, 2, 5, 4)], [(2, 3, 8)], {"num_heads": 2}
    ),
    "MultiHeadAttention with a past": Asked(
        f"{OWN}.MultiHeadAttention",
        [(2, 3, 8), (2, 3, 8), (2, 3, 8), (24,), None, (1, 2, 3, 7), (2, 2, 4, 4), (2, 2, 4, 4)],
        [(2, 3, 8), (2, 2, 7, 4), (2, 2, 7, 4)],
        {"num_heads": 2},
    ),
    "Attention of projections": Asked(
        f"{OWN}.Attention",
        [(2, 4, 6), (6, 22), (22,), HIDDEN[:, :4], None, (1, 2, 4, 4)],
        [(2, 4, 6)],
        {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 6]},
    ),
    "Attention of projections with a past": Asked(
        f"{OWN}.Attention",
        [(2, 4, 6), (6, 24), (24,), HIDDEN, (2, 2, 2, 3, 4)],
        [(2, 4, 8), (2, 2, 2, 7, 4)],
        {"num_heads": 2},
    ),
    "GroupQueryAttention": Asked(
        f"{OWN}.GroupQueryAttention",
        [(2, 3, 32), (2, 3, 16), (2, 3, 16), None, None, np.full(2, 2, np.int32), np.array(3, np.int32)],
        [(2, 3, 32)],
        {"num_heads": 4, "kv_num_heads": 2},
    ),
    "GroupQueryAttention, turned": Asked(
        f"{OWN}.GroupQueryAttention",
        [
            *((2, 3, 64), (2, 3, 32), (2, 3, 32), None, None),
            *(np.full(2, 2, np.int32), np.array(3, np.int32), (9, 8), (9, 8)),
        ],
        [(2, 3, 64)],
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1},
    ),
    "GroupQueryAttention with a past": Asked(
        f"{OWN}.GroupQueryAttention",
        [
            *((2, 1, 32), (2, 1, 16), (2, 1, 16), (2, 2, 4, 8), (2, 2, 4, 8)),
            *(np.full(2, 4, np.int32), np.array(5, np.int32)),
        ],
        [(2, 1, 32), (2, 2, 5, 8), (2, 2, 5, 8)],
        {"num_heads": 4, "kv_num_heads": 2},
    ),
    "RotaryEmbedding": Asked("RotaryEmbedding", [(2, 5, 16), (9, 4), (9, 4), PLACES], [(2, 5, 16)], {"num_heads": 2}),
    "RotaryEmbedding in heads": Asked(
        "RotaryEmbedding", [(2, 2, 5, 8), (9, 4), (9, 4), PLACES], [(2, 2, 5, 8)], {"num_heads": 2}
    ),
    "RotaryEmbedding by rows": Asked(
        "RotaryEmbedding", [(2, 5, 16), (2, 5, 4), (2, 5, 4)], [(2, 5, 16)], {"num_heads": 2}
    ),
    "RotaryEmbedding by place": Asked(
        f"{OWN}.RotaryEmbedding", [(2, 5, 16), PLACES, (9, 4), (9, 4)], [(2, 5, 16)], {"num_heads": 2}
    ),
    "RotaryEmbedding by place, in heads": Asked(
        f"{OWN}.RotaryEmbedding", [(2, 2, 5, 8), PLACES, (9, 4), (9, 4)], [(2, 2, 5, 8)], {"num_heads": 2}
    ),
    "FusedConv": Asked(
        f"{OWN}.FusedConv",
        [(3, 4, 5, 5), (6, 2, 3, 3), (6,), (3, 6, 3, 3)],
        [(3, 6, 3, 3)],
        {"group": 2, "activation": "Relu"},
    ),
    "NhwcFusedConv": Asked(
        f"{OWN}.NhwcFusedConv",
        [(3, 5, 5, 4), (6, 2, 3, 3), (6,), (3, 3, 3, 6)],
        [(3, 3, 3, 6)],
        {"group": 2, "activation": "Relu"},
        runs=False,
    ),
    "NhwcConv": Asked(f"{OWN}.NhwcConv", [(3, 5, 5, 4), (6, 3, 3, 2), (6,)], [(3, 3, 3, 6)], {"group": 2}, runs=False),
    **{
        f"{op} of as many samples as channels": Asked(
            f"{OWN}.{op}", [(6, 5, 5, 4), kernel, (6,)], [(6, 3, 3, 6)], {"group": 2}, runs=False
        )
        for op, kernel in (("NhwcConv", (6, 3, 3, 2)), ("NhwcFusedConv", (6, 2, 3, 3)))
    },
    "FusedGemm": Asked(f"{OWN}.FusedGemm", [(5, 4), (5, 3), (4, 3)], [(4, 3)], {"transA": 1, "activation": "Relu"}),
    "FusedMatMul": Asked(f"{OWN}.FusedMatMul", [(2, 4, 5), (2, 5, 3)], [(2, 4, 3)]),
    "FusedMatMul, transposed": Asked(
        f"{OWN}.FusedMatMul", [(2, 5, 4), (6, 1, 3, 5)], [(6, 2, 4, 3)], {"transA": 1, "transB": 1}
    ),
    "TransposeMatMul": Asked(f"{OWN}.TransposeMatMul", [(2, 5, 4), (2, 5, 3)], [(2, 4, 3)], {"transA": 1}),
    "SkipLayerNormalization": Asked(
        f"{OWN}.SkipLayerNormalization", [(2, 4, 3), (2, 4, 3), (3,), (3,), (3,)], [(2, 4, 3), None, None, (2, 4, 3)]
    ),
    "SkipLayerNormalization of a table": Asked(
        f"{OWN}.SkipLayerNormalization", [(2, 4, 3), (4, 3), (3,)], [(2, 4, 3), None, None, (2, 4, 3)]
    ),
    "SkipSimplifiedLayerNormalization": Asked(
        f"{OWN}.SkipSimplifiedLayerNormalization",
        [(2, 4, 3), (2, 4, 3), (3,), (3,)],
        [(2, 4, 3), None, None, (2, 4, 3)],
    ),
    "SimplifiedLayerNormalization": Asked("SimplifiedLayerNormalization", [(2, 4, 3), (3,)], [(2, 4, 3)]),
    "EmbedLayerNormalization": Asked(
        f"{OWN}.EmbedLayerNormalization",
        [*[IDS] * 2, (9, 3), (6, 3), (2, 3), (3,), (3,)],
        [(2, 4, 3), None, (2, 4, 3)],
    ),
    "EmbedLayerNormalization of positions": Asked(
        f"{OWN}.EmbedLayerNormalization",
        [*[IDS] * 2, (9, 3), (6, 3), (2, 3), (3,), (3,), IDS, IDS],
        [(2, 4, 3), None, (2, 4, 3)],
    ),
    "BiasGelu": Asked(f"{OWN}.BiasGelu", [(2, 4, 3), (3,)], [(2, 4, 3)]),
    "FastGelu": Asked(f"{OWN}.FastGelu", [(2, 4, 3), (3,)], [(2, 4, 3)]),
    "ScaledSiLU": Asked(f"{OWN}.ScaledSiLU", [(2, 4, 3)], [(2, 4, 3)], runs=False),
    "BiasAdd": Asked(f"{OWN}.BiasAdd", [(2, 4, 3), (3,), (2, 4, 3)], [(2, 4, 3)], runs=False),
    "BiasSplitGelu": Asked(f"{OWN}.BiasSplitGelu", [(2, 4, 6), (6,)], [(2, 4, 3)], runs=False),
    "GroupNorm": Asked(
        f"{OWN}.GroupNorm", [(4, 6, 4, 6), (6,), (6,)], [(4, 6, 4, 6)], {"groups": 2, "activation": 0}, runs=False
    ),
    "GroupNorm, channels first": Asked(
        f"{OWN}.GroupNorm",
        [(2, 6, 4, 3), (6,), (6,)],
        [(2, 6, 4, 3)],
        {"groups": 2, "activation": 0, "channels_last": 0},
        runs=False,
    ),
    "SkipGroupNorm": Asked(
        f"{OWN}.SkipGroupNorm",
        [(4, 6, 4, 6), (6,), (6,), (4, 6, 4, 6), (6,)],
        [(4, 6, 4, 6)] * 2,
        {"groups": 2, "activation": 0},
        runs=False,
    ),
    "SkipGroupNorm, one vector a sample": Asked(
        f"{OWN}.SkipGroupNorm",
        [(2, 6, 4, 3), (6,), (6,), (2, 6), (6,)],
        [(2, 6, 4, 3)] * 2,
        {"groups": 2, "activation": 0, "channels_last": 0},
        runs=False,
    ),
    **{
        f"LinearAttention, {rule}": Asked(
            f"{OWN}.LinearAttention",
            [(2, 4, 8), (2, 4, 8), (2, 4, 6), (2, 2, 4, 3), decay, rate],
            [(2, 4, 6), (2, 2, 4, 3)],
            {"q_num_heads": 2, "kv_num_heads": 2, "update_rule": rule, "scale": 0.3},
        )
        for rule, decay, rate in (("gated", (2, 4, 8), None), ("gated_delta", (2, 4, 2), (2, 4, 2)))
    },
    "LinearAttention, square": Asked(
        f"{OWN}.LinearAttention",
        [(2, 4, 12), (2, 4, 12), (2, 4, 9), (2, 3, 4, 3)],
        [(2, 4, 9), (2, 3, 4, 3)],
        {"q_num_heads": 3, "kv_num_heads": 3, "update_rule": "linear", "scale": 0.3},
    ),
    # Axes of equal sizes, so that one can be taken for another.
    "Transpose of five axes": Asked("Transpose", [(4, 2, 3, 5, 4)], [(4, 5, 3, 2, 4)], {"perm": [0, 3, 2, 1, 4]}),
    "Add of five axes": Asked("Add", [(2, 3, 4, 5, 4), (2, 3, 4, 5, 4)], [(2, 3, 4, 5, 4)]),
    "MatMul of five axes": Asked("MatMul", [(2, 3, 4, 5, 6), (6, 4)], [(2, 3, 4, 5, 4)]),
    "FusedMatMul, square": Asked(
        f"{OWN}.FusedMatMul", [(2, 5, 4), (3, 1, 3, 5)], [(3, 2, 4, 3)], {"transA": 1, "transB": 1}
    ),
    "BatchNormalization, square": Asked("BatchNormalization", [(4, 6, 4, 6), *[(6,)] * 4], [(4, 6, 4, 6)]),
    "InstanceNormalization, square": Asked("InstanceNormalization", [(4, 6, 4, 6), (6,), (6,)], [(4, 6, 4, 6)]),
    "GroupNormalization, square": Asked(
        "GroupNormalization", [(4, 6, 4, 6), (6,), (6,)], [(4, 6, 4, 6)], {"num_groups": 2}
    ),
    "Attention with a cubic past": Asked(
        "Attention",
        [(3, 3, 9), (3, 5, 9), (3, 5, 9), None, (3, 3, 2, 3), (3, 3, 2, 3)],
        [(3, 3, 9), (3, 3, 7, 3), (3, 3, 7, 3)],
        {"q_num_heads": 3, "kv_num_heads": 3},
    ),
    "MultiHeadAttention with a cubic past": Asked(
        f"{OWN}.MultiHeadAttention",
        [(3, 3, 9), (3, 3, 9), (3, 3, 9), (27,), None, None, (3, 3, 4, 3), (3, 3, 4, 3)],
        [(3, 3, 9), (3, 3, 7, 3), (3, 3, 7, 3)],
        {"num_heads": 3},
    ),
    "Attention of projections with a cubic past": Asked(
        f"{OWN}.Attention",
        [(3, 4, 6), (6, 27), (27,), None, (2, 3, 3, 3, 3)],
        [(3, 4, 9), (2, 3, 3, 7, 3)],
        {"num_heads": 3},
    ),
    "LinearAttention, cubic": Asked(
        f"{OWN}.LinearAttention",
        [(4, 4, 12), (4, 4, 12), (4, 4, 9), (4, 3, 4, 3)],
        [(4, 4, 9), (4, 3, 4, 3)],
        {"q_num_heads": 3, "kv_num_heads": 3, "update_rule": "linear", "scale": 0.3},
    ),
    "CausalConvWithState": Asked(
        f"{OWN}.CausalConvWithState", [(2, 4, 6), (4, 1, 3), (4,), (2, 4, 2)], [(2, 4, 6), (2, 4, 2)]
    ),
    # Of ONNX itself, for which onnxruntime has no kernels yet
    "LinearAttention of ONNX": Asked(
        "LinearAttention",
        [(4, 4, 12), (4, 4, 12), (4, 4, 9), (4, 3, 4, 3)],
        [(4, 4, 9), (4, 3, 4, 3)],
        {"q_num_heads": 3, "kv_num_heads": 3, "update_rule": "linear", "scale": 0.3},
        opset=27,
        runs=False,
    ),
    "CausalConvWithState of ONNX": Asked(
        "CausalConvWithState",
        [(2, 4, 6), (4, 1, 3), (4,), (2, 4, 2)],
        [(2, 4, 6), (2, 4, 2)],
        opset=27,
        runs=False,
    ),
    "CumProd": Asked("CumProd", [(3, 4, 5), np.array(1)], [(3, 4, 5)], opset=26, runs=False),
    "SwiGLU": Asked("SwiGLU", [(3, 4), (3, 4)], [(3, 4)], opset=28, runs=False),
}


FOUND = dict(
    line.split(": ", 1) for line in Path(__file__).with_name("rules_mutants_found.txt").read_text().splitlines()
)


def shape_of(given: Shape | np.ndarray | None) -> Shape:
    """The axes to ask for."""
    return given if isinstance(given, tuple) else () if given is None else given.shape


def axes() -> list[Any]:
    """Every axis of every input."""
    return [
        pytest.param(name, which, place, id=f"{name}, {which}.{place}")
        for name, asked in CASES.items()
        for which, given in enumerate(asked.inputs)
        for place in range(len(shape_of(given)))
    ]


@pytest.mark.parametrize(("name", "which", "place"), axes())
def test_a_width_at_any_axis_of_any_input_is_followed_or_frozen(name: str, which: int, place: int) -> None:
    asked = CASES[name]
    analysis = analyze(Graph(model(asked, which, place)))
    if isinstance(asked.inputs[which], tuple):
        resizes(analysis)
        if asked.runs:
            prove(analysis, seeds=1)
    assert told(analysis) == FOUND[name].split("; ")[which].split(" | ")[place]


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("MatMul", {}),
        ("Gemm", {}),
        ("Einsum", {"equation": "ab,bc->ac"}),
        ("Einsum", {"equation": "ab,bc->ca"}),
        ("Einsum", {"equation": "ab,bcd->cda"}),
        (f"{OWN}.FusedGemm", {"activation": "Relu"}),
        (f"{OWN}.FusedMatMul", {}),
        (f"{OWN}.TransposeMatMul", {}),
    ],
)
def test_a_weight_in_front_makes_rows(op: str, attributes: dict[str, Any]) -> None:
    """Nothing else makes them, and nothing else is summed over in that weight: it is divided where they grow."""
    b = Builder(random.Random(7), opset=21, batch=0)
    b.tidy = True
    x = b.transpose(b.node("MatMul", [b.input("x", (2, 3)), b.weight(b.floats(3, 6))], (2, 6)), (1, 0))
    domain = {"domain": OWN} if op.startswith(OWN) else {}
    equation = attributes.get("equation", "")
    x = b.node("Unsqueeze", [x, b.integers([2])], (6, 2, 1)) if "d" in equation else x
    shape = (2, 1, 5) if "d" in equation else (2, 5) if equation.endswith("ca") else (5, 2)
    y = b.node(op.rpartition(".")[2], [b.weight(b.floats(5, 6)), x], shape, **attributes, **domain)
    y = b.transpose(y, (1, 0)) if shape == (5, 2) else y
    analysis = analyze(Graph(b.model([b.node("MatMul", [y, b.weight(b.floats(5, 2))], (*b.shapes[y][:-1], 2))])))
    assert sorted(w.size for w in analysis.widths.values()) == [5, 6]
    assert all(w.max is None for w in analysis.widths.values())
    prove(analysis)


@pytest.mark.parametrize(
    ("name", "place", "axis"),
    [("Conv in groups", 1, 1), ("ConvTranspose", 0, 1), ("NhwcConv", 3, 3), ("NhwcFusedConv", 1, 3)],
)
def test_where_the_map_is_a_weight_and_the_kernel_is_not_the_map_is_rescaled(name: str, place: int, axis: int) -> None:
    analysis = analyze(Graph(model(CASES[name], 1, place)))
    (parts,) = [f.parts for f in analysis.contractions if "Conv" in analysis.graph.nodes[f.node].op]
    (part,) = parts
    assert part.axis == axis
    assert tuple(analysis.graph.weights[part.tensor].dims) == CASES[name].inputs[0]
    assert len(part.leaves) == 1
