"""Operators that put axes side by side or take them apart: Concat, Split, Slice, Pad."""

from __future__ import annotations

from conet_onnx.dims import ONE, Axis, Segment, axis, product, total
from conet_onnx.rules.registry import Facts, Op, Opaque, Shape, Site, fixed, rule
from conet_onnx.solving import Reason

__all__ = ["concat", "pad", "slice_", "split"]

SLICE_INPUTS = (1, 2, 3, 4)
UNBOUNDED = 2**31 - 1  # exporters write this, or 2^63 - 1, for "to the end"


@rule("Concat")
def concat(op: Op, *shapes: Shape) -> Facts:
    """ONNX Concat: a sum along `axis`, equality elsewhere."""
    first = shapes[0]
    along = op.attribute("axis", 1) % len(first)
    y = product(op.fresh("concat", op.sizes()[along]))
    equal: list[tuple[Axis | Segment, Axis | Segment]] = [(y, total(s[along] for s in shapes))]
    equal += [(first[i], s[i]) for s in shapes[1:] for i in range(len(first)) if i != along]
    output = (*first[:along], y, *first[along + 1 :])
    return Facts(outputs=(output,), equal=tuple(equal), passes=tuple(range(len(shapes))))


@rule("Split")
def split(op: Op, x: Shape, _: Shape | None = None) -> Facts:
    """ONNX Split: the axis is the sum of its pieces. Sizes: attribute `split` before opset 13, then an input."""
    along = op.attribute("axis", 0) % len(x)
    sizes = [op.sizes(k)[along] for k in range(len(op.node.outputs))]
    pieces = tuple(product(op.fresh(f"piece{k}", size)) for k, size in enumerate(sizes))
    where = "attribute:split" if op.node.since < 13 else "input:1"
    if op.has(1) and op.integers(1) is None:
        raise Opaque("computed split", f"{op.node} computes its sizes while the model runs")
    sites = tuple(Site(where, k, axis(p), p.size[0]) for k, p in enumerate(pieces) if p.size[0] == p.size[1])
    outputs = tuple((*x[:along], p, *x[along + 1 :]) for p in pieces)
    return Facts(outputs=outputs, equal=((x[along], total(pieces)),), sites=sites, sees=(1,), passes=(0,))


@rule("Slice")
def slice_(op: Op, x: Shape, *_: Shape | None) -> Facts:
    """ONNX Slice: with step one, an axis is cut at both bounds; before opset 10 the bounds are attributes."""
    by_input = op.node.since >= 10
    if by_input:
        given = [op.integers(k) if op.has(k) else () for k in (1, 2, 3, 4)]
        known = [integers for integers in given if integers is not None]
        if len(known) < len(given):
            return _cut_while_running(op, x)
        starts, ends, axes, steps = known
    else:
        starts, ends, axes, steps = op.attribute("starts"), op.attribute("ends"), op.attribute("axes"), ()
    output: list[Segment] = list(x)
    frozen: list[tuple[Segment, Reason]] = []
    equal, sites = list[tuple[Axis | Segment, Axis | Segment]](), list[Site]()
    for k, along in enumerate(axes or range(len(starts))):
        along %= len(x)
        segment = x[along]
        if segment.fixed or segment.size[0] != segment.size[1] or (steps and steps[k] != 1):
            output[along] = fixed(f"{op.node.name}{along}", (op.sizes()[along],))[0]
            frozen.append((segment, Reason("strided", op.node.name, f"{op.node} takes every n-th channel of it")))
            continue
        size = segment.size[0]
        start, end = _clamp(starts[k], size), _clamp(ends[k], size)
        if end <= start:
            raise Opaque("empty", f"{op.node} takes nothing")
        cut = [product(op.fresh(f"{n}{along}", (m, m))) if m else None for n, m in _parts(start, end, size)]
        output[along] = cut[1] or ONE
        equal.append((segment, total(p for p in cut if p is not None)))
        names = ("input:1", "input:2") if by_input else ("attribute:starts", "attribute:ends")
        for where, bound, parts in ((names[0], starts[k], 1), (names[1], ends[k], 2)):
            if bound < UNBOUNDED:  # a negative bound counts what lies behind it
                counted = cut[:parts] if bound >= 0 else cut[parts:]
                sites.append(Site(where, k, total(p for p in counted if p is not None), bound))
    return Facts(
        (tuple(output),), tuple(equal), sites=tuple(sites), frozen=tuple(frozen), sees=SLICE_INPUTS, passes=(0,)
    )


def _cut_while_running(op: Op, x: Shape) -> Facts:
    """Bounds that the model computes, as in a table of positions cut at a length: only axes without any pass."""
    axes, detail = op.integers(3), f"{op.node} computes its bounds while the model runs"
    if axes is None:
        raise Opaque("computed bounds", detail)
    output, sizes = list(x), op.sizes()
    for along in (a % len(x) for a in axes):
        output[along] = fixed(f"{op.node.name}{along}", (sizes[along],))[0]
    reason = Reason("computed bounds", op.node.name, detail)
    return Facts((tuple(output),), frozen=tuple((x[a % len(x)], reason) for a in axes))


@rule("Pad", since=2)
def pad(op: Op, x: Shape, *_: Shape | None) -> Facts:
    """ONNX Pad: a padded axis is a sum of the padding and the input. Padding that is not constant copies channels."""
    by_input = op.node.since >= 11
    pads = op.integers(1) if by_input else op.attribute("pads")
    if pads is None or (op.has(3) and op.integers(3) is None):
        raise Opaque("computed pads", f"{op.node} computes its padding while the model runs")
    axes = (op.integers(3) if op.has(3) else None) or tuple(range(len(x)))
    where = "input:1" if by_input else "attribute:pads"
    output: list[Segment] = list(x)
    frozen: list[tuple[Segment, Reason]] = []
    equal, sites = list[tuple[Axis | Segment, Axis | Segment]](), list[Site]()
    for k, along in enumerate(axes):
        along %= len(x)
        low, high = pads[k], pads[k + len(axes)]
        if low == high == 0:
            continue
        segment = x[along]
        plain = op.attribute("mode", "constant") == "constant" and low >= 0 and high >= 0
        if segment.fixed or not plain or segment.size[0] != segment.size[1]:
            output[along] = fixed(f"{op.node.name}{along}", (op.sizes()[along],))[0]
            frozen.append(
                (segment, Reason("padding", op.node.name, f"{op.node} crops it or pads it with its own values"))
            )
            continue
        new = {
            p: product(op.fresh(f"{n}{along}", (m, m)))
            for p, n, m in ((k, "low", low), (k + len(axes), "high", high))
            if m
        }
        y = product(op.fresh(f"pad{along}", op.sizes()[along]))
        parts = (new.get(k), segment, new.get(k + len(axes)))
        output[along] = y
        equal.append((y, total(p for p in parts if p is not None)))
        sites.extend(Site(where, position, axis(p), p.size[0]) for position, p in new.items())
    return Facts((tuple(output),), tuple(equal), sites=tuple(sites), frozen=tuple(frozen), sees=(1, 3))


def _clamp(bound: int, size: int) -> int:
    return min(max(bound + size if bound < 0 else bound, 0), size)


def _parts(start: int, end: int, size: int) -> tuple[tuple[str, int], ...]:
    return (("before", start), ("piece", end - start), ("after", size - end))
