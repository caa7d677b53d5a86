"""How good models within a budget become, by method, under equal training: a JSON record a cell, and a page of them.

python tools/bench_quality.py run --source tools/sources/resnet20.onnx --data DIR --training "augment=flip,crop"
python tools/bench_quality.py run --source runs/plain20.onnx --data DIR --budgets macs=0.5,latency=0.5 --methods ours
python tools/bench_quality.py run --source models/digits_resnet8.onnx --data digits --seeds 4 --methods ours,uniform
python tools/bench_quality.py table --out docs/results.md
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # models/ is no part of the package

from tools.torchvision_schemas import define_missing_schemas  # noqa: E402 - found through the line above

define_missing_schemas()

import conet_onnx as co  # noqa: E402 - found through the line above
from conet_onnx.analysis import Analysis  # noqa: E402
from conet_onnx.criteria import channel_scores  # noqa: E402
from conet_onnx.data import DataSet, fed, load_data  # noqa: E402
from conet_onnx.errors import BudgetUnreachable, ConetError, UsageError  # noqa: E402
from conet_onnx.evaluation import Choice, Evaluation, evaluate  # noqa: E402
from conet_onnx.files import atomic_write  # noqa: E402
from conet_onnx.finetuning import choose_inputs, finetune  # noqa: E402
from conet_onnx.graph import Graph  # noqa: E402
from conet_onnx.latency import Comparison, compare  # noqa: E402
from conet_onnx.latency.limits import Most, fast_multiples, least_widths, limit, met  # noqa: E402
from conet_onnx.latency.prediction import Predictor  # noqa: E402
from conet_onnx.latency.preparing import fast_widths, prepared  # noqa: E402
from conet_onnx.planning import allocated, scaled  # noqa: E402
from conet_onnx.runtime import resolve  # noqa: E402
from conet_onnx.searching import search  # noqa: E402
from conet_onnx.searching.algorithms import ALGORITHMS  # noqa: E402
from conet_onnx.searching.budget import Limits  # noqa: E402
from conet_onnx.searching.recipe import EQUALS  # noqa: E402
from conet_onnx.transfer import SAMPLES, calibration_batches, drawn, transferred  # noqa: E402
from tools.measuring import Beside, facts  # noqa: E402
from tools.pruning import KINDS, module_of, pruned  # noqa: E402
from tools.quality_page import FORMAT, page  # noqa: E402

RECORDS = ROOT / "tools" / "results" / "quality"
PACKAGES = ("onnx", "torch", "lightning-fabric", "optuna")  # and, for its methods, torch-pruning
AUTO = next(name for name, made in ALGORITHMS.items() if name != "auto" and made is ALGORITHMS["auto"])
SEARCHES = {  # method: the algorithm's name
    "ours": "auto",
    "reallocate": "reallocate",
    "anneal": "anneal",
    "conet-sa": "conet-sa",
    "network-adjustment": "network-adjustment",
    "uniform search": "compound",
    "random": "random",
}
UNCHANGED = ("source", "source labels")  # for budgets that the source is within
ALIGN, FREE = " aligned", " free"  # behind a method's name: its widths are those that this machine runs fast, or any
OTHERWISE = (f"ours{FREE}", f"ours one-shot{ALIGN}", f"uniform{ALIGN}")  # than by default
METHODS = (*SEARCHES, "ours one-shot", "uniform", *KINDS, *UNCHANGED, *OTHERWISE)
LEFT_OUT = (AUTO, "anneal", "uniform search", *OTHERWISE)  # unless they are asked for
STEPS, RATIOS = 40, 12  # bisections of a scale, and of Torch-Pruning's ratio
SCALES = 1000  # that are tried where a budget limits latency
BATCH = 32  # at which throughput is measured


@dataclass(frozen=True, slots=True)
class Setting:
    """What all cells of a source have in common. A search's trials and its last training take trials · epochs_per_trial
    + epochs; all others are trained for as many at once."""

    source: str
    sha256: str  # of the source
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

    @property
    def hold(self) -> float:
        """Share of the training of what is made at once at which the learning rate begins to fall: where a search's
        last training begins."""
        return self.trials * self.epochs_per_trial / self.total


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the table."""

    method: str
    budget: str
    seed: int

    @property
    def plain(self) -> str:
        """The method, whether aligned or not."""
        return self.method.removesuffix(ALIGN).removesuffix(FREE)

    @property
    def aligned(self) -> bool:
        """Whether widths are those that the machine runs fast, as `--multiple auto` has them."""
        return self.method.endswith(ALIGN)

    def file(self, setting: Setting, folder: Path) -> Path:
        """Where its record is."""
        parts = (Path(setting.source).stem, self.method, self.budget, f"seed{self.seed}")
        return folder / ("-".join(part.replace(" ", "_") for part in parts) + ".json")


@dataclass(frozen=True)
class Bench:
    """A source, what it is trained on, and where a latency table of it is kept once it has been made.

    Training may have more threads than latency is measured on: that changes what it takes, and of weights the rounding.
    """

    setting: Setting
    source: Graph
    dataset: DataSet
    table: Path
    network: str
    training_threads: int

    @cached_property
    def analysis(self) -> Analysis:
        """Of the source."""
        return co.analyze(self.source)

    @cached_property
    def choice(self) -> Choice:
        """How pixels become the source's input."""
        return choose_inputs(self.source, self.dataset, threads=self.setting.threads)

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Of the source: what it is worth, and what it costs."""
        return _numbers(self, self.source)

    @cached_property
    def fast(self) -> dict[str, int]:
        """What each width is a multiple of where this machine runs it fast, by onnxruntime's layouts alone."""
        how: dict[str, Any] = {"provider": resolve("auto"), "threads": self.setting.threads}
        return fast_widths(self.analysis, [], **how, warn=lambda line: _log(f"warning: {line}"))

    @cached_property
    def predicted(self) -> Predictor:
        """What foretells latency, by the table; it is made first where there is none."""
        found = prepared(
            self.analysis,
            [self.table] if self.table.exists() else [],
            provider=resolve("auto"),
            threads=self.setting.threads,
            warn=lambda line: _log(f"warning: {line}"),
            begins=lambda _: _log(f"profiling {self.setting.source} into {self.table}"),
        )
        if not self.table.exists():
            self.table.parent.mkdir(parents=True, exist_ok=True)
            found.table.save(self.table)
        return found.predicted

    def compared(self, model: Graph, batch: int | None = None) -> Comparison:
        """A model in turns with the source."""
        how: dict[str, Any] = {"threads": self.setting.threads, "seconds": self.setting.latency, "batch": batch}
        return compare(self.source, model, **how)


@dataclass(frozen=True)
class Asked:
    """A budget: limits on prices, and on latency, which prices do not have."""

    limits: Limits
    most: Most | None

    @classmethod
    def of(cls, budget: str, analysis: Analysis) -> Asked:
        """Read KIND=V, or several with a space between."""
        read = co.Budget.parse(budget.split())
        return cls(read.resolve(analysis.costs.source), None if read.time is None else Most(*read.time))

    def holds_source(self, analysis: Analysis) -> bool:
        """Whether the source is within it."""
        timely = self.most is None or (self.most.relative and self.most.amount >= 1)
        return timely and self.limits.fits(analysis.costs.source)


def run(cell: Cell, bench: Bench, work: Path) -> dict[str, Any]:
    """Its record: numbers of the source and of the model, of its training, and of how it was made."""
    begun, beside = time.perf_counter(), Beside()
    if cell.plain in SEARCHES:
        model, more = _searched(cell, bench, work)
    else:
        model, more = _trained(cell, bench)
    total, others = time.perf_counter() - begun, beside.share()
    found = {"source": dict(bench.numbers), "model": _numbers(bench, model)}
    latency = bench.compared(model)
    free = not isinstance(bench.source.inputs[0].shape[0], int)
    many = bench.compared(model, BATCH) if free else latency
    batch = BATCH if free else bench.source.inputs[0].shape[0]
    for name, one, other in (("source", latency.a, many.a), ("model", latency.b, many.b)):
        found[name] |= {"latency_ms": one.p50_ms, "images_per_second": 1e3 * batch / other.p50_ms}
    return {
        "format": FORMAT,
        **asdict(cell),
        "setting": asdict(bench.setting),
        "machine": _machine(cell, bench),
        **found,
        "latency": asdict(latency.ratio),
        "throughput": {"batch": batch, **{k: 1 / getattr(many.ratio, k) for k in ("p50", "low", "high")}},
        **more,
        "seconds": {**more["seconds"], "total": total},
        "others": others,
        "widths": {name: width.size for name, width in co.analyze(model).all_widths.items()},
    }


def _machine(cell: Cell, bench: Bench) -> dict[str, str]:
    """What it was measured on. onnxruntime's package goes by several names."""
    import onnxruntime

    known = (*PACKAGES, "torch-pruning") if cell.method in KINDS else PACKAGES
    found = facts(known, onnxruntime=onnxruntime.__version__)
    return found | {"training": f"{(many := bench.training_threads)} thread{'' if many == 1 else 's'}"}


def _numbers(bench: Bench, graph: Graph) -> dict[str, Any]:
    how: dict[str, Any] = {"normalisation": bench.choice.normalisation, "threads": bench.setting.threads}
    judged = {s: _judged(evaluate(graph, bench.dataset, split=s, **how)) for s in ("validation", "test")}
    return judged | dict(zip(("params", "macs", "bytes"), co.analyze(graph).costs.source, strict=True))


def _judged(found: Evaluation) -> dict[str, float]:
    return {"top1": found.top1, "loss": found.loss}


def _searched(cell: Cell, bench: Bench, work: Path) -> tuple[Graph, dict[str, Any]]:
    setting, training = bench.setting, dict(bench.setting.training)
    augment, precision = training.pop("augment", ()), training.pop("precision", "32-true")
    if training:
        raise UsageError(f"a search takes augment and precision alone, and not {', '.join(training)}.")
    asked = Asked.of(cell.budget, bench.analysis)
    if asked.most is not None:
        _ = bench.predicted  # writes the table
    with tempfile.TemporaryDirectory(dir=work) as folder:
        found = search(
            bench.source,
            data=bench.dataset,
            budget=cell.budget.split(),
            algorithm=SEARCHES[cell.plain],
            multiple="none" if cell.method.endswith(FREE) else None,
            trials=setting.trials,
            epochs_per_trial=setting.epochs_per_trial,
            epochs=setting.epochs,
            augment=augment,
            precision=precision,
            seed=cell.seed,
            threads=setting.threads,
            training_threads=bench.training_threads,
            tables=() if asked.most is None else (bench.table,),
            out=Path(folder) / "run",
        )
        seen = found.run.epochs * len(bench.dataset.split("train"))
        trained = {"epochs": found.run.epochs, "samples": seen}
        return found.best, {"algorithm": _algorithm(cell), "trained": trained, "seconds": dict(found.run.seconds)}


def _algorithm(cell: Cell) -> str:
    """What a method's search is by its own name."""
    name = SEARCHES[cell.plain]
    return AUTO if name == "auto" else name


def _trained(cell: Cell, bench: Bench) -> tuple[Graph, dict[str, Any]]:
    """What is made at once, trained as long as a search trains in all."""
    begun = time.perf_counter()
    small = _at_once(cell, bench)
    making = time.perf_counter() - begun
    setting = bench.setting
    taught = {"distill": EQUALS} if Asked.of(cell.budget, bench.analysis).holds_source(bench.analysis) else {}
    if alone := cell.method == "source labels":
        taught = {"distill": 0.0}
    found = finetune(
        small,
        bench.dataset,
        teacher=None if alone else bench.source,
        epochs=setting.total,
        seed=cell.seed,
        threads=bench.training_threads,
        choice=bench.choice,
        hold=setting.hold,
        **taught,
        **setting.training,
    )
    untrained = {split: _judged(one) for split, one in found.before.items() if isinstance(one, Evaluation)}
    seen = len(found.history) * len(bench.dataset.split("train"))
    trained = {"epochs": len(found.history), "samples": seen, "hold": setting.hold}
    return found.graph, {
        "trained": trained,
        "untrained": untrained,
        "seconds": {"training": found.seconds, "making": making},
    }


def _at_once(cell: Cell, bench: Bench) -> Graph:
    """A model within the budget, before it is trained; where that limits latency, within it as it is measured."""
    asked = Asked.of(cell.budget, bench.analysis)
    if cell.method in UNCHANGED:
        if not asked.holds_source(bench.analysis):
            raise BudgetUnreachable(f"{cell.method}: the source is not within {cell.budget}.")
        return bench.source
    maker = {"uniform": _uniform, "ours one-shot": _one_shot}.get(cell.plain, _pruned)
    if asked.most is None:
        return maker(cell, bench, asked, 1.0)
    return met(lambda factor: maker(cell, bench, asked, factor), bench.compared, asked.most).made


def _seconds(bench: Bench, asked: Asked, factor: float) -> float:
    """`factor` times the limit on latency, as predictions count."""
    assert asked.most is not None
    return factor * asked.most.seconds(bench.predicted.predict(bench.predicted.source))


def _uniform(cell: Cell, bench: Bench, asked: Asked, factor: float) -> Graph:
    """All widths times the same, the most that fits, sliced by l2."""
    costs = bench.analysis.costs

    def at(scale: float) -> dict[str, int]:
        return scaled(bench.analysis, scale, multiple=bench.fast if cell.aligned else None)[0]

    if asked.most is None:
        scale = bisected(lambda x: asked.limits.fits(costs.price(at(x))), 1e-9, 1.0, STEPS)
    else:  # odd widths may take longer than larger ones
        scales = np.arange(SCALES, 0, -1) / SCALES
        widths = [at(float(x)) for x in scales]
        seconds = bench.predicted.predict_many(np.array([costs.row(some) for some in widths]))
        timely = np.flatnonzero(seconds <= _seconds(bench, asked, factor))
        scale = next((float(scales[k]) for k in timely if asked.limits.fits(costs.price(widths[k]))), None)
    if scale is None:
        raise BudgetUnreachable(f"{cell.method}: no scale meets {cell.budget}.")
    return transferred(bench.analysis, at(scale)).graph


def _one_shot(cell: Cell, bench: Bench, asked: Asked, factor: float) -> Graph:
    """The knapsack by `obd`, and least squares, as `resize --budget` does it."""
    normalisation = bench.choice.normalisation
    some = drawn(bench.dataset.split("train"), SAMPLES, cell.seed)
    scores = channel_scores(bench.analysis, "obd", data=some, normalise=lambda x: fed(bench.source, x, normalisation))
    how: dict[str, Any] = {"multiple": bench.fast} if cell.aligned else {}
    if asked.most is not None:
        fast = fast_multiples(bench.predicted.operators, bench.predicted)
        how = {"further": [limit(bench.predicted, _seconds(bench, asked, factor))], "multiple": fast}
        how["least"] = least_widths(fast)
    widths = allocated(bench.analysis, asked.limits.by_kind, scores, **how).widths
    batches = calibration_batches(bench.source, some, normalisation)
    return transferred(bench.analysis, widths, "least-squares", scores=scores, calibration=batches).graph


def _pruned(cell: Cell, bench: Bench, asked: Asked, factor: float) -> Graph:
    """By Torch-Pruning, at the smallest ratio at which the budget holds."""

    def made(ratio: float) -> Graph:
        module, shape = module_of(bench.source, bench.network)
        return pruned(module, shape, cell.method, ratio)

    def fits(kept: float) -> bool:
        model = made(1 - kept)
        if not asked.limits.fits(co.analyze(model).costs.source):
            return False
        return asked.most is None or share(model, bench, asked.most) <= factor

    kept = bisected(fits, 0.01, 1.0, RATIOS)
    if kept is None:
        raise BudgetUnreachable(f"{cell.method}: no ratio meets {cell.budget}.")
    return made(1 - kept)


def share(model: Graph, bench: Bench, most: Most) -> float:
    """How much of a limit on latency a model of the source's structure takes: as the source's table foretells it, or,
    where its sizes are those of no widths of the source, as it is measured."""
    widths = widths_of(bench.analysis, model)
    if widths is None:
        return most.share(bench.compared(model))
    taken = bench.predicted.predict(bench.analysis.costs.row(widths))
    return taken / most.seconds(bench.predicted.predict(bench.predicted.source))


def widths_of(analysis: Analysis, model: Graph) -> dict[str, int] | None:
    """The widths at which a source has the sizes of a model with weights of the same names; None where there are none:
    what the source ties has come apart, or something else has been added."""
    before, after = analysis.graph.weights, model.weights
    found = {}
    for name, width in analysis.widths.items():
        own = (m for m in width.members if before[m.tensor].dims[m.axis] == width.size and m.tensor in after)
        if (member := next(own, None)) is None:
            return None
        found[name] = int(after[member.tensor].dims[member.axis])
    price, other = analysis.costs.price(found), co.analyze(model).costs.source
    return found if (price.params, price.macs) == (other.params, other.macs) else None


def bisected(fits: Callable[[float], bool], low: float, high: float, steps: int) -> float | None:
    """The largest number at which something fits, that fits below and not above; None where it fits at none tried."""
    if fits(high):
        return high
    found = None
    for _ in range(steps):
        middle = (low + high) / 2
        if fits(middle):
            low = found = middle
        else:
            high = middle
    return found


def cells_of(methods: Iterable[str], budgets: Iterable[str], seeds: int, analysis: Analysis) -> list[Cell]:
    """What is to be done, seed by seed; the source itself only where it is within the budget.

    Raises UsageError for a method or a budget that there is not.
    """
    methods, budgets = list(methods), list(budgets)
    if unknown := sorted(set(methods) - set(METHODS)):
        raise UsageError(f"unknown methods {', '.join(unknown)}: there are {', '.join(METHODS)}.")
    held = {budget: Asked.of(budget, analysis).holds_source(analysis) for budget in budgets}
    return [
        Cell(method, budget, seed)
        for seed in range(seeds)
        for budget in budgets
        for method in methods
        if held[budget] or method not in UNCHANGED
    ]


def done(cell: Cell, setting: Setting, folder: Path) -> bool:
    """Whether there is a record of it. Raises UsageError for one that was made otherwise."""
    file = cell.file(setting, folder)
    if not file.exists():
        return False
    record = json.loads(file.read_text(encoding="utf-8"))
    asked = json.loads(json.dumps(asdict(setting)))
    differ = [f"{k} {record['setting'].get(k)!r}, now {v!r}" for k, v in asked.items() if record["setting"].get(k) != v]
    if cell.plain in SEARCHES and record["algorithm"] != _algorithm(cell):
        differ.append(f"algorithm {record['algorithm']!r}, now {_algorithm(cell)!r}")
    if cell.plain not in SEARCHES and record["trained"].get("hold", 0.0) != setting.hold:
        differ.append(f"hold {record['trained'].get('hold', 0.0)}, now {setting.hold}")
    if differ:
        raise UsageError(f"{file} was made with other settings: {'; '.join(differ)}. Use other --records.")
    return True


def measured(cells: Iterable[Cell], bench: Bench, folder: Path) -> list[str]:
    """Run what has no record yet; what could not be done, in words."""
    cells, failed = list(cells), []
    left = [cell for cell in cells if not done(cell, bench.setting, folder)]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for at, cell in enumerate(left):
            what = f"{cell.method}, {cell.budget}, seed {cell.seed}"
            _log(f"{len(cells) - len(left) + at + 1} of {len(cells)}: {what}")
            try:
                record = run(cell, bench, Path(work))
            except ConetError as error:
                failed.append(f"{what}: {error}")
                _log(failed[-1])
                continue
            with atomic_write(cell.file(bench.setting, folder)) as part:
                part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return failed


def main() -> None:
    """Run what has no record yet, or write the page."""
    given = _arguments()
    if given.what == "table":
        files = sorted(given.records.rglob("*.json"))
        text = page([json.loads(file.read_text(encoding="utf-8")) for file in files], given.note)
        given.out.write_text(text, encoding="utf-8") if given.out else sys.stdout.write(text)
        return
    training = _training(given.training)
    source = co.load(given.source)
    setting = Setting(
        os.path.relpath(given.source),
        source.sha256,
        given.data,
        given.trials,
        given.epochs_per_trial,
        given.epochs,
        given.samples,
        given.threads,
        given.latency,
        training,
    )
    stem = Path(given.source).stem
    dataset = with_samples(load_data(given.data).with_validation(), given.samples)
    table = given.table or ROOT / "runs" / f"{stem}-{given.threads}-threads.json"
    bench = Bench(setting, source, dataset, table, given.network or stem, given.training_threads or given.threads)
    cells = cells_of(given.methods.split(","), given.budgets.split(","), given.seeds, bench.analysis)
    if failed := measured(cells, bench, given.records):
        raise SystemExit(f"{len(failed)} of {len(cells)} cells have no record: the same command tries them again.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--source", default="tools/sources/resnet20.onnx")
    parser.add_argument(
        "--network", help="of models/catalogue.py, for Torch-Pruning; by default the source's file name"
    )
    parser.add_argument("--data", default="", metavar="D", help="as `conet-onnx search --data` takes it; for `run`")
    parser.add_argument("--methods", default=",".join(m for m in METHODS if m not in LEFT_OUT))
    parser.add_argument("--budgets", default="macs=0.5,macs=0.3", help="each KIND=V: macs=0.5,latency=0.5,macs=1.0")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs-per-trial", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--training-threads", type=int, help="by default --threads")
    parser.add_argument("--latency", type=float, default=4.0, metavar="SECONDS", help="of measuring it")
    parser.add_argument(
        "--table",
        type=Path,
        help="of the source's latency on this machine; made first where there is none, and kept in runs/",
    )
    parser.add_argument("--training", default="", help="of every method: augment=flip,crop precision=bf16-mixed")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--note", action="append", default=[], metavar="TEXT", help="about how it was measured")
    parser.add_argument("--out", type=Path, help="the page's file; standard output otherwise")
    return parser.parse_args()


def _training(text: str) -> dict[str, Any]:
    """augment=A,B precision=P and numbers of torch_backend.settings, as name=value."""
    found: dict[str, Any] = {}
    for part in text.split():
        name, _, value = part.partition("=")
        found[name] = tuple(value.split(",")) if name == "augment" else value if name == "precision" else float(value)
    return found


def with_samples(dataset: DataSet, samples: int | None) -> DataSet:
    """With so many of the training samples, drawn with seed 0."""
    if samples is None:
        return dataset
    return replace(dataset, splits={**dataset.splits, "train": drawn(dataset.split("train"), samples)})


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
