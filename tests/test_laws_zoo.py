"""The laws of plans on exports of eleven torchvision networks: resizing is masking or duplication, in every tensor."""

from __future__ import annotations

import functools

import numpy as np
import oracles
import pytest
import zoo

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.planning import Selection, select
from conet_onnx.rewriting import rewrite

Flavour = tuple[str, str, bool, bool]

STATIC: list[Flavour] = [(name, "legacy", False, False) for name in zoo.MODELS]
DYNAMIC: list[Flavour] = [(name, "legacy", True, True) for name in zoo.MODELS]
DYNAMO: list[Flavour] = [
    *((name, "dynamo", True, False) for name in ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5")),
    *((name, "dynamo", False, True) for name in ("squeezenet1_0", "shufflenet_v2_x0_5")),
]
COMPARED = {  # tensors that must have been compared at least, of the nodes in the static exports
    "resnet18": 49,
    "resnet50": 122,
    "mobilenet_v2": 100,
    "mobilenet_v3_small": 122,
    "densenet121": 372,
    "squeezenet1_0": 65,
    "shufflenet_v2_x0_5": 186,
    "googlenet": 139,
    "efficientnet_b0": 239,
    "regnet_y_400mf": 217,
    "deeplabv3_mobilenet_v3_large": 154,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@functools.lru_cache(maxsize=1)  # tests of one model follow each other
def _analysed(flavour: Flavour) -> Analysis:
    return analyze(zoo.graph(*flavour))


def _named(flavour: Flavour) -> str:
    name, exporter, dynamic, norms = flavour
    return "-".join([name, exporter, *(["dynamic"] if dynamic else []), *(["norms"] if norms else [])])


every_flavour = pytest.mark.parametrize("flavour", [*STATIC, *DYNAMIC, *DYNAMO], ids=_named)
static = pytest.mark.parametrize("flavour", STATIC, ids=_named)


@every_flavour
def test_shrinking_is_masking_in_every_tensor(flavour):
    analysis = _analysed(flavour)
    outcome = oracles.compare(analysis, oracles.shrunk(analysis, np.random.default_rng(0)))
    assert outcome.compared >= COMPARED[flavour[0]]
    assert outcome.moved > 0.1


@every_flavour
def test_every_width_twice_in_any_order_keeps_every_tensor(flavour):
    analysis = _analysed(flavour)
    noise = oracles.rounding(analysis.graph)
    assert max(noise.values()) < 2e-4
    outcome = oracles.compare(analysis, oracles.doubled(analysis, np.random.default_rng(1)), noise=noise)
    assert outcome.compared >= COMPARED[flavour[0]]


@static
def test_some_widths_smaller_some_larger(flavour):
    analysis = _analysed(flavour)
    for seed in range(2):
        outcome = oracles.compare(analysis, oracles.resized_at_random(analysis, np.random.default_rng(seed)))
        assert outcome.moved > 0.01


@static
def test_the_plan_of_no_change_keeps_every_byte(flavour):
    analysis = _analysed(flavour)
    same = {n: Selection(np.arange(w.size), np.ones(w.size)) for n, w in analysis.widths.items()}
    resized = rewrite(analysis.graph, select(analysis, same))
    source = analysis.graph.proto()
    assert resized.proto().SerializeToString(deterministic=True) == source.SerializeToString(deterministic=True)


@static
def test_the_resized_model_is_valid_and_costs_what_was_priced(flavour):
    analysis = _analysed(flavour)
    assert tuple(analysis.costs.source) == oracles.counted(analysis.graph)
    rng = np.random.default_rng(2)
    for make in (oracles.shrunk, oracles.resized_at_random):
        selections = make(analysis, rng)
        resized = rewrite(analysis.graph, select(analysis, selections))
        oracles.assert_valid(resized, analysis.graph)
        price = analysis.costs.price({n: len(s.indices) for n, s in selections.items()})
        assert tuple(price) == oracles.counted(resized)


@static
def test_two_resizes_in_a_row_are_one(flavour):
    analysis = _analysed(flavour)
    rng = np.random.default_rng(3)
    first, second, both = {}, {}, {}
    for name, width in analysis.widths.items():
        a = np.sort(rng.permutation(width.size)[: max(2, width.size * 3 // 4)])
        b = np.sort(rng.permutation(len(a))[: max(2, len(a) // 2)])
        first[name] = Selection(a, np.ones(len(a)))
        second[name] = Selection(b, np.ones(len(b)))
        both[name] = Selection(a[b], np.ones(len(b)))
    halfway = analyze(rewrite(analysis.graph, select(analysis, first)))
    assert [(w.id, w.name, w.size) for w in halfway.widths.values()] == [
        (w.id, w.name, len(first[w.id].indices)) for w in analysis.widths.values()
    ]
    stepwise = rewrite(halfway.graph, select(halfway, second))
    at_once = rewrite(analysis.graph, select(analysis, both))
    assert oracles.initializer_bytes(stepwise) == oracles.initializer_bytes(at_once)
    assert list(stepwise.model.graph.node) == list(at_once.model.graph.node)


@static
def test_nearly_all_weights_can_be_resized(flavour):
    coverage = _analysed(flavour).costs.coverage
    assert coverage.params > 0.99
    assert coverage.macs > 0.99
