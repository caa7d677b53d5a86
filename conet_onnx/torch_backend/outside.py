"""Parts of a graph that have no torch form: they run in onnxruntime inside of the lowered module, without gradients."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from onnx.numpy_helper import from_array
from torch import nn

from conet_onnx.errors import ModelError
from conet_onnx.graph import Graph, Node
from conet_onnx.runtime import run_session, session
from conet_onnx.shapes import copy_except

__all__ = ["Outside", "ancestors", "cut_out"]

Tensor = torch.Tensor


class Outside(nn.Module):
    """A piece of the model that onnxruntime runs, on the CPU; no gradient passes it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        _keep_from_compilers()
        self.model = model.SerializeToString()
        self.inputs = [value.name for value in model.graph.input]
        self.outputs = [value.name for value in model.graph.output]
        self._session: Any = None

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The piece's outputs for its inputs, wherever those are. Strings come as numpy arrays."""
        if self._session is None:
            self._session = session(onnx.ModelProto.FromString(self.model), provider="cpu")
        tensors = [value for value in given if isinstance(value, Tensor)]
        device = tensors[0].device if tensors else None
        feeds = {
            name: value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
            for name, value in zip(self.inputs, given, strict=True)
        }
        made = run_session(self._session, feeds, self.outputs)
        return tuple(torch.from_numpy(np.array(made[name])).to(device) for name in self.outputs)

    def extra_repr(self) -> str:
        """What it makes."""
        return ", ".join(self.outputs)

    def __getstate__(self) -> dict[str, Any]:
        """Without the session, which starts again where it is needed."""
        return {**self.__dict__, "_session": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process, which may not know yet what compilers must not look into."""
        _keep_from_compilers()
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's has no type


@cache
def _keep_from_compilers() -> None:
    """Tell torch.compile not to look inside; to say so imports the compiler, for which most models need not wait."""
    Outside.forward = torch.compiler.disable(Outside.forward)  # type: ignore[method-assign, no-untyped-call]  # torch has no type for it


def ancestors(graph: Graph, node: Node | None) -> list[Node]:
    """All nodes whose results a node needs, and itself, in the order of the graph; none for None."""
    found: set[int] = set()
    waiting = [] if node is None else [node]
    while waiting:
        at = waiting.pop()
        if at.index not in found:
            found.add(at.index)
            producers = (graph.producer(name) for name in (*at.inputs, *at.captured) if name)
            waiting.extend(producer for producer in producers if producer is not None)
    return [graph.nodes[index] for index in sorted(found)]


def cut_out(graph: Graph, nodes: Sequence[Node], outputs: Collection[str]) -> onnx.ModelProto:
    """A model of some of a graph's nodes, which takes what others make or the user gives. Raises ModelError where the
    type of such a value is not known."""
    made = {name for node in nodes for name in node.outputs if name}
    read = [n for n in dict.fromkeys(n for node in nodes for n in (*node.inputs, *node.captured) if n) if n not in made]
    own = {value.name: value for value in (*graph.model.graph.input, *graph.model.graph.output)}
    piece: onnx.ModelProto = copy_except(graph.model, "graph")
    piece.graph.name = "outside"
    piece.graph.node.extend(graph.model.graph.node[node.index] for node in nodes)
    piece.graph.initializer.extend(from_array(graph.array(name), name) for name in read if name in graph.weights)
    sparse = graph.model.graph.sparse_initializer
    piece.graph.sparse_initializer.extend(tensor for tensor in sparse if tensor.values.name in read)
    given = (name for name in read if name not in graph.weights and name not in graph.sparse)
    piece.graph.input.extend(_declared(graph, name, own) for name in given)
    piece.graph.output.extend(_declared(graph, name, own) for name in outputs)
    return piece


def _declared(graph: Graph, name: str, own: Mapping[str, onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    """A value with its element type, whose shape is open."""
    dtype = graph.dtype(name)
    if name in own and own[name].type.tensor_type.elem_type:
        return helper.make_tensor_value_info(name, own[name].type.tensor_type.elem_type, None)
    if dtype is None:
        raise ModelError(f"the type of {name!r} is not known; run onnx shape inference on the file")
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)
