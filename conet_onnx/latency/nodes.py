"""What onnxruntime runs of a model, node by node, as a shape without its numbers and the numbers apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from conet_onnx.errors import ModelError
from conet_onnx.graph import Graph
from conet_onnx.runtime import optimised, random_feeds, run

__all__ = ["NULL", "Form", "Made", "Node", "make", "read_nodes"]

Array = np.ndarray[Any, Any]
Numbers = tuple[int, ...]

MOST_VALUES = 64  # elements of a tensor of integers that are read as sizes
INTEGERS = (onnx.AttributeProto.INT, onnx.AttributeProto.INTS)
PLAIN = (*INTEGERS, onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS)
WORDS = (onnx.AttributeProto.STRING, onnx.AttributeProto.STRINGS)


@dataclass(frozen=True, slots=True)
class Form:
    """A node with its integers taken out: what two nodes have in common when only sizes differ.

    `text` is JSON: operator, domain, opset, attributes (the length of integer ones), and for each input its type, its
    rank, whether it is a constant, and how many integers it holds, if these are read as sizes.
    """

    text: str

    @property
    def described(self) -> dict[str, Any]:
        """The JSON as a dictionary."""
        found: dict[str, Any] = json.loads(self.text)
        return found


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the model that runs: its form and its integers, in the form's order; `examples` are integer inputs
    that are not sizes, as they were when the model ran (indices, masks)."""

    name: str
    form: Form
    numbers: Numbers
    examples: Mapping[int, Array] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Made:
    """A form with integers, made a model of one node, with what it is fed."""

    model: bytes
    feeds: Mapping[str, Array]
    elements: int  # of inputs and outputs, what they move


def read_nodes(graph: Graph, *, provider: str, threads: int | None, seed: int = 0) -> list[Node]:
    """The nodes that onnxruntime runs of a model at batch one, under names that are unique and the same for the same
    model at other widths, as long as it is optimised alike.

    It is run once, so that every size is known, and integers that are data too. Nodes with graphs inside, and those
    that make no tensors, are left out. Raises ModelError where it does not run.
    """
    made = optimised(graph, provider=provider, threads=threads)
    feeds = random_feeds(graph, seed, batch=None if graph.input_shapes else 1)
    names = [name for node in made.graph.node if not _has_graph(node) for name in node.output if name]
    tensors: dict[str, Array] = dict(feeds)
    tensors |= run(made, feeds, names, provider=provider, threads=threads, optimise=False)
    constants = {t.name: t for t in made.graph.initializer}
    tensors |= {name: numpy_helper.to_array(tensor) for name, tensor in constants.items()}
    opsets = {opset.domain: opset.version for opset in made.opset_import}
    seen: Counter[str] = Counter()
    found = []
    for proto in made.graph.node:
        name = proto.name or proto.op_type
        seen[name] += 1
        if _has_graph(proto) or any(n not in tensors for n in (*proto.input, *proto.output) if n):
            continue
        name = name if proto.name and seen[name] == 1 else f"{name}#{seen[name]}"
        found.append(_node(name, proto, opsets.get(proto.domain, 1), tensors, constants.keys()))
    return found


def make(node: Node, numbers: Numbers, *, seed: int = 0) -> Made:
    """A model of this one node at other sizes. Raises ModelError where these make no sense."""
    described = node.form.described
    rng = np.random.default_rng(seed)
    taken = iter(numbers)
    attributes = {name: _taken(value, taken) for name, value in described["attributes"].items()}
    proto = helper.make_node(
        described["op"],
        [f"i{k}" if given else "" for k, given in enumerate(described["inputs"])],
        [f"o{k}" if used else "" for k, used in enumerate(described["outputs"])],
        name="timed",
        domain=described["domain"],
        **attributes,
    )
    feeds, constants, declared, elements = {}, [], [], 0
    for k, given in enumerate(described["inputs"]):
        if not given:
            continue
        shape = [next(taken) for _ in range(given["rank"])]
        if any(size < 0 for size in shape):
            raise ModelError(f"{described['op']}: a size below zero in {shape}.")
        dtype = helper.tensor_dtype_to_np_dtype(given["dtype"])
        if given["values"]:
            array = np.array([next(taken) for _ in range(given["values"])], dtype=dtype).reshape(shape)
        else:
            array = _filled(rng, dtype, shape, node.examples.get(k))
        elements += array.size
        if given["constant"]:
            constants.append(numpy_helper.from_array(array, f"i{k}"))
        else:
            feeds[f"i{k}"] = array
            declared.append(helper.make_tensor_value_info(f"i{k}", given["dtype"], shape))
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = helper.make_graph([proto], "timed", declared, outputs, constants)
    domains = {described["domain"]: described["opset"]} | ({"": 20} if described["domain"] else {})
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = helper.make_model(graph, ir_version=9, opset_imports=opsets)
    return Made(bytes(model.SerializeToString()), feeds, elements)


def _node(name: str, proto: onnx.NodeProto, opset: int, tensors: Mapping[str, Array], constants: Any) -> Node:
    numbers: list[int] = []
    examples = {}
    attributes = {a.name: _left(a, numbers) for a in sorted(proto.attribute, key=lambda one: one.name)}
    inputs: list[dict[str, Any] | None] = []
    for k, read in enumerate(proto.input):
        if not read:
            inputs.append(None)
            continue
        array = tensors[read]
        numbers += array.shape
        values = 0
        if array.dtype in (np.int32, np.int64) and read in constants and array.size <= MOST_VALUES:
            values = array.size
            numbers += array.ravel().tolist()
        elif array.dtype.kind in "iubO":
            examples[k] = array
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append({"dtype": dtype, "rank": array.ndim, "constant": read in constants, "values": values})
    form = {
        "op": proto.op_type,
        "domain": proto.domain,
        "opset": opset,
        "attributes": attributes,
        "inputs": inputs,
        "outputs": [int(bool(name)) for name in proto.output],
    }
    return Node(name, Form(json.dumps(form, sort_keys=True)), tuple(numbers), examples)


def _left(attribute: onnx.AttributeProto, numbers: list[int]) -> Any:
    """What is left of an attribute without its integers, which are appended to `numbers`."""
    value = helper.get_attribute_value(attribute)
    if attribute.type in INTEGERS:
        listed = attribute.type == onnx.AttributeProto.INTS
        numbers += value if listed else [value]
        return {"integers": len(value) if listed else None}
    if attribute.type in WORDS:
        one = isinstance(value, bytes)
        return {"words": value.decode() if one else [word.decode() for word in value]}
    if attribute.type in PLAIN:
        return {"floats": value if isinstance(value, float) else list(value)}
    return {"tensor": attribute.SerializeToString().hex()}


def _taken(left: Mapping[str, Any], numbers: Iterator[int]) -> Any:
    """The inverse of `_left`."""
    ((kind, value),) = left.items()
    if kind == "integers":
        return next(numbers) if value is None else [next(numbers) for _ in range(value)]
    if kind == "tensor":
        return helper.get_attribute_value(onnx.AttributeProto.FromString(bytes.fromhex(value)))
    return value


def _filled(rng: np.random.Generator, dtype: Any, shape: Sequence[int], example: Array | None) -> Array:
    """Random floats; integers as they were, over and over."""
    if example is not None:
        return np.resize(example, shape).astype(dtype)
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)


def _null() -> Made:
    """A model whose run is nothing but the call."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "nothing", [x], [y])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    return Made(bytes(model.SerializeToString()), {"x": np.zeros(1, np.float32)}, 2)


NULL = _null()


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
