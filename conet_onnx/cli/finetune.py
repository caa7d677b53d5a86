"""`finetune`: train or distil a model as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conet_onnx.cli.command import Command, Interrupted, State
from conet_onnx.cli.evaluate import check_pair, describe_choice, given_normalisation, noun
from conet_onnx.cli.freeing import free
from conet_onnx.cli.options import (
    augment_option,
    batchnorm_option,
    data_options,
    data_words,
    free_batch_option,
    input_shape_option,
    json_option,
    lesson_options,
    model_argument,
    positive,
    provider_option,
    threads_option,
)
from conet_onnx.cli.output import Bar, check_writable, command, duration, flushed, log, says, several, table, write
from conet_onnx.errors import UsageError
from conet_onnx.processes import leads

if TYPE_CHECKING:
    from conet_onnx.finetuning import Finetuned

__all__ = ["finetune"]

SHARES = ("accuracy", "same class as the teacher")
NAMED = 3  # weights that are named, of those that stay for one reason


@click.command(cls=Command)
@model_argument
@click.option("-o", "--output", "out", required=True, metavar="OUT.onnx", help="Where the trained model goes.")
@data_options
@click.option("--teacher", metavar="T.onnx", help="A model to learn from: of the same outputs, on the same inputs.")
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, metavar="E", help="Passes.")
@click.option(
    "--labels",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="auto: the data's, if it has any; none: learn from the teacher alone.",
)
@lesson_options
@click.option("--temperature", callback=positive, metavar="T", help="Of the teacher's scores (4).")
@click.option("--feature-weight", type=click.FloatRange(min=0), metavar="W", help="Of the features' loss (1).")
@augment_option
@click.option(
    "--init",
    type=click.Choice(["inherit", "fresh"]),
    default="inherit",
    show_default=True,
    help="fresh: forget the weights, and train from scratch.",
)
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), default="sgd", show_default=True)
@click.option("--lr", callback=positive, metavar="R", help="Highest learning rate (sgd: 0.02, adamw: 0.001).")
@click.option("--weight-decay", type=click.FloatRange(min=0), metavar="W", help="(sgd: 0.0005, adamw: 0.01.)")
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "onecycle", "step", "decay", "adas", "constant"]),
    default="cosine",
    show_default=True,
    help="How the learning rate falls.",
)
@click.option("--decay-every", callback=positive, metavar="E", help="Epochs, of --schedule decay (25).")
@click.option("--decay-factor", type=click.FloatRange(0, 1, min_open=True), metavar="F", help="Of each (0.5).")
@click.option("--warmup", type=click.FloatRange(0, 1), metavar="W", help="Share of the steps in which it rises (0.1).")
@click.option(
    "--hold", type=click.FloatRange(0, 1, max_open=True), metavar="H", help="Share of the steps before the cosine (0)."
)
@click.option("--accumulate", type=click.IntRange(min=1), metavar="N", help="Batches that make one step (1).")
@click.option("--clip", callback=positive, metavar="C", help="Longest gradient (5).")
@click.option("--ema", callback=positive, metavar="D", help="Keep the moving average of the weights: 0.999, say.")
@click.option(
    "--channel-dropout",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="P",
    help="Drop this share of all widths' channels; it grows from epoch to epoch up to that (0).",
)
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="Batch size.")
@batchnorm_option
@click.option("--accelerator", default="auto", show_default=True, metavar="A", help="Fabric's: cpu, cuda, mps.")
@click.option("--devices", type=click.IntRange(min=1), metavar="N", help="How many of them share each batch (1).")
@click.option("--strategy", metavar="S", help="Fabric's, for several devices: ddp (default), fsdp.")
@click.option("--precision", default="32-true", show_default=True, metavar="P", help="Fabric's: bf16-mixed, 16-mixed.")
@click.option(
    "--channels-last/--no-channels-last", default=None, help="How images are held (by default, where that is faster)."
)
@click.option("--compile", is_flag=True, default=None, help="Train what torch.compile makes of the model.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same weights.")
@click.option("--resume", is_flag=True, help="Go on where a training to the same OUT.onnx was stopped.")
@free_batch_option
@provider_option
@threads_option
@json_option
@input_shape_option
@click.pass_context
def finetune(
    ctx: click.Context,
    /,
    model: str,
    out: str,
    data: str,
    resize: int | None,
    crop: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    teacher: str | None,
    labels: str,
    task: str | None,
    resume: bool,
    free_batch: bool,
    provider: str,
    threads: int | None,
    json_to: str | None,
    input_shapes: dict[str, tuple[int, ...]],
    **settings: Any,
) -> None:
    """Train a model on labels, on what a teacher says, or on both. How long it takes is said after the first steps.

    OUT.onnx.ckpt holds the state after every epoch, until OUT.onnx is there: `--resume` goes on from it.
    """
    check_pair(mean, std)
    check_writable(json_to, out)
    places = [os.path.realpath(path) for path in (model, teacher, out, json_to) if path not in (None, "-")]
    if places.count(os.path.realpath(out)) > 1 or (json_to and places.count(os.path.realpath(json_to)) > 1):
        raise UsageError("MODEL.onnx, --teacher, -o and --json must be different files: one would overwrite another.")
    checkpoint = _checkpoint(out, resume=resume)
    from conet_onnx.data import load_data
    from conet_onnx.finetuning import choose_inputs, uses_labels
    from conet_onnx.finetuning import finetune as run
    from conet_onnx.loading import load
    from conet_onnx.tasks import load_task

    graph = load(model, input_shapes=input_shapes)
    batch = free(graph) if free_batch else None
    graph = graph if batch is None else batch.graph
    master = None if teacher is None else load(teacher, input_shapes=input_shapes)
    own = None if task is None else load_task(task)
    dataset = load_data(data, resize=resize, crop=crop).with_validation()
    settings = {name: value for name, value in settings.items() if value is not None}
    labelled = uses_labels(dataset, wanted=labels == "auto", teacher=teacher is not None, task=own is not None)
    sources = [f"the loss of {task}"] if own is not None else ["labels"] if labelled else []
    sources += [f"what {teacher} says"] if teacher is not None else []
    again = ", from where it was stopped" if checkpoint.exists() else ""
    count = several(settings["epochs"], "epoch")
    samples = f"{len(dataset.split('train')):,} {noun(dataset, 'train')} of {dataset.name}"
    log(f"Training {model} for {count} on {samples}, from {' and '.join(sources)}{again}.")
    try:
        with Bar(1.0) as bar:
            bar.at(0, "Preparing")
            given = given_normalisation(dataset, mean, std, "train")
            choice = choose_inputs(
                graph, dataset, given=given, provider=provider, threads=threads, classifies=own is None
            )
            bar.log(describe_choice(choice.as_json()))
            found = run(
                graph,
                dataset,
                teacher=master,
                labels=labelled,
                task=own,
                choice=choice,
                provider=provider,
                threads=threads,
                checkpoint=checkpoint,
                progress=lambda done: bar.at(done, "Training" if done < 1 else "Evaluating"),
                **settings,
            )
    except KeyboardInterrupt as interrupt:
        raise Interrupted(_how_to_go_on(checkpoint, ctx.find_object(State))) from interrupt
    except UsageError as error:
        raise _with_last_good(error, out, checkpoint) from error
    if not leads():
        return
    found.graph.save(out, durable=True)
    checkpoint.unlink(missing_ok=True)
    if json_to:
        write(json_to, found.as_json())
    if json_to != "-":
        for line in batch.lines() if batch is not None else ():
            says(line)
        _report(found, model, out, data_words(data, resize, crop))


def _checkpoint(out: str, *, resume: bool) -> Path:
    """Beside the output. Raises UsageError where there is one of a training that is not to be resumed."""
    found = Path(f"{out}.ckpt")
    if found.exists() and not resume and leads():
        raise UsageError(f"{found} holds a training that was stopped: go on with --resume, or remove it.")
    return found


def _how_to_go_on(checkpoint: Path, state: State | None) -> str:
    if not checkpoint.exists():
        return "interrupted; nothing was written."
    arguments = [a for a in state.arguments if a != "--resume"] if state is not None else ["finetune", "..."]
    return f"interrupted; {checkpoint} holds what was done. Go on with: {command(*arguments, '--resume')}"


def _with_last_good(error: UsageError, out: str, checkpoint: Path) -> UsageError:
    """A training that diverged leaves the weights of the last epoch in which it had not."""
    good: Finetuned | None = getattr(error, "good", None)
    if good is None or not leads():
        return error
    good.graph.save(out, durable=True)
    checkpoint.unlink(missing_ok=True)
    return UsageError(f"{error} {out} holds the weights after epoch {len(good.history)}, the last that was good.")


def _report(found: Finetuned, model: str, out: str, data: list[str]) -> None:
    rows = []
    for split, after in found.after.items():
        for name, new in after.measures.items():
            rows.append((f"{split} {name}", *_change(name, found.before[split].measures[name], new)))
    for name in ("cross_entropy", "task", "distillation", "features"):
        if name in found.history[0]:
            first, last = found.history[0][name], found.history[-1][name]
            what = f"training {name.replace('_', ' ')}"
            rows.append((f"{what}, first and last epoch", f"{first:.4f}", f"{last:.4f}", f"{last - first:+.4f}"))
    table(("", "source", "trained", "change"), rows, right=("source", "trained", "change"))
    says()
    for name, why in found.untrained.items():
        says(f"Not trained: output {name!r}. {why}")
    for why in dict.fromkeys(found.untrained_weights.values()):
        names = [repr(name) for name, reason in found.untrained_weights.items() if reason == why]
        listed = ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
        says(f"Not trained: {several(len(names), 'weight')} ({listed}). {why}")
    for name, why in found.undropped.items():
        says(f"Not dropped: channels of {name}. {why}")
    if found.flushed:
        says(flushed(found.flushed))
    says(f"{several(len(found.history), 'epoch')} in {duration(found.seconds)}. Written: {out}.")
    says()
    says("What next")
    if any("accuracy" in after.measures for after in found.after.values()):  # else there is nothing to be right about
        says(f"  {command('evaluate', out, *data)}")
    says(f"  {command('bench', model, out)}")


def _change(name: str, old: float, new: float) -> tuple[str, str, str]:
    if name in SHARES:
        return f"{old:.2%}", f"{new:.2%}", f"{100 * (new - old):+.2f} points"
    return f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}"
