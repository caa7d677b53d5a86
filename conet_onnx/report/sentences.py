"""What was asked and what came out, in plain sentences; names in them are escaped for HTML."""

from __future__ import annotations

from html import escape

from conet_onnx.records.run import ModelRecord, Run
from conet_onnx.records.trial import Trial
from conet_onnx.report.facts import (
    Score,
    failed,
    finished,
    fits,
    front,
    leader,
    prices,
    score,
    score_in,
    score_name,
    shares,
)
from conet_onnx.report.wording import KINDS, count, listed, quantity, ratio

__all__ = ["asked", "came_out", "on_the_front", "remarks"]


def asked(run: Run) -> str:
    """The widths, the limits, and how they were searched."""
    whole = prices(run.source)
    limits = [
        f"at most {quantity(limit, kind)} {KINDS.get(kind, kind)}" + _share(limit, whole.get(kind))
        for kind, limit in run.budget.items()
    ]
    wanted = f"that need {listed(limits)}, " if limits else ""
    parts = (("by", "algorithm"), ("on", "data"), ("with seed", "seed"))
    how = [f"{word} {run.settings[key]}" for word, key in parts if run.settings.get(key) is not None]
    end = f" Searched {escape(' '.join(how))}{_at_a_time(run)}." if how else ""
    widths = f"sizes for the {count(len(run.widths), 'width')} of this network"
    return f"{widths} {wanted}at the least loss{_of(run)}.{end}"


def came_out(run: Run) -> str:
    """The best model against the source; of a run in progress, how far it is."""
    return _so_far(run) if run.best is None else _answer(run, run.best)


def remarks(run: Run) -> tuple[str, ...]:
    """What a reader must not overlook: a budget that was missed, trials that failed."""
    made = []
    if run.best is not None and not fits(run.best, run.budget):
        made.append("The best model does not meet the budget.")
    lost = [str(trial.number) for trial in failed(run)]
    if lost:
        made.append(f"{count(len(lost), 'trial')} failed: {listed([*lost[:10], *(['others'] if lost[10:] else [])])}.")
    return tuple(made)


def on_the_front(run: Run) -> str:
    """How many trials nobody beats."""
    stand = "stands" if len(front(run)) == 1 else "stand"
    return (
        f"{len(front(run))} of {count(len(finished(run)), 'finished trial')} {stand} on the Pareto front: "
        "no other is both as cheap and as accurate."
    )


def _answer(run: Run, best: ModelRecord) -> str:
    split = "test" if best.test and run.source.test else "validation"
    found, reference = (score_in(getattr(model, split)) for model in (best, run.source))
    scored = [] if found is None else [f"{found} {split} {score_name(run)}{_against(found, reference)}"]
    costs = [
        f"{ratio(part)} of its {'bytes' if kind == 'bytes' else KINDS[kind]}"
        for kind, part in shares(run, best).items()
        if kind != "bytes" or kind in run.budget  # bytes go with parameters
    ]
    which = f"trial {best.trial}" if best.trial is not None else "the source itself"
    return f"the best of {count(len(run.trials), 'trial')} is {which}, with {', '.join([*scored, listed(costs)])}."


def _so_far(run: Run) -> str:
    if not run.trials:
        return "no trial has begun."
    if not finished(run):
        return "no trial has finished yet."
    ended = f"{count(len(finished(run)), 'trial')} finished; the search is not, and no model has been chosen."
    ahead = leader(run)
    if not isinstance(ahead, Trial):
        return f"{ended} None of them meets the budget."
    return (
        f"{ended} Trial {ahead.number} leads: {score(ahead)} validation {score_name(run)} with "
        f"{ratio(shares(run, ahead).get('macs', 1.0))} of the source's MACs."
    )


def _at_a_time(run: Run) -> str:
    """How many jobs ran, where that was not one after the other."""
    jobs, workers = run.settings.get("jobs", 1), run.settings.get("workers", 1)
    if jobs == 1:
        return ""
    processes = "one process" if workers == 1 else f"{workers} processes"
    return f", {jobs} trials at a time in {processes}{' of this host' if run.settings.get('storage') else ''}"


def _of(run: Run) -> str:
    return "" if score_name(run) == "loss" else f" of {score_name(run)}"


def _share(part: float, whole: float | None) -> str:
    return f" ({ratio(part / whole)} of the source)" if whole else ""


def _against(found: Score, reference: Score | None) -> str:
    return "" if reference is None else f" against the source's {reference} ({found.against(reference)})"
