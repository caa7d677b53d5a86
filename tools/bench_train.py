"""What training costs, and what BatchNormalization buys it.

python tools/bench_train.py steps --table tools/results/bench_train_steps.md
python tools/bench_train.py layout --table tools/results/bench_train_layout.md
python tools/bench_train.py norms --data DIR --table tools/results/bench_train_norms.md

`steps` times a step of SGD on the lowered graph against the torch module that was exported, in turns; on a GPU where
there is one. `layout` times a step with channels last against one with channels first. `norms` trains ResNet-20 on
CIFAR-10 (DIR: parquet files), folds its norms into the convolutions as exporters do, halves its MACs by L2 scores, and
trains what is left for three epochs, with and without norms put back; each run is a file in runs/bench_train, so that a
stopped one goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.torchvision_schemas import define_missing_schemas  # noqa: E402 - found through the line above

define_missing_schemas()

import conet_onnx as co  # noqa: E402 - found through the path above
from conet_onnx.cli.main import main as conet_onnx  # noqa: E402 - found through the path above
from conet_onnx.data import DataSet, fed, load_data  # noqa: E402 - found through the path above
from conet_onnx.evaluation import evaluate  # noqa: E402 - found through the path above
from conet_onnx.files import atomic_write  # noqa: E402 - found through the path above
from conet_onnx.planning import scaled  # noqa: E402 - found through the path above
from conet_onnx.torch_backend import fit  # noqa: E402 - found through the path above
from conet_onnx.torch_backend.learner import Learner  # noqa: E402 - found through the path above
from conet_onnx.transfer import transferred  # noqa: E402 - found through the path above
from models.exporting import save  # noqa: E402 - found through the path above
from models.resnet_cifar import resnet20  # noqa: E402 - found through the path above
from tools.make_models import CIFAR10, trained  # noqa: E402 - likewise
from tools.measuring import compared, facts, heading, in_turns, line, markdown, timed  # noqa: E402 - likewise

RUNS = ROOT / "runs" / "bench_train"
LIMIT = 1.05
PACKAGES = ("torch", "torchvision", "lightning-fabric", "onnx", "onnxruntime-gpu")


def main() -> int:
    """Run one benchmark; 1 if a limit does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch; default: all cores")
    common.add_argument("--table", type=Path, metavar="F", help="write the table as Markdown")
    what = parser.add_subparsers(dest="what", required=True)
    steps = what.add_parser("steps", parents=[common])
    steps.add_argument("--only", action="append", choices=MODULES, help="this model; may be given again")
    steps.add_argument("--repeats", type=int, default=15)
    steps.add_argument("--batch", type=int, default=32)
    layout = what.add_parser("layout", parents=[common])
    layout.add_argument("--only", action="append", choices=LAYOUTS, help="this model; may be given again")
    layout.add_argument("--scale", action="append", type=float, default=[], help="and at all widths times this")
    layout.add_argument("--repeats", type=int, default=5)
    layout.add_argument("--batch", type=int, default=4)
    norms = what.add_parser("norms", parents=[common])
    norms.add_argument("--data", required=True, metavar="DIR")
    norms.add_argument("--source-epochs", type=int, default=6)
    norms.add_argument("--epochs", type=int, default=3)
    norms.add_argument("--seeds", type=int, default=3)
    norms.add_argument("--lr", type=float, default=0.05)
    norms.add_argument("--precision", default="32-true", help="of all trainings, as Fabric has it: bf16-mixed, say")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return {"steps": _steps, "layout": _layout, "norms": _norms}[arguments.what](arguments)


def _vit_tiny() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(224, 16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768)


def _vision(name: str) -> nn.Module:
    import torchvision

    made: nn.Module = torchvision.models.get_model(name)
    return made


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (partial(_vision, "resnet18"), (3, 224, 224)),
    "mobilenet_v2": (partial(_vision, "mobilenet_v2"), (3, 224, 224)),
    "vit_tiny": (_vit_tiny, (3, 224, 224)),
    "resnet20": (resnet20, (3, 32, 32)),
}
LAYOUTS = (
    *("resnet20", "resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0", "efficientnet_b0"),
    *("squeezenet1_0", "regnet_x_400mf", "vgg11", "convnext_tiny"),
)


def _steps(arguments: argparse.Namespace) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = facts(PACKAGES, threads=arguments.threads, repeats=arguments.repeats, batch=arguments.batch)
    machine["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(*(f"{key}: {value}" for key, value in machine.items()), "", heading(), sep="\n")
    rows = []
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or MODULES:
        build, shape = MODULES[name]
        torch.manual_seed(0)
        module = build().train()
        size = arguments.batch * (8 if shape[1] < 64 else 1)
        file = RUNS / f"{name}.onnx"
        graph = save(module, shape, file, keep_norms=True)
        batch = torch.randn(size, *shape, device=device)
        labels = torch.randint(0, 10, (size,), device=device)
        lowered = co.to_torch(graph).to(device)
        peers = {"": (lowered, module.to(device), batch)}
        last: dict[str, Any] = {"memory_format": torch.channels_last}
        peers["channels last"] = (
            copy.deepcopy(lowered).to(**last),
            copy.deepcopy(module).to(**last),
            batch.to(**last),
        )
        for label, (ours, peer, x) in peers.items():
            if label and name.startswith("vit"):
                continue
            one, other = _step(ours, x, labels), _step(peer, x, labels)
            timed(one), timed(other)
            pairs = in_turns(partial(timed, one), partial(timed, other), arguments.repeats)
            case = f"{name}, {size} images{', ' if label else ''}{label}"
            rows.append(compared("training step", case, pairs, "the torch module", LIMIT))
            print(line(rows[-1]), flush=True)
    if arguments.table:
        command = f"python tools/bench_train.py steps --threads {arguments.threads}"
        arguments.table.write_text(markdown("A step of training", command, machine, rows))
    return int(not all(row.ok for row in rows))


def _layout(arguments: argparse.Namespace) -> int:
    """Ours against ours: what holding channels last does to a step; no limit, but the default, which the case ends
    with, follows from it."""
    machine = facts(PACKAGES, threads=arguments.threads, repeats=arguments.repeats, batch=arguments.batch)
    print(*(f"{key}: {value}" for key, value in machine.items()), "", heading(), sep="\n")
    rows = []
    RUNS.mkdir(parents=True, exist_ok=True)
    for name, scale in product(arguments.only or LAYOUTS, (1.0, *arguments.scale)):
        build, shape = MODULES.get(name, (partial(_vision, name), (3, 224, 224)))
        torch.manual_seed(0)
        graph = save(build().train(), shape, RUNS / f"{name}.onnx", keep_norms=True)
        if scale != 1:
            analysis = co.analyze(graph)
            graph = transferred(analysis, scaled(analysis, scale)[0]).graph
        first = co.to_torch(graph)
        chosen = "last" if Learner(graph, torch.device("cpu")).prefers_last() else "first"
        size = arguments.batch * (8 if shape[1] < 64 else 1)
        batch, labels = torch.randn(size, *shape), torch.randint(0, 10, (size,))
        last: dict[str, Any] = {"memory_format": torch.channels_last}
        one = _step(copy.deepcopy(first).to(**last), batch.to(**last), labels)
        other = _step(first, batch, labels)
        timed(one), timed(other)
        pairs = in_turns(partial(timed, one), partial(timed, other), arguments.repeats)
        case = f"{name}{'' if scale == 1 else f' at {scale:g}'}, {size} images: {chosen}"
        rows.append(compared("channels last", case, pairs, "channels first", math.inf))
        print(line(rows[-1]), flush=True)
    if arguments.table:
        scales = "".join(f" --scale {scale:g}" for scale in arguments.scale)
        command = f"python tools/bench_train.py layout --threads {arguments.threads}{scales}"
        arguments.table.write_text(markdown("A step of training with channels last", command, machine, rows))
    return 0


def _step(module: Any, batch: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    module.train()
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(batch), labels).backward()
        optimiser.step()
        if batch.is_cuda:
            torch.cuda.synchronize()

    return step


def _norms(arguments: argparse.Namespace) -> int:
    RUNS.mkdir(parents=True, exist_ok=True)
    data = load_data(arguments.data)
    source, half = _source(data, arguments), RUNS / "half.onnx"
    if not half.exists():
        CIFAR10.save_beside(source)
        words = ["--budget", "macs=0.5", "--criterion", "l2", "--no-verify"]
        if conet_onnx(["resize", os.fspath(source), "-o", os.fspath(half), *words]):
            return 1
    runs = list(_runs(half, data, arguments))
    text = _norms_table(source, half, data, runs, arguments)
    print(text)
    if arguments.table:
        arguments.table.write_text(text)
    return 0


def _source(data: DataSet, arguments: argparse.Namespace) -> Path:
    """ResNet-20, trained, as an exporter writes it: its norms are in the convolutions."""
    file = RUNS / "source.onnx"
    if file.exists():
        return file
    torch.manual_seed(0)
    module = resnet20()
    how: dict[str, Any] = {"epochs": arguments.source_epochs, "threads": arguments.threads}
    trained(module, data, CIFAR10, RUNS / "with_norms.onnx", precision=arguments.precision, **how)
    save(module, (3, 32, 32), file)
    return file


def _runs(half: Path, data: DataSet, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    graph = co.load(half)
    for seed in range(arguments.seeds):
        for how in ("none", "reinsert"):
            record = RUNS / f"{how}-{seed}-{arguments.epochs}-{arguments.lr:g}.json"
            if not record.exists():
                fitted = fit(
                    graph,
                    data.split("train"),
                    epochs=arguments.epochs,
                    lr=arguments.lr,
                    batchnorm=how,
                    seed=seed,
                    normalise=lambda x: fed(graph, x, CIFAR10),
                    threads=arguments.threads,
                    channels_last=True,
                    precision=arguments.precision,
                    checkpoint=record.with_suffix(".ckpt"),
                    progress=_Log(record.stem),
                )
                found = evaluate(fitted.graph, data, split="test", provider="cpu", normalisation=CIFAR10)
                kept = {"how": how, "seed": seed, "top1": found.top1, "seconds": fitted.seconds}
                with atomic_write(record) as part:
                    part.write_text(json.dumps(kept))
            yield json.loads(record.read_text())


class _Log:
    """A line every minute."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.at = time.monotonic()

    def __call__(self, done: float) -> None:
        if time.monotonic() - self.at > 60:
            self.at = time.monotonic()
            print(f"{time.strftime('%H:%M:%S')} {self.name}: {done:.0%}", flush=True)


def _norms_table(source: Path, half: Path, data: DataSet, runs: list[dict[str, Any]], arguments: Any) -> str:
    machine = facts(PACKAGES, threads=arguments.threads)
    large, small = (co.analyze(co.load(file)).costs.price({}).macs for file in (source, half))
    shared: dict[str, Any] = {"split": "test", "provider": "cpu", "normalisation": CIFAR10}
    before = {name: evaluate(co.load(file), data, **shared).top1 for name, file in (("source", source), ("half", half))}
    lines = [
        "# What BatchNormalization buys a training",
        "",
        f"ResNet-20 on CIFAR-10, trained for {arguments.source_epochs} epochs (crops, flips, one cycle, learning rate "
        f"0.1), exported with folded norms: {before['source']:.2%} on test. Resized to x{small / large:.3f} the MACs "
        f"by L2 scores: {before['half']:.2%}. Then {arguments.epochs} epochs on labels alone, batches of 64, SGD, "
        f"learning rate {arguments.lr:g}, as it is or with norms that are put back and folded away again. All were "
        f"trained at precision {arguments.precision}.",
        "",
        f"    python tools/bench_train.py --threads {arguments.threads} norms --data DIR --seeds {arguments.seeds} "
        f"--source-epochs {arguments.source_epochs} --lr {arguments.lr:g} --precision {arguments.precision}",
        "",
        *(f"- {key}: {value}" for key, value in machine.items()),
        "",
        "| norms while it is trained | test accuracy, each seed | mean | deviation |",
        "|---|---|---|---|",
    ]
    for how, words in (("none", "none (folded)"), ("reinsert", "put back")):
        own = [run for run in runs if run["how"] == how]
        scores = [run["top1"] for run in own]
        spread = f"{100 * statistics.stdev(scores):.2f} points" if len(scores) > 1 else ""
        each = ", ".join(f"{score:.2%}" for score in scores)
        lines.append(f"| {words} | {each} | {statistics.mean(scores):.2%} | {spread} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
