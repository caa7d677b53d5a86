"""What an optimizer remembers follows a resize along the plan's indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_train import network, problem, train

from conet_onnx.analysis import analyze
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.planning import plan
from conet_onnx.plans import Take, WidthPlan
from conet_onnx.rewriting import rewrite
from conet_onnx.torch_backend.moments import resized


def resize(graph: Graph, size: int, **how: Any) -> WidthPlan:
    analysis = analyze(graph)
    (width,) = analysis.widths.values()
    return plan(analysis, {width.id: size}, **how)


class TestShrinking:
    @pytest.mark.parametrize(
        ("optimizer", "names"), [("sgd", {"momentum_buffer"}), ("adamw", {"step", "exp_avg", "exp_avg_sq"})]
    )
    def test_they_are_those_of_the_channels_that_are_kept(self, optimizer: str, names: set[str]) -> None:
        fitted = train(network(8), problem(), epochs=1, optimizer=optimizer)
        made = resize(fitted.graph, 5)
        follow = resized(fitted.moments, made)
        small = rewrite(fitted.graph, made)
        assert follow.keys() == fitted.moments.keys() == {"conv.w", "norm.s", "norm.b", "fc.w", "fc.b"}
        for name, kept in follow.items():
            assert kept.keys() == names
            for key, value in kept.items():
                if key == "step":
                    assert value == 13
                    continue
                assert value.shape == small.array(name).shape
                old = fitted.moments[name][key]
                how = made.initializers.get(name)
                for axis, index in (how.take if isinstance(how, Take) else {}).items():
                    old = np.take(old, index, axis)
                np.testing.assert_array_equal(value, old)

    def test_training_goes_on_with_them(self) -> None:
        """A first step from moments is longer than one from none."""
        fitted = train(network(8), problem(), epochs=1)
        made = resize(fitted.graph, 5)
        small = rewrite(fitted.graph, made)
        plain, warm = (
            train(small, problem(16), epochs=1, lr=1e-3, weight_decay=0.0, moments=moments).graph
            for moments in (None, resized(fitted.moments, made))
        )
        moved = [np.linalg.norm(g.array("fc.w") - small.array("fc.w")) for g in (plain, warm)]
        assert moved[1] != pytest.approx(moved[0], rel=1e-3)

    def test_those_of_another_shape_are_refused(self) -> None:
        fitted = train(network(8), problem(16), epochs=1)
        with pytest.raises(UsageError, match=r"moments of '[\w.]+' have shape"):
            train(network(5), problem(16), epochs=1, moments=fitted.moments)


class TestGrowing:
    def test_copies_begin_with_what_they_are_copies_of(self) -> None:
        fitted = train(network(4), problem(), epochs=1)
        made = resize(fitted.graph, 8, transfer="net2net")
        follow = resized(fitted.moments, made)
        how = made.initializers["conv.w"]
        assert isinstance(how, Take)
        old, new = fitted.moments["conv.w"]["momentum_buffer"], follow["conv.w"]["momentum_buffer"]
        np.testing.assert_array_equal(new, old[how.take[0]])
        grown = rewrite(fitted.graph, made)
        assert train(grown, problem(32), epochs=1, moments=follow).history[0]["accuracy"] > 0.8

    def test_zeros_remember_nothing(self) -> None:
        fitted = train(network(4), problem(), epochs=1)
        follow = resized(fitted.moments, resize(fitted.graph, 6, transfer="zero"))
        grown = follow["fc.w"]["momentum_buffer"]
        assert grown.shape == (4, 54)
        assert (grown[:, 36:] == 0).all()
        assert (grown[:, :36] == fitted.moments["fc.w"]["momentum_buffer"]).all()
