"""What a width is worth at other sizes: from what masking its channels did, downwards and, extrapolated, upwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Curve", "Worth"]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

SPREAD = 0.5  # a priori, of a width's scale, as a share of that of all
COMMON = 0.1  # what training leaves of a nat, as a guess that counts as much as one trial
LEAST = 0.01
PASSES = 3


@dataclass(frozen=True, slots=True)
class Curve:
    """What a model's loss gains, in nats, where a width has fewer channels than it has, and loses where it has more.

    `sizes` ascending, the last the width's own; `losses` fall to 0 there. Below the first size the loss goes on as
    `slope(1 / n)`. Above the last one a channel is worth at most what the least important ones are, and less and less:
    as if the loss were a / n, whose slope there is that of the last stretch.
    """

    sizes: Floats
    losses: Floats

    @classmethod
    def of(cls, size: int, masked: Sequence[tuple[float, float]]) -> Curve:
        """From (share of channels, what the loss gains without it). Chance makes some negative, and some fall with more
        channels gone: what is lost without many is at least what is lost without few."""
        known = {size: 0.0}
        worst = 0.0
        for share, lost in sorted(masked):
            worst = max(worst, lost)
            left = size - int(share * size)
            if left < size:
                known[left] = max(worst, known.get(left, 0.0))
        sizes = np.array(sorted(known), dtype=np.float64)
        return cls(sizes, np.array([known[int(n)] for n in sizes]))

    def change(self, sizes: Sequence[int] | np.ndarray[Any, Any]) -> Floats:
        """What the loss gains at each size; negative above the width's own, never rising with the size."""
        n = np.asarray(sizes, dtype=np.float64)
        own = float(self.sizes[-1])
        inside = np.interp(n, self.sizes, self.losses)
        first = float(self.sizes[0])
        steep = self._slope(0) * first * first
        below = float(self.losses[0]) + steep * (1 / np.minimum(n, first) - 1 / first)
        above = self.margin * own * (own / np.maximum(n, own) - 1)
        made: Floats = np.where(n < first, below, np.where(n > own, above, inside))
        return made

    @property
    def margin(self) -> float:
        """What one channel more is worth at most, in nats: the gentlest stretch that is left of the width's size."""
        return min((self._slope(k) for k in range(len(self.sizes) - 1)), default=0.0)

    def _slope(self, k: int) -> float:
        if len(self.sizes) < 2:
            return 0.0
        return float((self.losses[k] - self.losses[k + 1]) / (self.sizes[k + 1] - self.sizes[k]))


@dataclass(frozen=True, slots=True)
class Worth:
    """What a nat of masked loss comes to after training, for each width: Bayesian linear regression.

    What a trial changed the loss by is taken for sum of scale · predicted change over the widths, what training alone
    does, and noise. A priori every width has the same scale, give or take `SPREAD` of it; that scale is itself what
    fits the trials best, between LEAST and 1.
    """

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, predicted: Sequence[Floats], seen: Sequence[float], widths: int) -> Worth:
        """From [widths] predicted changes of each trial, by its parent's curves, and what was seen."""
        prior: Floats = np.ones(widths)
        if not predicted:
            return cls(prior, np.asarray(np.diag(np.square(SPREAD * prior)), dtype=np.float64))
        x = np.column_stack([np.stack(predicted), np.ones(len(seen))])
        y = np.asarray(seen, dtype=np.float64)
        noise = max(float(np.std(y)), 1e-9) if len(y) > 1 else max(abs(float(y[0])), 1e-9)
        total = x[:, :-1].sum(1)
        # One scale for all: least squares with an intercept, drawn towards 1/10 as by one trial.
        centred = total - total.mean()
        weight = float(np.mean(total * total)) or 1.0
        common = float((centred @ y + COMMON * weight) / (centred @ centred + weight))
        prior = np.full(widths, min(max(common, LEAST), 1.0), dtype=np.float64)
        start = np.append(prior, 0.0)
        spread = np.append(SPREAD * prior, noise)
        broad = noise
        for _ in range(PASSES):
            covariance = np.linalg.inv(np.diag(1 / spread**2) + x.T @ x / noise**2)
            mean = covariance @ (start / spread**2 + x.T @ y / noise**2)
            # What is left over, of as many numbers as the fit has not used (MacKay, 1992); at first all that was seen.
            free = max(len(y) + 1 - float(np.sum(1 - np.diag(covariance) / spread**2)), 1.0)
            noise = math.sqrt((float(np.sum((y - x @ mean) ** 2)) + broad**2 / len(y)) / free)
        return cls(mean[:-1], np.asarray((covariance + covariance.T)[:-1, :-1] / 2, dtype=np.float64))

    def drawn(self, rng: np.random.Generator, boldness: float = 1.0) -> Floats:
        """A draw for each width, positive: lognormal with the posterior's mean and `boldness` times its deviation."""
        size = len(self.mean)
        if not size:
            return self.mean
        centre = np.maximum(self.mean, LEAST * max(float(np.max(np.abs(self.mean))), 1e-12))
        deviation = np.sqrt(np.maximum(np.diag(self.covariance), 1e-24))
        values, vectors = np.linalg.eigh(self.covariance / np.outer(deviation, deviation))
        correlated = vectors @ (np.sqrt(np.maximum(values, 0.0)) * rng.standard_normal(size))
        sigma = np.sqrt(np.log1p((boldness * deviation / centre) ** 2)).clip(max=math.log(4))
        made: Floats = centre * np.exp(sigma * correlated - sigma * sigma / 2)
        return made
