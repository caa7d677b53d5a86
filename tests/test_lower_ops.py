"""Every lowered operator computes what onnxruntime computes, over versions, attributes and kinds of shapes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.errors import UnsupportedOp
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import lower

Array = np.ndarray[Any, Any]
TOLERANCE = 2e-5  # of the largest absolute value
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
fuzz = settings(deadline=None, max_examples=60, derandomize=True)


@dataclass(frozen=True)
class Case:
    """One node: its inputs from outside (x0, x1 ...), its inputs from the file (after those), its attributes."""

    op: str
    opset: int
    inputs: Sequence[Any]  # shapes of normal floats, or arrays
    weights: Sequence[Any] = ()  # likewise; None is an absent input
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    free: bool = True  # whether it must also work where all sizes are symbolic, not only the batch

    def __str__(self) -> str:
        shown = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        sizes = ",".join(str(i if isinstance(i, tuple) else i.shape) for i in self.inputs)
        return f"{self.op}-{self.opset}-{sizes}-{shown}".replace(" ", "")


def some(spec: Any, rng: np.random.Generator) -> Array:
    return rng.standard_normal(spec).astype(np.float32) if isinstance(spec, tuple) else np.asarray(spec)


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    weights: Mapping[str, Array],
    outputs: Sequence[str],
    opset: int,
    symbolic: str = "none",
) -> onnx.ModelProto:
    """A model; `symbolic` is what is not fixed in its inputs: none, batch, or all."""

    def declared(name: str, array: Array) -> onnx.ValueInfoProto:
        shape: list[int | str] = list(array.shape)
        if symbolic == "all":
            shape = [f"{name}_{axis}" for axis in range(array.ndim)]
        elif symbolic == "batch" and len(shape) > 1:
            shape[0] = "batch"
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)

    graph = helper.make_graph(
        list(nodes),
        "g",
        [declared(name, array) for name, array in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model)
    for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
        value.type.tensor_type.elem_type = found.type.tensor_type.elem_type or FLOAT
    return model


def run_reference(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> list[Array]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, dict(inputs))


def run_lowered(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> list[Array]:
    module = lower(Graph(model))
    with torch.no_grad():
        made = module(*(torch.from_numpy(np.array(array)) for array in inputs.values()))
    return [t.numpy() for t in (made if isinstance(made, tuple) else (made,))]


def assert_same(got: Sequence[Array], wanted: Sequence[Array]) -> None:
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        scale = max(1e-6, float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0)))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * scale)


def check(case: Case, symbolic: str = "none") -> None:
    rng = np.random.default_rng(7)
    inputs = {f"x{i}": some(spec, rng) for i, spec in enumerate(case.inputs)}
    weights = {f"w{i}": some(spec, rng) for i, spec in enumerate(case.weights) if spec is not None}
    names = [*inputs, *(f"w{i}" if spec is not None else "" for i, spec in enumerate(case.weights))]
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, name="the_node", **case.attributes)
    model = build([node], inputs, weights, outputs, case.opset, symbolic)
    assert_same(run_lowered(model, inputs), run_reference(model, inputs))


def grid(
    op: str, opsets: Sequence[int], inputs: Sequence[Any], weights: Sequence[Any] = (), **options: Any
) -> list[Case]:
    """A case for each opset and each combination of the lists in `options`; other options are Case's own."""
    own = {key: options.pop(key) for key in ("outputs", "free") if key in options}
    keys, values = list(options), [v if isinstance(v, list) else [v] for v in options.values()]
    return [
        Case(op, opset, inputs, weights, {k: v for k, v in zip(keys, combination, strict=True) if v is not None}, **own)
        for opset in opsets
        for combination in itertools.product(*values)
    ]


X = (2, 4, 7, 6)
I64 = np.int64


def ints(*values: int) -> Array:
    return np.array(values, I64)


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
    *(Case("MatMul", 13, [a], [b]) for a, b in [((3, 5), (5, 4)), ((2, 3, 5), (5, 4)), ((2, 3, 5), (2, 5, 1)), ((5,), (5, 2))]),
    Case("MatMul", 9, [(2, 1, 3, 5), (4, 5, 3)]),
    # Windows.
    *grid("MaxPool", [8, 10, 12, 22], [X], kernel_shape=[[3, 3]], strides=[None, [2, 2]], pads=[None, [1, 1, 1, 1], [0, 1, 2, 1]]),
    *grid("MaxPool", [10, 12], [(1, 2, 8, 9)], kernel_shape=[[3, 2]], strides=[[2, 2], [3, 2]], pads=[None, [1, 1, 1, 1], [0, 0, 1, 1]],
          ceil_mode=[0, 1], dilations=[None, [2, 2]]),
    *grid("MaxPool", [11], [X], kernel_shape=[[3, 2]], strides=[None, [2, 2]], auto_pad=["SAME_UPPER", "SAME_LOWER", "VALID"]),
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
    *(Case(op, opset, [x]) for op in ("GlobalAveragePool", "GlobalMaxPool") for opset in (7, 22) for x in (X, (2, 3, 5))),
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
    *(Case(op, 18, [(2, 3, 4)], [], {"noop_with_empty_axes": 1}) for op in ("ReduceL1", "ReduceSumSquare", "ReduceProd")),
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
            [ints(-1), ints(-(2**63)), ints(2), ints(-1)], [ints(-2), ints(0), ints(2), ints(-2)],
            [ints(5), ints(-1), ints(-2)], [ints(100), ints(1), ints(3), ints(-1)], [ints(-100), ints(2), ints(1)],
            [ints(3, 4), ints(0, 0), ints(1, 2), ints(-1, -1)], [ints(3), ints(1), ints(1)],
        )
    ),
    *grid("Gather", [7, 13], [X], [ints(1, 0, -1)], axis=[None, 1, -1]),
    *(Case("Gather", 13, [X], [w], {"axis": 1}) for w in (ints(1)[0], ints(-1)[0], ints(0, 1, 1, 3).reshape(2, 2))),
    Case("Gather", 13, [X, ints(1, 0)], [], {"axis": 2}, free=False),
    *(Case("Expand", 13, [x], [ints(*shape)]) for x, shape in [
        ((3, 1), (2, 3, 4)), ((3, 1), (1, 1)), ((2, 3, 4), (4,)), ((2, 3, 4), (1, 1, 1, 1)), ((1,), (5,)),
    ]),
    Case("Tile", 13, [(2, 3)], [ints(2, 3)]),
    *grid("Pad", [7, 10], [X], mode=[None, "constant", "reflect", "edge"], pads=[[0, 0, 1, 2, 0, 0, 3, 1]], value=[None, 1.5]),
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
]  # fmt: skip


@pytest.mark.parametrize("symbolic", ["none", "batch", "all"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lowered_node_computes_what_onnxruntime_computes(case: Case, symbolic: str) -> None:
    if symbolic == "all" and not case.free:
        try:
            check(case, symbolic)
        except UnsupportedOp as error:
            assert "the_node" in str(error)
        return
    check(case, symbolic)


MODES = [
    ("nearest", coordinates, {"nearest_mode": rounding})
    for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
] + [
    ("linear", coordinates, {}) for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
] + [("cubic", coordinates, {}) for coordinates in ("half_pixel", "align_corners")]  # fmt: skip


@pytest.mark.parametrize("symbolic", ["none", "batch"])
@pytest.mark.parametrize(
    ("mode", "coordinates", "more"), MODES, ids=lambda x: x if isinstance(x, str) else "".join(x.values())
)
@pytest.mark.parametrize(
    "target", [[14, 12], [7, 6], [4, 9], [1, 3], [10, 100], [1.0, 2.0], [2.0, 2.0], [1.7, 0.6]], ids=str
)
@pytest.mark.parametrize("opset", [11, 13, 19])
def test_resize_computes_what_onnxruntime_computes(
    mode: str, coordinates: str, more: dict[str, str], target: list[Any], opset: int, symbolic: str
) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, **more}
    if isinstance(target[0], int):
        weights = [np.zeros(0, np.float32), np.zeros(0, np.float32), ints(2, 4, *target)]
    else:
        weights = [np.zeros(0, np.float32), np.array([1, 1, *target], np.float32)]
    weights[0] = np.zeros(0, np.float32) if opset == 11 else None
    if opset == 19 and isinstance(target[0], int):
        attributes["axes"], weights[1:] = [2, 3], [None, ints(*target)]
    case = Case("Resize", opset, [X], weights, attributes)
    fixes_batch = symbolic == "batch" and opset < 19 and isinstance(target[0], int)
    if fixes_batch:
        with pytest.raises(UnsupportedOp, match="the_node"):
            check(case, symbolic)
    else:
        check(case, symbolic)
