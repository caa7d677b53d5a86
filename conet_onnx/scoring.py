"""Score the channels of every width: which to keep when it shrinks, which to copy when it grows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.dims import Axis, Dim
from conet_onnx.errors import UsageError
from conet_onnx.folding import Use
from conet_onnx.graph import Graph

__all__ = ["CRITERIA", "channels", "importance", "real_values"]

Scores = Mapping[str, NDArray[np.float64]]
Indices = NDArray[np.intp]
CRITERIA = ("l1", "l2", "random", "batchnorm-scale", "fpgm")
BLOCK = 1 << 16  # elements that are read at a time
QUANTISED = {  # the inputs that are a weight, its scale (-1: it comes later) and its zero point
    "DequantizeLinear": (0, 1, 2),
    "QLinearConv": (3, 4, 5),
    "QLinearMatMul": (3, 4, 5),
    "ConvInteger": (1, -1, 3),
    "MatMulInteger": (1, -1, 3),
}


def importance(
    graph: Graph,
    criterion: str = "l2",
    *,
    analysis: Analysis | None = None,
    seed: int = 0,
    widths: Collection[str] | None = None,
) -> Scores:
    """A score per channel of each width (of some, if `widths` names them), higher is more important.

    l1, l2: the norm of the channel's slice in every weight of two or more axes that holds the width, each weight
    normalised to mean one, then averaged (Li et al., 2017, arXiv:1608.08710, over all coupled layers instead of one);
    quantised weights count as the numbers that they stand for.
    batchnorm-scale: |scale| of the BatchNormalizations over the width (Liu et al., 2017, arXiv:1708.06519); l2 where
    there is none. fpgm: the sum of the distances of the channel's filter to the others of its layer, normalised and
    averaged over the weights that make the width (He et al., 2019, arXiv:1811.00250: what lies near the geometric
    median can be replaced by the others). random: uniform. Raises UsageError for another criterion or an unknown width.
    """
    if criterion not in CRITERIA:
        raise UsageError(f"criterion {criterion!r} is not known; choose one of {', '.join(CRITERIA)}.")
    analysis = analysis or analyze(graph)
    for name in widths or ():
        if name not in analysis.widths:
            raise UsageError(f"there is no width {name!r} to score; `analyze` lists them.")
    chosen = {name: w for name, w in analysis.widths.items() if widths is None or name in widths}
    if criterion == "random":
        rng = np.random.default_rng(seed)
        drawn = {name: rng.random(width.size) for name, width in analysis.widths.items()}
        return {name: drawn[name] for name in chosen}
    if not chosen:
        return {}
    by_dim = {w.dim: name for name, w in chosen.items()}
    if criterion == "fpgm":
        return {
            name: _distances(analysis, w.dim, [(m.tensor, m.axis) for m in w.members if m.role == "out"])
            for name, w in chosen.items()
        }
    power = 1 if criterion == "l1" else 2
    found = _norms(analysis, by_dim, power, lambda use: len(use.shape) > 1)
    if criterion == "batchnorm-scale":
        scales = {(node.index, 1) for node in graph.nodes if node.op == "BatchNormalization"}
        by_scale = _norms(analysis, by_dim, 1, lambda use: (use.node, use.input) in scales)
        found = {**found, **by_scale}
    return {name: found.get(name, np.ones(w.size)) for name, w in chosen.items()}


def channels(analysis: Analysis, ax: Axis) -> Iterator[tuple[Dim, slice, Indices]]:
    """Where the dims of an axis lie, those inside of sums too: a stretch of it, and the index into the dim at each
    position of the stretch, -1 for none."""
    solver, start = analysis.solver, 0
    for segment in ax.segments:
        size = inner = segment.size[0]
        stretch = slice(start, start + size)
        start += size
        for factor in segment.factors:
            n = factor if isinstance(factor, int) else factor.size[0]
            inner //= n
            if isinstance(factor, int):
                continue
            own = np.arange(size) // inner % n if size > n else np.arange(n)
            if not solver.is_composite(factor):
                yield factor, stretch, own
                continue
            for dim, part, indices in channels(analysis, solver.resolve_dim(factor)):
                found = np.full(n, -1)
                found[part] = indices
                yield dim, stretch, found[own]


def real_values(graph: Graph, tensor: str) -> NDArray[Any]:
    """A weight's values; of a quantised one what its reader takes them for, so that its channels can be compared."""
    array: NDArray[Any] = graph.array(tensor)
    for node in graph.consumers(tensor) if array.dtype.kind in "iu" else ():
        weight, scale, zero = QUANTISED.get(node.op, (-1, -1, -1))
        if node.domain or node.inputs[weight : weight + 1] != (tensor,):
            continue
        along = node.attributes.get("axis", 1) if node.op == "DequantizeLinear" else 0 if "Conv" in node.op else -1
        shape = [-1 if axis == along % array.ndim else 1 for axis in range(array.ndim)]
        given = [graph.constant(node.inputs[k]) if 0 < k < len(node.inputs) else None for k in (scale, zero)]
        by, origin = (value.reshape(shape) if value is not None and value.ndim < 2 else None for value in given)
        moved = array.astype(np.float32) - (0 if origin is None else origin.astype(np.float32))
        return moved if by is None else moved * by
    return array


def _norms(
    analysis: Analysis, by_dim: Mapping[Dim, str], power: int, wanted: Callable[[Use], bool]
) -> dict[str, NDArray[np.float64]]:
    totals: dict[str, list[NDArray[np.float64]]] = {}
    for use in analysis.every_use:
        if not analysis.is_real(use.tensor) or not wanted(use):
            continue
        axes = {k: analysis.axis(segment) for k, segment in enumerate(use.shape)}
        held = {k: ax for k, ax in axes.items() if not by_dim.keys().isdisjoint(analysis.solver.leaves(ax))}
        if not held:
            continue
        sums = _sums(real_values(analysis.graph, use.tensor), held, power)
        for k, ax in held.items():
            found: dict[Dim, NDArray[Any]] = {}
            for dim, stretch, indices in channels(analysis, ax):
                if dim in by_dim:
                    part: NDArray[Any] = sums[k][stretch]
                    if len(indices) > dim.size[0]:  # else each channel is there once, in order
                        inside = indices >= 0
                        part = np.bincount(indices[inside], weights=part[inside], minlength=dim.size[0])
                    found[dim] = found[dim] + part if dim in found else part
            for dim, total in found.items():
                score = total ** (1 / power)
                scale = max(float(score.mean()), float(np.finfo(np.float64).tiny))
                totals.setdefault(by_dim[dim], []).append(score / scale)
    return {name: np.mean(scores, axis=0) for name, scores in totals.items()}


def _distances(analysis: Analysis, dim: Dim, places: Collection[tuple[str, int]]) -> NDArray[np.float64]:
    """The sum of each channel's distances to the others, of its weights at each place; ones where there is none."""
    uses = {(use.tensor, axis): analysis.axis(s) for use in analysis.every_use for axis, s in enumerate(use.shape)}
    scores = []
    for tensor, axis in places:
        if not analysis.is_real(tensor):
            continue
        rows = np.moveaxis(real_values(analysis.graph, tensor), axis, 0).astype(np.float64)
        parts = []
        for found, stretch, own in channels(analysis, uses[tensor, axis]):
            if found == dim:
                order = np.argsort(own, kind="stable")[np.count_nonzero(own < 0) :]
                parts.append(rows[stretch][order].reshape(dim.size[0], -1))
        if not parts:
            continue
        filters = np.hstack(parts)
        squares = np.square(filters).sum(1)
        apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * filters @ filters.T, 0))
        np.fill_diagonal(apart, 0)  # rounding aside, it is
        total = apart.sum(1)
        scores.append(total / max(float(total.mean()), float(np.finfo(np.float64).tiny)))
    return np.mean(scores, axis=0) if scores else np.ones(dim.size[0])


def _sums(array: NDArray[Any], axes: Collection[int], power: int) -> dict[int, NDArray[np.float64]]:
    """The sum of |x|^power over each slice along some axes; a block of rows at a time, which stays in the cache."""
    rows = np.empty(len(array))
    others = np.zeros(array.shape[1:])
    step = max(1, BLOCK // max(1, others.size))
    for start in range(0, len(array), step):
        block = array[start : start + step].astype(np.float32, copy=False)
        block = np.abs(block) if power == 1 else np.square(block)
        rows[start : start + step] = block.reshape(len(block), -1).sum(1)
        others += block.sum(0)
    return {k: others.sum(tuple(a for a in range(others.ndim) if a != k - 1)) if k else rows for k in axes}
