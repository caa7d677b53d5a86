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
