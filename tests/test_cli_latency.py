"""`profile` and `resize --budget latency` from the command line, on a machine whose times follow from a law."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_support import Result, call, listing, save, small_model
from latency_world import BLOCK, World
from test_search_latency import touch

from conet_onnx.analysis import analyze
from conet_onnx.errors import ModelError
from conet_onnx.latency.operators import find_operators
from conet_onnx.latency.profiling import Profile
from conet_onnx.latency.table import FORMAT, Host, Table
from conet_onnx.latency.timing import Ratio
from conet_onnx.searching.trial import Workshop

ROOT = Path(__file__).resolve().parent.parent
MODEL = "digits_resnet8.onnx"
LINE = f"{MODEL} --provider cpu --threads 1"


class Machine:
    """Stands in for onnxruntime's clock wherever the commands measure; `slower` multiplies what results take."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.slower = 1.0
        self.drifts: list[float] = []
        self.compared = 0
        self.looked = 0

    def run(self, profile: Profile, progress: Any = None) -> Table:
        self.world = World(profile.analysis, profile.operators, moods=self.drifts)
        how: dict[str, Any] = {
            "compare": self.world.compare,
            "measure": self.world.measure,
            "time_all": self.world.time_all,
        }
        return RUN(profile, progress, **how)

    def compare(self, a: Any, b: Any, **how: Any) -> Any:
        self.compared += 1
        if self.world is None or self.world.analysis.graph is not a:
            analysis = analyze(a)
            self.world = World(analysis, find_operators(analysis, provider="cpu", threads=1))
        found = self.world.compare(a, b, **how)
        ratio = Ratio(*(self.slower * x for x in (found.ratio.p50, found.ratio.low, found.ratio.high)))
        return replace(found, b=replace(found.b, p50_ms=found.b.p50_ms * self.slower), ratio=ratio)


RUN = Profile.run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(Profile, "run", lambda self, progress=None: made.run(self, progress))
    monkeypatch.setattr("conet_onnx.latency.compare", made.compare)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "models" / MODEL, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def profiled(line: str = "") -> Result:
    made = call(f"profile {LINE} -o t.json {line}")
    assert made.code == 0, made.err
    return made


def refused(folder: Path, code: int, line: str) -> str:
    before = listing(folder)
    made = call(line)
    assert made.code == code, made.err
    assert made.out == ""
    assert "Traceback" not in made.err
    assert listing(folder) == before
    return made.err


class TestProfile:
    def test_it_writes_a_table_and_says_how_long_it_takes_and_how_far_it_is_off(
        self, folder: Path, machine: Machine
    ) -> None:
        made = profiled()
        document = json.loads((folder / "t.json").read_text())
        assert document["format"] == FORMAT
        assert {"host", "provider", "threads", "onnxruntime", "kinds", "models"} <= set(document)
        assert (document["provider"], document["threads"]) == ("cpu", 1)
        assert "operators of" in made.err
        assert "whole models, about" in made.err
        assert "Spearman's rank correlation" in made.out
        assert "nchwc.Conv" in made.out
        assert "Warning" not in made.err
        for row in (line for line in made.out.splitlines() if "conet-onnx" in line):
            assert row.strip().startswith("conet-onnx bench")

    def test_what_a_table_holds_is_not_measured_again(self, folder: Path, machine: Machine) -> None:
        profiled()
        first = (folder / "t.json").read_text()
        made = profiled("--table t.json")
        assert "known already" in made.err
        assert json.loads((folder / "t.json").read_text())["models"] == json.loads(first)["models"]

    def test_a_machine_that_was_not_at_peace_is_told_of(self, folder: Path, machine: Machine) -> None:
        machine.drifts = [2.0**k for k in range(5)]
        made = profiled()
        assert "Warning: the source's own time moved by a factor of 2.00" in made.err
        (model,) = json.loads((folder / "t.json").read_text())["models"].values()
        assert model["drift"] == pytest.approx(2.0)

    def test_a_failure_leaves_the_table_that_was_there(
        self, folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "t.json").write_text("precious")

        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("conet_onnx.files.os.fsync", full)
        assert "No space left" in refused(folder, 2, f"profile {LINE} -o t.json")

    @pytest.mark.parametrize(
        ("line", "code", "expected"),
        [
            (f"profile {MODEL}", 2, "--output"),
            (f"profile {MODEL} -o {MODEL}", 2, "would overwrite"),
            (f"profile {MODEL} -o ./{MODEL}", 2, "would overwrite"),
            (f"profile {MODEL} -o nowhere/t.json", 2, "no folder"),
            ("profile missing.onnx -o t.json", 3, "missing.onnx"),
            (f"profile {MODEL} -o t.json --threads 0", 2, "--threads"),
            (f"profile {MODEL} -o t.json --provider magic", 2, "magic"),
            (f"profile {LINE} -o t.json --table missing.json", 3, "missing.json"),
            (f"profile {LINE} -o t.json --table {MODEL}", 3, "not a latency table"),
        ],
    )
    def test_what_makes_no_sense_is_refused_before_anything_is_written(
        self, folder: Path, machine: Machine, line: str, code: int, expected: str
    ) -> None:
        assert expected in refused(folder, code, line)

    def test_a_table_of_another_machine_does_not_mix_with_new_times(self, folder: Path, machine: Machine) -> None:
        here = Host.here("cpu", 1)
        Table(Host("another", 96, here.provider, here.threads, here.onnxruntime), 0.0).save(folder / "other.json")
        assert "do not mix" in refused(folder, 2, f"profile {LINE} -o t.json --table other.json")
        Table(Host.here("cpu", 2), 0.0).save(folder / "two.json")
        assert "--threads 2" in refused(folder, 2, f"profile {LINE} -o t.json --table two.json")


def resized(line: str) -> Result:
    return call(f"resize {LINE} -o out.onnx --no-verify {line}")


def measured(line: str) -> Result:
    return call(f"resize {MODEL} --provider cpu -o out.onnx {line}")


class TestBudget:
    def test_it_is_met_by_what_is_measured_from_a_table_without_looking_for_operators(
        self, folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        profiled()
        monkeypatch.setattr("conet_onnx.latency.operators.find_operators", None)
        made = resized("--budget latency=0.6 --table t.json --plan plan.json")
        assert made.code == 0, made.err
        assert machine.compared == 1
        ratio = float(made.out.split("×")[1].split()[0])
        assert 0.4 < ratio <= 0.6
        assert "predicted ×" in made.out
        assert (folder / "out.onnx").exists()
        assert made.err == ""

    def test_without_a_table_it_profiles_first_and_says_so(self, folder: Path, machine: Machine) -> None:
        made = resized("--budget latency=0.6")
        assert made.code == 0, made.err
        assert "No --table: profiling" in made.err

    def test_what_is_slower_than_predicted_is_chosen_again(self, folder: Path, machine: Machine) -> None:
        profiled()
        machine.slower = 1.2
        made = resized("--budget latency=0.6 --table t.json")
        assert made.code == 0, made.err
        assert machine.compared > 1
        assert "chosen again" in made.out
        assert float(made.out.split("×")[1].split()[0]) <= 0.6

    def test_seconds_and_other_limits_hold_too(self, folder: Path, machine: Machine) -> None:
        profiled()
        (model,) = json.loads((folder / "t.json").read_text())["models"].values()
        most = 0.7 * model["source_us"]
        made = resized(f"--budget latency={most:.1f}us --budget params=0.4 --table t.json")
        assert made.code == 0, made.err
        now = float(made.out.split(" ms, now ")[1].split(" ms")[0])
        assert now <= most / 1e3 + 5e-4
        shown = next(line for line in made.out.splitlines() if line.strip().startswith("parameters"))
        assert float(shown.split()[-1].rstrip("%")) <= 40

    def test_widths_are_what_the_machine_runs_fast_unless_the_user_says_otherwise(
        self, folder: Path, machine: Machine
    ) -> None:
        profiled()
        assert resized("--budget latency=0.6 --table t.json --plan plan.json").code == 0
        sizes = [w["to"] for w in json.loads((folder / "plan.json").read_text())["widths"].values()]
        assert all(size % BLOCK == 0 or size < BLOCK for size in sizes)

    def test_what_cannot_be_met_names_the_nearest_and_writes_nothing(self, folder: Path, machine: Machine) -> None:
        profiled()
        line = refused(folder, 4, f"resize {LINE} -o out.onnx --budget latency=0.001us --table t.json")
        assert "cannot be met" in line
        assert "latency=" in line
        machine.slower = 50.0
        line = refused(folder, 4, f"resize {LINE} -o out.onnx --budget latency=0.6 --table t.json")
        assert "is latency=" in line

    def test_a_multiple_of_the_users_own(self, folder: Path, machine: Machine) -> None:
        profiled()
        assert resized("--budget latency=0.6 --table t.json --multiple 24 --plan plan.json").code == 0
        changes = json.loads((folder / "plan.json").read_text())["widths"].values()
        assert all(w["to"] % 24 == 0 or w["to"] == w["from"] or w["to"] == 16 for w in changes)

    @pytest.mark.parametrize("table", ["", "--table t.json --threads 1"])
    @pytest.mark.parametrize("how", ["--budget macs=0.5", "--scale 0.7"])
    def test_auto_is_a_multiple_for_all(self, folder: Path, machine: Machine, table: str, how: str) -> None:
        profiled()
        made = call(
            f"resize {MODEL} -o out.onnx --provider cpu --no-verify {how} {table} --multiple auto --plan plan.json"
        )
        assert made.code == 0, made.err
        changes = json.loads((folder / "plan.json").read_text())["widths"].values()
        assert changes
        assert all(w["to"] % BLOCK == 0 or w["to"] < BLOCK for w in changes)

    def test_fewer_macs_that_take_longer_are_warned_of(self, folder: Path, machine: Machine) -> None:
        profiled()
        machine.slower = 3.0
        made = resized("--budget latency=3 --budget macs=0.7 --table t.json")
        assert made.code == 0, made.err
        assert "Warning: The result has fewer MACs (×0." in made.err
        machine.slower = 1.0
        assert "Warning" not in resized("--budget latency=3 --budget macs=0.7 --table t.json").err

    @pytest.mark.parametrize("line", ["--scale 0.7", "--budget macs=0.7", "--widths w0=12"])
    def test_they_are_without_a_limit_on_latency_too(self, folder: Path, machine: Machine, line: str) -> None:
        """What onnxruntime's own profile says took longer is named."""
        machine.slower = 9.0
        made = measured(f"{line} --threads 1")
        assert made.code == 0, made.err
        assert "Warning: The result has fewer MACs (×0." in made.err
        assert "Layers that take longer: " in made.err
        (row,) = (row.split() for row in made.out.splitlines() if row.startswith("latency p50"))
        assert float(row[-1].rstrip("%")) > 200
        machine.slower = 1.0
        made = measured(f"{line} --threads 1")
        assert "Warning" not in made.err
        assert "latency p50" in made.out

    @pytest.mark.parametrize("line", ["--scale 0.7 --no-verify", "--scale 2", "--scale 1"])
    def test_nothing_is_measured_without_proof_or_where_macs_do_not_fall(
        self, folder: Path, machine: Machine, line: str
    ) -> None:
        made = measured(line)
        assert made.code == 0, made.err
        assert machine.compared == 0
        assert "latency p50" not in made.out

    def test_what_cannot_be_measured_is_written_all_the_same(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any, **__: Any) -> Any:
            raise ModelError("it does not run")

        monkeypatch.setattr("conet_onnx.latency.compare", fails)
        made = measured("--scale 0.7")
        assert made.code == 0, made.err
        assert "Warning: latency was not measured: it does not run" in made.err
        assert "latency p50" not in made.out
        assert Path("out.onnx").exists()

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("--budget macs=0.5 --multiple some", "neither auto, none nor"),
            ("--budget macs=0.5 --multiple 0", "neither auto, none nor"),
            ("--budget latency=0.5 --allocation uniform", "--allocation uniform"),
            ("--budget macs=0.5 --table t.json", "--table goes with"),
            ("--budget macs=0.5 --no-verify --threads 1", "--no-verify measures none"),
            ("--scale 0.5 --no-verify --threads 1", "--no-verify measures none"),
            ("--budget latency=5", None),
            ("--budget latency=5MB", "us, ms, s"),
            ("--budget latency=50", "us, ms, s"),
            ("--budget latency=0", "positive"),
            ("--budget latency=fast", "latency=5ms"),
            ("--budget latency=0.5 --budget latency=5ms", "twice"),
        ],
    )
    def test_what_makes_no_sense(self, folder: Path, machine: Machine, line: str, expected: str | None) -> None:
        if expected is None:  # five times the source's: nothing is to be done
            assert call(f"resize {MODEL} --provider cpu -o out.onnx --no-verify {line} --threads 1").code == 0
        else:
            assert expected in refused(folder, 2, f"resize {MODEL} -o out.onnx {line}")

    def test_a_table_of_other_threads_is_refused(self, folder: Path, machine: Machine) -> None:
        profiled()
        assert "--threads 1" in refused(
            folder, 2, f"resize {MODEL} --provider cpu -o out.onnx --budget latency=0.5 --table t.json"
        )

    def test_a_table_of_other_models_is_refused(self, folder: Path, machine: Machine) -> None:
        Table(Host.here("cpu", 1), 0.0).save(folder / "empty.json")
        save(small_model(), folder / "small.onnx")
        assert "profile the model" in refused(
            folder,
            2,
            "resize small.onnx --provider cpu --threads 1 -o out.onnx --budget latency=0.5 --table empty.json",
        )


class TestSearch:
    @pytest.fixture(autouse=True)
    def cheap(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Workshop, "train", touch)
        monkeypatch.setattr("conet_onnx.searching.answering.compare", machine.compare)

    def searched(self, line: str, budget: str = "latency=0.6") -> Result:
        return call(f"search {LINE} --data digits --budget {budget} --trials 3 --epochs 1 --out run {line}")

    def test_it_is_met_from_a_table_by_what_is_measured(self, folder: Path, machine: Machine) -> None:
        profiled()
        made = self.searched("--table t.json --algorithm compound")
        assert made.code == 0, made.err
        assert "Budget: latency at most" in made.err
        assert "Latency: " in made.out
        assert "was asked for" in made.out
        document = json.loads((folder / "run" / "run.json").read_text())
        assert document["latency"]["p50"] <= 0.6
        assert document["best"]["latency_ms"] <= document["budget"]["latency"]
        assert call("report run").code == 0
        assert "does not meet the budget" not in (folder / "run" / "report.html").read_text()

    def test_without_a_table_it_profiles_first_and_says_so_and_resumes_with_it(
        self, folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = self.searched("--algorithm compound")
        assert made.code == 0, made.err
        assert "first, for there is no --table" in made.err
        monkeypatch.setattr(Profile, "run", None)
        again = call(
            f"search {LINE} --data digits --budget latency=0.6 --trials 4 --epochs 1 --out run --resume "
            "--algorithm compound"
        )
        assert again.code == 0, again.err

    def test_what_cannot_be_met_as_measured_has_the_contract_s_exit_code(self, folder: Path, machine: Machine) -> None:
        profiled()
        machine.slower = 50.0
        made = self.searched("--table t.json --algorithm compound")
        assert made.code == 4
        assert "the nearest that was reached is latency=" in made.err
        assert made.out == ""

    def test_fewer_macs_that_take_longer_are_warned_of(self, folder: Path, machine: Machine) -> None:
        profiled()
        machine.slower = 3.0
        made = self.searched("--table t.json --algorithm compound --budget latency=3", budget="macs=0.7")
        assert made.code == 0, made.err
        assert "Warning: the best model has fewer MACs" in made.err
