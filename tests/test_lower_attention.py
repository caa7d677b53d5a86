"""Attention and rotary embeddings, ONNX's and onnxruntime's, compute what onnxruntime computes, and have gradients."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto

from conet_onnx.errors import UnsupportedOp
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import lower
from tests.onnx_parity import (
    Array,
    Case,
    assert_same,
    check,
    check_gradients,
    check_or_refused,
    grid,
    ints,
    run_lowered,
    run_reference,
)  # fmt: skip

OWN = "com.microsoft."
N, S, T = 2, 5, 7  # samples, queries, keys
Q, K, V = (N, S, 12), (N, T, 12), (N, T, 9)  # three heads of 4 numbers, of 3 for values
QH, KH, VH = (N, 6, S, 4), (N, 2, T, 4), (N, 2, T, 3)
PAST = [(N, 3, 2, 4), (N, 3, 2, 3)]
HEADS = {"q_num_heads": 3, "kv_num_heads": 3}
SAME = [(N, S, 12)] * 3
RNG = np.random.default_rng(3)


def flags(*shape: int) -> Array:
    """A mask that hides some keys, and never all of a query's."""
    made = RNG.random(shape) > 0.4
    made[..., 0] = True
    return made


BLIND = flags(S, T)
BLIND[1] = False  # a query that may look at nothing


def int32(*values: Any) -> Array:
    return np.array(values, np.int32)


def tables(rows: int, columns: int) -> list[Array]:
    angles = np.arange(rows)[:, None] / 3.0 ** np.arange(columns)
    return [f(angles).astype(np.float32) for f in (np.cos, np.sin)]


def token_tables(columns: int) -> list[Array]:
    """A row for each token."""
    angles = np.arange(N * S).reshape(N, S, 1) / 3.0 ** np.arange(columns)
    return [f(angles).astype(np.float32) for f in (np.cos, np.sin)]


PLACES = np.stack([np.arange(S)[::-1], np.arange(S) + 3]).astype(np.int64)
ATTENTION = [
    *grid("Attention", [23, 24], [Q, K, V], **HEADS, is_causal=[None, 1], softcap=[None, 2.0]),
    *grid("Attention", [23], [Q, K, V], **HEADS, is_causal=[None, 1], scale=0.3),
    *grid("Attention", [23], [QH, KH, VH], is_causal=[None, 1], softcap=[None, 1.5]),
    Case("Attention", 23, [(N, S, 24), (N, T, 8), (N, T, 6)], [], {"q_num_heads": 6, "kv_num_heads": 2}),
    Case("Attention", 23, [(N, S, 24), (N, T, 4), (N, T, 3)], [], {"q_num_heads": 6, "kv_num_heads": 1}),
    *(
        Case("Attention", 23, [Q, K, V], [mask], {**HEADS, "is_causal": causal})
        for mask in ((S, T), (N, 1, S, T), (1, 3, S, T), (N, 3, S, T), flags(S, T), flags(N, 3, S, T))
        for causal in (0, 1)
    ),
    Case("Attention", 23, [Q, K, V], [BLIND], HEADS),
    Case("Attention", 23, [Q, K, V], [np.where(BLIND, 0, -np.inf).astype(np.float32)], HEADS),
    Case("Attention", 23, [Q, K, V], [BLIND], {**HEADS, "softcap": 0.7}),
    Case("Attention", 23, [Q, K, V, (S, T)], [], {**HEADS, "softcap": 0.7}),
    Case("Attention", 23, [Q, K, V], [flags(S, T)], {**HEADS, "softcap": 0.7, "is_causal": 1}),
    *(
        Case("Attention", 23, [Q, K, V, mask, *PAST], [], {**HEADS, "is_causal": causal}, outputs=3)
        for mask in (None, (S, T + 2))
        for causal in (0, 1)
    ),
    Case("Attention", 23, [QH, KH, VH, None, (N, 2, 3, 4), (N, 2, 3, 3)], [], {"is_causal": 1}, outputs=3),
    *(
        Case("Attention", 24, [Q, K, V], [], {**HEADS, "softcap": 1.1, "qk_matmul_output_mode": mode}, outputs=(0, 3))
        for mode in (0, 1, 2, 3)
    ),
    Case("Attention", 24, [Q, K, V], [(S, T)], {**HEADS, "qk_matmul_output_mode": 2}, outputs=(0, 3)),
    Case("Attention", 24, [Q, K, V], [], {**HEADS, "is_causal": 1, "qk_matmul_output_mode": 3}, outputs=(0, 3)),
    Case("Attention", 24, [Q, K, V], [], {**HEADS, "softmax_precision": TensorProto.FLOAT}),
    *(
        Case("Attention", 24, [Q, K, V, None, None, None, ints(*lengths)], [], {**HEADS, "is_causal": causal})
        for lengths in ((T, 6), (3, 6))
        for causal in (0, 1)
    ),
    Case("Attention", 24, [Q, K, V, (S, T), None, None, ints(6, 5)], [], HEADS),
]
ROTARY = [
    *grid("RotaryEmbedding", [23], [(N, S, 16)], [*tables(9, 4), PLACES], num_heads=2, interleaved=[None, 1]),
    *grid("RotaryEmbedding", [23], [(N, 2, S, 8)], [*tables(9, 4), PLACES], interleaved=[None, 1]),
    *grid("RotaryEmbedding", [23], [(N, S, 16)], token_tables(4), num_heads=2, interleaved=[None, 1]),
    Case("RotaryEmbedding", 23, [(N, 2, S, 8)], token_tables(4)),
    *grid("RotaryEmbedding", [23], [(N, S, 16)], [*tables(9, 2), PLACES], num_heads=2, interleaved=[None, 1],
          rotary_embedding_dim=4),
    *grid(f"{OWN}RotaryEmbedding", [17], [(N, S, 16), PLACES], tables(9, 4), interleaved=[None, 1], free=False),
    *grid(f"{OWN}RotaryEmbedding", [17], [(N, 2, S, 8), PLACES], tables(9, 4), interleaved=[None, 1]),
    *grid(f"{OWN}RotaryEmbedding", [17], [(N, S, 16), ints(2)], tables(9, 4), num_heads=[None, 2], free=False),
    Case(f"{OWN}RotaryEmbedding", 17, [(N, 2, S, 8), ints(2)], tables(9, 4)),
    Case(f"{OWN}RotaryEmbedding", 17, [(N, S, 16), PLACES], tables(9, 2), {"num_heads": 2, "rotary_embedding_dim": 4}),
]  # fmt: skip
MULTI_HEAD = [
    *grid(f"{OWN}MultiHeadAttention", [17], [Q, K, V], num_heads=3, scale=[None, 0.3]),
    *grid(f"{OWN}MultiHeadAttention", [17], SAME, num_heads=3, unidirectional=1, scale=[None, 0.3]),
    *grid(f"{OWN}MultiHeadAttention", [17], [Q, K, V], [(33,)], num_heads=3, free=False),
    *grid(f"{OWN}MultiHeadAttention", [17], [Q, (N, 3, T, 4), (N, 3, T, 4)], num_heads=3),
    *(
        Case(f"{OWN}MultiHeadAttention", 17, [Q, K, V], [None, mask], {"num_heads": 3})
        for mask in (int32(6, 4), flags(N, T).astype(np.int32), flags(N, S, T).astype(np.int32))
    ),
    *(
        Case(f"{OWN}MultiHeadAttention", 17, SAME, [None, mask], {"num_heads": 3, "unidirectional": 1})
        for mask in (int32(5, 4), flags(N, S).astype(np.int32), flags(N, S, S).astype(np.int32))
    ),
    Case(
        f"{OWN}MultiHeadAttention",
        17,
        [Q, K, V],
        [None, flags(N, T).astype(np.int32)],
        {"num_heads": 3, "mask_filter_value": -2.0},
    ),
    *(
        Case(f"{OWN}MultiHeadAttention", 17, [*SAME, None, None, added], [], {"num_heads": 3, "unidirectional": 1})
        for added in ((1, 1, S, S), (N, 3, S, S), (N, 1, S, S))
    ),
    *(
        Case(
            f"{OWN}MultiHeadAttention",
            17,
            [*SAME, bias, None, None, (N, 3, 2, 4), (N, 3, 2, 4)],
            [],
            {"num_heads": 3, "unidirectional": causal},
            outputs=3,
            free=bias is None,
        )
        for bias in (None, (36,))
        for causal in (0, 1)
    ),
    *grid(f"{OWN}MultiHeadAttention", [17], [Q, K, V], num_heads=3, unidirectional=0, outputs=4),
    Case(
        f"{OWN}MultiHeadAttention",
        17,
        [Q, K, V, None, None, (1, 1, S, T)],
        [],
        {"num_heads": 3},
        outputs=(0, 3),
    ),
    Case(
        f"{OWN}MultiHeadAttention",
        17,
        [Q, K, V],
        [None, flags(N, T).astype(np.int32), 1000 * RNG.standard_normal((1, 3, S, T)).astype(np.float32)],
        {"num_heads": 3},
    ),
]
PACKED = [
    *grid(f"{OWN}Attention", [17], [(N, S, 10)], [(10, 36), (36,)], num_heads=3, unidirectional=[None, 1],
          scale=[None, 0.3]),
    Case(f"{OWN}Attention", 17, [(N, S, 10)], [(10, 33), (33,)], {"num_heads": 3, "qkv_hidden_sizes": [12, 12, 9]}),
    *(
        Case(f"{OWN}Attention", 17, [(N, S, 10)], [(10, 36), (36,), mask], {"num_heads": 3, "unidirectional": causal})
        for mask in (int32(4, 5), int32(5, 4, 1, 2), flags(N, S).astype(np.int32), flags(N, S, S).astype(np.int32))
        for causal in (0, 1)
    ),
    *(
        Case(
            f"{OWN}Attention",
            17,
            [(N, S, 10)],
            [(10, 36), (36,), mask, (2, N, 3, 2, 4)],
            {"num_heads": 3, "unidirectional": causal},
            outputs=2,
        )
        for mask in (None, flags(N, S + 2).astype(np.int32))
        for causal in (0, 1)
    ),
    *grid(f"{OWN}Attention", [17], [(N, S, 10)], [(10, 36), (36,)], num_heads=3, unidirectional=[0, 1], outputs=2),
    Case(f"{OWN}Attention", 17, [(N, S, 10)], [(10, 36), (36,), None, None, (N, 3, S, S)], {"num_heads": 3}),
]  # fmt: skip
LENGTHS = [int32(S - 1, S - 1), np.array(S, np.int32)]
GROUPED = {"num_heads": 4, "kv_num_heads": 2}
PARTS = [(N, S, 64), (N, S, 32), (N, S, 32)]


def grouped(
    inputs: Sequence[Any] = (*PARTS, None, None),
    lengths: Sequence[Array] = LENGTHS,
    more: Sequence[Any] = (),
    outputs: int = 3,
    free: bool = True,
    **attributes: Any,
) -> Case:
    return Case(
        f"{OWN}GroupQueryAttention", 17, inputs, [*lengths, *more], {**GROUPED, **attributes}, outputs, free=free
    )


def decoding(samples: int, length: int, more: Sequence[Any] = (), **attributes: Any) -> Case:
    """After three positions."""
    inputs = [(samples, length, 64), *[(samples, length, 32)] * 2, *[(samples, 2, 3, 16)] * 2]
    lengths = [np.full(samples, length + 2, np.int32), np.array(length + 3, np.int32)]
    return grouped(inputs, lengths, more, free=False, **attributes)


ONE = [(N, S, 128), None, None, None, None]  # queries, keys and values in one
GROUP_QUERY = [
    *(grouped(**{name: value}) for name, value in [("scale", 0.2), ("softcap", 1.5), ("causal", 0)]),
    *(grouped(**{name: value}) for name, value in [("smooth_softmax", 1), ("local_window_size", 2)]),
    grouped(outputs=1),
    grouped(ONE, free=False),
    grouped(ONE, more=tables(9, 8), do_rotary=1, free=False),
    grouped(more=tables(9, 8), do_rotary=1),
    grouped(more=tables(9, 8), do_rotary=1, rotary_interleaved=1),
    grouped(more=[None, None, None, (N, 1, S, S)]),
    grouped(more=[None, None, None, (1, 4, S, S)], softcap=1.5),
    grouped(more=[None, None, None, None, (4,)]),
    grouped(lengths=[int32(S - 1, 2), np.array(S, np.int32)], causal=0),
    *(decoding(*size) for size in ((N, 1), (1, S))),
    *(decoding(*size, local_window_size=3) for size in ((N, 1), (1, S))),
    *(decoding(*size, tables(9, 8), do_rotary=1) for size in ((N, 1), (1, S))),
    *(decoding(n, s, [None, None, None, (n, 1, s, s + 3)]) for n, s in ((N, 1), (1, S))),
]
CASES = [*ATTENTION, *ROTARY, *MULTI_HEAD, *PACKED, *GROUP_QUERY]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_lowered_attention_computes_what_onnxruntime_computes(case: Case) -> None:
    for symbolic in ("batch", "all"):
        (check if symbolic == "batch" or case.free else check_or_refused)(case, symbolic)


@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_gradients_are_what_finite_differences_say(case: Case) -> None:
    check_gradients(case)


@pytest.mark.parametrize("softcap", [0.0, 0.7])
def test_a_query_that_may_look_at_nothing_has_gradients_that_are_numbers(softcap: float) -> None:
    check_gradients(Case("Attention", 23, [Q, K, V], [BLIND], {**HEADS, "softcap": softcap}))


def test_weights_without_a_bias_are_weights_with_a_bias_of_zero() -> None:
    """onnxruntime's kernel reads a bias that is not there."""
    case = Case(f"{OWN}Attention", 17, [(N, S, 10)], [(10, 36), np.zeros(36, np.float32)], {"num_heads": 3})
    model, inputs = case.model()
    wanted = run_reference(model, inputs)
    del model.graph.node[0].input[2:]
    assert_same(run_lowered(model, inputs), wanted)


def test_a_mask_that_is_too_short_hides_the_last_keys() -> None:
    """onnxruntime's kernel wants all of it."""
    wanted = RNG.standard_normal((S, T)).astype(np.float32)
    wanted[:, -2:] = -np.inf
    short, inputs = Case("Attention", 23, [Q, K, V], [wanted[:, :-2]], HEADS).model()
    whole, _ = Case("Attention", 23, [Q, K, V], [wanted], HEADS).model()
    assert_same(run_lowered(short, inputs), run_reference(whole, inputs))


def test_padding_behind_a_sample_does_not_matter_before_it() -> None:
    """com.microsoft GroupQueryAttention: the rows of the padding are open; all others are onnxruntime's."""
    case = grouped(lengths=[int32(S - 1, 2), np.array(S, np.int32)], more=tables(9, 8), do_rotary=1)
    model, inputs = case.model()
    (ours, *_), (theirs, *_) = run_lowered(model, inputs), run_reference(model, inputs)
    assert_same([ours[0], ours[1, :3]], [theirs[0], theirs[1, :3]])


@pytest.mark.parametrize(("left", "right"), [(0, -1), (2, -1), (-1, 1), (1, 0), (1, 2)])
@pytest.mark.parametrize("past", [0, 2])
def test_a_window_hides_what_is_further_away(left: int, right: int, past: int) -> None:
    """ONNX Attention-25, for which onnxruntime has no kernel yet: as a mask that says the same."""
    inputs = [Q, K, V, None, *PAST] if past else [Q, K, V]
    distance = np.arange(T + past) - np.arange(S)[:, None] - past
    seen = (distance >= (-left if left >= 0 else -99)) & (distance <= (right if right >= 0 else 99))
    sides = {"left_window_size": left, "right_window_size": right}
    model, given = Case("Attention", 25, inputs, [], {**HEADS, **sides}).model()
    masked, others = Case("Attention", 23, [Q, K, V, seen, *inputs[4:]], [], HEADS, outputs=3 if past else 1).model()
    assert_same(run_lowered(model, given), run_reference(masked, {**others, **given})[:1])


REFUSED = [
    (Case(f"{OWN}MultiHeadAttention", 17, [(N, S, 3, 3, 4)], [], {"num_heads": 3}), "packed into one"),
    (Case(f"{OWN}MultiHeadAttention", 17, [Q, (N, T, 3, 2, 4)], [], {"num_heads": 3}), "packed into one"),
    (Case(f"{OWN}MultiHeadAttention", 17, [Q, K, V], [], {"num_heads": 3, "unidirectional": 1}), "come later"),
    (Case(f"{OWN}MultiHeadAttention", 17, [Q, K, V], [None, int32(*[5] * 8)], {"num_heads": 3}), "8 numbers"),
    (Case(f"{OWN}MultiHeadAttention", 17, [Q, *[(N, 3, T, 4)] * 2], [(36,)], {"num_heads": 3}), "in heads"),
    (Case(f"{OWN}MultiHeadAttention", 17, [*SAME, *[None] * 5, int32(1)], [], {"num_heads": 3}), "one buffer"),
    (Case(f"{OWN}Attention", 17, [(N, S, 10)], [(10, 36), (36,)], {"num_heads": 3, "do_rotary": 1}), "do_rotary"),
    (
        Case(f"{OWN}Attention", 17, [(N, S, 10)], [(10, 36)], {"num_heads": 3, "past_present_share_buffer": 1}),
        "one buffer",
    ),
    (
        Case(f"{OWN}Attention", 17, [(N, S, 10)], [(10, 36), (36,), np.ones((N, 1, S, S), np.int32)], {"num_heads": 3}),
        "4 axes",
    ),
    (grouped(qk_output=1), "qk_output"),
    (grouped(more=[None, None, PLACES]), "positions of its own"),
    (grouped(more=[None] * 7 + [(16,), (16,)]), "norms of its own"),
    (grouped(more=[None] * 5 + [(1,), (1,)]), "a quantised cache"),
    (grouped(do_rotary=1), "without tables"),
    (grouped([*PARTS, (N, 2, 3, 16), (N, 2, 3, 16)], [int32(S, S), np.array(S + 3, np.int32)]), "depends on the data"),
    (Case(f"{OWN}RotaryEmbedding", 17, [(N, S, 16), PLACES], tables(9, 4), {"scale": 2.0}), "a scale of 2"),
    (Case(f"{OWN}RotaryEmbedding", 17, [(N, S, 16), PLACES], tables(9, 4), {"is_packed_batching": 1}), "packed"),
    (Case("RotaryEmbedding", 23, [(N, S, 16)], [*tables(9, 4), PLACES]), "no num_heads"),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda it: str(it) if isinstance(it, Case) else "")
def test_what_is_not_known_to_the_letter_is_refused(case: Case, reason: str) -> None:
    with pytest.raises(UnsupportedOp, match=f"{case.op} 'the_node'") as caught:
        lower(Graph(case.model()[0]))
    assert reason in str(caught.value)


def trained(case: Case) -> set[str]:
    return set(dict(lower(Graph(case.model()[0])).named_parameters()))


def test_tables_and_masks_are_not_trained() -> None:
    settings = [
        Case("Attention", 23, [Q, K, V], [(S, T), *PAST], HEADS),
        Case("RotaryEmbedding", 23, [(N, S, 16)], [*tables(9, 4), PLACES], {"num_heads": 2}),
        Case(f"{OWN}RotaryEmbedding", 17, [(N, S, 16), PLACES], tables(9, 4)),
        Case(f"{OWN}MultiHeadAttention", 17, SAME, [None, None, (1, 1, S, S)], {"num_heads": 3}),
        grouped(more=[*tables(9, 8), None, (1, 1, S, S)], do_rotary=1),
    ]
    assert [trained(case) for case in settings] == [set()] * len(settings)


def test_weights_and_the_sinks_of_heads_are_trained() -> None:
    weights = [(10, 36), (36,), None, None, (N, 3, S, S)]
    assert trained(Case(f"{OWN}Attention", 17, [(N, S, 10)], weights, {"num_heads": 3})) == {"w0", "w1"}
    assert trained(Case(f"{OWN}MultiHeadAttention", 17, SAME, [(36,)], {"num_heads": 3})) == {"w0"}
    assert trained(grouped(more=[None] * 4 + [(4,)])) == {"w6"}


def test_a_lowered_attention_can_be_pickled() -> None:
    model, inputs = Case("Attention", 23, [Q, K, V], [], HEADS).model()
    module = pickle.loads(pickle.dumps(lower(Graph(model))))
    assert "attend(" in module.code
    assert_same([module(*map(torch.from_numpy, inputs.values())).numpy()], run_reference(model, inputs))
