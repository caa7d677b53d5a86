"""What becomes of trained weights: low ranks against numpy's SVD, fitted layers against onnxruntime and lstsq.

That growth by slice, net2net and zero keeps the function is in test_planning.py.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import oracles
import pytest
import strategies
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from strategies import Builder
from test_quantised_models import by_onnxruntime
from torch import fx

import conet_onnx as co
from conet_onnx.analysis import Analysis, analyze
from conet_onnx.data import RAW, Feeds, Split
from conet_onnx.errors import DataError, ModelError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.metrics.evbmf import evbmf
from conet_onnx.planning import TRANSFERS, scaled
from conet_onnx.runtime import run_all
from conet_onnx.torch_backend import reconstruction
from conet_onnx.torch_backend.reconstruction import RIDGES
from conet_onnx.transfer import Transferred, calibration_batches, transferred
from conet_onnx.verification import verify

MODEL = Path(__file__).parent.parent / "models" / "digits_resnet8.onnx"


def builder(batch: int = 2) -> Builder:
    b = Builder(random.Random(3), opset=17, batch=batch)
    b.tidy = True
    return b


def chain(*channels: int, kernel: int = 3, norm: bool = False) -> Analysis:
    """Convolutions with Relus between them: a width of each size, w0, w1, ..."""
    b = builder()
    x = b.input("x", (2, 3, 5, 5))
    for c in channels:
        x = b.conv(x, c, kernel=kernel)
        x = b.norm(x) if norm else x
        x = b.node("Relu", [x], b.shapes[x])
    return analyze(Graph(b.model([b.conv(x, 2, kernel=kernel)])))


def weights(graph: Graph, rank: int = 2) -> list[str]:
    """The weights of so many axes or more, in the order in which nodes read them."""
    names = (name for node in graph.nodes for name in node.inputs)
    return [n for n in dict.fromkeys(names) if n in graph.weights and len(graph.weights[n].dims) >= rank]


def published(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """U[:n, :n] S[:n, :m] V[:m, :m]^T."""
    u, s, vt = np.linalg.svd(matrix.astype(np.float64))
    sigma = np.zeros(matrix.shape)
    np.fill_diagonal(sigma, s)
    return u[:rows, :rows] @ sigma[:rows, :columns] @ vt[:columns, :columns]


def outputs(graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    made = run_all(graph, feeds)
    return [made[value.name] for value in graph.outputs]


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


class TestSvd:
    @pytest.mark.parametrize(("first", "second"), [(3, 4), (5, 2), (1, 8), (6, 3), (2, 1)])
    def test_convolutions_are_the_published_product(self, first: int, second: int) -> None:
        analysis = chain(6, 8)
        made = transferred(analysis, {"w0": first, "w1": second}, "svd")
        for name in weights(analysis.graph):
            before, after = analysis.graph.array(name), made.graph.array(name)
            flat = after.reshape(len(after), -1)
            expected = published(before.reshape(len(before), -1), *flat.shape)
            np.testing.assert_allclose(flat, expected, atol=1e-5)
        assert any(
            not np.allclose(made.graph.array(n), analysis.graph.array(n)[tuple(map(slice, made.graph.weights[n].dims))])
            for n in weights(analysis.graph)
        )

    @pytest.mark.parametrize("transposed", [False, True])
    def test_matrices_are_the_published_product_however_they_are_stored(self, transposed: bool) -> None:
        b = builder()
        x = b.input("x", (2, 5))
        x = b.node("Gemm", [x, b.weight(b.floats(9, 5)), b.weight(b.floats(9))], (2, 9), transB=1)
        x = b.node("Relu", [x], (2, 9))
        w = b.weight(b.floats(7, 9) if transposed else b.floats(9, 7))
        x = b.node("Gemm", [x, w], (2, 7), transB=1) if transposed else b.node("MatMul", [x, w], (2, 7))
        x = b.node("Relu", [x], (2, 7))
        analysis = analyze(Graph(b.model([b.node("MatMul", [x, b.weight(b.floats(7, 4))], (2, 4))])))
        made = transferred(analysis, {"w0": 3, "w1": 6}, "svd")
        before, after = analysis.graph.array(w), made.graph.array(w)
        turned = before if transposed else before.T
        expected = published(turned, 6, 3)
        np.testing.assert_allclose(after if transposed else after.T, expected, atol=1e-5)

    def test_each_group_has_a_rank_of_its_own(self) -> None:
        b = builder()
        x = b.node("Relu", [b.conv(b.input("x", (2, 3, 4, 4)), 8)], (2, 8, 4, 4))
        x = b.conv(x, 12, kernel=3, group=2)
        analysis = analyze(Graph(b.model([b.conv(b.node("Relu", [x], b.shapes[x]), 2)])))
        name = weights(analysis.graph)[1]
        by_size = {w.size: i for i, w in analysis.widths.items()}
        assert sorted(by_size) == [2, 4, 6]  # groups, inputs and outputs of each
        made = transferred(analysis, {by_size[6]: 2}, "svd")
        before, after = analysis.graph.array(name), made.graph.array(name)
        expected = [published(half.reshape(6, -1), 2, 36).reshape(2, 4, 3, 3) for half in np.split(before, 2)]
        np.testing.assert_allclose(after, np.concatenate(expected), atol=1e-5)
        fewer = transferred(analysis, {by_size[2]: 1, by_size[6]: 3}, "svd")
        one = published(before[:6].reshape(6, -1), 3, 36).reshape(3, 4, 3, 3)
        np.testing.assert_allclose(fewer.graph.array(name), one, atol=1e-5)

    def test_a_transposed_convolution_has_its_outputs_second(self) -> None:
        b = builder()
        x = b.node("Relu", [b.conv(b.input("x", (2, 3, 4, 4)), 8)], (2, 8, 4, 4))
        w = b.weight(b.floats(8, 3, 2, 2))
        x = b.node("ConvTranspose", [x, w], (2, 6, 8, 8), strides=[2, 2], group=2)
        analysis = analyze(Graph(b.model([b.conv(b.node("Relu", [x], b.shapes[x]), 2)])))
        width = next(i for i, m in analysis.widths.items() if m.size == 3)
        made = transferred(analysis, {width: 2}, "svd")
        halves = [half.transpose(1, 0, 2, 3).reshape(3, -1) for half in np.split(analysis.graph.array(w), 2)]
        expected = [published(half, 2, 16).reshape(2, 4, 2, 2).transpose(1, 0, 2, 3) for half in halves]
        np.testing.assert_allclose(made.graph.array(w), np.concatenate(expected), atol=1e-5)

    def test_of_joined_inputs_the_first_of_each_stay(self) -> None:
        b = builder()
        x = b.input("x", (2, 3, 4, 4))
        parts = [b.node("Relu", [b.conv(x, c)], (2, c, 4, 4)) for c in (4, 5)]
        joined = b.node("Concat", parts, (2, 9, 4, 4), axis=1)
        x = b.node("Relu", [b.conv(joined, 7)], (2, 7, 4, 4))
        analysis = analyze(Graph(b.model([b.conv(x, 2)])))
        sizes = {w.size: i for i, w in analysis.widths.items()}
        made = transferred(analysis, {sizes[4]: 2, sizes[5]: 3, sizes[7]: 4}, "svd")
        name = weights(analysis.graph)[2]
        low = truncated(analysis.graph.array(name).reshape(7, 9), 4)
        expected = low[:4][:, [0, 1, 4, 5, 6]]
        np.testing.assert_allclose(made.graph.array(name).reshape(4, 5), expected, atol=1e-5)

    def test_a_tower_of_matrices_is_cut_one_by_one(self) -> None:
        b = builder()
        x = b.node(
            "Relu", [b.node("MatMul", [b.input("x", (2, 3, 5)), b.weight(b.floats(5, 8))], (2, 3, 8))], (2, 3, 8)
        )
        w = b.weight(b.floats(3, 8, 6))
        many = b.node("MatMul", [b.unsqueeze(x, [1]), w], (2, 3, 3, 6))
        x = b.node("MatMul", [b.node("Relu", [many], (2, 3, 3, 6)), b.weight(b.floats(6, 2))], (2, 3, 3, 2))
        analysis = analyze(Graph(b.model([x])))
        sizes = {m.size: i for i, m in analysis.widths.items()}
        made = transferred(analysis, {sizes[8]: 4, sizes[6]: 2}, "svd")
        expected = [truncated(one, 2)[:4, :2] for one in analysis.graph.array(w)]
        np.testing.assert_allclose(made.graph.array(w), expected, atol=1e-5)

    def test_a_kernel_that_is_stored_with_its_channels_last_is_unfolded_alike(self) -> None:
        b = builder()
        x = b.node("Relu", [b.conv(b.input("x", (2, 3, 4, 4)), 6)], (2, 6, 4, 4))
        w = b.weight(b.floats(3, 2, 6, 5))  # height, width, inputs, outputs
        x = b.node("Conv", [x, b.transpose(w, (3, 2, 0, 1))], (2, 5, 2, 3))
        analysis = analyze(Graph(b.model([b.conv(b.node("Relu", [x], b.shapes[x]), 2)])))
        made = transferred(analysis, {"w0": 4, "w1": 2}, "svd")
        expected = published(analysis.graph.array(w).transpose(3, 2, 0, 1).reshape(5, 36), 2, 24)
        after = made.graph.array(w).transpose(3, 2, 0, 1)
        np.testing.assert_allclose(after, expected.reshape(2, 4, 3, 2), atol=1e-5)

    def test_weights_in_eight_bits_are_taken_as_they_are(self) -> None:
        analysis = analyze(Graph(by_onnxruntime("layers", channels=True, unsigned=False)))
        widths = {i: w.size // 2 for i, w in analysis.widths.items()}
        made = transferred(analysis, widths, "svd")
        stored = [n for n in weights(made.graph) if made.graph.array(n).dtype.kind == "i"]
        assert len(stored) > 1
        for name in stored:
            taken = analysis.graph.array(name)[tuple(map(slice, made.graph.weights[name].dims))]
            assert np.array_equal(made.graph.array(name), taken)

    def test_growth_copies_the_last_channels_and_divides_nothing(self) -> None:
        analysis = chain(4, 5, norm=True)
        made = transferred(analysis, {"w0": 6, "w1": 13}, "svd")
        first, second = weights(analysis.graph)[:2]
        w0, w1 = [0, 1, 2, 3, 2, 3], [0, 1, 2, 3, 4] * 2 + [2, 3, 4]
        assert np.array_equal(made.graph.array(first), analysis.graph.array(first)[w0])
        assert np.array_equal(made.graph.array(second), analysis.graph.array(second)[w1][:, w0])
        assert made.plan.values == "changed"  # though each is a copy: what is summed twice counts twice

    def test_norms_and_biases_come_along(self) -> None:
        analysis = chain(6, 8, norm=True)
        made = transferred(analysis, {"w0": 3, "w1": 5}, "svd")
        vectors = [n for n in weights(analysis.graph, 1) if len(analysis.graph.weights[n].dims) == 1]
        assert len(vectors) == 11
        for name in vectors:
            after = made.graph.array(name)
            assert np.array_equal(after, analysis.graph.array(name)[: len(after)])

    def test_what_is_of_a_rank_that_fits_is_only_sliced_and_proved_so(self) -> None:
        analysis = chain(6)
        made = transferred(analysis, {"w0": 4}, "svd")
        assert made.plan.values == "changed"  # the first convolution has 6 rows
        b = builder()
        wide = b.node("Relu", [b.conv(b.input("x", (2, 3, 4, 4)), 8)], (2, 8, 4, 4))
        analysis = analyze(Graph(b.model([b.conv(wide, 2)])))
        made = transferred(analysis, {"w0": 5}, "svd")
        assert made.plan.values == "source"
        proof = verify(analysis.graph, made.graph, made.plan, provider="cpu")
        assert proof.difference is not None

    def test_single_rows_have_nothing_to_truncate(self) -> None:
        b = builder()
        x = b.node("Relu", [b.conv(b.input("x", (2, 3, 4, 4)), 6)], (2, 6, 4, 4))
        x = b.conv(x, 6, kernel=3, group=6)
        analysis = analyze(Graph(b.model([b.conv(x, 2)])))
        name = weights(analysis.graph)[1]
        for transfer in ("svd", "evbmf"):
            made = transferred(analysis, {"w0": 4}, transfer)
            assert np.array_equal(made.graph.array(name), analysis.graph.array(name)[:4])

    @pytest.mark.parametrize("wrong", [np.nan, np.inf])
    def test_weights_that_are_not_finite_are_named(self, wrong: float) -> None:
        graph = chain(6).graph
        name = weights(graph)[0]
        array = graph.array(name).copy()
        array[0, 0, 0, 0] = wrong
        with pytest.raises(ModelError, match=f"{name!r} holds numbers that are not finite"):
            transferred(analyze(graph.with_arrays({name: array})), {"w0": 3}, "svd")


class TestEvbmf:
    @staticmethod
    def noisy(rank: int, noise: float = 0.02) -> tuple[Analysis, str, np.ndarray]:
        """A middle layer of a known rank, and noise; and the layer without the noise."""
        analysis = chain(32, 48, kernel=1)
        name = weights(analysis.graph)[1]
        rng = np.random.default_rng(0)
        planted = rng.standard_normal((48, rank)) @ rng.standard_normal((rank, 32)) / np.sqrt(32)
        weight = planted + noise * rng.standard_normal(planted.shape)
        graph = analysis.graph.with_arrays({name: weight.reshape(48, 32, 1, 1).astype(np.float32)})
        return analyze(graph), name, planted

    @pytest.mark.parametrize("rank", [1, 4, 9])
    def test_what_is_planted_in_noise_is_left(self, rank: int) -> None:
        analysis, name, planted = self.noisy(rank)
        made = transferred(analysis, {"w0": 24, "w1": 40}, "evbmf")
        after = made.graph.array(name).reshape(40, 24)
        sliced = analysis.graph.array(name).reshape(48, 32)[:40, :24]
        assert np.linalg.matrix_rank(after, tol=1e-4) == rank
        assert np.linalg.norm(after - planted[:40, :24]) < 0.8 * np.linalg.norm(sliced - planted[:40, :24])

    def test_a_smaller_rank_still_cuts(self) -> None:
        analysis, name, _ = self.noisy(9)
        made = transferred(analysis, {"w0": 24, "w1": 4}, "evbmf")
        assert np.linalg.matrix_rank(made.graph.array(name).reshape(4, 24), tol=1e-4) == 4
        assert np.linalg.matrix_rank(made.graph.array(name).reshape(4, 24)[:, :8], tol=1e-4) == 4

    def test_singular_values_are_shrunk(self) -> None:
        analysis, name, _ = self.noisy(4, noise=0.1)
        u, s, vt = np.linalg.svd(analysis.graph.array(name).reshape(48, 32).astype(np.float64), full_matrices=False)
        found = evbmf(s, 48, 32)
        assert found.rank == 4
        assert (found.values < 0.99 * s[:4]).all()
        expected = (u[:, :4] * found.values) @ vt[:4]
        after = transferred(analysis, {"w0": 31}, "evbmf").graph.array(name).reshape(48, 31)
        np.testing.assert_allclose(after, expected[:, :31], atol=1e-5)

    def test_nothing_but_noise_is_left_to_the_svd(self) -> None:
        analysis, name, _ = self.noisy(0, noise=1.0)
        made = [transferred(analysis, {"w0": 20, "w1": 30}, t).graph.array(name) for t in ("svd", "evbmf")]
        assert np.array_equal(*made)


def repeated(analysis: Analysis, copies: Mapping[str, int]) -> tuple[Analysis, dict[str, np.ndarray]]:
    """The same function with so many copies of channels, and scores by which the originals are kept."""
    grown = transferred(analysis, {i: analysis.widths[i].size + n for i, n in copies.items()}, "net2net", seed=1)
    bigger = analyze(grown.graph)
    return bigger, {i: -np.arange(w.size, dtype=np.float64) for i, w in bigger.widths.items()}


def images(*shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fitted(
    analysis: Analysis, widths: Mapping[str, int], x: np.ndarray, scores: Mapping[str, np.ndarray], *, batch: int = 4
) -> Transferred:
    """By least squares on one input."""
    name = analysis.graph.inputs[0].name
    return transferred(
        analysis,
        widths,
        "least-squares",
        scores=scores,
        calibration=[{name: x[k : k + batch]} for k in range(0, len(x), batch)],
    )


CONVOLUTIONS = {
    "plain": ((6, 6), {"pads": [1, 1, 1, 1]}),
    "strided": ((7, 7), {"strides": [2, 3]}),
    "dilated": ((9, 8), {"dilations": [3, 2], "pads": [2, 1, 2, 1]}),
    "uneven pads": ((6, 6), {"pads": [0, 2, 1, 0]}),
    "same": ((7, 6), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "line": ((11,), {"strides": [2], "pads": [1, 1]}),
    "volume": ((4, 5, 4), {"pads": [1, 0, 1, 1, 0, 1], "strides": [1, 2, 1]}),
    "groups": ((6, 6), {"group": 2, "pads": [1, 1, 1, 1]}),
}


def convolving(space: tuple[int, ...], attributes: Mapping[str, object], channels: int = 4) -> Analysis:
    """A 1x1 convolution and a Relu, whose channels a convolution with a kernel of 3 or 2 reads."""
    rng = np.random.default_rng(2)
    kernel = [3, 2, 3][: len(space)]
    shapes = {
        "a": (channels, 2, *[1] * len(space)),
        "a.b": (channels,),
        "c": (4, channels // attributes.get("group", 1), *kernel),
    }
    held = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "a", "a.b"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "c"], ["y"], "second", **attributes),
    ]
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, ["N", 2, *space])], [value("y", TensorProto.FLOAT, None)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends, held), ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    return analyze(Graph(onnx.shape_inference.infer_shapes(model)))


class TestLeastSquares:
    @pytest.mark.parametrize("kind", CONVOLUTIONS)
    def test_channels_that_are_copies_of_others_can_go(self, kind: str) -> None:
        space, attributes = CONVOLUTIONS[kind]
        small = convolving(space, attributes)
        width = next(i for i, w in small.widths.items() if any(m.role == "in" for m in w.members))
        analysis, scores = repeated(small, {width: small.widths[width].size})
        width = next(i for i, w in analysis.widths.items() if any(m.role == "in" for m in w.members))
        x = images(12, 2, *space)
        made = fitted(analysis, {width: small.widths[width].size}, x, scores)
        sliced = transferred(analysis, {width: small.widths[width].size}, scores=scores)
        (before,), (after,), (cut,) = (outputs(g, {"x": x}) for g in (analysis.graph, made.graph, sliced.graph))
        assert oracles.distance(cut, before) > 0.05
        assert oracles.distance(after, before) < 1e-4
        assert made.fit is not None
        assert [layer.tensor for layer in made.fit.layers] == ["c"]

    @pytest.mark.parametrize("kind", CONVOLUTIONS)
    def test_some_places_of_each_sample_tell_as_much(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reconstruction, "ENOUGH", 3)
        monkeypatch.setattr(reconstruction, "LEAST", 1)
        seen = []
        add = reconstruction._Sums.add
        monkeypatch.setattr(reconstruction._Sums, "add", lambda sums, x, *of: (seen.append(len(x)), add(sums, x, *of)))
        self.test_channels_that_are_copies_of_others_can_go(kind)
        space, attributes = CONVOLUTIONS[kind]
        x = images(12, 2, *space)
        inputs = np.prod(convolving(space, attributes).graph.weights["c"].dims[1:])
        (y,) = outputs(convolving(space, attributes).graph, {"x": x})
        assert sum(seen) == min(12 * np.ceil(3 * inputs / 12), y.size / y.shape[1])

    def test_so_do_some_tokens_of_each_sample(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reconstruction, "ENOUGH", 4)
        monkeypatch.setattr(reconstruction, "LEAST", 1)
        rng = np.random.default_rng(6)
        held = {n: rng.standard_normal(s).astype(np.float32) for n, s in {"a": (12, 8), "c": (8, 3)}.items()}
        first, second = np.concatenate([held["a"]] * 2, 1), np.concatenate([held["c"]] * 2)
        nodes = [
            helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("MatMul", ["r", "c"], ["y"], "second"),
        ]
        value, kind = helper.make_tensor_value_info, TensorProto.FLOAT
        ends = [value("x", kind, ["N", 30, 12])], [value("y", kind, ["N", 30, 3])]
        tensors = [numpy_helper.from_array(a, n) for n, a in (("a", first), ("c", second))]
        graph = helper.make_graph(nodes, "g", *ends, tensors)
        opset = [helper.make_opsetid("", 17)]
        analysis = analyze(Graph(helper.make_model(graph, ir_version=8, opset_imports=opset)))
        (width,) = analysis.widths
        x = images(12, 30, 12)
        made = fitted(analysis, {width: 8}, x, {width: -np.arange(16.0)})
        (before,), (after,) = (outputs(g, {"x": x}) for g in (analysis.graph, made.graph))
        assert oracles.distance(after, before) < 1e-4
        np.testing.assert_allclose(made.graph.array("c"), 2 * held["c"], atol=1e-4)

    def test_a_sample_has_no_place_twice(self) -> None:
        at = reconstruction._drawn(200, 30, 20, torch.Generator().manual_seed(1)).numpy()
        assert at.shape == (200, 20)
        assert all(len(set(row)) == 20 for row in at.tolist())
        assert np.abs(np.bincount(at.ravel(), minlength=30) / 200 - 20 / 30).max() < 0.15
        np.testing.assert_array_equal(reconstruction._drawn(2, 3, 3, torch.Generator()).numpy(), [[0, 1, 2], [0, 1, 2]])

    def test_so_can_they_in_a_deep_network_with_norms_and_joins(self) -> None:
        b = builder(4)
        x = b.input("x", (4, 3, 5, 5))
        stem = b.node("Relu", [b.norm(b.conv(x, 4, kernel=3))], (4, 4, 5, 5))
        side = b.node("Relu", [b.conv(stem, 5, kernel=3)], (4, 5, 5, 5))
        joined = b.node("Concat", [stem, side], (4, 9, 5, 5), axis=1)
        tail = b.node("Add", [b.conv(joined, 6), b.conv(side, 6)], (4, 6, 5, 5))
        flat = b.reshape(b.node("Relu", [tail], (4, 6, 5, 5)), (4, 150))
        hidden = b.node("Gemm", [flat, b.weight(b.floats(150, 7) / 9), b.weight(b.floats(7))], (4, 7))
        end = b.node("Tanh", [hidden], (4, 7))
        analysis = analyze(Graph(b.model([b.node("MatMul", [end, b.weight(b.floats(7, 3))], (4, 3))])))
        sizes = {i: w.size for i, w in analysis.widths.items()}
        assert len(sizes) == 4
        bigger, scores = repeated(analysis, {i: n - 1 for i, n in sizes.items()})
        x = images(400, 3, 5, 5)
        made = fitted(bigger, sizes, x, scores)
        before, after = (
            [outputs(g, {"x": x[k : k + 4]})[0] for k in range(0, 400, 4)] for g in (bigger.graph, made.graph)
        )
        assert oracles.distance(np.concatenate(after), np.concatenate(before)) < 1e-3
        assert made.fit is not None
        assert len(made.fit.layers) == 5
        assert made.fit.after < 1e-6 < 1e-2 < made.fit.before

    def test_no_layer_is_further_from_the_source_than_its_slice_given_what_it_gets(self) -> None:
        analysis = chain(8, 10, 6, norm=True)
        widths, x = {"w0": 5, "w1": 4, "w2": 3}, images(16, 3, 5, 5)
        scores = {i: -np.arange(w.size, dtype=np.float64) for i, w in analysis.widths.items()}
        batches = [{"x": x[k : k + 2]} for k in range(0, 16, 2)]
        made = transferred(analysis, widths, "least-squares", scores=scores, calibration=batches)
        sliced = transferred(analysis, widths, scores=scores).graph
        assert made.fit is not None
        nodes = [node for node in analysis.graph.nodes if node.op == "Conv"]
        assert [layer.tensor for layer in made.fit.layers] == [node.inputs[1] for node in nodes[1:]]
        for node, layer in zip(nodes[1:], made.fit.layers, strict=True):
            back = made.graph.with_arrays({name: sliced.array(name) for name in node.inputs[1:]})
            kept = slice(sliced.weights[node.inputs[1]].dims[0])
            errors = []
            for graph in (back, made.graph):
                pairs = [
                    (run_all(analysis.graph, f)[node.outputs[0]], run_all(graph, f)[node.outputs[0]]) for f in batches
                ]
                ours, theirs = np.concatenate([b for _, b in pairs]), np.concatenate([a[:, kept] for a, _ in pairs])
                missing = np.square(ours.astype(np.float64) - theirs).sum()
                errors.append(missing / np.square(theirs - theirs.mean((0, 2, 3), keepdims=True)).sum())
            assert errors[1] < 0.9 * errors[0]
            assert (layer.before, layer.after) == pytest.approx(errors, rel=1e-3)

    @pytest.mark.parametrize("bias", [False, True])
    def test_it_is_the_ridge_regression_that_foretells_best(self, bias: bool) -> None:
        analysis, x = self.mixed_up(bias), images(60, 12)
        made = fitted(analysis, {"w0": 9}, x, {"w0": -np.arange(16.0)}, batch=5)
        said = run_all(analysis.graph, {"x": x})
        given, missing = said["r"][:, :9].astype(np.float64), said["r"][:, 9:] @ analysis.graph.array("c")[9:]

        def regression(rows: slice, ridge: float) -> tuple[np.ndarray, np.ndarray]:
            """By lstsq, with rows that pull to zero."""
            a, r = given[rows], missing[rows].astype(np.float64)
            pull = np.sqrt(ridge * np.square(a).sum(0).mean()) * np.eye(9)
            means = (a.mean(0), r.mean(0)) if bias else (np.zeros(9), np.zeros(3))
            d = np.linalg.lstsq(np.vstack([a - means[0], pull]), np.vstack([r - means[1], np.zeros((9, 3))]))[0]
            return d, means[1] - means[0] @ d

        halves = slice(0, None, 2), slice(1, None, 2)
        errors = []
        for ridge in RIDGES:
            (d, c), (e, f) = (regression(rows, ridge) for rows in halves)
            told = missing[halves[1]] - given[halves[1]] @ d - c, missing[halves[0]] - given[halves[0]] @ e - f
            errors.append(sum(np.square(one).sum() for one in told))
        assert 0 < np.argmin(errors) < len(RIDGES) - 1
        d, c = regression(slice(None), RIDGES[int(np.argmin(errors))])
        np.testing.assert_allclose(made.graph.array("c"), analysis.graph.array("c")[:9] + d, atol=1e-5)
        if bias:
            np.testing.assert_allclose(made.graph.array("c.b"), analysis.graph.array("c.b") + c, atol=1e-5)

    @staticmethod
    def mixed_up(bias: bool, held: Mapping[str, np.ndarray] | None = None) -> Analysis:
        """A matrix, a Relu, and a matrix, with a bias or without: x, 12 -> r, 16 -> y, 3; or with these weights."""
        rng = np.random.default_rng(4)
        shapes = {"a": (12, 16), "c": (16, 3), "c.b": (3,)}
        drawn = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items() if bias or n != "c.b"}
        held = drawn if held is None else held
        kind = helper.np_dtype_to_tensor_dtype(held["a"].dtype)
        nodes = [
            helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("MatMul", ["r", "c"], ["m" if bias else "y"], "second"),
            *([helper.make_node("Add", ["m", "c.b"], ["y"], "add")] if bias else []),
        ]
        value = helper.make_tensor_value_info
        ends = [value("x", kind, ["N", 12])], [value("y", kind, ["N", held["c"].shape[1]])]
        tensors = [numpy_helper.from_array(a, n) for n, a in held.items()]
        graph = helper.make_graph(nodes, "g", *ends, tensors)
        return analyze(Graph(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])))

    def test_what_the_samples_do_not_show_stays(self) -> None:
        analysis = self.mixed_up(bias=False)
        first = analysis.graph.array("a").copy()
        first[:, :4] = -np.abs(first[:, :4])  # of positive inputs, nothing comes through the Relu
        analysis = analyze(analysis.graph.with_arrays({"a": first}))
        x = np.abs(images(100, 12))
        made = fitted(analysis, {"w0": 9}, x, {"w0": -np.arange(16.0)})
        assert np.array_equal(made.graph.array("c")[:4], analysis.graph.array("c")[:4])
        assert not np.allclose(made.graph.array("c")[4:9], analysis.graph.array("c")[4:9], atol=1e-2)

    def test_few_samples_are_not_learned_by_heart(self) -> None:
        """What is gone cannot be foretold from what is left, so that the best is to change nothing."""
        rng = np.random.default_rng(0)
        eye = np.zeros((64, 64, 1, 1), np.float32)
        eye[np.arange(64), np.arange(64)] = 1
        b = builder()
        x = b.conv(b.input("x", (2, 64, 1, 1)), 64, weight=b.weight(eye), bias=False)
        y = b.conv(b.node("Tanh", [x], b.shapes[x]), 10, weight=b.weight(b.floats(10, 64, 1, 1)), bias=False)
        analysis = analyze(Graph(b.model([y])))
        seen, fresh = (rng.standard_normal((n, 64, 1, 1)).astype(np.float32) for n in (40, 1000))
        scores = {"w0": -np.arange(64.0)}
        made, sliced = fitted(analysis, {"w0": 32}, seen, scores), transferred(analysis, {"w0": 32}, scores=scores)
        errors = [
            np.mean(
                [
                    np.square(
                        outputs(g, {"x": fresh[k : k + 2]})[0] - outputs(analysis.graph, {"x": fresh[k : k + 2]})[0]
                    )
                    for k in range(0, 200, 2)
                ]
            )
            for g in (sliced.graph, made.graph)
        ]
        assert errors[1] < 1.2 * errors[0]

    def test_weights_that_cannot_be_fitted_stay_and_say_why(self) -> None:
        b = builder(4)
        x = b.node("Relu", [b.conv(b.input("x", (4, 3, 4, 4)), 6)], (4, 6, 4, 4))
        shared = b.weight(b.floats(6, 6, 1, 1))
        x = b.node("Relu", [b.conv(x, 6, weight=shared)], (4, 6, 4, 4))
        x = b.node("Relu", [b.conv(x, 6, weight=shared)], (4, 6, 4, 4))
        up = b.weight(b.floats(6, 5, 2, 2))
        x = b.node("ConvTranspose", [x, up], (4, 5, 8, 8), strides=[2, 2])
        analysis = analyze(Graph(b.model([b.conv(x, 2)])))
        widths = {i: w.size - 2 for i, w in analysis.widths.items()}
        made = fitted(analysis, widths, images(4, 3, 4, 4), {})
        sliced = transferred(analysis, widths, scores={})
        assert made.fit is not None
        assert made.fit.left.keys() == {shared, up}
        assert "several operators" in made.fit.left[shared]
        assert "no convolution" in made.fit.left[up]
        for name in (shared, up):
            assert np.array_equal(made.graph.array(name), sliced.graph.array(name))
        assert [layer.tensor for layer in made.fit.layers] == [weights(analysis.graph)[-1]]

    def test_inputs_that_overflow_leave_the_slice(self) -> None:
        analysis = self.mixed_up(bias=False)
        made = fitted(analysis, {"w0": 9}, np.full((8, 12), 1e38, np.float32), {"w0": -np.arange(16.0)})
        assert made.fit is not None
        assert not made.fit.layers
        assert "not finite" in made.fit.left["c"]
        assert made.plan.values == "source"

    def test_one_sample_pulls_as_little_as_may_be(self) -> None:
        analysis, x = self.mixed_up(bias=False), images(1, 12)
        made = fitted(analysis, {"w0": 9}, x, {"w0": -np.arange(16.0)})
        said = run_all(analysis.graph, {"x": x})
        a, r = said["r"][:, :9].astype(np.float64), said["r"][:, 9:] @ analysis.graph.array("c")[9:]
        gram = a.T @ a
        change = np.linalg.solve(gram + RIDGES[-1] * np.diag(gram).mean() * np.eye(9), a.T @ r)
        np.testing.assert_allclose(made.graph.array("c"), analysis.graph.array("c")[:9] + change, atol=1e-5)

    def test_no_row_grows_worse_by_rounding(self) -> None:
        """Half precision, and so little to correct that rounding each weight does more harm than good in some rows."""
        rng = np.random.default_rng(1)
        first = rng.standard_normal((12, 16)).astype(np.float16)
        first[:, 1:9] = first[:, :1] + first[:, 1:9] / 10  # so that errors of rounding add up
        last = rng.standard_normal((16, 64)) * np.where(np.arange(16) < 9, 1, 3e-4)[:, None]
        analysis = self.mixed_up(bias=False, held={"a": first, "c": last.astype(np.float16)})
        x = images(200, 12).astype(np.float16)
        made = fitted(analysis, {"w0": 9}, x, {"w0": -np.arange(16.0)}, batch=200)
        hidden = np.maximum(x.astype(np.float64) @ first, 0)
        target = hidden @ analysis.graph.array("c").astype(np.float64)
        errors = [
            np.square(hidden[:, :9] @ weight.astype(np.float64) - target).sum(0)
            for weight in (analysis.graph.array("c")[:9], made.graph.array("c"))
        ]
        assert (errors[1] <= 1.1 * errors[0]).all()
        assert (errors[1] < 0.9 * errors[0]).any()

    def test_a_bias_that_others_read_stays(self) -> None:
        b = builder(4)
        x = b.node("Relu", [b.conv(b.input("x", (4, 3, 4, 4)), 8)], (4, 8, 4, 4))
        shared = b.weight(b.floats(2))
        ends = [b.conv(x, 2, bias=shared), b.conv(x, 2, bias=shared)]
        analysis = analyze(Graph(b.model(ends)))
        made = fitted(analysis, {"w0": 4}, images(16, 3, 4, 4), {})
        assert made.fit is not None
        assert len(made.fit.layers) == 2
        for end in (node for node in made.graph.nodes if shared in node.inputs):
            assert np.array_equal(made.graph.array(end.inputs[2]), analysis.graph.array(shared))

    def test_sums_over_too_many_inputs_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("conet_onnx.torch_backend.reconstruction.LARGEST", 36)
        made = fitted(chain(8, 10), {"w0": 5, "w1": 4}, images(4, 3, 5, 5), {})
        assert made.fit is not None
        assert list(made.fit.left.values()) == ["it sums over 45 inputs, and at most 36 are fitted"]
        assert len(made.fit.layers) == 1

    def test_values_are_forgotten_after_their_last_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[weakref.ref[torch.Tensor]] = []
        alive: list[int] = []
        run = fx.Interpreter.run_node

        def watched(self: fx.Interpreter, n: fx.Node) -> object:
            result = run(self, n)
            if n.op == "call_function":
                made.append(weakref.ref(result))
                alive.append(sum(one() is not None for one in made))
            return result

        monkeypatch.setattr(fx.Interpreter, "run_node", watched)
        analysis = chain(*[4] * 12)
        fitted(analysis, {f"w{k}": 3 for k in range(12)}, images(4, 3, 5, 5), {})
        assert len(made) == 2 * 25  # two models
        assert max(alive) <= 8

    def test_growth_alone_fits_nothing_and_is_proved(self) -> None:
        analysis = chain(4, 5)
        made = fitted(analysis, {"w0": 6, "w1": 5}, images(4, 3, 5, 5), {})
        assert made.fit is not None
        assert (made.fit.layers, made.fit.left, made.plan.values) == ((), {}, "source")
        assert made.plan.as_json() == transferred(analysis, {"w0": 6, "w1": 5}, "net2net", scores={}).plan.as_json()
        proof = verify(analysis.graph, made.graph, made.plan, provider="cpu")
        assert proof.difference is not None

    def test_a_trained_network_at_half_its_widths_still_sees(self) -> None:
        from conet_onnx.data import load_data
        from conet_onnx.evaluation import evaluate, resolve_normalisation

        source = co.load(MODEL)
        dataset = load_data("digits").with_validation()
        normalisation = resolve_normalisation(source, dataset).normalisation
        batches = calibration_batches(source, dataset.split("train"), normalisation)
        analysis = analyze(source)
        widths = scaled(analysis, 0.5)[0]
        graphs = [transferred(analysis, widths).graph]
        graphs.append(transferred(analysis, widths, "least-squares", calibration=batches).graph)
        found = [evaluate(g, dataset, split="validation", normalisation=normalisation).top1 for g in graphs]
        assert found[0] < 0.3
        assert found[1] > 0.93


class TestEveryPolicy:
    @staticmethod
    def calibration(transfer: str, graph: Graph) -> list[dict[str, np.ndarray]] | None:
        return [oracles.feeds_of(graph)] if transfer == "least-squares" else None

    @pytest.mark.parametrize("transfer", TRANSFERS)
    def test_the_widths_that_there_are_leave_every_byte(self, transfer: str) -> None:
        analysis = analyze(co.load(MODEL))
        widths = {i: w.size for i, w in analysis.widths.items()}
        made = transferred(analysis, widths, transfer, calibration=self.calibration(transfer, analysis.graph))
        assert made.plan.values == "source"
        assert made.graph.proto().SerializeToString() == analysis.graph.proto().SerializeToString()

    @pytest.mark.parametrize("transfer", TRANSFERS)
    def test_what_no_width_touches_keeps_its_bytes(self, transfer: str) -> None:
        analysis = analyze(co.load(MODEL))
        made = transferred(analysis, {"w5": 40}, transfer, calibration=self.calibration(transfer, analysis.graph))
        biases = {"fc.bias"} if transfer == "least-squares" else set()  # of what sums over the width
        for name, tensor in analysis.graph.weights.items():
            if name not in made.plan.initializers.keys() | biases:
                assert made.graph.tensor(name).SerializeToString() == analysis.graph.tensor(name).SerializeToString()
                assert tensor.dims == made.graph.weights[name].dims

    @pytest.mark.parametrize(("transfer", "values"), [(t, "source") for t in ("slice", "net2net", "zero")])
    def test_takes_alone_are_proved_bit_by_bit(self, transfer: str, values: str) -> None:
        analysis = analyze(co.load(MODEL))
        made = transferred(analysis, {"w1": 9, "w4": 70}, transfer)
        assert made.plan.as_json()["values"] == values
        assert verify(analysis.graph, made.graph, made.plan, provider="cpu").difference is not None

    @pytest.mark.parametrize("transfer", ["svd", "evbmf", "least-squares"])
    def test_changed_values_are_said_and_the_structure_is_proved(self, transfer: str) -> None:
        analysis = analyze(co.load(MODEL))
        made = transferred(
            analysis, {"w1": 9, "w4": 40}, transfer, calibration=self.calibration(transfer, analysis.graph)
        )
        assert made.plan.as_json()["values"] == "changed"
        proof = verify(analysis.graph, made.graph, made.plan, provider="cpu")
        assert {check.name for check in proof.checks} >= {"structure", "weights", "integers", "checker", "run"}
        assert {check.name for check in proof.skipped} == {"values", "function"}
        plain = transferred(analysis, {"w1": 9, "w4": 40})
        assert made.plan.initializers.keys() == plain.plan.initializers.keys()

    def test_the_source_is_not_touched(self) -> None:
        analysis = chain(8, 6)
        before = analysis.graph.proto().SerializeToString()
        for transfer in TRANSFERS:
            transferred(analysis, {"w0": 4, "w1": 3}, transfer, calibration=self.calibration(transfer, analysis.graph))
        assert analysis.graph.proto().SerializeToString() == before

    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategies.graphs(), st.sampled_from(["svd", "evbmf", "least-squares"]), st.integers(0, 10**6))
    def test_random_graphs_run_at_every_width(self, model: onnx.ModelProto, transfer: str, seed: int) -> None:
        analysis = analyze(Graph(model))
        rng = np.random.default_rng(seed)
        widths = {
            i: max(1, int(w.size * rng.uniform(0.3, 1.0 if w.max is not None else 1.8)))
            for i, w in analysis.widths.items()
        }
        calibration = self.calibration(transfer, analysis.graph)
        made = transferred(analysis, widths, transfer, inexact=True, seed=seed, calibration=calibration)
        oracles.assert_valid(made.graph, analysis.graph)
        verify(analysis.graph, made.graph, made.plan, provider="cpu")
        assert all(np.isfinite(one).all() for one in outputs(made.graph, oracles.feeds_of(analysis.graph)))
        if made.fit is not None:
            assert all(layer.after <= layer.before for layer in made.fit.layers)


class TestRefusals:
    def test_an_unknown_policy(self) -> None:
        with pytest.raises(UsageError, match=r"'magic' is not known; choose one of slice, svd, evbmf"):
            transferred(chain(6), {"w0": 3}, "magic")

    @pytest.mark.parametrize("calibration", [None, []])
    def test_nothing_to_fit_on(self, calibration: list[dict[str, np.ndarray]] | None) -> None:
        with pytest.raises(UsageError, match="fits weights on inputs"):
            transferred(chain(6), {"w0": 3}, "least-squares", calibration=calibration)

    def test_samples_that_nobody_asked_for(self) -> None:
        with pytest.raises(UsageError, match="fits nothing"):
            transferred(chain(6), {"w0": 3}, "svd", calibration=[{}])


class TestCalibration:
    def test_samples_are_drawn_by_the_seed_and_in_order(self) -> None:
        graph = TestLeastSquares.mixed_up(bias=False).graph
        rows = np.repeat(np.arange(300, dtype=np.float32)[:, None], 12, axis=1)
        split = Split(Feeds({"x": rows}))
        made = [
            np.concatenate([b["x"] for b in calibration_batches(graph, split, RAW, samples=100, seed=s)])[:, 0]
            for s in (0, 0, 1)
        ]
        assert len(set(made[0].tolist())) == 100
        assert (np.diff(made[0]) > 0).all()
        assert made[0].tolist() == made[1].tolist() != made[2].tolist()
        every = calibration_batches(graph, split, RAW, samples=1000)
        assert sum(len(b["x"]) for b in every) == 300

    def test_a_fixed_batch_is_met(self) -> None:
        graph = chain(4).graph  # takes two at a time
        split = Split(Feeds({"x": images(5, 3, 5, 5)}))
        assert [len(b["x"]) for b in calibration_batches(graph, split, RAW)] == [2, 2, 2]

    def test_no_samples_are_an_error(self) -> None:
        with pytest.raises(DataError, match="no samples"):
            calibration_batches(chain(4).graph, Split(Feeds({"x": images(0, 3, 5, 5)})), RAW)
