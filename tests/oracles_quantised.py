"""What the oracles know of sums of products of quantised numbers, where zero is the number that says so."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["INTEGER", "WEIGHT", "hidden"]

INTEGER = {"ConvInteger": 1, "MatMulInteger": -1, "QLinearConv": 1, "QLinearMatMul": -1}  # the axis summed over
ZERO = 2  # the input that is the first input's zero point, in all of them
WEIGHT = {"QLinearConv": 3, "QLinearMatMul": 3}  # the input that is the weight, where it is not the second


def hidden(
    proto: onnx.NodeProto, mask: np.ndarray, dtype: np.dtype, name: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that put its zero point in place of the first input where the mask is zero; `{name}, applied` is made."""
    zero = proto.input[ZERO] if len(proto.input) > ZERO else ""
    initializers = [numpy_helper.from_array(mask != 0, name)]
    if not zero:
        zero = f"{name}, zero"
        initializers.append(numpy_helper.from_array(np.zeros((), dtype), zero))
    wide = [f"{name}, {what} wide" for what in ("input", "zero", "masked")]
    nodes = [
        helper.make_node("Cast", [proto.input[0]], [wide[0]], to=TensorProto.INT32),
        helper.make_node("Cast", [zero], [wide[1]], to=TensorProto.INT32),
        helper.make_node("Where", [name, *wide[:2]], [wide[2]]),
        helper.make_node("Cast", [wide[2]], [f"{name}, applied"], to=helper.np_dtype_to_tensor_dtype(dtype)),
    ]
    return nodes, initializers
