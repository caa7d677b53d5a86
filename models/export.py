"""Write a reference network as an ONNX file, with random weights that the seed decides.

python -m models.export resnet20 -o resnet20.onnx
python -m models.export resnet34 -o resnet34.onnx --classes 10 --size 32 --train-bn
python -m models.export --list
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from conet_onnx.analysis import analyze
from conet_onnx.cli.output import count
from conet_onnx.errors import ConetError, UsageError
from conet_onnx.graph import Graph
from models.catalogue import NETWORKS, built
from models.exporting import OPSET, save

__all__ = ["main"]

OPSETS = range(13, 21)  # that the exporter writes


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code is that of conet-onnx: 2 where the request is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m models.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of --list")
    parser.add_argument("-o", "--output", type=Path, metavar="F.onnx", help="the file to write")
    parser.add_argument("--list", action="store_true", help="name the networks, and go")
    parser.add_argument("--classes", type=int, metavar="N", help="default: the paper's")
    parser.add_argument("--size", type=int, metavar="N", help="height and width of the images; default: the paper's")
    parser.add_argument(
        "--width", type=float, default=1.0, metavar="X", help="all widths times X, where the paper does"
    )
    parser.add_argument("--train-bn", action="store_true", help="keep BatchNormalization in the file, to be trained")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--opset", type=int, default=OPSET, choices=OPSETS, metavar="N", help=f"default: {OPSET}")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(_line(name) for name in NETWORKS))
        return 0
    if options.name is None or options.output is None:
        parser.error("name a network and a file: NAME -o F.onnx, or ask for --list")
    try:
        graph = _export(options)
    except ConetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(_described(graph, options)))
    return 0


def _export(options: argparse.Namespace) -> Graph:
    torch.manual_seed(options.seed)
    try:
        model, shape = built(options.name, classes=options.classes, size=options.size, width=options.width)
    except (ImportError, RuntimeError) as error:  # torchvision, where its own library was built for another torch
        what = f"{type(error).__name__}: {error}"
        hint = "If that is torchvision, install the one that goes with this torch."
        raise UsageError(f"{options.name} cannot be built here: {what}. {hint}") from error
    return save(model, shape, options.output, keep_norms=options.train_bn, opset=options.opset)


def _described(graph: Graph, options: argparse.Namespace) -> list[str]:
    analysis = analyze(graph)
    found = analysis.as_json()["model"]
    norms = "kept, to be trained" if options.train_bn else "folded"
    shape = "x".join(map(str, graph.inputs[0].shape[1:]))
    return [
        f"{options.output}: {options.name} ({NETWORKS[options.name].paper}), opset {found['opset']}, images {shape}, "
        f"random weights of seed {options.seed}, BatchNormalization {norms}.",
        f"{count(found['params'])} parameters, {count(found['macs'])} MACs at batch 1; {len(analysis.widths)} width "
        f"groups, in weights with {analysis.costs.coverage.params:.1%} of the parameters.",
        f"Next: conet-onnx analyze {options.output}",
    ]


def _line(name: str) -> str:
    network = NETWORKS[name]
    return f"{name:18} {network.paper:22} {network.classes:5} classes, {network.size}x{network.size}"


if __name__ == "__main__":
    sys.exit(main())
