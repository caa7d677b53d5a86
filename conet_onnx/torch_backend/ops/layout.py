"""Lower what moves elements without computing anything."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node, Result, has
from conet_onnx.torch_backend.known import Scalar, static
from conet_onnx.torch_backend.ops.padding import torch_order
from conet_onnx.torch_backend.ops.registry import lowers

__all__ = ["axes_of", "slices_of"]

FAR = 2**31 - 1  # what exporters write for "to the end", and more
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@lowers("Reshape")
def reshape(b: Builder, node: Node) -> Result:
    """0 copies the input's size, unless `allowzero`; -1 is what remains.

    Where the first size is the input's own it is copied at run time: reshaping by row fits a batch of any size.
    """
    name = node.inputs[0]
    target: list[Scalar] = [*b.integers(node, 1)]
    x = b.tensor(name)
    if b.known(node.inputs[1]) is None:
        return b.call(reshaped, x, target, bool(node.attributes.get("allowzero", 0)))
    if not node.attributes.get("allowzero", 0):
        target = [b.size(name, i) if static(size) and size == 0 else size for i, size in enumerate(target)]
    shape = b.graph.shape(name)
    if shape and target and static(target[0]) and target[0] == shape[0] and name not in b.graph.weights:
        target[0] = b.size(name, 0)
    return b.call(torch.reshape, x, tuple(target))


def reshaped(x: torch.Tensor, target: Sequence[int], allow_zero: bool) -> torch.Tensor:
    """To a target that is only known at run time."""
    return x.reshape([x.size(axis) if size == 0 and not allow_zero else size for axis, size in enumerate(target)])


@lowers("Flatten")
def flatten(b: Builder, node: Node) -> Result:
    """To a matrix: the axes before `axis`, and those from it on."""
    x, rank = b.tensor(node.inputs[0]), b.rank(node, node.inputs[0])
    axis = node.attributes.get("axis", 1)
    axis = axis + rank if axis < 0 else axis
    if axis == 0:
        return b.call(torch.reshape, x, (1, -1))
    if axis == rank:
        return b.call(torch.reshape, x, (-1, 1))
    rows = x if axis == 1 else b.call(torch.flatten, x, 0, axis - 1)
    return rows if rank - axis == 1 else b.call(torch.flatten, rows, 1)


@lowers("Squeeze")
def squeeze(b: Builder, node: Node) -> Result:
    """Drop axes of size one: the given ones, or all."""
    axes = axes_of(b, node)
    if axes is None:
        shape = b.shape(node, node.inputs[0])
        if None in shape:
            raise b.unsupported(node, "which axes have size one is not known")
        axes = [axis for axis, size in enumerate(shape) if size == 1]
    return b.call(torch.squeeze, b.tensor(node.inputs[0]), tuple(axes))


@lowers("Unsqueeze")
def unsqueeze(b: Builder, node: Node) -> Result:
    """Axes count in the result."""
    axes = axes_of(b, node)
    assert axes is not None
    rank = b.rank(node, node.inputs[0]) + len(axes)
    x = b.tensor(node.inputs[0])
    for axis in sorted(axis % rank for axis in axes):
        x = b.call(torch.unsqueeze, x, axis)
    return x


@lowers("Transpose")
def transpose(b: Builder, node: Node) -> Result:
    """Reversed without `perm`."""
    order = node.attributes.get("perm") or tuple(reversed(range(b.rank(node, node.inputs[0]))))
    return b.call(torch.permute, b.tensor(node.inputs[0]), order)


@lowers("Identity")
def identity(b: Builder, node: Node) -> Result:
    """The same value under another name (`lower` gives weights an alias before it comes here)."""
    return b.tensor(node.inputs[0])


@lowers("Concat")
def concat(b: Builder, node: Node) -> Result:
    """Along one axis."""
    return b.call(torch.cat, [b.tensor(name) for name in node.inputs], node.attributes["axis"])


@lowers("Split")
def split(b: Builder, node: Node) -> Result:
    """Sizes as attribute or input, or equal parts of which the last may be smaller (opset 18)."""
    x, name, axis = b.tensor(node.inputs[0]), node.inputs[0], node.attributes.get("axis", 0)
    sizes: Any = node.attributes.get("split")
    if has(node, 1):
        sizes = b.integers(node, 1)
    if sizes is None:
        axis = axis % b.rank(node, name)
        whole, parts = b.size(name, axis), len(node.outputs)
        sizes = -(-whole // parts) if isinstance(whole, int) else b.call(equal_parts, whole, parts)
    made = b.call(torch.split, x, list(sizes) if isinstance(sizes, tuple) else sizes, axis)
    return [b.call(operator.getitem, made, i) for i in range(len(node.outputs))]


def equal_parts(whole: int, parts: int) -> int:
    """The size of all parts but the last."""
    return -(-whole // parts)


@lowers("Slice")
def slice_(b: Builder, node: Node) -> Result:
    """As numpy's; a negative step flips first."""
    x, rank = b.tensor(node.inputs[0]), b.rank(node, node.inputs[0])
    index: list[Any] = [slice(None)] * rank
    flipped = []
    for axis, start, end, step in slices_of(b, node, b.shape(node, node.inputs[0])):
        if step < 0:
            flipped.append(axis)
            start, end, step = _mirrored(b, start), _mirrored(b, end), -step
        first = None if static(start) and start == 0 else start
        last = None if static(end) and end >= FAR else end
        index[axis] = slice(first, last, None if step == 1 else step)
    if flipped:
        x = b.call(torch.flip, x, flipped)
    while index and index[-1] == slice(None):
        index.pop()
    return b.call(operator.getitem, x, tuple(index)) if index else x


def slices_of(b: Builder, node: Node, shape: Sequence[int | None]) -> list[tuple[int, Any, Any, int]]:
    """(axis, start, end, step) of each sliced axis; attributes before opset 10, inputs since.

    They mean what they mean in Python. ONNX differs in one thing, which is settled here: with a negative step, a start
    before the first element is the first element.
    """
    if node.since < 10:
        starts: Sequence[Any] = node.attributes["starts"]
        ends: Sequence[Any] = node.attributes["ends"]
        axes: Sequence[Any] = node.attributes.get("axes") or range(len(starts))
        steps: Sequence[int] = (1,) * len(starts)
    else:
        starts, ends = b.integers(node, 1), b.integers(node, 2)
        given, strides = b.setting(node, 3, "the axes"), b.setting(node, 4, "the step")
        axes = range(len(starts)) if given is None else given.flatten().tolist()
        steps = (1,) * len(starts) if strides is None else strides.flatten().tolist()
    found = []
    for given_axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = given_axis % len(shape)
        size = shape[axis]
        if step < 0 and (not static(start) or start < -1):
            if size is None or not static(start):
                raise b.unsupported(node, f"a negative step from {start} on an axis whose size varies")
            start = max(start, -size)
        found.append((axis, start, end, step))
    return found


def _mirrored(b: Builder, index: Scalar) -> Scalar:
    """Index i seen from the other end is -1 - i, which Python counts from the end again; it clamps as ONNX does."""
    return b.call(operator.sub, -1, index) if isinstance(index, fx.Node) else -1 - index


@lowers("Gather")
def gather(b: Builder, node: Node) -> Result:
    """Negative indices count from the end."""
    x, axis = b.tensor(node.inputs[0]), node.attributes.get("axis", 0) % b.rank(node, node.inputs[0])
    indices = b.constant(node.inputs[1])
    if indices is not None and indices.shape == ():
        return b.call(torch.select, x, axis, int(indices))
    return b.call(operator.getitem, x, (*[slice(None)] * axis, b.tensor(node.inputs[1])))


@lowers("Expand")
def expand(b: Builder, node: Node) -> Result:
    """Broadcast to a shape, which the input may exceed where the shape says 1."""
    return b.call(broadcast, b.tensor(node.inputs[0]), b.integers(node, 1))


def broadcast(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Both ways, as ONNX Expand."""
    new = len(shape) - x.dim()
    full = [1] * -new + list(shape)
    return x.expand([-1 if size == 1 and axis >= new else size for axis, size in enumerate(full)])


@lowers("Tile")
def tile(b: Builder, node: Node) -> Result:
    """Repeat along each axis."""
    return b.call(torch.tile, b.tensor(node.inputs[0]), tuple(b.integers(node, 1)))


@lowers("Pad")
def pad(b: Builder, node: Node) -> Result:
    """Amounts as attribute (opset < 11) or input, on all axes or (opset 18) on some; negative ones cut."""
    name = node.inputs[0]
    x, rank = b.tensor(name), b.rank(node, name)
    mode = node.attributes.get("mode", "constant") or "constant"
    amounts = list(node.attributes["pads"]) if node.since < 11 else b.integers(node, 1)
    value: Any = node.attributes.get("value", 0.0)
    if has(node, 2):
        value = b.number(node, 2, "the padding value")
    axes = b.setting(node, 3, "the axes") if has(node, 3) else None
    begin: list[Any] = [0] * rank
    end: list[Any] = [0] * rank
    chosen = range(rank) if axes is None else [axis % rank for axis in axes.flatten().tolist()]
    for i, axis in enumerate(chosen):
        begin[axis], end[axis] = amounts[i], amounts[i + len(chosen)]
    if all(static(p) and p == 0 for p in (*begin, *end)):
        return x
    if mode not in _PAD_MODES:
        raise b.unsupported(node, f"mode {mode!r}")
    if mode == "constant":
        while all(static(p) and p == 0 for p in (begin[0], end[0])):
            begin, end = begin[1:], end[1:]
        return b.call(F.pad, x, torch_order(begin, end), value=value)
    if rank not in (3, 4, 5) or any(not static(p) or p != 0 for p in (*begin[:2], *end[:2])):
        raise b.unsupported(node, f"mode {mode!r} on the first two axes or on {rank} axes")
    if any(static(p) and p < 0 for p in (*begin, *end)):
        raise b.unsupported(node, f"mode {mode!r} with negative amounts")
    return b.call(F.pad, x, torch_order(begin[2:], end[2:]), mode=_PAD_MODES[mode])


@lowers("DepthToSpace")
def depth_to_space(b: Builder, node: Node) -> Result:
    """Pixel shuffle (CRD), or with the block outermost (DCR)."""
    size = node.attributes["blocksize"]
    x = b.tensor(node.inputs[0])
    if node.attributes.get("mode", "DCR") == "CRD":
        return b.call(F.pixel_shuffle, x, size)
    return b.call(shuffle_blocks_first, x, size)


def shuffle_blocks_first(x: torch.Tensor, size: int) -> torch.Tensor:
    """Channels are (row in block, column in block, channel) (ONNX DepthToSpace-13, DCR)."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // size**2, h * size, w * size)


@lowers("SpaceToDepth")
def space_to_depth(b: Builder, node: Node) -> Result:
    """Channels become (row in block, column in block, channel); in mode CRD (opset 28) the channel is outermost."""
    x, size = b.tensor(node.inputs[0]), node.attributes["blocksize"]
    if node.attributes.get("mode", "DCR") == "CRD":
        return b.call(F.pixel_unshuffle, x, size)
    return b.call(gather_blocks_first, x, size)


def gather_blocks_first(x: torch.Tensor, size: int) -> torch.Tensor:
    """The inverse of shuffle_blocks_first."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * size**2, h // size, w // size)


def axes_of(b: Builder, node: Node) -> list[int] | None:
    """Axes of Squeeze and Unsqueeze: an attribute before opset 13, an input since."""
    if node.since < 13:
        given = node.attributes.get("axes")
        return None if given is None else list(given)
    found = b.setting(node, 1, "the axes")
    return None if found is None else [int(axis) for axis in found.flatten()]
