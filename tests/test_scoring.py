"""Importance of channels, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import zoo
from onnx import helper
from test_coupling import conv, model, residual

from conet_onnx.analysis import analyze
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.scoring import importance


def by_hand(graph: Graph, places: list[tuple[str, int]], power: int) -> np.ndarray:
    """The mean over weights of the norm of each channel's slice, each weight's norms divided by their mean."""
    found = []
    for tensor, axis in places:
        slices = np.moveaxis(graph.array(tensor), axis, 0)
        norms = np.array([(np.abs(s.astype(np.float64)) ** power).sum() ** (1 / power) for s in slices])
        found.append(norms / norms.mean())
    return np.mean(found, axis=0)


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_norms_are_averaged_over_all_members(criterion: str, power: int) -> None:
    graph = residual()
    expected = by_hand(graph, [("a", 0), ("b", 0), ("c", 1)], power)
    np.testing.assert_allclose(importance(graph, criterion)["w0"], expected, rtol=1e-6)


def test_channels_of_a_concat_are_scored_where_they_lie() -> None:
    nodes = [conv("x", "a", "ya"), conv("x", "b", "yb"), helper.make_node("Concat", ["ya", "yb"], ["s"], axis=1)]
    graph = model([*nodes, conv("s", "c", "y")], {"a": (4, 3, 1, 1), "b": (6, 3, 1, 1), "c": (5, 10, 1, 1)})
    scores = importance(graph, "l1")
    c = np.abs(graph.array("c")).sum((0, 2, 3), dtype=np.float64)
    for name, tensor, part in (("w0", "a", c[:4]), ("w1", "b", c[4:])):
        own = np.abs(graph.array(tensor)).sum((1, 2, 3), dtype=np.float64)
        np.testing.assert_allclose(scores[name], (own / own.mean() + part / part.mean()) / 2, rtol=1e-6)


def test_batchnorm_scale_counts_where_there_is_one() -> None:
    graph = zoo.graph("resnet18", keep_norms=True)
    analysis = analyze(graph)
    scores = importance(graph, "batchnorm-scale", analysis=analysis)
    width = next(w for w in analysis.widths.values() if w.name == "layer1.0.conv1")
    scale = np.abs(graph.array("layer1.0.bn1.weight"))
    np.testing.assert_allclose(scores[width.id], scale / scale.mean(), rtol=1e-5)


def test_without_a_batchnorm_its_scale_is_the_norm() -> None:
    graph = residual()
    np.testing.assert_array_equal(importance(graph, "batchnorm-scale")["w0"], importance(graph, "l2")["w0"])


def test_random_scores_are_seeded() -> None:
    graph = residual()
    first, again, other = (importance(graph, "random", seed=s)["w0"] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_width_has_a_finite_score_for_each_channel(name: str) -> None:
    graph = zoo.graph(name)
    analysis = analyze(graph)
    for key, scores in importance(graph, "l2", analysis=analysis).items():
        assert scores.shape == (analysis.widths[key].size,)
        assert np.isfinite(scores).all()
        assert scores.std() > 0


@pytest.mark.parametrize("criterion", ["l1", "l2", "random", "batchnorm-scale"])
def test_some_widths_have_the_scores_that_they_have_among_all(criterion: str) -> None:
    graph = zoo.graph("squeezenet1_0")
    analysis = analyze(graph)
    every = importance(graph, criterion, analysis=analysis)
    some = importance(graph, criterion, analysis=analysis, widths=["w3", "w1"])
    assert sorted(some) == ["w1", "w3"]
    for name, scores in some.items():
        np.testing.assert_array_equal(scores, every[name])
    assert importance(graph, criterion, analysis=analysis, widths=[]) == {}


def test_an_unknown_width_is_an_error() -> None:
    with pytest.raises(UsageError, match="w99"):
        importance(residual(), widths=["w99"])


def test_an_unknown_criterion_is_an_error() -> None:
    with pytest.raises(UsageError, match="taylor"):
        importance(residual(), "taylor")
