"""Random widths on the budget: the baseline that any other searcher has to beat."""

from __future__ import annotations

import math

import numpy as np

from conet_onnx.records.trial import Trial
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.searcher import Proposal, moves
from conet_onnx.searching.space import WidthSpace

__all__ = ["RandomSearch"]

SPREAD = 2.0  # each width is up to twice or half its share


class RandomSearch:
    """Independent trials, each from the source's weights: widths times log-uniform factors, scaled onto the budget."""

    def __init__(self, space: WidthSpace, limits: Limits, *, trials: int, seed: int = 0) -> None:
        self._space = space
        self._limits = limits
        self._seed = seed
        self._best = math.inf

    def ask(self, number: int) -> Proposal:
        """The first trial is the source scaled, the others are drawn."""
        rng = np.random.default_rng([self._seed, number, 0])
        draw = rng.uniform(-1, 1, len(self._space.names)) if number else np.zeros(len(self._space.names))
        source = self._space.source
        wish = {name: source[name] * math.pow(SPREAD, x) for name, x in zip(source, draw.tolist(), strict=True)}
        widths = self._space.project(wish, self._limits)
        return Proposal(widths, None, moves(source, widths))

    def accepts(self, trial: Trial) -> bool:
        """Whether it is the best so far."""
        return trial.objective < self._best

    def tell(self, trial: Trial) -> None:
        """Remember the best."""
        if trial.accepted:
            self._best = trial.objective
