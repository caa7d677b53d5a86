"""Models are read and written piece by piece, and are the same models."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import conet_onnx as co
from conet_onnx.graph import Graph
from conet_onnx.storing import flowing, pieces, read_model, size_of
from conet_onnx.verification.masking import masked_model, masked_operands
from conet_onnx.verification.plans import read

LARGE = 1100  # elements: enough for a weight to be held apart


def made_of(weights: Sequence[TensorProto]) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y], weights)
    model = helper.make_model(graph, producer_name="p" * 200)
    model.metadata_props.add(key="k", value="v")
    return model


def weight(dtype: str = "float32", elements: int = LARGE, name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.arange(elements).astype(dtype), name)


def read_bytes(data: bytes, folder: Path) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    file = folder / "model.onnx"
    file.write_bytes(data)
    return read_model(file)


def whole(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    left = dict(arrays)
    for tensor in made.graph.initializer:
        if not tensor.HasField("raw_data") and tensor.name in left:
            tensor.raw_data = left.pop(tensor.name).tobytes()
    assert not left
    return made


def field(number: int, payload: bytes) -> bytes:
    """An embedded field on the wire."""
    length, left = b"", len(payload)
    while left > 0x7F:
        length += bytes([left & 0x7F | 0x80])
        left >>= 7
    return bytes([number << 3 | 2]) + length + bytes([left]) + payload


class TestThereAndBack:
    @pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
    def test_a_real_model(self, name: str, tmp_path: Path) -> None:
        model = zoo.onnx_model(name)
        data = model.SerializeToString()
        light, arrays = read_bytes(data, tmp_path)
        assert sum(array.nbytes for array in arrays.values()) > 0.9 * len(data)
        assert light.ByteSize() < 0.1 * len(data)
        assert whole(light, arrays) == model
        assert b"".join(flowing(pieces(light, arrays))) == data
        assert b"".join(flowing(pieces(model, {}))) == data

    @pytest.mark.parametrize("elements", [0, 1, 31, 32, 1024, 1025, 4095, 4096, 600_000])
    def test_lengths_of_any_size(self, elements: int, tmp_path: Path) -> None:
        """A length takes one byte up to 127, two up to 16,383, and so on."""
        data = made_of([weight(elements=elements)]).SerializeToString()
        light, arrays = read_bytes(data, tmp_path)
        assert len(arrays) == (elements > 1024)
        assert b"".join(flowing(pieces(light, arrays))) == data

    @pytest.mark.parametrize(
        "kind", [k for k in TensorProto.DataType.values() if k not in (TensorProto.UNDEFINED, TensorProto.STRING)]
    )
    def test_every_element_type_keeps_its_bits(self, kind: int, tmp_path: Path) -> None:
        values = (np.arange(LARGE) % 2 + 1).astype(helper.tensor_dtype_to_np_dtype(kind))
        model = made_of([numpy_helper.from_array(values, "w")])
        light, arrays = read_bytes(model.SerializeToString(), tmp_path)
        assert whole(light, arrays) == model
        graph = Graph(light, arrays=arrays)
        assert graph.proto() == model
        assert graph.array("w").dtype == values.dtype
        assert np.array_equal(graph.array("w"), values)
        assert b"".join(flowing(pieces(light, arrays))) == model.SerializeToString()


class TestWhatIsNotHeldApart:
    """It stays in the message, where the checker sees it."""

    def check(self, model: onnx.ModelProto, folder: Path, apart: Sequence[str] = ()) -> None:
        light, arrays = read_bytes(model.SerializeToString(), folder)
        assert [*arrays] == [*apart]
        assert whole(light, arrays) == model
        assert b"".join(flowing(pieces(light, arrays))) == model.SerializeToString()

    @pytest.mark.parametrize("bytes_more", [-4, 4, -4 * LARGE])
    def test_data_that_does_not_fit_the_shape(self, bytes_more: int, tmp_path: Path) -> None:
        wrong = weight()
        wrong.raw_data = (wrong.raw_data + b"more")[: 4 * LARGE + bytes_more]
        self.check(made_of([wrong]), tmp_path)

    def test_data_in_typed_fields(self, tmp_path: Path) -> None:
        typed = helper.make_tensor("w", TensorProto.FLOAT, [LARGE], np.arange(LARGE, dtype=np.float32))
        assert typed.float_data
        self.check(made_of([typed]), tmp_path)

    def test_data_in_both(self, tmp_path: Path) -> None:
        both = weight()
        both.float_data.extend([1.0, 2.0])
        self.check(made_of([both]), tmp_path)

    def test_a_name_that_comes_twice(self, tmp_path: Path) -> None:
        self.check(made_of([weight(), weight("int32")]), tmp_path, apart=["w"])

    def test_a_weight_without_a_name(self, tmp_path: Path) -> None:
        self.check(made_of([weight(name="")]), tmp_path)

    def test_a_negative_size(self, tmp_path: Path) -> None:
        wrong = weight()
        wrong.dims[:] = [-LARGE, -1]
        self.check(made_of([wrong]), tmp_path)


class TestOnTheWire:
    """Whatever bytes protobuf accepts mean what protobuf says, and what it refuses is refused."""

    def agree(self, data: bytes, folder: Path) -> bool:
        try:
            expected = onnx.ModelProto.FromString(data)
        except DecodeError:
            with pytest.raises(DecodeError):
                read_bytes(data, folder)
            return False
        assert whole(*read_bytes(data, folder)) == expected
        return True

    def test_every_beginning_of_a_file(self, tmp_path: Path) -> None:
        data = made_of([weight(), weight(elements=3, name="v")]).SerializeToString()
        ends = (*range(300), *range(300, len(data) - 300, 61), *range(len(data) - 300, len(data)))
        agreed = [self.agree(data[:end], tmp_path) for end in ends]
        assert any(agreed)
        assert not all(agreed)

    @given(st.randoms(use_true_random=False))
    def test_bytes_that_are_broken(self, tmp_path_factory: pytest.TempPathFactory, chance: random.Random) -> None:
        data = bytearray(made_of([weight(), weight(elements=3, name="v")]).SerializeToString())
        edge = data.index(weight().raw_data)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(edge) if chance.random() < 0.7 else chance.randrange(edge + 4 * LARGE, len(data))
            data[place] = chance.randrange(256)
        self.agree(bytes(data), tmp_path_factory.mktemp("broken"))

    def test_fields_in_another_order(self, tmp_path: Path) -> None:
        """The data before the shape, weights before nodes, and the graph in two parts, which protobuf merges."""
        model = made_of([weight(), weight("float64", name="v")])
        tensors = []
        for tensor in model.graph.initializer:
            rest = TensorProto()
            rest.CopyFrom(tensor)
            rest.ClearField("raw_data")
            tensors.append(field(5, field(9, tensor.raw_data) + rest.SerializeToString()))
        rest = onnx.ModelProto()
        rest.CopyFrom(model)
        del rest.graph.initializer[:]
        data = field(7, tensors[0]) + rest.SerializeToString() + field(7, tensors[1])
        assert onnx.ModelProto.FromString(data) == model
        assert self.agree(data, tmp_path)
        assert len(read_bytes(data, tmp_path)[1]) == 2

    def test_the_last_data_counts_where_there_are_two(self, tmp_path: Path) -> None:
        tensor = weight()
        data = field(9, bytes(4 * LARGE)) + tensor.SerializeToString()
        model = made_of([])
        assert self.agree(model.SerializeToString() + field(7, field(5, data)), tmp_path)

    def test_fields_that_onnx_does_not_know(self, tmp_path: Path) -> None:
        data = made_of([weight()]).SerializeToString()
        number, fixed, group = b"\xf8\x06\x05", b"\xf9\x06" + b"12345678", b"\xfb\x06\x08\x01\xfc\x06"
        for more in (number, fixed, group, field(15, b"text")):
            light, arrays = read_bytes(data + more, tmp_path)
            expected = onnx.ModelProto.FromString(data + more).SerializeToString()
            assert whole(light, arrays).SerializeToString() == expected
            assert b"".join(flowing(pieces(light, arrays))) == expected

    def test_a_group_beside_a_weight_that_is_held_apart(self, tmp_path: Path) -> None:
        """Groups are withdrawn from protobuf, which still reads them; such a model is written all at once."""
        data = made_of([weight()]).SerializeToString()
        light, arrays = read_bytes(data, tmp_path)
        group = b"\xfb\x06\x08\x01\xfc\x06"
        light.MergeFromString(group)
        assert onnx.ModelProto.FromString(b"".join(flowing(pieces(light, arrays)))) == onnx.ModelProto.FromString(
            data + group
        )

    def test_fields_after_the_data(self, tmp_path: Path) -> None:
        """Those that onnx knows, those that it does not, both, and words that look like the end of the name."""
        unknown = field(15, b"text")
        for doc, more in (("words", b""), ("", unknown), ("words", unknown), ("w", b""), ("", field(15, b"w"))):
            tensor = weight()
            if doc:
                tensor.doc_string = doc
                tensor.metadata_props.add(key="k", value="v")
            data = made_of([]).SerializeToString() + field(7, field(5, tensor.SerializeToString() + more))
            light, arrays = read_bytes(data, tmp_path)
            assert len(arrays) == 1
            again = onnx.ModelProto.FromString(b"".join(flowing(pieces(light, arrays))))
            assert again == onnx.ModelProto.FromString(data)
            if not more.endswith(b"w"):
                assert again.SerializeToString() == b"".join(flowing(pieces(light, arrays)))


class TestArrays:
    def test_they_cannot_be_written_to(self, tmp_path: Path) -> None:
        _, arrays = read_bytes(made_of([weight()]).SerializeToString(), tmp_path)
        with pytest.raises(ValueError, match="read-only"):
            arrays["w"][0] = 1

    def test_they_are_aligned(self, tmp_path: Path) -> None:
        _, arrays = read_bytes(made_of([weight(name="w" * k) for k in range(1, 9)]).SerializeToString(), tmp_path)
        assert all(array.flags.aligned for array in arrays.values())


class TestModelsThatProtobufCannotSerialise:
    def test_their_large_weights_are_pieces_of_their_own(self, monkeypatch):
        model = made_of([weight(), weight(elements=3, name="small")])
        monkeypatch.setattr("conet_onnx.storing.PROTOBUF_LIMIT", 1000)
        made = pieces(model, {})
        assert onnx.ModelProto.FromString(b"".join(flowing(made))) == model
        sizes = sorted(map(size_of, made))
        assert sizes[-1] == 4 * LARGE
        assert sum(sizes[:-1]) < 1000

    def test_what_masks_large_weights_is_held_apart(self):
        rng = np.random.default_rng(0)
        weights = [
            numpy_helper.from_array(rng.normal(size=s).astype("f"), n) for n, s in (("a", (8, 200)), ("b", (200, 8)))
        ]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in "xy")
        nodes = [helper.make_node("MatMul", ["x", "a"], ["t"]), helper.make_node("MatMul", ["t", "b"], ["y"])]
        analysis = co.analyze(Graph(helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights))))
        (name,) = analysis.widths
        operands, _ = masked_operands(analysis.graph, read(co.plan(analysis, {name: 100})), makers=False)
        masked = masked_model(analysis.graph, operands)
        (made,) = operands.values()
        assert [np.array_equal(array, made) for array in masked.arrays.values() if array.shape == made.shape] == [True]
        assert not any(t.HasField("raw_data") for t in masked.model.graph.initializer if "masked" in t.name)
