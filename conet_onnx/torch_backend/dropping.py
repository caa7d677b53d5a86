"""Channel dropout: wherever a contraction sums over a width's channels, they are multiplied by random factors.

Network Adjustment (Chen et al., 2020, arXiv:2004.02767) drops a layer's channels, of each sample and at random, to see
how much the loss hangs on them, and trains with such dropout. Here a width is what a layer is there: its channels are
dropped at all of its places alike, residual connections included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import fx, nn

from conet_onnx.analysis import Analysis
from conet_onnx.dims import Dim, Segment, Size
from conet_onnx.errors import UsageError
from conet_onnx.folding import Facing
from conet_onnx.metrics.utilisation import LARGEST
from conet_onnx.rules import Operand
from conet_onnx.scoring import channels
from conet_onnx.torch_backend.outside import Outside

__all__ = ["Drop", "Dropping", "Noise", "insert_drops", "seeded"]

Noise = Literal["bernoulli", "gaussian"]
Factors = dict[str, torch.Tensor]  # by width: [samples, channels]


@dataclass(frozen=True, slots=True)
class Dropping:
    """What is multiplied to the channels of a module's widths.

    `widths` are the sizes of those that can be dropped, in the order of the analysis; `missing` tells of each other one
    why it cannot. `rates` are to be set by the user, 0 where a width is not named: a share p of the channels is dropped
    by factors of 0 and 1/(1-p) ("bernoulli"), or all are disturbed by normal ones of mean 1 and variance p/(1-p)
    ("gaussian"; Srivastava et al., 2014, section 10). `factors` are those that the module computes with now.
    """

    widths: Mapping[str, int]
    missing: Mapping[str, str]
    noise: Noise
    rates: dict[str, float] = field(default_factory=dict)
    factors: Factors = field(default_factory=dict, repr=False)

    def draw(self, samples: int, generator: torch.Generator, *, rows: Sequence[int] | None = None) -> None:
        """New factors for a batch of so many samples, each width's at its rate, all from one generator (on the CPU).

        `rows`: the samples that this process has of the batch. Rates of 1 and near it are taken for LARGEST. Raises
        UsageError for the rate of a width that cannot be dropped, and for one that is negative or no number.
        """
        for name, rate in self.rates.items():
            if name not in self.widths:
                raise UsageError(
                    f"width {name!r} cannot be dropped: {self.missing.get(name, 'there is no such width')}."
                )
            if not rate >= 0:
                raise UsageError(f"width {name!r} is to be dropped at a rate of {rate}: expected a share, 0..1.")
        self.factors.clear()
        for name, size in self.widths.items():
            rate = min(self.rates.get(name, 0.0), LARGEST)
            if rate > 0:
                drawn = _drawn(self.noise, rate, (samples, size), generator)
                self.factors[name] = drawn if rows is None else drawn[list(rows)]

    def use(self, factors: Mapping[str, torch.Tensor]) -> None:
        """Take these factors, [samples, channels] by width, in place of drawn ones. Raises UsageError for others."""
        for name, factor in factors.items():
            if name not in self.widths or factor.dim() != 2 or factor.shape[1] != self.widths[name]:
                raise UsageError(
                    f"factors of shape {tuple(factor.shape)} for width {name!r}: expected [samples, channels] for one "
                    f"of {', '.join(f'{n} ({size})' for n, size in self.widths.items()) or 'no width at all'}."
                )
        self.factors.clear()
        self.factors.update(factors)

    def clear(self) -> None:
        """No factors: the module computes what it computed before there were any."""
        self.factors.clear()


class Drop(nn.Module):
    """A place where channels are multiplied; without factors for its widths it returns what it is given.

    It holds nothing that is saved: no weight, no buffer.
    """

    def __init__(self, factors: Factors, place: _Place, device: torch.device) -> None:
        super().__init__()
        self.factors = factors  # the Dropping's own: what is drawn there is used here
        self.place = place
        self.parts = [
            (name, None if index is None else torch.from_numpy(index).to(device)) for name, index in place.parts
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: any shape, with the samples along one axis and the channels along another."""
        drawn = [(self.factors[name], index) for name, index in self.parts if name in self.factors]
        if not drawn:
            return x
        factor, *others = (self._spread(f.to(x.device), index) for f, index in drawn)
        for other in others:
            factor = factor * other
        axis, samples = self.place.axis, self.place.samples
        length = x.shape[samples.axis]
        before, inside = samples.around(length, len(factor))
        if inside > 1:
            factor = factor.repeat_interleave(inside, 0)
        times = x.shape[axis] // factor.shape[1]
        if before > 1 or times > 1:
            factor = factor.repeat(before, times)
        shape = [1] * x.dim()
        shape[axis], shape[samples.axis] = x.shape[axis], length
        return x * (factor if samples.axis < axis else factor.t()).reshape(shape).to(x.dtype)

    def extra_repr(self) -> str:
        """Whose channels."""
        return ", ".join(name for name, _ in self.parts)

    @staticmethod
    def _spread(factor: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
        """[samples, channels] -> [samples, positions]; where an index is -1, no channel lies, and 1 stands there."""
        return factor if index is None else nn.functional.pad(factor, (0, 1), value=1.0)[:, index]


def insert_drops(module: fx.GraphModule, analysis: Analysis, *, noise: Noise = "bernoulli") -> Dropping:
    """Put a Drop wherever a lowered graph sums over channels that are computed from the data; tell what can be dropped.

    `analysis` is that of the graph that was lowered, or of the one that it exposes tensors of. Where two activations
    are multiplied, as queries and keys are, the first has its channels dropped, and the second as they are: the sum
    over dropped channels is the same. Grouped convolutions sum within a group: what is dropped there are the channels
    of a group, in all of them alike, and groups where something later sums over them. What is not summed, as in a
    depthwise convolution, has no place there: with factors of 0 and 1 the module is the graph with the contracted
    weights at dropped channels zero. Statistics that normalisations take are those of all channels.

    A width is missing if one of its places cannot be reached: it lies in an operator that sums over it inside (a
    recurrent layer's own units, what runs in onnxruntime), between weights, or among whole numbers; or it is not known
    which sample a position belongs to. Raises UsageError for another noise.
    """
    if noise not in get_args(Noise):
        raise UsageError(f"noise {noise!r}: it is one of {', '.join(get_args(Noise))}.")
    code, batch = _Code(module), _batch(analysis)
    names = {width.dim: name for name, width in analysis.widths.items()}
    found: list[tuple[fx.Node, fx.Node, _Place]] = []
    summed: set[str] = set()
    missing: dict[str, str] = {}
    for facing in analysis.contractions:
        over = _over(analysis, facing, names)
        if not over:
            continue
        summed |= over
        try:
            if (spot := _spot(analysis, facing, code, names, batch)) is not None:
                found += spot
        except _OutOfReach as error:
            missing |= dict.fromkeys(sorted(over - missing.keys()), f"{analysis.graph.nodes[facing.node]} {error}")
    missing |= dict.fromkeys((n for n in names.values() if n not in summed), "nothing sums over its channels")
    widths = {name: width.size for name, width in analysis.widths.items() if name not in missing}
    dropping = Dropping(widths, {name: missing[name] for name in analysis.widths if name in missing}, noise)
    _put(module, found, dropping)
    return dropping


def seeded(*numbers: int) -> torch.Generator:
    """A generator on the CPU whose numbers follow from these and nothing else."""
    state = np.random.SeedSequence([number % 2**63 for number in numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _drawn(noise: Noise, rate: float, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    if noise == "gaussian":
        return 1 + torch.randn(shape, generator=generator) * math.sqrt(rate / (1 - rate))
    return (torch.rand(shape, generator=generator) >= rate) / torch.tensor(1 - rate)


@dataclass(frozen=True, slots=True)
class _Samples:
    """Along which axis the samples lie, row-major between so many positions before and inside of them; None: it follows
    from the axis's length."""

    axis: int
    before: int | None
    inside: int | None

    def around(self, length: int, samples: int) -> tuple[int, int]:
        """(before, inside) of an axis of this length."""
        before = length // (samples * self.inside) if self.before is None and self.inside else self.before or 1
        inside = length // (samples * before) if self.inside is None else self.inside
        if before * samples * inside != length:
            raise UsageError(
                f"factors were drawn for {samples} samples, and {length} positions are not {before} times these times "
                f"{inside}: draw for as many as the module is given."
            )
        return before, inside


@dataclass(frozen=True, slots=True)
class _Place:
    """Where widths lie in a tensor: along an axis, of which each has an index of channels, None for all in order."""

    axis: int
    samples: _Samples
    parts: tuple[tuple[str, np.ndarray[Any, np.dtype[np.intp]] | None], ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """What two places have in common that multiply alike."""
        parts = ((name, None if index is None else index.tobytes()) for name, index in self.parts)
        return self.axis, self.samples, *parts

    def without(self, missing: Mapping[str, str]) -> _Place:
        """The same, of fewer widths."""
        return _Place(self.axis, self.samples, tuple(part for part in self.parts if part[0] not in missing))


class _OutOfReach(Exception):
    """What a node does with a width that keeps its channels from being dropped there."""


class _Code:
    """The nodes of generated code, by the names and the nodes of the graph that they stand for."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.values: dict[str, fx.Node] = {}
        self.of: dict[int, list[fx.Node]] = {}
        self.outside: set[fx.Node] = set()
        for node in module.graph.nodes:
            self.values.update(dict.fromkeys(node.meta.get("values", ()), node))
            if node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), Outside):
                self.outside.add(node)
            for index in node.meta.get("nodes", ()):
                self.of.setdefault(index, []).append(node)

    def readers(self, index: int, name: str) -> list[tuple[fx.Node, fx.Node]]:
        """What of a node's code reads a value, or what that is a multiple of: (what it reads, who does)."""
        found = []
        for node in self.of.get(index, ()):
            place = node.meta.get("multiples", {}).get(name)
            read = self.values.get(name) if place is None else node.args[place]
            if isinstance(read, fx.Node) and read in node.all_input_nodes:
                found.append((read, node))
        return found


def _over(analysis: Analysis, facing: Facing, names: Mapping[Dim, str]) -> set[str]:
    """The widths that a contraction sums over."""
    sides = facing.contraction.operands[:1]
    return {names[dim] for side in sides for dim in analysis.solver.leaves(side.summed) if dim in names}


def _spot(
    analysis: Analysis, facing: Facing, code: _Code, names: Mapping[Dim, str], batch: Size
) -> list[tuple[fx.Node, fx.Node, _Place]] | None:
    """Where to multiply what a contraction sums over; None where nothing computes it any more."""
    node = analysis.graph.nodes[facing.node]
    if not analysis.follows_input(facing.node):
        raise _OutOfReach("sums over it between weights")
    code_of = code.of.get(facing.node, [])
    if not code_of:
        return None
    if not code.outside.isdisjoint(code_of):
        raise _OutOfReach("runs outside of torch")
    sides = [side for side in facing.contraction.operands if node.inputs[side.index] not in analysis.constants]
    if not sides:
        raise _OutOfReach("sums over it inside")
    obstacles = []
    for side in sides:
        try:
            return _side(analysis, facing.node, side, code, names, batch)
        except _OutOfReach as error:
            obstacles.append(error)
    raise obstacles[0]


def _side(
    analysis: Analysis, index: int, side: Operand, code: _Code, names: Mapping[Dim, str], batch: Size
) -> list[tuple[fx.Node, fx.Node, _Place]]:
    node = analysis.graph.nodes[index]
    name = node.inputs[side.index]
    dtype = analysis.graph.dtype(name)
    if dtype is None or dtype.kind in "iub":
        raise _OutOfReach("sums over it among whole numbers")
    readers = code.readers(index, name)
    twice = any(len(user.meta["nodes"]) > 1 and _occurrences(user, read) > 1 for read, user in readers)
    if not readers or twice or node.inputs.count(name) > 1:
        raise _OutOfReach(f"has code in which {name!r} cannot be told from what else it reads")
    place = _Place(side.axis, _samples(analysis, name, side.axis, batch), tuple(_parts(analysis, side.summed, names)))
    return [(read, user, place) for read, user in readers]


def _parts(
    analysis: Analysis, summed: Segment, names: Mapping[Dim, str]
) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.intp]] | None]]:
    """Which channels of which width lie along the positions that are summed over."""
    ax = analysis.axis(summed)
    if ax.size[0] != ax.size[1]:
        raise _OutOfReach("sums over it together with a size that varies")
    for dim, stretch, own in channels(analysis, ax):
        if dim not in names:
            continue
        index = np.full(ax.size[0], -1)
        index[stretch] = own
        alone = len(index) == dim.size[0] and np.array_equal(index, np.arange(len(index)))
        yield names[dim], None if alone else index


def _samples(analysis: Analysis, name: str, axis: int, batch: Size) -> _Samples:
    """Which axis of a value has the samples: that with the symbolic batch; with a batch that is baked in, the first if
    it is of that size."""
    shape = analysis.shapes.get(name, ())
    unknown = _OutOfReach(f"sums over it in {name!r}, of whose positions it is not known which sample they are of")
    if batch[0] == batch[1]:
        if axis == 0 or not shape or shape[0].size != batch:
            raise unknown
        return _Samples(0, 1, 1)
    found = []
    for k, segment in enumerate(shape):
        ax = analysis.axis(segment)
        found += [k for dim in analysis.solver.leaves(ax) if dim.size == batch]
    if len(found) != 1 or found[0] == axis:
        raise unknown
    ax = analysis.axis(shape[found[0]])
    sizes = [(f, f) if isinstance(f, int) else f.size for s in ax.segments for f in s.factors]
    if len(ax.segments) != 1 or sizes.count(batch) != 1:
        raise unknown
    at = sizes.index(batch)
    before, inside = _fixed(sizes[:at]), _fixed(sizes[at + 1 :])
    if before is None and inside is None:
        raise unknown
    return _Samples(found[0], before, inside)


def _fixed(sizes: Iterable[Size]) -> int | None:
    """The product of sizes, None where one varies."""
    sizes = list(sizes)
    return math.prod(a for a, _ in sizes) if all(a == b for a, b in sizes) else None


def _batch(analysis: Analysis) -> Size:
    """The sizes of the batch at the two choices of symbolic sizes, equal where it is baked in."""
    sizes = [found[0] for value in analysis.graph.inputs if (found := analysis.graph.sizes(value.name))]
    return next((size for size in sizes if size[0] != size[1]), next(iter(sizes), (1, 1)))


def _occurrences(node: fx.Node, read: fx.Node) -> int:
    """How often a call names a value."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found.count(read)


def _put(module: fx.GraphModule, found: Iterable[tuple[fx.Node, fx.Node, _Place]], dropping: Dropping) -> None:
    """A module for each place; several calls that read the same, multiplied alike, share it."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    made: dict[tuple[Any, ...], fx.Node] = {}
    dropped: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
    for whole_read, user, whole in found:
        place = whole.without(dropping.missing)
        if not place.parts:
            continue
        read = dropped.get((whole_read, user), whole_read)  # a node may sum over one value's channels in two ways
        key = (read, *place.key)
        if key not in made:
            name = f"drop_{len(made)}"
            while hasattr(module, name):
                name += "_"
            module.add_submodule(name, Drop(dropping.factors, place, device))
            with module.graph.inserting_after(read):
                made[key] = module.graph.call_module(name, (read,))
        user.replace_input_with(read, made[key])
        dropped[whole_read, user] = made[key]
    module.recompile()
