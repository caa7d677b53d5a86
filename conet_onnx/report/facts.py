"""What the report says about a run that the record does not spell out: the front, the leader, the changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from conet_onnx.records.run import ModelRecord, Run
from conet_onnx.records.trial import Trial
from conet_onnx.report.wording import MINUS, percent, points

__all__ = [
    "Change",
    "Score",
    "changes",
    "failed",
    "fate",
    "finished",
    "fits",
    "front",
    "label",
    "leader",
    "leader_name",
    "number",
    "prices",
    "score",
    "score_in",
    "score_name",
    "shares",
    "width_at",
]

Change: TypeAlias = tuple[str, int, int]  # width id, from, to


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Score:
    """What models are compared by: accuracy, without labels the agreement with the source (both 0..1, and more is
    better), or of a user's own task the loss."""

    name: str
    value: float

    @property
    def is_share(self) -> bool:
        """Whether it is written as a percentage."""
        return self.name != "loss"

    @property
    def height(self) -> float:
        """Where a figure shows it."""
        return 100 * self.value if self.is_share else self.value

    @property
    def rank(self) -> float:
        """Higher is better."""
        return self.value if self.is_share else -self.value

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return percent(self.value) if self.is_share else f"{self.value:.4g}"

    def against(self, other: Score) -> str:
        """How far it is from another one."""
        difference = self.value - other.value
        return points(difference) if self.is_share else f"{difference:+.4g}".replace("-", MINUS)


def score(scored: Trial | ModelRecord) -> Score | None:
    """On validation; None where it is not known."""
    return score_in(scored.validation)


def score_in(numbers: Mapping[str, float] | None) -> Score | None:
    """The score among a split's numbers."""
    for key, name in (("top1", "accuracy"), ("agreement", "agreement"), ("loss", "loss")):
        value = number((numbers or {}).get(key))
        if value is not None:
            return Score(name, value)
    return None


def score_name(run: Run) -> str:
    """What trials are compared by."""
    found = score(run.source)
    return "accuracy" if found is None else found.name


def finished(run: Run) -> tuple[Trial, ...]:
    """Trials that ended with a score, by number."""
    return tuple(trial for trial in run.trials if trial.state == "complete" and score(trial) is not None)


def failed(run: Run) -> tuple[Trial, ...]:
    """Trials that ended without one."""
    return tuple(trial for trial in run.trials if trial.state == "failed")


def front(run: Run) -> tuple[Trial, ...]:
    """Finished trials that no other one dominates (no more MACs and no worse score, one of them better), cheapest
    first. Trials that are equal in both stand together.
    """
    kept: list[Trial] = []
    best = -math.inf
    ranked = [(trial, found.rank) for trial in finished(run) if (found := score(trial)) is not None]
    for trial, rank in sorted(ranked, key=lambda pair: (pair[0].macs, -pair[1], pair[0].number)):
        if rank > best or (rank == best and kept and trial.macs == kept[-1].macs):
            kept.append(trial)
            best = rank
    return tuple(kept)


def prices(model: Trial | ModelRecord) -> dict[str, float]:
    """What it costs by budget kind (latency in ms, where it was measured)."""
    known = {"macs": float(model.macs), "params": float(model.params), "bytes": float(model.bytes)}
    latency = number(getattr(model, "latency_ms", None))
    return known if latency is None else known | {"latency": latency}


def fits(trial: Trial | ModelRecord, budget: Mapping[str, float]) -> bool:
    """Whether it stays within every limit whose price is known; a trial's latency is what was predicted, if it was."""
    known = prices(trial)
    if isinstance(trial, Trial) and trial.latency is not None:
        known["latency"] = trial.latency
    return all(known[kind] <= limit for kind, limit in budget.items() if kind in known)


def leader(run: Run) -> Trial | ModelRecord | None:
    """The run's best; until there is one, the trial of lowest objective that meets the budget (a search's choice)."""
    if run.best is not None:
        return run.best
    told = [t for t in finished(run) if number(t.objective) is not None and fits(t, run.budget)]
    return min(told, key=lambda t: (t.objective, t.number), default=None)


def leader_name(run: Run) -> str:
    """What to call it."""
    return "best" if run.best is not None else "best so far"


def fate(trial: Trial) -> str:
    """accepted, rejected, failed or running (a trial whose turn to be judged has not come too)."""
    if trial.state == "evaluated":
        return "running"
    return trial.state if trial.state != "complete" else "accepted" if trial.accepted else "rejected"


def label(run: Run, width: str, limit: int | None = None) -> str:
    """A width's id, which keeps equal names apart, and its name; of a long name the end, where layers differ most."""
    name = str(run.widths[width].get("name", ""))
    if name in ("", width):
        return width
    room = max(4, limit - len(width) - 3) if limit else len(name)
    return f"{width} · {name if len(name) <= room else '…' + name[1 - room :]}"


def shares(run: Run, model: Trial | ModelRecord) -> dict[str, float]:
    """Its prices over the source's by kind; of the best's latency the ratio that was measured in turns, if there is."""
    whole = prices(run.source)
    found = {kind: price / whole[kind] for kind, price in prices(model).items() if whole.get(kind)}
    measured = number(run.latency.get("p50")) if model is run.best else None
    return found if measured is None else found | {"latency": measured}


def width_at(run: Run, scored: Trial | ModelRecord, width: str) -> int:
    """A width's size there; a width that is not mentioned keeps the source's."""
    return int(scored.widths.get(width, run.widths[width]["size"]))


def changes(run: Run, trial: Trial) -> tuple[Change, ...]:
    """The widths that differ from the parent's (from the source's where there is none)."""
    parent = next((t for t in run.trials if t.number == trial.parent), run.source)
    pairs = ((width, width_at(run, parent, width), width_at(run, trial, width)) for width in run.widths)
    return tuple(change for change in pairs if change[1] != change[2])
