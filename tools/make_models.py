"""Train the models that are shipped in models/, export them, and write what they are into models/README.md."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from conet_onnx.data import DataSet, Normalisation, load_data  # noqa: E402  (after the path)
from conet_onnx.evaluation import Evaluation, evaluate  # noqa: E402 - found through the line above
from conet_onnx.files import atomic_write, sha256_of  # noqa: E402 - found through the line above
from conet_onnx.loading import load  # noqa: E402 - found through the line above
from models.exporting import save  # noqa: E402 - found through the line above
from models.resnet_cifar import ResNet, resnet8  # noqa: E402 - found through the line above

NORMALISATION = Normalisation(scale=1 / 16)  # the digits' pixels are 0..16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "models", help="folder of the models and their README.md")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="more is not faster for networks as small as these")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
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
