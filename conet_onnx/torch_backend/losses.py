"""What a student is asked to match: labels, a user's own task, and a teacher's outputs and inner tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from conet_onnx.errors import DataError, UsageError
from conet_onnx.torch_backend.learner import Learner, Tensors
from conet_onnx.torch_backend.settings import LossKind, Settings

__all__ = ["Adapters", "Match", "Objective", "Task", "as_target", "corrected", "divergence", "flat"]


class Task(Protocol):
    """A user's own task: `loss` is all that it must have.

    It may also have `metric(outputs, targets) -> {name: mean over the samples}` with numpy arrays, which is what a
    model is judged by, and `collate(inputs, targets) -> (inputs, targets)`, which makes a batch of what the data holds:
    inputs as an array or {name: array}, targets as whatever the loss takes; numpy arrays among them become tensors.
    """

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: Any) -> torch.Tensor | Mapping[str, torch.Tensor]:
        """A mean over the batch; several are added. `outputs` are the model's by name, as the file gives them."""


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor of the student that follows one of the teacher's."""

    student: str
    teacher: str
    kind: LossKind
    axis: int | None = None  # of the classes, or of a feature's channels where they differ
    feature: bool = False
    pinned: bool = False  # kl, of what may be no scores: so that what is added to all classes alike is learned too
    scale: float = 1.0  # the variance of the teacher's, which squares are divided by

    def __call__(self, found: torch.Tensor, told: torch.Tensor, temperature: float) -> torch.Tensor:
        """The loss, a mean over the batch. Raises UsageError where the two differ in shape."""
        found, told = self._comparable(found), self._comparable(told)
        if found.shape != told.shape:
            raise self.misfit(found, told)
        if self.kind == "kl":
            axis = 1 if self.axis is None else self.axis
            found, told = _by_class(found, axis), _by_class(told, axis)
            apart = F.mse_loss(found.mean(1), told.mean(1)) / self.scale if self.pinned else 0.0
            return divergence(found, told, temperature) + apart
        if self.kind == "mse":
            return F.mse_loss(found, told) / self.scale
        return (1 - F.cosine_similarity(found.flatten(1), told.flatten(1))).mean()

    def settled(self, found: torch.Tensor, told: torch.Tensor) -> Match:
        """The same, for tensors like these: with the axis of a feature's channels, and the scale of squares."""
        found, told = self._comparable(found), self._comparable(told)
        differ = [k for k, (a, b) in enumerate(zip(found.shape, told.shape, strict=False)) if a != b]
        fits = found.dim() == told.dim() and (not differ or (self.feature and len(differ) == 1 and differ[0] > 0))
        if not fits:
            raise self.misfit(found, told)
        scale = max(float(told.var(correction=0)), 1e-6 * float(told.square().mean()), 1e-12)
        axis = differ[0] if differ else self.axis
        if self.kind == "kl" and axis is None:
            axis = 2 if found.dim() == 3 else 1  # [batch, tokens, vocabulary], or [batch, classes, ...]
        return replace(self, scale=scale, axis=axis)

    def _comparable(self, tensor: torch.Tensor) -> torch.Tensor:
        """In single precision; scores of classes without axes of size one after them."""
        trailing = self.kind == "kl" and tensor.dim() > 2 and all(size == 1 for size in tensor.shape[2:])
        return (tensor.flatten(1) if trailing else tensor).float()

    def misfit(self, found: torch.Tensor, told: torch.Tensor) -> UsageError:
        """What to raise where the two cannot be compared."""
        if not self.feature and found.dim() == told.dim() == 2:
            return UsageError(
                f"the teacher has {told.shape[1]} classes, the student {found.shape[1]}: they must be the same."
            )
        return UsageError(
            f"{self.student!r} has shape {tuple(found.shape)}, the teacher's {self.teacher!r} {tuple(told.shape)}: "
            f"{'only their channels may differ' if self.feature else 'they must be the same'}."
        )


@dataclass(frozen=True, slots=True)
class Objective:
    """(1 - distill) · labels or task + distill · mean of the outputs' matches + weight · mean of the features'.

    Where labels say that the teacher is wrong, it is corrected (`corrected`), if `settings` have it so.
    """

    settings: Settings
    first: str  # the output that scores classes
    labels: bool
    matches: tuple[Match, ...] = ()
    task: Task | None = None

    @classmethod
    def of(
        cls,
        settings: Settings,
        student: Learner,
        teacher: Learner | None,
        *,
        scored: bool = False,
        labels: bool,
        images: bool = True,
        task: Task | None = None,
    ) -> Objective:
        """What is learned from whom; `scored` says that of a teacher the scores of its first output are known.

        Both learners keep what is needed, and no more. Raises UsageError where there is nothing to learn from, or a
        name is not there; UnsupportedOp where no gradient reaches what labels are learned by.
        """
        classifies = labels and task is None
        first = student.first() if classifies or scored else student.graph.outputs[0].name
        matches: tuple[Match, ...] = ()
        if scored:
            matches = (Match(first, first, "kl"),)
        elif teacher is not None:
            matches = _matches(settings, student, teacher, first if classifies else None, images=images)
        elif settings.features:
            raise UsageError("features follow a teacher's, and there is none.")
        if not (labels or task is not None or matches):
            raise UsageError("there is nothing to learn from: the data has no labels, and there is no teacher.")
        by_class = [match for match in matches if match.kind == "kl"]
        bare = {match.student for match in by_class} | ({first} if classifies else set())
        own = student.outputs if task is not None else [first] if classifies else []
        student.keep(list(dict.fromkeys([*own, *(m.student for m in matches)])), bare=() if task is not None else bare)
        if teacher is not None:
            names = list(dict.fromkeys(m.teacher for m in matches))
            teacher.keep(names, bare=() if task is not None else [m.teacher for m in by_class])
        return cls(settings, first, labels, matches, task)

    @property
    def by_class(self) -> bool:
        """Whether labels are classes that the first output scores."""
        return self.labels and self.task is None

    def settled(self, found: Tensors, told: Tensors) -> Objective:
        """The same, for tensors like these. Raises UsageError where they cannot be compared."""
        return replace(self, matches=tuple(m.settled(found[m.student], told[m.teacher]) for m in self.matches))

    def __call__(self, outputs: Tensors, labels: Any, told: Tensors | None) -> dict[str, torch.Tensor]:
        """`loss`, and what it is made of; each match's own loss too where there are several."""
        parts: dict[str, torch.Tensor] = {}
        if self.task is not None:
            given = self.task.loss(outputs, labels)
            terms = given if isinstance(given, Mapping) else {"task": given}
            parts |= {**terms, "task": torch.stack([value.float() for value in terms.values()]).sum()}
        elif self.labels:
            parts["cross_entropy"] = F.cross_entropy(flat(outputs[self.first]), labels)
        own = parts.get("task", parts.get("cross_entropy"))
        taught: dict[str, list[torch.Tensor]] = {}
        for match in self.matches:
            assert told is not None, "a teacher was asked"
            value = match(outputs[match.student], self._lesson(match, told, labels), self.settings.temperature)
            taught.setdefault("features" if match.feature else "distillation", []).append(value)
            if len(self.matches) > 1:
                parts[f"distillation of {match.student}"] = value
        parts |= {name: torch.stack(values).mean() for name, values in taught.items()}
        share = self.settings.distill if own is not None else 1.0
        loss = torch.zeros(()) if own is None else own
        if "distillation" in parts:
            loss = share * parts["distillation"] + (1 - share) * loss
        if "features" in parts:
            loss = loss + self.settings.feature_weight * parts["features"]
        return {"loss": loss, **parts}

    def _lesson(self, match: Match, told: Tensors, labels: Any) -> torch.Tensor:
        """What of the teacher's a match follows. Labels that are mixed (augment.py) name no one class."""
        said = told[match.teacher]
        classes = self.by_class and match.student == self.first and match.kind == "kl" and not match.feature
        if not classes or not self.settings.correct or self.settings.distill == 1 or labels.is_floating_point():
            return said
        return corrected(flat(said), labels)


class Adapters(nn.Module):
    """For each match whose channels differ, a linear map without bias from the student's to the teacher's.

    Romero et al. (2015, FitNets, arXiv:1412.6550), section 2.2. They are trained with the student, and then left.
    """

    def __init__(self, pairs: Sequence[tuple[Match, torch.Tensor, torch.Tensor]]) -> None:
        """Matches with tensors like those that they compare."""
        super().__init__()
        differ = {m.student: (m.axis, a, b) for m, a, b in pairs if m.axis is not None and a.shape != b.shape}
        self.axes = {name: axis for name, (axis, _, _) in differ.items()}
        self.maps = nn.ModuleList(nn.Linear(a.shape[k], b.shape[k], bias=False) for k, a, b in differ.values())

    def forward(self, outputs: Tensors) -> dict[str, torch.Tensor]:
        """The same tensors, as wide as the teacher's."""
        mapped = {
            name: layer(outputs[name].movedim(axis, -1)).movedim(-1, axis)
            for layer, (name, axis) in zip(self.maps, self.axes.items(), strict=True)
        }
        return {**outputs, **mapped}


def as_target(y: Any, device: torch.device) -> Any:
    """Labels or a task's targets: numpy arrays in them as tensors on the device."""
    if isinstance(y, np.ndarray) and y.dtype != object:
        return torch.from_numpy(np.ascontiguousarray(y)).to(device, non_blocking=True)
    if isinstance(y, Mapping):
        return {name: as_target(value, device) for name, value in y.items()}
    if isinstance(y, tuple | list):
        return type(y)(as_target(value, device) for value in y)
    return y


def _matches(
    settings: Settings, student: Learner, teacher: Learner, labelled: str | None, *, images: bool
) -> tuple[Match, ...]:
    """The outputs that follow the teacher's, and the features."""
    same = [name for name in student.outputs if name in teacher.outputs]
    pairs = [(name, name) for name in same]
    if not same and len(student.outputs) == len(teacher.outputs):
        pairs = list(zip(student.outputs, teacher.outputs, strict=True))
    elif not same:
        pairs = list(zip(student.outputs[:1], teacher.outputs[:1], strict=True))
    known = {*student.outputs, *settings.features, ""}
    if unknown := sorted(settings.loss.keys() - known):
        raise UsageError(
            f"a loss is named for {unknown[0]!r}, which is neither an output that can be trained "
            f"({', '.join(student.outputs)}) nor a feature."
        )
    made = []
    for mine, theirs in pairs:
        kind, axis = settings.kind(mine), student.classes_axis(mine)
        scores = mine == labelled or axis is not None
        pinned = kind == "auto" and not scores and images and student.scores_classes(mine)
        if kind == "auto":
            kind = "kl" if scores or pinned else "mse"
        if kind != "none":
            made.append(Match(mine, theirs, kind, axis, pinned=pinned))
    for mine, theirs in settings.features.items():
        kind = settings.loss.get(mine, "mse")
        if kind not in ("mse", "cosine"):
            raise UsageError(f"feature {mine!r} cannot follow by {kind!r}: it is mse or cosine.")
        made.append(Match(mine, theirs, kind, feature=True))
    return tuple(made)


def _by_class(scores: torch.Tensor, axis: int) -> torch.Tensor:
    """[samples and positions, classes]."""
    return scores.movedim(axis, -1).flatten(0, -2)


def flat(scores: torch.Tensor) -> torch.Tensor:
    """[batch, classes] from that with trailing ones. Raises DataError for anything else."""
    if scores.dim() < 2 or any(size != 1 for size in scores.shape[2:]):
        raise DataError(
            f"the model's first output has shape {tuple(scores.shape)}; expected one score for each class, "
            "(batch, classes). Is it a classifier?"
        )
    return scores.reshape(scores.shape[0], scores.shape[1]).float()


def corrected(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A teacher's scores [samples, classes], the best one of each sample in its label's place and the other way round.

    Probability shift (Wen, Lai and Qian, 2019, arXiv:1911.07471): what is right already stays as it is, and of what is
    wrong all is kept but which class comes first.
    """
    own = labels.unsqueeze(1)
    best, at = scores.max(1, keepdim=True)
    return scores.scatter(1, at, scores.gather(1, own)).scatter(1, own, best)


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) of the classes at a temperature T, times T² (Hinton et al. 2015, section 2); a mean."""
    target = F.log_softmax(teacher / temperature, 1)
    found = F.log_softmax(student / temperature, 1)
    return F.kl_div(found, target, reduction="batchmean", log_target=True) * temperature**2
