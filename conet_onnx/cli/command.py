"""Commands that are imported by name when they are called, and know --debug before and after their name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from conet_onnx.errors import ConetError

__all__ = ["Command", "Interrupted", "LazyGroup", "State"]


@dataclass
class State:
    """What the whole call has been told, for the places that report how it ended."""

    arguments: tuple[str, ...] = ()
    debug: bool = False


class Interrupted(ConetError):
    """Ctrl-C; the message says what was kept."""

    exit_code = 130


class Command(click.Command):
    """A click command with -h and --debug."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings.setdefault("context_settings", {}).setdefault("help_option_names", ["-h", "--help"])
        super().__init__(*args, **settings)
        self.params.append(debug_option())


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def __init__(self, *args: Any, lazy: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.lazy = lazy
        self.params.append(debug_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a user meets them."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import conet_onnx.cli.MODULE and take its command of that name."""
        if cmd_name not in self.lazy:
            return None
        command = getattr(import_module(f"conet_onnx.cli.{self.lazy[cmd_name]}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest name in the error."""
        name = args[0]
        if name not in self.lazy and not name.startswith("-"):
            close = get_close_matches(name, self.lazy, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(self.lazy)}."
            raise click.UsageError(f"No such command {name!r}. {hint}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C becomes an error like any other (click would print a blank line first)."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted("interrupted; nothing was written.") from interrupt


def debug_option() -> click.Option:
    """--debug, which is about the whole call wherever it stands."""

    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and isinstance(ctx.obj, State):
            ctx.obj.debug = True

    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=remember, help="Show tracebacks of failures."
    )
