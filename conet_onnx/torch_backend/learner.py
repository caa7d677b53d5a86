"""A lowered graph as training wants it: some of its tensors by name, scores before a Softmax, and any batch size."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import fx, nn
from torch.nn import functional as F

from conet_onnx.errors import DataError, UnsupportedOp, UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend.known import Array
from conet_onnx.torch_backend.lower import lower, names_of, untrained_of, untrained_weights_of
from conet_onnx.torch_backend.weights import torch_dtype

__all__ = ["Inputs", "Learner", "Tensors", "named", "samples_in"]

Inputs = Array | Mapping[str, Array]  # what the model takes: images for its only input, or an array for each by name
Tensors = Mapping[str, torch.Tensor]

NARROW = 8  # channels: a vector of floats on most processors
TOLERANCE = 1e-3  # relative; two batches at once against one after the other
_SOFTMAX = (torch.softmax, torch.log_softmax)
# What may stand between a final Softmax and the output.
_TRANSPARENT = (torch.flatten, torch.reshape, torch.squeeze, "to")


class Learner:
    """A lowered graph of which some tensors are asked for, by name.

    `module` takes the graph's inputs in order and returns a tuple of the tensors `names`. `batch` is the only batch
    size that it takes; None for any (`settle`).
    """

    def __init__(self, graph: Graph, device: torch.device, *, inner: Sequence[str] = ()) -> None:
        """`inner`: tensors inside of the graph that are asked for beside its outputs; UsageError where it has none
        such, UnsupportedOp where torch cannot compute them."""
        self.graph = graph
        self.device = device
        lowered = lower(_exposing(graph, inner))
        untrained = untrained_of(lowered)
        outputs = [value.name for value in graph.outputs]
        self.untrained = {name: untrained[name] for name in outputs if name in untrained}
        self.untrained_weights = untrained_weights_of(lowered)
        for name in inner:
            if name in untrained:
                raise UnsupportedOp(f"{_file(graph)}: no gradient reaches {name!r}. {untrained[name]}")
        self.names = tuple(dict.fromkeys((*outputs, *inner)))
        self.outputs = tuple(n for n in outputs if n not in untrained and _is_real(graph, n))  # that can be trained
        self.module = lowered.to(device)
        self.batch: int | None = None
        self.channels_last = False
        self._types = {value.name: torch_dtype(value.dtype) for value in graph.inputs}

    def first(self) -> str:
        """The first output. Raises UnsupportedOp where no gradient reaches it."""
        name = self.graph.outputs[0].name
        if name in self.untrained:
            raise UnsupportedOp(
                f"the first output of {_file(self.graph)}, {name!r}, cannot be trained: {self.untrained[name]}"
            )
        return name

    def classes_axis(self, name: str) -> int | None:
        """The axis of the classes, where an output ends in a Softmax over them: it is a distribution."""
        node = _softmax_of(self._values()[name])
        return None if node is None else node.args[1]  # type: ignore[return-value]  # the table gives an integer

    def scores_classes(self, name: str) -> bool:
        """Whether an output is [batch, two or more], as scores of classes are."""
        shape = self.graph.shape(name)
        return shape is not None and len(shape) == 2 and shape[1] is not None and shape[1] > 1

    def keep(self, names: Sequence[str], *, bare: Collection[str] = ()) -> None:
        """Return these tensors only, those in `bare` before a final Softmax or LogSoftmax: losses want scores."""
        values = self._values()
        graph = self.module.graph
        output = next(node for node in graph.nodes if node.op == "output")
        output.args = (tuple(values[name] for name in names),)
        self.names = tuple(names)
        for name in bare:
            if (node := _softmax_of(self._values()[name])) is not None and _alone(self._values()[name], node):
                scores: Any = node.args[0]
                node.replace_all_uses_with(scores)
                graph.erase_node(node)
        graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
        self.module.recompile()
        read = tuple(str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module"))
        for name, parameter in self.module.named_parameters():  # what is not read has no gradient to wait for
            parameter.requires_grad_(any(name == one or name.startswith(f"{one}.") for one in read))
        # Where a call fails, fx prints a report to stderr before it raises; the error is enough (a test watches this).
        quiet: Any = type(self.module)
        quiet._wrapped_call = staticmethod(nn.Module.__call__)

    def use_channels_last(self, wanted: bool | None) -> None:
        """Hold images and the weights of convolutions with their channels last, or not; None: if that is faster."""
        self.channels_last = self.prefers_last() if wanted is None else wanted
        if self.channels_last:
            module: nn.Module = self.module
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its types leave this one out

    def prefers_last(self) -> bool:
        """Whether steps are faster with channels last: where there are convolutions over images, all of NARROW channels
        or more (of ten networks, by 0 to 30%), unless most of them leave more than an eighth of their channels over
        when these are taken NARROW at a time: torch normalises such ones one by one, and a ResNet-20 at odd widths is
        slower by 10 to 30%. A depthwise one, which gains most, counts for two (tools/results/bench_train_layout.md).

        Narrower ones have nothing to gain, and torch 2.13 was once seen to corrupt its memory in them (two and four
        channels, on a CPU); that could not be made to happen again.
        """
        parameters = dict(self.module.named_parameters())
        narrowest, votes = math.inf, 0
        for node in self.module.graph.nodes:
            weight: Any = node.args[1] if node.target is F.conv2d else None
            if isinstance(weight, fx.Node) and weight.target in parameters:
                n, groups = parameters[weight.target].shape[0], node.args[6]
                narrowest = min(narrowest, n)
                votes += 2 if 1 < groups == n else -1 if 8 * (n % NARROW) > n else 1
        return narrowest >= NARROW and votes > 0

    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights that are trained, by the name of the initializer."""
        known = dict(self.module.named_parameters(remove_duplicate=False))
        found = {name: known[attribute] for name, attribute in names_of(self.module) if attribute in known}
        return {name: parameter for name, parameter in found.items() if parameter.requires_grad}

    def settle(self, sample: Inputs) -> None:
        """Find out, with one sample or more, whether any batch size can be chosen, though the graph says one."""
        feeds = named(self.graph, sample)
        fixed = {value.shape[0] for value in self.graph.inputs if value.shape and isinstance(value.shape[0], int)}
        if len(fixed) > 1:
            raise UsageError(
                f"{_file(self.graph)}: its inputs have fixed first axes of {sorted(fixed)}; training needs one batch "
                "size. Export it with a dynamic one."
            )
        declared = next(iter(fixed), None)
        self.batch = None if declared is None or self._any_batch(declared, feeds) else declared

    def tensors(self, x: Inputs) -> tuple[torch.Tensor, ...]:
        """What the module takes, in order."""
        feeds = named(self.graph, x)
        made = (self.tensor(feeds[value.name], value.name) for value in self.graph.inputs)
        return tuple(made)

    def tensor(self, array: Array, name: str) -> torch.Tensor:
        """One input's values on the device, of its type."""
        made = torch.from_numpy(np.ascontiguousarray(array)).to(self.device, self._types[name], non_blocking=True)
        if self.channels_last and made.dim() == 4:
            return made.contiguous(memory_format=torch.channels_last)
        return made

    def named(self, x: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the module takes, by name."""
        return {value.name: tensor for value, tensor in zip(self.graph.inputs, x, strict=True)}

    def taken(self, x: Tensors) -> tuple[torch.Tensor, ...]:
        """What another model takes, by name, as this one does; an only input may have another name."""
        values = self.graph.inputs
        if len(values) == len(x) == 1:
            return (next(iter(x.values())).to(self._types[values[0].name]),)
        if missing := [value.name for value in values if value.name not in x]:
            raise UsageError(
                f"{_file(self.graph)} takes {missing[0]!r} too, which the student does not: {', '.join(x)}."
            )
        return tuple(x[value.name].to(self._types[value.name]) for value in values)

    def misfit(self, x: Sequence[torch.Tensor], error: Exception) -> DataError:
        """What to raise where the module does not take some inputs."""
        shapes = ", ".join(str(tuple(t.shape)) for t in x)
        text = next(iter(str(error).splitlines()), type(error).__name__)
        return DataError(f"{_file(self.graph)} does not take inputs of shape {shapes}: {text}")

    def said(self, x: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors asked for, without gradients; a fixed batch size is met by repeating the last sample.

        Raises DataError where the inputs do not fit.
        """
        length = len(x[0])
        short = 0 if self.batch is None else -length % self.batch
        padded = [torch.cat([t, t[-1:].expand(short, *t.shape[1:])]) if short else t for t in x]
        try:
            with torch.no_grad():
                pieces = zip(*(_split(t, self.batch or length) for t in padded), strict=True)
                parts = [self.module(*some) for some in pieces]
        except (RuntimeError, ValueError, IndexError) as error:
            raise self.misfit(x, error) from error
        whole = (found[0] if len(found) == 1 else torch.cat(list(found)) for found in zip(*parts, strict=True))
        return {name: value[:length] for name, value in zip(self.names, whole, strict=True)}

    def _values(self) -> dict[str, Any]:
        """What is returned now, by name."""
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        result: Any = output.args[0]
        return dict(zip(self.names, result if isinstance(result, tuple | list) else (result,), strict=True))

    def _any_batch(self, batch: int, feeds: Mapping[str, Array]) -> bool:
        """Whether two batches at once give what one after the other gives."""
        twice = self.tensors({name: np.resize(array, (2 * batch, *array.shape[1:])) for name, array in feeds.items()})
        try:
            with torch.no_grad():
                parts = [self.module(*some) for some in zip(*(_split(t, batch) for t in twice), strict=True)]
                together = self.module(*twice)
        except (RuntimeError, ValueError, IndexError):  # a size that does not fit is reported in all these ways
            return False
        return all(
            one.dim() > 0
            and one.shape == (apart := torch.cat(list(some))).shape
            and bool((one - apart).abs().max() <= TOLERANCE * apart.abs().max().clamp(min=1e-12))
            for one, *some in zip(together, *parts, strict=True)
        )


def named(graph: Graph, x: Inputs) -> Mapping[str, Array]:
    """Arrays by the input's name; images are for the only input. Raises UsageError where there are more."""
    if isinstance(x, Mapping):
        return x
    if len(graph.inputs) != 1:
        names = ", ".join(value.name for value in graph.inputs)
        raise UsageError(
            f"{_file(graph)} has {len(graph.inputs)} inputs ({names}); images feed one. Give an array for each by name."
        )
    return {graph.inputs[0].name: x}


def samples_in(x: Inputs) -> int:
    """How many samples a batch is of."""
    return len(next(iter(x.values()))) if isinstance(x, Mapping) else len(x)


def _exposing(graph: Graph, inner: Sequence[str]) -> Graph:
    """The graph with more outputs."""
    outputs = {value.name for value in graph.outputs}
    wanted = [name for name in dict.fromkeys(inner) if name not in outputs]
    if not wanted:
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for name in wanted:
        dtype = graph.dtype(name)
        if graph.producer(name) is None or name in graph.weights:
            raise UsageError(
                f"{_file(graph)} computes no tensor {name!r}; see `analyze` for names, or a viewer such as Netron."
            )
        if dtype is None or not _is_real(graph, name):
            raise UsageError(f"{_file(graph)}: tensor {name!r} holds {dtype}, not numbers that could be trained.")
        model.graph.output.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None))
    return Graph(
        model,
        arrays=graph.arrays,
        nodes=graph.nodes,
        file=graph.file,
        external=graph.external,
        input_shapes=graph.input_shapes,
    )


def _is_real(graph: Graph, name: str) -> bool:
    """Whether a value is made of floating-point numbers; where that is not known, it is taken to be."""
    dtype = graph.dtype(name)
    return dtype is None or torch_dtype(dtype).is_floating_point


def _softmax_of(value: Any) -> fx.Node | None:
    """The Softmax or LogSoftmax over classes that ends in a value."""
    node = value
    while isinstance(node, fx.Node) and node.target in _TRANSPARENT:
        node = node.args[0]
    over_classes = isinstance(node, fx.Node) and node.target in _SOFTMAX and node.args[1] in (1, -1)
    return node if over_classes else None


def _alone(value: Any, softmax: fx.Node) -> bool:
    """Whether nothing but the output reads a Softmax, or what stands between the two."""
    node = value
    while node is not softmax:
        if len(node.users) > 1:
            return False
        node = node.args[0]
    return len(softmax.users) == 1


def _split(tensor: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    return torch.split(tensor, size)


def _file(graph: Graph) -> str:
    return graph.file or "the model"
