"""`resize`: other widths for a model, once and without training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from conet_onnx.cli.calibrating import FITTING, MEASURED, Samples, check_data
from conet_onnx.cli.command import Command
from conet_onnx.cli.evaluate import check_pair
from conet_onnx.cli.freeing import free
from conet_onnx.cli.limiting import Asked, Timed, multiples
from conet_onnx.cli.options import (
    calibration_options,
    free_batch_option,
    freeze_option,
    input_shape_option,
    model_argument,
    multiple_option,
    positive,
    provider_option,
    table_option,
    threads_option,
    transfer_option,
)
from conet_onnx.cli.output import Bar, check_writable, command, count, denormal, says, several, share, size, table
from conet_onnx.cli.slower import asking_for_time, in_turns, warn_if_slower
from conet_onnx.cli.widths import by_reason, check_widths, read_widths
from conet_onnx.errors import ConetError, UsageError
from conet_onnx.files import atomic_write

if TYPE_CHECKING:
    from conet_onnx.analysis import Analysis
    from conet_onnx.costs import Price
    from conet_onnx.graph import Graph
    from conet_onnx.latency import Comparison
    from conet_onnx.plans import WidthPlan
    from conet_onnx.transfer import Transferred

    Scorer = Callable[[Analysis, Mapping[str, int] | None], Mapping[str, Any]]
    Chooser = Callable[[Analysis, Scorer, Mapping[str, int] | int | None, Timed | None, float], "Choice"]

__all__ = ["resize"]

CRITERIA = ("l1", "l2", "random", "batchnorm-scale", "fpgm", "qc", "taylor", "obd", "activation", "fur")
ALLOCATIONS = ("importance", "uniform")
SMALLEST = 1e-9  # a scale at which every width that may shrink is 1
UNMEASURED = "Fewer MACs are not as much less time: --multiple auto keeps to widths that this machine runs fast."
SHOWN = 20  # widths in the table; the plan has them all


@click.command(cls=Command)
@model_argument
@click.option("-o", "--output", "out", required=True, metavar="OUT.onnx", help="The resized model.")
@click.option("--scale", metavar="S", callback=positive, help="Every width times S.")
@click.option("--widths", metavar="F|ID=N,...", help="These widths: a JSON file, or w3=48,w5=16.")
@click.option("--budget", multiple=True, metavar="KIND=V", help="macs=0.5, bytes=4MB, params=1M, latency=0.5 or 5ms.")
@click.option(
    "--allocation",
    type=click.Choice(ALLOCATIONS),
    help="How --budget shares out: by what channels are worth (default), or every width times the same.",
)
@click.option(
    "--criterion",
    type=click.Choice(CRITERIA),
    default="l2",
    show_default=True,
    help="Which channels stay (docs/oneshot.md).",
)
@transfer_option("slice")
@calibration_options
@click.option(
    "--recalibrate/--no-recalibrate",
    default=None,
    help="Measure statistics of activations again on --data (default: unless least-squares fits).",
)
@multiple_option
@table_option
@threads_option
@freeze_option
@click.option("--exact", is_flag=True, help="Leave widths with statistics across channels alone.")
@click.option("--inexact", is_flag=True, help="Let such widths grow by other than whole multiples.")
@click.option("--plan", "plan_to", metavar="F", help="Write what was done to which channel, as JSON.")
@click.option("--no-verify", is_flag=True, help="Write without the proof, and without measuring latency.")
@click.option("--seed", type=int, default=0, show_default=True, help="For --criterion random and for growth.")
@free_batch_option
@provider_option
@input_shape_option
def resize(
    model: str,
    out: str,
    scale: float | None,
    widths: str | None,
    budget: tuple[str, ...],
    allocation: str | None,
    criterion: str,
    transfer: str,
    data: str | None,
    resize: int | None,
    crop: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    samples: int | None,
    recalibrate: bool | None,
    multiple: int | str | None,
    tables: tuple[str, ...],
    threads: int | None,
    freeze: tuple[str, ...],
    exact: bool,
    inexact: bool,
    plan_to: str | None,
    no_verify: bool,
    seed: int,
    free_batch: bool,
    provider: str,
    input_shapes: dict[str, tuple[int, ...]],
) -> None:
    """Resize a model once, without training; it is proved right before it is written. Takes seconds.

    Where MACs fall, source and result are run in turns, and a result that takes longer is warned of, with its layers.
    --budget latency=... holds for the result as it is measured, and takes minutes without a --table (docs/latency.md).
    """
    check_pair(mean, std)
    beside = {"resize": resize, "crop": crop, "mean": mean, "samples": samples}
    recalibrate = check_data(transfer, criterion, recalibrate, data, beside)
    if sum(given is not None for given in (scale, widths, budget or None)) != 1:
        raise UsageError("resize takes exactly one of --scale S, --widths F|ID=N,... and --budget KIND=V.")
    if exact and inexact:
        raise UsageError("--exact leaves mixed widths alone, --inexact frees their growth: take one of the two.")
    if widths is not None and multiple is not None:
        raise UsageError("--multiple rounds the widths that --scale or --budget choose; --widths says them outright.")
    if allocation is not None and not budget:
        raise UsageError("--allocation is how --budget KIND=V is shared out; --scale and --widths say it outright.")
    _check_places(model, out, plan_to)
    choose = _chooser(scale, widths, budget, allocation or ALLOCATIONS[0], {"exact": exact, "inexact": inexact})
    limited = _latency(budget, allocation, tables, provider, threads)
    if limited is None and multiple != "auto":
        if tables:
            raise UsageError("--table goes with --budget latency=..., which it helps to meet, or with --multiple auto.")
        if threads is not None and no_verify:
            raise UsageError("--threads is where latency is measured, and --no-verify measures none: leave one out.")
    with Bar(6) as bar:
        bar.step(f"Reading {model}")
        from conet_onnx.analysis import analyze
        from conet_onnx.denormals import denormals
        from conet_onnx.latency.slowdowns import by_profiles
        from conet_onnx.loading import load
        from conet_onnx.transfer import transferred
        from conet_onnx.verification import verify

        graph = load(model, input_shapes=input_shapes)
        drawn: dict[str, Any] = {"samples": samples, "seed": seed, "provider": provider}
        pixels: dict[str, Any] = {"resize": resize, "crop": crop, "mean": mean, "std": std}
        sampled = None if data is None else Samples.read(graph, data, **drawn, **pixels)
        batch = free(graph) if free_batch else None
        graph = graph if batch is None else batch.graph
        bar.step("Following the axes")
        analysis = analyze(graph, freeze=freeze)
        graph.hash_ahead()  # the plan names the file by it
        bar.step(f"Choosing widths, and channels by {criterion}")
        score = _scorer(criterion, sampled, seed)
        fits = recalibrate or transfer == FITTING
        calibration = sampled.batches(graph) if sampled is not None and fits else None
        how: dict[str, Any] = {"seed": seed, "exact": exact, "inexact": inexact, "calibration": calibration}
        timed = None if limited is None else limited.prepared(analysis, bar)
        if multiple == "auto" and timed is None:
            bar.at(2, "Asking onnxruntime which widths it runs fast")
        steps = multiples(multiple, analysis, timed, tables, provider, threads)

        def made_for(factor: float) -> tuple[Choice, Transferred]:
            choice = choose(analysis, score, steps, timed, factor)
            scores = choice.scores or score(analysis, choice.widths)
            return choice, transferred(analysis, choice.widths, transfer, scores=scores, recalibrate=recalibrate, **how)

        bar.step("Rewriting" if sampled is None else "Fitting to the source")
        within = None
        if timed is None:
            choice, made = made_for(1.0)
        else:
            within = timed.met(made_for)
            choice, made = within.made
        resized, plan = made.graph, made.plan
        bar.step("Verifying")
        proof = None if no_verify else verify(graph, resized, plan, provider=provider)
        found = None if within is None else within.found
        after = analysis.costs.price({name: change.new for name, change in plan.widths.items()})
        macs = analysis.costs.source.macs, after.macs
        if found is None and not no_verify and macs[1] < macs[0]:
            bar.at(4.5, "Measuring latency")
            try:
                found = in_turns(graph, resized, provider=provider, threads=threads)
            except ConetError as error:
                bar.log(f"Warning: latency was not measured: {error}")
        bar.step(f"Writing {out}")
        _write(resized, plan, out, plan_to)
    smaller = _show_change(analysis, plan, after, choice.left, found)
    if choice.note:
        says(choice.note)
        says()
    if timed is not None and within is not None:
        timed.show(within, choice.widths)
        warn_if_slower("The result", within.found, macs, lambda: timed.slower(choice.widths))
    elif found is not None:
        where: dict[str, Any] = {"provider": provider, "threads": threads}
        warn_if_slower("The result", found, macs, lambda: by_profiles(graph, resized, **where))
    if sampled is not None:
        sampled.show(made)
    if tiny := denormals(graph):
        says(denormal(tiny, "of the source"))
    for line in [*(batch.lines() if batch else ()), *(proof.lines() if proof else ["not verified, as asked"])]:
        says(line)
    says()
    hint = ""
    if multiple is None and widths is None and timed is None and smaller:  # nobody has said which sizes widths may have
        hint = UNMEASURED if found is None else asking_for_time(macs[1] / macs[0], found.ratio.p50)
    _show_next(model, out, plan_to, smaller=smaller, hint=hint, free_batch=free_batch)


def _latency(
    budget: Sequence[str],
    allocation: str | None,
    tables: tuple[str, ...],
    provider: str,
    threads: int | None,
) -> Asked | None:
    """The limit on latency, if there is one."""
    from conet_onnx.searching.budget import Budget

    time = Budget.parse(budget).time if budget else None
    if time is None:
        return None
    if allocation == "uniform":
        raise UsageError("--allocation uniform shares out params, macs and bytes; leave it out with --budget latency.")
    from conet_onnx.latency.limits import Most

    return Asked(Most(*time), tables, provider, threads)


def _check_places(model: str, out: str, plan_to: str | None) -> None:
    check_writable(out, plan_to)
    places = [os.path.realpath(path) for path in (model, out, plan_to) if path is not None]
    if len(set(places)) < len(places):
        raise UsageError("MODEL.onnx, -o and --plan must be different files: one would overwrite another.")


@dataclass(frozen=True, slots=True)
class Choice:
    """New widths, those left alone with the reason, the scores that widths were weighed by, and what to say of it."""

    widths: dict[str, int]
    left: dict[str, str]
    scores: Mapping[str, Any] | None = None
    note: str = ""


def _scorer(criterion: str, sampled: Samples | None, seed: int) -> Scorer:
    """Scores of the channels: of those widths that shrink to what is given, or of all, comparable with each other."""

    def score(analysis: Analysis, widths: Mapping[str, int] | None) -> Mapping[str, Any]:
        from conet_onnx.criteria import channel_scores
        from conet_onnx.planning import ranked
        from conet_onnx.scoring import CRITERIA as WEIGHTS
        from conet_onnx.scoring import importance

        if criterion in MEASURED and sampled is not None:
            return sampled.scores(analysis, criterion)
        if widths is None or criterion not in WEIGHTS:
            return channel_scores(analysis, criterion, seed=seed)
        return importance(analysis.graph, criterion, analysis=analysis, seed=seed, widths=ranked(analysis, widths))

    return score


def _chooser(
    scale: float | None, widths: str | None, budget: Sequence[str], allocation: str, rounding: Mapping[str, Any]
) -> Chooser:
    """Read the request before the model; the chooser is given how channels are scored."""
    if widths is not None:
        asked = read_widths(widths)

        def outright(analysis: Analysis, *_: Any) -> Choice:
            check_widths(asked, analysis)
            return Choice(asked, {})

        return outright
    if scale is not None:

        def by_scale(analysis: Analysis, _: Any, steps: Any, *__: Any) -> Choice:
            from conet_onnx.planning import scaled

            return Choice(*scaled(analysis, scale, multiple=steps, **rounding))

        return by_scale
    from conet_onnx.searching.budget import Budget

    limit = Budget.parse(budget)

    def by_budget(analysis: Analysis, score: Scorer, multiple: Any, timed: Timed | None, factor: float) -> Choice:
        from conet_onnx.planning import allocated, budgeted, scaled

        steps: dict[str, Any] = {"multiple": multiple, "exact": rounding["exact"]}
        source = analysis.costs.source
        limits = limit.resolve(source)
        smallest = analysis.costs.price(scaled(analysis, SMALLEST, multiple=multiple, **rounding)[0])
        if not limits.fits(smallest):
            raise limits.unreachable(smallest, source)
        further = timed.limits(factor) if timed else ()
        if timed:
            steps["least"] = timed.least
        if limits.fits(source) and not further:
            return Choice({}, {})
        if allocation == "uniform":
            return Choice(*budgeted(analysis, limits, **steps))
        scores = score(analysis, None)
        found = allocated(analysis, limits.by_kind, scores, further=further, **steps)
        return Choice(found.widths, found.left, scores, found.note)

    return by_budget


def _write(resized: Graph, plan: WidthPlan, out: str, plan_to: str | None) -> None:
    """Both files or neither, but for a failure between two renames."""
    if plan_to is None:
        resized.save(out, durable=True)
        return
    with atomic_write(plan_to) as part:
        plan.save(part)
        resized.save(out, durable=True)


def _show_change(
    analysis: Analysis, plan: WidthPlan, after: Price, left_alone: Mapping[str, str], found: Comparison | None
) -> bool:
    """Print what changes, and what it saves, also in time where that was measured; whether anything shrinks."""
    changed = {name: change for name, change in plan.widths.items() if change.new != change.old}
    says(f"{len(changed)} of {several(len(analysis.widths), 'width')} change.")
    if changed:
        says()
        table(
            ("id", "name", "from", "to"),
            [(name, c.name, str(c.old), str(c.new)) for name, c in list(changed.items())[:SHOWN]],
            right=("from", "to"),
        )
        if len(changed) > SHOWN:
            says(f"... and {len(changed) - SHOWN} more (--plan lists all)")
    for reason, names in by_reason(left_alone).items():
        says(f"Left alone: {', '.join(names)} ({reason}).")
    before = analysis.costs.source
    times = []
    if found is not None:
        a, b = found.a.p50_ms, found.b.p50_ms
        times = [("latency p50", f"{a:.3f} ms", f"{b:.3f} ms", share(b, a))]
    says()
    table(
        ("", "source", "resized", "share"),
        [
            ("parameters", count(before.params), count(after.params), share(after.params, before.params)),
            ("MACs", count(before.macs), count(after.macs), share(after.macs, before.macs)),
            ("weights", size(before.bytes), size(after.bytes), share(after.bytes, before.bytes)),
            *times,
        ],
        right=("source", "resized", "share"),
    )
    says()
    return any(change.new < change.old for change in changed.values())


def _show_next(model: str, out: str, plan_to: str | None, *, smaller: bool, hint: str, free_batch: bool) -> None:
    """Where it is, and what to do now."""
    says(f"Written: {out} ({size(os.path.getsize(out))})" + (f", {plan_to}." if plan_to else "."))
    if smaller:
        says("Nothing was trained: it has lost accuracy that `search` wins back.")
    if hint:
        says(hint)
    says()
    says("What next")
    says(f"  {command('bench', model, out)}")
    if plan_to:
        says(f"  {command('verify', model, out, '--plan', plan_to, *(['--free-batch'] if free_batch else []))}")
    says(f"  {command('evaluate', out, '--data', 'DATA')}")
