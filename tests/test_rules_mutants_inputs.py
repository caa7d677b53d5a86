"""What tools/mutate_rules.py breaks and no other test notices, where an operator has several inputs.

Each input in turn is made by a layer, each of its axes in turn is the layer's width, and all other inputs are weights:
where they meet that axis they must follow it, or it is frozen. Every axis of what comes out is held by a weight, made
by a matrix product and summed over by another, as in test_rules_mutants.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from strategies import Builder
from test_rules import prove
from test_rules_mutants import LAST, MAKES, closed

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.graph import Graph

OWN = "com.microsoft"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """An operator, the shapes of its inputs (or values that are given), and those of its outputs.

    FOUND has what is found, one text for an input: for each of its axes, the sizes of all widths where this one is,
    beside the last layer's, or the kind of the reason for which it is frozen.
    """

    op: str
    inputs: Sequence[Shape | np.ndarray | None]
    outputs: Sequence[Shape | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 23
    runs: bool = True  # whether onnxruntime has a kernel for it


def model(asked: Asked, which: int, place: int) -> onnx.ModelProto:
    """One input is made by a matrix product, whose width is moved to its place."""
    shape = asked.inputs[which]
    assert isinstance(shape, tuple)
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
        if k == which:
            inputs.append(made)
        elif given is None:
            inputs.append("")
        else:
            inputs.append(b.weight(given if isinstance(given, np.ndarray) else abs(b.floats(*given, scale=0.5)) + 0.1))
    domain = {"domain": OWN} if asked.op.startswith(OWN) else {}
    names = b.node_of(asked.op.rpartition(".")[2], inputs, asked.outputs, **{**asked.attributes, **domain})
    return b.model([closed(b, name) for name, shape in zip(names, asked.outputs, strict=True) if shape is not None])


def told(analysis: Analysis) -> str:
    """The sizes of the widths, or why the first layer's is none."""
    frozen = next((f.reason.kind for f in analysis.frozen if (f.tensor, f.axis) == (MAKES, 1)), None)
    return frozen or " ".join(map(str, sorted(w.size for w in analysis.widths.values() if w.size != LAST)))


def conv(op: str, group: int, x: Shape, w: Shape, y: Shape, **more: Any) -> Asked:
    return Asked(op, [x, w, y[1:2]], [y], {"group": group, **more})


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
    "Conv": conv("Conv", 1, (2, 4, 5, 5), (6, 4, 3, 3), (2, 6, 3, 3)),
    "Conv in groups": conv("Conv", 2, (2, 4, 5, 5), (6, 2, 3, 3), (2, 6, 3, 3)),
    "depthwise Conv": conv("Conv", 4, (2, 4, 5, 5), (4, 1, 3, 3), (2, 4, 3, 3)),
    "ConvTranspose": conv("ConvTranspose", 1, (2, 4, 3, 3), (4, 3, 2, 2), (2, 3, 4, 4)),
    "ConvTranspose in groups": conv("ConvTranspose", 2, (2, 4, 3, 3), (4, 3, 2, 2), (2, 6, 4, 4)),
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
    "RotaryEmbedding in heads": Asked("RotaryEmbedding", [(2, 2, 5, 8), (9, 4), (9, 4), PLACES], [(2, 2, 5, 8)]),
    "RotaryEmbedding by rows": Asked(
        "RotaryEmbedding", [(2, 5, 16), (2, 5, 4), (2, 5, 4)], [(2, 5, 16)], {"num_heads": 2}
    ),
    "RotaryEmbedding by place": Asked(
        f"{OWN}.RotaryEmbedding", [(2, 5, 16), PLACES, (9, 4), (9, 4)], [(2, 5, 16)], {"num_heads": 2}
    ),
    "RotaryEmbedding by place, in heads": Asked(
        f"{OWN}.RotaryEmbedding", [(2, 2, 5, 8), PLACES, (9, 4), (9, 4)], [(2, 2, 5, 8)]
    ),
    "FusedConv": Asked(
        f"{OWN}.FusedConv",
        [(2, 4, 5, 5), (6, 2, 3, 3), (6,), (2, 6, 3, 3)],
        [(2, 6, 3, 3)],
        {"group": 2, "activation": "Relu"},
    ),
    "NhwcFusedConv": Asked(
        f"{OWN}.NhwcFusedConv",
        [(2, 5, 5, 4), (6, 2, 3, 3), (6,), (2, 3, 3, 6)],
        [(2, 3, 3, 6)],
        {"group": 2, "activation": "Relu"},
        runs=False,
    ),
    "NhwcConv": Asked(f"{OWN}.NhwcConv", [(2, 5, 5, 4), (6, 3, 3, 2), (6,)], [(2, 3, 3, 6)], {"group": 2}, runs=False),
    "FusedGemm": Asked(f"{OWN}.FusedGemm", [(5, 4), (5, 3), (4, 3)], [(4, 3)], {"transA": 1, "activation": "Relu"}),
    "FusedMatMul": Asked(f"{OWN}.FusedMatMul", [(2, 4, 5), (2, 5, 3)], [(2, 4, 3)]),
    "FusedMatMul, transposed": Asked(
        f"{OWN}.FusedMatMul", [(2, 5, 4), (6, 1, 3, 5)], [(6, 2, 4, 3)], {"transA": 1, "transB": 1}
    ),
    "TransposeMatMul": Asked(f"{OWN}.TransposeMatMul", [(2, 5, 4), (2, 5, 3)], [(2, 4, 3)], {"transA": 1}),
    "SkipLayerNormalization": Asked(
        f"{OWN}.SkipLayerNormalization", [(2, 4, 3), (2, 4, 3), (3,), (3,), (3,)], [(2, 4, 3)]
    ),
    "SkipSimplifiedLayerNormalization": Asked(
        f"{OWN}.SkipSimplifiedLayerNormalization", [(2, 4, 3), (2, 4, 3), (3,), (3,)], [(2, 4, 3)]
    ),
    "SimplifiedLayerNormalization": Asked("SimplifiedLayerNormalization", [(2, 4, 3), (3,)], [(2, 4, 3)]),
    "EmbedLayerNormalization": Asked(
        f"{OWN}.EmbedLayerNormalization",
        [*[np.array([[1, 0, 1, 1], [0, 1, 1, 0]], np.int32)] * 2, (9, 3), (6, 3), (2, 3), (3,), (3,)],
        [(2, 4, 3), None],
    ),
    "BiasGelu": Asked(f"{OWN}.BiasGelu", [(2, 4, 3), (3,)], [(2, 4, 3)]),
    "FastGelu": Asked(f"{OWN}.FastGelu", [(2, 4, 3), (3,)], [(2, 4, 3)]),
    "BiasAdd": Asked(f"{OWN}.BiasAdd", [(2, 4, 3), (3,), (2, 4, 3)], [(2, 4, 3)], runs=False),
    "BiasSplitGelu": Asked(f"{OWN}.BiasSplitGelu", [(2, 4, 6), (6,)], [(2, 4, 3)], runs=False),
    "GroupNorm": Asked(
        f"{OWN}.GroupNorm", [(2, 4, 3, 6), (6,), (6,)], [(2, 4, 3, 6)], {"groups": 2, "activation": 0}, runs=False
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
        [(2, 4, 3, 6), (6,), (6,), (2, 4, 3, 6), (6,)],
        [(2, 4, 3, 6)] * 2,
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
    "CausalConvWithState": Asked(
        f"{OWN}.CausalConvWithState", [(2, 4, 6), (4, 1, 3), (4,), (2, 4, 2)], [(2, 4, 6), (2, 4, 2)]
    ),
}


FOUND: dict[str, Sequence[str]] = {
    "Einsum ijk,kl->ijl": ["3 3 | 3 4 | 3 5", "3 4 5 | 3 3 4"],
    "Attention with a square past": [
        "2 3 | positions | 3 3",
        "2 3 | positions | 3 3",
        "2 | positions | 3 3",
        "2 3 | 3 3 | positions | activations",
        "2 | 3 | positions | 3",
    ],
    "Attention of one head": ["2 3 | positions | activations", "2 3 | positions | activations", "2 | positions | 3"],
    "Attention in square heads": [
        "2 4 | 2 2 4 | positions | activations",
        "2 2 4 | 2 2 4 | positions | activations",
        "2 2 | 2 2 | positions | 2 4",
    ],
    "RNN, batch first": ["2 3 | steps | 3 5", "2 | 2 3 | 2 5", "2 | activations | activations", "2 | 2 3", "2 |  | 3"],
    "GRU, batch first": ["2 3 | steps | 3 5", "2 | 2 3 | 2 5", "2 | activations | activations", "2 | 2 3", "2 |  | 3"],
    "LSTM, batch first": [
        "2 3 | steps | 3 5",
        "2 | 2 3 | 2 5",
        "2 | activations | activations",
        "2 | 2 3",
        "2 |  | 3",
        "2 |  | 3",
        "2 | 2 3",
    ],
    "Conv": ["2 6 | 4 6 | spatial | spatial", "2 6 | 2 4 | spatial | spatial", "2 6"],
    "Conv in groups": ["2 3 | 2 2 3 | spatial | spatial", "2 2 3 | 2 2 | spatial | spatial", "2 2 3"],
    "depthwise Conv": ["2 | 4 | spatial | spatial", "2 4 | 2 | spatial | spatial", "2 4"],
    "ConvTranspose": ["2 3 | 3 4 | spatial | spatial", "2 4 | 2 3 | spatial | spatial", "2 3"],
    "ConvTranspose in groups": ["2 3 | 2 2 3 | spatial | spatial", "2 2 2 | 2 3 | spatial | spatial", "2 2 3"],
    "Gemm": ["3 4 | 3 5", "4 5 | 3 4", "4 | 3"],
    "Gemm, transposed": ["3 5 | 3 4", "3 4 | 4 5", "3 4"],
    "Gemm with a column": ["3 4 | 3 5", "4 5 | 3 4", "3 4 | 3"],
    "MatMul": ["2 3 | 3 4 | 3 5", "2 4 5 | 2 3 4"],
    "MatMul of stacks": ["2 3 | 3 4 | 3 5", "2 4 | 4 5 | 3 4"],
    "MatMul of a stack behind": ["2 3 4 | 2 3 5", "2 4 | 4 5 | 3 4"],
    "MatMul of stacks of stacks": ["2 3 6 | 3 6 | 3 4 6 | 3 5 6", "2 4 6 | 2 4 5 | 2 3 4"],
    "MatMul by a vector": ["2 | 4 | activations", "2 4 5"],
    "MatMul of a vector": ["2 3 5", "2 | activations | 3"],
    "Einsum abc,cd->abd": ["2 3 | 3 4 | 3 5", "2 4 5 | 2 3 4"],
    "Einsum abc,adc->abd": ["2 3 | 3 4 | 3 5", "2 4 | 3 4 | 4 5"],
    "Einsum abc,acd->dab": ["2 3 | 3 4 | 3 5", "2 4 | 4 5 | 3 4"],
    "Einsum abc,abd->acd": ["2 3 | 3 4 | 3 5", "2 5 | 4 5 | 3 5"],
    "Einsum ab,ab->ba": ["4 | 5", "4 | 5"],
    "Einsum abc,bd->ad": ["2 3 | 3 4 | sum", "2 4 | 2 3"],
    "BatchNormalization": ["2 | 6 | 4 | 3", "2 3 4 6", "2 3 4 6", "2 3 4 6", "2 3 4 6"],
    "InstanceNormalization": ["2 | 6 | 4 | 3", "2 3 4 6", "2 3 4 6"],
    "GroupNormalization": ["2 | 2 3 | 4 | 3", "2 2 3 3 4", "2 2 3 3 4"],
    "LayerNormalization": ["2 | 4 | 3", "2 4 | 2 3", "2 4 | 2 3"],
    "RMSNormalization": ["2 | 4 | 3", "2 3 4"],
    "Concat": ["2 5 6 | 4 5 6 | 3 5 6", "2 4 6 | 4 5 6 | 3 4 6", "2 4 5 | 4 5 6 | 3 4 5"],
    "PRelu": ["2 | 4 | 3", "2 4 | 2 3"],
    "LSTM": [
        "steps | 2 3 | 3 5",
        "2 | 2 3 | 2 5",
        "2 | activations | activations",
        "2 | 2 3",
        " | 2 | 3",
        " | 2 | 3",
        "2 | 2 3",
    ],
    "GRU": ["steps | 2 3 | 3 5", "2 | 2 3 | 2 5", "2 | activations | activations", "2 | 2 3", " | 2 | 3"],
    "RNN": ["steps | 2 3 | 3 5", "2 | 2 3 | 2 5", "2 | activations | activations", "2 | 2 3", " | 2 | 3"],
    "LSTM of both directions": [
        "steps | 2 3 | 3 5",
        "fixed | 2 3 | 2 5",
        "fixed | activations | activations",
        "fixed | 2 3",
        "fixed | 2 | 3",
        "fixed | 2 | 3",
        "fixed | 2 3",
    ],
    "GRU of both directions": [
        "steps | 2 3 | 3 5",
        "fixed | 2 3 | 2 5",
        "fixed | activations | activations",
        "fixed | 2 3",
        "fixed | 2 | 3",
    ],
    "RNN of both directions": [
        "steps | 2 3 | 3 5",
        "fixed | 2 3 | 2 5",
        "fixed | activations | activations",
        "fixed | 2 3",
        "fixed | 2 | 3",
    ],
    "Attention, flat": [
        "2 3 | positions | 2 3",
        "2 3 | positions | 2 3",
        "2 | positions | 2 3",
        "2 3 | 2 3 | positions | positions",
    ],
    "Attention in heads": [
        "2 3 | 2 2 3 | positions | activations",
        "2 2 3 | 2 2 3 | positions | activations",
        "2 2 | 2 2 | positions | 2 3",
        "positions | positions",
    ],
    "Attention with a past": [
        "2 3 | positions | 2 3",
        "2 3 | positions | 2 3",
        "2 | positions | 2 3",
        "2 3 | 2 2 3 | positions | positions",
        "2 3 | 2 3 | positions | activations",
        "2 | 2 | positions | 3",
    ],
    "Attention of so many keys": [
        "positions | 2 3 | positions | activations",
        "positions | 2 3 | positions | activations",
        "positions | 2 | positions | 3",
    ],
    "MultiHeadAttention": [
        "positions | positions | 2 3",
        "positions | positions | 2 3",
        "positions | positions | 2 3",
        "2 3",
        "positions | 2 3 | positions | positions",
    ],
    "MultiHeadAttention in heads": [
        "2 | positions | 2",
        "2 | 2 | positions | activations",
        "2 | 2 | positions | activations",
    ],
    "MultiHeadAttention with a past": [
        "2 | positions | 2",
        "2 | positions | 2",
        "2 | positions | 2",
        "2 2",
        "2 | 2 2 | positions | positions",
        "2 | 2 | positions | activations",
        "2 | 2 | positions | activations",
    ],
    "Attention of projections": ["positions | positions | 2 3 6", "6 | 2 3", "2 3", "3 | 2 3 | positions | positions"],
    "Attention of projections with a past": [
        "positions | positions | 2 6",
        "6 | 2",
        "2",
        "fixed | positions | 2 | positions | activations",
    ],
    "GroupQueryAttention": [
        "positions | positions | 2 2",
        "positions | positions | 2 2",
        "positions | positions | 2 2",
    ],
    "GroupQueryAttention with a past": [
        "positions |  | 2",
        "positions | 2 | cache",
        "positions | 2 | cache",
        "positions | cache | positions | activations",
        "positions | cache | positions | activations",
    ],
    "RotaryEmbedding": ["positions | positions | 2", "positions | positions", "positions | positions"],
    "RotaryEmbedding in heads": ["positions | 2 | positions | pairs", "positions | positions", "positions | positions"],
    "RotaryEmbedding by rows": [
        "positions | positions | 2",
        "positions | positions | positions",
        "positions | positions | positions",
    ],
    "RotaryEmbedding by place": ["positions | positions | 2", "positions | positions", "positions | positions"],
    "RotaryEmbedding by place, in heads": [
        "positions | 2 | positions | pairs",
        "positions | positions",
        "positions | positions",
    ],
    "FusedConv": [
        "2 3 | 2 2 3 | spatial | spatial",
        "2 2 3 | 2 2 | spatial | spatial",
        "2 2 3",
        "2 | 2 3 | fixed | fixed",
    ],
    "NhwcFusedConv": [
        "2 3 | spatial | spatial | 2 2 3",
        "2 2 3 | 2 2 | spatial | spatial",
        "2 2 3",
        "2 | fixed | fixed | 2 3",
    ],
    "NhwcConv": ["2 3 | spatial | spatial | 2 2 3", "2 2 3 | spatial | spatial | 2 2", "2 2 3"],
    "FusedGemm": ["3 5 | 3 4", "4 5 | 3 4", "4 | 3"],
    "FusedMatMul": ["2 3 | 3 4 | 3 5", "2 4 | 4 5 | 3 4"],
    "FusedMatMul, transposed": ["2 3 6 | 3 5 6 | 3 4 6", "2 4 6 | 2 4 | 2 3 4 | 2 4 5"],
    "TransposeMatMul": ["2 3 | 3 5 | 3 4", "2 4 | 4 5 | 3 4"],
    "SkipLayerNormalization": ["2 | 4 | 3", "2 | 4 | 3", "2 3 4", "2 3 4", "2 3 4"],
    "SkipSimplifiedLayerNormalization": ["2 | 4 | 3", "2 | 4 | 3", "2 3 4", "2 3 4"],
    "SimplifiedLayerNormalization": ["2 | 4 | 3", "2 3 4"],
    "EmbedLayerNormalization": ["picked | 2 3", "picked | 2 3", "picked | 2 3", "2 3", "2 3"],
    "BiasGelu": ["2 | 4 | 3", "2 3 4"],
    "FastGelu": ["2 | 4 | 3", "2 3 4"],
    "BiasAdd": ["2 | 4 | 3", "2 3 4", "2 | 4 | 3"],
    "BiasSplitGelu": ["2 | 4 | 3", "2 3 4"],
    "GroupNorm": ["2 | 4 | 3 | 2 3", "2 2 3 3 4", "2 2 3 3 4"],
    "GroupNorm, channels first": ["2 | 2 3 | 4 | 3", "2 2 3 3 4", "2 2 3 3 4"],
    "SkipGroupNorm": ["2 | 4 | 3 | 2 3", "2 2 3 3 4", "2 2 3 3 4", "2 | 4 | 3 | 2 3", "2 2 3 3 4"],
    "SkipGroupNorm, one vector a sample": ["2 | 2 3 | 4 | 3", "2 2 3 3 4", "2 2 3 3 4", "2 3 4 | 2 3 3 4", "2 2 3 3 4"],
    "LinearAttention, gated": [
        "2 3 | positions | 2 3",
        "2 3 | positions | 2 3",
        "2 | positions | 2 3",
        "2 | 2 | activations | 3",
        "2 3 | positions | 2 3",
    ],
    "LinearAttention, gated_delta": [
        "2 3 | positions | 2 3",
        "2 3 | positions | 2 3",
        "2 | positions | 2 3",
        "2 | 2 | activations | 3",
        "2 3 | positions | 2 3",
        "2 3 | positions | 2 3",
    ],
    "CausalConvWithState": ["2 | 4 | spatial", "2 4 | 2 | spatial", "2 4", "2 | 4 | spatial"],
}


def axes() -> list[Any]:
    """Every axis of every input."""
    return [
        pytest.param(name, which, place, id=f"{name}, {which}.{place}")
        for name, asked in CASES.items()
        for which, shape in enumerate(asked.inputs)
        if isinstance(shape, tuple)
        for place in range(len(shape))
    ]


@pytest.mark.parametrize(("name", "which", "place"), axes())
def test_a_width_at_any_axis_of_any_input_is_followed_or_frozen(name: str, which: int, place: int) -> None:
    asked = CASES[name]
    analysis = analyze(Graph(model(asked, which, place)))
    if asked.runs:
        prove(analysis, seeds=1)
    ours = [k for k, shape in enumerate(asked.inputs) if isinstance(shape, tuple)]
    assert told(analysis) == FOUND[name][ours.index(which)].split(" | ")[place]
