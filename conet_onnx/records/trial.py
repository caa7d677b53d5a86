"""One trial of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["State", "Trial"]

# "evaluated": trained and measured; whether the search goes on from it is decided when its turn comes.
State: TypeAlias = Literal["complete", "running", "evaluated", "failed"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of widths, what it costs and, once it has been trained, how good it is.

    `objective` is what the searcher minimises (nan until it is known), `parent` the trial whose weights this one
    started from (None: the source's), `reason` what the searcher did in words ("w3 48→40"). `measured` is what its
    method asked for, by the quantity and the width ({"qc": {"w3": 0.8}}). `latency` is predicted, in milliseconds,
    where that was asked for; `flushed` counts denormal numbers among its trained weights that were set to zero.
    """

    number: int
    widths: Mapping[str, int]
    params: int
    macs: int
    bytes: int
    parent: int | None
    reason: str
    state: State = "running"
    validation: Mapping[str, float] = field(default_factory=dict)
    objective: float = math.nan
    accepted: bool = False
    seconds: float = 0.0  # training
    evaluation_seconds: float = 0.0
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    latency: float | None = None
    flushed: int = 0

    def as_json(self) -> dict[str, Any]:
        """The fields by name; an unknown objective is null."""
        return asdict(self) | {"objective": None if math.isnan(self.objective) else self.objective}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Trial:
        """The inverse of `as_json`."""
        objective = document.get("objective")
        return cls(**{**document, "objective": math.nan if objective is None else float(objective)})
