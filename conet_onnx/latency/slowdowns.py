"""Fewer MACs that take longer: which layers it is, by a table or by onnxruntime's own profile of each run."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conet_onnx.errors import ConetError
from conet_onnx.graph import Graph, Node
from conet_onnx.latency.prediction import Predictor
from conet_onnx.latency.timing import Comparison
from conet_onnx.runtime import random_feeds, run_session, session

__all__ = ["Layer", "by_profiles", "by_table", "node_seconds", "slowdown"]

RUNS, WARM_UP = 30, 5
SHOWN = 5
SHARE = 0.05  # of all growth that a layer must have to be named
KERNEL = "_kernel_time"  # how onnxruntime's profile calls the run of a node


@dataclass(frozen=True, slots=True)
class Layer:
    """What a node took in seconds, before and after; 0 where there was none."""

    name: str
    before: float
    after: float

    def __str__(self) -> str:
        if not self.before:
            return f"{self.name} (new, {1e3 * self.after:.3f} ms)"
        return f"{self.name} ({1e3 * self.before:.3f} to {1e3 * self.after:.3f} ms)"


def slowdown(name: str, found: Comparison, macs: tuple[int, int], layers: Callable[[], Sequence[Layer]]) -> str | None:
    """The sentence that says so, if it is so: fewer MACs (`macs` are the source's and the model's), and longer by the
    whole of the ratio's interval. `layers` finds those that take longer; where it raises a ConetError, that is said."""
    if found.ratio.low <= 1 or macs[1] >= macs[0]:
        return None
    try:
        longer = layers()
        named = ", ".join(map(str, longer[:SHOWN])) or "none by itself"
    except ConetError as error:  # the models were measured: that much is known
        longer, named = (), f"not known ({str(error).rstrip('.')})"
    more = f" and {len(longer) - SHOWN} more" if len(longer) > SHOWN else ""
    return (
        f"{name} has fewer MACs (×{macs[1] / max(macs[0], 1):.2f}) and takes longer (×{found.ratio.p50:.2f}, at least "
        f"×{found.ratio.low:.2f}). Layers that take longer: {named}{more}. Widths that this machine runs fast: "
        "`resize` or `search` with --multiple auto."
    )


def by_table(graph: Graph, predicted: Predictor, widths: NDArray[np.int64]) -> list[Layer]:
    """Layers of the source that are predicted to take longer at some widths than at its own."""
    names, seconds = predicted.by_operator(np.stack([predicted.source, widths]))
    before, after = (dict.fromkeys(names, 0.0) for _ in range(2))
    for k, name in enumerate(names):
        before[name] += float(seconds[0, k])
        after[name] += float(seconds[1, k])
    return _grown(_by_layer(graph, before), _by_layer(graph, after))


def by_profiles(
    a: Graph, b: Graph, *, provider: str, threads: int | None, batch: int | None = None, runs: int = RUNS
) -> list[Layer]:
    """Layers that take longer in b than in a, by onnxruntime's profile of some runs of each, in turns."""
    how: dict[str, Any] = {"provider": provider, "threads": threads, "batch": batch, "runs": runs}
    before, after = (_by_layer(graph, node_seconds(graph, **how)) for graph in (a, b))
    return _grown(before, after)


def node_seconds(
    graph: Graph, *, provider: str, threads: int | None, batch: int | None = None, runs: int = RUNS
) -> dict[str, float]:
    """The median of what each node that runs takes, by its name. Raises ModelError where the model does not run."""
    feeds = random_feeds(graph, 0, batch=None if graph.input_shapes and batch is None else batch or 1)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        started = session(graph, provider=provider, threads=threads, profile=os.path.join(folder, "run"))
        for _ in range(WARM_UP + runs):
            run_session(started, feeds)
        with open(started.end_profiling(), encoding="utf-8") as stream:
            events = json.load(stream)
    taken: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(KERNEL):
            taken.setdefault(name.removesuffix(KERNEL), []).append(event["dur"] / 1e6)
    return {name: float(np.median(some[-runs:])) for name, some in taken.items()}


def _by_layer(graph: Graph, seconds: Mapping[str, float]) -> dict[str, float]:
    """Nodes that run, as layers of the file: what is fused counts for the node with weights that it begins with.

    onnxruntime names a node in a layout of its own by what it makes (`x_nchwc`), and others that it adds by what they
    do, with a number.
    """
    nodes = {node.name: node for node in graph.nodes if node.name}
    made: dict[str, float] = {}
    for name, taken in seconds.items():
        plain = re.sub(r"(_token_\d+|#\d+)$", "", name)
        node = nodes.get(plain) or graph.producer(plain.removesuffix("_nchwc"))
        layer = plain if node is None else _layer(graph, node)
        made[layer] = made.get(layer, 0.0) + taken
    return made


def _layer(graph: Graph, node: Node) -> str:
    """The node with weights from which a node follows, one at a time; itself where there is none."""
    at: Node | None = node
    while at is not None and not any(len(graph.weights[n].dims) > 1 for n in at.inputs if n in graph.weights):
        read = [n for n in at.inputs if n and n not in graph.weights and graph.constant(n) is None]
        at = graph.producer(read[0]) if len(read) == 1 else None
    return (at or node).name or node.name or node.outputs[0]


def _grown(before: Mapping[str, float], after: Mapping[str, float]) -> list[Layer]:
    """Those that grew, most first."""
    layers = [Layer(name, before.get(name, 0.0), seconds) for name, seconds in after.items()]
    grown = sorted((one for one in layers if one.after > one.before), key=lambda one: one.before - one.after)
    whole = sum(one.after - one.before for one in grown)
    return [one for one in grown if one.after - one.before >= SHARE * whole]
