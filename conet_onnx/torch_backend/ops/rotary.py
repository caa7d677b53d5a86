"""Lower RotaryEmbedding, ONNX's and onnxruntime's: the numbers of a head are turned in pairs, by position."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from conet_onnx.contrib import DOMAIN
from conet_onnx.torch_backend.building import Builder, Node, Result, has
from conet_onnx.torch_backend.ops.registry import lowers

__all__ = ["in_heads", "offset_places", "out_of_heads", "rotated", "rows_of"]


@lowers("RotaryEmbedding")
def rotary_embedding(b: Builder, node: Node) -> Result:
    """ONNX RotaryEmbedding-23: X (N, S, h·d) or (N, h, S, d); tables by position, or a row for each token."""
    x, cosines, sines = (b.tensor(name) for name in node.inputs[:3])
    if has(node, 3):
        places = b.tensor(node.inputs[3])
        cosines, sines = (b.call(rows_of, table, places) for table in (cosines, sines))
    return _turned(b, node, x, cosines, sines, node.attributes.get("num_heads", 0))


@lowers("RotaryEmbedding", domain=DOMAIN)
def rotary_embedding_by_place(b: Builder, node: Node) -> Result:
    """com.microsoft RotaryEmbedding: the tables are always by position; one position is that of the first token."""
    if node.attributes.get("is_packed_batching", 0):
        raise b.unsupported(node, "samples of different lengths in one batch (is_packed_batching)")
    if node.attributes.get("scale", 1.0) != 1:
        raise b.unsupported(node, f"a scale of {node.attributes['scale']}")
    x, places, cosines, sines = (b.tensor(name) for name in node.inputs)
    flat = b.rank(node, node.inputs[0]) == 3
    if b.rank(node, node.inputs[1]) == 1:
        places = b.call(offset_places, places, b.fx.call_method("size", (x, 1 if flat else 2)))
    heads = node.attributes.get("num_heads", 0)
    if flat and not node.attributes.get("rotary_embedding_dim", 0):  # then a head is as large as the tables say
        half, hidden = b.shape(node, node.inputs[2])[1], b.shape(node, node.inputs[0])[2]
        if half is None or hidden is None:
            raise b.unsupported(node, "the size of a head varies")
        heads = hidden // (2 * half)
    cosines, sines = (b.call(rows_of, table, places) for table in (cosines, sines))
    return _turned(b, node, x, cosines, sines, heads)


def _turned(b: Builder, node: Node, x: fx.Node, cosines: fx.Node, sines: fx.Node, heads: Any) -> fx.Node:
    interleaved = bool(node.attributes.get("interleaved", 0))
    if b.rank(node, node.inputs[0]) == 4:
        return b.call(rotated, x, cosines, sines, interleaved)
    if not heads:
        raise b.unsupported(node, "three axes and no num_heads")
    return b.call(out_of_heads, b.call(rotated, b.call(in_heads, x, heads), cosines, sines, interleaved))


def in_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[N, S, h·d] as [N, h, S, d]."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def out_of_heads(x: torch.Tensor) -> torch.Tensor:
    """[N, h, S, d] as [N, S, h·d]."""
    return x.transpose(1, 2).flatten(2)


def rows_of(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rows of a table [P, r] by position [N, S]: [N, S, r]."""
    made: torch.Tensor = table[places.long()]
    return made


def offset_places(first: torch.Tensor, length: int) -> torch.Tensor:
    """The positions [1, S] of tokens that follow each other, given the first one's [1]."""
    return (first + torch.arange(length, device=first.device))[None]


def rotated(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """The first 2·r numbers of each head turned by angles, in pairs: neighbours, or one of each half.

    x: [N, h, S, d]; cosines and sines: [N or 1, S, r].
    """
    cosines, sines, size = cosines[:, None], sines[:, None], 2 * cosines.size(-1)
    pairs = x[..., :size].reshape(*x.shape[:-1], *((-1, 2) if interleaved else (2, -1)))
    first, second = (pairs if interleaved else pairs.mT).unbind(-1)
    turned = torch.stack((cosines * first - sines * second, sines * first + cosines * second), -1)
    made = (turned if interleaved else turned.mT).flatten(-2)
    return made if size == x.size(-1) else torch.cat((made, x[..., size:]), -1)
