"""What the published methods find, beside their baselines, under equal training budgets, on CIFAR-10.

python tools/reproduce.py all resnet20 --data DIR --samples 8000 --trials 8 --epochs-per-trial 1 --epochs 4 --seeds 2
python tools/reproduce.py conet-sa resnet34 --data DIR --augment crop,flip --seeds 3
python tools/reproduce.py correlation resnet20 --data DIR --samples 8000 --configurations 20 --epochs 4

Every method searches with `--trials` times `--epochs-per-trial` epochs, and trains what it has found from scratch for
`--epochs`; without these the published numbers hold, which are for a GPU. `baseline` trains the network as it is for
`--epochs`, `baseline-long` for as long as a method's search and training together. `correlation` trains networks of
random widths from scratch, and compares their metrics with their accuracy. Validation is a tenth of the training
images; the test images are read once for each run, at its end, and choose nothing.

Runs are folders in runs/reproduce/NETWORK, of `conet-onnx search`, and go on where they were stopped. What the tables
need of each finished one is a file in tools/results/reproduce/NETWORK, so that they go on on another machine too; with
other settings name another --records and --runs. `--table` writes the results of all records as Markdown and JSON, with
figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.torchvision_schemas import define_missing_schemas  # noqa: E402 - found through the line above

define_missing_schemas()

import conet_onnx as co  # noqa: E402 - found through the path above
from conet_onnx.data import DataSet, Normalisation, fed, load_data  # noqa: E402 - found through the path above
from conet_onnx.evaluation import evaluate  # noqa: E402 - found through the path above
from conet_onnx.files import atomic_write  # noqa: E402 - found through the path above
from conet_onnx.metrics import METRICS, by_width, score  # noqa: E402 - found through the path above
from conet_onnx.searching import Run  # noqa: E402 - found through the path above
from conet_onnx.searching.recipe import from_scratch  # noqa: E402 - found through the path above
from conet_onnx.torch_backend import fit  # noqa: E402 - found through the path above
from models.catalogue import built  # noqa: E402 - found through the path above
from models.exporting import save  # noqa: E402 - found through the path above
from tools.measuring import facts  # noqa: E402 - found through the path above

CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 1 / 255)
SEARCHES = ("compound", "random", "conet-greedy", "conet-sa", "network-adjustment")
BASELINES = ("baseline", "baseline-long")
FALLS = 10  # times that the learning rate of a last training is halved: as often as the published 250 epochs have it
NARROWEST, WIDEST = 0.25, 1.25  # factors of the widths that `correlation` draws, log-uniformly
PACKAGES = ("torch", "onnx", "onnxruntime-gpu")
SETTINGS = ("samples", "trials", "epochs_per_trial", "epochs", "augment", "precision", "option", "threads")


def main() -> int:
    """Run what is asked for and has no result yet; write the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=(*BASELINES, *SEARCHES, "all", "correlation", "none"))
    parser.add_argument("network", help="a name of `python -m models.export --list`")
    parser.add_argument("--data", required=True, metavar="DIR", help="CIFAR-10, as `conet-onnx search --data` takes it")
    parser.add_argument("--samples", type=int, metavar="N", help="training images to use, drawn with seed 0 (all)")
    parser.add_argument("--trials", type=int, metavar="N", help="the method's own")
    parser.add_argument("--epochs-per-trial", type=int, metavar="E", help="the method's own")
    parser.add_argument(
        "--final-epochs",
        "--epochs",
        dest="epochs",
        type=int,
        metavar="E",
        help="the last training; the method's own",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="0 to N - 1")
    parser.add_argument("--augment", default="crop,flip", metavar="A,...", help="or none (default: crop,flip)")
    parser.add_argument("--precision", default="32-true", metavar="P", help="of training: bf16-mixed, say")
    parser.add_argument("--option", action="append", default=[], metavar="METHOD:NAME=V", help="another constant")
    parser.add_argument("--configurations", type=int, default=20, metavar="N", help="of `correlation`")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "reproduce", metavar="DIR")
    parser.add_argument("--records", type=Path, default=ROOT / "tools" / "results" / "reproduce", metavar="DIR")
    parser.add_argument("--table", type=Path, metavar="F.md", help="write F.md, F.json and figures beside it")
    asked = parser.parse_args()
    asked.augment = [] if asked.augment == "none" else asked.augment.split(",")
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning_fabric")
    torch.set_num_threads(asked.threads)
    folder, records = asked.runs / asked.network, asked.records / asked.network
    _settled(records, asked)
    if asked.method != "none":
        folder.mkdir(parents=True, exist_ok=True)
        source = _source(folder, asked.network)
        data = _data(asked.data, asked.samples)
        if asked.method == "correlation":
            for number in range(asked.configurations):
                _configuration(folder, records, source, data, asked, number)
        else:
            for seed in range(asked.seeds):
                for method in (*BASELINES, *SEARCHES) if asked.method == "all" else (asked.method,):
                    _search(folder, records, source, data, asked, method, seed)
    if asked.table:
        _write(asked.table, records, asked)
    return 0


# Runs


def _settled(folder: Path, asked: argparse.Namespace) -> None:
    """Note the settings that results depend on, or refuse to mix them with results of others."""
    file = folder / "settings.json"
    now = {name: getattr(asked, name) for name in SETTINGS}
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as part:
            part.write_text(json.dumps(now, indent=1))
    before = json.loads(file.read_text())
    for name, value in now.items():
        if asked.method != "none" and before[name] != value:
            sys.exit(
                f"{folder} holds runs with {name} {before[name]!r}, now {value!r}: name others (--records, --runs)."
            )
        setattr(asked, name, before[name])


def _source(folder: Path, network: str) -> Path:
    """The network with random weights, norms kept: what the published methods begin from."""
    file = folder / "source.onnx"
    if not file.exists():
        torch.manual_seed(0)
        model, shape = built(network, classes=10, size=32)
        save(model, shape, file, keep_norms=True)
        CIFAR10.save_beside(file)
    return file


def _data(where: str, samples: int | None) -> DataSet:
    """Some training images, a tenth of them held out for validation, and all test images."""
    whole = load_data(where)
    if samples is None:
        return whole.with_validation()
    train = whole.split("train")
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:samples])
    splits = {"train": train.take(chosen), "test": whole.split("test")}
    return DataSet(f"{whole.name}, {samples} training images", splits).with_validation()


def _lengths(asked: argparse.Namespace, method: str) -> dict[str, int]:
    given = {"trials": asked.trials, "epochs_per_trial": asked.epochs_per_trial, "epochs": asked.epochs}
    lengths = {name: value for name, value in given.items() if value is not None}
    if method not in BASELINES:
        return lengths
    searched = lengths.get("trials", 36) * lengths.get("epochs_per_trial", 2) if method == "baseline-long" else 0
    # One trial of all widths as they are: it is not trained on from, and is the shortest that there is.
    return {"trials": 1, "epochs_per_trial": 1, "epochs": lengths.get("epochs", 250) + searched}


def _options(asked: argparse.Namespace, method: str, epochs: int | None) -> dict[str, str]:
    """A last training that is shorter than the published one has its falls of the learning rate in proportion."""
    own = dict(text.split(":", 1)[1].split("=", 1) for text in asked.option if text.startswith(f"{method}:"))
    if method == "network-adjustment":
        return own
    every = {"final_every": str(epochs / FALLS)} if method.startswith("conet") else {"every": str(epochs / FALLS)}
    start = {} if method.startswith("conet") else {"start": "fresh"}
    as_it_is = {"largest": "1"} if method in BASELINES else {}
    return (every if epochs else {}) | start | as_it_is | own


def _search(
    folder: Path, records: Path, source: Path, data: DataSet, asked: argparse.Namespace, method: str, seed: int
) -> None:
    out, record = folder / f"{method}-{seed}", records / f"{method}-{seed}.json"
    if record.exists():
        return
    lengths = _lengths(asked, method)
    found = co.search(
        co.load(source),
        data=data,
        algorithm="compound" if method in BASELINES else method,
        options=_options(asked, method, lengths.get("epochs")),
        **lengths,
        augment=asked.augment,
        precision=asked.precision,
        seed=seed,
        threads=asked.threads,
        provider="cpu",
        normalisation=CIFAR10,
        out=out,
        resume=out.exists(),
        progress=_Log(f"{method}, seed {seed}"),
    )
    with atomic_write(record) as part:
        part.write_text(json.dumps(_recorded(method, found.run), indent=1))


def _recorded(method: str, run: Run) -> dict[str, Any]:
    """What tables and figures need of a finished search."""
    best, settings = run.best, run.settings
    assert best is not None
    assert best.test is not None
    return {
        "method": method,
        "seed": settings["seed"],
        "params": best.params,
        "macs": best.macs,
        "test": best.test["top1"],
        "searched": 0 if method in BASELINES else len(run.trials) * settings["epochs_per_trial"],
        "epochs": settings["epochs"],
        "seconds": run.seconds["total"],
        "names": list(run.widths),
        "widths": [list(trial.widths.values()) for trial in run.trials],
        "chosen": best.trial,
    }


def _configuration(
    folder: Path, records: Path, source: Path, data: DataSet, asked: argparse.Namespace, number: int
) -> None:
    """One set of random widths, trained from scratch: its metrics after the last epoch, and its accuracy."""
    record, checkpoint = records / "correlation" / f"{number}.json", folder / f"configuration-{number}.ckpt"
    if record.exists():
        return
    record.parent.mkdir(exist_ok=True)
    graph = co.load(source)
    analysis = co.analyze(graph)
    rng = np.random.default_rng([0, number])
    factors = np.exp(rng.uniform(np.log(NARROWEST), np.log(WIDEST), len(analysis.widths)))
    sizes = [max(2, round(w.size * f)) for w, f in zip(analysis.widths.values(), factors, strict=True)]
    widths = dict(zip(analysis.widths, sizes, strict=True))
    student = co.rewrite(graph, co.plan(analysis, widths, inexact=True))
    epochs = asked.epochs or 250
    begun = time.perf_counter()
    fitted = fit(
        student,
        data.split("train"),
        epochs=epochs,
        **from_scratch(every=epochs / FALLS),
        init="fresh",
        augment=tuple(asked.augment),
        precision=asked.precision,
        normalise=lambda x: fed(graph, x, CIFAR10),
        seed=number,
        threads=asked.threads,
        checkpoint=checkpoint,
        progress=lambda share: _Log(f"configuration {number}")("training", share, 1.0, None),
    )
    trained = co.analyze(fitted.graph)
    qualities = score(trained)
    kept = {
        "widths": widths,
        "params": trained.costs.source.params,
        "macs": trained.costs.source.macs,
        "metrics": {name: statistics.mean(by_width(trained, qualities, name).values()) for name in METRICS},
        "train_loss": fitted.history[-1]["loss"],
        "seconds": time.perf_counter() - begun,
    }
    for split in ("validation", "test"):
        found = evaluate(fitted.graph, data, split=split, provider="cpu", normalisation=CIFAR10)
        kept[split] = {"top1": found.top1, "loss": found.loss}
    with atomic_write(record) as part:
        part.write_text(json.dumps(kept))
    checkpoint.unlink(missing_ok=True)
    print(f"{time.strftime('%H:%M:%S')} configuration {number}: {kept['test']['top1']:.2%}", flush=True)


class _Log:
    """A line every minute."""

    last = 0.0

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, phase: str, done: float, work: float, left: float | None) -> None:
        if time.monotonic() - _Log.last > 60:
            _Log.last = time.monotonic()
            more = "" if left is None else f", {left / 60:.0f} minutes left"
            print(f"{time.strftime('%H:%M:%S')} {self.name}: {phase}, {done / work:.0%}{more}", flush=True)


# Results


def _write(table: Path, records: Path, asked: argparse.Namespace) -> None:
    runs = {method: _runs(records, method) for method in (*BASELINES, *SEARCHES)}
    runs = {method: found for method, found in runs.items() if found}
    trained = [json.loads(file.read_text()) for file in sorted((records / "correlation").glob("*.json"))]
    rows = [_row(method, found) for method, found in runs.items()]
    correlated = _correlated(trained) if len(trained) > 2 else {}
    figures = _figures(table, runs, trained)
    document = {
        "network": asked.network,
        "settings": {name: getattr(asked, name) for name in SETTINGS},
        "machine": facts(PACKAGES, threads=asked.threads),
        "methods": rows,
        "correlation": {"configurations": trained, "coefficients": correlated},
    }
    table.parent.mkdir(parents=True, exist_ok=True)
    table.with_suffix(".json").write_text(json.dumps(document, indent=1))
    table.write_text("\n".join(_markdown(document, figures)) + "\n")
    print(table.read_text())


Record = Mapping[str, Any]  # of a finished search (_recorded)


def _runs(records: Path, method: str) -> list[Record]:
    return [json.loads(one.read_text()) for one in sorted(records.glob(f"{method}-[0-9]*.json"))]


def _row(method: str, runs: Sequence[Record]) -> dict[str, Any]:
    tests = [run["test"] for run in runs]
    return {
        "method": method,
        "seeds": [run["seed"] for run in runs],
        "params": [run["params"] for run in runs],
        "macs": [run["macs"] for run in runs],
        "test": tests,
        "mean": statistics.mean(tests),
        "spread": statistics.stdev(tests) if len(tests) > 1 else None,
        "epochs": [runs[0]["searched"], runs[0]["epochs"]],
        "seconds": [run["seconds"] for run in runs],
    }


def _correlated(trained: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Pearson's and Spearman's coefficients of everything with accuracy on test; and Pearson's at equal size: of what
    is left where a line through the logarithm of the parameters is taken from both."""
    accuracy = np.array([one["test"]["top1"] for one in trained])
    size = np.log([one["params"] for one in trained])
    columns = {name: np.array([one["metrics"][name] for one in trained]) for name in METRICS}
    columns |= {"log(parameters)": size, "log(MACs)": np.log([one["macs"] for one in trained])}
    columns["training loss"] = np.array([one["train_loss"] for one in trained])

    def rest(values: np.ndarray) -> np.ndarray:
        return values - np.polyval(np.polyfit(size, values, 1), size)

    found = {}
    for name, values in columns.items():
        found[name] = {
            "pearson": _pearson(values, accuracy),
            "spearman": _pearson(_ranks(values), _ranks(accuracy)),
        }
        if name != "log(parameters)":
            found[name]["pearson at equal size"] = _pearson(rest(values), rest(accuracy))
    return found


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Equals have the mean of their places."""
    return np.array([np.mean(np.flatnonzero(np.sort(values) == value)) for value in values])


def _markdown(document: Mapping[str, Any], figures: Iterable[Path]) -> Iterator[str]:
    settings = document["settings"]
    yield f"# {document['network']} on CIFAR-10: published methods and their baselines"
    yield ""
    given = {name.replace("_", "-"): value for name, value in settings.items() if value not in (None, [])}
    options = given.pop("option", [])
    words = [*(f"--{name} {_word(value)}" for name, value in given.items()), *(f"--option {one}" for one in options)]
    what = "all" if document["methods"] else "correlation"
    yield f"    python tools/reproduce.py {what} {document['network']} --data DIR {' '.join(words)}"
    yield ""
    for key, value in document["machine"].items():
        yield f"- {key}: {value}"
    yield ""
    if document["methods"]:
        yield (
            "| method | parameters | MACs | test accuracy, each seed | mean | deviation | epochs: search + last | "
            "minutes |"
        )
        yield "|---|---|---|---|---|---|---|---|"
        for row in document["methods"]:
            each = ", ".join(f"{value:.2%}" for value in row["test"])
            spread = "" if row["spread"] is None else f"{100 * row['spread']:.2f}"
            sizes = ["/".join(f"{value / 1e6:.{digits}f}M" for value in row[name]) for name, digits in SIZES.items()]
            minutes = statistics.mean(row["seconds"]) / 60
            yield (
                f"| {row['method']} | {sizes[0]} | {sizes[1]} | {each} | {row['mean']:.2%} | {spread} | "
                f"{row['epochs'][0]} + {row['epochs'][1]} | {minutes:.0f} |"
            )
        yield ""
    if coefficients := document["correlation"]["coefficients"]:
        count = len(document["correlation"]["configurations"])
        yield f"## What goes with accuracy, over {count} sets of random widths"
        yield ""
        yield "| quantity | Pearson | Spearman | Pearson at equal size |"
        yield "|---|---|---|---|"
        for name, found in coefficients.items():
            rest = found.get("pearson at equal size")
            yield (
                f"| {name} | {found['pearson']:+.2f} | {found['spearman']:+.2f} | "
                f"{'' if rest is None else f'{rest:+.2f}'} |"
            )
        yield ""
    for figure in figures:
        yield f"![{figure.stem.replace('_', ' ')}]({figure.name})"


SIZES = {"params": 3, "macs": 1}


def _word(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def _figures(table: Path, runs: Mapping[str, Sequence[Record]], trained: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Accuracy against parameters, how the channels of each method moved, and the metric against accuracy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    if runs:
        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        for method, found in runs.items():
            x, y = [run["params"] / 1e6 for run in found], [100 * run["test"] for run in found]
            points = axes.scatter(x, y, s=18, alpha=0.5)
            axes.errorbar(
                statistics.mean(x),
                statistics.mean(y),
                xerr=statistics.stdev(x) if len(x) > 1 else None,
                yerr=statistics.stdev(y) if len(y) > 1 else None,
                fmt="D" if method in BASELINES else "o",
                color=points.get_facecolor()[0][:3],
                capsize=3,
                label=method,
            )
        axes.set(xlabel="parameters (millions)", ylabel="test accuracy (%)")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        made.append(_saved(figure, table, "accuracy"))
    moved = {method: found[0] for method, found in runs.items() if method not in BASELINES}
    if moved:
        figure, grid = pyplot.subplots(
            1, len(moved), figsize=(3 * len(moved), 3.2), sharey=True, layout="constrained", squeeze=False
        )
        for axes, (method, run) in zip(grid[0], moved.items(), strict=True):
            for k, _ in enumerate(run["names"]):
                shade = pyplot.get_cmap("viridis")(k / max(1, len(run["names"]) - 1))
                axes.plot([widths[k] for widths in run["widths"]], color=shade, linewidth=1)
            if run["chosen"] is not None:
                axes.axvline(run["chosen"], color="0.6", linestyle=":", linewidth=1)
            axes.set(title=method, xlabel="trial", yscale="log")
        grid[0][0].set_ylabel("channels (first layer dark, last light)")
        made.append(_saved(figure, table, "channels"))
    if len(trained) > 2:
        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        points = axes.scatter(
            [one["metrics"]["qc"] for one in trained],
            [100 * one["test"]["top1"] for one in trained],
            c=[one["params"] / 1e6 for one in trained],
        )
        figure.colorbar(points, label="parameters (millions)")
        axes.set(xlabel="QC, mean over the widths", ylabel="test accuracy (%)")
        axes.grid(alpha=0.3)
        made.append(_saved(figure, table, "quality"))
    return made


def _saved(figure: Any, table: Path, what: str) -> Path:
    path = table.with_name(f"{table.stem}_{what}.png")
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    sys.exit(main())
