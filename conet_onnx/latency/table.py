"""The table of a profile: times of operators at many sizes and of whole models, for one machine; JSON on disk."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from conet_onnx.errors import DataError, UsageError
from conet_onnx.files import atomic_write
from conet_onnx.graph import Graph

__all__ = ["FORMAT", "Anchor", "Anchors", "Entry", "Host", "Point", "Table", "identity", "merged"]

FORMAT = "conet-onnx-profile/1"

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """Where and how times were taken. `threads` is what was asked for (None: onnxruntime's choice for this many
    `cores`)."""

    processor: str
    cores: int
    provider: str
    threads: int | None
    onnxruntime: str

    @classmethod
    def here(cls, provider: str, threads: int | None) -> Host:
        """This machine, without its name."""
        import onnxruntime

        return cls(_processor(), os.cpu_count() or 1, provider, threads, onnxruntime.__version__)

    def differences(self, other: Host) -> list[str]:
        """What keeps times of the one from being times of the other, in words."""
        return [
            f"{name} {mine if mine is not None else 'as many as there are'}, not "
            f"{theirs if theirs is not None else 'as many as there are'}"
            for name in ("provider", "threads", "processor", "cores", "onnxruntime")
            if (mine := getattr(self, name)) != (theirs := getattr(other, name))
        ]


@dataclass(frozen=True, slots=True)
class Point:
    """Seconds at some sizes: the median of `runs`, and half the distance of the quartiles over it."""

    seconds: float
    spread: float
    runs: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind of operator: what it is, for readers, and what it takes by its free sizes.

    Between two multiples of `blocks` a size costs what the next multiple costs; () where that was not looked for.
    `steps` are the points beside multiples that tell which they are.
    """

    op: str
    inputs: tuple[tuple[str, ...], ...]
    points: Mapping[Sizes, Point]
    blocks: Sizes = ()
    steps: Mapping[Sizes, Point] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A whole model at some widths, in their order: its median over the source's, measured in turns, and the bounds
    of that ratio's 95% interval."""

    widths: Sizes
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Anchors:
    """What was measured of one source model as a whole: its median, and that of others of its widths.

    `drift` is the largest factor by which the source's own time moved meanwhile, after what could be mended was
    measured again. `operators` is what Operators.as_json says of the model.
    """

    file: str
    seconds: float
    sizes: Mapping[str, int]  # of the source's widths
    measured: tuple[Anchor, ...] = ()
    drift: float = 1.0
    operators: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """All that was measured on one host. `call` is what running a model of one node costs beside the node, in
    seconds; `kinds` are by their keys, `models` by `identity`."""

    host: Host
    call: float
    kinds: Mapping[str, Entry] = field(default_factory=dict)
    models: Mapping[str, Anchors] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """conet-onnx-profile/1; times in microseconds."""
        host = self.host
        return {
            "format": FORMAT,
            "host": {"processor": host.processor, "cores": host.cores},
            "provider": host.provider,
            "threads": host.threads,
            "onnxruntime": host.onnxruntime,
            "call_us": _us(self.call),
            "kinds": {
                key: {
                    "op": entry.op,
                    "inputs": [list(axes) for axes in entry.inputs],
                    "blocks": list(entry.blocks),
                    "points": _rows(entry.points),
                    "steps": _rows(entry.steps),
                }
                for key, entry in sorted(self.kinds.items())
            },
            "models": {
                sha: {
                    "file": model.file,
                    "source_us": _us(model.seconds),
                    "drift": round(model.drift, 4),
                    "widths": dict(model.sizes),
                    "anchors": [
                        {"widths": list(one.widths), "ratio": [round(r, 6) for r in (one.ratio, one.low, one.high)]}
                        for one in model.measured
                    ],
                    "operators": model.operators,
                }
                for sha, model in sorted(self.models.items())
            },
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Table:
        """The inverse of `as_json`. Raises KeyError, TypeError, ValueError where it is something else."""
        if document.get("format") != FORMAT:
            raise ValueError(f"its format is {document.get('format')!r}, not {FORMAT!r}")
        host = Host(**document["host"], **{key: document[key] for key in ("provider", "threads", "onnxruntime")})
        kinds = {
            key: Entry(
                entry["op"],
                tuple(tuple(axes) for axes in entry["inputs"]),
                _points(entry["points"]),
                tuple(entry["blocks"]),
                _points(entry.get("steps", ())),  # earlier releases looked for none
            )
            for key, entry in document["kinds"].items()
        }
        models = {
            sha: Anchors(
                model["file"],
                model["source_us"] / 1e6,
                dict(model["widths"]),
                tuple(Anchor(tuple(one["widths"]), *one["ratio"]) for one in model["anchors"]),
                model["drift"],
                model["operators"],
            )
            for sha, model in document["models"].items()
        }
        return cls(host, document["call_us"] / 1e6, kinds, models)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all. Raises OutputError."""
        with atomic_write(path) as part:
            part.write_text(_dumped(self.as_json()), encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Table:
        """Read a table. Raises DataError where there is none."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise DataError(f"Cannot read the latency table {path}: {error.strerror or error}.") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is not a latency table: {error}. `conet-onnx profile` makes one.") from error

    def check(self, provider: str, threads: int | None, *, name: str = "the table") -> list[str]:
        """What is to be said before it is used for other conditions. Raises UsageError where it cannot be used."""
        here = Host.here(provider, threads)
        if (self.host.provider, self.host.threads) != (provider, threads):
            raise UsageError(
                f"{name} was measured with {'; '.join(self.host.differences(here))}: profile again, or use it with "
                f"--provider {self.host.provider}"
                + (f" --threads {self.host.threads}." if self.host.threads is not None else " and no --threads.")
            )
        differ = self.host.differences(here)
        return [f"{name} was measured elsewhere: {'; '.join(differ)}."] if differ else []


def identity(graph: Graph) -> str:
    """What a model is known by: its file's sha256, and the sizes that its inputs were given."""
    shapes = "".join(f" {name}={'x'.join(map(str, shape))}" for name, shape in sorted(graph.input_shapes.items()))
    return graph.sha256 + shapes


def merged(tables: Iterable[Table]) -> Table:
    """One table of several; where two have the same point, that of more runs. Raises UsageError for other hosts."""
    first, *others = tables
    for other in others:
        if differ := first.host.differences(other.host):
            raise UsageError(f"Tables of different conditions cannot be merged: {'; '.join(differ)}.")
        kinds = dict(first.kinds)
        for key, entry in other.kinds.items():
            kinds[key] = _both(kinds[key], entry) if key in kinds else entry
        models = dict(first.models)
        for sha, model in other.models.items():
            before = models.get(sha, model)
            known = {one.widths: one for one in (*before.measured, *model.measured)}
            models[sha] = replace(
                model,
                measured=tuple(known.values()),
                drift=max(before.drift, model.drift),
                operators=model.operators or before.operators,
            )
        first = Table(first.host, min(first.call, other.call), kinds, models)
    return first


def _both(a: Entry, b: Entry) -> Entry:
    points = dict(a.points)
    for sizes, point in b.points.items():
        if sizes not in points or points[sizes].runs < point.runs:
            points[sizes] = point
    of = a if a.steps or not b.steps else b  # steps are compared with each other: those of one time stay together
    return Entry(a.op, a.inputs, points, of.blocks or a.blocks or b.blocks, of.steps)


def _rows(points: Mapping[Sizes, Point]) -> list[list[Any]]:
    return [[list(sizes), _us(p.seconds), round(p.spread, 4), p.runs] for sizes, p in sorted(points.items())]


def _points(rows: Iterable[Sequence[Any]]) -> dict[Sizes, Point]:
    return {tuple(sizes): Point(us / 1e6, spread, runs) for sizes, us, spread, runs in rows}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 4)


def _dumped(document: Mapping[str, Any]) -> str:
    """JSON with a line for each kind and each model."""
    parts = []
    for key, value in document.items():
        if key in ("kinds", "models"):
            rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in value.items())
            parts.append(f" {json.dumps(key)}: {{\n{rows}\n }}")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(row.split(":")[1].strip() for row in lines if row.startswith("model name"))
    return platform.processor() or platform.machine()
