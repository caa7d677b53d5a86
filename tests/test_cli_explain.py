"""What `analyze --explain` and `analyze --html` print and write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import call, listing, only_line, save, small_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save(small_model(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestOneName:
    def test_a_resizable_axis_is_told_with_its_width_its_members_and_the_next_layer(self, folder: Path) -> None:
        result = call("analyze", "model.onnx", "--explain", "c2.w[1]")
        assert (result.code, result.err) == (0, "")
        assert result.out.splitlines() == [
            "c2.w[1]: 6 = w0, can be resized",
            "  w0 (c1.w), exact: 3 weight axes change along",
            "    made by      1   c1.w[0]",
            "    summed by    1   c2.w[1]",
            "    besides      1   c1.b[0]",
            "    To the nearest in another layer:",
            "    c2.w[1] --c2--> b[1]",
            "    b[1] --r1--> a[1]",
            "    a[1] --c1--> c1.w[0]",
        ]

    def test_a_frozen_axis_is_told_with_its_reason_the_way_there_and_what_would_free_it(self, folder: Path) -> None:
        result = call("analyze", "model.onnx", "--explain", "fc.b")
        assert result.code == 0
        lines = result.out.splitlines()
        assert lines[:4] == [
            "fc.b[0]: 10, frozen (output)",
            "  It is an axis of the model's output 'y'.",
            "  From here to there:",
            "    fc.b[0] --fc--> y[1]",
        ]
        assert lines[4].startswith("  To free it: Nothing but another task")
        assert len(lines) == 5

    def test_all_axes_of_a_node_are_told_where_none_is_named(self, folder: Path) -> None:
        out = call("analyze", "model.onnx", "--explain", "c2").out
        assert [line.split(":")[0] for line in out.splitlines() if line.startswith("c2")] == [
            *(f"c2.w[{k}]" for k in range(4)),
            "c2.b[0]",
        ]
        assert "c2.w[2]: 3, frozen (spatial)" in out

    def test_a_width_goes_by_its_id(self, folder: Path) -> None:
        assert call("analyze", "model.onnx", "--explain", "w1").out.startswith(
            "w1: 8, can be resized\n  w1 (c2.w), exact"
        )

    def test_what_is_no_number_of_channels_says_so(self, folder: Path) -> None:
        out = call("analyze", "model.onnx", "--explain", "x").out
        assert "x[0]: follows the model's inputs" in out
        assert "x[1]: 1: there is nothing to resize" in out

    def test_what_was_frozen_by_request_says_so(self, folder: Path) -> None:
        out = call("analyze", "model.onnx", "--freeze", "w0", "--explain", "c2.w[1]").out
        assert out.startswith(
            "c2.w[1]: 6, frozen (asked)\n  It was frozen by request.\n  To free it: Leave out the --freeze"
        )

    def test_names_are_never_taken_for_markup(self, folder: Path) -> None:
        model = small_model()
        for node in model.graph.node:
            node.input[:] = [n.replace("c1.w", "[bold]c1[/bold]") for n in node.input]
        model.graph.initializer[0].name = "[bold]c1[/bold]"
        save(model, folder / "model.onnx")
        assert "[bold]c1[/bold][0]: 6 = w0" in call("analyze", "model.onnx", "--explain", "[bold]c1[/bold][0]").out


class TestTwoNames:
    def test_the_path_is_printed_a_line_a_step(self, folder: Path) -> None:
        result = call("analyze", "model.onnx", "--explain", "c1.w[0]", "--explain", "c2")
        assert (result.code, result.err) == (0, "")
        assert result.out.splitlines() == [
            "c1.w[0] and c2 are coupled by w0 (c1.w), 6 channels:",
            "    c1.w[0] --c1--> a[1]",
            "    a[1] --r1--> b[1]",
            "    b[1] --c2--> c2.w[1]",
        ]

    def test_names_that_are_not_coupled_are_told_where_they_belong(self, folder: Path) -> None:
        result = call("analyze", "model.onnx", "--explain", "w0", "--explain", "fc.w")
        assert (result.code, result.err) == (0, "")
        assert result.out.splitlines() == [
            "w0 and fc.w are not coupled.",
            "  w0: 6, belongs to w0 (c1.w)",
            "  fc.w[0]: 10, frozen (output): it is an axis of the model's output 'y'",
            "  fc.w[1]: 8, belongs to w1 (c2.w)",
        ]

    def test_a_name_is_coupled_to_itself(self, folder: Path) -> None:
        out = call("analyze", "model.onnx", "--explain", "w0", "--explain", "c1.b").out
        assert out.splitlines()[1] == "    c1.b[0] itself"


class TestJson:
    def test_one_name_adds_its_axes_to_the_document(self, folder: Path) -> None:
        found = json.loads(call("analyze", "model.onnx", "--explain", "fc.w", "--json", "-").out)
        assert found["format"] == "conet-onnx-analysis/1"
        assert set(found["explain"]) == {"asked", "axes"}
        assert found["explain"]["asked"] == ["fc.w"]
        first, second = found["explain"]["axes"]
        keys = {"asked", "tensor", "axis", "state", "size", "made_of", "widths", "near", "reason", "hint", "path"}
        assert set(first) == set(second) == keys
        assert (first["state"], first["reason"]["kind"], first["size"]) == ("frozen", "output", 10)
        assert first["path"] == [{"tensor": "fc.w", "axis": 0, "node": "fc"}, {"tensor": "y", "axis": 1, "node": None}]
        assert (second["state"], second["widths"], second["reason"]) == ("resizable", ["w1"], None)
        assert second["near"][0][-1] == {"tensor": "c2.w", "axis": 0, "node": None}

    def test_two_names_add_their_paths(self, folder: Path) -> None:
        found = json.loads(call("analyze model.onnx --explain c1.w --explain c2.w --json -").out)["explain"]
        assert found["coupled"] is True
        assert [(path["width"], len(path["path"])) for path in found["paths"]] == [("w0", 4)]
        assert {axis["asked"] for axis in found["axes"]} == {"c1.w", "c2.w"}
        apart = json.loads(call("analyze model.onnx --explain w0 --explain w1 --json -").out)["explain"]
        assert (apart["coupled"], apart["paths"]) == (False, [])

    def test_a_json_file_comes_beside_the_answer(self, folder: Path) -> None:
        result = call("analyze", "model.onnx", "--explain", "w0", "--json", "out.json")
        assert result.out.startswith("w0: 6, can be resized")
        assert json.loads((folder / "out.json").read_text())["explain"]["asked"] == ["w0"]

    def test_without_explain_there_is_none_in_it(self, folder: Path) -> None:
        assert "explain" not in json.loads(call("analyze", "model.onnx", "--json", "-").out)


class TestHtml:
    def test_a_page_is_written_beside_the_tables(self, folder: Path) -> None:
        result = call("analyze", "model.onnx", "--html", "page.html")
        assert (result.code, result.err) == (0, "")
        assert "2 width groups" in result.out
        assert result.out.endswith("\nWritten: page.html\n")
        assert set(listing(folder)) == {"model.onnx", "page.html"}
        assert (folder / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")

    def test_it_goes_with_explain_and_with_pure_json(self, folder: Path) -> None:
        out = call("analyze", "model.onnx", "--html", "page.html", "--explain", "w0").out
        assert out.startswith("w0: 6")
        assert out.endswith("Written: page.html\n")
        (folder / "page.html").unlink()
        json.loads(call("analyze", "model.onnx", "--html", "page.html", "--json", "-").out)
        assert (folder / "page.html").exists()


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ("--explain c1.v", "Did you mean 'c1.w'"),
            ("--explain c1.w[7]", "no axis 7"),
            ("--explain w0 --explain nothing", "'nothing'"),
            ("--explain nothing --html page.html --json out.json", "'nothing'"),
            ("--explain a --explain b --explain c", "3 times"),
            ("--html -", "is not a file"),
            ("--html .", "is a folder"),
            ("--html missing/page.html", "no folder"),
        ],
    )
    def test_each_is_one_line_and_nothing_is_written(self, folder: Path, arguments: str, expected: str) -> None:
        result = call(f"analyze model.onnx {arguments}")
        assert (result.code, result.out) == (2, "")
        assert expected in only_line(result)
        assert set(listing(folder)) == {"model.onnx"}

    def test_the_help_names_both(self) -> None:
        out = call("analyze", "--help").out
        assert "--explain A" in out
        assert "--html F" in out
        assert "Not in this release" not in out
