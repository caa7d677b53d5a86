"""What a model loses when a width's channels are dropped at random: its FLOPs utilisation ratio, by channel dropout.

Network Adjustment (Chen et al., 2020, arXiv:2004.02767): FUR_i = mean over passes of (loss(p_i) - loss(0)), in eval
mode, where p_i is the rate that costs the same at every width (metrics.utilisation.rates_of).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import fx
from torch.nn import functional as F

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.batches import freed
from conet_onnx.data.dataset import Split
from conet_onnx.data.fitting import check_labels
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend.distill import Normalise, first, prepared
from conet_onnx.torch_backend.dropping import Drop, Noise, insert_drops, seeded
from conet_onnx.torch_backend.learner import Learner, Tensors, samples_in
from conet_onnx.torch_backend.losses import Objective, flat
from conet_onnx.torch_backend.lower import lower
from conet_onnx.torch_backend.settings import Settings
from conet_onnx.torch_backend.threads import torch_threads

__all__ = ["filled", "losses_without", "undroppable", "utilisation", "with_free_batch"]

Of = Literal["loss", "accuracy"]
BATCH = 128  # samples at a time: all that the model computes of them is kept while widths are measured


def utilisation(
    graph: Graph,
    analysis: Analysis,
    data: Split,
    *,
    rates: Mapping[str, float],
    normalise: Normalise | None = None,
    passes: int = 5,
    of: Of = "loss",
    seed: int = 0,
    noise: Noise = "bernoulli",
    batch: int = BATCH,
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """FUR of each width that `rates` names, as far as it can be dropped: `undroppable` tells of the others, and why.

    For each width alone, in eval mode: mean over `passes` and samples of loss(p) - loss(0), in nats. The loss is the
    cross-entropy of the first output where there are labels, else how far the outputs go from what they are without
    dropping (losses.Match: a divergence for scores of classes at temperature 1, else squares over the variance). `of`
    "accuracy" counts the samples that are wrong instead, 0..1, or, without labels, of another class than before: what
    is useful is positive either way. Rates are taken for LARGEST at most (dropping.Dropping); at rate 0 there is no
    loss. `data` is for validation; nothing else is read, and nothing is changed.

    Samples are read once. Of each batch the model is computed once as it is, and then for every width and pass what
    lies behind the width's first place. What is drawn follows from seed, width, pass and batch alone: a width's number
    is the same whichever others are measured. A batch size that is baked in is freed (batches.freed).

    Raises UsageError for rates of a width that is not there, or settings that make no sense; DataError where the data
    does not fit, UnsupportedOp where torch cannot compute the model.
    """
    _check(analysis, rates, passes, of, batch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch_threads(threads):
        graph, analysis = with_free_batch(graph, analysis)
        learner = Learner(graph, device)
        judge = _Judge.of(learner, labels=data.labels is not None, wrong=of == "accuracy", images=bool(data.shape))
        learner.settle(prepared(first(data)[0], normalise))
        learner.use_channels_last(None)
        dropping = insert_drops(learner.module, analysis, noise=noise)
        places = {name: k for k, name in enumerate(analysis.all_widths)}
        measured = [name for name in analysis.widths if name in rates and name in dropping.widths]
        tasks = [(name, k) for name in measured if rates[name] > 0 for k in range(passes)]
        replay = _Replay(learner.module, measured)
        lost = dict.fromkeys(measured, 0.0)
        size = learner.batch or batch
        done, whole = 0, max(1, -(-len(data) // size) * len(tasks))
        for at, (x, y) in enumerate(data.batches(size)):
            own, inputs = samples_in(x), filled(learner.tensors(prepared(x, normalise)), learner.batch)
            with torch.inference_mode():
                dropping.clear()
                told = _called(learner, replay, inputs)
                before = judge(told, told, y, own)
                for name, k in tasks:
                    dropping.rates.clear()
                    dropping.rates[name] = rates[name]
                    dropping.draw(len(inputs[0]), seeded(seed, places[name], k, at))
                    found = dict(zip(learner.names, replay.behind(name), strict=True))
                    lost[name] += judge(found, told, y, own) - before
                    done += 1
                    if progress is not None:
                        progress(done / whole)
    return {name: total / (passes * len(data)) for name, total in lost.items()}


def losses_without(
    graph: Graph,
    analysis: Analysis,
    data: Split,
    masks: Mapping[str, Sequence[np.ndarray[Any, Any]]],
    *,
    normalise: Normalise | None = None,
    batch: int = BATCH,
) -> dict[str, list[float]]:
    """What the loss of a sample gains on average, in nats, where a width's channels are multiplied by one of its masks.

    `masks`: [channels] each, 0 where a channel is taken out, as if the contracted weights at it were zero (law 2). The
    loss is `utilisation`'s, in eval mode; the model is computed once as it is, and then what lies behind each width.
    Widths that cannot be masked are left out: `undroppable` says why. Raises as `utilisation`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graph, analysis = with_free_batch(graph, analysis)
    learner = Learner(graph, device)
    judge = _Judge.of(learner, labels=data.labels is not None, wrong=False, images=bool(data.shape))
    learner.settle(prepared(first(data)[0], normalise))
    learner.use_channels_last(None)
    dropping = insert_drops(learner.module, analysis)
    measured = [name for name in analysis.widths if masks.get(name) and name in dropping.widths]
    lost = {name: [0.0] * len(masks[name]) for name in measured}
    tasks = [
        (name, k, torch.tensor(np.asarray(mask, dtype=np.float32)))
        for name in measured
        for k, mask in enumerate(masks[name])
    ]
    replay = _Replay(learner.module, measured)
    for x, y in data.batches(learner.batch or batch):
        own, inputs = samples_in(x), filled(learner.tensors(prepared(x, normalise)), learner.batch)
        with torch.inference_mode():
            dropping.clear()
            told = _called(learner, replay, inputs)
            before = judge(told, told, y, own)
            for name, k, mask in tasks:
                dropping.use({name: mask.expand(len(inputs[0]), -1)})
                found = dict(zip(learner.names, replay.behind(name), strict=True))
                lost[name][k] += (judge(found, told, y, own) - before) / len(data)
    return lost


def undroppable(graph: Graph, analysis: Analysis) -> dict[str, str]:
    """The widths whose channels `utilisation` cannot drop, each with the reason (dropping.insert_drops)."""
    graph, analysis = with_free_batch(graph, analysis)
    return dict(insert_drops(lower(graph), analysis).missing)


@dataclass(slots=True)
class _Judge:
    """The loss of a batch's outputs, added over its samples; or how many of them are wrong."""

    objective: Objective
    wrong: bool
    settled: bool = False  # whether the scale of squares is known: that of the first batch

    @classmethod
    def of(cls, learner: Learner, *, labels: bool, wrong: bool, images: bool) -> _Judge:
        """What can be asked of a model; it returns what is needed, and no more."""
        settings = Settings(epochs=0, temperature=1.0)
        if labels or wrong:
            return cls(Objective.of(settings, learner, None, labels=True, images=images), wrong)
        return cls(Objective.of(settings, learner, learner, labels=False, images=images), wrong)

    def __call__(self, found: Tensors, told: Tensors, labels: Any, samples: int) -> float:
        """Of so many samples: what lies behind them repeats the last one."""
        found, told = ({n: t[:samples] for n, t in some.items()} for some in (found, told))
        if self.objective.matches:
            if not self.settled:
                self.objective, self.settled = self.objective.settled(found, told), True
            return float(self.objective(found, None, told)["loss"].double()) * samples
        scores = flat(found[self.objective.first])
        if labels is None:
            target = flat(told[self.objective.first]).argmax(1)
        else:
            check_labels(labels, scores.shape[1], "the data")
            target = torch.from_numpy(labels).to(scores.device)
        if self.wrong:
            return float((scores.argmax(1) != target).sum())
        return float(F.cross_entropy(scores, target, reduction="none").double().sum())


class _Replay(fx.Interpreter):
    """Computes a module, keeps all that it computed, and computes again what lies behind some widths' places."""

    def __init__(self, module: fx.GraphModule, widths: list[str]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._same = {name: self._before(module, name) for name in widths}
        self._inputs: tuple[torch.Tensor, ...] = ()
        self._kept: dict[fx.Node, Any] = {}

    def whole(self, inputs: tuple[torch.Tensor, ...]) -> Any:
        """The module's outputs."""
        self._kept = {}
        made = self.run(*inputs)
        self._inputs, self._kept = inputs, self.env
        return made

    def behind(self, width: str) -> Any:
        """The outputs with the factors that a width has now, for the same inputs.

        Activations that overwrite their input come to no harm: nothing else reads it, so it is made again with them.
        """
        return self.run(*self._inputs, initial_env={node: self._kept[node] for node in self._same[width]})

    @staticmethod
    def _before(module: fx.GraphModule, width: str) -> list[fx.Node]:
        """What stays as it is when a width's factors change."""
        changed: set[fx.Node] = set()
        for node in module.graph.nodes:
            drops = module.get_submodule(str(node.target)) if node.op == "call_module" else None
            own = isinstance(drops, Drop) and any(name == width for name, _ in drops.parts)
            if own or not changed.isdisjoint(node.all_input_nodes):
                changed.add(node)
        return [node for node in module.graph.nodes if node not in changed and node.op != "output"]


def _check(analysis: Analysis, rates: Mapping[str, float], passes: int, of: str, batch: int) -> None:
    for name, rate in rates.items():
        if name not in analysis.widths:
            raise UsageError(f"{name!r} is not a width of this model; it has {', '.join(analysis.widths) or 'none'}.")
        if not rate >= 0:
            raise UsageError(f"width {name!r} is to be dropped at a rate of {rate}: expected a share, 0..1.")
    if passes < 1 or batch < 1:
        raise UsageError(f"{passes} passes with batches of {batch}: expected at least one of each.")
    if of not in get_args(Of):
        raise UsageError(f"utilisation of {of!r}: it is one of {', '.join(get_args(Of))}.")


def with_free_batch(graph: Graph, analysis: Analysis) -> tuple[Graph, Analysis]:
    """A graph for any batch, where that can be had, and its analysis: there it is seen which positions are whose."""
    if any(value.shape and not isinstance(value.shape[0], int) for value in graph.inputs):
        return graph, analysis
    made = freed(graph)
    if made.reason:
        return graph, analysis
    found = analyze(made.graph)
    same = [(w.id, w.name, w.size) for w in found.all_widths.values()] == [
        (w.id, w.name, w.size) for w in analysis.all_widths.values()
    ]
    if not same:
        return graph, analysis
    found.dropped = frozenset(w.dim for name, w in found.all_widths.items() if name not in analysis.widths)
    return made.graph, found


def filled(inputs: tuple[torch.Tensor, ...], batch: int | None) -> tuple[torch.Tensor, ...]:
    """As many samples as the model takes, the last one repeated."""
    short = 0 if batch is None else -len(inputs[0]) % batch
    return tuple(torch.cat([t, t[-1:].expand(short, *t.shape[1:])]) if short else t for t in inputs)


def _called(learner: Learner, replay: _Replay, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    try:
        return dict(zip(learner.names, replay.whole(inputs), strict=True))
    except (RuntimeError, ValueError, IndexError) as error:
        raise learner.misfit(inputs, error) from error
