"""Reallocation: a knapsack over measured loss curves, what they are worth learned from trials, and halving."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from conet_onnx.allocating import allocate
from conet_onnx.errors import UsageError
from conet_onnx.records.trial import Trial
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.curves import Curve, Worth
from conet_onnx.searching.halving import Halving
from conet_onnx.searching.metropolis import Metropolis
from conet_onnx.searching.recipe import DISTILL, CurveMeasure, Recipe
from conet_onnx.searching.searcher import Probe, Proposal, Widths, least_objective, moves
from conet_onnx.searching.space import Priceable, WidthSpace

__all__ = ["Reallocate", "Reallocation"]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

ATTEMPTS = 16  # draws before a set of widths is tried a second time
MOST_LEVELS = 16  # of a width in one knapsack
TOLERANCE = 0.01  # of a knapsack: what curves say is less certain
FLOOR = 1 / 8  # of the source's size: no knapsack takes a width below that, though a budget may
LEAPS = 3  # widths a trial that may take one step though it is larger than the factor
AVERAGE = 0.25  # of a trial's steps: over fewer, what chance does in the last steps decides
PARTED = 128  # ranges of a knapsack: more than most need, and the best choice is found long before it is proved
SECONDS = 20.0  # what no knapsack takes, so that chance alone decides, and no clock


@dataclass(frozen=True, slots=True)
class Reallocation:
    """Reallocation: a knapsack over loss curves that are measured of the source, and of trained models.

    The first trials bring the source within the budget, its price falling by `stride` at most from one to the next. The
    first one's widths are the best of `probes` before any training, the knapsack by `criterion` among them. A source
    that is within the budget takes one step of the knapsack, `timidest` far, first.
    Each later one solves the knapsack again around the current widths, which change by `boldest` at most in the first
    trial and by `timidest` in the last; the worth of each width is drawn from what trials have shown of it. Metropolis
    acceptance. Widths that are in the best 1/`eta` of their rung are trained on for another trial, `rungs` rungs up.
    `hedge`: how far the first knapsack may go from widths that are scaled alike.
    """

    trials: int = 6
    epochs_per_trial: int = 1
    epochs: int = 5
    boldest: float = 1.6
    timidest: float = 1.15
    stride: float = 2.5
    hedge: float = 1.3
    eta: int = 3
    rungs: int = 2
    criterion: str = "obd"
    samples: int = 256
    probes: int = 8

    def __post_init__(self) -> None:
        if not self.boldest >= self.timidest >= 1 or not self.stride > 1 or not self.hedge >= 1:
            raise UsageError(
                f"boldest={self.boldest}, timidest={self.timidest}, stride={self.stride}, hedge={self.hedge}: "
                "factors of at least 1, the boldest not below the timidest."
            )
        least = {"eta": 2, "rungs": 0, "samples": 1, "probes": 1}
        if small := [f"{name}={getattr(self, name)}" for name, n in least.items() if getattr(self, name) < n]:
            raise UsageError(f"{', '.join(small)}: at least {', '.join(f'{name}={n}' for name, n in least.items())}.")

    @property
    def at_once(self) -> int | None:
        """Any number of draws from the same widths."""
        return None

    @property
    def multiple(self) -> Literal["auto", "none"]:
        """What the machine runs fast: for the time that it gains, it costs little accuracy (docs/methods.md)."""
        return "auto"

    @property
    def needs_budget(self) -> bool:
        """A knapsack has a size."""
        return True

    def space(self, analysis: Priceable, limits: Limits) -> WidthSpace:
        """Round widths, up to twice the source's."""
        return WidthSpace(analysis)

    def searcher(
        self, space: WidthSpace, limits: Limits, *, trials: int, seed: int, probe: Probe | None = None
    ) -> Reallocate:
        """What solves the knapsacks."""
        return Reallocate(space, limits, self, trials=trials, seed=seed, probe=probe)

    def recipe(self) -> Recipe:
        """Trials begin with the source's weights. Their learning rate stays where it is, so that each goes on where the
        one before it has ended; only the last training brings it down."""
        return Recipe(
            transfer="least-squares",
            criterion=self.criterion,
            training={"distill": DISTILL, "schedule": "constant"},
            final_training={"distill": DISTILL, "warmup": 0.0},
            measure=CurveMeasure(samples=self.samples),
            probes=self.probes,
            average=AVERAGE,
        )


class Reallocate:
    """Thompson sampling (1933) over a knapsack, and Metropolis acceptance (1953) on the priced objective.

    Where a model's curves are not known, a width counts as if the loss were a / n with the same a / size for all.
    """

    def __init__(
        self,
        space: WidthSpace,
        limits: Limits,
        method: Reallocation,
        *,
        trials: int,
        seed: int = 0,
        probe: Probe | None = None,
    ) -> None:
        self._space = space
        self._limits = limits
        self._method = method
        self._seed = seed
        self._probe = probe
        self._shares = CurveMeasure().quantities
        excess = math.log(max(limits.utilisation(space.price(space.source)), 1))
        self._excess = excess
        self._strides = min(max(math.ceil(excess / math.log(method.stride)), 1), max(trials // 3, 1))
        self._halving = Halving(method.eta, method.rungs)
        self.metropolis = Metropolis(self._strides, trials, seed)
        self._current: Trial | None = None
        self._last: Trial | None = None
        self._told: dict[int, Trial] = {}
        self._changes: list[float] = []  # of the objective, from parent to child
        self._predicted: list[Floats] = []  # of the loss, by width, from parent to child
        self._seen: list[float] = []  # the loss's own change then

    def ask(self, number: int, beside: Sequence[Widths] = ()) -> Proposal:
        """Onto the budget first, or, where the source is within it, a step away from the source; then the last trial
        again if it is promoted; else another knapsack."""
        before = self._current.widths if self._current else self._space.source
        parent = self._current.number if self._current else None
        inside = self._current is None and self._limits.fits(self._space.price(self._space.source))
        if (number < self._strides or self._current is None) and not inside:
            limits = self._limits.scaled(math.exp(self._excess * max(1 - (number + 1) / self._strides, 0)))
            widths = self._onto(before, limits)
            if widths not in beside:
                return Proposal(widths, parent, f"onto {limits}: {moves(before, widths)}")
        known = [*(trial.widths for trial in self._told.values()), before, *beside]
        if inside and (stepped := self._step(before)) is not None and stepped not in known:
            return Proposal(stepped, parent, moves(before, stepped))
        last = self._last
        if last is not None and self._promoted(last) and last.widths not in beside:
            trained = self._halving.trained(last)
            return Proposal(last.widths, last.number, f"trained on: among the best after {trained} of its trials")
        rng = np.random.default_rng([self._seed, number, 0])
        worth = Worth.of(self._predicted, self._seen, len(self._space.names))
        for attempt in range(ATTEMPTS):
            widths = self._drawn(before, number, worth.drawn(rng, 1 + attempt / 4), rng, attempt)
            if widths not in known:
                break
        return Proposal(widths, parent, moves(before, widths))

    def accepts(self, trial: Trial) -> bool:
        """As Metropolis has it. Coming within the budget is not judged."""
        return self.metropolis.accepts(trial, self._current, self._changes)

    def tell(self, trial: Trial) -> None:
        """Remember the trial, and what it shows of the curves; go on from it if it was accepted."""
        parent = self._told.get(trial.parent) if trial.parent is not None else None
        self._told[trial.number] = self._last = trial
        if trial.number >= self._strides - 1:  # within the budget
            self._halving.tell(trial, parent)
        if trial.number >= self._strides and parent is not None and not math.isnan(trial.objective):
            self._changes.append(trial.objective - parent.objective)
            self._learn(parent, trial)
        if trial.accepted:
            self._current = trial

    def choose(self, trials: Sequence[Trial]) -> Trial:
        """The one of least objective."""
        return least_objective(trials)

    def curves(self, trial: Trial | None) -> list[Curve]:
        """Of each width, in the space's order, as measured of a trial's model, or of the source."""
        measured = self._probe.curves(trial) if self._probe else {}
        widths = trial.widths if trial else self._space.source
        found = []
        for name in self._space.names:
            of = [(share, measured[q][name]) for q, share in self._shares.items() if name in measured.get(q, {})]
            found.append(Curve.of(widths[name], of or [(s, s / (1 - s)) for s in self._shares.values()]))
        return found

    def _promoted(self, trial: Trial) -> bool:
        return trial.accepted and self._halving.promoted(trial)

    def _learn(self, parent: Trial, trial: Trial) -> None:
        """What the parent's curves said that this change of widths does to the loss, and what it did."""
        if {"loss"} - parent.validation.keys() - trial.validation.keys():
            before, after = parent.objective, trial.objective
        else:
            before, after = parent.validation["loss"], trial.validation["loss"]
        same = trial.widths == parent.widths  # then no curve is asked for
        moved = np.zeros(len(trial.widths)) if same else self._changed(self.curves(parent), trial.widths)
        self._predicted.append(moved)
        self._seen.append(after - before)

    def _step(self, before: Mapping[str, int]) -> dict[str, int] | None:
        """The best within the budget by the source's curves, `timidest` away at most; None where there is none.

        A smaller change is made good sooner; and what curves are worth is not drawn, since no trial could be compared.
        """
        levels = self._around(before, self._method.timidest)
        values = [-curve.change(some) for curve, some in zip(self.curves(None), levels, strict=True)]
        return self._solved(levels, values, self._limits)

    def _onto(self, before: Mapping[str, int], limits: Limits) -> dict[str, int]:
        """The best within limits by the current curves, near widths that are scaled alike; of the source's, the best
        before any training."""
        scaled = self._space.project(before, limits)
        curves = self.curves(self._current)
        first = self._near(scaled, before, limits, curves, np.ones(len(curves))) or scaled
        if self._current is not None or self._probe is None:
            return first
        shared = self._shared(before, limits, self._probe.kept()) or first
        return self._probed([scaled, first, shared], before, limits, curves, self._probe)

    def _shared(self, before: Mapping[str, int], limits: Limits, kept: Mapping[str, Floats]) -> dict[str, int] | None:
        """The best within limits by what channels are worth each by itself, however far from widths scaled alike."""
        names = self._space.names
        levels = [self._between(name, 0.0, before[name], before[name]) for name in names]
        return self._solved(levels, [kept[name][some] for name, some in zip(names, levels, strict=True)], limits)

    def _probed(
        self,
        first: Sequence[dict[str, int]],
        before: Mapping[str, int],
        limits: Limits,
        curves: Sequence[Curve],
        probe: Probe,
    ) -> dict[str, int]:
        """Of `first` and of others near the best so far, the widths at which the loss is least before any training;
        what was probed says what the curves are worth."""
        rng = np.random.default_rng([self._seed, 0, 2])
        best, least = first[-1], math.inf
        known: list[dict[str, int]] = []
        moved: list[Floats] = []
        seen: list[float] = []
        for number in range(self._method.probes):
            widths: dict[str, int] | None = first[number] if number < len(first) else None
            for attempt in range(ATTEMPTS):
                if widths is not None and widths not in known:
                    break
                worth = Worth.of(moved, seen, len(curves)).drawn(rng, 1 + attempt / 4)
                widths = self._near(best, before, limits, curves, worth, rng)
            if widths is None or widths in known:
                break
            known.append(widths)
            loss = probe.untrained(widths)
            if not math.isfinite(loss):
                continue
            moved.append(self._changed(curves, widths))
            seen.append(loss)
            if loss < least:
                best, least = widths, loss
        return best

    def _near(
        self,
        centre: Mapping[str, int],
        before: Mapping[str, int],
        limits: Limits,
        curves: Sequence[Curve],
        worth: Floats,
        rng: np.random.Generator | None = None,
    ) -> dict[str, int] | None:
        """The best within limits, up to `hedge` away from some widths, where a nat of each curve is worth so much; with
        a generator, some widths leap."""
        most = {name: max(before[name], centre[name]) for name in centre}
        levels = self._around(centre, self._method.hedge, rng, most)
        values = [-w * c.change(some) for w, c, some in zip(worth.tolist(), curves, levels, strict=True)]
        return self._solved(levels, values, limits)

    def _drawn(
        self, before: Mapping[str, int], number: int, worth: Floats, rng: np.random.Generator, attempt: int
    ) -> dict[str, int]:
        """The best within the limits if a nat of each curve is worth so much, near the current widths."""
        method = self._method
        bold = method.boldest * math.pow(method.timidest / method.boldest, self.metropolis.progress(number))
        factor = math.pow(bold, rng.uniform(0.5, 1) * (1 + attempt / 8))
        levels = self._around(before, factor, rng)
        values = [
            -w * curve.change(some)
            for w, curve, some in zip(worth.tolist(), self.curves(self._current), levels, strict=True)
        ]
        # What no choice among these levels can meet is met by one multiplier.
        return self._solved(levels, values, self._limits) or self._space.project(before, self._limits)

    def _around(
        self,
        centre: Mapping[str, int],
        factor: float,
        rng: np.random.Generator | None = None,
        most: Mapping[str, int] | None = None,
    ) -> list[Ints]:
        """Levels up to a factor away from some widths, and at `most`; with a generator, one step away in LEAPS widths
        where a step is larger than that."""
        above, below = self._space.above(centre), self._space.below(centre)
        names = self._space.names
        far = [name for name in names if above[name] > centre[name] * factor or below[name] < centre[name] / factor]
        leaps = set() if rng is None else {far[k] for k in rng.permutation(len(far))[:LEAPS]}
        levels = []
        for name in names:
            low, high = centre[name] / factor, centre[name] * factor
            if name in leaps:
                low, high = min(low, below[name]), max(high, above[name])
            high = high if most is None else min(high, most[name])
            levels.append(self._between(name, low, high, centre[name]))
        return levels

    def _between(self, name: str, low: float, high: float, at: int) -> Ints:
        """Levels of a width, its own among them; not below a share of the source's size: what has a single channel is
        no width any more, and nothing inherits from it."""
        own = self._space.levels[name]
        least = max(low, FLOOR * self._space.source[name], 2)
        return _thinned(np.union1d(own[(own >= least) & (own <= high)], [at]), at)

    def _changed(self, curves: Sequence[Curve], widths: Mapping[str, int]) -> Floats:
        """What each width's curve says of its new size, [widths]."""
        pairs = zip(self._space.names, curves, strict=True)
        return np.array([float(curve.change([widths[name]])[0]) for name, curve in pairs])

    def _solved(self, levels: list[Ints], values: list[Floats], limits: Limits) -> dict[str, int] | None:
        constraints = self._space.constraints(limits)
        found = allocate(levels, values, constraints, tolerance=TOLERANCE, parted=PARTED, seconds=SECONDS)
        return None if found is None else dict(zip(self._space.names, found.sizes, strict=True))


def _thinned(levels: Ints, kept: int | None = None) -> Ints:
    """At most MOST_LEVELS of them, evenly spread, the ends among them, and one that is kept."""
    if len(levels) <= MOST_LEVELS:
        return levels
    some = levels[np.unique(np.linspace(0, len(levels) - 1, MOST_LEVELS).round().astype(int))]
    return some if kept is None else np.union1d(some, [kept])
