"""One of several processes that share a search with a fake evaluation: `python parallel_victim.py DIR URL [delay]`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from searching_fakes import FakeEvaluate, chain

from conet_onnx.records.claims import Shared, Sole
from conet_onnx.records.study import TrialStudy, locked, study_of
from conet_onnx.records.trial import Trial
from conet_onnx.searching.algorithms import find_method
from conet_onnx.searching.budget import Budget
from conet_onnx.searching.crew import Alone, Crew
from conet_onnx.searching.loop import Clock, Loop
from conet_onnx.searching.space import WidthSpace
from conet_onnx.searching.task import Report, TrialOutcome, TrialTask

TRIALS = 9


@dataclass(frozen=True)
class Recorded:
    """FakeEvaluate that writes down what it does, and takes its time over some trials."""

    folder: Path
    delays: Mapping[int, float] = field(default_factory=dict)
    delay: float = 0.0

    def __call__(self, task: TrialTask, report: Report) -> TrialOutcome:
        with open(self.folder / "evaluations.log", "a") as log:
            log.write(f"{task.number}\n")
        time.sleep(self.delays.get(task.number, self.delay))
        outcome = FakeEvaluate({"w0": 24, "w1": 20, "w2": 50}, noise=0.05)(task, report)
        with open(self.folder / "ends.log", "a") as log:
            log.write(f"{task.number}\n")
        return outcome


@contextmanager
def loop(
    folder: Path, crew: Crew, *, at_once: int, url: str | None = None, trials: int = TRIALS, lease: float = 45.0
) -> Iterator[Loop]:
    space = WidthSpace(chain(16, 32, 64))
    limits = Budget(macs=0.5).resolve(space.price(space.source))
    searcher = find_method("anneal").searcher(space, limits, trials=TRIALS, seed=5)
    for name in ("weights", "plans"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if url is None:
        with locked(folder):
            study = TrialStudy(folder / "trials.db", bounds=space.bounds)
            yield Loop(folder, space, limits, searcher, study, crew, 5, at_once, Sole())
            study.close()
        return
    study = TrialStudy(url, name=study_of(folder), bounds=space.bounds)
    claims = Shared(study.storage.engine, study_of(folder), lease=lease, beat=0.1)
    yield Loop(folder, space, limits, searcher, study, crew, 5, at_once, claims, poll=0.02)
    claims.close()
    study.close()


def run(folder: Path, crew: Crew, *, trials: int = TRIALS, **how: Any) -> tuple[Trial, ...]:
    with loop(folder, crew, trials=trials, **how) as made:
        return made.run(trials, Clock(trials))


if __name__ == "__main__":
    folder, url, delay = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    run(folder, Alone(Recorded(folder, delay=delay)), at_once=3, url=url, lease=float(sys.argv[4]))
