"""Lower Resize and Upsample: torch's interpolation where it provably is the same, else coordinates as ONNX has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node, Result, has
from conet_onnx.torch_backend.ops.registry import lowers

__all__ = ["resize_cubic", "resize_linear", "resize_nearest"]

HALF = 1e-6
_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


@dataclass(frozen=True, slots=True)
class _Request:
    """What is resized: sizes or else scales, for all axes after the first two; `whole`: sizes of all axes, since it is
    not known that the first two stay as they are."""

    mode: str
    coordinates: str
    rounding: str
    sizes: list[int | fx.Node] | None
    scales: list[float] | None
    whole: bool = False


@lowers("Resize", "Upsample")
def resize(b: Builder, node: Node) -> Result:
    """Nearest, linear and cubic, over the axes after the first two."""
    x, name = b.tensor(node.inputs[0]), node.inputs[0]
    rank = b.rank(node, name)
    if rank not in _LINEAR:
        raise b.unsupported(node, f"{rank} axes")
    request = _request(b, node)
    sizes = b.graph.sizes(name)
    if sizes is not None and sizes == b.graph.sizes(node.outputs[0]):
        return x  # as onnxruntime, even where a scale like 1.1 says otherwise
    if request.mode == "nearest":
        return _nearest(b, node, x, request)
    if request.mode == "linear":
        return _linear(b, node, x, request)
    return _cubic(b, node, x, request, rank)


def _nearest(b: Builder, node: Node, x: fx.Node, request: _Request) -> fx.Node:
    scales = request.scales or _static_scales(b, node)
    doubling = scales is not None and all(s >= 1 and _is_power(s) for s in scales)
    if doubling and not request.whole and (request.coordinates, request.rounding) == ("asymmetric", "floor"):
        # Powers of two are exact in floating point, so torch's source indices are ONNX's.
        return b.call(F.interpolate, x, scale_factor=scales, mode="nearest")
    return b.call(resize_nearest, x, request.sizes, request.scales, request.coordinates, request.rounding)


def _linear(b: Builder, node: Node, x: fx.Node, request: _Request) -> fx.Node:
    mode = _LINEAR[b.rank(node, node.inputs[0])]
    if request.coordinates == "align_corners" and request.sizes is not None and not request.whole:
        return b.call(F.interpolate, x, size=tuple(request.sizes), mode=mode, align_corners=True)
    half_pixel = request.coordinates == "half_pixel" or _never_one(b, node, request)
    if half_pixel and request.scales is not None and all(map(_is_power, request.scales)):
        return b.call(F.interpolate, x, scale_factor=request.scales, mode=mode, align_corners=False)
    coordinates = "half_pixel" if half_pixel else request.coordinates
    return b.call(resize_linear, x, request.sizes, request.scales, coordinates)


def _cubic(b: Builder, node: Node, x: fx.Node, request: _Request, rank: int) -> fx.Node:
    plain = node.attributes.get("cubic_coeff_a", -0.75) == -0.75 and not node.attributes.get("exclude_outside", 0)
    corners = request.coordinates == "align_corners"
    exact = request.coordinates == "half_pixel" or corners or _never_one(b, node, request)
    if rank != 4 or not plain or not exact or not (request.sizes is not None or _is_plain(request.scales)):
        raise b.unsupported(node, f"cubic interpolation with these settings ({request.coordinates})")
    if request.sizes is not None and request.whole:
        return b.call(resize_cubic, x, request.sizes, corners=corners)
    if request.sizes is not None:
        return b.call(F.interpolate, x, size=tuple(request.sizes), mode="bicubic", align_corners=corners)
    return b.call(F.interpolate, x, scale_factor=request.scales, mode="bicubic", align_corners=False)


def resize_nearest(
    x: torch.Tensor, sizes: Sequence[int] | None, scales: Sequence[float] | None, coordinates: str, rounding: str
) -> torch.Tensor:
    """Take along each axis what its rounded source coordinate says."""
    targets = _targets(x, sizes, scales)
    for axis, (size, scale) in enumerate(targets, x.dim() - len(targets)):
        if size == x.shape[axis] and scale == 1:
            continue
        source = _source(size, scale, x.shape[axis], coordinates, x.device)
        index = _ROUND[rounding](source).clamp(0, x.shape[axis] - 1).long()
        x = x.index_select(axis, index)
    return x


def resize_linear(
    x: torch.Tensor, sizes: Sequence[int] | None, scales: Sequence[float] | None, coordinates: str
) -> torch.Tensor:
    """Mix along each axis the two neighbours of its source coordinate; beyond the ends, the end.

    Torch multiplies by 1 / scale, which float32 rounds for scales like 1.25; ONNX divides by the scale. At 160 pixels
    that is 1e-5 of a pixel, which a detector's later layers see. For powers of two both are exact, and torch is faster.
    """
    targets = _targets(x, sizes, scales)
    first = x.dim() - len(targets)
    exact = all(_is_power(s) and size == n * s for (size, s), n in zip(targets, x.shape[first:], strict=True))
    if exact and coordinates == "half_pixel" and all(scale == 1 for _, scale in targets[: 2 - first]):
        return F.interpolate(x, [size for size, _ in targets[2 - first :]], mode=_LINEAR[x.dim()], align_corners=False)
    for axis, (size, scale) in enumerate(targets, first):
        if size == x.shape[axis] and scale == 1:
            continue
        last = x.shape[axis] - 1
        source = _source(size, scale, x.shape[axis], coordinates, x.device).clamp(0, last)
        low = source.floor().long()
        share = (source - low).to(x.dtype).reshape(-1, *[1] * (x.dim() - 1 - axis))
        x = torch.lerp(x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=last)), share)
    return x


def resize_cubic(x: torch.Tensor, sizes: Sequence[int], *, corners: bool) -> torch.Tensor:
    """To these sizes [batch, channels, height, width], of which the first two must be those of x: ValueError, else.

    Onnxruntime has no cubic interpolation over other axes either.
    """
    if tuple(sizes[:2]) != x.shape[:2]:
        raise ValueError(f"cubic interpolation of {tuple(x.shape)} to {tuple(sizes)}: the first two sizes must stay")
    return F.interpolate(x, tuple(sizes[2:]), mode="bicubic", align_corners=corners)


def _round(source: torch.Tensor, prefer: int) -> torch.Tensor:
    """To the nearest; halves, which float32 hits to within 1e-6 as in onnxruntime, go down (0) or up (1)."""
    low = source.floor()
    half = (source.double() - low - 0.5).abs() <= HALF
    return torch.where(half, low + prefer, (source + 0.5).floor())


_ROUND: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round_prefer_floor": partial(_round, prefer=0),
    "round_prefer_ceil": partial(_round, prefer=1),
}


def _targets(x: torch.Tensor, sizes: Sequence[int] | None, scales: Sequence[float] | None) -> list[tuple[int, float]]:
    """(output size, scale) of each axis that may be resized; the scale that is given, else the ratio of sizes."""
    if sizes is not None:
        return [(size, size / n) for size, n in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    assert scales is not None
    return [(math.floor(np.float32(n) * np.float32(s)), s) for s, n in zip(scales, x.shape[2:], strict=True)]


def _source(size: int, scale: float, original: int, coordinates: str, device: torch.device) -> torch.Tensor:
    """Where each output element comes from (ONNX Resize, coordinate_transformation_mode), in float32."""
    at = torch.arange(size, dtype=torch.float32, device=device)
    ratio = torch.tensor(scale, dtype=torch.float32, device=device)
    if coordinates == "asymmetric":
        return at / ratio
    if coordinates == "align_corners":
        return at * (original - 1) / (size - 1) if size > 1 else at * 0
    if coordinates == "pytorch_half_pixel" and size == 1:
        return at * 0
    return (at + 0.5) / ratio - 0.5


def _request(b: Builder, node: Node) -> _Request:
    """What the node asks for. Raises UnsupportedOp for all that is not understood to the letter."""
    attributes = node.attributes
    mode = attributes.get("mode", "nearest")
    old = node.op == "Upsample" or node.since < 11
    coordinates = "asymmetric" if old else attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else attributes.get("nearest_mode", "round_prefer_floor")
    if mode not in ("nearest", "linear", "cubic") or coordinates not in _COORDINATES or rounding not in _ROUND:
        raise b.unsupported(node, f"mode {mode!r}, coordinates {coordinates!r}, rounding {rounding!r}")
    if attributes.get("antialias", 0) or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise b.unsupported(node, "antialias or keep_aspect_ratio_policy")
    if not old and has(node, 3):
        sizes, whole = _sizes(b, node)
        return _Request(mode, coordinates, rounding, sizes, None, whole)
    scales = _spatial_scales(b, node)
    if old and node.op == "Resize" and mode == "nearest" and min(scales) < 1:
        raise b.unsupported(node, "the rounding of nearest downsampling is not specified before opset 11")
    if coordinates == "align_corners":
        # Depends on sizes alone, which follow from the scales.
        fixed = b.shape(node, node.outputs[0])[2:]
        if None in fixed:
            raise b.unsupported(node, "align_corners with scales of an input whose size varies")
        return _Request(mode, coordinates, rounding, [size for size in fixed if size is not None], None)
    return _Request(mode, coordinates, rounding, None, scales)


def _sizes(b: Builder, node: Node) -> tuple[list[int | fx.Node], bool]:
    """Of the axes after the first two, or of all where these may not stay as they are, and whether it is so."""
    rank = b.rank(node, node.inputs[0])
    before, after = b.graph.sizes(node.inputs[0]), b.graph.sizes(node.outputs[0])
    sizes: list[int | fx.Node] = [b.size(node.inputs[0], axis) for axis in range(rank)]
    for axis, size in zip(_axes(node, rank), b.integers(node, 3), strict=True):
        sizes[axis] = size
    whole = before is None or after is None or before[:2] != after[:2]
    return sizes if whole else sizes[2:], whole


def _spatial_scales(b: Builder, node: Node) -> list[float]:
    rank = b.rank(node, node.inputs[0])
    index = 1 if node.op == "Upsample" or node.since < 11 else 2
    given: Any = node.attributes.get("scales")
    if given is None:
        found = b.setting(node, index, "the scales")
        given = None if found is None else found.flatten().tolist()
    if given is None:
        raise b.unsupported(node, "neither scales nor sizes")
    scales = [1.0] * rank
    for axis, scale in zip(_axes(node, rank), given, strict=True):
        scales[axis] = float(scale)
    if scales[:2] != [1.0, 1.0]:
        raise b.unsupported(node, f"the first two axes are resized, scales {scales}")
    return scales[2:]


def _axes(node: Node, rank: int) -> list[int]:
    return [axis % rank for axis in node.attributes.get("axes") or range(rank)]


def _static_scales(b: Builder, node: Node) -> list[float] | None:
    """Ratios of fixed sizes."""
    before, after = b.graph.shape(node.inputs[0]), b.graph.shape(node.outputs[0])
    if before is None or after is None:
        return None
    pairs = [(n, m) for n, m in zip(before[2:], after[2:], strict=True) if n is not None and m is not None]
    return [m / n for n, m in pairs] if len(pairs) == len(before[2:]) else None


def _is_power(scale: float) -> bool:
    """Of two: products and quotients with it are exact."""
    return math.frexp(scale)[0] == 0.5


def _is_plain(scales: Sequence[float] | None) -> bool:
    """Whether torch makes of these scales what ONNX does.

    Their products with sizes must be exact in float32 as in double, and none may leave a size as it is, or torch copies
    that axis.
    """
    return scales is not None and all(s == 1 or ((s >= 2 or s <= 0.5) and (16 * s).is_integer()) for s in scales)


def _never_one(b: Builder, node: Node, request: _Request) -> bool:
    """pytorch_half_pixel is half_pixel, except where an output has size one."""
    shape = b.graph.shape(node.outputs[0])
    known = shape is not None and all(size is not None and size != 1 for size in shape[2:])
    return request.coordinates == "pytorch_half_pixel" and known
