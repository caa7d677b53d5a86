"""Random widths, and one multiplier for all: the baselines that any other searcher has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from conet_onnx.errors import UsageError
from conet_onnx.records.trial import Trial
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.recipe import Recipe, from_scratch
from conet_onnx.searching.searcher import Probe, Proposal, Widths, least_objective, moves
from conet_onnx.searching.space import Priceable, WidthSpace

__all__ = ["Compound", "Independent", "Random"]

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
    def at_once(self) -> int | None:
        """Any number: trials do not learn from each other."""
        return None

    @property
    def multiple(self) -> Literal["auto", "none"]:
        """Steps of its own space."""
        return "none"

    @property
    def needs_budget(self) -> bool:
        """Proportions are drawn either way."""
        return False

    def space(self, analysis: Priceable, limits: Limits) -> WidthSpace:
        """Round widths."""
        return WidthSpace(analysis, growth=max(2.0, self.spread))

    def searcher(
        self, space: WidthSpace, limits: Limits, *, trials: int, seed: int, probe: Probe | None = None
    ) -> Independent:
        """Chance alone."""
        sizes = space.source

        def wish(number: int) -> dict[str, int]:
            rng = np.random.default_rng([seed, number, 0])
            draw = rng.uniform(-1, 1, len(sizes)) if number else np.zeros(len(sizes))
            drawn = {name: sizes[name] * math.pow(self.spread, x) for name, x in zip(sizes, draw.tolist(), strict=True)}
            return space.project(drawn, limits)

        return Independent(space, wish)

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
    def at_once(self) -> int | None:
        """Any number: trials do not learn from each other."""
        return None

    @property
    def multiple(self) -> Literal["auto", "none"]:
        """Steps of its own space."""
        return "none"

    @property
    def needs_budget(self) -> bool:
        """Multipliers are as good without one."""
        return False

    def space(self, analysis: Priceable, limits: Limits) -> WidthSpace:
        """Round widths."""
        return WidthSpace(analysis, growth=max(2.0, self.largest))

    def searcher(
        self, space: WidthSpace, limits: Limits, *, trials: int, seed: int, probe: Probe | None = None
    ) -> Independent:
        """Smaller and smaller; as small as it gets, in the end."""
        smallest = space.price({name: low for name, (low, _) in space.bounds.items()})

        def wish(number: int) -> dict[str, int]:
            share = math.pow(self.step, number)
            if limits.by_kind:
                return space.project(space.source, limits.scaled(max(share, limits.utilisation(smallest))))
            return space.snap({name: width * self.largest * share for name, width in space.source.items()})

        return Independent(space, wish)

    def recipe(self) -> Recipe:
        """Trials begin with the source's weights, or from scratch."""
        return _recipe(self.start, self.lr, self.every)


class Independent:
    """Trials that do not learn from each other: what each one tries follows from its number alone."""

    def __init__(self, space: WidthSpace, wish: Callable[[int], Mapping[str, int]]) -> None:
        self._source = space.source
        self._wish = wish
        self._best = math.inf

    def ask(self, number: int, beside: Sequence[Widths] = ()) -> Proposal:
        """As the method says, from where its recipe begins."""
        widths = self._wish(number)
        return Proposal(widths, None, moves(self._source, widths))

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
