"""Times between measured sizes: piecewise linear in the logarithms of sizes and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Surface", "surface"]

Floats: TypeAlias = NDArray[np.float64]

SHORTEST = 1e-9  # seconds: what a call costs is taken off, and something remains


@dataclass(frozen=True, slots=True)
class Surface:
    """Log seconds on a grid of log sizes, one axis for each; linear between its lines, and above them in the
    direction of the last two. A power law in each size is met exactly.

    Below the first line a size takes what it takes there: the direction of two short times, each with a call's cost
    taken off, is mostly noise, and some octaves further down it would be anything.
    """

    axes: tuple[Floats, ...]
    values: Floats  # one dimension for each axis

    def __call__(self, sizes: NDArray[Any]) -> Floats:
        """[n, axes] -> seconds [n]."""
        made = np.zeros(len(sizes))
        if not self.axes:
            return np.exp(made + float(self.values))
        logs = np.log(np.maximum(np.asarray(sizes, dtype=np.float64), 1e-9))
        lower, shares = [], []
        for k, axis in enumerate(self.axes):
            at = np.clip(np.searchsorted(axis, logs[:, k]) - 1, 0, max(len(axis) - 2, 0))
            lower.append(at)
            upper = np.minimum(at + 1, len(axis) - 1)
            step = axis[upper] - axis[at]
            beyond = np.maximum(logs[:, k] - axis[at], 0.0)
            shares.append(np.divide(beyond, step, out=np.zeros(len(logs)), where=step > 0))
        for corner in np.ndindex(*(2,) * len(self.axes)):
            index, weight = [], np.ones(len(logs))
            for k, up in enumerate(corner):
                index.append(np.minimum(lower[k] + up, len(self.axes[k]) - 1))
                weight = weight * (shares[k] if up else 1 - shares[k])
            made += weight * self.values[tuple(index)]
        return np.exp(made)


def surface(points: Mapping[tuple[float, ...], float]) -> Surface:
    """Through all points, sizes -> seconds, one at least; what is missing of the grid that they span is filled in
    along each axis in turn."""
    keys = list(points)
    many = len(keys[0])
    lines = [sorted({key[k] for key in keys}) for k in range(many)]
    values = np.full([len(line) for line in lines], np.nan)
    places = [{size: at for at, size in enumerate(line)} for line in lines]
    for key, seconds in points.items():
        values[tuple(place[size] for place, size in zip(places, key, strict=True))] = np.log(max(seconds, SHORTEST))
    axes = tuple(np.log(np.maximum(np.array(line, dtype=np.float64), 1e-9)) for line in lines)
    return Surface(axes, _filled(values, axes))


def _filled(values: Floats, axes: Sequence[Floats]) -> Floats:
    """A grid without holes: each is the mean of what its lines along the axes say, by their nearest known points."""
    while np.isnan(values).any():
        guesses = np.zeros_like(values)
        counts = np.zeros_like(values)
        for k, axis in enumerate(axes):
            moved = np.moveaxis(values, k, -1)
            for place in np.ndindex(*moved.shape[:-1]):
                known = ~np.isnan(moved[place])
                if known.sum() >= 2 or (known.any() and len(axes) == 1):
                    line = Surface((axis[known],), moved[place][known])
                    sizes = np.exp(axis)[:, None]
                    np.moveaxis(guesses, k, -1)[place] += np.log(line(sizes))
                    np.moveaxis(counts, k, -1)[place] += 1
        holes = np.isnan(values) & (counts > 0)
        if not holes.any():  # single points on every line: the nearest there is
            return np.where(np.isnan(values), np.nanmean(values), values)
        values = np.where(holes, guesses / np.maximum(counts, 1), values)
    return values
