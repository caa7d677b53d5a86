"""Shapes and the constants that follow from them, found without running the model; integers traced to their axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper, shape_inference

from conet_onnx import shapes
from conet_onnx.graph import Graph
from conet_onnx.integers import trace
from conet_onnx.runtime import random_feeds, run_all
from conet_onnx.shapes import SMALL, Done, settle


def flattened(*, batch: int | str = "n", height: int | str = 8) -> Graph:
    """x.view(x.shape[0], -1) as exporters write it, and a Reshape back to four axes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["rows"], axis=0),
        helper.make_node("Unsqueeze", ["rows", "axis"], ["rows1"]),
        helper.make_node("Concat", ["rows1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(0, dtype=np.int64), "zero"),
        numpy_helper.from_array(np.array([0], dtype=np.int64), "axis"),
        numpy_helper.from_array(np.array([-1], dtype=np.int64), "rest"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, 3, height, 8))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


class TestShapes:
    @pytest.mark.parametrize("name", zoo.MODELS)
    def test_they_are_what_onnxruntime_sees(self, name: str) -> None:
        graph = zoo.graph(name, dynamic_batch=True)
        seen = run_all(graph, random_feeds(graph, batch=2))
        for tensor, array in seen.items():
            sizes = graph.shape(tensor)
            assert sizes is not None, tensor
            assert [s for s in sizes if s is not None] == [
                a for a, s in zip(array.shape, sizes, strict=True) if s is not None
            ]
            assert graph.dtype(tensor) == array.dtype

    def test_what_follows_a_symbolic_size_is_none(self) -> None:
        graph = flattened()
        assert graph.shape("x") == (None, 3, 8, 8)
        assert graph.shape("flat") == (None, 192)
        assert graph.shape("y") == (None, 3, 8, 8)

    def test_with_static_sizes_computed_integers_are_constants(self) -> None:
        graph = flattened(batch=2)
        np.testing.assert_array_equal(graph.constant("target"), [2, -1])
        assert graph.shape("flat") == (2, 192)

    def test_computed_integers_that_follow_the_batch_are_not_constants(self) -> None:
        graph = flattened()
        assert graph.constant("target") is None
        assert graph.constant("shape") is None

    def test_given_sizes_replace_the_chosen_ones(self) -> None:
        model = flattened(height="h").model
        graph = Graph(model, input_shapes={"x": (4, 3, 20, 8)})
        sizes = graph.sizes("x")
        assert sizes is not None
        assert [a for a, _ in sizes] == [4, 3, 20, 8]
        assert graph.shape("x") == (None, 3, None, 8)

    def test_shapes_that_the_file_records_are_not_believed(self) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(flattened(batch=2).model)
        model.graph.value_info.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, (2, 7)))
        assert Graph(model).shape("flat") == (2, 192)

    def test_an_unknown_operator_leaves_its_outputs_unknown(self) -> None:
        node = helper.make_node("Mystery", ["x"], ["y"], domain="example.com")
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3))
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        model = helper.make_model(
            helper.make_graph([node], "g", [x], [y]),
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("example.com", 1)],
        )
        assert Graph(model).shape("y") is None


class TestTrace:
    def test_each_integer_is_followed_to_the_axis_that_it_was_read_from(self) -> None:
        region = trace(flattened())
        assert region.origins["shape"] == (("x", 0), ("x", 1), ("x", 2), ("x", 3))
        assert region.origins["target"] == (("x", 0), -1)
        assert region.reads["target"] == {("x", 0)}

    def test_what_reads_data_is_outside(self) -> None:
        graph = flattened()
        outside = {node.op for node in graph.nodes if node.index not in trace(graph).nodes}
        assert outside == {"Reshape"}

    def test_arithmetic_loses_the_place_but_not_the_axes(self) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(flattened().model)
        model.graph.node.insert(1, helper.make_node("Add", ["shape", "axis"], ["sum"]))
        region = trace(Graph(model))
        assert region.reads["sum"] == {("x", 0), ("x", 1), ("x", 2), ("x", 3)}
        assert region.origins["sum"] == tuple(frozenset({("x", k)}) for k in range(4))  # each from its own axis


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Range", "Tile"])
def test_constants_that_would_be_large_are_not_computed(op: str) -> None:
    """Four integers can ask for a terabyte."""
    many = np.array([10**4, 10**4, 10**4], dtype=np.int64)
    one = np.array([[[1]]], dtype=np.int64)
    inputs = {
        "ConstantOfShape": {"many": many},
        "Expand": {"one": one, "many": many},
        "Range": {"start": np.array(0), "end": np.array(10**12), "step": np.array(1)},
        "Tile": {"one": one, "many": many},
    }[op]
    weights = [numpy_helper.from_array(np.asarray(a, dtype=np.int64), n) for n, a in inputs.items()]
    y = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    graph = helper.make_graph([helper.make_node(op, [w.name for w in weights], ["y"])], "g", [], [y], weights)
    assert Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).constant("y") is None


def test_tokens_are_few_and_what_lies_beside_them_is_as_long() -> None:
    """A table of positions ends somewhere; images are large."""
    inputs = {
        "hidden": (TensorProto.FLOAT, ["batch", None, 8]),
        "ids": (TensorProto.INT64, ["batch", "length"]),
        "mask": (TensorProto.FLOAT, ["batch", "length"]),
        "pixels": (TensorProto.FLOAT, ["batch", 3, "height", "width"]),
    }
    graph = Graph(
        helper.make_model(
            helper.make_graph(
                [helper.make_node("Identity", [name], [f"{name}2"]) for name in inputs],
                "g",
                [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
                [
                    helper.make_tensor_value_info(f"{name}2", kind[0], [None] * len(kind[1]))
                    for name, kind in inputs.items()
                ],
            )
        )
    )
    assert graph.sizes("ids") == ((3, 5), (16, 12)) == graph.sizes("mask")
    assert graph.sizes("hidden") == ((3, 5), (16, 12), (8, 8))
    assert graph.sizes("pixels") == ((3, 5), (3, 3), (224, 256), (224, 256))


def test_a_length_that_was_asked_for_is_not_exceeded() -> None:
    graph = flattened(height="h")
    asked = Graph(graph.model, input_shapes={"x": (2, 3, 64, 8)})
    ((_, batch), _, (height, other), _) = asked.sizes("x") or ()
    assert batch != 2
    assert height == 64 > other > 0


class TestAlike:
    """Types of layers that are alike are inferred once: what tells two apart must be in the key."""

    @staticmethod
    def types(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], **inputs: tuple[int, ...]) -> dict[str, Any]:
        """The shape and element type of what each node makes, where onnx is asked node by node."""
        model = helper.make_model(
            helper.make_graph(
                nodes,
                "g",
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
                [],
                [numpy_helper.from_array(array, name) for name, array in weights.items()],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
        )
        known = {v.name: v.type for v in model.graph.input}
        known |= {
            n: helper.make_tensor_type_proto(t.data_type, t.dims) for t in model.graph.initializer for n in [t.name]
        }
        constants, done = {n: a for n, a in weights.items() if a.size <= SMALL}, Done()
        for node in nodes:
            assert settle(node, model, known, constants, done) == ""
        made = (known[node.output[0]].tensor_type for node in nodes)
        return {
            node.output[0]: (tuple(d.dim_value for d in t.shape.dim), t.elem_type)
            for node, t in zip(nodes, made, strict=True)
        }

    def test_layers_that_are_alike_share_a_result(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []
        infer = shape_inference.infer_node_outputs
        monkeypatch.setattr(
            shape_inference, "infer_node_outputs", lambda *given, **more: asked.append(1) or infer(*given, **more)
        )
        nodes = [helper.make_node("Relu", [x], [f"{x}_out"]) for x in ("a", "b", "c")]
        found = self.types(nodes, {}, a=(2, 3), b=(2, 3), c=(3, 2))
        assert [found[f"{x}_out"][0] for x in "abc"] == [(2, 3), (2, 3), (3, 2)]
        assert len(asked) == 2

    def test_one_with_another_attribute_does_not(self) -> None:
        nodes = [
            helper.make_node("Transpose", ["x"], [f"y{k}"], perm=perm) for k, perm in enumerate([(0, 2, 1), (2, 1, 0)])
        ]
        found = self.types(nodes, {}, x=(2, 3, 5))
        assert [found["y0"][0], found["y1"][0]] == [(2, 5, 3), (5, 3, 2)]

    def test_one_with_another_operator_does_not(self) -> None:
        nodes = [helper.make_node("Relu", ["x"], ["y0"]), helper.make_node("IsNaN", ["x"], ["y1"])]
        found = self.types(nodes, {}, x=(2, 3))
        assert [found["y0"][1], found["y1"][1]] == [TensorProto.FLOAT, TensorProto.BOOL]

    def test_one_with_other_values_in_a_constant_does_not(self) -> None:
        nodes = [helper.make_node("Reshape", ["x", f"target{k}"], [f"y{k}"]) for k in (0, 1)]
        targets = {"target0": np.array([2, 15]), "target1": np.array([15, 2])}
        found = self.types(nodes, targets, x=(2, 3, 5))
        assert [found["y0"][0], found["y1"][0]] == [(2, 15), (15, 2)]

    def test_one_with_an_input_of_another_type_does_not(self) -> None:
        x = np.ones((40, 40), np.float32)
        weights = {"a": x, "b": x.astype(np.float16), "c": x[:, :-1].copy()}
        nodes = [helper.make_node("Relu", [name], [f"{name}_out"]) for name in weights]
        found = self.types(nodes, weights)
        assert found == {
            "a_out": ((40, 40), TensorProto.FLOAT),
            "b_out": ((40, 40), TensorProto.FLOAT16),
            "c_out": ((40, 39), TensorProto.FLOAT),
        }

    def test_one_that_leaves_out_another_input_or_output_does_not(self) -> None:
        bounds = {"low": np.array(0, np.float32), "roi": np.zeros(0, np.float32)}
        bounds |= {"scales": np.array([1, 1, 2, 2], np.float32), "sizes": np.array([1, 3, 5, 7])}
        nodes = [
            helper.make_node("Resize", ["x", "roi", "scales"], ["y0"]),
            helper.make_node("Resize", ["x", "", "", "sizes"], ["y1"]),
            helper.make_node("Dropout", ["x"], ["y2", "mask"]),
            helper.make_node("Dropout", ["x"], ["y3"]),
        ]
        found = self.types(nodes, bounds, x=(1, 3, 8, 8))
        assert [found[f"y{k}"][0] for k in range(4)] == [(1, 3, 16, 16), (1, 3, 5, 7), (1, 3, 8, 8), (1, 3, 8, 8)]


class TestTwoAssignments:
    def test_what_depends_on_no_symbolic_size_is_settled_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settled: list[str] = []
        known = shapes.settle
        monkeypatch.setattr(shapes, "settle", lambda node, *more: settled.append(node.output[0]) or known(node, *more))
        nodes = [
            helper.make_node("Shape", ["w"], ["own"]),
            helper.make_node("Shape", ["x"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "second"], ["channels"]),
            helper.make_node("Concat", ["own", "channels"], ["both"], axis=0),
        ]
        weights = {"w": np.zeros((4, 7), np.float32), "second": np.array([1])}
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
            [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ("both", "sizes")],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        )
        found = shapes.infer(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        assert found.constants["both"].tolist() == [4, 7, 5]
        assert "sizes" not in found.constants  # they hold the batch
        assert settled == ["own", "sizes", "channels", "both", "sizes", "channels"]
