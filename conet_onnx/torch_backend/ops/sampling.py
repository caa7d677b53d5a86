"""Lower operators that take elements from where coordinates say, or put windows and maxima back."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node, Result, has
from conet_onnx.torch_backend.ops.registry import lowers

__all__ = ["compressed", "gridded", "places_of_nonzero", "put_back", "reversed_parts", "summed_windows"]

_MODES = {"linear": "bilinear", "cubic": "bicubic"}  # ONNX's names since opset 20, and torch's


@lowers("GridSample")
def grid_sample(b: Builder, node: Node) -> Result:
    """ONNX GridSample-16, 20: X (N, c, H, W) or (N, c, D, H, W) at points in [-1, 1] of a grid (N, ..., 2 or 3)."""
    mode, corners = node.attributes.get("mode", "linear"), bool(node.attributes.get("align_corners", 0))
    mode, rank = _MODES.get(mode, mode), b.rank(node, node.inputs[0])
    if rank not in (4, 5) or (rank == 5 and mode == "bicubic"):
        raise b.unsupported(node, f"mode {mode!r} on {rank - 2} axes")
    padding = node.attributes.get("padding_mode", "zeros")
    return b.call(F.grid_sample, b.tensor(node.inputs[0]), b.tensor(node.inputs[1]), mode, padding, corners)


@lowers("AffineGrid")
def affine_grid(b: Builder, node: Node) -> Result:
    """ONNX AffineGrid-20: theta (N, 2, 3) or (N, 3, 4) on a grid of a given size (N, c, ...)."""
    corners = bool(node.attributes.get("align_corners", 0))
    return b.call(gridded, b.tensor(node.inputs[0]), b.integers(node, 1), corners)


def gridded(theta: torch.Tensor, size: list[int], corners: bool) -> torch.Tensor:
    """The points to which each point of a grid goes."""
    return F.affine_grid(theta, size, corners)


@lowers("RoiAlign")
def roi_align(b: Builder, node: Node) -> Result:
    """ONNX RoiAlign-10, 16, 22: X (N, C, H, W), boxes (R, 4) as x1, y1, x2, y2, and the image of each."""
    get = node.attributes.get
    if get("mode", "avg") != "avg":
        raise b.unsupported(node, f"mode {get('mode')!r}")
    if not get("sampling_ratio", 0):
        raise b.unsupported(node, "as many samples as the size of a box asks for (sampling_ratio 0)")
    default = "half_pixel" if node.since >= 16 else "output_half_pixel"
    return b.call(
        aligned,
        *(b.tensor(name) for name in node.inputs),
        (get("output_height", 1), get("output_width", 1)),
        samples=get("sampling_ratio"),
        scale=get("spatial_scale", 1.0),
        half_pixel=get("coordinate_transformation_mode", default) == "half_pixel",
    )


def aligned(
    x: torch.Tensor,
    boxes: torch.Tensor,
    images: torch.Tensor,
    size: tuple[int, int],
    *,
    samples: int,
    scale: float,
    half_pixel: bool,
) -> torch.Tensor:
    """The mean of samples x samples points in each cell of each box, between pixels: He et al. (2017,
    arXiv:1703.06870), section 3."""
    n, c, h, w = x.shape
    corners = boxes * scale - (0.5 if half_pixel else 0.0)
    extent = corners[:, 2:] - corners[:, :2]
    extent = extent if half_pixel else extent.clamp(min=1)
    rows, inside_rows = _between(corners[:, 1], extent[:, 1], size[0], samples, h)
    columns, inside_columns = _between(corners[:, 0], extent[:, 0], size[1], samples, w)
    pixels = x.permute(0, 2, 3, 1).reshape(n * h * w, c)
    made = x.new_zeros(())
    for row, near in rows:
        for column, beside in columns:
            at = (images[:, None, None] * h + row[:, :, None]) * w + column[:, None, :]
            made = made + pixels[at] * (near[:, :, None] * beside[:, None, :])[..., None]
    made = made * (inside_rows[:, :, None] & inside_columns[:, None, :])[..., None]
    cells = made.reshape(len(boxes), size[0], samples, size[1], samples, c)
    return cells.mean((2, 4)).permute(0, 3, 1, 2)


Points = list[tuple[torch.Tensor, torch.Tensor]]  # of pixels along one axis, and how much of each counts


def _between(
    start: torch.Tensor, extent: torch.Tensor, cells: int, samples: int, size: int
) -> tuple[Points, torch.Tensor]:
    """The two pixels around each point along one axis, [boxes, points], and whether it is near the image at all."""
    count = cells * samples
    places = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    at = start[:, None] + places * extent[:, None]
    inside = (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    first = at.detach().floor().long()
    second = (first + 1).clamp(max=size - 1)
    beyond = at - first
    return [(first, 1 - beyond), (second, beyond)], inside


@lowers("MaxUnpool")
def max_unpool(b: Builder, node: Node) -> Result:
    """ONNX MaxUnpool-9: elements to their places in the output, counted over all its axes; zeros elsewhere."""
    kernel = tuple(node.attributes["kernel_shape"])
    strides = tuple(node.attributes.get("strides") or (1,) * len(kernel))
    pads = tuple(node.attributes.get("pads") or (0,) * 2 * len(kernel))
    size = b.integers(node, 2) if has(node, 2) else None
    return b.call(put_back, b.tensor(node.inputs[0]), b.tensor(node.inputs[1]), kernel, strides, pads, size)


def put_back(
    x: torch.Tensor,
    places: torch.Tensor,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    size: list[int] | None,
) -> torch.Tensor:
    """Maxima [N, c, ...] to their places in what they are the maxima of, or in an output of a given size."""
    rank = len(kernel)
    own = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], strides, kernel, strict=True)]
    own = [n - p - e for n, p, e in zip(own, pads[:rank], pads[rank:], strict=True)]
    shape = [*x.shape[:2], *own]
    made = x.new_zeros(torch.Size(shape).numel()).scatter(0, places.flatten(), x.flatten()).reshape(shape)
    if size is None:
        return made
    return F.pad(made, [more for n, m in zip(size[:1:-1], own[::-1], strict=True) for more in (0, n - m)])


@lowers("Col2Im")
def col2im(b: Builder, node: Node) -> Result:
    """ONNX Col2Im-18: blocks (N, c·block, L) to their places in an image, added up where they meet."""
    image, block = b.setting(node, 1, "the image's shape"), b.setting(node, 2, "the block's shape")
    if image is None or block is None or len(image) != 2:
        raise b.unsupported(node, "an image of other than two axes")
    ones = (1, 1)
    strides, dilations = (tuple(node.attributes.get(name) or ones) for name in ("strides", "dilations"))
    pads = tuple(node.attributes.get("pads") or (0,) * 4)
    sizes: Any = tuple(image.tolist()), tuple(block.tolist())
    return b.call(summed_windows, b.tensor(node.inputs[0]), *sizes, strides, dilations, pads)


def summed_windows(
    x: torch.Tensor,
    image: tuple[int, int],
    block: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> torch.Tensor:
    """Windows, added up in an image; what falls on the padding is cut off."""
    top, left, bottom, right = pads
    padded = (image[0] + top + bottom, image[1] + left + right)
    made = F.fold(x, padded, block, dilations, stride=strides)
    return made[..., top : top + image[0], left : left + image[1]]


@lowers("NonZero")
def non_zero(b: Builder, node: Node) -> Result:
    """ONNX NonZero-9, 13: the places of elements that are not zero, (rank, count), in the order of the elements."""
    return b.call(places_of_nonzero, b.tensor(node.inputs[0]))


def places_of_nonzero(x: torch.Tensor) -> torch.Tensor:
    """One column a place."""
    return torch.nonzero(x).t()


@lowers("Compress")
def compress(b: Builder, node: Node) -> Result:
    """ONNX Compress-9, 11: the slices along an axis, or the elements, where a condition holds; it may be shorter."""
    x, condition = (b.tensor(name) for name in node.inputs)
    return b.call(compressed, x, condition, node.attributes.get("axis"))


def compressed(x: torch.Tensor, condition: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Without an axis, of the elements in a row."""
    places = torch.nonzero(condition).flatten()
    return x.flatten()[places] if axis is None else x.index_select(axis, places)


@lowers("ReverseSequence")
def reverse_sequence(b: Builder, node: Node) -> Result:
    """ONNX ReverseSequence-10: the first steps of each sample backwards, as many as its length says."""
    time, batch = node.attributes.get("time_axis", 0), node.attributes.get("batch_axis", 1)
    return b.call(reversed_parts, b.tensor(node.inputs[0]), b.tensor(node.inputs[1]), time, batch)


def reversed_parts(x: torch.Tensor, lengths: torch.Tensor, time: int, batch: int) -> torch.Tensor:
    """Time and batch are the first two axes, in either order."""
    steps = torch.arange(x.size(time), device=x.device)
    ends = lengths.long()[:, None]
    places = torch.where(steps < ends, ends - 1 - steps, steps)  # [batch, time]
    places = places if time > batch else places.t()
    return torch.take_along_dim(x, places.reshape(*places.shape, *[1] * (x.dim() - 2)), time)
