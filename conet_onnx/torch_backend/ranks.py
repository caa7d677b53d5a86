"""Ranks of values behind sequences, of whose elements shape inference says nothing: a run of the model tells them."""

from __future__ import annotations

from collections.abc import Mapping

from conet_onnx.errors import ModelError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.runtime import random_feeds, run

__all__ = ["measured_ranks"]


def measured_ranks(graph: Graph) -> Mapping[str, int]:
    """The rank of each value whose shape is not known, where onnxruntime runs the model on random inputs; of a sequence
    that of its first element."""
    names = [name for node in graph.nodes for name in node.outputs if name and graph.shape(name) is None]
    if not names:
        return {}
    try:
        made = run(graph, random_feeds(graph), names, provider="cpu", optimise=False, exact=True)
    except (ModelError, UsageError):
        return {}
    firsts = {name: value[0] if isinstance(value, list) and value else value for name, value in made.items()}
    return {name: value.ndim for name, value in firsts.items() if hasattr(value, "ndim")}
