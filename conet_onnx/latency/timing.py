"""Time models in onnxruntime: one alone, or two interleaved and compared as a ratio with its interval.

A run is one `session.run` from arrays in host memory to arrays in host memory, with onnxruntime's default options:
denormals are not flushed to zero (`session.set_denormal_as_zero` is off, as it is for whoever deploys the file).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.runtime import random_feeds, run_session, session

__all__ = ["FORMAT", "Comparison", "Latency", "Ratio", "compare", "measure"]

FORMAT = "conet-onnx-bench/1"

Array = np.ndarray[Any, Any]
Progress = Callable[[float], None]

MIN_ROUNDS, MAX_ROUNDS = 10, 500
WARM_UP = 0.1  # share of the time
TURN = 0.010  # seconds: a model runs for about so long before the other's turn comes
MAX_REPEATS = 16
LOOKS = 1.5  # the precision is looked at whenever the rounds have grown by this factor
RESAMPLES = 1000
CONFIDENCE = 95.0


@dataclass(frozen=True, slots=True)
class Latency:
    """What one run of a model takes, in milliseconds: the median and the 95th percentile of `runs` runs."""

    file: str
    p50_ms: float
    p95_ms: float
    runs: int

    def as_json(self) -> dict[str, Any]:
        """As `a` or `b` of conet-onnx-bench/1."""
        return {"file": self.file, "p50_ms": self.p50_ms, "p95_ms": self.p95_ms}


@dataclass(frozen=True, slots=True)
class Ratio:
    """b's median over a's (below 1: b is faster), with the bootstrap's 95% interval."""

    p50: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models measured in turns."""

    a: Latency
    b: Latency
    ratio: Ratio

    def as_json(self) -> dict[str, Any]:
        """As conet-onnx-bench/1."""
        ratio = {"p50": self.ratio.p50, "low": self.ratio.low, "high": self.ratio.high}
        return {"format": FORMAT, "a": self.a.as_json(), "b": self.b.as_json(), "ratio": ratio}


def measure(
    graph: Graph,
    *,
    provider: str = "auto",
    threads: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    seconds: float = 5.0,
    precision: float = 0.01,
    progress: Progress | None = None,
) -> Latency:
    """The latency of one model on random inputs.

    Runs until the median's interval is within `precision` of it on either side, or `seconds` are over. `batch` is the
    size of a symbolic first axis (default 1). `progress` is called with the share of the time that is spent. Raises
    UsageError for a batch that the model does not take, ModelError where it does not run.
    """
    run = _runner(graph, provider, threads, batch, seed)
    (times,) = _take_turns([run], seed=seed, seconds=seconds, precision=precision, progress=progress)
    return _latency(graph.file, times)


def compare(
    a: Graph,
    b: Graph,
    *,
    provider: str = "auto",
    threads: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    seconds: float = 10.0,
    precision: float = 0.01,
    progress: Progress | None = None,
) -> Comparison:
    """Two models measured in turns, so that whatever else the machine does meets both; parameters as `measure`.

    Each round gives both their turn, in random order. The ratio's interval is a percentile bootstrap over whole
    rounds (Efron & Tibshirani 1993, ch. 13), which keeps what the two turns of a round have in common.
    """
    runs = [_runner(graph, provider, threads, batch, seed) for graph in (a, b)]
    times = _take_turns(runs, seed=seed, seconds=seconds, precision=precision, progress=progress)
    first, second = (_latency(graph.file, taken) for graph, taken in zip((a, b), times, strict=True))
    low, high = _interval(times, seed)
    return Comparison(first, second, Ratio(second.p50_ms / first.p50_ms, low, high))


def _runner(
    graph: Graph, provider: str, threads: int | None, batch: int | None, seed: int
) -> Callable[[], dict[str, Array]]:
    if batch is not None:
        if batch < 1:
            raise UsageError(f"batch must be at least 1, got {batch}.")
        for value in graph.inputs:
            if value.shape and isinstance(value.shape[0], int) and value.shape[0] != batch:
                raise UsageError(
                    f"{graph.file or 'the model'}: the first axis of input {value.name!r} is fixed at "
                    f"{value.shape[0]}, got a batch of {batch}; leave the batch out."
                )
    if batch is None and not graph.input_shapes:
        batch = 1
    feeds = random_feeds(graph, seed, batch=batch)
    started = session(graph, provider=provider, threads=threads)
    return lambda: run_session(started, feeds)


def _latency(file: str, times: Array) -> Latency:
    p50, p95 = np.percentile(times * 1e3, [50, 95])
    return Latency(file, float(p50), float(p95), times.size)


def _take_turns(
    runs: Sequence[Callable[[], object]],
    *,
    seed: int,
    seconds: float,
    precision: float,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Array]:
    """The seconds of every recorded run, one array [rounds, repeats] for each of `runs`.

    Stops at a fixed width of the interval, whatever it says: such an interval keeps its coverage (Chow & Robbins
    1965). Time is bounded by `seconds`, the runs of one round at most in excess.
    """
    start = clock()
    rng = np.random.default_rng(seed)
    typical = [_warm_up(run, seconds * WARM_UP / len(runs), clock) for run in runs]
    repeats = [min(max(math.ceil(TURN / max(t, 1e-9)), 1), MAX_REPEATS) for t in typical]
    taken: list[list[list[float]]] = [[] for _ in runs]
    look = MIN_ROUNDS
    for done in range(1, MAX_ROUNDS + 1):
        for which in rng.permutation(len(runs)):
            if len(runs) > 1 and repeats[which] > 1:
                runs[which]()  # unrecorded: caches hold the other model, and its threads may still spin
            taken[which].append([_time(runs[which], clock) for _ in range(repeats[which])])
        spent = (clock() - start) / seconds
        if progress is not None:
            progress(min(spent, 1.0))
        if spent >= 1:
            break
        if done >= look:
            look = math.ceil(look * LOOKS)
            low, high = _interval([np.array(t) for t in taken], seed)
            if (high - low) / (high + low) <= precision:
                break
    if progress is not None:
        progress(1.0)
    return [np.array(t) for t in taken]


def _warm_up(run: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    """Run until it is warm; the typical seconds of a run."""
    until = clock() + seconds
    run()  # allocates, and is never typical
    times = [_time(run, clock)]
    while clock() < until and len(times) < 100:
        times.append(_time(run, clock))
    return float(np.median(times))


def _time(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def _interval(times: Sequence[Array], seed: int) -> tuple[float, float]:
    """The 95% interval of the median (of one), or of the second's median over the first's (of two)."""
    rounds = len(times[0])
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, rounds, (RESAMPLES, rounds))  # the same rounds for both: they are paired
    medians = [np.median(taken[drawn].reshape(RESAMPLES, -1), axis=1) for taken in times]
    statistic = medians[-1] if len(medians) == 1 else medians[1] / medians[0]
    low, high = np.percentile(statistic, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
    return float(low), float(high)
