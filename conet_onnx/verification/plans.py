"""Read a plan's JSON: how each tensor changes, who reads what instead, which integers move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from conet_onnx.errors import UsageError
from conet_onnx.graph import Node

__all__ = ["PLAN_FORMAT", "Edits", "Plan", "Planned", "Take", "Use", "read"]

PLAN_FORMAT = "conet-onnx-plan/1"

Array = np.ndarray[Any, Any]
Edits = Mapping[int, tuple[Any, Any]]  # position -> (from, to)


class Plan(Protocol):
    """Whatever prints itself as a conet-onnx-plan/1."""

    def as_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Take:
    """How a tensor changes: the source indices along some axes, and a divisor (inf: a zero slice) for each."""

    shape: tuple[int, ...]
    take: Mapping[int, Array]
    divide: Mapping[int, Array]

    @property
    def new_shape(self) -> tuple[int, ...]:
        return tuple(len(self.take[axis]) if axis in self.take else size for axis, size in enumerate(self.shape))

    def kept(self, axis: int) -> Array:
        """Which source indices along an axis are still there, and not only as zero slices."""
        made = np.zeros(self.shape[axis], bool)
        indices = self.take.get(axis, np.arange(self.shape[axis]))
        made[indices[np.isfinite(self.divide[axis])] if axis in self.divide else indices] = True
        return made

    @property
    def drops(self) -> bool:
        """Whether some source index is gone."""
        return not all(self.kept(axis).all() for axis in range(len(self.shape)))

    def apply(self, array: Array) -> Array:
        """take(array) / divide, the division in double precision."""
        dtype = array.dtype
        for axis, indices in self.take.items():
            array = array.take(indices, axis)
        if not self.divide:
            return array
        divisor = np.ones((1,) * array.ndim)
        for axis, by in self.divide.items():
            divisor = divisor * by.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        with np.errstate(over="ignore", invalid="ignore"):  # float16 may overflow where the source did
            return np.where(np.isinf(divisor), 0, array.astype(np.float64) / divisor).astype(dtype)


@dataclass(frozen=True, slots=True)
class Use:
    """What one reader of an unshared tensor gets instead of it."""

    tensor: str
    alias: str
    take: Take


@dataclass(frozen=True, slots=True)
class Planned:
    file: str
    sha256: str
    changed: bool
    takes: Mapping[str, Take]  # tensors that change for whoever reads them
    uses: Mapping[str, Mapping[int, Use]]  # node -> input position -> what it reads
    integers: Mapping[str, Mapping[str, Edits]]  # node -> where -> edits

    def made(self) -> dict[str, tuple[str, Take]]:
        """The planned tensors by their names in the resized model: what they come from, and how."""
        uses = [use for by_input in self.uses.values() for use in by_input.values()]
        return {name: (name, take) for name, take in self.takes.items()} | {u.alias: (u.tensor, u.take) for u in uses}

    def of(self, node: Node, position: int) -> Take | None:
        """What happens to the tensor that a node reads at an input."""
        use = self.uses.get(node.name, {}).get(position)
        return use.take if use else self.takes.get(node.inputs[position])


def read(plan: Plan | Mapping[str, Any]) -> Planned:
    data = plan if isinstance(plan, Mapping) else plan.as_json()
    if data.get("format") != PLAN_FORMAT:
        raise UsageError(f"This is not a plan: its format is {data.get('format')!r}, expected {PLAN_FORMAT!r}.")
    takes: dict[str, Take] = {}
    uses: dict[str, dict[int, Use]] = {}
    integers: dict[str, dict[str, dict[int, tuple[Any, Any]]]] = {}
    try:
        for name, entry in data["initializers"].items():
            if "uses" not in entry or "take" in entry or "divide" in entry:
                takes[name] = _read_take(entry["shape"], entry)
            for use in entry.get("uses", ()):
                position = int(str(use["input"]).removeprefix("input:"))
                made = Use(name, use["as"], _read_take(entry["shape"], use))
                uses.setdefault(use["node"], {})[position] = made
        for site in data["integers"]:
            edits = integers.setdefault(site["node"], {}).setdefault(site["where"], {})
            edits[site["position"] or 0] = (site["from"], site["to"])
        origin = data["source"]
        return Planned(origin["file"], origin["sha256"], data["values"] == "changed", takes, uses, integers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"The plan cannot be read: {type(error).__name__}: {error}. Make it again.") from error


def _read_take(shape: Sequence[int], entry: Mapping[str, Any]) -> Take:
    take, divide = {}, {}
    for axis, divisors in (entry.get("divide") or {}).items():
        by = np.array(divisors, np.float64)  # null becomes NaN
        divide[int(axis)] = np.where(np.isnan(by), np.inf, by)
    for axis, listed in ((int(axis), np.array(i, np.float64)) for axis, i in (entry.get("take") or {}).items()):
        null = np.isnan(listed)
        indices = np.where(null, 0, listed)
        take[axis] = indices.astype(np.int64)
        if null.any():
            divide[axis] = np.where(null, np.inf, divide.get(axis, 1.0))
        fits = 0 <= axis < len(shape) and indices.ndim == 1 and (take[axis] == indices).all()
        if not fits or ((indices < 0) | (indices >= shape[axis])).any():
            raise ValueError(f"an index along axis {axis} lies outside the shape {list(shape)}")
    for axis, by in divide.items():
        if not 0 <= axis < len(shape) or by.shape != take.get(axis, np.arange(shape[axis])).shape or not by.all():
            raise ValueError(f"the divisors along axis {axis} do not fit the shape {list(shape)}")
    return Take(tuple(shape), take, divide)
