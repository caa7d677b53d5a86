"""What a method asks to be measured of a trial: metrics of its weights as it is trained, its utilisation afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from conet_onnx.analysis import Analysis
from conet_onnx.data import Split
from conet_onnx.data.dataset import Array
from conet_onnx.files import atomic_write
from conet_onnx.graph import Graph
from conet_onnx.latency.limits import fast_multiples
from conet_onnx.latency.prediction import Predictor
from conet_onnx.metrics import LayerQuality, as_json, by_width, score
from conet_onnx.searching.recipe import CurveMeasure, Measure, Measured, QualityMeasure, UtilisationMeasure
from conet_onnx.transfer import drawn

__all__ = ["Measuring", "curves", "save"]

FORMAT = "conet-onnx-measures/1"
OVER: Mapping[str, Callable[[Array], Any]] = {
    "max": lambda epochs: epochs.max(0),
    "mean": lambda epochs: epochs.mean(0),
    "last": lambda epochs: epochs[-1],
}


@dataclass(frozen=True, slots=True)
class Measuring:
    """Of one trial of a model; does nothing where its method asks for nothing.

    Widths are the source's: a model in which one has a single channel has one less, and counts them otherwise.
    """

    measure: Measure | None
    source: Analysis
    analysis: Analysis  # of the model as it is trained
    epochs: list[tuple[LayerQuality, ...]] = field(default_factory=list)
    predicted: Predictor | None = None  # of the source's widths

    @property
    def after(self) -> Callable[[Mapping[str, Array]], None] | None:
        """What the training shows its weights to after every epoch."""
        return self._look if isinstance(self.measure, QualityMeasure) else None

    def measured(self, trained: Graph, data: Split, **how: Any) -> Measured:
        """What was asked for of each width, after the training; `data` is for validation, `how` it is looked at:
        normalise, seed and threads of torch_backend.utilisation."""
        if isinstance(self.measure, QualityMeasure):
            return self._qualities(self.measure)
        if isinstance(self.measure, UtilisationMeasure):
            return self._utilisation(self.measure, trained, data, **how)
        return {}

    def _qualities(self, asked: QualityMeasure) -> Measured:
        if not self.epochs:
            return {}
        metric, over = asked.metric, OVER[asked.epoch]
        sides = [[(getattr(one.ins, metric), getattr(one.outs, metric)) for one in epoch] for epoch in self.epochs]
        layers = [
            replace(one, ins=replace(one.ins, **{metric: ins}), outs=replace(one.outs, **{metric: outs}))
            for one, (ins, outs) in zip(self.epochs[-1], over(np.array(sides)).tolist(), strict=True)
        ]
        return {metric: by_width(self.source, layers, metric)}

    def _utilisation(self, asked: UtilisationMeasure, trained: Graph, data: Split, **how: Any) -> Measured:
        from conet_onnx.metrics.utilisation import rates_of
        from conet_onnx.torch_backend.utilisation import utilisation

        if self.analysis.all_widths.keys() != self.source.all_widths.keys():
            return {}
        sizes = {name: self.analysis.all_widths[name].size for name in self.source.widths}
        if asked.cost == "latency" and self.predicted is not None:
            steps = fast_multiples(self.predicted.operators, self.predicted)
            rates = rates_of(self.source.costs, sizes, asked.rate, cost=self.predicted.predict_many, steps=steps)
        else:
            rates = rates_of(self.analysis.costs, sizes, asked.rate)
        found = utilisation(
            trained,
            self.analysis,
            data,
            rates=rates,
            passes=asked.passes,
            of=asked.of,
            noise=asked.noise,
            **how,
        )
        return {"fur": found, "rate": rates}

    def save(self, path: str, measured: Measured) -> None:
        """All that was measured: after each epoch of each layer, and of the widths in the end."""
        if self.measure is not None:
            save(path, self.measure, measured, self.epochs)

    def _look(self, weights: Mapping[str, Array]) -> None:
        self.epochs.append(score(self.analysis, weights=weights))


def save(
    path: str | os.PathLike[str],
    asked: Measure,
    measured: Measured,
    epochs: Iterable[Sequence[LayerQuality]] = (),
) -> None:
    """Write what was measured of a model: of its layers after each epoch, and of the widths."""
    layers = [{"layers": as_json(epoch)["layers"]} for epoch in epochs]
    document = {"format": FORMAT, "asked": asdict(asked), "epochs": layers, "widths": measured}
    with atomic_write(path) as part:
        part.write_text(json.dumps(document), encoding="utf-8")


def curves(
    asked: CurveMeasure,
    graph: Graph,
    analysis: Analysis,
    data: Split,
    *,
    criterion: str,
    normalise: Callable[[Any], Any],
    seed: int,
) -> Measured:
    """What the loss gains where the least important channels of each width are masked, on some training samples."""
    from conet_onnx.criteria import channel_scores
    from conet_onnx.torch_backend.utilisation import losses_without

    some = drawn(data, asked.samples)
    scores = channel_scores(analysis, criterion, data=some, normalise=normalise, seed=seed)
    masks = {name: [_mask(own, share) for share in asked.quantities.values()] for name, own in scores.items()}
    lost = losses_without(graph, analysis, some, masks, normalise=normalise)
    found = {q: {name: losses[k] for name, losses in lost.items()} for k, q in enumerate(asked.quantities)}
    return {q: {name: loss for name, loss in by.items() if np.isfinite(loss)} for q, by in found.items()}


def _mask(scores: Array, share: float) -> Array:
    """1 but for the least share of channels; of equal ones the last go, as in planning."""
    mask = np.ones(len(scores))
    mask[np.argsort(-scores, kind="stable")[len(scores) - int(share * len(scores)) :]] = 0
    return mask
