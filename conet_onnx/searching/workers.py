"""Evaluations in processes of their own, which end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias

from conet_onnx.errors import ConetError, ProcessDied
from conet_onnx.searching.task import Evaluate, Report, TrialOutcome, TrialTask

__all__ = ["Workers", "crowded"]

Open: TypeAlias = Callable[[], Evaluate]

PATIENCE = 5.0  # seconds to tidy up in, before a process is killed
PAUSE = 0.2  # seconds between two reports
LIVES = 2  # times that a trial may take its process with it


def crowded(processes: int, threads: int, there: int) -> str | None:
    """What is said of processes that have more threads in all than there are: they wait for each other."""
    if processes == 1 or processes * threads <= there:
        return None
    fewer = max(there // processes, 1)
    each = f"{threads} thread{'' if threads == 1 else 's'} each"
    less = "" if fewer * processes <= there else f" and --workers {there}"
    faster = f"--training-threads {fewer}{less} is faster."
    return f"{processes} processes of {each} train on {there}, and wait for each other: {faster}"


@dataclass
class Worker:
    """One process, and what it is at."""

    process: BaseProcess
    connection: Connection
    task: TrialTask | None = None
    report: Report | None = None


class Workers:
    """`size` processes, begun at once, each of which calls `open` (which must be picklable) once.

    They are spawned, since torch and onnxruntime do not survive a fork. One that dies is replaced, and its trial runs
    again; if that dies too, ProcessDied. What an evaluation raises is raised by `ended`. They leave Ctrl-C to this
    process, and end when it does, however it does.
    """

    def __init__(self, open: Open, size: int) -> None:  # noqa: A002 (it is what it does)
        self._open = open
        self._deaths: dict[int, int] = {}
        self._workers: list[Worker] = []
        for _ in range(size):
            self._workers.append(self._hired())

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *failure: Any) -> None:
        self.close()

    @property
    def size(self) -> int:
        """How many processes."""
        return len(self._workers)

    def start(self, task: TrialTask, report: Report) -> None:
        """Give it to one that has nothing to do."""
        worker = next(worker for worker in self._workers if worker.task is None)
        worker.task, worker.report = task, report
        with suppress(OSError):  # it has died: `ended` sees to that
            worker.connection.send(task)

    def ended(self, seconds: float | None) -> Iterable[tuple[int, TrialOutcome]]:
        """Hear reports until one has ended."""
        until = None if seconds is None else time.monotonic() + seconds
        found: list[tuple[int, TrialOutcome]] = []
        while not found:
            left = None if until is None else max(until - time.monotonic(), 0.0)
            ready = wait([worker.connection for worker in self._workers], left)
            for index, worker in enumerate(self._workers):
                if worker.connection in ready:
                    found.extend(self._heard(index, worker))
            if not ready and left is not None:
                break
        return found

    def close(self) -> None:
        """End them all. What they were writing is taken away, as far as they are given the time."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def _heard(self, index: int, worker: Worker) -> Iterator[tuple[int, TrialOutcome]]:
        try:
            kind, value = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(index, worker)
            return
        if kind == "failed":
            raise value
        if kind == "share" and worker.report:
            worker.report(value)
        if kind == "outcome" and worker.task:
            yield worker.task.number, value
            worker.task = worker.report = None

    def _replace(self, index: int, dead: Worker) -> None:
        """Another process in place of one that died, for the same trial."""
        dead.process.join(PATIENCE)
        dead.connection.close()
        number = -1 if dead.task is None else dead.task.number
        self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._deaths[number] >= LIVES:
            code = dead.process.exitcode or 0
            how = f"killed by signal {-code}" if code < 0 else f"gone with code {code}"
            what = "a process that was to evaluate trials" if number < 0 else f"the process of trial {number + 1}"
            raise ProcessDied(
                f"{what} was {how}, twice. If memory ran out, fewer of them (--workers) need less; go on with --resume."
            )
        self._workers[index] = self._hired()
        if dead.task is not None and dead.report is not None:
            self.start(dead.task, dead.report)

    def _hired(self) -> Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._open), daemon=True)
        with _deaf():
            process.start()
        theirs.close()
        return Worker(process, ours)


def serve(connection: Connection, open: Open) -> None:  # noqa: A002
    """A worker's life: tasks come in, outcomes go out. Ends in silence with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent sees to it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # files that are half written go away
    threading.Thread(target=_follow, daemon=True).start()
    try:
        evaluate = open()
        while True:
            task = connection.recv()
            outcome = evaluate(task, _reporter(connection))
            connection.send(("outcome", outcome))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        return
    except Exception as error:  # whatever it is, the parent raises it (Workers._heard) and says it
        with suppress(OSError):
            connection.send(("failed", _sendable(error)))


def _reporter(connection: Connection) -> Report:
    last = -PAUSE

    def report(share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PAUSE:
            last = now
            connection.send(("share", share))

    return report


def _follow() -> None:
    """End when the parent does, in the middle of whatever it is."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The error itself where it survives the way, else its words; with where it came from, for --debug."""
    sent: Exception = error
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickling calls code of the error's own package, which may raise anything
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, ConetError):
        sent.add_note("".join(traceback.format_exception(error)))
    return sent


@contextmanager
def _deaf() -> Iterator[None]:
    """A process that is started here hears no Ctrl-C, not even before it can say so itself."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # on its first start it would let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
