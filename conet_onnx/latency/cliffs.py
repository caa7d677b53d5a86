"""Cliffs: the blocks of a size by which an operator's time rises, found from times just above and below multiples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from conet_onnx.latency.table import Point

__all__ = ["BASE", "BLOCKS", "beside", "block_of"]

BLOCKS = (1, 4, 8, 16, 32)
BASE = 32  # above which the steps are looked for: one of four is an eighth of it
OFFSETS = (1, 4, 8, 9, 16, 17, 32, 33)
NOISE = 0.025  # relative error of a time that no staircase is to explain
BETTER = 1.5  # a smaller block explains as well if its error is larger by no more than this factor


def beside(lines: Sequence[int], *, grain: int = 1) -> list[int]:
    """Sizes that tell the blocks apart, between two of some powers of two at which an operator is measured; multiples
    of `grain`. None where the sizes are too small for a block, or so large that one is lost in them."""
    if not lines or lines[-1] < 2 * BLOCKS[2]:
        return []
    base = max(min(BASE, lines[-1] // 2), lines[0])
    if base > 2 * BASE:
        return []
    if grain > 1:
        sizes = [size for size in range(base + grain, lines[-1] + 1, grain) if size % grain == 0][: len(BLOCKS) - 1]
    else:
        sizes = [base + offset for offset in OFFSETS if base + offset <= lines[-1]]
    return sizes if len(sizes) > 2 else []


def block_of(line: Mapping[int, Point], call: float = 0.0) -> int:
    """The smallest block that explains the times of some sizes: they are a line in the size rounded up to it.

    Of each block, the line is that of least squares of the relative errors, and never falls; `call` seconds are taken
    off. 1 where no staircase explains them better than the sizes themselves.
    """
    sizes = np.array([*line], dtype=np.float64)
    seconds = np.array([max(p.seconds - call, p.seconds / 10) for p in line.values()])
    noise = max(NOISE, float(np.median([point.spread for point in line.values()])) / 2)
    errors = {block: _error(np.ceil(sizes / block) * block, seconds) for block in BLOCKS}
    least = max(noise, BETTER * min(errors.values()))
    return next(block for block in BLOCKS if errors[block] <= least)


def _error(rounded: np.ndarray, seconds: np.ndarray) -> float:
    """Root of the mean squared relative error of a line through the times, or of a constant where it would fall."""
    weights = 1 / seconds
    design = np.stack([weights, rounded * weights], axis=1)
    (_, slope), *_ = np.linalg.lstsq(design, np.ones(len(seconds)), rcond=None)
    if slope < 0 or np.ptp(rounded) == 0:
        design = design[:, :1]
    found, *_ = np.linalg.lstsq(design, np.ones(len(seconds)), rcond=None)
    return float(np.sqrt(np.mean((design @ found - 1) ** 2)))
