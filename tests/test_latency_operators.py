"""Operators: the integers that are foretold at new widths are those of the graph that onnxruntime then runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.graph import Graph
from conet_onnx.latency.nodes import make, read_nodes
from conet_onnx.latency.operators import Kind, Operator, Operators, Term, find_operators, probe_widths, resized
from conet_onnx.loading import load
from conet_onnx.runtime import run

ROOT = Path(__file__).resolve().parent.parent


def made(nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], x: tuple[int, ...], y: tuple) -> Graph:
    rng = np.random.default_rng(0)
    constants = [numpy_helper.from_array(rng.normal(0, 0.3, s).astype(np.float32), n) for n, s in weights.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y))]
    graph = helper.make_graph(nodes, "g", [ends[0]], [ends[1]], constants)
    return Graph(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]))


def depthwise() -> Graph:
    """A convolution, one of each channel alone, and one of single pixels."""
    node = helper.make_node
    return made(
        [
            node("Conv", ["x", "a.w"], ["a"], "a", pads=[1, 1, 1, 1]),
            node("Clip", ["a", "low", "high"], ["b"], "clip"),
            node("Conv", ["b", "d.w"], ["c"], "d", pads=[1, 1, 1, 1], group=32),
            node("Conv", ["c", "p.w"], ["e"], "p"),
            node("GlobalAveragePool", ["e"], ["f"], "pool"),
            node("Flatten", ["f"], ["g"], "flat"),
            node("Gemm", ["g", "fc.w"], ["y"], "fc", transB=1),
        ],
        {
            "a.w": (32, 3, 3, 3),
            "low": (),
            "high": (),
            "d.w": (32, 1, 3, 3),
            "p.w": (48, 32, 1, 1),
            "fc.w": (10, 48),
        },
        (1, 3, 8, 8),
        (1, 10),
    )


def matmul() -> Graph:
    """Rows through two MatMuls, with a Concat of two widths between them and a Reshape whose sizes are constants."""
    node = helper.make_node
    return made(
        [
            node("MatMul", ["x", "a.w"], ["a"], "ma"),
            node("MatMul", ["x", "b.w"], ["b"], "mb"),
            node("Relu", ["a"], ["ar"], "ra"),
            node("Tanh", ["b"], ["br"], "rb"),
            node("Concat", ["ar", "br"], ["c"], "cat", axis=2),
            node("MatMul", ["c", "d.w"], ["y"], "md"),
        ],
        {"a.w": (16, 32), "b.w": (16, 24), "d.w": (56, 6)},
        (1, 5, 16),
        (1, 5, 6),
    )


def joined() -> Graph:
    """Four convolutions side by side, joined, and one behind them."""
    node = helper.make_node
    return made(
        [
            *(node("Conv", ["x", f"{k}.w"], [f"c{k}"], f"conv{k}", pads=[1, 1, 1, 1]) for k in range(4)),
            node("Concat", [f"c{k}" for k in range(4)], ["joined"], "join", axis=1),
            node("Conv", ["joined", "last.w"], ["e"], "last"),
            node("GlobalAveragePool", ["e"], ["f"], "pool"),
            node("Flatten", ["f"], ["g"], "flat"),
            node("Gemm", ["g", "fc.w"], ["y"], "fc", transB=1),
        ],
        {**{f"{k}.w": (32, 16, 3, 3) for k in range(4)}, "last.w": (32, 128, 1, 1), "fc.w": (10, 32)},
        (1, 16, 12, 12),
        (1, 10),
    )


GRAPHS: dict[str, Callable[[], Graph]] = {
    "digits_resnet8": lambda: load(ROOT / "models" / "digits_resnet8.onnx"),
    "depthwise": depthwise,
    "matmul": matmul,
}


@cache
def found(name: str) -> tuple[Analysis, Operators]:
    analysis = analyze(GRAPHS[name]())
    return analysis, find_operators(analysis, threads=1)


def widths_of(analysis: Analysis, case: str) -> dict[str, int]:
    """Multiples of 16, or odd numbers; others than those that the operators were found at."""
    return probe_widths(analysis, np.random.default_rng(7), step={"aligned": 16, "odd": 1}[case])


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("case", ["aligned", "odd"])
def test_foretold_integers_are_those_of_the_graph_that_runs(name: str, case: str) -> None:
    analysis, operators = found(name)
    widths = widths_of(analysis, case)
    row = analysis.costs.row(widths)[None]
    sizes, there = operators.sizes(row)[0], operators.there(row)[0]
    nodes = {n.name: n for n in read_nodes(resized(analysis, widths), provider="cpu", threads=1)}
    expected = [one for one, is_there in zip(operators.listed, there, strict=True) if is_there]
    assert {one.name for one in expected} | set(operators.left) >= set(nodes)
    assert {one.name for one in expected} <= set(nodes)
    for one in expected:
        node = nodes[one.name]
        assert one.kind.form == node.form.text
        assert one.kind.numbers(sizes[list(one.columns)]) == node.numbers, one.name


@pytest.mark.parametrize("name", GRAPHS)
def test_almost_every_node_is_understood(name: str) -> None:
    assert len(found(name)[1].left) <= 1


@pytest.mark.parametrize("seed", range(6))
def test_what_reads_a_sum_of_widths_is_understood_though_odd_ones_may_add_up_to_a_multiple(seed: int) -> None:
    analysis = analyze(joined())
    operators = find_operators(analysis, threads=1, seed=seed)
    assert not [name for name in operators.left if "Reorder" not in name]
    for case in ("aligned", "odd"):
        there = operators.there(analysis.costs.row(widths_of(analysis, case))[None])[0]
        own = [one for one, is_there in zip(operators.listed, there, strict=True) if is_there]
        behind = [one for one in own if one.name in ("last", "e_nchwc")]  # as its layout names it
        assert [one.kind.symbols for one in behind] == [2]  # the sum, and its own


@pytest.mark.parametrize("name", GRAPHS)
def test_each_kind_runs_alone_at_other_sizes(name: str) -> None:
    """A model of one node, at sizes that its free symbols give, is one that onnxruntime takes."""
    for kind in found(name)[1].kinds:
        assert kind.example is not None
        single = make(kind.example, kind.numbers([32] * kind.symbols))
        outputs = run(onnx.load_from_string(single.model), single.feeds, provider="cpu", threads=1, optimise=False)
        assert all(np.asarray(array).size for array in outputs.values())


def test_what_a_node_reads_is_known_by_widths() -> None:
    analysis, operators = found("matmul")
    by_name = {one.name: reads for one, reads in zip(operators.listed, operators.reads, strict=True)}
    names = list(analysis.widths)
    sizes = {analysis.widths[n].size: k for k, n in enumerate(names)}
    assert by_name["ma"] == (sizes[32],)
    assert by_name["mb"] == (sizes[24],)
    assert by_name["md"] == tuple(sorted((sizes[32], sizes[24])))


def test_an_aligned_operator_is_not_there_beside_one_odd_width() -> None:
    analysis, operators = found("digits_resnet8")
    assert operators.multiple > 1  # AVX or not, blocked layouts have one
    row = analysis.costs.row({})
    odd = row.copy()
    odd[0] += 1
    for one, reads, before, after in zip(
        operators.listed, operators.reads, operators.there(row[None])[0], operators.there(odd[None])[0], strict=True
    ):
        assert before == (one.when != "odd")
        assert after == (before if 0 not in reads or one.when == "always" else one.when == "odd")


@pytest.mark.parametrize(
    ("term", "sizes", "value"),
    [
        (Term(7), (), 7),
        (Term(1, 0), (5,), 5),
        (Term(3, 1), (5, 4), 12),
        (Term(1, 0, 16), (17,), 32),
        (Term(2, 0, 16), (8,), 16),
    ],
)
def test_terms(term: Term, sizes: tuple[int, ...], value: int) -> None:
    assert term.at(sizes) == value


def test_kinds_of_equal_text_have_equal_keys_in_every_model() -> None:
    a, b = (Kind("{}", (Term(1), Term(1, 0, block))) for block in (1, 16))
    assert a.key != b.key
    assert a.key == Kind("{}", (Term(1), Term(1, 0))).key


def test_elements_are_those_of_the_inputs() -> None:
    for one in found("depthwise")[1].kinds:
        assert one.example is not None
        sizes = np.full((1, one.symbols), 32)
        single = make(one.example, one.numbers(sizes[0]))
        inputs = sum(array.size for array in single.feeds.values())
        inputs += sum(numpy_helper.to_array(t).size for t in onnx.load_from_string(single.model).graph.initializer)
        assert one.elements(sizes)[0] == inputs


def test_an_operator_of_sizes_that_nothing_changes_goes_by_all_widths() -> None:
    kind = Kind("{}", (Term(8),))
    cases: tuple[Any, ...] = ("always", "aligned", "odd")
    listed = tuple(Operator(when, kind, (), when) for when in cases)
    made = Operators(listed, (), (), ("w0", "w1"), multiple=4)
    rows = np.array([[4, 8], [4, 7], [3, 7]])
    assert made.there(rows).tolist() == [[True, True, False], [True, False, True], [True, False, True]]
