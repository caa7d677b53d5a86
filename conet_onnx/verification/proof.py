"""What a verification proved and what it left open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["PROOF_FORMAT", "Check", "Proof"]

PROOF_FORMAT = "conet-onnx-proof/1"


@dataclass(frozen=True, slots=True)
class Check:
    """Something that was proved, or why it could not be."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Proof:
    """What holds, what was left open and why, and the largest relative difference between the two models' outputs."""

    checks: tuple[Check, ...]
    skipped: tuple[Check, ...]
    difference: float | None

    def lines(self) -> tuple[str, ...]:
        """One line for each check and each reason why one was left out."""
        proved = (f"proved   {check.name}: {check.detail}" for check in self.checks)
        return (*proved, *(f"skipped  {check.name}: {check.detail}" for check in self.skipped))

    def as_json(self) -> dict[str, Any]:
        """As conet-onnx-proof/1."""
        return {
            "format": PROOF_FORMAT,
            "checks": [{"name": check.name, "detail": check.detail} for check in self.checks],
            "skipped": [{"name": check.name, "reason": check.detail} for check in self.skipped],
            "difference": self.difference,
        }
