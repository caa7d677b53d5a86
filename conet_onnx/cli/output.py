"""Where results and logs go, and how numbers, tables and progress look."""

from __future__ import annotations

import json
import math
import shlex
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import click

from conet_onnx.errors import OutputError
from conet_onnx.files import atomic_write
from conet_onnx.processes import leads

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

__all__ = [
    "Bar",
    "check_writable",
    "command",
    "count",
    "duration",
    "flushed",
    "log",
    "says",
    "several",
    "share",
    "size",
    "table",
    "write",
]

PLAIN_WIDTH = 160  # columns where stdout is no terminal: wide enough not to cut names
PATIENCE = 2.0  # seconds of silence before a bar is drawn


def says(text: str = "") -> None:
    """A line of the result, on stdout."""
    click.echo(text)


def log(text: str) -> None:
    """A line about what happens, on stderr; one of several processes says it."""
    if leads():
        click.echo(text, err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """A table on stdout; columns named in `right` hold numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    _print(made)


def write(destination: str, value: object) -> None:
    """JSON to a file (whole or not at all) or, for '-', to stdout. JSON has no NaN and no infinity: they are null."""
    text = json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"
    if destination == "-":
        click.echo(text, nl=False)
        return
    with atomic_write(destination) as part:
        part.write_text(text, encoding="utf-8")


def check_writable(*paths: str | None) -> None:
    """Raise OutputError before the work rather than after it, where a file can obviously not be written."""
    for path in paths:
        if path in (None, "-"):
            continue
        place = Path(str(path))
        if place.is_dir():
            raise OutputError(f"Cannot write {place}: it is a folder. Name a file.")
        if place.exists() and not place.is_file():
            raise OutputError(f"Cannot write {place}: it is no ordinary file. Name another.")
        if not place.parent.is_dir():
            raise OutputError(f"Cannot write {place}: there is no folder {place.parent}. Make it first.")


def count(number: float) -> str:
    """1234567 -> 1.23 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if number >= limit:
            return f"{number / (limit if limit != 1e4 else 1e3):.3g}{unit}"
    return f"{number:,.0f}"


def several(number: int, noun: str) -> str:
    """1 trial, 2 trials."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Bytes in powers of ten: 4096000 -> 4.1 MB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number:.0f} B"


def share(part: float, whole: float) -> str:
    """0.5 of 1 -> 50.0%."""
    return f"{part / whole:.1%}" if whole else "-"


def duration(seconds: float) -> str:
    """130 -> 2 min 10 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def command(*words: str) -> str:
    """A command line to copy."""
    return shlex.join(("conet-onnx", *words))


def denormal(found: Mapping[str, int], of: str = "") -> str:
    """What is said of denormal numbers in weights that nothing has trained, by weight: one at least."""
    from conet_onnx.denormals import SMALLEST

    many = sum(found.values())
    return (
        f"{several(many, 'weight')}{f' {of}' if of else ''} in {several(len(found), 'tensor')} (such as "
        f"{next(iter(found))}) {'is' if many == 1 else 'are'} denormal, below {SMALLEST:.2g}, which may "
        "be slow to compute with; left as they are. `finetune` sets them to zero in what it trains."
    )


def flushed(count: int) -> str:
    """What is said of denormal numbers that training left."""
    return f"{several(count, 'denormal number')} in trained weights {'was' if count == 1 else 'were'} set to zero."


class Bar:
    """What is being done, on stderr: a bar on a terminal, drawn once two seconds have passed; elsewhere nothing.

    Used as a context manager. Its length is `total` steps (`step` begins the next) or a share of one (`at`). The time
    that is left follows from the speed so far, unless told not to `guess`.
    """

    def __init__(self, total: float = 1.0, *, guess: bool = True, patience: float = PATIENCE) -> None:
        self._total = total
        self._guess = guess
        self._done = 0.0
        self._begun = 0
        self._text = ""
        self._left: float | None = None
        self._bar: Progress | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._timer = threading.Timer(patience, self._draw)
        self._timer.daemon = True

    def __enter__(self) -> Bar:
        if sys.stderr.isatty() and leads():
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.stop()

    @property
    def drawn(self) -> bool:
        """Whether it can be seen."""
        return self._bar is not None

    def log(self, text: str) -> None:
        """A line above the bar."""
        with self._lock:
            if self._bar is None:
                log(text)
            else:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, text: str) -> None:
        """What was done is done, and this begins."""
        self._begun += 1
        self.at(self._begun - 1, text)

    def at(self, done: float, text: str | None = None, *, left: float | None = None) -> None:
        """So much of the total is done; `left` are the seconds that the rest takes, where the caller knows better."""
        with self._lock:
            self._done = done
            self._left = left
            self._text = self._text if text is None else text
            self._show()

    def _draw(self) -> None:
        bar = _progress(self._guess)
        with self._lock:
            if self._closed:
                return
            self._bar = bar
            bar.add_task("", total=self._total, left=None)
            self._show()
            bar.start()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=self._text, left=self._left)


def _progress(guess: bool) -> Progress:
    """What is done, how far it is, and how long is left; vanishes at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
    from rich.text import Text

    class Left(ProgressColumn):
        """Seconds left as the caller knows them, else as the speed so far has it."""

        def render(self, task: Task) -> Text:
            left = task.fields["left"]
            left = task.time_remaining if left is None and guess else left
            return Text("" if left is None else f"{duration(left)} left")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        Left(),
        console=Console(file=sys.stderr),
        transient=True,
    )


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(renderable: RenderableType) -> None:
    console = _console()
    with console.capture() as captured:
        console.print(renderable)
    lines = (line.rstrip() for line in captured.get().splitlines())
    click.echo("\n".join(lines))


def _console() -> Console:
    """Rich knows terminals, NO_COLOR and encodings; nothing in a name is taken for markup."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, width=None if terminal else PLAIN_WIDTH, markup=False, highlight=False, emoji=False)
