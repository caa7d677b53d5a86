"""What evaluation promises: numpy's own arithmetic, whatever the batch, on the split asked for and on no other."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.data import RAW, DataSet, Normalisation, Split
from conet_onnx.data.dataset import Splits
from conet_onnx.errors import DataError
from conet_onnx.evaluation import Evaluation, choose_normalisation, evaluate, resolve_normalisation
from conet_onnx.graph import Graph

SHAPE = (3, 2, 2)
CLASSES = 7


def data(count: int = 50, *, classes: int = CLASSES, seed: int = 0) -> DataSet:
    rng = np.random.default_rng(seed)

    def split(size: int) -> Split:
        return Split(rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8), rng.integers(0, classes, size))

    return DataSet("d", {"train": split(count), "test": split(count)})


def linear(
    *,
    batch: int | str = "batch",
    classes: int = CLASSES,
    tail: Sequence[str] = (),
    dtype: int = TensorProto.FLOAT,
    bias: np.ndarray[Any, Any] | None = None,
    weight: np.ndarray[Any, Any] | None = None,
) -> Graph:
    """Flatten, then a fixed random matrix (weights of about 1/255 a pixel); then `tail`."""
    rng = np.random.default_rng(1)
    if weight is None:
        weight = rng.standard_normal((12, classes)) / 100
    tensors = [
        numpy_helper.from_array(weight.astype(np.float32), "w"),
        numpy_helper.from_array((np.zeros(classes) if bias is None else bias).astype(np.float32), "b"),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["t0"]),
        *(helper.make_node(op, [f"t{i}"], [f"t{i + 1}"]) for i, op in enumerate(tail)),
    ]
    nodes[-1].output[0] = "y"
    x = helper.make_tensor_value_info("x", dtype, [batch, *SHAPE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes])
    return Graph(
        helper.make_model(
            helper.make_graph(nodes, "g", [x], [y], tensors), ir_version=9, opset_imports=[helper.make_opsetid("", 18)]
        )
    )


def logits(graph: Graph, images: Any) -> np.ndarray[Any, Any]:
    """The oracle: numpy in double precision."""
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    return flat @ graph.array("w").astype(np.float64) + graph.array("b")


def expected(scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = order == labels[:, None]
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    loss = -np.log(chances[np.arange(len(labels)), labels]).mean()
    return hits[:, 0].mean(), hits[:, :5].any(1).mean(), loss


def test_accuracy_and_loss_are_numpys() -> None:
    graph, d = linear(), data()
    test = d.split("test")
    assert test.labels is not None
    top1, top5, loss = expected(logits(graph, test.images), test.labels)
    found = evaluate(graph, d, normalisation=RAW, provider="cpu", threads=1)
    assert (found.split, found.samples) == ("test", 50)
    assert found.top1 == pytest.approx(top1)
    assert found.top5 == pytest.approx(top5)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.samples_per_second > 0


@pytest.mark.parametrize("fixed", ["batch", 1, 7, 50, 64])
@pytest.mark.parametrize("batch", [1, 7, 256])
def test_the_batch_changes_nothing(fixed: int | str, batch: int) -> None:
    d = data()
    reference = evaluate(linear(), d, normalisation=RAW, provider="cpu")
    found = evaluate(linear(batch=fixed), d, normalisation=RAW, provider="cpu", batch=batch)
    assert (found.samples, found.top1, found.top5) == (reference.samples, reference.top1, reference.top5)
    assert found.loss == pytest.approx(reference.loss, rel=1e-6)


def test_pixels_are_normalised_before_they_are_fed() -> None:
    normalisation = Normalisation((0.1, 0.2, 0.3), (0.5, 0.5, 0.25), 1 / 64)
    graph, d = linear(), data()
    test = d.split("test")
    assert test.labels is not None
    found = evaluate(graph, d, normalisation=normalisation, provider="cpu")
    top1, top5, loss = expected(logits(graph, normalisation.apply(test.images[:])), test.labels)
    assert (found.top1, found.top5) == pytest.approx((top1, top5))
    assert found.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("tail", [["Softmax"], ["LogSoftmax"], ["Softmax", "Identity", "Flatten"]])
def test_probabilities_have_the_loss_of_their_logits(tail: list[str]) -> None:
    d = data()
    plain = evaluate(linear(), d, normalisation=RAW, provider="cpu")
    found = evaluate(linear(tail=tail), d, normalisation=RAW, provider="cpu")
    assert found.top1 == plain.top1
    assert found.loss == pytest.approx(plain.loss, rel=1e-5)


def test_huge_scores_do_not_overflow() -> None:
    d = data()
    weight = np.random.default_rng(1).standard_normal((12, CLASSES)) * 1e4
    found = evaluate(linear(weight=weight), d, normalisation=RAW, provider="cpu")
    assert math.isfinite(found.loss)
    assert found.loss > 1e4


def test_equal_scores_are_not_all_right() -> None:
    d = data(700)
    found = evaluate(linear(weight=np.zeros((12, CLASSES))), d, normalisation=RAW, provider="cpu")
    labels = d.split("test").labels
    assert labels is not None
    assert found.top1 == pytest.approx((labels == 0).mean())
    assert found.top5 == pytest.approx((labels < 5).mean())
    assert found.loss == pytest.approx(math.log(CLASSES))


def test_a_model_that_diverged_is_never_right_and_its_json_is_valid() -> None:
    found = evaluate(linear(bias=np.full(CLASSES, np.nan)), data(), normalisation=RAW, provider="cpu")
    assert (found.top1, found.top5) == (0, 0)
    assert math.isnan(found.loss)
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["loss"] is None


@pytest.mark.parametrize(("classes", "says"), [(5, False), (6, True)])
def test_top5_is_given_where_it_says_something(classes: int, says: bool) -> None:
    found = evaluate(linear(classes=classes), data(classes=classes), normalisation=RAW, provider="cpu")
    assert (found.top5 is not None) == says


def test_json_is_the_contracts() -> None:
    found = Evaluation("test", 10, 0.5, None, 1.25, 100.0)
    assert found.as_json() == {
        "format": "conet-onnx-evaluation/1",
        "split": "test",
        "samples": 10,
        "top1": 0.5,
        "top5": None,
        "loss": 1.25,
        "samples_per_second": 100.0,
    }


def test_progress_ends_at_the_whole() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(linear(), data(), normalisation=RAW, provider="cpu", batch=20, progress=lambda *at: seen.append(at))
    assert seen == [(20, 50), (40, 50), (50, 50)]


def test_models_that_take_bytes_are_fed_bytes() -> None:
    d = data()
    graph = linear(dtype=TensorProto.UINT8)
    found = evaluate(graph, d, provider="cpu")
    reference = evaluate(linear(), d, normalisation=RAW, provider="cpu")
    assert replace(found, samples_per_second=0) == replace(reference, samples_per_second=0)
    assert choose_normalisation(graph, d, provider="cpu").name == "raw"


class TestWhatDoesNotFit:
    def test_a_missing_split(self) -> None:
        with pytest.raises(DataError, match="no validation split"):
            evaluate(linear(), data(), split="validation")

    def test_no_labels(self) -> None:
        with pytest.raises(DataError, match="its test split has no labels"):
            evaluate(linear(), DataSet("d", {"test": Split(data().split("test").images)}), normalisation=RAW)

    def test_labels_out_of_range_where_only_running_tells(self) -> None:
        graph = linear()
        model = type(graph.model)()
        model.CopyFrom(graph.model)
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
        with pytest.raises(DataError, match=r"out of range; the model has 7 classes"):
            evaluate(Graph(model), data(classes=20), normalisation=RAW, provider="cpu")

    def test_two_inputs(self) -> None:
        xs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *SHAPE]) for name in "ab"]
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *SHAPE])
        graph = Graph(helper.make_model(helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "g", xs, [y])))
        with pytest.raises(DataError, match=r"2 inputs \(a, b\); images feed exactly one"):
            evaluate(graph, data(), normalisation=RAW)

    @pytest.mark.parametrize("op", ["Relu", "Shape", "ReduceMean"])
    def test_an_output_that_scores_no_classes(self, op: str) -> None:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *SHAPE])
        y = helper.make_tensor_value_info("y", TensorProto.INT64 if op == "Shape" else TensorProto.FLOAT, None)
        graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", [x], [y])
        made = Graph(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)]))
        with pytest.raises(DataError, match=r"expected one score for each class, \(batch, classes\)") as caught:
            evaluate(made, data(), normalisation=RAW, provider="cpu")
        assert "\n" not in str(caught.value)


class TestChoosing:
    """The source model is right exactly where its own normalisation is used; see `taught`."""

    @staticmethod
    def taught(right: Normalisation, count: int = 300) -> tuple[Graph, DataSet]:
        """A linear model with a large bias, and a data set that is labelled by it on its own normalisation."""
        bias = np.random.default_rng(2).standard_normal(CLASSES) * 0.5
        weight = np.random.default_rng(3).standard_normal((12, CLASSES))
        graph = linear(bias=bias, weight=weight)
        images = np.random.default_rng(4).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        labels = logits(graph, right.apply(images)).argmax(1)
        return graph, DataSet("d", {"train": Split(images, labels)})

    @pytest.mark.parametrize(
        ("name", "right"),
        [
            ("raw", RAW),
            ("/255", Normalisation(scale=1 / 255)),
            ("-1..1", Normalisation((0.5,), (0.5,), 1 / 255)),
            ("imagenet", Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255)),
            ("cifar10", Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 1 / 255)),
        ],
    )
    def test_the_one_that_the_model_was_trained_on_wins(self, name: str, right: Normalisation) -> None:
        graph, d = self.taught(right)
        choice = choose_normalisation(graph, d, provider="cpu")
        assert (choice.name, choice.normalisation) == (name, right)
        scores = dict(choice.scores)
        assert scores[name].top1 == 1.0
        assert list(scores) == ["raw", "/255", "-1..1", "imagenet", "cifar10"]
        assert json.loads(json.dumps(choice.as_json()))["scores"][0]["name"] == "raw"

    def test_ties_go_to_the_earlier(self) -> None:
        choice = choose_normalisation(linear(weight=np.zeros((12, CLASSES))), data(), provider="cpu")
        assert choice.name == "raw"

    def test_equal_accuracy_goes_to_the_lower_loss(self) -> None:
        """The weights see differences within one channel, so a candidate scales the scores and moves nothing.

        Where all are wrong, the smallest scale is the least sure; where all are right, the largest is the surest.
        """
        weight = np.zeros((12, CLASSES))
        weight[:4] = np.random.default_rng(3).standard_normal((4, CLASSES))
        weight[:4] -= weight[:4].mean(0)
        graph = linear(weight=weight)
        images = data().split("train").images[:]
        for labels, name in ((logits(graph, images).argmin(1), "/255"), (logits(graph, images).argmax(1), "raw")):
            choice = choose_normalisation(graph, DataSet("d", {"train": Split(images, labels)}), provider="cpu")
            assert len({found.top1 for _, found in choice.scores}) == 1
            assert choice.name == name

    def test_only_a_sample_of_train_is_read(self) -> None:
        def broken() -> Split:
            raise AssertionError("another split was read")

        train = data(3000).split("train")
        d = DataSet("d", Splits({"train": lambda: train, "validation": broken, "test": broken}))
        choice = choose_normalisation(linear(), d, provider="cpu")
        assert {found.samples for _, found in choice.scores} == {1024}

    def test_without_labelled_training_data_it_says_what_to_give(self) -> None:
        d = DataSet("d", {"test": data().split("test")})
        with pytest.raises(DataError, match="--mean and --std") as caught:
            evaluate(linear(), d, provider="cpu")
        assert "no train split" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_what_is_given_goes_before_the_file_and_the_file_before_a_guess(self, tmp_path: Path) -> None:
        graph, d = self.taught(RAW)
        graph.save(tmp_path / "net.onnx")
        stored = Graph(graph.model, file=str(tmp_path / "net.onnx"))
        assert resolve_normalisation(stored, d, provider="cpu").name == "raw"
        Normalisation(scale=0.5).save_beside(tmp_path / "net.onnx")
        choice = resolve_normalisation(stored, d, provider="cpu")
        assert (choice.name, choice.normalisation) == ("file", Normalisation(scale=0.5))
        given = Normalisation(scale=0.25)
        assert resolve_normalisation(stored, d, given=given, provider="cpu").normalisation == given

    def test_evaluation_finds_the_normalisation_itself(self) -> None:
        right = Normalisation((0.5,), (0.5,), 1 / 255)
        graph, d = self.taught(right)
        assert evaluate(graph, DataSet("d", {"train": d.split("train")}), split="train", provider="cpu").top1 == 1.0
