"""What a student is asked to match: labels, and the scores of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from conet_onnx.data.dataset import Split
from conet_onnx.errors import DataError, UnsupportedOp, UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend.known import Array
from conet_onnx.torch_backend.lower import lower, untrained_of
from conet_onnx.torch_backend.weights import torch_dtype

__all__ = ["Classifier", "Data", "Lessons", "Normalise", "divergence", "flat", "teacher_scores"]

Normalise = Callable[[Array], Array]  # stored pixels -> what the model takes, [batch, channels, height, width]

KEPT = 2**28  # bytes: a teacher's scores up to here are computed once, not in every epoch
TOLERANCE = 1e-3  # relative; two batches at once against one after the other
_SOFTMAX = (torch.softmax, torch.log_softmax)
# What may stand between a final Softmax and the output.
_TRANSPARENT = (torch.flatten, torch.reshape, torch.squeeze, "to")


class Data(Protocol):
    """Samples to train on: a data.Split, or anything that does the same."""

    def __len__(self) -> int: ...

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[tuple[Array, Array | None]]:
        """(images [batch, ...], labels int64 [batch] or None); in order without a seed, else in the order it draws."""


class Classifier:
    """A lowered graph that scores classes: before any final Softmax, and at any batch size.

    `module` is what is trained; it is made of one input and the graph's first output. Raises UsageError where the
    graph has more inputs, UnsupportedOp where no gradient reaches that output.
    """

    def __init__(self, graph: Graph, sample: Array, device: torch.device) -> None:
        """The sample, [1 or more, ...], as the model takes it, tells whether the batch size can be chosen."""
        if len(graph.inputs) != 1:
            names = ", ".join(value.name for value in graph.inputs)
            raise UsageError(
                f"{graph.file or 'the model'} has {len(graph.inputs)} inputs ({names}); training feeds one."
            )
        self.graph = graph
        self.device = device
        module = lower(graph)
        self.untrained = untrained_of(module)
        if graph.outputs[0].name in self.untrained:
            raise UnsupportedOp(
                f"the first output of {graph.file or 'the model'}, {graph.outputs[0].name!r}, cannot be trained: "
                f"{self.untrained[graph.outputs[0].name]}"
            )
        self.module = _scoring(module).to(device)
        self.dtype = torch_dtype(graph.inputs[0].dtype)
        declared = graph.inputs[0].shape
        batch = declared[0] if declared else ""
        self.batch = batch if isinstance(batch, int) and not self._any_batch(batch, sample) else None  # None: any

    def tensor(self, x: Array) -> torch.Tensor:
        """Images as the module takes them."""
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device, self.dtype)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, classes], without gradients; a fixed batch size is met by repeating the last sample."""
        with torch.no_grad():
            if self.batch is None:
                return flat(self.module(x))
            short = -len(x) % self.batch
            padded = torch.cat([x, x[-1:].expand(short, *x.shape[1:])]) if short else x
            return torch.cat([flat(self.module(part)) for part in _chunks(padded, self.batch)])[: len(x)]

    def _any_batch(self, batch: int, sample: Array) -> bool:
        """Whether two batches at once score as one after the other."""
        x = self.tensor(np.resize(sample, (2 * batch, *sample.shape[1:])))
        try:
            with torch.no_grad():
                apart = torch.cat([flat(self.module(part)) for part in _chunks(x, batch)])
                together = flat(self.module(x))
        except (RuntimeError, ValueError, IndexError):  # a size that does not fit is reported in all these ways
            return False
        return together.shape == apart.shape and bool(
            (together - apart).abs().max() <= TOLERANCE * apart.abs().max().clamp(min=1e-12)
        )


@dataclass(frozen=True, slots=True)
class Lessons:
    """Batches of prepared images with labels and, where they are known beforehand, the teacher's scores."""

    data: Data
    normalise: Normalise | None
    sample: Array  # one prepared image, [1, ...]
    told: Array | None = None  # scores in the order of the data
    teacher: Classifier | None = None  # who is asked at every step instead

    @classmethod
    def of(
        cls,
        data: Data,
        teacher: Graph | Array | None,
        normalise: Normalise | None,
        epochs: int,
        device: torch.device,
    ) -> Lessons:
        """A teacher's scores are computed once where its samples can be recognised and it pays."""
        sample = next((prepared(x, normalise) for x, _ in data.batches(1, seed=None)), None)
        if sample is None:
            raise DataError("there are no samples to train on.")
        if not isinstance(teacher, Graph):
            if teacher is not None and (not isinstance(data, Split) or len(teacher) != len(data)):
                raise UsageError(
                    f"{len(teacher)} scores for {len(data)} samples: a Split and one row for each is needed."
                )
            return cls(data, normalise, sample, told=teacher)
        asked = Classifier(teacher, sample, device)
        classes = asked.scores(asked.tensor(sample)).shape[1]
        if epochs > 1 and isinstance(data, Split) and 4 * classes * len(data) <= KEPT:
            return cls(data, normalise, sample, told=teacher_scores(teacher, data, normalise=normalise, device=device))
        return cls(data, normalise, sample, teacher=asked)

    def batches(self, size: int, seed: int) -> Iterator[tuple[Array, Array | None, Array | None]]:
        """(images, labels, the teacher's scores) in the order that the seed draws."""
        if self.told is None or not isinstance(self.data, Split):
            for x, y in self.data.batches(size, seed=seed):
                yield prepared(x, self.normalise), y, None
            return
        labels = self.data.labels
        for x, index in Split(self.data.images, np.arange(len(self.data))).batches(size, seed=seed):
            yield prepared(x, self.normalise), None if labels is None else labels[index], self.told[index]


def prepared(x: Array, normalise: Normalise | None) -> Array:
    """Images as the model takes them."""
    return x if normalise is None else normalise(x)


def flat(scores: torch.Tensor) -> torch.Tensor:
    """[batch, classes] from that with trailing ones. Raises DataError for anything else."""
    if scores.dim() < 2 or any(size != 1 for size in scores.shape[2:]):
        raise DataError(
            f"the model's first output has shape {tuple(scores.shape)}; expected one score for each class, "
            "(batch, classes). Is it a classifier?"
        )
    return scores.reshape(scores.shape[0], scores.shape[1]).float()


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) of the classes at a temperature T, times T² (Hinton et al. 2015, section 2); a mean."""
    target = F.log_softmax(teacher / temperature, 1)
    found = F.log_softmax(student / temperature, 1)
    return F.kl_div(found, target, reduction="batchmean", log_target=True) * temperature**2


def teacher_scores(
    teacher: Graph,
    data: Data,
    *,
    normalise: Normalise | None = None,
    batch: int = 256,
    device: torch.device | None = None,
) -> Array:
    """What a model says of every sample, in order: float32 [samples, classes], before any final Softmax.

    For `fit(teacher=...)` of several students on the same data. Runs on the first GPU where there is one.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: list[Array] = []
    asked: Classifier | None = None
    for x, _ in data.batches(batch, seed=None):
        images = prepared(x, normalise)
        asked = asked or Classifier(teacher, images[:1], device)
        found.append(asked.scores(asked.tensor(images)).cpu().numpy())
    if not found:
        raise DataError("there are no samples to train on.")
    return np.concatenate(found)


def _chunks(x: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [x[start : start + size] for start in range(0, len(x), size)]


def _scoring(module: fx.GraphModule) -> fx.GraphModule:
    """The same module with one output, before a final Softmax or LogSoftmax: its losses want scores."""
    graph = module.graph
    output = next(node for node in graph.nodes if node.op == "output")
    result: Any = output.args[0]
    first = result[0] if isinstance(result, tuple | list) else result
    output.args = (first,)
    node = first
    while isinstance(node, fx.Node) and node.target in _TRANSPARENT:
        node = node.args[0]
    if node.target in _SOFTMAX and node.args[1] in (1, -1):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    module.recompile()
    # Where a call fails, fx prints a report to stderr before it raises; the error is enough (a test watches this).
    quiet: Any = type(module)
    quiet._wrapped_call = staticmethod(nn.Module.__call__)
    return module
