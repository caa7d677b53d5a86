"""How well a model classifies a data set, measured through onnxruntime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from conet_onnx.data import RAW, DataSet, Normalisation, Split, check_fits
from conet_onnx.data.dataset import Array, Feeds
from conet_onnx.data.fitting import check_labels, fed, fixed_batch, padded
from conet_onnx.data.normalisation import candidates
from conet_onnx.errors import DataError
from conet_onnx.graph import Graph
from conet_onnx.runtime import run_session, session

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["Choice", "Evaluation", "Progress", "choose_normalisation", "evaluate", "resolve_normalisation"]

Progress = Callable[[int, int], None]  # (samples done, samples in all)

SAMPLE = 1024  # training images that a normalisation is chosen on
TOP = 5
# What may stand between the scores and the graph's output without changing them.
TRANSPARENT = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model does on one split; `loss` is the mean cross-entropy in nats.

    `top5` is None for models of at most 5 classes, where it says nothing. `samples_per_second` counts the time in
    onnxruntime alone, without decoding and normalising.
    """

    split: str
    samples: int
    top1: float
    top5: float | None
    loss: float
    samples_per_second: float

    @property
    def measures(self) -> Mapping[str, float]:
        """For a table."""
        return {"accuracy": self.top1, "loss": self.loss}

    def as_json(self) -> dict[str, Any]:
        """As `evaluate --json` prints it; a loss that is not finite is null, since JSON has no word for it."""
        return {
            "format": "conet-onnx-evaluation/1",
            "split": self.split,
            "samples": self.samples,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "samples_per_second": self.samples_per_second,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """A normalisation and where it is from: `given`, the `file` beside the model, or the candidate that scored best.

    `raw inputs` for data that is no images: it is fed as it is.
    """

    normalisation: Normalisation
    name: str
    scores: tuple[tuple[str, Evaluation], ...] = ()  # of every candidate, on training data, in the order tried
    seconds: float = field(default=0.0, compare=False)  # that trying them took

    def as_json(self) -> dict[str, Any]:
        """For a run's records."""
        scores = [{"name": n, "top1": e.top1, "loss": e.as_json()["loss"]} for n, e in self.scores]
        return {"name": self.name, "normalisation": self.normalisation.as_json(), "scores": scores}


RAW_INPUTS = Choice(RAW, "raw inputs")


def evaluate(
    graph: Graph,
    dataset: DataSet,
    *,
    split: str = "test",
    provider: str = "auto",
    threads: int | None = None,
    batch: int = 256,
    normalisation: Normalisation | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy and loss of a classifier: its first output must score the classes, [batch, classes].

    Without a normalisation, the one that `resolve_normalisation` finds is used; Feeds have none. Models with a fixed
    batch size are fed that many at a time, the last ones padded. A final Softmax is recognised, so `loss` is right for
    logits and for probabilities. Among equal scores the first class wins; a NaN is never right.
    Raises DataError where the split is missing, has no labels, or does not fit the model.
    """
    data = _labelled(dataset, split)
    check_fits(graph, dataset, split)
    if normalisation is None:
        choice = resolve_normalisation(graph, dataset, split=split, provider=provider, threads=threads)
        normalisation = choice.normalisation
    if isinstance(data.images, Feeds) and normalisation != RAW:
        raise DataError(f"{dataset.name} ({split}) is fed as it is: {normalisation} is for images; leave it out.")
    started = session(graph, provider=provider, threads=threads)
    return _measure(graph, started, data, split, normalisation, f"{dataset.name} ({split})", batch, progress)


def resolve_normalisation(
    graph: Graph,
    dataset: DataSet,
    *,
    given: Normalisation | None = None,
    split: str = "train",
    provider: str = "auto",
    threads: int | None = None,
    classifies: bool = True,
) -> Choice:
    """The normalisation that is `given`, else that of MODEL.data.json, else the candidate that scores best.

    Feeds have none. Whether it is them is asked of `split`: name one that is read in any case.
    Raises DataError where MODEL.data.json is broken, or there is no labelled train split to choose on; what does not
    `classifies` cannot score candidates.
    """
    if given is not None:
        return Choice(given, "given")
    if split in dataset.splits and isinstance(dataset.split(split).images, Feeds):
        return RAW_INPUTS
    stored = Normalisation.beside(graph.file) if graph.file else None
    if stored is not None:
        return Choice(stored, "file")
    if not classifies:
        raise DataError(
            "How were the model's inputs normalised? There is no MODEL.data.json beside it, and where labels are not "
            "classes, candidates cannot be tried: say it with --mean and --std (0 and 1: pixels in 0..1 as they are)."
        )
    return choose_normalisation(graph, dataset, provider=provider, threads=threads)


def choose_normalisation(
    graph: Graph, dataset: DataSet, *, samples: int = SAMPLE, provider: str = "auto", threads: int | None = None
) -> Choice:
    """The candidate with which the model is right most often on training images, drawn with seed 0.

    Ties go to the lower loss, then to the earlier candidate. Only `train` is read. Feeds have nothing to choose.
    Raises DataError where there is no labelled train split.
    """
    if "train" in dataset.splits and isinstance(dataset.split("train").images, Feeds):
        return RAW_INPUTS
    try:
        train = _labelled(dataset, "train")
    except DataError as error:
        raise DataError(
            f"How were the model's inputs normalised? There is no MODEL.data.json beside it, and no labelled training "
            f"data to find out: {error} Or give --mean and --std."
        ) from error
    check_fits(graph, dataset, "train")
    order = np.random.default_rng(0).permutation(len(train))
    sample = train.take(np.sort(order[:samples]))
    floating = np.issubdtype(graph.inputs[0].dtype, np.floating)
    pixels, _ = next(sample.batches(samples))
    found = candidates(pixels) if floating else {"raw": RAW}
    begun = time.perf_counter()
    started = session(graph, provider=provider, threads=threads)
    scores = {
        name: _measure(graph, started, sample, "train", normalisation, f"{dataset.name} (train)")
        for name, normalisation in found.items()
    }
    best = max(scores, key=lambda name: (scores[name].top1, -_orderable(scores[name].loss)))
    return Choice(found[best], best, tuple(scores.items()), time.perf_counter() - begun)


def _labelled(dataset: DataSet, name: str) -> Split:
    split = dataset.split(name)
    if split.labels is None:
        raise DataError(f"{dataset.name}: its {name} split has no labels, so accuracy cannot be measured on it.")
    return split


def _measure(
    graph: Graph,
    started: ort.InferenceSession,
    split: Split,
    name: str,
    normalisation: Normalisation,
    where: str,
    batch: int = 256,
    progress: Progress | None = None,
) -> Evaluation:
    output, fixed = graph.outputs[0].name, fixed_batch(graph)
    softmaxed = _ends_in_softmax(graph, output)
    done, top1, top5, loss, seconds, classes = 0, 0, 0, 0.0, 0.0, 0
    for samples, labels in split.batches(fixed or batch):
        if labels is None:
            raise DataError(f"{where}: there are no labels, so accuracy cannot be measured.")
        count = len(labels)
        feeds = {key: padded(x, fixed or count) for key, x in fed(graph, samples, normalisation).items()}
        begun = time.perf_counter()
        raw = run_session(started, feeds, [output])[output]
        seconds += time.perf_counter() - begun
        scores = _as_scores(raw, fixed or count, output, where)[:count]
        classes = scores.shape[1]
        check_labels(labels, classes, where)
        ranks = _ranks(scores, labels)
        top1 += int((ranks == 0).sum())
        top5 += int((ranks < TOP).sum())
        loss += float(_cross_entropy(scores, labels, softmaxed).sum())
        done += count
        if progress is not None:
            progress(done, len(split))
    return Evaluation(name, done, top1 / done, top5 / done if classes > TOP else None, loss / done, done / seconds)


def _as_scores(raw: Array, batch: int, output: str, where: str) -> Array:
    if raw.ndim < 2 or raw.shape[0] != batch or any(size != 1 for size in raw.shape[2:]) or raw.dtype.kind != "f":
        raise DataError(
            f"{where}: the model's first output {output!r} is {raw.dtype} of shape {raw.shape} for {batch} samples; "
            "expected one score for each class, (batch, classes). Is it a classifier?"
        )
    return raw.reshape(raw.shape[:2]).astype(np.float64)


def _ranks(scores: Array, labels: Array) -> Array:
    """How many classes come before the right one; among equals the first comes first, and a row with NaN is last."""
    own = np.take_along_axis(scores, labels[:, None], 1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    ranks: Array = ((scores > own) | ((scores == own) & earlier)).sum(1)
    return np.where(np.isnan(scores).any(1), scores.shape[1] + TOP, ranks)


def _cross_entropy(scores: Array, labels: Array, softmaxed: bool) -> Array:
    """-log softmax(scores)[label] in nats, shifted by the maximum so that nothing overflows."""
    own = np.take_along_axis(scores, labels[:, None], 1)[:, 0]
    if softmaxed:
        result: Array = -np.log(np.maximum(own, np.finfo(np.float32).tiny))
        return result
    with np.errstate(invalid="ignore", over="ignore"):  # infinite scores give an honest NaN
        shifted = scores - scores.max(1, keepdims=True)
        return np.asarray(np.log(np.exp(shifted).sum(1)) - (own - scores.max(1)))


def _ends_in_softmax(graph: Graph, output: str) -> bool:
    node = graph.producer(output)
    while node is not None and node.op in TRANSPARENT:
        node = graph.producer(node.inputs[0])
    return node is not None and node.op == "Softmax"


def _orderable(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss
