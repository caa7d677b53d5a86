"""What channels are worth on data: how the loss leans on them, and how much of what is summed comes from them.

Wherever a contraction sums over a width, its channels are multiplied by masks of one (dropping). A mask's gradient, of
each sample by itself, is what removing the channel changes to first order (Molchanov et al., 2017, arXiv:1611.06440;
on such gates: 2019, arXiv:1906.10771), and its mean square the diagonal of the Fisher information, which stands for
that of the Hessian (LeCun et al., 1990, Optimal Brain Damage; Theis et al., 2018, arXiv:1801.05787).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.nn import functional as F

from conet_onnx.analysis import Analysis
from conet_onnx.data.dataset import Split
from conet_onnx.data.fitting import check_labels
from conet_onnx.errors import UsageError
from conet_onnx.folding import Facing
from conet_onnx.graph import Graph
from conet_onnx.scoring import real_values
from conet_onnx.torch_backend.distill import Normalise, first, prepared
from conet_onnx.torch_backend.dropping import Drop, Dropping, insert_drops, seeded
from conet_onnx.torch_backend.learner import Learner, samples_in
from conet_onnx.torch_backend.losses import flat
from conet_onnx.torch_backend.utilisation import filled, with_free_batch

__all__ = ["Saliency", "saliency"]

Of = Literal["taylor", "obd", "activation"]
Floats = NDArray[np.float64]
BATCH = 64


@dataclass(frozen=True, slots=True)
class Saliency:
    """Scores [channels] of each width that could be measured; of the others, why not."""

    scores: Mapping[str, Floats]
    missing: Mapping[str, str]


def saliency(
    graph: Graph,
    analysis: Analysis,
    data: Split,
    of: str,
    *,
    normalise: Normalise | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> Saliency:
    """What each channel of each width is worth on some samples, which are read once; nothing is changed.

    "taylor": the mean over samples of |dL/dm|, in nats: what removing the channel changes the loss of a sample by, to
    first order. "obd": half the mean of (dL/dm)², in nats: what it costs to second order, where the loss is at its
    minimum. L is the cross-entropy of the first output with the labels; without labels, with labels drawn (by `seed`)
    from what the model itself says, which makes "obd" the Fisher information of its own outputs, the curvature of the
    divergence from them; outputs that are no scores of classes count as means of normal distributions with the
    outputs' own variance.

    "activation": of each contraction that sums over the channel, its share of the squares that are summed, x² · |w|²
    over all samples and places (Wanda, Sun et al., 2024, arXiv:2306.11695, for channels); shares of several
    contractions are added. It needs neither labels nor gradients.

    Raises UsageError for another `of`, DataError where the data does not fit, UnsupportedOp where torch cannot compute
    the model.
    """
    if of not in get_args(Of):
        raise UsageError(f"saliency of {of!r}: it is one of {', '.join(get_args(Of))}.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graph, analysis = with_free_batch(graph, analysis)
    learner = Learner(graph, device)
    sample = prepared(first(data)[0], normalise)
    learner.settle(sample)
    learner.use_channels_last(None)
    loss = None if of == "activation" else _Loss.of(learner, labelled=data.labels is not None)
    dropping = insert_drops(learner.module, analysis)
    summed = _Summed(learner.module, analysis, dropping) if of == "activation" else None
    size = learner.batch or batch
    found = {name: np.zeros(channels) for name, channels in dropping.widths.items()}
    for at, (x, y) in enumerate(data.batches(size)):
        own, inputs = samples_in(x), filled(learner.tensors(prepared(x, normalise)), learner.batch)
        try:
            if loss is None:
                with torch.no_grad():
                    learner.module(*inputs)
                continue
            masks = {
                n: torch.ones(len(inputs[0]), c, device=device, requires_grad=True) for n, c in dropping.widths.items()
            }
            dropping.use(masks)
            outputs = dict(zip(learner.names, learner.module(*inputs), strict=True))
        except (RuntimeError, ValueError, IndexError) as error:
            raise learner.misfit(inputs, error) from error
        total = loss(outputs, y, own, seeded(seed, at))
        gradients = torch.autograd.grad(total, list(masks.values()), allow_unused=True)
        for name, gradient in zip(masks, gradients, strict=True):
            if gradient is not None:
                each = gradient[:own].double()
                part = each.abs() if of == "taylor" else each.square() / 2
                found[name] += part.sum(0).cpu().numpy() / len(data)
    if summed is not None:
        return summed.shares()
    return Saliency(found, dropping.missing)


@dataclass(frozen=True, slots=True)
class _Loss:
    """The sum over samples of minus the log-likelihood of labels, or of what is drawn in their place."""

    output: str
    classes: bool
    labelled: bool

    @classmethod
    def of(cls, learner: Learner, *, labelled: bool) -> _Loss:
        name = learner.first()
        classes = labelled or learner.scores_classes(name) or learner.classes_axis(name) == 1
        learner.keep([name], bare=[name] if classes else [])
        return cls(name, classes, labelled)

    def __call__(
        self, outputs: Mapping[str, torch.Tensor], labels: Any, samples: int, generator: torch.Generator
    ) -> torch.Tensor:
        made = outputs[self.output][:samples]
        if self.classes:
            scores = flat(made)
            if self.labelled:
                check_labels(labels, scores.shape[1], "the data")
                target = torch.from_numpy(labels).to(scores.device)
            else:
                likely = scores.detach().softmax(1).cpu()
                target = torch.multinomial(likely, 1, generator=generator)[:, 0].to(scores.device)
            return F.cross_entropy(scores, target, reduction="sum")
        noise = torch.randn(made.shape, generator=generator).to(made.device)
        spread = made.detach().double().var(correction=0).sqrt().clamp(min=1e-12)
        drawn: torch.Tensor = (made.double() * noise).sum() / (spread * math.sqrt(made[0].numel()))
        return drawn


class _Summed:
    """Squares of what the contractions of a module sum over, channel by channel."""

    def __init__(self, module: fx.GraphModule, analysis: Analysis, dropping: Dropping) -> None:
        self._analysis, self._dropping = analysis, dropping
        self._squares: dict[str, Floats] = {}
        self._of: dict[int, list[str]] = {}  # the places of each node
        self._drops: dict[str, Drop] = {}
        for node in module.graph.nodes:
            drop = module.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(drop, Drop):
                name = str(node.target)
                self._drops[name] = drop
                drop.register_forward_pre_hook(lambda _, given, name=name: self._add(name, given[0]))
                for user in node.users:
                    for index in user.meta.get("nodes", ()):
                        self._of.setdefault(index, []).append(name)

    def shares(self) -> Saliency:
        """Each channel's share, added over the contractions."""
        found: dict[str, Floats] = {}
        for facing in self._analysis.contractions:
            for name in self._of.get(facing.node, ()):
                place = self._drops[name].place
                energies = self._energies(facing, name)
                total = max(float(energies.sum()), 1e-300)
                for width, index in place.parts:
                    size = self._dropping.widths[width]
                    own = np.arange(size) if index is None else index
                    share = np.bincount(own[own >= 0], weights=energies[own >= 0], minlength=size) / total
                    found[width] = found.get(width, np.zeros(size)) + share
        missing = {
            n: self._dropping.missing.get(n, "nothing sums over it") for n in self._analysis.widths if n not in found
        }
        return Saliency({n: found[n] for n in self._analysis.widths if n in found}, missing)

    def _energies(self, facing: Facing, name: str) -> Floats:
        """x² · |w|² at each position of the axis that is summed over, of all groups together."""
        squares = self._squares[name]
        length = next((len(index) for _, index in self._drops[name].place.parts if index is not None), None)
        length = length or next(self._dropping.widths[width] for width, _ in self._drops[name].place.parts)
        x = squares.reshape(-1, length)  # [groups, positions]
        for part in facing.parts:
            array = real_values(self._analysis.graph, part.tensor)
            if array.shape[part.axis] != length:
                continue
            rows = np.moveaxis(np.square(array.astype(np.float64)), part.axis, -1)
            outs = rows.shape[0] if part.axis != 0 else 1
            groups = len(x) if outs % len(x) == 0 else 1
            w = rows.reshape(groups, -1, length).sum(1)
            return np.asarray((x * w).sum(0) if groups == len(x) else x.sum(0) * w.sum(0))
        return np.asarray(x.sum(0))

    def _add(self, name: str, x: torch.Tensor) -> None:
        axis = self._drops[name].place.axis % x.dim()
        squares = x.detach().double().square().sum([a for a in range(x.dim()) if a != axis]).cpu().numpy()
        self._squares[name] = self._squares.get(name, np.zeros(len(squares))) + squares
