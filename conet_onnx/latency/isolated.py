"""Time single operators: each a model of one node, run once a turn, so that its weights are as cold as in a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conet_onnx.errors import ModelError
from conet_onnx.latency.nodes import Made
from conet_onnx.runtime import PROVIDERS, session

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["Sample", "time_all"]

Array = np.ndarray[Any, Any]

MOST_BYTES = 3 << 28  # of weights and activations that are held at a time
MOST_SESSIONS = 128
LEAST_TURNS, MOST_TURNS = 7, 60
ENOUGH = 0.1  # seconds of runs that settle a median


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one operator at some sizes: the median, and half the distance of the quartiles over it."""

    seconds: float
    spread: float
    runs: int


@dataclass
class _Running:
    """A session that is bound to its arrays: running it allocates nothing."""

    session: ort.InferenceSession
    binding: Any
    touched: list[Array]
    typical: float = 0.0

    def run(self, clock: Callable[[], float]) -> float:
        """Seconds of one run, whose activations are as recent as those that a model's last operator made."""
        for array in self.touched:
            np.negative(array, out=array)
        start = clock()
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()
        return clock() - start


def time_all(
    models: Sequence[Callable[[], Made]],
    *,
    provider: str,
    threads: int | None,
    seed: int = 0,
    effort: float = 1.0,
    progress: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[tuple[int, Sample | None]]:
    """Samples of many operators, each with its place in `models`; None for one that does not run.

    They are measured in groups as large as memory allows, in random order, one run of each in turn: what one turn
    meets, all meet, and none finds its weights in the cache that it would not find there in a model. `effort` times as
    long as a median needs to settle.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(models)).tolist()
    done = 0
    group: list[tuple[int, _Running]] = []
    held = 0
    for place in order:
        started, size = _started(models[place], provider, threads, clock)
        if started is None:
            done += 1
            yield place, None
            continue
        group.append((place, started))
        held += size
        if held > MOST_BYTES or len(group) >= MOST_SESSIONS:
            yield from _measured(group, rng, effort, clock)
            done += len(group)
            group, held = [], 0
            if progress is not None:
                progress(done / len(models))
    if group:
        yield from _measured(group, rng, effort, clock)
    if progress is not None:
        progress(1.0)


def _measured(
    group: Sequence[tuple[int, _Running]], rng: np.random.Generator, effort: float, clock: Callable[[], float]
) -> Iterator[tuple[int, Sample]]:
    taken: list[list[float]] = [[] for _ in group]
    turns = [int(np.clip(effort * ENOUGH / max(one.typical, 1e-9), LEAST_TURNS, MOST_TURNS)) for _, one in group]
    for turn in range(max(turns)):
        for k in rng.permutation(len(group)):
            if turn < turns[k]:
                taken[k].append(group[k][1].run(clock))
    for (place, _), times in zip(group, taken, strict=True):
        low, median, high = np.percentile(times, [25, 50, 75])
        yield place, Sample(float(median), float((high - low) / 2 / max(median, 1e-12)), len(times))


def _started(
    make: Callable[[], Made], provider: str, threads: int | None, clock: Callable[[], float]
) -> tuple[_Running | None, int]:
    """A session that has run twice, and the bytes that it holds; None where it does not run."""
    import onnxruntime as ort

    try:
        made = make()
        started = session(made.model, provider=provider, threads=threads, optimise=False)
        binding = started.io_binding()
        device = "cpu" if provider == "cpu" or "cuda" not in PROVIDERS[provider].lower() else "cuda"
        for name, array in made.feeds.items():
            held = ort.OrtValue.ortvalue_from_numpy(array, device, 0)
            binding.bind_ortvalue_input(name, held)
        for value in started.get_outputs():
            binding.bind_output(value.name, device, 0)
        started.run_with_iobinding(binding)
        for value, output in zip(started.get_outputs(), binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(value.name, output)
        floats = [array for array in made.feeds.values() if array.dtype.kind == "f" and device == "cpu"]
        running = _Running(started, binding, floats)
        running.typical = min(running.run(clock) for _ in range(2))
    except ModelError:
        return None, 0
    except Exception as error:  # onnxruntime's errors share no base class below Exception
        if not isinstance(error, RuntimeError) and not type(error).__module__.startswith("onnxruntime"):
            raise  # a mistake of ours
        return None, 0  # sizes that it cannot run together
    moved = sum(array.nbytes for array in made.feeds.values())
    return running, len(made.model) + 3 * moved
