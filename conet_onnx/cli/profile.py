"""`profile`: what the model's operators take on this machine, at a grid of widths."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from conet_onnx.cli.command import Command
from conet_onnx.cli.options import (
    input_shape_option,
    model_argument,
    provider_option,
    table_option,
    threads_option,
)
from conet_onnx.cli.output import Bar, check_writable, command, duration, log, says, several, share, size, table
from conet_onnx.errors import UsageError

if TYPE_CHECKING:
    from conet_onnx.latency.prediction import Predictor
    from conet_onnx.latency.profiling import Profile
    from conet_onnx.latency.table import Anchors

__all__ = ["estimated", "profile", "read_tables", "warning", "where"]


@click.command(cls=Command)
@model_argument
@click.option("-o", "--output", "out", required=True, metavar="TABLE.json", help="The latency table.")
@provider_option
@threads_option
@table_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the widths at which whole models are timed.")
@input_shape_option
def profile(
    model: str,
    out: str,
    provider: str,
    threads: int | None,
    tables: tuple[str, ...],
    seed: int,
    input_shapes: dict[str, tuple[int, ...]],
) -> None:
    """Measure the model's operators with onnxruntime at a grid of widths, for --budget latency. Says how long it takes.

    What a --table holds already is not measured again, and is written to TABLE.json with the rest.
    """
    check_writable(out)
    if os.path.realpath(out) == os.path.realpath(model):
        raise UsageError(f"-o {out} would overwrite the model; name another file.")
    from conet_onnx.analysis import analyze
    from conet_onnx.latency.prediction import accuracy, predictor, usable
    from conet_onnx.latency.profiling import Profile
    from conet_onnx.loading import load
    from conet_onnx.runtime import resolve

    provider = resolve(provider)
    known = read_tables(tables, provider, threads, strictly=True)
    analysis = analyze(load(model, input_shapes=input_shapes))
    if not analysis.widths:
        raise UsageError(f"{model} has no width that may change; `conet-onnx analyze {model}` says why.")
    with Bar() as bar:
        bar.at(0.0, "Finding what onnxruntime makes of the model")
        asked = Profile.of(analysis, provider=provider, threads=threads, known=known, seed=seed)
        bar.log(f"{model} on {where(provider, threads)}: {estimated(asked)}.")
        measured = asked.run(lambda done: bar.at(done, "Measuring"))
        measured.save(out)
    found = predictor(analysis, asked.operators, measured)
    anchors = usable(analysis, measured)
    warn_of_drift(anchors)
    _show(found, asked)
    if anchors is not None and len(anchors.measured) > 2:
        off = accuracy(found.plain, anchors)
        says()
        says(
            f"At {off.models} sets of widths that they were not calibrated on, predictions are off by {off.median:.1%} "
            f"(median; {off.largest:.1%} at most); Spearman's rank correlation {off.spearman:.3f}."
        )
    says()
    says(f"Written: {out} ({size(os.path.getsize(out))}).")
    says()
    says("What next")
    says(f"  {command('bench', model, 'OTHER.onnx')}")


def read_tables(files: tuple[str, ...], provider: str, threads: int | None, *, strictly: bool = False) -> Any:
    """What some --table files hold together, or None; a table of another machine is told of, or refused `strictly`."""
    if not files:
        return None
    from conet_onnx.latency import preparing

    return preparing.read_tables(files, provider, threads, warn=warning, strictly=strictly)


def warning(line: str) -> None:
    """On stderr."""
    log(f"Warning: {line}")


def warn_of_drift(anchors: Anchors | None) -> None:
    """On stderr, where the machine was not at peace while a table was made."""
    from conet_onnx.latency.preparing import drifted

    if (line := drifted(anchors)) is not None:
        warning(line)


def estimated(asked: Profile) -> str:
    """What is to be measured, and about how long that takes."""
    from conet_onnx.latency.timing import measure

    points = len(asked.asked)
    if not points and not asked.missing_anchors:
        return "all that is needed is known already"
    how: dict[str, Any] = {"provider": asked.host.provider, "threads": asked.host.threads}
    run = measure(asked.analysis.graph, **how, seconds=0.5).p50_ms / 1e3
    left = several(len(asked.operators.left), "operator") + " cannot be timed alone; " if asked.operators.left else ""
    return (
        f"{several(len(asked.operators.listed), 'operator')} of {several(len(asked.operators.kinds), 'kind')}; {left}"
        f"measuring {several(points, 'point')} and {several(asked.missing_anchors, 'whole model')}, about "
        f"{duration(asked.estimate(run))}"
    )


def where(provider: str, threads: int | None) -> str:
    """A provider and its threads, in words."""
    if threads is None:
        return f"{provider} ({os.cpu_count()} processors)"
    return f"{provider} ({several(threads, 'thread')})"


def _show(found: Predictor, asked: Profile) -> None:
    """What the source's time is made of."""
    parts = {name: float(seconds[0]) for name, seconds in found.by_class(found.source[None]).items()}
    total = found.predict(found.source)
    counts: dict[str, int] = {}
    for one in asked.operators.listed:
        counts[one.kind.op] = counts.get(one.kind.op, 0) + 1
    rows = [
        (
            name,
            str(counts[name]),
            f"{found.weight(name) * seconds * 1e3:.3f} ms",
            share(found.weight(name) * seconds, total),
        )
        for name, seconds in sorted(parts.items(), key=lambda item: -item[1])
    ]
    rows.append(("the rest", "", f"{found.constant * 1e3:.3f} ms", share(found.constant, total)))
    table(("operator", "number", "time", "share"), rows, right=("number", "time", "share"))
