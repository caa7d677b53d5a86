"""FUR is what is lost, on average, when a width's channels are dropped: told exactly where all masks can be tried."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from golden_models import analysis_of
from onnx import helper
from test_channel_dropout import Watched
from test_dropping import gated, residual

import conet_onnx.torch_backend.utilisation as utilising
from conet_onnx.analysis import analyze
from conet_onnx.batches import Freed
from conet_onnx.data import Feeds, Split
from conet_onnx.errors import DataError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.loading import load
from conet_onnx.metrics.utilisation import LARGEST, answered_for, rates_of
from conet_onnx.torch_backend.utilisation import losses_without, undroppable, utilisation
from tests.onnx_parity import Array, build, ints, run_reference, some

node = helper.make_node
CLASSES = 3


def tiny(batch: int | str = "batch") -> Graph:
    """A convolution of 3 channels, Relu, one of 4, pool, Gemm: [batch, 1, 4, 4] to 3 classes."""
    rng = np.random.default_rng(15)
    weights = {
        "a.w": some((3, 1, 3, 3), rng), "a.b": some((3,), rng), "b.w": some((4, 3, 1, 1), rng),
        "b.b": some((4,), rng), "fc.w": some((CLASSES, 4), rng), "target": ints(-1, 4),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "a.w", "a.b"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["ra"]),
        node("Conv", ["ra", "b.w", "b.b"], ["b"]),
        node("Relu", ["b"], ["rb"]),
        node("GlobalAveragePool", ["rb"], ["p"]),
        node("Reshape", ["p", "target"], ["f"]),
        node("Gemm", ["f", "fc.w"], ["y"], transB=1),
    ]
    model = build(nodes, {"x": np.zeros((1, 1, 4, 4), np.float32)}, weights, ["y"], 17, "batch")
    if isinstance(batch, int):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    return Graph(model)


def data(samples: int = 40, *, labels: bool = True, seed: int = 0, shape: tuple[int, ...] = (1, 4, 4)) -> Split:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, *shape)).astype(np.float32)
    return Split(x, rng.integers(0, CLASSES, samples) if labels else None)


def measure(graph: Graph, rates: Any, split: Split, **options: Any) -> dict[str, float]:
    return utilisation(graph, analyze(graph), split, rates=rates, threads=1, **options)


def cross_entropy(scores: Array, labels: Array) -> Array:
    """Of each sample, in nats."""
    scores = scores.astype(np.float64)
    return np.log(np.exp(scores).sum(1)) - scores[np.arange(len(labels)), labels]


def moments(graph: Graph, weight: str, rate: float, split: Split, of: str) -> tuple[float, float]:
    """The exact mean of what is lost, and its variance in one pass: each mask of the channels that a weight sums over
    is multiplied into the weight, and that model is run by another runtime."""
    x, y = split.images[:], split.labels
    assert y is not None

    def lost(model: Graph) -> Array:
        scores = run_reference(model.proto(), {"x": x})[0]
        return cross_entropy(scores, y) if of == "loss" else (scores.argmax(1) != y).astype(np.float64)

    array, plain = graph.array(weight), lost(graph)
    mean, square = np.zeros(len(x)), np.zeros(len(x))
    for kept in itertools.product((0, 1), repeat=array.shape[1]):
        mask = np.array(kept, np.float32) / np.float32(1 - rate)
        chance = np.prod([1 - rate if one else rate for one in kept])
        changed = graph.with_arrays({weight: array * mask.reshape(1, -1, *[1] * (array.ndim - 2))})
        found = lost(changed) - plain
        mean += chance * found
        square += chance * found**2
    return float(mean.mean()), float((square - mean**2).mean()) / len(x)


class TestExactly:
    @pytest.mark.parametrize("of", ["loss", "accuracy"])
    @pytest.mark.parametrize(("width", "weight"), [("w0", "b.w"), ("w1", "fc.w")])
    def test_it_is_the_mean_over_all_masks(self, of: Any, width: str, weight: str) -> None:
        split, passes = data(labels=False), 400
        split = Split(split.images, run_reference(tiny().proto(), {"x": split.images[:]})[0].argmax(1))
        expected, variance = moments(tiny(), weight, 0.3, split, of)
        found = measure(tiny(), {width: 0.3}, split, passes=passes, of=of)
        deviation = (variance / passes) ** 0.5
        assert abs(expected) > 8 * deviation  # else nothing would be told
        assert abs(found[width] - expected) < 4 * deviation

    def test_it_is_the_mean_over_normal_factors(self) -> None:
        """Without labels, of a linear model: squares of differences have their expectation in closed form."""
        rng = np.random.default_rng(0)
        w, v = some((4, 3), rng), some((3, 6), rng)
        nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "v"], ["y"])]
        graph = Graph(build(nodes, {"x": np.zeros((1, 2, 4), np.float32)}, {"w": w, "v": v}, ["y"], 17, "batch"))
        split = data(60, labels=False, shape=(2, 4))
        rate, x = 0.2, split.images[:].astype(np.float64)
        h = x @ w
        expected = (
            rate / (1 - rate) * np.mean(np.einsum("btc,co->btco", h, v.astype(np.float64)) ** 2) * 3 / (h @ v).var()
        )
        for noise in ("gaussian", "bernoulli"):
            found = measure(graph, {"w0": rate}, split, passes=200, noise=noise, batch=60)
            assert found["w0"] == pytest.approx(expected, rel=0.05)

    def test_what_nobody_reads_is_worth_nothing(self) -> None:
        graph = tiny()
        dead = graph.with_arrays({"b.w": np.zeros_like(graph.array("b.w"))})
        found = measure(dead, {"w0": 0.5, "w1": 0.5}, data())
        assert found["w0"] == 0.0
        assert found["w1"] != 0.0
        half = graph.array("b.w").copy()
        half[:, :2] = 0
        assert measure(graph.with_arrays({"b.w": half}), {"w0": 0.5}, data())["w0"] != 0.0

    def test_a_rate_of_zero_loses_nothing(self) -> None:
        assert measure(tiny(), {"w0": 0.0, "w1": 0}, data()) == {"w0": 0.0, "w1": 0.0}

    def test_without_labels_it_is_the_divergence_from_what_was_said_before(self) -> None:
        """A divergence between scores of classes: never negative, and the smaller the less is dropped."""
        found = measure(tiny(), {"w0": 0.3, "w1": 0.3}, data(labels=False), passes=50)
        assert all(value > 0 for value in found.values())
        x = data(labels=False).images[:]
        plain = run_reference(tiny().proto(), {"x": x})[0].astype(np.float64)
        expected = 0.0
        for kept in itertools.product((0, 1), repeat=4):
            weight = tiny().array("fc.w") * np.array(kept, np.float32) / np.float32(0.7)
            said = run_reference(tiny().with_arrays({"fc.w": weight}).proto(), {"x": x})[0].astype(np.float64)
            p, q = (np.exp(s) / np.exp(s).sum(1, keepdims=True) for s in (plain, said))
            apart = (p * np.log(p / q)).sum(1) + (said.mean(1) - plain.mean(1)) ** 2 / plain.var()
            expected += 0.7 ** sum(kept) * 0.3 ** (4 - sum(kept)) * apart.mean()
        assert found["w1"] == pytest.approx(expected, rel=0.05)
        small = measure(tiny(), {"w0": 0.03, "w1": 0.03}, data(labels=False), passes=50)
        assert all(0 < small[name] < found[name] / 4 for name in found)
        other = measure(tiny(), {"w0": 0.3}, data(labels=False), passes=50, of="accuracy")
        assert 0 < other["w0"] < 1


class TestSeeds:
    def test_a_width_has_the_same_number_whichever_others_are_measured(self) -> None:
        rates = dict.fromkeys(analyze(gated()).widths, 0.3)
        split = data(shape=(2, 5, 5))
        together = measure(gated(), rates, split)
        assert len(set(together.values())) == len(rates) == 5
        for name in rates:
            assert measure(gated(), {name: 0.3}, split) == {name: together[name]}
        assert measure(gated(), rates, split) == together
        assert all(measure(gated(), rates, split, seed=1)[name] != together[name] for name in rates)

    def test_global_chance_and_threads_are_left_alone(self) -> None:
        before, threads = torch.get_rng_state(), torch.get_num_threads()
        measure(tiny(), {"w0": 0.3}, data())
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == threads

    def test_widths_passes_and_batches_draw_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        watched = Watched(monkeypatch)
        measure(tiny(), {"w0": 0.3, "w1": 0.2}, data(), passes=3, batch=10)
        assert len({seed for *_, seed in watched.seen}) == 2 * 3 * 4
        assert all(rates in ({"w0": 0.3}, {"w1": 0.2}) for rates, *_ in watched.seen)  # one width at a time

    def test_only_what_lies_behind_a_widths_first_place_is_computed_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        computed: list[str] = []
        run = torch.fx.Interpreter.run_node

        def noted(interpreter: torch.fx.Interpreter, n: torch.fx.Node) -> Any:
            computed.append(n.name)
            return run(interpreter, n)

        monkeypatch.setattr(torch.fx.Interpreter, "run_node", noted)
        measure(tiny(), {"w0": 0.3, "w1": 0.2}, data(), passes=5, batch=20)
        assert [computed.count(name) for name in ("a", "b", "y")] == [2, 2 * 6, 2 * 11]


class Counted:
    """Images that count how often each was read."""

    def __init__(self, images: Array) -> None:
        self.images = images
        self.read = np.zeros(len(images), int)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape

    @property
    def dtype(self) -> Any:
        return self.images.dtype

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any, /) -> Array:
        np.add.at(self.read, index, 1)
        found: Array = self.images[index]
        return found


class TestData:
    def test_inputs_by_name_are_the_same_samples(self) -> None:
        split, rates = data(), {"w0": 0.4, "w1": 0.3}
        named = Split(Feeds({"x": split.images}), split.labels)
        assert measure(tiny(), rates, named) == measure(tiny(), rates, split)

    def test_of_inputs_by_name_without_labels_every_sample_counts(self) -> None:
        """How far outputs go, in squares: of two masks the ratio, which no scale changes."""
        x = data().images[:]
        masks = [np.array([0.0, 1, 1, 1]), np.array([1.0, 0, 0, 1])]
        found = losses_without(tiny(), analyze(tiny()), Split(Feeds({"x": x})), {"w1": masks})["w1"]
        whole, *cut = (
            run_reference(
                tiny().with_arrays({"fc.w": tiny().array("fc.w") * mask.astype(np.float32)}).proto(), {"x": x}
            )
            for mask in (np.ones(4), *masks)
        )
        one, other = (np.square(said[0].astype(np.float64) - whole[0]).sum() for said in cut)
        assert found[0] / found[1] == pytest.approx(one / other, rel=1e-4)

    def test_a_sample_is_read_once_whatever_is_measured(self) -> None:
        split = data(50)
        counted = Counted(split.images[:])
        measure(tiny(), {"w0": 0.1, "w1": 0.2}, Split(counted, split.labels), passes=3, batch=16)
        assert counted.read[0] == 2  # the first is looked at beforehand
        assert (counted.read[1:] == 1).all()

    def test_the_graph_is_not_changed(self) -> None:
        """Running statistics of its norms least of all."""
        graph = load("models/digits_resnet8.onnx")
        before = {name: graph.array(name).copy() for name in graph.weights}
        split = data(20, shape=(1, 8, 8))
        found = measure(graph, {"w0": 0.3, "w3": 0.3}, split)
        assert found.keys() == {"w0", "w3"}
        assert any("running_var" in name for name in before) or any(n.op == "BatchNormalization" for n in graph.nodes)
        for name, array in before.items():
            np.testing.assert_array_equal(graph.array(name), array)

    def test_a_batch_that_is_baked_in_is_freed(self) -> None:
        rates = {"w0": 0.3, "w1": 0.2}
        expected = measure(tiny(), rates, data(), batch=16)
        assert measure(tiny(batch=1), rates, data(), batch=16) == expected

    def test_freeing_it_tells_which_positions_are_whose(self) -> None:
        """In the middle the samples are the second axis: with a batch of 1 that could be any."""
        rng = np.random.default_rng(0)
        weights = {"a.w": some((4, 3), rng), "b.w": some((3, 2), rng)}
        nodes = [
            node("MatMul", ["x", "a.w"], ["h"]), node("Transpose", ["h"], ["t"], perm=[1, 0, 2]),
            node("MatMul", ["t", "b.w"], ["u"]), node("Transpose", ["u"], ["y"], perm=[1, 0, 2]),
        ]  # fmt: skip
        split = data(20, labels=False, shape=(5, 4))
        fixed, free = (
            Graph(build(nodes, {"x": np.zeros((1, 5, 4), np.float32)}, weights, ["y"], 17, symbolic))
            for symbolic in ("none", "batch")
        )
        assert undroppable(fixed, analyze(fixed)) == {}
        assert measure(fixed, {"w0": 0.3}, split) == measure(free, {"w0": 0.3}, split) != {}

    def test_one_that_cannot_be_freed_is_filled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Batches of 16 take 40 samples as 48; those that fill the last do not count."""
        monkeypatch.setattr(utilising, "freed", lambda graph: Freed(graph, graph, reason="not here"))
        rates = {"w0": 0.3, "w1": 0.2}
        monkeypatch.setattr(utilising.Learner, "_any_batch", lambda *_: False)
        assert measure(tiny(batch=16), rates, data()) == pytest.approx(measure(tiny(), rates, data(), batch=16))

    def test_samples_are_prepared(self) -> None:
        split = data()
        twice = Split(split.images[:] * 2, split.labels)
        found = measure(tiny(), {"w0": 0.3}, twice, normalise=lambda x: x / 2)
        assert found == measure(tiny(), {"w0": 0.3}, split)

    def test_labels_that_are_no_classes_are_said(self) -> None:
        split = data()
        with pytest.raises(DataError, match="label 7 of sample 0 is out of range"):
            measure(tiny(), {"w0": 0.3}, Split(split.images, np.full(40, 7)))

    def test_images_that_do_not_fit_are_said(self) -> None:
        with pytest.raises(DataError, match=r"does not take inputs of shape \(\d+, 2, 4, 4\)"):
            measure(tiny(), {"w0": 0.3}, data(shape=(2, 4, 4)))


class TestAsking:
    def test_progress_goes_to_the_end(self) -> None:
        seen: list[float] = []
        measure(tiny(), {"w0": 0.3, "w1": 0.3}, data(), passes=2, batch=16, progress=seen.append)
        assert seen == sorted(seen)
        assert len(seen) == 3 * 2 * 2
        assert seen[-1] == 1.0

    @pytest.mark.parametrize(
        ("rates", "options", "message"),
        [
            ({"w9": 0.1}, {}, "'w9' is not a width of this model; it has w0, w1"),
            ({"w0": -0.1}, {}, "rate of -0.1"),
            ({"w0": 0.1}, {"passes": 0}, "0 passes"),
            ({"w0": 0.1}, {"batch": 0}, "batches of 0"),
            ({"w0": 0.1}, {"of": "profit"}, "utilisation of 'profit': it is one of loss, accuracy"),
            ({"w0": 0.1}, {"noise": "salt"}, "noise 'salt'"),
        ],
    )
    def test_what_makes_no_sense_is_said(self, rates: Any, options: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            measure(tiny(), rates, data(), **options)

    def test_what_cannot_be_dropped_is_told_and_left_out(self) -> None:
        analysis = analysis_of("lstm")
        found = undroppable(analysis.graph, analysis)
        assert list(found) == ["w1"]
        assert "LSTM" in found["w1"]
        assert undroppable(tiny(), analyze(tiny())) == {}

    def test_frozen_widths_are_not_measured(self) -> None:
        graph = tiny(batch=1)
        analysis = analyze(graph, freeze=["w0"])
        found = utilisation(graph, analysis, data(), rates={"w1": 0.3}, batch=16, threads=1)
        assert found == measure(tiny(), {"w1": 0.3}, data(), batch=16)
        with pytest.raises(UsageError, match="'w0' is not a width"):
            utilisation(graph, analysis, data(), rates={"w0": 0.3})


class TestRates:
    def test_all_widths_lose_as_much_of_the_cost(self) -> None:
        """p_i · F_i is the same for all, p0 times the mean of F."""
        analysis = analyze(residual())
        sizes = {w.id: w.size for w in analysis.widths.values()}
        parts, rates = answered_for(analysis.costs, sizes), rates_of(analysis.costs, sizes, 0.2)
        assert [rates[n] * parts[n] for n in sizes] == pytest.approx([0.2 * np.mean(list(parts.values()))] * len(sizes))
        assert rates["w0"] < 0.2 < rates["w1"]

    def test_the_derivative_counts_a_widths_own_layer_and_its_readers(self) -> None:
        """MACs of `residual`, by hand: 25 positions, kernels of 9, a spine s of `a`, `c` and what reads them."""
        s, i = 6, 5
        analysis = analyze(residual())
        found = answered_for(analysis.costs, {"w0": s, "w1": i})
        assert found["w0"] == s * (25 * 9 * 2 + 25 * 9 * i + 25 * 9 * i + 25 * 4 + 4)
        assert found["w1"] == i * (25 * 9 * s + 25 * 9 * s)

    def test_where_the_cost_is_quadratic_it_is_twice_that(self) -> None:
        """A convolution from a spine to itself: F = 25·9·c² + what is linear."""
        rng = np.random.default_rng(0)
        weights = {"a.w": some((6, 1, 1, 1), rng), "b.w": some((6, 6, 3, 3), rng), "c.w": some((2, 6, 1, 1), rng)}
        nodes = [
            node("Conv", ["x", "a.w"], ["a"]), node("Conv", ["a", "b.w"], ["b"], pads=[1, 1, 1, 1]),
            node("Add", ["a", "b"], ["s"]), node("Conv", ["s", "c.w"], ["y"]),
        ]  # fmt: skip
        analysis = analyze(Graph(build(nodes, {"x": np.zeros((1, 1, 5, 5), np.float32)}, weights, ["y"], 17, "batch")))
        for c in (6, 1, 40):
            assert answered_for(analysis.costs, {"w0": c}) == {"w0": c * (25 + 2 * 25 * 9 * c + 50)}

    def test_a_cost_of_ones_own_is_asked_once_for_all_widths(self) -> None:
        analysis = analyze(gated())
        sizes = {w.id: w.size for w in analysis.widths.values()}
        asked = []

        def latency(rows: Any) -> Any:
            asked.append(rows.shape)
            return rows[:, 0] ** 2.0 + 10 * rows[:, 1]

        parts = answered_for(analysis.costs, sizes, cost=latency)
        assert asked == [(2 * len(sizes), len(sizes))]
        assert parts == {"w0": 2.0 * 8 * 8, "w1": 30.0, "w2": 0, "w3": 0, "w4": 0}
        rates = rates_of(analysis.costs, sizes, 0.2, cost=latency)
        assert rates["w2"] == LARGEST
        assert rates["w0"] == pytest.approx(0.2 * 158 / 5 / 128)
        assert rates["w1"] == pytest.approx(0.2 * 158 / 5 / 30)

    def test_a_cost_that_rises_in_steps_is_looked_at_a_step_away(self) -> None:
        """By hand: 3 ms for each block of 4 channels of w0, 2 for each of w1's; one up and one down, or up alone."""
        analysis = analyze(gated())

        def latency(rows: Any) -> Any:
            return 3.0 * -(-rows[:, 0] // 4) + 2.0 * -(-rows[:, 1] // 4)

        for size, slope in ((8, 3 / 4), (7, 3 / 4), (5, 3 / 4), (4, 3 / 4), (3, 3 / 4), (1, 3 / 4)):
            parts = answered_for(analysis.costs, {"w0": size}, cost=latency, steps={"w0": 4})
            assert parts == {"w0": pytest.approx(size * slope)}
        sizes = {"w0": 8, "w1": 4}
        rates = rates_of(analysis.costs, sizes, 0.1, cost=latency, steps={"w0": 4, "w1": 4})
        assert rates == pytest.approx({"w0": 0.1 * 4 / 6, "w1": 0.1 * 4 / 2})  # F: 8 · 3/4 and 4 · 2/4, 4 in the mean

    def test_rates_stay_below_one(self) -> None:
        analysis = analyze(residual())
        rates = rates_of(analysis.costs, {"w0": 6, "w1": 1}, 0.9)
        assert rates["w1"] == LARGEST < 1
        assert rates_of(analysis.costs, {"w0": 6}, 0.0) == {"w0": 0.0}
        assert rates_of(analysis.costs, {}, 0.5) == {}

    def test_what_makes_no_sense_is_said(self) -> None:
        costs = analyze(residual()).costs
        with pytest.raises(UsageError, match="'w5' is not a width"):
            rates_of(costs, {"w5": 4}, 0.1)
        with pytest.raises(UsageError, match="has 0 channels"):
            rates_of(costs, {"w0": 0}, 0.1)
        for p0 in (1.0, -0.1, float("nan")):
            with pytest.raises(UsageError, match="p0 ="):
                rates_of(costs, {"w0": 4}, p0)
