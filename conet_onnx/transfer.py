"""How trained weights survive a resize: a plan carried out, and the values that a policy changes beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conet_onnx.analysis import Analysis
from conet_onnx.data import Normalisation, Split, fed
from conet_onnx.data.fitting import fixed_batch, padded
from conet_onnx.errors import DataError, ModelError, UsageError
from conet_onnx.folding import Facing, Part
from conet_onnx.graph import Graph, Node
from conet_onnx.metrics.evbmf import evbmf
from conet_onnx.planning import plan as make_plan
from conet_onnx.plans import Take, WidthPlan
from conet_onnx.rewriting import rewrite
from conet_onnx.slicing import apply

if TYPE_CHECKING:
    from conet_onnx.torch_backend.reconstruction import Reconstruction

__all__ = ["SAMPLES", "Transferred", "calibration_batches", "transferred"]

Array = np.ndarray[Any, Any]
Batches = Sequence[Mapping[str, Array]]

SAMPLES = 256  # that weights are fitted on
BATCH = 64
# Operators whose weight is [groups · outputs, inputs, kernel...] (0; or the kernel first), or [groups · inputs,
# outputs, kernel...] (1). The others' weights are matrices in their last two axes.
KERNELS = {
    "Conv": 0,
    "ConvTranspose": 1,
    "com.microsoft.FusedConv": 0,
    "com.microsoft.NhwcConv": 0,
    "com.microsoft.NhwcFusedConv": 0,
}


@dataclass(frozen=True, slots=True)
class Transferred:
    """A resized model and its plan, whose `values` say whether the weights are the plan's takes of the source's.

    `fit` says what least-squares has fitted, and how well; None for other policies.
    """

    graph: Graph
    plan: WidthPlan
    fit: Reconstruction | None = None


def transferred(
    analysis: Analysis,
    widths: Mapping[str, int],
    transfer: str = "slice",
    *,
    scores: Mapping[str, NDArray[np.float64]] | None = None,
    seed: int = 0,
    exact: bool = False,
    inexact: bool = False,
    calibration: Batches | None = None,
) -> Transferred:
    """Resize the analysed model to some widths, its weights transferred by a policy. The arguments are `plan`'s.

    `slice`, `net2net`, `zero`: the plan carried out, and no more. `svd` (CONETv2, Hosseini et al., 2021,
    arXiv:2110.06830): every weight that is summed with, unfolded to [out, in · kernel] (mode 4), is replaced by the
    nearest matrix of a rank that the resized one can have, before its first rows and columns are taken: with U·S·Vᵀ and
    n, m the new sizes, what is left is U[:n, :n]·S[:n, :m]·V[:m, :m]ᵀ. `evbmf`: the same of the matrix that empirical
    variational Bayes takes for what is not noise (metrics.evbmf). Groups are unfolded each by itself, other weights
    than convolutions' along their last two axes; quantised weights, those that a width's change does not reach, and
    those in which evbmf finds nothing but noise are not replaced. `least-squares`: sliced, and then fitted to what the
    source says on the `calibration` batches: an array [batch, ...] for each input
    (torch_backend.reconstruction.reconstruct).

    Raises as `plan`, UsageError for least-squares without calibration (or another policy with it), ModelError for
    weights that are not finite, UnsupportedOp where least-squares meets what torch cannot compute.
    """
    if transfer == "least-squares" and not calibration:
        raise UsageError(f"transfer {transfer!r} fits weights on inputs: give it some as `calibration`.")
    if transfer != "least-squares" and calibration is not None:
        raise UsageError(f"transfer {transfer!r} fits nothing: leave out `calibration`, or take 'least-squares'.")
    made = make_plan(analysis, widths, scores, transfer=transfer, seed=seed, exact=exact, inexact=inexact)
    resized = rewrite(analysis.graph, made)
    if transfer in ("svd", "evbmf"):
        changed = _low_rank(analysis, resized, made, denoised=transfer == "evbmf")
        grown = any(width.new > width.old for width in made.widths.values())  # and nothing is divided
        resized = resized.with_arrays(changed) if changed else resized
        return Transferred(resized, made.changed() if changed or grown else made)
    if calibration is None:
        return Transferred(resized, made)
    from conet_onnx.torch_backend.reconstruction import reconstruct

    shrunk = [part.tensor for _, part, take in _resized_sums(analysis, made) if _drops(take, part.axis)]
    fit = reconstruct(analysis.graph, resized, made, shrunk, calibration)
    return Transferred(fit.graph, made.changed() if fit.layers else made, fit)


def calibration_batches(
    graph: Graph, split: Split, normalisation: Normalisation, *, samples: int = SAMPLES, seed: int = 0
) -> tuple[Mapping[str, Array], ...]:
    """Some samples of a split, drawn with a seed, as `transferred` takes them. Raises DataError where there are none.

    A fixed batch size is met by repeating the last sample.
    """
    index = np.sort(np.random.default_rng(seed).permutation(len(split))[:samples])
    if not len(index):
        raise DataError("there are no samples to calibrate on.")
    size = fixed_batch(graph)
    batches = (fed(graph, stored, normalisation) for stored, _ in split.take(index).batches(size or BATCH))
    return tuple({name: padded(a, size or len(a)) for name, a in batch.items()} for batch in batches)


def _resized_sums(analysis: Analysis, plan: WidthPlan) -> list[tuple[Facing, Part, Take]]:
    """The weights of real numbers that are summed with and that a plan resizes, each once, with who sums."""
    found: dict[str, tuple[Facing, Part, Take]] = {}
    for facing in analysis.contractions:
        for part in facing.parts:
            take = plan.initializers.get(part.tensor)
            if isinstance(take, Take) and part.divides:
                found.setdefault(part.tensor, (facing, part, take))
    return list(found.values())


def _drops(take: Take, axis: int) -> bool:
    """Whether channels of the source are gone from an axis."""
    return axis in take.take and len(np.setdiff1d(np.arange(take.shape[axis]), take.take[axis])) > 0


# Low rank


def _low_rank(analysis: Analysis, resized: Graph, plan: WidthPlan, *, denoised: bool) -> dict[str, Array]:
    """The resized weights that are not what the plan takes from the source, by name."""
    graph, changed = analysis.graph, {}
    for facing, part, take in _resized_sums(analysis, plan):
        array = graph.array(part.tensor)
        unfolding = _Unfolding.of(graph, graph.nodes[facing.node], part, array.ndim)
        if unfolding is None:
            continue
        matrices = unfolding.unfold(array.astype(np.float64))
        if not np.isfinite(matrices).all():
            raise ModelError(
                f"{graph.file or 'the model'}: weight {part.tensor!r} holds numbers that are not finite, so it has no "
                "singular values. Resize with --transfer slice."
            )
        rank = unfolding.rank(resized.nodes[facing.node], resized.weights[part.tensor].dims)
        if (made := _truncated(matrices, rank, denoised=denoised)) is not None:
            changed[part.tensor] = apply(unfolding.fold(made, array.shape).astype(array.dtype), take)
    return changed


@dataclass(frozen=True, slots=True)
class _Unfolding:
    """How a weight is read as matrices [groups, rows, columns]: as a kernel, or by its last two axes."""

    groups: int = 1
    kernel: bool = False
    outputs: int = 0  # a kernel's axis of output channels; the groups are in its first axis

    @classmethod
    def of(cls, graph: Graph, node: Node, part: Part, rank: int) -> _Unfolding | None:
        """As a node sums with it; None for what is neither, or is not clear behind other operators."""
        direct = any(_origin(graph, name) == part.tensor for name in node.inputs)
        if direct and node.operator in KERNELS:
            return cls(node.attributes.get("group", 1), True, KERNELS[node.operator])
        return cls() if rank == 2 or (direct and part.axis >= rank - 2) else None

    def rank(self, node: Node, shape: Sequence[int]) -> int:
        """The largest that the resized weight can have; `node` is the resized one, which may have fewer groups."""
        if not self.kernel:
            return min(shape[-2:])
        per_group = [n // node.attributes.get("group", 1) if k == 0 else n for k, n in enumerate(shape)]
        return min(per_group[self.outputs], prod(per_group) // per_group[self.outputs])

    def unfold(self, array: Array) -> Array:
        """[groups, rows, columns]."""
        if not self.kernel:
            return array.reshape(-1, *array.shape[-2:])
        split = array.reshape(self.groups, -1, *array.shape[1:]).swapaxes(1, 1 + self.outputs)
        return split.reshape(*split.shape[:2], -1)

    def fold(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """The reverse of `unfold`, into a weight's shape."""
        if not self.kernel:
            return matrices.reshape(shape)
        split = [self.groups, shape[0] // self.groups, *shape[1:]]
        split[1], split[1 + self.outputs] = split[1 + self.outputs], split[1]
        return matrices.reshape(split).swapaxes(1, 1 + self.outputs).reshape(shape)


def _origin(graph: Graph, name: str) -> str:
    """The value that a name stands for, whatever its aliases."""
    producer = graph.producer(name)
    return _origin(graph, producer.inputs[0]) if producer is not None and producer.operator == "Identity" else name


def _truncated(matrices: Array, rank: int, *, denoised: bool) -> Array | None:
    """Matrices [groups, rows, columns] of at most some rank, in float64; None where they stay what they are.

    With W = U·S·Vᵀ each is U·(f/s)·Uᵀ·W, where f are the values that are kept: all that is needed is the eigenvectors
    of W·Wᵀ on the shorter side. One that is a single row or column has nothing to be truncated.
    """
    groups, rows, columns = matrices.shape
    short = min(rows, columns)
    if short < 2 or (rank >= short and not denoised):
        return None
    wide = matrices.swapaxes(1, 2) if rows > columns else matrices
    squares, vectors = np.linalg.eigh(wide @ wide.swapaxes(1, 2))
    values, vectors = np.sqrt(np.maximum(squares[:, ::-1], 0)), vectors[:, :, ::-1]
    factors = np.ones((groups, short))
    for k in range(groups if denoised else 0):
        found = evbmf(values[k], rows, columns)
        if found.rank:
            factors[k] = 0
            factors[k, : found.rank] = found.values / values[k, : found.rank]
    factors[:, rank:] = 0
    if (factors == 1).all():
        return None
    made: Array = (vectors * factors[:, None]) @ (vectors.swapaxes(1, 2) @ wide)
    return made.swapaxes(1, 2) if rows > columns else made
