"""What `score` prints and writes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import call, only_line, save, small_model
from onnx import TensorProto, helper, numpy_helper

import conet_onnx as co
from conet_onnx.cli.score import LEGEND
from conet_onnx.metrics import METRICS


def grouped_model() -> onnx.ModelProto:
    """A plain convolution with a rank of 5, one in two groups of which one has a rank of 4, and a matrix."""
    rng = np.random.default_rng(0)

    def low(rows: int, columns: int, rank: int) -> np.ndarray:
        signal = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
        return (signal + 0.01 * rng.standard_normal((rows, columns))).astype(np.float32)

    first = low(16, 27, 5).reshape(16, 3, 3, 3)
    second = np.concatenate([low(10, 72, 4), low(10, 72, 7)]).reshape(20, 8, 3, 3)
    arrays = {"a": first, "b": second, "c": low(30, 20, 6)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["1"], "first"),
        helper.make_node("Conv", ["1", "b"], ["2"], "second", group=2),
        helper.make_node("GlobalAveragePool", ["2"], ["3"], "pool"),
        helper.make_node("Flatten", ["3"], ["4"], "flat"),
        helper.make_node("Gemm", ["4", "c"], ["y"], "fc", transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 30])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(v, k) for k, v in arrays.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save(grouped_model(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cells(out: str) -> dict[str, list[str]]:
    """The rows of the table by their first cell."""
    _, _, rest = out.partition("──\n")
    return {row.split()[0]: row.split()[1:] for row in rest.split("\n\n")[0].splitlines()}


class TestJson:
    def test_it_is_the_contracts(self, folder: Path) -> None:
        result = call("score", "model.onnx", "--json", "-")
        assert (result.code, result.err) == (0, "")
        found = json.loads(result.out)
        assert set(found) == {"format", "layers"}
        assert found["format"] == "conet-onnx-score/1"
        assert [(layer["tensor"], layer["kind"]) for layer in found["layers"]] == [
            ("a", "conv"),
            ("b", "conv"),
            ("c", "linear"),
        ]
        for layer in found["layers"]:
            assert set(layer) == {"tensor", "kind", "in", "out"}
            for side in ("in", "out"):
                assert list(layer[side]) == ["rank", "ratio", "condition", "gain", "qc", "newqc"]
        assert [layer["out"]["rank"] for layer in found["layers"]] == [5, 5.5, 6]

    def test_it_has_every_metric_whichever_is_shown(self, folder: Path) -> None:
        assert (
            call("score", "model.onnx", "--json", "-").out
            == call("score", "model.onnx", "--json", "-", "--metric", "rank").out
        )

    def test_a_file_comes_beside_the_table(self, folder: Path) -> None:
        result = call("score", "model.onnx", "--json", "out.json")
        assert (folder / "out.json").read_text() == call("score", "model.onnx", "--json", "-").out
        assert "model.onnx: 3 layers." in result.out

    def test_a_file_that_cannot_be_written_is_known_before_the_work(self, folder: Path) -> None:
        result = call("score", "none.onnx", "--json", "nowhere/out.json")
        assert result.code == 2
        assert "there is no folder nowhere" in only_line(result)


class TestTable:
    def test_it_has_a_row_for_each_layer_in_the_order_of_the_graph(self, folder: Path) -> None:
        result = call("score", "model.onnx")
        assert (result.code, result.err) == (0, "")
        (a, b, c) = co.score(co.load("model.onnx"))
        assert list(cells(result.out)) == ["a", "b", "c"]
        assert cells(result.out)["a"] == [
            *("conv", "16×3×3×3", f"{a.ins.qc:.3f}", f"{a.outs.qc:.3f}"),
            *(f"{a.ins.rank:g}/3", "5/16"),
        ]
        assert cells(result.out)["b"][-3:] == [f"{b.outs.qc:.3f}", f"{b.ins.rank:g}/8", "5.5/10"]
        assert cells(result.out)["c"] == ["linear", "30×20", f"{c.ins.qc:.3f}", f"{c.outs.qc:.3f}", "6/20", "6/30"]

    @pytest.mark.parametrize("metric", METRICS)
    def test_every_metric_can_be_shown_and_is_explained(self, folder: Path, metric: str) -> None:
        result = call("score", "model.onnx", "--metric", metric)
        header = result.out.splitlines()[2].split("  ")
        assert {f"{metric} in", f"{metric} out", "rank in", "rank out"} <= {name.strip() for name in header}
        assert len(cells(result.out)["c"]) == (4 if metric == "rank" else 6)
        assert f"\n{metric}: {LEGEND[metric]}.\n" in result.out

    def test_the_metrics_are_those_that_are_measured(self) -> None:
        assert set(LEGEND) == set(METRICS)

    def test_groups_are_mentioned_where_there_are_any(self, folder: Path) -> None:
        save(small_model(), folder / "plain.onnx")
        assert "Layers in groups: the mean over the groups" in call("score", "model.onnx").out
        assert "groups" not in call("score", "plain.onnx").out

    def test_the_commands_that_it_suggests_parse(self, folder: Path) -> None:
        lines = [line.split() for line in call("score", "model.onnx").out.splitlines() if "  conet-onnx" in line]
        assert [line[1] for line in lines] == ["analyze", "search"]
        assert call(shlex.join(lines[0][1:])).code == 0

    def test_a_model_without_layers_says_so(self, folder: Path) -> None:
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
        scale = numpy_helper.from_array(np.ones(2, np.float32), "s")
        graph = helper.make_graph([helper.make_node("Mul", ["x", "s"], ["y"])], "g", [x], [y], [scale])
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "none.onnx")
        result = call("score", "none.onnx")
        assert result.code == 0
        assert "there is nothing to measure" in result.out
        assert json.loads(call("score", "none.onnx", "--json", "-").out)["layers"] == []


class TestFailures:
    def test_another_metric_is_a_usage_error_that_lists_them(self, folder: Path) -> None:
        result = call("score", "model.onnx", "--metric", "accuracy")
        assert result.code == 2
        assert all(f"'{name}'" in only_line(result) for name in METRICS)

    def test_what_is_no_model_has_exit_code_3(self, folder: Path) -> None:
        (folder / "bad.onnx").write_bytes(b"no model")
        assert call("score", "bad.onnx").code == 3

    def test_a_weight_that_holds_no_number_has_exit_code_3_and_is_named(self, folder: Path) -> None:
        model = small_model()
        broken = numpy_helper.to_array(model.graph.initializer[2]).copy()
        broken[0] = np.nan
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(broken, "c2.w"))
        save(model, folder / "nan.onnx")
        result = call("score", "nan.onnx")
        assert result.code == 3
        assert "'c2.w' holds NaN or infinity" in only_line(result)

    def test_sizes_are_given_to_inputs_with_dynamic_axes(self, folder: Path) -> None:
        assert call("score", "model.onnx", "--input-shape", "x=1x3x32x32").code == 0
        result = call("score", "model.onnx", "--input-shape", "z=1x3x32x32")
        assert result.code == 2
        assert "no input 'z'" in only_line(result)
