"""`analyze`: which widths a model has, what they touch, and why the rest is frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from conet_onnx.cli.command import Command
from conet_onnx.cli.explain import check_asked, explained, show_explained
from conet_onnx.cli.options import freeze_option, input_shape_option, json_option, model_argument
from conet_onnx.cli.output import Bar, check_writable, command, count, says, several, share, table, write
from conet_onnx.errors import UsageError

if TYPE_CHECKING:
    from conet_onnx.analysis import Analysis
    from conet_onnx.explaining import Asked

__all__ = ["analyze"]

EXAMPLES = 3  # of each reason


@click.command(cls=Command)
@model_argument
@json_option
@click.option("--html", metavar="F", help="Write the result as a page with the graph, which needs no network.")
@click.option(
    "--explain",
    multiple=True,
    metavar="A",
    help="Why A (a width, tensor, TENSOR[AXIS] or node) is frozen, or what it is tied to; twice: the path between.",
)
@freeze_option
@input_shape_option
def analyze(
    model: str,
    json_to: str | None,
    html: str | None,
    explain: tuple[str, ...],
    freeze: tuple[str, ...],
    input_shapes: dict[str, tuple[int, ...]],
) -> None:
    """Show the width groups of a model, and what is frozen and why. Changes nothing; takes about a second."""
    check_asked(explain)
    if html == "-":
        raise UsageError("--html - is not a file; name one. `--json -` writes to stdout.")
    check_writable(json_to, html)
    with Bar(3 if html else 2) as bar:
        bar.step(f"Reading {model}")
        from conet_onnx.analysis import analyze as analyze_graph
        from conet_onnx.loading import load

        graph = load(model, input_shapes=input_shapes)
        graph.hash_ahead()  # the report names the file by it
        bar.step("Following the axes")
        analysis = analyze_graph(graph, freeze=freeze)
        document = analysis.as_json()
        asked = _look_up(analysis, explain)
        if html:
            bar.step("Drawing the graph")
            from conet_onnx.report.analysis import write_page

            write_page(analysis, document, html)
    if json_to:
        write(json_to, document | ({"explain": explained(analysis, asked)} if asked else {}))
    if json_to == "-":
        return
    if asked:
        show_explained(analysis, asked)
    else:
        _show(model, document)
    if html:
        says()
        says(f"Written: {html}")


def _look_up(analysis: Analysis, names: Sequence[str]) -> list[Asked]:
    if not names:
        return []
    from conet_onnx.explaining import look_up

    return [look_up(analysis, name) for name in names]


def _show(file: str, document: Mapping[str, Any]) -> None:
    model, groups, coverage = document["model"], document["groups"], document["coverage"]
    says(
        f"{file}: opset {model['opset']}, {model['nodes']} nodes, {count(model['params'])} parameters, "
        f"{count(model['macs'])} MACs at batch 1."
    )
    if groups:
        says(
            f"Can be resized: {several(len(groups), 'width group')}, in weights with {coverage['params']:.1%} of the "
            f"parameters and {coverage['macs']:.1%} of the MACs."
        )
        says()
        _show_groups(groups, model)
    else:
        says("No width can be resized; the reasons are below.")
    says()
    _show_frozen(document["frozen"])
    if groups:
        says()
        says("What next")
        says(f"  {command('resize', file, '-o', 'resized.onnx', '--scale', '0.5', '--plan', 'plan.json')}")
        says(f"  {command('search', file, '--data', 'DATA', '--budget', 'macs=0.5')}")


def _show_groups(groups: Sequence[Mapping[str, Any]], model: Mapping[str, Any]) -> None:
    table(
        ("id", "name", "size", "min", "multiple", "kind", "members", "params", "MACs"),
        (
            (
                group["id"],
                group["name"],
                str(group["size"]),
                str(group["min"]),
                str(group["multiple"]),
                _kind(group),
                str(len(group["members"])),
                share(group["params"], model["params"]),
                share(group["macs"], model["macs"]),
            )
            for group in groups
        ),
        right=("size", "min", "multiple", "members", "params", "MACs"),
    )


def _kind(group: Mapping[str, Any]) -> str:
    kind = "exact" if group["exact"] else f"mixed by {_few(group['mixed_by'], 1)}"
    return kind if group["max"] is None else f"{kind}; only shrinks"


def _show_frozen(frozen: Sequence[Mapping[str, Any]]) -> None:
    channels = [axis for axis in frozen if axis["reason"]["kind"] != "spatial"]
    besides = f"the {len(frozen) - len(channels)} extents of kernels" if len(frozen) > len(channels) else ""
    if not channels:
        says(f"Nothing is frozen{f' but {besides}' if besides else ''}.")
        return
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for axis in channels:
        kinds.setdefault(axis["reason"]["kind"], []).append(axis)
    where = "1 weight axis" if len(channels) == 1 else f"{len(channels)} weight axes"
    says(f"Frozen: channels along {where}{f', and {besides}' if besides else ''}.")
    says()
    table(
        ("why", "axes", "for example"),
        (
            (kind, str(len(axes)), "\n".join(_examples(axes)))
            for kind, axes in sorted(kinds.items(), key=lambda item: -len(item[1]))
        ),
        right=("axes",),
    )


def _examples(axes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A few that differ in their reason, and how many axes there are besides."""
    by_detail: dict[str, str] = {}
    for axis in axes:
        by_detail.setdefault(axis["reason"]["detail"], f"{axis['tensor']}[{axis['axis']}]")
    shown = [f"{place}: {detail}" if detail else place for detail, place in list(by_detail.items())[:EXAMPLES]]
    return [*shown, f"and {len(axes) - len(shown)} more"] if len(axes) > len(shown) else shown


def _few(items: Sequence[str], limit: int) -> str:
    """The first few, and how many more there are."""
    more = f" (+{len(items) - limit})" if len(items) > limit else ""
    return "; ".join(items[:limit]) + more
