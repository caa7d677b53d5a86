"""Shapes and the constants that follow from them, found without running the model; integers traced to their axes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.graph import Graph
from conet_onnx.integers import trace
from conet_onnx.runtime import random_feeds, run_all


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
