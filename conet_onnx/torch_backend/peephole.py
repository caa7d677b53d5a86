"""Spare a lowered graph the memory traffic that the torch modules it came from would not have had."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from conet_onnx.torch_backend.ops.normalize import BatchNormalization

__all__ = ["tighten"]

# Their outputs are new tensors that their own gradients do not need, so an activation may overwrite them.
_FRESH = {F.conv1d, F.conv2d, F.conv3d, F.linear, F.batch_norm, operator.add, F.conv_transpose1d, F.conv_transpose2d}


def tighten(graph: fx.Graph, root: nn.Module) -> None:
    """Fuse x · sigmoid(x) and x · hardsigmoid(x) as exporters split them; let activations overwrite their input."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is operator.mul:
            _fuse_gate(graph, node)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in (F.relu, F.hardtanh) and _may_overwrite(node, root):
            node.kwargs = {**node.kwargs, "inplace": True}


def _fuse_gate(graph: fx.Graph, product: fx.Node) -> None:
    for gate, x in (product.args, product.args[::-1]):
        fused = _GATES.get(gate.target) if isinstance(gate, fx.Node) and gate.op == "call_function" else None
        if fused is None or not isinstance(gate, fx.Node) or gate.args[0] is not x or len(gate.users) > 1:
            continue
        with graph.inserting_before(product):
            made = graph.create_node("call_function", fused, (x,), name=product.name)
        product.replace_all_uses_with(made)
        graph.erase_node(product)
        graph.erase_node(gate)
        return


_GATES: dict[Any, Callable[..., torch.Tensor]] = {torch.sigmoid: F.silu, F.hardsigmoid: F.hardswish}


def _may_overwrite(node: fx.Node, root: nn.Module) -> bool:
    x = node.args[0]
    if not isinstance(x, fx.Node) or len(x.users) > 1:
        return False
    if x.op == "call_module":
        return isinstance(root.get_submodule(str(x.target)), BatchNormalization)
    return x.op == "call_function" and x.target in _FRESH
