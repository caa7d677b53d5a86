"""How trained weights survive a resize: a plan carried out, and the values that a policy changes beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.data import Normalisation, Split, fed
from conet_onnx.data.fitting import fixed_batch, padded
from conet_onnx.errors import DataError, ModelError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.metrics import layers
from conet_onnx.metrics.evbmf import shrink
from conet_onnx.planning import plan as make_plan
from conet_onnx.plans import Take, WidthPlan
from conet_onnx.rewriting import rewrite
from conet_onnx.slicing import apply

if TYPE_CHECKING:
    from conet_onnx.torch_backend.recalibration import Recalibration
    from conet_onnx.torch_backend.reconstruction import Reconstruction

__all__ = ["SAMPLES", "Transferred", "calibration_batches", "drawn", "transferred"]

Array = np.ndarray[Any, Any]
Batches = Sequence[Mapping[str, Array]]

SAMPLES = 256  # that weights are fitted on
BATCH = 64


@dataclass(frozen=True, slots=True)
class Transferred:
    """A resized model and its plan, whose `values` say whether the weights are the plan's takes of the source's.

    `fit` says what least-squares has fitted, and how well; `norms` whose statistics were measured again. None where
    nobody asked.
    """

    graph: Graph
    plan: WidthPlan
    fit: Reconstruction | None = None
    norms: Recalibration | None = None


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
    recalibrate: bool = False,
) -> Transferred:
    """Resize the analysed model to some widths, its weights transferred by a policy. The arguments are `plan`'s.

    `slice`, `net2net`, `zero`: the plan carried out, and no more. `svd` (CONETv2, Hosseini et al., 2021,
    arXiv:2110.06830): every weight that is summed with, unfolded to [out, in · kernel] (mode 4), is replaced by the
    nearest matrix of a rank that the resized one can have, before its first rows and columns are taken: with U·S·Vᵀ and
    n, m the new sizes, what is left is U[:n, :n]·S[:n, :m]·V[:m, :m]ᵀ. `evbmf`: the same of the matrix that empirical
    variational Bayes takes for what is not noise (metrics.evbmf). What a layer is, and how it is unfolded, is said by
    metrics.unfolding: groups each by itself. Quantised weights, those that a width's change does not reach, and
    matrices in which evbmf finds nothing but noise are not replaced. `least-squares`: sliced, and then fitted to what
    the source says on the `calibration` batches: an array [batch, ...] for each input
    (torch_backend.reconstruction.reconstruct).

    `recalibrate`: at last, statistics are measured again on the `calibration` batches, those of BatchNormalization and
    those of layers that it was folded into, unless least-squares has fitted them
    (torch_backend.recalibration.recalibrate). What no width's change reaches stays as it is.

    Raises as `plan`, UsageError for least-squares or `recalibrate` without calibration (or neither with it), ModelError
    for weights that are not finite, UnsupportedOp where one of them meets what torch cannot compute.
    """
    fits = transfer == "least-squares"
    if (fits or recalibrate) and not calibration:
        what = f"transfer {transfer!r} fits weights" if fits else "recalibration measures statistics"
        raise UsageError(f"{what} on inputs: give it some as `calibration`.")
    if not (fits or recalibrate) and calibration is not None:
        raise UsageError(f"transfer {transfer!r} fits nothing: leave out `calibration`, or take 'least-squares'.")
    made = make_plan(analysis, widths, scores, transfer=transfer, seed=seed, exact=exact, inexact=inexact)
    resized = rewrite(analysis.graph, made)
    if transfer in ("svd", "evbmf"):
        changed = _low_rank(analysis, resized, made, denoised=transfer == "evbmf")
        grown = any(width.new > width.old for width in made.widths.values())  # and nothing is divided
        resized = resized.with_arrays(changed) if changed else resized
        made = made.changed() if changed or grown else made
    if calibration is None:
        return Transferred(resized, made)
    shrunk = [tensor for tensor, (axis, take) in _resized_sums(analysis, made).items() if _drops(take, axis)]
    fit = norms = None
    if fits:
        from conet_onnx.torch_backend.reconstruction import reconstruct

        fit = reconstruct(analysis.graph, resized, made, shrunk, calibration)
        resized, made = fit.graph, made.changed() if fit.layers else made
    if recalibrate and made.initializers:
        from conet_onnx.torch_backend.recalibration import recalibrate as measured

        norms = measured(analysis.graph, resized, made, () if fits else shrunk, calibration)
        resized, made = norms.graph, made.changed() if norms.norms or norms.layers else made
    return Transferred(resized, made, fit, norms)


def calibration_batches(
    graph: Graph, split: Split, normalisation: Normalisation, *, samples: int = SAMPLES, seed: int = 0
) -> tuple[Mapping[str, Array], ...]:
    """Some samples of a split, drawn with a seed, as `transferred` takes them. Raises DataError where there are none.

    A fixed batch size is met by repeating the last sample.
    """
    size = fixed_batch(graph)
    batches = (fed(graph, stored, normalisation) for stored, _ in drawn(split, samples, seed).batches(size or BATCH))
    return tuple({name: padded(a, size or len(a)) for name, a in batch.items()} for batch in batches)


def drawn(split: Split, samples: int = SAMPLES, seed: int = 0) -> Split:
    """Some samples of a split, in their order. Raises DataError where there are none."""
    index = np.sort(np.random.default_rng(seed).permutation(len(split))[:samples])
    if not len(index):
        raise DataError("there are no samples to calibrate on.")
    return split.take(index)


def _resized_sums(analysis: Analysis, plan: WidthPlan) -> dict[str, tuple[int, Take]]:
    """The weights of real numbers that are summed with and that a plan resizes, with the axis that is summed over."""
    found: dict[str, tuple[int, Take]] = {}
    for part in (part for facing in analysis.contractions for part in facing.parts):
        take = plan.initializers.get(part.tensor)
        if isinstance(take, Take) and part.divides:
            found.setdefault(part.tensor, (part.axis, take))
    return found


def _drops(take: Take, axis: int) -> bool:
    """Whether channels of the source are gone from an axis."""
    return axis in take.take and len(np.setdiff1d(np.arange(take.shape[axis]), take.take[axis])) > 0


# Low rank


def _low_rank(analysis: Analysis, resized: Graph, plan: WidthPlan, *, denoised: bool) -> dict[str, Array]:
    """The resized weights that are not what the plan takes from the source, by name."""
    graph, changed = analysis.graph, {}
    takes = _resized_sums(analysis, plan)
    sizes = {layer.tensor: layer for layer in layers(analyze(resized))}
    for layer in layers(analysis):
        after = sizes.get(layer.tensor)
        if after is None or layer.tensor not in takes:
            continue
        array = graph.array(layer.tensor)
        matrices = layer.unfolded(array).astype(np.float64).reshape(layer.groups, layer.outs, -1)
        if not np.isfinite(matrices).all():
            raise ModelError(
                f"{graph.file or 'the model'}: weight {layer.tensor!r} holds numbers that are not finite, so it has no "
                "singular values. Resize with --transfer slice."
            )
        made = _truncated(matrices, min(after.outs, after.ins * after.kernel), denoised=denoised)
        if made is not None:
            changed[layer.tensor] = apply(layer.folded(made).astype(array.dtype), takes[layer.tensor][1])
    return changed


def _truncated(matrices: Array, rank: int, *, denoised: bool) -> Array | None:
    """Matrices [groups, rows, columns] of at most some rank, in float64; None where they stay what they are.

    With W = U·S·Vᵀ each is U·(f/s)·Uᵀ·W, where f are the values that are kept: all that is needed is the eigenvectors
    of W·Wᵀ on the shorter side.
    """
    rows, columns = matrices.shape[1:]
    short = min(rows, columns)
    if rank >= short and not denoised:
        return None
    wide = matrices.swapaxes(1, 2) if rows > columns else matrices
    squares, vectors = np.linalg.eigh(wide @ wide.swapaxes(1, 2))
    squares, vectors = squares[:, ::-1], vectors[:, :, ::-1]
    factors = np.ones(squares.shape)
    if denoised:
        squares = np.maximum(squares, squares[:, :1] * (short * np.finfo(np.float64).eps))  # less is rounding
        kept = shrink(squares, rows, columns)
        clean = np.divide(kept.values, np.sqrt(squares), out=np.zeros_like(squares), where=squares > 0)
        factors = np.where(kept.ranks[:, None] > 0, clean, factors)
    factors[:, rank:] = 0
    if (factors == 1).all():
        return None
    made: Array = (vectors * factors[:, None]) @ (vectors.swapaxes(1, 2) @ wide)
    return made.swapaxes(1, 2) if rows > columns else made
