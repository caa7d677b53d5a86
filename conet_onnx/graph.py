"""A frozen view of an ONNX model: nodes, weights, shapes, and the constants that shapes imply."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx
from onnx import checker, helper, numpy_helper, shape_inference

from conet_onnx.ahead import Ahead
from conet_onnx.errors import ModelError, OutputError, UsageError
from conet_onnx.files import atomic_write, sha256_of
from conet_onnx.shapes import Inference, copy_except, infer
from conet_onnx.storing import PROTOBUF_LIMIT, Data, apart, as_bytes, embedded, flowing, pieces, size_of, whole
from conet_onnx.tensors import plain, values

__all__ = ["FLOATS", "REALS", "Draft", "Graph", "Node", "Value", "one_line"]

Array = np.ndarray[Any, Any]

LONGEST_MESSAGE = 300  # characters of onnx's own words in an error


@dataclass(slots=True, unsafe_hash=True)  # not frozen: thousands are made, each in half the time
class Node:
    """One operator: what it reads, what it makes, and its attributes as Python values."""

    index: Final[int]
    name: Final[str]  # the node's own name if it is unique (among outputs too), else its first output
    op: Final[str]
    domain: Final[str]
    since: Final[int]  # the schema version that the file's opset selects; 0 where onnx knows no schema
    inputs: Final[tuple[str, ...]]  # "" is an absent optional input
    outputs: Final[tuple[str, ...]]
    attributes: Final[Mapping[str, Any]] = field(repr=False, compare=False)
    captured: Final[tuple[str, ...]] = ()  # outer values that the node's subgraphs read
    has_subgraph: Final[bool] = False  # whether it is control flow, whose body the view does not look into

    def __str__(self) -> str:
        return f"{self.op} {self.name!r}"

    @property
    def operator(self) -> str:
        """The operator's name, with its domain before it unless that is ONNX's own."""
        return f"{self.domain}.{self.op}" if self.domain else self.op


@dataclass(frozen=True, slots=True)
class Value:
    """A graph input or output; a string in the shape names a symbolic size, "" one without a name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: np.dtype[Any]


class Graph:
    """A read-only view of a model; edits make another Graph, which shares all large weights that stay as they are.

    Parameters: the model (not to be changed afterwards); the data of those initializers that do not hold their own
    (storing.read_model); its nodes, if they are known already; the file that it came from and that file's external
    data; and sizes for symbolic input dimensions.

    Attributes: `model` is the ModelProto, `arrays` the data that it does not hold, by the weight's name, `weights`
    every weight's TensorProto by name: its type and shape; `array` gives its values. `sparse` are the names of those
    that are stored by position, which are not among them. What a rewrite makes of a large
    weight is made when it is asked for.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        arrays: Mapping[str, Data] = MappingProxyType({}),
        nodes: Sequence[Node] | None = None,
        file: str = "",
        external: Sequence[Path] = (),
        input_shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.model = model
        self.arrays = arrays
        self.file = file
        self.input_shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
        self.external = tuple(external)
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        self.nodes = _nodes(model) if nodes is None else tuple(nodes)
        self.weights = _weights(model)
        self.sparse = frozenset(_sparse(model))
        if nodes is None:
            _ = self._producers, self._consumers, self.given  # while the nodes are fresh, this takes half the time
        initialized = {tensor.name for tensor in model.graph.initializer}
        self.inputs = tuple(_value(v) for v in model.graph.input if v.name not in initialized)
        self.outputs = tuple(_value(v) for v in model.graph.output)
        self._sizes: dict[str, tuple[tuple[int, int], ...] | None] = {}
        self._stamps = [_stamp(path) for path in self._files] if file else []
        self._check_input_shapes()

    @cached_property
    def sha256(self) -> str:
        """Of the file that the model was read from (external data included), else of its serialised bytes.

        Raises ModelError where the file is not the one any more that was read.
        """
        if self.file:
            self.hash_ahead()
            try:
                digest_of_files = self._hashing.result()
                same = [_stamp(path) for path in self._files] == self._stamps
            except OSError as error:
                raise ModelError(f"Cannot read {self.file} again: {error.strerror or error}.") from error
            if not same:
                raise ModelError(f"{self.file} has changed since it was read: load it again.")
            return digest_of_files
        digest = hashlib.sha256()
        for piece in flowing(pieces(self.model, self.arrays)):
            digest.update(piece)
        return digest.hexdigest()

    def hash_ahead(self) -> None:
        """Begin, in a thread, what `sha256` will be asked for; nothing where there is no file."""
        if self.file:
            _ = self._hashing

    @cached_property
    def _hashing(self) -> Ahead[str]:
        return Ahead(partial(sha256_of, self._files))

    @property
    def _files(self) -> list[Path]:
        return [Path(self.file), *self.external]

    @cached_property
    def stored(self) -> tuple[Node, ...]:
        """The nodes that hold a constant: in some files every other one, so that who needs none of them asks for
        `computing`."""
        return tuple([node for node in self.nodes if node.op == "Constant" and not node.domain])

    @cached_property
    def computing(self) -> tuple[Node, ...]:
        """All other nodes, in their order."""
        return tuple([node for node in self.nodes if node.op != "Constant" or node.domain])

    @cached_property
    def given(self) -> frozenset[str]:
        """The values that are there before anything is computed: weights, and what nodes make that read nothing."""
        alone = [node.outputs for node in self.computing if not node.inputs]
        stored = [node.outputs for node in self.stored]
        return frozenset(chain(self.weights, self.sparse, chain.from_iterable(stored), chain.from_iterable(alone)))

    @cached_property
    def _producers(self) -> dict[str, Node]:
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def _consumers(self) -> tuple[dict[str, Node], dict[str, list[Node]]]:
        """The first reader of each value, and the others of those few that have several."""
        first: dict[str, Node] = {}
        others: dict[str, list[Node]] = {}
        for node in self.computing:
            for name in (*node.inputs, *node.captured) if node.captured else node.inputs:
                if first.setdefault(name, node) is node:
                    continue
                readers = others.setdefault(name, [])
                if not readers or readers[-1] is not node:
                    readers.append(node)
        return first, others

    @cached_property
    def inference(self) -> Inference:
        """Shapes and constants at two assignments of the symbolic input sizes; ModelError where types conflict."""
        try:
            return infer(self.model, self.input_shapes)
        except (checker.ValidationError, shape_inference.InferenceError, RuntimeError) as error:
            raise ModelError(f"{self.file or 'The model'} is not a valid ONNX model: {one_line(error)}") from error

    @cached_property
    def names(self) -> frozenset[str]:
        """Every value's name, those inside subgraphs included: a new value must have another."""
        return frozenset((*_names(self.model.graph), *self.weights))

    def producer(self, name: str) -> Node | None:
        """The node that makes a value; None for inputs and initializers."""
        return self._producers.get(name)

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a value, themselves or in a subgraph."""
        first, others = self._consumers
        return (first[name], *others.get(name, ())) if name in first else ()

    def readings(self, name: str) -> int:
        """How often a value is read: by inputs of nodes, by subgraphs, and as an output of the model."""
        readers = self.consumers(name)
        return sum(node.inputs.count(name) + (name in node.captured) for node in readers) + sum(
            value.name == name for value in self.outputs
        )

    def array(self, name: str) -> Array:
        """A weight's values, not to be written to. Raises KeyError for anything else."""
        apart = self.arrays.get(name)
        return values(self.weights[name]) if apart is None else whole(apart)

    def tensor(self, name: str) -> onnx.TensorProto:
        """A weight that holds its data, not to be changed. Raises KeyError for anything else."""
        apart = self.arrays.get(name)
        if apart is None:
            return self.weights[name]
        made = onnx.TensorProto()
        made.CopyFrom(self.weights[name])
        made.raw_data = bytes(as_bytes(whole(apart)))
        return made

    def proto(self) -> onnx.ModelProto:
        """A copy of the model that holds all of its weights."""
        return embedded(self.model, self.arrays)

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """The value if it is the same for every input: a weight, or something small computed from static shapes."""
        if name in self.arrays:
            return self.array(name)
        known = self._constants.get(name)
        if known is None and name in self.weights:
            known = self._constants[name] = self.array(name)
        return known

    @cached_property
    def _constants(self) -> dict[str, Array]:
        """Those that are known by now."""
        return dict(self.inference.constants)

    def sizes(self, name: str) -> tuple[tuple[int, int], ...] | None:
        """Each axis's size at the two assignments; the pair differs where the size depends on a symbolic input size."""
        if name not in self._sizes:
            self._sizes[name] = self.inference.sizes(name)
        return self._sizes[name]

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

        draft = Draft(self)
        for name, array in arrays.items():
            draft.put(name, np.array(array))
        return draft.graph()

    def save(self, path: str | os.PathLike[str], *, durable: bool = False) -> None:
        """Write the model; the file appears whole or not at all. Over 2 GiB its weights go to `NAME.data` beside it.

        With `durable` a power cut cannot take back what was written once this returns (see files.atomic_write).
        """
        parts = pieces(self.model, self.arrays)
        if sum(map(size_of, parts)) <= PROTOBUF_LIMIT:
            with atomic_write(path, durable=durable) as part, part.open("wb", buffering=BUFFER) as stream:
                stream.writelines(flowing(parts))
            return
        data = Path(f"{os.fspath(path)}.data")
        if any(data.resolve() == source.resolve() for source in self.external):
            raise OutputError(f"Cannot write {data}: it holds the weights of {self.file}. Choose another name.")
        with atomic_write(data, durable=durable) as weights, atomic_write(path, durable=durable) as part:
            part.write_bytes(_externalize(self, weights, data.name).SerializeToString())

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


class Draft:
    """A graph that is being edited: a model of its own, and the large weights, which are replaced whole."""

    def __init__(self, source: Graph) -> None:
        self._source = source
        self.model = onnx.ModelProto()
        self.model.CopyFrom(source.model)
        self.arrays = dict(source.arrays)
        self._weights = _weights(self.model)
        self._inside = {name: node for name in source.weights if (node := source.producer(name)) is not None}
        self._edited: set[int] = set()

    def node(self, node: Node) -> onnx.NodeProto:
        """The draft's own message of one of the source's nodes, to be edited in its inputs and attributes."""
        self._edited.add(node.index)
        found: onnx.NodeProto = self.model.graph.node[node.index]
        return found

    def put(self, name: str, value: Data) -> None:
        """Give a weight another value, whose shape may be another; it keeps its type. The value becomes the draft's."""
        tensor = self._weights[name]
        if isinstance(value, np.ndarray):
            value = np.asarray(value, dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type), order="C")
            value.flags.writeable = False
        self.arrays.pop(name, None)
        if name in self._inside:
            self._edited.add(self._inside[name].index)
        for name_of_field in _DATA_FIELDS:
            tensor.ClearField(name_of_field)
        tensor.dims[:] = value.shape
        if apart(tensor) and name not in self._inside:
            self.arrays[name] = value
        elif plain(tensor):
            tensor.raw_data = bytes(as_bytes(whole(value)))
        else:
            tensor.MergeFrom(copy_except(numpy_helper.from_array(whole(value)), "dims"))

    def add(self, name: str, value: Data, like: str = "") -> None:
        """A new initializer; of the type, and with the descriptions, of another weight where one is given."""
        made = self.model.graph.initializer.add()
        if like:
            made.CopyFrom(copy_except(self._weights[like], "dims", *_DATA_FIELDS))
        else:
            made.data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
        made.name = name
        self._weights[name] = made
        self.put(name, value)

    def drop(self, names: Collection[str]) -> None:
        """Remove initializers."""
        for index in reversed(range(len(self.model.graph.initializer))):
            name = self.model.graph.initializer[index].name
            if name in names:
                del self.model.graph.initializer[index]
                self.arrays.pop(name, None)

    def graph(self) -> Graph:
        """What has become of it; the draft is not to be used any more."""
        source = self._source
        nodes = list(source.nodes)
        for index in self._edited:
            nodes[index] = replace(nodes[index], **_reads(self.model.graph.node[index], {}))
        return Graph(
            self.model, arrays=self.arrays, nodes=nodes, external=source.external, input_shapes=source.input_shapes
        )


BUFFER = 1 << 20  # bytes that are written at a time: files take large pieces faster than weights one by one

_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")

REALS = frozenset(  # element types that can be divided
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
)
_SUBGRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
FLOATS = REALS | {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}  # element types that weights are made of


def _nodes(model: onnx.ModelProto) -> tuple[Node, ...]:
    protos = list(model.graph.node)
    known: dict[str, str] = {}  # one string for each name, however many nodes read it: it is found by its identity
    reads = [_reads(proto, known) for proto in protos]
    names = [known.get(name, name) for name in [proto.name for proto in protos]]
    count = Counter(names)
    count.update(chain.from_iterable([part["outputs"] for part in reads]))
    own = {name for name, part in zip(names, reads, strict=True) if name in part["outputs"]}  # some exporters do so
    unique = {name for name, times in count.items() if name and times == 1 + (name in own)}
    versions = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    operators = [(known.setdefault(op, op), domain) for op, domain in [(p.op_type, p.domain) for p in protos]]
    since = {pair: _since(*pair, versions) for pair in set(operators)}
    return tuple(
        [
            Node(
                index=index,
                name=name if name in unique else next(filter(None, part["outputs"]), f"node {index}"),
                op=pair[0],
                domain="" if pair[1] == "ai.onnx" else pair[1],
                since=since[pair],
                **part,
            )
            for index, (name, pair, part) in enumerate(zip(names, operators, reads, strict=True))
        ]
    )


def _reads(proto: onnx.NodeProto, known: dict[str, str]) -> dict[str, Any]:
    """Those fields of a node that an edit may change; a name that is `known` is not held twice."""
    attributes: dict[str, Any] = {}
    captured: tuple[str, ...] = ()
    has_subgraph = False
    for attribute in proto.attribute:
        attributes[attribute.name] = _attribute(attribute)
        if attribute.type in _SUBGRAPHS:
            captured = _captured(proto)
            has_subgraph = has_subgraph or attribute.type == onnx.AttributeProto.GRAPH
    return {
        "inputs": tuple([known.setdefault(name, name) for name in proto.input]),
        "outputs": tuple([known.setdefault(name, name) for name in proto.output]),
        "attributes": attributes,
        "captured": captured,
        "has_subgraph": has_subgraph,
    }


def _since(op: str, domain: str, versions: Mapping[str, int]) -> int:
    domain = "" if domain == "ai.onnx" else domain
    try:
        return int(onnx.defs.get_schema(op, versions.get(domain or "ai.onnx", 0), domain).since_version)
    except onnx.defs.SchemaError:
        return 0


def _attribute(proto: onnx.AttributeProto) -> Any:
    if proto.type == onnx.AttributeProto.TENSOR:
        return proto.t
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
        if attribute.type not in _SUBGRAPHS:
            continue
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            for node in graph.node:
                found.update((name, None) for name in (*node.input, *_captured(node)) if name and name not in inner)
                inner.update(node.output)
            found.update((v.name, None) for v in graph.output if v.name not in inner)
    return tuple(found)


def _stamp(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """What tells a file from one that took its place; None where there is none."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


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


def _sparse(model: onnx.ModelProto) -> Iterator[str]:
    """The names of weights that are stored as the positions and values of what is not zero."""
    yield from (sparse.values.name for sparse in model.graph.sparse_initializer)
    for node in model.graph.node:
        if node.op_type == "Constant" and any(attribute.name == "sparse_value" for attribute in node.attribute):
            yield from node.output


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


def one_line(error: Exception) -> str:
    """onnx's messages name the node on their later lines, and may go on to print it whole."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."


def _externalize(graph: Graph, file: Path, location: str) -> onnx.ModelProto:
    """Write the large weights to `file`; return a model that refers to them by `location`."""
    made = onnx.ModelProto()
    made.CopyFrom(graph.model)
    with file.open("wb") as stream:
        for tensor in made.graph.initializer:
            if not apart(tensor):
                continue
            data = graph.arrays.get(tensor.name)
            piece = as_bytes(graph.array(tensor.name)) if data is None or isinstance(data, np.ndarray) else data
            for field in _DATA_FIELDS:
                tensor.ClearField(field)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", stream.tell()), ("length", size_of(piece))):
                tensor.external_data.add(key=key, value=str(value))
            stream.writelines(flowing([piece]))
    return made
