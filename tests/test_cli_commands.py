"""What analyze, resize, verify and evaluate print and write."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import call, listing, save, small_model
from onnx import numpy_helper

MEMBER = {"tensor", "axis", "role"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save(small_model(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shapes(file: Path) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in onnx.load(file).graph.initializer}


class TestAnalyze:
    def test_the_json_is_the_contracts(self, folder: Path) -> None:
        result = call("analyze", "model.onnx", "--json", "-")
        assert (result.code, result.err) == (0, "")
        found = json.loads(result.out)
        assert found["format"] == "conet-onnx-analysis/1"
        assert set(found) == {"format", "model", "groups", "frozen", "coverage", "denormals"}
        assert set(found["model"]) == {"file", "sha256", "opset", "nodes", "params", "macs", "inputs", "outputs"}
        assert found["model"]["params"] == 6 * 9 + 6 + 8 * 6 * 9 + 8 + 10 * 8 + 10
        assert found["model"]["inputs"][0]["name"] == "x"
        group = found["groups"][0]
        assert {"id", "name", "size", "min", "multiple", "exact", "mixed_by", "members", "params", "macs"} <= set(group)
        assert [g["size"] for g in found["groups"]] == [6, 8]
        assert all(set(member) >= MEMBER for member in group["members"])
        assert set(found["frozen"][0]) >= {"tensor", "axis", "size", "reason"}
        assert set(found["frozen"][0]["reason"]) >= {"kind", "node", "detail"}
        assert set(found["coverage"]) == {"params", "macs"}

    def test_a_json_file_comes_beside_the_tables(self, folder: Path) -> None:
        result = call("analyze", "model.onnx", "--json", "out.json")
        assert json.loads((folder / "out.json").read_text())["model"]["nodes"] == 7
        assert "2 width groups" in result.out

    def test_the_tables_say_what_is_there_why_not_and_what_next(self, folder: Path) -> None:
        result = call("analyze", "model.onnx")
        assert result.err == ""
        for expected in (
            "model.onnx: opset 17, 7 nodes, 590 parameters",
            "2 width groups, in weights with 98.3% of",
            "Frozen: channels along ",
            "extents of kernels",
            "output",
            "conet-onnx resize model.onnx -o resized.onnx --scale 0.5",
            "conet-onnx search model.onnx --data DATA --budget macs=0.5",
        ):
            assert expected in result.out

    def test_the_commands_that_it_suggests_parse(self, folder: Path) -> None:
        lines = [line.split() for line in call("analyze", "model.onnx").out.splitlines() if "  conet-onnx" in line]
        assert len(lines) == 2
        assert call(shlex.join(lines[0][1:])).code == 0

    def test_a_frozen_group_is_gone(self, folder: Path) -> None:
        everything = json.loads(call("analyze", "model.onnx", "--json", "-").out)["groups"]
        rest = json.loads(call("analyze", "model.onnx", "--freeze", everything[0]["id"], "--json", "-").out)["groups"]
        assert [group["id"] for group in rest] == [everything[1]["id"]]

    def test_nothing_to_resize_says_so(self, folder: Path) -> None:
        result = call("analyze", "model.onnx", "--freeze", "w0", "--freeze", "w1")
        assert result.code == 0
        assert "No width can be resized" in result.out
        assert "What next" not in result.out

    def test_names_are_never_taken_for_markup(self, folder: Path) -> None:
        model = small_model()
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [n.replace("c1.w", "[bold]c1[/bold]") for n in names]
        model.graph.initializer[0].name = "[bold]c1[/bold]"
        save(model, folder / "model.onnx")
        assert "[bold]c1[/bold]" in call("analyze", "model.onnx").out

    def test_nothing_is_coloured_where_there_is_no_terminal(self, folder: Path) -> None:
        assert "\x1b" not in call("analyze", "model.onnx").out


class TestResize:
    def test_the_scale_is_of_every_width(self, folder: Path) -> None:
        result = call("resize", "model.onnx", "-o", "out.onnx", "--scale", "0.5")
        assert (result.code, result.err) == (0, "")
        assert shapes(folder / "out.onnx")["c2.w"] == [4, 3, 3, 3]
        for expected in ("2 of 2 widths change", "32.5%", "proved   function", "Written: out.onnx", "conet-onnx bench"):
            assert expected in result.out

    def test_it_grows_and_keeps_the_function(self, folder: Path) -> None:
        result = call("resize model.onnx -o out.onnx --scale 1.5 --transfer net2net --plan plan.json")
        assert result.code == 0
        assert shapes(folder / "out.onnx")["c2.w"] == [12, 9, 3, 3]
        assert "lost accuracy" not in result.out
        from conet_onnx.runtime import run

        x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
        a, b = (run(file, {"x": x}, provider="cpu")["y"] for file in ("model.onnx", "out.onnx"))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("widths", ["w0=2,w1=5", "w1=5, w0=2", "widths.json"])
    def test_the_widths_are_those_that_were_asked_for(self, folder: Path, widths: str) -> None:
        (folder / "widths.json").write_text('{"w0": 2, "w1": 5}')
        assert call("resize", "model.onnx", "-o", "out.onnx", "--widths", widths).code == 0
        assert shapes(folder / "out.onnx")["c2.w"] == [5, 2, 3, 3]

    @pytest.mark.parametrize("budgets", [["macs=0.5"], ["params=300"], ["bytes=1kB"], ["macs=0.9", "params=200"]])
    def test_the_budgets_are_all_met(self, folder: Path, budgets: list[str]) -> None:
        budgets = [b.replace("=300", "=0.3k").replace("=200", "=0.2k") for b in budgets]
        arguments = [word for budget in budgets for word in ("--budget", budget)]
        assert call("resize", "model.onnx", "-o", "out.onnx", *arguments).code == 0
        a, b = (json.loads(call("analyze", file, "--json", "-").out)["model"] for file in ("model.onnx", "out.onnx"))
        limits = {
            "macs=0.5": b["macs"] <= a["macs"] / 2,
            "macs=0.9": b["macs"] <= a["macs"] * 0.9,
            "params=0.3k": b["params"] <= 300,
            "params=0.2k": b["params"] <= 200,
            "bytes=1kB": sum(4 * np.prod(shape) for shape in shapes(folder / "out.onnx").values()) <= 1000,
        }
        assert all(limits[budget] for budget in budgets)

    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ("--budget macs=0.5", True),
            ("--scale 0.5", True),
            ("--scale 2", False),
            ("--scale 0.6 --multiple 4", False),
            ("--widths w0=2", False),
        ],
    )
    def test_that_macs_are_not_time_is_said_where_widths_were_chosen_freely(
        self, folder: Path, how: str, *, said: bool
    ) -> None:
        result = call(f"resize model.onnx -o out.onnx {how}")
        assert result.code == 0, result.err
        assert ("--multiple auto" in result.out) == said

    def test_the_multiple_rounds(self, folder: Path) -> None:
        assert call("resize model.onnx -o out.onnx --scale 0.6 --multiple 4").code == 0
        assert shapes(folder / "out.onnx")["c2.w"][:2] == [4, 4]

    def test_what_is_frozen_stays(self, folder: Path) -> None:
        assert call("resize model.onnx -o out.onnx --scale 0.5 --freeze w0").code == 0
        assert shapes(folder / "out.onnx")["c2.w"][:2] == [4, 6]

    def test_the_criterion_decides_which_channels_stay(self, folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        weight = next(t for t in model.graph.initializer if t.name == "c1.w")
        array = numpy_helper.to_array(weight) * np.array([1, 9, 1, 9, 1, 9], np.float32)[:, None, None, None]
        weight.CopyFrom(numpy_helper.from_array(array, "c1.w"))
        save(model, folder / "model.onnx")
        for criterion in ("l1", "l2", "random"):
            assert (
                call(
                    "resize", "model.onnx", "-o", f"{criterion}.onnx", "--widths", "w0=3", "--criterion", criterion
                ).code
                == 0
            )
        kept = {c: numpy_helper.to_array(onnx.load(f"{c}.onnx").graph.initializer[0]) for c in ("l1", "l2", "random")}
        assert np.array_equal(kept["l1"], array[1::2])
        assert np.array_equal(kept["l2"], array[1::2])

    def test_the_plan_proves_the_model(self, folder: Path) -> None:
        assert call("resize model.onnx -o out.onnx --scale 0.5 --plan plan.json").code == 0
        plan = json.loads((folder / "plan.json").read_text())
        assert plan["format"] == "conet-onnx-plan/1"
        assert {name: (w["from"], w["to"]) for name, w in plan["widths"].items()} == {"w0": (6, 3), "w1": (8, 4)}
        result = call("verify", "model.onnx", "out.onnx", "--plan", "plan.json")
        assert (result.code, result.err) == (0, "")
        assert "out.onnx is model.onnx resized by plan.json" in result.out
        assert "proved   weights" in result.out

    def test_a_scale_of_one_changes_nothing(self, folder: Path) -> None:
        result = call("resize model.onnx -o out.onnx --scale 1")
        assert result.code == 0
        assert "0 of 2 widths change" in result.out
        assert (folder / "out.onnx").read_bytes() == (folder / "model.onnx").read_bytes()

    def test_without_verification_it_says_so(self, folder: Path) -> None:
        result = call("resize model.onnx -o out.onnx --scale 0.5 --no-verify")
        assert result.code == 0
        assert "not verified" in result.out

    @pytest.mark.parametrize("transfer", ["svd", "evbmf"])
    def test_a_policy_that_changes_values_says_so(self, folder: Path, transfer: str) -> None:
        result = call(f"resize model.onnx -o out.onnx --scale 0.5 --transfer {transfer} --plan plan.json")
        assert (result.code, result.err) == (0, "")
        assert "skipped  values: the plan says that they were changed" in result.out
        assert json.loads((folder / "plan.json").read_text())["values"] == "changed"
        assert call("verify", "model.onnx", "out.onnx", "--plan", "plan.json").code == 0
        assert shapes(folder / "out.onnx")["c2.w"] == [4, 3, 3, 3]

    def test_weights_are_fitted_on_training_data(self, folder: Path) -> None:
        line = "resize model.onnx -o out.onnx --scale 0.5 --transfer least-squares --data digits --plan plan.json"
        result = call(line)
        assert result.code == 0, result.err
        assert result.err.startswith("Inputs: (pixel")
        assert "Fitted 2 weights on 256 training images of digits." in result.out
        rows = {
            words[1]: words[-2:]
            for row in result.out.splitlines()
            if (words := row.split())[1:2] in (["layers'"], ["model's"])
        }
        for sliced, fitted in rows.values():
            assert float(fitted) < 0.5 * float(sliced)
        assert len(rows) == 2
        assert "Left as sliced" not in result.out
        assert "skipped  values" in result.out
        assert set(listing(folder)) == {"model.onnx", "out.onnx", "plan.json"}
        assert call("verify", "model.onnx", "out.onnx", "--plan", "plan.json").code == 0

    def test_samples_and_seed_decide_what_is_fitted_on(self, folder: Path) -> None:
        line = "resize model.onnx --scale 0.5 --transfer least-squares --data digits --mean 0 --std 1 --no-verify"
        asked = ("", "256"), ("--seed 1", "256"), ("--samples 20", "20"), ("--samples 9999", "1,079")
        for name, (more, count) in zip("abcd", asked, strict=True):
            result = call(f"{line} -o {name}.onnx {more}")
            assert f"on {count} training images" in result.out
        assert len({(folder / f"{name}.onnx").read_bytes() for name in "abcd"}) == 4

    def test_inputs_alone_are_enough_to_fit_on(self, folder: Path) -> None:
        """No labels, no validation, no test."""
        np.savez(folder / "train.npz", x=np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32))
        result = call("resize model.onnx -o out.onnx --scale 0.5 --transfer least-squares --data train.npz")
        assert result.code == 0, result.err
        assert "Fitted 2 weights on 36 training samples" in result.out

    def test_a_weight_that_is_not_fitted_is_named(self, folder: Path) -> None:
        model = small_model()
        node = next(node for node in model.graph.node if node.name == "fc")
        node.attribute.append(onnx.helper.make_attribute("alpha", 0.5))
        save(model, folder / "model.onnx")
        result = call(
            "resize model.onnx -o out.onnx --scale 0.5 --transfer least-squares --data digits --mean 0 --std 1"
        )
        assert "Fitted 1 weight on 256" in result.out
        assert "Left as sliced: fc.w (" in result.out

    def test_a_batch_that_is_freed_first_is_fitted_too(self, folder: Path) -> None:
        model = small_model()
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
        save(model, folder / "model.onnx")
        line = "resize model.onnx -o out.onnx --scale 0.5 --transfer least-squares --data digits --mean 0 --std 1"
        for more in ("", " --free-batch"):
            assert "Fitted 2 weights on 256 training images" in call(line + more).out

    def test_nothing_but_the_named_files_is_written(self, folder: Path) -> None:
        assert call("resize model.onnx -o out.onnx --scale 0.5 --plan plan.json").code == 0
        assert set(listing(folder)) == {"model.onnx", "out.onnx", "plan.json"}


class TestEvaluate:
    def test_the_json_is_the_contracts(self, folder: Path) -> None:
        result = call("evaluate", "model.onnx", "--data", "digits", "--json", "-")
        assert result.code == 0
        found = json.loads(result.out)
        assert found["format"] == "conet-onnx-evaluation/1"
        assert set(found) == {"format", "split", "samples", "top1", "top5", "loss", "samples_per_second"}
        assert found["split"] == "test"
        assert found["samples"] == 359

    def test_it_says_how_inputs_were_normalised(self, folder: Path) -> None:
        assert "tried on training images" in call("evaluate", "model.onnx", "--data", "digits").err
        given = call("evaluate", "model.onnx", "--data", "digits", "--mean", "0.1", "--std", "0.5")
        assert "(pixel/255 - 0.1) / 0.5, as given" in given.err

    def test_the_table_says_what_was_measured(self, folder: Path) -> None:
        result = call("evaluate", "model.onnx", "--data", "digits")
        for expected in (
            "359 test images",
            "top-1 accuracy",
            "top-5 accuracy",
            "loss",
            "images per second",
            "What next",
        ):
            assert expected in result.out
