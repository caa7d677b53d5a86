"""Training learns, repeats itself to the bit, and says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from conet_onnx.data import Split
from conet_onnx.errors import DataError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import Diverged, fit, teacher_scores
from conet_onnx.torch_backend.learner import Learner
from conet_onnx.torch_backend.losses import corrected, divergence
from tests.onnx_parity import Array, build, ints, run_reference, some

SHAPE = (1, 6, 6)
CLASSES = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(samples: int = 200, seed: int = 0, labels: bool = True) -> Split:
    """Like digits: a noisy pattern for each class, as bytes."""
    patterns = np.random.default_rng(0).uniform(0, 200, (CLASSES, *SHAPE))
    rng = np.random.default_rng(seed + 1)
    y = rng.integers(0, CLASSES, samples)
    x = np.clip(patterns[y] + rng.normal(0, 60, (samples, *SHAPE)), 0, 255).astype(np.uint8)
    return Split(x, y if labels else None)


def normalise(x: Array) -> Array:
    return (x.astype(np.float32) - 100) / 60


def network(width: int = 8, seed: int = 0, end: str = "", batch: int | str = "batch", flat: int = -1) -> Graph:
    """Conv, BatchNormalization, Relu, pool, Gemm; `end` is a last operator."""
    rng = np.random.default_rng(seed)
    weights = {
        "conv.w": some((width, 1, 3, 3), rng) / 3,
        "norm.s": np.ones(width, np.float32), "norm.b": np.zeros(width, np.float32),
        "norm.m": np.full(width, 0.01, np.float32), "norm.v": np.full(width, 0.9, np.float32),
        "fc.w": some((CLASSES, 9 * width), rng) / 9, "fc.b": np.full(CLASSES, 0.1, np.float32),
        "target": ints(flat, 9 * width),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "conv.w"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "norm.s", "norm.b", "norm.m", "norm.v"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", ["p", "target"], ["f"]),
        node("Gemm", ["f", "fc.w", "fc.b"], ["scores"], transB=1),
        *([node(end, ["scores"], ["y"])] if end else []),
    ]
    model = build(nodes, {"x": np.zeros((1, *SHAPE), np.float32)}, weights, ["y" if end else "scores"], 17, "batch")
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    if isinstance(batch, int):
        dimension.dim_value = batch
    return Graph(model)


def with_dropout() -> Graph:
    """The network, with half of what Gemm reads dropped in training."""
    model = onnx.ModelProto()
    model.CopyFrom(network().model)
    nodes = list(model.graph.node)
    nodes[-1].input[0] = "dropped"
    nodes.insert(-1, helper.make_node("Dropout", ["f", "ratio"], ["dropped"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "ratio"))
    return Graph(model)


def scores(graph: Graph, data: Split) -> Array:
    name = graph.inputs[0].name
    return run_reference(graph.model, {name: normalise(data.images[:])})[0]


def accuracy(graph: Graph, data: Split) -> float:
    return float((scores(graph, data).argmax(1) == data.labels).mean())


def train(graph: Graph, data: Any, epochs: int = 4, **options: Any) -> Any:
    return fit(graph, data, epochs=epochs, normalise=normalise, **{"batch": 16, "accelerator": "cpu", **options})


TEST = problem(200, seed=1)


class TestLearning:
    @pytest.mark.parametrize(("optimizer", "lr"), [("sgd", None), ("adamw", 0.01)])
    def test_learns_from_labels(self, optimizer: Any, lr: float | None) -> None:
        graph = network()
        fitted = train(graph, problem(), optimizer=optimizer, lr=lr)
        assert accuracy(graph, TEST) < 0.5
        assert accuracy(fitted.graph, TEST) > 0.95
        assert len(fitted.history) == 4
        assert fitted.history[-1]["loss"] < fitted.history[0]["loss"] / 2
        assert fitted.history[-1]["accuracy"] > 0.95
        assert fitted.seconds > 0

    def test_updates_running_statistics(self) -> None:
        graph = network()
        fitted = train(graph, problem(), epochs=1)
        for name in ("norm.m", "norm.v", "norm.s", "conv.w", "fc.b"):
            assert not np.array_equal(fitted.graph.array(name), graph.array(name))
        np.testing.assert_array_equal(fitted.graph.array("target"), graph.array("target"))

    @pytest.mark.parametrize("labels", [True, False])
    def test_a_student_without_labels_moves_towards_its_teacher(self, labels: bool) -> None:
        teacher = train(network(16), problem()).graph
        student = network(4, seed=3)
        data = problem(labels=labels)
        fitted = train(student, data, teacher=teacher, labels=False)
        assert "cross_entropy" not in fitted.history[0]
        told = scores(teacher, TEST)

        def distance(graph: Graph) -> float:
            return float(divergence(torch.from_numpy(scores(graph, TEST)), torch.from_numpy(told), 4.0))

        assert distance(fitted.graph) < distance(student) / 4
        assert accuracy(fitted.graph, TEST) > 0.95

    def test_both_losses_are_weighed(self) -> None:
        teacher = network(16)
        fitted = train(network(), problem(), epochs=1, teacher=teacher, distill=0.25)
        first = fitted.history[0]
        assert first["loss"] == pytest.approx(0.75 * first["cross_entropy"] + 0.25 * first["distillation"])

    def test_where_labels_differ_the_teacher_is_corrected(self) -> None:
        """Every row still holds the same numbers, the label's is the largest, and what was right has not moved."""
        rng = np.random.default_rng(0)
        told = torch.from_numpy(rng.normal(0, 2, (64, 5)))
        labels = torch.from_numpy(rng.integers(0, 5, 64))
        found = corrected(told, labels)
        right = told.argmax(1) == labels
        assert 0 < right.sum() < 64
        assert (found.argmax(1) == labels).all()
        assert torch.equal(found.sort(1).values, told.sort(1).values)
        assert torch.equal(found[right], told[right])
        assert ((found != told).sum(1)[~right] == 2).all()

    def test_a_teachers_errors_are_not_learned(self) -> None:
        """One that takes two classes for each other; a student that is to follow it alone does as it does."""
        teacher = train(network(16), problem()).graph
        weight, bias = teacher.array("fc.w"), teacher.array("fc.b")
        wrong = teacher.with_arrays({"fc.w": weight[[1, 0, 2, 3]], "fc.b": bias[[1, 0, 2, 3]]})
        assert accuracy(wrong, TEST) < 0.6

        def student(**options: Any) -> float:
            return accuracy(train(network(4, seed=3), problem(), teacher=wrong, **options).graph, TEST)

        assert student(distill=0.9) > 0.95
        assert student(distill=0.9, correct=False) < 0.6
        assert student(distill=1.0) < 0.6
        assert student(labels=False) < 0.6

    def test_the_divergence_is_hintons(self) -> None:
        student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.0, 3.0, 1.0]])
        p, q = torch.softmax(teacher / 2, 1), torch.softmax(student / 2, 1)
        expected = 4 * (p * (p / q).log()).sum()
        assert float(divergence(student, teacher, 2.0)) == pytest.approx(float(expected), rel=1e-5)
        assert float(divergence(student, student, 2.0)) == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("end", ["Softmax", "LogSoftmax"])
    def test_a_final_softmax_trains_as_if_it_were_not_there(self, end: str) -> None:
        plain = train(network(), problem(), teacher=network(16)).graph
        ended = train(network(end=end), problem(), teacher=network(16, end=end)).graph
        assert ended.model.graph.node[-1].op_type == end
        for name in plain.weights:
            np.testing.assert_array_equal(plain.array(name), ended.array(name))

    def test_decay_spares_biases_and_norms(self) -> None:
        graph = network()
        kept, decayed = (
            train(graph, problem(), epochs=1, lr=1e-3, optimizer="adamw", weight_decay=decay).graph
            for decay in (0.0, 50.0)
        )
        assert np.abs(decayed.array("fc.w")).sum() < 0.9 * np.abs(kept.array("fc.w")).sum()
        assert np.abs(decayed.array("conv.w")).sum() < 0.9 * np.abs(kept.array("conv.w")).sum()
        for name in ("fc.b", "norm.s"):
            np.testing.assert_allclose(decayed.array(name), kept.array(name), atol=0.01)

    def test_the_rate_rises_then_falls_along_a_cosine(self) -> None:
        fitted = train(network(), problem(64), epochs=10, lr=0.1, warmup=0.25)  # of 40 steps, 10 rise
        rates = [epoch["lr"] for epoch in fitted.history]
        assert rates[0] == pytest.approx(0.1 * 4 / 11)
        assert rates[1] == pytest.approx(0.1 * 8 / 11)
        assert rates[6] == pytest.approx(0.05 + 0.05 * np.cos(np.pi * 17 / 30))
        assert 0 < rates[-1] < 0.001

    def test_long_gradients_are_shortened(self) -> None:
        graph = network()
        options: dict[str, Any] = {"epochs": 1, "lr": 0.1, "weight_decay": 0.0}
        free, clipped = (train(graph, problem(16), clip=clip, **options).graph for clip in (None, 1e-3))
        moved = [np.linalg.norm(g.array("fc.w") - graph.array("fc.w")) for g in (free, clipped)]
        assert moved[1] < 2e-4 < moved[0] / 10

    def test_no_epochs_change_nothing(self) -> None:
        graph = network()
        fitted = train(graph, problem(), epochs=0)
        assert fitted.graph.model == graph.model
        assert fitted.history == ()

    def test_progress_grows_to_one(self) -> None:
        seen: list[float] = []
        train(network(), problem(50), epochs=2, progress=seen.append)
        assert seen == [pytest.approx((i + 1) / 8) for i in range(8)]


class TestRepeating:
    def test_the_same_seed_gives_the_same_bits(self) -> None:
        options: dict[str, Any] = {"epochs": 2, "teacher": network(16)}
        first, again = (train(network(), problem(), seed=3, **options).graph.model for _ in range(2))
        other = train(network(), problem(), seed=4, **options).graph.model
        assert first == again
        assert first != other

    def test_chance_in_the_model_is_seeded_too_whatever_the_global_state(self) -> None:
        first = train(with_dropout(), problem(), epochs=1).graph.model
        torch.manual_seed(77)
        assert train(with_dropout(), problem(), epochs=1).graph.model == first
        assert train(network(), problem(), epochs=1).graph.array("fc.w") != pytest.approx(Graph(first).array("fc.w"))

    def test_global_random_state_and_threads_are_left_alone(self) -> None:
        torch.manual_seed(123)
        before, threads = torch.random.get_rng_state(), torch.get_num_threads()
        numpy_before = np.random.get_state()[1]  # noqa: NPY002 - that nobody touched the legacy state is the point
        train(with_dropout(), problem(50), epochs=1, threads=2)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.get_num_threads() == threads
        assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002 - the old global generator is what must stay as it was

    def test_scores_computed_beforehand_teach_the_same(self) -> None:
        teacher, data = network(16), problem()
        told = teacher_scores(teacher, data, normalise=normalise)
        np.testing.assert_allclose(told, scores(teacher, data), rtol=1e-4, atol=1e-5)
        by_graph = train(network(), data, epochs=2, teacher=teacher).graph
        by_scores = train(network(), data, epochs=2, teacher=told).graph
        assert by_graph.model == by_scores.model

    def test_scores_computed_beforehand_say_nothing_of_images_that_are_varied(self) -> None:
        teacher, data = network(16), problem()
        told = teacher_scores(teacher, data, normalise=normalise)
        with pytest.raises(UsageError, match=r"augment=flip .* give the teacher's graph"):
            train(network(), data, epochs=1, teacher=told, augment=("flip",))

    def test_a_teacher_may_be_asked_at_every_step(self) -> None:
        class Stream:
            """Not a Split: samples cannot be recognised."""

            def __len__(self) -> int:
                return len(problem())

            def batches(self, size: int, *, seed: int | None = None) -> Any:
                return problem().batches(size, seed=seed)

        asked = train(network(), Stream(), epochs=2, teacher=network(16)).graph
        told = train(network(), problem(), epochs=2, teacher=network(16)).graph
        for name in told.weights:
            np.testing.assert_allclose(asked.array(name), told.array(name), rtol=1e-3, atol=1e-4)
        with pytest.raises(UsageError, match="a Split and one row for each"):
            train(network(), Stream(), teacher=np.zeros((200, CLASSES), np.float32))


class TestFixedBatches:
    def test_a_batch_that_only_the_input_declares_does_not_bind(self) -> None:
        free = train(network(), problem(), epochs=1).graph
        declared = train(network(batch=1), problem(), epochs=1).graph
        for name in free.weights:
            np.testing.assert_array_equal(free.array(name), declared.array(name))

    def test_a_batch_in_a_reshape_by_row_does_not_bind(self) -> None:
        free = train(network(), problem(), epochs=1).graph
        declared = train(network(batch=1, flat=1), problem(), epochs=1).graph
        np.testing.assert_array_equal(free.array("fc.w"), declared.array("fc.w"))

    def test_a_batch_that_binds_is_freed_while_it_is_trained(self) -> None:
        """With the batches that were asked for; the file has its own again."""
        graph = bound(8)
        assert batch_of(graph) == 8
        seen: list[float] = []
        fitted = train(graph, problem(), epochs=1, progress=seen.append)
        free = train(network(), problem(), epochs=1)
        assert len(seen) == 13
        assert fitted.graph.inputs[0].shape[0] == 8
        assert fitted.graph.model.graph.node == graph.model.graph.node
        for name in ("conv.w", "norm.m", "fc.w", "fc.b"):
            np.testing.assert_allclose(fitted.graph.array(name), free.graph.array(name), rtol=1e-4, atol=1e-6)

    def test_a_batch_that_cannot_be_freed_is_trained_at(self) -> None:
        graph = bound(8, rows=True)
        assert batch_of(graph) == 8
        seen: list[float] = []
        fitted = train(graph, problem(53), epochs=1, teacher=bound(4), progress=seen.append)
        assert len(seen) == 6
        assert not np.array_equal(fitted.graph.array("fc.w"), graph.array("fc.w"))
        with pytest.raises(DataError, match="7 samples do not fill one batch of 8"):
            train(graph, problem(7), epochs=1)

    def test_a_teacher_with_a_fixed_batch_scores_all_samples(self) -> None:
        data = problem(21)
        free, fixed = (teacher_scores(g, data, normalise=normalise) for g in (network(), bound(8)))
        np.testing.assert_allclose(free, fixed, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("samples", "steps"), [(18, 2), (17, 1), (1, 1)])
    def test_a_single_sample_left_over_is_no_batch(self, samples: int, steps: int) -> None:
        seen: list[float] = []
        train(network(), problem(samples), epochs=2, progress=seen.append)
        assert len(seen) == 2 * steps
        assert seen[-1] == 1


def batch_of(graph: Graph) -> int | None:
    """The only batch size that a graph takes in torch."""
    learner = Learner(graph, torch.device("cpu"))
    learner.keep(learner.outputs)
    learner.settle(normalise(problem(1).images[:]))
    return learner.batch


def bound(batch: int, *, rows: bool = False) -> Graph:
    """A network whose batch size is written behind a transpose; with `rows` it adds something else to each sample."""
    model = onnx.ModelProto()
    model.CopyFrom(network(batch=batch).model)
    old = {tensor.name: tensor for tensor in model.graph.initializer}
    old["target"].CopyFrom(numpy_helper.from_array(ints(72, batch), "target"))
    node = helper.make_node
    nodes = list(model.graph.node)
    nodes[4].input[0] = "q"
    nodes[5].input[0] = "t"
    before = node("Transpose", ["p"], ["q"], perm=[1, 2, 3, 0])
    after = node("Transpose", ["f"], ["t"], perm=[1, 0])
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:4], before, nodes[4], after, nodes[5]])
    if rows:
        nodes[5].output[0] = "s"
        del model.graph.node[-1]
        model.graph.node.extend([nodes[5], node("Add", ["s", "rows"], ["scores"])])
        offsets = np.arange(batch, dtype=np.float32)[:, None] / 9 * np.ones((1, CLASSES), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(offsets, "rows"))
    return Graph(model)


class TestSteps:
    def rates(self, schedule: Any, **settings: Any) -> list[float]:
        """Of each of 20 steps, of which 4 rise."""
        one = {"epochs": 20, "batch": 64, "lr": 0.1, "warmup": 0.2, **settings}
        return [epoch["lr"] for epoch in train(network(), problem(64), schedule=schedule, **one).history]

    def test_to_a_tenth_at_half_and_at_three_quarters(self) -> None:
        expected = [0.02, 0.04, 0.06, 0.08, *[0.1] * 6, *[0.01] * 5, *[0.001] * 5]
        assert self.rates("step") == pytest.approx(expected)

    def test_not_at_all(self) -> None:
        assert self.rates("constant") == pytest.approx([0.02, 0.04, 0.06, 0.08, *[0.1] * 16])

    def test_it_stays_for_some_steps_before_the_cosine(self) -> None:
        falls = [0.1 * (0.5 + 0.5 * math.cos(math.pi * k / 8)) for k in range(8)]
        assert self.rates("cosine", hold=0.6) == pytest.approx([0.02, 0.04, 0.06, 0.08, *[0.1] * 8, *falls])
        assert self.rates("cosine", hold=0.1) == pytest.approx(self.rates("cosine"))

    def test_one_cycle_rises_and_falls_below_its_beginning(self) -> None:
        rates = self.rates("onecycle")
        assert rates[0] == pytest.approx(0.1 / 25)
        assert max(rates) == pytest.approx(0.1, rel=0.01)
        assert rates.index(max(rates)) == 3
        assert rates[-1] < 1e-4 * rates[0]

    @pytest.mark.parametrize("warmup", [0, 0.3, 1])
    @pytest.mark.parametrize("epochs", [1, 2, 3, 5])
    def test_one_cycle_of_few_steps_and_of_those_that_all_rise(self, epochs: int, warmup: float) -> None:
        rates = self.rates("onecycle", epochs=epochs, warmup=warmup)
        assert len(rates) == epochs
        assert all(0 < rate <= 0.1 for rate in rates)

    def test_accumulated_batches_are_one_large_batch(self) -> None:
        """Of a network without statistics of a batch; 200 samples are three batches of 64 and one of 8."""
        data = problem(192)
        plain = network_without_norms()
        whole = train(plain, data, epochs=2, batch=192, lr=0.05, clip=None)
        parts = train(plain, data, epochs=2, batch=64, accumulate=3, lr=0.05, clip=None)
        for name in plain.weights:
            if plain.array(name).dtype.kind == "f":
                np.testing.assert_allclose(parts.graph.array(name), whole.graph.array(name), rtol=1e-4, atol=1e-6)

    def test_batches_that_are_left_over_are_a_step_too(self) -> None:
        data = problem(64 * 5)
        seen = train(network_without_norms(), data, epochs=3, batch=64, accumulate=3, lr=0.1, warmup=0, schedule="step")
        assert [epoch["lr"] for epoch in seen.history] == pytest.approx([0.1, 0.01, 0.001])  # two steps an epoch

    def test_the_average_lags_behind(self) -> None:
        """With a decay close to one the weights hardly move; with one close to zero they are the last ones."""
        source, data = network_without_norms(), problem()
        last, quick, slow = (
            train(source, data, epochs=2, ema=ema).graph.array("fc.w") for ema in (None, 1e-6, 1 - 1e-6)
        )
        np.testing.assert_allclose(quick, last, rtol=1e-3, atol=1e-5)
        # torch's average begins with the weights after the first step
        first = train(source, problem(64), epochs=1, batch=64, lr=1e-9).graph.array("fc.w")
        assert np.abs(last - first).max() > 10 * np.abs(slow - first).max() > 0

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"schedule": "linear"}, "schedule 'linear'"),
            ({"hold": 1.0}, "hold=1.0"),
            ({"hold": 0.5, "schedule": "constant"}, "hold=0.5"),
            ({"accumulate": 0}, "accumulate=0"),
            ({"ema": 1.0}, "ema 1.0"),
            ({"ema": -0.1}, "ema -0.1"),
        ],
    )
    def test_what_makes_no_sense_is_said(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            train(network(), problem(), **settings)


def network_without_norms() -> Graph:
    """Conv, Relu, pool, Gemm."""
    rng = np.random.default_rng(0)
    weights = {"conv.w": some((8, 1, 3, 3), rng) / 3, "fc.w": some((CLASSES, 72), rng) / 9, "target": ints(-1, 72)}
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "conv.w"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", ["p", "target"], ["f"]),
        node("Gemm", ["f", "fc.w"], ["y"], transB=1),
    ]
    return Graph(build(nodes, {"x": np.zeros((1, *SHAPE), np.float32)}, weights, ["y"], 17, "batch"))


def stacked(channels: tuple[int, ...], depthwise: int = 0) -> Graph:
    """Convolutions of so many channels over images of one, then so many depthwise ones; or a Relu."""
    rng, node, last = np.random.default_rng(0), helper.make_node, len(channels) + depthwise
    sizes = [*zip(channels, (1, *channels), strict=False), *[(*channels[-1:], 1)] * depthwise]
    weights = {f"{k}.w": some((outputs, inputs, 3, 3), rng) for k, (outputs, inputs) in enumerate(sizes)}
    groups = [1] * len(channels) + [*channels[-1:]] * depthwise
    nodes = [
        node("Conv", [f"{k}" if k else "x", f"{k}.w"], [f"{k + 1}"], pads=[1, 1, 1, 1], group=groups[k])
        for k in range(last)
    ]
    nodes.append(node("Relu", [f"{last}" if last else "x"], ["y"]))
    return Graph(build(nodes, {"x": np.zeros((1, *SHAPE), np.float32)}, weights, ["y"], 17, "batch"))


class TestMachine:
    """What changes how fast it goes changes what comes out by rounding only."""

    def apart(self, **settings: Any) -> float:
        data = problem()
        plain, other = (train(network(), data, epochs=1, lr=0.01, **more).graph for more in ({}, settings))
        names = [name for name in plain.weights if plain.array(name).dtype.kind == "f"]
        assert all(plain.array(name).dtype == other.array(name).dtype for name in names)
        return max(
            float(np.abs(plain.array(name) - other.array(name)).max() / np.abs(plain.array(name)).max())
            for name in names
        )

    def test_channels_last(self) -> None:
        assert self.apart(channels_last=False) < 1e-5  # this network has them last by itself

    @pytest.mark.parametrize(
        ("channels", "depthwise", "last"),
        [
            ((8, 16), 0, True),
            ((8, 7), 0, False),
            ((), 0, False),
            ((16, 14, 8), 0, True),
            ((16, 14, 22), 0, False),
            ((14,), 0, False),
            ((14,), 1, True),
            ((14, 12, 22), 1, False),
            ((45, 90), 0, True),
        ],
    )
    def test_channels_are_last_where_most_convolutions_are_fast_so(
        self, channels: tuple[int, ...], depthwise: int, last: bool
    ) -> None:
        learner = Learner(stacked(channels, depthwise), torch.device("cpu"))
        learner.use_channels_last(None)
        assert learner.channels_last is last
        learner.use_channels_last(not last)
        assert learner.channels_last is not last

    def test_half_precision_keeps_weights_in_single(self) -> None:
        assert 1e-6 < self.apart(precision="bf16-mixed") < 0.05

    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
    def test_compiled(self) -> None:
        assert self.apart(compile=True) < 1e-4

    def test_what_breaks_while_a_batch_is_made_is_raised(self) -> None:
        class Broken:
            def __len__(self) -> int:
                return 64

            def batches(self, size: int, *, seed: int | None = None) -> Iterator[Any]:
                yield from problem(32).batches(min(size, 16))
                if size > 1:
                    raise DataError("image 33 is broken")

        with pytest.raises(DataError, match="image 33 is broken"):
            train(network(), Broken(), epochs=1)


class TestErrors:
    def test_divergence_is_told_with_advice(self) -> None:
        with pytest.raises(Diverged, match=r"(nan|inf) in batch \d+ of epoch 1, .* of 1e\+20\. Lower it"):
            train(network(), problem(), lr=1e20, clip=None)

    def test_images_that_are_not_numbers_diverge(self) -> None:
        data = Split(np.full((20, *SHAPE), np.nan, np.float32), np.zeros(20, np.int64))
        with pytest.raises(Diverged, match="in batch 1 of epoch 1"):
            train(network(), data)

    @pytest.mark.parametrize(
        "options",
        [
            {"epochs": -1},
            {"lr": 0.0},
            {"lr": float("nan")},
            {"distill": 1.5},
            {"temperature": 0.0},
            {"optimizer": "lbfgs"},
        ],
        ids=str,
    )
    def test_settings_without_sense(self, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            train(network(), problem(), **options)

    def test_nothing_to_learn_from(self) -> None:
        for data, labels in ((problem(labels=False), True), (problem(), False)):
            with pytest.raises(UsageError, match="nothing to learn from"):
                train(network(), data, labels=labels)

    def test_labels_out_of_range(self) -> None:
        data = Split(problem().images, np.full(200, CLASSES))
        with pytest.raises(DataError, match="labels run from 4 to 4; the model has 4 classes"):
            train(network(), data)

    def test_images_of_another_size(self) -> None:
        with pytest.raises(DataError, match=r"does not take inputs of shape \(16, 1, 9, 6\)"):
            train(network(), Split(np.zeros((20, 1, 9, 6), np.uint8), np.zeros(20, np.int64)))

    def test_no_samples(self) -> None:
        with pytest.raises(DataError, match="no samples"):
            train(network(), Split(np.zeros((0, *SHAPE), np.uint8), np.zeros(0, np.int64)))

    def test_a_model_that_scores_no_classes(self) -> None:
        node = helper.make_node("Conv", ["x", "w"], ["y"])
        rng = np.random.default_rng(0)
        model = build([node], {"x": some((1, *SHAPE), rng)}, {"w": some((4, 1, 3, 3), rng)}, ["y"], 17, "batch")
        with pytest.raises(DataError, match=r"first output has shape \(16, 4, 4, 4\)"):
            train(Graph(model), problem())

    def test_two_inputs(self) -> None:
        rng = np.random.default_rng(0)
        inputs = {"x": some((2, 3), rng), "z": some((2, 3), rng)}
        model = build([helper.make_node("Add", ["x", "z"], ["y"])], inputs, {}, ["y"], 17)
        with pytest.raises(UsageError, match=r"2 inputs \(x, z\)"):
            train(Graph(model), problem())

    def test_teachers_of_other_classes(self) -> None:
        with pytest.raises(UsageError, match="the teacher has 7 classes, the student 4"):
            train(network(), problem(), teacher=np.zeros((200, 7), np.float32))

    def test_devices_that_are_not_there(self) -> None:
        for options in ({"accelerator": "abacus"}, {"precision": "3-bit"}):
            with pytest.raises(UsageError, match=r"cannot train on \w+ with precision"):
                fit(network(), problem(), epochs=1, **options)

    def test_nothing_is_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        train(network(), problem(50), epochs=1)
        train(bound(8), problem(50), epochs=1)
        self.test_images_of_another_size()
        assert capfd.readouterr() == ("", "")


def test_beside_the_average_of_the_weights_there_are_those_of_the_last_step() -> None:
    one: dict[str, Any] = {"epochs": 2, "batch": 64, "lr": 0.05}
    plain, averaged = train(network(), problem(256), **one), train(network(), problem(256), ema=0.9, **one)
    assert plain.last is None
    assert averaged.last is not None
    for name in plain.graph.weights:
        assert averaged.last.array(name).tobytes() == plain.graph.array(name).tobytes(), name
    assert any(averaged.graph.array(n).tobytes() != plain.graph.array(n).tobytes() for n in plain.graph.weights)
