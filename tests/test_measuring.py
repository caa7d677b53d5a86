"""The benchmarks' own arithmetic, and the committed table."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from tools import bench_core
from tools.measuring import compared, high_water, in_turns, line, markdown, timed, within

TABLE = Path(__file__).resolve().parent.parent / "tools/results/bench_core.md"


def test_a_ratio_to_a_peer_is_the_median_of_the_pairs_and_not_the_ratio_of_medians():
    row = compared("b", "c", [(1.0, 1.0), (6.0, 2.0), (8.0, 4.0)], "peer", 2.0)
    assert row.ratio == 2.0
    assert row.measured / row.against == 3.0
    assert (row.low, row.high) == (1.5, 2.5)


@pytest.mark.parametrize(("times", "ok"), [([0.1, 0.2, 0.3], True), ([0.2, 0.3, 0.4], False)])
def test_a_limit_holds_up_to_its_value(times, ok):
    assert within("b", "c", times, 0.2).ok is ok


def test_two_sides_go_first_in_turns():
    called = []
    pairs = in_turns(lambda: called.append("a") or 1.0, lambda: called.append("b") or 2.0, 3)
    assert called == ["a", "b", "b", "a", "a", "b"]
    assert pairs == [(1.0, 2.0)] * 3


def test_high_water_sees_what_was_freed_again():
    gc.collect()
    with high_water() as risen:
        block = np.ones(20_000_000)
        del block
        assert 150e6 < risen() < 200e6


def test_the_work_is_timed_and_not_the_freeing():
    assert 0 <= timed(lambda: None) < 1


def test_a_row_says_whether_its_limit_holds():
    row = within("b", "c", [0.3], 0.2)
    assert line(row).endswith("NO")
    assert markdown("Title", "make", {"processor": "p"}, [row]).splitlines()[-1].endswith("| NO |")


def test_chains_have_as_many_nodes_as_they_say():
    for residual in (False, True):
        assert len(bench_core._chain(100, residual).graph.node) == 100


def test_the_committed_table_has_rows_of_every_benchmark():
    rows = [row.split(" | ")[0].strip("| ") for row in TABLE.read_text().splitlines() if row.startswith("| ")]
    # A benchmark may name its rows more fully than its flag does.
    assert {row.split("+")[0].split()[0] for row in rows[2:]} == set(bench_core.BENCHES) - bench_core.ON_REQUEST
