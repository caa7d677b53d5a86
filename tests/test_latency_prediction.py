"""Predictions are sums of operators; what calibrates them is found again where it is known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from latency_world import BLOCK, World
from test_latency_operators import found

from conet_onnx.analysis import analyze
from conet_onnx.errors import UsageError
from conet_onnx.latency.operators import Operators
from conet_onnx.latency.prediction import (
    Accuracy,
    Predictor,
    _nonnegative,
    accuracy,
    calibrated,
    known_operators,
    predictor,
    usable,
)
from conet_onnx.latency.profiling import Profile, random_widths
from conet_onnx.latency.table import Anchor, Anchors, Host, Table, identity

HOST = Host("p", 1, "cpu", 1, "1")


def world(name: str, **known: Any) -> tuple[World, Profile]:
    analysis, operators = found(name)
    return World(analysis, operators, **known), Profile(analysis, operators, HOST)


def profiled(made: World, profile: Profile) -> Table:
    return profile.run(compare=made.compare, measure=made.measure, time_all=made.time_all)


@cache
def plain(name: str) -> tuple[World, Table, Predictor]:
    made, profile = world(name)
    table = profiled(made, profile)
    return made, table, predictor(made.analysis, made.operators, table)


def rows_of(made: World, count: int, multiple: int = 16) -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.array(
        [made.analysis.costs.row(random_widths(made.analysis, rng, multiple=multiple)) for _ in range(count)]
    )


@pytest.mark.parametrize("name", ["digits_resnet8", "depthwise", "matmul"])
def test_at_the_sizes_that_were_measured_each_operator_takes_what_it_took(name: str) -> None:
    made, table, predicted = plain(name)
    for kind in made.operators.kinds:
        points = table.kinds[kind.key].points
        if kind.symbols <= 2:
            seconds = predicted.curves[kind](np.array(list(points), dtype=np.int64).reshape(len(points), -1))
            expected = [max(p.seconds - table.call, p.seconds / 10) for p in points.values()]
            assert seconds == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["digits_resnet8", "depthwise", "matmul"])
@pytest.mark.parametrize("multiple", [16, 1])
def test_the_terms_are_the_prediction(name: str, multiple: int) -> None:
    made, _, predicted = plain(name)
    rows = rows_of(made, 40, multiple)
    total = predicted.predict_many(rows)
    summed = sum(seconds(rows[:, list(indices)]) for indices, seconds in predicted.terms())
    assert summed == pytest.approx(total, rel=1e-9)
    assert [predicted.predict(row) for row in rows] == pytest.approx(total.tolist(), rel=1e-12)
    names, parts = predicted.by_operator(rows)
    assert len(names) == parts.shape[1]
    assert parts.sum(axis=1) + predicted.constant == pytest.approx(total, rel=1e-9)


def test_a_law_that_the_grid_can_hold_is_predicted_closely() -> None:
    made, _, predicted = plain("digits_resnet8")
    rows = rows_of(made, 50)
    expected = np.array([made.model(row) for row in rows])
    assert np.abs(predicted.predict_many(rows) / expected - 1).max() < 0.1


def test_between_multiples_of_a_block_a_size_costs_what_the_next_multiple_costs() -> None:
    made, _, predicted = plain("digits_resnet8")
    blocked = [one for one in made.operators.listed if one.when == "aligned" and one.columns]
    assert blocked
    step = made.operators.multiple
    rows = np.repeat(made.analysis.costs.row({})[None], 3, axis=0)
    rows[:, 1] = [32 - BLOCK + step, 32 - step, 32]
    names, parts = predicted.by_operator(rows)
    reads = dict(zip((one.name for one in made.operators.listed), made.operators.reads, strict=True))
    stairs = [k for k, name in enumerate(names) if name in {one.name for one in blocked} and 1 in reads[name]]
    assert stairs
    assert np.ptp(parts[:, stairs], axis=0) == pytest.approx(0, abs=1e-15)
    rows[0, 1] = 32 - BLOCK
    assert (predicted.by_operator(rows)[1][0, stairs] < parts[0, stairs]).all()


def test_coefficients_of_a_whole_model_are_found_again() -> None:
    made, _, predicted = plain("digits_resnet8")
    before = predicted.plain
    rows = rows_of(made, 3000)  # so many that what pulls coefficients to one is not felt
    parts = before.by_class(rows)
    large = [n for n, s in parts.items() if (s / sum(parts.values())).max() >= 0.03]
    true = dict(zip(large, [1.5, 0.6, 1.2, 0.9], strict=False))
    rest = 0.2 * float(min(before.predict_many(rows)))
    measured = rest + sum(true.get(name, 1.0) * seconds for name, seconds in parts.items())
    source = before.source
    whole = rest + sum(true.get(n, 1.0) * s[0] for n, s in before.by_class(source[None]).items())
    anchors = Anchors(
        "f", whole, {}, tuple(Anchor(tuple(r), m / whole, 0, 1) for r, m in zip(rows, measured, strict=True))
    )
    found = calibrated(before, anchors)
    assert {name: found.weight(name) for name in true} == pytest.approx(true, rel=0.05)
    assert found.constant == pytest.approx(rest, rel=0.1)
    assert found.predict_many(rows) == pytest.approx(measured, rel=0.01)


def test_what_calibrates_betters_widths_that_it_has_not_seen() -> None:
    made, profile = world("digits_resnet8", coefficients={"com.microsoft.nchwc.Conv": 1.6}, rest=3e-5)
    predicted = predictor(made.analysis, made.operators, profiled(made, profile))
    rows = rows_of(made, 50)
    expected = np.array([made.model(row) for row in rows])
    before = np.median(np.abs(predicted.plain.predict_many(rows) / expected - 1))
    after = np.median(np.abs(predicted.predict_many(rows) / expected - 1))
    assert after < 0.03 < 0.2 < before


def test_nothing_is_negative_whatever_was_measured() -> None:
    made, profile = world("matmul", coefficients={"MatMul": 2.0, "Concat": -1.5}, rest=-1e-6)
    predicted = predictor(made.analysis, made.operators, profiled(made, profile))
    assert min(predicted.coefficients.values()) >= 0
    assert predicted.constant >= 0


def test_the_error_is_that_at_anchors_left_out() -> None:
    made, table, predicted = plain("digits_resnet8")
    off = accuracy(predicted.plain, usable(made.analysis, table))
    assert off.models == 16
    assert off.median < 0.1
    assert off.spearman > 0.95


@pytest.mark.parametrize(
    ("predicted", "measured", "expected"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], (0.0, 0.25, 1.0)),
        ([3.0, 2.0, 1.0], [1.0, 2.0, 4.0], (0.75, 2.0, -1.0)),
        ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 2.0, 2.0], (0.25, 0.5, np.nan)),
    ],
)
def test_accuracy(predicted: list[float], measured: list[float], expected: tuple[float, float, float]) -> None:
    made = Accuracy.of(np.array(predicted), np.array(measured))
    assert (made.median, made.largest, made.spearman) == pytest.approx(expected, nan_ok=True)


def test_many_rows_take_no_loop() -> None:
    made, _, predicted = plain("digits_resnet8")
    assert predicted.predict_many(np.repeat(rows_of(made, 10), 1000, axis=0)).shape == (10_000,)


def test_anchors_count_while_a_width_is_frozen_only_at_its_size() -> None:
    made, table, _ = plain("matmul")
    sha = identity(made.analysis.graph)
    name, other = made.analysis.widths
    frozen = analyze(made.analysis.graph, freeze=[name])
    assert list(frozen.widths) == [other]
    size = made.analysis.widths[name].size
    some = (Anchor((size, 16), 0.5, 0.4, 0.6), Anchor((size // 2, 16), 0.4, 0.3, 0.5))
    anchors = usable(frozen, replace(table, models={sha: replace(table.models[sha], measured=some)}))
    assert anchors is not None
    assert [one.widths for one in anchors.measured] == [(16,)]
    assert usable(frozen, replace(table, models={})) is None


def test_operators_are_in_the_table_and_predict_the_same_without_being_looked_for() -> None:
    made, table, predicted = plain("depthwise")
    again = Table.from_json(table.as_json())
    operators = known_operators(made.analysis, again)
    assert operators == made.operators
    rows = rows_of(made, 20, 1)
    assert predictor(made.analysis, operators, again).predict_many(rows) == pytest.approx(
        predicted.predict_many(rows), rel=1e-3
    )
    other = replace(again.models[identity(made.analysis.graph)], operators={"widths": ["w0"]})
    assert known_operators(made.analysis, replace(again, models={identity(made.analysis.graph): other})) is None
    assert known_operators(found("matmul")[0], again) is None


@pytest.mark.parametrize("name", ["digits_resnet8", "depthwise", "matmul"])
def test_operators_as_json_and_back(name: str) -> None:
    operators = found(name)[1]
    assert Operators.from_json(operators.as_json()) == operators


def test_a_table_of_other_models_is_refused() -> None:
    made, table, _ = plain("matmul")
    with pytest.raises(UsageError, match="profile the model"):
        predictor(made.analysis, made.operators, replace(table, kinds={}))


def test_an_anchor_has_the_order_of_the_widths() -> None:
    made, table, _ = plain("matmul")
    sha = identity(made.analysis.graph)
    names = list(made.analysis.widths)
    turned = replace(
        table.models[sha],
        sizes={name: made.analysis.widths[name].size for name in reversed(names)},
        measured=tuple(Anchor(one.widths[::-1], one.ratio, 0, 1) for one in table.models[sha].measured),
    )
    anchors = usable(made.analysis, replace(table, models={sha: turned}))
    assert anchors is not None
    assert [one.widths for one in anchors.measured] == [one.widths for one in table.models[sha].measured]


@pytest.mark.parametrize("seed", range(20))
def test_least_squares_without_negative_numbers_cannot_be_bettered(seed: int) -> None:
    """By the conditions of Karush, Kuhn and Tucker: no step that keeps all at zero or above lessens the squares."""
    rng = np.random.default_rng(seed)
    design, target = rng.normal(size=(12, 4)), rng.normal(size=12)
    made = _nonnegative(design, target)
    slope = design.T @ (design @ made - target)
    assert (made >= 0).all()
    assert (slope >= -1e-6).all()
    assert made * slope == pytest.approx(np.zeros(4), abs=1e-6)
