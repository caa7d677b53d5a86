"""Emit an fx graph, one ONNX value after the other."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from conet_onnx.errors import ModelError, UnsupportedOp
from conet_onnx.graph import Graph, Node
from conet_onnx.torch_backend.known import Array, Known, static
from conet_onnx.torch_backend.names import Names, identifier
from conet_onnx.torch_backend.stepped import stepped_weights
from conet_onnx.torch_backend.weights import shared_statistics, to_tensor, torch_dtype, trainable

__all__ = ["SMALL", "Builder", "Node", "Result", "has"]

Result = fx.Node | Known | Sequence[fx.Node | Known]

SMALL = 1024  # elements: larger constants are tensors, never Python numbers


class Builder:
    """The fx graph so far, the module that holds its weights, and what each ONNX value has become.

    `lower` drives it; the functions in `ops` read their inputs from it and emit into it.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        lowered: Callable[[Graph], fx.GraphModule] | None = None,
        ranks: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """With `lowered`, which makes modules of inner graphs, control flow and sequences are lowered too; `ranks` of
        values of whose shapes inference says nothing."""
        self.graph = graph
        self.inner = lowered
        self.ranks = ranks
        self.fx = fx.Graph()
        self.root = nn.Module()
        self.registered: dict[str, str] = {}  # initializer -> attribute, as they were first used
        self.stepped = stepped_weights(graph)  # trained as what they stand for
        self.trainable = trainable(graph, inner=lowered is not None) | self.stepped.keys()
        self.carried: set[str] = set()  # whole numbers that are floats here, so that gradients pass (ops.quantise)
        self.shared_statistics = shared_statistics(graph)
        self._names = Names.of(graph.weights)
        self._values: dict[str, fx.Node | Known] = {}
        self._tensors: dict[str, fx.Node] = {}
        self._aliases: dict[str, str] = {}
        self._node: Node | None = None
        self._modules = 0
        for value in graph.inputs:
            self.assign(value.name, self.fx.placeholder(identifier(value.name)))

    # What the ops read.

    def tensor(self, name: str) -> fx.Node:
        """A value as a tensor at run time. A weight becomes a parameter or a buffer when it is first asked for."""
        name = self._aliases.get(name, name)
        value = self._values.get(name)
        if isinstance(value, fx.Node):
            return value
        if name not in self._tensors:
            self._tensors[name] = self._register(name) if value is None else self._materialise(name, value)
        return self._tensors[name]

    def operand(self, name: str) -> fx.Node | int | float | bool:
        """The same, but a constant of rank zero that is not trained is a Python number."""
        known = self.known(name)
        if known is not None and known.elements.shape == () and static(known.elements.item()):
            number: int | float | bool = known.elements.item()
            return number
        return self.tensor(name)

    def optional(self, node: Node, index: int) -> fx.Node | None:
        """An optional input as a tensor, None where it is absent."""
        return self.tensor(node.inputs[index]) if has(node, index) else None

    def known(self, name: str) -> Known | None:
        """A value whose elements are Python numbers: constants that are small and not trained, and shape arithmetic."""
        name = self._aliases.get(name, name)
        value = self._values.get(name)
        if isinstance(value, Known):
            return value
        tensor = self.graph.weights.get(name)
        if value is not None or tensor is None or name in self.trainable:
            return None
        return Known.of(self.graph.array(name)) if np.prod(tensor.dims, dtype=np.int64) <= SMALL else None

    def constant(self, name: str) -> Array | None:
        """A value that is known while lowering, and not trained."""
        known = self.known(name)
        return None if known is None else known.array

    def setting(self, node: Node, index: int, what: str) -> Array | None:
        """An input that must be known while lowering; None where it is absent. Raises UnsupportedOp."""
        if not has(node, index):
            return None
        found = self.constant(node.inputs[index])
        if found is None:
            raise self.unsupported(node, f"{what} ({node.inputs[index]!r}) is computed from the data")
        return found

    def uses_more(self, node: Node) -> bool:
        """Whether anything reads more than a node's first output."""
        return any(name and self.graph.readings(name) for name in node.outputs[1:])

    def number(self, node: Node, index: int, what: str) -> int | float | bool | None:
        """A setting that is one number."""
        found = self.setting(node, index, what)
        return None if found is None else found.reshape(()).item()

    def integers(self, node: Node, index: int) -> list[int | fx.Node]:
        """A vector of integers as Python integers at run time, such as a Reshape's target."""
        name = node.inputs[index]
        known = self.known(name)
        if known is not None:
            return [element if isinstance(element, fx.Node) else int(element) for element in known.elements.flat]
        shape = self.graph.shape(name)
        if shape is None or len(shape) > 1 or None in shape:
            raise self.unsupported(node, f"how many integers {name!r} holds is not known")
        count = 1 if not shape else shape[0]
        assert count is not None
        values = self.call(to_integers, self.tensor(name))
        return [self.call(operator.getitem, values, i) for i in range(count)]

    def shape(self, node: Node, name: str) -> tuple[int | None, ...]:
        """Sizes, None where they vary. Raises UnsupportedOp where not even the rank is known."""
        name = self._aliases.get(name, name)
        value = self._values.get(name)
        if isinstance(value, Known):
            return tuple(value.elements.shape)
        found = self.graph.shape(name)
        if found is None and name in self.ranks:
            found = (None,) * self.ranks[name]
        if found is None and name in self.graph.weights:
            found = tuple(self.graph.weights[name].dims)
        if found is None:
            raise self.unsupported(node, f"the shape of {name!r} is not known; run onnx shape inference on the file")
        return found

    def rank(self, node: Node, name: str) -> int:
        """The number of axes."""
        return len(self.shape(node, name))

    def size(self, name: str, axis: int) -> int | fx.Node:
        """One size, as an integer where it is fixed. The first axis never is: a batch of any size may come."""
        name = self._aliases.get(name, name)
        shape = self.graph.shape(name)
        fixed = None if shape is None or axis == 0 else shape[axis]
        if name in self.graph.weights:
            fixed = self.graph.weights[name].dims[axis]
        return fixed if fixed is not None else self.fx.call_method("size", (self.tensor(name), axis))

    def device(self) -> fx.Node:
        """Where the inputs are, for tensors that are made at run time."""
        first = next(iter(self.fx.nodes))
        return self.call(getattr, first, "device")

    # What the ops emit.

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call in the generated code."""
        made = self.fx.create_node("call_function", function, args, kwargs, name=self._hint())
        # fx retraces the code of a module that is unpickled, and must not look into our own functions.
        made.meta["is_wrapped"] = getattr(function, "__module__", "").startswith(__package__)
        return self._marked(made)

    def method(self, name: str, x: fx.Node, *args: Any) -> fx.Node:
        """A call of a tensor's method."""
        return self._marked(self.fx.create_node("call_method", name, (x, *args), name=self._hint()))

    def module(self, module: nn.Module, *args: Any) -> fx.Node:
        """A call of a module without weights of its own: something that differs between training and inference."""
        name = f"{type(module).__name__.lower()}_{self._modules}"
        while hasattr(self.root, name) or name in self._names.initializers:
            self._modules += 1
            name = f"{type(module).__name__.lower()}_{self._modules}"
        self.root.add_module(name, module)
        self._modules += 1
        return self._marked(self.fx.create_node("call_module", name, args, name=self._hint()))

    def buffer(self, array: Array) -> fx.Node:
        """A constant tensor that is no weight of the file."""
        index = sum(1 for _ in self.root.buffers(recurse=False))
        while hasattr(self.root, name := f"constant_{index}") or name in self._names.initializers:
            index += 1
        self.root.register_buffer(name, to_tensor(array), persistent=False)
        return self.fx.get_attr(name)

    def lowered(self, graph: Graph) -> fx.GraphModule:
        """A node's inner graph as a module. Raises UnsupportedOp where not all of it has a torch form."""
        assert self.inner is not None
        return self.inner(graph)

    def unsupported(self, node: Node, fact: str) -> UnsupportedOp:
        """The error that says which node cannot be lowered, and why."""
        domain = f"{node.domain}." if node.domain else ""
        return UnsupportedOp(
            f"{domain}{node.op} {node.name!r} (opset {self.graph.opset}): {fact}. The torch backend cannot train "
            "this model; resize it without training, or export it without this operator."
        )

    # What `lower` drives.

    def begin(self, node: Node) -> None:
        """What is emitted from here on belongs to this node."""
        self._node = node

    def assign(self, name: str, value: fx.Node | Known) -> None:
        """What a value has become."""
        self._note(value, name)
        self._values[name] = value

    def alias(self, name: str, source: str) -> None:
        """One value under two names."""
        self._aliases[name] = self._aliases.get(source, source)
        self._note(self._values.get(self._aliases[name]), name)

    def _note(self, value: fx.Node | Known | None, name: str) -> None:
        """Let an fx node tell under which names the graph knows it."""
        if isinstance(value, fx.Node):
            value.meta["values"] = (*value.meta.get("values", ()), name)

    def _marked(self, made: fx.Node) -> fx.Node:
        """Let an fx node tell to which node of the graph it belongs, by index."""
        made.meta["nodes"] = frozenset(() if self._node is None else (self._node.index,))
        return made

    def _hint(self) -> str | None:
        return identifier(self._node.outputs[0]) if self._node is not None else None

    def _register(self, name: str) -> fx.Node:
        tensor = self.graph.weights.get(name)
        if tensor is None:
            raise ModelError(f"{self.graph.file or 'the model'}: nothing makes the value {name!r}.")
        attribute = self._names.attributes[name]
        try:
            array = self.graph.array(name)
            data = to_tensor(self.stepped[name].real(array) if name in self.stepped else array)
        except TypeError as error:
            node = self._node or self.graph.nodes[0]
            raise self.unsupported(node, f"torch has no element type for weight {name!r}") from error
        if name in self.trainable:
            self.root.register_parameter(attribute, nn.Parameter(data))
        else:
            self.root.register_buffer(attribute, data)
        self.registered[name] = attribute
        return self.fx.get_attr(attribute)

    def _materialise(self, name: str, known: Known) -> fx.Node:
        if name in self.graph.weights:
            return self._register(name)
        array = known.array
        if array is not None:
            return self.buffer(array)
        dtype = torch_dtype(known.dtype)
        return self.call(torch.tensor, known.elements.tolist(), dtype=dtype, device=self.device())


def has(node: Node, index: int) -> bool:
    """Whether an optional input is there."""
    return index < len(node.inputs) and node.inputs[index] != ""


def to_integers(values: torch.Tensor) -> list[int]:
    """The elements of a tensor as Python integers."""
    return [int(value) for value in values.flatten().tolist()]
