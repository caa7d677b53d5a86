"""Operators that onnxruntime fuses compute what it computes, or what they stand for, and have gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper

from conet_onnx.contrib import DOMAIN, apart_from_onnx
from conet_onnx.errors import UnsupportedOp
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import lower
from tests.onnx_parity import (
    Array,
    Case,
    X,
    assert_same,
    build,
    check,
    check_gradients,
    check_or_refused,
    grid,
    run_lowered,
    run_reference,
)  # fmt: skip

OWN = "com.microsoft."
SEQ = (2, 5, 8)
RNG = np.random.default_rng(3)


def int32(*shape: int, below: int = 2) -> Array:
    return RNG.integers(0, below, shape).astype(np.int32)


def vectors(n: int, count: int) -> list[Any]:
    return [(n,)] * count


CASES = [
    *(Case(f"{OWN}{op}", 17, [SEQ]) for op in ("Gelu", "FastGelu", "QuickGelu", "ScaledSiLU")),
    *(Case(f"{OWN}{op}", 17, [SEQ], [(8,)]) for op in ("BiasGelu", "FastGelu")),
    Case(f"{OWN}QuickGelu", 17, [SEQ], [], {"alpha": 0.7}),
    Case(f"{OWN}QuickGelu", 17, [SEQ], [], {"alpha": 1.0}),
    Case(f"{OWN}ScaledSiLU", 17, [SEQ], [], {"alpha": 0.7}),
    Case(f"{OWN}ScaledSiLU", 17, [SEQ], [np.array(1.3, np.float32)]),
    *grid("Swish", [24], [SEQ], alpha=[None, 0.3]),
    *grid(f"{OWN}FusedConv", [17], [X], [(6, 4, 3, 3), (6,)], pads=[[1, 1, 1, 1]],
          activation=["Relu", "Tanh", "Sigmoid", "HardSwish"]),
    *(Case(f"{OWN}FusedConv", 17, [X], [(6, 2, 3, 2)], {"group": 2, "strides": [2, 1], "activation": name,
                                                       "activation_params": parameters})
      for name, parameters in [("LeakyRelu", [0.3]), ("Clip", [-0.5, 0.7]), ("HardSigmoid", [0.3, 0.4])]),
    Case(f"{OWN}FusedConv", 17, [X], [(6, 4, 3, 3), (6,), (2, 6, 5, 4)], {"activation": "Relu"}),
    Case(f"{OWN}FusedConv", 17, [X], [(6, 4, 3, 3), None, (2, 6, 5, 4)]),
    *grid(f"{OWN}FusedConv", [17], [X], [(6, 4, 3, 3)], auto_pad=["SAME_UPPER", "VALID"], activation="Relu"),
    *grid(f"{OWN}FusedGemm", [17], [(3, 5)], [(4, 5), (4,)], transB=1, alpha=[None, 0.5], activation=["Relu", "Tanh"]),
    *(Case(f"{OWN}FusedGemm", 17, [(3, 5)], [(5, 4), (4,)], {"activation": name, **parameters})
      for name, parameters in [
          ("LeakyRelu", {"activation_alpha": 0.3}), ("Elu", {"activation_alpha": 0.7}), ("Sigmoid", {}),
          ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}), ("Softplus", {}), ("Softsign", {}),
          ("Selu", {"activation_alpha": 1.3, "activation_gamma": 0.9}), ("ThresholdedRelu", {"activation_alpha": 0.3}),
          ("Celu", {"activation_alpha": 1.5}),
      ]),
    *grid(f"{OWN}FusedMatMul", [17], [(2, 3, 5)], [(5, 4)], alpha=[None, 0.5]),
    *(Case(f"{OWN}{op}", 17, [a, b], [], {"transA": s, "transB": t, "alpha": 0.5})
      for op in ("FusedMatMul", "TransposeMatMul")
      for a, b, s, t in [((2, 5, 3), (2, 5, 4), 1, 0), ((2, 3, 5), (4, 5), 0, 1), ((5, 3), (4, 5), 1, 1)]),
    *(Case(f"{OWN}FusedMatMul", 17, [a, b], [], {"transBatchA": 1, "transA": s, "transBatchB": 1, "transB": t})
      for a, b, s, t in [((3, 2, 5), (5, 2, 4), 0, 0), ((5, 2, 3), (5, 2, 4), 1, 0), ((3, 2, 5), (4, 2, 5), 0, 1)]),
    *(Case(f"{OWN}SkipLayerNormalization", 17, [SEQ, skip], vectors(8, n), {"epsilon": eps})
      for skip in (SEQ, (1, 5, 8), (5, 8)) for n, eps in ((1, 1e-5), (2, 1e-2), (3, 1e-12))),
    Case(f"{OWN}SkipLayerNormalization", 17, [SEQ, SEQ], [(8,), None, (8,)], outputs=(0, 3)),
    *(Case(f"{OWN}SkipSimplifiedLayerNormalization", 17, [SEQ, SEQ], vectors(8, n), {"epsilon": eps}, outputs=(0, 3))
      for n, eps in ((1, 1e-5), (2, 1e-2))),
    *grid("SimplifiedLayerNormalization", [17], [X], [(6,)], epsilon=[None, 1e-2]),
    *grid("LayerNormalization", [13], [X], [(6,), (6,)], epsilon=[None, 1e-2]),
    *grid("LayerNormalization", [17], [X], [(6,), (6,)], epsilon=[None, 1e-2], outputs=3),
    Case("LayerNormalization", 17, [X], [(7, 6), (6,)], {"axis": 2}, outputs=3, free=False),
    *grid("Dropout", [12, 13, 22], [X], outputs=2),
    *(Case(f"{OWN}EmbedLayerNormalization", 17,
           [int32(2, 5, below=9), segments],
           [(9, 8), (7, 8), None if segments is None else (2, 8), (8,), (8,), mask, places], {"epsilon": 1e-5}, outputs,
           {1: TensorProto.INT32})
      for segments, mask, places, outputs in [
          (int32(2, 5), None, None, (0, 1)), (None, None, None, (0, 1)), (int32(2, 5), int32(2, 5), None, (0, 1)),
          (int32(2, 5), None, int32(2, 5, below=7), (0, 1, 2)), (None, None, int32(1, 5, below=7), (0, 1, 2)),
      ]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fused_operator_computes_what_onnxruntime_computes(case: Case) -> None:
    for symbolic in ("batch", "all"):
        (check if symbolic == "batch" or case.free else check_or_refused)(case, symbolic)


# Operators without a kernel for CPUs, and the nodes that they stand for.


def n(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def normalised(last: bool, activation: int) -> list[NodeProto]:
    """From s to y, with the scale w0 and the bias w1."""
    turn, back = ([0, 3, 1, 2], [0, 2, 3, 1]) if last else ([0, 1, 2, 3],) * 2
    nodes = [
        n("Transpose", "s", "t", perm=turn),
        n("GroupNormalization", "t w0 w1", "u", num_groups=2, epsilon=1e-3),
        n("Transpose", "u", "v" if activation else "y0", perm=back),
    ]
    return [*nodes, n("Sigmoid", "v", "g"), n("Mul", "v g", "y0")] if activation else nodes


def norm(op: str, weights: Sequence[Any], last: int, activation: int, outputs: int = 1) -> Case:
    attributes = {"groups": 2, "channels_last": last, "activation": activation, "epsilon": 1e-3}
    return Case(f"{OWN}{op}", 21, [(2, 3, 4, 6) if last else (2, 6, 3, 4)], weights, attributes, outputs)


TURN, BACK = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
STANDING_FOR = [
    (Case(f"{OWN}BiasAdd", 21, [SEQ], [(8,), SEQ]), [n("Add", "x0 w0", "a"), n("Add", "a w1", "y0")]),
    (
        Case(f"{OWN}BiasSplitGelu", 21, [SEQ], [(8,)]),
        [
            n("Add", "x0 w0", "a"), n("Split", "a", "l r", axis=2, num_outputs=2), n("Gelu", "r", "g"),
            n("Mul", "l g", "y0"),
        ],
    ),
    *(
        (norm("GroupNorm", [(6,), (6,)], last, on), [n("Identity", "x0", "s"), *normalised(bool(last), on)])
        for last in (0, 1)
        for on in (0, 1)
    ),
    *(
        (
            norm("SkipGroupNorm", [(6,), (6,), skip, (6,)], 1, 1, 2),
            [n("Add", "x0 w2", "a"), n("Add", "a w3", "s"), n("Identity", "s", "y1"), *normalised(True, 1)],
        )
        for skip in ((2, 3, 4, 6), (2, 1, 1, 6))
    ),
    (
        norm("SkipGroupNorm", [(6,), (6,), (2, 6)], 1, 0),
        [
            n("Unsqueeze", "w2 axes", "w"), n("Add", "x0 w", "s"), *normalised(True, 0),
        ],
    ),
    *(
        (
            Case(f"{OWN}NhwcFusedConv", 21, [(2, 7, 6, 4)], [(6, 2, 3, 2), (6,), (2, 5, 5, 6)],
                 {"group": 2, "activation": "LeakyRelu", "activation_params": [0.3], **padding}),
            [
                n("Transpose", "x0", "a", **TURN), n("Conv", "a w0 w1", "b", group=2, **padding),
                n("Transpose", "b", "c", **BACK), n("Add", "c w2", "d"), n("LeakyRelu", "d", "y0", alpha=0.3),
            ],
        )
        for padding in ({}, {"auto_pad": "VALID"})
    ),
    (Case("SwiGLU", 28, [SEQ, SEQ], [], {"alpha": 0.7}), [
        n("Mul", "x0 alpha", "a"), n("Sigmoid", "a", "b"), n("Mul", "x0 b", "c"), n("Mul", "c x1", "y0"),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "nodes"), STANDING_FOR, ids=lambda value: str(value) if isinstance(value, Case) else ""
)
def test_an_operator_without_a_kernel_is_what_it_stands_for(case: Case, nodes: list[NodeProto]) -> None:
    model, inputs = case.model("batch")
    weights = {name: Graph(model).array(name) for name in Graph(model).weights}
    weights |= {"axes": np.array([1, 2]), "alpha": np.array(0.7, np.float32)}
    outputs = [value.name for value in model.graph.output]
    assert_same(run_lowered(model, inputs), run_reference(build(nodes, inputs, weights, outputs, 21), inputs))


MOVED = [Case("LayerNormalization", 13, [SEQ], [(8,), (8,)]), Case("SimplifiedLayerNormalization", 17, [SEQ], [(8,)])]


@pytest.mark.parametrize("case", MOVED, ids=str)
def test_a_norm_in_the_domain_that_it_belongs_to_is_the_same(case: Case) -> None:
    """onnxruntime reads it in ONNX's domain only; shape inference moves it."""
    model, inputs = case.model("batch")
    wanted = run_reference(model, inputs)
    apart_from_onnx(model)
    assert model.graph.node[0].domain == DOMAIN
    assert_same(run_lowered(model, inputs), wanted)


ONCE = {(case.op, len(case.weights), case.attributes.get("activation")): case for case in CASES}
DIFFERENTIABLE = [*ONCE.values(), *(case for case, _ in STANDING_FOR)]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_gradients_are_what_finite_differences_say(case: Case) -> None:
    check_gradients(case)


REFUSED = [
    Case(f"{OWN}FusedConv", 17, [X], [(6, 4, 3, 3)], {"activation": "Softmax"}),
    Case(f"{OWN}FusedConv", 17, [X], [(6, 4, 3, 3)], {"activation": "Clip", "activation_params": [0.5]}),
    Case(f"{OWN}FusedGemm", 17, [(3, 5)], [(5, 4)], {"activation": "LeakyRelu"}),
    Case(f"{OWN}FusedGemm", 17, [(3, 5)], [(5, 4)], {"activation": "Clip"}),
    Case(f"{OWN}FusedMatMul", 17, [(5,)], [(5, 4)], {"transA": 1}),
    Case(f"{OWN}NhwcFusedConv", 17, [(2, 7, 6, 4)], [(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER"}),
    Case(f"{OWN}NhwcConv", 17, [(2, 7, 6, 4)], [(6, 4, 3, 3)]),
    Case(f"{OWN}SkipLayerNormalization", 17, [SEQ, SEQ], [(8,)], outputs=2),
    Case("SimplifiedLayerNormalization", 17, [SEQ], [(8,)], outputs=2),
    norm("SkipGroupNorm", [(6,), (6,), (2, 6, 3, 4)], 0, 0),
    norm("GroupNorm", [(6,), (6,)], 1, 2),
    Case("Dropout", 10, [X], outputs=2),
    Case("Dropout", 13, [X], [np.float32(0.5), np.array(True)], outputs=2),
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_is_not_known_to_the_letter_is_refused(case: Case) -> None:
    with pytest.raises(UnsupportedOp, match=f"{case.op} 'the_node' \\(opset {case.opset}\\)"):
        check(case)


def test_a_mask_of_what_is_left_is_of_the_same_draw() -> None:
    """In training, which elements are zero is what the mask says, and the others are larger."""
    model, inputs = Case("Dropout", 13, [(40, 50)], [np.float32(0.25)], outputs=2).model()
    module = lower(Graph(model)).train()
    x = torch.from_numpy(inputs["x0"])
    y, left = module(x)
    assert left.dtype == torch.bool
    assert 0.7 < left.float().mean() < 0.8
    assert torch.equal(y, torch.where(left, x * (1 / 0.75), 0))


def test_activations_of_a_transformer_are_trained_and_settings_are_not() -> None:
    model, _ = Case(f"{OWN}SkipLayerNormalization", 17, [SEQ, SEQ], [(8,)] * 3).model()
    assert len(dict(lower(Graph(model)).named_parameters())) == 3
    model, _ = Case(f"{OWN}ScaledSiLU", 17, [SEQ], [np.array([1.3], np.float32)]).model()
    assert not dict(lower(Graph(model)).named_parameters())
