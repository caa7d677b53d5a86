"""Weights that are held apart from the model are verified like any other."""

from __future__ import annotations

import numpy as np
import pytest
import zoo

from conet_onnx.analysis import analyze
from conet_onnx.errors import VerificationFailed
from conet_onnx.graph import Graph
from conet_onnx.loading import load
from conet_onnx.planning import plan
from conet_onnx.plans import WidthPlan
from conet_onnx.rewriting import rewrite
from conet_onnx.verification import verify


def resized() -> tuple[Graph, Graph, WidthPlan]:
    """SqueezeNet with one of its widths a quarter smaller: most large weights are not in the plan."""
    source = zoo.graph("squeezenet1_0")
    analysis = analyze(source)
    name, width = max(analysis.widths.items(), key=lambda item: item[1].size)
    made = plan(analysis, {name: width.size * 3 // 4})
    return source, rewrite(source, made), made


def one_bit_off(graph: Graph, name: str) -> Graph:
    array = graph.array(name).copy()
    array.reshape(-1)[-1] = np.nextafter(array.reshape(-1)[-1], np.float32(1))
    return graph.with_arrays({name: array})


def test_those_that_the_plan_leaves_alone_are_the_sources_own_memory():
    source, made, planned = resized()
    same = [name for name in source.arrays if made.arrays.get(name) is source.arrays[name]]
    assert len(same) > 10
    assert same == [name for name in source.arrays if name not in planned.initializers]
    assert verify(source, made, planned)


@pytest.mark.parametrize("is_planned", [False, True])
def test_one_bit_in_one_of_them_is_found(is_planned):
    source, made, planned = resized()
    name = next(n for n in made.arrays if (n in planned.initializers) is is_planned)
    with pytest.raises(VerificationFailed, match=name):
        verify(source, one_bit_off(made, name), planned)


def test_it_does_not_matter_which_of_the_two_holds_them_apart(tmp_path):
    source, made, planned = resized()
    made.save(tmp_path / "made.onnx")
    for a in (source, zoo.graph("squeezenet1_0"), Graph(zoo.onnx_model("squeezenet1_0"))):
        for b in (made, load(tmp_path / "made.onnx"), Graph(made.proto())):
            assert verify(a, b, planned)
    assert not Graph(made.proto()).arrays
