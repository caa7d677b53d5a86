"""Options that several commands share, and how their values are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

__all__ = [
    "batchnorm_option",
    "calibration_options",
    "data_options",
    "data_words",
    "free_batch_option",
    "freeze_option",
    "input_shape_option",
    "json_option",
    "lesson_options",
    "model_argument",
    "multiple_option",
    "numbers",
    "positive",
    "provider_option",
    "table_option",
    "threads_option",
    "transfer_option",
]

KINDS = ("auto", "kl", "mse", "cosine", "none")
TRANSFERS = ("slice", "svd", "evbmf", "net2net", "zero", "least-squares")

F = TypeVar("F", bound=Callable[..., Any])


def model_argument(function: F) -> F:
    """MODEL.onnx; its faults are found by graph.load, which knows the exit code."""
    return click.argument("model", metavar="MODEL.onnx")(function)


def input_shape_option(function: F) -> F:
    """--input-shape NAME=1x3x224x224, repeatable, as a dict."""
    return click.option(
        "--input-shape",
        "input_shapes",
        metavar="NAME=1x3x224x224",
        multiple=True,
        callback=_input_shapes,
        help="Sizes for an input with dynamic axes (repeatable).",
    )(function)


def freeze_option(function: F) -> F:
    """--freeze NAME, repeatable."""
    return click.option(
        "--freeze", multiple=True, metavar="NAME", help="A group, node or tensor whose widths stay (repeatable)."
    )(function)


def free_batch_option(function: F) -> F:
    """--free-batch, which a resize and the proof of what it wrote must both be told."""
    return click.option(
        "--free-batch", is_flag=True, help="Free the source's baked batch size first; the file takes any batch."
    )(function)


def json_option(function: F) -> F:
    """--json F|-."""
    return click.option(
        "--json", "json_to", metavar="F|-", help="Write the result as JSON to a file, or to stdout in place of tables."
    )(function)


def data_options(function: F) -> F:
    """--data D --resize R --crop C --mean M --std S."""
    return _data_options(function, required=True, use="")


def calibration_options(function: F) -> F:
    """The same for a command that can do without, and --samples N."""
    samples = click.option(
        "--samples",
        type=click.IntRange(min=1),
        metavar="N",
        help="Training samples to measure and fit on (default: 256).",
    )
    return _data_options(samples(function), required=False, use="What is measured and fitted on (train split): ")


def _data_options(function: F, *, required: bool, use: str) -> F:
    std = click.option("--std", metavar="V,...", callback=numbers, help="Divides the pixels after --mean.")
    mean = click.option("--mean", metavar="V,...", callback=numbers, help="Subtracted from the pixels, in 0..1.")
    size = click.IntRange(min=1)
    crop = click.option(
        "--crop", type=size, metavar="C", help="Cut CxC from the middle of image files, after --resize."
    )
    resize = click.option("--resize", type=size, metavar="R", help="Resize image files: the shorter side becomes R.")
    return click.option(
        "--data",
        required=required,
        metavar="D",
        help=f"{use}digits | folder of class folders | folder of images | parquet | hf:ID | hf:FOLDER | .npz | .npy | "
        "folder of these, an array for each of the model's inputs | cifar10:DIR | cifar100:DIR | module:function.",
    )(resize(crop(mean(std(function)))))


def data_words(data: str, resize: int | None, crop: int | None) -> list[str]:
    """--data and what goes with it, as words of a command."""
    sizes = (("--resize", resize), ("--crop", crop))
    return ["--data", data, *(word for name, n in sizes if n is not None for word in (name, str(n)))]


def batchnorm_option(function: F) -> F:
    """--batchnorm auto|reinsert|none."""
    return click.option(
        "--batchnorm",
        type=click.Choice(["auto", "reinsert", "none"]),
        default="auto",
        show_default=True,
        help="Train folded convolutions with BatchNormalization, folded away again; auto: in networks without norms.",
    )(function)


def augment_option(function: F) -> F:
    """--augment A,..."""
    return click.option(
        "--augment",
        callback=_names,
        metavar="A,...",
        help="Change images at random: crop, flip, cutout, mixup, randaugment.",
    )(function)


def lesson_options(function: F) -> F:
    """--task, --loss, --feature, --distill: what is learned."""
    task = click.option("--task", metavar="module:Class", help="Your own loss, metric and collate, in place of labels.")
    loss = click.option(
        "--loss",
        multiple=True,
        callback=_pairs,
        metavar="[NAME=]K",
        help="How outputs follow the teacher's: kl, mse, cosine or none (repeatable; auto: kl for classes, else mse).",
    )
    features = click.option(
        "--feature",
        "features",
        multiple=True,
        callback=_pairs,
        metavar="NAME[=T]",
        help="A tensor inside of the model that follows the teacher's of that name, or T (repeatable).",
    )
    distill = click.option(
        "--distill",
        type=click.FloatRange(0, 1),
        metavar="W",
        help="The teacher's weight beside labels or a task (0.9; 0.5 in a search whose budget holds the source).",
    )
    return distill(loss(features(task(function))))


def transfer_option(default: str | None) -> Callable[[F], F]:
    """--transfer T."""
    return click.option(
        "--transfer",
        type=click.Choice(TRANSFERS),
        default=default,
        show_default=default is not None,
        help="What becomes of trained weights when widths change (docs/transfer.md).",
    )


def provider_option(function: F) -> F:
    """--provider P."""
    return click.option(
        "--provider",
        default="auto",
        show_default=True,
        metavar="P",
        help="onnxruntime execution provider; auto is the first that starts.",
    )(function)


def threads_option(function: F) -> F:
    """--threads N."""
    return click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads (default: all).")(
        function
    )


def table_option(function: F) -> F:
    """--table F, repeatable."""
    return click.option(
        "--table",
        "tables",
        multiple=True,
        metavar="F",
        help="A latency table that `profile` has made (repeatable).",
    )(function)


def multiple_option(function: F) -> F:
    """--multiple auto|none|M."""
    return click.option(
        "--multiple",
        callback=_multiple,
        metavar="auto|none|M",
        help="Round chosen widths to multiples of M; auto: of what the machine runs fast, by onnxruntime's layouts and "
        "what --table has measured (default for --budget latency, and for search).",
    )(function)


def _multiple(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | str | None:
    if value in (None, "auto", "none"):
        return value
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise click.BadParameter(f"{value!r} is neither auto, none nor a whole number of at least 1.")
    return int(value)


def numbers(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """0.485,0.456,0.406: finite numbers with commas between them."""
    if value is None:
        return None
    try:
        found = tuple(float(part) for part in value.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise click.BadParameter(f"{value!r} is not a list of numbers; write it as 0.485,0.456,0.406.")
    return found


def positive(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """A finite number above zero."""
    if value is None:
        return None
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or found <= 0:
        raise click.BadParameter(f"{value!r} is not a number above zero.")
    return found


def _pairs(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, repeatable. --loss KIND is for all outputs; --feature NAME for the same name in the teacher."""
    found = {}
    for value in values:
        name, equals, what = value.rpartition("=")
        if param.name == "loss":
            found[name] = what
            if what not in KINDS:
                raise click.BadParameter(f"{what!r} is none of {', '.join(KINDS)}; write it as mse or boxes=mse.")
        else:
            found[name if equals else what] = what
    return found


def _input_shapes(_ctx: click.Context, _param: click.Parameter, values: Iterable[str]) -> dict[str, tuple[int, ...]]:
    found = {}
    for value in values:
        name, equals, sizes = value.rpartition("=")  # an ONNX name may hold a '='
        parts = sizes.lower().split("x")
        if not (equals and name and all(p.isascii() and p.isdigit() and int(p) > 0 for p in parts)):
            raise click.BadParameter(f"{value!r} is not a name and positive sizes; write it as x=1x3x224x224.")
        found[name] = tuple(int(p) for p in parts)
    return found


def _names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """a,b,c."""
    return None if value is None else tuple(part for part in value.split(",") if part)
