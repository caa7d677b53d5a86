"""What channels are worth: against plain loops, finite differences, and what must not matter."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli_support import small_model
from onnx import numpy_helper
from torch.nn import functional as F

import conet_onnx as co
from conet_onnx.analysis import Analysis, analyze
from conet_onnx.criteria import CRITERIA, MEASURED, channel_scores, relative
from conet_onnx.data.dataset import Feeds, Split
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.scoring import importance
from conet_onnx.torch_backend.saliency import saliency

SAMPLES = 12


def data(*, labels: bool = True, samples: int = SAMPLES) -> Split:
    rng = np.random.default_rng(1)
    images = rng.normal(0, 1, (samples, 1, 8, 8)).astype(np.float32)
    return Split(images, rng.integers(0, 10, samples) if labels else None)


def graph(change: Any = None) -> Graph:
    """Two convolutions and a Gemm, their weights perhaps changed by name."""
    model = small_model()
    for tensor in model.graph.initializer if change else ():
        array = change(tensor.name, numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), tensor.name))
    return Graph(model)


def scaled_channel(width: str, channel: int, by: float) -> Graph:
    """What reads a channel gets so much of it."""
    tensor = {"w0": "c2.w", "w1": "fc.w"}[width]

    def change(name: str, array: Any) -> Any:
        array = array.copy()
        if name == tensor:
            array[:, channel] *= by
        return array

    return graph(change)


def scores_of(model: Graph, images: Any) -> torch.Tensor:
    module = co.to_torch(model)
    with torch.no_grad():
        return torch.as_tensor(module(torch.from_numpy(images))).double()


def losses(model: Graph, split: Split) -> Any:
    found = F.cross_entropy(scores_of(model, split.images), torch.from_numpy(split.labels), reduction="none")
    return found.numpy()


class TestGradients:
    @pytest.mark.parametrize("width", ["w0", "w1"])
    def test_taylor_is_what_a_little_less_of_a_channel_changes(self, width: str) -> None:
        """Central differences of each sample's loss, channel by channel."""
        split = data()
        found = saliency(graph(), analyze(graph()), split, "taylor").scores[width]
        step = 1e-2
        for channel, score in enumerate(found):
            up, down = (losses(scaled_channel(width, channel, 1 + s), split) for s in (step, -step))
            assert score == pytest.approx(np.abs((up - down) / (2 * step)).mean(), rel=2e-2, abs=1e-5)

    @pytest.mark.parametrize("width", ["w0", "w1"])
    def test_obd_is_half_the_mean_square_of_it(self, width: str) -> None:
        split = data()
        found = saliency(graph(), analyze(graph()), split, "obd").scores[width]
        step = 1e-2
        for channel, score in enumerate(found):
            up, down = (losses(scaled_channel(width, channel, 1 + s), split) for s in (step, -step))
            assert score == pytest.approx(np.square((up - down) / (2 * step)).mean() / 2, rel=4e-2, abs=1e-6)

    def test_obd_without_labels_is_the_curvature_of_the_divergence(self) -> None:
        """KL(source || with a little less) = step² · Fisher/2; drawn labels are its mean over many draws."""
        images = np.repeat(data(samples=4).images, 512, axis=0)
        found = saliency(graph(), analyze(graph()), Split(images), "obd").scores["w1"]
        whole, step = scores_of(graph(), images[::512]).log_softmax(1), 0.05
        for channel, score in enumerate(found):
            pair = [scores_of(scaled_channel("w1", channel, 1 + s), images[::512]) for s in (step, -step)]
            divergence = np.mean(
                [float(F.kl_div(p.log_softmax(1), whole, reduction="batchmean", log_target=True)) for p in pair]
            )
            assert score == pytest.approx(divergence / step**2, rel=0.25, abs=1e-5)

    def test_what_is_drawn_follows_from_the_seed(self) -> None:
        measure = partial(saliency, graph(), analyze(graph()), data(labels=False), "taylor")
        one, again, other = (measure(seed=seed).scores["w0"] for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, again)
        assert not np.array_equal(one, other)

    @pytest.mark.parametrize("labels", [True, False])
    @pytest.mark.parametrize("of", ["taylor", "obd", "activation"])
    def test_inputs_by_name_are_the_same_samples(self, of: str, labels: bool) -> None:
        split = data(labels=labels)
        expected = saliency(graph(), analyze(graph()), split, of).scores
        found = saliency(graph(), analyze(graph()), Split(Feeds({"x": split.images}), split.labels), of).scores
        for width, scores in expected.items():
            np.testing.assert_array_equal(found[width], scores)

    def test_batches_do_not_matter(self) -> None:
        measure = partial(saliency, graph(), analyze(graph()), data(), "obd")
        np.testing.assert_allclose(measure(batch=5).scores["w1"], measure(batch=64).scores["w1"], rtol=1e-5)


class TestActivation:
    def test_it_is_the_share_of_the_squares_that_are_summed(self) -> None:
        split = data()
        found = saliency(graph(), analyze(graph()), split, "activation").scores
        arrays = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in small_model().graph.initializer}
        x = torch.from_numpy(split.images)
        a = F.relu(F.conv2d(x, arrays["c1.w"], arrays["c1.b"], padding=1))
        b = F.relu(F.conv2d(a, arrays["c2.w"], arrays["c2.b"], padding=1)).mean((2, 3))
        for width, inputs, weight in (("w0", a, arrays["c2.w"]), ("w1", b, arrays["fc.w"])):
            energies = [
                float(inputs[:, c].double().square().sum() * weight[:, c].double().square().sum())
                for c in range(inputs.shape[1])
            ]
            np.testing.assert_allclose(found[width], np.array(energies) / sum(energies), rtol=1e-5)

    def test_labels_do_not_matter(self) -> None:
        one, other = (channel_scores(analyze(graph()), "activation", data=data(labels=s)) for s in (True, False))
        for name, scores in one.items():
            np.testing.assert_array_equal(scores, other[name])


class TestDistances:
    def test_they_are_to_the_other_filters(self) -> None:
        found = importance(graph(), "fpgm")
        weights = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in small_model().graph.initializer}
        for width, tensor in (("w0", "c1.w"), ("w1", "c2.w")):
            filters = weights[tensor].reshape(len(weights[tensor]), -1)
            expected = np.array([sum(np.linalg.norm(one - other) for other in filters) for one in filters])
            np.testing.assert_allclose(found[width], expected / expected.mean(), rtol=1e-6)

    def test_one_that_is_there_twice_is_worth_less_than_one_far_off(self) -> None:
        def change(name: str, array: Any) -> Any:
            array = array.copy()
            if name == "c2.w":
                array[1] = array[0]
                array[2] *= 10
            return array

        found = importance(graph(change), "fpgm")["w1"]
        assert found[0] == pytest.approx(found[1])
        assert found.argmax() == 2


def permuted(order: Any) -> Graph:
    """The same function, the channels of w0 in another order."""

    def change(name: str, array: Any) -> Any:
        if name in ("c1.w", "c1.b"):
            return array[order]
        return array[:, order] if name == "c2.w" else array

    return graph(change)


def rescaled(by: float) -> Graph:
    """The same function: w0 is made so much larger, and its reader so much smaller."""

    def change(name: str, array: Any) -> Any:
        return array * {"c1.w": by, "c1.b": by, "c2.w": 1 / by}.get(name, 1)

    return graph(change)


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c != "random"])
class TestEveryCriterion:
    def test_every_channel_has_a_finite_score_that_is_not_negative(self, criterion: str) -> None:
        analysis = analyze(graph())
        for name, scores in channel_scores(analysis, criterion, data=data()).items():
            assert scores.shape == (analysis.widths[name].size,)
            assert np.isfinite(scores).all()
            assert (scores >= 0).all()
            assert scores.sum() > 0

    def test_a_permutation_of_the_channels_permutes_their_scores(self, criterion: str) -> None:
        order = np.array([3, 1, 5, 0, 2, 4])
        if criterion == "fur":
            pytest.skip("which channels are dropped is drawn by place: equal in distribution only")
        one, other = (channel_scores(analyze(g), criterion, data=data()) for g in (graph(), permuted(order)))
        np.testing.assert_allclose(other["w0"], one["w0"][order], rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(other["w1"], one["w1"], rtol=1e-4, atol=1e-9)

    def test_what_is_larger_where_its_reader_is_smaller_is_worth_as_much(self, criterion: str) -> None:
        """One width scaled by 8 through a ReLU: the function is the same, and so are the scores."""
        one, other = (channel_scores(analyze(g), criterion, data=data()) for g in (graph(), rescaled(8.0)))
        for name in one:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-3, atol=1e-9)


def test_scaling_single_channels_moves_criteria_of_weights_and_no_others() -> None:
    """A channel ten times as large, read by a tenth: measured criteria do not see it; norms and distances do."""

    def change(name: str, array: Any) -> Any:
        array = array.copy()
        if name in ("c1.w", "c1.b"):
            array[2] *= 10
        if name == "c2.w":
            array[:, 2] /= 10
        return array

    def moved(criterion: str) -> bool:
        one, other = (channel_scores(analyze(g), criterion, data=data())["w0"] for g in (graph(), graph(change)))
        return not np.allclose(one, other, rtol=1e-3, atol=1e-9)

    assert {c for c in CRITERIA if moved(c)} == {"l1", "l2", "batchnorm-scale", "fpgm", "qc", "fur"}


def test_relative_scores_add_up_to_the_readers() -> None:
    """In the shipped network, three convolutions sum over w0."""
    analysis = analyze(co.load("models/digits_resnet8.onnx"))
    scores = relative(analysis, importance(analysis.graph, "l2", analysis=analysis))
    assert float(scores["w0"].sum()) == pytest.approx(3)
    assert float(scores["w1"].sum()) == pytest.approx(1)


@pytest.mark.parametrize("criterion", MEASURED)
def test_what_is_measured_needs_samples(criterion: str) -> None:
    with pytest.raises(UsageError, match="samples"):
        channel_scores(analyze(graph()), criterion)


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(UsageError, match="beauty"):
        channel_scores(analyze(graph()), "beauty")
    with pytest.raises(UsageError, match="beauty"):
        saliency(graph(), analyze(graph()), data(), "beauty")


def test_widths_that_cannot_be_measured_count_as_their_weights_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from conet_onnx.torch_backend import saliency as module

    made = module.saliency

    def without(*arguments: Any, **more: Any) -> Any:
        found = made(*arguments, **more)
        return module.Saliency({"w0": found.scores["w0"]}, {"w1": "not here"})

    monkeypatch.setattr(module, "saliency", without)
    analysis: Analysis = analyze(graph())
    found = channel_scores(analysis, "taylor", data=data())
    weights = relative(analysis, importance(analysis.graph, "l2", analysis=analysis))
    by = found["w0"].sum() / weights["w0"].sum()
    np.testing.assert_allclose(found["w1"], weights["w1"] * by)


def test_nothing_is_changed() -> None:
    model = small_model()
    before = model.SerializeToString()
    channel_scores(analyze(Graph(model)), "taylor", data=data())
    assert onnx.ModelProto.FromString(before) == model
