"""What every searcher does: propose widths, judge a finished trial, and remember it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from conet_onnx.records.trial import Trial
from conet_onnx.searching.recipe import Measured

__all__ = ["Probe", "Proposal", "Searcher", "Widths", "least_objective", "moves", "objective"]

Widths: TypeAlias = Mapping[str, int]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

WITHIN = 0.05  # a model at half the budget may have 3.5% more loss and count as equal
BEYOND = 1.0  # one at twice the budget counts as one with twice the loss


@dataclass(frozen=True, slots=True)
class Proposal:
    """Widths to try, the trial whose weights to start from (None: the source's), and why, in words."""

    widths: Mapping[str, int]
    parent: int | None
    reason: str


class Probe(Protocol):
    """What a searcher may ask about models when it proposes widths: the same question has the same answer."""

    def curves(self, trial: Trial | None) -> Measured:
        """What masked channels cost a trial's trained model, or the source (recipe.CurveMeasure)."""

    def kept(self) -> Mapping[str, Floats]:
        """What the best n channels of each width of the source are worth, by the recipe's criterion (planning.kept)."""

    def untrained(self, widths: Widths) -> float:
        """Loss of the source at these widths before any training, its weights as a trial inherits them."""


class Searcher(Protocol):
    """Ask, accept, tell; knows nothing of ONNX or torch.

    A searcher's state is what it was told, and what a probe answers, and nothing else: `ask` and `accepts` change
    nothing, and draw their chance from the seed and the trial's number. So telling it the finished trials again, in
    order, brings it back.

    Trials that are tried at the same time are asked for one after the other, before any of them is told, and told in
    the order of their numbers: whichever ends first, the search is the same.
    """

    def ask(self, number: int, beside: Sequence[Widths] = ()) -> Proposal:
        """What trial `number` should try, given what was told so far and what is tried at the same time."""

    def accepts(self, trial: Trial) -> bool:
        """Whether the search goes on from this finished trial. Never from one whose objective is not a number."""

    def tell(self, trial: Trial) -> None:
        """Learn from a finished trial, whose `accepted` has been decided."""

    def choose(self, trials: Sequence[Trial]) -> Trial:
        """Which of some complete trials, at least one, is the search's answer and trained to the end."""


def least_objective(trials: Sequence[Trial]) -> Trial:
    """The trial of least objective; of equals the earliest."""
    return min(trials, key=lambda trial: (trial.objective, trial.number))


def objective(loss: float, utilisation: float) -> float:
    """The priced objective: loss · u^w, where u is the share of the budget that the model uses; less is better.

    MnasNet's soft constraint (Tan et al. 2019, eq. 2) for a loss: a gentle exponent within the budget, a steep one
    beyond.
    """
    return loss * math.pow(utilisation, WITHIN if utilisation <= 1 else BEYOND)


def moves(before: Mapping[str, int], after: Mapping[str, int], *, shown: int = 3) -> str:
    """What changed, the largest changes first: "w3 48→40, w1 10→12, …"."""
    changed = [name for name in after if after[name] != before[name]]
    changed.sort(key=lambda name: -abs(math.log(after[name] / before[name])))
    texts = [f"{name} {before[name]}→{after[name]}" for name in changed[:shown]]
    return ", ".join(texts + ["…"] * (len(changed) > shown)) or "no change"
