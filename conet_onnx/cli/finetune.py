"""`finetune`: train or distil a model as it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from conet_onnx.cli.command import Command, Interrupted
from conet_onnx.cli.evaluate import check_pair, describe_choice, given_normalisation
from conet_onnx.cli.options import (
    batchnorm_option,
    data_options,
    input_shape_option,
    json_option,
    model_argument,
    positive,
    provider_option,
    threads_option,
)
from conet_onnx.cli.output import Bar, check_writable, command, duration, log, says, several, table, write
from conet_onnx.errors import UsageError

if TYPE_CHECKING:
    from conet_onnx.finetuning import Finetuned

__all__ = ["finetune"]


@click.command(cls=Command)
@model_argument
@click.option("-o", "--output", "out", required=True, metavar="OUT.onnx", help="Where the trained model goes.")
@data_options
@click.option("--teacher", metavar="T.onnx", help="A model to learn from: of the same classes, on the same images.")
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, metavar="E", help="Passes.")
@click.option(
    "--labels",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="auto: the data's, if it has any; none: learn from the teacher alone.",
)
@click.option("--distill", type=click.FloatRange(0, 1), metavar="W", help="Weight of the teacher beside labels (0.9).")
@click.option("--temperature", callback=positive, metavar="T", help="Of the teacher's scores (4).")
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), default="sgd", show_default=True)
@click.option("--lr", callback=positive, metavar="R", help="Highest learning rate (sgd: 0.02, adamw: 0.001).")
@click.option("--weight-decay", type=click.FloatRange(min=0), metavar="W", help="(sgd: 0.0005, adamw: 0.01.)")
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "onecycle", "step", "constant"]),
    default="cosine",
    show_default=True,
    help="How the learning rate falls.",
)
@click.option("--warmup", type=click.FloatRange(0, 1), metavar="W", help="Share of the steps in which it rises (0.1).")
@click.option("--accumulate", type=click.IntRange(min=1), metavar="N", help="Batches that make one step (1).")
@click.option("--clip", callback=positive, metavar="C", help="Longest gradient (5).")
@click.option("--ema", callback=positive, metavar="D", help="Keep the moving average of the weights: 0.999, say.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="Batch size.")
@batchnorm_option
@click.option("--precision", default="32-true", show_default=True, metavar="P", help="Fabric's: bf16-mixed, 16-mixed.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same weights.")
@provider_option
@threads_option
@json_option
@input_shape_option
def finetune(
    model: str,
    out: str,
    data: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    teacher: str | None,
    labels: str,
    provider: str,
    threads: int | None,
    json_to: str | None,
    input_shapes: dict[str, tuple[int, ...]],
    **settings: Any,
) -> None:
    """Train a model on labels, on what a teacher says, or on both. How long it takes is said after the first steps."""
    check_pair(mean, std)
    check_writable(json_to, out)
    places = [os.path.realpath(path) for path in (model, teacher, out, json_to) if path not in (None, "-")]
    if places.count(os.path.realpath(out)) > 1 or (json_to and places.count(os.path.realpath(json_to)) > 1):
        raise UsageError("MODEL.onnx, --teacher, -o and --json must be different files: one would overwrite another.")
    from conet_onnx.data import load_data
    from conet_onnx.finetuning import choose_inputs, uses_labels
    from conet_onnx.finetuning import finetune as run
    from conet_onnx.loading import load

    graph = load(model, input_shapes=input_shapes)
    master = None if teacher is None else load(teacher, input_shapes=input_shapes)
    dataset = load_data(data).with_validation()
    settings = {name: value for name, value in settings.items() if value is not None}
    labelled = uses_labels(dataset, wanted=labels == "auto", teacher=teacher is not None)
    sources = [*(["labels"] if labelled else []), *([f"what {teacher} says"] if teacher is not None else [])]
    log(
        f"Training {model} for {several(settings['epochs'], 'epoch')} on {len(dataset.split('train')):,} images of "
        f"{dataset.name}, from {' and '.join(sources)}."
    )
    try:
        with Bar(1.0) as bar:
            bar.at(0, "Preparing")
            given = given_normalisation(dataset, mean, std, "train")
            choice = choose_inputs(graph, dataset, given=given, provider=provider, threads=threads)
            bar.log(describe_choice(choice.as_json()))
            found = run(
                graph,
                dataset,
                teacher=master,
                labels=labelled,
                choice=choice,
                provider=provider,
                threads=threads,
                progress=lambda done: bar.at(done, "Training" if done < 1 else "Evaluating"),
                **settings,
            )
    except KeyboardInterrupt as interrupt:
        raise Interrupted("interrupted; nothing was written.") from interrupt
    found.graph.save(out, durable=True)
    if json_to:
        write(json_to, found.as_json())
    if json_to != "-":
        _report(found, model, out, data)


def _report(found: Finetuned, model: str, out: str, data: str) -> None:
    rows = []
    for split, after in found.after.items():
        before = found.before[split]
        change = f"{100 * (after.top1 - before.top1):+.2f} points"
        rows.append((f"{split} accuracy", f"{before.top1:.2%}", f"{after.top1:.2%}", change))
        rows.append((f"{split} loss", f"{before.loss:.4f}", f"{after.loss:.4f}", f"{after.loss - before.loss:+.4f}"))
    for name in ("cross_entropy", "distillation"):
        if name in found.history[0]:
            first, last = found.history[0][name], found.history[-1][name]
            what = f"training {name.replace('_', ' ')}"
            rows.append((f"{what}, first and last epoch", f"{first:.4f}", f"{last:.4f}", f"{last - first:+.4f}"))
    table(("", "source", "trained", "change"), rows, right=("source", "trained", "change"))
    says()
    for name, why in found.untrained.items():
        says(f"Not trained: output {name!r}. {why}")
    says(f"{several(len(found.history), 'epoch')} in {duration(found.seconds)}. Written: {out}.")
    says()
    says("What next")
    says(f"  {command('evaluate', out, '--data', data)}")
    says(f"  {command('bench', model, out)}")
