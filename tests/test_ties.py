"""Paths between axes: every step is something that its node does by itself, and none leads where nothing is tied."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import numpy as np
import onnx
import pytest
import strategies
import zoo
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.ties import Link


def model(nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], **integers: list[int]) -> Graph:
    """Input x [n, 3, 8, 8] and output y."""
    rng = np.random.default_rng(0)
    tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in weights.items()]
    tensors += [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in integers.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 8, 8))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return Graph(made)


def node(op: str, reads: str, makes: str, name: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), makes.split(), name=name, **attributes)


def written(path: tuple[Link, ...]) -> str:
    return " ".join(f"{link.tensor}[{link.axis}] {link.node or ''}".strip() for link in path)


def touched(graph: Graph) -> dict[str, set[str]]:
    """The values at each node; a scale or bias that goes through Identity is at the node that reads it, too."""
    found = {n.name: {*n.inputs, *n.captured, *n.outputs} for n in graph.nodes}
    for n in graph.nodes:
        for name in n.inputs:
            producer = graph.producer(name)
            while producer is not None and producer.op == "Identity":
                found[n.name].add(producer.inputs[0])
                producer = graph.producer(producer.inputs[0])
    return found


def keeps_to_the_graph(analysis: Analysis, path: tuple[Link, ...]) -> bool:
    """Whether the two ends of each step are at the step's node, and no step has no node but the last."""
    at = touched(analysis.graph)
    steps = pairwise(path)
    return path[-1].node is None and all(
        here.node is not None and {here.tensor, there.tensor} <= at[here.node] for here, there in steps
    )


def residual() -> Graph:
    """One convolution, and its input added to its output: both have one width, because of the addition alone."""
    nodes = [node("Conv", "x a", "ya", "first"), node("Conv", "ya b", "yb", "second"), node("Add", "ya yb", "s", "add")]
    weights = {"a": (6, 3, 1, 1), "b": (6, 6, 1, 1), "c": (5, 6, 1, 1)}
    return model([*nodes, node("Conv", "s c", "y", "last")], weights)


class TestPaths:
    @pytest.mark.parametrize(
        ("a", "b", "path"),
        [
            (("ya", 1), ("yb", 1), "ya[1] add yb[1]"),
            (("b", 0), ("b", 1), "b[0] second yb[1] add ya[1] second b[1]"),
            (("a", 0), ("b", 0), "a[0] first ya[1] add yb[1] second b[0]"),
            (("a", 0), ("a", 0), "a[0]"),
        ],
    )
    def test_a_convolution_between_tensors_of_one_width_is_no_tie(self, a, b, path) -> None:
        assert written(analyze(residual()).why(a, b)) == path

    def test_a_bias_that_two_layers_share_is_no_tie(self) -> None:
        nodes = [node("Conv", "x a bias", "ya", "first"), node("Conv", "x b bias", "yb", "second")]
        nodes += [node("Add", "ya yb", "s", "add"), node("Conv", "s c", "y", "last")]
        graph = model(nodes, {"a": (6, 3, 1, 1), "b": (6, 3, 1, 1), "c": (5, 6, 1, 1), "bias": (6,)})
        assert written(analyze(graph).why(("a", 0), ("b", 0))) == "a[0] first ya[1] add yb[1] second b[0]"

    def test_pieces_of_a_split_are_tied_by_what_comes_after_it(self) -> None:
        nodes = [node("Conv", "x a", "ya", "first"), node("Split", "ya", "p q", "cut", axis=1)]
        nodes += [node("Relu", "p", "r", "relu"), node("Add", "r q", "s", "add"), node("Conv", "s c", "y", "last")]
        analysis = analyze(model(nodes, {"a": (6, 3, 1, 1), "c": (5, 3, 1, 1)}))
        assert written(analysis.why(("p", 1), ("q", 1))) == "p[1] relu r[1] add q[1]"

    def test_rows_of_one_size_tie_the_parts_of_what_they_were_made_of(self) -> None:
        nodes = [node("Conv", "x a", "ya", "one"), node("Conv", "x b", "yb", "two")]
        nodes += [node("Concat", "ya yb", "j", "join", axis=1), node("Reshape", "j rows", "k", "fold")]
        nodes += [node("ReduceMean", "k", "m", "mean", axes=[1], keepdims=0), node("Conv", "m c", "y", "last")]
        weights = {"a": (6, 3, 1, 1), "b": (6, 3, 1, 1), "c": (5, 6, 1, 1)}
        analysis = analyze(model(nodes, weights, rows=[0, 2, 6, 8, 8]))
        assert written(analysis.why(("a", 0), ("b", 0))) == "a[0] one ya[1] join j[1] fold j[1] join yb[1] two b[0]"

    @pytest.mark.parametrize("name", ["googlenet", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
    def test_every_two_members_have_a_path_that_keeps_to_the_graph(self, name: str) -> None:
        analysis = analyze(zoo.graph(name, dynamic_batch=True))
        for width in list(analysis.widths.values())[::4]:
            first = width.members[0]
            for member in width.members[1:]:
                path = analysis.why((first.tensor, first.axis), (member.tensor, member.axis))
                assert path, f"{first} and {member} of {width.name}"
                assert keeps_to_the_graph(analysis, path), written(path)

    def test_every_two_members_have_a_path_in_random_graphs(self) -> None:
        paths = 0
        for k in range(60):
            analysis = analyze(Graph(strategies.random_model(random.Random(f"ties {k}"))))
            for width in analysis.widths.values():
                first = width.members[0]
                for member in width.members[1:]:
                    path = analysis.why((first.tensor, first.axis), (member.tensor, member.axis))
                    assert path, f"graph {k}: {first} and {member} of {width.name}"
                    assert keeps_to_the_graph(analysis, path), f"graph {k}: {written(path)}"
                    paths += 1
        assert paths > 150

    def test_axes_without_a_width_in_common_have_no_path(self) -> None:
        assert analyze(residual()).why(("a", 0), ("c", 0)) == ()

    @pytest.mark.parametrize("axis", [4, -1])
    def test_an_axis_that_is_not_there_is_an_error(self, axis: int) -> None:
        with pytest.raises(UsageError, match=f"axis {axis}"):
            analyze(residual()).why(("a", axis), ("c", 1))

    def test_it_takes_less_than_two_seconds_on_a_graph_of_two_thousand_nodes(self) -> None:
        nodes, weights = [node("Conv", "x a", "t0", "stem")], {"a": (8, 3, 1, 1), "c": (5, 8, 1, 1)}
        for k in range(666):
            nodes.append(node("Conv", f"t{k} w{k}", f"u{k}", f"conv{k}"))
            nodes += [node("Add", f"t{k} u{k}", f"s{k}", f"add{k}"), node("Relu", f"s{k}", f"t{k + 1}", f"relu{k}")]
            weights[f"w{k}"] = (8, 8, 1, 1)
        analysis = analyze(model([*nodes, node("Conv", "t666 c", "y", "last")], weights))
        begun = time.process_time()
        path = analysis.why(("a", 0), ("c", 1))
        assert time.process_time() - begun < 2
        assert len(path) == 2 * 666 + 3


class TestOrigins:
    def origin(self, analysis: Analysis, tensor: str, axis: int) -> tuple[Link, ...]:
        (reason,) = {f.reason for f in analysis.frozen if (f.tensor, f.axis) == (tensor, axis)}
        return analysis.ties.origin(tensor, axis, reason)

    def test_the_path_leads_to_the_node_that_the_reason_names(self) -> None:
        nodes = [node("Conv", "x a", "ya", "first"), node("Relu", "ya", "r", "relu")]
        nodes += [node("RandomUniformLike", "r", "s", "noise"), node("Conv", "x b", "yb", "second")]
        nodes += [node("Add", "s yb", "t", "add"), node("Conv", "t c", "y", "last")]
        analysis = analyze(model(nodes, {"a": (6, 3, 1, 1), "b": (6, 3, 1, 1), "c": (5, 6, 1, 1)}))
        assert written(self.origin(analysis, "a", 0)) == "a[0] first ya[1] relu r[1]"
        assert written(self.origin(analysis, "b", 0)) == "b[0] second yb[1] add s[1]"
        assert written(self.origin(analysis, "a", 1)) == "a[1] first x[1]"

    def test_it_leads_to_the_size_that_a_number_is_computed_from(self) -> None:
        nodes = [node("Conv", "x a", "ya", "first"), node("Relu", "ya", "r", "relu"), node("Shape", "r", "z", "shape")]
        nodes += [node("Cast", "z", "f", "cast", to=TensorProto.FLOAT), node("ReduceMax", "f", "m", "top", keepdims=0)]
        nodes += [
            node("Conv", "r b", "yb", "second"),
            node("Mul", "yb m", "s", "scale"),
            node("Conv", "s c", "y", "last"),
        ]
        analysis = analyze(model(nodes, {"a": (6, 3, 1, 1), "b": (7, 6, 1, 1), "c": (5, 7, 1, 1)}))
        assert {f.reason.kind for f in analysis.frozen if f.tensor == "a" and f.axis == 0} == {"computed"}
        assert written(self.origin(analysis, "a", 0)) == "a[0] first ya[1] relu r[1]"

    def test_it_leads_to_a_reshape_that_does_not_nest(self) -> None:
        nodes = [
            node("Conv", "x a", "ya", "first"),
            node("Relu", "ya", "r", "relu"),
            node("Reshape", "r rows", "t", "fold"),
        ]
        nodes += [node("ReduceMean", "t", "m", "mean", axes=[2]), node("Flatten", "m", "f", "flat")]
        nodes += [node("MatMul", "f c", "y", "last")]
        analysis = analyze(model(nodes, {"a": (6, 3, 1, 1), "c": (4, 5)}, rows=[0, 4, 96]))
        assert {f.reason.kind for f in analysis.frozen if f.tensor == "a" and f.axis == 0} == {"misaligned"}
        assert written(self.origin(analysis, "a", 0)) == "a[0] first ya[1] relu r[1]"

    def test_every_reason_has_a_way_there_that_keeps_to_the_graph(self) -> None:
        for name in ("resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"):
            analysis = analyze(zoo.graph(name, dynamic_batch=True))
            first = {f.reason: f for f in analysis.frozen}
            assert len(first) > 5
            for reason, frozen in first.items():
                path = analysis.ties.origin(frozen.tensor, frozen.axis, reason)
                assert path, frozen
                assert keeps_to_the_graph(analysis, path)
