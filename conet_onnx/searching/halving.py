"""Successive halving over the trials of a search: which widths are worth being trained on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from conet_onnx.records.trial import Trial

if TYPE_CHECKING:
    import optuna

__all__ = ["Halving"]


class Halving:
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), decided by Optuna's SuccessiveHalvingPruner.

    Widths that are tried anew are one of Optuna's trials; trained on, they report again, and trained on a second time
    from where they were before, as another one. The resource is the number of a search's trials that they were trained
    in, and rung k is reached with eta^k of them. At a rung, widths are promoted if their objective is in the best 1/eta
    of all that have reached it. What is decided follows from what was told, in that order, and nothing else.
    """

    def __init__(self, eta: int, rungs: int) -> None:
        import optuna

        self._eta, self._rungs = eta, rungs
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells of every study that is made
        try:
            self._study = optuna.create_study(
                storage=optuna.storages.InMemoryStorage(),
                pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=eta),
                sampler=optuna.samplers.RandomSampler(seed=0),
            )
        finally:
            optuna.logging.set_verbosity(verbosity)
        self._of: dict[int, optuna.Trial] = {}  # Optuna's trial, by the number of the last of ours
        self._trained: dict[int, int] = {}
        self._promoted: dict[int, bool] = {}

    def tell(self, trial: Trial, parent: Trial | None) -> None:
        """A finished trial; trained on if it has its parent's widths."""
        again = parent is not None and parent.widths == trial.widths and parent.number in self._trained
        at = parent.number if parent is not None and again else -1
        mine = self._of.pop(at, None) or self._study.ask()
        trained = self._trained.get(at, 0) + 1
        self._of[trial.number], self._trained[trial.number] = mine, trained
        if math.isnan(trial.objective):
            return
        mine.report(trial.objective, trained)
        self._promoted[trial.number] = not mine.should_prune() and trained < self._eta**self._rungs

    def promoted(self, trial: Trial) -> bool:
        """Whether a trial that was told is to be trained on."""
        return self._promoted.get(trial.number, False)

    def trained(self, trial: Trial) -> int:
        """In how many trials these widths have been trained."""
        return self._trained.get(trial.number, 0)
