"""Lower operators that find elements, or put them, by place: TopK, the Gather and Scatter families, triangles."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node, Result, has
from conet_onnx.torch_backend.ops.registry import lowers
from conet_onnx.torch_backend.weights import torch_dtype

__all__ = ["cumulative", "gather_elements", "gather_nd", "most", "one_hot", "scatter_elements", "scatter_nd", "top"]

_REDUCED = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@lowers("ArgMax", "ArgMin")
def arg(b: Builder, node: Node) -> Result:
    """The first of equal elements, or the last."""
    axis, keep = node.attributes.get("axis", 0), bool(node.attributes.get("keepdims", 1))
    last = bool(node.attributes.get("select_last_index", 0))
    return b.call(most, b.tensor(node.inputs[0]), axis, keep, node.op == "ArgMax", last)


def most(x: torch.Tensor, axis: int, keep: bool, largest: bool, last: bool) -> torch.Tensor:
    """The place of the largest or smallest element along an axis."""
    function = torch.argmax if largest else torch.argmin
    if not last:
        return function(x, axis, keepdim=keep)
    return x.size(axis) - 1 - function(x.flip(axis), axis, keepdim=keep)


@lowers("TopK")
def top_k(b: Builder, node: Node) -> Result:
    """k is an attribute before opset 10; of equal elements the first come first."""
    k: Any = node.attributes["k"] if node.since < 10 else b.integers(node, 1)[0]
    largest = bool(node.attributes.get("largest", 1))
    made = b.call(top, b.tensor(node.inputs[0]), k, node.attributes.get("axis", -1), largest)
    return [b.call(operator.getitem, made, i) for i in range(len(node.outputs))]


def top(x: torch.Tensor, k: int, axis: int, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest or smallest elements along an axis, in order, and their places."""
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), places.narrow(axis, 0, k)


@lowers("CumSum", "CumProd")
def cumulate(b: Builder, node: Node) -> Result:
    """From the front or from the back, with the element itself or without."""
    axis = b.number(node, 1, "the axis")
    back, without = (bool(node.attributes.get(name, 0)) for name in ("reverse", "exclusive"))
    return b.call(cumulative, b.tensor(node.inputs[0]), axis, node.op == "CumProd", back, without)


def cumulative(x: torch.Tensor, axis: int, product: bool, back: bool, without: bool) -> torch.Tensor:
    """Sums or products up to each element."""
    x = x.flip(axis) if back else x
    if without:
        first = torch.full_like(x.narrow(axis, 0, 1), int(product))
        x = torch.cat([first, x.narrow(axis, 0, x.size(axis) - 1)], axis)
    made = (torch.cumprod if product else torch.cumsum)(x, axis, dtype=x.dtype)
    return made.flip(axis) if back else made


@lowers("Trilu")
def trilu(b: Builder, node: Node) -> Result:
    """The upper or the lower triangle of the last two axes."""
    k = b.number(node, 1, "the diagonal") if has(node, 1) else 0
    return b.call(torch.triu if node.attributes.get("upper", 1) else torch.tril, b.tensor(node.inputs[0]), k)


@lowers("GatherElements", "GatherND")
def gather(b: Builder, node: Node) -> Result:
    """By places along one axis, or along the first few after those of the batch."""
    x, places = b.tensor(node.inputs[0]), b.tensor(node.inputs[1])
    if node.op == "GatherND":
        return b.call(gather_nd, x, places, node.attributes.get("batch_dims", 0))
    return b.call(gather_elements, x, places, node.attributes.get("axis", 0))


def gather_elements(x: torch.Tensor, places: torch.Tensor, axis: int) -> torch.Tensor:
    """Each element from its own place along an axis; negative places count from the end."""
    return torch.gather(x, axis, _from_front(places, x.size(axis)))


def gather_nd(x: torch.Tensor, places: torch.Tensor, batch: int) -> torch.Tensor:
    """Slices by tuples of places, which the last axis of `places` holds; `batch` axes are common to both."""
    shape = x.shape[:batch]
    x, places = x.flatten(0, batch - 1) if batch else x[None], places.flatten(0, batch - 1) if batch else places[None]
    rows = torch.arange(x.size(0), device=x.device).reshape([-1] + [1] * (places.dim() - 2))
    made = x[(rows, *places.unbind(-1))]
    return made.reshape(*shape, *made.shape[1:])


@lowers("ScatterElements", "ScatterND", "Scatter")
def scatter(b: Builder, node: Node) -> Result:
    """As the Gather of the same name, the other way round; places that meet may be added, multiplied, compared."""
    x, places, updates = (b.tensor(name) for name in node.inputs)
    how = node.attributes.get("reduction", "none")
    if node.op == "ScatterND":
        return b.call(scatter_nd, x, places, updates, how)
    return b.call(scatter_elements, x, places, updates, node.attributes.get("axis", 0), how)


def scatter_elements(x: torch.Tensor, places: torch.Tensor, updates: torch.Tensor, axis: int, how: str) -> torch.Tensor:
    """Each update to its own place along an axis."""
    places = _from_front(places, x.size(axis))
    if how == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCED[how])


def scatter_nd(x: torch.Tensor, places: torch.Tensor, updates: torch.Tensor, how: str) -> torch.Tensor:
    """Slices to tuples of places, which the last axis of `places` holds."""
    depth = places.size(-1)
    sizes = x.shape[:depth]
    flat = torch.zeros(places.shape[:-1], dtype=torch.long, device=x.device)
    for axis, size in enumerate(sizes):
        flat = flat * size + _from_front(places[..., axis], size)
    width = x.shape[depth:].numel()  # there may be no elements to tell it by
    rows, index = x.reshape(sizes.numel(), width), flat.reshape(-1, 1).expand(-1, width)
    return scatter_elements(rows, index, updates.reshape(flat.numel(), width), 0, how).reshape(x.shape)


@lowers("OneHot")
def one_hot_node(b: Builder, node: Node) -> Result:
    """A new axis in which the place is on and all others are off."""
    depth = b.number(node, 1, "the depth")
    dtype = b.graph.dtype(node.inputs[2])
    if dtype is None:
        raise b.unsupported(node, f"the type of {node.inputs[2]!r} is not known")
    values = b.method("to", b.tensor(node.inputs[2]), torch_dtype(dtype))
    return b.call(one_hot, b.tensor(node.inputs[0]), int(depth or 0), values, node.attributes.get("axis", -1))


def one_hot(places: torch.Tensor, depth: int, values: torch.Tensor, axis: int) -> torch.Tensor:
    """Places outside of [-depth, depth) are off everywhere."""
    places = _from_front(places.long(), depth)
    inside = (places >= 0) & (places < depth)
    on = F.one_hot(torch.where(inside, places, 0), depth).bool() & inside[..., None]
    return torch.where(on, values[1], values[0]).movedim(-1, axis)


@lowers("Hardmax")
def hardmax(b: Builder, node: Node) -> Result:
    """One at the first largest element; before opset 13 over all axes from `axis` on."""
    x, rank = b.tensor(node.inputs[0]), b.rank(node, node.inputs[0])
    axis = node.attributes.get("axis", -1 if node.since >= 13 else 1)
    if node.since >= 13 or axis % rank == rank - 1:
        return b.call(first_largest, x, axis)
    return b.method("view_as", b.call(first_largest, b.call(torch.flatten, x, axis % rank), -1), x)


def first_largest(x: torch.Tensor, axis: int) -> torch.Tensor:
    """One where the first largest element along an axis is, zero elsewhere."""
    return torch.zeros_like(x).scatter(axis, torch.argmax(x, axis, keepdim=True), 1)


def _from_front(places: torch.Tensor, size: int) -> torch.Tensor:
    """Places as torch wants them: whole numbers of 64 bits that do not count from the end."""
    places = places.long()
    return torch.where(places < 0, places + size, places)
