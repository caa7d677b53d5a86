"""A search within a limit on latency, where times follow from a law and training costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from latency_world import BLOCK, World

import conet_onnx as co
from conet_onnx.data import DataSet, load_data
from conet_onnx.errors import BudgetUnreachable, ModelError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.latency.profiling import Profile
from conet_onnx.latency.table import Host, Table
from conet_onnx.latency.timing import Ratio
from conet_onnx.searching import SearchResult, answering, read_run
from conet_onnx.searching.task import Report
from conet_onnx.searching.timing import TABLE_FILE
from conet_onnx.searching.trial import Workshop

MODEL = Path(__file__).parent.parent / "models" / "digits_resnet8.onnx"
ALGORITHMS = ("anneal", "reallocate", "conet-sa", "conet-greedy", "network-adjustment", "compound", "random")
RUN = Profile.run


class Machine:
    """Stands in for onnxruntime's clock; `slower` multiplies what models take that are not as wide as the source."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.slower: Callable[[int], float] = lambda count: 1.0
        self.all_slower = 1.0
        self.profiled = 0
        self.compared = 0
        self.threads: set[int | None] = set()  # that models were to be compared on

    def run(self, profile: Profile, progress: Any = None) -> Table:
        self.profiled += 1
        made = World(profile.analysis, profile.operators)
        return RUN(profile, progress, compare=made.compare, measure=made.measure, time_all=made.time_all)

    def compare(self, a: Graph, b: Graph, *, threads: int | None, **_: Any) -> Any:
        assert self.world is not None
        self.threads.add(threads)
        found = replace(self.world, analysis=co.analyze(a)).compare(a, b)
        same = found.ratio.p50 == 1
        a, b = (replace(one, p50_ms=one.p50_ms * self.all_slower) for one in (found.a, found.b))
        found = replace(found, a=a, b=b)
        self.compared += 1
        times = 1.0 if same else self.slower(self.compared)
        return replace(
            found,
            b=replace(found.b, p50_ms=found.b.p50_ms * times),
            ratio=Ratio(*(times * x for x in (found.ratio.p50, found.ratio.low, found.ratio.high))),
        )

    def share(self, widths: Mapping[str, int]) -> float:
        """Of the source's time, before anything is slower."""
        assert self.world is not None
        costs = self.world.analysis.costs
        return self.world.model(costs.row(widths)) / self.world.model(costs.row({}))


def touch(
    self: Workshop, student: Graph, *, epochs: int, seed: int, report: Report, **_: object
) -> tuple[Graph, float]:
    """In place of training: shrink the last weights a little, by the seed."""
    report(1.0)
    name = next(reversed([n for n, t in student.weights.items() if len(t.dims) == 2]))
    return student.with_arrays({name: student.array(name) * (1 - (seed % 97) / 1e4)}), 0.125


def worse(self: Workshop, student: Graph, *, report: Report, **_: object) -> tuple[Graph, float]:
    """Training that spoils what it is given."""
    report(1.0)
    name = next(reversed([n for n, t in student.weights.items() if len(t.dims) == 2]))
    return student.with_arrays({name: -student.array(name)}), 0.125


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(Profile, "run", lambda self, progress=None: made.run(self, progress))
    monkeypatch.setattr(answering, "compare", made.compare)
    monkeypatch.setattr(Workshop, "train", touch)
    return made


@pytest.fixture(scope="module")
def digits() -> DataSet:
    whole = load_data("digits")
    return DataSet("digits", {name: whole.split(name).take(np.arange(120)) for name in whole.splits})


Searched = Callable[..., SearchResult]


@pytest.fixture(scope="module")
def world() -> World:
    analysis = co.analyze(co.load(MODEL))
    return World(analysis, Profile.of(analysis, provider="cpu", threads=1).operators)


@pytest.fixture(scope="module")
def table(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    profile = Profile(world.analysis, world.operators, Host.here("cpu", 1))
    file = tmp_path_factory.mktemp("tables") / "t.json"
    RUN(profile, compare=world.compare, measure=world.measure, time_all=world.time_all).save(file)
    return file


@pytest.fixture
def searched(machine: Machine, digits: DataSet, tmp_path: Path, world: World, table: Path) -> Searched:
    source, machine.world = co.load(MODEL), world

    def run(**settings: Any) -> SearchResult:
        settings = {"data": digits, "budget": "latency=0.6", "trials": 4, "epochs": 1, "tables": [table], **settings}
        return co.search(source, provider="cpu", threads=1, out=tmp_path / "run", **settings)

    return run


class TestTheLimit:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_every_method_holds_it_and_what_is_measured_meets_it(
        self, searched: Searched, machine: Machine, tmp_path: Path, algorithm: str
    ) -> None:
        run = searched(algorithm=algorithm).run
        assert run.best is not None
        assert run.latency["p50"] <= 0.6
        assert machine.share(run.best.widths) <= 0.6 * 1.05
        assert all(machine.share(trial.widths) <= 0.6 * 1.1 for trial in run.trials if trial.number)
        assert run.best.latency_ms == pytest.approx(run.latency["p50"] * (run.source.latency_ms or 0))
        assert run.best.predicted_ms is not None
        assert run.budget["latency"] == pytest.approx(0.6 * (run.source.latency_ms or 0))
        document = json.loads((tmp_path / "run" / "run.json").read_text())
        assert document["best"]["latency_ms"] <= document["budget"]["latency"]
        assert document["best"]["predicted_ms"] == run.best.predicted_ms
        assert read_run(tmp_path / "run") == run
        assert machine.profiled == 0

    def test_widths_are_what_the_machine_runs_fast_unless_the_user_says_otherwise(self, searched: Searched) -> None:
        for trial in searched().run.trials:
            assert all(size % BLOCK == 0 or size in (4, 8) for size in trial.widths.values())

    def test_a_multiple_of_the_users_own(self, searched: Searched) -> None:
        """Below it powers of two, as WidthSpace has it, of which a latency may take 4 and 8."""
        source = {"w0": 16, "w1": 16, "w2": 32, "w3": 32, "w4": 64, "w5": 64}
        for trial in searched(multiple=12, algorithm="random").run.trials:
            assert all(size % 12 == 0 or size in (4, 8, source[name]) for name, size in trial.widths.items())

    def test_training_may_have_more_threads_than_what_is_limited(
        self, searched: Searched, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trained_on = set()

        def train(self: Workshop, student: Graph, **how: Any) -> tuple[Graph, float]:
            trained_on.add(self.training_threads)
            return touch(self, student, **how)

        monkeypatch.setattr(Workshop, "train", train)
        settings = searched(training_threads=2).run.settings
        assert trained_on == {2}
        assert machine.threads == {1}
        assert (settings["threads"], settings["training_threads"]) == (1, 2)

    def test_other_limits_hold_too(self, searched: Searched) -> None:
        run = searched(budget=["latency=0.9", "bytes=150kB", "params=0.45"]).run
        assert run.best is not None
        assert run.best.bytes <= 150_000
        assert run.best.params <= 0.45 * run.source.params
        assert run.latency["p50"] <= 0.9
        assert set(run.budget) == {"latency", "bytes", "params"}

    def test_seconds(self, searched: Searched, machine: Machine) -> None:
        first = searched(budget="latency=1.0", algorithm="compound", trials=1).run
        most = 0.7 * (first.source.latency_ms or 0)
        first.directory.rename(first.directory.parent / "before")
        run = searched(budget=f"latency={most}ms").run
        assert run.best is not None
        assert run.best.latency_ms is not None
        assert run.best.latency_ms <= run.budget["latency"] == pytest.approx(most)

    def test_the_source_takes_what_it_takes(self, searched: Searched, machine: Machine) -> None:
        """At its own time nothing is refused for the noise of a measurement."""
        machine.slower = lambda count: 1.5
        run = searched(budget="latency=1.0", algorithm="compound", trials=1).run
        assert run.best is not None
        assert run.best.latency_ms == run.source.latency_ms


class TestWhatIsSlowerThanPredicted:
    def test_is_tightened_and_the_search_goes_on(self, searched: Searched, machine: Machine) -> None:
        machine.slower = lambda count: 1.3
        run = searched(budget="latency=0.8").run
        assert run.best is not None
        assert run.latency["p50"] <= 0.8
        assert machine.share(run.best.widths) <= 0.8 / 1.3
        assert run.best.trial is not None

    def test_another_trial_is_taken_where_one_is_within_it(self, searched: Searched, machine: Machine) -> None:
        machine.slower = lambda count: 1.15
        run = searched(budget="latency=0.9", algorithm="compound", trials=5).run
        assert run.best is not None
        assert len(run.trials) == 5
        assert run.best.trial != 0
        assert run.latency["p50"] <= 0.9

    def test_only_the_trained_model_counts(self, searched: Searched, machine: Machine) -> None:
        machine.slower = lambda count: 1.4 if count == 2 else 1.0  # the trial was fast, the model that came of it not
        run = searched(budget="latency=0.8", algorithm="compound", trials=3).run
        assert run.latency["p50"] <= 0.8
        assert machine.compared == 4

    def test_what_cannot_be_met_says_the_nearest_and_can_go_on(
        self, searched: Searched, machine: Machine, tmp_path: Path
    ) -> None:
        machine.slower = lambda count: 40.0  # no widths are that much faster, however small the machine's blocks
        with pytest.raises(
            BudgetUnreachable, match=r"not met by what was measured.*nearest that was reached is latency="
        ):
            searched(budget="latency=0.8")
        folder = tmp_path / "run"
        assert not (folder / "report.html").exists()
        kept = len(read_run(folder).trials)
        assert kept >= 4
        machine.slower = lambda count: 1.0
        run = searched(budget="latency=0.8", resume=True).run
        assert run.latency["p50"] <= 0.8
        assert len(run.trials) == kept

    def test_what_nothing_can_meet_is_said_before_anything_is_written(self, searched: Searched, tmp_path: Path) -> None:
        with pytest.raises(BudgetUnreachable, match=r"nearest that can is latency=[\d.]+us"):
            searched(budget="latency=0.001us")
        assert not (tmp_path / "run").exists()

    def test_the_source_is_no_answer_where_it_takes_more_than_so_many_seconds(
        self, searched: Searched, machine: Machine, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It was predicted to take 1 ms less than it does, and no trial is as good."""
        monkeypatch.setattr(Workshop, "train", worse)
        most = 1e3 * world.model(world.analysis.costs.row({}))
        machine.all_slower = 1.1
        run = searched(budget=f"latency={1.02 * most}ms", algorithm="compound", trials=4).run
        assert run.best is not None
        assert run.best.trial is not None
        assert run.best.latency_ms is not None
        assert run.best.latency_ms <= 1.02 * most


class TestTheTable:
    def test_without_one_the_model_is_profiled_first_and_told_of_and_never_again(
        self, searched: Searched, machine: Machine, tmp_path: Path
    ) -> None:
        phases: list[str] = []
        run = searched(tables=(), progress=lambda phase, *_: phases.append(phase), trials=2).run
        assert machine.profiled == 1
        assert any(phase.startswith("profiling") and "points" in phase for phase in phases)
        file = tmp_path / "run" / TABLE_FILE
        written = file.read_bytes()
        assert Table.read(file).models
        assert run.seconds["overhead"] < run.seconds["total"] - run.seconds["evaluation"]
        again = searched(tables=(), resume=True, trials=3).run
        assert machine.profiled == 1
        assert file.read_bytes() == written
        assert again.trials[:2] == run.trials

    def test_one_of_other_threads_is_refused(self, searched: Searched, table: Path, tmp_path: Path) -> None:
        other = Table.read(table)
        replace(other, host=replace(other.host, threads=2)).save(tmp_path / "two.json")
        with pytest.raises(UsageError, match="--threads 2"):
            searched(tables=[tmp_path / "two.json"])
        assert not (tmp_path / "run").exists()

    def test_without_a_use_it_is_refused(self, searched: Searched, table: Path) -> None:
        for how in ({"multiple": "none"}, {"algorithm": "random"}, {"multiple": 4}):
            with pytest.raises(UsageError, match="latency table"):
                searched(budget="macs=0.5", **how)

    @pytest.mark.parametrize("how", [{}, {"algorithm": "random", "multiple": "auto"}])
    def test_auto_goes_with_other_budgets_and_is_the_default(
        self, searched: Searched, table: Path, how: dict[str, Any]
    ) -> None:
        run = searched(budget="macs=0.5", **{"trials": 2, **how}).run
        assert set(run.budget) == {"macs"}
        assert run.settings["multiple"] == "auto"
        assert run.settings["multiples"] == dict.fromkeys(run.widths, BLOCK)
        assert all(size % BLOCK == 0 or size < BLOCK for trial in run.trials for size in trial.widths.values())


class TestNetworkAdjustment:
    def test_rates_are_by_the_latency_that_each_width_answers_for(self, searched: Searched, machine: Machine) -> None:
        """By hand: p_i = p0 · mean(F) / F_i, F_i = c_i (F(c_i + 16) - F(c_i - 16)) / 32, one-sided at 16."""
        run = searched(
            budget=None, algorithm="network-adjustment", options={"cost": "latency", "passes": 1}, trials=2
        ).run
        assert machine.world is not None
        costs = machine.world.analysis.costs
        for trial in run.trials:
            parts = {}
            for name, size in trial.widths.items():
                low = size - 16 if size > 16 else size
                taken = [machine.world.model(costs.row({**trial.widths, name: n})) for n in (size + 16, low)]
                parts[name] = size * (taken[0] - taken[1]) / (size + 16 - low)
            mean = np.mean([*parts.values()])
            expected = {name: min(0.05 * mean / part, 0.95) for name, part in parts.items()}
            assert trial.measured["rate"] == pytest.approx(expected, rel=0.05)
        assert set(run.budget) == set()

    def test_the_cost_that_is_kept_is_the_predicted_latency(self, searched: Searched, machine: Machine) -> None:
        run = searched(
            budget=None, algorithm="network-adjustment", options={"cost": "latency", "passes": 1, "a": 0.5}, trials=3
        ).run
        first, *later = run.trials
        assert dict(first.widths) == {name: width["size"] for name, width in run.widths.items()}
        assert all(0.7 <= (trial.latency or 0) / (first.latency or 1) <= 1 for trial in later)
        assert any(trial.widths != first.widths for trial in later)


class TestWhatRunsFast:
    """Without a limit on latency."""

    SETTINGS: ClassVar[dict[str, Any]] = {"budget": "macs=0.6", "tables": (), "trials": 2}

    def test_a_run_that_goes_on_keeps_its_multiples(self, searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = searched(**self.SETTINGS).run
        assert begun.settings["multiples"]

        def asked(*_: Any, **__: Any) -> dict[str, int]:
            raise AssertionError

        monkeypatch.setattr("conet_onnx.searching.timing.fast_widths", asked)
        run = searched(**{**self.SETTINGS, "trials": 3}, resume=True).run
        assert run.settings["multiples"] == begun.settings["multiples"]
        assert len(run.trials) == 3

    def test_a_model_that_does_not_run_there_has_any_widths_and_is_told_of(
        self, searched: Searched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any, **__: Any) -> dict[str, int]:
            raise ModelError("m.onnx does not run.")

        monkeypatch.setattr("conet_onnx.searching.timing.fast_widths", fails)
        said: list[str] = []
        run = searched(**self.SETTINGS, progress=lambda phase, *_: said.append(phase)).run
        assert (run.settings["multiple"], run.settings["multiples"]) == ("none", None)
        assert any("is not known" in line and "m.onnx does not run." in line for line in said)
        with pytest.raises(ModelError):
            searched(**self.SETTINGS, multiple="auto", resume=True)

    def test_none_leaves_the_methods_own_steps(self, searched: Searched) -> None:
        trials = searched(**self.SETTINGS, multiple="none").run.trials
        sizes = {size for trial in trials for size in trial.widths.values()}
        assert any(size % BLOCK and size > BLOCK for size in sizes)
