"""Simulated annealing over widths: trades at a constant price, Metropolis acceptance, weights inherited on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from conet_onnx.records.trial import Trial
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.metropolis import Metropolis
from conet_onnx.searching.recipe import Recipe
from conet_onnx.searching.searcher import Probe, Proposal, Widths, least_objective, moves
from conet_onnx.searching.space import Priceable, WidthSpace

__all__ = ["Anneal", "Annealing"]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

STRIDE = 2.5  # the price falls at most by this factor from one trial to the next: inherited weights survive that
BOLDEST, TIMIDEST = 1.4, 1.15  # factor of a trade at the first trial and at the last
CHEAPER = 0.15  # share of moves that only shrink, so that the front has more than one price
FLOOR = 1 / 8  # of the source's size: no trade takes a width below that, though a budget may
ATTEMPTS = 32  # draws before a set of widths is tried a second time


@dataclass(frozen=True, slots=True)
class Annealing:
    """Our own method: trained weights are inherited and followed by distillation, trial after trial."""

    trials: int = 24
    epochs_per_trial: int = 4
    epochs: int = 40

    @property
    def at_once(self) -> int | None:
        """Any number of trades from the same widths."""
        return None

    @property
    def multiple(self) -> Literal["auto", "none"]:
        """Steps of its own space."""
        return "none"

    @property
    def needs_budget(self) -> bool:
        """Its trades are at a constant price."""
        return True

    def space(self, analysis: Priceable, limits: Limits) -> WidthSpace:
        """Round widths, up to twice the source's."""
        return WidthSpace(analysis)

    def searcher(
        self, space: WidthSpace, limits: Limits, *, trials: int, seed: int, probe: Probe | None = None
    ) -> Anneal:
        """Simulated annealing."""
        return Anneal(space, limits, trials=trials, seed=seed)

    def recipe(self) -> Recipe:
        """Trials begin with the source's weights."""
        return Recipe()


class Anneal:
    """Metropolis acceptance (Metropolis et al. 1953; Kirkpatrick et al. 1983) on the priced objective.

    The first trials scale all widths onto the budget, in more than one stride where it is far away. Every later one
    trades: one width grows, another pays for it, and one multiplier makes the whole fit. Which two is drawn from what
    earlier trials say that a share of the budget is worth in each width (Bayesian linear regression of the change of
    the objective on the shares moved; Thompson sampling), so that chance rules at first and experience later.
    Temperature is in units of the mean change seen so far, and falls geometrically over the planned trials.
    """

    def __init__(self, space: WidthSpace, limits: Limits, *, trials: int, seed: int = 0) -> None:
        self._space = space
        self._limits = limits
        self._seed = seed
        excess = math.log(max(limits.utilisation(space.price(space.source)), 1))
        self._strides = min(max(math.ceil(excess / math.log(STRIDE)), 1), max(trials // 3, 1))
        self._excess = excess
        self.metropolis = Metropolis(self._strides, trials, seed)
        self._current: Trial | None = None
        self._told: dict[int, Trial] = {}
        self._changes: list[float] = []  # of the objective, from parent to child
        self._shares: list[Floats] = []  # of the budget, moved from parent to child

    def ask(self, number: int, beside: Sequence[Widths] = ()) -> Proposal:
        """Scale onto the budget first, then trade. Of several at the same time, each is another trade."""
        before = self._current.widths if self._current else self._space.source
        parent = self._current.number if self._current else None
        if number < self._strides or self._current is None:
            limits = self._limits.scaled(math.exp(self._excess * max(1 - (number + 1) / self._strides, 0)))
            widths = self._space.project(before, limits)
            if widths not in beside:
                return Proposal(widths, parent, f"scaled onto {limits}: {moves(before, widths)}")
            scaled: Mapping[str, int] = (
                widths  # it is tried already: a trade from there, with the weights that it begins with
            )
        else:
            scaled = before
        rng = np.random.default_rng([self._seed, number, 0])
        seen = [*(trial.widths for trial in self._told.values()), *beside]
        for _ in range(ATTEMPTS):
            widths = self._move(scaled, number, rng)
            if widths not in seen:
                break
        return Proposal(widths, parent, moves(before, widths))

    def accepts(self, trial: Trial) -> bool:
        """As Metropolis has it. Scaling onto the budget is not judged."""
        return self.metropolis.accepts(trial, self._current, self._changes)

    def tell(self, trial: Trial) -> None:
        """Remember the trial; go on from it if it was accepted."""
        parent = self._told.get(trial.parent) if trial.parent is not None else None
        if parent and trial.number >= self._strides and not math.isnan(trial.objective):
            ratio = [math.log(trial.widths[name] / parent.widths[name]) for name in self._space.names]
            self._shares.append(self._space.shares(parent.widths, self._limits) * np.array(ratio))
            self._changes.append(trial.objective - parent.objective)
        self._told[trial.number] = trial
        if trial.accepted:
            self._current = trial

    def choose(self, trials: Sequence[Trial]) -> Trial:
        """The one of least objective."""
        return least_objective(trials)

    def _move(self, before: Mapping[str, int], number: int, rng: np.random.Generator) -> dict[str, int]:
        """One width down, and most often another one up for it; each by a factor, and by one step at least."""
        names = self._space.names
        above, below = self._space.above(before), self._space.below(before)
        worth = self._worth(rng)
        can_pay = np.array([FLOOR * self._space.source[name] <= below[name] < before[name] for name in names])
        pays = int(np.argmax(np.where(can_pay, worth, -np.inf)))
        factor = math.pow(BOLDEST * math.pow(TIMIDEST / BOLDEST, self.metropolis.progress(number)), rng.uniform(0.5, 1))
        wish: dict[str, float] = dict(before)
        can_grow = np.array([above[name] > before[name] for name in names]) & (np.arange(len(names)) != pays)
        if rng.random() < CHEAPER or not can_grow.any():
            wish[names[pays]] = min(before[names[pays]] / factor, below[names[pays]])
            snapped = self._space.snap(wish)
            return snapped if self._limits.fits(self._space.price(snapped)) else self._space.project(wish, self._limits)
        grows = int(np.argmin(np.where(can_grow, worth, np.inf)))
        grown = max(before[names[grows]] * factor, above[names[grows]])
        shares = np.maximum(self._space.shares(before, self._limits), 1e-9)
        exchange = float(np.clip(shares[grows] / shares[pays], 0.5, 2))  # what no one pays for, all do
        paid = before[names[pays]] * math.pow(before[names[grows]] / grown, exchange)
        wish[names[grows]], wish[names[pays]] = grown, min(paid, below[names[pays]])
        return self._space.project(wish, self._limits)

    def _worth(self, rng: np.random.Generator) -> Floats:
        """A draw from the posterior of what a share of the budget does to the objective, for each width."""
        noise: Floats = rng.standard_normal(len(self._space.names))
        if not self._changes:
            return noise
        x = np.stack(self._shares)
        x /= math.sqrt(float(np.mean(np.sum(x * x, axis=1)))) or 1.0
        y = np.array(self._changes) / (float(np.mean(np.abs(self._changes))) or 1.0)
        precision = np.eye(x.shape[1]) + x.T @ x  # prior and noise of one unit each
        mean = np.linalg.solve(precision, x.T @ y)
        return np.asarray(mean + np.linalg.solve(np.linalg.cholesky(precision).T, noise), dtype=np.float64)
