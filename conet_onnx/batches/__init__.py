"""Free a batch size that was baked into a model: the same graph for any number of samples, proved by running it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from conet_onnx.batches.editing import Edit, Place, Spread, edited
from conet_onnx.batches.following import Found, Refusal, follow
from conet_onnx.batches.proving import BATCHES, Proof, prove
from conet_onnx.graph import Graph, Value

__all__ = ["Freed", "freed"]

ATTEMPTS = 12  # at which of the inputs have samples, and along which axis
SYMBOLS = ("batch", "batch_size")


@dataclass(frozen=True, slots=True)
class Freed:
    """A model for any batch, or the source as it was and the reason why it stays so.

    `inputs` are those whose axis of samples is symbolic now, `outputs` those that have something for each sample;
    `others` are outputs that have not: they are computed as before. `difference` is the largest between a sample's
    output here and in the source, relative to the output's largest; `exact` says that the source's own batch comes
    out bit by bit.
    """

    source: Graph = field(repr=False)
    graph: Graph = field(repr=False)
    size: int = 0  # what was baked in
    symbol: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    difference: float = 0.0
    exact: bool = False
    reason: str = ""  # "" where it is free
    repeated: Mapping[str, int] = field(default_factory=dict, repr=False)  # weights of which one sample's part is read

    def lines(self) -> list[str]:
        """What has become of it, for a reader."""
        if self.reason:
            return [f"The batch stays as it is: {self.reason}"]
        shapes = {value.name: value.shape for value in self.graph.inputs}
        inputs = ", ".join(f"{name} [{', '.join(map(str, shapes[name]))}]" for name in self.inputs)
        told = f"The batch is free (it was {self.size}): {inputs}; {len(self.edits)} edits, proved at batch "
        lines = [f"{told}{', '.join(map(str, BATCHES))} to {self.difference:.1e}."]
        if self.others:
            lines.append(f"Not for each sample, and as before: {', '.join(self.others)}.")
        return lines

    def returned(self, trained: Graph) -> Graph:
        """The source with the weights of `trained`, which is this graph with other values in some of them.

        A weight that the source repeats for every sample, and of which this graph reads the first, is repeated again.
        """
        arrays = {}
        for name in self.source.weights:
            if name not in trained.weights or trained.array(name) is self.source.array(name):
                continue
            old, new = self.source.array(name), trained.array(name)
            if np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
                continue
            if name in self.repeated:
                new = np.repeat(new.take([0], self.repeated[name]), self.size, self.repeated[name])
            arrays[name] = new
        return self.source.with_arrays(arrays) if arrays else self.source


def freed(graph: Graph, *, seed: int = 0) -> Freed:
    """The model with a symbolic batch; where that cannot be had or shown, the model as it is, with the reason.

    The first axes of the inputs are taken for samples (of further inputs the second too, as in states of recurrent
    layers), if they all have one size. Integers that spell the size out are edited. What comes out is run at batches
    of 1, 2 and 5 on the CPU and compared, sample by sample, with what the source makes of them in batches of its own.
    Nothing that is still declared symbolic is asked for.
    """
    size, reason = _baked(graph)
    if reason:
        return Freed(graph, graph, reason=reason)
    first: Refusal | None = None
    for axes in itertools.islice(_attempts(graph, size), ATTEMPTS):
        made = _attempt(graph, axes, size, seed)
        if isinstance(made, Freed):
            return made
        first = first or made
    assert first is not None  # there is an input with samples
    return Freed(graph, graph, size=size, reason=first.reason)


def _baked(graph: Graph) -> tuple[int, str]:
    """The batch size that the inputs agree on; or the reason why there is none to free."""
    firsts = [value.shape[0] for value in graph.inputs if value.shape]
    if any(isinstance(first, str) for first in firsts):
        return 0, "an input's first axis is symbolic already."
    if not firsts:
        return 0, "the model has no input with an axis."
    return int(firsts[0]), ""


def _attempts(graph: Graph, size: int) -> Iterator[Mapping[str, int]]:
    """Which inputs have samples, and along which axis: all along the first before anything else."""
    values = [value for value in graph.inputs if value.shape]

    def axes(value: Value) -> list[int | None]:
        found = [axis for axis in (0, 1) if axis < len(value.shape) and value.shape[axis] == size]
        return [*(found if value is not values[0] else found[:1]), None]

    options = list(itertools.product(*map(axes, values)))
    options.sort(key=lambda option: sum(2 * len(values) if axis is None else axis for axis in option))
    for option in options:
        if option[0] is not None:
            yield {value.name: axis for value, axis in zip(values, option, strict=True) if axis is not None}


def _attempt(graph: Graph, axes: Mapping[str, int], size: int, seed: int) -> Freed | Refusal:
    symbol = _symbol(graph)
    accepted: list[tuple[Graph, Proof]] = []

    def accept(found: Found) -> Refusal | None:
        places = {**found.places, **{name: Place(axis) for name, axis in axes.items()}}
        made = edited(graph, found.edits, inputs=axes, places=places, size=size, symbol=symbol)
        outputs = {value.name: places[value.name] for value in graph.outputs if value.name in places}
        proof = prove(graph, made, inputs=axes, outputs=outputs, places=places, lost=found.lost, size=size, seed=seed)
        accepted.append((made, proof))
        return Refusal(proof.reason) if proof.reason else None

    found = follow(graph, axes, size, accept)
    if isinstance(found, Refusal):
        return found
    made, proof = accepted[-1]
    outputs = tuple(value.name for value in graph.outputs if value.name in found.places)
    return Freed(
        graph,
        made,
        size=size,
        symbol=symbol,
        inputs=tuple(axes),
        outputs=outputs,
        others=tuple(value.name for value in graph.outputs if value.name not in outputs),
        edits=tuple(map(str, found.edits)),
        difference=proof.difference,
        exact=proof.exact,
        repeated=dict(_repeated(graph, found.edits, size)) if size > 1 else {},
    )


def _repeated(graph: Graph, edits: Iterable[Edit], size: int) -> Iterator[tuple[str, int]]:
    """Weights that have a part for every sample, and the axis, where one part speaks for all of them now.

    What is spread may be computed from such a weight: then it has more axes, and is alike along one of this size.
    """
    for edit in edits:
        if not isinstance(edit, Spread):
            continue
        name = edit.node.inputs[edit.input]
        if name in graph.weights:
            yield name, edit.axis
            continue
        behind = [name]
        for made in behind:
            maker = graph.producer(made)
            behind += [read for read in (maker.inputs if maker else ()) if read and read not in behind]
        for weight in graph.weights.keys() & behind:
            array = graph.array(weight)
            if array.ndim < 2 or array.dtype.kind != "f":
                continue
            for axis, length in enumerate(array.shape):
                if length == size and (array == array.take([0], axis)).all():
                    yield weight, axis


def _symbol(graph: Graph) -> str:
    """A name for the batch that no other size has."""
    protos = (*graph.model.graph.input, *graph.model.graph.output, *graph.model.graph.value_info)
    taken = {dim.dim_param for value in protos for dim in value.type.tensor_type.shape.dim}
    names = itertools.chain(SYMBOLS, (f"batch_{k}" for k in itertools.count(2)))
    return next(name for name in names if name not in taken)
