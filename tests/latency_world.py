"""A machine whose times follow from a law, for tests of profiles and predictions: nothing is run to know them."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from conet_onnx.analysis import Analysis
from conet_onnx.graph import Graph
from conet_onnx.latency.isolated import Sample
from conet_onnx.latency.nodes import NULL
from conet_onnx.latency.operators import Operators
from conet_onnx.latency.timing import Comparison, Latency, Ratio

__all__ = ["BLOCK", "World"]

FOUND = np.show_config(mode="dicts")["SIMD Extensions"].get("found", ())
LARGE = platform.machine() not in ("x86_64", "AMD64") or any(one == "X86_V4" or "AVX512" in one for one in FOUND)
BLOCK = 16 if LARGE else 8  # channels that onnxruntime lays out together: a register of floats with AVX-512, or two
CALL = 1e-6  # seconds: what any run costs


@dataclass
class World:
    """Seconds: an operator's by its elements; a model's are its operators' times `coefficients` by class, and `rest`.

    `moods` multiply the source's time, one for each time that it is measured, and 1 from then on.
    """

    analysis: Analysis
    operators: Operators
    coefficients: Mapping[str, float] = field(default_factory=dict)
    rest: float = 0.0
    moods: Sequence[float] = ()
    timed: int = 0
    compared: list[tuple[int, ...]] = field(default_factory=list)
    asked: int = 0

    def alone(self, elements: float) -> float:
        """Seconds of an operator that moves so many elements."""
        return 1e-8 * elements

    def parts(self, row: np.ndarray) -> dict[str, float]:
        """Seconds of a model's operators by class, alone."""
        sizes, there = self.operators.sizes(row[None]), self.operators.there(row[None])[0]
        made: dict[str, float] = {}
        for one, is_there in zip(self.operators.listed, there, strict=True):
            if is_there:
                elements = one.kind.elements(sizes[:, list(one.columns)])[0]
                made[one.kind.op] = made.get(one.kind.op, 0.0) + self.alone(float(elements))
        return made

    def model(self, row: np.ndarray) -> float:
        """Seconds of a model."""
        return self.rest + sum(self.coefficients.get(op, 1.0) * s for op, s in self.parts(np.asarray(row)).items())

    def source(self) -> float:
        """Seconds of the source, this time."""
        self.asked += 1
        mood = self.moods[self.asked - 1] if self.asked <= len(self.moods) else 1.0
        return mood * self.model(self.analysis.costs.row({}))

    def measure(self, graph: Graph, **_: Any) -> Latency:
        """As timing.measure."""
        assert graph is self.analysis.graph
        seconds = self.source()
        return Latency("a", seconds * 1e3, seconds * 1e3, 10)

    def compare(self, a: Graph, b: Graph, **_: Any) -> Comparison:
        """As timing.compare: b's widths are read from its weights."""
        assert a is self.analysis.graph
        row = self.widths_of(b)
        self.compared.append(tuple(row))
        source, other = self.source(), self.model(np.array(row))
        other *= source / self.model(self.analysis.costs.row({}))  # the mood meets both
        ratio = other / source
        latencies = [
            Latency(name, seconds * 1e3, seconds * 1e3, 10) for name, seconds in zip("ab", (source, other), strict=True)
        ]
        return Comparison(latencies[0], latencies[1], Ratio(ratio, 0.99 * ratio, 1.01 * ratio))

    def time_all(self, models: Sequence[Any], **_: Any) -> Iterator[tuple[int, Sample]]:
        """As isolated.time_all: the models are made, and not run."""
        for k, make in enumerate(models):
            made = make()
            self.timed += 1
            if made is NULL:
                yield k, Sample(CALL, 0.0, 9)
                continue
            inputs = sum(array.size for array in made.feeds.values())
            graph = onnx.load_from_string(made.model).graph
            inputs += sum(int(np.prod(t.dims)) for t in graph.initializer)
            yield k, Sample(CALL + self.alone(inputs), 0.0, 9)

    def widths_of(self, graph: Graph) -> list[int]:
        """The sizes that a resized model really has, read from its weights."""
        shapes = {t.name: tuple(t.dims) for t in graph.model.graph.initializer}
        before = {t.name: tuple(t.dims) for t in self.analysis.graph.model.graph.initializer}
        return [
            next(
                int(shapes[m.tensor][m.axis])
                for m in width.members
                if m.tensor in shapes and before[m.tensor][m.axis] == width.size
            )
            for width in self.analysis.widths.values()
        ]
