"""What CONETv2 measures of a layer: how much of its weight stands out of the noise, and how evenly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.errors import ModelError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.metrics.evbmf import Shrunk, shrink
from conet_onnx.metrics.unfolding import Layer, layers
from conet_onnx.scoring import real_values

__all__ = ["FORMAT", "METRICS", "LayerQuality", "Quality", "as_json", "by_width", "measured", "score", "spectrum"]

FORMAT = "conet-onnx-score/1"

Floats = NDArray[np.float64]
Progress = Callable[[float, str], None]

EPSILON = float(np.finfo(np.float64).eps)
FLAT = 1e-4  # stands for 1 - 1/kappa where kappa is 1
ELEMENTS = 1 << 20  # of a weight that are held in float64 at a time
EXTREME = 1e100  # beyond it, squares may leave float64


@dataclass(frozen=True, slots=True)
class Quality:
    """What one unfolding of a weight keeps after EVBMF, r of C channels with shrunk singular values d_1 .. d_r.

    CONETv2 (arXiv:2110.06830): `rank` r; `ratio` r/C; `condition` kappa = d_1/d_r (0 if r is 0); `gain` sum(d/d_1)/C;
    `qc` atan2(ratio, 1 - 1/kappa) and `newqc` atan2(gain, 1 - 1/kappa), in radians. The second argument is 1 if r is 0,
    which makes both 0, and 1e-4 if kappa is 1. Of a layer in groups: each the mean over the groups, C of one group.
    """

    rank: float
    ratio: float
    condition: float
    gain: float
    qc: float
    newqc: float

    def as_json(self) -> dict[str, float]:
        """As in `score --json`; a rank is a whole number unless it is a mean over groups."""
        return {name: getattr(self, name) for name in METRICS} | {
            "rank": int(self.rank) if self.rank.is_integer() else self.rank
        }


METRICS = tuple(field.name for field in fields(Quality))


@dataclass(frozen=True, slots=True)
class LayerQuality:
    """The quality of both unfoldings of a layer's weight: input channels by all else, and output channels by all else.

    (The paper's mode-3 and mode-4 unfoldings of a convolution.)
    """

    layer: Layer
    ins: Quality
    outs: Quality

    @property
    def tensor(self) -> str:
        """The weight's name."""
        return self.layer.tensor

    @property
    def kind(self) -> str:
        """ "conv" or "linear"."""
        return self.layer.kind

    def as_json(self) -> dict[str, Any]:
        """As in `score --json`."""
        return {"tensor": self.tensor, "kind": self.kind, "in": self.ins.as_json(), "out": self.outs.as_json()}


def score(
    model: Graph | Analysis,
    *,
    weights: Mapping[str, NDArray[Any]] | None = None,
    progress: Progress | None = None,
) -> tuple[LayerQuality, ...]:
    """The quality of every layer, in the order of the graph (see `layers` for what is a layer).

    `weights` are other values of some of its weights, by name, in the file's shapes: what they have become in training,
    say. `progress` is called with the share of the layers that is done and the next one's name. Raises UsageError for a
    name or a shape that is not the model's, and ModelError where a weight holds what is no finite number.
    """
    analysis = model if isinstance(model, Analysis) else analyze(model)
    found = layers(analysis)
    given = dict(_checked(analysis.graph, weights or {}))
    spectra: list[tuple[Floats, Floats]] = []
    for k, layer in enumerate(found):
        if progress is not None:
            progress(k / len(found), layer.tensor)
        values = given.get(layer.tensor)
        values = real_values(analysis.graph, layer.tensor) if values is None else values
        spectra.append(_both(layer, layer.unfolded(values)))
    ins = _qualities([(s, layer.ins, layer.outs * layer.kernel) for layer, (s, _) in zip(found, spectra, strict=True)])
    outs = _qualities([(s, layer.outs, layer.ins * layer.kernel) for layer, (_, s) in zip(found, spectra, strict=True)])
    return tuple(map(LayerQuality, found, ins, outs))


def by_width(analysis: Analysis, qualities: Iterable[LayerQuality], metric: str = "qc") -> dict[str, float]:
    """One metric of every width: the mean of "out" over the layers that make it, and of "in" over those that read it.

    A layer whose input or output channels are several widths (behind a Concat, say) counts for each of them. One that
    has a single such channel in each group, as a depthwise convolution has, does not count: a matrix of one row has
    rank 0 whatever is in it. A width without a layer that counts is left out. Raises UsageError for an unknown metric.
    """
    if metric not in METRICS:
        raise UsageError(f"metric {metric!r} is not known; choose one of {', '.join(METRICS)}.")
    sides: dict[tuple[str, str], float] = {}
    for quality in qualities:
        sides |= {(quality.tensor, "in"): getattr(quality.ins, metric)} if quality.layer.ins > 1 else {}
        sides |= {(quality.tensor, "out"): getattr(quality.outs, metric)} if quality.layer.outs > 1 else {}
    found = {}
    for name, width in analysis.widths.items():
        held = [sides[key] for m in width.members if (key := (m.tensor, m.role)) in sides]
        if held:
            found[name] = sum(held) / len(held)
    return found


def as_json(qualities: Iterable[LayerQuality]) -> dict[str, Any]:
    """As in `score --json`."""
    return {"format": FORMAT, "layers": [quality.as_json() for quality in qualities]}


def spectrum(unfolded: NDArray[Any]) -> Floats:
    """Squared singular values of the matrices [groups, rows, columns, kernel], rows against columns and kernel.

    [groups, min(rows, columns * kernel)], in descending order: the eigenvalues of the product of each matrix with its
    transpose, on the shorter side. Squaring costs half of the digits. In float64 a singular value is told from rounding
    down to about 1e-7 of the largest, which is where a weight stored in float32 has its own rounding; in float32 it
    would be 1e-3, and ranks would be lost. What is below counts as that. (The decomposition itself, by
    numpy.linalg.svd, takes five times as long without vectors, and twelve times with them.)
    """
    groups, rows, columns, kernel = unfolded.shape
    wide = rows <= columns * kernel
    short = min(rows, columns * kernel)
    across, step = (columns, rows * kernel) if wide else (rows, columns * kernel)
    step = max(1, ELEMENTS // (groups * step))
    total = np.zeros((groups, short, short))
    for at in range(0, across, step):
        block = unfolded[:, :, at : at + step] if wide else unfolded[:, at : at + step]
        part = np.ascontiguousarray(block, dtype=np.float64).reshape(groups, block.shape[1], -1)
        total += part @ part.swapaxes(1, 2) if wide else part.swapaxes(1, 2) @ part
    values = np.linalg.eigvalsh(total)[:, ::-1]
    floor: Floats = values[:, :1] * (short * EPSILON)
    return np.maximum(values, floor)


def _both(layer: Layer, unfolded: NDArray[Any]) -> tuple[Floats, Floats]:
    """The spectra by input and by output channels; without a kernel, one matrix is the other transposed."""
    peak = max(float(unfolded.max(initial=0)), -float(unfolded.min(initial=0)))
    if not np.isfinite(peak):
        raise ModelError(
            f"weight {layer.tensor!r} holds NaN or infinity: nothing can be measured of it. Use weights from before it "
            "diverged, or train it again at a lower rate."
        )
    if peak and not 1 / EXTREME < peak < EXTREME:
        unfolded = unfolded / peak
    by_outs = spectrum(unfolded)
    return (spectrum(unfolded.swapaxes(1, 2)) if layer.kernel > 1 else by_outs), by_outs


def _qualities(spectra: Sequence[tuple[Floats, int, int]]) -> list[Quality]:
    """Of each (squared singular values of the groups, channels, columns); those of one size are taken together."""
    alike: dict[tuple[int, int], list[int]] = {}
    for k, (_, channels, columns) in enumerate(spectra):
        alike.setdefault((channels, columns), []).append(k)
    found: dict[int, Quality] = {}
    for (channels, columns), members in alike.items():
        kept = shrink(np.concatenate([spectra[k][0] for k in members]), channels, columns)
        fields_of = measured(kept, channels)
        ends = np.cumsum([len(spectra[k][0]) for k in members])[:-1]
        for k, part in zip(members, np.split(fields_of, ends, axis=1), strict=True):
            found[k] = Quality(*part.mean(1).tolist())
    return [found[k] for k in range(len(spectra))]


def measured(kept: Shrunk, channels: int) -> Floats:
    """The fields of Quality, in their order, of each matrix: [6, B]."""
    ranks, d = kept.ranks, kept.values
    some = ranks > 0
    first = np.where(some, d[:, 0], 1)
    last = np.where(some, np.take_along_axis(d, np.maximum(ranks - 1, 0)[:, None], axis=1)[:, 0], 1)
    condition = np.where(some, first / last, 0)
    evenness = np.where(some, 1 - 1 / np.where(some, condition, 1), 1)
    evenness = np.where(condition == 1, FLAT, evenness)
    ratio, gain = ranks / channels, (d / first[:, None]).sum(1) / channels
    angles = np.arctan2(ratio, evenness), np.arctan2(gain, evenness)
    return np.stack([ranks, ratio, condition, gain, *angles])


def _checked(graph: Graph, weights: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, array in weights.items():
        if name not in graph.weights:
            raise UsageError(f"{name!r} is not a weight of {graph.file or 'this model'}: there is nothing to score.")
        shape = tuple(graph.weights[name].dims)
        if np.shape(array) != shape:
            raise UsageError(f"weight {name!r} has shape {shape}, got {np.shape(array)}: give it as the file has it.")
        yield name, np.asarray(array)
