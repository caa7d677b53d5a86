"""Prices with latency: the fourth column is the prediction in milliseconds, and its terms are what it is made of."""

from __future__ import annotations

import numpy as np
import pytest
from test_latency_prediction import plain, rows_of

from conet_onnx.latency.pricing import TimedAnalysis
from conet_onnx.searching.budget import Budget
from conet_onnx.searching.space import WidthSpace


@pytest.mark.parametrize("name", ["digits_resnet8", "depthwise", "matmul"])
def test_a_price_is_the_plain_one_and_the_prediction(name: str) -> None:
    made, _, predicted = plain(name)
    costs = TimedAnalysis(made.analysis, predicted).costs
    rows = rows_of(made, 20)
    found = costs.price_many(rows)
    assert (found[:, :3] == made.analysis.costs.price_many(rows)).all()
    assert found[:, 3] == pytest.approx(1e3 * predicted.predict_many(rows), rel=1e-6)
    for row, prices in zip(rows, found, strict=True):
        widths = dict(zip(made.analysis.widths, row.tolist(), strict=True))
        assert tuple(costs.price(widths)) == tuple(prices)  # alone as among others, to the last bit
    assert costs.price({}).params == made.analysis.costs.source.params


@pytest.mark.parametrize("kind", ["macs", "latency"])
def test_terms_make_up_the_price(kind: str) -> None:
    made, _, predicted = plain("digits_resnet8")
    costs = TimedAnalysis(made.analysis, predicted).costs
    rows = rows_of(made, 20)
    summed = sum(cost(rows[:, list(widths)]) for widths, cost in costs.terms(kind))
    column = ("params", "macs", "bytes", "latency").index(kind)
    assert summed == pytest.approx(costs.price_many(rows)[:, column], rel=1e-6)


@pytest.mark.parametrize("share", [0.9, 0.6])
def test_a_space_holds_it_as_any_other_limit(share: float) -> None:
    made, _, predicted = plain("digits_resnet8")
    space = WidthSpace(TimedAnalysis(made.analysis, predicted), multiple=1)
    limits = Budget(latency=share, bytes=0.8).resolve(space.price(space.source))
    widths = space.project(space.source, limits)
    assert limits.fits(space.price(widths))
    assert predicted.predict(made.analysis.costs.row(widths)) <= share * predicted.predict(predicted.source)
    latency, raw = (
        space.constraints(limits)[::-1] if next(iter(limits.by_kind)) == "bytes" else space.constraints(limits)
    )
    row = np.array([[*widths.values()]])
    assert latency.spent(row)[0] == pytest.approx(space.price(widths).latency)
    assert raw.spent(row)[0] == space.price(widths).bytes
