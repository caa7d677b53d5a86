"""Re-fit weights of a resized model, so that each layer says what it said in the source: least squares, layer by layer.

After He et al. (2017, arXiv:1707.06168, eq. 5 with the channels given) and ThiNet (Luo et al., 2017, arXiv:1707.06342).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional as F

from conet_onnx.graph import Graph
from conet_onnx.plans import Take, WidthPlan
from conet_onnx.torch_backend.known import Array
from conet_onnx.torch_backend.lower import from_torch, lower, names_of

__all__ = ["Layer", "Reconstruction", "Refit", "Steps", "layer_of", "reconstruct"]

Tensors = Sequence[torch.Tensor]

RIDGES = (1e-9, 1e-4, 1e-2, 1e-1, 1.0)  # of the mean square of what is summed
CHUNK = 1 << 22  # elements of inputs, unfolded and in double precision, that are held at a time
ENOUGH, LEAST = 64, 1 << 13  # places that a layer is fitted at: for each input of a sum, and in any case
LARGEST = 1 << 14  # inputs of a sum: their products with each other are a matrix of 2 GiB
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


@dataclass(frozen=True, slots=True)
class Refit:
    """One weight that was fitted anew. Errors are of its layer's outputs on the calibration inputs, given what comes
    in: mean square, over the variance of the source's outputs (1: no better than their mean)."""

    tensor: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """A model with weights fitted anew; which, and which could not be (`left`, each with the reason).

    `before` and `after` are errors of the model's outputs as those of Refit, the mean over the outputs.
    """

    graph: Graph
    layers: tuple[Refit, ...]
    left: Mapping[str, str]
    before: float
    after: float

    @property
    def mean(self) -> tuple[float, float]:
        """The layers' errors before and after, on average; of one layer at least."""
        before, after = np.mean([(layer.before, layer.after) for layer in self.layers], axis=0).tolist()
        return before, after


def reconstruct(
    source: Graph,
    resized: Graph,
    plan: WidthPlan,
    shrunk: Iterable[str],
    batches: Sequence[Mapping[str, Array]],
    *,
    device: torch.device | None = None,
) -> Reconstruction:
    """Fit those weights anew whose sums have lost channels, in the order in which the model computes.

    `resized` is `source` by `plan`, whose takes of the `shrunk` weights are looked up; `batches` hold an array for each
    input, of any one batch size that both models take. For a layer with weights W (of `resized`) and inputs x (what it
    gets there, with all layers before it fitted already), the new weights V and bias minimise, over all samples,
    |y - V·x - bias|² + r·|V - W|², where y is what the source's layer says at the channels that are left, and r is that
    one of RIDGES, times the sum of x², with which half of the samples foretells the other half best. So what the data
    does not tell stays as it is, and a row that would not come nearer to y does too: no layer's error grows, over the
    places that it is fitted at. These are all that there are, or as many of each sample, drawn by chance, as make
    ENOUGH for each input of a sum (and LEAST in all): an image has thousands of places, which say much the same, as He
    et al. have it, who draw ten. Solved in float64.

    Fitted are convolutions and products with a matrix of weights that nobody else reads; a bias only where nobody
    else reads it. Both models run side by side, operator by operator, on all batches: memory holds what is alive
    between two operators for all of them. Raises UnsupportedOp where torch cannot compute a model.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    modules = [lower(graph).to(device) for graph in (source, resized)]
    teacher, student = modules
    feeds = [tuple(torch.from_numpy(batch[v.name]).to(device) for v in source.inputs) for batch in batches]
    left: dict[str, str] = {}
    tasks: dict[fx.Node, tuple[Layer, Layer, Take]] = {}
    for tensor in shrunk:
        take = plan.initializers[tensor]
        found = [layer_of(module, tensor) for module in modules]
        obstacle = next((layer for layer in found if isinstance(layer, str)), None)
        if obstacle is not None or not isinstance(take, Take):
            left[tensor] = obstacle or "each of its readers has its own"
            continue
        theirs, ours = (layer for layer in found if isinstance(layer, Layer))
        if ours.inputs > LARGEST:
            left[tensor] = f"it sums over {ours.inputs:,} inputs, and at most {LARGEST:,} are fitted"
            continue
        tasks[ours.node] = theirs, ours, take
    layers = []
    with torch.no_grad():
        sliced = [_values(student(*feed)) for feed in feeds]
        run, model = Steps(student, feeds), Steps(teacher, feeds)
        for node in run.nodes:
            if node in tasks:
                theirs, ours, take = tasks[node]
                model.until(theirs.node)
                said = [theirs.kept(y, take) for y in model.values(theirs.node)]
                refit = _fit(ours, run.values(ours.x), said)
                if refit is None:
                    left[ours.tensor] = "what it is to be fitted to is not finite"
                else:
                    layers.append(refit)
            run.step(node)
        model.until(None)
    errors = (_distance(made, model.outputs) for made in (sliced, run.outputs))
    return Reconstruction(from_torch(resized, student), tuple(layers), left, *errors)


# Layers


@dataclass(frozen=True, slots=True)
class Layer:
    """A call whose output is a sum over its inputs: `groups` times a matrix of weights, and perhaps a bias."""

    tensor: str  # the initializer
    node: fx.Node
    x: fx.Node
    weight: torch.Tensor  # the parameter, stored as in the file
    bias: torch.Tensor | None
    free: bool  # whether the bias is its own
    turned: bool  # stored as [inputs, outputs]

    @property
    def convolves(self) -> bool:
        """Whether channels come second, and places after them; else channels are last."""
        return self.node.target in _CONVOLUTIONS

    @property
    def groups(self) -> int:
        """Of a convolution."""
        return int(_given(self.node)[6]) if self.convolves else 1

    @property
    def outputs(self) -> int:
        """The axis of the stored weight that counts the layer's channels."""
        return 1 if self.turned else 0

    @property
    def inputs(self) -> int:
        """How many numbers each output is a sum of."""
        return self.weight.shape[0] if self.turned else math.prod(self.weight.shape[1:])

    def matrices(self) -> torch.Tensor:
        """The weights as they are now, [groups, outputs, inputs], float64."""
        return self.as_matrices(self.weight.detach())

    def as_matrices(self, stored: torch.Tensor) -> torch.Tensor:
        """The same of other weights of that form."""
        return (stored.t() if self.turned else stored).double().reshape(self.groups, -1, self.inputs)

    def stored(self, matrices: torch.Tensor) -> torch.Tensor:
        """Such matrices in the form and type of the weight."""
        flat = matrices.reshape(-1, self.inputs)
        return (flat.t() if self.turned else flat).reshape(self.weight.shape).to(self.weight.dtype)

    def places(self, y: torch.Tensor) -> int:
        """How many outputs each channel has for a sample, given the layer's output."""
        return math.prod(y.shape[2:] if self.convolves else y.shape[1:-1])

    def rows(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """What the layer sums over, [samples · n, groups, inputs], given its input, at places [samples, n]."""
        if self.convolves:
            return _patches(self, x, at)
        return _some(_by_place(x), (at,)).reshape(-1, 1, x.shape[-1])

    def said(self, y: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """The layer's output there, [samples · n, groups, outputs]."""
        some = _some(_by_place(y.movedim(1, -1) if self.convolves else y), (at,))
        return some.reshape(-1, self.groups, some.shape[-1] // self.groups)

    def kept(self, y: torch.Tensor, take: Take) -> torch.Tensor:
        """An output of the source at the channels that a resize keeps."""
        axis = 1 if self.convolves else y.dim() - 1
        taken = take.take.get(self.outputs)
        return y if taken is None else y.index_select(axis, torch.from_numpy(taken).to(y.device))


def layer_of(module: fx.GraphModule, tensor: str) -> Layer | str:
    """The call that reads a weight; or why there is none that can be fitted."""
    attribute = names_of(module).attributes.get(tensor, "")
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if attribute not in parameters:
        return "torch reads it as something else than it is stored as"
    node, user = _alone(module, attribute)
    turned = False
    if user is not None and _turns(user):
        turned, node = True, user
        user = next(iter(node.users)) if len(node.users) == 1 else None
    if node is None or user is None:
        return "several operators read it"
    given = _given(user)
    fits = user.target in (*_CONVOLUTIONS, F.linear, torch.matmul) and given[1] is node and given[0] is not node
    weight = parameters[attribute]
    if not fits or (user.target not in _CONVOLUTIONS and weight.dim() != 2) or not isinstance(given[0], fx.Node):
        return "its operator is no convolution, and no product of its input with a matrix"
    if not weight.dtype.is_floating_point:
        return "it does not hold real numbers"
    turned ^= user.target is torch.matmul
    bias, free = None, False
    if given[2] is not None:
        held = given[2].op == "get_attr" and hasattr(module, str(given[2].target))
        if not held:
            return "its bias is computed"
        bias = getattr(module, str(given[2].target))
        free = _alone(module, str(given[2].target))[1] is user
    return Layer(tensor, user, given[0], weight, bias, free, turned)


def _alone(module: fx.GraphModule, attribute: str) -> tuple[fx.Node | None, fx.Node | None]:
    """The node that gets an attribute, and the one that reads it, where there is only one of each."""
    found = [node for node in module.graph.nodes if node.op == "get_attr" and node.target == attribute]
    users = [user for node in found for user in node.users]
    return (found[0], users[0]) if len(found) == len(users) == 1 else (None, None)


def _turns(node: fx.Node) -> bool:
    return node.target is torch.t or (node.target is torch.permute and tuple(_given(node)[1]) == (1, 0))


def _given(node: fx.Node) -> tuple[Any, ...]:
    """A call's arguments, None after the last."""
    return (*node.args, None, None, None)


def _patches(layer: Layer, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """What a convolution sums over at some places, [samples · n, groups, channels · kernel], both row-major."""
    _, _, _, strides, padding, dilations, groups = _given(layer.node)[:7]
    kernel = layer.weight.shape[2:]
    x = F.pad(x, [p for one in reversed(padding) for p in (one, one)])
    steps = list(zip(x.shape[2:], kernel, strides, dilations, strict=True))
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in steps]
    corners = [place * s for place, s in zip(torch.unravel_index(at, sizes), strides, strict=True)]
    last = x.movedim(1, -1).contiguous()
    parts = []
    for offset in np.ndindex(*kernel):
        moved = (corner + o * d for corner, o, d in zip(corners, offset, dilations, strict=True))
        parts.append(_some(last, tuple(moved)))
    return torch.stack(parts, -1).reshape(-1, groups, layer.inputs)


def _by_place(x: torch.Tensor) -> torch.Tensor:
    """[samples, places, channels] of what has its channels last."""
    return x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])


def _some(x: torch.Tensor, at: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Of each sample what stands at some places, [samples, n, channels]; channels are last in `x`."""
    return x[(torch.arange(len(x), device=x.device)[:, None], *at)]


# Running


class Steps:
    """A lowered module that is run operator by operator, on several batches at once; values go after their last use."""

    def __init__(self, module: fx.GraphModule, feeds: Sequence[Tensors]) -> None:
        self._runner = fx.Interpreter(module)
        self._values: list[dict[fx.Node, Any]] = [{} for _ in feeds]
        self._feeds = [iter(feed) for feed in feeds]
        self.nodes = iter(module.graph.nodes)
        self.outputs: list[Tensors] = []

    def step(self, node: fx.Node) -> None:
        """Run the next node."""
        gone = self._runner.user_to_last_uses.get(node, [])
        for values, feed in zip(self._values, self._feeds, strict=True):
            self._runner.env, self._runner.args_iter = values, feed
            values[node] = self._runner.run_node(node)
            if node.op == "output":
                self.outputs.append(_values(values[node]))
            for last in gone:
                del values[last]

    def ahead(self, node: fx.Node) -> list[torch.Tensor]:
        """What the next node would make, for each batch; nothing is kept."""
        made = []
        for values in self._values:
            self._runner.env = values
            made.append(self._runner.run_node(node))
        return made

    def until(self, last: fx.Node | None) -> None:
        """Run all that comes up to a node, and it; None: to the end. Both models have their layers in one order."""
        for node in self.nodes:
            self.step(node)
            if node is last:
                return

    def values(self, node: fx.Node) -> list[torch.Tensor]:
        """What a node has made, for each batch."""
        return [values[node] for values in self._values]


def _values(made: Any) -> Tensors:
    return made if isinstance(made, tuple | list) else (made,)


def _distance(made: Sequence[Tensors], targets: Sequence[Tensors]) -> float:
    """Mean over the outputs that are real numbers of: mean squared difference / variance of the target."""
    errors = []
    for ours, theirs in zip(zip(*made, strict=True), zip(*targets, strict=True), strict=True):
        if theirs[0].is_floating_point():
            a, b = (torch.cat([one.flatten().double() for one in values]) for values in (ours, theirs))
            errors.append(float((a - b).square().mean()) / max(float(b.var(correction=0)), 1e-12))
    return float(np.mean(errors)) if errors else 0.0


# Fitting


def _fit(layer: Layer, xs: Tensors, ys: Tensors) -> Refit | None:
    """Give a layer the weights that come nearest, and say how near; None where that cannot be told."""
    old = layer.matrices()
    bias = old.new_zeros(old.shape[:2]) if layer.bias is None else layer.bias.double().reshape(old.shape[:2])
    halves = _Sums(old), _Sums(old)
    for half, x, y, at in _chunks(layer, xs, ys):
        rows, said = layer.rows(x, at).double(), layer.said(y, at).double()
        halves[half].add(rows, said, said - torch.einsum("pgi,goi->pgo", rows, old) - bias)
    ridges = _choose(*halves, centred=layer.free)
    sums = halves[0].joined(halves[1])
    if not sums.finite():
        return None
    change, shift = sums.solve(ridges, centred=layer.free)
    # Judged as they are stored: rounded to the weight's type.
    change = layer.as_matrices(layer.stored(old + change)) - old
    new_bias = bias + shift if layer.bias is None else (bias + shift).to(layer.bias.dtype).double()
    before = sums.errors(torch.zeros_like(change), torch.zeros_like(bias))
    after = sums.errors(change, new_bias - bias)
    nearer = after < before
    layer.weight.copy_(layer.stored(torch.where(nearer[..., None], old + change, old)))
    if layer.free and layer.bias is not None:
        layer.bias.copy_(torch.where(nearer, new_bias, bias).flatten())
    scale = max(float(sums.variance().sum()), 1e-12)
    found = (float(errors.sum()) / scale for errors in (before, torch.where(nearer, after, before)))
    return Refit(layer.tensor, *found)


def _chunks(layer: Layer, xs: Tensors, ys: Tensors) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A layer's input and output, and the places to fit it at, so many samples at a time that unfolded inputs stay
    within CHUNK; samples belong to the two halves in turn."""
    pairs = [[one[None] if one.dim() == 1 else one for one in pair] for pair in zip(xs, ys, strict=True)]
    samples, seen = sum(len(x) for x, _ in pairs), 0
    each = math.ceil(max(ENOUGH * layer.inputs, LEAST) / max(samples, 1))
    chance = torch.Generator().manual_seed(0)
    for x, y in pairs:
        at = _drawn(len(x), layer.places(y), each, chance).to(x.device)
        step = max(1, CHUNK // max(1, at.shape[1] * layer.groups * layer.inputs))
        for half in (0, 1):
            mine = slice((half + seen) % 2, len(x), 2)
            for part in zip(*(torch.split(one[mine], step) for one in (x, y, at)), strict=True):
                yield half, *part
        seen += len(x)


def _drawn(samples: int, places: int, most: int, chance: torch.Generator) -> torch.Tensor:
    """For each sample different places, [samples, n]; all of them where they are no more than `most`."""
    if places <= most:
        return torch.arange(places).expand(samples, -1)
    return torch.rand(samples, places, generator=chance).topk(most).indices


def _choose(one: _Sums, other: _Sums, *, centred: bool) -> torch.Tensor:
    """For each group the ridge with which half of the samples foretells the other half best, both ways; the largest
    where there is only one half."""
    if not (one.count and other.count):
        return one.scale().new_full(one.scale().shape, RIDGES[-1])
    errors = []
    for ridge in RIDGES:
        ridges = torch.full_like(one.scale(), ridge)
        pairs = ((judge, fitted.solve(ridges, centred=centred)) for fitted, judge in ((one, other), (other, one)))
        errors.append(torch.stack([judge.errors(*pair).sum(1) for judge, pair in pairs]).sum(0))
    best = torch.stack(errors).nan_to_num(math.inf).argmin(0)  # of equals the first
    return one.scale().new_tensor(RIDGES)[best]


class _Sums:
    """Sums over all places of what the normal equations need: of inputs x, and of r, what is missing to the target.

    With g groups, o outputs and i inputs of each: x and r are [places, g, i] and [places, g, o], all float64.
    """

    def __init__(self, like: torch.Tensor) -> None:
        g, o, i = like.shape
        self.count = 0
        shapes = {"x": (g, i), "r": (g, o), "y": (g, o), "xx": (g, i, i), "rx": (g, o, i), "rr": (g, o), "yy": (g, o)}
        self._of = {name: like.new_zeros(shape) for name, shape in shapes.items()}

    def add(self, x: torch.Tensor, y: torch.Tensor, r: torch.Tensor) -> None:
        """More places; y is the target itself."""
        self.count += len(x)
        for name, part in (("x", x), ("r", r), ("y", y), ("rr", r * r), ("yy", y * y)):
            self._of[name] += part.sum(0)
        by_group = x.permute(1, 0, 2)
        self._of["xx"].baddbmm_(by_group.mT, by_group)
        self._of["rx"].baddbmm_(r.permute(1, 2, 0), by_group)

    def joined(self, other: _Sums) -> _Sums:
        """These sums, with the other's in them from now on."""
        self.count += other.count
        for name, part in other._of.items():
            self._of[name] += part
        return self

    def finite(self) -> bool:
        """Whether all of them are numbers."""
        return all(bool(part.isfinite().all()) for part in self._of.values())

    def scale(self) -> torch.Tensor:
        """The mean over the inputs of the sum of x², [g]."""
        return self._of["xx"].diagonal(dim1=1, dim2=2).mean(1)

    def solve(self, ridges: torch.Tensor, *, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The D [g, o, i] and c [g, o] with the smallest sum of |r - D·x - c|², plus for each group |D|² times a ridge
        [g] of its scale; c is 0 unless centred. Not numbers, where rounding leaves no solution."""
        x, r = (self._of[name] / self.count if centred else torch.zeros_like(self._of[name]) for name in ("x", "r"))
        gram = self._of["xx"] - self.count * x[:, :, None] * x[:, None, :]
        cross = self._of["rx"] - self.count * r[:, :, None] * x[:, None, :]
        diagonal = gram.diagonal(dim1=1, dim2=2)  # a view
        ridge = ridges * self.scale()
        diagonal += torch.where(ridge > 0, ridge, 1.0)[:, None]
        factor, failed = torch.linalg.cholesky_ex(gram)
        found = torch.cholesky_solve(cross.mT, factor).mT
        found[failed > 0] = math.nan
        return found, r - (found @ x[..., None])[..., 0]

    def errors(self, d: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The sum of |r - D·x - c|² for each output, [g, o]."""
        of = self._of
        quadratic = ((d @ of["xx"]) * d).sum(2) - 2 * (d * of["rx"]).sum(2)
        linear = 2 * c * ((d @ of["x"][..., None])[..., 0] - of["r"]) + self.count * c * c
        return (of["rr"] + quadratic + linear).clamp(min=0)

    def variance(self) -> torch.Tensor:
        """The sum of |y - mean|² for each output, [g, o]."""
        return self._of["yy"] - self._of["y"].square() / self.count
