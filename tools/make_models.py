"""Train the models that are shipped in models/, export them, and write what they are into models/README.md.

python tools/make_models.py
python tools/make_models.py --network resnet20 --data DIR --epochs 12 --precision bf16-mixed

The second form trains a network of models/catalogue.py on a data set (CIFAR-10's parquet files, say) and writes it to
runs/, where the benchmarks of quality take it from; it resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.torchvision_schemas import define_missing_schemas  # noqa: E402 - found through the line above

define_missing_schemas()

from conet_onnx.data import DataSet, Normalisation, fed, load_data  # noqa: E402  (after the path)
from conet_onnx.evaluation import Evaluation, evaluate  # noqa: E402 - found through the line above
from conet_onnx.files import atomic_write, sha256_of  # noqa: E402 - found through the line above
from conet_onnx.loading import load  # noqa: E402 - found through the line above
from conet_onnx.torch_backend import fit  # noqa: E402 - found through the line above
from conet_onnx.torch_backend.weights import to_tensor  # noqa: E402 - found through the line above
from models.catalogue import built  # noqa: E402 - found through the line above
from models.exporting import save  # noqa: E402 - found through the line above
from models.resnet_cifar import ResNet, resnet8  # noqa: E402 - found through the line above

NORMALISATION = Normalisation(scale=1 / 16)  # the digits' pixels are 0..16
CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 1 / 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder; models/ and its README.md, or runs/ for a --network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="more is not faster for networks as small as these")
    parser.add_argument("--network", help="one of models/catalogue.py, for benchmarks")
    parser.add_argument("--data", metavar="DIR", help="as `conet-onnx search --data` takes it; for a --network")
    parser.add_argument("--precision", default="32-true", help="of a --network's training, as Fabric has it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.network:
        _for_benchmarks(arguments)
    else:
        _shipped(arguments)


def _shipped(arguments: argparse.Namespace) -> None:
    arguments.out = arguments.out or ROOT / "models"
    digits = load_data("digits")
    torch.manual_seed(arguments.seed)
    model = resnet8(channels=1, classes=10, shortcut="B")
    train(model, digits, epochs=arguments.epochs, seed=arguments.seed)
    path = arguments.out / "digits_resnet8.onnx"
    save(model, (1, 8, 8), path, keep_norms=True)  # fine-tuning needs the norms
    NORMALISATION.save_beside(path)
    row = table_row(path, model, (1, 8, 8), check(model, path, digits))
    describe(arguments.out / "README.md", {"digits_resnet8.onnx": row})
    print(row)


def _for_benchmarks(arguments: argparse.Namespace) -> None:
    if not arguments.data:
        raise SystemExit("--network needs the --data that it is trained on.")
    data = load_data(arguments.data)
    file = (arguments.out or ROOT / "runs") / f"{arguments.network}.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    split = data.split("train")
    module, _ = built(arguments.network, classes=int(np.max(split.labels)) + 1, size=split.shape[-1])
    how = {name: getattr(arguments, name) for name in ("epochs", "seed", "threads", "precision")}
    trained(module, data, CIFAR10, file, **how)
    found = evaluate(load(file), data, split="test", provider="cpu", threads=arguments.threads)
    print(f"{file}: {found.top1:.2%} on test, loss {found.loss:.4f}")


def trained(
    module: nn.Module, data: DataSet, normalisation: Normalisation, file: Path, *, epochs: int, **settings: Any
) -> None:
    """Train it on the data's images with labels by one cycle of the rate; write it with its norms, and the sidecar.

    `module` gets the weights. Where training was stopped it goes on (`file`.ckpt). `settings` are those of `fit`.
    """
    shape = data.split("train").shape
    graph = save(module, shape, file.with_suffix(".begun.onnx"), keep_norms=True)
    with tqdm(total=1.0, desc=file.stem, mininterval=5, bar_format="{desc} {percentage:3.0f}% {elapsed}") as bar:
        fitted = fit(
            graph,
            data.split("train"),
            epochs=epochs,
            batch=128,
            lr=0.1,
            schedule="onecycle",
            warmup=0.3,
            augment=("crop", "flip"),
            normalise=lambda x: fed(graph, x, normalisation),
            channels_last=True,
            checkpoint=file.with_suffix(".ckpt"),
            progress=lambda done: (bar.update(done - bar.n), None)[1],
            **settings,
        )
    weights = {name: to_tensor(fitted.graph.array(name)) for name in fitted.graph.weights}
    own = module.state_dict()
    module.load_state_dict({**own, **{name: one for name, one in weights.items() if name in own}})
    save(module, shape, file, keep_norms=True)
    normalisation.save_beside(file)
    for suffix in (".begun.onnx", ".ckpt"):
        file.with_suffix(suffix).unlink(missing_ok=True)


def train(model: ResNet, data: DataSet, *, epochs: int, seed: int, batch: int = 64, rate: float = 0.05) -> None:
    """SGD with one cycle of the learning rate on train, shifted by up to a pixel; the last epoch is what is kept.

    These settings were compared on validation.
    """
    images, labels = tensors(data, "train")
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(labels) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(1, epochs + 1):
        model.train()
        for index in torch.randperm(len(labels), generator=generator)[: steps * batch].split(batch):
            loss = F.cross_entropy(model(shifted(images[index], generator)), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        if epoch % 10 == 0 or epoch == epochs:
            right, loss_held_out = score(model, data, "validation")
            print(f"epoch {epoch:3d}  validation accuracy {right:.4f}  loss {loss_held_out:.4f}", file=sys.stderr)


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by -1, 0 or 1 pixels along both axes."""
    padded = F.pad(images, (1, 1, 1, 1))
    height, width = images.shape[2:]
    moves = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    return torch.stack([x[:, a : a + height, b : b + width] for x, (a, b) in zip(padded, moves, strict=True)])


def score(model: nn.Module, data: DataSet, split: str) -> tuple[float, float]:
    """Accuracy and cross-entropy in torch."""
    images, labels = tensors(data, split)
    model.eval()
    with torch.no_grad():
        logits = model(images)
    return (logits.argmax(1) == labels).float().mean().item(), F.cross_entropy(logits, labels).item()


def tensors(data: DataSet, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A split's normalised images and labels."""
    found = data.split(split)
    return torch.from_numpy(NORMALISATION.apply(found.images[:])), torch.from_numpy(np.asarray(found.labels))


def check(model: nn.Module, path: Path, data: DataSet) -> Evaluation:
    """The exported model's test result, which chose nothing; the file must agree with torch."""
    graph = load(path)
    for split in ("validation", "test"):
        found = evaluate(graph, data, split=split, provider="cpu", threads=1)
        right, loss = score(model, data, split)
        if abs(found.top1 - right) > 1e-6 or abs(found.loss - loss) > 1e-5:
            raise SystemExit(f"{path}: onnxruntime gives {found} and torch {right=}, {loss=}: the export is wrong.")
    return found


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image."""
    counted: list[int] = []

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        counted.append(output[0].numel() * module.weight[0].numel())

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return sum(counted)


def table_row(path: Path, model: nn.Module, shape: tuple[int, ...], found: Evaluation) -> str:
    """The model's line in README.md."""
    params = sum(math.prod(weight.dims) for weight in load(path).weights.values())
    cells = (f"`{path.name}`", f"{found.top1:.4f}", f"{params:,}", f"{macs(model, shape):,}", f"`{sha256_of([path])}`")
    return f"| {' | '.join(cells)} |"


def describe(readme: Path, rows: dict[str, str]) -> None:
    """Put each model's line in the place of its old one."""
    text = readme.read_text("utf-8")
    for name, row in rows.items():
        text, count = re.subn(rf"^\| `{re.escape(name)}` \|.*$", row, text, flags=re.MULTILINE)
        if count != 1:
            raise SystemExit(f"{readme}: expected one table line for {name}, found {count}.")
    with atomic_write(readme) as part:
        part.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
