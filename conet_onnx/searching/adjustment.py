"""Network Adjustment: channels move from where they are of little use to where they are of much, at the same cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from conet_onnx.errors import UsageError
from conet_onnx.records.trial import Trial
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.recipe import Recipe, UtilisationMeasure
from conet_onnx.searching.searcher import Probe, Proposal, Widths, moves
from conet_onnx.searching.space import Priceable, WidthSpace

__all__ = ["Adjustment", "NetworkAdjustment"]


@dataclass(frozen=True, slots=True)
class NetworkAdjustment:
    """Network Adjustment (arXiv:2004.02767) and its authors' constants for CIFAR.

    Every trial is trained from scratch, with channels dropped at a rate that grows to `dropout` over the epochs and,
    `by_depth`, from the first width to the last. Then each width's FLOPs utilisation
    ratio is measured on validation data: what dropping its channels at rate p_i = p0 · mean(F) / F_i does to the loss,
    F_i being its channels times the derivative of the cost by them; `passes` over the data. After trial t, of the
    widths in that order, the first u = round(u0 - t · decay) grow by a_j times their original size and the last u
    shrink by as much, not below `floor`; a_j = max(a - j · decay_a, 0), j being the place from its end. u is at most
    half of the widths, and u = 0 changes nothing (the published code then grew every layer). One multiplier brings all
    widths back to the original cost, or to the budget. The trial of least validation loss is the answer, trained from
    scratch again if there are `epochs`. The published setting for ImageNet: decay=0, a=0.1, decay_a=0, p0=0.2, lr=0.2,
    weight_decay=4e-5, by_depth=no, 10 epochs a trial.
    """

    trials: int = 10
    epochs_per_trial: int = 200
    epochs: int = 0
    u: int = 6
    decay: float = 0.5
    a: float = 0.15
    decay_a: float = 0.01
    p0: float = 0.05
    passes: int = 5
    of: Literal["loss", "accuracy"] = "loss"
    noise: Literal["bernoulli", "gaussian"] = "bernoulli"
    cost: Literal["macs", "latency"] = "macs"
    floor: int = 4
    growth: float = 4.0
    dropout: float = 0.05
    by_depth: bool = True
    lr: float = 0.15
    momentum: float = 0.9
    batch: int = 128
    weight_decay: float = 3e-4

    def __post_init__(self) -> None:
        if not 0 < self.p0 < 1 or self.u < 0 or self.floor < 1:
            raise UsageError(f"p0={self.p0}, u={self.u}, floor={self.floor}: a rate of 0..1, and positive numbers.")

    @property
    def at_once(self) -> int | None:
        """One after another: channels move by what the last trial measured."""
        return 1

    @property
    def multiple(self) -> Literal["auto", "none"]:
        """As published."""
        return "none"

    @property
    def needs_budget(self) -> bool:
        """The source's cost is the default."""
        return False

    def space(self, analysis: Priceable, limits: Limits) -> WidthSpace:
        """Every whole number from the floor, or the smallest width if that is less, to `growth` times the largest."""
        sizes = [width.size for width in analysis.widths.values()] or [1]
        return WidthSpace(analysis, multiple=1, between=(min(self.floor, *sizes), round(self.growth * max(sizes))))

    def searcher(
        self, space: WidthSpace, limits: Limits, *, trials: int, seed: int, probe: Probe | None = None
    ) -> Adjustment:
        """What moves channels."""
        return Adjustment(space, limits, self)

    def recipe(self) -> Recipe:
        """From scratch, with dropped channels, labels alone."""
        training: dict[str, Any] = {
            "distill": 0.0,
            "batch": self.batch,
            "lr": self.lr,
            "momentum": self.momentum,
            "nesterov": False,
        }
        training |= {"weight_decay": self.weight_decay, "schedule": "cosine", "warmup": 0.0, "clip": None}
        training |= {"channel_dropout": self.dropout, "dropout_by_depth": self.by_depth}
        measure = UtilisationMeasure(self.p0, self.passes, self.of, self.noise, self.cost)
        return Recipe(start="fresh", final="fresh", training=training, final_training=training, measure=measure)


class Adjustment:
    """Each proposal moves channels in the last trial's widths."""

    def __init__(self, space: WidthSpace, limits: Limits, method: NetworkAdjustment) -> None:
        self._space = space
        self._method = method
        self._limits = (
            limits if limits.by_kind else Limits({method.cost: getattr(space.price(space.source), method.cost)})
        )
        self._last: Trial | None = None
        self._done = 0  # updates whose trials are complete

    def ask(self, number: int, beside: Sequence[Widths] = ()) -> Proposal:
        """The original widths first."""
        if self._last is None:
            source = self._space.snap(self._space.source)
            fits = self._limits.fits(self._space.price(source))
            widths = source if fits else self._space.project(source, self._limits)
            return Proposal(widths, None, "the original widths" + ("" if fits else ", scaled onto the budget"))
        before = self._last.widths
        moved = self._moved()
        widths = self._space.project(moved, self._limits) if moved != before else dict(before)
        return Proposal(widths, None, moves(before, widths))

    def accepts(self, trial: Trial) -> bool:
        """Always, but for a training that failed."""
        return not math.isnan(trial.objective)

    def tell(self, trial: Trial) -> None:
        """Go on from it."""
        if trial.accepted:
            self._done += self._last is not None
            self._last = trial

    def choose(self, trials: Sequence[Trial]) -> Trial:
        """The least loss on validation data."""
        return min(trials, key=lambda trial: (trial.validation["loss"], trial.number))

    def _moved(self) -> dict[str, float]:
        """The last trial's widths after an update, before they are brought back to their cost."""
        assert self._last is not None
        method, original = self._method, self._space.source
        ratios = self._last.measured.get("fur", {})
        order = sorted(ratios, key=lambda name: -ratios[name])  # stable: equals stay in the graph's order
        many = min(max(round(method.u - self._done * method.decay), 0), len(order) // 2)
        moved: dict[str, float] = dict(self._last.widths)
        for place in range(many):
            share = max(method.a - place * method.decay_a, 0.0)
            most, least = order[place], order[-1 - place]
            moved[most] += round(share * original[most])
            moved[least] = max(moved[least] - round(share * original[least]), method.floor)
        return moved
