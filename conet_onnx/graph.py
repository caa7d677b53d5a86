"""A frozen view of an ONNX model: nodes, weights, shapes, and the constants that shapes imply."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import checker, helper, inliner, numpy_helper, shape_inference

from conet_onnx.errors import ModelError, OutputError, UsageError
from conet_onnx.files import atomic_write, sha256_of
from conet_onnx.shapes import Inference, copy_except, infer, skeleton
from conet_onnx.storing import stored_size, write_model

__all__ = ["FLOATS", "REALS", "Graph", "Node", "Value", "load"]

Replace = Callable[[str, onnx.TensorProto], onnx.TensorProto | None]

PROTOBUF_LIMIT = 2**31 - 1  # protobuf refuses to serialise more, so larger models need external data
LONGEST_MESSAGE = 300  # characters of onnx's own words in an error


@dataclass(frozen=True, slots=True)
class Node:
    """One operator: what it reads, what it makes, and its attributes as Python values."""

    index: int
    name: str  # the node's own name if it is unique (among outputs too), else its first output
    op: str
    domain: str
    since: int  # the schema version that the file's opset selects; 0 where onnx knows no schema
    inputs: tuple[str, ...]  # "" is an absent optional input
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(repr=False, compare=False)
    captured: tuple[str, ...] = ()  # outer values that the node's subgraphs read

    def __str__(self) -> str:
        return f"{self.op} {self.name!r}"

    @property
    def has_subgraph(self) -> bool:
        """Whether it is control flow, whose body the view does not look into."""
        return any(isinstance(value, onnx.GraphProto) for value in self.attributes.values())


@dataclass(frozen=True, slots=True)
class Value:
    """A graph input or output; a string in the shape names a symbolic size, "" one without a name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: np.dtype[Any]


class Graph:
    """A read-only view of a ModelProto; edits make another Graph.

    Parameters: the model (not to be changed afterwards), the file that it came from and that file's external data,
    and sizes for symbolic input dimensions.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        file: str = "",
        external: Sequence[Path] = (),
        input_shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.model = model
        self.file = file
        self.input_shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
        self.external = tuple(external)
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        self.nodes = _nodes(model)
        self.weights = _weights(model)
        initialized = {tensor.name for tensor in model.graph.initializer}
        self.inputs = tuple(_value(v) for v in model.graph.input if v.name not in initialized)
        self.outputs = tuple(_value(v) for v in model.graph.output)
        self._check_input_shapes()

    @cached_property
    def sha256(self) -> str:
        """Of the file that the model was read from (external data included), else of its serialised bytes."""
        if self.file:
            return sha256_of([self.file, *self.external])
        return hashlib.sha256(self.model.SerializeToString(deterministic=True)).hexdigest()

    @cached_property
    def _producers(self) -> dict[str, Node]:
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def _consumers(self) -> dict[str, tuple[Node, ...]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys((*node.inputs, *node.captured)):
                found.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def inference(self) -> Inference:
        """Shapes and constants at two assignments of the symbolic input sizes; ModelError where types conflict."""
        try:
            return infer(self.model, self.input_shapes)
        except (checker.ValidationError, shape_inference.InferenceError, RuntimeError) as error:
            raise ModelError(f"{self.file or 'The model'} is not a valid ONNX model: {_one_line(error)}") from error

    @cached_property
    def names(self) -> frozenset[str]:
        """Every value's name, those inside subgraphs included: a new value must have another."""
        return frozenset((*_names(self.model.graph), *self.weights))

    def producer(self, name: str) -> Node | None:
        """The node that makes a value; None for inputs and initializers."""
        return self._producers.get(name)

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a value, themselves or in a subgraph."""
        return self._consumers.get(name, ())

    def readings(self, name: str) -> int:
        """How often a value is read: by inputs of nodes, by subgraphs, and as an output of the model."""
        readers = self.consumers(name)
        return sum(node.inputs.count(name) + (name in node.captured) for node in readers) + sum(
            value.name == name for value in self.outputs
        )

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """A weight as an array (a fresh one: weights are not kept twice). Raises KeyError for anything else."""
        return numpy_helper.to_array(self.weights[name])

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """The value if it is the same for every input: a weight, or something small computed from static shapes."""
        if name in self.weights:
            return self.array(name)
        return self.inference.constant(name)

    def sizes(self, name: str) -> tuple[tuple[int, int], ...] | None:
        """Each axis's size at the two assignments; the pair differs where the size depends on a symbolic input size."""
        return self.inference.sizes(name)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Each axis's size, None where it depends on a symbolic input size; None where nothing is known."""
        sizes = self.sizes(name)
        return None if sizes is None else tuple(a if a == b else None for a, b in sizes)

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """A value's element type, where it is known."""
        return self.inference.dtype(name)

    def with_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Graph:
        """The same graph with other values in some weights: same shapes, cast to the weight's type."""
        for name, array in arrays.items():
            old = self.weights.get(name)
            if old is None:
                raise UsageError(
                    f"{name!r} is not a weight of {self.file or 'this model'}: there is nothing to replace."
                )
            if tuple(old.dims) != array.shape:
                raise UsageError(
                    f"weight {name!r} has shape {tuple(old.dims)}, got {array.shape}: resize it with a plan."
                )

        def make(name: str, tensor: onnx.TensorProto) -> onnx.TensorProto | None:
            return with_values(tensor, arrays[name]) if name in arrays else None

        return Graph(with_weights(self.model, make), external=self.external, input_shapes=self.input_shapes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model; the file appears whole or not at all. Over 2 GiB its weights go to `NAME.data` beside it."""
        if stored_size(self.model) <= PROTOBUF_LIMIT:
            with atomic_write(path) as part:
                write_model(self.model, part)
            return
        data = Path(f"{os.fspath(path)}.data")
        if any(data.resolve() == source.resolve() for source in self.external):
            raise OutputError(f"Cannot write {data}: it holds the weights of {self.file}. Choose another name.")
        with atomic_write(data) as weights, atomic_write(path) as part:
            write_model(_externalize(self.model, weights, data.name), part)

    def _check_input_shapes(self) -> None:
        known = {value.name: value for value in self.inputs}
        for name, shape in self.input_shapes.items():
            if name not in known:
                raise UsageError(f"the model has no input {name!r}; its inputs are {', '.join(known)}.")
            declared = known[name].shape
            fits = len(shape) == len(declared) and all(
                isinstance(d, str) or d == s for d, s in zip(declared, shape, strict=True)
            )
            if not fits or min(shape, default=1) < 1:
                raise UsageError(
                    f"input {name!r} is declared {declared}, got {tuple(shape)}: sizes must fit and be positive."
                )


def load(path: str | os.PathLike[str], *, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """Read, check and view an ONNX file. External data must lie inside the model's folder; functions are inlined.

    Raises ModelError where the file is missing, is not ONNX, fails onnx.checker, has no weights, or names external
    data that is missing or lies outside its folder (such data is never opened).
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read {file}: {error.strerror or error}.") from error
    if not data:
        raise ModelError(f"{file} is empty; expected an ONNX model.")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{file} is not an ONNX model, or it is truncated ({len(data)} bytes).") from error
    del data
    external = _external_files(model, file)
    try:
        _check_types(model)
        if external:  # first: the checker looks for external data beside the process, not beside the model
            onnx.load_external_data_for_model(model, os.fspath(file.parent))
        checker.check_model(skeleton(model)[0])
        for tensor in _all_tensors(model.graph):
            checker.check_tensor(tensor)  # is there as much data as the shape needs?
    except (checker.ValidationError, ValueError, RuntimeError, OSError) as error:  # onnx raises all four
        raise ModelError(f"{file} is not a valid ONNX model: {_one_line(error)}") from error
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = Graph(model, file=os.fspath(file), external=external, input_shapes=input_shapes)
    if not any(tensor.data_type in FLOATS for tensor in graph.weights.values()):
        raise ModelError(
            f"{file} holds no weights: there is nothing to resize. Was it exported with export_params=False?"
        )
    return graph


def with_weights(model: onnx.ModelProto, make: Replace) -> onnx.ModelProto:
    """A copy of the model in which `make(name, tensor)` has replaced some weights; None keeps one as it is.

    Weights are made one at a time, in their places, so that no more than the two models are ever in memory.
    """
    made: onnx.ModelProto = copy_except(model, "graph")
    made.graph.CopyFrom(copy_except(model.graph, "initializer", "node"))
    for tensor in model.graph.initializer:
        made.graph.initializer.add().CopyFrom(make(tensor.name, tensor) or tensor)
    for node in model.graph.node:
        new = made.graph.node.add()
        value = _constant_value(node)
        replaced = None if value is None else make(node.output[0], value)
        if replaced is None:
            new.CopyFrom(node)
            continue
        new.CopyFrom(copy_except(node, "attribute"))
        new.attribute.append(helper.make_attribute("value", replaced))
    return made


def with_values(tensor: onnx.TensorProto, array: np.ndarray[Any, Any]) -> onnx.TensorProto:
    """The same tensor (name, type, doc string, metadata) with another value."""
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    made = numpy_helper.from_array(np.asarray(array, dtype=dtype, order="C"), tensor.name)
    if tensor.HasField("doc_string"):
        made.doc_string = tensor.doc_string
    made.metadata_props.extend(tensor.metadata_props)
    return made


_DATA_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")

REALS = frozenset(  # element types that can be divided
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
)
FLOATS = REALS | {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}  # element types that weights are made of


def _nodes(model: onnx.ModelProto) -> tuple[Node, ...]:
    count = Counter([*(node.name for node in model.graph.node), *(n for node in model.graph.node for n in node.output)])
    own = {node.name for node in model.graph.node if node.name in node.output}  # some exporters call a node so
    unique = {name for name, times in count.items() if name and times == 1 + (name in own)}
    versions = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    made = []
    for index, proto in enumerate(model.graph.node):
        attributes = {a.name: _attribute(a) for a in proto.attribute}
        made.append(
            Node(
                index=index,
                name=proto.name if proto.name in unique else next(filter(None, proto.output), f"node {index}"),
                op=proto.op_type,
                domain="" if proto.domain == "ai.onnx" else proto.domain,
                since=_since(proto, versions),
                inputs=tuple(proto.input),
                outputs=tuple(proto.output),
                attributes=attributes,
                captured=_captured(proto),
            )
        )
    return tuple(made)


def _since(proto: onnx.NodeProto, versions: Mapping[str, int]) -> int:
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    try:
        return int(onnx.defs.get_schema(proto.op_type, versions.get(domain or "ai.onnx", 0), domain).since_version)
    except onnx.defs.SchemaError:
        return 0


def _attribute(proto: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if proto.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return tuple(value)
    if proto.type == onnx.AttributeProto.STRINGS:
        return tuple(s.decode("utf-8", "replace") for s in value)
    return value


def _captured(proto: onnx.NodeProto) -> tuple[str, ...]:
    """Outer values that the node's subgraphs read, in order of first use."""
    found: dict[str, None] = {}
    for attribute in proto.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            for node in graph.node:
                found.update((name, None) for name in (*node.input, *_captured(node)) if name and name not in inner)
                inner.update(node.output)
            found.update((v.name, None) for v in graph.output if v.name not in inner)
    return tuple(found)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _names(inner)


def _weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if (value := _constant_value(node)) is not None:
            found[node.output[0]] = value
    return found


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor that a Constant node holds."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)


def _value(proto: onnx.ValueInfoProto) -> Value:
    tensor = proto.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else np.dtype(object)
    return Value(proto.name, shape, dtype)


def _external_files(model: onnx.ModelProto, file: Path) -> list[Path]:
    """The files that hold external weights, each proved to lie inside the model's folder and to be long enough."""
    folder = file.parent.resolve()
    found: dict[Path, None] = {}
    for tensor in _all_tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        place = folder / location
        if "\0" in location or place.resolve() == folder or not place.resolve().is_relative_to(folder):
            raise ModelError(
                f"{file}: the data of {tensor.name!r} is said to lie at {location!r}, outside the "
                "model's folder; it was not read. Move it beside the model."
            )
        if not place.is_file():
            raise ModelError(
                f"{file}: its external data {place.name!r} (for {tensor.name!r}) is missing; put it beside the model."
            )
        numbers = [entries.get(key, "0") for key in ("offset", "length")]
        if not all(text.isascii() and text.isdigit() for text in numbers):
            raise ModelError(f"{file}: the data of {tensor.name!r} has offset and length {numbers}: not sizes.")
        end = sum(map(int, numbers))
        if place.stat().st_size < end:
            raise ModelError(
                f"{file}: its external data {place.name!r} is truncated: {tensor.name!r} ends at byte {end}."
            )
        found[place] = None
    return sorted(found)


def _check_types(model: onnx.ModelProto) -> None:
    """Raise ValueError for an element type that ONNX has not; the checker lets some pass."""
    tensors = [(tensor.name, tensor.data_type) for tensor in _all_tensors(model.graph)]
    values = [(value.name, value.type.tensor_type.elem_type) for value in (*model.graph.input, *model.graph.output)]
    for name, kind in (*tensors, *values):
        if kind not in onnx.TensorProto.DataType.values():
            raise ValueError(f"{name!r} has the element type {kind}, which ONNX has not.")


def _all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _all_tensors(inner)


def _one_line(error: Exception) -> str:
    """onnx's messages name the node on their later lines, and may go on to print it whole."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."


def _externalize(model: onnx.ModelProto, data: Path, location: str) -> onnx.ModelProto:
    """Write the weights to `data`; return a model that refers to them by `location`."""
    with data.open("wb") as stream:

        def move(_: str, tensor: onnx.TensorProto) -> onnx.TensorProto:
            raw = numpy_helper.to_array(tensor).tobytes()
            made: onnx.TensorProto = copy_except(tensor, "raw_data", *_DATA_FIELDS)
            made.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", stream.tell()), ("length", len(raw))):
                made.external_data.add(key=key, value=str(value))
            stream.write(raw)
            return made

        return with_weights(model, move)
