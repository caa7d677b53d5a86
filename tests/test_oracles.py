"""The oracles know what they cannot compare, and nothing more is left out."""

from __future__ import annotations

import numpy as np
import onnx
import oracles
import pytest
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph
from conet_onnx.planning import Selection, select
from conet_onnx.rewriting import rewrite


def picking(*, apart: float) -> Graph:
    """Eight scores in order of size, and what stands at their places; two of them differ by so much."""
    weight = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    weight[:, 1] = weight[:, 0] * (1 + apart)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["scores"]),
        helper.make_node("TopK", ["scores", "k"], ["sorted", "places"]),
        helper.make_node("Squeeze", ["places"], ["order"]),
        helper.make_node("Gather", ["scores", "order"], ["picked"], axis=1),
        helper.make_node("Relu", ["scores"], ["other"]),
    ]
    graph = helper.make_graph(
        nodes,
        "picking",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("picked", "other")],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([8]), "k")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return Graph(model)


def test_what_rounding_decides_is_undecided_and_so_is_what_follows() -> None:
    assert oracles.undecided(picking(apart=0.0), range(8)) == {"places", "order", "picked"}


def test_what_it_does_not_decide_is_compared() -> None:
    assert oracles.undecided(picking(apart=0.1), range(8)) == frozenset()


def test_what_an_allowed_difference_decides_is_undecided_too() -> None:
    near = picking(apart=1e-5)  # of numbers that lie many neighbours apart
    assert oracles.undecided(near, range(8)) == frozenset()
    assert oracles.undecided(near, (), {}) == {"places", "order", "picked"}
    assert oracles.undecided(picking(apart=0.1), (), {}) == frozenset()


def test_exact_zeros_are_no_matter_of_chance() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["scores"]),
        helper.make_node("Relu", ["scores"], ["positive"]),
        helper.make_node("Cast", ["positive"], ["any"], to=TensorProto.BOOL),
    ]
    weight = np.concatenate([np.eye(4, dtype=np.float32), -np.eye(4, dtype=np.float32)], axis=1)
    graph = helper.make_graph(
        nodes,
        "zeros",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("any", TensorProto.BOOL, [1, 8])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert oracles.undecided(Graph(model), (), {}) == frozenset()


def test_a_single_number_that_is_rounded_up_or_down_is_undecided() -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Floor", ["sum"], ["whole"]),
        helper.make_node("Sub", ["sum", "whole"], ["rest"]),
    ]
    graph = helper.make_graph(
        nodes,
        "single",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("rest", TensorProto.FLOAT, [])],
    )
    model = Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert oracles.undecided(model, (), {"sum": 0.5}) == {"whole", "rest"}
    assert oracles.undecided(model, (), {}) == frozenset()


def test_tensors_are_compared_and_sequences_of_them_are_not() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["h"]),
        helper.make_node("SplitToSequence", ["h"], ["parts"], axis=0),
        helper.make_node("SequenceAt", ["parts", "first"], ["part"]),
        helper.make_node("MatMul", ["part", "last"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = {"weight": rng.standard_normal((4, 6)), "last": rng.standard_normal((6, 3))}
    graph = helper.make_graph(
        nodes,
        "parts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [
            *(numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()),
            numpy_helper.from_array(np.array(0), "first"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert oracles.rounding(Graph(model)).keys() == {"h", "part", "y"}
    assert oracles.compare(analyze(Graph(model)), {}).compared == 3


class TestDoublePrecision:
    """What float32 cannot tell from rounding is told there."""

    @staticmethod
    def chain() -> Graph:
        """Two layers and a Softmax, with a constant and a Cast among them; a channel of the first is worth 1e-6."""
        rng = np.random.default_rng(0)
        first, second = rng.standard_normal((4, 8)).astype(np.float32), rng.standard_normal((8, 3)).astype(np.float32)
        second[5] *= 1e-6
        half = helper.make_node("Constant", [], ["half"], value=numpy_helper.from_array(np.float32(0.5)))
        nodes = [
            half,
            helper.make_node("MatMul", ["x", "first"], ["h"]),
            helper.make_node("Cast", ["h"], ["c"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["c", "half"], ["m"]),
            helper.make_node("MatMul", ["m", "second"], ["y"]),
        ]
        graph = helper.make_graph(
            nodes,
            "chain",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
            [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return Graph(model)

    def test_a_right_resize_is_exact(self) -> None:
        analysis = analyze(self.chain())
        tripled = {"w0": oracles.uneven(np.array([3, 0, 1, 3, 2, 5, 3, 4, 5]), np.random.default_rng(1))}
        for uneven in (oracles.doubled(analysis, np.random.default_rng(1)), tripled, oracles.single(analysis)):
            selections = oracles.halved_shares(uneven)
            for name, selection in selections.items():
                assert (selection.indices == uneven[name].indices).all()
                assert np.bincount(selection.indices, 1 / selection.divide)[np.unique(selection.indices)].tolist() == [
                    1.0
                ] * len(np.unique(selection.indices))
            resized = rewrite(analysis.graph, select(analysis, selections))
            single = oracles.compare_with(analysis, resized, selections)
            double = oracles.compare_with(analysis, resized, selections, double=True)
            assert double.compared == single.compared > 0
            assert double.worst < 1e-15

    def test_a_wrong_one_that_float32_cannot_see_is_seen(self) -> None:
        """A channel that is worth a millionth counts twice."""
        analysis = analyze(self.chain())
        selections = {"w0": Selection(np.arange(8), np.ones(8))}
        off = analysis.graph.array("second").copy()
        off[5] *= 2
        spoilt = analysis.graph.with_arrays({"second": off})
        assert oracles.compare_with(analysis, spoilt, selections).worst < oracles.TOLERANCE
        with pytest.raises(AssertionError, match="off by"):
            oracles.compare_with(analysis, spoilt, selections, double=True)
