"""A search with a fake evaluation, as a program: `python searching_victim.py DIR [step to die at | delay]`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from searching_fakes import FakeEvaluate, chain

from conet_onnx.records.study import TrialStudy, locked
from conet_onnx.searching.algorithms import find_method
from conet_onnx.searching.budget import Budget
from conet_onnx.searching.crew import Alone
from conet_onnx.searching.loop import Clock, Loop
from conet_onnx.searching.space import WidthSpace
from conet_onnx.searching.task import Report, TrialOutcome, TrialTask

TRIALS = 8


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, *, die_at: str | None = None, delay: float = 0.0) -> None:
    """`die_at` is "POINT:NUMBER" with a point of `steps` below."""
    point, _, number = (die_at or ":").partition(":")

    def reaches(name: str, at: int) -> None:
        if name == point and str(at) == number:
            die()

    def around(function: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        def wrapped(subject: Any, *rest: Any) -> Any:
            reaches(before, subject.number)
            result = function(subject, *rest)
            reaches(after, subject.number)
            return result

        return wrapped

    space = WidthSpace(chain(16, 32, 64))
    limits = Budget(macs=0.5).resolve(space.price(space.source))
    searcher = find_method("anneal").searcher(space, limits, trials=TRIALS, seed=5)
    evaluate = FakeEvaluate({"w0": 24, "w1": 20, "w2": 50}, noise=0.05)

    def recorded(task: TrialTask, report: Report) -> TrialOutcome:
        with open(folder / "evaluations.log", "a") as log:
            log.write(f"{task.number}\n")
        time.sleep(delay)
        return evaluate(task, report)

    for name in ("weights", "plans"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with locked(folder):
        study = TrialStudy(folder / "trials.db", bounds=space.bounds)
        study.begin = around(study.begin, "before begin", "after begin")  # type: ignore[method-assign]  # the kill goes in between
        study.note = around(study.note, "after rename", "after note")  # type: ignore[method-assign]  # the kill goes in between
        study.finish = around(study.finish, "before finish", "after finish")  # type: ignore[method-assign]  # the kill goes in between
        set_state = study._storage.set_trial_state_values

        def tell(trial_id: int, *rest: Any) -> Any:
            reaches("before tell", study._storage.get_trial_number_from_id(trial_id))
            return set_state(trial_id, *rest)

        study._storage.set_trial_state_values = tell  # type: ignore[method-assign]  # the kill goes in between
        crew = Alone(around(recorded, "before evaluate", "evaluated"))
        Loop(folder, space, limits, searcher, study, crew, seed=5).run(TRIALS, Clock(TRIALS))
        study.close()


if __name__ == "__main__":
    argument = sys.argv[2] if len(sys.argv) > 2 else None
    if argument and ":" in argument:
        main(Path(sys.argv[1]), die_at=argument)
    else:
        main(Path(sys.argv[1]), delay=float(argument or 0))
