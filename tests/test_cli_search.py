"""The search as a user meets it: what it says, what it leaves, how it is interrupted and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_support import Result, call, listing, only_line, save, small_model

from conet_onnx.searching import read_run, running

QUICK = "--data digits --budget macs=0.5 --trials 2 --epochs-per-trial 1 --epochs 1 --threads 1"
SLOW = QUICK.replace("--trials 2", "--trials 500")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder with a finished search in `run`, and what it printed."""
    folder = tmp_path_factory.mktemp("searched")
    save(small_model(), folder / "model.onnx")
    before = os.getcwd()
    os.chdir(folder)
    try:
        return folder, call(f"search model.onnx {QUICK} --out run --json out.json")
    finally:
        os.chdir(before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save(small_model(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestOutcome:
    def test_the_files_of_the_contract_are_there(self, searched: tuple[Path, Result]) -> None:
        folder, result = searched
        assert result.code == 0, result.err
        files = set(listing(folder / "run"))
        assert {"best.onnx", "report.html", "trials.db"} <= files
        assert any(file.startswith("pareto/") and file.endswith(".onnx") for file in files)
        assert any(file.startswith("plans/") and file.endswith(".json") for file in files)
        assert not [file for file in files if file.endswith(".part")]

    def test_the_json_is_the_contracts(self, searched: tuple[Path, Result]) -> None:
        found = json.loads((searched[0] / "out.json").read_text())
        assert found["format"] == "conet-onnx-search/1"
        assert found["trials"] == 2
        assert set(found["seconds"]) == {"total", "training", "evaluation", "overhead"}
        for model in (found["source"], found["best"], *found["pareto"]):
            assert {"file", "params", "macs", "bytes", "latency_ms", "validation", "test"} <= set(model)
        assert 2 * found["best"]["macs"] <= found["source"]["macs"]
        assert found["best"]["test"]["top1"] >= 0
        assert all(model["test"] is None for model in found["pareto"])

    def test_it_says_up_front_what_will_happen(self, searched: tuple[Path, Result]) -> None:
        err = searched[1].err
        for expected in (
            "Searching widths for model.onnx within macs=0.5, on digits",
            "training and",
            "validation images",
            "Source: 590 parameters",
            "macs at most 15.6 k",
            "tried on training images",
            "2 trials of 1 epoch, then 1 epoch on the best",
            "all in run",
            "going by some steps of training",
        ):
            assert expected in err
        assert err.index("going by some steps of training") < err.index("trial 1 of 2")
        assert "is said soon" not in err

    def test_it_estimates_the_time_once_the_first_trial_is_known(
        self, searched: tuple[Path, Result], capsys: pytest.CaptureFixture[str]
    ) -> None:
        from conet_onnx.cli.search import Show
        from conet_onnx.data import load_data

        with Show(searched[0] / "run", load_data("digits"), "a model") as show:
            show("trial 1 of 9", 0, 9, None)
            show("trial 1 of 9", 0.1, 9, 5000.0)  # it has paid for imports, and little else
            show("trial 2 of 9", 1, 9, 130.0)
            show("trial 3 of 9", 2, 9, 110.0)
            show("measuring latency", 9, 9, 0.0)
        lines = capsys.readouterr().err.splitlines()
        assert lines[-5:] == [
            "trial 1 of 9",
            "The first trial is done: about 2 min 10 s to go.",
            "trial 2 of 9 (2 min 10 s left)",
            "trial 3 of 9 (1 min 50 s left)",
            "measuring latency",
        ]

    def test_it_ends_with_source_against_best_and_what_next(self, searched: tuple[Path, Result]) -> None:
        out = searched[1].out
        for expected in ("source", "best", "test accuracy", "parameters", "MACs", "file size", "latency p50"):
            assert expected in out
        for expected in (
            "2 trials in ",
            "run/best.onnx",
            "run/report.html",
            "conet-onnx bench model.onnx run/best.onnx",
        ):
            assert expected in out

    def test_it_says_which_widths_run_fast(self, searched: tuple[Path, Result]) -> None:
        from conet_onnx.cli.search import _fast

        folder, result = searched
        settings = read_run(folder / "run").settings
        assert settings["multiple"] == "auto"
        assert [line for line in result.err.splitlines() if line.startswith("Widths: ")] == list(_fast(settings))
        (line,) = _fast({"multiple": "auto", "multiples": {"w0": 16, "w1": 4, "w2": 8, "w3": 4}})
        assert line.startswith("Widths: multiples of 4, 8 or 16, ")
        assert _fast({"multiple": "none", "multiples": None}) == _fast({"multiple": 4, "multiples": {"w0": 4}}) == ()

    @pytest.mark.parametrize(
        ("macs", "latency", "multiple", "said"),
        [
            (0.5, 0.9, "none", True),
            (0.5, 0.66, "none", True),
            (0.5, 0.6, "none", False),
            (0.5, 0.9, "auto", True),
            (0.5, 0.9, 4, False),
            (0.95, 1.0, "none", False),
        ],
    )
    def test_where_time_falls_by_less_than_macs_it_says_what_to_ask_for(
        self, searched: tuple[Path, Result], macs: float, latency: float, multiple: str | int, *, said: bool
    ) -> None:
        from conet_onnx.cli.search import _faster

        run = read_run(searched[0] / "run")
        source = replace(run.source, macs=1000)
        run = replace(run, latency={"p50": latency}, settings={**run.settings, "multiple": multiple})
        assert bool(line := _faster(run, source, replace(source, macs=int(1000 * macs)))) == said
        assert not said or (f"×{macs:.2f}" in line and f"×{latency:.2f}" in line)
        assert ("--multiple auto" in line) == (said and multiple == "none")

    def test_the_best_is_the_source_resized_by_its_plan(self, searched: tuple[Path, Result]) -> None:
        folder, _ = searched
        plan = folder / "run" / "plans" / "best.json"
        result = call("verify", folder / "model.onnx", folder / "run" / "best.onnx", "--plan", plan)
        assert result.code == 0, result.err

    def test_the_report_is_rebuilt(self, searched: tuple[Path, Result]) -> None:
        page = searched[0] / "run" / "report.html"
        before = page.read_bytes()
        page.unlink()
        result = call("report", searched[0] / "run")
        assert result.code == 0
        assert f"Written: {page}" in result.out
        assert page.read_bytes() == before


class TestRequest:
    def test_json_on_stdout_is_pure(self, folder: Path) -> None:
        result = call(f"search model.onnx {QUICK} --json - --trials 1 --epochs 0")
        assert json.loads(result.out)["trials"] == 1
        assert (folder / "runs" / "model" / "best.onnx").exists()

    def test_an_existing_folder_is_refused(self, folder: Path) -> None:
        (folder / "run").mkdir()
        result = call(f"search model.onnx {QUICK} --out run")
        assert result.code == 2
        assert "--resume" in only_line(result)

    @pytest.mark.parametrize(
        ("option", "expected"),
        [
            ("--algorithm annael", "anneal"),
            ("--algorithm conet-sa --option gama=1", "did you mean 'gamma'"),
            ("--algorithm network-adjustment --cost time", "macs, latency"),
            ("--algorithm random --table t.json", "latency table"),
            ("--multiple some", "neither auto, none nor"),
            ("--cost macs", "no option 'cost'"),
            ("--backend jax", "jax"),
            ("--transfer magic", "magic"),
            ("--storage nowhere", "not the URL of a database"),
            ("--storage sqlite:///x.db --time-limit 9s", "leave one out"),
            ("--jobs 0", "--jobs"),
            ("--jobs 2 --workers 0", "--workers"),
            ("--trials 0", "--trials"),
            ("--epochs -1", "--epochs"),
            ("--epochs-per-trial 0", "--epochs-per-trial"),
            ("--time-limit soon", "90s, 10min or 2h"),
            ("--time-limit 0", "90s, 10min or 2h"),
            ("--seed many", "--seed"),
            ("--provider abacus", "abacus"),
            ("--freeze w99", "w99"),
            ("--out model.onnx/run", "model.onnx/run"),
        ],
    )
    def test_what_cannot_be_is_one_line_and_writes_nothing(self, folder: Path, option: str, expected: str) -> None:
        before = listing(folder)
        result = call(f"search model.onnx {QUICK} {option}")
        assert (result.code, result.out) == (2, "")
        assert expected in only_line(result)
        assert listing(folder) == before

    @pytest.mark.parametrize("text", ["0.5", "90", "90s", "1.5min", "2m", "1h"])
    def test_a_time_may_be_written_in_units(self, folder: Path, text: str) -> None:
        assert "is not a time" not in call(f"search missing.onnx {QUICK} --time-limit {text}").err

    def test_the_defaults_that_help_tells_are_the_searchs(self) -> None:
        from conet_onnx.searching.algorithms import find_method

        auto = find_method("auto")
        text = " ".join(call("search --help").out.split())
        for option, default in (
            ("--trials N Sets of widths to try", auto.trials),
            ("--epochs-per-trial E Training of each", auto.epochs_per_trial),
            ("--epochs E Further training of the best", auto.epochs),
        ):
            assert f"{option} (default: {default})" in text


class TestTogether:
    def test_two_jobs_are_one_search_and_say_so(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[int, int]] = []

        def noted(processes: int, threads: int, _: int) -> str:
            asked.append((processes, threads))
            return "it is crowded"

        monkeypatch.setattr(running, "crowded", noted)
        lines = [f"search model.onnx {QUICK} --trials 3 --jobs 2 --out {name}" for name in ("two", "one")]
        two = call(lines[0])
        assert two.code == 0, two.err
        assert "2 trials at a time, in 2 processes of this host." in two.err
        assert asked == [(2, 1)]
        assert "Warning: it is crowded" in two.err
        assert "3 trials in " in two.out
        assert ", 2 at a time: training" in two.out
        assert not [file for file in listing(folder / "two") if file.endswith((".part", ".npy"))]
        one = call(f"{lines[1]} --workers 1")
        assert one.code == 0, one.err
        a, b = (read_run(folder / name) for name in ("two", "one"))
        alike = [[replace(t, seconds=0.0, evaluation_seconds=0.0) for t in run.trials] for run in (a, b)]
        assert alike[0] == alike[1]
        assert (folder / "two" / "best.onnx").read_bytes() == (folder / "one" / "best.onnx").read_bytes()

    def test_two_searches_with_one_storage_share_it_and_a_third_has_nothing_to_do(self, folder: Path) -> None:
        line = f"search model.onnx {QUICK} --trials 4 --jobs 2 --workers 1 --storage sqlite:///s.db --out run"
        both = [started(folder, line) for _ in range(2)]
        said = [process.communicate(timeout=240) for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        run = read_run(folder / "run")
        assert [trial.number for trial in run.trials] == [0, 1, 2, 3]
        assert {trial.state for trial in run.trials} == {"complete"}
        tables = [out.splitlines()[1:7] for out, _ in said]
        assert tables[0] == tables[1]
        before = (folder / "run" / "best.onnx").stat().st_mtime_ns
        third = call(line)
        assert third.code == 0, third.err
        assert (folder / "run" / "best.onnx").stat().st_mtime_ns == before
        other = call(f"search model.onnx {QUICK} --trials 4 --jobs 2 --out run --resume")
        assert "storage" in other.err.splitlines()[-1]

    def test_a_method_that_tries_one_at_a_time_says_so(self, folder: Path) -> None:
        line = f"search model.onnx {QUICK} --trials 1 --epochs 0 --algorithm conet-greedy --option smallest=2 "
        result = call(line + "--option start=4 --jobs 2 --out run")
        assert result.code == 0, result.err
        assert "conet-greedy tries 1 at a time, each trial following from the one before: --jobs 2" in result.err


def started(folder: Path, line: str) -> subprocess.Popen[str]:
    # A shell gives background jobs a SIGINT that is ignored, and children inherit it.
    return subprocess.Popen(
        [sys.executable, "-m", "conet_onnx", *line.split()],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def interrupted(process: subprocess.Popen[str]) -> Result:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


class TestInterruption:
    def test_while_a_trial_trains_it_keeps_what_is_done_and_goes_on(self, folder: Path) -> None:
        def finished() -> int:
            """Those that need not run again: what is evaluated may be stopped before it is judged."""
            return sum(t.state in ("complete", "evaluated") for t in read_run(folder / "run").trials)

        process = started(folder, f"search model.onnx {SLOW} --out run")
        wait_for(lambda: (folder / "run" / "run.json").exists() and finished() >= 2, process)
        result = interrupted(process)
        assert (result.code, result.out) == (130, "")
        assert "Traceback" not in result.err
        last = result.err.splitlines()[-1]
        assert last.startswith("conet-onnx: error: interrupted;")
        kept = finished()
        assert f"{kept} finished trials kept in run" in last
        assert last.endswith(f"conet-onnx search model.onnx {SLOW} --out run --resume")
        left = set(listing(folder / "run"))
        assert not {"best.onnx", "report.html"} & left
        assert not [file for file in left if file.endswith(".part")]
        before = {t.number: t for t in read_run(folder / "run").trials if t.state == "complete"}
        again = call(f"search model.onnx {SLOW} --out run --resume --trials {kept + 1}")
        assert again.code == 0, again.err
        after = {t.number: t for t in read_run(folder / "run").trials}
        assert before.items() <= after.items()
        assert len(after) == kept + 1
        assert (folder / "run" / "best.onnx").exists()

    def test_before_anything_is_written_nothing_is_written(self, folder: Path) -> None:
        (folder / "slow.py").write_text(
            "import time\ndef data():\n    open('asked', 'w').close()\n    time.sleep(60)\n"
        )
        process = started(folder, f"search model.onnx {SLOW.replace('digits', 'slow:data')} --out run")
        wait_for((folder / "asked").exists, process)
        result = interrupted(process)
        assert (result.code, result.out) == (130, "")
        assert only_line(result) == "conet-onnx: error: interrupted; nothing was written."
        assert not (folder / "run").exists()

    def test_of_other_commands_is_one_line(self, folder: Path) -> None:
        os.mkfifo(folder / "slow.onnx")
        process = started(folder, "analyze slow.onnx --json out.json")
        time.sleep(1.0)
        result = interrupted(process)
        assert (result.code, result.out) == (130, "")
        assert only_line(result) == "conet-onnx: error: interrupted; nothing was written."
        assert not (folder / "out.json").exists()
