"""Statistics measured again: those of each norm's input, and, where norms were folded away, the source's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli_support import small_model
from onnx import helper, numpy_helper

import conet_onnx as co
from conet_onnx.analysis import analyze
from conet_onnx.data import load_data
from conet_onnx.errors import UsageError
from conet_onnx.evaluation import evaluate, resolve_normalisation
from conet_onnx.graph import Graph
from conet_onnx.planning import scaled
from conet_onnx.transfer import calibration_batches, transferred

HALF = {"w0": 3, "w1": 4}


def batches(count: int = 3, size: int = 7) -> tuple[dict[str, Any], ...]:
    rng = np.random.default_rng(2)
    return tuple({"x": rng.normal(0.3, 1, (size, 1, 8, 8)).astype(np.float32)} for _ in range(count))


def with_norms() -> onnx.ModelProto:
    """The small model with a BatchNormalization after each convolution."""
    model = small_model()
    rng = np.random.default_rng(3)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "Conv":
            size, out = {"c1": 6, "c2": 8}[node.name], node.output[0]
            node.output[0] = f"{out}.before"
            names = [f"{node.name}.{part}" for part in ("scale", "shift", "mean", "var")]
            for name in names:
                values = rng.uniform(0.5, 1.5, size).astype(np.float32)
                model.graph.initializer.append(numpy_helper.from_array(values, name))
            nodes.append(helper.make_node("BatchNormalization", [f"{out}.before", *names], [out], f"{node.name}.norm"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def tensors(graph: Graph, names: list[str], feeds: Any) -> dict[str, Any]:
    """Some tensors over all batches, by onnxruntime."""
    model = onnx.ModelProto.FromString(graph.proto().SerializeToString())
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = [session.run(names, feed) for feed in feeds]
    return {name: np.concatenate([part[k] for part in parts]).astype(np.float64) for k, name in enumerate(names)}


@pytest.mark.parametrize("transfer", ["slice", "svd", "least-squares"])
def test_each_norm_has_the_statistics_of_its_input(transfer: str) -> None:
    made = transferred(analyze(Graph(with_norms())), HALF, transfer, calibration=batches(), recalibrate=True)
    assert made.norms is not None
    assert made.norms.norms == 2
    inputs = tensors(made.graph, ["a.before", "c.before"], batches())
    for layer, x in zip(("c1", "c2"), inputs.values(), strict=True):
        np.testing.assert_allclose(made.graph.array(f"{layer}.mean"), x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(made.graph.array(f"{layer}.var"), x.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_folded_layers_have_the_sources_statistics() -> None:
    """Of those that lost inputs: at the channels that are left, mean and variance are the source's again."""
    analysis = analyze(Graph(small_model()))
    made = transferred(analysis, HALF, calibration=batches(), recalibrate=True)
    assert made.norms is not None
    assert made.norms.layers == ("c2.w", "fc.w")
    kept = made.plan.initializers["c2.w"].take[0]  # type: ignore[union-attr]  # a weight that one node reads
    ours, theirs = (tensors(g, ["c", "y"], batches()) for g in (made.graph, analysis.graph))
    for found, wanted in ((ours["c"], theirs["c"][:, kept]), (ours["y"], theirs["y"])):
        axes = (0, *range(2, found.ndim))
        np.testing.assert_allclose(found.mean(axes), wanted.mean(axes), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.var(axes), wanted.var(axes), rtol=1e-3)


def test_least_squares_has_fitted_what_was_folded() -> None:
    """Its layers have the source's means already, and less variance, which is what comes nearest."""
    analysis = analyze(Graph(small_model()))
    fitted = transferred(analysis, HALF, "least-squares", calibration=batches())
    again = transferred(analysis, HALF, "least-squares", calibration=batches(), recalibrate=True)
    assert again.norms is not None
    assert again.norms.layers == ()
    for name in fitted.graph.weights:
        np.testing.assert_array_equal(fitted.graph.array(name), again.graph.array(name))


def test_a_dead_channel_gives_no_infinities() -> None:
    model = small_model()
    for tensor in model.graph.initializer:
        if tensor.name == "c2.w":
            array = numpy_helper.to_array(tensor).copy()
            array[:] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, "c2.w"))
    made = transferred(analyze(Graph(model)), HALF, calibration=batches(), recalibrate=True)
    assert all(np.isfinite(made.graph.array(name)).all() for name in made.graph.weights)


def test_what_no_width_changes_stays_as_it_is() -> None:
    graph = Graph(with_norms())
    made = transferred(analyze(graph), {}, calibration=batches(), recalibrate=True)
    assert made.norms is None
    for name in graph.weights:
        np.testing.assert_array_equal(made.graph.array(name), graph.array(name))


def test_a_plan_says_that_values_have_changed() -> None:
    made = transferred(analyze(Graph(with_norms())), HALF, calibration=batches(), recalibrate=True)
    assert made.plan.values == "changed"
    co.verify(analyze(Graph(with_norms())).graph, made.graph, made.plan)


def test_without_samples_it_is_an_error() -> None:
    with pytest.raises(UsageError, match="calibration"):
        transferred(analyze(Graph(small_model())), HALF, recalibrate=True)


def test_the_shipped_network_is_usable_after_it() -> None:
    """Every width three quarters of itself, without labels; sliced alone it is right one time in four."""
    model, digits = co.load("models/digits_resnet8.onnx"), load_data("digits")
    pixels = resolve_normalisation(model, digits).normalisation
    samples = calibration_batches(model, digits.split("train"), pixels, samples=128)
    analysis = analyze(model)
    widths, _ = scaled(analysis, 0.75)
    found = [
        evaluate(transferred(analysis, widths, **how).graph, digits, split="validation", normalisation=pixels).top1
        for how in ({}, {"calibration": samples, "recalibrate": True})
    ]
    assert found[0] < 0.5
    assert found[1] > found[0] + 0.5
