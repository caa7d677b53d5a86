"""Attention blocks over sequences [N, T, C]: fused or not, grouped queries, turned by position, masked, across."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from strategies.blocks import normalised
from strategies.tokens import MixedNetwork, TokenStep, counted, linear, residual

__all__ = ["STEPS"]

FAR = -1e4


def attend(net: MixedNetwork, x: str) -> str:
    """Heads of queries, keys and values of the same tokens."""
    chance = net.chance
    h, d = chance.choice((1, 2, 2, 3)), chance.choice((2, 4))
    y = normalised(net, x) if chance.random() < 0.5 else x
    q, k, v = chance.choice((_separate, _separate, _at_once, _by_head, _split_first))(net, y, h, d)
    if chance.random() < 0.3:
        q, k = _turned(net, y, q, k)
    return residual(net, x, _mixed(net, y, q, k, v, causal=chance.random() < 0.4))


def across(net: MixedNetwork, x: str) -> str | None:
    """Queries of these tokens; keys and values of others."""
    chance = net.chance
    memory = chance.choice(net.tokens)
    h, d = chance.choice((1, 2)), chance.choice((2, 3))
    q = _heads(net, linear(net, x, h * d), h)
    k, v = (_heads(net, linear(net, memory, h * d), h) for _ in range(2))
    return residual(net, x, _mixed(net, x, q, k, v, causal=False))


def grouped(net: MixedNetwork, x: str) -> str:
    """Several heads of queries share one of keys and values, which is repeated, or broadcast."""
    b, chance = net.b, net.chance
    n, t, _ = b.shapes[x]
    kv, g, d = chance.choice((1, 2)), chance.choice((2, 3)), chance.choice((2, 4))
    y = normalised(net, x) if chance.random() < 0.5 else x
    q = _heads(net, linear(net, y, kv * g * d), kv * g)
    k, v = (_heads(net, linear(net, y, kv * d), kv) for _ in range(2))
    if chance.random() < 0.5:
        q, k = _turned(net, y, q, k)
    if chance.random() < 0.7:
        k, v = (_repeated(net, z, g) for z in (k, v))
        return residual(net, x, _mixed(net, y, q, k, v, causal=chance.random() < 0.5))
    q = b.view(q, (n, kv, g, t, d), {0: 0, 3: 2} if b.length else {0: 0})
    scores = _scaled(net, q, b.transpose(b.unsqueeze(k, [2]), (0, 1, 2, 4, 3)), (n, kv, g, t, t))
    seen = b.node(
        "MatMul", [b.node("Softmax", [scores], (n, kv, g, t, t), axis=-1), b.unsqueeze(v, [2])], (n, kv, g, t, d)
    )
    flat = b.view(b.transpose(seen, (0, 3, 1, 2, 4)), (n, t, kv * g * d), {0: 0, 1: 1})
    return residual(net, x, linear(net, flat, b.shapes[x][2]))


# Projections: [N, T, C] as queries, keys and values [N, h, T, d]


def _heads(net: MixedNetwork, x: str, h: int) -> str:
    b = net.b
    n, t, c = b.shapes[x]
    return b.transpose(b.view(x, (n, t, h, c // h), {0: 0, 1: 1}), (0, 2, 1, 3))


def _separate(net: MixedNetwork, x: str, h: int, d: int) -> list[str]:
    """Three layers; values may be of another size."""
    sizes = (d, d, net.chance.choice((d, 3)))
    return [_heads(net, linear(net, x, h * size), h) for size in sizes]


def _at_once(net: MixedNetwork, x: str, h: int, d: int) -> list[str]:
    """One layer for all three, which stand outermost: [N, T, 3, h, d], as in timm."""
    b = net.b
    n, t, _ = b.shapes[x]
    apart = b.view(linear(net, x, 3 * h * d), (n, t, 3, h, d), {0: 0, 1: 1})
    turned = b.transpose(apart, (2, 0, 3, 1, 4))
    if net.chance.random() < 0.5:
        return [b.node("Gather", [turned, b.weight(np.array(k))], (n, h, t, d), axis=0) for k in range(3)]
    return [b.squeeze(part, [0]) for part in b.split(turned, 0, [1, 1, 1])]


def _by_head(net: MixedNetwork, x: str, h: int, d: int) -> list[str]:
    """One layer for all three, which stand inside of each head: [N, T, h, 3·d]."""
    b = net.b
    n, t, _ = b.shapes[x]
    apart = b.transpose(b.view(linear(net, x, 3 * h * d), (n, t, h, 3 * d), {0: 0, 1: 1}), (0, 2, 1, 3))
    return b.split(apart, 3, [d, d, d])


def _split_first(net: MixedNetwork, x: str, h: int, d: int) -> list[str]:
    """One layer, split before the heads are told apart, as in GPT-2."""
    return [_heads(net, part, h) for part in net.b.split(linear(net, x, 3 * h * d), 2, [h * d] * 3)]


def _repeated(net: MixedNetwork, x: str, g: int) -> str:
    """[N, kv, T, d] as [N, kv·g, T, d]: Unsqueeze, Expand, Reshape."""
    b = net.b
    n, kv, t, d = b.shapes[x]
    sizes = b.computed(x, (n, kv, g, t, d), {0: 0, 1: 1, 3: 2, 4: 3} if net.chance.random() < 0.5 else {0: 0, 3: 2})
    wide = b.expand(b.unsqueeze(x, [2]), sizes, (n, kv, g, t, d))
    return b.view(wide, (n, kv * g, t, d), {0: 0, 2: 3} if b.length else {0: 0})


def _turned(net: MixedNetwork, x: str, q: str, k: str) -> tuple[str, str]:
    """Queries and keys turned by position, in halves: y·cos + (-second half, first half)·sin."""
    b = net.b
    t, d = b.shapes[x][1], b.shapes[q][3]
    place = b.unsqueeze(b.node("Cast", [counted(net, x)], (t,), to=TensorProto.FLOAT), [1])
    half = b.node("Mul", [place, b.weight(3.0 ** -np.arange(d // 2, dtype=np.float32))], (t, d // 2))
    angles = b.node("Concat", [half, half], (t, d), axis=-1)
    cosine, sine = (b.node(op, [angles], (t, d)) for op in ("Cos", "Sin"))

    def one(y: str) -> str:
        shape = b.shapes[y]
        first, second = b.slice(y, 3, 0, d // 2), b.slice(y, 3, d // 2, d)
        other = b.node("Concat", [b.node("Neg", [second], b.shapes[second]), first], shape, axis=-1)
        parts = b.node("Mul", [y, cosine], shape), b.node("Mul", [other, sine], shape)
        return b.node("Add", list(parts), shape)

    return one(q), one(k)


# Scores


def _mixed(net: MixedNetwork, x: str, q: str, k: str, v: str, *, causal: bool) -> str:
    """Softmax of the scores, times the values, heads side by side, and a layer over them."""
    b = net.b
    (n, h, t, _), (_, _, s, size) = b.shapes[q], b.shapes[v]
    scores = _scaled(net, q, b.transpose(k, (0, 1, 3, 2)), (n, h, t, s))
    if causal and t == s:
        scores = _hidden(net, x, scores)
    weights = b.node("Softmax", [scores], (n, h, t, s), axis=net.chance.choice((-1, 3)))
    seen = b.transpose(b.node("MatMul", [weights, v], (n, h, t, size)), (0, 2, 1, 3))
    return linear(net, b.view(seen, (n, t, h * size), {0: 0, 1: 1}), b.shapes[x][2])


def _scaled(net: MixedNetwork, q: str, k: str, shape: tuple[int, ...]) -> str:
    """The products of queries and turned keys, with the scale before or after, or computed from the size."""
    b, way, d = net.b, net.chance.randrange(4), net.b.shapes[q][-1]
    if way == 0:
        return b.node("Div", [b.node("MatMul", [q, k], shape), b.weight(np.array(d**0.5, np.float32))], shape)
    if way == 1:
        rank = len(b.shapes[q])
        sizes = b.node("Shape", [q], (rank,))
        bounds = [b.integers([rank - 1]), b.integers([rank])]
        size = b.node("Cast", [b.node("Slice", [sizes, *bounds], (1,))], (1,), to=TensorProto.FLOAT)
        return b.node("Div", [b.node("MatMul", [q, k], shape), b.node("Sqrt", [size], (1,))], shape)
    if way == 2:
        both = [b.node("Mul", [y, b.weight(np.array(d**-0.25, np.float32))], b.shapes[y]) for y in (q, k)]
        return b.node("MatMul", both, shape)
    q = b.node("Mul", [q, b.weight(np.array(d**-0.5, np.float32))], b.shapes[q])
    return b.node("MatMul", [q, k], shape)


def _hidden(net: MixedNetwork, x: str, scores: str) -> str:
    """Scores of what comes later are hidden: by a stored triangle, or by comparing positions."""
    b, shape = net.b, net.b.shapes[scores]
    t = shape[-1]
    if not b.length and net.chance.random() < 0.5:
        later = np.triu(np.ones((t, t), np.float32), 1)
        if net.chance.random() < 0.5:
            return b.node("Add", [scores, b.weight(later * np.float32(FAR))], shape)
        return b.node("Where", [b.weight(later > 0), b.weight(np.array(FAR, np.float32)), scores], shape)
    places = counted(net, x)
    columns, rows = b.unsqueeze(places, [0]), b.unsqueeze(places, [1])
    later = b.node("Less", [rows, columns], (t, t))
    return b.node("Where", [later, b.weight(np.array(FAR, np.float32)), scores], shape)


STEPS: list[tuple[TokenStep, float]] = [(attend, 5), (across, 1.5), (grouped, 2)]
