"""`score`: how much of each layer's weight stands out of the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from conet_onnx.cli.command import Command
from conet_onnx.cli.options import input_shape_option, json_option, model_argument
from conet_onnx.cli.output import Bar, check_writable, command, says, several, table, write

if TYPE_CHECKING:
    from conet_onnx.metrics import LayerQuality, Quality

__all__ = ["score"]

LEGEND = {  # the metrics, in the order in which a user meets them
    "qc": "atan2(rank / channels, 1 - 1 / condition), in radians: 0 is all noise",
    "newqc": "atan2(gain, 1 - 1 / condition), in radians: 0 is all noise",
    "rank": "singular values that stand out of the noise (EVBMF)",
    "ratio": "rank / channels",
    "condition": "the largest singular value that stands out of the noise, over the smallest",
    "gain": "sum of the singular values that stand out of the noise, over the largest and over the channels",
}


@click.command(cls=Command)
@model_argument
@click.option("--metric", type=click.Choice(tuple(LEGEND)), default="qc", show_default=True, help="Which one is shown.")
@json_option
@input_shape_option
def score(model: str, metric: str, json_to: str | None, input_shapes: dict[str, tuple[int, ...]]) -> None:
    """Show per layer how much of its weight is signal, by input and by output channels. `--json` has every metric."""
    check_writable(json_to)
    with Bar() as bar:
        bar.at(0.0, f"Reading {model}")
        from conet_onnx.loading import load
        from conet_onnx.metrics import as_json
        from conet_onnx.metrics import score as score_layers

        found = score_layers(load(model, input_shapes=input_shapes), progress=bar.at)
    if json_to:
        write(json_to, as_json(found))
    if json_to == "-":
        return
    _show(model, metric, found)


def _show(file: str, metric: str, found: Sequence[LayerQuality]) -> None:
    says(f"{file}: {several(len(found), 'layer')}.")
    if not found:
        says("No convolution and no matrix product reads a weight of its own: there is nothing to measure.")
        return
    says()
    names = tuple(dict.fromkeys((metric, "rank")))
    columns = tuple(f"{name} {side}" for name in names for side in ("in", "out"))
    table(
        ("layer", "kind", "shape", *columns),
        (
            (
                one.tensor,
                one.kind,
                "×".join(map(str, one.layer.shape)),
                *(
                    text
                    for name in names
                    for text in (_cell(one.ins, name, one.layer.ins), _cell(one.outs, name, one.layer.outs))
                ),
            )
            for one in found
        ),
        right=columns,
    )
    says()
    says(f"{metric}: {LEGEND[metric]}.")
    if any(one.layer.groups > 1 for one in found):
        says("Layers in groups: the mean over the groups, of the channels of one.")
    says()
    says("What next")
    says(f"  {command('analyze', file)}")
    says(f"  {command('search', file, '--data', 'DATA', '--budget', 'macs=0.5')}")


def _cell(quality: Quality, metric: str, channels: int) -> str:
    value: float = getattr(quality, metric)
    return (
        f"{value:.4g}/{channels}" if metric == "rank" else f"{value:.4g}" if metric == "condition" else f"{value:.3f}"
    )
