"""Spare a lowered graph the memory traffic that the torch modules it came from would not have had."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch.nn import functional as F

from conet_onnx.graph import Graph
from conet_onnx.torch_backend.ops.normalize import BatchNormalization

__all__ = ["tighten"]

# Their outputs are new tensors that their own gradients do not need, so an activation may overwrite them.
SAME = 1e-6  # relative; between a constant in the file and the number that it stands for
_FRESH = {F.conv1d, F.conv2d, F.conv3d, F.linear, F.batch_norm, operator.add, F.conv_transpose1d, F.conv_transpose2d}


def tighten(graph: fx.Graph, root: nn.Module, source: Graph) -> None:
    """Fuse what exporters split: x · sigmoid(x), x · hardsigmoid(x), GELU by its error function, a product with a
    matrix of weights and the bias after it, attention without a mask. Let activations overwrite their input."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is operator.mul:
            _fuse_gate(graph, node)
        elif node.target is torch.erf:
            _fuse_gelu(graph, node)
        elif node.target is operator.add:
            _fuse_bias(graph, node, root)
        elif node.target is torch.matmul:
            _fuse_attention(graph, node, root, source)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    for node in graph.nodes:
        if node.op == "call_function" and node.target in (F.relu, F.hardtanh) and _may_overwrite(node, root):
            node.kwargs = {**node.kwargs, "inplace": True}


def _fuse_gate(graph: fx.Graph, product: fx.Node) -> None:
    for gate, x in (product.args, product.args[::-1]):
        fused = _GATES.get(gate.target) if isinstance(gate, fx.Node) and gate.op == "call_function" else None
        if fused is None or not isinstance(gate, fx.Node) or gate.args[0] is not x or len(gate.users) > 1:
            continue
        _replace(graph, product, fused, (x,))
        return


_GATES: dict[Any, Callable[..., torch.Tensor]] = {torch.sigmoid: F.silu, F.hardsigmoid: F.hardswish}


def _fuse_gelu(graph: fx.Graph, erf: fx.Node) -> None:
    """x · (1 + erf(x / √2)) / 2, whichever of the three factors come first (Hendrycks and Gimpel, 2016)."""
    x, divisor = _scaled(erf.args[0])
    shifted = _only(erf, operator.add)
    if x is None or abs(divisor * math.sqrt(2) - 1) > SAME or shifted is None or _other(shifted, erf) != 1:
        return
    product = _only(shifted, operator.mul)
    if product is None:
        return
    other, half = _scaled(_other(product, shifted))
    if other is not x:
        return
    if abs(half - 1) < SAME:
        last = _only(product, operator.mul)
        if last is None or not isinstance(factor := _other(last, product), int | float):
            return
        product, half = last, float(factor)
    if abs(half - 0.5) < SAME:
        _replace(graph, product, F.gelu, (x,))


def _scaled(value: Any) -> tuple[fx.Node | None, float]:
    """What a value is a multiple of by a Python number, and the number."""
    if not isinstance(value, fx.Node):
        return None, 1.0
    if value.op == "call_function" and value.target in (operator.mul, operator.truediv) and len(value.users) == 1:
        a, b = value.args
        if isinstance(a, fx.Node) and isinstance(b, int | float):
            return a, float(b) if value.target is operator.mul else 1 / float(b)
        if isinstance(b, fx.Node) and isinstance(a, int | float) and value.target is operator.mul:
            return b, float(a)
    return value, 1.0


def _only(node: fx.Node, target: Any) -> fx.Node | None:
    """The only reader of a node, if that is such a call."""
    users = list(node.users)
    found = len(users) == 1 and users[0].op == "call_function" and users[0].target is target
    return users[0] if found else None


def _other(node: fx.Node, one: fx.Node) -> Any:
    """The other one of two arguments."""
    a, b = node.args
    return b if a is one else a


def _fuse_attention(graph: fx.Graph, product: fx.Node, root: nn.Module, source: Graph) -> None:
    """softmax(c · q @ kᵀ) @ v, where q, k and v are [batch, heads, positions, size]; c may be anywhere before the
    Softmax, in parts."""
    soft, v = product.args
    if not _called(soft, torch.softmax) or len(soft.users) > 1 or soft.args[1] not in (-1, 3):
        return
    scores, outer = _multiple(soft.args[0], root)
    if not _called(scores, torch.matmul) or len(scores.users) > 1:
        return
    (q, left), (turned, right) = (_multiple(value, root) for value in scores.args)
    if not _called(turned, torch.permute) or turned.args[1] != (0, 1, 3, 2):
        return
    k, inner = _multiple(turned.args[0], root)
    names = [next(iter(value.meta.get("values", ())), "") for value in (q, k, v) if isinstance(value, fx.Node)]
    sizes = [source.sizes(name) for name in names]
    known = [found for found in sizes if found is not None and len(found) == 4]
    if len(known) == 3 and all(found[:2] == known[0][:2] for found in known):
        attention = F.scaled_dot_product_attention
        _replace(graph, product, attention, (q, k, v), scale=outer * left * right * inner)


def _called(value: Any, target: Any) -> TypeGuard[fx.Node]:
    return isinstance(value, fx.Node) and value.op == "call_function" and value.target is target


def _multiple(value: Any, root: nn.Module) -> tuple[Any, float]:
    """What a value is a multiple of, and of how much: by Python numbers and by single numbers that the module holds."""
    factor = 1.0
    while isinstance(value, fx.Node) and value.op == "call_function" and len(value.users) == 1:
        if value.target not in (operator.mul, operator.truediv):
            break
        a, b = value.args
        numbers = [_number(a, root), _number(b, root)]
        if numbers[1] is not None and isinstance(a, fx.Node):
            factor, value = factor * numbers[1] if value.target is operator.mul else factor / numbers[1], a
        elif numbers[0] is not None and value.target is operator.mul:
            factor, value = factor * numbers[0], b
        else:
            break
    return value, factor


def _number(value: Any, root: nn.Module) -> float | None:
    """A Python number, or the only element of something that the module holds and does not train."""
    if isinstance(value, int | float):
        return float(value) or None
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    held = dict(root.named_buffers()).get(str(value.target))
    return float(held) or None if held is not None and held.dim() <= 1 and held.numel() == 1 else None


def _fuse_bias(graph: fx.Graph, total: fx.Node, root: nn.Module) -> None:
    """x @ w + b, with w a matrix of weights, as it is or transposed, and b a vector of them."""
    for product, bias in (total.args, total.args[::-1]):
        if not isinstance(product, fx.Node) or product.target is not torch.matmul or len(product.users) > 1:
            continue
        x, w = product.args
        transposed = isinstance(w, fx.Node) and w.target is torch.permute and w.args[1] == (1, 0)
        weight = w.args[0] if isinstance(w, fx.Node) and transposed else w
        shape, width = _shape(weight, root), _shape(bias, root)
        if shape is None or width is None or len(shape) != 2 or width != (shape[0 if transposed else 1],):
            continue
        if not isinstance(x, fx.Node) or x is weight:
            continue
        if not transposed:
            with graph.inserting_before(total):
                weight = graph.call_function(torch.t, (weight,))
        _replace(graph, total, F.linear, (x, weight, bias))
        return


def _shape(value: Any, root: nn.Module) -> tuple[int, ...] | None:
    """Of what the module holds."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    found = getattr(root, str(value.target), None)
    return tuple(found.shape) if isinstance(found, torch.Tensor) else None


def _replace(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...], **more: Any) -> None:
    with graph.inserting_before(node):
        made = graph.create_node("call_function", target, args, more, name=node.name)
    made.meta.update(node.meta)
    gone = _between(node, args)
    made.meta["nodes"] = frozenset[int]().union(*(one.meta.get("nodes", ()) for one in gone))
    made.meta["multiples"] = {n: k for one in gone[1:] for k, arg in enumerate(args) for n in _multiples_of(arg, one)}
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _between(node: fx.Node, args: tuple[Any, ...]) -> list[fx.Node]:
    """A node, and what it is computed from: all that one call with these arguments takes the place of."""
    found: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        at = waiting.pop()
        if at not in found and at not in args and at.op != "get_attr":
            found[at] = None
            waiting.extend(at.all_input_nodes)
    return list(found)


def _multiples_of(arg: Any, node: fx.Node) -> tuple[str, ...]:
    """The names of a node that is an argument times numbers: what is done to the one's channels is done to its."""
    at = node
    while at is not arg:
        varying = [one for one in at.all_input_nodes if one.op != "get_attr"]
        if at.target not in (operator.mul, operator.truediv) or len(varying) != 1 or at.args.count(varying[0]) != 1:
            return ()
        at = varying[0]
    names: tuple[str, ...] = node.meta.get("values", ())
    return names


def _may_overwrite(node: fx.Node, root: nn.Module) -> bool:
    x = node.args[0]
    if not isinstance(x, fx.Node) or len(x.users) > 1:
        return False
    if x.op == "call_module":
        return isinstance(root.get_submodule(str(x.target)), BatchNormalization)
    return x.op == "call_function" and x.target in _FRESH
