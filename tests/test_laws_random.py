"""The laws of plans on random graphs; `tools/fuzz.py` runs the same checks for as long as one likes."""

from __future__ import annotations

import random

import oracles
import pytest
import strategies
from hypothesis import HealthCheck, given, settings

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(strategies.graphs())
def test_random_graphs_keep_all_laws(model):
    oracles.keep_all_laws(model)


@pytest.mark.parametrize("block", range(4))
def test_larger_random_graphs_keep_all_laws_and_are_not_simply_frozen(block):
    verdicts = [
        oracles.keep_all_laws(strategies.random_model(random.Random(f"{block} {k}"), steps=16), seed=k)
        for k in range(15)
    ]
    assert sum(v.coverage for v in verdicts) / len(verdicts) > 0.45
    assert sum(v.moved > 1e-3 for v in verdicts) >= 12  # a mask that changes nothing proves nothing
    assert sum(v.widths > 2 for v in verdicts) >= 9


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(strategies.graphs("mixed"))
def test_random_graphs_of_maps_and_sequences_keep_all_laws(model):
    oracles.keep_all_laws(model)


def test_larger_random_graphs_of_maps_and_sequences_keep_all_laws_and_are_not_simply_frozen():
    verdicts = [
        oracles.keep_all_laws(strategies.random_model(random.Random(f"mixed {k}"), steps=12, grammar="mixed"), seed=k)
        for k in range(10)
    ]
    assert sum(v.coverage for v in verdicts) / len(verdicts) > 0.45
    assert sum(v.moved > 1e-3 for v in verdicts) >= 8
    assert sum(v.widths > 2 for v in verdicts) >= 7


@pytest.mark.parametrize("block", strategies.BLOCKS, ids=lambda step: step.__name__)
def test_every_block_alone_keeps_all_laws_and_can_be_resized(block):
    verdicts = [
        oracles.keep_all_laws(strategies.model_of(block, random.Random(f"{block.__name__} {k}")), seed=k)
        for k in range(3)
    ]
    assert max(v.coverage for v in verdicts) > 0.4
    assert max(v.widths for v in verdicts) > 0
    assert max(v.moved for v in verdicts) > 1e-3


def test_random_graphs_hold_every_kind_of_node():
    """The strategy reaches what it is for."""
    models = [strategies.random_model(random.Random(k)) for k in range(150)]
    found = {node.op_type for model in models for node in model.graph.node}
    assert found >= {
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Concat", "Split", "Slice", "Pad"),
        *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "ReduceMean", "Resize", "MaxPool", "PRelu"),
        *("Clip", "Identity", "Cast", "Shape", "Gather", "Softmax", "CumSum", "ArgMax", "Dropout", "Constant"),
    }
    assert {o.version for model in models for o in model.opset_import} == set(range(11, 22))
    mixed = [strategies.random_model(random.Random(k), grammar="mixed") for k in range(150)]
    found = {node.op_type for model in mixed for node in model.graph.node}
    assert found >= {
        *("Softmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "LSTM", "GRU", "RNN"),
        *("Range", "Gather", "Expand", "DepthToSpace", "SpaceToDepth", "Erf", "Where", "Cos", "Neg", "Conv", "Pad"),
    }
    sizes = {d.dim_param for model in mixed for v in model.graph.input for d in v.type.tensor_type.shape.dim}
    assert sizes == {"", "N", "T"}


def test_analysis_does_not_depend_on_the_order_of_the_nodes():
    """Any topological order gives the same widths."""
    for k in range(12):
        model = strategies.random_model(random.Random(f"order {k}"))
        before = analyze(Graph(model))
        shuffled = type(model)()
        shuffled.CopyFrom(model)
        nodes = _another_order(list(shuffled.graph.node), random.Random(k))
        del shuffled.graph.node[:]
        shuffled.graph.node.extend(nodes)
        after = analyze(Graph(shuffled))
        assert _groups(before) == _groups(after)


def _groups(analysis):
    """The tensors and axes of each width; a tensor that is read several times is told apart by its readers' outputs."""
    return sorted((w.size, sorted({(m.tensor, m.axis) for m in w.members})) for w in analysis.widths.values())


def _another_order(nodes, chance):
    made, done = [], {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
    while nodes:
        ready = [node for node in nodes if all(not name or name in done for name in node.input)]
        node = chance.choice(ready)
        nodes.remove(node)
        made.append(node)
        done.update(node.output)
    return made
