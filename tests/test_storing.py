"""Models are written piece by piece, and are the same models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.storing import stored_size, write_model


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_what_is_written_is_read_as_the_same_model(name: str, tmp_path: Path) -> None:
    model = zoo.onnx_model(name)
    file = tmp_path / "model.onnx"
    write_model(model, file)
    whole = model.SerializeToString()
    assert file.read_bytes() == whole
    assert len(whole) - 4096 < stored_size(model) <= len(whole)


@pytest.mark.parametrize("elements", [0, 1, 31, 32, 4095, 4096, 600_000])
def test_lengths_of_any_size_are_written_right(elements: int, tmp_path: Path) -> None:
    """A length takes one byte up to 127, two up to 16,383, and so on."""
    weight = numpy_helper.from_array(np.arange(elements, dtype=np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [elements])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [elements])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight, weight][:1])
    model = helper.make_model(graph, producer_name="p" * 200)
    model.metadata_props.add(key="k", value="v")
    write_model(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == model.SerializeToString()
