"""Limits on latency: met by what is measured, tightened where the prediction was too low, and else said so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_latency_operators import found
from test_latency_prediction import plain

from conet_onnx.errors import BudgetUnreachable
from conet_onnx.latency.limits import TIGHTENINGS, Most, fast_multiples, in_units, limit, met
from conet_onnx.latency.prediction import Predictor
from conet_onnx.latency.timing import Comparison, Latency, Ratio
from conet_onnx.planning import allocated


def comparison(ratio: float, source_ms: float = 10.0) -> Comparison:
    a, b = (Latency(name, ms, ms, 10) for name, ms in (("a", source_ms), ("b", ratio * source_ms)))
    return Comparison(a, b, Ratio(ratio, ratio, ratio))


class Maker:
    """Models that take `bias` times what they are asked for, and `floor` of the source at least."""

    def __init__(self, bias: float, floor: float = 0.0, most: float = 0.5) -> None:
        self.bias, self.floor, self.most = bias, floor, most
        self.asked: list[float] = []

    def choose(self, factor: float) -> float:
        self.asked.append(factor)
        if factor * self.most < self.floor:
            raise BudgetUnreachable("nothing is as small")
        return factor * self.most

    def measure(self, made: float) -> Comparison:
        return comparison(self.bias * made)


def test_what_is_within_the_limit_is_taken_at_once() -> None:
    made = Maker(0.9)
    got = met(made.choose, made.measure, Most(0.5, relative=True))
    assert (got.made, got.tightened, made.asked) == (0.5, 0, [1.0])
    assert got.found.ratio.p50 == pytest.approx(0.45)


def test_a_prediction_that_is_too_low_is_tightened_by_as_much() -> None:
    made = Maker(1.25)
    got = met(made.choose, made.measure, Most(0.5, relative=True))
    assert got.tightened == 1
    assert made.asked[1] == pytest.approx(0.99 / 1.25)
    assert got.found.ratio.p50 <= 0.5


def test_seconds_are_held_against_the_result_not_the_ratio() -> None:
    made = Maker(1.0)
    got = met(made.choose, made.measure, Most(4e-3, relative=False))
    assert got.found.b.p50_ms <= 4.0
    assert made.asked[1] == pytest.approx(0.99 * 4 / 5)


def test_what_cannot_be_reached_names_the_nearest_that_was() -> None:
    made = Maker(2.0)
    with pytest.raises(BudgetUnreachable, match=rf"chosen {1 + TIGHTENINGS} times.*latency=0\.6\d* \(6\.\d+ ms\)"):
        met(made.choose, lambda share: comparison(0.6 + 0.1 * share), Most(0.5, relative=True))
    assert len(made.asked) == 1 + TIGHTENINGS
    assert made.asked == sorted(made.asked, reverse=True)


def test_a_tighter_choice_that_does_not_exist_ends_it() -> None:
    made = Maker(2.0, floor=0.4)
    with pytest.raises(BudgetUnreachable, match=r"chosen 1 time: the nearest that was reached is latency=1 "):
        met(made.choose, made.measure, Most(0.5, relative=True))
    made = Maker(2.0, floor=0.6)
    with pytest.raises(BudgetUnreachable, match="nothing is as small"):
        met(made.choose, made.measure, Most(0.5, relative=True))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.0, "2s"),
        (0.0051231, "5.124ms"),
        (0.005, "5ms"),
        (1e-3, "1ms"),
        (9.99e-4, "0.999ms"),
        (9.9e-5, "99us"),
        (3e-9, "0.003us"),
    ],
)
def test_seconds_in_units_are_rounded_up(seconds: float, text: str) -> None:
    assert in_units(seconds) == text


def spent(predicted: Predictor, widths: dict[str, int], names: list[str]) -> float:
    row = predicted.source.copy()
    for name, size in widths.items():
        row[names.index(name)] = size
    return predicted.predict(row)


@pytest.mark.parametrize("name", ["digits_resnet8", "depthwise", "matmul"])
@pytest.mark.parametrize("share", [0.9, 0.6])
def test_widths_are_shared_out_within_the_prediction_and_use_it(name: str, share: float) -> None:
    made, _, predicted = plain(name)
    most = share * predicted.predict(predicted.source)
    scores = {n: np.linspace(1, 2, w.size) for n, w in made.analysis.widths.items()}
    chosen = allocated(made.analysis, {}, scores, further=[limit(predicted, most)], multiple=4, least=8)
    assert chosen.widths
    assert all(size >= min(8, made.analysis.widths[n].size) for n, size in chosen.widths.items())
    used = spent(predicted, chosen.widths, list(made.analysis.widths))
    assert 0.75 * most < used <= most


def test_all_limits_hold() -> None:
    made, _, predicted = plain("digits_resnet8")
    most = 0.8 * predicted.predict(predicted.source)
    source = made.analysis.costs.source
    scores = {n: np.ones(w.size) for n, w in made.analysis.widths.items()}
    found_both = allocated(
        made.analysis, {"params": 0.3 * source.params}, scores, further=[limit(predicted, most)], multiple=4
    )
    assert made.analysis.costs.price(found_both.widths).params <= 0.3 * source.params
    assert spent(predicted, found_both.widths, list(made.analysis.widths)) <= most


@pytest.mark.parametrize("name", ["digits_resnet8", "depthwise", "matmul"])
def test_the_terms_do_not_exceed_what_they_bound(name: str) -> None:
    made, _, predicted = plain(name)
    whole = limit(predicted, 1.0)
    rng = np.random.default_rng(3)
    step = max(fast_multiples(made.operators).values())
    sizes = np.array([w.size for w in made.analysis.widths.values()])
    rows = np.maximum(rng.integers(1, np.maximum(sizes // step, 1) + 1, (50, len(sizes))) * step, 1)
    terms = sum(term.cost(rows[:, list(term.widths)]) for term in whole.terms)
    assert (terms <= whole.spent(rows) * (1 + 1e-9)).all()
    assert all(len(term.widths) <= 2 for term in whole.terms)


def test_a_width_is_fast_at_the_largest_block_that_one_of_its_operators_rounds_up_to() -> None:
    operators = found("digits_resnet8")[1]
    fast = fast_multiples(operators)
    assert set(fast) == set(operators.widths)
    assert all(step % operators.multiple == 0 for step in fast.values())
    always = [replace(one, when="always") for one in operators.listed]
    assert set(fast_multiples(replace(operators, expressions=(), listed=())).values()) == {1}
    assert set(fast_multiples(replace(operators, listed=tuple(always), multiple=4)).values()) <= {1, 8, 16}
    assert set(fast_multiples(found("matmul")[1]).values()) == {1}


class Law:
    """Stands in for a predictor: a constant, a width alone, and a layer that reads three."""

    def cost(self, sizes: np.ndarray) -> np.ndarray:
        return 1e-6 * sizes[:, 0] * (sizes[:, 1] + 2 * sizes[:, 2])

    def terms(self) -> list:
        return [
            ((), lambda sizes: np.full(len(sizes), 3e-6)),
            ((2,), lambda sizes: 1e-6 * sizes[:, 0]),
            ((0, 1, 2), self.cost),
        ]

    def predict_many(self, rows: np.ndarray) -> np.ndarray:
        return 3e-6 + 1e-6 * rows[:, 2] + self.cost(rows)


def test_a_layer_of_many_widths_is_bounded_from_below_width_by_width() -> None:
    law: Any = Law()  # does what the limit asks of a predictor
    whole = limit(law, 1.0)
    rows = np.random.default_rng(0).integers(1, 65, (200, 3))
    terms = sum(term.cost(rows[:, list(term.widths)]) for term in whole.terms)
    assert (terms <= whole.spent(rows) * (1 + 1e-9)).all()
    assert all(len(term.widths) <= 2 for term in whole.terms)
    ones = np.ones((1, 3), dtype=np.int64)
    assert sum(term.cost(ones[:, list(term.widths)]) for term in whole.terms) == pytest.approx(whole.spent(ones))
    alone = np.array([[40, 1, 1]])
    assert sum(t.cost(alone[:, list(t.widths)]) for t in whole.terms) == pytest.approx(whole.spent(alone))
