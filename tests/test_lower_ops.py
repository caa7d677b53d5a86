"""Every lowered operator computes what onnxruntime computes, over versions, attributes and kinds of shapes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import test_lower_attention
import test_lower_fused
import test_lower_quantised
import test_lower_recurrent
import test_lower_sampling
from onnx import TensorProto, helper

from conet_onnx.contrib import DOMAIN
from conet_onnx.errors import UnsupportedOp
from conet_onnx.torch_backend.ops import LOWER
from tests.onnx_parity import (
    FLOAT,
    INT64,
    Case,
    X,
    assert_same,
    build,
    check,
    check_or_refused,
    grid,
    ints,
    run_lowered,
    run_reference,
    some,
)  # fmt: skip

CASES = [
    # Element-wise.
    *(
        Case(op, opset, [np.linspace(0.1, 4, 48, dtype=np.float32).reshape(2, 4, 6)])
        for op in ("Log", "Sqrt", "Reciprocal")
        for opset in (7, 13)
    ),
    *(
        Case(op, opset, [X])
        for op in ("Abs", "Ceil", "Cos", "Exp", "Floor", "Neg", "Sin")
        for opset in (7, 22)
    ),
    *(Case(op, 13, [X]) for op in ("Erf", "Sign", "Round")),
    Case("Round", 11, [np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)]),
    Case("IsNaN", 13, [np.array([1.0, np.nan], np.float32)]),
    *(
        Case(op, opset, [a, b])
        for op in ("Add", "Sub", "Mul", "Div")
        for opset in (7, 14)
        for a, b in [(X, X), (X, (4, 1, 1)), ((6,), X), ((2, 1, 7, 1), (4, 1, 6))]
    ),
    *(Case(op, 14, [X], [w]) for op in ("Add", "Sub", "Mul", "Div") for w in ((4, 1, 1), (), (1, 1, 1, 1, 1))),
    *(Case(op, 14, [ints(7, -7, 9, -9)], [ints(2, 2, -2, -2)]) for op in ("Add", "Sub", "Mul", "Div", "Mod")),
    *(Case(op, 14, [np.array([7, -7], np.int32)], [np.array(2, np.int32)]) for op in ("Sub", "Div")),
    Case("Mod", 13, [ints(7, -7, 9, -9)], [ints(2, 2, -2, -2)], {"fmod": 1}),
    Case("Mod", 13, [X], [(6,)], {"fmod": 1}),
    *(
        Case("Pow", opset, [np.abs(some((2, 5), np.random.default_rng(0))) + 0.1], [w])
        for opset in (7, 15)
        for w in (np.float32(2), np.float32(0.5), np.array([2.0, 3, 0, -1, 1.5], np.float32))
    ),
    Case("Pow", 15, [X], [ints(2)[0]]),
    Case("Pow", 15, [ints(2, 3, 4)], [np.float32(2)]),
    Case("Pow", 15, [ints(2, 3, 4)], [ints(2, 0, 1)]),
    *(Case(op, opset, [X, (4, 1, 1), X]) for op in ("Max", "Min", "Sum", "Mean") for opset in (8, 13)),
    *(Case(op, 13, [X]) for op in ("Max", "Min", "Sum", "Mean")),
    *(
        Case(op, opset, [ints(1, 2, 3), ints(2, 2, 2)])
        for op, opset in [
            ("Equal", 11), ("Less", 9), ("Greater", 9), ("LessOrEqual", 12), ("GreaterOrEqual", 12), ("Equal", 19),
        ]
    ),
    *(Case(op, 13, [X], [np.float32(0.1)]) for op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")),
    *(
        Case(op, 7, [np.array([True, True, False, False]), np.array([True, False, True, False])])
        for op in ("And", "Or", "Xor")
    ),
    Case("Not", 13, [np.array([True, False])]),
    Case("Where", 9, [np.array([[True], [False]]), (2, 3), (3,)]),
    Case("Where", 16, [np.array([True, False]), (2,)], [np.float32(-1)]),
    *grid("Clip", [7, 10], [X], min=[None, -0.5, 0.0], max=[None, 0.7, 6.0]),
    *(
        Case("Clip", opset, [X], bounds)
        for opset in (11, 13)
        for bounds in (
            [np.float32(-0.5), np.float32(0.5)], [np.float32(0), np.float32(6)], [np.float32(0)],
            [None, np.float32(0.3)], [np.float32(-0.1), None], [], [np.float32(0.5), np.float32(0.5)],
            [np.float32(-3.4028235e38), np.float32(0.2)],
        )
    ),
    Case("Clip", 13, [ints(1, 5, 9)], [ints(2)[0], ints(6)[0]]),
    *grid("Cast", [9, 13, 21], [np.array([-1.7, 0.0, 2.5], np.float32)], to=[FLOAT, INT64, TensorProto.BOOL,
                                                                            TensorProto.INT32, TensorProto.DOUBLE]),
    Case("Cast", 13, [ints(-1, 0, 300)], [], {"to": FLOAT}),
    Case("CastLike", 15, [X], [ints(1)]),
    # Activations.
    *(
        Case(op, opset, [X])
        for op, opset in [
            ("Relu", 7), ("Relu", 14), ("Sigmoid", 7), ("Sigmoid", 13), ("Tanh", 13), ("Softplus", 7), ("Softplus", 22),
            ("Softsign", 7), ("HardSwish", 14), ("HardSwish", 22), ("Mish", 18), ("Gelu", 20),
        ]
    ),
    *grid("LeakyRelu", [7, 16], [X], alpha=[None, 0.2]),
    *grid("Elu", [7, 22], [X], alpha=[None, 0.5]),
    *grid("Celu", [12], [X], alpha=[None, 2.0]),
    *grid("Selu", [7, 22], [X], alpha=[None, 1.5], gamma=[None, 0.9]),
    *grid("ThresholdedRelu", [10], [X], alpha=[None, 0.3]),
    *grid("HardSigmoid", [7, 22], [X], alpha=[None, 1 / 6, 0.3], beta=[None, 0.4]),
    Case("Gelu", 20, [X], [], {"approximate": "tanh"}),
    *(Case("PRelu", opset, [X], [w]) for opset in (7, 9, 16) for w in ((4, 1, 1), (1,), (6,), X[1:], (1, 4, 1, 1))),
    Case("PRelu", 16, [(3, 5)], [(5,)]),
    *grid("Softmax", [7, 11, 13], [(2, 3, 5)], axis=[None, 0, 1, 2], free=False),
    *grid("Softmax", [13], [(2, 3, 5)], axis=[-1, -2]),
    *grid("LogSoftmax", [11, 13], [(2, 3, 5)], axis=[None, 1, -1]),
    # Contractions.
    *grid("Conv", [11, 22], [X], [(6, 4, 3, 3), (6,)], pads=[None, [1, 1, 1, 1], [0, 1, 2, 1]],
          strides=[None, [2, 1]], dilations=[None, [1, 2]]),
    *grid("Conv", [11], [X], [(8, 2, 3, 3)], group=2, pads=[[1, 1, 1, 1]]),
    *grid("Conv", [11], [X], [(4, 1, 3, 3), (4,)], group=4, strides=[None, [2, 2]]),
    *grid("Conv", [11], [X], [(3, 4, 3, 2), (3,)], auto_pad=["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"],
          strides=[None, [2, 2], [1, 3]]),
    Case("Conv", 11, [X], [(3, 4, 3, 2)], {"auto_pad": "VALID", "dilations": [2, 1]}),
    Case("Conv", 11, [X], [(3, 4, 2, 2), None]),
    *grid("Conv", [11], [(2, 3, 9)], [(4, 3, 4), (4,)], pads=[None, [2, 2], [1, 2]], strides=[None, [2]],
          dilations=[None, [2]]),
    *grid("Conv", [11], [(2, 3, 9)], [(4, 3, 4), (4,)], auto_pad=["SAME_UPPER", "SAME_LOWER"]),
    *grid("Conv", [11], [(2, 2, 5, 6, 4)], [(4, 1, 3, 2, 1), (4,)], group=2, pads=[None, [1, 1, 0, 1, 0, 0]]),
    Case("Conv", 11, [(1, 4, 7, 6), (2, 4, 3, 3)], free=False),  # a kernel that is computed
    *grid("ConvTranspose", [11, 22], [X], [(4, 3, 3, 3), (3,)], pads=[None, [1, 1, 1, 1], [0, 1, 1, 2]],
          strides=[[2, 3]], output_padding=[None, [0, 1], [1, 2]]),
    *grid("ConvTranspose", [11], [X], [(4, 3, 3, 3), (3,)], pads=[None, [1, 1, 1, 1], [0, 1, 1, 2]]),
    *grid("ConvTranspose", [11], [X], [(4, 3, 3, 2)], pads=[[2, 0, 0, 1], [0, 0, 2, 2]], strides=[None, [2, 2]],
          dilations=[None, [2, 2]]),
    *grid("ConvTranspose", [11], [X], [(4, 2, 3, 3)], group=2, strides=[[2, 2]], output_padding=[[1, 1]],
          pads=[[1, 1, 1, 1]]),
    *grid("ConvTranspose", [11], [X], [(4, 3, 3, 3)], strides=[[2, 2]],
          output_shape=[[14, 12], [15, 13], [13, 12], [14, 11]], auto_pad=["NOTSET", "SAME_UPPER", "SAME_LOWER"],
          free=False),
    *grid("ConvTranspose", [11], [X], [(4, 3, 3, 3)], strides=[None, [2, 2]],
          auto_pad=["SAME_UPPER", "SAME_LOWER", "VALID"]),
    Case("ConvTranspose", 11, [(2, 3, 5)], [(3, 4, 3), (4,)], {"strides": [2]}),
    Case("ConvTranspose", 11, [(2, 2, 3, 4, 3)], [(2, 3, 2, 2, 2)], {"strides": [2, 1, 2]}),
    *grid("Gemm", [7, 13], [(3, 5)], [(4, 5), (4,)], transB=1, alpha=[None, 0.5], beta=[None, 2.0]),
    *(Case("Gemm", 13, [(3, 5)], [(4, 5), c], {"transB": 1}) for c in ((1,), (), (3, 4), (1, 4), (3, 1), None)),
    *(Case("Gemm", 13, [(3, 5)], [(5, 4), (4,)], a) for a in ({}, {"beta": 0.0}, {"alpha": 3.0})),
    Case("Gemm", 13, [(5, 3)], [(4, 5), (4,)], {"transA": 1, "transB": 1}),
    Case("Gemm", 11, [(5, 3)], [(5, 4)], {"transA": 1, "alpha": 0.3}),
    Case("Gemm", 13, [(3, 5)], [(1, 5), (1,)], {"transB": 1}),
    *(
        Case("MatMul", 13, [a], [b])
        for a, b in [((3, 5), (5, 4)), ((2, 3, 5), (5, 4)), ((2, 3, 5), (2, 5, 1)), ((5,), (5, 2))]
    ),
    Case("MatMul", 9, [(2, 1, 3, 5), (4, 5, 3)]),
    # Windows.
    *grid("MaxPool", [8, 10, 12, 22], [X], kernel_shape=[[3, 3]], strides=[None, [2, 2]],
          pads=[None, [1, 1, 1, 1], [0, 1, 2, 1]]),
    *grid("MaxPool", [10, 12], [(1, 2, 8, 9)], kernel_shape=[[3, 2]], strides=[[2, 2], [3, 2]],
          pads=[None, [1, 1, 1, 1], [0, 0, 1, 1]],
          ceil_mode=[0, 1], dilations=[None, [2, 2]]),
    *grid("MaxPool", [11], [X], kernel_shape=[[3, 2]], strides=[None, [2, 2]],
          auto_pad=["SAME_UPPER", "SAME_LOWER", "VALID"]),
    *grid("MaxPool", [11], [(2, 3, 9)], kernel_shape=[[2]], strides=[[2]], ceil_mode=[0, 1]),
    *grid("MaxPool", [11], [(2, 3, 4, 5, 6)], kernel_shape=[[2, 2, 3]], pads=[[1, 0, 1, 1, 0, 1]]),
    *grid("AveragePool", [7, 10, 19, 22], [X], kernel_shape=[[3, 3]], strides=[None, [2, 2]],
          pads=[None, [1, 1, 1, 1], [0, 1, 2, 1]], count_include_pad=[0, 1]),
    *grid("AveragePool", [19], [(1, 2, 8, 9)], kernel_shape=[[3, 2]], strides=[[2, 2], [3, 2]],
          pads=[None, [1, 1, 1, 1], [0, 0, 1, 1]], ceil_mode=[0, 1], count_include_pad=[0, 1]),
    *grid("AveragePool", [11], [X], kernel_shape=[[3, 2]], strides=[None, [2, 2]],
          auto_pad=["SAME_UPPER", "SAME_LOWER", "VALID"], count_include_pad=[0, 1]),
    *grid("AveragePool", [19], [X], kernel_shape=[[2, 2]], dilations=[[2, 2]], count_include_pad=[0, 1],
          pads=[None, [1, 1, 1, 1]]),
    *grid("AveragePool", [11], [(2, 3, 9)], kernel_shape=[[4]], strides=[[2]], pads=[None, [1, 1], [0, 2]]),
    *grid("AveragePool", [11], [(2, 3, 4, 5, 6)], kernel_shape=[[2, 2, 3]], pads=[[1, 0, 1, 1, 0, 1]]),
    *(Case(op, opset, [x])
      for op in ("GlobalAveragePool", "GlobalMaxPool") for opset in (7, 22) for x in (X, (2, 3, 5))),
    *grid("LRN", [13], [X], size=[1, 3, 5], alpha=[None, 0.1], bias=[None, 2.0]),
    # Normalisation.
    *grid("BatchNormalization", [7, 9, 14, 15], [X], [(4,), (4,), (4,), np.array([0.5, 1, 2, 3], np.float32)],
          epsilon=[None, 0.1]),
    *(
        Case("BatchNormalization", 15, [x], [(4,), (4,), (4,), np.array([0.5, 1, 2, 3], np.float32)])
        for x in ((3, 4), (3, 4, 5), (2, 4, 3, 2, 2))
    ),
    *grid("InstanceNormalization", [7, 22], [X], [(4,), (4,)], epsilon=[None, 0.1]),
    Case("InstanceNormalization", 7, [(2, 4, 5)], [(4,), (4,)]),
    *grid("LayerNormalization", [17], [(2, 3, 5)], [(5,), (5,)], axis=[None, -1, 2]),
    Case("LayerNormalization", 17, [(2, 3, 5)], [(3, 5), (3, 5)], {"axis": 1, "epsilon": 0.1}),
    Case("LayerNormalization", 17, [(2, 3, 5)], [(5,), (5,)], {"axis": 1}),
    Case("LayerNormalization", 17, [(2, 3, 5)], [(5,)]),
    *grid("GroupNormalization", [21], [X], [(4,), (4,)], num_groups=[1, 2, 4]),
    *(Case("Dropout", opset, [X]) for opset in (7, 12, 13, 22)),
    Case("Dropout", 10, [X], [], {"ratio": 0.3}),
    Case("Dropout", 13, [X], [np.float32(0.3)]),
    # Reductions.
    *(
        case
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
                   "ReduceSumSquare", "ReduceLogSumExp")
        for case in grid(op, [11], [(2, 3, 4)], axes=[None, [1], [-1, 0]], keepdims=[None, 0])
    ),
    *(
        Case(op, 18, [(2, 3, 4)], w, a)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")
        for w, a in [([ints(1, 2)], {}), ([ints(-1)], {"keepdims": 0}), ([], {}), ([], {"noop_with_empty_axes": 1})]
    ),
    *(Case(op, 18, [(2, 3, 4)], [], {"noop_with_empty_axes": 1})
      for op in ("ReduceL1", "ReduceSumSquare", "ReduceProd")),
    Case("ReduceSum", 13, [(2, 3, 4)], [ints(1)], {"keepdims": 0}),
    Case("ReduceSum", 13, [np.arange(6, dtype=np.int32).reshape(2, 3)], [ints(1)]),
    Case("ReduceLogSum", 18, [np.ones((2, 3), np.float32)], [ints(1)]),
    # Layout.
    *(
        Case("Reshape", opset, [(2, 3, 4)], [ints(*target)])
        for opset in (7, 14, 21)
        for target in ((2, 12), (0, -1), (-1, 4), (0, 0, 2, 2), (-1,), (2, 0, -1))
    ),
    Case("Reshape", 14, [(2, 3, 4)], [ints(6, 4)], {"allowzero": 1}),
    Case("Reshape", 14, [(0, 3)], [ints(3, 0)], {"allowzero": 1}),
    Case("Reshape", 14, [(2, 3, 4), ints(4, 6)], free=False),  # a target that is an input
    *grid("Flatten", [7, 13], [(2, 3, 4, 5)], axis=[None, 0, 1, 2, 3, 4], free=False),
    *grid("Flatten", [13], [(2, 3, 4, 5)], axis=[-1, -2], free=False),
    Case("Flatten", 13, [(2, 3)]),
    *grid("Squeeze", [7, 11], [(2, 1, 3, 1)], axes=[[1], [1, 3]], free=False),
    *(Case("Squeeze", 13, [(2, 1, 3, 1)], w, free=False) for w in ([ints(1)], [ints(-1, 1)])),
    *grid("Unsqueeze", [7, 11], [(2, 3)], axes=[[0], [1, 2], [0, 3]]),
    *(Case("Unsqueeze", 13, [(2, 3)], [w]) for w in (ints(1), ints(-1), ints(3, 0), ints(-1, 0))),
    *grid("Transpose", [7, 21], [(2, 3, 4)], perm=[None, [0, 2, 1], [2, 0, 1]]),
    Case("Identity", 14, [X]),
    *grid("Concat", [7, 13], [X, X], [X], axis=[0, 1, -1]),
    *grid("Split", [7], [X], axis=[1], split=[[1, 3], None], outputs=2),
    *grid("Split", [11], [X], axis=[-2], split=[[3, 4]], outputs=2),
    *(Case("Split", 13, [X], w, {"axis": 1}, outputs=2) for w in ([ints(3, 1)], [])),
    *grid("Split", [18], [X], axis=[2, -1], num_outputs=3, outputs=3),
    *grid("Slice", [7], [X], starts=[[1, 0]], ends=[[3, -1], [1000, 5]], axes=[None, [1, 2], [-1, 1]]),
    *(
        Case("Slice", opset, [X], w)
        for opset in (10, 13)
        for w in (
            [ints(0, 1), ints(1, 3)], [ints(1), ints(2**63 - 1), ints(2)], [ints(0), ints(7), ints(2), ints(3)],
            [ints(-1), ints(-(2**63)), ints(2), ints(-1)],
            [ints(5), ints(-1), ints(-2)], [ints(100), ints(1), ints(3), ints(-1)], [ints(-100), ints(2), ints(1)],
            [ints(3, 4), ints(0, 0), ints(1, 2), ints(-1, -1)], [ints(3), ints(1), ints(1)],
        )
    ),
    *(
        Case("Slice", 13, [X], w, free=False)
        for w in ([ints(-2), ints(0), ints(2), ints(-2)], [ints(-9), ints(-9), ints(2), ints(-1)])
    ),
    *grid("Gather", [7, 13], [X], [ints(1, 0, -1)], axis=[None, 1, -1]),
    *(Case("Gather", 13, [X], [w], {"axis": 1}) for w in (ints(1)[0], ints(-1)[0], ints(0, 1, 1, 3).reshape(2, 2))),
    Case("Gather", 13, [X, ints(1, 0)], [], {"axis": 2}, free=False),
    *(Case("Expand", 13, [x], [ints(*shape)]) for x, shape in [
        ((3, 1), (2, 3, 4)), ((3, 1), (1, 1)), ((2, 3, 4), (4,)), ((2, 3, 4), (1, 1, 1, 1)), ((1,), (5,)),
    ]),
    Case("Tile", 13, [(2, 3)], [ints(2, 3)]),
    *grid("Pad", [7, 10], [X], mode=[None, "constant", "reflect", "edge"], pads=[[0, 0, 1, 2, 0, 0, 3, 1]],
          value=[None, 1.5]),
    *grid("Pad", [10], [X], mode=["constant"], pads=[[0, 1, 0, 0, 0, 3, 0, 0], [0, 0, -1, 1, 0, 0, 2, -2], [0] * 8]),
    *(
        Case("Pad", opset, [X], [ints(0, 0, 1, 2, 0, 0, 3, 1), *more], {"mode": mode})
        for opset in (11, 13, 19)
        for mode in ("constant", "reflect", "edge")
        for more in ([], [np.float32(0.5)])
    ),
    Case("Pad", 19, [X], [ints(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": "wrap"}),
    *(Case("Pad", 18, [X], [ints(1, 2, 0, 1), value, ints(2, -1)]) for value in (None, np.float32(2))),
    *grid("DepthToSpace", [11, 13], [(2, 8, 3, 2)], blocksize=2, mode=["DCR", "CRD"]),
    *grid("SpaceToDepth", [13], [(2, 3, 4, 6)], blocksize=2),
    # Shapes.
    Case("Shape", 13, [X]),
    *grid("Shape", [15], [X], start=[None, 1, -2], end=[None, 3, -1]),
    Case("Size", 13, [X]),
    Case("ConstantOfShape", 9, [ints(2, 3)], [], {"value": helper.make_tensor("v", FLOAT, [1], [1.5])}, free=False),
    Case("ConstantOfShape", 9, [ints(2, 3)], [], {"value": helper.make_tensor("v", INT64, [1], [4])}, free=False),
    Case("Range", 11, [ints(1)[0], ints(9)[0], ints(3)[0]]),
    # By place.
    *grid("ArgMax", [11, 13], [X], axis=[None, -1], keepdims=[0, 1]),
    *grid("ArgMin", [12], [np.array([[1, 0, 0, 2], [3, 3, 1, 1]], np.float32)], axis=[1], select_last_index=[0, 1]),
    *grid("TopK", [10], [X], [ints(2)], axis=[None, 1], outputs=2),
    *grid("TopK", [11], [X], [ints(3)], axis=[2], largest=[0, 1], outputs=2),
    Case("TopK", 11, [np.array([[1, 2, 2, 1, 2]], np.float32)], [ints(4)], outputs=2),
    *grid("CumSum", [11, 14], [X], [np.array(1)], exclusive=[0, 1], reverse=[0, 1]),
    Case("CumSum", 14, [np.arange(6, dtype=np.int32)], [np.array(0)]),
    *grid("Trilu", [14], [(2, 4, 5)], upper=[0, 1]),
    *(Case("Trilu", 14, [(4, 5)], [np.array(k)], {"upper": u}) for k in (-1, 2) for u in (0, 1)),
    *grid("GatherElements", [11, 13], [(3, 4)], [ints(0, 1, -1, 2, 0, 1, 2, -3).reshape(2, 4)], axis=[None]),
    Case("GatherElements", 13, [(3, 4)], [ints(0, -1, 3, 1, 2, 0).reshape(3, 2)], {"axis": 1}),
    Case("GatherND", 13, [(3, 4, 2)], [ints(0, 1, -1, 3).reshape(2, 2)]),
    Case("GatherND", 13, [(3, 4, 2)], [ints(1, 0, 2).reshape(3, 1)]),
    Case("GatherND", 13, [(3, 4, 2)], [ints(1, -1, 3).reshape(3, 1)], {"batch_dims": 1}, free=False),
    *grid("ScatterElements", [18], [(3, 4)], [ints(0, 1, 1, 2).reshape(1, 4), np.ones((1, 4), np.float32)],
          reduction=[None, "add", "mul", "max", "min"]),
    Case("ScatterElements", 11, [(3, 4)], [ints(-1, 0, 1).reshape(3, 1), np.ones((3, 1), np.float32)], {"axis": 1}),
    Case("Scatter", 9, [(3, 4)], [ints(2, 0, 1).reshape(3, 1), np.ones((3, 1), np.float32)], {"axis": 1}),
    *grid("ScatterND", [18], [(3, 4, 2)], [ints(0, 1, 2, -1).reshape(2, 2), np.full((2, 2), 3, np.float32)],
          reduction=[None, "add", "mul", "max", "min"]),
    Case("ScatterND", 16, [(3, 4)], [np.zeros((0, 1), np.int64), np.ones((0, 4), np.float32)], {}),
    Case("ScatterND", 16, [(3, 0)], [ints(1).reshape(1, 1), np.ones((1, 0), np.float32)], {}),
    Case("ScatterND", 16, [(3, 4)], [ints(1, 1).reshape(2, 1), np.ones((2, 4), np.float32)], {"reduction": "add"}),
    *grid("OneHot", [9, 11], [ints(0, 2, -1, 7)], [np.array(4), np.array([0.5, 2], np.float32)], axis=[None, 0]),
    *grid("Hardmax", [11, 13], [X], axis=[None, 1]),
    # More functions, norms and products.
    *(Case(op, 22, [np.linspace(-0.9, 0.9, 24, dtype=np.float32).reshape(4, 6)])
      for op in ("Acos", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh", "Tan")),
    Case("Acosh", 9, [np.linspace(1.1, 4, 24, dtype=np.float32)]),
    *grid("IsInf", [10, 20], [np.array([1, np.inf, -np.inf, np.nan], np.float32)], detect_negative=[0, 1],
          detect_positive=[0, 1]),
    *(Case(op, 18, [ints(5, 12, -3), ints(6, 10, 7)]) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    Case("BitwiseNot", 18, [ints(5, 12, -3)]),
    *grid("Shrink", [9], [X], lambd=[None, 0.8], bias=[None, 0.3]),
    *(Case("Einsum", 12, [(2, 3, 4), (2, 4, 5)], [], {"equation": e})
      for e in ("bij,bjk->bik", "b i j, b j k -> k b i", "bij,bjk", "...ij,...jk->...ki")),
    Case("Einsum", 12, [(3, 3)], [], {"equation": "ii->i"}),
    *grid("RMSNormalization", [23], [X], [(6,)], axis=[None, -1], epsilon=[None, 1e-2]),
    Case("RMSNormalization", 23, [X], [(4, 7, 6)], {"axis": 1}),
    *grid("SimplifiedLayerNormalization", [17], [X], [(6,)], epsilon=[None, 1e-2]),
    *grid("MeanVarianceNormalization", [9, 13], [X], axes=[None, [1, 2]]),
    *grid("LpNormalization", [11, 22], [X], axis=[None, 1], p=[1, 2]),
    Case("LpNormalization", 22, [np.array([[0, 0], [3, 4]], np.float32)]),
    *grid("GlobalLpPool", [7, 21], [X], p=[None, 1, 3]),
]  # fmt: skip


@pytest.mark.parametrize("symbolic", ["none", "batch", "all"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lowered_node_computes_what_onnxruntime_computes(case: Case, symbolic: str) -> None:
    if symbolic == "all" and not case.free:
        check_or_refused(case, symbolic)
    else:
        check(case, symbolic)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_products_are_what_the_operator_says(exclusive: int, reverse: int) -> None:
    """onnxruntime has no kernel for them."""
    x = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    node = helper.make_node("CumProd", ["x", "axis"], ["y"], exclusive=exclusive, reverse=reverse)
    (got,) = run_lowered(build([node], {"x": x}, {"axis": np.array(1)}, ["y"], 26), {"x": x})
    turned = x[:, ::-1] if reverse else x
    wanted = np.cumprod(turned, axis=1)
    wanted = np.concatenate([np.ones((2, 1), np.float32), wanted[:, :-1]], axis=1) if exclusive else wanted
    np.testing.assert_array_equal(got, wanted[:, ::-1] if reverse else wanted)


NUMBERS = {
    "float": (("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Equal", "Less", "Greater",
               "LessOrEqual", "GreaterOrEqual"), np.float32([0.5, 2, 3]), np.float32(2)),
    "int": (("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Equal", "Less", "Greater"), ints(3, -5, 2), ints(7)[0]),
    "bool": (("And", "Or", "Xor", "Equal"), np.array([True, False, True]), np.array(True)),
}  # fmt: skip


@pytest.mark.parametrize("numbers_first", [False, True])
@pytest.mark.parametrize(("kind", "op"), [(kind, op) for kind, (ops, *_) in NUMBERS.items() for op in ops])
def test_a_constant_number_on_either_side(kind: str, op: str, numbers_first: bool) -> None:
    """It is a Python number in the generated code, which not all of torch's functions take."""
    _, x, number = NUMBERS[kind]
    names = ["c", "x"] if numbers_first else ["x", "c"]
    model = build([helper.make_node(op, names, ["y"])], {"x": x}, {"c": number}, ["y"], 17)
    assert_same(run_lowered(model, {"x": x}), run_reference(model, {"x": x}))


def test_fmod_of_a_constant_number() -> None:
    x = np.float32([0.7, -2, 3])
    node = helper.make_node("Mod", ["c", "x"], ["y"], fmod=1)
    model = build([node], {"x": x}, {"c": np.float32(5)}, ["y"], 17)
    assert_same(run_lowered(model, {"x": x}), run_reference(model, {"x": x}))


@pytest.mark.parametrize(
    ("op", "opset", "weights", "outputs"),
    [
        ("Dropout", 7, {}, 2),
        ("Dropout", 13, {}, 2),
        ("MaxPool", 12, {}, 2),
        ("LayerNormalization", 17, {"s": (4,)}, 3),
        ("BatchNormalization", 8, dict.fromkeys("gbmv", (3,)), 5),
    ],
)
def test_further_outputs_that_nobody_reads(op: str, opset: int, weights: dict[str, tuple[int]], outputs: int) -> None:
    """Old exporters name them all the same."""
    rng = np.random.default_rng(0)
    x = some((2, 3, 4, 4), rng)
    given = {name: np.abs(some(shape, rng)) for name, shape in weights.items()}
    settings = {"kernel_shape": [2, 2]} if op == "MaxPool" else {}
    node = helper.make_node(op, ["x", *given], [f"y{k}" for k in range(outputs)], **settings)
    model = build([node], {"x": x}, given, ["y0"], opset)
    assert_same(run_lowered(model, {"x": x}), run_reference(model, {"x": x}))


def test_every_lowered_operator_has_a_case() -> None:
    """Here, or in a file of its own."""
    files = (test_lower_attention, test_lower_fused, test_lower_quantised, test_lower_sampling)
    found = {case.op for file in files for case in file.CASES}
    found |= {case.op for case, _ in test_lower_fused.STANDING_FOR}
    found |= {f"{DOMAIN}.{case.op}" for case in test_lower_fused.MOVED}
    found |= {op for op, *_ in test_lower_recurrent.CASES}
    elsewhere = {"Constant", "CumProd", "Resize", "Upsample"}
    assert {case.op for case in CASES} | found | elsewhere >= LOWER.keys()


REFUSED = [
    Case("CenterCropPad", 18, [(3, 3)], [ints(2, 2)]),
    Case("MaxPool", 12, [X], [], {"kernel_shape": [2, 2]}, outputs=2),
    Case("Resize", 13, [X], [None, np.array([1, 2, 1, 1], np.float32)]),
    Case("Resize", 18, [X], [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear", "antialias": 1}),
    Case("Resize", 10, [X], [np.array([1, 1, 0.5, 0.5], np.float32)]),
    Case(
        "Resize",
        13,
        [X],
        [ints(), np.array([1, 1, 2, 2], np.float32)],
        {"coordinate_transformation_mode": "tf_crop_and_resize"},
    ),
    Case("Conv", 11, [(1, 1, 4, 4, 4, 4)], [(1, 1, 2, 2, 2, 2)]),
    Case("ConvTranspose", 11, [X], [(4, 3, 3, 3)], {"output_padding": [1, 1]}),
    Case("LRN", 13, [X], [], {"size": 2}),
    Case("Clip", 13, [X, np.float32(0)]),
    Case("Pad", 13, [X, ints(1, 0, 0, 0, 0, 0, 0, 0)], [], {"mode": "edge"}, free=False),
    Case("BatchNormalization", 15, [X], [(4,)] * 4, {"training_mode": 1}, outputs=3),
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_is_not_known_to_the_letter_is_refused(case: Case) -> None:
    with pytest.raises(UnsupportedOp, match=f"{case.op} 'the_node' \\(opset {case.opset}\\)") as caught:
        check(case)
    assert "resize it without training" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "weights",
    [[None, np.array([1, 1, 1.25, 3], np.float32)], [None, None, np.array([1, 2, 160, 200], np.int64)]],
    ids=["scales", "sizes"],
)
def test_images_are_resized_at_onnxs_coordinates(weights: list[object]) -> None:
    """To a millionth: torch's own coordinates, 1e-5 of a pixel off, are what a detector's later layers make 1e-3 of."""
    model, inputs = Case("Resize", 13, [(1, 2, 128, 96)], weights, {"mode": "linear"}).model()
    (got,), (wanted,) = run_lowered(model, inputs), run_reference(model, inputs)
    assert np.abs(got - wanted).max() < 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "weights",
    [[None, np.array([1, 1, 0.5, 2], np.float32)], [None, None, np.array([1, 2, 32, 96], np.int64)]],
    ids=["scales", "sizes"],
)
def test_images_are_resized_by_powers_of_two_in_one_call(
    weights: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn import functional as F

    asked = []
    ours = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda *args, **kwargs: asked.append(kwargs) or ours(*args, **kwargs))
    model, inputs = Case("Resize", 13, [(1, 2, 64, 48)], weights, {"mode": "linear"}).model()
    (got,), (wanted,) = run_lowered(model, inputs), run_reference(model, inputs)
    assert [call["mode"] for call in asked] == ["bilinear"]
    assert np.abs(got - wanted).max() < 1e-6 * np.abs(wanted).max()


def sized_by_data(mode: str, coordinates: str, *leading: int) -> onnx.ModelProto:
    """Resize of an x whose shape nobody tells to leading sizes (its own if there are none) and 9 by 5."""
    own = [helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Slice", ["shape", "zero", "two"], ["first"])]
    nodes = [
        *own,
        helper.make_node("Cast", ["wanted"], ["rest"], to=INT64),
        helper.make_node("Concat", ["given" if leading else "first", "rest"], ["sizes"], axis=0),
        helper.make_node("Tanh", ["x"], ["h"]),
        helper.make_node(
            "Resize", ["h", "", "", "sizes"], ["y"], name="the_node", mode=mode,
            coordinate_transformation_mode=coordinates,
        ),
    ]  # fmt: skip
    weights = {"zero": ints(0), "two": ints(2), "given": ints(*leading)}
    x, wanted = np.zeros((1, 3, 4, 6), np.float32), np.zeros(2, np.float32)
    return build(nodes, {"x": x, "wanted": wanted}, weights, ["y"], 17, "batch")


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners"])
@pytest.mark.parametrize("size", [(9, 5), (8, 12), (4, 6)])
def test_all_sizes_may_come_from_the_data(mode: str, coordinates: str, size: tuple[int, int]) -> None:
    model = sized_by_data(mode, coordinates)
    inputs = {"x": some((2, 3, 4, 6), np.random.default_rng(0)), "wanted": np.array(size, np.float32)}
    assert_same(run_lowered(model, inputs), run_reference(model, inputs))


def test_all_axes_may_be_resized_to_the_nearest() -> None:
    model = sized_by_data("nearest", "asymmetric", 4, 2)
    inputs = {"x": some((2, 3, 4, 6), np.random.default_rng(0)), "wanted": np.array([8, 12], np.float32)}
    assert_same(run_lowered(model, inputs), run_reference(model, inputs))


def test_cubic_interpolation_over_the_first_axes_is_an_error() -> None:
    model = sized_by_data("cubic", "half_pixel", 4, 2)
    inputs = {"x": some((2, 3, 4, 6), np.random.default_rng(0)), "wanted": np.array([8, 12], np.float32)}
    with pytest.raises(ValueError, match="the first two sizes must stay"):
        run_lowered(model, inputs)
