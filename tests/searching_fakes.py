"""A space and an evaluation that cost nothing, for testing searches without models."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from conet_onnx.files import atomic_write
from conet_onnx.records.trial import Trial
from conet_onnx.searching.searcher import Searcher
from conet_onnx.searching.space import WidthSpace
from conet_onnx.searching.task import Report, TrialOutcome, TrialTask


@dataclass(frozen=True)
class FakeWidth:
    size: int
    min: int = 1
    multiple: int = 1
    exact: bool = True
    name: str = ""
    max: int | None = None


@dataclass(frozen=True)
class Cost:
    params: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class FakeCosts:
    """A chain of 3x3 convolutions from 3 channels to 10 classes; resolution halves at every second layer."""

    sizes: tuple[int, ...]
    names: tuple[str, ...]

    def price(self, widths: Mapping[str, int]) -> Cost:
        row = [widths.get(name, size) for name, size in zip(self.names, self.sizes, strict=True)]
        return Cost(*map(int, self.price_many(np.array([row]))[0]))

    def price_many(self, widths: Any) -> np.ndarray[Any, Any]:
        rows = np.asarray(widths, dtype=np.int64)
        one = np.ones((len(rows), 1), dtype=np.int64)
        chain = np.concatenate([3 * one, rows], axis=1)
        weights = 9 * chain[:, 1:] * chain[:, :-1]
        areas = np.array([1024 // 4 ** (i // 2) for i in range(rows.shape[1])])
        head = 10 * chain[:, -1]
        params = weights.sum(1) + rows.sum(1) + head
        return np.stack([params, (weights * areas).sum(1) + head, 4 * params], axis=1)

    def terms(self, kind: str) -> list[tuple[tuple[int, ...], Any]]:
        """A convolution reads its width and the one before."""
        last = len(self.sizes) - 1

        def of(i: int) -> Any:
            area = 1024 // 4 ** (i // 2) if kind == "macs" else 1
            more = int(kind != "macs")
            times = 4 if kind == "bytes" else 1

            def cost(sizes: Any) -> Any:
                own, before = sizes[:, -1], sizes[:, 0] if i else 3
                return (times * (9 * area * own * before + more * own + (10 * own if i == last else 0))).astype(float)

            return cost

        return [((i - 1, i) if i else (0,), of(i)) for i in range(last + 1)]


@dataclass(frozen=True)
class FakeAnalysis:
    widths: Mapping[str, FakeWidth]
    costs: FakeCosts = field(init=False)

    def __post_init__(self) -> None:
        sizes = tuple(width.size for width in self.widths.values())
        object.__setattr__(self, "costs", FakeCosts(sizes, tuple(self.widths)))


def chain(*sizes: int, **settings: Any) -> FakeAnalysis:
    return FakeAnalysis({f"w{i}": FakeWidth(size, name=f"conv{i}", **settings) for i, size in enumerate(sizes)})


def ideal_loss(widths: Mapping[str, int], ideal: Mapping[str, int]) -> float:
    """Small where the widths are proportioned as the ideal ones, and as large."""
    return 0.1 + sum(math.exp(1.5 * math.log(ideal[name] / widths[name])) for name in widths) / (10 * len(widths))


def tried(searcher: Searcher, space: WidthSpace, number: int, **outcome: Any) -> Trial:
    """A trial as it comes back: what the searcher asked for, with this outcome, judged and told."""
    proposal = searcher.ask(number)
    price = space.price(proposal.widths)
    begun = Trial(
        number, proposal.widths, price.params, price.macs, price.bytes, proposal.parent, proposal.reason, "complete"
    )
    ended = replace(begun, **{key: make(begun.widths) if callable(make) else make for key, make in outcome.items()})
    judged = replace(ended, accepted=searcher.accepts(ended))
    searcher.tell(judged)
    return judged


@dataclass(frozen=True)
class FakeEvaluate:
    """Deterministic in the task, like training on one machine: the parent's file decides, and the seed adds noise."""

    ideal: Mapping[str, int]
    noise: float = 0.01

    def __call__(self, task: TrialTask, report: Report) -> TrialOutcome:
        inherited = 1.0 if task.parent is None else json.loads(Path(task.parent.file).read_text())["loss"]
        report(1.0)
        target = ideal_loss(task.widths, self.ideal)
        chance = np.random.default_rng(task.seed).standard_normal()
        loss = target + 0.2 * abs(inherited - target) + self.noise * abs(float(chance))
        with atomic_write(task.weights) as part:
            part.write_text(json.dumps({"loss": loss, "widths": dict(task.widths)}))
        return TrialOutcome({"top1": 1 / (1 + loss), "loss": loss}, seconds=0.25, evaluation_seconds=0.125)
