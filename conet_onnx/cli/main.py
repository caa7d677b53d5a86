"""The entry point: what a user reads when anything fails is one line, and the exit code is the contract's."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence

import click

from conet_onnx.cli.command import LazyGroup, State
from conet_onnx.errors import ConetError

__all__ = ["main"]

# command -> the module in conet_onnx.cli that defines it
COMMANDS = {
    "analyze": "analyze",
    "resize": "resize",
    "search": "search",
    "evaluate": "evaluate",
    "bench": "bench",
    "verify": "verify",
    "report": "report",
    "score": "score",
    "finetune": "finetune",
    "profile": "profile",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (sys.argv if None is given); return the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    state = State(arguments=tuple(given))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is no reason to fail
            stream.reconfigure(errors="replace")
    try:
        code = group.main(given, prog_name="conet-onnx", standalone_mode=False, obj=state)
    except SystemExit as stop:  # click ends so, in silence, where the reader of stdout has seen enough
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:  # the boundary: whatever happened below, a user reads one line
        if state.debug:
            traceback.print_exc()
        message, code = _explain(error)
        click.echo(f"conet-onnx: {' '.join(message.split())}", err=True)
    return code if isinstance(code, int) else 0


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(package_name="conet-onnx", message="%(prog)s %(version)s")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Better layer widths for the ONNX file that you deploy.

    A trained model goes in with a budget; the same graph comes out with other widths, trained, verified and ready for
    onnxruntime. Begin with `conet-onnx analyze MODEL.onnx`.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, ConetError):
        return f"error: {error}", error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "conet-onnx"
        return f"error: {error.format_message()} See '{path} --help'.", 2
    if isinstance(error, click.ClickException):
        return f"error: {error.format_message()}", 2
    if isinstance(error, click.Abort):
        return "error: interrupted; nothing was written.", 130
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{error.strerror or error}.", 2
    if isinstance(error, MemoryError):
        return "error: out of memory; close other programs, or use a smaller model or batch.", 1
    fact = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"internal error: {fact}; run with --debug for the traceback, and please report it.", 1
