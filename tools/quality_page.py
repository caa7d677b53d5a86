"""The records of bench_quality as a page: settings and machine as they are noted, a table for each source and setting,
and the goals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

__all__ = ["FORMAT", "METHODS", "ORDER", "goals", "page", "table"]

FORMAT = "conet-onnx-quality/1"
Record: TypeAlias = Mapping[str, Any]
Number: TypeAlias = Callable[[Record], float]

METHODS = {
    "ours": "`search` by default: widths that this machine runs fast, `--algorithm auto`",
    "ours free": "ours with `--multiple none`: other widths too",
    "reallocate": "`search --algorithm reallocate`",
    "anneal": "`search --algorithm anneal`",
    "ours one-shot": "the knapsack of `resize --budget` by `obd` and least squares, then training",
    "ours one-shot aligned": "ours one-shot with `--multiple auto`",
    "conet-sa": "`search --algorithm conet-sa`",
    "network-adjustment": "`search --algorithm network-adjustment`",
    "random": "`search --algorithm random`",
    "uniform search": "`search --algorithm compound`",
    "uniform": "every width times the same, sliced by l2 norms, then training",
    "uniform aligned": "uniform, rounded to multiples that this machine runs fast",
    "tp-global": "Torch-Pruning, l2 magnitude of filters, all layers together, then training",
    "tp-local": "Torch-Pruning, l2 magnitude of filters, each layer alone, then training",
    "tp-group": "Torch-Pruning, group norms, all layers together, then training",
    "source": "the source, trained for as much longer, on labels and its own former scores as all others",
    "source labels": "the source, trained for as much longer on labels alone",
}
ORDER = tuple(METHODS)
OWN = ("ours", "ours free", "reallocate", "anneal", "ours one-shot", "ours one-shot aligned")
ABOVE_UNIFORM = {"macs=0.5": 1.0, "macs=0.3": 2.0}  # points of test accuracy
HALF, FASTER = "macs=0.5", 1.6  # times the source's images per second at half the MACs
QUIET = 0.1  # processors that others may keep busy where seconds are to say something
UNTRAINED = 3.0  # points below the source, at most, one-shot at 0.7 of the MACs


def page(records: Sequence[Record], notes: Sequence[str] = ()) -> str:
    """Markdown, with notes on how it was measured."""
    return "\n".join(
        [
            "# Models within a budget, by method",
            "",
            "`tools/bench_quality.py table` writes this page from the records in `tools/results/quality`.",
            "",
            *(line for note in notes for line in (note, "")),
            *_methods(records),
            *(line for name, own in _alike(records).items() for line in _section(name, own)),
            "## Goals",
            "",
            "Points are of test accuracy, means over the seeds that both sides have.",
            "",
            *goals(records),
            "",
        ]
    )


def _methods(records: Sequence[Record]) -> Iterator[str]:
    yield "| method | is |"
    yield "|---|---|"
    there = {record["method"]: record for record in records}
    for name in ORDER:
        if name in there:
            algorithm = there[name].get("algorithm")
            known = f" ({algorithm})" if name == "ours" and algorithm else ""
            yield f"| {name} | {METHODS[name]}{known} |"
    yield ""


def _section(name: str, records: Sequence[Record]) -> Iterator[str]:
    own = records[0]["setting"]
    trials, each, last = own["trials"], own["epochs_per_trial"], own["epochs"]
    training = ", ".join(
        f"{key} {' '.join(value) if isinstance(value, list | tuple) else value}"
        for key, value in own["training"].items()
    )
    yield f"## {name}"
    yield ""
    yield f"- Data: `{own['data']}`, {_samples(own)} of its training data."
    yield (
        f"- Training: searches {trials} trials of {each} and {last} on the best, in epochs; all others "
        f"{trials * each + last} at once, of which the learning rate stays for {trials * each}, as in trials of "
        f"`reallocate`, before it falls along a cosine. {f'For all: {training}.' if training else ''}".rstrip()
    )
    threads = f"{own['threads']} thread{'' if own['threads'] == 1 else 's'}"
    yield f"- Measured on {threads}, in turns with the source, {own['latency']:g} s at most each."
    yield f"- Seconds are those of cells beside which others kept less than {QUIET} of a processor busy."
    for machine, count in _counted(tuple(record["machine"].items()) for record in records):
        yield f"- Machine ({count} of {len(records)} records): {'; '.join(f'{k} {v}' for k, v in machine)}."
    yield f"- Source: `{own['source']}`, sha256 `{own['sha256']}`."
    yield ""
    yield from table(records)
    yield ""


def table(records: Sequence[Record]) -> Iterator[str]:
    """A row a budget and method: means over seeds with the sample's standard deviation. MACs, parameters, latency (p50)
    and throughput are times the source's; `untrained` is the accuracy of what is made at once before it is trained;
    `epochs` were trained in all, `training` seconds took that, `other` the rest of finding and making the model."""
    batches = sorted({record["throughput"]["batch"] for record in records})
    yield (
        "| budget | method | seeds | test accuracy | untrained | validation loss | MACs | params | p50 | "
        f"throughput, batch {' or '.join(map(str, batches))} | epochs | training s | other s |"
    )
    yield "|" + "---|" * 13
    source = [record["source"] for record in records]
    first = source[0]
    yield (
        f"| | source as it is | | {100 * first['test']['top1']:.2f} % | | {first['validation']['loss']:.4f} | "
        f"{first['macs'] / 1e6:.2f} M | {first['params'] / 1e3:.1f} k | "
        f"{np.median([one['latency_ms'] for one in source]):.3f} ms | "
        f"{np.median([one['images_per_second'] for one in source]):.0f} images/s | | | |"
    )
    groups = _by(records, lambda record: (record["budget"], record["method"]))
    for (budget, method), own in sorted(groups.items(), key=lambda item: _place(*item[0])):
        quiet = [one for one in own if (1.0 if one.get("others") is None else one["others"]) < QUIET]
        cells = (
            _spread(own, _accuracy, "{:.2f}", " %"),
            _spread([one for one in own if "test" in one.get("untrained", {})], _untrained, "{:.1f}", " %"),
            _spread(own, lambda r: r["model"]["validation"]["loss"], "{:.4f}"),
            "×" + _spread(own, lambda r: r["model"]["macs"] / r["source"]["macs"], "{:.3f}"),
            "×" + _spread(own, lambda r: r["model"]["params"] / r["source"]["params"], "{:.2f}"),
            "×" + _spread(own, lambda r: r["latency"]["p50"], "{:.3f}"),
            "×" + _spread(own, lambda r: r["throughput"]["p50"], "{:.2f}"),
            _spread(own, lambda r: r["trained"]["epochs"], "{:g}"),
            _spread(quiet, lambda r: r["seconds"]["training"], "{:.0f}"),
            _spread(quiet, lambda r: r["seconds"]["total"] - r["seconds"]["training"], "{:.0f}"),
        )
        yield f"| {budget} | {method} | {len(own)} | " + " | ".join(cells) + " |"


def goals(records: Sequence[Record]) -> Iterator[str]:
    """A line for each source and setting, each budget that it has records of, and each goal that speaks of that."""
    for source, own in _alike(records).items():
        cells = {(budget, method): some for (budget, method), some in _by(own, _cell).items()}
        for budget in sorted({budget for budget, _ in cells}, key=_amount):
            yield from (f"- {source}, {budget}: {line}" for line in _of_budget(budget, cells))


def _of_budget(budget: str, cells: Mapping[tuple[str, str], Sequence[Record]]) -> Iterator[str]:
    """Ours against the best of what is not ours (the table has more of ours), and what that budget alone asks."""
    others = [method for own, method in cells if own == budget and method not in OWN]
    free = (budget, "ours free") in cells
    ours = [m for m, there in (("ours", (budget, "ours") in cells or not free), ("ours free", free)) if there]
    for method in ours:
        nearest, margin = _least({other: _margin(cells, budget, method, other) for other in others})
        yield _said(f"{method} at or above the best of the others{nearest}", margin, 0.0, "points")
        if budget in ABOVE_UNIFORM:
            points = ABOVE_UNIFORM[budget]
            what = f"{method} at least {points:.1f} points above uniform"
            yield _said(what, _margin(cells, budget, method, "uniform"), points, "points")
    if budget.split()[0] == HALF:
        for method in ours:
            found = cells.get((budget, method))
            faster = None if found is None else float(np.mean([r["throughput"]["p50"] for r in found]))
            yield _said(f"{method} has {FASTER} times the source's throughput", faster, FASTER, "times")
    if budget == "macs=1.0":
        for method in ours:
            nearest, margin = _least({m: _margin(cells, budget, method, m) for m in ("source", "source labels")})
            what = f"{method} above the source trained for as much longer{nearest}"
            yield _said(what, margin, 0.0, "points", above=True)
    if budget == "macs=0.7":
        shot = [r for r in cells.get((budget, "ours one-shot"), ()) if "test" in r.get("untrained", {})]
        lost = [_untrained(r) - 100 * r["source"]["test"]["top1"] for r in shot]
        what = f"ours one-shot without training at most {UNTRAINED:.1f} points below the source"
        yield _said(what, float(np.mean(lost)) if lost else None, -UNTRAINED, "points")


def _least(margins: Mapping[str, float | None]) -> tuple[str, float | None]:
    """The least of what is known, and in words whose it is."""
    known = {method: margin for method, margin in margins.items() if margin is not None}
    if not known:
        return "", None
    nearest = min(known, key=lambda m: known[m])
    return f" ({nearest})", known[nearest]


def _margin(cells: Mapping[tuple[str, str], Sequence[Record]], budget: str, ours: str, other: str) -> float | None:
    """Points by which one is above another, over the seeds that both have; None where there are none."""
    sides = [{record["seed"]: _accuracy(record) for record in cells.get((budget, m), ())} for m in (ours, other)]
    seeds = sides[0].keys() & sides[1].keys()
    return float(np.mean([sides[0][seed] - sides[1][seed] for seed in seeds])) if seeds else None


def _said(what: str, found: float | None, asked: float, unit: str, *, above: bool = False) -> str:
    if found is None:
        return f"{what}: not measured."
    shown = f"{found:+.2f} points" if unit == "points" else f"{found:.2f} {unit}"
    if found > asked or (found == asked and not above):
        return f"{what}: {shown}: holds."
    return f"{what}: {shown}: falls short{f' by {asked - found:.2f}' if found < asked else ''}."


def _spread(records: Sequence[Record], of: Number, text: str, unit: str = "") -> str:
    values = [of(record) for record in records]
    if not values:
        return "–"
    more = f" ± {text.format(np.std(values, ddof=1))}" if len(values) > 1 else ""
    return text.format(np.mean(values)) + more + unit


def _accuracy(record: Record) -> float:
    return 100 * float(record["model"]["test"]["top1"])


def _untrained(record: Record) -> float:
    return 100 * float(record["untrained"]["test"]["top1"])


def _alike(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of one source and setting, by a name for them: a table compares like with like."""
    found = {}
    for source, own in _by(records, lambda record: Path(record["setting"]["source"]).stem).items():
        groups = _by(own, lambda record: json.dumps(record["setting"], sort_keys=True))
        names = [source if len(groups) == 1 else f"{source}, {_length(some[0]['setting'])}" for some in groups.values()]
        for name, some in zip(names, groups.values(), strict=True):
            found[name if names.count(name) == 1 else f"{name} ({len(found) + 1})"] = some
    return found


def _length(setting: Mapping[str, Any]) -> str:
    return f"{_samples(setting)}, {setting['trials'] * setting['epochs_per_trial'] + setting['epochs']} epochs"


def _samples(setting: Mapping[str, Any]) -> str:
    return f"{setting['samples']:,} samples" if setting["samples"] else "all"


def _cell(record: Record) -> tuple[str, str]:
    return record["budget"], record["method"]


def _place(budget: str, method: str) -> tuple[Any, ...]:
    return (*_amount(budget), ORDER.index(method))


def _amount(budget: str) -> tuple[str, float, str]:
    """Kinds together, the largest first."""
    kind, _, value = budget.split()[0].partition("=")
    try:
        return kind, -float(value), budget
    except ValueError:
        return kind, 0.0, budget


def _by(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    found: dict[Any, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


def _counted(items: Iterable[Any]) -> list[tuple[Any, int]]:
    counts: dict[Any, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return list(counts.items())
