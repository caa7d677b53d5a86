"""What benchmarks share: times in turns, ratios with their spread, and a table that says which limits hold."""

from __future__ import annotations

import gc
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "Beside",
    "Row",
    "compared",
    "facts",
    "forget",
    "heading",
    "high_water",
    "in_turns",
    "line",
    "markdown",
    "timed",
    "within",
]


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: `ratio` is measured / against, at most `limit` if all is well; `low` and `high` are quartiles."""

    bench: str
    case: str
    measured: float
    against: float
    unit: str  # "s", "us" (still in seconds, shown in microseconds) or "MB"
    what: str  # what `against` is: a peer measured in the same run, or the limit itself
    ratio: float
    low: float
    high: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the ratio is within its limit."""
        return self.ratio <= self.limit


def within(bench: str, case: str, times: list[float], limit: float) -> Row:
    """Times against a limit, in seconds."""
    ratios = [t / limit for t in times]
    unit = "us" if limit <= 1e-3 else "s"
    middle = statistics.median(times)
    return Row(bench, case, middle, limit, unit, "the limit", middle / limit, *_quartiles(ratios), 1)


def compared(bench: str, case: str, pairs: list[tuple[float, float]], what: str, limit: float) -> Row:
    """Ours against a peer: the median of the pairs' ratios."""
    ratios = [ours / peer for ours, peer in pairs]
    measured, against = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Row(bench, case, measured, against, "s", what, statistics.median(ratios), *_quartiles(ratios), limit)


def timed(call: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that a call takes, its own garbage collection included; freeing what it returns is not part of it."""
    gc.collect()
    gc.freeze()  # what torch and others keep alive would be scanned again and again on this call's account
    try:
        started = time.perf_counter()
        kept = call(*arguments)
        seconds = time.perf_counter() - started
        del kept
    finally:
        gc.unfreeze()
    return seconds


def in_turns(ours: Callable[[], float], peer: Callable[[], float], repeats: int) -> list[tuple[float, float]]:
    """What both return, (ours, peer) each time, called in turns; who goes first changes every time."""
    pairs = []
    for turn in range(repeats):
        if turn % 2:
            second = peer()
            pairs.append((ours(), second))
        else:
            pairs.append((ours(), peer()))
    return pairs


def forget(path: Path) -> None:
    """Drop a file from the page cache, where the system lets us, so that the next reader goes to the disk.

    What was written before goes to the disk first, or it would be written while the next thing is measured.
    """
    if hasattr(os, "sync"):
        os.sync()
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def high_water() -> Iterator[Callable[[], int]]:
    """Yield a reader of how far resident memory has risen above what it was at the start of the block, in bytes."""
    status = Path("/proc/self/status")

    def field(name: str) -> int:
        found = next(row for row in status.read_text().splitlines() if row.startswith(name))
        return int(found.split()[1]) * 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM to what is resident now
    except OSError:
        # Elsewhere an earlier, higher peak can hide ours: what is read is then too low, never too high.
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield lambda: (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
        return
    resident = field("VmRSS:")
    yield lambda: field("VmHWM:") - resident


class Beside:
    """What else a machine does from now on: processor time of all but this process and its children."""

    def __init__(self) -> None:
        self._begun, self._before = time.perf_counter(), _others()

    def share(self) -> float | None:
        """Processors that others kept busy, on average; None where the system does not say."""
        after = _others()
        if self._before is None or after is None:
            return None
        return max(after - self._before, 0.0) / max(time.perf_counter() - self._begun, 1e-9)


def _others() -> float | None:
    """Seconds of work of others since the machine began: all time but idle, and waiting for disks, less our own."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, *rest = map(int, first[1:9])
    own = sum(os.times()[:4])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - own


def facts(packages: Iterable[str], **settings: object) -> dict[str, str]:
    """The machine, without its name, the versions of the packages, and the settings."""
    processor = platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(row.split(":")[1].strip() for row in lines if row.startswith("model name"))
    return {
        "processor": f"{processor}, {os.cpu_count()} cores",
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in packages),
        **{name: str(value) for name, value in settings.items()},
    }


def heading() -> str:
    """The first line of the table, for a terminal."""
    return _aligned(_HEADINGS)


def line(row: Row) -> str:
    """A line of the table, for a terminal."""
    return _aligned(_cells(row))


def markdown(title: str, command: str, machine: Mapping[str, str], rows: Iterable[Row]) -> str:
    """The whole table as Markdown, with how it was made."""
    table = [_HEADINGS, ("---",) * len(_HEADINGS), *map(_cells, rows)]
    return "\n".join(
        [
            f"# {title}",
            "",
            f"Made by `{command}`. Times are medians; a ratio to a peer is the median over pairs in turns. Each",
            "ratio, measured / against, is to be at most its limit.",
            "",
            *(f"- {key}: {value}" for key, value in machine.items()),
            "",
            *(f"| {' | '.join(cells)} |" for cells in table),
            "",
        ]
    )


_HEADINGS = ("benchmark", "case", "measured", "against", "ratio", "quartiles", "limit", "holds")
_WIDTHS = (13, 34, 9, 34, 6, 12, 6, 4)
_UNITS = {"s": (1e3, "ms"), "us": (1e6, "us"), "MB": (1, "MB")}


def _cells(row: Row) -> tuple[str, ...]:
    scale, unit = _UNITS[row.unit]
    return (
        row.bench,
        row.case,
        f"{row.measured * scale:.4g} {unit}",
        f"{row.against * scale:.4g} {unit}, {row.what}",
        f"{row.ratio:.2f}",
        f"{row.low:.2f}-{row.high:.2f}",
        f"{row.limit:.3g}",
        "yes" if row.ok else "NO",
    )


def _aligned(cells: Iterable[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _quartiles(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.25, 0.75])
    return float(low), float(high)
