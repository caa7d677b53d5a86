"""Predicted against measured latency of random widths of three networks, model by model, resumable.

    .venv/bin/python tools/bench_latency.py RUN --model resnet18    # profiles, then measures; goes on where it stopped
    .venv/bin/python tools/bench_latency.py RUN --table tools/results/bench_latency.md

Each width is drawn for itself, log-uniform from a quarter of the source's to all of it: one half of the sets to
multiples of 16, the other to any number. Each is measured in turns with the source; the ratio of the medians times the
source's median of the profile is what a prediction is held against.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from conet_onnx.analysis import Analysis, analyze  # noqa: E402 - found through the line above
from conet_onnx.latency import compare  # noqa: E402
from conet_onnx.latency.operators import resized  # noqa: E402
from conet_onnx.latency.prediction import Accuracy, Predictor, known_operators, predictor  # noqa: E402
from conet_onnx.latency.profiling import Profile  # noqa: E402
from conet_onnx.latency.table import Table, identity  # noqa: E402
from conet_onnx.loading import load  # noqa: E402
from tools.measuring import facts  # noqa: E402
from tools.torchvision_schemas import define_missing_schemas  # noqa: E402

MODELS = ("resnet18", "mobilenet_v2", "densenet121")
SETS = 30  # of widths, of each model
SMALLEST = 0.25
STEP = 16
SECONDS = 1.5  # for each set, at most
SEED = 17
GOALS = {"median": 0.08, "spearman": 0.95}


def main() -> int:
    """Parse, measure what is missing, print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="A folder for exports, tables and records.")
    parser.add_argument("--model", action="append", choices=MODELS, default=[], help="Measure this one (repeatable).")
    parser.add_argument("--sets", type=int, default=SETS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=float("inf"), help="Seconds after which no set is begun.")
    parser.add_argument("--table", type=Path, help="Write the table of what is measured so far.")
    parser.add_argument("--note", action="append", default=[], help="A line about how it was measured.")
    asked = parser.parse_args()
    asked.run.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + asked.limit
    for name in asked.model:
        _measure(asked.run, name, asked.sets, asked.threads, until)
    text = _report(asked.run, asked.note)
    if asked.table:
        asked.table.write_text(text)
    print(text)
    return 0


def _file(run: Path, name: str) -> Path:
    """The export, at 224 by 224, written when first asked for."""
    path = run / f"{name}.onnx"
    if not path.exists():
        import torch

        define_missing_schemas()
        import torchvision

        torch.manual_seed(0)
        module = getattr(torchvision.models, name)(weights=None).eval()
        torch.onnx.export(module, (torch.zeros(1, 3, 224, 224),), str(path), input_names=["x"], dynamo=False)
    return path


def _measure(run: Path, name: str, sets: int, threads: int, until: float) -> None:
    analysis = analyze(load(_file(run, name)))
    path = run / f"{name}.table.json"
    if not path.exists():
        begun = time.monotonic()
        Profile.of(analysis, provider="cpu", threads=threads).run().save(path)
        print(f"{name}: profiled in {time.monotonic() - begun:.0f} s", flush=True)
    records = run / f"{name}.jsonl"
    done = len(_records(records))
    for k in range(done, sets):
        if time.monotonic() > until:
            print(f"{name}: {k} of {sets} sets; call again to go on", flush=True)
            return
        widths = _widths(analysis, k)
        found = compare(analysis.graph, resized(analysis, widths), provider="cpu", threads=threads, seconds=SECONDS)
        row = analysis.costs.row(widths).tolist()
        ratio = found.ratio
        record = {
            "row": row,
            "any": bool(k % 2),
            "ratio": [ratio.p50, ratio.low, ratio.high],
            "source_ms": found.a.p50_ms,
            "macs": analysis.costs.price(widths).macs,
        }
        with open(records, "a") as stream:
            stream.write(json.dumps(record) + "\n")


def _widths(analysis: Analysis, k: int) -> dict[str, int]:
    """The k-th set: even ones of multiples of STEP, odd ones of any numbers."""
    rng = np.random.default_rng([SEED, k])
    made = {}
    for name, width in analysis.widths.items():
        size = width.size * SMALLEST ** rng.uniform()
        step = STEP if k % 2 == 0 and width.size >= STEP else 1
        made[name] = min(max(round(size / step), 1) * step, width.size)
    return made


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _report(run: Path, notes: Iterable[str]) -> str:
    lines: list[str] = []
    for name in MODELS:
        records, path = _records(run / f"{name}.jsonl"), run / f"{name}.table.json"
        if len(records) < 3 or not path.exists():
            continue
        analysis, table = analyze(load(_file(run, name))), Table.read(path)
        operators = known_operators(analysis, table)
        if operators is None:
            raise SystemExit(f"{path} is of another {name}: remove it.")
        calibrated = predictor(analysis, operators, table)
        anchors = table.models[identity(analysis.graph)]
        for what, some in _cases(records).items():
            if len(some) > 2:
                lines.append(_line(name, what, some, calibrated, anchors.seconds))
        moved = [record["source_ms"] / 1e3 / anchors.seconds for record in records]
        widths = [(one["ratio"][2] - one["ratio"][1]) / 2 / one["ratio"][0] for one in records]
        notes = [
            *notes,
            f"{name}: the ratios' 95% intervals are {np.median(widths):.1%} wide to either side (median).",
            f"{name}: source {anchors.seconds * 1e3:.2f} ms in the profile, {min(moved):.2f} to {max(moved):.2f} times "
            f"that beside the sets; drift while it was profiled {anchors.drift:.2f}.",
        ]
        notes = [
            *notes,
            f"onnxruntime {table.host.onnxruntime}, {table.host.threads} thread(s), {table.host.provider}.",
        ]
    return "\n".join(
        [
            "# Predicted against measured latency",
            "",
            "Made by `tools/bench_latency.py`, which says how widths are drawn. Error: |predicted / measured - 1|.",
            f"Goals: median under {GOALS['median']:.0%}, Spearman's at least {GOALS['spearman']}, over all",
            "sets of a model. `bare` is the sum of the operators' times without calibration (median, Spearman), `MACs`",
            "is Spearman of MACs against time.",
            "",
            *(f"- {key}: {value}" for key, value in facts(("onnx", "numpy")).items()),
            *(f"- {note}" for note in dict.fromkeys(notes)),
            "",
            "| model | widths | sets | median error | largest | Spearman | bare | MACs | goals |",
            "|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def _cases(records: list[dict[str, Any]]) -> Mapping[str, list[dict[str, Any]]]:
    return {
        "all": records,
        f"multiples of {STEP}": [one for one in records if not one["any"]],
        "any": [one for one in records if one["any"]],
    }


def _line(name: str, what: str, records: list[dict[str, Any]], calibrated: Predictor, source: float) -> str:
    rows = np.array([one["row"] for one in records])
    measured = source * np.array([one["ratio"][0] for one in records])
    off = Accuracy.of(calibrated.predict_many(rows), measured)
    plain = Accuracy.of(calibrated.plain.predict_many(rows), measured)
    macs = Accuracy.of(np.array([float(one["macs"]) for one in records]), measured)
    holds = off.median < GOALS["median"] and off.spearman >= GOALS["spearman"]
    goals = ("yes" if holds else "NO") if what == "all" else ""
    return (
        f"| {name} | {what} | {off.models} | {off.median:.1%} | {off.largest:.1%} | {off.spearman:.3f} | "
        f"{plain.median:.1%}, {plain.spearman:.3f} | {macs.spearman:.3f} | {goals} |"
    )


if __name__ == "__main__":
    sys.exit(main())
