"""Train a model as it is, on labels or on what a teacher says, and tell what it was worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conet_onnx.agreement import Agreement, agreement
from conet_onnx.data import DataSet, Normalisation, check_fits, fed
from conet_onnx.errors import DataError, UsageError
from conet_onnx.evaluation import Choice, Evaluation, evaluate, resolve_normalisation
from conet_onnx.graph import Graph
from conet_onnx.processes import leads
from conet_onnx.tasks import Judgement, judge

if TYPE_CHECKING:
    from pathlib import Path

    from conet_onnx.torch_backend.losses import Task
    from conet_onnx.torch_backend.train import Progress

Judged = Evaluation | Agreement | Judgement

__all__ = ["Finetuned", "choose_inputs", "finetune", "uses_labels"]

DISTILL = 0.9  # share of the teacher in the loss where there are labels too, as in a search
JUDGED = ("validation", "test")


@dataclass(frozen=True, slots=True)
class Finetuned:
    """A trained model, and how it and its source do on the splits that it was not trained on: in classifying, where
    there are labels, in the user's task, where there is one, or else in saying what the teacher says.

    `history` holds an epoch's mean losses each (torch_backend.train.Fitted); `untrained` the model's outputs that no
    gradient reaches, with the reason, and `untrained_weights` the weights; `undropped` the widths that channel dropout
    left alone; `flushed` how many denormal numbers among the trained weights were set to zero.
    """

    graph: Graph
    choice: Choice
    history: tuple[dict[str, float], ...]
    seconds: float
    before: Mapping[str, Judged] = field(default_factory=dict)
    after: Mapping[str, Judged] = field(default_factory=dict)
    untrained: Mapping[str, str] = field(default_factory=dict)
    undropped: Mapping[str, str] = field(default_factory=dict)
    flushed: int = 0
    untrained_weights: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As `finetune --json` prints it."""
        return {
            "format": "conet-onnx-finetune/1",
            "normalisation": self.choice.as_json(),
            "epochs": [dict(epoch) for epoch in self.history],
            "seconds": self.seconds,
            "before": {name: found.as_json() for name, found in self.before.items()},
            "after": {name: found.as_json() for name, found in self.after.items()},
            "untrained": dict(self.untrained),
            "untrained_weights": dict(self.untrained_weights),
            "undropped": dict(self.undropped),
            "flushed": self.flushed,
        }


def finetune(
    graph: Graph,
    dataset: DataSet,
    *,
    teacher: Graph | None = None,
    labels: bool = True,
    task: Task | None = None,
    epochs: int = 10,
    choice: Choice | None = None,
    provider: str = "auto",
    threads: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Finetuned:
    """Train all learned weights on the train split; see torch_backend.train.fit and .settings for the `settings`.

    With `labels` the data's are learned, if it has any, or a `task` of the user's own (torch_backend.losses.Task);
    without, the teacher alone is. Where there is no validation split, a tenth of train is held out. `choice` is how
    pixels are normalised (choose_inputs). Test data is used once, at the end. With a `checkpoint` a training that was
    stopped goes on. Raises UsageError where there is nothing to learn from or the settings make no sense, DataError
    where the data does not fit, UnsupportedOp, Diverged.
    """
    from conet_onnx.torch_backend.train import fit

    dataset = dataset.with_validation()
    labels = uses_labels(dataset, wanted=labels, teacher=teacher is not None, task=task is not None)
    if getattr(task, "collate", None) is None:  # else the user makes of the data what the model takes
        check_fits(graph, dataset, "train", *(n for n in JUDGED if n in dataset.splits), classes=task is None)
    choice = choice or choose_inputs(graph, dataset, provider=provider, threads=threads, classifies=task is None)
    fitted = fit(
        graph,
        dataset.split("train"),
        epochs=epochs,
        teacher=teacher,
        labels=labels,
        task=task,
        normalise=lambda samples: fed(graph, samples, choice.normalisation),
        threads=threads,
        checkpoint=checkpoint,
        progress=progress,
        **{"distill": DISTILL, **settings},
    )
    judged = [name for name in JUDGED if name in dataset.splits] if leads() else []
    how: dict[str, Any] = {"provider": provider, "threads": threads, "normalisation": choice.normalisation}

    def worth(some: Graph) -> dict[str, Judged]:
        found: dict[str, Judged] = {}
        for name in judged:
            if task is not None:
                found[name] = judge(some, dataset, task, split=name, **how)
            elif dataset.split(name).labels is not None:
                found[name] = evaluate(some, dataset, split=name, **how)
            elif teacher is not None:
                found[name] = agreement(some, teacher, dataset, split=name, **how)
        return found

    before, after = worth(graph), worth(fitted.graph)
    told = fitted.untrained, fitted.undropped, fitted.flushed, fitted.untrained_weights
    return Finetuned(fitted.graph, choice, fitted.history, fitted.seconds, before, after, *told)


def uses_labels(dataset: DataSet, *, wanted: bool, teacher: bool, task: bool = False) -> bool:
    """Whether training learns from labels. Raises UsageError where it would learn from nothing."""
    there = dataset.split("train").labels is not None
    if not (wanted and there) and not teacher and not task:
        why = "its labels are not to be used" if there else f"{dataset.name} has no labels"
        raise UsageError(f"There is nothing to learn from: {why}, and there is no teacher. Give one with --teacher.")
    return wanted and there


def choose_inputs(
    graph: Graph,
    dataset: DataSet,
    *,
    given: Normalisation | None = None,
    provider: str = "auto",
    threads: int | None = None,
    classifies: bool = True,
) -> Choice:
    """How pixels become the model's input; as evaluation.resolve_normalisation, for data without labels too."""
    try:
        return resolve_normalisation(
            graph, dataset, given=given, provider=provider, threads=threads, classifies=classifies
        )
    except DataError as error:
        if not classifies or dataset.split("train").labels is not None:
            raise
        raise DataError(
            f"{dataset.name} has no labels, so that the model's normalisation cannot be found by trying: say it with "
            "--mean and --std (0 and 1 for pixels in 0..1 as they are), or put MODEL.data.json beside the model."
        ) from error
