"""Figures of a run, as plotly dictionaries in daylight colours; `layout.meta.narrow` is what a phone changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any, TypeAlias

from conet_onnx.records.run import ModelRecord, Run
from conet_onnx.records.trial import Trial
from conet_onnx.report.facts import (
    changes,
    fate,
    finished,
    front,
    label,
    leader,
    leader_name,
    number,
    score,
    score_name,
    width_at,
)
from conet_onnx.report.palette import LIGHT as C
from conet_onnx.report.wording import quantity

__all__ = ["Figure", "accuracy_against_macs", "movement", "progress", "side_by_side"]

Figure: TypeAlias = dict[str, Any]

SHOWN_CHANGES = 8  # in one hover box
LABEL, NARROW_LABEL = 44, 24  # characters of a width's name on an axis
MIN_COLUMNS = 8  # on an axis of trials, so that one trial is not a wall
STRIP = 34  # pixels of the strip of states over the heat map


def accuracy_against_macs(run: Run) -> Figure:
    """Validation accuracy (percent) against MACs of every finished trial, the front, the source and the best.

    Where the source lies far from all trials, the view is of the trials, and a note at the edge says where it is.
    """
    best, on_front = leader(run), front(run)
    numbers = {trial.number for trial in on_front}
    rest = [trial for trial in finished(run) if trial.number not in numbers]
    data = [
        _points(run, "rejected", [t for t in rest if not t.accepted], {"color": C.faint, "symbol": "circle-open"}),
        _points(run, "accepted", [t for t in rest if t.accepted], {"color": C.faint}),
        _points(run, "Pareto front", on_front, {"color": C.front, "size": 9})
        | {"mode": "lines+markers", "line": {"shape": "hv", "color": C.front, "width": 1.5}},
        _model(run.source, "source", {"color": C.ink, "symbol": "diamond", "size": 13}),
    ]
    if best is not None:
        marker = {"color": C.best, "symbol": "star", "size": 17, "line": {"color": C.paper, "width": 1.5}}
        data.append(_model(best, leader_name(run), marker))
    layout = _layout(height=460) | {"shapes": [], "annotations": []}
    layout |= {"xaxis": _axis("MACs", tickformat="~s"), "yaxis": _score_axis(run)}
    layout["legend"]["traceorder"] = "reversed"
    limit, source, view = number(run.budget.get("macs")), score(run.source), _view(run)
    if limit is not None:
        layout["shapes"].append(_line(x0=limit, x1=limit, yref="paper", y0=0, y1=1))
        place = {"x": limit, "y": 0, "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        layout["annotations"].append(_note(f"budget {quantity(limit, 'macs')}", **place))
    if view and source is not None:
        layout["xaxis"]["range"] = view
        data[3]["showlegend"] = False
        layout["shapes"].append(_line(xref="paper", x0=0, x1=1, y0=source.height, y1=source.height))
        text = f"source: {source} at {quantity(run.source.macs, 'macs')} →"
        place = {"xref": "paper", "x": 1, "y": source.height, "xanchor": "right", "yanchor": "bottom"}
        layout["annotations"].append(_note(text, **place))
    return {"data": [trace for trace in data if trace["x"]], "layout": layout}


def side_by_side(run: Run) -> Figure:
    """Each width of the source and of the best, a row a width, on a logarithmic axis: equal gaps are equal ratios."""
    best = leader(run)
    labels = list(_labels(run).values())
    sizes = [int(width["size"]) for width in run.widths.values()]
    now = [width_at(run, best, width) for width in run.widths] if best is not None else sizes
    name = leader_name(run)
    data: list[Figure] = [
        _gap(labels, sizes, now, wider=False),
        _gap(labels, sizes, now, wider=True),
        {
            **_scatter("source", sizes, labels),
            "marker": {"color": C.paper, "size": 9, "line": {"color": C.muted, "width": 1.75}},
            "text": labels,
            "hovertemplate": "%{text}<br>source %{x:,d}<extra></extra>",
        },
        {
            **_scatter(name, now, labels),
            "yaxis": "y2",
            "marker": {"color": C.ink, "size": 9},
            "text": labels,
            "customdata": sizes,
            "hovertemplate": f"%{{text}}<br>source %{{customdata:,d}}, {name} %{{x:,d}}<extra></extra>",
        },
    ]
    ends = [f"{a:,} → {b:,}" if a != b else f"{a:,}" for a, b in zip(sizes, now, strict=True)]
    low, high = math.log10(min(sizes + now)), math.log10(max(sizes + now))
    room = 0.04 * (high - low) + 0.03
    rows = _rows(run) | {"range": [len(labels) - 0.5, -0.5]}
    height = 90 + _row_height(len(labels)) * len(labels)
    narrow: Figure = {"yaxis.ticktext": list(_labels(run, NARROW_LABEL).values()), "yaxis2.visible": False}
    narrow["xaxis.tickvals"] = [4**p for p in range(16)]
    layout = _layout(height=height, narrow=narrow) | {
        "xaxis": _axis("channels", type="log", tickvals=[2**p for p in range(31)], tickformat=",d")
        | {"range": [low - room, high + room]},
        "yaxis": rows,
        "yaxis2": rows | {"overlaying": "y", "side": "right", "showgrid": False, "ticktext": ends},
    }
    return {"data": [trace for trace in data if trace["x"]] if best is not None else data[2:3], "layout": layout}


def movement(run: Run) -> Figure:
    """Every width by trial as a ratio to the source's, with the fate of each trial in a strip above."""
    columns = [trial.number for trial in run.trials]
    table = [[width_at(run, trial, width) for trial in run.trials] for width in run.widths]
    sizes = [int(width["size"]) for width in run.widths.values()]
    z = [[round(math.log2(w / size), 4) for w in row] for row, size in zip(table, sizes, strict=True)]
    heat = {
        "type": "heatmap",
        "x": columns,
        "y": list(_labels(run).values()),
        "z": z,
        "customdata": table,
        "coloraxis": "coloraxis",
        "xgap": 1 if len(columns) <= 25 else 0,
        "ygap": 1,
        "hovertemplate": "trial %{x}<br>%{y}: %{customdata:,d}<extra></extra>",
    }
    height = 110 + STRIP + _row_height(len(sizes)) * len(sizes)
    split = 1 - STRIP / (height - 80)
    narrow = {"yaxis.ticktext": list(_labels(run, NARROW_LABEL).values()), "coloraxis.colorbar.title.text": ""}
    layout = _layout(height=height, narrow=narrow) | {
        "coloraxis": _ratios(z),
        "xaxis": _trial_axis(run) | {"showgrid": False},
        "yaxis": _rows(run) | {"autorange": "reversed", "domain": [0, split], "showgrid": False},
        "yaxis2": {"domain": [split, 1], "range": [0, 1], "visible": False, "fixedrange": True},
    }
    if run.best is not None and run.best.trial is not None:
        at = run.best.trial
        layout["shapes"] = [_line(x0=at - 0.5, x1=at + 0.5, yref="paper", y0=0, y1=1, type="rect", color=C.best)]
    return {"data": [heat, *_fates(run)], "layout": layout}


def progress(run: Run) -> Figure:
    """Accuracy (above) and what the searcher minimises (below) over the trials."""
    scores = _heights(finished(run))
    told = [(trial, trial.objective) for trial in run.trials if number(trial.objective) is not None]
    objectives = [objective for _, objective in told]
    data = [*_told(run, scores, "y"), *_told(run, told, "y2")]
    data.append(
        _scatter("lowest objective so far", [trial.number for trial, _ in told], list(accumulate(objectives, min)))
        | {"yaxis": "y2", "mode": "lines", "line": {"shape": "hv", "color": C.muted, "width": 1.25}}
        | {"hoverinfo": "skip"}
    )
    wide = bool(told) and max(objectives) > 50 * min(objectives) > 0
    layout = _layout(height=480) | {
        "xaxis": _trial_axis(run) | {"anchor": "y2"},
        "yaxis": _score_axis(run, domain=[0.54, 1]),
        "yaxis2": _axis("objective", domain=[0, 0.46], type="log" if wide else "linear"),
    }
    source = score(run.source)
    if source is not None:
        at = source.height
        layout["shapes"] = [_line(xref="paper", x0=0, x1=1, y0=at, y1=at)]
        layout["annotations"] = [_note("source", xref="paper", x=1, y=at, xanchor="right", yanchor="bottom")]
    return {"data": [trace for trace in data if trace["x"]], "layout": layout}


def _told(run: Run, pairs: Sequence[tuple[Trial, float]], axis: str) -> list[Figure]:
    """A value of each trial on a y axis, accepted trials apart from rejected ones."""
    made = []
    for name, marker in (("rejected", {"color": C.faint, "symbol": "circle-open"}), ("accepted", {"color": C.front})):
        chosen = [(trial, value) for trial, value in pairs if fate(trial) == name]
        made.append(
            _scatter(name, [trial.number for trial, _ in chosen], [value for _, value in chosen])
            | {"yaxis": axis, "legendgroup": name, "showlegend": axis == "y", "marker": {"size": 7} | marker}
            | {"hovertext": [_describe(run, trial) for trial, _ in chosen], "hoverinfo": "text"}
        )
    return made


def _heights(trials: Sequence[Trial]) -> list[tuple[Trial, float]]:
    """Where finished trials stand."""
    return [(trial, found.height) for trial in trials if (found := score(trial)) is not None]


def _score_axis(run: Run, **settings: Any) -> Figure:
    source = score(run.source)
    shares = {"ticksuffix": "%"} if source is None or source.is_share else {}
    return _axis(f"validation {score_name(run)}", **shares, **settings)


def _view(run: Run) -> list[float] | None:
    """The MACs to show at first, where the source would press all trials into a corner."""
    shown = [trial.macs for trial in finished(run)]
    if len(shown) < 5:
        return None
    limit = number(run.budget.get("macs"))
    low, high = min(shown), max(shown) if limit is None else max(*shown, limit)
    span = high - low
    if not span or low - 1.5 * span <= run.source.macs <= high + 1.5 * span:
        return None
    return [low - 0.08 * span, high + 0.3 * span]


def _points(run: Run, name: str, trials: Sequence[Trial], marker: Figure) -> Figure:
    return _scatter(name, [trial.macs for trial in trials], [height for _, height in _heights(trials)]) | {
        "marker": {"size": 8} | marker,
        "hovertext": [_describe(run, trial) for trial in trials],
        "hoverinfo": "text",
    }


def _model(model: ModelRecord | Trial, name: str, marker: Figure) -> Figure:
    found = score(model)
    trial = model.number if isinstance(model, Trial) else model.trial
    title = f"<b>{name}</b>" + (f" (trial {trial})" if trial is not None else "")
    place = ([model.macs], [found.height]) if found is not None else ([], [])
    return _scatter(name, *place) | {
        "marker": marker,
        "hovertext": [f"{title}<br>{_numbers(model)}"],
        "hoverinfo": "text",
    }


def _describe(run: Run, trial: Trial) -> str:
    moved = changes(run, trial)
    origin = "the source" if trial.parent is None else f"trial {trial.parent}"
    lines = [f"<b>trial {trial.number}</b> ({fate(trial)})", _numbers(trial)]
    if number(trial.objective) is not None:
        lines.append(f"objective {trial.objective:.4g}")
    lines.append(f"widths changed from {origin}:" if moved else f"widths as in {origin}")
    labels = _labels(run, LABEL)
    lines += [f"  {labels[width]}: {old:,} → {new:,}" for width, old, new in moved[:SHOWN_CHANGES]]
    if len(moved) > SHOWN_CHANGES:
        lines.append(f"  and {len(moved) - SHOWN_CHANGES} more")
    return "<br>".join(lines)


def _numbers(model: ModelRecord | Trial) -> str:
    found, loss = score(model), number(model.validation.get("loss"))
    first = [f"{found.name} {found}"] if found is not None else []
    first += [f"loss {loss:.4g}"] if loss is not None and found is not None and found.is_share else []
    return f"{', '.join(first)}<br>{quantity(model.macs, 'macs')} MACs, {quantity(model.params, 'params')} params"


def _ratios(z: Sequence[Sequence[float]]) -> Figure:
    """Colours of binary logarithms of ratios, as far to either side of 1 as any goes."""
    reach = max(1.0, *(abs(value) for row in z for value in row))
    ticks = range(-math.floor(reach), math.floor(reach) + 1)
    colours = (C.narrowest, C.narrower, C.same, C.wider, C.widest)
    return {
        "cmin": -reach,
        "cmax": reach,
        "colorscale": [[at / 4, colour] for at, colour in enumerate(colours)],
        "colorbar": {
            "title": {"text": "of the source", "side": "right"},
            "tickvals": list(ticks),
            "ticktext": [f"×{2**t}" if t >= 0 else f"×1/{2**-t}" for t in ticks],
            "thickness": 12,
            "outlinewidth": 0,
            "lenmode": "pixels",
            "len": 220,
            "y": 1,
            "yanchor": "top",
        },
    }


def _fates(run: Run) -> list[Figure]:
    """One trace a fate, in the strip above the heat map."""
    markers = {
        "accepted": {"symbol": "circle", "color": C.ink},
        "rejected": {"symbol": "circle-open", "color": C.faint},
        "failed": {"symbol": "x", "color": C.best},
        "running": {"symbol": "triangle-right-open", "color": C.front},
    }
    made = []
    for name, marker in markers.items():
        trials = [trial for trial in run.trials if fate(trial) == name]
        if trials:
            made.append(
                _scatter(name, [trial.number for trial in trials], [0.5] * len(trials))
                | {"yaxis": "y2", "marker": {"size": min(7, max(3, 700 // len(run.trials)))} | marker}
                | {"hovertext": [_describe(run, trial) for trial in trials], "hoverinfo": "text"}
            )
    return made


def _gap(labels: Sequence[str], sizes: Sequence[int], now: Sequence[int], *, wider: bool) -> Figure:
    """The lines between source and best that go one way, as one trace broken by nulls."""
    pairs = [(y, a, b) for y, a, b in zip(labels, sizes, now, strict=True) if (b > a if wider else b < a)]
    return _scatter("wider" if wider else "narrower", [], []) | {
        "mode": "lines",
        "x": [x for _, a, b in pairs for x in (a, b, None)],
        "y": [y for y, _, _ in pairs for _ in range(3)],
        "line": {"color": C.widest if wider else C.narrowest, "width": 2.5},
        "hoverinfo": "skip",
    }


def _labels(run: Run, limit: int | None = None) -> dict[str, str]:
    """Each width's id and name, escaped for plotly's texts, which understand some HTML and take $...$ for TeX."""
    return {width: escape(label(run, width, limit), quote=False).replace("$", "&#36;") for width in run.widths}


def _rows(run: Run) -> Figure:
    labels = list(_labels(run).values())
    return {
        "type": "category",
        "categoryorder": "array",  # not the order in which traces happen to name them
        "categoryarray": labels,
        "tickvals": labels,
        "ticktext": list(_labels(run, LABEL).values()),
        "tickfont": {"size": 12 if len(labels) <= 40 else 10.5, "color": C.ink},
        "automargin": True,
        "fixedrange": True,
        "gridcolor": C.rule,
        "zeroline": False,
    }


def _row_height(rows: int) -> int:
    return 26 if rows <= 12 else 21 if rows <= 40 else 16


def _trial_axis(run: Run) -> Figure:
    numbers = [trial.number for trial in run.trials] or [0]
    span = [min(numbers) - 0.6, max(*numbers, min(numbers) + MIN_COLUMNS - 1) + 0.6]
    few = {"dtick": 1, "tick0": 0} if len(numbers) <= 12 else {}
    return _axis("trial", tickformat="d", range=span) | few


def _axis(title: str, **settings: Any) -> Figure:
    return {
        "title": {"text": title, "standoff": 10},
        "gridcolor": C.rule,
        "linecolor": C.rule,
        "zeroline": False,
        "automargin": True,
    } | settings


def _scatter(name: str, x: Sequence[Any], y: Sequence[Any]) -> Figure:
    return {"type": "scatter", "mode": "markers", "name": name, "x": list(x), "y": list(y)}


def _line(*, color: str = C.muted, **place: Any) -> Figure:
    dash = "solid" if place.get("type") == "rect" else "dash"
    return {"type": "line", "line": {"color": color, "width": 1.5, "dash": dash}} | place


def _note(text: str, **place: Any) -> Figure:
    return {"text": text, "showarrow": False, "font": {"color": C.muted, "size": 12}} | place


def _layout(*, height: int, narrow: Mapping[str, Any] | None = None) -> Figure:
    return {
        "height": height,
        "margin": {"l": 8, "r": 16, "t": 44, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": C.muted},
        "showlegend": True,
        "hovermode": "closest",
        "hoverlabel": {
            "align": "left",
            "bgcolor": C.panel,
            "bordercolor": C.faint,
            "font": {"color": C.ink, "size": 12.5},
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1,
            "yanchor": "bottom",
            "font": {"color": C.ink},
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": C.faint, "activecolor": C.ink},
        "meta": {"narrow": dict(narrow or {})},
    }
