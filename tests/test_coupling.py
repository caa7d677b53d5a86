"""Which axes are one width, why they are, and why others keep their size."""

from __future__ import annotations

import networkx as nx
import numpy as np
import onnx
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.analysis import analyze
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph


def model(nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], *, out: str = "y") -> Graph:
    rng = np.random.default_rng(0)
    tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 8, 8))
    y = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 17)]
    )
    made.ir_version = 8
    return Graph(made)


def conv(x: str, w: str, y: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, w], [y], name=f"conv_{y}", **attributes)


def residual() -> Graph:
    """Two convolutions that are added, and one that reads the sum."""
    nodes = [conv("x", "a", "ya"), conv("x", "b", "yb"), helper.make_node("Add", ["ya", "yb"], ["s"], name="add")]
    nodes += [helper.make_node("Relu", ["s"], ["r"], name="relu"), conv("r", "c", "y")]
    return model(nodes, {"a": (6, 3, 1, 1), "b": (6, 3, 1, 1), "c": (5, 6, 1, 1)})


class TestWidths:
    def test_added_tensors_share_one_width(self) -> None:
        (width,) = analyze(residual()).widths.values()
        assert width.size == 6
        assert {(m.tensor, m.axis, m.role) for m in width.members} == {("a", 0, "out"), ("b", 0, "out"), ("c", 1, "in")}

    def test_scales_shared_by_layers_do_not_tie_them(self) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "a", "bias"], ["ya"], name="first"),
            helper.make_node("Conv", ["ya", "b", "bias"], ["yb"], name="second"),
            conv("yb", "c", "y"),
        ]
        graph = model(nodes, {"a": (6, 3, 1, 1), "b": (6, 6, 1, 1), "c": (5, 6, 1, 1), "bias": (6,)})
        assert [w.size for w in analyze(graph).widths.values()] == [6, 6]

    def test_weights_shared_by_layers_tie_them(self) -> None:
        nodes = [conv("x", "a", "ya"), conv("ya", "b", "yb"), conv("yb", "b", "yc"), conv("yc", "c", "y")]
        graph = model(nodes, {"a": (6, 3, 1, 1), "b": (6, 6, 1, 1), "c": (5, 6, 1, 1)})
        assert [w.size for w in analyze(graph).widths.values()] == [6]

    @pytest.mark.parametrize(
        ("name", "widths"),
        [("resnet18", 12), ("resnet50", 37), ("mobilenet_v2", 25), ("densenet121", 120), ("squeezenet1_0", 25)],
    )
    def test_known_networks_have_the_widths_that_their_definition_says(self, name: str, widths: int) -> None:
        """ResNet: one per block's inner convolution, one per stage. MobileNetV2: 8 trunks, 17 expansions."""
        assert len(analyze(zoo.graph(name)).widths) == widths

    def test_every_channel_axis_of_a_convolutional_network_is_resizable_or_has_a_reason(self) -> None:
        analysis = analyze(zoo.graph("googlenet"))
        held = {(m.tensor, m.axis) for w in analysis.widths.values() for m in w.members}
        frozen = {(f.tensor, f.axis): f.reason.kind for f in analysis.frozen}
        for use in analysis.every_use:
            for axis, segment in enumerate(use.shape):
                place = use.tensor, axis
                assert segment.size == (1, 1) or (place in held) != (place in frozen)
        assert set(frozen.values()) == {"spatial", "input", "output"}

    def test_parts_of_an_axis_are_told_apart_by_name(self) -> None:
        """A zero-padded shortcut leaves the first and the last channels of the second layer to that layer alone."""
        pads = helper.make_node("Pad", ["ya", "pads"], ["padded"])
        nodes = [conv("x", "a", "ya"), conv("ya", "b", "yb"), pads, helper.make_node("Add", ["yb", "padded"], ["s"])]
        weights = {"a": (4, 3, 1, 1), "b": (10, 4, 1, 1), "c": (5, 10, 1, 1)}
        graph = model([*nodes, conv("s", "c", "y")], weights)
        graph.model.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 0, 0, 0, 4, 0, 0]), "pads"))
        found = {w.name: w.size for w in analyze(Graph(graph.model)).widths.values()}
        assert found == {"a": 4, "b#0": 2, "b#2": 4}

    def test_groups_and_their_channels_are_told_apart_by_name(self) -> None:
        graph = model(
            [conv("x", "a", "ya"), conv("ya", "b", "yb", group=3), conv("yb", "c", "y")],
            {"a": (6, 3, 1, 1), "b": (12, 2, 1, 1), "c": (5, 12, 1, 1)},
        )
        assert {w.name: w.size for w in analyze(graph).widths.values()} == {"a·0": 3, "a·1": 2, "b": 4}


class TestFrozen:
    def reasons(self, graph: Graph) -> dict[tuple[str, int], str]:
        return {(f.tensor, f.axis): f.reason.kind for f in analyze(graph).frozen}

    def test_inputs_and_outputs_of_the_model_keep_their_size(self) -> None:
        assert self.reasons(residual()) == {("a", 1): "input", ("b", 1): "input", ("c", 0): "output"}

    def test_an_unknown_operator_freezes_what_it_reads_and_says_so(self) -> None:
        nodes = [
            conv("x", "a", "ya"),
            helper.make_node("RandomUniformLike", ["ya"], ["s"], name="noise"),
            conv("s", "c", "y"),
        ]
        graph = model(nodes, {"a": (6, 3, 1, 1), "c": (5, 6, 1, 1)})
        analysis = analyze(graph)
        assert not analysis.widths
        reason = next(f.reason for f in analysis.frozen if (f.tensor, f.axis) == ("a", 0))
        assert reason.kind == "unknown op"
        assert "RandomUniformLike 'noise'" in reason.detail

    def test_a_more_telling_reason_than_the_models_output_wins(self) -> None:
        nodes = [conv("x", "a", "ya"), helper.make_node("Softmax", ["ya"], ["y"], name="soft", axis=1)]
        assert self.reasons(model(nodes, {"a": (6, 3, 1, 1)}))["a", 0] == "softmax"

    def test_what_is_added_to_an_input_is_frozen_because_of_the_input(self) -> None:
        nodes = [conv("x", "a", "ya"), helper.make_node("Add", ["ya", "x"], ["s"]), conv("s", "c", "y")]
        assert self.reasons(model(nodes, {"a": (3, 3, 1, 1), "c": (5, 3, 1, 1)}))["a", 0] == "input"

    def test_the_reason_is_the_first_one_however_far_away(self) -> None:
        nodes = [
            conv("x", "a", "ya"),
            helper.make_node("RandomUniformLike", ["ya"], ["s"], name="noise"),
            conv("x", "b", "yb"),
            helper.make_node("Add", ["s", "yb"], ["t"], name="add"),
            helper.make_node("Relu", ["t"], ["r"]),
            conv("r", "c", "y"),
        ]
        weights = {"a": (6, 3, 1, 1), "b": (6, 3, 1, 1), "c": (5, 6, 1, 1)}
        reasons = {(f.tensor, f.axis): f.reason for f in analyze(model(nodes, weights)).frozen}
        assert reasons["b", 0] == reasons["c", 1] == reasons["a", 0]
        assert reasons["b", 0].kind == "unknown op"

    @pytest.mark.parametrize("name", ["w0", "a", "add", "ya", "conv_ya"])
    def test_a_width_can_be_frozen_by_id_name_tensor_or_node(self, name: str) -> None:
        analysis = analyze(residual(), freeze=[name])
        assert not analysis.widths
        assert {f.reason.kind for f in analysis.frozen if f.tensor == "a" and f.axis == 0} == {"asked"}

    def test_ids_do_not_depend_on_what_is_frozen(self) -> None:
        graph = zoo.graph("resnet18")
        every = analyze(graph).widths
        fewer = analyze(graph, freeze=["w3"]).widths
        assert fewer == {name: width for name, width in every.items() if name != "w3"}

    def test_an_unknown_name_is_an_error(self) -> None:
        with pytest.raises(UsageError, match="nothing"):
            analyze(residual(), freeze=["nothing"])


class TestWhy:
    def test_the_path_between_two_coupled_axes_is_the_shortest(self) -> None:
        path = analyze(residual()).why(("a", 0), ("c", 1))
        assert [(link.tensor, link.axis, link.node) for link in path] == [
            ("a", 0, "conv_ya"),
            ("ya", 1, "add"),
            ("s", 1, "relu"),
            ("r", 1, "conv_y"),
            ("c", 1, None),
        ]

    def test_uncoupled_axes_have_no_path(self) -> None:
        assert analyze(residual()).why(("a", 0), ("c", 0)) == ()

    def test_every_two_members_of_a_width_have_a_path(self) -> None:
        analysis = analyze(zoo.graph("shufflenet_v2_x0_5"))
        for width in analysis.widths.values():
            first = width.members[0]
            for member in width.members[1:]:
                path = analysis.why((first.tensor, first.axis), (member.tensor, member.axis))
                assert path, f"{first} and {member} of {width.name}"
                graph = nx.path_graph([(link.tensor, link.axis) for link in path])
                assert nx.number_of_edges(graph) == len(path) - 1

    def test_an_axis_that_is_not_there_is_an_error(self) -> None:
        with pytest.raises(UsageError, match="axis 7"):
            analyze(residual()).why(("a", 7), ("c", 1))
