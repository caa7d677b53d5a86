"""Assemble a run's report: sentences, tables and figures in one page that stands alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path, PureWindowsPath
from typing import Any, TypeAlias

from conet_onnx.files import atomic_write
from conet_onnx.records.run import Run, read_run
from conet_onnx.report import plots
from conet_onnx.report.facts import (
    fate,
    finished,
    leader,
    leader_name,
    number,
    prices,
    score,
    score_in,
    score_name,
    shares,
)
from conet_onnx.report.page import PAGE, SCRIPT, STYLE, embedded
from conet_onnx.report.palette import DARK, LIGHT, swaps
from conet_onnx.report.sentences import asked, came_out, on_the_front, remarks
from conet_onnx.report.wording import duration, quantity, ratio

__all__ = ["render", "write_report"]

REPORT_FILE = "report.html"
ROWS = {"macs": "MACs", "params": "parameters", "bytes": "weights", "latency": "latency, median"}  # of the summary

Figures: TypeAlias = dict[str, plots.Figure]


def write_report(directory: str | os.PathLike[str], run: Run | None = None) -> Path:
    """Write DIR/report.html from the record of the search in DIR, finished or not; it appears whole or not at all. The
    `run` is that record, where it is known.

    Raises UsageError where DIR holds no search, DataError where its record is damaged, OutputError where DIR cannot
    be written to.
    """
    page = render(run or read_run(directory))
    target = Path(directory) / REPORT_FILE
    with atomic_write(target) as part:
        part.write_text(page, encoding="utf-8")
    return target


def render(run: Run) -> str:
    """The report as HTML; the same run gives the same text."""
    from plotly.offline import get_plotlyjs

    figures: Figures = {}
    body = [_head(run), _summary(run), _accuracy(run, figures), _widths(run, figures), _movement(run, figures)]
    body += [_progress(run, figures), _trials(run), _settings(run)]
    texts = {name: json.dumps(figure, allow_nan=False) for name, figure in figures.items()}
    return PAGE.substitute(
        title=f"Width search of {escape(_name(run.source.file))}",
        style=STYLE.substitute(light=LIGHT.css(), dark=DARK.css()),
        body="\n".join(filter(None, body)),
        figures=embedded({"figures": texts, "dark": swaps()}),
        plotly=get_plotlyjs().replace("</script", "<\\/script").replace("<!--", "<\\!--"),
        script=SCRIPT,
    )


def _name(file: str) -> str:
    return PureWindowsPath(file).name or file  # splits at both kinds of slash


def _head(run: Run) -> str:
    warnings = "".join(f'\n<p class="warning">{remark}</p>' for remark in remarks(run))
    note = ""
    if run.best is not None:
        used = "test data gave the final numbers only" if run.best.test is not None else "no test data was used"
        note = f'<p class="caption">Trials were compared on validation data alone; {used}.</p>'
    return f"""<p class="eyebrow">Width search</p>
<h1>{escape(_name(run.source.file))}</h1>
<p class="lead"><strong>Asked:</strong> {asked(run)}</p>
<p class="lead"><strong>{"So far" if run.best is None else "Came out"}:</strong> {came_out(run)}</p>{warnings}
{note}"""


def _summary(run: Run) -> str:
    ahead = leader(run)
    rows = []
    for split in ("test", "validation"):
        source, best = (score_in(getattr(m, split, None)) for m in (run.source, ahead))
        if source is not None or best is not None:
            change = best.against(source) if source is not None and best is not None else ""
            rows.append((f"{split} {score_name(run)}", _data(source, str), _data(best, str), change, ""))
    before, after = (prices(model) if model else {} for model in (run.source, ahead))
    parts = shares(run, ahead) if ahead else {}
    for kind, title in ROWS.items():
        if kind in before or kind in after:
            show = partial(quantity, kind=kind)
            change = ratio(parts[kind]) if kind in parts else ""
            if kind == "latency" and run.best and {"low", "high"} <= run.latency.keys():
                change += f" ({run.latency['low']:.2f}–{run.latency['high']:.2f})"
            ceiling = f"≤ {show(run.budget[kind])}" if kind in run.budget else ""
            rows.append((title, _data(before.get(kind), show), _data(after.get(kind), show), change, ceiling))
    titles = ("", "source", leader_name(run), "change", "budget")
    return f'<div class="summary">{_table(titles, rows, strong=2)}</div>'


def _accuracy(run: Run, figures: Figures) -> str:
    figures["accuracy"] = plots.accuracy_against_macs(run)
    caption = f"{on_the_front(run)} Hover for a trial's widths." if finished(run) else "No trial has finished yet."
    return _section("accuracy", f"{score_name(run).capitalize()} against MACs", caption)


def _widths(run: Run, figures: Figures) -> str:
    ahead = leader(run)
    if not run.widths:
        return _section("", "Widths of source and best", "This network has no width that can change.")
    if ahead is None:
        caption = "The widths of the source, in channels; no trial within the budget has finished yet."
    else:
        caption = (
            f"From the source (ring) to the {leader_name(run)} (dot), in channels. Equal lengths are equal ratios; "
            "green is narrower, brown is wider."
        )
    figures["widths"] = plots.side_by_side(run)
    return _section("widths", "Widths of source and best", caption)


def _movement(run: Run, figures: Figures) -> str:
    title = "How each width moved"
    if not run.trials or not run.widths:
        return _section("", title, "There is no trial to show yet.")
    figures["movement"] = plots.movement(run)
    frame = " The frame marks the best." if run.best is not None and run.best.trial is not None else ""
    caption = (
        "A column is a trial, a row a width, the colour its ratio to the source's. The strip above says what became "
        f"of the trial.{frame}"
    )
    return _section("movement", title, caption)


def _progress(run: Run, figures: Figures) -> str:
    title = "The course of the search"
    if not finished(run):
        return _section("", title, "No trial has finished yet.")
    figures["progress"] = plots.progress(run)
    return _section("progress", title, f"Validation {score_name(run)}, and the objective that the searcher minimises.")


def _section(figure: str, title: str, caption: str) -> str:
    if not figure:
        return f'<section>\n<h2>{title}</h2>\n<p class="none">{caption}</p>\n</section>'
    return f"""<section>
<h2>{title}</h2>
<p class="caption">{caption}</p>
<figure><div id="{figure}" role="img" aria-label="{title}"></div></figure>
<noscript><p class="none">The plots need JavaScript; the tables do not.</p></noscript>
</section>"""


def _trials(run: Run) -> str:
    if not run.trials:
        return ""
    rows = [
        (
            str(trial.number),
            fate(trial),
            "source" if trial.parent is None else str(trial.parent),
            escape(trial.reason),
            _data(score(trial), str),
            _data(number(trial.validation.get("loss")), "{:.4f}".format),
            _data(trial.macs, partial(quantity, kind="macs")),
            _data(trial.params, partial(quantity, kind="params")),
            _data(number(trial.objective), "{:.4g}".format),
            _data(trial.seconds + trial.evaluation_seconds or None, duration),
        )
        for trial in run.trials
    ]
    titles = ("trial", "state", "from", "what changed", score_name(run), "loss", "MACs", "params", "objective", "time")
    return f"""<section>
<details>
<summary>All trials</summary>
<div class="scroll">{_table(titles, rows, text=3)}</div>
</details>
</section>"""


def _settings(run: Run) -> str:
    rows = [("source file", f"<code>{escape(run.source.file)}</code>")]
    if run.best is not None:
        rows.append(("best file", f"<code>{escape(_within(run.best.file, run.directory))}</code>"))
    rows += [(escape(key), _value(value)) for key, value in run.settings.items()]
    rows += [(f"time, {escape(kind)}", escape(duration(seconds))) for kind, seconds in run.seconds.items()]
    return f'<section class="settings">\n<h2>Settings</h2>\n{_table((), rows)}\n</section>'


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f"<code>{escape(text)}</code>"


def _within(file: str, folder: Path) -> str:
    path = Path(file)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else file


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, strong: int = -1, text: int = -1) -> str:
    """A table of cells that are HTML already; the first of a row is its heading."""
    styles = {strong: ' class="strong"', text: ' class="text"'}
    head = "".join(
        f'<th scope="col"{styles[text] if at == text else ""}>{title}</th>' for at, title in enumerate(titles)
    )
    lines = ["<table>", f"<thead><tr>{head}</tr></thead>" if titles else "", "<tbody>"]
    for first, *rest in rows:
        cells = "".join(f"<td{styles.get(at, '')}>{cell}</td>" for at, cell in enumerate(rest, 1))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return "\n".join([*filter(None, lines), "</tbody>", "</table>"])


def _data(value: Any, show: Callable[[Any], str]) -> str:
    """A number as it reads, with the exact one in the markup and in the tooltip; nothing for None."""
    if value is None:
        return ""
    exact = str(int(as_float)) if (as_float := float(value)).is_integer() else repr(as_float)
    return f'<data value="{exact}" title="{exact}">{escape(show(value))}</data>'
