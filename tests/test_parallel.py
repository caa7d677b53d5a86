"""Trials at the same time: the same search whoever ends first, and none lost or run twice whoever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parallel_victim import TRIALS, Recorded, loop, run
from searching_fakes import chain, tried

from conet_onnx.errors import DataError, OutputError, ProcessDied, UsageError
from conet_onnx.records.claims import Shared
from conet_onnx.records.database import check_url
from conet_onnx.records.study import TrialStudy, copied, read_trials
from conet_onnx.records.trial import Trial
from conet_onnx.searching.algorithms import ALGORITHMS, find_method
from conet_onnx.searching.budget import Budget
from conet_onnx.searching.crew import Alone
from conet_onnx.searching.loop import Clock
from conet_onnx.searching.space import WidthSpace
from conet_onnx.searching.task import Evaluate, Report, TrialOutcome, TrialTask
from conet_onnx.searching.workers import Workers, crowded

VICTIM = Path(__file__).with_name("parallel_victim.py")


def counted(folder: Path, log: str = "evaluations.log") -> Counter[int]:
    file = folder / log
    return Counter(map(int, file.read_text().split())) if file.exists() else Counter()


class Shuffled:
    """A crew of three in this process, whose tasks end in the order that is drawn."""

    size = 3

    def __init__(self, evaluate: Evaluate, seed: int) -> None:
        self._evaluate = evaluate
        self._rng = np.random.default_rng(seed)
        self._started: list[TrialTask] = []

    def start(self, task: TrialTask, report: Report) -> None:
        report(0.1)
        self._started.append(task)

    def ended(self, seconds: float | None) -> Iterable[tuple[int, TrialOutcome]]:
        task = self._started.pop(int(self._rng.integers(len(self._started))))
        return [(task.number, self._evaluate(task, lambda _: None))]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, ...]:
    """A search of three trials at once, by one process after the other."""
    folder = tmp_path_factory.mktemp("three")
    return run(folder, Alone(Recorded(folder)), at_once=3)


class TestBatches:
    def test_the_order_in_which_trials_end_changes_nothing(self, tmp_path: Path, three: tuple[Trial, ...]) -> None:
        orders = set()
        for seed in range(3):
            folder = tmp_path / str(seed)
            folder.mkdir()
            assert run(folder, Shuffled(Recorded(folder), seed), at_once=3) == three
            orders.add((folder / "ends.log").read_text())
            assert read_trials(folder / "trials.db") == three
        assert len(orders) == 3

    def test_how_many_are_tried_at_once_does(self, tmp_path: Path, three: tuple[Trial, ...]) -> None:
        assert run(tmp_path, Alone(Recorded(tmp_path)), at_once=1) != three

    def test_a_batch_is_proposed_from_what_was_told_before_it(self, three: tuple[Trial, ...]) -> None:
        for trial in three:
            assert trial.parent is None or trial.parent < trial.number - trial.number % 3
        assert {trial.parent for trial in three} > {None}
        assert {trial.accepted for trial in three} == {True, False}

    def test_a_search_that_is_extended_is_the_one_that_was_longer(
        self, tmp_path: Path, three: tuple[Trial, ...]
    ) -> None:
        crew = Alone(Recorded(tmp_path))
        assert run(tmp_path, crew, at_once=3, trials=4) == three[:4]
        assert run(tmp_path, crew, at_once=3, trials=8) == three[:8]
        assert run(tmp_path, crew, at_once=3) == three
        assert counted(tmp_path) == Counter(range(TRIALS))

    @pytest.mark.parametrize("ends", [*permutations(range(3))][1:])
    def test_what_had_ended_when_it_was_killed_is_not_run_again(
        self, tmp_path: Path, three: tuple[Trial, ...], ends: tuple[int, ...]
    ) -> None:
        class Killed(Exception):
            pass

        class Until(Shuffled):
            def ended(self, seconds: float | None) -> Iterable[tuple[int, TrialOutcome]]:
                done = counted(tmp_path).total()
                if done == 5:  # three of the first batch, and two of the second
                    raise Killed
                self._started.sort(key=lambda task: ends.index(task.number % 3))
                task = self._started.pop(0)
                return [(task.number, self._evaluate(task, lambda _: None))]

        with pytest.raises(Killed):
            run(tmp_path, Until(Recorded(tmp_path), 0), at_once=3)
        states = [trial.state for trial in read_trials(tmp_path / "trials.db")]
        assert states[:3] == ["complete"] * 3
        assert sorted(states[3:]) == ["evaluated", "evaluated", "running"]
        assert run(tmp_path, Alone(Recorded(tmp_path)), at_once=3) == three
        assert counted(tmp_path) == Counter(range(TRIALS))

    def test_progress_only_grows(self, tmp_path: Path) -> None:
        seen: list[float] = []
        with loop(tmp_path, Shuffled(Recorded(tmp_path), 0), at_once=3) as made:
            made.run(TRIALS, Clock(TRIALS, progress=lambda _phase, done, _work, _left: seen.append(done)))
        assert seen == sorted(seen)
        assert seen[-1] == TRIALS


class TestProposals:
    @pytest.mark.parametrize("budget", [0.9, 0.5, 0.1])
    def test_those_of_a_batch_differ_and_fit(self, budget: float) -> None:
        space = WidthSpace(chain(16, 32, 64))
        limits = Budget(macs=budget).resolve(space.price(space.source))
        searcher = find_method("anneal").searcher(space, limits, trials=16, seed=0)
        beside: list[dict[str, int]] = []
        for number in range(4):
            proposal = searcher.ask(number, beside)
            assert searcher.ask(number, beside) == proposal
            assert proposal.widths not in beside
            beside.append(dict(proposal.widths))
        assert limits.fits(space.price(beside[-1]))

    def test_annealing_goes_on_from_the_best_of_a_batch_as_from_any_trial(self) -> None:
        space = WidthSpace(chain(16, 32, 64))
        limits = Budget(macs=0.5).resolve(space.price(space.source))
        searcher = find_method("anneal").searcher(space, limits, trials=16, seed=0)
        first = tried(searcher, space, 0, objective=1.0)
        assert searcher.ask(1, [searcher.ask(1).widths]).parent == first.number

    def test_methods_that_follow_from_the_last_trial_say_so(self) -> None:
        at_once = {name: make().at_once for name, make in ALGORITHMS.items()}
        serial = {name for name, many in at_once.items() if many == 1}
        assert serial == {"conet-sa", "conet-greedy", "network-adjustment"}
        assert {at_once[name] for name in at_once.keys() - serial} == {None}


def reached(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def opened(folder: Path, **how: Any) -> Evaluate:
    """What workers open: notes their process."""
    with open(folder / "pids.log", "a") as log:
        log.write(f"{os.getpid()}\n")
    return Recorded(folder, **how)


class Deadly(Recorded):
    """Kills its process in the middle of trial 4, the first time or always."""

    def __call__(self, task: TrialTask, report: Report) -> TrialOutcome:
        if task.number == 4 and (self.delay or counted(self.folder)[4] == 0):
            with open(self.folder / "evaluations.log", "a") as log:
                log.write("4\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(task, report)


def deadly(folder: Path, always: bool) -> Evaluate:
    return Deadly(folder, delay=float(always))


class Failing(Recorded):
    def __call__(self, task: TrialTask, report: Report) -> TrialOutcome:
        raise DataError("the disk has a hole") if task.number else ValueError("an odd number")


def failing(folder: Path) -> Evaluate:
    return Failing(folder)


posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


class TestWorkers:
    def test_processes_that_end_in_another_order_change_nothing(self, tmp_path: Path, three: tuple[Trial, ...]) -> None:
        late = {0: 0.3, 3: 0.2, 7: 0.2}
        with Workers(partial(opened, tmp_path, delays=late), 3) as crew:
            assert run(tmp_path, crew, at_once=3) == three
        ends = [int(text) for text in (tmp_path / "ends.log").read_text().split()]
        assert ends != sorted(ends)
        assert not any(map(alive, counted(tmp_path, "pids.log")))

    def test_fewer_processes_than_trials_at_once_change_nothing(self, tmp_path: Path, three: tuple[Trial, ...]) -> None:
        with Workers(partial(opened, tmp_path), 2) as crew:
            assert run(tmp_path, crew, at_once=3) == three

    @posix
    def test_one_that_is_killed_is_replaced_and_its_trial_run_once_more(
        self, tmp_path: Path, three: tuple[Trial, ...]
    ) -> None:
        with Workers(partial(deadly, tmp_path, always=False), 2) as crew:
            assert run(tmp_path, crew, at_once=3) == three
        assert counted(tmp_path) == Counter(range(TRIALS)) + Counter([4])

    @posix
    def test_a_trial_that_takes_two_with_it_is_an_error_that_says_how(self, tmp_path: Path) -> None:
        with (
            Workers(partial(deadly, tmp_path, always=True), 2) as crew,
            pytest.raises(ProcessDied, match=r"trial 5 was killed by signal 9, twice"),
        ):
            run(tmp_path, crew, at_once=3)
        assert counted(tmp_path)[4] == 2

    def test_what_an_evaluation_raises_is_raised_here(self, tmp_path: Path) -> None:
        with Workers(partial(failing, tmp_path), 1) as crew, pytest.raises(ValueError, match="an odd number") as found:
            run(tmp_path, crew, at_once=3)
        assert "Failing" in repr(found.value.__notes__) or "raise" in repr(found.value.__notes__)

    @posix
    def test_they_end_with_a_parent_that_is_killed_and_it_goes_on(
        self, tmp_path: Path, three: tuple[Trial, ...]
    ) -> None:
        program = "import sys; from pathlib import Path; from functools import partial; import test_parallel as t\n"
        program += "if __name__ == '__main__':\n  folder = Path(sys.argv[1])\n"
        program += "  with t.Workers(partial(t.opened, folder, delays={4: 60, 5: 60}, delay=0.01), 2) as crew:\n"
        program += "    t.run(folder, crew, at_once=3)"
        parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=VICTIM.parent)
        reached(lambda: counted(tmp_path).total() == 6)  # trial 3 has ended, 4 and 5 take their time
        parent.kill()
        parent.wait()
        reached(lambda: not any(map(alive, counted(tmp_path, "pids.log"))))
        with Workers(partial(opened, tmp_path), 2) as crew:
            assert run(tmp_path, crew, at_once=3) == three
        assert counted(tmp_path) == Counter(range(TRIALS)) + Counter([4, 5])


@contextmanager
def postgresql() -> Iterator[str]:
    """A server of its own, from Debian's packages; skips where none can be started."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql: apt install postgresql")
    tools = found[-1].parent
    with tempfile.TemporaryDirectory(prefix="conet") as place:  # pytest's own folders are not for other users
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
        if user:
            try:
                shutil.chown(place, "postgres")
            except LookupError:
                pytest.skip("root may not run PostgreSQL, and there is no user postgres")

        def tool(name: str, *words: str) -> None:
            command = [*user, str(tools / name), "-D", f"{place}/data", *words]
            made = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd="/")
            if made.returncode:
                pytest.skip(f"{name} failed: {made.stderr.strip()[-200:]}")

        tool("initdb", "-A", "trust", "-U", "conet", "--no-sync")
        options = f"-k {place} -c listen_addresses= -c fsync=off"
        tool("pg_ctl", "-l", f"{place}/log", "-w", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://conet@/postgres?host={place}"
        finally:
            tool("pg_ctl", "-m", "immediate", "stop")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/shared.db"
    else:
        with postgresql() as made:
            yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made


def joined(folder: Path, url: str, delay: float, lease: float = 45.0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(VICTIM), str(folder), url, str(delay), str(lease)])


def trials_of(folder: Path, url: str) -> tuple[Trial, ...]:
    study = TrialStudy(url, name=(folder / "study").read_text().strip())
    try:
        return study.trials()
    finally:
        study.close()


class TestShared:
    def test_two_processes_share_the_trials_of_one_search(
        self, folder: Path, url: str, three: tuple[Trial, ...]
    ) -> None:
        both = [joined(folder, url, 0.1) for _ in range(2)]
        assert [process.wait(120) for process in both] == [0, 0]
        assert trials_of(folder, url) == three
        assert counted(folder) == Counter(range(TRIALS))

    @posix
    def test_of_two_one_is_killed_and_the_other_does_its_trial(
        self, folder: Path, url: str, three: tuple[Trial, ...]
    ) -> None:
        slow, fast = joined(folder, url, 30.0), None
        reached(lambda: counted(folder).total() == 1)
        try:
            fast = joined(folder, url, 0.01)
            reached(lambda: counted(folder, "ends.log").total() == 2)  # the others of the batch
            slow.kill()
            slow.wait()
            assert fast.wait(120) == 0
        finally:
            slow.kill()
            if fast:
                fast.kill()
        assert trials_of(folder, url) == three
        assert counted(folder) == Counter(range(TRIALS)) + Counter([0])


class TestClaims:
    @contextmanager
    def two(self, folder: Path, now: list[float]) -> Iterator[tuple[Shared, Shared]]:
        studies = [TrialStudy(f"sqlite:///{folder}/a.db", name="a") for _ in range(2)]
        how: dict[str, Any] = {"lease": 10.0, "beat": 3600.0, "clock": lambda: now[0]}
        claims = [Shared(s.storage.engine, "a", owner=f"elsewhere {k} x", **how) for k, s in enumerate(studies)]
        yield claims[0], claims[1]
        for one, study in zip(claims, studies, strict=True):
            one.close()
            study.close()

    def test_one_of_two_gets_it_and_keeps_it(self, tmp_path: Path) -> None:
        with self.two(tmp_path, [0.0]) as (a, b):
            assert a.take("x")
            assert not b.take("x")
            assert a.take("x")
            assert b.take("y")
            assert (a.holds("x"), b.holds("x"), a.holds("y"), b.holds("z")) == (True, False, False, False)

    def test_what_is_done_is_nobodys(self, tmp_path: Path) -> None:
        with self.two(tmp_path, [0.0]) as (a, b):
            assert a.take("x")
            a.done("x")
            assert not a.take("x")
            assert not b.take("x")

    def test_it_goes_to_another_only_when_its_heart_has_stood_still(self, tmp_path: Path) -> None:
        now = [0.0]
        with self.two(tmp_path, now) as (a, b):
            assert a.take("x")
            assert not b.take("x")
            now[0] = 9.0
            assert not b.take("x")
            with sqlite3.connect(tmp_path / "a.db") as database:
                database.execute("update conet_onnx_claims set beats = beats + 1")
            database.close()
            now[0] = 12.0
            assert not b.take("x")
            now[0] = 22.0
            assert b.take("x")
            assert not a.holds("x")
            assert not a.take("x")

    def test_letting_go_frees_what_is_not_done(self, tmp_path: Path) -> None:
        with self.two(tmp_path, [0.0]) as (a, b):
            assert a.take("x")
            assert a.take("y")
            a.done("y")
            a.close()
            assert b.take("x")
            assert not b.take("y")


class TestStudy:
    def test_a_copy_holds_the_same_trials(self, folder: Path, three: tuple[Trial, ...]) -> None:
        run(folder, Alone(Recorded(folder)), at_once=3, url=f"sqlite:///{folder}/shared.db")
        study = TrialStudy(f"sqlite:///{folder}/shared.db", name=(folder / "study").read_text().strip())
        copied(study, folder / "trials.db", bounds={})
        study.close()
        assert read_trials(folder / "trials.db") == three

    def test_a_trial_that_was_begun_twice_counts_once(self, tmp_path: Path) -> None:
        study = TrialStudy(tmp_path / "trials.db")
        one = Trial(0, {"w0": 3}, 1, 1, 1, None, "one")
        for trial in (one, one, Trial(1, {"w0": 4}, 1, 1, 1, None, "two")):
            study.begin(trial)
        assert [trial.number for trial in study.trials()] == [0, 1]
        study.close()

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("nowhere", "not the URL of a database"),
            ("sqlite://", "cannot be shared"),
            ("abacus://x/y", "abacus"),
            ("postgresql+pg8000://me:secret@host/name", "pip install pg8000"),
        ],
    )
    def test_a_url_that_cannot_be_is_said_without_its_password(self, url: str, expected: str) -> None:
        with pytest.raises(UsageError, match=expected) as found:
            check_url(url)
        assert "secret" not in str(found.value)

    def test_a_database_that_is_away_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="missing"):
            TrialStudy(f"sqlite:///{tmp_path}/missing/x.db", name="a")


@pytest.mark.parametrize(
    ("processes", "threads", "said"),
    [
        (1, 64, None),
        (4, 2, None),
        (4, 3, "4 processes of 3 threads each train on 8, and wait for each other: --training-threads 2 is faster."),
        (16, 1, "--training-threads 1 and --workers 8 is faster."),
    ],
)
def test_more_threads_than_there_are_is_said_with_what_is_faster(
    processes: int, threads: int, said: str | None
) -> None:
    line = crowded(processes, threads, 8)
    assert (line is None) if said is None else (line is not None and line.endswith(said))
