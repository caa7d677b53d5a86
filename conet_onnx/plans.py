"""A plan: which source channels every weight keeps, and which integers change. JSON on disk, and replayable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conet_onnx.errors import UsageError
from conet_onnx.files import atomic_write

__all__ = ["NULL", "Floats", "Indices", "Integer", "Take", "UsePlan", "WidthChange", "WidthPlan"]

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
FORMAT = "conet-onnx-plan/1"
NULL = -1  # in a take: a slice of zeros


@dataclass(frozen=True, slots=True)
class Take:
    """How one weight is made: along each listed axis its source indices (-1: zeros) and divisors, which multiply."""

    shape: tuple[int, ...]
    take: Mapping[int, Indices] = field(default_factory=dict)
    divide: Mapping[int, Floats] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As in the plan file."""
        made: dict[str, Any] = {
            "shape": list(self.shape),
            "take": {str(a): [None if i == NULL else i for i in t.tolist()] for a, t in sorted(self.take.items())},
        }
        if self.divide:
            made["divide"] = {str(a): d.tolist() for a, d in sorted(self.divide.items())}
        return made

    @staticmethod
    def from_json(made: Mapping[str, Any], shape: Sequence[int] | None = None) -> Take:
        """The reverse of as_json."""
        takes = {int(a): [NULL if i is None else i for i in t] for a, t in made.get("take", {}).items()}
        return Take(
            tuple(made.get("shape", shape or ())),
            {a: np.asarray(t, dtype=np.int64) for a, t in takes.items()},
            {int(a): np.asarray(d, dtype=np.float64) for a, d in made.get("divide", {}).items()},
        )


@dataclass(frozen=True, slots=True)
class UsePlan:
    """One reader of a weight that is to be unshared: input `input` of `node` gets its own weight, named `name`."""

    node: str
    input: int
    name: str
    take: Take


@dataclass(frozen=True, slots=True)
class Integer:
    """One integer to change. `old` is None where the source computes it while it runs."""

    node: str
    where: str
    position: int
    old: int | None
    new: int


@dataclass(frozen=True, slots=True)
class WidthChange:
    """A width's name and its sizes in the source and in the plan."""

    name: str
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class WidthPlan:
    """All that a resize does to one source model; with the source, enough to make the resized one."""

    file: str
    sha256: str
    widths: Mapping[str, WidthChange]
    initializers: Mapping[str, Take | tuple[UsePlan, ...]]
    integers: tuple[Integer, ...]
    values: str = "source"  # or "changed": weights were trained afterwards

    def changed(self) -> WidthPlan:
        """The same plan for a model whose weights are trained further: only structure can be checked against it."""
        return replace(self, values="changed")

    def as_json(self) -> dict[str, Any]:
        """As CONTRACT's conet-onnx-plan/1."""
        return {
            "format": FORMAT,
            "source": {"file": os.path.basename(self.file), "sha256": self.sha256},
            "values": self.values,
            "widths": {i: {"name": w.name, "from": w.old, "to": w.new} for i, w in self.widths.items()},
            "initializers": {name: _weight_json(made) for name, made in self.initializers.items()},
            "integers": [
                {"node": e.node, "where": e.where, "position": e.position, "from": e.old, "to": e.new}
                for e in self.integers
            ],
        }

    @staticmethod
    def from_json(made: Mapping[str, Any]) -> WidthPlan:
        """The reverse of as_json. Raises UsageError for anything that is not a plan."""
        try:
            if made["format"] != FORMAT:
                raise UsageError(f"this plan has format {made['format']!r}; expected {FORMAT!r}.")
            return WidthPlan(
                file=made["source"]["file"],
                sha256=made["source"]["sha256"],
                widths={i: WidthChange(w["name"], w["from"], w["to"]) for i, w in made["widths"].items()},
                initializers={name: _weight_from_json(w) for name, w in made["initializers"].items()},
                integers=tuple(
                    Integer(e["node"], e["where"], e["position"], e["from"], e["to"]) for e in made["integers"]
                ),
                values=made["values"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UsageError(f"this is not a plan: {type(error).__name__} {error}. Expected {FORMAT!r}.") from error

    def save(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        """Write the plan as JSON, whole or not at all; `durable` as atomic_write has it."""
        with atomic_write(path, durable=durable) as part:
            part.write_text(json.dumps(self.as_json(), separators=(",", ":")) + "\n")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> WidthPlan:
        """Read a plan. Raises UsageError where there is none."""
        try:
            with open(path, encoding="utf-8") as stream:
                made = json.load(stream)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the plan {os.fspath(path)}: {error}.") from error
        if not isinstance(made, dict):
            raise UsageError(f"{os.fspath(path)} is not a plan; expected a JSON object with format {FORMAT!r}.")
        return WidthPlan.from_json(made)


def _weight_json(made: Take | tuple[UsePlan, ...]) -> dict[str, Any]:
    if isinstance(made, Take):
        return made.as_json()
    uses = [{"node": u.node, "input": u.input, "as": u.name, **_without_shape(u.take.as_json())} for u in made]
    return {"shape": list(made[0].take.shape), "uses": uses}


def _without_shape(made: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in made.items() if key != "shape"}


def _weight_from_json(made: Mapping[str, Any]) -> Take | tuple[UsePlan, ...]:
    if "uses" not in made:
        return Take.from_json(made)
    return tuple(UsePlan(u["node"], u["input"], u["as"], Take.from_json(u, made["shape"])) for u in made["uses"])
