"""Every tensor of a model in double precision, by onnx's reference evaluator: where float32 is too coarse to tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from conet_onnx.graph import Graph

__all__ = ["TIGHT", "in_double"]

TIGHT = 1e-9  # of a tensor's largest element
SINGLE = (TensorProto.FLOAT, TensorProto.FLOAT16)


def in_double(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor that a node makes. Raises what the evaluator raises for an operator that it does not know."""
    model = graph.proto()
    for tensor in model.graph.initializer:
        _widen(tensor)
    _nodes(model.graph.node)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in SINGLE:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del model.graph.value_info[:]
    wide = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in feeds.items()}
    found = ReferenceEvaluator(model).run(None, wide, intermediate=True)
    assert isinstance(found, dict)
    made = {name for node in model.graph.node for name in node.output if name}
    return {name: value for name, value in found.items() if name in made and isinstance(value, np.ndarray)}


def _nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                for tensor in attribute.g.initializer:
                    _widen(tensor)
                _nodes(attribute.g.node)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in SINGLE:
                attribute.i = TensorProto.DOUBLE


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in SINGLE:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
