"""Slices of weights, made when they are needed and no earlier: block after block while they are written, say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from conet_onnx.errors import UsageError
from conet_onnx.plans import NULL, Floats, Take

__all__ = ["Slices", "apply"]

Array = np.ndarray[Any, Any]

BLOCK = 1 << 16  # elements that are made at a time: they stay in the processor's cache


def apply(source: Array, made: Take) -> Array:
    """take(source) / divide along every listed axis, of the source's type. Raises UsageError for another shape."""
    return Slices(source, made).whole()


class Slices:
    """What a plan makes of one weight (storing.Deferred). Raises UsageError where the plan expects another shape.

    The source is kept until the slices are asked for as a whole; from then on that is kept, and not the source.
    """

    def __init__(self, source: Array, made: Take) -> None:
        if source.shape != made.shape:
            raise UsageError(f"the plan expects a weight of shape {made.shape}, got {source.shape}.")
        self.shape = tuple(len(made.take[k]) if k in made.take else n for k, n in enumerate(made.shape))
        self.dtype = source.dtype
        self.nbytes = math.prod(self.shape) * source.dtype.itemsize
        self._take = made
        self._source: Array | None = source
        self._whole: Array | None = None

    def whole(self) -> Array:
        """All at once; the same array, not to be written to, each time."""
        if self._whole is None and not self.shape:
            self._whole = np.array(self._source)
        if self._whole is None:
            made = np.empty(self.shape, self.dtype)
            start = 0
            for block in self.blocks():
                made[start : start + len(block)] = block
                start += len(block)
            made.flags.writeable = False
            self._whole, self._source = made, None
        return self._whole

    def blocks(self) -> Iterator[Array]:
        """Rows after rows, as many as are a block; each is contiguous."""
        if self._whole is not None:
            yield self._whole
        elif self._source is not None:
            yield from self._sliced(self._source)

    def _sliced(self, source: Array) -> Iterator[Array]:
        take = self._take.take
        order = sorted(take, key=lambda k: (k > 0, self.shape[k] / max(source.shape[k], 1)))
        zeros = {k: take[k] == NULL for k in order if (take[k] == NULL).any()}
        taken = {k: np.maximum(take[k], 0) if k in zeros else take[k] for k in order}
        runs = {k: _runs(taken[k], source.shape[k]) for k in order if k}
        divides = {k: _narrowed(by, source.dtype) for k, by in self._take.divide.items()}
        spread = {k: np.repeat(by, math.prod(self.shape[k + 1 :])) for k, by in divides.items() if k}
        step = max(1, BLOCK // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            part = source if 0 in taken else source[rows] if taken else source[rows].copy()
            for k in order:
                part = _taken(part, k, *runs[k]) if k else np.take(part, taken[0][rows], axis=0)
            for k, by in divides.items():
                lead = k or 1  # two axes: those before, and this one with those after (by the channel, the first alone)
                flat = part.reshape(math.prod(part.shape[:lead]), math.prod(part.shape[lead:]))
                by = spread[k] if k else by[rows, None]
                if by.dtype == flat.dtype:
                    np.divide(flat, by, out=flat)
                else:
                    part = (flat / by).astype(source.dtype).reshape(part.shape)
            for k, nothing in zeros.items():
                part[(slice(None),) * k + (nothing if k else nothing[rows],)] = 0
            yield part


def _runs(taken: Array, size: int) -> tuple[Array, int]:
    """Which runs of how many neighbours an axis of so many channels is taken in; the longest that are all alike."""
    for length in (64, 32, 16, 8, 4, 2):
        if len(taken) % length == 0 and size % length == 0:
            runs = taken.reshape(-1, length)
            if not (runs[:, 0] % length).any() and (np.diff(runs, axis=1) == 1).all():
                return runs[:, 0] // length, length
    return taken, 1


def _taken(part: Array, axis: int, runs: Array, length: int) -> Array:
    """np.take, by runs of neighbours."""
    shape = part.shape
    split = part.reshape(*shape[:axis], shape[axis] // length, length, *shape[axis + 1 :])
    return np.take(split, runs, axis=axis).reshape(*shape[:axis], len(runs) * length, *shape[axis + 1 :])


def _narrowed(divide: Floats, dtype: np.dtype[Any]) -> Array:
    """The divisors in single precision where they and what they divide are that precise: the quotients are the same.

    (A quotient of two singles, rounded to double and then to single, is the one that is rounded once: 53 >= 2 * 24 + 2;
    Figueroa, When is double rounding innocuous?, 1995.)
    """
    single: Array = divide.astype(np.float32)
    return single if dtype == np.float32 and np.array_equal(single, divide) else divide
