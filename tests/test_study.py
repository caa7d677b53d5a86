"""The record of a search: trials in a study, the run beside them, one process at a time."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conet_onnx.ahead import Ahead
from conet_onnx.errors import DataError, OutputError, UsageError
from conet_onnx.records.database import undisturbed
from conet_onnx.records.run import ModelRecord, Run, read_run, write_run
from conet_onnx.records.study import TrialStudy, locked, read_trials
from conet_onnx.records.trial import Trial

TRIAL = Trial(0, {"w0": 12, "w1": 20}, params=10, macs=2**40, bytes=40, parent=None, reason="scaled: w0 16→12")
DONE = replace(
    TRIAL,
    state="complete",
    validation={"top1": 0.5, "loss": 0.1 + 0.2},
    objective=1 / 3,
    accepted=True,
    seconds=1.5,
    evaluation_seconds=0.25,
)


def run_in(folder: Path) -> Run:
    return Run(
        directory=folder,
        source=ModelRecord("models/net.onnx", 1, 2, 3, validation={"top1": 0.9}),
        widths={"w0": {"name": "conv", "size": 16}},
        settings={"seed": 0},
        budget={"macs": 1.5},
        best=ModelRecord(str(folder / "best.onnx"), 1, 2, 3, 0.5, {"top1": 0.9}, {"top1": 0.8}, {"w0": 12}, 3),
        pareto=(ModelRecord(str(folder / "pareto" / "3.onnx"), 1, 2, 3),),
        seconds={"total": 2.0},
    )


class TestTheFile:
    """It is written ahead of itself: the log beside it holds what came last, until the study is closed."""

    def noted(self, study: TrialStudy, number: int) -> None:
        study.begin(replace(TRIAL, number=number))
        study.note(replace(DONE, number=number))
        study.finish(replace(DONE, number=number))

    def test_others_read_it_meanwhile_and_it_is_one_plain_file_afterwards(self, tmp_path: Path) -> None:
        file = tmp_path / "trials.db"
        study = TrialStudy(file)
        self.noted(study, 0)
        assert read_trials(file) == (DONE,)
        self.noted(study, 1)
        study.close()
        assert [entry.name for entry in tmp_path.iterdir()] == ["trials.db"]
        assert sqlite3.connect(file).execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert len(read_trials(file)) == 2
        assert [entry.name for entry in tmp_path.iterdir()] == ["trials.db"]

    def test_what_a_dead_process_wrote_is_in_the_file_and_its_log(self, tmp_path: Path) -> None:
        study = TrialStudy(tmp_path / "trials.db")
        self.noted(study, 0)
        dead = tmp_path / "dead"
        dead.mkdir()
        for file in [entry for entry in tmp_path.iterdir() if entry.is_file()]:
            shutil.copy(file, dead / file.name)  # as they are in the middle of it
        self.noted(study, 1)
        study.close()
        again = TrialStudy(dead / "trials.db")
        assert again.trials() == (DONE,)
        self.noted(again, 1)
        again.close()
        assert len(read_trials(dead / "trials.db")) == 2

    def test_of_a_trial_only_its_outcome_waits_for_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = TrialStudy(tmp_path / "trials.db")
        levels: dict[str, set[str]] = {}
        connect = sqlite3.connect
        now = ""

        class Seen(sqlite3.Connection):
            def commit(self) -> None:
                (level,) = self.execute("PRAGMA synchronous").fetchone()
                levels.setdefault(now, set()).add({1: "normal", 2: "full"}[level])
                super().commit()

        monkeypatch.setattr(sqlite3, "connect", lambda *a, **how: connect(*a, **how, factory=Seen))
        for now, act in (("begin", study.begin), ("note", study.note), ("finish", study.finish)):
            act(DONE if now != "begin" else TRIAL)
        monkeypatch.undo()
        study.close()
        assert levels == {"begin": {"normal"}, "note": {"full"}, "finish": {"normal"}}


class TestStudy:
    def test_what_is_noted_is_read_back_exactly(self, tmp_path: Path) -> None:
        failed = replace(DONE, number=1, parent=0, state="failed", objective=math.nan, accepted=False)
        running = replace(TRIAL, number=2, parent=0)
        study = TrialStudy(tmp_path / "trials.db", bounds={"w0": (1, 32)})
        for trial in (DONE, failed):
            study.begin(replace(TRIAL, number=trial.number, parent=trial.parent))
            study.note(trial)
            study.finish(trial)
        study.begin(running)
        study.close()
        first, second, third = read_trials(tmp_path / "trials.db")
        assert (first, third) == (DONE, running)
        assert second.state == "failed"
        assert math.isnan(second.objective)
        assert replace(second, objective=0.0) == replace(failed, objective=0.0)

    def test_what_is_noted_and_not_told_is_evaluated(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        study = TrialStudy(tmp_path / "trials.db")
        study.begin(TRIAL)
        monkeypatch.setattr(study._storage, "set_trial_state_values", lambda *_: None)
        study.note(DONE)
        study.finish(DONE)
        study.close()
        (trial,) = read_trials(tmp_path / "trials.db")
        assert trial == replace(DONE, state="evaluated", objective=trial.objective, accepted=False)
        assert math.isnan(trial.objective)

    def test_optuna_reads_it(self, tmp_path: Path) -> None:
        import optuna

        study = TrialStudy(tmp_path / "trials.db", bounds={"w0": (1, 32)})
        study.begin(TRIAL)
        study.note(DONE)
        study.finish(DONE)
        study.close()
        storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/trials.db")
        best = optuna.load_study(study_name=None, storage=storage).best_trial
        storage.engine.dispose()
        assert best.params == TRIAL.widths
        assert best.distributions["w0"] == optuna.distributions.IntDistribution(1, 32)
        assert best.value == DONE.objective
        assert best.user_attrs["macs"] == TRIAL.macs

    def test_one_that_another_thread_opened_is_as_good(self, tmp_path: Path) -> None:
        study = Ahead(lambda: TrialStudy(tmp_path / "trials.db")).result()
        study.begin(TRIAL)
        study.note(DONE)
        study.finish(DONE)
        study.close()
        assert read_trials(tmp_path / "trials.db") == (DONE,)
        assert os.listdir(tmp_path) == ["trials.db"]

    def test_opening_says_nothing(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        TrialStudy(tmp_path / "trials.db").close()
        assert capfd.readouterr() == ("", "")

    def test_a_folder_may_have_any_name(self, tmp_path: Path) -> None:
        folder = tmp_path / "a ?b=%20{c}#d"
        folder.mkdir()
        TrialStudy(folder / "trials.db").close()
        assert read_trials(folder / "trials.db") == ()
        assert os.listdir(folder) == ["trials.db"]

    @pytest.mark.parametrize("content", [b"", b"no database" * 1000, b"SQLite format 3\x00" + bytes(4096)])
    def test_a_broken_file_is_a_data_error_and_is_left_alone(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "trials.db"
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"trials\.db"):
            read_trials(file)
        assert file.read_bytes() == content

    def test_a_full_disk_is_an_output_error_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(sqlite3, "connect", full)
        with pytest.raises(OutputError, match="full"):
            TrialStudy(tmp_path / "trials.db")
        assert not list(tmp_path.iterdir())

    def test_a_missing_file_is_a_data_error_and_is_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="missing"):
            read_trials(tmp_path / "trials.db")
        assert not list(tmp_path.iterdir())


class TestInterrupts:
    def test_what_is_being_written_is_written_to_the_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        study = TrialStudy(tmp_path / "trials.db")
        create = study.storage.create_new_trial

        def interrupted(*how: Any) -> int:
            signal.raise_signal(signal.SIGINT)
            return create(*how)

        monkeypatch.setattr(study.storage, "create_new_trial", interrupted)
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            study.begin(Trial(0, {"w": 4}, 1, 1, 1, None, ""))
        assert signal.getsignal(signal.SIGINT) is handler
        assert [trial.number for trial in study.trials()] == [0]
        study.close()

    def test_a_second_one_does_not_wait(self) -> None:
        reached = []

        def twice() -> None:
            with undisturbed():
                signal.raise_signal(signal.SIGINT)
                reached.append("held back")
                signal.raise_signal(signal.SIGINT)
                reached.append("held back too")

        with pytest.raises(KeyboardInterrupt):
            twice()
        assert reached == ["held back"]

    def test_within_another_it_waits_for_the_outer_one(self) -> None:
        reached = []

        def nested() -> None:
            with undisturbed():
                with undisturbed():
                    signal.raise_signal(signal.SIGINT)
                    reached.append("inner")
                reached.append("outer")

        with pytest.raises(KeyboardInterrupt):
            nested()
        assert reached == ["inner", "outer"]


class TestRun:
    def test_it_is_read_back_exactly(self, tmp_path: Path) -> None:
        run = run_in(tmp_path)
        write_run(run)
        TrialStudy(tmp_path / "trials.db").close()
        assert read_run(tmp_path) == run

    def test_it_survives_a_move(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        write_run(run_in(tmp_path / "a"))
        TrialStudy(tmp_path / "a" / "trials.db").close()
        (tmp_path / "a").rename(tmp_path / "b")
        assert read_run(tmp_path / "b") == run_in(tmp_path / "b")

    def test_its_json_is_the_contracts(self, tmp_path: Path) -> None:
        run = replace(run_in(tmp_path), trials=(DONE, replace(TRIAL, number=1)))
        document = json.loads(json.dumps(run.as_json(), allow_nan=False))
        assert document["format"] == "conet-onnx-search/1"
        assert document["trials"] == 1
        for model in (document["source"], document["best"], *document["pareto"]):
            assert {"file", "params", "macs", "bytes", "latency_ms", "validation", "test"} <= set(model)
        assert document["best"]["file"] == str(tmp_path / "best.onnx")
        assert document["source"]["test"] is None
        assert Trial.from_json(document["history"][0]) == DONE
        assert document["history"][1]["objective"] is None

    def test_a_folder_without_a_run_is_a_usage_error(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "missing"):
            with pytest.raises(UsageError, match=r"run\.json"):
                read_run(folder)

    @pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": "conet-onnx-search/2"}', "\x00"])
    def test_a_broken_run_is_a_data_error(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "run.json").write_text(text)
        TrialStudy(tmp_path / "trials.db").close()
        with pytest.raises(DataError, match=r"run\.json"):
            read_run(tmp_path)


class TestLock:
    HOLD = "import sys, time; from pathlib import Path; from conet_onnx.records.study import locked\n"
    HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"

    def test_a_folder_is_one_processs_until_that_is_killed(self, tmp_path: Path) -> None:
        with subprocess.Popen([sys.executable, "-c", self.HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
            assert holder.stdout
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(UsageError, match="in use"), locked(tmp_path):
                pass
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with locked(tmp_path):
                pass

    def test_it_is_free_again_after_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt), locked(tmp_path):
            raise KeyboardInterrupt
        with locked(tmp_path):
            pass
