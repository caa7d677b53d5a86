"""Reading models: what is refused and why, the view of a graph, and files that are written whole."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from strategies import Builder

from conet_onnx.errors import ModelError, OutputError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.loading import load


def small(opset: int = 17, dynamic: bool = False) -> onnx.ModelProto:
    """conv, Relu, flatten by Shape, Gemm, whose weight is large enough to be held apart once it was read."""
    b = Builder(random.Random(4), opset=opset, batch=2, dynamic=dynamic)
    b.tidy = True
    x = b.conv(b.input("x", (2, 3, 4, 4)), 6)
    x = b.node("Relu", [x], (2, 6, 4, 4))
    sizes = b.node("Shape", [x], (4,))
    target = b.node("Concat", [b.slice(sizes, 0, 0, 1), b.integers([-1])], (2,), axis=0)
    x = b.node("Reshape", [x, target], (2, 96))
    return b.model([b.node("Gemm", [x, b.weight(b.floats(96, 12)), b.weight(b.floats(12))], (2, 12))])


def saved(folder: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


class TestRefusals:
    """Each says the file, what is wrong, and nothing of how it was found."""

    def refused(self, path: Path, *words: str) -> str:
        with pytest.raises(ModelError) as caught:
            load(path)
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in (path.name, *words)), message
        return message

    def test_a_missing_file(self, tmp_path):
        self.refused(tmp_path / "nowhere.onnx", "Cannot read")

    def test_a_folder(self, tmp_path):
        self.refused(tmp_path, "Cannot read")

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "m.onnx").write_bytes(b"")
        self.refused(tmp_path / "m.onnx", "empty")

    def test_a_file_that_is_something_else(self, tmp_path):
        (tmp_path / "m.onnx").write_bytes(b"PK\x03\x04 this is a zip file" * 10)
        self.refused(tmp_path / "m.onnx", "not an ONNX model")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
    def test_a_truncated_file(self, tmp_path, share):
        data = small().SerializeToString()
        (tmp_path / "m.onnx").write_bytes(data[: int(len(data) * share)])
        self.refused(tmp_path / "m.onnx")

    def test_a_model_that_fails_the_checker(self, tmp_path):
        model = small()
        model.graph.node[0].input[0] = "nowhere"
        self.refused(saved(tmp_path, model), "not a valid ONNX model", "nowhere")

    def test_a_model_without_weights(self, tmp_path):
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
        model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]))
        self.refused(saved(tmp_path, model), "no weights")


class TestExternalData:
    def external(self, folder: Path, **change: str) -> Path:
        """A model with its first weight in weights.bin; `change` overrides what the model says of it."""
        model = small()
        tensor = model.graph.initializer[0]
        data = numpy_helper.to_array(tensor).tobytes()
        if not (folder / "weights.bin").exists():
            (folder / "weights.bin").write_bytes(b"\0" * 16 + data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": "weights.bin", "offset": "16", "length": str(len(data)), **change}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        return saved(folder, model)

    def test_it_is_read(self, tmp_path):
        graph = load(self.external(tmp_path))
        name = graph.model.graph.initializer[0].name
        expected = numpy_helper.to_array(small().graph.initializer[0])
        assert np.array_equal(graph.array(name), expected)

    def test_the_digest_covers_it(self, tmp_path):
        path = self.external(tmp_path)
        before = load(path).sha256
        data = bytearray((tmp_path / "weights.bin").read_bytes())
        data[20] ^= 1
        (tmp_path / "weights.bin").write_bytes(data)
        assert load(path).sha256 != before

    @pytest.mark.parametrize("replaced", ["model.onnx", "weights.bin"])
    def test_no_digest_of_a_file_that_took_the_place_of_the_one_that_was_read(self, tmp_path, replaced):
        path = self.external(tmp_path)
        graph = load(path)
        copy = tmp_path / "copy"
        copy.write_bytes((tmp_path / replaced).read_bytes())
        copy.replace(tmp_path / replaced)
        with pytest.raises(ModelError, match="has changed since it was read"):
            _ = graph.sha256

    @pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "", "."])
    def test_outside_the_models_folder_it_is_refused_and_not_read(self, tmp_path, location, monkeypatch):
        folder = tmp_path / "folder"
        folder.mkdir()
        (tmp_path / "secret.bin").write_bytes(b"\0" * 1000)
        path = self.external(folder, location=location)
        monkeypatch.setattr(onnx, "load_external_data_for_model", lambda *_: pytest.fail("it was read"))
        with pytest.raises(ModelError, match="outside"):
            load(path)

    def test_a_link_that_leads_outside_is_refused(self, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        (tmp_path / "secret.bin").write_bytes(b"\0" * 1000)
        os.symlink(tmp_path / "secret.bin", folder / "weights.bin")
        with pytest.raises(ModelError, match="outside"):
            load(self.external(folder))

    def test_missing(self, tmp_path):
        path = self.external(tmp_path)
        (tmp_path / "weights.bin").unlink()
        with pytest.raises(ModelError, match=r"weights\.bin.*missing"):
            load(path)

    def test_too_short(self, tmp_path):
        path = self.external(tmp_path)
        (tmp_path / "weights.bin").write_bytes(b"\0" * 20)
        with pytest.raises(ModelError, match="truncated"):
            load(path)

    @pytest.mark.parametrize("change", [{"offset": "-4"}, {"length": "many"}, {"offset": "1e3"}])
    def test_places_that_are_no_sizes(self, tmp_path, change):
        with pytest.raises(ModelError, match="not sizes"):
            load(self.external(tmp_path, **change))

    def test_a_model_over_the_limit_of_protobuf_goes_to_two_files(self, tmp_path, monkeypatch):
        graph = Graph(small())
        monkeypatch.setattr("conet_onnx.graph.PROTOBUF_LIMIT", 100)
        graph.save(tmp_path / "big.onnx")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
        assert (tmp_path / "big.onnx.data").stat().st_size == 4 * 96 * 12
        onnx.checker.check_model(tmp_path / "big.onnx")
        back = load(tmp_path / "big.onnx")
        assert len(back.arrays) == 1
        for name in graph.weights:
            assert np.array_equal(back.array(name), graph.array(name))
        assert [n.op for n in back.nodes] == [n.op for n in graph.nodes]

    def test_the_sources_own_weights_are_not_overwritten(self, tmp_path, monkeypatch):
        monkeypatch.setattr("conet_onnx.graph.PROTOBUF_LIMIT", 100)
        Graph(small()).save(tmp_path / "big.onnx")
        source = load(tmp_path / "big.onnx")
        before = (tmp_path / "big.onnx.data").read_bytes()
        with pytest.raises(OutputError):
            source.save(tmp_path / "big.onnx")
        assert (tmp_path / "big.onnx.data").read_bytes() == before


class TestSaving:
    def test_what_is_saved_is_what_is_loaded(self, tmp_path):
        graph = Graph(small())
        graph.save(tmp_path / "m.onnx")
        back = load(tmp_path / "m.onnx")
        assert back.proto() == graph.model
        assert back.sha256 == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()

    def test_nowhere_to_write(self, tmp_path):
        with pytest.raises(OutputError):
            Graph(small()).save(tmp_path / "no" / "such" / "folder" / "m.onnx")

    def test_a_failure_leaves_the_old_file_and_no_other(self, tmp_path, monkeypatch):
        path = tmp_path / "m.onnx"
        path.write_bytes(b"old")

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match="space"):
            Graph(small()).save(path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


class TestView:
    def test_nodes_are_read_with_their_attributes_and_schema(self):
        graph = Graph(small())
        conv, gemm = graph.nodes[0], graph.nodes[-1]
        assert (conv.op, conv.domain, conv.since, conv.index) == ("Conv", "", 11, 0)
        assert (gemm.op, gemm.since) == ("Gemm", 13)
        assert Graph(small(opset=11)).nodes[-1].since == 11
        assert graph.opset == 17
        assert all(isinstance(v, tuple | int | float | str) for n in graph.nodes for v in n.attributes.values())

    def test_inputs_are_not_weights(self):
        model = small()
        weight = model.graph.initializer[0]
        model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
        assert [v.name for v in Graph(model).inputs] == ["x"]

    def test_producers_consumers_and_readings(self):
        graph = Graph(small())
        conv, relu = graph.nodes[:2]
        assert graph.producer(conv.outputs[0]) is conv
        assert graph.producer("x") is None
        assert graph.consumers(conv.outputs[0]) == (relu,)
        assert {n.op for n in graph.consumers(relu.outputs[0])} == {"Shape", "Reshape"}
        assert graph.readings(relu.outputs[0]) == 2
        assert graph.readings(graph.outputs[0].name) == 1
        assert graph.consumers("nowhere") == ()

    def test_shapes_of_static_and_symbolic_models(self):
        static, symbolic = Graph(small()), Graph(small(dynamic=True))
        flat = static.nodes[-2].outputs[0]
        assert static.shape(flat) == (2, 96)
        assert symbolic.shape(flat) == (None, 96)
        assert symbolic.sizes(flat)[1] == (96, 96)
        assert len(set(symbolic.sizes(flat)[0])) == 2
        assert static.shape("nowhere") is None
        assert static.dtype(flat) == np.float32

    def test_constants_are_weights_and_what_follows_from_static_shapes(self):
        static, symbolic = Graph(small()), Graph(small(dynamic=True))
        target = static.nodes[-2].inputs[1]
        assert static.constant(target).tolist() == [2, -1]
        assert symbolic.constant(target) is None
        assert static.constant("x") is None
        name = next(iter(static.weights))
        assert np.array_equal(static.constant(name), static.array(name))
        with pytest.raises(KeyError):
            static.array("x")

    def test_weights_in_constant_nodes_are_weights(self):
        model = small()
        bias = model.graph.initializer[1]
        model.graph.node.insert(0, helper.make_node("Constant", [], [bias.name], value=bias))
        del model.graph.initializer[1]
        graph = Graph(model)
        assert graph.array(bias.name).shape == (6,)
        assert graph.nodes[0].op == "Constant"

    def test_names_of_nodes_are_unique(self):
        model = small()
        for node in model.graph.node[:2]:
            node.name = "twice"
        model.graph.node[2].name = ""
        model.graph.node[3].name = model.graph.node[4].output[0]
        model.graph.node[5].name = model.graph.node[5].output[0]
        names = [n.name for n in Graph(model).nodes]
        assert len(set(names)) == len(names)
        assert names[:4] == [n.output[0] for n in model.graph.node[:4]]
        assert names[5] == model.graph.node[5].name

    def test_names_inside_subgraphs_are_known(self):
        model = small()
        inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [3])
        body = helper.make_graph([helper.make_node("Relu", ["p1"], ["inner"])], "body", [], [inner])
        model.graph.node.append(helper.make_node("If", ["flag"], ["out"], then_branch=body, else_branch=body))
        graph = Graph(model)
        assert {"inner", "flag", "out", "x", *graph.weights} <= graph.names
        assert graph.nodes[-1].captured == ("p1",)
        assert graph.nodes[-1].has_subgraph
        assert graph.nodes[-1] in graph.consumers("p1")

    def test_local_functions_are_inlined(self, tmp_path):
        model = small()
        model.graph.node[1].op_type, model.graph.node[1].domain = "MyRelu", "local"
        function = helper.make_function(
            "local", "MyRelu", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
        )
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid("local", 1))
        model.ir_version = 8
        assert "Relu" in [n.op for n in load(saved(tmp_path, model)).nodes]


class TestInputShapes:
    def test_they_replace_symbolic_sizes(self):
        graph = Graph(small(dynamic=True), input_shapes={"x": (5, 3, 4, 4)})
        assert graph.sizes("x")[0][0] == 5

    @pytest.mark.parametrize(
        ("name", "shape"), [("z", (2, 3, 4, 4)), ("x", (2, 3, 4)), ("x", (2, 5, 4, 4)), ("x", (0, 3, 4, 4))]
    )
    def test_those_that_do_not_fit_are_refused(self, name, shape):
        with pytest.raises(UsageError):
            Graph(small(dynamic=True), input_shapes={name: shape})


class TestWithArrays:
    def test_other_values_in_the_same_graph(self):
        graph = Graph(small())
        name = next(iter(graph.weights))
        before = graph.model.SerializeToString()
        doubled = graph.with_arrays({name: graph.array(name).astype(np.float64) * 2})
        assert np.array_equal(doubled.array(name), graph.array(name) * 2)
        assert doubled.array(name).dtype == np.float32
        assert graph.model.SerializeToString() == before
        assert [n for n in doubled.weights if not np.array_equal(doubled.array(n), graph.array(n))] == [name]

    def test_what_stays_is_shared_and_what_is_given_is_copied(self, tmp_path):
        graph = load(saved(tmp_path, small()))
        (large,) = graph.arrays
        name = next(n for n in graph.weights if n != large and graph.array(n).ndim > 1)
        given = np.zeros(graph.array(name).shape, np.float32)
        changed = graph.with_arrays({name: given})
        assert changed.array(large) is graph.array(large)
        given[:] = 1
        assert not changed.array(name).any()
        again = changed.with_arrays({large: 2 * graph.array(large)})
        assert np.array_equal(again.array(large), 2 * graph.array(large))
        assert again.array(large) is not graph.array(large)
        assert changed.array(large) is graph.array(large)

    def test_constant_nodes_too(self):
        model = small()
        bias = model.graph.initializer[1]
        model.graph.node.insert(0, helper.make_node("Constant", [], [bias.name], value=bias))
        del model.graph.initializer[1]
        made = Graph(model).with_arrays({bias.name: np.ones(6)})
        assert made.array(bias.name).tolist() == [1] * 6

    def test_another_shape_or_name_is_refused(self):
        graph = Graph(small())
        name = next(iter(graph.weights))
        with pytest.raises(UsageError, match="shape"):
            graph.with_arrays({name: np.zeros(3)})
        with pytest.raises(UsageError, match="nowhere"):
            graph.with_arrays({"nowhere": np.zeros(3)})
