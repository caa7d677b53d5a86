"""Find every tensor's shape, and the small constants that follow from shapes, without running the model.

Symbolic input sizes are given concrete values twice: a size or an integer that differs between the two depends on
them. Each time, ONNX shape inference runs over the model without its large weights; what it leaves unknown is found by
evaluating small constant nodes and inferring node by node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from conet_onnx.collecting import collector_paused
from conet_onnx.contrib import DOMAIN, apart_from_onnx, outputs_of
from conet_onnx.tensors import values

__all__ = ["Assignment", "Done", "Inference", "copy_except", "infer", "settle", "skeleton"]

SMALL = 1024  # elements: weights up to here take part in data propagation, computed constants are kept up to here
FEW = 32  # elements: what is computed of so few is small, but for what GROWING makes
RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)
ALIKE = frozenset({"GroupNormalization"})  # onnx infers nothing for these: the output is like the first input
GROWING = frozenset({"ConstantOfShape", "Expand", "EyeLike", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"})
BATCH = (3, 5)  # sizes for a symbolic first axis
EXTENT = (224, 256)  # sizes for any other symbolic axis of numbers: images are at least so large
TOKENS = (16, 12)  # of integers, and of what comes beside them: tables of positions are at least so long
INTEGERS = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})


Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """What operators made of what they were given: values, and types of outputs.

    Arrays are told apart by their identity, which is cheap: `one` gives the array that stands for all its equals. What
    was given is kept beside what was made of it, so that no other array can be taken for it.
    """

    arrays: dict[tuple[Any, ...], Array] = field(default_factory=dict)
    values: dict[tuple[Any, ...], tuple[list[Array], list[Array]]] = field(default_factory=dict)
    types: dict[tuple[Any, ...], tuple[list[Array | None], list[onnx.TypeProto | None]]] = field(default_factory=dict)

    def one(self, array: Array) -> Array:
        """The first array that was met of this type, shape and content."""
        return self.arrays.setdefault((array.dtype, array.shape, array.tobytes()), array)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What is known at one choice of the symbolic input sizes."""

    types: Mapping[str, onnx.TypeProto]
    constants: Mapping[str, np.ndarray[Any, Any]]

    def size(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, where all of it is known."""
        found = self.types.get(name)
        if found is None or not found.tensor_type.HasField("shape"):
            return None
        dims = found.tensor_type.shape.dim
        sizes = tuple([d.dim_value for d in dims])
        return None if 0 in sizes and not all(d.HasField("dim_value") for d in dims) else sizes  # unset reads as 0


@dataclass(frozen=True, slots=True)
class Inference:
    """Two assignments of the symbolic sizes, compared; `constants` are the small values on which both agree."""

    first: Assignment
    second: Assignment
    constants: Mapping[str, Array]

    def sizes(self, name: str) -> tuple[tuple[int, int], ...] | None:
        """Each axis's size at both assignments; None where it is unknown or the rank differs."""
        a = self.first.size(name)
        b = a if self.second.types.get(name) is self.first.types.get(name) else self.second.size(name)
        return None if a is None or b is None or len(a) != len(b) else tuple(zip(a, b, strict=True))

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """The element type of a tensor."""
        found = self.first.types.get(name)
        kind = found.tensor_type.elem_type if found is not None else 0
        return _element_type(kind) if kind else None


@cache
def _element_type(kind: int) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(kind)


@collector_paused()
def infer(model: onnx.ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Inference:
    """Shapes and constants of a model; `input_shapes` replaces the sizes chosen for symbolic axes."""
    light, weights = _unshaped(model)
    chosen = [_choose(model, which, input_shapes or {}) for which in (0, 1)]
    done = Done()
    stored = {t.name: done.one(values(t)) for t in light.graph.initializer}
    for node in light.graph.node:
        if (value := _value_of(node)) is not None:
            stored[node.output[0]] = done.one(values(value))
    first = _assign(model, light, chosen[0], weights, stored, done)
    if chosen[0] == chosen[1]:
        return Inference(first, first, first.constants)
    second = _assign(model, light, chosen[1], weights, stored, done, first)
    others = second.constants
    return Inference(first, second, {n: a for n, a in first.constants.items() if others.get(n) is a})


def _value_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor that a Constant node holds."""
    if node.op_type != "Constant":
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def skeleton(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TypeProto]]:
    """The model with its large weights turned into inputs of the same type, and every weight's type.

    So are sparse ones, of which onnx's shape inference knows nothing. Operators that onnxruntime has put into ONNX's
    domain are in onnxruntime's, where onnx lets them be.
    """
    made: onnx.ModelProto = copy_except(model, "graph")
    made.graph.CopyFrom(copy_except(model.graph, "initializer", "sparse_initializer", "node"))
    listed = {value.name for value in model.graph.input}
    types: dict[str, onnx.TypeProto] = {}

    def keep(tensor: onnx.TensorProto, name: str) -> bool:
        types[name] = _tensor_type(tensor.data_type, dims := tuple(tensor.dims))
        small = bool(math.prod(dims) <= SMALL)
        if not small and name not in listed:
            made.graph.input.add(name=name, type=types[name])
        return small

    made.graph.initializer.extend([tensor for tensor in model.graph.initializer if keep(tensor, tensor.name)])
    for sparse in model.graph.sparse_initializer:
        name = sparse.values.name
        types[name] = helper.make_tensor_type_proto(sparse.values.data_type, tuple(sparse.dims))
        if name not in listed:
            made.graph.input.add(name=name, type=types[name])
    valued = ((node, _value_of(node)) for node in model.graph.node)
    made.graph.node.extend([node for node, value in valued if value is None or keep(value, node.output[0])])
    apart_from_onnx(made)
    return made, types


def copy_except(message: Message, *fields: str) -> Any:
    """A copy of a protobuf message without some of its fields, which are never copied on the way."""
    made = type(message)()
    for descriptor, value in message.ListFields():
        if descriptor.name in fields:
            continue
        if descriptor.is_repeated:
            getattr(made, descriptor.name).extend(value)
        elif descriptor.message_type is not None:
            getattr(made, descriptor.name).CopyFrom(value)
        else:
            setattr(made, descriptor.name, value)
    return made


def _unshaped(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TypeProto]]:
    """The skeleton without the shapes that the file records: they may hold symbols, or be stale."""
    made, types = skeleton(model)
    made.graph.ClearField("value_info")
    for value in made.graph.output:
        value.type.CopyFrom(_without_sizes(value.type))
    return made, types


def _without_sizes(declared: onnx.TypeProto) -> onnx.TypeProto:
    made = onnx.TypeProto()
    made.CopyFrom(declared)
    if made.HasField("tensor_type"):
        made.tensor_type.ClearField("shape")
    return made


def _choose(model: onnx.ModelProto, which: int, given: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Concrete shapes for the model's own inputs; equal symbols get equal sizes, those of integers first."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in weights and v.type.tensor_type.HasField("shape")]
    symbols: dict[str, int] = {}
    for value in inputs:
        for axis, (dim, size) in enumerate(
            zip(value.type.tensor_type.shape.dim, given.get(value.name, ()), strict=False)
        ):
            if dim.dim_param:
                symbols[dim.dim_param] = _other(size, axis) if which else size
    chosen = {}
    whole = {value.name for value in inputs if value.type.tensor_type.elem_type in INTEGERS}
    for value in sorted(inputs, key=lambda v: v.name not in whole):
        images = len(value.type.tensor_type.shape.dim) > 3  # beside tokens, or else there is no telling
        extent = TOKENS if value.name in whole or (whole and not images) else EXTENT
        shape = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                shape.append(dim.dim_value)
                continue
            size = BATCH[which] if axis == 0 else extent[which]
            if value.name in given:
                asked = given[value.name][axis]
                size = _other(asked, axis) if which else asked
            elif dim.dim_param:
                size = symbols.setdefault(dim.dim_param, size)
            shape.append(size)
        chosen[value.name] = tuple(shape)
    return chosen


def _other(size: int, axis: int) -> int:
    """Another size than the one that was asked for: a smaller one, since tables of positions may be just as long."""
    if axis == 0 or size == 1:
        return size + BATCH[1] - BATCH[0]
    return size - min(max(size // 4, 1), EXTENT[1] - EXTENT[0])


def _assign(
    model: onnx.ModelProto,
    light: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    weights: Mapping[str, onnx.TypeProto],
    stored: Mapping[str, np.ndarray[Any, Any]],
    done: Done,
    other: Assignment | None = None,
) -> Assignment:
    """What is known at one choice of shapes for the inputs; what agrees with the other one is taken from there."""
    for value in light.graph.input:
        if value.name in shapes:
            elem_type = value.type.tensor_type.elem_type
            value.type.CopyFrom(helper.make_tensor_type_proto(elem_type, shapes[value.name]))
    graph = shape_inference.infer_shapes(light, data_prop=True).graph
    types = {v.name: v.type for v in (*graph.value_info, *graph.output, *graph.input)} | dict(weights)
    constants = dict(stored)
    agreeing = {"", *weights}  # values whose types and constants are those of the other assignment
    if other is not None:
        agreeing.update(name for name, shape in shapes.items() if other.size(name) == shape)
    for node in light.graph.node:
        if node.op_type == "Constant" and node.output[0] in constants:
            continue
        if other is not None and agreeing.issuperset(node.input) and not _has_subgraph(node):
            found = [name for name in node.output if name in other.types]
            types.update({name: other.types[name] for name in found})
            constants.update({name: other.constants[name] for name in found if name in other.constants})
            agreeing.update(found)
            continue
        settle(node, model, types, constants, done)
        if other is not None:
            both = ((name, constants.get(name)) for name in node.output)
            agreeing.update(name for name, made in both if made is not None and made is other.constants.get(name))
    return Assignment(types, constants)


def _has_subgraph(node: onnx.NodeProto) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def settle(
    node: onnx.NodeProto,
    model: onnx.ModelProto,
    types: dict[str, onnx.TypeProto],
    constants: dict[str, np.ndarray[Any, Any]],
    done: Done,
) -> str:
    """Infer the types that are open among a node's outputs; evaluate a node whose inputs are small and constant.

    What is found is added to `types` and `constants`. Returns what onnx has against the node, "" where nothing.
    """
    complaint, domain = "", node.domain
    if domain == DOMAIN:
        _infer_contrib(node, types)
    if domain not in ("", "ai.onnx") or _has_subgraph(node):
        return complaint
    op = node.op_type
    made: list[np.ndarray[Any, Any]] = []
    if op in ("Shape", "Size") and _known(types.get(node.input[0])):
        shape = [d.dim_value for d in types[node.input[0]].tensor_type.shape.dim]
        attributes = {a.name: a.i for a in node.attribute}
        value = np.array(shape, np.int64)[attributes.get("start", 0) : attributes.get("end")]
        made = [done.one(value if op == "Shape" else np.array(math.prod(shape), np.int64))]
    else:
        given = [constants.get(name) for name in node.input if name]
        settled = op not in RANDOM and all(array is not None for array in given)
        if settled and op == "Identity":  # exporters store equal norms once and name them so: hundreds of them
            made = [constants[node.input[0]]]
        elif settled and op not in GROWING and sum(array.size for array in given if array is not None) <= FEW:
            made = _evaluate(node, model, constants, done)
        if not made and not all(not name or _known(types.get(name)) for name in node.output):
            complaint = _infer_node(node, model, types, constants, done)
        if not made and settled and _stays_small(op, node.output, types):
            made = _evaluate(node, model, constants, done)
    for name, array in zip(node.output, made, strict=False):
        if name and array.size <= SMALL:
            constants[name] = array
            types[name] = _tensor_type(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
    return complaint


@lru_cache(4096)  # most are of a few integers; those who read types do not write to them
def _tensor_type(kind: int, shape: tuple[int, ...]) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(kind, shape)


def _stays_small(op: str, outputs: Iterable[str], types: Mapping[str, onnx.TypeProto]) -> bool:
    """Whether a node with small inputs has small outputs: a few integers can ask for any number of elements."""
    for name in filter(None, outputs):
        found = types.get(name)
        if found is None or not _known(found):
            return op not in GROWING
        if math.prod(d.dim_value for d in found.tensor_type.shape.dim) > SMALL:
            return False
    return True


def _known(found: onnx.TypeProto | None) -> bool:
    if found is None or not found.tensor_type.HasField("shape"):
        return False
    return all(d.HasField("dim_value") for d in found.tensor_type.shape.dim)


def _evaluate(
    node: onnx.NodeProto, model: onnx.ModelProto, constants: Mapping[str, np.ndarray[Any, Any]], done: Done
) -> list[np.ndarray[Any, Any]]:
    """ONNX's own reference implementation of one node; [] where it has none that accepts these inputs.

    It takes a millisecond, and layers that are alike compute alike: what has been `done` is looked up.
    """
    given = [constants[name] for name in node.input if name]
    places = [id(constants[name]) if name else 0 for name in node.input]
    key = (node.op_type, len(node.output), *[a.SerializeToString() for a in node.attribute], *places)
    known = done.values.get(key)
    if known is None:
        small = sum(array.size for array in given) <= 4 * SMALL
        found = _reference(node, model, {name: constants[name] for name in node.input if name}) if small else []
        known = done.values[key] = given, [done.one(array) if array.size <= SMALL else array for array in found]
    return known[1]


def _reference(
    node: onnx.NodeProto, model: onnx.ModelProto, feeds: dict[str, np.ndarray[Any, Any]]
) -> list[np.ndarray[Any, Any]]:
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    single = helper.make_model(helper.make_graph([node], "one", inputs, outputs), opset_imports=model.opset_import)
    try:
        found = ReferenceEvaluator(single).run(None, feeds)
    except Exception:  # the evaluator raises whatever numpy does; an unknown value only means that less is known
        return []
    return [np.asarray(array) for array in found] if len(outputs) == len(node.output) else []


def _infer_node(
    node: onnx.NodeProto,
    model: onnx.ModelProto,
    types: dict[str, onnx.TypeProto],
    constants: Mapping[str, np.ndarray[Any, Any]],
    done: Done,
) -> str:
    """Add the types of a node's outputs; layers that are alike are inferred once. Returns onnx's complaint, or ""."""
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if any(name and name not in types for name in node.input):
        return ""
    if node.op_type in ALIKE:
        types[node.output[0]] = types[node.input[0]]
        return ""
    places = (*map(bool, node.input), *map(bool, node.output))
    given = [types[name].SerializeToString() if name else b"" for name in node.input]
    arrays = [constants.get(name) for name in node.input]
    attributes = [a.SerializeToString() for a in node.attribute]
    key = (node.op_type, node.domain, *attributes, places, *given, *map(id, arrays))
    if key not in done.types:
        data = {name: numpy_helper.from_array(constants[name], name) for name in node.input if name in constants}
        try:
            made = shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, version, node.domain),
                node,
                {name: types[name] for name in node.input if name},
                data,
                opset_imports=list(model.opset_import),
            )
        except (shape_inference.InferenceError, onnx.defs.SchemaError, RuntimeError) as error:
            return " ".join(str(error).split())  # its outputs stay unknown, and what touches them is frozen
        done.types[key] = arrays, [made.get(name) for name in node.output]
    inferred = zip(node.output, done.types[key][1], strict=True)
    types.update({name: found for name, found in inferred if found is not None})
    return ""


def _infer_contrib(node: onnx.NodeProto, types: dict[str, onnx.TypeProto]) -> None:
    """The types of what one of onnxruntime's own operators makes."""
    found = [types.get(name) if name else None for name in node.input]
    shapes = [tuple(d.dim_value for d in t.tensor_type.shape.dim) if t and _known(t) else None for t in found]
    for name, made in zip(node.output, outputs_of(node, shapes), strict=False):
        if name and made is not None and (source := found[made[1]]) is not None:
            types[name] = helper.make_tensor_type_proto(source.tensor_type.elem_type, made[0])
