"""Integers that a model computes from shapes, and the tables that they pick from."""

from __future__ import annotations

import numpy as np
import onnx
import oracles
import pytest
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.analysis import analyze
from conet_onnx.errors import VerificationFailed
from conet_onnx.graph import Graph
from conet_onnx.integers import trace
from conet_onnx.planning import plan
from conet_onnx.rewriting import rewrite
from conet_onnx.verification import verify


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


def test_a_number_that_is_computed_from_a_width_stays_what_it_was_however_it_is_cast():
    """Attention's scale, (channels / heads) ** -0.5, as torch's exporter writes it."""
    model = heads()
    extra = [
        helper.make_node("Cast", ["half"], ["again"], to=TensorProto.INT64),
        helper.make_node("Cast", ["again"], ["size"], to=TensorProto.FLOAT),
        helper.make_node("Reciprocal", ["size"], ["factor"]),
        helper.make_node("Mul", ["h", "factor"], ["h2"]),
    ]
    nodes = list(model.graph.node)
    place = next(k for k, node in enumerate(nodes) if node.output[0] == "apart")
    nodes[place + 1].input[0] = "h2"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *extra, *nodes[place:]])
    analysis = analyze(Graph(model))
    assert [w.size for w in analysis.widths.values()] == [w.size for w in analyze(Graph(heads())).widths.values()]
    oracles.keep_all_laws(model)
    halved = plan(analysis, {name: width.size // 2 for name, width in analysis.widths.items()})
    resized = rewrite(analysis.graph, halved)
    (name,) = (node.inputs[1] for node in resized.nodes if node.outputs[0] == "h2")
    factor = resized.array(name)
    assert factor == analysis.graph.constant("factor")
    with pytest.raises(VerificationFailed, match="tensor 'factor"):
        verify(analysis.graph, resized.with_arrays({name: factor * 2}), halved)
    assert not verify(analysis.graph, resized, halved).skipped


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
    assert frozenset({("x", 0)}) in analysis.region.origins["target"]
    assert not analysis.widths


def heads(size: str = "four") -> onnx.ModelProto:
    """Channels taken apart into heads and put together again, for any batch and any length: torch writes `view` so."""
    node, rng = helper.make_node, np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    def whole(name: str, *values: int) -> TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    weights = [weight("first", 6, 8), weight("scale", 2, 1, 1), weight("last", 8, 3)]
    weights += [whole("row0", 0), whole("row1", 1), whole("two", 2), whole("four", 4), whole("eight", 8)]
    nodes = [
        node("MatMul", ["x", "first"], ["h"]),
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "row0"], ["b"]),
        node("Gather", ["s", "row1"], ["n"]),
        node("Shape", ["h"], ["sh"]),
        node("Gather", ["sh", "two"], ["width"]),
        node("Div", ["width", "two"], ["half"]),
        node("Concat", ["b", "n", "two", size], ["apart"], axis=0),
        node("Reshape", ["h", "apart"], ["split"]),
        node("Transpose", ["split"], ["turned"], perm=[0, 2, 1, 3]),
        node("Mul", ["turned", "scale"], ["scaled"]),
        node("Transpose", ["scaled"], ["back"], perm=[0, 2, 1, 3]),
        node("Concat", ["b", "n", "eight"], ["together"], axis=0),
        node("Reshape", ["back", "together"], ["joined"]),
        node("MatMul", ["joined", "last"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 3])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_with_two_symbolic_axes_a_literal_is_edited_where_it_stands():
    analysis = analyze(Graph(heads()))
    assert sorted(w.size for w in analysis.widths.values()) == [2, 4]
    oracles.keep_all_laws(heads())


def test_what_a_size_is_computed_from_is_pinned():
    analysis = analyze(Graph(heads("half")))
    assert not analysis.widths  # with other heads, half of the channels would not be a head any more
    assert {f.reason.kind for f in analysis.frozen if f.tensor == "first" and f.axis == 1} == {"computed"}
    oracles.keep_all_laws(heads("half"))


def test_a_table_of_words_makes_its_channels():
    model = embedding()
    for name in ("up", "down"):
        model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == name))
    kept = [n for n in model.graph.node if n.output[0] not in ("u", "r", "d", "g")]
    kept[-1].input[0] = "h"
    del model.graph.node[:]
    model.graph.node.extend(kept)
    (width,) = analyze(Graph(model)).widths.values()
    assert (width.name, width.size) == ("words", 6)
    assert {(m.tensor, m.axis) for m in width.members} == {("words", 1), ("positions", 1), ("last", 0)}
    oracles.keep_all_laws(model)


def test_rows_of_a_table_are_no_places_of_a_vector():
    """What Gather, Slice and Concat take of integers with two axes are not the elements at these places."""
    node = helper.make_node
    table = np.array([[7, 8], [9, 6], [5, 4]])
    constants = {
        "one": np.array(1),
        "ones": np.array([1]),
        "twos": np.array([2]),
        "zeros": np.array([0]),
        "table": table,
    }
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "one"], ["size"]),
        node("Sub", ["size", "size"], ["nothing"]),
        node("Add", ["table", "nothing"], ["same"]),
        node("Gather", ["same", "one"], ["row"]),
        node("Slice", ["same", "ones", "twos", "zeros"], ["rows"]),
        node("Concat", ["same", "same"], ["beside"], axis=1),
        node("Mul", ["shape", "ones"], ["vector"]),
    ]
    graph = helper.make_graph(
        nodes,
        "rows",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ("row", "rows", "beside", "vector")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    region = trace(Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))
    for name, count in (("same", 6), ("row", 2), ("rows", 2), ("beside", 12)):
        assert region.origins[name] == (frozenset({("x", 1)}),) * count
    assert region.origins["vector"] == (("x", 0), ("x", 1))


@pytest.mark.parametrize("how", ["Range", "ConstantOfShape", "Expand"])
def test_how_many_integers_a_size_has_made_is_that_size(how):
    """The length of Range(0, C) is C: a number that is computed from it does not change along with a width."""
    node, rng = helper.make_node, np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=s).astype("f"), n) for n, s in (("a", (5, 8)), ("b", (8, 3)))]
    integers = {"zero": 0, "one": 1, "first": [1], "sevens": [7]}
    weights += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in integers.items()]
    made = {
        "Range": [node("Gather", ["shape", "one"], ["c"]), node("Range", ["zero", "c", "one"], ["row"])],
        "ConstantOfShape": [node("Gather", ["shape", "first"], ["c"]), node("ConstantOfShape", ["c"], ["row"])],
        "Expand": [node("Gather", ["shape", "first"], ["c"]), node("Expand", ["sevens", "c"], ["row"])],
    }[how]
    made[-1].attribute.extend(
        [helper.make_attribute("value", numpy_helper.from_array(np.array([7])))] if how == "ConstantOfShape" else []
    )
    nodes = [
        node("MatMul", ["x", "a"], ["h"]),
        node("Shape", ["h"], ["shape"]),
        *made,
        node("Shape", ["row"], ["length"]),
        node("Cast", ["length"], ["real"], to=TensorProto.FLOAT),
        node("Sqrt", ["real"], ["scale"]),
        node("Div", ["h", "scale"], ["scaled"]),
        node("MatMul", ["scaled", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "lengths",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert trace(Graph(model)).reads["length"] == {("h", 1)}
    oracles.keep_all_laws(model)
