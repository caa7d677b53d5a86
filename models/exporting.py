"""Torch modules as ONNX files that are easy to read: torch's names, a free batch, nothing that is computed twice."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from conet_onnx.batches import freed
from conet_onnx.errors import ModelError
from conet_onnx.files import atomic_write
from conet_onnx.graph import Graph
from conet_onnx.loading import load

__all__ = ["OPSET", "exported", "save"]

OPSET = 18
BATCH = 2  # the trace's own; one would be taken for a size that broadcasts


def exported(
    model: nn.Module, shape: Sequence[int], *, keep_norms: bool = False, opset: int = OPSET
) -> onnx.ModelProto:
    """The module as it infers, for images of `shape` (without the batch): input `image`, output `logits`.

    BatchNormalization is folded into the convolution before it, or stays, in inference mode, with `keep_norms`: where
    the file is to be trained, its statistics are needed. Weights have torch's names; a bias that folding makes is
    called as torch would call it. The module is left as it was. Raises ModelError where the batch cannot be freed.

    It is torch's older exporter (TorchScript) that traces: it keeps names and folds nothing when told to preserve the
    mode, and needs a fraction of the newer one's time. What it leaves behind is cleared away here. It traces a batch of
    two, which is made free afterwards, so that sizes stand in the file as numbers.
    """
    traced = _traced(copy.deepcopy(model).cpu().eval(), shape, opset)
    _own_weights(traced)
    if not keep_norms:
        _fold_norms(traced)
    found = freed(Graph(traced))
    if found.reason:
        raise ModelError(f"The exported module keeps the batch of {BATCH} that it was traced at: {found.reason}")
    return _settled(found.graph)


def save(
    model: nn.Module,
    shape: Sequence[int],
    path: str | os.PathLike[str],
    *,
    keep_norms: bool = False,
    opset: int = OPSET,
) -> Graph:
    """Write what `exported` makes, whole or not at all, and load it as users do. Raises OutputError too."""
    made = exported(model, shape, keep_norms=keep_norms, opset=opset)
    with atomic_write(path) as part:
        onnx.save(made, part)
    return load(path)


def _traced(model: nn.Module, shape: Sequence[int], opset: int) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = os.path.join(folder, "model.onnx")
        warnings.simplefilter("ignore")  # the exporter is deprecated, and its tracer warns of every Python integer
        torch.onnx.export(
            model,
            (torch.zeros(BATCH, *shape),),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=["image"],
            output_names=["logits"],
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
        return onnx.load(file)


def _own_weights(model: onnx.ModelProto) -> None:
    """Equal weights are stored once and aliased: each gets its own, under its own name."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "Identity" and n.input[0] in weights]:
        model.graph.initializer.add().CopyFrom(weights[node.input[0]])
        model.graph.initializer[-1].name = node.output[0]
        model.graph.node.remove(node)


def _fold_norms(model: onnx.ModelProto) -> None:
    """y = g (conv(x) - m) / sqrt(v + eps) + b, in the convolution's own weight and bias, computed in float64."""
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    convolutions = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    read = [name for node in graph.node for name in node.input]
    for norm in [n for n in graph.node if n.op_type == "BatchNormalization"]:
        conv = convolutions.get(norm.input[0])
        if conv is None or read.count(conv.output[0]) != 1:
            continue
        name = conv.input[1]
        scale, shift, mean, var = (numpy_helper.to_array(weights[n]).astype(np.float64) for n in norm.input[1:])
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(var + epsilon)
        weight = numpy_helper.to_array(weights[name]).astype(np.float64) * factor.reshape(
            -1, *[1] * (len(weights[name].dims) - 1)
        )
        bias = numpy_helper.to_array(weights[conv.input[2]]).astype(np.float64) if len(conv.input) > 2 else 0.0
        if len(conv.input) < 3:
            conv.input.append(f"{name.removesuffix('.weight')}.bias")
            weights[conv.input[2]] = graph.initializer.add()
        for called, value in ((name, weight), (conv.input[2], shift + (bias - mean) * factor)):
            weights[called].CopyFrom(numpy_helper.from_array(value.astype(np.float32), called))
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    _drop_unread(model)


def _settled(graph: Graph) -> onnx.ModelProto:
    """What follows from constants alone, such as the amounts of a Pad, is a constant; what nobody reads is gone."""
    model = graph.proto()
    known = {
        name: value
        for node in graph.nodes
        if node.op != "Constant"
        for name in node.outputs
        if name and (value := graph.constant(name)) is not None
    }
    for node in [n for n in model.graph.node if len(n.output) == 1 and n.output[0] in known]:
        name = node.output[0]
        value = numpy_helper.from_array(np.asarray(known[name]), name)
        node.CopyFrom(helper.make_node("Constant", [], [name], node.name, value=value))
    _drop_unread(model)
    return model


def _drop_unread(model: onnx.ModelProto) -> None:
    """Nodes and weights of which nothing comes; from the last node to the first, since they stand in order."""
    graph = model.graph
    read = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):
        if read.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            read.update(node.input)
    for weight in [w for w in graph.initializer if w.name not in read]:
        graph.initializer.remove(weight)
