"""Every attribute of every operator that has a rule is read by the rule, or listed here as saying nothing of axes.

A release of onnx that gives an operator another attribute fails this test until somebody has read what it does.
"""

from __future__ import annotations

import inspect
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph
from conet_onnx.planning import Selection, select
from conet_onnx.rewriting import rewrite
from conet_onnx.rules import RULES

WINDOW = "auto_pad dilations kernel_shape pads strides"
POOL = f"{WINDOW} ceil_mode"
RECURRENT = "activation_alpha activation_beta activations clip"
HARMLESS = {  # numbers that the operator computes with, and windows that move over positions
    "ArgMax": "select_last_index",
    "ArgMin": "select_last_index",
    "Attention": "is_causal left_window_size qk_matmul_output_mode right_window_size scale softcap softmax_precision",
    "AveragePool": f"{POOL} count_include_pad",
    "BatchNormalization": "epsilon momentum",
    "BitShift": "direction",
    "Cast": "round_mode saturate",
    "CastLike": "round_mode saturate",
    "CausalConvWithState": "activation",
    "Celu": "alpha",
    "ConstantOfShape": "value",
    "Conv": WINDOW,
    "ConvInteger": f"{WINDOW} group",  # the rule is Conv's, which reads the group
    "ConvTranspose": f"{WINDOW} output_padding output_shape",
    "CumProd": "exclusive reverse",
    "CumSum": "exclusive reverse",
    "DequantizeLinear": "output_dtype",
    "Dropout": "seed",
    "Elu": "alpha",
    "Flatten": "axis",  # it shows in the sizes of the output
    "GRU": f"{RECURRENT} linear_before_reset",
    "Gelu": "approximate",
    "Gemm": "alpha beta",
    "GlobalLpPool": "p",
    "GroupNormalization": "epsilon stash_type",
    "HardSigmoid": "alpha beta",
    "InstanceNormalization": "epsilon",
    "IsInf": "detect_negative detect_positive",
    "LRN": "alpha beta bias size",
    "LSTM": f"{RECURRENT} input_forget",
    "LayerNormalization": "epsilon stash_type",
    "LeakyRelu": "alpha",
    "LinearAttention": "chunk_size scale",
    "LpNormalization": "p",
    "LpPool": f"{POOL} p",
    "MaxPool": f"{POOL} storage_order",
    "Mod": "fmod",
    "QLinearConv": f"{WINDOW} group",
    "QuantizeLinear": "output_dtype precision saturate",
    "RMSNormalization": "epsilon stash_type",
    "RNN": RECURRENT,
    "Reshape": "allowzero",  # no size that is resized is zero
    "Resize": "antialias cubic_coeff_a exclude_outside extrapolation_value keep_aspect_ratio_policy mode nearest_mode",
    "RotaryEmbedding": "interleaved",
    "Selu": "alpha gamma",
    "Shrink": "bias lambd",
    "Split": "num_outputs",  # it shows in the sizes of the outputs
    "SwiGLU": "alpha",
    "Swish": "alpha",
    "ThresholdedRelu": "alpha",
    "TopK": "largest sorted",
    "Trilu": "upper",
    "Upsample": "mode",
}


@pytest.mark.parametrize("op", sorted(name for name in RULES if "." not in name and onnx.defs.has(name)))
def test_every_attribute_is_read_or_known_to_be_harmless(op: str) -> None:
    source = inspect.getsource(sys.modules[RULES[op][-1][1].__module__])
    unread = {a for a in onnx.defs.get_schema(op).attributes if f'"{a}"' not in source and f':{a}"' not in source}
    assert unread == set(HARMLESS.get(op, "").split())


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_space_to_depth_keeps_each_channel_with_its_block(mode: str) -> None:
    """Opset 28, for which onnxruntime has no kernel: a layer, the operator, a layer."""
    rng = np.random.default_rng(0)
    weights = {"a": rng.standard_normal((6, 3, 1, 1)), "c": rng.standard_normal((5, 24, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("SpaceToDepth", ["h"], ["s"], blocksize=2, mode=mode),
        helper.make_node("Conv", ["s", "c"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (1, 3, 4, 4)), ("y", (1, 5, 2, 2)))
    ]
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 28)], ir_version=13)
    analysis = analyze(Graph(model))
    (width,) = analysis.widths.values()
    assert width.size == 6
    x = {"x": rng.standard_normal((1, 3, 4, 4)).astype(np.float32)}
    twice = Selection(np.array([0, 1, 2, 3, 4, 5, 4]), np.array([1, 1, 1, 1, 3, 1, 1.5]))
    grown = rewrite(analysis.graph, select(analysis, {width.id: twice}))
    before, after = (ReferenceEvaluator(g.proto()).run(None, x)[0] for g in (analysis.graph, grown))
    np.testing.assert_allclose(after, before, atol=1e-5)
