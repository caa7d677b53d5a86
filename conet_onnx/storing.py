"""Read and write models with their large weights held apart, each in an array of its own.

A protobuf message gives its bytes only as copies: a weight that is read from a message, changed and stored in another
one is in memory four times on the way. So a large weight goes from the file into an array, and from an array into a
file; the message keeps its name, type, shape and all else. A message on the wire is its fields one after the other, and
one that is embedded is preceded by its length (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import load_external_data_for_tensor

from conet_onnx.shapes import SMALL, copy_except
from conet_onnx.tensors import plain

__all__ = [
    "PROTOBUF_LIMIT",
    "Data",
    "Deferred",
    "apart",
    "as_bytes",
    "embedded",
    "flowing",
    "held",
    "load_external",
    "pieces",
    "plain",
    "read_model",
    "size_of",
    "whole",
]

Array = np.ndarray[Any, Any]

PROTOBUF_LIMIT = 2**31 - 1  # bytes: protobuf refuses to serialise more, so larger models need external data


class Deferred(Protocol):
    """The data of a weight that is made when it is needed: all at once, or a block at a time where it is written."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def nbytes(self) -> int: ...

    def whole(self) -> Array:
        """The same array each time, not to be written to."""

    def blocks(self) -> Iterator[Array]:
        """Contiguous arrays that make the whole, one after the other along its first axis."""


Data = Array | Deferred  # of one weight, held apart from its message
Piece = bytes | memoryview | Deferred

GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER
BUFFER = 1 << 16  # bytes: between two large weights there is seldom more
VARINT, EMBEDDED = 0, 2  # wire types
FIXED = {1: 8, 5: 4}  # wire type -> bytes


def apart(tensor: TensorProto) -> bool:
    """Whether a weight is large and plain enough to be held apart. Smaller ones take part in shape inference."""
    return plain(tensor) and math.prod(tensor.dims) > SMALL and min(tensor.dims) > 0 and bool(tensor.name)


def whole(data: Data) -> Array:
    """All of it, as an array that is not to be written to."""
    return data if isinstance(data, np.ndarray) else data.whole()


def held(tensor: TensorProto, arrays: Mapping[str, Data]) -> Data | None:
    """The data of an initializer that is held apart; None where it holds its own."""
    return None if tensor.HasField("raw_data") else arrays.get(tensor.name)


def read_model(file: Path) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model in a file without the data of its large weights, and that data by name, not to be written to.

    Raises OSError, and DecodeError for what is no model.
    """
    with io.BufferedReader(io.FileIO(file), BUFFER) as stream:
        about = os.fstat(stream.fileno())
        try:
            if stat.S_ISREG(about.st_mode):
                return _read(_Reader(stream), about.st_size)
        except _Unusual:
            stream.seek(0)
        return onnx.ModelProto.FromString(stream.read()), {}


def load_external(model: onnx.ModelProto, folder: Path, arrays: dict[str, Array]) -> None:
    """Bring external data into the model; that of large weights into `arrays`. Raises OSError and ValueError."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and apart(tensor) and tensor.name not in arrays:
            loaded = TensorProto()  # not in place: protobuf keeps the memory of a field until its message is gone
            loaded.CopyFrom(tensor)
            load_external_data_for_tensor(loaded, os.fspath(folder))
            held = _array(loaded, loaded.raw_data)
            if held is not None:
                arrays[tensor.name] = held
                tensor.CopyFrom(copy_except(loaded, "raw_data"))
    onnx.load_external_data_for_model(model, os.fspath(folder))


def as_bytes(array: Array) -> memoryview:
    """The array's own memory, where it is contiguous."""
    return np.asarray(array, order="C").reshape(-1).view(np.uint8).data


def size_of(piece: Piece) -> int:
    """The bytes of a piece."""
    return len(piece) if isinstance(piece, bytes | memoryview) else piece.nbytes


def flowing(parts: Iterable[Piece]) -> Iterator[bytes | memoryview]:
    """The bytes of some pieces; what is deferred is made, and forgotten, a block at a time."""
    for piece in parts:
        if isinstance(piece, bytes | memoryview):
            yield piece
        else:
            yield from map(as_bytes, piece.blocks())


def pieces(model: onnx.ModelProto, arrays: Mapping[str, Data]) -> list[Piece]:
    """What protobuf makes of the model with all its weights inside, cut in pieces; arrays are their own memory.

    A model that holds more than protobuf serialises is taken apart first, at the price of a copy.
    """
    if _own_bytes(model, arrays) > PROTOBUF_LIMIT:
        model, arrays = _taken_apart(model, arrays)
    data = memoryview(model.SerializeToString())
    if not arrays:
        return [data]
    try:
        return _filled(
            data, GRAPH, lambda graph: _filled(graph, INITIALIZER, lambda tensor: _with_data(tensor, arrays))
        )
    except _Unusual:
        return [embedded(model, arrays).SerializeToString()]


def embedded(model: onnx.ModelProto, arrays: Mapping[str, Data]) -> onnx.ModelProto:
    """A copy of the model that holds all of its weights."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if (data := held(tensor, arrays)) is not None:
            tensor.raw_data = bytes(as_bytes(whole(data)))
    return made


def _own_bytes(model: onnx.ModelProto, arrays: Mapping[str, Data]) -> int:
    """What the weights take that the model holds itself; asking protobuf costs as much as serialising."""
    own = (tensor for tensor in model.graph.initializer if tensor.name not in arrays)
    return sum(math.prod(t.dims) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in own)


def _taken_apart(model: onnx.ModelProto, arrays: Mapping[str, Data]) -> tuple[onnx.ModelProto, dict[str, Data]]:
    """A copy of the model without the data of its large weights, and all that is held apart."""
    made, apart_from_it = onnx.ModelProto(), dict(arrays)
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if apart(tensor) and tensor.HasField("raw_data"):
            found = _array(tensor, tensor.raw_data)
            if found is not None:
                apart_from_it[tensor.name] = found
                tensor.ClearField("raw_data")
    return made, apart_from_it


class _Unusual(Exception):
    """Bytes that protobuf's own parser is to judge."""


class _Reader:
    """A stream that is read from its start on, and knows how far it is."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self.place = 0

    def take(self, length: int) -> bytes:
        """So many bytes, and no fewer."""
        read = self._stream.read(length)
        self.place += length
        if len(read) != length:
            raise _Unusual
        return read

    def fill(self, data: Array) -> None:
        """As many bytes as there is room for."""
        if self._stream.readinto(data.data) != len(data):
            raise _Unusual
        self.place += len(data)

    def varint(self) -> tuple[int, bytes]:
        """A number of base 128, and its bytes."""
        made = self._stream.read(1)
        self.place += 1
        if made and made[0] < 0x80:  # nearly all; `take` would cost more than the rest of reading one
            return made[0], made
        if not made:
            raise _Unusual
        number = made[0] & 0x7F
        while len(made) < 10:  # the longest that protobuf accepts
            byte = self.take(1)
            number |= (byte[0] & 0x7F) << 7 * len(made)
            made += byte
            if byte[0] < 0x80:
                return number, made
        raise _Unusual

    def fields(self, end: int) -> Iterator[tuple[int, bytes, int | None]]:
        """The fields up to a place: number, the bytes before the payload, and its length where one is embedded.

        Who takes a field reads its payload; where none is embedded, all of the field is in the bytes.
        """
        while self.place < end:
            tag, header = self.varint()
            length = None
            if (wire := tag & 7) == EMBEDDED:
                length, more = self.varint()
                header += more
            elif wire == VARINT:
                header += self.varint()[1]
            elif wire in FIXED:
                header += self.take(FIXED[wire])
            else:
                raise _Unusual
            if self.place + (length or 0) > end:
                raise _Unusual
            yield tag >> 3, header, length


def _read(reader: _Reader, size: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    model: onnx.ModelProto = onnx.ModelProto()
    arrays: dict[str, Array] = {}
    outside, inside = bytearray(), bytearray()  # the fields of the model and of its graph that are not weights
    for number, header, length in reader.fields(size):
        if number != GRAPH or length is None:
            outside += header + reader.take(length or 0)
            continue
        model.graph.SetInParent()
        for part, start, extent in reader.fields(reader.place + length):
            if part == INITIALIZER and extent is not None:
                _read_tensor(reader, extent, model.graph.initializer.add(), arrays)
            else:
                inside += start + reader.take(extent or 0)
    model.MergeFromString(bytes(outside))
    if inside:
        model.graph.MergeFromString(bytes(inside))
    return model, arrays


def _read_tensor(reader: _Reader, size: int, tensor: TensorProto, arrays: dict[str, Array]) -> None:
    if size <= SMALL:
        tensor.MergeFromString(reader.take(size))
        return
    rest, data = bytearray(), None
    for number, header, length in reader.fields(reader.place + size):
        if number == RAW_DATA and length is not None:
            data = np.empty(length, np.uint8)  # not a bytearray, whose zeros would be written first
            reader.fill(data)
        else:
            rest += header + reader.take(length or 0)
    tensor.MergeFromString(bytes(rest))
    if data is None:
        return
    held = _array(tensor, data) if apart(tensor) and tensor.name not in arrays else None
    if held is None:
        tensor.raw_data = data.tobytes()
    else:
        arrays[tensor.name] = held


def _array(tensor: TensorProto, data: bytes | Array) -> Array | None:
    """The data as an array that cannot be written to; None where it is not what the shape needs, or not alone."""
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    alone = tensor.data_location != TensorProto.EXTERNAL and not any(
        field.is_repeated and field.name.endswith("_data") and value for field, value in tensor.ListFields()
    )
    if not alone or len(data) != math.prod(tensor.dims) * dtype.itemsize:
        return None
    made = np.frombuffer(data, np.uint8).view(dtype).reshape(tuple(tensor.dims))
    made.flags.writeable = False
    return made


def _filled(message: memoryview, number: int, fill: Callable[[memoryview], list[Piece] | None]) -> list[Piece]:
    """A message in which the embedded fields of one number have another payload; None leaves one as it is."""
    made: list[Piece] = []
    reader, kept = _Reader(io.BytesIO(message)), 0
    for found, header, length in reader.fields(len(message)):
        begun = reader.place - len(header)
        reader.take(length or 0)
        payload = fill(message[begun + len(header) : reader.place]) if found == number else None
        if payload is not None:
            made += (message[kept:begun], _header(number, sum(map(size_of, payload))), *payload)
            kept = reader.place
    return [*made, message[kept:]]


def _with_data(message: memoryview, arrays: Mapping[str, Data]) -> list[Piece] | None:
    """A tensor with its data, if that is held apart, in its place in the order of numbers."""
    whole_message = bytes(message)
    tensor = TensorProto.FromString(whole_message)
    data = held(tensor, arrays)
    if data is None:
        return None
    place = len(message)
    known = any(field.number > RAW_DATA for field, _ in tensor.ListFields())
    if known or not whole_message.endswith(tensor.name.encode()):  # fields that onnx does not know come last
        reader = _Reader(io.BytesIO(message))
        for number, header, length in reader.fields(len(message)):
            if number > RAW_DATA:
                place = reader.place - len(header)
                break
            reader.take(length or 0)
    stored = as_bytes(data) if isinstance(data, np.ndarray) else data
    return [message[:place], _header(RAW_DATA, data.nbytes), stored, message[place:]]


def _header(field: int, length: int) -> bytes:
    """The tag of a field that is embedded, and its length: base-128 numbers, the lowest seven bits first."""
    return _varint(field << 3 | EMBEDDED) + _varint(length)


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
