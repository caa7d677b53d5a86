"""A student follows its teacher in whatever the two compute: dense outputs, several of them, and tensors inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch.nn import functional as F

from conet_onnx.analysis import analyze
from conet_onnx.data import Feeds, Split
from conet_onnx.errors import UnsupportedOp, UsageError
from conet_onnx.graph import Graph
from conet_onnx.planning import plan
from conet_onnx.rewriting import rewrite
from conet_onnx.torch_backend import fit
from conet_onnx.torch_backend.losses import Adapters, Match, divergence
from tests.onnx_parity import Array, build, run_reference, some

SETTINGS: dict[str, Any] = {"threads": 1, "accelerator": "cpu", "batch": 16, "batchnorm": "none"}


def dense(width: int = 8, seed: int = 0, names: tuple[str, str] = ("map", "sum")) -> Graph:
    """An image to an image, and to two numbers: a convolution `h` of that width, and one from it to either."""
    rng = np.random.default_rng(seed)
    weights = {
        "a.w": some((width, 1, 3, 3), rng) / 3, "a.b": some((width,), rng) / 3,
        "b.w": some((2, width, 1, 1), rng), "b.b": some((2,), rng),
        "c.w": some((2, width), rng), "c.b": some((2,), rng),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "a.w", "a.b"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["h"]),
        node("Conv", ["h", "b.w", "b.b"], [names[0]]),
        node("GlobalMaxPool", ["h"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "c.w", "c.b"], [names[1]], transB=1),
    ]
    return Graph(build(nodes, {"x": np.zeros((1, 1, 6, 6), np.float32)}, weights, names, 17, "batch"))


def images(samples: int = 128, seed: int = 1) -> Split:
    return Split(np.random.default_rng(seed).normal(0, 1, (samples, 1, 6, 6)).astype(np.float32))


def outputs(graph: Graph, x: Array) -> list[Array]:
    return run_reference(graph.model, {graph.inputs[0].name: x})


def apart(graph: Graph, teacher: Graph) -> list[float]:
    """Of each output: the mean squared difference over the variance of the teacher's, on other data."""
    x = images(seed=9).images[:]
    pairs = zip(outputs(graph, x), outputs(teacher, x), strict=True)
    return [float(np.square(a - b).mean() / b.var()) for a, b in pairs]


class TestDenseOutputs:
    @pytest.mark.parametrize("kind", ["auto", "mse"])
    def test_all_outputs_follow_the_teachers(self, kind: str) -> None:
        teacher, student = dense(seed=0), dense(seed=1)
        fitted = fit(student, images(), teacher=teacher, epochs=60, lr=0.05, loss={"": kind}, **SETTINGS)
        for before, after in zip(apart(student, teacher), apart(fitted.graph, teacher), strict=True):
            assert after < before / 8
        assert {"distillation of map", "distillation of sum", "distillation"} < set(fitted.history[0])

    def test_one_can_be_left_out(self) -> None:
        teacher, student = dense(seed=0), dense(seed=1)
        fitted = fit(student, images(), teacher=teacher, epochs=2, loss={"sum": "none"}, **SETTINGS)
        for name in ("c.w", "c.b"):
            np.testing.assert_array_equal(fitted.graph.array(name), student.array(name))
        assert not np.array_equal(fitted.graph.array("b.w"), student.array("b.w"))

    def test_by_direction_alone(self) -> None:
        """One minus the cosine does not see the length."""
        teacher, student = dense(seed=0), dense(seed=1)
        fitted = fit(
            student, images(), teacher=teacher, epochs=30, lr=0.05, loss={"map": "cosine", "sum": "none"}, **SETTINGS
        )
        x = images(seed=9).images[:]
        a, b = (outputs(g, x)[0].reshape(len(x), -1) for g in (fitted.graph, teacher))
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.mean() > 0.98
        assert fitted.history[-1]["loss"] == pytest.approx(1 - cosine.mean(), abs=0.02)

    def test_in_order_where_the_names_differ(self) -> None:
        teacher, student = dense(seed=0, names=("u", "v")), dense(seed=1)
        fitted = fit(student, images(), teacher=teacher, epochs=60, lr=0.05, loss={"": "mse"}, **SETTINGS)
        for before, after in zip(apart(student, teacher), apart(fitted.graph, teacher), strict=True):
            assert after < before / 8

    def test_squares_are_over_the_teachers_variance(self) -> None:
        found, told = torch.randn(8, 3, 4), 7 * torch.randn(8, 3, 4)
        match = Match("y", "y", "mse").settled(found, told)
        assert float(match(found, told, 1.0)) == pytest.approx(
            float((found - told).square().mean() / told.var(correction=0))
        )

    def test_classes_are_on_the_second_axis_or_the_last_of_three(self) -> None:
        for shape, axis in (((4, 5), 1), ((4, 5, 3, 3), 1), ((4, 7, 5), 2), ((4, 5, 1, 1), 1)):
            found, told = torch.randn(shape), torch.randn(shape)
            match = Match("y", "y", "kl").settled(found, told)
            expected = divergence(*(t.movedim(axis, -1).reshape(-1, 5) for t in (found, told)), 2.0)
            assert float(match(found, told, 2.0)) == pytest.approx(float(expected), rel=1e-5), shape

    def test_numbers_that_are_no_scores_are_learned_too(self) -> None:
        """A divergence of classes does not see what is added to all of them."""
        teacher, student = dense(seed=0), dense(seed=1)
        fitted = fit(student, images(), teacher=teacher, epochs=80, lr=0.05, loss={"map": "none"}, **SETTINGS)
        assert apart(fitted.graph, teacher)[1] < 0.1


class TestFeatures:
    def test_a_narrower_layer_learns_to_tell_what_the_teachers_does(self) -> None:
        """Through a linear map that is trained beside it; what it says alone does not move the rest."""
        teacher = dense(8)
        analysis = analyze(teacher)
        (width,) = (w for w in analysis.widths.values() if w.size == 8)
        student = rewrite(teacher, plan(analysis, {width.id: 5}))
        fitted = fit(
            student,
            images(),
            teacher=teacher,
            epochs=20,
            features={"h": "h"},
            loss={"map": "none", "sum": "none"},
            **SETTINGS,
        )
        assert set(fitted.history[0]) == {"epoch", "loss", "features", "lr", "seconds"}
        assert fitted.history[-1]["features"] < fitted.history[0]["features"] / 2
        assert not np.array_equal(fitted.graph.array("a.w"), student.array("a.w"))
        for name in ("b.w", "b.b", "c.w", "c.b"):
            np.testing.assert_array_equal(fitted.graph.array(name), student.array(name))
        assert set(fitted.graph.weights) == set(student.weights)
        assert [value.name for value in fitted.graph.outputs] == ["map", "sum"]

    def test_they_are_added_with_their_weight(self) -> None:
        teacher, student = dense(8), dense(6, seed=1)
        one = fit(student, images(), teacher=teacher, epochs=1, features={"h": "h"}, feature_weight=3.0, **SETTINGS)
        first = one.history[0]
        assert first["loss"] == pytest.approx(first["distillation"] + 3 * first["features"], rel=1e-5)

    def test_an_adapter_maps_the_axis_that_differs(self) -> None:
        found, told = torch.randn(2, 4, 3), torch.randn(2, 6, 3)
        match = Match("h", "t", "mse", feature=True).settled(found, told)
        adapters = Adapters([(match, found, told)])
        (layer,) = adapters.maps
        expected = torch.einsum("oc,bct->bot", layer.weight, found)
        torch.testing.assert_close(adapters({"h": found})["h"], expected)

    @pytest.mark.parametrize(
        ("features", "message"),
        [
            ({"nothing": "h"}, "computes no tensor 'nothing'"),
            ({"a.w": "h"}, "computes no tensor 'a.w'"),
            ({"h": "p"}, r"'h' has shape \(16, 8, 6, 6\), the teacher's 'p' \(16, 8, 1, 1\)"),
        ],
    )
    def test_what_cannot_be_compared_is_said(self, features: dict[str, str], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            fit(dense(), images(), teacher=dense(), epochs=1, features=features, **SETTINGS)

    def test_without_a_teacher_there_is_nothing_to_follow(self) -> None:
        with pytest.raises(UsageError, match="there is none"):
            fit(dense(), images(), epochs=1, features={"h": "h"}, **SETTINGS)


class TestNames:
    def test_a_loss_for_what_is_not_there(self) -> None:
        with pytest.raises(UsageError, match=r"'boxes', which is neither an output that can be trained \(map, sum\)"):
            fit(dense(), images(), teacher=dense(), epochs=1, loss={"boxes": "mse"}, **SETTINGS)

    def test_a_feature_follows_by_mse_or_cosine(self) -> None:
        with pytest.raises(UsageError, match="feature 'h' cannot follow by 'kl'"):
            fit(dense(), images(), teacher=dense(), epochs=1, features={"h": "h"}, loss={"h": "kl"}, **SETTINGS)

    def test_outputs_of_other_shapes(self) -> None:
        with pytest.raises(UsageError, match=r"'map' has shape .*: they must be the same"):
            fit(dense(), images(), teacher=dense(names=("sum", "map")), epochs=1, loss={"": "mse"}, **SETTINGS)


class Mean:
    """A task: the second output tells the mean and the largest of an image."""

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: Any) -> Mapping[str, torch.Tensor]:
        return {
            "mean": F.mse_loss(outputs["sum"][:, 0], targets[:, 0]),
            "max": F.l1_loss(outputs["sum"][:, 1], targets[:, 1]),
        }

    def collate(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        return inputs * np.float32(2), targets * np.float32(2)


class TestTasks:
    def data(self, seed: int = 1) -> Split:
        x = np.random.default_rng(seed).normal(0, 1, (256, 1, 6, 6)).astype(np.float32)
        return Split(x, np.stack([x.mean((1, 2, 3)), x.max((1, 2, 3))], 1))

    def test_a_loss_of_the_users_own_is_learned(self) -> None:
        fitted = fit(dense(16), self.data(), task=Mean(), epochs=30, lr=0.02, **SETTINGS)
        first, last = fitted.history[0], fitted.history[-1]
        assert first["task"] == pytest.approx(first["mean"] + first["max"], rel=1e-5)
        assert last["task"] < first["task"] / 3
        data = self.data(seed=2)
        said = outputs(fitted.graph, 2 * data.images[:])[1]
        assert data.labels is not None
        assert np.abs(said[:, 1] - 2 * data.labels[:, 1]).mean() < 0.5 * np.abs(2 * data.labels[:, 1]).mean()

    def test_a_teacher_can_be_followed_beside_it(self) -> None:
        fitted = fit(
            dense(), self.data(), task=Mean(), teacher=dense(seed=2), distill=0.25, epochs=1, loss={"sum": "none"},
            **SETTINGS,
        )  # fmt: skip
        first = fitted.history[0]
        assert first["loss"] == pytest.approx(0.75 * first["task"] + 0.25 * first["distillation"], rel=1e-5)


def two_inputs(width: int = 8, seed: int = 0) -> Graph:
    """Tokens and their weights: an embedding, a sum over the tokens, and a linear layer."""
    rng = np.random.default_rng(seed)
    weights = {"table": some((20, width), rng), "w": some((width, 3), rng), "axes": np.array([1])}
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("Mul", ["e", "mask"], ["m"]),
        node("ReduceSum", ["m", "axes"], ["s"], keepdims=0),
        node("MatMul", ["s", "w"], ["y"]),
    ]
    inputs = {"ids": np.zeros((1, 5), np.int64), "mask": np.zeros((1, 5, 1), np.float32)}
    return Graph(build(nodes, inputs, weights, ["y"], 17, "batch"))


class TestInputsByName:
    def data(self, labels: bool, seed: int = 1) -> Split:
        rng = np.random.default_rng(seed)
        feeds = {"ids": rng.integers(0, 20, (256, 5)), "mask": rng.uniform(0, 1, (256, 5, 1)).astype(np.float32)}
        return Split(Feeds(feeds), feeds["ids"].max(1) // 7 if labels else None)

    def test_from_labels(self) -> None:
        fitted = fit(two_inputs(), self.data(True), epochs=40, lr=0.05, **SETTINGS)
        assert fitted.history[-1]["accuracy"] > fitted.history[0]["accuracy"] + 0.2

    def test_from_a_teacher(self) -> None:
        teacher, student = two_inputs(12), two_inputs(seed=1)
        fitted = fit(student, self.data(False), teacher=teacher, epochs=60, lr=0.05, **SETTINGS)
        feeds = dict(self.data(False, seed=5).images[:])
        told, before, after = (run_reference(g.model, feeds)[0] for g in (teacher, student, fitted.graph))
        assert np.square(after - told).mean() < 0.1 * np.square(before - told).mean()


def test_an_output_that_no_gradient_reaches_is_no_feature() -> None:
    model = dense().model
    made = type(model)()
    made.CopyFrom(model)
    made.graph.node.append(helper.make_node("Unique", ["sum"], ["values"], name="sorted"))
    with pytest.raises((UnsupportedOp, UsageError)):
        fit(Graph(made), images(), teacher=dense(), epochs=1, features={"values": "sum"}, **SETTINGS)
