"""Assemble the page of an analysis: the graph with its widths, the widths as a table, and what is frozen and why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from conet_onnx.coupling import Coupling
from conet_onnx.dims import Segment
from conet_onnx.explaining import formula
from conet_onnx.files import atomic_write
from conet_onnx.hints import hint
from conet_onnx.report.analysis_page import PAGE, SCRIPT, STYLE
from conet_onnx.report.drawing import Drawing
from conet_onnx.report.page import STYLE as BASE
from conet_onnx.report.page import embedded
from conet_onnx.report.palette import DARK, LIGHT
from conet_onnx.report.wording import count, quantity

__all__ = ["render", "write_page"]

GOLDEN_ANGLE = 137.508  # degrees: neighbours in number are far apart in hue, however many widths there are
IDLE = (
    "Click a node for the axes that it reads and makes, or a width in the table below for what changes along with it."
)


def write_page(coupling: Coupling, document: Mapping[str, Any], target: str | os.PathLike[str]) -> None:
    """Write the page of an analysis and of its JSON; the file appears whole or not at all. Raises OutputError."""
    page = render(coupling, document)
    with atomic_write(target) as part:
        part.write_text(page, encoding="utf-8")


def render(coupling: Coupling, document: Mapping[str, Any]) -> str:
    """The page as HTML; the same analysis gives the same text."""
    drawing = Drawing(coupling)
    body = [_head(document), _graph(drawing), _widths(document), _frozen(document["frozen"])]
    return PAGE.substitute(
        title=f"Widths of {escape(document['model']['file'])}",
        style=BASE.substitute(light=LIGHT.css(), dark=DARK.css()) + STYLE + _hues(len(document["groups"])),
        body="\n".join(body),
        facts=embedded(_facts(coupling, drawing, document)),
        script=SCRIPT,
    )


def _hues(widths: int) -> str:
    return "\n".join(f".h{k} {{ --h: {(250 + k * GOLDEN_ANGLE) % 360:.0f}; }}" for k in range(widths))


def _head(document: Mapping[str, Any]) -> str:
    model = document["model"]
    ends = [f"{key.capitalize()} {', '.join(map(_value, model[key]))}" for key in ("inputs", "outputs")]
    size = f"{quantity(model['params'], 'params')} parameters, {quantity(model['macs'], 'macs')} MACs at batch 1"
    return f"""<p class="eyebrow">Widths</p>
<h1>{escape(model["file"])}</h1>
<p class="lead">{_lead(document)}</p>
<p class="caption">Opset {model["opset"]}, {count(model["nodes"], "node")}, {size}. {". ".join(ends)}.</p>"""


def _lead(document: Mapping[str, Any]) -> str:
    groups, coverage = document["groups"], document["coverage"]
    if not groups:
        return "No width of this model can change; the reasons are below."
    mixed = sum(not group["exact"] for group in groups)
    shares = f"{coverage['params']:.1%} of the parameters and {coverage['macs']:.1%} of the MACs"
    kinds = "All are exact: to shrink one is to mask its channels."
    if mixed:
        some = f"{mixed} of them {'is' if mixed == 1 else 'are'}"
        kinds = f"{some} mixed: statistics are taken across the channels, and to shrink them is approximate."
    return f"{count(len(groups), 'width')} can change, in weights with {shares}. {kinds}"


def _value(value: Mapping[str, Any]) -> str:
    shape = ", ".join("?" if size is None else str(size) for size in value["shape"])
    return f"<code>{escape(value['name'])}</code> [{escape(shape)}]"


def _graph(drawing: Drawing) -> str:
    out = drawing.left_out
    rest = f" Not drawn: {count(out, 'node')} that compute with sizes or with weights alone." if out else ""
    buttons = (("further", "−", "Zoom out"), ("closer", "+", "Zoom in"), ("actual", "1:1", "Actual size"))
    zoom = "".join(
        f'<button type="button" id="{name}" aria-label="{label}" title="{label}">{sign}</button>'
        for name, sign, label in (*buttons, ("whole", "Whole", "The whole graph"))
    )
    find = "Find a node, tensor or width"
    move = "The graph: scroll or drag to move, Ctrl and wheel to zoom"
    caption = (
        "A colour is a width: nodes and connections have those of the channels that they carry, and are grey where "
        f"nothing can change. Dashed nodes take statistics across channels.{rest}"
    )
    return f"""<section>
<h2>Graph</h2>
<p class="caption">{caption}</p>
<div class="tools"><input id="find" type="search" placeholder="{find}" aria-label="{find}"><output id="told"></output>\
<span class="zoom">{zoom}</span></div>
<div class="stage"><div id="view" tabindex="0" role="region" aria-label="{move}">
{drawing.svg()}
</div><aside id="about" aria-live="polite"><p>{IDLE}</p></aside></div>
<div id="strips"></div>
<noscript><p class="none">Finding, zooming and sorting need JavaScript.</p></noscript>
</section>"""


def _widths(document: Mapping[str, Any]) -> str:
    if not document["groups"]:
        return ""
    titles = (("id", 0), ("name", 1), ("size", 0), ("kind", 1), ("members", 0), ("params", 0), ("MACs", 0))
    caption = (
        "The share of the parameters and MACs is what a width's channels touch. Click a row to see it in the graph."
    )
    rows = [_width(k, group, document["model"]) for k, group in enumerate(document["groups"])]
    return _section("Widths", caption, _table("widths", titles, rows))


def _width(number: int, group: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    mixed, kind, hover = group["mixed_by"], "exact", ""
    if mixed:
        kind = f"mixed by {escape(mixed[0])}{f' and {len(mixed) - 1} more' if len(mixed) > 1 else ''}"
        hover = f' title="{escape(chr(10).join(mixed))}"'
    if group["max"] is not None:
        kind += "; only shrinks"
    cells = (
        f'<th scope="row"><i class="k h{number}"></i>{group["id"]}</th>',
        f'<td class="text">{escape(group["name"])}</td>',
        f"<td>{group['size']}</td>",
        f'<td class="text"{hover}>{kind}</td>',
        f"<td>{len(group['members'])}</td>",
        *(_share(group[key], model[key]) for key in ("params", "macs")),
    )
    return f'<tr data-w="{group["id"]}">{"".join(cells)}</tr>'


def _frozen(frozen: Sequence[Mapping[str, Any]]) -> str:
    kinds: dict[str, int] = {}
    for axis in frozen:
        kinds[axis["reason"]["kind"]] = kinds.get(axis["reason"]["kind"], 0) + 1
    if not kinds:
        return _section("Frozen", "Nothing is frozen.", "")
    ordered = sorted(kinds.items(), key=lambda item: (item[0] == "spatial", -item[1]))
    summary = [
        f'<tr><th scope="row">{escape(kind)}</th><td>{number}</td><td class="text">{escape(hint(kind))}</td></tr>'
        for kind, number in ordered
    ]
    rows = [_frozen_row(axis) for axis in frozen]
    apart = ""
    if 0 < kinds.get("spatial", 0) < len(frozen):
        apart = '<option value="-">all but the extents of kernels</option>'
    choices = "".join(f'<option value="{escape(kind)}">{escape(kind)} ({number})</option>' for kind, number in ordered)
    tools = (
        f'<div class="tools"><label for="kind">Show</label><select id="kind">{apart}<option value="">all '
        f"({len(frozen)})</option>{choices}</select></div>"
    )
    why = _table("kinds", (("why", 0), ("axes", 0), ("which change would free them", 1)), summary)
    titles = (("axis of a weight", 0), ("size", 0), ("why", 1), ("reason", 1), ("where", 1))
    return _section(
        "Frozen", "Axes of weights that keep their size.", f"{why}\n{tools}\n{_table('axes', titles, rows)}"
    )


def _frozen_row(axis: Mapping[str, Any]) -> str:
    reason = {key: escape(text) for key, text in axis["reason"].items()}
    cells = "".join(f'<td class="text">{reason[key]}</td>' for key in ("kind", "detail", "node"))
    place = f"{escape(axis['tensor'])}[{axis['axis']}]"
    return f'<tr data-k="{reason["kind"]}"><th scope="row">{place}</th><td>{axis["size"]}</td>{cells}</tr>'


def _share(part: int, whole: int) -> str:
    return f'<td data-v="{part}" title="{part:,}">{f"{part / whole:.1%}" if whole else "-"}</td>'


def _table(name: str, titles: Sequence[tuple[str, int]], rows: Sequence[str]) -> str:
    """A table of rows that are HTML already; titles come with whether their column holds text."""
    head = "".join(f'<th scope="col" class="{"text" if text else "value"}">{title}</th>' for title, text in titles)
    body = "\n".join(rows)
    return f"""<div class="wide"><table class="sortable" id="{name}"><thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>"""


def _section(title: str, caption: str, content: str) -> str:
    return f'<section>\n<h2>{title}</h2>\n<p class="caption">{caption}</p>\n{content}\n</section>'


def _facts(coupling: Coupling, drawing: Drawing, document: Mapping[str, Any]) -> dict[str, Any]:
    """What the script shows of widths, nodes and tensors."""
    model = document["model"]
    widths = [
        {
            "id": group["id"],
            "name": group["name"],
            "size": group["size"],
            "mixed": group["mixed_by"],
            "limit": coupling.all_widths[group["id"]].limit,
            "members": [[m["tensor"], m["axis"], m["role"]] for m in group["members"]],
            "params": f"{group['params'] / max(model['params'], 1):.1%}",
            "macs": f"{group['macs'] / max(model['macs'], 1):.1%}",
        }
        for group in document["groups"]
    ]
    nodes = [
        {
            "name": box.name,
            "op": box.op,
            "in": list(box.reads),
            "out": list(box.makes),
            **({"mixes": 1} if box.mixes else {}),
        }
        for box in drawing.boxes
    ]
    reasons: dict[tuple[str, str], int] = {}
    names = dict.fromkeys(name for box in drawing.boxes for name in (*box.makes, *box.reads))
    tensors = {name: found for name in names if (found := _axes(coupling, name, reasons))}
    return {"idle": IDLE, "widths": widths, "nodes": nodes, "tensors": tensors, "reasons": list(reasons)}


def _axes(coupling: Coupling, tensor: str, reasons: dict[tuple[str, str], int]) -> list[list[Any]]:
    """For each axis: what it is made of, the ids of its widths, and the number of the reason that freezes it, or -1."""
    root = coupling.alias(tensor) or tensor
    readings = [shape for _, shape in coupling.ties.readings(root)]
    return [
        _axis(coupling, root, tuple(s[k] for s in readings), reasons)
        for k in range(len(readings[0]) if readings else 0)
    ]


def _axis(
    coupling: Coupling, tensor: str, segments: Sequence[Segment], reasons: dict[tuple[str, str], int]
) -> list[Any]:
    held = {dim for segment in segments for dim in coupling.solver.leaves(segment)}
    ids = [width.id for width in coupling.widths.values() if width.dim in held]
    first, second = segments[0].size
    if ids:
        made_of = " or ".join(dict.fromkeys(formula(coupling, segment) for segment in segments))
        return [f"{first} = {made_of}", ids, -1]
    if first != second:
        return ["follows the input", ids, -1]
    if first == 1:
        return ["1", ids, -1]
    reason = coupling.obstacle(tensor, segments[0])
    return [str(first), ids, reasons.setdefault((reason.kind, reason.detail), len(reasons))]
