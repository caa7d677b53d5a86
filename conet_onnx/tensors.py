"""What a tensor's message holds itself, as an array."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

__all__ = ["PLAIN", "plain", "values"]

# ONNX TensorProto.raw_data: these are stored element by element, little-endian, as numpy holds them
PLAIN = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL}
    | {TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64}
    | {TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64}
)

_DTYPES: Mapping[int, np.dtype[Any]] = (
    {kind: helper.tensor_dtype_to_np_dtype(kind) for kind in PLAIN} if sys.byteorder == "little" else {}
)


def plain(tensor: TensorProto) -> bool:
    """Whether raw_data is the elements as numpy holds them."""
    return tensor.data_type in PLAIN and sys.byteorder == "little"


def values(tensor: TensorProto) -> np.ndarray[Any, Any]:
    """What a tensor holds itself, not to be written to. Raises ValueError where that does not fit its shape."""
    if tensor.HasField("raw_data") and (dtype := _DTYPES.get(tensor.data_type)) is not None:
        return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))  # as to_array does, and faster
    array: np.ndarray[Any, Any] = numpy_helper.to_array(tensor)
    return array
