"""Score the channels of every width: which to keep when it shrinks, which to copy when it grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.dims import Axis, Dim
from conet_onnx.errors import UsageError
from conet_onnx.folding import Use
from conet_onnx.graph import Graph

__all__ = ["CRITERIA", "importance", "positions"]

Scores = Mapping[str, NDArray[np.float64]]
CRITERIA = ("l1", "l2", "random", "batchnorm-scale")


def importance(graph: Graph, criterion: str = "l2", *, analysis: Analysis | None = None, seed: int = 0) -> Scores:
    """A score per channel of each width, higher is more important.

    l1, l2: the norm of the channel's slice in every weight of two or more axes that holds the width, each weight
    normalised to mean one, then averaged (Li et al., 2017, arXiv:1608.08710, over all coupled layers instead of one).
    batchnorm-scale: |scale| of the BatchNormalizations over the width (Liu et al., 2017, arXiv:1708.06519); l2 where
    there is none. random: uniform. Raises UsageError for another criterion.
    """
    if criterion not in CRITERIA:
        raise UsageError(f"criterion {criterion!r} is not known; choose one of {', '.join(CRITERIA)}.")
    analysis = analysis or analyze(graph)
    if criterion == "random":
        rng = np.random.default_rng(seed)
        return {name: rng.random(width.size) for name, width in analysis.widths.items()}
    power = 1 if criterion == "l1" else 2
    found = _norms(analysis, power, lambda use: len(use.shape) > 1)
    if criterion == "batchnorm-scale":
        scales = {(node.index, 1) for node in graph.nodes if node.op == "BatchNormalization"}
        by_scale = _norms(analysis, 1, lambda use: (use.node, use.input) in scales)
        found = {**found, **by_scale}
    return {name: found.get(name, np.ones(w.size)) for name, w in analysis.widths.items()}


def positions(analysis: Analysis, ax: Axis, dim: Dim) -> NDArray[np.int64]:
    """For each position along an axis the index into `dim` that it belongs to, -1 for none. A dim inside a sum too."""
    solver = analysis.solver
    parts = []
    for segment in ax.segments:
        found = np.full(1, -1, dtype=np.int64)
        for factor in segment.factors:
            n = factor if isinstance(factor, int) else factor.size[0]
            own = np.full(n, -1, dtype=np.int64)
            if factor is dim:
                own = np.arange(n)
            elif isinstance(factor, Dim) and solver.is_composite(factor):
                own = positions(analysis, solver.resolve_dim(factor), dim)
            found = np.maximum(found[:, None], own[None, :]).ravel()
        parts.append(found)
    return np.concatenate(parts)


def _norms(analysis: Analysis, power: int, wanted: Callable[[Use], bool]) -> dict[str, NDArray[np.float64]]:
    totals: dict[str, list[NDArray[np.float64]]] = {}
    by_dim = {w.dim: name for name, w in analysis.widths.items()}
    for use in analysis.every_use:
        if not analysis.is_real(use.tensor) or not wanted(use):
            continue
        held = [(k, ax, d) for k, s in enumerate(use.shape) for ax in (analysis.axis(s),) for d in _held(analysis, ax)]
        if not held:
            continue
        array = analysis.graph.array(use.tensor).astype(np.float32, copy=False)
        array = np.abs(array) if power == 1 else array
        sums: dict[int, NDArray[Any]] = {}
        for k, ax, dim in held:
            if k not in sums:
                by_channel = array.reshape(-1, array.shape[k], int(np.prod(array.shape[k + 1 :])))
                factors = (by_channel,) * power  # their product is never stored
                sums[k] = np.einsum(",".join(["anb"] * power) + "->n", *factors, dtype=np.float64)
            where = positions(analysis, ax, dim)
            inside = where >= 0
            score = np.bincount(where[inside], weights=sums[k][inside], minlength=dim.size[0]) ** (1 / power)
            scale = max(float(score.mean()), float(np.finfo(np.float64).tiny))
            totals.setdefault(by_dim[dim], []).append(np.asarray(score / scale, dtype=np.float64))
    return {name: np.mean(scores, axis=0) for name, scores in totals.items()}


def _held(analysis: Analysis, ax: Axis) -> list[Dim]:
    return [d for d in dict.fromkeys(analysis.solver.leaves(ax)) if d in analysis.resizable]
