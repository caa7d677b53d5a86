"""Operators that regroup the same elements: Reshape, Flatten, Squeeze, Unsqueeze, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

from itertools import chain

from conet_onnx.dims import ONE, Axis, Segment, Size, axis, product
from conet_onnx.rules.registry import Facts, Op, Opaque, Shape, Site, fixed, held, rule, spatial
from conet_onnx.solving import Reason

__all__ = ["depth_to_space", "flatten", "reshape", "space_to_depth"]

Equal = tuple[tuple[Axis | Segment, Axis | Segment], ...]


def regroup(op: Op, x: Shape, sizes: tuple[Size, ...]) -> tuple[Shape, Equal]:
    """The output's axes and their equations with the input's, in the smallest blocks of equal cumulative product.

    Alignment at equal cumulative products is exact in row-major order, even where sizes coincide by accident.
    """
    if 0 in chain(*sizes, *[s.size for s in x]):
        raise Opaque("empty", f"{op.node} regroups a tensor without elements")
    output: list[Segment] = [ONE] * len(sizes)
    equal: list[tuple[Axis | Segment, Axis | Segment]] = []
    block_in: list[Segment] = []
    block_out: list[int] = []
    before: Size = (1, 1)  # the product of block_in over that of block_out, as two products
    after: Size = (1, 1)
    pending_in = [s for s in reversed(x) if s.size != (1, 1)]  # the next one last
    pending_out = [i for i in reversed(range(len(sizes))) if sizes[i] != (1, 1)]
    while pending_in or pending_out:
        if pending_in and (before <= after or not pending_out):
            block_in.append(pending_in.pop())
            before = _times(before, block_in[-1].size)
        else:
            block_out.append(pending_out.pop())
            after = _times(after, sizes[block_out[-1]])
        if before == after and block_in and block_out:
            if len(block_in) == len(block_out) == 1:
                output[block_out[0]] = block_in[0]
            else:
                for i in block_out:
                    output[i] = product(op.fresh(f"out{i}", sizes[i]))
                equal.append((product(*block_in), product(*[output[i] for i in block_out])))
            block_in, block_out = [], []
    if block_in or block_out:
        raise Opaque("sizes", f"{op.node} changes the number of elements from {before} to {after}")
    return tuple(output), tuple(equal)


@rule("Reshape", since=5)
def reshape(op: Op, x: Shape, _: Shape | None = None) -> Facts:
    """ONNX Reshape: every element of the target that carries a size follows it; one that follows the batch is -1."""
    output, equal = regroup(op, x, op.sizes())
    target = op.integers(1)
    if target is not None:
        found = [
            Site("input:1", i, axis(s), literal)
            for i, (s, literal) in enumerate(zip(output, target, strict=True))
            if literal != -1 and s.size[0] == s.size[1] and not (literal == 0 and s == x[i])
        ]
        return Facts(outputs=(output,), equal=equal, sites=tuple(found), sees=(1,), passes=(0,))
    if op.node.inputs[1] not in op.origins:
        raise Opaque("computed target", f"{op.node} reads its target from data")
    dynamic = [i for i, s in enumerate(output) if s.size[0] != s.size[1]]
    if len(dynamic) <= 1:
        sites = tuple([Site("input:1", i, axis(s), None) for i, s in enumerate(output)])
        return Facts(outputs=(output,), equal=equal, sites=sites, sees=(1,), passes=(0,))
    followed, sites, frozen = _computed(op, output)
    return Facts((output,), (*equal, *followed), sites=sites, frozen=frozen, sees=(1,), passes=(0,))


def _computed(op: Op, output: Shape) -> tuple[Equal, tuple[Site, ...], tuple[tuple[Segment, Reason], ...]]:
    """With two symbolic sizes there is only one -1: each element must follow the axis that it was read from, a literal
    is edited where it stands, and what is computed keeps its size."""
    origins = op.origin(1)
    equal: list[tuple[Axis | Segment, Axis | Segment]] = []
    sites: list[Site] = []
    frozen: list[tuple[Segment, Reason]] = []
    for place, segment in enumerate(output):
        origin = origins[place] if place < len(origins) else None
        if isinstance(origin, tuple):
            equal.append((segment, op.source(origin)))
        elif origin == -1 or not segment.dims or all(d.rigid for d in segment.dims):
            continue
        elif isinstance(origin, int):
            sites.append(held(op, 1, place, segment))
        else:
            detail = f"{op.node} computes this size of its target while the model runs"
            frozen.append((segment, Reason("computed target", op.node.name, detail)))
    return tuple(equal), tuple(sites), tuple(frozen)


@rule("Flatten", "Squeeze", "Unsqueeze")
def flatten(op: Op, x: Shape, _: Shape | None = None) -> Facts:
    """ONNX Flatten, Squeeze and Unsqueeze: no integer carries a size. Squeeze without axes drops every size of one."""
    output, equal = regroup(op, x, op.sizes())
    frozen: tuple[tuple[Segment, Reason], ...] = ()
    if op.node.op == "Squeeze" and not op.has(1) and op.attribute("axes") is None:
        reason = Reason("squeeze", op.node.name, f"{op.node} names no axes: it would drop a channel axis of size one")
        frozen = tuple((segment, reason) for segment in x if segment.dims)
    return Facts(outputs=(output,), equal=equal, frozen=frozen, passes=(0,))


@rule("DepthToSpace")
def depth_to_space(op: Op, x: Shape) -> Facts:
    """ONNX DepthToSpace: X (N, b·b·c, H, W) in mode DCR, (N, c·b·b, H, W) in mode CRD; Y (N, c, H·b, W·b)."""
    squared = op.attribute("blocksize") ** 2
    c = product(op.fresh("c", op.sizes()[1]))
    channels = product(c, squared) if op.attribute("mode", "DCR") == "CRD" else product(squared, c)
    y = (x[0], c, *fixed(op.node.name, op.sizes()[2:]))
    return Facts(outputs=(y,), equal=((x[1], channels),), frozen=spatial(op, x[2:]))


@rule("SpaceToDepth")
def space_to_depth(op: Op, x: Shape) -> Facts:
    """ONNX SpaceToDepth: X (N, c, H, W), Y (N, b·b·c, H/b, W/b); from opset 28 on (N, c·b·b, ...) in mode CRD."""
    squared = op.attribute("blocksize") ** 2
    channels = product(x[1], squared) if op.attribute("mode", "DCR") == "CRD" else product(squared, x[1])
    return Facts(outputs=((x[0], channels, *fixed(op.node.name, op.sizes()[2:])),), frozen=spatial(op, x[2:]))


def _times(a: Size, b: Size) -> Size:
    return a[0] * b[0], a[1] * b[1]
