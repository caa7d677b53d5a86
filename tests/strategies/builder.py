"""Adds nodes to a graph and knows every shape: what random networks and tests of single rules are built with."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["INT_MAX", "Builder", "Shape"]

Shape = tuple[int, ...]
INT_MAX = 2**63 - 1


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
        self.length: int | None = None  # of a sequence, where that is symbolic: the size that the analysis assumes

    # Values

    def input(self, name: str, shape: Shape) -> str:
        """A model input; its first axis is symbolic in a dynamic model."""
        declared = ["N" if self.dynamic else shape[0], *shape[1:]]
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, declared))
        self.shapes[name] = shape
        return name

    def ids(self, name: str, shape: Shape) -> str:
        """Numbers of words; with a symbolic length the second axis is symbolic too."""
        declared = ["N" if self.dynamic else shape[0], "T" if self.length else shape[1]]
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, declared))
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
            shape: list[int | str | None] = list(self.shapes[name])
            if self.dynamic and shape and shape[0] == self.batch:
                shape[0] = "N"
            if self.length and len(shape) == 3:
                shape[1] = None
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

    def view(self, x: str, shape: Shape, kept: Mapping[int, int]) -> str:
        """Reshape where `kept` says which axes of the target are which of the source's, and may be symbolic."""
        moved = [t for t, s in kept.items() if t != s]
        if len(moved) > 1 or self.chance.random() < 0.4:
            return self.node("Reshape", [x, self.computed(x, shape, kept)], shape)
        target = [0 if t in kept and t not in moved else size for t, size in enumerate(shape)]
        if moved:
            target[moved[0]] = -1
        elif self.chance.random() < 0.4 and (plain := [t for t in range(len(shape)) if t not in kept]):
            target[self.chance.choice(plain)] = -1
        return self.node("Reshape", [x, self.integers(target)], shape)

    def computed(self, x: str, shape: Shape, kept: Mapping[int, int]) -> str:
        """A shape whose kept sizes are read from x while the model runs."""
        sizes = self.node("Shape", [x], (len(self.shapes[x]),))
        parts = [self._element(sizes, kept[t]) if t in kept else self.integers([n]) for t, n in enumerate(shape)]
        return self.node("Concat", parts, (len(shape),), axis=0)

    def expand(self, x: str, target: str, shape: Shape) -> str:
        """Expand, sometimes with the detour of exporters: -1 in the target stands for one."""
        if self.chance.random() < 0.5:
            rank = (len(shape),)
            ones = self.weight(np.ones(len(shape), np.int64))
            kept = self.node("Equal", [target, self.integers([-1] * len(shape))], rank)
            target = self.node("Where", [kept, ones, target], rank)
        return self.node("Expand", [x, target], shape)

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
