"""Write a model to a file weight by weight: its serialised bytes are never in memory as a whole.

The protobuf wire format allows it: a message is its fields one after the other, and one that is embedded is preceded
by its length (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import Message

from conet_onnx.shapes import copy_except

__all__ = ["stored_size", "write_model"]

GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER


def stored_size(model: onnx.ModelProto) -> int:
    """The bytes of the model's graph, which is all of a model but a few."""
    return sum(map(len, _around(model.graph, INITIALIZER))) + _stored(_sizes(model))


def write_model(model: onnx.ModelProto, file: Path) -> None:
    """Write what `model.SerializeToString()` makes. Raises OSError."""
    before, after = _around(model, GRAPH)
    nodes, values = _around(model.graph, INITIALIZER)
    sizes = _sizes(model)
    with file.open("wb") as stream:
        stream.write(before)
        stream.write(_header(GRAPH, len(nodes) + _stored(sizes) + len(values)))
        stream.write(nodes)
        for size, tensor in zip(sizes, model.graph.initializer, strict=True):
            stream.write(_header(INITIALIZER, size))
            stream.write(tensor.SerializeToString())
        stream.write(values)
        stream.write(after)


def _around(message: Message, number: int) -> tuple[bytes, bytes]:
    """The fields of a message before and after one of them, in the order of their numbers, as protobuf writes them."""
    fields = [field for field, _ in message.ListFields()]
    late = [field.name for field in fields if field.number >= number]
    early = [field.name for field in fields if field.number <= number]
    return copy_except(message, *late).SerializeToString(), copy_except(message, *early).SerializeToString()


def _sizes(model: onnx.ModelProto) -> list[int]:
    return [tensor.ByteSize() for tensor in model.graph.initializer]


def _stored(sizes: list[int]) -> int:
    return sum(len(_header(INITIALIZER, size)) + size for size in sizes)


def _header(field: int, length: int) -> bytes:
    """The tag of a length-delimited field, and its length: base-128 numbers, the lowest seven bits first."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
