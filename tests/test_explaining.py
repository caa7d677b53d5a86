"""What `analyze --explain` finds out: names, answers, hints."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper

import conet_onnx
from conet_onnx.analysis import Analysis, analyze
from conet_onnx.errors import UsageError
from conet_onnx.explaining import Asked, bonds, explain, formula, look_up
from conet_onnx.graph import Graph
from conet_onnx.hints import HINTS, hint

PACKAGE = Path(conet_onnx.__file__).parent


def analysis_of(
    nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], freeze: tuple[str, ...] = ()
) -> Analysis:
    """Input x [n, 3, 8, 8] and output y."""
    rng = np.random.default_rng(0)
    tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 8, 8))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return analyze(Graph(made), freeze=freeze)


def node(op: str, reads: str, makes: str, name: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), makes.split(), name=name, **attributes)


WEIGHTS = {"a": (6, 3, 1, 1), "b": (4, 3, 1, 1), "c": (5, 10, 1, 1), "bias": (6,)}


def joined(freeze: tuple[str, ...] = (), weight: str = "a", tensor: str = "ya") -> Analysis:
    """Two convolutions side by side, a third that reads both; w0 of six channels and w1 of four."""
    nodes = [node("Conv", f"x {weight} bias", tensor, "first"), node("Conv", "x b", "yb", "second")]
    nodes += [node("Concat", f"{tensor} yb", "j", "join", axis=1), node("Conv", "j c", "y", "last")]
    return analysis_of(nodes, {weight if name == "a" else name: s for name, s in WEIGHTS.items()}, freeze)


def answer(analysis: Analysis, name: str):
    (found,) = explain(analysis, look_up(analysis, name))
    return found


class TestNames:
    @pytest.mark.parametrize("name", ["w0", "stem"])
    def test_a_width_goes_by_its_id_and_its_name(self, name: str) -> None:
        analysis = joined(weight="stem.weight")
        assert look_up(analysis, name) == Asked(name, (analysis.widths["w0"],))

    def test_a_weight_or_a_node_that_a_width_is_named_after_comes_first(self) -> None:
        analysis = joined()
        assert analysis.widths["w0"].name == "a"
        assert look_up(analysis, "a").axes[0] == ("a", 0)
        analysis = joined(weight="onnx::Conv_1")
        assert analysis.widths["w0"].name == "first"
        assert look_up(analysis, "first").axes[0] == ("onnx::Conv_1", 0)

    @pytest.mark.parametrize(
        ("name", "axes"),
        [
            ("c", [("c", 0), ("c", 1), ("c", 2), ("c", 3)]),
            ("bias", [("bias", 0)]),
            ("j[1]", [("j", 1)]),
            ("x[0]", [("x", 0)]),
            ("first", [*(("a", k) for k in range(4)), ("bias", 0)]),
            ("join", [("j", 0), ("j", 1), ("j", 2), ("j", 3)]),
        ],
    )
    def test_a_tensor_an_axis_of_one_and_a_node(self, name: str, axes: list[tuple[str, int]]) -> None:
        assert look_up(joined(), name) == Asked(name, axes=tuple(axes))

    def test_the_name_of_a_tensor_may_hold_brackets(self) -> None:
        analysis = joined(tensor="ya[1]")
        assert look_up(analysis, "ya[1]").axes == tuple(("ya[1]", k) for k in range(4))
        assert look_up(analysis, "ya[1][1]").axes == (("ya[1]", 1),)

    def test_the_id_of_a_width_comes_before_a_tensor_of_its_name(self) -> None:
        analysis = joined(tensor="w1")
        assert look_up(analysis, "w1").widths == (analysis.widths["w1"],)
        assert look_up(analysis, "w1[1]").axes == (("w1", 1),)

    @pytest.mark.parametrize(("name", "expected"), [("frist", "'first'"), ("jion", "'join'"), ("bais[0]", "'bias'")])
    def test_an_unknown_name_is_an_error_with_the_nearest(self, name: str, expected: str) -> None:
        with pytest.raises(UsageError, match=f"Did you mean .*{expected}"):
            look_up(joined(), name)

    def test_nothing_near_is_not_guessed_at(self) -> None:
        with pytest.raises(UsageError, match=r"has this name\. Name a width"):
            look_up(joined(), "§§§§§§§§")

    @pytest.mark.parametrize("name", ["c[4]", "bias[1]"])
    def test_an_axis_that_is_not_there_is_an_error(self, name: str) -> None:
        with pytest.raises(UsageError, match="no axis"):
            look_up(joined(), name)


class TestAnswers:
    def test_a_resizable_axis_has_its_width_and_the_way_to_another_layer(self) -> None:
        found = explain(joined(), Asked("a", axes=(("a", 0),)))[0]
        assert (found.state, found.size, found.made_of) == ("resizable", 6, "w0")
        assert [width.id for width in found.widths] == ["w0"]
        assert [[(link.tensor, link.axis, link.node) for link in path] for path in found.near] == [
            [("a", 0, "first"), ("ya", 1, "join"), ("j", 1, "last"), ("c", 1, None)]
        ]

    def test_an_axis_of_several_widths_has_all_of_them(self) -> None:
        found = answer(joined(), "c[1]")
        assert (found.made_of, [width.id for width in found.widths], found.size) == ("w0 + w1", ["w0", "w1"], 10)
        assert [path[-1].tensor for path in found.near] == ["a", "b"]

    def test_a_width_by_its_id_starts_where_it_is_made(self) -> None:
        found = answer(joined(), "w1")
        assert (found.place, found.axis, found.size) == ("w1", None, 4)
        assert [link.tensor for link in found.near[0]] == ["b", "yb", "j", "c"]

    @pytest.mark.parametrize(
        ("tensor", "axis", "kind", "there"),
        [("a", 1, "input", "x"), ("c", 0, "output", "y"), ("x", 1, "input", "x"), ("x", 2, "spatial", "x")],
    )
    def test_a_frozen_axis_has_a_reason_a_hint_and_the_way_to_where_it_comes_from(
        self, tensor: str, axis: int, kind: str, there: str
    ) -> None:
        (found,) = explain(joined(), Asked(tensor, axes=((tensor, axis),)))
        assert found.reason is not None
        assert (found.state, found.reason.kind, found.path[-1].tensor) == ("frozen", kind, there)
        assert found.hint == HINTS[kind]

    def test_what_was_frozen_by_request_says_so(self) -> None:
        analysis = joined(freeze=("w0",))
        for found in (answer(analysis, "w0"), answer(analysis, "ya[1]")):
            assert (found.state, found.reason.kind) == ("frozen", "asked")
            assert "--freeze" in found.hint
        part = answer(analysis, "c[1]")
        assert (part.state, part.made_of, [w.id for w in part.widths]) == ("resizable", "w0 + w1", ["w1"])

    def test_sizes_of_the_input_of_one_and_of_nothing(self) -> None:
        analysis = joined()
        assert answer(analysis, "x[0]").state == "follows"
        assert explain(analysis, Asked("a", axes=(("a", 2),)))[0].state == "one"

    def test_values_without_axes_that_are_followed_say_so(self) -> None:
        nodes = [node("Conv", "x a", "ya", "first"), node("Shape", "ya", "z", "shape")]
        nodes += [
            node("ConstantOfShape", "z", "o", "ones"),
            node("Add", "ya o", "s", "add"),
            node("Conv", "s c", "y", "last"),
        ]
        found = answer(analysis_of(nodes, {"a": (6, 3, 1, 1), "c": (5, 6, 1, 1)}), "z")
        assert (found.state, found.axis, str(found)) == ("unknown", None, "z")

    @pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
    def test_every_tensor_and_node_has_an_answer_that_agrees_with_the_analysis(self, name: str) -> None:
        analysis = analyze(zoo.graph(name, dynamic_batch=True))
        frozen = {(f.tensor, f.axis): f.reason for f in analysis.frozen}
        held = {(m.tensor, m.axis) for w in analysis.widths.values() for m in w.members}
        for tensor in [*analysis.graph.weights][::7]:
            for found in explain(analysis, look_up(analysis, tensor)):
                json.dumps(found.as_json())
                if found.axis is None:
                    continue
                place = (tensor, found.axis)
                assert (found.state == "resizable") == (place in held)
                assert found.reason == frozen.get(place) or not analysis.is_real(tensor)
        for each in analysis.graph.nodes[::11]:
            assert explain(analysis, look_up(analysis, each.name))

    def test_every_width_answers_to_its_id(self) -> None:
        analysis = analyze(zoo.graph("resnet18"))
        for identity, width in analysis.widths.items():
            assert answer(analysis, identity).widths == (width,)


class TestBonds:
    def test_two_axes_of_one_width_are_coupled_along_a_path(self) -> None:
        analysis = joined()
        (bond,) = bonds(analysis, look_up(analysis, "ya"), look_up(analysis, "c"))
        assert (bond.width.id, [link.node for link in bond.path]) == ("w0", ["join", "last", None])

    def test_all_widths_that_two_names_share_are_there(self) -> None:
        analysis = joined()
        assert [b.width.id for b in bonds(analysis, look_up(analysis, "j"), look_up(analysis, "c"))] == ["w0", "w1"]
        assert [b.width.id for b in bonds(analysis, look_up(analysis, "w1"), look_up(analysis, "c"))] == ["w1"]

    @pytest.mark.parametrize(("a", "b"), [("w0", "w1"), ("ya", "yb"), ("x", "y"), ("c[0]", "c[1]")])
    def test_others_are_not_coupled(self, a: str, b: str) -> None:
        analysis = joined()
        assert bonds(analysis, look_up(analysis, a), look_up(analysis, b)) == ()

    def test_what_was_frozen_by_request_couples_nothing(self) -> None:
        analysis = joined(freeze=("w0",))
        assert bonds(analysis, look_up(analysis, "ya"), look_up(analysis, "w0")) == ()


class TestFormulas:
    def test_groups_and_sums_read_as_they_are_laid_out(self) -> None:
        nodes = [node("Conv", "x a", "ya", "first"), node("Conv", "ya b", "yb", "grouped", group=3)]
        nodes += [node("Concat", "yb x", "j", "join", axis=1), node("Conv", "j c", "y", "last")]
        analysis = analysis_of(nodes, {"a": (6, 3, 1, 1), "b": (6, 2, 1, 1), "c": (5, 9, 1, 1)})
        found = {name: formula(analysis, analysis.shapes[name][1]) for name in ("ya", "yb", "j")}
        assert found == {"ya": "w0·w1", "yb": "w0·w2", "j": "w0·w2 + 3"}

    def test_sizes_that_no_width_has_are_numbers(self) -> None:
        analysis = joined()
        assert [formula(analysis, segment) for segment in analysis.shapes["y"]] == ["x[0]", "5", "8", "8"]


class TestHints:
    def test_every_kind_of_reason_has_one(self) -> None:
        kinds = {kind for file in PACKAGE.rglob("*.py") for kind in kinds_in(ast.parse(file.read_text()))}
        assert len(kinds) > 40
        assert kinds - HINTS.keys() == set()

    def test_an_unknown_kind_has_one_too(self) -> None:
        assert "node" in hint("something new")

    def test_they_are_sentences(self) -> None:
        for kind, text in HINTS.items():
            assert text.endswith("."), kind
            assert text[0].isupper(), kind


def kinds_in(tree: ast.Module) -> Iterator[str]:
    """The first arguments of Reason(...) and Opaque(...); a name stands for the words that the function gives it."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.ClassDef):
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("Reason", "Opaque"):
                yield from _words(call.args[0], function)


def _words(value: ast.expr, function: ast.AST) -> Iterator[str]:
    if isinstance(value, ast.Constant):
        yield value.value
    elif isinstance(value, ast.Name):
        found = [each.value for each in ast.walk(function) if isinstance(each, ast.Assign) and _sets(each, value.id)]
        found += [
            each.iter for each in ast.walk(function) if isinstance(each, ast.For) and _names(each.target, value.id)
        ]
        words = {word.value for part in found for word in ast.walk(part) if isinstance(word, ast.Constant)}
        yield from (word for word in words if isinstance(word, str))


def _sets(assignment: ast.Assign, name: str) -> bool:
    return any(_names(target, name) for target in assignment.targets)


def _names(target: ast.AST, name: str) -> bool:
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(target))
