"""Integers that a model computes from shapes, and the tables that they pick from."""

from __future__ import annotations

import numpy as np
import onnx
import oracles
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph


def embedding(dtype: type[np.floating] = np.float32) -> onnx.ModelProto:
    """Words and their positions, which are counted from the shape of the words, as exporters write embeddings."""
    node, rng = helper.make_node, np.random.default_rng(0)

    def table(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(dtype), name)

    weights = [table("words", 20, 6), table("positions", 10, 6), table("up", 6, 8), table("down", 8, 6)]
    weights += [table("last", 6, 3), *(numpy_helper.from_array(np.int64(k), f"i{k}") for k in (0, 1))]
    nodes = [
        node("Gather", ["words", "ids"], ["w"]),
        node("Shape", ["ids"], ["s"]),
        node("Gather", ["s", "i1"], ["length"]),
        node("Range", ["i0", "length", "i1"], ["where"]),
        node("Gather", ["positions", "where"], ["p"]),
        node("Add", ["w", "p"], ["h"]),
        node("MatMul", ["h", "up"], ["u"]),
        node("Relu", ["u"], ["r"]),
        node("MatMul", ["r", "down"], ["d"]),
        node("Add", ["h", "d"], ["g"]),
        node("MatMul", ["g", "last"], ["y"]),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "embedding",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 5])],
        [helper.make_tensor_value_info("y", element, ["batch", 5, 3])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_table_that_counted_positions_pick_from_is_a_weight_like_any_other():
    analysis = analyze(Graph(embedding()))
    hidden = next(w for w in analysis.widths.values() if w.size == 6)
    held = {(m.tensor, m.axis) for m in hidden.members}
    assert {("words", 1), ("positions", 1), ("up", 0), ("down", 1), ("last", 0)} <= held
    assert {(f.tensor, f.axis) for f in analysis.frozen} == {("words", 0), ("positions", 0), ("last", 1)}
    assert analysis.costs.coverage.params == 1
    oracles.keep_all_laws(embedding())


def test_numbers_computed_from_sizes_alone_stay_with_them():
    model = embedding()
    scale = [
        helper.make_node("Cast", ["length"], ["l"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["l"], ["root"]),
        helper.make_node("Div", ["g", "root"], ["scaled"]),
    ]
    model.graph.node[-1].input[0] = "scaled"
    last = model.graph.node.pop()
    model.graph.node.extend([*scale, last])
    analysis = analyze(Graph(model))
    inside = {analysis.graph.nodes[k].op for k in analysis.region.nodes}
    assert {"Shape", "Range", "Cast", "Sqrt"} <= inside
    assert "Div" not in inside
    oracles.keep_all_laws(model)


def class_token() -> onnx.ModelProto:
    """A token that is repeated for every image: `expand(batch, -1, -1)`, as torch's exporter computes the target."""
    node, rng = helper.make_node, np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    def whole(name: str, *values: int) -> TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    weights = [weight("first", 4, 6), weight("token", 1, 1, 6), weight("last", 6, 3)]
    weights += [numpy_helper.from_array(np.int64(0), "i0"), whole("row", 0), whole("all", -1), whole("three", 3)]
    filled = numpy_helper.from_array(np.ones(1, np.int64))
    nodes = [
        node("MatMul", ["x", "first"], ["h"]),
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "i0"], ["b"]),
        node("Unsqueeze", ["b", "row"], ["b1"]),
        node("Concat", ["b1", "all", "all"], ["asked"], axis=0),
        node("Shape", ["asked"], ["count"]),
        node("ConstantOfShape", ["count"], ["ones"], value=filled),
        node("Mul", ["ones", "all"], ["minus"]),
        node("Equal", ["asked", "minus"], ["free"]),
        node("Where", ["free", "ones", "asked"], ["target"]),
        node("Expand", ["token", "target"], ["tokens"]),
        node("Concat", ["tokens", "h"], ["joined"], axis=1),
        node("MatMul", ["joined", "last"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tokens",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6, 3])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_target_that_keeps_an_axis_by_minus_one_is_followed_element_by_element():
    analysis = analyze(Graph(class_token()))
    assert analysis.region.origins["target"] == (("x", 0), 1, 1)
    (hidden,) = analysis.widths.values()
    assert {(m.tensor, m.axis) for m in hidden.members} == {("first", 1), ("token", 2), ("last", 0)}
    oracles.keep_all_laws(class_token())


def test_what_is_equal_only_at_these_sizes_is_not_followed():
    model = class_token()
    model.graph.node[8].input[1] = "three"  # a batch of three would be taken for "keep"
    analysis = analyze(Graph(model))
    assert None in analysis.region.origins["target"]
    assert not analysis.widths
