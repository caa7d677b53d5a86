"""What holds a search against a limit on latency, and who makes its table."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_latency_limits import comparison
from test_latency_prediction import plain

from conet_onnx.latency.limits import Most
from conet_onnx.records.study import locked
from conet_onnx.searching import timing
from conet_onnx.searching.budget import Budget
from conet_onnx.searching.loop import Clock
from conet_onnx.searching.timing import TABLE_FILE, Held, timed


def held(shares: dict[str, float], most: Most) -> Held:
    return Held(most, 8.0, lambda file: comparison(shares[file]))


class TestHeld:
    def test_what_is_within_the_limit_changes_nothing(self) -> None:
        one = held({"a": 0.49}, Most(0.5, relative=True))
        assert one.meets("a", 7.9)[0]
        assert (one.factor, one.tried) == (1.0, [])

    def test_the_limit_falls_so_that_no_model_that_was_too_slow_is_within_it(self) -> None:
        """By hand: limit 8 ms of predictions, half of the source's time; 7 ms were predicted, and 0.6 measured."""
        one = held({"a": 0.6, "b": 0.55}, Most(0.5, relative=True))
        assert not one.meets("a", 7.0)[0]
        assert one.factor == pytest.approx(0.99 * (7 / 8) / 1.2)
        assert not one.meets("b", 8.0)[0]
        assert one.factor == pytest.approx(0.99 * (7 / 8) / 1.2)  # the tighter one stays
        assert not one.meets("b", 4.0)[0]
        assert one.factor == pytest.approx(0.99 * 0.5 / 1.1)
        assert "latency=0.55 (5.500 ms)" in str(one.unmet())
        assert "of 3 models" in str(one.unmet())

    def test_a_model_with_the_source_s_sizes_takes_what_that_takes(self) -> None:
        one = held({"a": 1.02}, Most(1.0, relative=True))
        assert one.meets("a", 8.0, source=True)[0]
        assert not held({"a": 1.02}, Most(0.9, relative=True)).meets("a", 8.0, source=True)[0]
        assert not held({"a": 1.02}, Most(0.01, relative=False)).meets("a", 8.0, source=True)[0]  # seconds are seconds

    def test_seconds(self) -> None:
        assert held({"a": 0.5}, Most(0.005, relative=False)).meets("a", 8.0)[0]
        assert not held({"a": 0.5}, Most(0.0049, relative=False)).meets("a", 8.0)[0]


def test_of_several_processes_one_makes_the_table_and_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, table, _ = plain("matmul")
    monkeypatch.setattr(timing, "POLL", 0.01)
    monkeypatch.setattr(timing, "prepared", None)  # whoever waits makes none
    monkeypatch.setattr(type(table), "check", lambda *_, **__: [])
    phases: list[str] = []
    clock = Clock(1.0, progress=lambda phase, *_: phases.append(phase))
    found: list[Any] = []

    def waits() -> None:
        how: dict[str, Any] = {"provider": "cpu", "threads": 1, "clock": clock, "shared": True}
        found.append(timed(made.analysis, tmp_path, (), budget=Budget(latency=0.5), **how))

    with locked(tmp_path):
        thread = threading.Thread(target=waits)
        thread.start()
        time.sleep(0.1)
        assert found == []
        table.save(tmp_path / TABLE_FILE)
    thread.join(10)
    assert found[0].most == Most(0.5, relative=True)
    assert "another process profiles the model" in phases
