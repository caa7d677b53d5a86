"""Turn an ONNX graph into a torch module with generated code, and bring its trained weights back."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from conet_onnx.errors import UnsupportedOp, UsageError
from conet_onnx.graph import Graph, Node
from conet_onnx.torch_backend.building import Builder
from conet_onnx.torch_backend.known import Known
from conet_onnx.torch_backend.names import Names
from conet_onnx.torch_backend.ops import KNOWN, LOWER, REVIEWED
from conet_onnx.torch_backend.peephole import tighten
from conet_onnx.torch_backend.weights import to_numpy

__all__ = ["from_torch", "lower", "names_of"]

OLDEST = 7  # from here on ONNX broadcasts as numpy does

_NAMES = "initializer_names"  # the attribute of a lowered module that maps initializers to its other attributes
_KEPT = "_user_preserved_attributes"  # what fx's deepcopy keeps; pickle keeps attributes by itself


def lower(graph: Graph) -> fx.GraphModule:
    """A torch.fx.GraphModule that computes what the graph does, on any batch size that the graph's reshapes allow.

    It takes the graph's inputs in order and returns its output, or a tuple of its outputs. Learned weights are
    parameters, running statistics and other constants buffers; an initializer that several nodes share is one
    parameter; `names_of` maps initializers to attributes. In training mode (`module.train()`) BatchNormalization uses
    the batch's statistics and updates the running ones, and Dropout drops; a new module is in inference mode.

    Raises UnsupportedOp, naming the node, where an operator or one of its settings is not known here.
    """
    if not OLDEST <= graph.opset <= REVIEWED:
        raise UnsupportedOp(
            f"{graph.file or 'the model'} uses opset {graph.opset}; the torch backend knows {OLDEST} to {REVIEWED}. "
            "Convert it with onnx.version_converter."
        )
    b = Builder(graph)
    for node in graph.nodes:
        b.begin(node)
        _lower_node(b, node)
    b.fx.output(
        outputs[0] if len(outputs := [b.tensor(value.name) for value in graph.outputs]) == 1 else tuple(outputs)
    )
    b.fx.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    tighten(b.fx, b.root)
    module = fx.GraphModule(b.root, b.fx, class_name="Lowered")
    used = {node.target for node in b.fx.nodes if node.op == "get_attr"}
    names = Names({n: b.registered[n] for n in graph.weights if b.registered.get(n) in used})
    setattr(module, _NAMES, names)
    module.meta[_KEPT] = {_NAMES: names}
    return module.eval()


def from_torch(graph: Graph, module: torch.nn.Module) -> Graph:
    """The graph with the module's weights and running statistics; what training did not change keeps its bytes.

    The module is what `lower(graph)` returned, or a copy of it. Raises UsageError where it is not.
    """
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    changed = {}
    for name, attribute in names_of(module):
        if attribute not in tensors or name not in graph.weights:
            raise UsageError(f"weight {name!r} is not in both the module and {graph.file or 'the graph'}.")
        old, new = graph.array(name), to_numpy(tensors[attribute])
        if new.shape != old.shape:
            raise UsageError(
                f"weight {name!r} has shape {old.shape}, the module's {new.shape}: lower this graph first."
            )
        if new.dtype != old.dtype:
            new = new.astype(old.dtype)
        if not np.array_equal(old.reshape(-1).view(np.uint8), new.reshape(-1).view(np.uint8)):
            changed[name] = new
    return graph.with_arrays(changed)


def names_of(module: torch.nn.Module) -> Names:
    """Which attribute of a lowered module holds which initializer. Raises UsageError for other modules."""
    names = getattr(module, _NAMES, None)
    if not isinstance(names, Names):
        raise UsageError(f"a {type(module).__name__} is not a lowered model: it does not know its initializers' names.")
    return names


def _lower_node(b: Builder, node: Node) -> None:
    op = node.operator
    if op not in LOWER and op not in KNOWN:
        raise b.unsupported(node, "no lowering is known for it")
    if node.op == "Constant" and node.outputs[0] in b.graph.weights:
        return
    if op == "Identity":
        b.alias(node.outputs[0], node.inputs[0])
        return
    known = [b.known(name) for name in node.inputs if name]
    inputs = [value for value in known if value is not None]
    if node.inputs and len(inputs) == len(known) and op not in ("Shape", "Size", "Dropout"):
        if all(value.array is not None for value in inputs) and _fold(b, node):
            return
        made = KNOWN[op](b, node, inputs) if op in KNOWN else None
        if made is not None:
            b.assign(node.outputs[0], made)
            return
    if op not in LOWER:
        raise b.unsupported(node, "no lowering is known for it")
    result = LOWER[op](b, node)
    results = [result] if isinstance(result, fx.Node | Known) else list(result)
    for name, value in zip(node.outputs, results, strict=False):
        b.assign(name, value)


def _fold(b: Builder, node: Node) -> bool:
    """Take the value that shape inference computed for a node of constants that are not trained."""
    found = {name: b.graph.constant(name) for name in node.outputs if name}
    for name, array in found.items():
        if array is not None and len(found) == 1:
            b.assign(name, Known.of(array))
    return len(found) == 1 and all(array is not None for array in found.values())
