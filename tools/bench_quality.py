"""How good models within a budget become, by method, under equal training: a JSON record a cell, and a table of them.

python tools/bench_quality.py run --source resnet20.onnx --data DIR --training "augment=flip,crop precision=bf16-mixed"
python tools/bench_quality.py run --source models/digits_resnet8.onnx --data digits --seeds 4 --trials 8 --epochs 6
python tools/bench_quality.py table --out docs/results.md
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # models/ is no part of the package

import conet_onnx as co  # noqa: E402 - found through the line above
from conet_onnx.criteria import channel_scores  # noqa: E402
from conet_onnx.data import DataSet, fed, load_data  # noqa: E402
from conet_onnx.evaluation import evaluate  # noqa: E402
from conet_onnx.files import atomic_write  # noqa: E402
from conet_onnx.finetuning import choose_inputs, finetune  # noqa: E402
from conet_onnx.graph import Graph  # noqa: E402
from conet_onnx.latency import compare  # noqa: E402
from conet_onnx.planning import allocated, scaled  # noqa: E402
from conet_onnx.searching import search  # noqa: E402
from conet_onnx.transfer import SAMPLES, calibration_batches, drawn, transferred  # noqa: E402

RECORDS = ROOT / "tools" / "results" / "quality"
SEARCHES = {  # method: the algorithm's name, and options of its own
    "ours": "reallocate",
    "anneal": "anneal",
    "conet-sa": "conet-sa",
    "network-adjustment": "network-adjustment",
    "uniform search": "compound",
    "random": "random",
}
AT_ONCE = ("ours one-shot", "uniform")
PRUNING = {"tp-global": (True, "magnitude"), "tp-local": (False, "magnitude"), "tp-group": (True, "group")}
METHODS = (*SEARCHES, *AT_ONCE, *PRUNING)
STEPS = 40  # bisections of Torch-Pruning's ratio


@dataclass(frozen=True, slots=True)
class Setting:
    """What all cells of a table have in common. A search's trials and its last training take trials · epochs_per_trial
    + epochs; all others are trained for as many at once."""

    source: str
    data: str
    trials: int
    epochs_per_trial: int
    epochs: int
    samples: int | None  # of the training data; None: all
    threads: int
    latency: float  # seconds of measuring it
    training: Mapping[str, Any]  # of torch_backend.settings, for every method alike

    @property
    def total(self) -> int:
        """Epochs of training of each cell."""
        return self.trials * self.epochs_per_trial + self.epochs


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the table."""

    method: str
    budget: str
    seed: int

    def file(self, setting: Setting, folder: Path) -> Path:
        """Where its record is."""
        parts = (Path(setting.source).stem, self.method, self.budget, f"seed{self.seed}")
        return folder / ("-".join(part.replace(" ", "_") for part in parts) + ".json")


def run(cell: Cell, setting: Setting, dataset: DataSet, work: Path) -> dict[str, Any]:
    """Its record: numbers of the source and of the model, seconds of searching and training, and the settings."""
    source = co.load(setting.source)
    begun = time.perf_counter()
    if cell.method in SEARCHES:
        model, seconds = _searched(cell, setting, source, dataset, work)
    else:
        small = _pruned(cell, source, dataset) if cell.method in PRUNING else _at_once(cell, source, dataset)
        found = finetune(
            small,
            dataset,
            teacher=source,
            epochs=setting.total,
            seed=cell.seed,
            threads=setting.threads,
            choice=choose_inputs(source, dataset),
            **setting.training,
        )
        model, seconds = found.graph, {"training": found.seconds}
    total = time.perf_counter() - begun
    normalisation = choose_inputs(source, dataset).normalisation
    how: dict[str, Any] = {"normalisation": normalisation, "threads": setting.threads}
    numbers = {
        name: {
            split: {"top1": e.top1, "loss": e.loss}
            for split in ("validation", "test")
            for e in [evaluate(graph, dataset, split=split, **how)]
        }
        | dict(zip(("params", "macs", "bytes"), co.analyze(graph).costs.source, strict=True))
        for name, graph in (("source", source), ("model", model))
    }
    latency = compare(source, model, threads=setting.threads, seconds=setting.latency)
    numbers["source"]["latency_ms"], numbers["model"]["latency_ms"] = latency.a.p50_ms, latency.b.p50_ms
    return {
        "format": "conet-onnx-quality/1",
        **asdict(cell),
        "setting": asdict(setting),
        **numbers,
        "seconds": {"total": total, **seconds},
        "widths": {name: width.size for name, width in co.analyze(model).all_widths.items()},
    }


def _searched(
    cell: Cell, setting: Setting, source: Graph, dataset: DataSet, work: Path
) -> tuple[Graph, dict[str, float]]:
    training = dict(setting.training)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        found = search(
            source,
            data=dataset,
            budget=cell.budget,
            algorithm=SEARCHES[cell.method],
            trials=setting.trials,
            epochs_per_trial=setting.epochs_per_trial,
            epochs=setting.epochs,
            augment=training.pop("augment", ()),
            precision=training.pop("precision", "32-true"),
            seed=cell.seed,
            threads=setting.threads,
            out=Path(folder) / "run",
        )
        if training:
            raise SystemExit(f"a search takes augment and precision alone, and not {', '.join(training)}.")
        return found.best, dict(found.run.seconds)


def _at_once(cell: Cell, source: Graph, dataset: DataSet) -> Graph:
    """The knapsack and least squares, or all widths times the same; sliced by l2 there."""
    analysis = co.analyze(source)
    limits = co.Budget.parse([cell.budget]).resolve(analysis.costs.source)
    if cell.method == "uniform":
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            fits = limits.fits(analysis.costs.price(scaled(analysis, middle)[0]))
            low, high = (middle, high) if fits else (low, middle)
        return transferred(analysis, scaled(analysis, low)[0]).graph
    normalisation = choose_inputs(source, dataset).normalisation
    some = drawn(dataset.with_validation().split("train"), SAMPLES, cell.seed)
    scores = channel_scores(analysis, "obd", data=some, normalise=lambda x: fed(source, x, normalisation))
    widths = allocated(analysis, limits.by_kind, scores).widths
    batches = calibration_batches(source, some, normalisation)
    return transferred(analysis, widths, "least-squares", scores=scores, calibration=batches).graph


def _pruned(cell: Cell, source: Graph, dataset: DataSet) -> Graph:
    """By Torch-Pruning, at the smallest ratio at which the budget holds."""
    limits = co.Budget.parse([cell.budget]).resolve(co.analyze(source).costs.source)
    low, high, found = 0.0, 0.99, None
    for _ in range(12):
        middle = (low + high) / 2
        made = _at_ratio(cell, source, dataset, middle)
        if limits.fits(co.analyze(made).costs.source):
            high, found = middle, made
        else:
            low = middle
    if found is None:
        raise SystemExit(f"{cell.method}: no ratio meets {cell.budget}.")
    return found


def _at_ratio(cell: Cell, source: Graph, dataset: DataSet, ratio: float) -> Graph:
    import torch
    import torch_pruning as tp
    from torch import nn

    from models.exporting import exported
    from models.resnet_cifar import BLOCKS, ResNet

    weights = {name: torch.from_numpy(np.array(source.array(name))) for name in source.weights}
    classes, channels = weights["fc.weight"].shape[0], weights["conv1.weight"].shape[1]
    blocks = sum(name.startswith("layer1.") and name.endswith("conv1.weight") for name in weights)
    if blocks not in BLOCKS.values():
        raise SystemExit(f"{cell.method} needs a ResNet of models/resnet_cifar.py.")
    shortcut = "B" if any("downsample" in name for name in weights) else "A"
    module = ResNet(blocks, channels=channels, classes=classes, shortcut=shortcut)
    left = module.load_state_dict(weights, strict=False)
    if any("num_batches" not in name for name in left.missing_keys):
        raise SystemExit(f"{cell.method}: the source lacks {', '.join(left.missing_keys)}.")
    is_global, kind = PRUNING[cell.method]
    importance = tp.importance.GroupMagnitudeImportance if kind == "group" else tp.importance.MagnitudeImportance
    shape = dataset.split("train").shape
    example = torch.zeros(1, channels, *[n for n in shape if n != channels][-2:])
    pruner = (tp.pruner.GroupNormPruner if kind == "group" else tp.pruner.MagnitudePruner)(
        module.eval(),
        example,
        importance=importance(p=2),
        global_pruning=is_global,
        pruning_ratio=ratio,
        ignored_layers=[m for m in module.modules() if isinstance(m, nn.Linear)],
    )
    pruner.step()
    return Graph(exported(module, example.shape[1:], keep_norms=True))


def table(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: a row a method and budget, means over seeds with the sample's standard deviation."""
    yield "| source | budget | method | seeds | test accuracy | validation loss | MACs | params | p50 | seconds |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        key = (Path(record["setting"]["source"]).stem, record["budget"], record["method"])
        groups.setdefault(key, []).append(record)
    order = {name: k for k, name in enumerate(METHODS)}
    for (source, budget, method), own in sorted(groups.items(), key=lambda g: (g[0][0], g[0][1], order[g[0][2]])):

        def spread(of: Callable[[Mapping[str, Any]], float], text: str, own: Any = own) -> str:
            values = [of(record) for record in own]
            more = f" ± {text.format(np.std(values, ddof=1))}" if len(values) > 1 else ""
            return text.format(np.mean(values)) + more

        cells = (
            spread(lambda r: 100 * r["model"]["test"]["top1"], "{:.2f}") + " %",
            spread(lambda r: r["model"]["validation"]["loss"], "{:.4f}"),
            "×" + spread(lambda r: r["model"]["macs"] / r["source"]["macs"], "{:.3f}"),
            "×" + spread(lambda r: r["model"]["params"] / r["source"]["params"], "{:.2f}"),
            "×" + spread(lambda r: r["model"]["latency_ms"] / r["source"]["latency_ms"], "{:.2f}"),
            spread(lambda r: r["seconds"]["total"], "{:.0f}"),
        )
        yield f"| {source} | {budget} | {method} | {len(own)} | " + " | ".join(cells) + " |"


def _training(text: str) -> dict[str, Any]:
    """augment=A,B precision=P and numbers of torch_backend.settings, as name=value."""
    found: dict[str, Any] = {}
    for part in text.split():
        name, _, value = part.partition("=")
        found[name] = tuple(value.split(",")) if name == "augment" else value if name == "precision" else float(value)
    return found


def main() -> None:
    """Run what has no record yet, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--source", default="runs/resnet20.onnx")
    parser.add_argument("--data", default="", metavar="D", help="as `conet-onnx search --data` takes it; for `run`")
    parser.add_argument("--methods", default=",".join(m for m in METHODS if m not in ("anneal", "uniform search")))
    parser.add_argument("--budgets", default="macs=0.5,macs=0.3")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs-per-trial", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--latency", type=float, default=4.0, metavar="SECONDS", help="of measuring it")
    parser.add_argument("--training", default="", help="of every method: augment=flip,crop precision=bf16-mixed")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--out", type=Path, help="the table's file; standard output otherwise")
    given = parser.parse_args()
    if given.what == "table":
        lines = list(table([json.loads(f.read_text()) for f in sorted(given.records.glob("*.json"))]))
        text = "\n".join(lines) + "\n"
        given.out.write_text(text, encoding="utf-8") if given.out else sys.stdout.write(text)
        return
    setting = Setting(
        given.source,
        given.data,
        given.trials,
        given.epochs_per_trial,
        given.epochs,
        given.samples,
        given.threads,
        given.latency,
        _training(given.training),
    )
    cells = [
        Cell(method, budget, seed)
        for seed in range(given.seeds)
        for budget in given.budgets.split(",")
        for method in given.methods.split(",")
    ]
    if unknown := {cell.method for cell in cells} - set(METHODS):
        raise SystemExit(f"unknown methods {', '.join(sorted(unknown))}: there are {', '.join(METHODS)}.")
    dataset = _some(load_data(given.data).with_validation(), given.samples)
    given.records.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for at, cell in enumerate(cells):
            file = cell.file(setting, given.records)
            if file.exists():
                if (kept := json.loads(file.read_text())["setting"]) != json.loads(json.dumps(asdict(setting))):
                    raise SystemExit(f"{file} was made with other settings: {kept}.")
                continue
            where = f"{at + 1} of {len(cells)}"
            print(f"{where}: {cell.method}, {cell.budget}, seed {cell.seed}", file=sys.stderr, flush=True)
            record = run(cell, setting, dataset, Path(work))
            with atomic_write(file) as part:
                part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _some(dataset: DataSet, samples: int | None) -> DataSet:
    """With so many of the training samples, drawn with seed 0."""
    if samples is None:
        return dataset
    from dataclasses import replace

    return replace(dataset, splits={**dataset.splits, "train": drawn(dataset.split("train"), samples)})


if __name__ == "__main__":
    main()
