"""Lower control flow and sequences: branches and loops become modules of their own, sequences Python lists.

They are lowered only where nothing could be trained otherwise (lower.lower): a detector's loops stay in onnxruntime.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import helper
from onnx.numpy_helper import from_array
from torch import fx, nn

from conet_onnx.errors import ModelError
from conet_onnx.graph import Graph
from conet_onnx.shapes import copy_except
from conet_onnx.torch_backend.building import Builder, Node, Result
from conet_onnx.torch_backend.ops.registry import flows

__all__ = ["Branches", "Turns"]

Tensor = torch.Tensor


class Branches(nn.Module):
    """An If: one of two graphs, of the values that both may read."""

    def __init__(self, then: nn.Module, otherwise: nn.Module) -> None:
        super().__init__()
        self.then, self.otherwise = then, otherwise

    def forward(self, condition: Tensor, *captured: Any) -> tuple[Any, ...]:
        """The outputs of the branch that the condition, one truth value, chooses."""
        return _several(self.then(*captured) if bool(condition) else self.otherwise(*captured))


class Turns(nn.Module):
    """A Loop: its body again and again, on `carried` values; further outputs of the body are stacked."""

    def __init__(self, body: nn.Module, carried: int) -> None:
        super().__init__()
        self.body, self.carried = body, carried

    def forward(self, most: Tensor | None, goes_on: Tensor | None, *values: Any) -> tuple[Any, ...]:
        """At most so many turns, while the condition holds. Raises ValueError where there is none to tell how large a
        stack's elements are."""
        states, captured = values[: self.carried], values[self.carried :]
        limit = None if most is None else int(most)
        going = True if goes_on is None else bool(goes_on)
        stacks: list[tuple[Any, ...]] = []
        turn = 0
        while going and (limit is None or turn < limit):
            goes, *made = _several(self.body(torch.tensor(turn), torch.tensor(going), *states, *captured))
            states, going = tuple(made[: self.carried]), bool(goes)
            stacks.append(tuple(made[self.carried :]))
            turn += 1
        return (*states, *(torch.stack(items) for items in zip(*stacks, strict=True)))


@flows("If")
def branches(b: Builder, node: Node) -> Result:
    """ONNX If: then_branch or else_branch."""
    captured = _captured(b, node)
    both = [_inner(b, node, node.attributes[name], captured) for name in ("then_branch", "else_branch")]
    made = b.module(Branches(*both), b.tensor(node.inputs[0]), *map(b.tensor, captured))
    return [b.call(operator.getitem, made, k) for k in range(len(node.outputs))]


@flows("Loop")
def loop(b: Builder, node: Node) -> Result:
    """ONNX Loop: a largest number of turns and a condition, both optional; carried values; the body's scan outputs."""
    captured = _captured(b, node)
    first = [b.tensor(name) if name else None for name in (*node.inputs, "", "")[:2]]
    states = [b.tensor(name) for name in node.inputs[2:]]
    body = _inner(b, node, node.attributes["body"], captured)
    made = b.module(Turns(body, len(states)), *first, *states, *map(b.tensor, captured))
    return [b.call(operator.getitem, made, k) for k in range(len(node.outputs))]


def _captured(b: Builder, node: Node) -> list[str]:
    """What the inner graphs read of the outer one while the model runs; constants are given to them as such."""
    if not b.carried.isdisjoint((*node.inputs, *node.captured)):
        raise b.unsupported(node, "quantised numbers enter its graphs")
    return [name for name in node.captured if not _is_constant(b, name)]


def _is_constant(b: Builder, name: str) -> bool:
    return name in b.graph.weights and name not in b.trainable


def _inner(b: Builder, node: Node, graph: onnx.GraphProto, captured: Sequence[str]) -> fx.GraphModule:
    """An inner graph as a module that takes its own inputs and then what it captures; weights of its own stay as they
    are, since no plan or training knows them."""
    model: onnx.ModelProto = copy_except(b.graph.model, "graph")
    model.graph.CopyFrom(graph)
    model.graph.initializer.extend(from_array(b.graph.array(n), n) for n in node.captured if _is_constant(b, n))
    for name in captured:
        dtype, shape = b.graph.dtype(name), b.graph.shape(name)
        if name in b.graph.weights:
            shape = tuple(b.graph.weights[name].dims)
        elif shape is None and name in b.ranks:
            shape = (None,) * b.ranks[name]
        if dtype is None:
            raise b.unsupported(node, f"the type of {name!r}, which its graphs read, is not known")
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    try:
        inner = b.lowered(Graph(model, file=""))
    except ModelError as error:
        raise b.unsupported(node, f"its graphs have no types that follow from each other ({error})") from error
    for name, parameter in list(inner.named_parameters(recurse=False)):
        delattr(inner, name)
        inner.register_buffer(name, parameter.detach())
    return inner


def _several(made: Any) -> tuple[Any, ...]:
    return made if isinstance(made, tuple) else (made,)


# Sequences


@flows("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert")
def on_lists(b: Builder, node: Node) -> Result:
    """ONNX SequenceEmpty, SequenceConstruct, SequenceInsert, SequenceErase, SequenceAt: what a list has for each."""
    return b.call(LISTS[node.op], *map(b.tensor, node.inputs))


@flows("SequenceLength")
def length(b: Builder, node: Node) -> Result:
    """ONNX SequenceLength: how many tensors, int64."""
    return b.call(counted, b.tensor(node.inputs[0]), device=b.device())


@flows("ConcatFromSequence")
def concat(b: Builder, node: Node) -> Result:
    """ONNX ConcatFromSequence: along an axis, or along a new one."""
    function = torch.stack if node.attributes.get("new_axis", 0) else torch.cat
    return b.call(function, b.tensor(node.inputs[0]), dim=node.attributes["axis"])


@flows("SplitToSequence")
def split(b: Builder, node: Node) -> Result:
    """ONNX SplitToSequence: pieces of one size or of these sizes; without sizes single ones, their axis kept or not."""
    axis, keep = node.attributes.get("axis", 0), bool(node.attributes.get("keepdims", 1))
    return b.call(pieces, *map(b.tensor, node.inputs), axis=axis, keep=keep)


def as_list(*tensors: Tensor) -> list[Tensor]:
    """A sequence of these."""
    return list(tensors)


def inserted(sequence: list[Tensor], tensor: Tensor, position: Tensor | None = None) -> list[Tensor]:
    """The sequence with one more in front of a position, which may count from the end; at the end by default."""
    place = len(sequence) if position is None else int(position)
    place += len(sequence) if place < 0 else 0
    return [*sequence[:place], tensor, *sequence[place:]]


def erased(sequence: list[Tensor], position: Tensor | None = None) -> list[Tensor]:
    """The sequence without the one at a position, by default the last."""
    place = range(len(sequence))[-1 if position is None else int(position)]
    return [*sequence[:place], *sequence[place + 1 :]]


def item(sequence: list[Tensor], position: Tensor) -> Tensor:
    """One of the sequence, at a position that may count from the end."""
    return sequence[int(position)]


def counted(sequence: list[Tensor], *, device: torch.device) -> Tensor:
    """How many there are."""
    return torch.tensor(len(sequence), device=device)


def pieces(x: Tensor, sizes: Tensor | None = None, *, axis: int, keep: bool) -> list[Tensor]:
    """A tensor's pieces along an axis."""
    if sizes is None:
        return list(torch.split(x, 1, axis)) if keep else list(torch.unbind(x, axis))
    return list(torch.split(x, sizes.tolist(), axis))  # one number: pieces of that size, and what is left


LISTS: Mapping[str, Callable[..., Any]] = {
    "SequenceAt": item,
    "SequenceConstruct": as_list,
    "SequenceEmpty": as_list,
    "SequenceErase": erased,
    "SequenceInsert": inserted,
}
