"""`evaluate`: accuracy and loss on the held-out split, through onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from conet_onnx.cli.command import Command
from conet_onnx.cli.options import (
    data_options,
    data_words,
    input_shape_option,
    json_option,
    model_argument,
    provider_option,
)
from conet_onnx.cli.output import Bar, check_writable, command, log, says, table, write
from conet_onnx.errors import UsageError

if TYPE_CHECKING:
    from conet_onnx.data import DataSet, Normalisation
    from conet_onnx.evaluation import Evaluation

__all__ = ["check_pair", "describe_choice", "evaluate", "given_normalisation", "noun"]


@click.command(cls=Command)
@model_argument
@data_options
@provider_option
@json_option
@input_shape_option
def evaluate(
    model: str,
    data: str,
    resize: int | None,
    crop: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    provider: str,
    json_to: str | None,
    input_shapes: dict[str, tuple[int, ...]],
) -> None:
    """Measure accuracy and loss on the test split with onnxruntime. Takes one pass over the data."""
    check_pair(mean, std)
    check_writable(json_to)
    from conet_onnx.data import load_data
    from conet_onnx.evaluation import evaluate as evaluate_graph
    from conet_onnx.evaluation import resolve_normalisation
    from conet_onnx.loading import load
    from conet_onnx.runtime import resolve

    graph = load(model, input_shapes=input_shapes)
    dataset = load_data(data, resize=resize, crop=crop)
    samples, what = len(dataset.split("test")), noun(dataset, "test")
    provider = resolve(provider)
    given = given_normalisation(dataset, mean, std, "test")
    choice = resolve_normalisation(graph, dataset, given=given, split="test", provider=provider)
    log(f"Evaluating {model} on {samples:,} test {what} of {dataset.name}, with {provider}.")
    log(describe_choice(choice.as_json()))
    with Bar(samples) as bar:
        bar.at(0, "Evaluating")
        found = evaluate_graph(
            graph,
            dataset,
            provider=provider,
            normalisation=choice.normalisation,
            progress=lambda done, _: bar.at(done),
        )
    if json_to:
        write(json_to, found.as_json())
    if json_to != "-":
        _show(model, data_words(data, resize, crop), found, what)


def noun(dataset: DataSet, split: str) -> str:
    """What to call the samples of a split."""
    from conet_onnx.data import Feeds

    return "samples" if isinstance(dataset.split(split).images, Feeds) else "images"


def given_normalisation(
    dataset: DataSet, mean: Sequence[float] | None, std: Sequence[float] | None, split: str
) -> Normalisation | None:
    """What --mean and --std say about pixels as this data set stores them; None without them."""
    if mean is None or std is None:
        return None
    from conet_onnx.data import Feeds, Normalisation

    images = dataset.split(split).images
    if isinstance(images, Feeds):
        raise UsageError(f"--mean and --std are for images; {dataset.name} holds what the model takes as it is.")
    return Normalisation.explicit(mean, std, images.dtype)


def describe_choice(choice: Mapping[str, Any]) -> str:
    """Which normalisation, and where it comes from; from evaluation.Choice.as_json()."""
    from conet_onnx.data import Normalisation

    if choice["name"] == "raw inputs":
        return "Inputs: as they are stored."
    chosen = f"Inputs: {Normalisation.from_json(choice['normalisation'])}"
    if choice["name"] == "given":
        return f"{chosen}, as given."
    if choice["name"] == "file":
        return f"{chosen}, from the file beside the model."
    top1 = max((found["top1"] for found in choice["scores"]), default=0.0)
    return f"{chosen}, the best of {len(choice['scores'])} tried on training images ({top1:.1%} right)."


def check_pair(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise UsageError for one of --mean and --std without the other."""
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std go together: give both, or neither.")


def _show(model: str, data: Sequence[str], found: Evaluation, what: str) -> None:
    rows = [("top-1 accuracy", f"{found.top1:.2%}")]
    if found.top5 is not None:
        rows.append(("top-5 accuracy", f"{found.top5:.2%}"))
    rows += [("loss", f"{found.loss:.4f}"), (f"{what} per second", f"{found.samples_per_second:,.0f}")]
    table((f"{found.samples:,} {found.split} {what}", model), rows, right=(model,))
    says()
    says("What next")
    says(f"  {command('search', model, *data, '--budget', 'macs=0.5')}")
