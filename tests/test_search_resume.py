"""Killed at any moment and started again, a search ends as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from searching_victim import TRIALS, main

from conet_onnx.records.study import read_trials
from conet_onnx.records.trial import Trial

VICTIM = Path(__file__).with_name("searching_victim.py")
POINTS = ["before begin", "after begin", "before evaluate", "evaluated", "after rename"]
POINTS += ["after note", "before finish", "before tell", "after finish"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, ...]:
    folder = tmp_path_factory.mktemp("undisturbed")
    main(folder)
    trials = read_trials(folder / "trials.db")
    assert len(trials) == TRIALS
    assert len({trial.accepted for trial in trials}) == 2
    return trials


def evaluations(folder: Path) -> Counter[int]:
    log = folder / "evaluations.log"
    return Counter(map(int, log.read_text().split())) if log.exists() else Counter()


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_step_it_goes_on_where_it_was(
    tmp_path: Path, undisturbed: tuple[Trial, ...], point: str, number: int
) -> None:
    killed = subprocess.run([sys.executable, str(VICTIM), str(tmp_path), f"{point}:{number}"], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = read_trials(tmp_path / "trials.db")
    assert len(left) == number + (point != "before begin")
    assert left[:number] == undisturbed[:number]
    main(tmp_path)
    assert read_trials(tmp_path / "trials.db") == undisturbed
    again = {number: 2} if point in ("evaluated", "after rename") else {}
    assert evaluations(tmp_path) == Counter(range(TRIALS)) | Counter(again)


def test_killed_at_random_moments_no_trial_is_lost_or_run_twice(tmp_path: Path, undisturbed: tuple[Trial, ...]) -> None:
    rng = np.random.default_rng(0)
    kills, longest, finished = 0, 0.1, _finished(tmp_path)
    while True:
        stuck = finished == (finished := _finished(tmp_path))
        longest *= 1.5 if stuck else 1.0  # on a machine that has much else to do, a trial takes longer
        victim = subprocess.Popen([sys.executable, str(VICTIM), str(tmp_path), "0.01"])
        _wait_for_more(tmp_path, evaluations(tmp_path).total(), victim)
        time.sleep(float(rng.uniform(0, longest)))
        victim.send_signal(signal.SIGKILL)
        code = victim.wait()
        assert _finished(tmp_path)[: len(finished)] == finished == undisturbed[: len(finished)]
        if code == 0:
            break
        kills += 1
    assert kills > 0
    assert read_trials(tmp_path / "trials.db") == undisturbed
    counts = evaluations(tmp_path)
    assert set(counts) == set(range(TRIALS))
    assert counts.total() - TRIALS <= kills  # only what was killed in its middle ran again


def test_a_finished_search_runs_nothing_again(tmp_path: Path) -> None:
    main(tmp_path)
    main(tmp_path)
    assert evaluations(tmp_path) == Counter(range(TRIALS))


def _finished(folder: Path) -> tuple[Trial, ...]:
    file = folder / "trials.db"
    return tuple(t for t in read_trials(file) if t.state == "complete") if file.exists() else ()


def _wait_for_more(folder: Path, before: int, victim: subprocess.Popen[bytes]) -> None:
    while evaluations(folder).total() == before and victim.poll() is None:
        time.sleep(0.005)
