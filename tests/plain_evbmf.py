"""EVBMF and the metrics of CONETv2 in plain Python, from their formulas and by looking everywhere; for tests alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["Plain", "cost", "grid", "measure", "solve"]

Plain = tuple[int, float, list[float]]  # rank, variance, shrunk singular values


def sides(rows: int, columns: int) -> tuple[int, int, float, float]:
    """L, M, alpha, xbar."""
    short, long = min(rows, columns), max(rows, columns)
    alpha = short / long
    tau = 2.5129 * math.sqrt(alpha)
    return short, long, alpha, (1 + tau) * (1 + alpha / tau)


def cost(values: Sequence[float], rows: int, columns: int, variance: float) -> float:
    """What is to be minimised."""
    _, long, alpha, edge = sides(rows, columns)
    total = 0.0
    for s in values:
        x = s * s / (long * variance)
        if x <= edge:
            total += x - math.log(x)
        else:
            t = (x - 1 - alpha + math.sqrt((x - 1 - alpha) ** 2 - 4 * alpha)) / 2
            total += x - t + math.log((t + 1) / x) + alpha * math.log(t / alpha + 1)
    return total


def bounds(values: Sequence[float], rows: int, columns: int) -> tuple[float, float]:
    """Between which the variance lies."""
    short, long, alpha, edge = sides(rows, columns)
    e = min(math.ceil(short / (1 + alpha)) - 1, short) - 1
    rest = [s * s for s in values[e + 1 :]]
    low = max(values[e + 1] ** 2 / (long * edge), sum(rest) / len(rest) / long)
    return low, sum(s * s for s in values) / (short * long)


def grid(values: Sequence[float], rows: int, columns: int, points: int) -> list[tuple[float, float]]:
    """(variance, cost) at so many variances, evenly spaced on a logarithmic scale."""
    low, high = bounds(values, rows, columns)
    at = [low * (high / low) ** (k / points) for k in range(points + 1)]
    return [(v, cost(values, rows, columns, v)) for v in at]


def solve(values: Sequence[float], rows: int, columns: int, points: int = 2000) -> Plain:
    """The best point of a dense grid, made ten times denser around itself until it does not move."""
    _, long, _, edge = sides(rows, columns)
    tried = grid(values, rows, columns, points)
    best = min(range(len(tried)), key=lambda k: tried[k][1])
    low, high = tried[max(best - 1, 0)][0], tried[min(best + 1, points)][0]
    while high > low * (1 + 1e-13):
        finer = [low + (high - low) * k / 20 for k in range(21)]
        costs = [cost(values, rows, columns, v) for v in finer]
        k = min(range(21), key=costs.__getitem__)
        low, high = finer[max(k - 1, 0)], finer[min(k + 1, 20)]
    v = (low + high) / 2
    kept = [s for s in values if s > math.sqrt(long * v * edge)]
    shrunk = []
    for s in kept:
        a = 1 - (rows + columns) * v / s**2
        shrunk.append(s / 2 * (a + math.sqrt(a * a - 4 * rows * columns * v * v / s**4)))
    return len(kept), v, shrunk


def measure(matrix: np.ndarray) -> list[float]:
    """Rank, ratio, condition, gain, QC, newQC of one unfolding: its rows are the channels."""
    rows, columns = matrix.shape
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False).tolist()
    rank, _, d = solve(values, rows, columns)
    if not rank:
        return [0.0] * 6
    condition = d[0] / d[-1]
    second = 1e-4 if condition == 1 else 1 - 1 / condition
    ratio, gain = rank / rows, sum(value / d[0] for value in d) / rows
    return [rank, ratio, condition, gain, math.atan2(ratio, second), math.atan2(gain, second)]
