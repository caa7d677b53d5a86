"""The zoo's records as docs/coverage.md."""

from __future__ import annotations

import platform
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tools.zoo_models import Entry

__all__ = ["write_table"]

PACKAGES = ("onnx", "onnxruntime-gpu", "onnxruntime", "torch", "torchvision", "timm", "transformers")
FEW = 0.9  # share of the weights below which the table says why
Record = dict[str, Any]

HEAD = """# Coverage

Made by `python tools/zoo.py --table docs/coverage.md`; {versions}; records of {dates}.

Each model is built with random weights and a signal that is alive, and then: analysed; every width halved (by l2
scores) and the file verified by `conet_onnx.verify`; every exact width halved, cut to a random size and grown by a
quarter, and every width doubled, each time comparing **every tensor** with that of the masked source (with the
source, where nothing was dropped; where two activations share a width's copies, what lies before their product may be
divided), and passing the checker, strict shape inference and onnxruntime. Models above 400 MB are analysed and halved
only. A mixed width is one that statistics are taken across: it is halved with the others, and grows by doubling. What
can only shrink is left alone where the others grow.

- *widths*: how many, and how many of them are exact;
- *params*, *MACs*: share in weights with at least one resizable axis;
- *left*: parameters left when every width is halved;
- *worst*: the largest difference of any tensor in any comparison, relative to the tensor's largest element. 2e-5 is
  allowed, or three times what moving each weight to a neighbouring float does to that tensor (the most of three draws,
  in the source or, where that is too little, in the masked source); what is chosen by numbers nearer to each other than
  that (a detector's candidates) is left out then, with what follows from it. What fails even so is decided in double
  precision by onnx's reference evaluator, to 1e-9 and with shares that round no weight;
- *chaotic*: rounding alone moves some tensor of these random weights by so much of its largest element, and behind it a
  comparison says little;
- *shapes*, *analysis*, *resize*: seconds, beside other work on two cores, by the code of the record's day (the twenty
  slowest, measured alone: tools/results/bench_exports.md); *peak*: of loading, analysis and resizing to
  a file, above the start, in multiples of the model's size (small models say little);
- *torch*: the largest difference of an output of the lowered model from onnxruntime's (1e-4 is allowed, or three times
  what rounding does). Where it is more, every value is computed from onnxruntime's values alone: *alone* is the largest
  difference then (1e-4 is allowed), which tells rounding that a model amplifies from a node that is wrong.
"""


def write_table(path: Path, found: Sequence[tuple[Entry, Record, Record]]) -> None:
    """Write the whole page of entries with what is recorded of them, and of their training; those without a record are
    listed as not tried."""
    records = [(entry, {**record, "training": training} if record else {}) for entry, record, training in found]
    tried = [(entry, record) for entry, record in records if record]
    made = [record for _, record in tried if "widths" in record]
    dates = sorted({record["date"] for _, record in tried})
    versions = ", ".join(f"{name} {v}" for name in PACKAGES if (v := _version(name)))
    page = [
        HEAD.format(
            versions=f"Python {platform.python_version()}, {versions}", dates=" to ".join({dates[0], dates[-1]})
        )
    ]
    page += ["## In short", "", *_summary(records), "", *_medians(made)]
    page += ["", "## Models", ""]
    for family in dict.fromkeys(entry.family for entry, _ in tried):
        page += [f"### {family}", "", *_models([r for e, r in tried if e.family == family and "widths" in r]), ""]
    page += ["## Where less than 90% of the parameters can be resized, and why", "", *_explained(made), ""]
    page += ["## Where training is refused, or part of it", "", *_refused(tried), ""]
    page += [
        "## Where the torch backend is further from onnxruntime than rounding moves it",
        "",
        *_amplified(tried),
        "",
    ]
    page += ["## Not built", "", *_not_built(tried), ""]
    if missing := [entry for entry, record in records if not record]:
        names = ", ".join(f"{entry.name} ({entry.family}, {entry.exporter})" for entry in missing)
        page += ["## Not tried yet", "", names, ""]
    path.write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")


def _summary(records: Sequence[tuple[Entry, Record]]) -> Iterable[str]:
    yield "| family | models | passed | failed | not built | not tried |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for family in dict.fromkeys(entry.family for entry, _ in records):
        verdicts = Counter(r.get("verdict", "not tried") for e, r in records if e.family == family)
        cells = (verdicts[key] for key in ("passed", "failed", "not built", "not tried"))
        yield f"| {family} | {verdicts.total()} | {' | '.join(map(str, cells))} |"


def _medians(made: Sequence[Record]) -> Iterable[str]:
    for kind, what in (("cnn", "convolutional and recurrent networks"), ("transformer", "transformers")):
        found = [r for r in made if r["kind"] == kind]
        if found:
            middle = [statistics.median(r[key] for r in found) for key in ("params", "macs", "half")]
            yield (
                f"- {len(found)} {what}: median share of resizable parameters {middle[0]:.1%}, of MACs {middle[1]:.1%};"
                f" {middle[2]:.1%} of the parameters left at one half."
            )
    slow = [r for r in made if r["seconds"]["analysis"] > 0.1]
    late = [r for r in made if r["seconds"]["shapes"] + r["seconds"]["analysis"] > 1]
    yield (
        f"- Beside other work, analysis took more than 0.1 s on {len(slow)} of {len(made)}, with shapes more than 1 s "
        f"on {len(late)}; tools/results/bench_exports.md has what the slowest take when they are measured alone."
    )


def _models(made: Sequence[Record]) -> Iterable[str]:
    if not made:
        yield "None was built."
        return
    columns = (
        "model, exporter, opset, nodes, params (M), widths, params, MACs, left, worst, shapes, analysis, resize, peak, "
        "torch"
    )
    yield f"| {' | '.join(columns.split(', '))} | verdict |"
    yield f"|{' --- |' * 16}"
    for r in made:
        seconds = r["seconds"]
        worst = f"{r['worst']:.0e}" if r.get("compared") else "-"
        times = (f"{seconds[key]:.2f}" if key in seconds else "-" for key in ("shapes", "analysis", "resize"))
        cells = (
            r["name"],
            r["exporter"],
            r["opset"],
            r["nodes"],
            f"{r['millions']:.3g}",
            f"{r['widths']} ({r['exact']})",
            f"{r['params']:.1%}",
            f"{r['macs']:.1%}",
            f"{r['half']:.1%}" if "half" in r else "-",
            worst,
            *times,
            f"{r['peak']:.2f}" if "peak" in r else "-",
            _trained(r["training"]),
            r["verdict"] + (f": {_plain(r['message'])}" if r.get("message") else ""),
        )
        yield f"| {' | '.join(map(str, cells))} |"


def _trained(training: Record) -> str:
    if not training or training["verdict"] == "not built":
        return "-"
    if training["verdict"] != "passed":
        return str(training["verdict"])
    alone = f", alone {training['alone']['worst']:.0e}" if "alone" in training else ""
    return f"{training['worst']:.0e}{alone}"


def _refused(tried: Sequence[tuple[Entry, Record]]) -> Iterable[str]:
    made = [(e, r["training"]) for e, r in tried if r["training"].get("verdict") in ("refused", "failed")]
    parts = [(e, r["training"]) for e, r in tried if r["training"].get("untrained")]
    for entry, training in made:
        yield f"- {entry.name} ({entry.family}, {entry.exporter}), {training['verdict']}: {_plain(training['message'])}"
    for entry, training in parts:
        outputs = "; ".join(f"output {name}: {_plain(why)}" for name, why in training["untrained"].items())
        yield f"- {entry.name} ({entry.family}, {entry.exporter}): {outputs}"
    if not made and not parts:
        yield "Nowhere."


def _amplified(tried: Sequence[tuple[Entry, Record]]) -> Iterable[str]:
    found = [(e, r["training"]) for e, r in tried if r["training"].get("verdict") == "passed"]
    found = [(e, training) for e, training in found if "alone" in training]
    for e, training in found:
        yield f"- {e.name} ({e.family}, {e.exporter}), by {training['worst']:.0e}: {_plain(training['message'])}"
    if not found:
        yield "Nowhere."


def _explained(made: Sequence[Record]) -> Iterable[str]:
    few = [r for r in made if r["params"] < FEW]
    for r in few:
        reasons = "; ".join(f"{share:.1%} {kind} (`{_plain(example)}`)" for kind, example, share in r["frozen"])
        yield f"- **{r['name']}** ({r['family']}, {r['exporter']}), {r['params']:.1%}: {reasons}"
    if not few:
        yield "There is none."


def _not_built(tried: Sequence[tuple[Entry, Record]]) -> Iterable[str]:
    found = [(e, r) for e, r in tried if r["verdict"] == "not built"]
    for entry, record in found:
        yield f"- {entry.name} ({entry.family}, {entry.exporter}): {_plain(record['message'])}"
    if not found:
        yield "All were built."


def _plain(text: str) -> str:
    """Without what Markdown or a table would take for its own, without colours, and without paths of a machine."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = " ".join(
        part if not part.startswith("/") or part.count("/") < 3 else part.rsplit("/", 1)[-1] for part in text.split()
    )
    return text.replace("|", "/").replace("`", "'")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
