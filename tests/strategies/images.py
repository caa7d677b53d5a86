"""Random networks over maps [N, C, H, W]: convolutions, joins and cuts of channels, and what must freeze them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from strategies.builder import INT_MAX, Builder, Shape

__all__ = ["STEPS", "Network", "Step"]


class Network:
    """A random network: a pool of maps [N, C, H, W], grown step by step, and a head."""

    def __init__(self, chance: random.Random, steps: int | None) -> None:
        self.chance = chance
        self.steps = steps if steps is not None else chance.randrange(2, 14)
        self.b = Builder(
            chance, opset=chance.randrange(11, 22), batch=chance.choice((1, 2, 3)), dynamic=chance.random() < 0.35
        )
        if self.b.dynamic:
            self.b.batch = 3  # the size that the analysis assumes for a symbolic batch
        self.pool: list[str] = []
        self.convs: list[tuple[str, Shape, int, int]] = []  # weights that may be tied: name, shape, kernel, group
        self.scales: dict[int, list[str]] = {}  # vectors that may be shared, by length
        self.norms: dict[int, list[str]] = {}

    def build(self) -> onnx.ModelProto:
        b, chance = self.b, self.chance
        height, width = chance.randrange(3, 6), chance.randrange(3, 6)
        image = b.input("x", (b.batch, chance.randrange(1, 5), height, width))
        self.pool.append(self.convolve(image))
        if chance.random() < 0.2:
            other = b.input("z", (b.batch, chance.randrange(1, 5), height, width))
            self.pool.append(self.convolve(other))
        for _ in range(self.steps):
            step = chance.choices([s for s, _ in STEPS], [w for _, w in STEPS])[0]
            made = step(self, self.pick())
            if isinstance(made, str):
                self.pool.append(made)
            elif made:
                self.pool.extend(made)
        return b.model(self.head())

    # Choosing

    def pick(self) -> str:
        """A map; mostly the latest."""
        return self.pool[-1] if self.chance.random() < 0.6 else self.chance.choice(self.pool)

    def like(self, x: str, *, channels: bool) -> list[str]:
        shape = self.b.shapes[x]
        return [
            p
            for p in self.pool
            if (self.b.shapes[p] == shape if channels else self.b.shapes[p][2:] == shape[2:]) and p != x
        ]

    def divisors(self, *numbers: int) -> list[int]:
        return [d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)]

    def vector(self, c: int) -> str:
        """A scale or bias, sometimes one that others read too, sometimes under a second name."""
        known = self.scales.setdefault(c, [])
        if known and self.chance.random() < 0.4:
            name = self.chance.choice(known)
            return self.b.node("Identity", [name], (c,)) if self.chance.random() < 0.5 else name
        name = self.b.weight(self.b.floats(c, scale=0.3, around=0.5))
        known.append(name)
        return name

    # Steps: each takes a map and returns the map or maps that it makes

    def convolve(self, x: str, channels: int | None = None) -> str:
        b, chance = self.b, self.chance
        c = b.shapes[x][1]
        for name, shape, kernel, group in self.convs:
            if shape[1] * group == c and channels in (None, shape[0]) and chance.random() < 0.15:
                return b.conv(x, shape[0], kernel=kernel, group=group, weight=name)
        channels = channels or chance.randrange(2, 9)
        kernel = chance.choice((1, 1, 3))
        group = chance.choice(self.divisors(c, channels)) if chance.random() < 0.5 else 1
        bias: str | bool = chance.choice((True, False)) if chance.random() < 0.6 else self.vector(channels)
        made = b.conv(x, channels, kernel=kernel, group=group, bias=bias)
        weight = b.nodes[-1].input[1]
        self.convs.append((weight, b.shapes[weight], kernel, group))
        return made

    def depthwise(self, x: str) -> str:
        c = self.b.shapes[x][1]
        times = self.chance.choice((1, 1, 2)) if c <= 8 else 1
        return self.b.conv(x, c * times, kernel=3, group=c, bias=self.chance.random() < 0.5)

    def conv_transpose(self, x: str) -> str:
        b, chance = self.b, self.chance
        n, c, h, w = b.shapes[x]
        group = chance.choice(self.divisors(c))
        o = chance.randrange(1, 4) if group > 1 else chance.randrange(2, 7)
        kernel = chance.choice((1, 3))
        weight = b.disguised(b.floats(c, o, kernel, kernel, scale=1 / np.sqrt(c / group)))
        bias = [self.vector(group * o)] if chance.random() < 0.5 else []
        return b.node("ConvTranspose", [x, weight, *bias], (n, group * o, h, w), group=group, pads=[kernel // 2] * 4)

    def norm(self, x: str) -> str:
        c = self.b.shapes[x][1]
        parameters = self.norms.get(c) if self.chance.random() < 0.3 else None
        made = self.b.norm(x, parameters)
        self.norms[c] = list(self.b.nodes[-1].input[1:])
        return made

    def activation(self, x: str) -> str:
        b, chance = self.b, self.chance
        shape = b.shapes[x]
        op = chance.choice(("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "PRelu", "HardSigmoid", "Dropout", "Abs"))
        if op == "Clip":
            return b.node("Clip", [x, b.weight(np.float32(-1).reshape(())), ""][: chance.choice((1, 2, 3))], shape)
        if op == "PRelu":
            slope = b.floats(*chance.choice(((shape[1], 1, 1), (1,), (1, shape[1], 1, 1))), scale=0.3)
            return b.node("PRelu", [x, b.weight(slope)], shape)
        return b.node(op, [x], shape)

    def add(self, x: str) -> str:
        b, chance = self.b, self.chance
        others = self.like(x, channels=True)
        if others and chance.random() < 0.7:
            other = chance.choice(others)
        else:
            near = self.like(x, channels=False)
            other = self.convolve(chance.choice(near) if near else x, b.shapes[x][1])
        op = chance.choice(("Add", "Add", "Sub", "Mul", "Max", "Sum"))
        return b.node(op, [x, other] if chance.random() < 0.5 else [other, x], b.shapes[x])

    def concat(self, x: str) -> str:
        b, chance = self.b, self.chance
        near = [*self.like(x, channels=False), x]
        parts = [x, *(chance.choice(near) for _ in range(chance.choice((1, 1, 2))))]
        chance.shuffle(parts)
        c = sum(b.shapes[p][1] for p in parts)
        if c > 16:
            return self.activation(x)
        n, _, h, w = b.shapes[x]
        made = b.node("Concat", parts, (n, c, h, w), axis=chance.choice((1, -3)))
        if chance.random() < 0.5:
            group = chance.choice(self.divisors(c))
            made = b.conv(made, group * chance.randrange(1, 3), group=group)
        return made

    def split(self, x: str) -> list[str] | None:
        c = self.b.shapes[x][1]
        if c < 2:
            return None
        ways = [d for d in self.divisors(c) if 1 < d <= 4]
        if ways and self.chance.random() < 0.5:
            count = self.chance.choice(ways)
            return self.b.split(x, 1, [c // count] * count)
        at = self.chance.randrange(1, c)
        return self.b.split(x, 1, [at, c - at])

    def slice(self, x: str) -> str | None:
        c = self.b.shapes[x][1]
        start = self.chance.randrange(c)
        return self.b.slice(x, 1, start, self.chance.randrange(start + 1, c + 1))

    def shuffle(self, x: str) -> str:
        b, chance = self.b, self.chance
        n, c, h, w = b.shapes[x]
        g = chance.choice(self.divisors(c))
        if chance.random() < 0.4:
            apart = b.reshape(x, (n, g, c // g, h * w))
            swapped = b.transpose(apart, (0, 2, 1, 3))
        else:
            apart = b.reshape(x, (n, g, c // g, h, w))
            swapped = b.transpose(apart, (0, 2, 1, 3, 4))
        return b.reshape(swapped, (n, c, h, w))

    def pad(self, x: str) -> str:
        low, high = self.chance.randrange(3), self.chance.randrange(3)
        value = self.chance.choice((None, None, 0.0, 0.7))
        padded = self.b.pad(x, 1, low, high, value=value)
        if self.chance.random() < 0.6:  # a shortcut
            return self.b.node("Add", [padded, self.convolve(x, self.b.shapes[padded][1])], self.b.shapes[padded])
        return padded

    def islands(self, x: str) -> str:
        """Channels last: an affine, a dense layer, or an activation between two transposes."""
        b, chance = self.b, self.chance
        n, c, h, w = b.shapes[x]
        y = b.transpose(x, (0, 2, 3, 1))
        for _ in range(chance.randrange(1, 3)):
            n, h, w, c = b.shapes[y]
            way = chance.randrange(4)
            if way == 0:
                y = b.node(chance.choice(("Add", "Mul")), [y, self.vector(c)], (n, h, w, c))
            elif way == 1:
                o = chance.randrange(2, 7)
                y = b.node("MatMul", [y, b.disguised(b.floats(c, o, scale=1 / np.sqrt(c)))], (n, h, w, o))
            elif way == 2:
                y = b.mean(y, [3])
                y = b.node("Sub", [b.transpose(x, (0, 2, 3, 1)), y], (n, h, w, b.shapes[x][1]))
            else:
                y = b.node("Relu", [y], (n, h, w, c))
        return b.transpose(y, (0, 3, 1, 2))

    def channel_mean(self, x: str) -> str:
        b = self.b
        mean = b.mean(x, [1])
        return b.node(self.chance.choice(("Sub", "Mul")), [x, mean], b.shapes[x])

    def excite(self, x: str) -> str:
        """Squeeze and excitation, by convolutions or by Gemm between Squeeze and Unsqueeze."""
        b, chance = self.b, self.chance
        n, c, *_ = b.shapes[x]
        pooled = b.node("GlobalAveragePool", [x], (n, c, 1, 1)) if chance.random() < 0.5 else b.mean(x, [2, 3])
        inner = chance.randrange(2, 6)
        if chance.random() < 0.5:
            gate = b.conv(b.node("Relu", [b.conv(pooled, inner)], (n, inner, 1, 1)), c)
        else:
            flat = b.squeeze(pooled, [2, 3])
            hidden = b.node("Tanh", [self.dense(flat, inner)], (n, inner))
            gate = b.unsqueeze(self.dense(hidden, c), [2, 3])
        return b.node("Mul", [x, b.node("Sigmoid", [gate], (n, c, 1, 1))], b.shapes[x])

    def affine(self, x: str) -> str:
        b, chance = self.b, self.chance
        c = b.shapes[x][1]
        op = chance.choice(("Mul", "Add", "Div", "Sub"))
        way = chance.randrange(4)
        around = 1.5 if op == "Div" else 0.5
        if way == 0:
            constant = b.weight(b.floats(c, 1, 1, scale=0.1, around=around))
        elif way == 1:
            constant = b.weight(b.floats(1, c, 1, 1, scale=0.1, around=around))
        elif way == 2:
            constant = b.weight(np.float32(around).reshape(()))
        else:
            vector = self.vector(c) if op != "Div" else b.weight(b.floats(c, scale=0.1, around=1.5))
            constant = b.unsqueeze(vector, [1, 2])
        backwards = op in ("Mul", "Add", "Sub") and chance.random() < 0.3
        return b.node(op, [constant, x] if backwards else [x, constant], b.shapes[x])

    def resize(self, x: str) -> str | None:
        b, chance = self.b, self.chance
        n, c, h, w = b.shapes[x]
        if h * w > 16:
            return None
        shape = (n, c, 2 * h, 2 * w)
        roi = b.weight(np.zeros(0, np.float32)) if b.opset < 13 else ""
        if chance.random() < 0.5 or b.dynamic:
            inputs = [x, roi, b.weight(np.array([1, 1, 2, 2], np.float32))]
        else:
            empty = b.weight(np.zeros(0, np.float32)) if b.opset < 13 else ""
            inputs = [x, roi, empty, b.integers(shape)]
        return b.node("Resize", inputs, shape, mode="nearest")

    def pool_(self, x: str) -> str | None:
        n, c, h, w = self.b.shapes[x]
        if min(h, w) < 2:
            return None
        op = self.chance.choice(("MaxPool", "AveragePool"))
        return self.b.node(op, [x], (n, c, h - 1, w - 1), kernel_shape=[2, 2])

    def left_matmul(self, x: str) -> str:
        """A weight on the left of the channels: W [o, c] · X [n, c, h·w]."""
        b, chance = self.b, self.chance
        n, c, h, w = b.shapes[x]
        o = chance.randrange(2, 7)
        flat = b.reshape(x, (n, c, h * w))
        made = b.node("MatMul", [b.disguised(b.floats(o, c, scale=1 / np.sqrt(c))), flat], (n, o, h * w))
        return b.reshape(made, (n, o, h, w))

    def regroup(self, x: str) -> str:
        """Channels folded into height and back, with something between."""
        b, chance = self.b, self.chance
        n, c, h, w = b.shapes[x]
        folded = b.reshape(x, chance.choice(((n, c * h, w), (n, 1, c * h * w), (n, c, h * w))))
        folded = b.node(chance.choice(("Relu", "Sigmoid", "LeakyRelu")), [folded], b.shapes[folded])
        return b.reshape(folded, (n, c, h, w))

    def opaque(self, x: str) -> str:
        """What must freeze the channels: they depend on each other, or on their places."""
        b, chance = self.b, self.chance
        n, c, h, w = b.shapes[x]
        way = chance.randrange(6)
        if way == 0:
            return b.node("Softmax", [x], b.shapes[x], axis=1)
        if way == 1:
            return b.node("CumSum", [x, b.weight(np.array(1, np.int64))], b.shapes[x])
        if way == 2:
            largest = b.node("ArgMax", [x], (n, 1, h, w), axis=1)
            return b.node("Mul", [x, b.node("Cast", [largest], (n, 1, h, w), to=TensorProto.FLOAT)], b.shapes[x])
        if way == 3:
            order = list(range(c))
            chance.shuffle(order)
            return b.node("Gather", [x, b.integers(order)], b.shapes[x], axis=1)
        if way == 4:
            return b.node("LpNormalization", [x], b.shapes[x], axis=1)
        inputs = [b.integers([0]), b.integers([INT_MAX]), b.integers([1]), b.integers([2])]
        return b.node("Slice", [x, *inputs], (n, (c + 1) // 2, h, w))

    def gram(self, x: str) -> str:
        """A product of two activations: nothing can be rescaled there."""
        b = self.b
        n, c, h, w = b.shapes[x]
        flat = b.reshape(x, (n, c, h * w))
        turned = b.transpose(flat, (0, 2, 1))
        if self.chance.random() < 0.5:
            gram = b.node("MatMul", [flat, turned], (n, c, c))
            mixed = b.node("MatMul", [b.node("Tanh", [gram], (n, c, c)), flat], (n, c, h * w))
        else:
            gram = b.node("MatMul", [turned, flat], (n, h * w, h * w))
            mixed = b.node("MatMul", [flat, b.node("Tanh", [gram], (n, h * w, h * w))], (n, c, h * w))
        return b.reshape(mixed, (n, c, h, w))

    # The head

    def dense(self, x: str, o: int) -> str:
        """Gemm in its spellings, or MatMul and Add."""
        b, chance = self.b, self.chance
        n, k = b.shapes[x]
        weight = b.floats(k, o, scale=1.3 / np.sqrt(k))
        if chance.random() < 0.4:
            made = b.node("MatMul", [x, b.disguised(weight)], (n, o))
            return b.node("Add", [made, self.vector(o)], (n, o)) if chance.random() < 0.6 else made
        attributes: dict[str, Any] = {}
        if chance.random() < 0.6:
            weight, attributes["transB"] = weight.T.copy(), 1
        if chance.random() < 0.2:
            x, attributes["transA"] = b.transpose(x, (1, 0)), 1
        if chance.random() < 0.2:
            attributes["alpha"], attributes["beta"] = 0.5, 2.0
        inputs = [x, b.disguised(weight)]
        if chance.random() < 0.7:
            way = chance.randrange(3)
            inputs.append(
                self.vector(o)
                if way == 0
                else b.weight(b.floats(1, o, scale=0.3))
                if way == 1
                else b.weight(np.float32(0.3).reshape(()))
            )
        return b.node("Gemm", inputs, (n, o), **attributes)

    def head(self) -> list[str]:
        b, chance = self.b, self.chance
        x = self.pool[-1]
        outputs = []
        n, c, h, w = b.shapes[x]
        way = chance.random()
        if way < 0.25:
            outputs.append(b.conv(x, 3))
        else:
            if way < 0.5:
                x = b.node("GlobalAveragePool", [x], (n, c, 1, 1))
                h = w = 1
            if chance.random() < 0.5:
                flat = b.node("Flatten", [x], (n, c * h * w), axis=1)
            else:
                flat = b.reshape(x, (n, c * h * w))
            if chance.random() < 0.5:
                hidden = chance.randrange(2, 8)
                flat = b.node("Relu", [self.dense(flat, hidden)], (n, hidden))
            outputs.append(self.dense(flat, 3))
        used = {name for node in b.nodes for name in node.input}
        loose = [p for p in self.pool if p not in used and p not in outputs]
        if len(loose) > 1 or (loose and chance.random() < 0.5):  # ends that nobody reads end in a layer of their own
            for end in loose:
                outputs.append(b.conv(end, 2))
        if chance.random() < 0.15:
            outputs.append(chance.choice(self.pool))
        return outputs


Step = Callable[[Network, str], str | list[str] | None]

STEPS: list[tuple[Step, float]] = [
    (Network.convolve, 4),
    (Network.depthwise, 1.5),
    (Network.conv_transpose, 1.5),
    (Network.norm, 2),
    (Network.activation, 2.5),
    (Network.add, 3),
    (Network.concat, 3),
    (Network.split, 2),
    (Network.slice, 2),
    (Network.shuffle, 2.5),
    (Network.pad, 1.5),
    (Network.islands, 1.5),
    (Network.channel_mean, 0.5),
    (Network.excite, 1.5),
    (Network.affine, 2),
    (Network.resize, 0.7),
    (Network.pool_, 0.7),
    (Network.left_matmul, 1),
    (Network.regroup, 1),
    (Network.opaque, 0.5),
    (Network.gram, 0.3),
]
