"""Which of several processes of one training this is, as torchrun and Fabric say it to those that they start."""

from __future__ import annotations

import os

__all__ = ["leads"]


def leads() -> bool:
    """Whether this process speaks for all: it alone reports, judges and writes."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
