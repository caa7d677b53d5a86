"""Compare what a lowered graph computes with what onnxruntime computes, for graphs of one or a few nodes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.errors import UnsupportedOp
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import lower

__all__ = [
    "FLOAT", "INT64", "Array", "Case", "X", "assert_same", "build", "check", "check_gradients", "check_or_refused",
    "grid", "ints", "run_lowered", "run_reference", "some",
]  # fmt: skip

Array = np.ndarray[Any, Any]
TOLERANCE = 2e-5  # of the largest absolute value
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@dataclass(frozen=True)
class Case:
    """One node: its inputs from outside (x0, x1 ...), its inputs from the file (after those), its attributes."""

    op: str  # with its domain before it, unless that is ONNX's own
    opset: int
    inputs: Sequence[Any]  # shapes of normal floats, or arrays; None is an absent input
    weights: Sequence[Any] = ()  # likewise
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int | Sequence[int] = 1  # how many, or which
    types: Mapping[int, int] = field(default_factory=dict)  # of outputs that onnx does not know and are no floats
    free: bool = True  # whether it must also work where all sizes are symbolic, not only the batch

    def __str__(self) -> str:
        shown = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        sizes = ",".join(str(i if isinstance(i, tuple) else i.shape) for i in self.inputs if i is not None)
        return f"{self.op}-{self.opset}-{sizes}-{shown}".replace(" ", "")

    def model(self, symbolic: str = "none") -> tuple[onnx.ModelProto, dict[str, Array]]:
        """A model of this node, called the_node, and inputs for it."""
        rng = np.random.default_rng(7)
        inputs = {f"x{i}": some(spec, rng) for i, spec in enumerate(self.inputs) if spec is not None}
        weights = {f"w{i}": some(spec, rng) for i, spec in enumerate(self.weights) if spec is not None}
        names = [f"{kind}{i}" for kind, specs in (("x", self.inputs), ("w", self.weights)) for i in range(len(specs))]
        names = [name if name in inputs or name in weights else "" for name in names]
        asked = range(self.outputs) if isinstance(self.outputs, int) else self.outputs
        outputs = [f"y{i}" if i in asked else "" for i in range(max(asked) + 1)]
        domain, _, op = self.op.rpartition(".")
        node = helper.make_node(op, names, outputs, name="the_node", domain=domain, **self.attributes)
        model = build([node], inputs, weights, [name for name in outputs if name], self.opset, symbolic)
        for value in model.graph.output:
            place = int(value.name[1:])
            value.type.tensor_type.elem_type = self.types.get(place, value.type.tensor_type.elem_type)
        return model, inputs


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
    others = sorted({node.domain for node in nodes} - {""})
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in others)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
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
    model, inputs = case.model(symbolic)
    assert_same(run_lowered(model, inputs), run_reference(model, inputs))


def check_gradients(case: Case) -> None:
    """Those of all inputs and parameters that are floats are what finite differences say."""
    model, inputs = case.model()
    module = lower(Graph(model)).double()
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
    floats = {n: t.double().requires_grad_() for n, t in tensors.items() if t.is_floating_point()}
    parameters = dict(module.named_parameters())

    def run(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip([*floats, *parameters], values, strict=True))
        own = {name: given[name] for name in parameters}
        made = torch.func.functional_call(module, own, tuple(given.get(n, t) for n, t in tensors.items()))
        return tuple(t for t in (made if isinstance(made, tuple) else (made,)) if t.is_floating_point())

    assert torch.autograd.gradcheck(run, (*floats.values(), *parameters.values()), fast_mode=True)


def check_or_refused(case: Case, symbolic: str) -> None:
    """Right, or refused with a message that names the node; never wrong."""
    try:
        check(case, symbolic)
    except UnsupportedOp as error:
        if "the_node" not in str(error):
            raise


def grid(
    op: str, opsets: Sequence[int], inputs: Sequence[Any], weights: Sequence[Any] = (), **options: Any
) -> list[Case]:
    """A case for each opset and each combination of the lists in `options`; other options are Case's own."""
    own = {key: options.pop(key) for key in ("outputs", "types", "free") if key in options}
    keys, values = list(options), [v if isinstance(v, list) else [v] for v in options.values()]
    return [
        Case(op, opset, inputs, weights, {k: v for k, v in zip(keys, combination, strict=True) if v is not None}, **own)
        for opset in opsets
        for combination in itertools.product(*values)
    ]


X = (2, 4, 7, 6)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)
