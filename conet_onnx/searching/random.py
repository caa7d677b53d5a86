"""Random widths, and one multiplier for all: the baselines that any other searcher has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from conet_onnx.errors import UsageError
from conet_onnx.records.trial import Trial
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.recipe import Recipe, from_scratch
from conet_onnx.searching.searcher import Proposal, least_objective, moves
from conet_onnx.searching.space import Priceable, WidthSpace

__all__ = ["Compound", "CompoundSearch", "Random", "RandomSearch"]

Start = Literal["source", "fresh"]


@dataclass(frozen=True, slots=True)
class Random:
    """Each width is up to `spread` times, or one part in `spread` of, its share of the budget; without a budget, of its
    size in the source. The first trial has the source's proportions. Trials begin with the source's weights; with
    `start=fresh` they begin from scratch, as CONETv2's last training does (recipe.from_scratch), and the last one too.
    """

    trials: int = 24
    epochs_per_trial: int = 4
    epochs: int = 40
    spread: float = 2.0
    start: Start = "source"
    lr: float = 0.1
    every: float = 25.0

    def __post_init__(self) -> None:
        if not self.spread >= 1:
            raise UsageError(f"spread={self.spread}: expected a factor of at least 1.")

    @property
    def needs_budget(self) -> bool:
        """Proportions are drawn either way."""
        return False

    def space(self, analysis: Priceable, limits: Limits) -> WidthSpace:
        """Round widths."""
        return WidthSpace(analysis, growth=max(2.0, self.spread))

    def searcher(self, space: WidthSpace, limits: Limits, *, trials: int, seed: int) -> RandomSearch:
        """Chance alone."""
        return RandomSearch(space, limits, self.spread, seed=seed)

    def recipe(self) -> Recipe:
        """Trials begin with the source's weights, or from scratch."""
        return _recipe(self.start, self.lr, self.every)


@dataclass(frozen=True, slots=True)
class Compound:
    """One multiplier for all widths. The first trial is the largest within the budget, or without one all widths times
    `largest`; every later one costs, or without a budget is as wide as, `step` times the one before. `start`, `lr` and
    `every` as in Random."""

    trials: int = 6
    epochs_per_trial: int = 4
    epochs: int = 40
    step: float = 0.85
    largest: float = 1.5
    start: Start = "source"
    lr: float = 0.1
    every: float = 25.0

    def __post_init__(self) -> None:
        if not 0 < self.step < 1 or not self.largest > 0:
            raise UsageError(f"step={self.step}, largest={self.largest}: a factor of 0..1, and a positive one.")

    @property
    def needs_budget(self) -> bool:
        """Multipliers are as good without one."""
        return False

    def space(self, analysis: Priceable, limits: Limits) -> WidthSpace:
        """Round widths."""
        return WidthSpace(analysis, growth=max(2.0, self.largest))

    def searcher(self, space: WidthSpace, limits: Limits, *, trials: int, seed: int) -> CompoundSearch:
        """No chance at all."""
        return CompoundSearch(space, limits, self)

    def recipe(self) -> Recipe:
        """Trials begin with the source's weights, or from scratch."""
        return _recipe(self.start, self.lr, self.every)


class CompoundSearch:
    """Independent trials, each from the source's weights: all widths times one factor."""

    def __init__(self, space: WidthSpace, limits: Limits, method: Compound) -> None:
        self._space = space
        self._limits = limits
        self._method = method
        self._best = math.inf

    def ask(self, number: int) -> Proposal:
        """Smaller and smaller; as small as it gets, in the end."""
        source, share = self._space.source, math.pow(self._method.step, number)
        if self._limits.by_kind:
            smallest = self._space.price({name: low for name, (low, _) in self._space.bounds.items()})
            limits = self._limits.scaled(max(share, self._limits.utilisation(smallest)))
            widths = self._space.project(source, limits)
        else:
            factor = self._method.largest * share
            widths = self._space.snap({name: width * factor for name, width in source.items()})
        return Proposal(widths, None, moves(source, widths))

    def accepts(self, trial: Trial) -> bool:
        """Whether it is the best so far."""
        return trial.objective < self._best

    def tell(self, trial: Trial) -> None:
        """Remember the best."""
        if trial.accepted:
            self._best = trial.objective

    def choose(self, trials: Sequence[Trial]) -> Trial:
        """The one of least objective."""
        return least_objective(trials)


class RandomSearch:
    """Independent trials, each from the source's weights: widths times log-uniform factors, scaled onto the budget."""

    def __init__(self, space: WidthSpace, limits: Limits, spread: float, *, seed: int = 0) -> None:
        self._space = space
        self._limits = limits
        self._spread = spread
        self._seed = seed
        self._best = math.inf

    def ask(self, number: int) -> Proposal:
        """The first trial is the source scaled, the others are drawn."""
        rng = np.random.default_rng([self._seed, number, 0])
        draw = rng.uniform(-1, 1, len(self._space.names)) if number else np.zeros(len(self._space.names))
        source = self._space.source
        wish = {name: source[name] * math.pow(self._spread, x) for name, x in zip(source, draw.tolist(), strict=True)}
        widths = self._space.project(wish, self._limits)
        return Proposal(widths, None, moves(source, widths))

    def accepts(self, trial: Trial) -> bool:
        """Whether it is the best so far."""
        return trial.objective < self._best

    def tell(self, trial: Trial) -> None:
        """Remember the best."""
        if trial.accepted:
            self._best = trial.objective

    def choose(self, trials: Sequence[Trial]) -> Trial:
        """The one of least objective."""
        return least_objective(trials)


def _recipe(start: Start, lr: float, every: float) -> Recipe:
    if start == "source":
        return Recipe()
    training = from_scratch(lr, every)
    return Recipe(start="fresh", final="fresh", training=training, final_training=training)
