"""Prove a freed batch by running: every sample comes out as the source makes it, whatever runs beside it.

Nothing of what found the edits is used here but where the samples lie in each output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from conet_onnx.batches.editing import Place
from conet_onnx.errors import ModelError
from conet_onnx.graph import Graph, Node
from conet_onnx.runtime import random_feeds, run_session, session
from conet_onnx.verification.running import CHAOS, sensitivity

__all__ = ["BATCHES", "Proof", "prove"]

BATCHES = (1, 2, 5)
# Of an output's largest: other batches take other kernels, which sum in another order. Where a network amplifies that,
# rounding its weights moves its outputs as much, and CHAOS times that is granted.
TOLERANCE = 1e-5
CHAOTIC = 1e-2  # of an output's largest: never is more granted
ROUNDING = 16  # units of the output type's precision that are always granted
APART = 10  # samples must differ this many times more from one another than from themselves
NAMING = 1e-3  # of a tensor's largest: what differs more is not rounding, and names the node

Array = np.ndarray[Any, Any]
Runs = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Proof:
    """What running has shown; or the reason why it has not."""

    difference: float = 0.0  # the largest of any sample's output, relative to that output's largest
    exact: bool = False  # whether the source's own batch comes out bit by bit
    reason: str = ""


def prove(
    source: Graph,
    freed: Graph,
    *,
    inputs: Mapping[str, int],
    outputs: Mapping[str, Place],
    places: Mapping[str, Place],
    lost: Mapping[str, Node],
    size: int,
    seed: int = 0,
) -> Proof:
    """Run both, the source in batches of its own `size`, and compare sample by sample.

    `inputs` gives the axis of the samples, `outputs` their place, of those that have one; `places` and `lost` help to
    name a node. Each node is run as it stands; the largest batch is run as onnxruntime optimises the graph, too.
    Where the outputs hardly follow the inputs, as in networks that were never trained, both are run with their weights
    scaled as He et al. (2015) start theirs: what a graph does to samples does not depend on its weights.
    """
    samples = _Samples(source, inputs, size, seed)
    proof, told = _compared(source, freed, samples, outputs, places, lost, size)
    if proof.reason or told is None:
        return proof
    alive = _livelier(source)
    other, told = _compared(source.with_arrays(alive), freed.with_arrays(alive), samples, outputs, places, lost, size)
    if other.reason:
        return other
    if told is None:
        return Proof(max(proof.difference, other.difference), proof.exact)
    return Proof(
        reason=f"the outputs of different random samples differ by {told:.1e} of the largest only: "
        "that they are kept apart cannot be shown."
    )


def _livelier(graph: Graph) -> dict[str, Array]:
    """The weights of contractions, scaled so that a signal keeps its size from layer to layer (He et al. 2015)."""
    made = {}
    for node in graph.nodes:
        if node.op not in ("Conv", "Gemm", "MatMul") or node.domain:
            continue
        name = node.inputs[1]
        tensor = graph.weights.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        array = graph.array(name)
        outputs_first = node.op == "Conv" or node.attributes.get("transB", 0)
        summed = array.size // array.shape[0 if outputs_first else -1]
        spread, wanted = float(array.std()), math.sqrt(2 / summed)
        made[name] = array * np.float32(wanted / spread) if spread else _normal(name, array.shape, wanted)
    return made


def _normal(name: str, shape: tuple[int, ...], scale: float) -> Array:
    """Random weights in place of equal ones, which networks that are yet to be trained may begin with."""
    rng = np.random.default_rng(list(name.encode()))
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def _compared(
    source: Graph,
    freed: Graph,
    samples: _Samples,
    outputs: Mapping[str, Place],
    places: Mapping[str, Place],
    lost: Mapping[str, Node],
    size: int,
) -> tuple[Proof, float | None]:
    """The comparison with these samples; and, where it says little, how far outputs of different ones lie apart."""
    try:
        reference = session(source, provider="cpu", optimise=False)
        expected = [run_session(reference, feeds) for feeds in samples.batches()]
    except ModelError as error:
        return Proof(reason=f"it cannot be tried on random inputs. {error}"), None
    try:
        started = session(freed, provider="cpu", optimise=False)
        own = run_session(started, samples.first(size))
    except ModelError as error:
        return Proof(reason=f"at its own batch of {size}: {error}"), None
    exact = all(np.array_equal(a, own[n], equal_nan=a.dtype.kind == "f") for n, a in expected[0].items())
    found = max(_apart(a, own[name]) for name, a in expected[0].items())
    if not found <= _allowed(expected[0]):
        return Proof(reason=f"at its own batch of {size} the outputs differ by {found:.1e} of the largest."), None
    each = {name: np.concatenate([_rows(run[name], p, size) for run in expected]) for name, p in outputs.items()}
    allowed, gaps = _allowed(each), dict.fromkeys(each, 0.0)
    for count, optimise in [*((n, False) for n in BATCHES), (BATCHES[-1], True)]:
        try:
            if optimise:
                started = session(freed, provider="cpu")
            actual = run_session(started, samples.first(count))
            rows = {name: _rows(actual[name], place, count) for name, place in outputs.items()}
        except (ModelError, ValueError) as error:
            return Proof(reason=f"at batch {count}: {error}"), None
        if optimise and any(node.op in ("QuantizeLinear", "DequantizeLinear") for node in source.nodes):
            continue  # kernels that onnxruntime fuses may saturate elsewhere
        for name, found_rows in rows.items():
            gap = _apart(each[name][:count], found_rows)
            if allowed < gap < CHAOTIC:  # no more than rounding, perhaps: how much is that here?
                moved = sensitivity(source, samples.batches(), expected, "cpu", seed=0)
                allowed = max(allowed, min(CHAOS * moved, CHAOTIC))
            if not gap <= allowed:
                where = _culprit(source, freed, samples, count, places, lost) or f"output {name!r}"
                return Proof(
                    reason=f"{where} mixes the samples of a batch: {name!r} differs by {gap:.1e} of the largest."
                ), None
            gaps[name] = max(gaps[name], gap)
    proof = Proof(max(gaps.values()), exact)
    told = {name: spread for name, rows in each.items() if (spread := _spread(rows)) > 0}  # else it is a constant
    vague = [spread for name, spread in told.items() if spread <= APART * gaps[name]]
    return proof, None if told and not vague else max(vague, default=0.0)


class _Samples:
    """Random samples: enough for the largest batch, in whole batches of the source's size."""

    def __init__(self, source: Graph, inputs: Mapping[str, int], size: int, seed: int) -> None:
        self.inputs = inputs
        count = -(-max(*BATCHES, size) // size)
        sizes = {value.name: source.inference.first.size(value.name) or () for value in source.inputs}
        followed = Graph(source.model, arrays=source.arrays, nodes=source.nodes, input_shapes=sizes)
        made = [random_feeds(followed, seed + k) for k in range(count)]
        self.feeds = [{name: a if name in inputs else made[0][name] for name, a in feeds.items()} for feeds in made]

    def batches(self) -> Sequence[dict[str, Array]]:
        """All of them as the source takes them."""
        return self.feeds

    def first(self, count: int) -> dict[str, Array]:
        """The first few in one batch."""
        made = {}
        for name, array in self.feeds[0].items():
            if name in self.inputs:
                axis = self.inputs[name]
                array = np.concatenate([feeds[name] for feeds in self.feeds], axis).take(range(count), axis)
            made[name] = array
        return made


def _rows(array: Array, place: Place, count: int) -> Array:
    """What belongs to each sample: [count, ...]. Raises ValueError where the samples do not lie there."""
    shape = array.shape
    outer, rest = divmod(shape[place.axis], count * place.inner)
    if rest:
        raise ValueError(f"an output of shape {list(shape)} has no whole number of rows for each of {count} samples.")
    parts = array.reshape(*shape[: place.axis], outer, count, place.inner, *shape[place.axis + 1 :])
    return np.moveaxis(parts, place.axis + 1, 0)


def _apart(a: Array, b: Array) -> float:
    """The largest difference relative to the largest magnitude; infinite where shape, type or what is finite differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return np.inf
    if a.dtype.kind not in "fc":
        return 0.0 if np.array_equal(a, b) else np.inf
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return np.inf
    largest = float(np.max(np.abs(a), where=finite, initial=0))
    gap = float(np.max(np.abs(np.where(finite, a, 0).astype(np.complex128) - np.where(finite, b, 0)), initial=0))
    return gap / largest if largest else gap


def _spread(rows: Array) -> float:
    """How much the samples differ from the first."""
    if rows.dtype.kind not in "fc":
        return float(np.any(rows != rows[:1]))
    finite = np.where(np.isfinite(rows), rows, 0).astype(np.complex128)
    largest = float(np.max(np.abs(finite), initial=0))
    return float(np.max(np.abs(finite - finite[:1]), initial=0)) / largest if largest else 0.0


def _allowed(outputs: Mapping[str, Array]) -> float:
    floats = [a.dtype for a in outputs.values() if a.dtype.kind in "fc"]
    return max(TOLERANCE, *(ROUNDING * float(np.finfo(dtype).eps) for dtype in floats), TOLERANCE)


def _culprit(
    source: Graph, freed: Graph, samples: _Samples, count: int, places: Mapping[str, Place], lost: Mapping[str, Node]
) -> str:
    """The first node that makes of a sample what the source does not make of it."""
    names = [name for node in source.nodes for name in node.outputs if name in places]
    if not names:
        return ""
    reference = session(source, provider="cpu", optimise=False, outputs=names)
    started = session(freed, provider="cpu", optimise=False, outputs=names)
    size = next(iter(samples.feeds[0][n].shape[a] for n, a in samples.inputs.items()))
    expected = [run_session(reference, feeds, names) for feeds in samples.batches()]
    actual = run_session(started, samples.first(count), names)
    for node in source.nodes:
        for name in node.outputs:
            if name not in places:
                continue
            place = places[name]
            rows = np.concatenate([_rows(run[name], place, size) for run in expected])[:count]
            if not _apart(rows, _rows(actual[name], place, count)) <= NAMING:
                blamed = next((lost[n] for n in node.inputs if n in lost), node)
                return str(blamed)
    return ""
