"""Budgets: upper limits on what a model may cost, as fractions of the source or in absolute numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Protocol

import numpy as np

from conet_onnx.errors import BudgetUnreachable, UsageError

__all__ = ["KINDS", "Budget", "Limits", "Priced"]

KINDS = ("params", "macs", "bytes", "latency")  # the order of price_many's columns; the last where it is predicted
LARGEST_FRACTION = 10
COUNTS = {"k": 10**3, "M": 10**6, "G": 10**9}
SIZES = {"B": 1, **COUNTS, **{f"{unit}B": factor for unit, factor in COUNTS.items()}}
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
UNITS: Mapping[str, Mapping[str, float]] = {"params": COUNTS, "macs": COUNTS, "bytes": SIZES, "latency": TIMES}
EXAMPLES = {"params": "40M", "macs": "40M", "bytes": "4MB", "latency": "5ms"}
NUMBER = re.compile(r"(?P<number>(\d+\.?\d*|\.\d+)(e[+-]?\d+)?) ?(?P<unit>[a-z]*)", re.ASCII | re.IGNORECASE)


class Priced(Protocol):
    """What a set of widths costs (costs.Price): parameters, multiply-accumulates at batch 1, initializer bytes; where
    it is predicted, also `latency` in milliseconds (latency.pricing.TimedPrice)."""

    @property
    def params(self) -> int: ...
    @property
    def macs(self) -> int: ...
    @property
    def bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper limits, all of which hold. A number up to 10 is a fraction of the source, "40M" or "4MB" is absolute.

    Units are k, M, G, for bytes also B, kB, MB, GB: powers of ten; for latency us, ms, s. Raises UsageError for
    anything else. `latency` is no price that follows from widths alone: `resolve` takes it where the source's price
    has one, and leaves it else to who measures it.
    """

    params: float | str | None = None
    macs: float | str | None = None
    bytes: float | str | None = None
    latency: float | str | None = None

    def __post_init__(self) -> None:
        for kind, value in self._given().items():
            _amount(kind, value)
        if not self._given():
            raise UsageError(f"A budget limits at least one of {', '.join(UNITS)}: macs=0.5, say.")

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Budget:
        """From the command line's KIND=VALUE arguments."""
        known = [field.name for field in fields(cls)]
        found: dict[str, str] = {}
        for text in [texts] if isinstance(texts, str) else texts:
            kind, equals, value = text.partition("=")
            if not equals or kind not in known:
                raise UsageError(f"budget {text!r}: expected KIND=VALUE with one of {', '.join(known)}: macs=0.5, say.")
            if kind in found:
                raise UsageError(f"budget {text!r}: {kind} is limited twice; keep one of them.")
            found[kind] = value
        return cls(**found)

    def resolve(self, source: Priced) -> Limits:
        """The limits on prices in absolute numbers (latency in milliseconds), given what the source costs."""
        limits = {}
        for kind, value in self._given().items():
            if kind == "latency" and not hasattr(source, kind):
                continue
            amount, relative = _amount(kind, value)
            if not getattr(source, kind):
                raise UsageError(f"budget {kind}={value}: the source has no {kind} to limit.")
            limits[kind] = amount * getattr(source, kind) if relative else _unit(kind) * amount
        return Limits(limits)

    @property
    def time(self) -> tuple[float, bool] | None:
        """The limit on latency, if there is one: seconds, or a share of the source's and True."""
        return None if self.latency is None else _amount("latency", self.latency)

    def __str__(self) -> str:
        return " ".join(f"{kind}={value}" for kind, value in self._given().items())

    def _given(self) -> dict[str, float | str]:
        return {kind: value for kind in UNITS if (value := getattr(self, kind)) is not None}


@dataclass(frozen=True, slots=True)
class Limits:
    """Absolute upper limits by kind; there may be none."""

    by_kind: Mapping[str, float]

    def fits(self, price: Priced) -> bool:
        """Whether every limit holds."""
        return self.utilisation(price) <= 1

    def utilisation(self, price: Priced) -> float:
        """The largest share of a limit that is used; above 1 the budget is exceeded. 0 where there is no limit."""
        return max((float(getattr(price, kind)) / limit for kind, limit in self.by_kind.items()), default=0.0)

    def utilisations(self, prices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The same for each row of [trials, kinds] prices, in the order of KINDS."""
        columns = [KINDS.index(kind) for kind in self.by_kind]
        used = prices[:, columns] / np.array([*self.by_kind.values()])
        shares: np.ndarray[Any, Any] = np.max(used, axis=1, initial=0.0)
        return shares

    def scaled(self, factor: float, *kinds: str) -> Limits:
        """Every limit times a factor, or those of some kinds."""
        return Limits(
            {kind: limit * (factor if kind in (kinds or KINDS) else 1) for kind, limit in self.by_kind.items()}
        )

    def unreachable(self, smallest: Priced, source: Priced) -> BudgetUnreachable:
        """The error for limits below the smallest price there is; the values that it names can be met."""
        nearest = ", ".join(
            f"{kind}={_round_up(kind, getattr(smallest, kind))} "
            f"({math.ceil(1e4 * getattr(smallest, kind) / getattr(source, kind)) / 1e4:g} of the source)"
            for kind, limit in self.by_kind.items()
            if getattr(smallest, kind) > limit
        )
        return BudgetUnreachable(f"The budget ({self}) cannot be met: the nearest that can is {nearest}.")

    def __str__(self) -> str:
        return ", ".join(f"{kind} {_round_up(kind, limit, floor=True)}" for kind, limit in self.by_kind.items())


def _amount(kind: str, value: float | str) -> tuple[float, bool]:
    """A limit's number, and whether it is a fraction of the source."""
    match = NUMBER.fullmatch(str(value).strip())
    number = Decimal(match["number"]) if match else Decimal(0)  # 1.001k is 1001, and not 1000.9999999999999
    if not match or not 0 < float(number) < math.inf:
        example = f"{kind}=0.5 or {kind}={EXAMPLES[kind]}"
        raise UsageError(f"budget {kind}={value}: expected a positive number, as in {example}.")
    unit = match["unit"]
    if not unit and number <= LARGEST_FRACTION:
        return float(number), True
    if unit not in UNITS[kind]:
        problem = f"{unit!r} is not a unit of {kind}" if unit else "a fraction of the source is at most 10"
        raise UsageError(
            f"budget {kind}={value}: {problem}; an absolute limit ends in one of {', '.join(UNITS[kind])}."
        )
    return float(number * Decimal(str(UNITS[kind][unit]))), False


def _unit(kind: str) -> float:
    """What multiplies an absolute amount: latency is given in seconds and limited in milliseconds."""
    return 1e3 if kind == "latency" else 1.0


def _round_up(kind: str, value: float, *, floor: bool = False) -> str:
    """With a unit and three decimals, never below the value, or its `floor` where that is a number of things."""
    if kind == "latency":
        from conet_onnx.latency.limits import in_units

        return in_units(value / _unit(kind))
    value = math.floor(value) if floor else int(value)
    unit, factor = max(((u, f) for u, f in COUNTS.items() if f <= max(value, 1000)), key=lambda item: item[1])
    shown = f"{-(-1000 * value // factor) / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{shown}{unit}{'B' if kind == 'bytes' else ''}"
