"""What --free-batch does to the source before anything else is done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conet_onnx.errors import UsageError

if TYPE_CHECKING:
    from conet_onnx.batches import Freed
    from conet_onnx.graph import Graph

__all__ = ["free"]


def free(graph: Graph) -> Freed:
    """The source for any batch. Raises UsageError, with the reason, where it cannot be had."""
    from conet_onnx.batches import freed

    made = freed(graph)
    if made.reason:
        raise UsageError(f"--free-batch: {graph.file} keeps its batch: {made.reason} Leave --free-batch out.")
    return made
