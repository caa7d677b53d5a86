"""Random networks that hold sequences [N, T, C] beside maps: words and positions, layers over tokens, heads."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from strategies.blocks import normalised
from strategies.images import Network, Step

__all__ = ["FROM_MAPS", "STEPS", "MixedNetwork", "TokenStep", "counted", "linear", "residual"]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTH = 16  # the size that the analysis assumes for a symbolic axis of integers
LONGEST = 24  # rows of a table of positions
WORDS = 7


class MixedNetwork(Network):
    """A network that starts from words or from an image; maps may become sequences, and sequences maps."""

    def __init__(
        self,
        chance: random.Random,
        steps: int | None,
        on_maps: list[tuple[Step, float]],
        on_tokens: list[tuple[TokenStep, float]],
    ) -> None:
        super().__init__(chance, steps)
        self.on_maps, self.on_tokens = on_maps, on_tokens
        self.tokens: list[str] = []
        self.matrices: list[tuple[str, int, int]] = []  # weights that another layer may read too: name, inputs, outputs
        self.words: str | None = None  # the table of words, which the head may be tied to
        self.taken: set[Any] = set()  # the steps that have made something

    def build(self) -> onnx.ModelProto:
        b, chance = self.b, self.chance
        if chance.random() < 0.5:
            self.tokens.append(self._embedded())
        else:
            sides = chance.choice(((4, 4), (4, 4), (3, 5), (5, 4), (3, 3)))
            self.pool.append(self.convolve(b.input("x", (b.batch, chance.randrange(1, 5), *sides))))
        for _ in range(self.steps):
            over_tokens = bool(self.tokens) and (not self.pool or chance.random() < 0.5)
            steps: Any = self.on_tokens if over_tokens else self.on_maps
            step = chance.choices([s for s, _ in steps], [w for _, w in steps])[0]
            made = step(self, self.token() if over_tokens else self.pick())
            self.taken |= {step} if made else set()
            for name in [made] if isinstance(made, str) else made or []:
                (self.tokens if len(b.shapes[name]) == 3 else self.pool).append(name)
        ends = [self._token_head()] if self.tokens else []
        return b.model([*ends, *(self.head() if self.pool else [])])

    def token(self) -> str:
        """A sequence; mostly the latest."""
        return self.tokens[-1] if self.chance.random() < 0.7 else self.chance.choice(self.tokens)

    def _embedded(self) -> str:
        b, chance = self.b, self.chance
        if b.dynamic and chance.random() < 0.6:
            b.length = LENGTH
        t, c = b.length or chance.randrange(2, 6), chance.choice((2, 4, 6))
        ids = b.ids("ids", (b.batch, t))
        self.words = b.weight(b.floats(WORDS, c))
        x = b.node("Gather", [self.words, ids], (b.batch, t, c))
        if chance.random() < 0.7:
            x = b.node("Add", [x, positions(self, x)], b.shapes[x])
        return normalised(self, x) if chance.random() < 0.5 else x

    def _token_head(self) -> str:
        """Words from words, by the same table or another; or one vector for the whole sequence."""
        b, chance, x = self.b, self.chance, self.tokens[-1]
        n, t, c = b.shapes[x]
        if self.words and chance.random() < 0.5:
            width = b.shapes[self.words][1]
            x = x if c == width and chance.random() < 0.7 else linear(self, x, width)
            return b.node("MatMul", [x, b.transpose(self.words, (1, 0))], (n, t, WORDS))
        way = chance.randrange(4)
        if way == 0:
            return linear(self, x, 3)
        if way == 1:
            pooled = b.mean(x, [1], keep=False)
        elif way == 2 or b.length:
            pooled = b.node("Gather", [x, b.weight(np.array(0, np.int64))], (n, c), axis=1)
        else:
            pooled = b.view(x, (n, t * c), {0: 0})
        return self.dense(pooled, 3)


TokenStep = Callable[[MixedNetwork, str], "str | list[str] | None"]


# What steps are made of


def linear(net: MixedNetwork, x: str, o: int, *, bias: bool | None = None) -> str:
    """A dense layer over the last axis, sometimes with another layer's weight, sometimes over flattened tokens."""
    b, chance = net.b, net.chance
    *outer, c = b.shapes[x]
    known = [name for name, i, made in net.matrices if (i, made) == (c, o)]
    bias = chance.random() < 0.6 if bias is None else bias
    if len(outer) == 2 and chance.random() < 0.15:
        n, t = outer
        flat = b.node("Reshape", [x, b.integers([-1, c])], (n * t, c))
        made = net.dense(flat, o)
        return b.node("Reshape", [made, b.computed(x, (n, t, o), {0: 0, 1: 1})], (n, t, o))
    if known and chance.random() < 0.3:
        weight = chance.choice(known)
    else:
        weight = b.disguised(b.floats(c, o, scale=1.2 / np.sqrt(c)))
        net.matrices.append((weight, c, o))
    made = b.node("MatMul", [x, weight], (*outer, o))
    return b.node("Add", [net.vector(o), made], (*outer, o)) if bias else made


def residual(net: MixedNetwork, x: str, y: str) -> str:
    """y, added to x as wide as x; sometimes scaled, sometimes alone."""
    b, chance = net.b, net.chance
    shape = b.shapes[x]
    if chance.random() < 0.2:
        return y
    if b.shapes[y] != shape:
        y = linear(net, y, shape[-1])
    if chance.random() < 0.2:
        y = b.node("Mul", [y, net.vector(shape[-1])], shape)
    return b.node("Add", [x, y], shape)


def counted(net: MixedNetwork, x: str) -> str:
    """The positions 0, 1, ... of a sequence, counted while the model runs."""
    b = net.b
    t = b.shapes[x][1]
    sizes = b.node("Shape", [x], (len(b.shapes[x]),))
    length = b.node("Gather", [sizes, b.weight(np.array(1, np.int64), plain=True)], (), axis=0)
    ends = [b.weight(np.array(k, np.int64), plain=True) for k in (0, 1)]
    return b.node("Range", [ends[0], length, ends[1]], (t,))


def positions(net: MixedNetwork, x: str) -> str:
    """What is added to each place: a table as long as the sequence, or rows of a longer one."""
    b, chance = net.b, net.chance
    _, t, c = b.shapes[x]
    way = chance.randrange(3)
    if way == 0 and not b.length:
        return b.weight(b.floats(1, t, c, scale=0.5))
    table = b.weight(b.floats(LONGEST, c, scale=0.5), plain=True)
    if way == 1 or not b.length:
        return b.node("Gather", [table, counted(net, x)], (t, c))
    sizes = b.node("Shape", [x], (3,))
    bounds = [b.integers([1]), b.integers([2])]
    end = b.node("Slice", [sizes, *bounds], (1,))
    return b.node("Slice", [table, b.integers([0]), end, b.integers([0])], (t, c))


# Steps: each takes a sequence and returns what it makes


def norm(net: MixedNetwork, x: str) -> str:
    return normalised(net, x)


def feed_forward(net: MixedNetwork, x: str) -> str:
    """Two layers with something between: gated or not, the gate's weight its own or fused with the other."""
    b, chance = net.b, net.chance
    *outer, _ = b.shapes[x]
    y = normalised(net, x) if chance.random() < 0.5 else x
    o = chance.randrange(2, 7)
    way = chance.randrange(3)
    if way == 0:
        y = activated(net, linear(net, y, o))
    else:
        if way == 1:
            gate, up = linear(net, y, o), linear(net, y, o)
        else:
            gate, up = b.split(linear(net, y, 2 * o), 2, [o, o])
        y = b.node("Mul", [activated(net, gate), up], (*outer, o))
    return residual(net, x, linear(net, y, b.shapes[x][-1]))


def activated(net: MixedNetwork, x: str) -> str:
    """Gelu written out, SiLU, or a plain function."""
    b, way, shape = net.b, net.chance.randrange(4), net.b.shapes[x]
    if way == 0:
        half, root, one = (b.weight(np.array(v, np.float32)) for v in (0.5, np.sqrt(2), 1.0))
        y = b.node("Add", [b.node("Erf", [b.node("Div", [x, root], shape)], shape), one], shape)
        return b.node("Mul", [b.node("Mul", [x, y], shape), half], shape)
    if way == 1:
        return b.node("Mul", [x, b.node("Sigmoid", [x], shape)], shape)
    if way == 2 and b.opset >= 20:
        return b.node("Gelu", [x], shape, approximate=net.chance.choice(("none", "tanh")))
    return b.node(net.chance.choice(("Relu", "Tanh")), [x], shape)


def recurrent(net: MixedNetwork, x: str) -> str:
    """LSTM, GRU or RNN, one way or both, from nothing or from zeros as many as the batch."""
    b, chance = net.b, net.chance
    n, t, c = b.shapes[x]
    op, both, h = chance.choice(list(GATES)), chance.choice((1, 1, 2)), chance.randrange(2, 5)
    steps = b.transpose(x, (1, 0, 2))
    inputs = [steps, b.weight(b.floats(both, GATES[op] * h, c, scale=1 / np.sqrt(c)))]
    inputs.append(b.weight(b.floats(both, GATES[op] * h, h, scale=1 / np.sqrt(h))))
    inputs.append(b.weight(b.floats(both, 2 * GATES[op] * h, scale=0.3)) if chance.random() < 0.7 else "")
    if chance.random() < 0.4:
        start = b.computed(steps, (both, n, h), {1: 1})
        zeros = b.expand(b.weight(np.zeros((1, 1, 1), np.float32)), start, (both, n, h))
        inputs += ["", *([zeros] * (2 if op == "LSTM" else 1))]
    while not inputs[-1]:
        inputs.pop()
    said: dict[str, Any] = {"direction": "bidirectional"} if both == 2 else {}
    if op == "GRU":
        said["linear_before_reset"] = chance.randrange(2)
    y = b.node(op, inputs, (t, both, n, h), hidden_size=h, **said)
    if both == 1:
        y = b.transpose(b.squeeze(y, [1]), (1, 0, 2))
    else:
        y = b.view(b.transpose(y, (2, 0, 1, 3)), (n, t, 2 * h), {0: 0, 1: 1})
    return residual(net, x, y)


def along_time(net: MixedNetwork, x: str) -> str:
    """A convolution over the sequence, of all channels or of each by itself."""
    b, chance = net.b, net.chance
    n, t, c = b.shapes[x]
    group = chance.choice((1, c))
    o = c if group > 1 else chance.randrange(2, 7)
    weight = b.weight(b.floats(o, c // group, 3, scale=0.7))
    y = b.node("Conv", [b.transpose(x, (0, 2, 1)), weight, net.vector(o)], (n, o, t), pads=[1, 1], group=group)
    return residual(net, x, b.transpose(y, (0, 2, 1)))


def first_token(net: MixedNetwork, x: str) -> str:
    """A token of its own in front of the others, once a sample."""
    b, chance = net.b, net.chance
    n, t, c = b.shapes[x]
    token = b.weight(b.floats(1, 1, c))
    if not b.dynamic and chance.random() < 0.5:
        target = b.integers(chance.choice(((n, 1, c), (n, 1, 1))))
    else:
        target = b.computed(x, (n, 1, c), {0: 0})
    token = b.expand(token, target, (n, 1, c))
    return b.node("Concat", [token, x], (n, t + 1, c), axis=1)


def joined(net: MixedNetwork, x: str) -> str:
    """Side by side with another sequence of the same length, or in two halves of which one goes on."""
    b, chance = net.b, net.chance
    n, t, c = b.shapes[x]
    near = [y for y in net.tokens if b.shapes[y][1] == t]
    other = chance.choice(near)
    if chance.random() < 0.4 and c > 1:
        return b.split(x, 2, [c // 2, c - c // 2])[chance.randrange(2)]
    width = c + b.shapes[other][2]
    made = b.node("Concat", [x, other], (n, t, width), axis=chance.choice((2, -1)))
    return linear(net, made, chance.randrange(2, 9)) if width > 10 else made


def as_map(net: MixedNetwork, x: str) -> str | None:
    """Back into an image, where the sequence has the length of one."""
    b = net.b
    n, t, c = b.shapes[x]
    sides = [b.shapes[p][2:] for p in net.pool if b.shapes[p][2] * b.shapes[p][3] == t]
    if not sides:
        return None
    h, w = net.chance.choice(sides)
    if net.chance.random() < 0.5:
        return b.view(b.transpose(x, (0, 2, 1)), (n, c, h, w), {0: 0})
    return b.transpose(b.view(x, (n, h, w, c), {0: 0}), (0, 3, 1, 2))


def as_tokens(net: Network, x: str) -> str:
    """Every place of a map is a token; or every patch of it."""
    b, chance = net.b, net.chance
    n, c, h, w = b.shapes[x]
    if chance.random() < 0.3 and h % 2 == w % 2 == 0:
        o = chance.randrange(2, 9)
        weight = b.weight(b.floats(o, c, 2, 2, scale=0.5))
        x = b.node("Conv", [x, weight, net.vector(o)], (n, o, h // 2, w // 2), strides=[2, 2])
        n, c, h, w = b.shapes[x]
    if chance.random() < 0.6:
        y = b.transpose(b.view(x, (n, c, h * w), {0: 0}), (0, 2, 1))
    else:
        y = b.view(b.transpose(x, (0, 2, 3, 1)), (n, h * w, c), {0: 0})
    return b.node("Add", [y, b.weight(b.floats(1, h * w, c, scale=0.5))], b.shapes[y]) if chance.random() < 0.5 else y


def masked_by_words(net: MixedNetwork, x: str) -> str | None:
    """Tokens whose word is number zero count for nothing."""
    b = net.b
    if net.words is None or b.shapes[x][1] != b.shapes["ids"][1]:
        return None
    n, t, _ = b.shapes[x]
    zero = b.node("Equal", ["ids", b.weight(np.array(0, np.int64))], (n, t))
    keep = b.node("Cast", [b.node("Not", [zero], (n, t))], (n, t), to=TensorProto.FLOAT)
    return b.node("Mul", [x, b.unsqueeze(keep, [2])], b.shapes[x])


STEPS: list[tuple[TokenStep, float]] = [
    (norm, 2),
    (feed_forward, 3),
    (recurrent, 1.5),
    (along_time, 1),
    (first_token, 0.7),
    (joined, 1.5),
    (as_map, 1),
    (masked_by_words, 0.5),
]
FROM_MAPS: list[tuple[Step, float]] = [(as_tokens, 8)]
