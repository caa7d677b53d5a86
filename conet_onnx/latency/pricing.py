"""Prices with a fourth column: what a model is predicted to take, beside its parameters, MACs and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conet_onnx import allocating
from conet_onnx.analysis import Analysis
from conet_onnx.coupling import Width
from conet_onnx.latency.limits import limit
from conet_onnx.latency.prediction import Predictor

__all__ = ["TimedAnalysis", "TimedCosts", "TimedPrice"]

MS = 1e3  # a second
DIGITS = 9  # of milliseconds: the same widths have the same price, alone and among others


class TimedPrice(NamedTuple):
    """As costs.Price, and the predicted latency in milliseconds."""

    params: int
    macs: int
    bytes: int
    latency: float


@dataclass(frozen=True)
class TimedCosts:
    """As costs.Costs, of one analysis; `predicted` is of the same."""

    analysis: Analysis
    predicted: Predictor

    def row(self, widths: Mapping[str, int]) -> NDArray[np.int64]:
        """As Costs.row."""
        return self.analysis.costs.row(widths)

    def price(self, widths: Mapping[str, int]) -> TimedPrice:
        """The price at some widths; those not named keep their size. Raises UsageError for an unknown id."""
        params, macs, raw, latency = self.price_many(self.row(widths)[None])[0].tolist()
        return TimedPrice(int(params), int(macs), int(raw), latency)

    def price_many(self, widths: NDArray[Any]) -> NDArray[np.float64]:
        """[trials, widths in the order of Costs.row] -> [trials, (params, MACs, bytes, milliseconds)]."""
        rows = np.atleast_2d(np.asarray(widths, dtype=np.int64))
        taken = np.round(MS * self.predicted.predict_many(rows), DIGITS)
        return np.concatenate([self.analysis.costs.price_many(rows).astype(np.float64), taken[:, None]], axis=1)

    def terms(self, kind: str) -> Any:
        """As Costs.terms, for latency too."""
        if kind != "latency":
            return self.analysis.costs.terms(kind)

        def in_milliseconds(term: allocating.Term) -> allocating.Term:
            return allocating.Term(term.widths, lambda sizes: MS * term.cost(sizes))

        return [in_milliseconds(term) for term in limit(self.predicted, 1.0).terms]


@dataclass(frozen=True)
class TimedAnalysis:
    """What a space of widths needs of an analysis (searching.space.Priceable)."""

    analysis: Analysis
    predicted: Predictor

    @property
    def widths(self) -> Mapping[str, Width]:
        """As Analysis.widths."""
        return self.analysis.widths

    @property
    def costs(self) -> TimedCosts:
        """With latency."""
        return TimedCosts(self.analysis, self.predicted)
