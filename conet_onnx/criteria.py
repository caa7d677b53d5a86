"""Scores of channels on one scale for all widths: what is lost without a channel, so that widths can be weighed up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conet_onnx.analysis import Analysis
from conet_onnx.errors import UsageError
from conet_onnx.metrics import by_width, score
from conet_onnx.metrics.utilisation import rates_of
from conet_onnx.scoring import CRITERIA as WEIGHTS
from conet_onnx.scoring import importance

if TYPE_CHECKING:
    from conet_onnx.data import Split

__all__ = ["CRITERIA", "MEASURED", "channel_scores", "relative"]

Scores = Mapping[str, NDArray[np.float64]]

MEASURED = ("taylor", "obd", "activation", "fur")  # on samples
CRITERIA = (*WEIGHTS, "qc", *MEASURED)
RATE = 0.05  # at which channels are dropped for FUR, on average


def channel_scores(
    analysis: Analysis,
    criterion: str,
    *,
    data: Split | None = None,
    normalise: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> Scores:
    """What is lost without each channel of each width, [channels], all widths on one scale.

    Of weights (l1, l2, batchnorm-scale, fpgm, random): `relative` of `scoring.importance`. "qc": the same of l2, times
    the width's QC over the mean QC (metrics.by_width); it weighs widths, and says nothing of channels. Measured on
    `data`, in the model as it is: "taylor", "obd" (nats) and "activation" (shares), see torch_backend.saliency; "fur"
    (nats), a width's loss by dropping a share p of its channels at random, over p, divided among its channels as l2
    says (torch_backend.utilisation). A width that cannot be measured counts as much as its `relative` l2 does against
    those of the others.

    Raises UsageError for an unknown criterion or missing data, and what measuring raises.
    """
    if criterion not in CRITERIA:
        raise UsageError(f"criterion {criterion!r} is not known; choose one of {', '.join(CRITERIA)}.")
    graph = analysis.graph
    if criterion in WEIGHTS:
        return relative(analysis, importance(graph, criterion, analysis=analysis, seed=seed))
    weights = relative(analysis, importance(graph, "l2", analysis=analysis))
    if criterion == "qc":
        return _weighed(weights, by_width(analysis, score(analysis)))
    if data is None:
        raise UsageError(f"criterion {criterion!r} is measured on samples: give it some as `data`.")
    if criterion == "fur":
        from conet_onnx.torch_backend.utilisation import utilisation

        rates = rates_of(analysis.costs, {name: w.size for name, w in analysis.widths.items()}, RATE)
        lost = utilisation(graph, analysis, data, rates=rates, normalise=normalise, seed=seed)
        each = {name: max(fur, 0.0) / rates[name] for name, fur in lost.items() if rates[name] > 0}
        even = {name: own / own.sum() for name, own in weights.items()}
        scores = {name: own for name, own in _weighed(even, each).items() if name in each}
    else:
        from conet_onnx.torch_backend.saliency import saliency

        scores = dict(saliency(graph, analysis, data, criterion, normalise=normalise, seed=seed).scores)
    known = sum(float(weights[name].sum()) for name in scores)
    by = sum(float(own.sum()) for own in scores.values()) / known if known else 1.0
    return {name: scores.get(name, own * by) for name, own in weights.items()}


def _weighed(scores: Scores, widths: Mapping[str, float]) -> dict[str, NDArray[np.float64]]:
    """Scores times what is known of each width, half-way to the mean of all: what was found of a width is uncertain,
    and one of which nothing was found is not worth nothing."""
    mean = float(np.mean([*widths.values()])) if widths else 0.0
    return {name: own * (widths.get(name, mean) + mean if mean > 0 else 1.0) / 2 for name, own in scores.items()}


def relative(analysis: Analysis, scores: Scores) -> Scores:
    """Norms as shares of squared norms, [channels], times how many contractions sum over the width.

    A contraction's output loses the energy of the channels that go: if they are independent, and each carries the
    square of its norm, the relative error is their share; errors of all that read the width are added. That of a width
    without readers counts once.
    """
    made = {}
    for name, own in scores.items():
        readers = sum(member.role == "in" for member in analysis.widths[name].members)
        squares = np.square(np.asarray(own, dtype=np.float64))
        total = float(squares.sum())
        made[name] = max(readers, 1) * (
            squares / total if total > 0 else np.full(len(squares), 1 / max(len(squares), 1))
        )
    return made
