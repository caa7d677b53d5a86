"""`bench`: onnxruntime latency of a model, or of two measured in turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from conet_onnx.cli.command import Command
from conet_onnx.cli.options import input_shape_option, json_option, provider_option, threads_option
from conet_onnx.cli.output import Bar, check_writable, command, log, says, table, write
from conet_onnx.cli.profile import where
from conet_onnx.cli.slower import warn_if_slower
from conet_onnx.errors import ConetError

if TYPE_CHECKING:
    from conet_onnx.graph import Graph
    from conet_onnx.latency import Comparison, Latency

__all__ = ["bench", "verdict"]

SECONDS = 10.0  # at most, for all that is measured


@click.command(cls=Command)
@click.argument("a", metavar="A.onnx")
@click.argument("b", metavar="[B.onnx]", required=False)
@provider_option
@threads_option
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Size of a dynamic first axis (default: 1).")
@json_option
@input_shape_option
def bench(
    a: str,
    b: str | None,
    provider: str,
    threads: int | None,
    batch: int | None,
    json_to: str | None,
    input_shapes: dict[str, tuple[int, ...]],
) -> None:
    """Measure latency (p50, p95) with onnxruntime; two models take turns and are compared. Takes about 10 seconds."""
    check_writable(json_to)
    from conet_onnx.latency import FORMAT, compare, measure
    from conet_onnx.loading import load
    from conet_onnx.runtime import resolve

    graphs = [load(file, input_shapes=input_shapes) for file in (a, b) if file is not None]
    provider = resolve(provider)
    log(f"Measuring {' and '.join(g.file for g in graphs)} on {where(provider, threads)}, {SECONDS:.0f} s at most.")
    with Bar() as bar:
        bar.at(0.0, "Measuring")
        settings: dict[str, Any] = {"provider": provider, "threads": threads, "batch": batch, "seconds": SECONDS}
        if len(graphs) == 1:
            alone = measure(graphs[0], **settings, progress=bar.at)
            document = {"format": FORMAT, "a": alone.as_json()}
        else:
            both = compare(graphs[0], graphs[1], **settings, progress=bar.at)
            document = both.as_json()
    if len(graphs) == 2:
        _warn(graphs[0], graphs[1], both, provider=provider, threads=threads, batch=batch)
    if json_to:
        write(json_to, document)
    if json_to == "-":
        return
    if len(graphs) == 1:
        _show(alone)
        says()
        says("What next")
        says(f"  {command('bench', a, 'OTHER.onnx')}")
    else:
        _show(both.a, both.b)
        says()
        says(verdict(both))
        says()
        says("What next")
        says(f"  {command('evaluate', both.b.file, '--data', 'DATA')}")


def _warn(a: Graph, b: Graph, found: Comparison, **how: Any) -> None:
    """On stderr, where b has fewer MACs than a and takes longer all the same: which layers it is."""
    if found.ratio.low <= 1:
        return
    from conet_onnx.analysis import analyze
    from conet_onnx.latency.slowdowns import by_profiles

    try:
        before, after = (analyze(graph).costs.source.macs for graph in (a, b))
    except ConetError:  # the models were measured: what cannot be explained is not
        return
    warn_if_slower(b.file, found, (before, after), lambda: by_profiles(a, b, **how))


def verdict(found: Comparison) -> str:
    """One sentence: which is faster, by how much, and how sure that is."""
    ratio = found.ratio
    interval = f"ratio of the medians {ratio.p50:.3f}, 95% interval {ratio.low:.3f} to {ratio.high:.3f}"
    a, b = found.a.file, found.b.file
    if ratio.high < 1:
        return f"{b} is {1 / ratio.p50:.2f} times as fast as {a} ({interval})."
    if ratio.low > 1:
        return f"{b} takes {ratio.p50:.2f} times as long as {a} ({interval})."
    return f"No difference between {a} and {b} could be shown ({interval})."


def _show(*found: Latency) -> None:
    table(
        ("model", "p50", "p95", "runs"),
        ((x.file, f"{x.p50_ms:.3f} ms", f"{x.p95_ms:.3f} ms", str(x.runs)) for x in found),
        right=("p50", "p95", "runs"),
    )
