"""`verify`: prove that one model is another one resized by a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from conet_onnx.cli.command import Command
from conet_onnx.cli.freeing import free
from conet_onnx.cli.options import free_batch_option, input_shape_option, provider_option
from conet_onnx.cli.output import Bar, command, says
from conet_onnx.errors import UsageError

__all__ = ["verify"]


@click.command(cls=Command)
@click.argument("source", metavar="SOURCE.onnx")
@click.argument("resized", metavar="RESIZED.onnx")
@click.option("--plan", "plan_file", required=True, metavar="F", help="What `resize --plan` or a search wrote.")
@free_batch_option
@provider_option
@input_shape_option
def verify(
    source: str,
    resized: str,
    plan_file: str,
    free_batch: bool,
    provider: str,
    input_shapes: dict[str, tuple[int, ...]],
) -> None:
    """Prove that RESIZED.onnx is SOURCE.onnx resized by a plan. Takes two runs of each model.

    With --free-batch: what SOURCE.onnx is when its batch is freed, as `resize --free-batch` does it.
    """
    with Bar(3) as bar:
        bar.step(f"Reading {source}")
        plan = _read(plan_file)
        from conet_onnx.loading import load
        from conet_onnx.verification import verify as prove

        a = load(source, input_shapes=input_shapes)
        batch = free(a) if free_batch else None
        bar.step(f"Reading {resized}")
        b = load(resized, input_shapes=input_shapes)
        bar.step("Verifying")
        proof = prove(a if batch is None else batch.graph, b, plan, provider=provider)
    says(f"{resized} is {source} resized by {plan_file}.")
    says()
    for line in [*(batch.lines() if batch else ()), *proof.lines()]:
        says(line)
    says()
    says("What next")
    says(f"  {command('bench', source, resized)}")
    says(f"  {command('evaluate', resized, '--data', 'DATA')}")


def _read(file: str) -> Mapping[str, Any]:
    try:
        document = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--plan: cannot read {file}: {error.strerror}. Name what `resize --plan` wrote.") from error
    except ValueError as error:  # JSON and UTF-8 errors are both
        raise UsageError(f"--plan: {file} is not JSON ({error}). Name what `resize --plan` wrote.") from error
    if not isinstance(document, dict):
        raise UsageError(f"--plan: {file} holds no plan. Name what `resize --plan` wrote.")
    return document
