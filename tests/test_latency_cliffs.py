"""Cliffs: a staircase of times is found by its block, and predictions and multiples follow it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from latency_world import CALL, World
from test_latency_operators import found

from conet_onnx.latency.cliffs import BLOCKS, beside, block_of
from conet_onnx.latency.isolated import Sample
from conet_onnx.latency.limits import fast_multiples
from conet_onnx.latency.nodes import NULL
from conet_onnx.latency.prediction import predictor
from conet_onnx.latency.profiling import NULLS, Profile
from conet_onnx.latency.table import Entry, Host, Point, Table, merged

HOST = Host("p", 1, "cpu", 1, "1")


def measured(block: int, *, base: float = 2e-6, each: float = 1e-6, noise: float = 0.0, last: int = 256) -> dict:
    rng = np.random.default_rng(block)
    sizes = beside([2**k for k in range(4, last.bit_length())])
    return {
        size: Point((base + each * (-(-size // block) * block)) * (1 + noise * rng.normal()), noise, 9)
        for size in sizes
    }


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_staircase_is_found_by_its_block(block: int, noise: float) -> None:
    line = measured(block, noise=noise)
    assert len(line) >= 6
    assert block_of(line) == block


def test_what_takes_the_same_everywhere_has_no_block() -> None:
    assert block_of(measured(1, each=0.0, noise=0.02)) == 1


def test_what_falls_is_no_staircase() -> None:
    for step in (1, 8):
        line = {size: Point(1e-4 / -(-size // step), 0.0, 9) for size in measured(1)}
        assert block_of(line) == 1


def test_a_call_is_no_part_of_the_steps() -> None:
    assert block_of({s: replace(p, seconds=p.seconds + 1e-5) for s, p in measured(8).items()}, 1e-5) == 8


def test_where_layouts_have_a_grain_coarser_blocks_are_looked_for() -> None:
    sizes = beside([16, 32, 64, 128], grain=16)
    assert sizes == [48, 64, 80, 96]
    for block in (1, 32):
        line = {size: Point(1e-6 * (-(-size // block) * block), 0.0, 9) for size in sizes}
        assert block_of(line) == block


@pytest.mark.parametrize("lines", [[], [1, 2, 4], [4096, 8192]])
def test_sizes_that_are_too_small_or_too_large_are_left_alone(lines: list[int]) -> None:
    assert beside(lines) == []


class Stairs(World):
    """Every size above 16 counts as the next multiple of 16."""

    def time_all(self, models: Sequence[Any], **_: Any) -> Iterator[tuple[int, Sample]]:
        for k, make in enumerate(models):
            made = make()
            self.timed += 1
            shapes = [array.shape for array in made.feeds.values()]
            shapes += [tuple(t.dims) for t in onnx.load_from_string(made.model).graph.initializer]
            rounded = [[-(-n // 16) * 16 if n > 16 else n for n in shape] for shape in shapes]
            elements = sum(float(np.prod(shape)) for shape in rounded)
            yield k, Sample(CALL + (0 if made is NULL else self.alone(elements)), 0.0, 9)


def profiled(name: str = "matmul") -> tuple[Stairs, Profile, Table]:
    analysis, operators = found(name)
    made, profile = Stairs(analysis, operators), Profile(analysis, operators, HOST)
    return made, profile, profile.run(compare=made.compare, measure=made.measure, time_all=made.time_all)


class TestInAProfile:
    def test_blocks_are_in_the_table_with_the_points_that_tell_of_them(self) -> None:
        made, profile, table = profiled()
        assert made.timed == len(profile.asked) + NULLS
        entries = [table.kinds[kind.key] for kind in profile.operators.kinds if kind.symbols == 1]
        steep = [entry for entry in entries if any(sizes[0] > 32 for sizes in entry.steps)]
        assert steep
        assert all(entry.blocks == (16,) for entry in steep)
        assert Table.from_json(table.as_json()) == Table.from_json(Table.from_json(table.as_json()).as_json())
        assert Table.from_json(table.as_json()).kinds[profile.operators.kinds[0].key].steps

    def test_widths_snap_to_them_and_predictions_follow(self) -> None:
        made, _, table = profiled()
        predicted = predictor(made.analysis, made.operators, table)
        assert set(fast_multiples(made.operators).values()) == {1}  # layouts say nothing of it
        fast = fast_multiples(made.operators, predicted)
        assert 16 in fast.values()
        steep = [kind for kind in made.operators.kinds if table.kinds[kind.key].blocks == (16,)]
        assert steep
        for kind in steep:
            *flat, above = predicted.curves[kind](np.array([[33], [40], [48], [49]]))
            assert np.ptp(flat) == 0
            assert above > flat[0]

    def test_points_that_fall_into_one_block_count_together(self) -> None:
        made, _, table = profiled()
        kind = next(kind for kind in made.operators.kinds if table.kinds[kind.key].blocks == (16,))
        entry = table.kinds[kind.key]
        points = {**entry.points, (48,): Point(table.call + 1e-5, 0, 9), (64,): Point(table.call + 3e-5, 0, 9)}
        wider = replace(table, kinds={**table.kinds, kind.key: replace(entry, points=points, blocks=(32,))})
        curve = predictor(made.analysis, made.operators, wider).curves[kind]
        assert curve(np.array([[33], [48], [50], [64]])) == pytest.approx(2e-5)

    def test_below_a_block_sizes_are_what_was_measured(self) -> None:
        made, _, table = profiled()
        kind = next(kind for kind in made.operators.kinds if table.kinds[kind.key].blocks == (16,))
        entry = table.kinds[kind.key]
        points = {**entry.points, **{(n,): Point(table.call + n * 1e-6, 0, 9) for n in (4, 8, 16)}}
        known = replace(table, kinds={**table.kinds, kind.key: replace(entry, points=points)})
        curve = predictor(made.analysis, made.operators, known).curves[kind]
        assert curve(np.array([[4], [8], [16]])) == pytest.approx([4e-6, 8e-6, 16e-6])

    def test_an_operator_of_no_weight_in_the_whole_does_not_count(self) -> None:
        made, _, table = profiled()
        predicted = predictor(made.analysis, made.operators, table)
        trifle = replace(predicted, coefficients={"": 1e-9}, constant=1.0)
        assert set(fast_multiples(made.operators, trifle).values()) == {1}

    def test_what_is_known_is_not_looked_for_again(self) -> None:
        _, profile, table = profiled()
        again = replace(profile, known=table)
        assert not again.asked
        unknown = {key: replace(entry, blocks=(), steps={}) for key, entry in table.kinds.items()}
        older = replace(profile, known=replace(table, kinds=unknown))
        assert older.asked
        assert not any(older.points.values())

    def test_tables_keep_them_when_they_are_merged(self) -> None:
        points = {(16,): Point(1e-6, 0, 7)}
        bare = Table(HOST, 0.0, {"k": Entry("Gemm", (), points)})
        rich = Table(HOST, 0.0, {"k": Entry("Gemm", (), points, (8,), {(33,): Point(1e-6, 0, 7)})})
        for both in (merged([bare, rich]), merged([rich, bare])):
            assert both.kinds["k"].blocks == (8,)
            assert (33,) in both.kinds["k"].steps
            assert (33,) not in both.kinds["k"].points
