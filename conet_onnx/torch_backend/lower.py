"""Turn an ONNX graph into a torch module with generated code, and bring its trained weights back."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx

from conet_onnx.denormals import denormal
from conet_onnx.errors import ModelError, UnsupportedOp, UsageError
from conet_onnx.graph import Graph, Node
from conet_onnx.torch_backend.building import Builder
from conet_onnx.torch_backend.known import Known
from conet_onnx.torch_backend.names import Names
from conet_onnx.torch_backend.ops import FLOW, KNOWN, LOWER, MOVES, REVIEWED
from conet_onnx.torch_backend.outside import Outside, ancestors, cut_out
from conet_onnx.torch_backend.peephole import tighten
from conet_onnx.torch_backend.ranks import measured_ranks
from conet_onnx.torch_backend.stepped import stepped_weights
from conet_onnx.torch_backend.untrained import untrained_weights
from conet_onnx.torch_backend.weights import to_numpy, torch_dtype

__all__ = ["from_torch", "lower", "names_of", "returned", "untrained_of", "untrained_weights_of"]

OLDEST = 7  # from here on ONNX broadcasts as numpy does

# What knows of whole numbers that are carried as floats, or takes no notice of a value's type.
TAKE_CARRIED = {
    "Cast",
    "ConvInteger",
    "DequantizeLinear",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "Shape",
    "Size",
}

_UNTRAINED = "untrained_outputs"
_LEFT = "untrained_weights"
_NAMES = "initializer_names"  # the attribute of a lowered module that maps initializers to its other attributes
_KEPT = "_user_preserved_attributes"  # what fx's deepcopy keeps; pickle keeps attributes by itself


def lower(graph: Graph) -> fx.GraphModule:
    """A torch.fx.GraphModule that computes what the graph does, on any batch size that the graph's reshapes allow.

    It takes the graph's inputs in order and returns its output, or a tuple of its outputs. Learned weights are
    parameters, running statistics and other constants buffers; an initializer that several nodes share is one
    parameter; `names_of` maps initializers to attributes. In training mode (`module.train()`) BatchNormalization uses
    the batch's statistics and updates the running ones, and Dropout drops; a new module is in inference mode.

    What has no torch form runs in onnxruntime: as a head, if nothing trained comes before it; by itself, if it makes
    only whole numbers and truth values (non-maximum suppression), to which no gradient goes anyway; else with all that
    follows from it as a tail (a loop), through which no gradient passes. `untrained_of` says which outputs no gradient
    reaches. Where none would be left to train, control flow and sequences are lowered as well
    (ops.flow). Raises UnsupportedOp, naming the node, where none is left even so.
    """
    if not OLDEST <= graph.opset <= REVIEWED:
        raise UnsupportedOp(
            f"{graph.file or 'the model'} uses opset {graph.opset}; the torch backend knows {OLDEST} to {REVIEWED}. "
            "Convert it with onnx.version_converter."
        )
    try:
        return _lowered(Builder(graph))
    except UnsupportedOp as error:
        try:
            return _lowered(Builder(graph, lowered=_inner, ranks=measured_ranks(graph)))
        except UnsupportedOp:
            raise error from None


def _inner(graph: Graph) -> fx.GraphModule:
    """An inner graph. What it reads may be trained, so that none of it may be left to onnxruntime."""
    return _lowered(Builder(graph, lowered=_inner, ranks=measured_ranks(graph)), whole=True)


def _lowered(b: Builder, *, whole: bool = False) -> fx.GraphModule:
    graph = b.graph
    untrained, stopped = _lower_nodes(b, whole=whole)
    outputs = [_as_declared(b, value.name) for value in graph.outputs]
    b.fx.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
    b.fx.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    tighten(b.fx, b.root, b.graph)
    module = fx.GraphModule(b.root, b.fx, class_name="Lowered")
    used = {node.target for node in b.fx.nodes if node.op == "get_attr"}
    names = Names({n: b.registered[n] for n in graph.weights if b.registered.get(n) in used})
    ends = [value.name for value in graph.outputs if value.name not in untrained]
    left = untrained_weights(graph, b.fx, b.root, names.attributes, stopped, ends)
    kept = {_NAMES: names, _UNTRAINED: untrained, _LEFT: left}
    for name, value in kept.items():
        setattr(module, name, value)
    module.meta[_KEPT] = kept
    return module.eval()


def from_torch(graph: Graph, module: torch.nn.Module) -> Graph:
    """The graph with the module's weights and running statistics; what training did not change keeps its bytes.

    In tensors that it did change, denormal numbers become zero (denormals). The module is what `lower(graph)` returned,
    or a copy of it. Raises UsageError where it is not.
    """
    return returned(graph, module)[0]


def returned(graph: Graph, module: torch.nn.Module) -> tuple[Graph, int]:
    """As from_torch, and how many denormal numbers became zero."""
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    changed, flushed, stepped = {}, 0, stepped_weights(graph)
    for name, attribute in names_of(module):
        if attribute not in tensors or name not in graph.weights:
            raise UsageError(f"weight {name!r} is not in both the module and {graph.file or 'the graph'}.")
        old, new = graph.array(name), to_numpy(tensors[attribute])
        if new.shape != old.shape:
            raise UsageError(
                f"weight {name!r} has shape {old.shape}, the module's {new.shape}: lower this graph first."
            )
        if name in stepped:
            new = stepped[name].stored(new, old)
        if new.dtype != old.dtype:
            new = new.astype(old.dtype)
        if not np.array_equal(old.reshape(-1).view(np.uint8), new.reshape(-1).view(np.uint8)):
            tiny = denormal(new)
            flushed += int(tiny.sum())
            changed[name] = np.where(tiny, new.dtype.type(0), new) if tiny.any() else new
    return graph.with_arrays(changed), flushed


def names_of(module: torch.nn.Module) -> Names:
    """Which attribute of a lowered module holds which initializer. Raises UsageError for other modules."""
    names = getattr(module, _NAMES, None)
    if not isinstance(names, Names):
        raise UsageError(f"a {type(module).__name__} is not a lowered model: it does not know its initializers' names.")
    return names


def untrained_of(module: torch.nn.Module) -> Mapping[str, str]:
    """The outputs of a lowered module that no gradient reaches, each with the reason. UsageError for other modules."""
    names_of(module)
    found: Mapping[str, str] = getattr(module, _UNTRAINED)
    return found


def untrained_weights_of(module: torch.nn.Module) -> Mapping[str, str]:
    """The learned weights of a lowered module that no gradient reaches, each with the reason (untrained)."""
    names_of(module)
    found: Mapping[str, str] = getattr(module, _LEFT)
    return found


def _lower_nodes(b: Builder, *, whole: bool) -> tuple[dict[str, str], dict[int, UnsupportedOp]]:
    """Every node, in torch or outside; the outputs that a tail makes, each with what began it; and the nodes outside.

    The `whole` graph: raises UnsupportedOp rather than leave anything to onnxruntime.
    """
    graph = b.graph
    late: dict[str, UnsupportedOp] = {}  # values of the tail, with what began it
    chosen: dict[str, UnsupportedOp] = {}  # values that depend on trained weights by whole numbers alone
    learned: set[str] = set()  # values that depend on trained weights otherwise
    stopped: dict[int, UnsupportedOp] = {}
    obstacles = []
    for node in graph.nodes:
        b.begin(node)
        names = [name for name in (*node.inputs, *node.captured) if name]
        learns = any(name in b.trainable or name in learned for name in names)
        obstacle = next((late[name] for name in names if name in late), None)
        if obstacle is None:
            try:
                _lower_node(b, node)
            except UnsupportedOp as error:
                if whole:
                    raise
                obstacles.append(error)
                stopped[node.index] = error
                if _chooses(graph, node) and _stands_outside(b, node, error):
                    chosen.update(dict.fromkeys(filter(None, node.outputs), error))
                    continue
                obstacle = error
                if not learns:
                    _run_outside(b, ancestors(graph, node), [name for name in node.outputs if name], error)
                    continue
        if obstacle is not None:
            stopped[node.index] = obstacle
            late.update(dict.fromkeys(filter(None, node.outputs), obstacle))
        elif learns:
            learned.update(node.outputs)
        elif (why := next((chosen[name] for name in names if name in chosen), None)) is not None:
            chosen.update(dict.fromkeys(filter(None, node.outputs), why))
    ends = [value.name for value in graph.outputs]
    if obstacles and learned.isdisjoint(ends):
        raise obstacles[0]
    made_late = [name for name in ends if name in late]
    if made_late:
        needed = {at.index: at for name in made_late for at in ancestors(graph, graph.producer(name))}
        tail = [node for index, node in sorted(needed.items()) if not late.keys().isdisjoint(node.outputs)]
        _run_outside(b, tail, made_late, late[made_late[0]])
    reasons = {**chosen, **late}
    return {name: str(reasons[name]) for name in ends if name in reasons}, stopped


def _chooses(graph: Graph, node: Node) -> bool:
    """Whether a node makes only whole numbers and truth values, to which no gradient goes anyway: non-maximum
    suppression, say."""
    types = [graph.dtype(name) for name in node.outputs if name]
    return all(dtype is not None and dtype.kind in "iub" for dtype in types)


def _stands_outside(b: Builder, node: Node, obstacle: UnsupportedOp) -> bool:
    """Let onnxruntime run this one node, between others that are trained. False where it could not be given what it
    needs."""
    try:
        _run_outside(b, [node], [name for name in node.outputs if name], obstacle)
    except UnsupportedOp:
        return False
    return True


def _run_outside(b: Builder, nodes: Sequence[Node], outputs: Sequence[str], obstacle: UnsupportedOp) -> None:
    """Let onnxruntime make some values. Raises the obstacle where it could not even be given what it needs."""
    try:
        outside = Outside(cut_out(b.graph, nodes, outputs))
    except ModelError:
        raise obstacle from None
    made = b.module(outside, *(_as_declared(b, name) for name in outside.inputs))
    made.meta["nodes"] = frozenset(node.index for node in nodes)
    for k, name in enumerate(outputs):
        b.assign(name, b.call(operator.getitem, made, k))


def _as_declared(b: Builder, name: str) -> fx.Node:
    """A value with the type that it has in the file."""
    made, dtype = b.tensor(name), b.graph.dtype(name)
    return b.method("to", made, torch_dtype(dtype)) if name in b.carried and dtype is not None else made


def _lower_node(b: Builder, node: Node) -> None:
    op = node.operator
    own = LOWER.get(op) or (FLOW.get(op) if b.inner is not None else None)
    if own is None and op not in KNOWN:
        raise b.unsupported(node, "no lowering is known for it")
    _follow_carried(b, node)
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
    if own is None:
        raise b.unsupported(node, "no lowering is known for it")
    result = own(b, node)
    results = [result] if isinstance(result, fx.Node | Known) else list(result)
    for name, value in zip(node.outputs, results, strict=False):
        b.assign(name, value)


def _follow_carried(b: Builder, node: Node) -> None:
    """Whole numbers that are carried as floats stay so where they are moved; no arithmetic may take them for floats."""
    if b.carried.isdisjoint(node.inputs) or node.operator in TAKE_CARRIED:
        return
    if node.operator not in MOVES:
        raise b.unsupported(node, "arithmetic with quantised numbers")
    b.carried.update(node.outputs)


def _fold(b: Builder, node: Node) -> bool:
    """Take the value that shape inference computed for a node of constants that are not trained."""
    found = {name: b.graph.constant(name) for name in node.outputs if name}
    for name, array in found.items():
        if array is not None and len(found) == 1:
            b.assign(name, Known.of(array))
    return len(found) == 1 and all(array is not None for array in found.values())
