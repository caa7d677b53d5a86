"""Read ONNX files: checked, complete, and never from outside their folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import checker, inliner

from conet_onnx.collecting import collector_paused
from conet_onnx.errors import ModelError
from conet_onnx.graph import FLOATS, Graph, one_line
from conet_onnx.shapes import skeleton
from conet_onnx.storing import held, load_external, read_model

__all__ = ["load"]


@collector_paused()
def load(path: str | os.PathLike[str], *, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """Read, check and view an ONNX file. External data must lie inside the model's folder; functions are inlined.

    Raises ModelError where the file is missing, is not ONNX, fails onnx.checker, has no weights, or names external
    data that is missing or lies outside its folder (such data is never opened).
    """
    file = Path(path)
    try:
        model, arrays = read_model(file)
    except OSError as error:
        raise ModelError(f"Cannot read {file}: {error.strerror or error}.") from error
    except DecodeError as error:
        size = file.stat().st_size
        raise ModelError(f"{file} is not an ONNX model, or it is truncated ({size} bytes).") from error
    if not model.ListFields():
        raise ModelError(f"{file} is empty; expected an ONNX model.")
    tensors = [*model.graph.initializer, *_inner_tensors(model.graph)]
    external = _external_files(tensors, file)
    try:
        _check_types(model, tensors)
        if external:  # first: the checker looks for external data beside the process, not beside the model
            load_external(model, file.parent, arrays)
        checker.check_model(skeleton(model)[0])
        for sparse in model.graph.sparse_initializer:
            checker.check_sparse_tensor(sparse)
        for k, tensor in enumerate(tensors):
            if k >= len(model.graph.initializer) or held(tensor, arrays) is None:  # else there is all that it needs
                checker.check_tensor(tensor)
    except (checker.ValidationError, ValueError, RuntimeError, OSError) as error:  # onnx raises all four
        raise ModelError(f"{file} is not a valid ONNX model: {one_line(error)}") from error
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = Graph(model, arrays=arrays, file=os.fspath(file), external=external, input_shapes=input_shapes)
    if not any(tensor.data_type in FLOATS for tensor in graph.weights.values()):
        raise ModelError(
            f"{file} holds no weights: there is nothing to resize. Was it exported with export_params=False?"
        )
    return graph


def _external_files(tensors: Iterable[onnx.TensorProto], file: Path) -> list[Path]:
    """The files that hold external weights, each proved to lie inside the model's folder and to be long enough."""
    folder = file.parent.resolve()
    found: dict[Path, None] = {}
    for tensor in tensors:
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


def _check_types(model: onnx.ModelProto, tensors: Iterable[onnx.TensorProto]) -> None:
    """Raise ValueError for an element type that ONNX has not; the checker lets some pass."""
    known = frozenset(onnx.TensorProto.DataType.values())
    kinds = [(tensor.name, tensor.data_type) for tensor in tensors]
    values = [(value.name, value.type.tensor_type.elem_type) for value in (*model.graph.input, *model.graph.output)]
    for name, kind in (*kinds, *values):
        if kind not in known:
            raise ValueError(f"{name!r} has the element type {kind}, which ONNX has not.")


def _inner_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph but its initializers: those of sparse ones, of nodes, and all of subgraphs."""
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from inner.initializer
                yield from _inner_tensors(inner)
