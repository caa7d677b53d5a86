"""CONETv2: widths that follow how much of their weights' capacity training has put to use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from conet_onnx.errors import UsageError
from conet_onnx.records.trial import Trial
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.recipe import QualityMeasure, Recipe, from_scratch
from conet_onnx.searching.searcher import Probe, Proposal, Widths, least_objective, moves
from conet_onnx.searching.space import Priceable, WidthSpace

__all__ = ["ConetAnnealing", "ConetGreedy", "ConetSearch"]

EVEN = 2  # new widths are even numbers
LEAST, MOST = 0.5, 2.0  # what a width is multiplied by from one trial to the next


@dataclass(frozen=True, slots=True)
class ConetGreedy:
    """CONETv2 (arXiv:2110.06830) and the constants of its authors' code: a width grows by its metric's momentum.

    Trials begin with every width at `start` and fresh weights, and keep trained weights from one to the next by the
    truncated SVD (what the paper calls knowledge distillation). Momentum of a layer's metric m, the largest (`epoch`)
    over the trial's epochs: M_t = gamma · M_(t-1) + m_t, M_0 = m_0. A width's value is the mean over the layers that
    hold it, D its change from one trial to the next. The second trial adds `first_step`; later ones multiply each
    width by clip(1 + scale · D, 1/2, 2) and round to an even number between `smallest` and `largest`. The widths of
    best mean momentum after trial number `burn_in` are trained from scratch.

    Trials: SGD, `lr`, `momentum`, learning rates by layer (AdaS; `beta`), `batch`. The last training: SGD at
    `final_lr`, times `final_factor` every `final_every` epochs, weight decay `final_decay`. Labels alone; no budget.
    With a budget widths may be as small as 1, and one multiplier brings each proposal within it.
    """

    trials: int = 36
    epochs_per_trial: int = 2
    epochs: int = 250
    gamma: float = 0.8
    scale: float = 1.0
    metric: Literal["qc", "newqc"] = "qc"
    epoch: Literal["max", "mean", "last"] = "max"
    start: int = 16
    smallest: int = 16
    largest: int = 256
    first_step: int = 16
    burn_in: int = 5
    lr: float = 0.03
    momentum: float = 0.9
    beta: float = 0.8
    batch: int = 128
    final_lr: float = 0.1
    final_every: float = 25.0
    final_factor: float = 0.5
    final_decay: float = 5e-4

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < 1:
            raise UsageError(f"gamma={self.gamma}: a momentum lies between 0 and 1.")
        if not 1 <= self.smallest <= self.start <= self.largest:
            raise UsageError(f"smallest={self.smallest}, start={self.start}, largest={self.largest}: they must rise.")

    @property
    def at_once(self) -> int | None:
        """One after another: widths follow from what the last trial measured."""
        return 1

    @property
    def multiple(self) -> Literal["auto", "none"]:
        """As published."""
        return "none"

    @property
    def needs_budget(self) -> bool:
        """Its size follows from gamma."""
        return False

    @property
    def alpha(self) -> float | None:
        """Of the temperature; None: nothing is left to chance."""
        return None

    def space(self, analysis: Priceable, limits: Limits) -> WidthSpace:
        """Even widths between the bounds; within a budget the lower one is 1."""
        between = (1 if limits.by_kind else self.smallest, self.largest)
        return WidthSpace(analysis, multiple=EVEN, between=between)

    def searcher(
        self, space: WidthSpace, limits: Limits, *, trials: int, seed: int, probe: Probe | None = None
    ) -> ConetSearch:
        """What proposes widths by their momentum."""
        return ConetSearch(space, limits, self, trials=trials, seed=seed)

    def recipe(self) -> Recipe:
        """From scratch, trial after trial with what the last one learned; the answer from scratch again."""
        final = from_scratch(self.final_lr, self.final_every, self.final_factor, self.final_decay)
        trial: dict[str, Any] = {"lr": self.lr, "batch": self.batch, "momentum": self.momentum}
        trial |= {"schedule": "adas", "adas_beta": self.beta}
        return Recipe(
            start="fresh",
            final="fresh",
            transfer="svd",
            training=final | trial,
            final_training=final,
            measure=QualityMeasure(self.metric, self.epoch),
        )


@dataclass(frozen=True, slots=True)
class ConetAnnealing(ConetGreedy):
    """As ConetGreedy, with what the paper calls simulated annealing: after trial k of N, counted from 0, a width's D is
    doubled with probability exp(-1 / (|D| T)) at temperature T = heat · (N - k) / N (`heat` is the paper's alpha).
    Nothing is ever rejected; `anneal` is the Metropolis rule."""

    heat: float = 5.0

    @property
    def alpha(self) -> float:
        """Of the temperature."""
        return self.heat


class ConetSearch:
    """One proposal after another, each from the last trial's widths and weights."""

    def __init__(self, space: WidthSpace, limits: Limits, method: ConetGreedy, *, trials: int, seed: int = 0) -> None:
        self._space = space
        self._limits = limits
        self._method = method
        self._trials = trials
        self._seed = seed
        self._last: Trial | None = None
        self._momentum: dict[str, float] = {}
        self._change: dict[str, float] = {}  # of the momentum, at the last trial
        self._means: dict[int, float] = {}  # of the momenta, by the trial's number
        self._told = 0  # complete trials

    def ask(self, number: int, beside: Sequence[Widths] = ()) -> Proposal:
        """All alike, then one step up, then by the momentum's change."""
        last, method = self._last, self._method
        if last is None:
            wish: dict[str, float] = dict.fromkeys(self._space.names, float(method.start))
            widths = self._within(wish)
            return Proposal(widths, None, f"every width at {method.start}")
        if self._told == 1:
            wish = {name: width + method.first_step for name, width in last.widths.items()}
        else:
            change = self._annealed(number, last.number)
            factor = {name: min(max(1 + method.scale * d, LEAST), MOST) for name, d in change.items()}
            wish = {name: max(EVEN * round(w * factor.get(name, 1.0) / EVEN), 1) for name, w in last.widths.items()}
        widths = self._within(wish)
        return Proposal(widths, last.number, moves(last.widths, widths))

    def accepts(self, trial: Trial) -> bool:
        """Always, but for a training that failed."""
        return not math.isnan(trial.objective)

    def tell(self, trial: Trial) -> None:
        """Add to the momenta."""
        if not trial.accepted:
            return
        before = self._momentum
        found = trial.measured.get(self._method.metric, {})
        after = {name: self._method.gamma * before[name] + m if name in before else m for name, m in found.items()}
        # Of a width of one channel there is no metric: it stays where it is.
        self._change = {name: value - before[name] for name, value in after.items() if name in before}
        self._momentum = {**before, **after}
        self._means[trial.number] = float(np.mean([*self._momentum.values()])) if self._momentum else math.nan
        self._last = trial
        self._told += 1

    def choose(self, trials: Sequence[Trial]) -> Trial:
        """The best mean momentum after the first trials; where there are no later ones, of all."""
        late = [trial for trial in trials if trial.number >= self._method.burn_in] or trials
        known = [trial for trial in late if math.isfinite(self._means.get(trial.number, math.nan))]
        if not known:
            return least_objective(late)
        return max(known, key=lambda trial: (self._means[trial.number], -trial.number))

    def temperature(self, measured: int) -> float:
        """After trial number `measured`."""
        return (self._method.alpha or 0.0) * (self._trials - measured) / self._trials

    def _annealed(self, number: int, measured: int) -> Mapping[str, float]:
        heat = self.temperature(measured)
        if self._method.alpha is None or heat <= 0:
            return self._change
        chance = np.random.default_rng([self._seed, number, 0]).random(len(self._space.names))
        drawn = dict(zip(self._space.names, chance.tolist(), strict=True))
        return {name: 2 * d if drawn[name] < _probability(d, heat) else d for name, d in self._change.items()}

    def _within(self, wish: Mapping[str, float]) -> dict[str, int]:
        """Within the bounds and, where there is a budget, scaled down onto it."""
        widths = self._space.snap(wish)
        if self._limits.fits(self._space.price(widths)):
            return widths
        return self._space.project(wish, self._limits)


def _probability(change: float, heat: float) -> float:
    return math.exp(-1 / (abs(change) * heat)) if change else 0.0
