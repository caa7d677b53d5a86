"""The command line as a whole: help, versions, errors, streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_support import call, only_line, save, small_model

from conet_onnx import errors
from conet_onnx.cli import bench as bench_module
from conet_onnx.cli import main as main_module
from conet_onnx.cli.command import Interrupted, LazyGroup

COMMANDS = tuple(main_module.COMMANDS)
CONTRACT_OPTIONS = {
    "analyze": "--json --html --explain --freeze --input-shape",
    "resize": "-o --scale --widths --budget --criterion --transfer --data --multiple --freeze --exact --inexact --plan "
    "--no-verify --input-shape",
    "search": "--data --budget --backend --algorithm --trials --epochs-per-trial --epochs --time-limit --seed "
    "--provider --threads --out --resume --storage --jobs --json --mean --std --input-shape",
    "evaluate": "--data --provider --json --mean --std --input-shape",
    "bench": "--provider --threads --batch --json --input-shape",
    "verify": "--plan --input-shape",
    "report": "",
}


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_has_help(self, command: str) -> None:
        result = call(command, "--help")
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(f"Usage: conet-onnx {command}")

    @pytest.mark.parametrize("command", CONTRACT_OPTIONS)
    def test_every_option_of_the_contract_is_there(self, command: str) -> None:
        group = main_module.group
        assert isinstance(group, LazyGroup)
        found = group.get_command(click.Context(group), command)
        assert found is not None
        names = {name for parameter in found.params for name in parameter.opts}
        assert set(CONTRACT_OPTIONS[command].split()) | {"--debug"} <= names

    def test_the_commands_are_listed(self) -> None:
        result = call("--help")
        assert result.code == 0
        assert all(f"\n  {command} " in result.out for command in COMMANDS)

    def test_nothing_at_all_prints_the_help_and_is_a_usage_error(self) -> None:
        result = call()
        assert (result.code, result.out) == (2, "")
        assert "Commands:" in result.err

    def test_the_version_is_the_packages(self) -> None:
        from importlib.metadata import version

        assert call("--version").out == f"conet-onnx {version('conet-onnx')}\n"

    def test_the_module_runs_as_the_script_does(self) -> None:
        made = subprocess.run([sys.executable, "-m", "conet_onnx", "--version"], capture_output=True, text=True)
        assert made.stdout == call("--version").out


class TestUsageErrors:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("anlyze", "m.onnx"), "Did you mean 'analyze'?"),
            (("xyzzy",), "There are analyze, resize"),
            (("analyze",), "Missing argument"),
            (("analyze", "m.onnx", "--jsn", "x"), "--json"),
            (("--wrong",), "--wrong"),
            (("bench", "m.onnx", "--threads", "0"), "--threads"),
            (("bench", "m.onnx", "--threads", "two"), "--threads"),
            (("bench", "m.onnx", "--batch", "0"), "--batch"),
            (("bench", "m.onnx", "--input-shape", "x"), "x=1x3x224x224"),
            (("bench", "m.onnx", "--input-shape", "x=1x0"), "x=1x3x224x224"),
            (("bench", "m.onnx", "--input-shape", "x=1xn"), "x=1x3x224x224"),
            (("bench", "m.onnx", "--input-shape", "=1x3"), "x=1x3x224x224"),
        ],
    )
    def test_a_wrong_call_is_one_line_that_says_what_to_do(self, arguments: tuple[str, ...], expected: str) -> None:
        result = call(*arguments)
        assert result.code == 2
        assert expected in only_line(result)
        assert result.out == ""


class TestFailures:
    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> object:
        def fail_with(error: BaseException) -> None:
            def failing(*_: object, **__: object) -> None:
                raise error

            monkeypatch.setattr(bench_module.bench, "callback", failing)

        return fail_with

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (errors.UsageError("wrong\nrequest"), 2),
            (errors.NotYet("later"), 2),
            (errors.OutputError("full"), 2),
            (errors.ModelError("bad model"), 3),
            (errors.DataError("bad data"), 3),
            (errors.UnsupportedOp("no op"), 3),
            (errors.BudgetUnreachable("too small"), 4),
            (errors.VerificationFailed("differs"), 5),
            (Interrupted("stopped"), 130),
            (FileNotFoundError(2, "No such file or directory", "some.file"), 2),
            (KeyboardInterrupt(), 130),
        ],
    )
    def test_each_error_has_its_exit_code_and_one_line(self, failing, error: BaseException, code: int) -> None:
        failing(error)
        result = call("bench", "m.onnx")
        assert result.code == code
        assert "\n" not in only_line(result)

    def test_an_unexpected_error_is_one_line_and_exit_1(self, failing) -> None:
        failing(KeyError("x"))
        result = call("bench", "m.onnx")
        assert result.code == 1
        assert result.err == (
            "conet-onnx: internal error: KeyError: 'x'; run with --debug for the traceback, and please report it.\n"
        )

    @pytest.mark.parametrize("arguments", [("--debug", "bench", "m.onnx"), ("bench", "m.onnx", "--debug")])
    def test_debug_shows_the_traceback_and_keeps_the_exit_code(self, failing, arguments: tuple[str, ...]) -> None:
        failing(errors.ModelError("bad model"))
        result = call(*arguments)
        assert result.code == 3
        assert "Traceback" in result.err
        assert result.err.endswith("conet-onnx: error: bad model\n")

    @pytest.mark.parametrize("line", ["--help", "analyze model.onnx", "analyze model.onnx --json -"])
    def test_a_reader_that_has_seen_enough_is_told_nothing(self, tmp_path: Path, line: str) -> None:
        save(small_model(), tmp_path / "model.onnx")
        read, written = os.pipe()
        os.close(read)
        made = subprocess.run(
            [sys.executable, "-m", "conet_onnx", *line.split()],
            cwd=tmp_path,
            stdout=written,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(written)
        assert (made.returncode, made.stderr) == (1, b"")


class TestStreams:
    @pytest.mark.parametrize("line", ["analyze model.onnx", "analyze model.onnx --json -", "analyze →.onnx"])
    def test_an_encoding_that_lacks_a_sign_is_no_failure(self, tmp_path: Path, line: str) -> None:
        model = small_model()
        for node in model.graph.node:
            node.input[:] = [name.replace("c1.w", "→w") for name in node.input]
        model.graph.initializer[0].name = "→w"
        save(model, tmp_path / "model.onnx")
        made = subprocess.run(
            [sys.executable, "-m", "conet_onnx", *line.split()],
            cwd=tmp_path,
            capture_output=True,
            encoding="latin-1",
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
            check=False,
        )
        assert "internal error" not in made.stderr
        assert made.returncode == (3 if "→" in line else 0)
        if line.endswith("-"):
            assert "→w" in json.loads(made.stdout)["groups"][0]["members"][0]["tensor"]


class TestBench:
    def test_json_on_stdout_is_pure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_module, "SECONDS", 0.2)
        a, b = save(small_model(), tmp_path / "a.onnx"), save(small_model(size=16), tmp_path / "b.onnx")
        document = json.loads(call("bench", a, b, "--threads", "1", "--json", "-").out)
        assert document["format"] == "conet-onnx-bench/1"
        assert document["a"]["file"] == str(a)
        assert set(document["ratio"]) == {"p50", "low", "high"}

    def test_two_models_end_with_a_verdict(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_module, "SECONDS", 0.2)
        a, b = save(small_model(), tmp_path / "a.onnx"), save(small_model(size=64), tmp_path / "b.onnx")
        result = call("bench", a, b, "--threads", "1")
        assert result.code == 0
        assert f"{b} takes " in result.out
        assert "times as long as" in result.out
        assert "95% interval" in result.out

    def test_one_model_alone_has_no_ratio(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_module, "SECONDS", 0.2)
        result = call("bench", save(small_model(), tmp_path / "a.onnx"), "--threads", "1", "--provider", "cpu")
        assert result.code == 0
        assert "p50" in result.out
        assert "on cpu (1 thread)" in result.err

    def test_an_unknown_provider_is_a_usage_error(self, tmp_path: Path) -> None:
        result = call("bench", save(small_model(), tmp_path / "a.onnx"), "--provider", "abacus")
        assert result.code == 2
        assert "abacus" in only_line(result)
