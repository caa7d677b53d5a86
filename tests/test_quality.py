"""The metrics of CONETv2 against plain computations: what is a layer, how it unfolds, and what is measured of it."""

from __future__ import annotations

import math
import random

import numpy as np
import onnx
import plain_evbmf as plain
import pytest
import strategies
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import conet_onnx as co
from conet_onnx.analysis import analyze
from conet_onnx.errors import ModelError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.metrics import METRICS, LayerQuality, Quality, as_json, by_width, layers, score
from conet_onnx.metrics.evbmf import Shrunk, evbmf
from conet_onnx.metrics.quality import measured, spectrum

Nodes = list[onnx.NodeProto]
Arrays = dict[str, np.ndarray]


def weight(*shape: int, seed: int = 0, noise: float = 0.05) -> np.ndarray:
    """A weight of which a third of the channels, along whatever is long, stands out of the noise."""
    rng = np.random.default_rng(seed)
    long = int(np.argmax(shape))
    others = math.prod(shape) // shape[long]
    rank = max(1, min(shape[long], others) // 3)
    signal = rng.standard_normal((shape[long], rank)) @ rng.standard_normal((rank, others))
    rest = [n for k, n in enumerate(shape) if k != long]
    whole = np.moveaxis(signal.reshape(shape[long], *rest), 0, long) + noise * rng.standard_normal(shape)
    return whole.astype(np.float32)


def model(nodes: Nodes, arrays: Arrays, shape: tuple[int | str, ...], *, opset: int = 17, out: str = "y") -> Graph:
    tensors = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return Graph(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)], ir_version=8
        )
    )


def one(op: str, arrays: Arrays, shape: tuple[int | str, ...], **attributes: object) -> Graph:
    """A graph of one node that reads x and the arrays."""
    return model([helper.make_node(op, ["x", *arrays], ["y"], "n", **attributes)], arrays, shape)


def expected(matrices: list[np.ndarray]) -> list[float]:
    """The mean of each metric over some unfoldings."""
    return np.mean([plain.measure(m) for m in matrices], axis=0).tolist()


def fields(quality: Quality) -> list[float]:
    return [getattr(quality, name) for name in METRICS]


def check(graph: Graph, outs: list[np.ndarray], ins: list[np.ndarray], kind: str, tensor: str = "w") -> LayerQuality:
    """The graph has one layer, and its metrics are those of the groups' unfoldings."""
    (found,) = score(graph)
    assert (found.tensor, found.kind) == (tensor, kind)
    np.testing.assert_allclose(fields(found.outs), expected(outs), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(fields(found.ins), expected(ins), rtol=1e-4, atol=1e-9)
    assert found.outs.rank > 0 or min(map(min, (m.shape for m in outs))) == 1
    return found


def unfoldings(w: np.ndarray, groups: int = 1) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Those of a convolution [outs, ins of a group, ...]: by output and by input channels, of each group."""
    parts = np.split(w, groups)
    return [p.reshape(len(p), -1) for p in parts], [p.swapaxes(0, 1).reshape(p.shape[1], -1) for p in parts]


class TestFormulas:
    """What follows from ranks and shrunk singular values alone, CONETv2's conventions included."""

    def of(self, values: list[float], channels: int) -> Quality:
        padded = np.array([values + [0.0] * (channels - len(values))])
        return Quality(*measured(Shrunk(np.array([len(values)]), np.zeros(1), padded), channels)[:, 0].tolist())

    def test_rank_one_of_64_has_the_highest_quality(self) -> None:
        """A known trait: QC rewards collapse."""
        found = self.of([5.0], 64)
        assert found.qc == pytest.approx(1.564, abs=5e-4)
        assert (found.rank, found.condition) == (1, 1)
        assert found.ratio == found.gain == 1 / 64

    def test_full_rank_of_64_at_a_condition_of_100_has_half_of_it(self) -> None:
        found = self.of(np.linspace(100, 1, 64).tolist(), 64)
        assert found.qc == pytest.approx(0.790, abs=5e-4)
        assert (found.rank, found.ratio) == (64, 1)
        assert found.condition == pytest.approx(100)
        assert found.gain == pytest.approx(np.linspace(1, 0.01, 64).sum() / 64)
        assert found.newqc == pytest.approx(math.atan2(found.gain, 0.99))

    def test_without_rank_all_is_zero(self) -> None:
        assert fields(self.of([], 8)) == [0] * 6

    def test_equal_values_have_a_condition_of_one_and_nearly_a_right_angle(self) -> None:
        found = self.of([2.0, 2.0], 8)
        assert found.condition == 1
        assert found.qc == pytest.approx(math.atan2(0.25, 1e-4))
        assert found.newqc == pytest.approx(math.atan2(0.25, 1e-4))

    def test_a_whole_rank_is_an_integer_in_json(self) -> None:
        assert self.of([2.0], 8).as_json()["rank"] == 1
        assert isinstance(self.of([2.0], 8).as_json()["rank"], int)
        assert Quality(1.5, 0, 0, 0, 0, 0).as_json()["rank"] == 1.5
        assert list(self.of([2.0], 8).as_json()) == ["rank", "ratio", "condition", "gain", "qc", "newqc"]


class TestSpectrum:
    @settings(max_examples=60, deadline=None)
    @given(
        sizes=st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9)),
        seed=st.integers(0, 99),
    )
    def test_it_is_that_of_a_decomposition(self, sizes: tuple[int, int, int, int], seed: int) -> None:
        array = np.random.default_rng(seed).standard_normal(sizes).astype(np.float32)
        for given_array in (array, array.swapaxes(1, 2)):
            matrices = given_array.reshape(*given_array.shape[:2], -1)
            wanted = np.linalg.svd(matrices.astype(np.float64), compute_uv=False) ** 2
            np.testing.assert_allclose(spectrum(given_array), wanted, rtol=1e-7, atol=1e-11)

    @pytest.mark.parametrize("shape", [(1, 12, 100_000, 1), (1, 300_000, 5, 1), (3, 6, 70_000, 2), (1, 8, 3, 60_000)])
    def test_weights_that_are_read_in_blocks_are_read_whole(self, shape: tuple[int, ...]) -> None:
        array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        wanted = np.linalg.svd(array.reshape(*shape[:2], -1).astype(np.float64), compute_uv=False) ** 2
        np.testing.assert_allclose(spectrum(array), wanted, rtol=1e-9)

    def test_a_rank_that_single_precision_would_lose_is_kept(self) -> None:
        """Four parts of the signal are between 1e-4 and 1e-3 of the largest; the weight itself is stored in float32."""
        rng = np.random.default_rng(0)
        left, right = (np.linalg.qr(rng.standard_normal((n, 12)))[0] for n in (64, 576))
        parts = np.concatenate([np.linspace(2, 1, 8), np.linspace(1e-3, 2e-4, 4)])
        stored = (left * parts @ right.T + 1e-7 * rng.standard_normal((64, 576))).astype(np.float32)
        graph = one("Conv", {"w": stored.reshape(64, 64, 3, 3)}, (1, 64, 8, 8))
        (found,) = score(graph)
        assert found.outs.rank == plain.measure(stored)[0] == 12
        single = np.linalg.eigvalsh(stored @ stored.T)[::-1].astype(np.float64)
        assert evbmf(np.sqrt(np.maximum(single, 0)), 64, 576).rank != 12

    @pytest.mark.parametrize("rank", [1, 7, 30])
    def test_rounding_is_no_rank(self, rank: int) -> None:
        rng = np.random.default_rng(rank)
        exact = rng.standard_normal((96, rank)) @ rng.standard_normal((rank, 900))
        (found,) = score(one("MatMul", {"w": exact.astype(np.float32)}, ("n", 96)))
        assert found.ins.rank == rank
        double = spectrum(exact[None, :, :, None])  # not rounded to float32 either
        assert evbmf(np.sqrt(double[0]), 96, 900).rank == rank


class TestLayers:
    @pytest.mark.parametrize("shape", [(12, 8, 3, 3), (6, 20, 1, 1), (24, 3, 5, 5), (16, 6, 3), (8, 4, 2, 3, 2)])
    def test_a_convolution_unfolds_by_outputs_and_by_inputs(self, shape: tuple[int, ...]) -> None:
        w = weight(*shape)
        found = check(one("Conv", {"w": w}, (1, shape[1], *[8] * (len(shape) - 2))), *unfoldings(w), "conv")
        assert (found.layer.groups, found.layer.outs, found.layer.ins) == (1, *shape[:2])

    def test_a_convolution_in_groups_is_the_mean_over_its_groups(self) -> None:
        w = np.concatenate([weight(9, 6, 3, 3, seed=k, noise=0.03 + k) for k in range(4)])
        found = check(one("Conv", {"w": w}, (1, 24, 8, 8), group=4), *unfoldings(w, 4), "conv")
        assert (found.layer.groups, found.layer.outs, found.layer.ins) == (4, 9, 6)
        assert not found.outs.rank.is_integer()

    @pytest.mark.parametrize("multiplier", [1, 6])
    def test_a_depthwise_convolution_has_one_input_channel_in_a_group(self, multiplier: int) -> None:
        w = np.concatenate([weight(multiplier, 1, 5, 5, seed=k) for k in range(10)])
        found = check(one("Conv", {"w": w}, (1, 10, 8, 8), group=10), *unfoldings(w, 10), "conv")
        assert (found.layer.groups, found.layer.outs, found.layer.ins) == (10, multiplier, 1)
        assert found.ins.qc == 0

    @pytest.mark.parametrize("groups", [1, 3])
    def test_a_transposed_convolution_has_its_inputs_first(self, groups: int) -> None:
        parts = [weight(7, 5, 3, 3, seed=k) for k in range(groups)]
        ins = [p.reshape(len(p), -1) for p in parts]
        outs = [p.swapaxes(0, 1).reshape(5, -1) for p in parts]
        graph = one("ConvTranspose", {"w": np.concatenate(parts)}, (1, 7 * groups, 8, 8), group=groups)
        found = check(graph, outs, ins, "conv")
        assert (found.layer.groups, found.layer.outs, found.layer.ins) == (groups, 5, 7)

    @pytest.mark.parametrize("turned", [0, 1])
    def test_a_matrix_product_is_turned_as_the_node_turns_it(self, turned: int) -> None:
        w = weight(20, 7) if turned else weight(7, 20)
        y_by_x = w if turned else w.T
        found = check(one("Gemm", {"w": w}, ("n", 7), transB=turned), [y_by_x], [y_by_x.T], "linear")
        assert (found.layer.outs, found.layer.ins) == (20, 7)

    def test_a_weight_on_the_left_is_a_layer_too(self) -> None:
        w = weight(9, 30)
        nodes = [helper.make_node("Gemm", ["w", "x"], ["y"], "n", transA=1)]
        check(model(nodes, {"w": w}, (9, 5)), [w.T], [w], "linear")

    def test_square_matrices_are_told_from_their_transposes(self) -> None:
        w = weight(12, 12)
        w[:, 4:] = 0  # four inputs are read, and the widths are tied by the sum below
        nodes = [helper.make_node("MatMul", ["x", "w"], ["a"], "n"), helper.make_node("Add", ["a", "x"], ["y"], "s")]
        (found,) = layers(analyze(model(nodes, {"w": w}, ("n", 12))))
        np.testing.assert_array_equal(found.unfolded(w)[0, :, :, 0], w.T)

    def test_matrices_of_a_stack_are_groups(self) -> None:
        w = np.stack([weight(10, 25, seed=k) for k in range(3)])
        found = check(one("MatMul", {"w": w}, (3, "n", 10)), [m.T for m in w], list(w), "linear")
        assert found.layer.groups == 3

    def test_an_einsum_sums_over_its_letters(self) -> None:
        w = weight(10, 24)
        check(one("Einsum", {"w": w}, ("n", 5, 10), equation="nti,io->nto"), [w.T], [w], "linear")

    def test_a_recurrent_layer_has_two_and_its_directions_are_groups(self) -> None:
        w = np.stack([weight(24, 9, seed=k) for k in range(2)])
        r = np.stack([weight(24, 6, seed=7 + k) for k in range(2)])
        graph = one("LSTM", {"w": w, "r": r}, (4, "n", 9), hidden_size=6, direction="bidirectional")
        found = {layer.tensor: layer for layer in score(graph)}
        for tensor, array in (("w", w), ("r", r)):
            np.testing.assert_allclose(fields(found[tensor].outs), expected(list(array)), rtol=1e-4)
            np.testing.assert_allclose(fields(found[tensor].ins), expected([m.T for m in array]), rtol=1e-4)

    def test_queries_keys_and_values_in_one_weight_are_one_layer(self) -> None:
        w = weight(12, 36)
        nodes = [helper.make_node("Attention", ["x", "w", "b"], ["y"], "n", domain="com.microsoft", num_heads=3)]
        graph = model(nodes, {"w": w, "b": np.zeros(36, np.float32)}, (2, 5, 12))
        check(graph, [w.T], [w], "linear")

    def test_a_weight_without_channels_is_no_layer(self) -> None:
        assert layers(analyze(one("MatMul", {"w": np.zeros((4, 0), np.float32)}, ("n", 4)))) == ()

    def test_layers_come_in_the_order_of_the_graph_and_once(self) -> None:
        nodes = [
            helper.make_node("MatMul", ["x", "b"], ["1"], "first"),
            helper.make_node("MatMul", ["1", "a"], ["2"], "second"),
            helper.make_node("MatMul", ["2", "b"], ["3"], "third"),
            helper.make_node("MatMul", ["3", "a"], ["y"], "fourth"),
        ]
        found = layers(analyze(model(nodes, {"a": weight(9, 6), "b": weight(6, 9)}, ("n", 6))))
        assert [(layer.tensor, layer.node) for layer in found] == [("b", "first"), ("a", "second")]

    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "densenet121"])
    def test_every_convolution_and_matrix_of_a_network_is_a_layer(self, name: str) -> None:
        graph = zoo.graph(name)
        wanted = [(n.inputs[1], n.attributes.get("group", 1)) for n in graph.nodes if n.op in ("Conv", "Gemm")]
        found = layers(analyze(graph))
        assert [(layer.tensor, layer.groups) for layer in found] == wanted
        for layer in found:
            assert layer.shape == tuple(graph.weights[layer.tensor].dims)
            assert (layer.groups * layer.outs, layer.ins) == layer.shape[:2]

    @pytest.mark.parametrize("grammar", ["maps", "mixed"])
    def test_weights_that_are_summed_over_in_random_graphs_are_layers(self, grammar: str) -> None:
        found = 0
        for seed in range(12):
            analysis = analyze(Graph(strategies.random_model(random.Random(f"{grammar} {seed}"), 12, grammar)))
            facing = [f for f in analysis.contractions if analysis.follows_input(f.node) and len(f.parts) == 1]
            known = {layer.tensor: layer for layer in layers(analysis)}
            for part in (f.parts[0] for f in facing):
                layer = known[part.tensor]
                assert layer.unfolded(analysis.graph.array(part.tensor)).size == math.prod(layer.shape)
                found += 1
            assert all(np.isfinite(fields(q.ins) + fields(q.outs)).all() for q in score(analysis))
        assert found > 20


class TestViews:
    """Weights that reach their node through others."""

    def test_through_transpose_identity_and_cast(self) -> None:
        w = weight(3, 3, 6, 16).astype(np.float16)  # as TensorFlow has it: kernel, inputs, outputs
        nodes = [
            helper.make_node("Identity", ["w"], ["1"], "i"),
            helper.make_node("Cast", ["1"], ["2"], "c", to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["2"], ["3"], "t", perm=[3, 2, 0, 1]),
            helper.make_node("Transpose", ["x"], ["4"], "n", perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["4", "3"], ["y"], "conv"),
        ]
        check(model(nodes, {"w": w}, (1, 8, 8, 6)), *unfoldings(w.transpose(3, 2, 0, 1)), "conv")

    def test_through_reshape_in_groups(self) -> None:
        w = weight(12, 5 * 9)
        nodes = [
            helper.make_node("Reshape", ["w", "to"], ["v"], "r"),
            helper.make_node("Conv", ["x", "v"], ["y"], "conv", group=3),
        ]
        arrays = {"w": w, "to": np.array([12, 5, 3, 3])}
        check(model(nodes, arrays, (1, 15, 8, 8)), *unfoldings(w.reshape(12, 5, 3, 3), 3), "conv")

    def test_through_a_reshape_that_merges_axes(self) -> None:
        w = weight(4, 6, 15)
        nodes = [
            helper.make_node("Reshape", ["w", "to"], ["v"], "r"),
            helper.make_node("MatMul", ["x", "v"], ["y"], "m"),
        ]
        matrix = w.reshape(24, 15)
        check(model(nodes, {"w": w, "to": np.array([24, 15])}, ("n", 24)), [matrix.T], [matrix], "linear")

    def test_quantised_weights_are_the_numbers_that_they_stand_for(self) -> None:
        real = weight(12, 30)
        scale = (np.abs(real).max(1) / 127).astype(np.float32)
        scale[:6] *= 40  # some channels in coarse steps: the integers alone would be another matrix
        steps = np.clip(np.round(real / scale[:, None]), -127, 127).astype(np.int8)
        nodes = [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], "d", axis=0),
            helper.make_node("Gemm", ["x", "v"], ["y"], "g", transB=1),
        ]
        stored = steps * scale[:, None]
        arrays = {"w": steps, "s": scale, "z": np.zeros(12, np.int8)}
        check(model(nodes, arrays, ("n", 30)), [stored], [stored.T], "linear")

    def test_a_reshape_across_groups_is_no_layer(self) -> None:
        w = weight(2, 5 * 5 * 9)  # two rows of five channels, while the groups are five of two
        nodes = [
            helper.make_node("Reshape", ["w", "to"], ["v"], "r"),
            helper.make_node("Conv", ["x", "v"], ["y"], "conv", group=5),
        ]
        arrays = {"w": w, "to": np.array([10, 5, 3, 3])}
        assert layers(analyze(model(nodes, arrays, (1, 25, 8, 8)))) == ()

    def test_what_is_joined_or_cut_is_no_layer(self) -> None:
        arrays = {"a": weight(6, 9), "b": weight(5, 9), "to": np.array([11, 9])}
        joined = [helper.make_node("Concat", ["a", "b"], ["v"], "c", axis=0)]
        cut = [helper.make_node("Split", ["a"], ["v", "other"], "s", axis=1, num_outputs=2)]
        for first, size in ((joined, 11), (cut, 6)):
            nodes = [*first, helper.make_node("MatMul", ["x", "v"], ["y"], "m")]
            assert layers(analyze(model(nodes, arrays, ("n", size), opset=18))) == ()

    @pytest.mark.parametrize(("op", "argument"), [("Expand", [4, 6, 9]), ("Tile", [4, 1, 1]), ("Gather", [0, 0, 0, 0])])
    def test_what_is_repeated_is_no_layer(self, op: str, argument: list[int]) -> None:
        attributes = {"axis": 0} if op == "Gather" else {}
        nodes = [
            helper.make_node(op, ["w", "by"], ["v"], "r", **attributes),
            helper.make_node("MatMul", ["x", "v"], ["y"], "m"),
        ]
        analysis = analyze(model(nodes, {"w": weight(1, 6, 9), "by": np.array(argument)}, (4, "n", 6)))
        assert analysis.roots("v") == ("w",)
        assert layers(analysis) == ()

    def test_tables_and_products_of_constants_and_of_activations_are_no_layers(self) -> None:
        nodes = [
            helper.make_node("MatMul", ["a", "b"], ["ab"], "constants"),
            helper.make_node("Add", ["x", "ab"], ["s"], "sum"),
            helper.make_node("Transpose", ["s"], ["t"], "turn", perm=[1, 0]),
            helper.make_node("MatMul", ["s", "t"], ["y"], "activations"),
        ]
        graph = model(nodes, {"a": weight(4, 3), "b": weight(3, 4)}, (4, 4))
        assert score(graph) == ()
        assert as_json(score(graph)) == {"format": "conet-onnx-score/1", "layers": []}


class TestScore:
    @pytest.fixture
    def graph(self) -> Graph:
        nodes = [
            helper.make_node("Conv", ["x", "a"], ["1"], "conv"),
            helper.make_node("GlobalAveragePool", ["1"], ["2"], "pool"),
            helper.make_node("Flatten", ["2"], ["3"], "flat"),
            helper.make_node("Gemm", ["3", "b"], ["y"], "fc", transB=1),
        ]
        return model(nodes, {"a": weight(12, 8, 3, 3), "b": weight(30, 12)}, ("n", 8, 6, 6))

    def test_the_facade_takes_a_model_and_an_analysis(self, graph: Graph) -> None:
        assert co.score(graph) == co.score(analyze(graph))
        assert [q.tensor for q in co.score(graph)] == ["a", "b"]

    def test_other_values_are_scored_in_the_place_of_the_files(self, graph: Graph) -> None:
        other = weight(12, 8, 3, 3, seed=5, noise=3.0)
        before, after = score(graph), score(graph, weights={"a": other, "b": graph.array("b")})
        assert after == score(graph.with_arrays({"a": other}))
        assert after[0] != before[0]
        assert after[1] == before[1]

    @pytest.mark.parametrize("factor", [1e-200, 1e200])
    def test_the_scale_of_a_weight_says_nothing(self, graph: Graph, factor: float) -> None:
        before = score(graph)
        for one_layer, far in zip(
            before,
            score(graph, weights={name: graph.array(name).astype(np.float64) * factor for name in "ab"}),
            strict=True,
        ):
            np.testing.assert_allclose(fields(far.ins), fields(one_layer.ins), rtol=1e-6)
            np.testing.assert_allclose(fields(far.outs), fields(one_layer.outs), rtol=1e-6)

    def test_zeros_have_no_quality(self, graph: Graph) -> None:
        (first, _) = score(graph, weights={"a": np.zeros((12, 8, 3, 3), np.float32)})
        assert fields(first.ins) == fields(first.outs) == [0] * 6

    def test_a_name_or_a_shape_that_is_not_the_models_is_an_error(self, graph: Graph) -> None:
        with pytest.raises(UsageError, match="'c' is not a weight"):
            score(graph, weights={"c": weight(12, 8)})
        with pytest.raises(UsageError, match=r"'b' has shape \(30, 12\), got \(12, 30\)"):
            score(graph, weights={"b": weight(12, 30)})

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_what_is_no_number_is_an_error_that_names_the_weight(self, graph: Graph, bad: float) -> None:
        broken = graph.array("b").copy()
        broken[3, 4] = bad
        with pytest.raises(ModelError, match="'b' holds NaN or infinity"):
            score(graph, weights={"b": broken})

    def test_progress_is_told_layer_by_layer(self, graph: Graph) -> None:
        told: list[tuple[float, str]] = []
        score(graph, progress=lambda share, name: told.append((share, name)))
        assert told == [(0.0, "a"), (0.5, "b")]

    def test_the_json_has_both_sides_of_each_layer(self, graph: Graph) -> None:
        found = score(graph)
        document = as_json(found)
        assert [set(layer) for layer in document["layers"]] == [{"tensor", "kind", "in", "out"}] * 2
        assert [layer["kind"] for layer in document["layers"]] == ["conv", "linear"]
        assert document["layers"][1]["in"] == dict(zip(METRICS, fields(found[1].ins), strict=True))


class TestByWidth:
    def sides(self, graph: Graph, metric: str) -> dict[tuple[str, str], float]:
        found = {(q.tensor, "in"): getattr(q.ins, metric) for q in score(graph)}
        return found | {(q.tensor, "out"): getattr(q.outs, metric) for q in score(graph)}

    @pytest.mark.parametrize("metric", METRICS)
    def test_a_width_is_the_mean_of_what_makes_it_and_of_what_reads_it(self, metric: str) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "a"], ["1"], "first"),
            helper.make_node("Conv", ["x", "b"], ["2"], "second"),
            helper.make_node("Add", ["1", "2"], ["3"], "sum"),
            helper.make_node("Conv", ["3", "c"], ["4"], "third"),
            helper.make_node("Conv", ["4", "d"], ["y"], "fourth"),
        ]
        arrays = {"a": weight(12, 4, 3, 3), "b": weight(12, 4, 3, 3, seed=1, noise=2.0)}
        arrays |= {"c": weight(9, 12, 1, 1, seed=2), "d": weight(7, 9, 1, 1, seed=3)}
        analysis = analyze(model(nodes, arrays, ("n", 4, 9, 9)))
        part = self.sides(analysis.graph, metric)
        found = by_width(analysis, score(analysis), metric)
        assert found == {
            "w0": pytest.approx((part["a", "out"] + part["b", "out"] + part["c", "in"]) / 3),
            "w1": pytest.approx((part["c", "out"] + part["d", "in"]) / 2),
        }
        assert len(set(part.values())) > 3

    def test_a_layer_behind_a_concat_counts_for_each_of_its_widths(self) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "a"], ["1"], "first"),
            helper.make_node("Conv", ["x", "b"], ["2"], "second"),
            helper.make_node("Concat", ["1", "2"], ["3"], "join", axis=1),
            helper.make_node("Conv", ["3", "c"], ["y"], "third"),
        ]
        arrays = {"a": weight(12, 4, 3, 3), "b": weight(8, 4, 3, 3, seed=1, noise=2.0), "c": weight(9, 20, 1, 1)}
        analysis = analyze(model(nodes, arrays, ("n", 4, 9, 9)))
        part = self.sides(analysis.graph, "qc")
        assert by_width(analysis, score(analysis)) == {
            "w0": pytest.approx((part["a", "out"] + part["c", "in"]) / 2),
            "w1": pytest.approx((part["b", "out"] + part["c", "in"]) / 2),
        }

    def test_depthwise_convolutions_do_not_count(self) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "a"], ["1"], "first"),
            helper.make_node("Conv", ["1", "b"], ["2"], "depthwise", group=12),
            helper.make_node("Conv", ["2", "c"], ["y"], "third"),
        ]
        arrays = {"a": weight(12, 4, 3, 3), "b": weight(12, 1, 3, 3), "c": weight(9, 12, 1, 1)}
        analysis = analyze(model(nodes, arrays, ("n", 4, 9, 9)))
        part = self.sides(analysis.graph, "qc")
        assert by_width(analysis, score(analysis)) == {"w0": pytest.approx((part["a", "out"] + part["c", "in"]) / 2)}

    def test_a_width_without_a_layer_is_zero(self) -> None:
        analysis = analyze(one("Conv", {"w": weight(9, 4, 3, 3)}, ("n", 4, 8, 8)))
        assert by_width(analysis, score(analysis)) == {}
        nodes = [helper.make_node("Conv", ["x", "a"], ["1"], "1"), helper.make_node("Conv", ["1", "b"], ["y"], "2")]
        analysis = analyze(model(nodes, {"a": weight(9, 4, 3, 3), "b": weight(5, 9, 1, 1)}, ("n", 4, 8, 8)))
        assert by_width(analysis, ()) == {"w0": 0.0}

    def test_an_unknown_metric_is_an_error(self) -> None:
        analysis = analyze(one("Conv", {"w": weight(9, 4, 3, 3)}, ("n", 4, 8, 8)))
        with pytest.raises(UsageError, match="'acc' is not known; choose one of rank, ratio"):
            by_width(analysis, (), "acc")

    def test_every_width_of_a_network_has_a_value(self) -> None:
        analysis = analyze(zoo.graph("shufflenet_v2_x0_5"))
        ratios = {q.tensor: q for q in score(analysis)}
        found = by_width(analysis, ratios.values(), "ratio")
        assert list(found) == list(analysis.widths)
        assert all(0 <= value <= 1 for value in found.values())
