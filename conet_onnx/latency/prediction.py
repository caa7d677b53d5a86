"""Predict what a model takes at any widths: the sum of its operators' times, calibrated on whole models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from conet_onnx.analysis import Analysis
from conet_onnx.errors import UsageError
from conet_onnx.latency.interpolation import Surface, surface
from conet_onnx.latency.operators import Kind, Operator, Operators
from conet_onnx.latency.table import Anchors, Entry, Table, identity

__all__ = ["Accuracy", "Predictor", "Term", "accuracy", "calibrated", "known_operators", "predictor", "usable"]

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Term: TypeAlias = tuple[tuple[int, ...], Callable[[Ints], Floats]]

RIDGE = 0.02  # how much an error of one counts less in a coefficient than in an anchor's relative time
SMALL = 0.03  # share of the time below which a class of operators has no coefficient of its own
SWEEPS = 1000
PLANE = 2  # free sizes that make a grid; of more, the elements that are moved make a line


@dataclass(frozen=True)
class _Curve:
    """Seconds of a kind by its free sizes, a call's cost taken off."""

    kind: Kind
    surface: Surface
    blocks: tuple[int, ...]

    def __call__(self, sizes: Ints) -> Floats:
        if self.blocks:
            sizes = _rounded(sizes, self.blocks)
        if self.kind.symbols <= PLANE:
            return self.surface(sizes)
        return self.surface(self.kind.elements(sizes)[:, None])


@dataclass(frozen=True)
class Predictor:
    """Seconds of a model at any widths.

    `coefficients` by class of operators multiply what they took alone, `constant` is the rest of a run. `predict_many`
    is the sum of `terms`.
    """

    operators: Operators
    curves: Mapping[Kind, _Curve]
    coefficients: Mapping[str, float]
    constant: float
    source: Ints  # the source's widths

    def predict_many(self, rows: NDArray[Any]) -> Floats:
        """[n, widths in the order of Costs.row] -> seconds [n]."""
        parts = self.by_class(rows)
        made: Floats = np.full(len(np.atleast_2d(rows)), self.constant)
        for name, seconds in parts.items():
            made = made + self.weight(name) * seconds
        return made

    def predict(self, row: NDArray[Any]) -> float:
        """Seconds at one set of widths."""
        return float(self.predict_many(np.asarray(row)[None])[0])

    def by_class(self, rows: NDArray[Any]) -> dict[str, Floats]:
        """Seconds of the operators of each class, before any calibration."""
        rows = np.atleast_2d(np.asarray(rows, dtype=np.int64))
        sizes, there = self.operators.sizes(rows), self.operators.there(rows)
        parts: dict[str, Floats] = {}
        for kind, (places, columns) in self._by_kind.items():
            taken = sizes[:, columns].reshape(-1, kind.symbols)  # [rows · operators, symbols]
            seconds = self.curves[kind](taken).reshape(len(sizes), -1) * there[:, places]
            parts[kind.op] = parts.get(kind.op, 0) + seconds.sum(axis=1)
        return parts

    def by_operator(self, rows: NDArray[Any]) -> tuple[tuple[str, ...], Floats]:
        """Names, and [n, operators]: calibrated seconds of each, nothing where there is no such operator."""
        rows = np.atleast_2d(np.asarray(rows, dtype=np.int64))
        sizes, there = self.operators.sizes(rows), self.operators.there(rows)
        known = [(k, one) for k, one in enumerate(self.operators.listed) if one.kind in self.curves]
        columns = [self._seconds(one, sizes) * there[:, k] for k, one in known]
        return tuple(one.name for _, one in known), np.stack(columns, axis=1)

    def shares(self) -> list[tuple[Operator, float]]:
        """Of each operator that is there in the source, and whose time is known, the share of the source's."""
        _, taken = self.by_operator(self.source)
        known = [one for one in self.operators.listed if one.kind in self.curves]
        total = max(float(taken.sum()) + self.constant, 1e-12)
        return [(one, seconds / total) for one, seconds in zip(known, taken[0].tolist(), strict=True) if seconds > 0]

    def terms(self) -> list[Term]:
        """The prediction as a sum of functions of few widths each: (their indices, sizes [n, those] -> seconds [n]).

        Operators that read the same widths are one term; the constant reads none.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for k, (one, reads) in enumerate(zip(self.operators.listed, self.operators.reads, strict=True)):
            if one.kind in self.curves:
                groups.setdefault(reads, []).append(k)
        constant = self.constant
        made: list[Term] = [((), lambda sizes: np.full(len(sizes), constant))]
        made += [(indices, self._summed(indices, group)) for indices, group in groups.items()]
        return made

    def _summed(self, indices: tuple[int, ...], group: Sequence[int]) -> Callable[[Ints], Floats]:
        def seconds(sizes: Ints) -> Floats:
            rows = np.tile(self.source, (len(sizes), 1))
            rows[:, list(indices)] = sizes
            values, there = self.operators.sizes(rows), self.operators.there(rows)
            made: Floats = np.zeros(len(sizes))
            for k in group:
                made = made + self._seconds(self.operators.listed[k], values) * there[:, k]
            return made

        return seconds

    def _seconds(self, one: Operator, sizes: Ints) -> Floats:
        return self.weight(one.kind.op) * self.curves[one.kind](sizes[:, list(one.columns)])

    def weight(self, name: str) -> float:
        """What multiplies the seconds of a class of operators."""
        return self.coefficients.get(name, self.coefficients.get("", 1.0))

    @property
    def plain(self) -> Predictor:
        """Without calibration."""
        return replace(self, coefficients={"": 1.0}, constant=0.0)

    @cached_property
    def _by_kind(self) -> dict[Kind, tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """The places of each kind's operators, and their columns, [operators, symbols]."""
        grouped: dict[Kind, list[int]] = {}
        for k, one in enumerate(self.operators.listed):
            if one.kind in self.curves:
                grouped.setdefault(one.kind, []).append(k)
        listed = self.operators.listed
        return {
            kind: (np.array(places), np.array([listed[k].columns for k in places], dtype=np.intp))
            for kind, places in grouped.items()
        }


def predictor(analysis: Analysis, operators: Operators, table: Table) -> Predictor:
    """What a table foretells of a model, calibrated on what it holds of this model as a whole.

    The operators are those of the same analysis. Raises UsageError where the table knows none of them.
    """
    curves = {}
    for kind in operators.kinds:
        entry = table.kinds.get(kind.key)
        if entry is not None and entry.points:
            curves[kind] = _curve(kind, entry, table.call)
    if not curves:
        raise UsageError("The latency table has none of this model's operators: profile the model into it.")
    plain = Predictor(operators, curves, {"": 1.0}, 0.0, analysis.costs.row({}))
    anchors = usable(analysis, table)
    return plain if anchors is None else calibrated(plain, anchors)


def _curve(kind: Kind, entry: Entry, call: float) -> _Curve:
    """Through an entry's points; those that fall into one block count together."""
    blocks = entry.blocks if kind.symbols <= PLANE else ()
    sizes: NDArray[Any] = np.array([*entry.points], dtype=np.int64).reshape(len(entry.points), -1)
    if blocks:
        sizes = _rounded(sizes, blocks)
    if kind.symbols > PLANE:
        sizes = kind.elements(sizes)[:, None]
    together: dict[tuple[float, ...], list[float]] = {}
    for place, point in zip(map(tuple, sizes.tolist()), entry.points.values(), strict=True):
        together.setdefault(place, []).append(max(point.seconds - call, point.seconds / 10))
    return _Curve(kind, surface({place: float(np.mean(some)) for place, some in together.items()}), blocks)


def _rounded(sizes: Ints, blocks: tuple[int, ...]) -> Ints:
    """[n, symbols], each up to a multiple of its block; below one block they are what they are: that is measured."""
    each = np.array(blocks)
    return np.where(sizes < each, sizes, -(-sizes // each) * each)


def known_operators(analysis: Analysis, table: Table) -> Operators | None:
    """The operators that the table has of this model with these widths, so that nothing is run to find them."""
    model = table.models.get(identity(analysis.graph))
    if model is None or model.operators is None:
        return None
    try:
        found = Operators.from_json(model.operators)
    except (KeyError, TypeError, ValueError):
        return None
    return found if found.widths == tuple(analysis.widths) else None


def usable(analysis: Analysis, table: Table) -> Anchors | None:
    """The anchors of this model in the order of its widths; without those at other sizes of widths that are frozen."""
    anchors = table.models.get(identity(analysis.graph))
    if anchors is None or not set(analysis.widths) <= set(anchors.sizes):
        return None
    names = list(anchors.sizes)
    frozen = [k for k, name in enumerate(names) if name not in analysis.widths]
    order = [names.index(name) for name in analysis.widths]
    kept = [
        replace(one, widths=tuple(one.widths[k] for k in order))
        for one in anchors.measured
        if all(one.widths[k] == anchors.sizes[names[k]] for k in frozen)
    ]
    return replace(anchors, sizes={name: anchors.sizes[name] for name in analysis.widths}, measured=tuple(kept))


def calibrated(plain: Predictor, anchors: Anchors) -> Predictor:
    """With a coefficient for each class of operators and a constant, none negative, that fit the anchors best.

    Relative errors count, so that small models matter as much as large ones; ridge regression pulls coefficients
    towards one and the constant towards nothing, so that few anchors do no harm.
    """
    rows = np.array([plain.source, *(one.widths for one in anchors.measured)], dtype=np.int64)
    measured = anchors.seconds * np.array([1.0, *(one.ratio for one in anchors.measured)])
    parts = plain.by_class(rows)
    total = np.sum([*parts.values()], axis=0)
    large = [name for name, seconds in parts.items() if float(np.max(seconds / total)) >= SMALL]
    rest = [name for name in parts if name not in large]
    names = [*large, *([""] if rest else [])]
    columns = [parts[name] for name in large] + ([np.sum([parts[name] for name in rest], axis=0)] if rest else [])
    unit = float(np.min(measured)) / 10  # of the constant
    design = np.stack([*columns, np.full(len(rows), unit)], axis=1) / measured[:, None]
    prior = np.array([*(1.0 for _ in columns), 0.0])
    weight = np.sqrt(RIDGE)
    stacked = np.vstack([design, weight * np.eye(len(prior))])
    found = _nonnegative(stacked, np.concatenate([np.ones(len(rows)), weight * prior]))
    coefficients = dict(zip(names, found[:-1].tolist(), strict=True))
    return Predictor(plain.operators, plain.curves, {"": 1.0, **coefficients}, float(found[-1] * unit), plain.source)


def _nonnegative(design: Floats, target: Floats) -> Floats:
    """The least squares solution without negative numbers, by coordinate descent; few unknowns, full rank."""
    gram, right = design.T @ design, design.T @ target
    made = np.maximum(np.linalg.solve(gram, right), 0)
    for _ in range(SWEEPS):
        before = made.copy()
        for k in range(len(made)):
            made[k] = max(made[k] + (right[k] - gram[k] @ made) / gram[k, k], 0.0)
        if np.allclose(made, before, rtol=1e-10, atol=0):
            break
    return np.asarray(made)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of predictions against measurements: the median and the largest relative error, and Spearman's rank
    correlation (nan of fewer than three)."""

    median: float
    largest: float
    spearman: float
    models: int

    @classmethod
    def of(cls, predicted: Floats, measured: Floats) -> Accuracy:
        """[n] and [n], in the same unit."""
        errors = np.abs(predicted / measured - 1)
        ranks = [_ranks(predicted), _ranks(measured)]
        enough = len(errors) > 2 and all(np.ptp(rank) > 0 for rank in ranks)
        rho = float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if enough else math.nan
        return cls(float(np.median(errors)), float(np.max(errors)), rho, len(errors))


def accuracy(plain: Predictor, anchors: Anchors) -> Accuracy:
    """What the calibrated prediction is off by at anchors that it was not calibrated on: each is left out once."""
    predicted = []
    for k, left_out in enumerate(anchors.measured):
        others = replace(anchors, measured=(*anchors.measured[:k], *anchors.measured[k + 1 :]))
        predicted.append(calibrated(plain, others).predict(np.array(left_out.widths)))
    measured = anchors.seconds * np.array([one.ratio for one in anchors.measured])
    return Accuracy.of(np.array(predicted), measured)


def _ranks(values: Floats) -> Floats:
    """Ranks from zero; equals have the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse], dtype=np.float64)
