"""The search as a whole, with a training that costs nothing: what it writes, what it refuses, what it never reads."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conet_onnx as co
from conet_onnx.data import DataSet, Split, load_data
from conet_onnx.data.dataset import Splits
from conet_onnx.errors import BudgetUnreachable, DataError, OutputError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.records.run import Run
from conet_onnx.records.trial import Trial
from conet_onnx.searching import SearchResult, answering, job, read_run
from conet_onnx.searching.answering import front
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.loop import Clock
from conet_onnx.searching.task import Report
from conet_onnx.searching.trial import Workshop

MODEL = Path(__file__).parent.parent / "models" / "digits_resnet8.onnx"


class Untouchable(Exception):
    """The test split was read too early."""


def touch(
    self: Workshop, student: Graph, *, epochs: int, seed: int, report: Report, **_: object
) -> tuple[Graph, float]:
    """In place of training: shrink the last weights a little, by the seed."""
    report(0.5)
    name = next(reversed([n for n, t in student.weights.items() if len(t.dims) == 2]))
    report(1.0)
    return student.with_arrays({name: student.array(name) * (1 - (seed % 97) / 1e4)}), 0.125


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workshop, "train", touch)
    monkeypatch.setattr(answering, "LATENCY_SECONDS", 0.02)


@pytest.fixture(scope="module")
def source() -> Graph:
    return co.load(MODEL)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    whole = load_data("digits")
    return DataSet("digits", {name: whole.split(name).take(np.arange(120)) for name in whole.splits})


@pytest.fixture
def searched(source: Graph, digits: DataSet, tmp_path: Path) -> Callable[..., SearchResult]:
    def run(**settings: Any) -> SearchResult:
        settings = {"data": digits, "budget": "macs=0.7", "trials": 4, "out": tmp_path / "run", **settings}
        return co.search(source, **settings)

    return run


Searched = Callable[..., SearchResult]


def comparable(run: Run) -> dict[str, Any]:
    """Everything but times."""
    document = run.as_json()
    for model in (document["source"], document["best"], *document["pareto"]):
        del model["latency_ms"]
        model["file"] = Path(model["file"]).name
    for trial in document["history"]:
        del trial["evaluation_seconds"]
    del document["seconds"], document["latency"]
    return document


class TestResult:
    def test_everything_that_is_promised_is_there_and_agrees(
        self, searched: Searched, source: Graph, tmp_path: Path
    ) -> None:
        result = searched()
        folder = tmp_path / "run"
        best = result.run.best
        assert best is not None
        limit = 0.7 * result.run.source.macs
        assert best.macs <= limit
        assert {p.name for p in folder.iterdir()} >= {
            "best.onnx",
            "pareto",
            "plans",
            "trials.db",
            "run.json",
            "report.html",
        }
        assert {p.name for p in (folder / "plans").iterdir()} == {"best.json", *(f"{n}.json" for n in range(4))}
        counted = co.analyze(result.best).costs.price({})
        assert (counted.params, counted.macs, counted.bytes) == (best.params, best.macs, best.bytes)
        assert read_run(folder) == result.run
        assert {model.file for model in result.run.pareto} == {str(p) for p in (folder / "pareto").iterdir()}
        assert all(model.macs <= limit for model in result.run.pareto)
        assert all(graph.nodes for graph in result.pareto)

    def test_every_trial_is_proved_to_be_the_source_resized_by_its_plan(
        self, searched: Searched, source: Graph, tmp_path: Path
    ) -> None:
        from conet_onnx.planning import WidthPlan

        result = searched()
        for trial in result.run.trials:
            plan = WidthPlan.load(tmp_path / "run" / "plans" / f"{trial.number}.json")
            assert plan.values == "changed"
            sizes = {name: width.size for name, width in co.analyze(source).widths.items()}
            assert sizes | {name: change.new for name, change in plan.widths.items()} == trial.widths
            co.verify(source, co.load(tmp_path / "run" / "weights" / f"{trial.number}.onnx"), plan)
        co.verify(source, result.best, WidthPlan.load(tmp_path / "run" / "plans" / "best.json"))

    def test_its_json_is_the_contracts(self, searched: Searched) -> None:
        document = json.loads(json.dumps(searched().run.as_json(), allow_nan=False))
        assert document["format"] == "conet-onnx-search/1"
        assert document["trials"] == 4
        assert set(document["seconds"]) == {"total", "training", "evaluation", "overhead"}
        assert document["seconds"]["training"] == pytest.approx(5 * 0.125)
        for name in ("source", "best"):
            assert document[name]["latency_ms"] > 0
            assert 0 < document[name]["test"]["top1"] <= 1
        assert all(model["test"] is None for model in document["pareto"])

    def test_a_last_training_that_harms_is_not_kept(self, searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
        def train(
            self: Workshop, student: Graph, *, epochs: int, seed: int, report: Report, **_: object
        ) -> tuple[Graph, float]:
            name = next(reversed([n for n, t in student.weights.items() if len(t.dims) == 2]))
            return (student if epochs == 1 else student.with_arrays({name: -student.array(name)})), 0.0

        monkeypatch.setattr(Workshop, "train", train)
        run = searched(epochs_per_trial=1, epochs=7).run
        assert run.best is not None
        assert run.best.validation == run.trials[run.best.trial or 0].validation

    def test_the_best_is_chosen_by_the_objective(self, searched: Searched) -> None:
        run = searched().run
        assert run.best is not None
        assert run.best.trial == min(run.trials, key=lambda trial: trial.objective).number

    def test_progress_only_grows_and_ends_at_its_end(self, searched: Searched) -> None:
        seen: list[tuple[str, float, float, float | None]] = []
        searched(progress=lambda *now: seen.append(now))
        done = [now[1] for now in seen]
        assert done == sorted(done)
        assert seen[-1][1] == seen[-1][2]
        assert seen[-1][3] == 0
        assert any("trial 3 of 4" in now[0] for now in seen)
        assert all(now[3] is None or now[3] >= 0 for now in seen)


class TestHonesty:
    def test_the_test_split_is_not_read_before_the_end(
        self, searched: Searched, digits: DataSet, tmp_path: Path
    ) -> None:
        def test() -> Split:
            raise Untouchable

        readers = {"train": lambda: digits.split("train"), "validation": lambda: digits.split("validation")}
        with pytest.raises(Untouchable):
            searched(data=DataSet("digits", Splits({**readers, "test": test})))
        run = read_run(tmp_path / "run")
        assert len(run.trials) == 4
        assert {trial.state for trial in run.trials} == {"complete"}
        assert (tmp_path / "run" / "best.onnx").exists()

    def test_other_test_data_changes_the_test_numbers_and_nothing_else(
        self, searched: Searched, digits: DataSet, tmp_path: Path
    ) -> None:
        test = digits.split("test")
        assert test.labels is not None
        other = DataSet("digits", {**digits.splits, "test": Split(test.images, (test.labels + 1) % 10)})
        a, b = (
            comparable(searched(data=data, out=tmp_path / name).run) for data, name in ((digits, "a"), (other, "b"))
        )
        for model in ("source", "best"):
            assert a[model].pop("test") != b[model].pop("test")
        assert a == b
        assert (tmp_path / "a" / "best.onnx").read_bytes() == (tmp_path / "b" / "best.onnx").read_bytes()

    def test_data_without_a_test_split_gives_no_test_numbers(self, searched: Searched, digits: DataSet) -> None:
        splits = {name: digits.split(name) for name in ("train", "validation")}
        run = searched(data=DataSet("digits", splits)).run
        assert run.best is not None
        assert run.source.test is run.best.test is None

    def test_the_same_seed_gives_the_same_models(self, searched: Searched, tmp_path: Path) -> None:
        a, b = (searched(out=tmp_path / name).run for name in "ab")
        assert comparable(a) == comparable(b)
        assert comparable(searched(out=tmp_path / "c", seed=1).run) != comparable(a)
        assert (tmp_path / "a" / "best.onnx").read_bytes() == (tmp_path / "b" / "best.onnx").read_bytes()


class TestResuming:
    def test_interrupted_it_goes_on_to_the_same_end(
        self, searched: Searched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        whole = searched(out=tmp_path / "whole").run
        calls: list[int] = []

        def interrupted(self: Workshop, student: Graph, **settings: Any) -> tuple[Graph, float]:
            calls.append(1)
            if len(calls) in (3, 6):
                raise KeyboardInterrupt
            return touch(self, student, **settings)

        monkeypatch.setattr(Workshop, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            searched()
        left = read_run(tmp_path / "run")
        assert [trial.state for trial in left.trials] == ["complete", "complete", "running"]
        assert left.best is None
        with pytest.raises(KeyboardInterrupt):  # this time in the last training
            searched(resume=True)
        again = searched(resume=True).run
        assert comparable(again) == comparable(whole)
        assert len(calls) == 4 + 1 + 2
        assert (tmp_path / "run" / "best.onnx").read_bytes() == (tmp_path / "whole" / "best.onnx").read_bytes()

    def test_a_finished_search_is_only_read(self, searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
        first = searched().run

        def train(*_: Any, **__: Any) -> Any:
            raise AssertionError("trained again")

        monkeypatch.setattr(Workshop, "train", train)
        assert searched(resume=True).run == first

    def test_a_lost_report_is_written_again(self, searched: Searched, tmp_path: Path) -> None:
        searched()
        (tmp_path / "run" / "report.html").unlink()
        searched(resume=True)
        assert (tmp_path / "run" / "report.html").exists()

    def test_plans_that_a_power_cut_took_are_made_again(self, searched: Searched, tmp_path: Path) -> None:
        """No trial waits until its plan is on the disk."""
        searched(trials=3)
        plans = tmp_path / "run" / "plans"
        before = {number: (plans / f"{number}.json").read_text() for number in range(3)}
        (plans / "0.json").unlink()
        (plans / "1.json").write_text("")
        (plans / "2.json").write_text(before[2][:40])
        searched(trials=4, resume=True)
        assert {number: (plans / f"{number}.json").read_text() for number in range(3)} == before

    def test_epochs_are_counted_of_trials_and_of_the_last_training(self, searched: Searched, tmp_path: Path) -> None:
        run = searched(trials=3, epochs_per_trial=2, epochs=5).run
        assert run.epochs == 3 * 2 + 5
        assert read_run(tmp_path / "run").epochs == run.epochs

    def test_more_trials_extend_it(self, searched: Searched) -> None:
        first = searched(trials=2).run
        more = searched(trials=5, resume=True).run
        assert more.trials[:2] == first.trials
        assert len(more.trials) == 5

    @pytest.mark.parametrize(
        "other",
        [
            {"seed": 1},
            {"budget": "macs=0.6"},
            {"algorithm": "random"},
            {"epochs_per_trial": 9},
            {"transfer": "slice"},
        ],
    )
    def test_other_settings_are_refused_and_change_nothing(
        self, searched: Searched, tmp_path: Path, other: dict[str, Any]
    ) -> None:
        before = searched().run
        with pytest.raises(UsageError, match=next(iter(other))):
            searched(resume=True, **other)
        assert read_run(tmp_path / "run") == before

    def test_a_run_from_before_transfer_was_noted_goes_on(self, searched: Searched, tmp_path: Path) -> None:
        searched(trials=2, algorithm="anneal")
        file = tmp_path / "run" / "run.json"
        document = json.loads(file.read_text())
        assert document["settings"].pop("transfer") == "net2net"
        file.write_text(json.dumps(document))
        assert len(searched(trials=3, algorithm="anneal", resume=True).run.trials) == 3

    def test_resuming_nothing_begins(self, searched: Searched) -> None:
        assert searched(resume=True).run.best is not None

    def test_a_folder_of_something_else_is_refused(self, searched: Searched, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "holiday.jpg").touch()
        with pytest.raises(UsageError, match="nothing to resume"):
            searched(resume=True)
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["holiday.jpg"]


class TestRefusals:
    def test_an_existing_folder_is_a_usage_error(self, searched: Searched, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        with pytest.raises(UsageError, match="--resume"):
            searched()
        assert not list((tmp_path / "run").iterdir())

    @pytest.mark.parametrize(
        ("settings", "error"),
        [
            ({"budget": "macs=1e-6"}, BudgetUnreachable),
            ({"budget": "latency=5MB"}, UsageError),
            ({"budget": "macs=0.5", "multiple": "none", "tables": ["t.json"]}, UsageError),
            ({"budget": "latency=0.5", "tables": ["missing.json"]}, DataError),
            ({"budget": "macs=-1"}, UsageError),
            ({"budget": None}, UsageError),
            ({"options": {"gamma": 0.5}}, UsageError),
            ({"algorithm": "conet-sa", "options": ["gamma=2"]}, UsageError),
            ({"algorithm": "network-adjustment", "options": ["cost=time"]}, UsageError),
            ({"final": "later"}, UsageError),
            ({"augment": ["magic"]}, UsageError),
            ({"precision": "sixteen"}, UsageError),
            ({"algorithm": "magic"}, UsageError),
            ({"backend": "jax"}, UsageError),
            ({"transfer": "magic"}, UsageError),
            ({"trials": 0}, UsageError),
            ({"epochs_per_trial": 0}, UsageError),
            ({"epochs": -1}, UsageError),
            ({"time_limit": 0.0}, UsageError),
            ({"time_limit": math.nan}, UsageError),
            ({"data": "nowhere"}, DataError),
        ],
    )
    def test_what_cannot_be_done_is_said_before_anything_is_written(
        self, searched: Searched, tmp_path: Path, settings: dict[str, Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            searched(**settings)
        assert not list(tmp_path.iterdir())

    def test_data_that_does_not_fit_is_a_data_error(self, searched: Searched, tmp_path: Path) -> None:
        split = Split(np.zeros((20, 3, 8, 8), np.uint8), np.zeros(20, np.int64))
        with pytest.raises(DataError):
            searched(data=DataSet("x", {"train": split, "validation": split}))
        assert not list(tmp_path.iterdir())

    def test_a_place_that_cannot_be_written_is_an_output_error(self, searched: Searched, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError):
            searched(out=tmp_path / "file" / "run")

    def test_losses_that_are_not_finite_are_failed_trials(
        self, searched: Searched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        judge = Workshop.judge

        def broken(self: Workshop, graph: Graph, split: str = "validation") -> tuple[dict[str, float], float]:
            numbers, seconds = judge(self, graph, split)
            return (numbers if graph is self.source else {**numbers, "loss": math.nan}), seconds

        monkeypatch.setattr(Workshop, "judge", broken)
        with pytest.raises(DataError, match="finite loss"):
            searched()
        trials = read_run(tmp_path / "run").trials
        assert [trial.state for trial in trials] == ["failed"] * 4
        assert all(trial.parent is None for trial in trials)


class TestTimeLimit:
    def test_the_trials_end_early_enough_for_the_rest_but_not_before_one(self, searched: Searched) -> None:
        run = searched(time_limit=1e-3, trials=50).run
        assert len(run.trials) == 1
        assert run.best is not None

    def test_the_clock_tells_the_rest_from_the_speed_so_far(self) -> None:
        clock = Clock(10)
        assert clock.left(1) is None
        assert clock.allows(1000)
        clock.started -= 8
        clock.done, clock.spared = 6, 2
        assert clock.left(3) == pytest.approx(6, abs=0.1)
        clock.limit = 15
        assert clock.allows(3)
        assert not clock.allows(4)
        clock.beside = 2.5
        assert clock.left(3) == pytest.approx(8.5, abs=0.1)
        assert not clock.allows(3)
        clock.after = 1.5
        assert clock.left(3) == pytest.approx(10, abs=0.1)
        assert clock.left(0) == 0

    def test_measuring_and_testing_the_answer_counts(
        self, searched: Searched, digits: DataSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[float, float]] = []
        original = answering.Answering.expected_seconds

        def noted(self: answering.Answering, judged: float) -> float:
            asked.append((judged, original(self, judged)))
            return 1000.0

        monkeypatch.setattr(answering.Answering, "expected_seconds", noted)
        left: list[float | None] = []
        searched(progress=lambda _phase, _done, _work, seconds: left.append(seconds))
        (judged, seconds), *more = asked
        assert not more
        assert judged > 0
        share = len(digits.split("test")) / len(digits.split("validation"))
        assert seconds == pytest.approx(answering.LATENCY_SECONDS + 2 * judged * share)  # both models are tested
        known = [seconds for seconds in left if seconds is not None]
        assert known[0] > 1000
        assert left[-1] == 0

    def test_steps_are_timed_at_the_size_of_the_budget(
        self, searched: Searched, source: Graph, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timed: list[int] = []

        def noted(self: Workshop, student: Graph, **how: Any) -> tuple[Graph, float]:
            if how.get("samples") is not None:
                timed.append(co.analyze(student).costs.source.macs)
            return touch(self, student, **how)

        monkeypatch.setattr(Workshop, "train", noted)
        searched(budget="macs=0.5", progress=lambda *_: None)
        whole = co.analyze(source).costs.source.macs
        assert timed
        assert all(0.3 * whole < macs <= 0.5 * whole for macs in timed)

    def test_what_is_tried_before_any_training_counts_and_is_tried_once(
        self, searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[tuple[int, ...]] = []
        original = Workshop.untrained

        def noted(self: Workshop, widths: Mapping[str, int]) -> float:
            tried.append(tuple(widths.values()))
            found = original(self, widths)
            time.sleep(0.5)
            return found

        monkeypatch.setattr(Workshop, "untrained", noted)
        runs, left = [], []
        for out, progress in (("a", None), ("b", lambda _phase, _done, _work, seconds: left.append(seconds))):
            runs.append(searched(out=tmp_path / out, algorithm="reallocate", trials=2, epochs=1, progress=progress).run)
        assert len(set(tried)) == len(tried) / 2 > 2
        assert [trial.widths for trial in runs[0].trials] == [trial.widths for trial in runs[1].trials]
        most = max(seconds for seconds in left if seconds is not None)
        assert most > 7 * 0.5 + 2 * 0.5  # the other models that are tried, and what trials inherit

    def test_finding_what_runs_fast_counts_as_evaluation(
        self, searched: Searched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def slow(*_: object, **__: object) -> dict[str, int]:
            time.sleep(3)
            return {}

        monkeypatch.setattr(job, "multiples", slow)
        seconds = searched(trials=1, epochs=1).run.seconds
        assert seconds["evaluation"] > 3
        assert seconds["overhead"] < 3  # some tenths of a second

    def test_what_is_within_the_budget_is_not_tried(self, searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Workshop, "untrained", None)  # whoever calls it fails
        searched(algorithm="reallocate", budget="macs=1.0", trials=2, epochs=1, progress=lambda *_: None)


class TestFront:
    def test_it_is_what_no_other_trial_beats(self) -> None:
        rng = np.random.default_rng(0)
        trials = [
            Trial(n, {}, int(p), int(m), 1, None, "", "complete", validation={"loss": float(loss)})
            for n, (p, m, loss) in enumerate(rng.integers(0, 6, (60, 3)))
        ]
        for kinds in (["macs"], ["macs", "params"]):
            rows = {t.number: (*(getattr(t, kind) for kind in kinds), t.validation["loss"]) for t in trials}
            unbeaten = {
                row
                for row in rows.values()
                if not any(
                    other != row and all(a <= b for a, b in zip(other, row, strict=True)) for other in rows.values()
                )
            }
            found = [rows[t.number] for t in front(trials, Limits(dict.fromkeys(kinds, 5.0)))]
            assert found == sorted(unbeaten)
