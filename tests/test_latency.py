"""Latency: adaptive, bounded, interleaved; time comes from a clock that the test turns."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.latency.timing import FORMAT, _interval, _latency, _take_turns, compare, measure


class Machine:
    """A clock that only running moves on: each run costs its model's milliseconds times the machine's mood."""

    def __init__(self, *costs_ms: float, noise: float = 0.0, slow_down: float = 0.0) -> None:
        self.now = 0.0
        self.order: list[int] = []
        self.noise = noise
        self.slow_down = slow_down
        self.rng = np.random.default_rng(1)
        self.runs = [lambda which=which: self._run(which, costs_ms[which]) for which in range(len(costs_ms))]

    def clock(self) -> float:
        return self.now

    def _run(self, which: int, cost: float) -> None:
        mood = (1 + self.slow_down * self.now) * (1 + self.noise * self.rng.exponential())
        self.now += cost * 1e-3 * mood
        self.order.append(which)

    def take_turns(self, *, seed: int = 0, seconds: float = 5.0, precision: float = 0.01, progress=None):
        return _take_turns(
            self.runs, seed=seed, seconds=seconds, precision=precision, progress=progress, clock=self.clock
        )


def relu(shape=(1, 4), file="") -> Graph:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    if file:
        onnx.save(model, file)
    return Graph(model, file=file)


def test_constant_costs_are_found_exactly_and_at_once():
    machine = Machine(2.0, 4.0)
    a, b = machine.take_turns()
    assert np.allclose(a, 2e-3)
    assert np.allclose(b, 4e-3)
    assert len(a) == len(b) == 10  # no more rounds than are needed
    assert _interval([a, b], 0) == pytest.approx((2.0, 2.0))


def test_a_machine_that_grows_slower_meets_both_models():
    machine = Machine(2.0, 4.0, slow_down=0.5, noise=0.2)
    a, b = machine.take_turns(seconds=4.0, precision=0.0)
    low, high = _interval([a, b], 0)
    assert low < np.median(b) / np.median(a) < high
    assert np.median(b) / np.median(a) == pytest.approx(2.0, rel=0.05)
    assert low < 2.0 < high


def test_noise_asks_for_more_rounds():
    calm, noisy = Machine(2.0, noise=0.001), Machine(2.0, noise=1.0)
    assert len(calm.take_turns()[0]) < len(noisy.take_turns()[0])


def test_a_finer_precision_gives_a_narrower_interval():
    def width(precision: float) -> float:
        low, high = _interval(Machine(2.0, 3.0, noise=0.3).take_turns(seconds=60.0, precision=precision), 0)
        return (high - low) / (high + low)

    assert width(0.02) <= 0.02 < width(0.1) <= 0.1


def test_time_is_bounded_to_the_round():
    machine = Machine(300.0, 500.0, noise=0.5)
    machine.take_turns(seconds=10.0, precision=0.0)
    assert 10.0 <= machine.now < 10.0 + 5 * (0.3 + 0.5)


def test_a_model_slower_than_the_budget_still_gets_one_round():
    machine = Machine(5_000.0)
    (times,) = machine.take_turns(seconds=1.0)
    assert times.shape == (1, 1)


def test_both_models_have_one_turn_in_every_round_in_an_order_that_chance_decides():
    machine = Machine(60.0, 60.0, noise=0.5)  # slow enough for one run a turn
    a, _ = machine.take_turns(precision=0.0)
    turns = np.array(machine.order[-2 * len(a) :]).reshape(-1, 2)
    assert (turns.sum(axis=1) == 1).all()
    assert 0 < turns[:, 0].sum() < len(turns)


def test_the_same_seed_gives_the_same_order():
    def order(seed: int) -> list[int]:
        machine = Machine(60.0, 60.0, noise=0.5)
        machine.take_turns(seed=seed, precision=0.0)
        return machine.order

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_the_first_run_after_the_other_models_turn_is_not_recorded():
    machine = Machine(2.0, 4.0)
    a, b = machine.take_turns()
    assert a.shape == (10, 5)
    assert b.shape == (10, 3)
    assert machine.order[-10 * (5 + 3 + 2) :].count(0) == 10 * (5 + 1)


def test_progress_ends_at_one_and_never_falls():
    seen: list[float] = []
    Machine(100.0, noise=0.5).take_turns(seconds=2.0, precision=0.0, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 5


def test_percentiles_are_in_milliseconds():
    found = _latency("m.onnx", np.arange(1, 101).reshape(10, 10) * 1e-3)
    assert found.p50_ms == pytest.approx(50.5)
    assert found.p95_ms == pytest.approx(95.05)
    assert found.runs == 100


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        a, b = (cost * (1 + 0.1 * rng.standard_normal((30, 4))) for cost in (1.0, 1.5))
        low, high = _interval([a, b], seed)
        covered += low <= 1.5 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_rounds_are_resampled_as_pairs():
    mood = np.exp(np.random.default_rng(0).standard_normal((40, 1)))
    low, high = _interval([mood, 2 * mood], 0)
    assert (low, high) == pytest.approx((2.0, 2.0))


class TestRealSessions:
    def test_a_comparison_prints_as_the_contract_says(self, tmp_path):
        a, b = (relu(shape, file=str(tmp_path / f"{size}.onnx")) for size, shape in (("a", (1, 4)), ("b", (1, 10**6))))
        found = compare(a, b, provider="cpu", threads=1, seconds=0.5, precision=0.2).as_json()
        assert list(found) == ["format", "a", "b", "ratio"]
        assert found["format"] == FORMAT == "conet-onnx-bench/1"
        assert list(found["a"]) == list(found["b"]) == ["file", "p50_ms", "p95_ms"]
        assert (found["a"]["file"], found["b"]["file"]) == (a.file, b.file)
        assert list(found["ratio"]) == ["p50", "low", "high"]
        assert found["ratio"]["p50"] == pytest.approx(found["b"]["p50_ms"] / found["a"]["p50_ms"])
        assert 1 < found["ratio"]["low"] <= found["ratio"]["high"]
        assert 0 < found["a"]["p50_ms"] <= found["a"]["p95_ms"]

    def test_a_batch_that_the_model_does_not_take_is_refused(self):
        with pytest.raises(UsageError, match="fixed at 1, got a batch of 8"):
            measure(relu((1, 4)), batch=8)
        with pytest.raises(UsageError, match="at least 1"):
            measure(relu(("n", 4)), batch=0)

    def test_a_symbolic_batch_is_one_unless_asked(self):
        assert measure(relu(("n", 4)), provider="cpu", threads=1, seconds=0.1).runs > 0
        assert measure(relu(("n", 4)), provider="cpu", threads=1, seconds=0.1, batch=3).runs > 0
