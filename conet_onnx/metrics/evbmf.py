"""Empirical variational Bayesian matrix factorisation: how many singular values stand out of the noise, and how far.

The global analytic solution (Nakajima, Sugiyama, Babacan, Tomioka: "Global analytic solution of fully-observed
variational Bayesian matrix factorization", JMLR 14, 2013) says everything in terms of the singular values s and of the
noise variance v, which minimises a function F of one variable. F is smooth but where one singular value more is taken
for noise, and may have several local minima; here its least value is found by looking at each of these pieces, not by
a search that may end in any of them. With x = s²/(M v) = (1 + t)(1 + alpha/t), and k of L singular values taken for
signal:

    dF / d ln v  =  (L - k) - sum of x over noise - alpha * sum of (1 + 1/t) over signal

1/t is convex in ln v, so this slope is concave: inside a piece it rises through zero once at most, Newton's method
comes there from the left without ever passing it, and the piece's only other candidate is its left end. (Its right end
is none: there the slope falls by tau, and F, which the published constant 2.5129 makes continuous but for 1e-2, does
not rise.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from conet_onnx.errors import UsageError

__all__ = ["Evbmf", "Shrunk", "evbmf", "shrink"]

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]

TAU = 2.5129  # times sqrt(alpha): where signal and noise cost the same, to four digits, for every alpha in 0..1
EPSILON = float(np.finfo(np.float64).eps)
ELEMENTS = 1 << 18  # of one temporary array: a few of them stay in the cache
FAR = 1e100  # x of a singular value that does not count: what it adds to a slope is lost in rounding
STEPS = 64  # of Newton's method; about five are needed


@dataclass(frozen=True, slots=True, eq=False)
class Evbmf:
    """What stands out of the noise: so many singular values, shrunk, in descending order; and the noise's variance."""

    rank: int
    variance: float
    values: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Shrunk:
    """The same of B matrices of one size: ranks [B], variances [B], and values [B, L] with zeros behind the rank."""

    ranks: Integers
    variances: Floats
    values: Floats


def evbmf(singular_values: Floats, rows: int, columns: int) -> Evbmf:
    """Tell signal from noise in a matrix of rows x columns, given all of its min(rows, columns) singular values.

    They are in descending order; a matrix and its transpose give the same. What is smaller than the rounding of a
    singular value decomposition in float64 counts as that. Raises UsageError where the values are no such list.
    """
    values = np.asarray(singular_values, dtype=np.float64)
    short, long = sorted((rows, columns))
    if short < 1 or values.shape != (short,):
        raise UsageError(
            f"a matrix of {rows} x {columns} has {max(short, 0)} singular values, got an array of shape "
            f"{values.shape}: give all of them."
        )
    if not np.isfinite(values).all() or values[-1] < 0 or (np.diff(values) > 0).any():
        raise UsageError("singular values are finite, none is negative, and the largest comes first: sort them.")
    peak = float(values[0]) or 1.0  # squares of very large or small values are out of range
    floor = (EPSILON * long) ** 2
    found = shrink(np.maximum(np.square(values / peak), floor * bool(values[0]))[None], rows, columns)
    rank = int(found.ranks[0])
    return Evbmf(rank, float(found.variances[0]) * peak * peak, found.values[0, :rank] * peak)


def shrink(squares: Floats, rows: int, columns: int) -> Shrunk:
    """The same from squared singular values [B, L] of B matrices, L = min(rows, columns), each row in descending order.

    A row is all zeros, or above zero throughout: who squared them knows what their rounding is, and clamps them there.
    """
    short, long = sorted((rows, columns))
    top = squares[:, 0]
    scaled = np.where(top[:, None] > 0, squares / np.where(top > 0, top, 1)[:, None], 1) / long
    step = max(1, ELEMENTS // short**2)
    parts = [_Costs(scaled[at : at + step], short / long).minimum() for at in range(0, len(scaled), step)]
    ranks = np.concatenate([rank for rank, _ in parts]) if parts else np.zeros(0, np.intp)
    variances = np.concatenate([variance for _, variance in parts]) if parts else np.zeros(0)
    kept = np.arange(short) < ranks[:, None]
    x = np.where(kept, scaled / variances[:, None], FAR)
    return Shrunk(ranks, variances * top, np.where(kept, np.sqrt(squares) * _t(x, short / long) / x, 0))


def _t(x: Floats, alpha: float) -> Floats:
    """The larger root t of x = (1 + t)(1 + alpha/t); s t/x is the shrunk singular value."""
    past = x - (1 + alpha)
    root: Floats = (past + np.sqrt(past * past - 4 * alpha)) / 2
    return root


class _Points(NamedTuple):
    """Variances of matrices, with so many singular values taken for signal: each an array of one axis."""

    row: Integers
    k: Integers
    v: Floats

    def only(self, mask: NDArray[np.bool_]) -> _Points:
        """Those where the mask is true."""
        return _Points(self.row[mask], self.k[mask], self.v[mask])


class _Costs:
    """What each noise variance costs, for a few matrices of one size at once; y = s²/M of each, [B, L]."""

    def __init__(self, y: Floats, alpha: float) -> None:
        tau = TAU * math.sqrt(alpha)
        self.y = y
        self.alpha = alpha
        self.edge = (1 + tau) * (1 + alpha / tau)
        self.tails = _from_the_end(y)

    def minimum(self) -> tuple[Integers, Floats]:
        """The rank and the variance of the least cost, of each matrix: [B] and [B]."""
        rows, short = self.y.shape
        most = math.ceil(short / (1 + self.alpha)) - 1  # no more than so many are signal
        low, high = self.tails[:, most] / (short - most), self.tails[:, 0] / short
        # Piece k has k signals, and goes from where the next would be one to where the last is one no more.
        left = np.clip(self.y[:, : most + 1] / self.edge, low[:, None], high[:, None])
        right = np.concatenate([high[:, None], left[:, :-1]], axis=1)
        row, k = np.nonzero(left < right)
        found = self._minima(_Points(row, k, left[row, k]), right[row, k])
        above = (self.y / self.edge > high[:, None]).sum(1)
        found.append(_Points(np.arange(rows), above, high))
        row, k, v = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((self._costs(_Points(row, k, v)), row))
        best = order[np.unique(row[order], return_index=True)[1]]
        return k[best], v[best]

    def _minima(self, points: _Points, right: Floats) -> list[_Points]:
        """Of pieces that begin at the points: the point itself where F rises from it, else where the slope is zero."""
        slope, bend = self._slopes(points)
        found = [points.only(slope >= 0)]
        # A concave slope lies below its tangent, which says at once where it cannot reach zero inside the piece.
        going = (slope < 0) & (bend > 0) & (slope + np.maximum(bend, 0) * np.log(right / points.v) >= 0)
        for _ in range(STEPS):
            points, right, step = points.only(going), right[going], -slope[going] / bend[going]
            if not len(step):
                break
            v = points.v * np.exp(step)
            inside = v <= right
            points = points._replace(v=np.minimum(v, right))
            slope, bend = self._slopes(points)
            there = inside & ((slope >= 0) | (step <= 2 * EPSILON))
            found.append(points.only(there))
            going = inside & ~there & (bend > 0)
        return found

    def _slopes(self, points: _Points) -> tuple[Floats, Floats]:
        """The first and second derivatives of F by ln v."""
        row, k, v = points
        x = self._signals(points)
        t = _t(x, self.alpha)
        noise = self.tails[row, k] / v
        slope = self.y.shape[1] - k - noise - self.alpha * (k + (1 / t).sum(1))
        return slope, noise - self.alpha * (x / (t * t - self.alpha)).sum(1)

    def _costs(self, points: _Points) -> Floats:
        """F: the sum of x - ln x over noise, and of x - t + ln((t + 1)/x) + alpha ln(t/alpha + 1) over signal.

        (There is no residual, since no singular value is left out.) With x = (1 + t)(1 + alpha/t) put in, nothing
        cancels where x is large.
        """
        row, k, v = points
        x = self._signals(points)
        t = _t(x, self.alpha)
        ratio = self.alpha / t
        each = 1 + self.alpha + ratio - np.log1p(ratio) + self.alpha * np.log1p(t / self.alpha)
        signal = each.sum(1, where=np.arange(x.shape[1]) < k[:, None])
        noise = self.tails[row, k] / v - _from_the_end(np.log(self.y))[row, k] + (self.y.shape[1] - k) * np.log(v)
        costs: Floats = signal + noise
        return costs

    def _signals(self, points: _Points) -> Floats:
        """x of the signals of each point, [points, most signals]; FAR where a point has fewer."""
        row, k, v = points
        most = int(k.max(initial=0))
        return np.where(np.arange(most) < k[:, None], self.y[row, :most] / v[:, None], FAR)


def _from_the_end(values: Floats) -> Floats:
    """[B, L]: at k the sum of all from the k-th on."""
    return values[:, ::-1].cumsum(1)[:, ::-1]
