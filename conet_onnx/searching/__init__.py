"""Search for better widths under a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conet_onnx.records.run import ModelRecord, Run, read_run
from conet_onnx.records.trial import Trial
from conet_onnx.searching.budget import Budget, Limits

if TYPE_CHECKING:
    from conet_onnx.searching.job import SearchResult, search

__all__ = ["Budget", "Limits", "ModelRecord", "Run", "SearchResult", "Trial", "read_run", "search"]


def __getattr__(name: str) -> Any:
    """Import the search itself when it is asked for (PEP 562): a report, or a budget, needs none of it."""
    if name in ("SearchResult", "search"):
        from conet_onnx.searching import job

        return getattr(job, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
