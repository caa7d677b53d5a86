"""What a profile measures: a grid that spans the widths, nothing twice, and again where the machine moved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from latency_world import CALL, World
from test_latency_operators import found
from test_latency_prediction import profiled, world

from conet_onnx.latency.isolated import time_all
from conet_onnx.latency.nodes import NULL, make
from conet_onnx.latency.profiling import AGAIN, DRIFT, NULLS, Profile, bounds, random_widths
from conet_onnx.latency.table import Host, Table, identity

HOST = Host("p", 1, "cpu", 1, "1")


def drift_of(made: World, table: Table) -> float:
    return table.models[identity(made.analysis.graph)].drift


@pytest.mark.parametrize("name", ["digits_resnet8", "depthwise", "matmul"])
def test_the_grid_spans_what_the_widths_may_be(name: str) -> None:
    analysis, operators = found(name)
    points = Profile(analysis, operators, HOST).points
    low, high = bounds(analysis)
    sizes = operators.sizes(np.stack([low, high]))
    for one in operators.listed:
        if 0 < one.kind.symbols <= 2:
            grid = np.array(points[one.kind])
            assert (grid.min(axis=0) <= np.maximum(sizes[0, list(one.columns)], 16)).all()
            assert (grid.max(axis=0) >= sizes[1, list(one.columns)]).all()


def test_all_is_measured_once_and_what_a_table_holds_is_not_measured_again() -> None:
    made, profile = world("matmul")
    table = profiled(made, profile)
    assert made.timed == len(profile.asked) + NULLS
    assert table.call == pytest.approx(CALL)
    assert len(made.compared) == profile.anchors == len(set(made.compared))
    again, known = world("matmul")
    known = replace(known, known=table)
    assert not known.asked
    assert known.missing_anchors == 0
    assert known.estimate(1.0) == 0
    assert profiled(again, known).models == table.models
    assert again.compared == []
    assert again.timed == NULLS


def test_more_anchors_are_others() -> None:
    made, profile = world("matmul")
    table = profiled(made, profile)
    more = profiled(made, replace(profile, known=table, anchors=20))
    assert len({one.widths for one in more.models[identity(made.analysis.graph)].measured}) == 20


def test_a_machine_at_peace_measures_nothing_twice_and_drifts_by_nothing() -> None:
    made, profile = world("matmul", moods=[1.0, 1.05, 0.98])
    assert drift_of(made, profiled(made, profile)) < 1.1
    assert made.asked == 2 + profile.anchors


def test_operators_are_measured_again_where_the_source_moved_meanwhile() -> None:
    made, profile = world("matmul", moods=[1.0, 1.5, 1.5])
    table = profiled(made, profile)
    assert made.timed == 2 * (len(profile.asked) + NULLS)
    assert drift_of(made, table) < DRIFT


def test_a_machine_that_never_rests_is_told_of_after_some_times() -> None:
    moods = [1.5**k for k in range(2 + AGAIN)]
    made, profile = world("matmul", moods=moods)
    table = profiled(made, profile)
    assert made.timed == (1 + AGAIN) * (len(profile.asked) + NULLS)
    assert drift_of(made, table) == pytest.approx(1.5)
    assert Table.from_json(table.as_json()).models[identity(made.analysis.graph)].drift == pytest.approx(1.5)


def test_whole_models_are_measured_again_where_the_source_moved_beside_them() -> None:
    made, profile = world("matmul", moods=[1, 1, 1, 1, 1.4, 1, 1, 0.7])
    table = profiled(made, profile)
    assert len(made.compared) == profile.anchors + 2
    assert made.compared[-2:] == [made.compared[2], made.compared[5]]
    assert drift_of(made, table) < DRIFT
    restless, profile = world("matmul", moods=[1, 1, *([1] * 15), *([2] * 20)])
    assert drift_of(restless, profiled(restless, profile)) == pytest.approx(2)
    assert len(restless.compared) == profile.anchors + AGAIN


def test_random_widths_are_multiples_where_there_is_room() -> None:
    analysis, _ = found("digits_resnet8")
    rng = np.random.default_rng(0)
    for _ in range(50):
        widths = random_widths(analysis, rng)
        assert all(size % 16 == 0 for name, size in widths.items() if analysis.widths[name].size >= 16)
        assert all(1 <= size <= 2 * analysis.widths[name].size for name, size in widths.items())


class TestIsolated:
    """Timing single operators, by a clock that each look moves on by a microsecond."""

    def clock(self) -> float:
        self.now = getattr(self, "now", 0.0) + 1e-6
        return self.now

    def test_each_is_sampled_and_one_that_does_not_run_is_none(self) -> None:
        node = found("matmul")[1].kinds[0]
        assert node.example is not None
        example = node.example
        bad = (*example.numbers[:-2], example.numbers[-2] + 1, example.numbers[-1])  # rows that do not match
        jobs = [lambda: NULL, lambda: make(example, bad), lambda: make(example, example.numbers)]
        done: list[float] = []
        samples = dict(time_all(jobs, provider="cpu", threads=1, progress=done.append, clock=self.clock))
        assert samples[1] is None
        timed = [sample for k in (0, 2) if (sample := samples[k]) is not None]
        assert [sample.seconds for sample in timed] == pytest.approx([1e-6, 1e-6])
        assert [sample.runs for sample in timed] == [60, 60]
        assert done[-1] == 1.0
