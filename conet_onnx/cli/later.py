"""Commands of the contract that a later release brings."""

from __future__ import annotations

import click

from conet_onnx.cli.command import Command
from conet_onnx.errors import NotYet

__all__ = ["profile"]


def _later(name: str, does: str) -> click.Command:
    """A command that takes anything, says that it is not there yet, and exits with 2."""

    @click.command(
        name,
        cls=Command,
        short_help=f"(Not in this release.) {does}",
        help=f"{does}\n\nNot in this release.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        raise NotYet(
            f"{name} comes in a later release; this one has analyze, resize, score, search, finetune, evaluate, bench, "
            "verify."
        )

    return command


profile = _later("profile", "Measure a per-operator latency table for this machine.")
