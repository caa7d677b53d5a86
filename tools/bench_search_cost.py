"""What a search with every option at its default costs beside training its source from scratch.

python tools/bench_search_cost.py --data DIR --samples 10000 --table tools/results/bench_search_cost.md

A network of models/catalogue.py is trained as tools/make_models.py trains it, `search` is asked for a budget, and the
network is begun once more for one epoch: the source's seconds are its epochs, each as long as those before and after
the search on average, since machines change their speed. A record a network, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # models/ is no part of the package

from tools.torchvision_schemas import define_missing_schemas  # noqa: E402 - found through the line above

define_missing_schemas()

from conet_onnx.data import DataSet, load_data  # noqa: E402 - found through the path above
from conet_onnx.files import atomic_write  # noqa: E402
from conet_onnx.loading import load  # noqa: E402
from conet_onnx.searching import search  # noqa: E402
from models.catalogue import built  # noqa: E402
from tools.bench_quality import with_samples  # noqa: E402
from tools.make_models import CIFAR10, trained  # noqa: E402
from tools.measuring import Beside, facts  # noqa: E402

RECORDS = ROOT / "tools" / "results" / "search_cost"
NETWORKS = ("resnet20", "plain20", "mobilenet_v2")
PACKAGES = ("onnx", "onnxruntime-gpu", "torch", "lightning-fabric", "optuna")
MOST, REST = 1.0, 0.05  # of the source's training; of the search, what is neither training nor evaluation
HEADINGS = (
    *("network", "images", "source, epochs", "an epoch before, after", "search", "search / source", "training"),
    *("evaluation", "the rest", "foretold", "test accuracy"),
)


@dataclass
class Heard:
    """What a search says of how long it takes."""

    begun: float = field(default_factory=time.perf_counter)
    foretold: float | None = None  # seconds in all, as soon as it is known

    def __call__(self, phase: str, done: float, work: float, left: float | None) -> None:
        if self.foretold is None and left is not None:
            self.foretold = time.perf_counter() - self.begun + left


def main() -> int:
    """Measure what has no record yet, and print the table of all records; 1 if a limit does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="D", help="as `conet-onnx search --data` takes it")
    parser.add_argument("--network", action="append", metavar="N", help=f"may be given again (default: {NETWORKS})")
    parser.add_argument("--samples", type=int, help="of the training data (default: all)")
    parser.add_argument("--epochs", type=int, default=12, help="of the source's training")
    parser.add_argument(
        "--first", type=int, metavar="E", help="of these before the search, each as long as any other (default: all)"
    )
    parser.add_argument("--budget", default="macs=0.5")
    parser.add_argument("--threads", type=int, default=2, help="of everything")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--table", type=Path, metavar="F", help="write it as Markdown, too")
    arguments = parser.parse_args()
    arguments.records.mkdir(parents=True, exist_ok=True)
    data = with_samples(load_data(arguments.data), arguments.samples)
    for network in arguments.network or NETWORKS:
        file = arguments.records / f"{network}-{len(data.split('train'))}.json"
        if not file.exists():
            how = {name: getattr(arguments, name) for name in ("epochs", "first", "budget", "threads")}
            record = measured(network, data, **how)
            with atomic_write(file) as part:
                part.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    found = [json.loads(file.read_text("utf-8")) for file in sorted(arguments.records.glob("*.json"))]
    text = table(found)
    print(text)
    if arguments.table is not None:
        with atomic_write(arguments.table) as part:
            part.write_text(text, "utf-8")
    return 0 if all(ratio(one) <= MOST and rest(one) <= REST for one in found) else 1


def measured(
    network: str, data: DataSet, *, epochs: int, first: int | None, budget: str, threads: int
) -> dict[str, Any]:
    """A network's record: seconds of an epoch before and after the search, and those of the search."""
    torch.set_num_threads(threads)
    beside = Beside()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{network}.onnx"
        many = first or epochs
        before = _seconds(network, data, file, epochs=many, threads=threads) / many
        heard = Heard()
        out = Path(folder) / "run"
        run = search(load(file), data=data, budget=budget, threads=threads, progress=heard, out=out).run
        after = _seconds(network, data, Path(folder) / "again.onnx", epochs=1, threads=threads)
    assert run.best is not None
    assert run.source.test is not None
    assert run.best.test is not None
    return {
        "network": network,
        "images": len(data.split("train")),
        "epochs": epochs,
        "first": many,
        "budget": budget,
        "epoch": {"before": before, "after": after},
        "search": dict(run.seconds),
        "foretold": heard.foretold,
        "trained": run.epochs,
        "test": {"source": run.source.test["top1"], "best": run.best.test["top1"]},
        "macs": run.best.macs / run.source.macs,
        "others": beside.share(),
        "machine": facts(PACKAGES, threads=threads),
    }


def _seconds(network: str, data: DataSet, file: Path, *, epochs: int, threads: int) -> float:
    """What it takes to train it from scratch, and to write it."""
    split = data.split("train")
    torch.manual_seed(0)
    module, _ = built(network, classes=int(np.max(split.labels)) + 1, size=split.shape[-1])
    begun = time.perf_counter()
    trained(module, data, CIFAR10, file, epochs=epochs, seed=0, threads=threads, precision="32-true")
    return time.perf_counter() - begun


def source_seconds(record: dict[str, Any]) -> float:
    """Of the source's training from scratch."""
    return float(record["epochs"] * (record["epoch"]["before"] + record["epoch"]["after"]) / 2)


def ratio(record: dict[str, Any]) -> float:
    """The search's time to that of the source's training."""
    return float(record["search"]["total"] / source_seconds(record))


def rest(record: dict[str, Any]) -> float:
    """The share of a search's time that is neither training nor evaluation."""
    return float(record["search"]["overhead"] / record["search"]["total"])


def table(records: list[dict[str, Any]]) -> str:
    """All of them as a page."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(_cells, records)]
    machines = {json.dumps({**one["machine"], "budget": one["budget"]}) for one in records}
    return "\n".join(
        [
            "# What a search costs beside its source's training",
            "",
            "Made by `tools/bench_search_cost.py`. The source is trained from scratch as `tools/make_models.py` does,",
            "and `search` has every option at its default. A source's seconds are its epochs times the mean of what",
            f"one takes before and after the search. `search / source` is to be at most {MOST:g}, the rest at most",
            f"{REST:.0%} of the search. Accuracies are of what so few epochs teach: this page is about time.",
            "",
            *(
                f"- {'; '.join(f'{key}: {value}' for key, value in json.loads(one).items())}"
                for one in sorted(machines)
            ),
            "",
            *(f"| {' | '.join(cells)} |" for cells in rows),
            "",
        ]
    )


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    seconds, epoch = record["search"], record["epoch"]
    return (
        record["network"],
        f"{record['images']:,}",
        f"{source_seconds(record):.0f} s, {record['epochs']}",
        f"{epoch['before']:.1f} s, {epoch['after']:.1f} s",
        f"{seconds['total']:.0f} s",
        f"×{ratio(record):.2f}",
        f"{seconds['training']:.0f} s, {record['trained']:g} epochs",
        f"{seconds['evaluation']:.0f} s",
        f"{seconds['overhead']:.1f} s ({rest(record):.1%})",
        f"{record['foretold']:.0f} s",
        f"{record['test']['source']:.1%} → {record['test']['best']:.1%} at ×{record['macs']:.2f} MACs",
    )


if __name__ == "__main__":
    sys.exit(main())
