"""Metropolis acceptance (Metropolis et al., 1953; Kirkpatrick et al., 1983) over the trials of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conet_onnx.records.trial import Trial

__all__ = ["Metropolis"]

# A mean worsening is accepted one time in ten at first, and never (1 in 10^10) at last: trials are few.
HOTTEST = 1 / math.log(10)
COOLING = 0.1


@dataclass(frozen=True, slots=True)
class Metropolis:
    """Accepts worse trials by chance, ever less often; the first `free` of `trials` are not judged.

    The temperature is in units of the mean change of the objective seen so far, and falls geometrically. Chance is
    drawn from the seed and the trial's number.
    """

    free: int
    trials: int
    seed: int

    def progress(self, number: int) -> float:
        """How far the search is, 0..1, where trials are judged."""
        return min(max(number - self.free, 0) / max(self.trials - self.free - 1, 1), 1)

    def temperature(self, number: int, changes: Sequence[float]) -> float:
        """In units of the objective, at trial `number`, after these changes of the objective."""
        return HOTTEST * float(np.mean(np.abs(changes))) * math.pow(COOLING, self.progress(number))

    def accepts(self, trial: Trial, current: Trial | None, changes: Sequence[float]) -> bool:
        """Better always; worse by d with probability exp(-d / temperature); never what is no number."""
        if math.isnan(trial.objective):
            return False
        if trial.number < self.free or current is None:
            return True
        change = trial.objective - current.objective
        if change <= 0:
            return True
        chance = float(np.random.default_rng([self.seed, trial.number, 1]).random())
        return chance < math.exp(-change / self.temperature(trial.number, [*changes, change]))
