"""Random ONNX graphs whose signal is alive: everything that the rules understand, and some that they must freeze."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Builder", "graphs", "random_model"]

Shape = tuple[int, ...]
INT_MAX = 2**63 - 1


def graphs() -> st.SearchStrategy[onnx.ModelProto]:
    """Random models; a smaller failing one has fewer and plainer nodes."""
    return st.builds(random_model, st.randoms(use_true_random=False))


def random_model(chance: random.Random, steps: int | None = None) -> onnx.ModelProto:
    """One model with one or two inputs, a few dozen nodes and tiny tensors."""
    return _Network(chance, steps).build()


class Builder:
    """Adds nodes to a graph and knows every shape; chance decides how a thing is said where ONNX has several ways."""

    def __init__(self, chance: random.Random, *, opset: int, batch: int = 2, dynamic: bool = False) -> None:
        self.chance = chance
        self.opset = opset
        self.batch = batch
        self.dynamic = dynamic
        self.rng = np.random.default_rng(chance.randrange(2**32))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.shapes: dict[str, Shape] = {}
        self.outputs: list[str] = []
        self.tidy = False  # plain initializers only

    # Values

    def input(self, name: str, shape: Shape) -> str:
        """A model input; its first axis is symbolic in a dynamic model."""
        declared = ["N" if self.dynamic else shape[0], *shape[1:]]
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, declared))
        self.shapes[name] = shape
        return name

    def weight(self, array: np.ndarray, *, plain: bool = False) -> str:
        """An initializer, or a Constant node."""
        name = f"p{len(self.initializers) + len(self.nodes)}"
        self.shapes[name] = array.shape
        if plain or self.tidy or self.chance.random() < 0.9:
            self.initializers.append(numpy_helper.from_array(array, name))
        else:
            self.nodes.append(
                helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, f"{name}.value"))
            )
        return name

    def floats(self, *shape: int, scale: float = 1.0, around: float = 0.0) -> np.ndarray:
        """Normal numbers."""
        return (around + scale * self.rng.standard_normal(shape)).astype(np.float32)

    def integers(self, values: Sequence[int]) -> str:
        """A constant vector of integers."""
        return self.weight(np.array(values, np.int64))

    def node(self, op: str, inputs: Sequence[str], shape: Shape | None, **attributes: Any) -> str:
        """A node with one output."""
        return self.node_of(op, inputs, [shape], **attributes)[0]

    def node_of(self, op: str, inputs: Sequence[str], shapes: Sequence[Shape | None], **attributes: Any) -> list[str]:
        """A node with several outputs. One in ten has no name."""
        names = [f"t{len(self.nodes)}_{k}" for k in range(len(shapes))]
        label = "" if self.chance.random() < 0.1 else f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), names, label, **attributes))
        self.shapes.update((n, s) for n, s in zip(names, shapes, strict=True) if s is not None)
        return names

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        """The finished model."""
        declared = []
        for name in dict.fromkeys(outputs):
            shape: list[int | str] = list(self.shapes[name])
            if self.dynamic and shape and shape[0] == self.batch:
                shape[0] = "N"
            declared.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        graph = helper.make_graph(self.nodes, "random", self.inputs, declared, self.initializers)
        versions = {"": self.opset, **{node.domain: 1 for node in self.nodes if node.domain}}
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid(*v) for v in versions.items()])

    # Operators whose form depends on the opset or on taste

    def reshape(self, x: str, shape: Shape) -> str:
        """Reshape with a literal target (0 and -1 included) or one computed from Shape."""
        chance, source = self.chance, self.shapes[x]
        if shape[0] == source[0] == self.batch and chance.random() < 0.3:
            return self.node("Reshape", [x, self._computed_target(x, shape)], shape)
        target = list(shape)
        if self.dynamic or chance.random() < 0.4:
            follows = shape[0] == source[0] == self.batch and chance.random() < 0.5
            target[0] = 0 if follows else -1
        if -1 not in target and chance.random() < 0.4 and len(target) > 1:
            target[chance.randrange(1, len(target))] = -1
        elif len(source) > 1 and len(target) > 1 and target[1] == source[1] and chance.random() < 0.3:
            target[1] = 0
        return self.node("Reshape", [x, self.integers(target)], shape)

    def _computed_target(self, x: str, shape: Shape) -> str:
        """x.view(x.size(0), ...) as exporters write it."""
        source = self.shapes[x]
        sizes = self.node("Shape", [x], (len(source),))
        parts, unknown = [self._element(sizes, 0)], False
        for axis, size in enumerate(shape[1:], 1):
            if not unknown and self.chance.random() < 0.3:
                unknown = True
                parts.append(self.integers([-1]))
            elif axis < len(source) and source[axis] == size and self.chance.random() < 0.6:
                parts.append(self._element(sizes, axis))
            else:
                parts.append(self.integers([size]))
        return self.node("Concat", parts, (len(shape),), axis=0)

    def _element(self, sizes: str, axis: int) -> str:
        if self.chance.random() < 0.3:
            bounds = [self.integers([axis]), self.integers([axis + 1])]
            return self.node("Slice", [sizes, *bounds], (1,))
        scalar = self.node("Gather", [sizes, self.weight(np.array(axis, np.int64))], (), axis=0)
        return self.unsqueeze(scalar, [0])

    def unsqueeze(self, x: str, axes: Sequence[int]) -> str:
        """Unsqueeze: axes are an attribute before opset 13."""
        shape = list(self.shapes[x])
        for axis in sorted(axes):
            shape.insert(axis, 1)
        if self.opset < 13:
            return self.node("Unsqueeze", [x], tuple(shape), axes=list(axes))
        return self.node("Unsqueeze", [x, self.integers(axes)], tuple(shape))

    def squeeze(self, x: str, axes: Sequence[int]) -> str:
        """Squeeze: axes are an attribute before opset 13."""
        shape = tuple(s for k, s in enumerate(self.shapes[x]) if k not in axes)
        if self.opset < 13:
            return self.node("Squeeze", [x], shape, axes=list(axes))
        return self.node("Squeeze", [x, self.integers(axes)], shape)

    def mean(self, x: str, axes: Sequence[int], keep: bool = True) -> str:
        """ReduceMean: axes are an attribute before opset 18."""
        rank = len(self.shapes[x])
        shape = tuple(1 if k in axes else s for k, s in enumerate(self.shapes[x]) if keep or k not in axes)
        said = [a - rank if self.chance.random() < 0.3 else a for a in axes]
        if self.opset < 18:
            return self.node("ReduceMean", [x], shape, axes=said, keepdims=int(keep))
        return self.node("ReduceMean", [x, self.integers(said)], shape, keepdims=int(keep))

    def split(self, x: str, axis: int, sizes: Sequence[int]) -> list[str]:
        """Split in every spelling."""
        source = self.shapes[x]
        shapes = [(*source[:axis], s, *source[axis + 1 :]) for s in sizes]
        even = len(set(sizes)) == 1 and self.chance.random() < 0.5
        said = axis - len(source) if self.chance.random() < 0.3 else axis
        if even and self.opset >= 18:
            return self.node_of("Split", [x], shapes, axis=said, num_outputs=len(sizes))
        if even:
            return self.node_of("Split", [x], shapes, axis=said)
        if self.opset < 13:
            return self.node_of("Split", [x], shapes, axis=said, split=list(sizes))
        return self.node_of("Split", [x, self.integers(sizes)], shapes, axis=said)

    def slice(self, x: str, axis: int, start: int, end: int) -> str:
        """Slice with bounds from the front, from the back, or none."""
        source, n = self.shapes[x], self.shapes[x][axis]
        first = start - n if start and self.chance.random() < 0.4 else start
        last = (
            INT_MAX
            if end == n and self.chance.random() < 0.5
            else end - n
            if end < n and self.chance.random() < 0.4
            else end
        )
        inputs = [x, self.integers([first]), self.integers([last]), self.integers([axis])]
        if self.chance.random() < 0.5:
            inputs.append(self.integers([1]))
        return self.node("Slice", inputs, (*source[:axis], end - start, *source[axis + 1 :]))

    def pad(self, x: str, axis: int, low: int, high: int, mode: str = "constant", value: float | None = None) -> str:
        """Pad along one axis."""
        source, rank = self.shapes[x], len(self.shapes[x])
        shape = (*source[:axis], low + source[axis] + high, *source[axis + 1 :])
        filler = [] if value is None else [self.weight(np.array(value, np.float32))]
        if self.opset >= 18 and self.chance.random() < 0.5:
            inputs = [x, self.integers([low, high]), *(filler or [""]), self.integers([axis])]
            return self.node("Pad", inputs, shape, mode=mode)
        amounts = [0] * (2 * rank)
        amounts[axis], amounts[rank + axis] = low, high
        return self.node("Pad", [x, self.integers(amounts), *filler], shape, mode=mode)

    def transpose(self, x: str, order: Sequence[int]) -> str:
        """Transpose."""
        return self.node("Transpose", [x], tuple(self.shapes[x][k] for k in order), perm=list(order))

    # Layers

    def disguised(self, array: np.ndarray) -> str:
        """A weight that reaches its reader plainly, or through nodes that move or scale its elements."""
        way = self.chance.random()
        if way < 0.75 or self.tidy:
            return self.weight(array)
        order = list(range(array.ndim))
        if way < 0.80:
            self.chance.shuffle(order)
            back = [order.index(k) for k in range(array.ndim)]
            return self.transpose(self.weight(array.transpose(order).copy()), back)
        if way < 0.85:
            flat = self.weight(array.reshape(array.shape[0], -1))
            return self.node("Reshape", [flat, self.integers(array.shape)], array.shape)
        if way < 0.90:
            name = self.weight(array)
            return self.node("Identity", [name], array.shape)
        if way < 0.95:
            name = self.weight(array.astype(np.float64))
            return self.node("Cast", [name], array.shape, to=TensorProto.FLOAT)
        along = self.chance.randrange(2)
        scale = self.floats(*(n if k == along else 1 for k, n in enumerate(array.shape)), scale=0.2, around=1)
        return self.node("Mul", [self.weight(array), self.weight(scale)], array.shape)

    def conv(
        self,
        x: str,
        channels: int,
        *,
        kernel: int = 1,
        group: int = 1,
        bias: str | bool = True,
        weight: str | None = None,
    ) -> str:
        """A convolution that keeps height and width."""
        n, c, *space = self.shapes[x]
        fan = c // group * kernel * kernel
        weight = weight or self.disguised(self.floats(channels, c // group, kernel, kernel, scale=1.3 / np.sqrt(fan)))
        inputs = [x, weight]
        if bias:
            inputs.append(bias if isinstance(bias, str) else self.weight(self.floats(channels, scale=0.3)))
        attributes: dict[str, Any] = {"pads": [kernel // 2] * 4} if kernel > 1 else {}
        if group > 1:
            attributes["group"] = group
        return self.node("Conv", inputs, (n, channels, *space), **attributes)

    def norm(self, x: str, parameters: Sequence[str] | None = None) -> str:
        """BatchNormalization for inference."""
        c = self.shapes[x][1]
        parameters = parameters or self.norm_parameters(c)
        return self.node("BatchNormalization", [x, *parameters], self.shapes[x])

    def norm_parameters(self, c: int) -> list[str]:
        """Scale, bias, mean and variance."""
        variance = self.rng.uniform(0.5, 1.5, c).astype(np.float32)
        made = [self.floats(c, scale=0.3, around=1), self.floats(c, scale=0.2), self.floats(c, scale=0.2), variance]
        return [self.weight(a) for a in made]


class _Network:
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
        self.pool.append(self._convolve(image))
        if chance.random() < 0.2:
            other = b.input("z", (b.batch, chance.randrange(1, 5), height, width))
            self.pool.append(self._convolve(other))
        for _ in range(self.steps):
            step = chance.choices([s for s, _ in STEPS], [w for _, w in STEPS])[0]
            made = step(self, self._pick())
            if isinstance(made, str):
                self.pool.append(made)
            elif made:
                self.pool.extend(made)
        return b.model(self._head())

    # Choosing

    def _pick(self) -> str:
        """A map; mostly the latest."""
        return self.pool[-1] if self.chance.random() < 0.6 else self.chance.choice(self.pool)

    def _like(self, x: str, *, channels: bool) -> list[str]:
        shape = self.b.shapes[x]
        return [
            p
            for p in self.pool
            if (self.b.shapes[p] == shape if channels else self.b.shapes[p][2:] == shape[2:]) and p != x
        ]

    def _divisors(self, *numbers: int) -> list[int]:
        return [d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)]

    def _vector(self, c: int) -> str:
        """A scale or bias, sometimes one that others read too, sometimes under a second name."""
        known = self.scales.setdefault(c, [])
        if known and self.chance.random() < 0.4:
            name = self.chance.choice(known)
            return self.b.node("Identity", [name], (c,)) if self.chance.random() < 0.5 else name
        name = self.b.weight(self.b.floats(c, scale=0.3, around=0.5))
        known.append(name)
        return name

    # Steps: each takes a map and returns the map or maps that it makes

    def _convolve(self, x: str, channels: int | None = None) -> str:
        b, chance = self.b, self.chance
        c = b.shapes[x][1]
        for name, shape, kernel, group in self.convs:
            if shape[1] * group == c and channels in (None, shape[0]) and chance.random() < 0.15:
                return b.conv(x, shape[0], kernel=kernel, group=group, weight=name)
        channels = channels or chance.randrange(2, 9)
        kernel = chance.choice((1, 1, 3))
        group = chance.choice(self._divisors(c, channels)) if chance.random() < 0.5 else 1
        bias: str | bool = chance.choice((True, False)) if chance.random() < 0.6 else self._vector(channels)
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
        group = chance.choice(self._divisors(c))
        o = chance.randrange(1, 4) if group > 1 else chance.randrange(2, 7)
        kernel = chance.choice((1, 3))
        weight = b.disguised(b.floats(c, o, kernel, kernel, scale=1 / np.sqrt(c / group)))
        bias = [self._vector(group * o)] if chance.random() < 0.5 else []
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
        others = self._like(x, channels=True)
        if others and chance.random() < 0.7:
            other = chance.choice(others)
        else:
            near = self._like(x, channels=False)
            other = self._convolve(chance.choice(near) if near else x, b.shapes[x][1])
        op = chance.choice(("Add", "Add", "Sub", "Mul", "Max", "Sum"))
        return b.node(op, [x, other] if chance.random() < 0.5 else [other, x], b.shapes[x])

    def concat(self, x: str) -> str:
        b, chance = self.b, self.chance
        near = [*self._like(x, channels=False), x]
        parts = [x, *(chance.choice(near) for _ in range(chance.choice((1, 1, 2))))]
        chance.shuffle(parts)
        c = sum(b.shapes[p][1] for p in parts)
        if c > 16:
            return self.activation(x)
        n, _, h, w = b.shapes[x]
        made = b.node("Concat", parts, (n, c, h, w), axis=chance.choice((1, -3)))
        if chance.random() < 0.5:
            group = chance.choice(self._divisors(c))
            made = b.conv(made, group * chance.randrange(1, 3), group=group)
        return made

    def split(self, x: str) -> list[str] | None:
        c = self.b.shapes[x][1]
        if c < 2:
            return None
        ways = [d for d in self._divisors(c) if 1 < d <= 4]
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
        g = chance.choice(self._divisors(c))
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
            return self.b.node("Add", [padded, self._convolve(x, self.b.shapes[padded][1])], self.b.shapes[padded])
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
                y = b.node(chance.choice(("Add", "Mul")), [y, self._vector(c)], (n, h, w, c))
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
            hidden = b.node("Tanh", [self._dense(flat, inner)], (n, inner))
            gate = b.unsqueeze(self._dense(hidden, c), [2, 3])
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
            vector = self._vector(c) if op != "Div" else b.weight(b.floats(c, scale=0.1, around=1.5))
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

    def _dense(self, x: str, o: int) -> str:
        """Gemm in its spellings, or MatMul and Add."""
        b, chance = self.b, self.chance
        n, k = b.shapes[x]
        weight = b.floats(k, o, scale=1.3 / np.sqrt(k))
        if chance.random() < 0.4:
            made = b.node("MatMul", [x, b.disguised(weight)], (n, o))
            return b.node("Add", [made, self._vector(o)], (n, o)) if chance.random() < 0.6 else made
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
                self._vector(o)
                if way == 0
                else b.weight(b.floats(1, o, scale=0.3))
                if way == 1
                else b.weight(np.float32(0.3).reshape(()))
            )
        return b.node("Gemm", inputs, (n, o), **attributes)

    def _head(self) -> list[str]:
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
                flat = b.node("Relu", [self._dense(flat, hidden)], (n, hidden))
            outputs.append(self._dense(flat, 3))
        used = {name for node in b.nodes for name in node.input}
        loose = [p for p in self.pool if p not in used and p not in outputs]
        if len(loose) > 1 or (loose and chance.random() < 0.5):  # ends that nobody reads end in a layer of their own
            for end in loose:
                outputs.append(b.conv(end, 2))
        if chance.random() < 0.15:
            outputs.append(chance.choice(self.pool))
        return outputs


Step = Callable[[_Network, str], str | list[str] | None]

STEPS: list[tuple[Step, float]] = [
    (_Network._convolve, 4),
    (_Network.depthwise, 1.5),
    (_Network.conv_transpose, 1.5),
    (_Network.norm, 2),
    (_Network.activation, 2.5),
    (_Network.add, 3),
    (_Network.concat, 3),
    (_Network.split, 2),
    (_Network.slice, 2),
    (_Network.shuffle, 2.5),
    (_Network.pad, 1.5),
    (_Network.islands, 1.5),
    (_Network.channel_mean, 0.5),
    (_Network.excite, 1.5),
    (_Network.affine, 2),
    (_Network.resize, 0.7),
    (_Network.pool_, 0.7),
    (_Network.left_matmul, 1),
    (_Network.regroup, 1),
    (_Network.opaque, 0.5),
    (_Network.gram, 0.3),
]
