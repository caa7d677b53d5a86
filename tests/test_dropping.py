"""Channel dropout: a factor of zero hides a channel wherever it is summed over, and no factor changes nothing."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import oracles
import pytest
import strategies
import torch
from golden_models import analysis_of
from onnx import helper

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.errors import UnsupportedOp, UsageError
from conet_onnx.graph import Graph
from conet_onnx.runtime import run_all
from conet_onnx.torch_backend.dropping import Drop, Dropping, insert_drops, seeded
from conet_onnx.torch_backend.learner import Learner
from conet_onnx.torch_backend.lower import lower, names_of
from tests.onnx_parity import Array, build, ints, run_reference, some

TOLERANCE = 2e-5
node = helper.make_node

REAL = ["dense_net", "shuffle_net", "reg_net", "ghost", "split_attention", "padded_shortcut", "volumes", "wavenet"]
REAL += ["swin_v2", "vit", "bert", "llama", "t5", "xcit", "conv_next_v2", "lstm", "keras", "siamese", "int8_channels"]


def in_torch(graph: Graph) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in oracles.feeds_of(graph).values())


def outputs(module: Any, x: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        made = module(*x)
    return list(made) if isinstance(made, tuple) else [made]


def dropped(graph: Graph) -> tuple[Any, Dropping, Analysis]:
    """The graph lowered, with places for its widths."""
    analysis = analyze(graph)
    module = lower(graph)
    return module, insert_drops(module, analysis), analysis


def width_of(analysis: Analysis, tensor: str, axis: int) -> str:
    """The width that lies along a weight's axis."""
    (found,) = (w.id for w in analysis.widths.values() if any((m.tensor, m.axis) == (tensor, axis) for m in w.members))
    return found


def masks_for(dropping: Dropping, analysis: Analysis, samples: int, seed: int) -> dict[str, Array]:
    """Of each width without statistics across it some channels, other ones for each sample."""
    rng = np.random.default_rng(seed)
    made = {n: (rng.random((samples, s)) < 0.6) for n, s in dropping.widths.items() if analysis.widths[n].exact}
    for kept in made.values():
        kept[~kept.any(1), 0] = True
    return {name: kept.astype(np.float32) for name, kept in made.items()}


def check_masks(analysis: Analysis, seed: int = 0) -> float:
    """Compare with onnxruntime on the source whose sums see zeros, sample by sample; what the masks did to outputs."""
    graph = analysis.graph
    x = in_torch(graph)
    module, plain = lower(graph), lower(graph)
    dropping = insert_drops(module, analysis)
    before = outputs(plain, x)
    for a, b in zip(outputs(module, x), before, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    masks = masks_for(dropping, analysis, len(x[0]) if x[0].dim() else 1, seed)
    dropping.use({name: torch.from_numpy(mask) for name, mask in masks.items()})
    got = outputs(module, x)
    moved, batch = 0.0, (graph.sizes(graph.inputs[0].name) or ((),))[0]
    for k in range(len(x[0]) if masks else 0):
        hidden = oracles.masked(analysis, {analysis.widths[n].dim: np.flatnonzero(m[k]) for n, m in masks.items()})
        if hidden is None:
            continue
        expected = run_all(hidden, oracles.feeds_of(graph), threads=1)
        for value, mine, bare in zip(graph.outputs, got, before, strict=True):
            sizes = graph.sizes(value.name)
            if not sizes or sizes[0] != batch or not mine.dtype.is_floating_point:
                continue  # no axis of samples in front
            error = oracles.distance(mine[k].numpy(), expected[value.name][k])
            assert error <= TOLERANCE, f"{value.name} of sample {k} is off by {error:.2g} ({dropping})"
            moved = max(moved, oracles.distance(bare[k].numpy(), expected[value.name][k]))
    dropping.clear()
    for a, b in zip(outputs(module, x), before, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    return moved


class TestMasks:
    @pytest.mark.parametrize("name", REAL)
    def test_a_mask_is_the_source_whose_sums_do_not_see_the_channels(self, name: str) -> None:
        moved = check_masks(analysis_of(name))
        assert moved > 1e-3 or name == "conv_next_v2"  # all of its widths are averaged over

    @pytest.mark.parametrize("grammar", ["images", "mixed"])
    def test_so_it_is_on_random_graphs(self, grammar: str) -> None:
        moved = []
        for k in range(24):
            more = {} if grammar == "images" else {"grammar": grammar}
            try:
                model = strategies.random_model(random.Random(f"dropping {k}"), **more)
                moved.append(check_masks(analyze(Graph(model)), seed=k))
            except UnsupportedOp:
                continue
        assert sum(m > 1e-3 for m in moved) >= 8

    def test_a_spine_is_dropped_at_every_reader_alike(self) -> None:
        """Against weights that were zeroed by hand, one sample's mask after the other's."""
        graph = residual()
        module, dropping, analysis = dropped(graph)
        spine, inner = width_of(analysis, "a.w", 0), width_of(analysis, "b.w", 0)
        assert width_of(analysis, "c.w", 0) == spine
        x = in_torch(graph)
        rng = np.random.default_rng(0)
        masks = {spine: rng.random((3, 6)) < 0.5, inner: rng.random((3, 5)) < 0.5}
        dropping.use({name: torch.from_numpy(mask.astype(np.float32)) for name, mask in masks.items()})
        got = outputs(module, x)[0].numpy()
        for k in range(3):
            keep, kept = masks[spine][k], masks[inner][k]
            arrays = {
                "b.w": graph.array("b.w") * keep[None, :, None, None],
                "d.w": graph.array("d.w") * keep[None, :, None, None],
                "fc.w": graph.array("fc.w") * keep[None],
                "c.w": graph.array("c.w") * kept[None, :, None, None],
            }
            hidden = run_reference(graph.with_arrays(arrays).proto(), {"x": x[0].numpy()})[0]
            assert oracles.distance(got[k], hidden[k]) < 1e-6
            assert oracles.distance(run_reference(graph.proto(), {"x": x[0].numpy()})[0][k], hidden[k]) > 1e-2

    def test_a_gate_sees_the_same_channels_as_what_it_gates(self) -> None:
        """Squeeze and excitation behind a depthwise convolution, which sums over no channels; and groups after it."""
        graph = gated()
        module, dropping, _ = dropped(graph)
        assert dropping.widths == {"w0": 8, "w1": 3, "w2": 2, "w3": 3, "w4": 5}  # w2 groups, of w3 in and w4 out each
        x = in_torch(graph)
        rng = np.random.default_rng(1)
        masks = {name: rng.random((3, size)) < 0.6 for name, size in dropping.widths.items()}
        dropping.use({name: torch.from_numpy(mask.astype(np.float32)) for name, mask in masks.items()})
        got = outputs(module, x)[0].numpy()
        for k in range(3):
            wide, narrow, groups, read, made = (mask[k] for mask in masks.values())
            arrays = {
                "squeeze.w": graph.array("squeeze.w") * wide[None],
                "down.w": graph.array("down.w") * wide[None, :, None, None],
                "excite.w": graph.array("excite.w") * narrow[None],
                "groups.w": graph.array("groups.w") * read[None, :, None, None],
                "fc.w": graph.array("fc.w") * np.outer(groups, made).ravel()[None],
            }
            hidden = run_reference(graph.with_arrays(arrays).proto(), {"x": x[0].numpy()})[0]
            assert oracles.distance(got[k], hidden[k]) < 1e-6

    def test_samples_may_lie_behind_the_channels(self) -> None:
        """[channels, batch], of which Gemm takes the transpose; and under a second name."""
        rng = np.random.default_rng(0)
        weights = {"a.w": some((4, 3), rng), "b.w": some((3, 2), rng)}
        nodes = [
            node("MatMul", ["x", "a.w"], ["h"]), node("Relu", ["h"], ["r"]),
            node("Transpose", ["r"], ["t"], perm=[1, 0]), node("Identity", ["t"], ["i"]),
            node("Gemm", ["i", "b.w"], ["y"], transA=1),
        ]  # fmt: skip
        graph = Graph(build(nodes, {"x": np.zeros((1, 4), np.float32)}, weights, ["y"], 17, "batch"))
        module, dropping, _ = dropped(graph)
        keep = (rng.random((3, 3)) < 0.5).astype(np.float32)
        dropping.use({"w0": torch.from_numpy(keep)})
        x = in_torch(graph)
        expected = np.maximum(x[0].numpy() @ weights["a.w"], 0) * keep @ weights["b.w"]
        assert oracles.distance(outputs(module, x)[0].numpy(), expected) < 1e-6

    def test_two_sums_over_different_axes_of_one_value_have_a_place_each(self) -> None:
        rng = np.random.default_rng(0)
        shapes = {"rows": (5, 3), "columns": (4, 5), "right": (5, 2), "left": (2, 5)}
        weights = {name: some(shape, rng) for name, shape in shapes.items()}
        nodes = [
            node("MatMul", ["rows", "x"], ["r"]), node("MatMul", ["r", "columns"], ["h"]),
            node("MatMul", ["h", "right"], ["over_columns"]), node("MatMul", ["left", "h"], ["over_rows"]),
            node("MatMul", ["left", "over_columns"], ["y"]), node("MatMul", ["over_rows", "right"], ["z"]),
        ]  # fmt: skip
        graph = Graph(build(nodes, {"x": np.zeros((1, 3, 4), np.float32)}, weights, ["y", "z"], 17, "batch"))
        module, dropping, analysis = dropped(graph)
        rows, columns = width_of(analysis, "rows", 0), width_of(analysis, "columns", 1)
        keep = {name: (rng.random((3, 5)) < 0.6).astype(np.float32) for name in (rows, columns)}
        dropping.use({name: torch.from_numpy(mask) for name, mask in keep.items()})
        x = in_torch(graph)
        h = weights["rows"] @ x[0].numpy() @ weights["columns"]
        expected = weights["left"] @ (h * keep[columns][:, None] * keep[rows][:, :, None]) @ weights["right"]
        for found in outputs(module, x):
            assert oracles.distance(found.numpy(), expected) < 1e-6

    def test_statistics_are_those_of_all_channels(self) -> None:
        """LayerNormalization before a matrix product: its weight is zeroed, and the mean is as it was."""
        rng = np.random.default_rng(0)
        weights = {
            "a.w": some((4, 6), rng), "s": np.ones(6, np.float32), "b": some((6,), rng), "c.w": some((6, 3), rng)
        }  # fmt: skip
        nodes = [
            node("MatMul", ["x", "a.w"], ["h"]),
            node("LayerNormalization", ["h", "s", "b"], ["n"]),
            node("MatMul", ["n", "c.w"], ["y"]),
        ]
        graph = Graph(build(nodes, {"x": np.zeros((1, 5, 4), np.float32)}, weights, ["y"], 17, "batch"))
        module, dropping, _ = dropped(graph)
        keep = np.array([[1, 0, 1, 1, 0, 1]] * 3, np.float32)
        dropping.use({"w0": torch.from_numpy(keep)})
        x = in_torch(graph)
        hidden = graph.with_arrays({"c.w": weights["c.w"] * keep[0][:, None]})
        expected = run_reference(hidden.proto(), {"x": x[0].numpy()})[0]
        assert oracles.distance(outputs(module, x)[0].numpy(), expected) < 1e-6


class TestExpectation:
    @pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
    @pytest.mark.parametrize("rate", [0.1, 0.6])
    def test_the_mean_over_draws_of_a_linear_network_is_its_output(self, noise: Any, rate: float) -> None:
        """Three convolutions without activations, each width summed over once; 20,000 draws in one batch."""
        rng = np.random.default_rng(0)
        weights = {"a.w": some((5, 2, 1, 1), rng), "b.w": some((4, 5, 1, 1), rng), "c.w": some((3, 4, 1, 1), rng)}
        nodes = [
            node("Conv", ["x", "a.w"], ["a"]),
            node("Conv", ["a", "b.w"], ["b"]),
            node("Conv", ["b", "c.w"], ["y"]),
        ]
        analysis = analyze(Graph(build(nodes, {"x": np.zeros((1, 2, 1, 1), np.float32)}, weights, ["y"], 17, "batch")))
        module = lower(analysis.graph)
        dropping = insert_drops(module, analysis, noise=noise)
        x = torch.from_numpy(some((1, 2, 1, 1), rng)).expand(20_000, -1, -1, -1)
        plain = outputs(module, (x,))[0].flatten(1).double()
        dropping.rates.update({"w0": rate, "w1": rate})
        dropping.draw(len(x), seeded(1))
        drawn = outputs(module, (x,))[0].flatten(1).double()
        error = drawn.std(0) / len(x) ** 0.5
        assert bool((error < 0.1 * plain.abs().max()).all())
        assert bool(((drawn.mean(0) - plain[0]).abs() < 4 * error).all())
        assert float(drawn.std(0).max()) > 0.1

    def test_factors_have_the_published_mean_and_variance(self) -> None:
        for noise in ("bernoulli", "gaussian"):
            analysis = analyze(residual())
            dropping = insert_drops(lower(analysis.graph), analysis, noise=noise)  # type: ignore[arg-type]  # one of the two words
            dropping.rates["w0"] = 0.2
            dropping.draw(50_000, seeded(0))
            factor = dropping.factors["w0"].double()
            assert float(factor.mean()) == pytest.approx(1, abs=0.005)
            assert float(factor.var()) == pytest.approx(0.25, abs=0.01)  # p / (1 - p) = 1/4 for both
            assert (set(factor.unique().tolist()) == {0.0, 1.25}) == (noise == "bernoulli")


class TestDraws:
    def test_the_same_seed_draws_the_same_and_another_does_not(self) -> None:
        _, dropping, _ = dropped(residual())
        dropping.rates.update({"w0": 0.5, "w1": 0.5})
        found = []
        for seeds in ((0, 1), (0, 1), (1, 0), (0, 2)):
            dropping.draw(40, seeded(*seeds))
            found.append(dropping.factors["w0"])
        assert torch.equal(found[0], found[1])
        assert not any(torch.equal(found[0], other) for other in found[2:])

    def test_samples_and_widths_draw_apart(self) -> None:
        _, dropping, _ = dropped(gated())
        dropping.rates.update(dict.fromkeys(dropping.widths, 0.5))
        dropping.draw(64, seeded(0))
        rows = [tuple(row) for factor in (dropping.factors["w1"], dropping.factors["w3"]) for row in factor.tolist()]
        assert len(set(rows[:64])) > 4
        assert rows[:64] != rows[64:]

    def test_rows_are_those_of_the_whole_batch(self) -> None:
        """So that several processes together drop what one would."""
        _, dropping, _ = dropped(residual())
        dropping.rates["w0"] = 0.5
        dropping.draw(10, seeded(0))
        whole = dropping.factors["w0"]
        dropping.draw(10, seeded(0), rows=[1, 3, 5])
        assert torch.equal(dropping.factors["w0"], whole[1::2][:3])

    def test_a_rate_of_one_leaves_something(self) -> None:
        _, dropping, _ = dropped(residual())
        dropping.rates["w0"] = 1.0
        dropping.draw(1000, seeded(0))
        assert dropping.factors["w0"].unique().tolist() == pytest.approx([0, 20])
        assert float((dropping.factors["w0"] > 0).float().mean()) == pytest.approx(0.05, abs=0.02)

    def test_widths_without_a_rate_have_no_factors(self) -> None:
        _, dropping, _ = dropped(residual())
        dropping.rates.update({"w0": 0.0})
        dropping.draw(4, seeded(0))
        assert dropping.factors == {}

    def test_what_makes_no_sense_is_said(self) -> None:
        module, dropping, analysis = dropped(residual())
        dropping.rates["w7"] = 0.1
        with pytest.raises(UsageError, match="width 'w7' cannot be dropped: there is no such width"):
            dropping.draw(4, seeded(0))
        for rate in (-0.1, float("nan")):
            dropping.rates.clear()
            dropping.rates["w0"] = rate
            with pytest.raises(UsageError, match="expected a share"):
                dropping.draw(4, seeded(0))
        with pytest.raises(UsageError, match=r"factors of shape \(3, 5\) for width 'w0'.*w0 \(6\), w1 \(5\)"):
            dropping.use({"w0": torch.ones(3, 5)})
        with pytest.raises(UsageError, match="noise 'salt': it is one of bernoulli, gaussian"):
            insert_drops(lower(analysis.graph), analysis, noise="salt")  # type: ignore[arg-type]  # wrong on purpose
        dropping.use({"w0": torch.ones(2, 6)})
        with pytest.raises(UsageError, match="drawn for 2 samples, and 3 positions"):
            module(*in_torch(analysis.graph))


class TestInTheModule:
    def test_gradients_pass_what_is_kept_and_nothing_else(self) -> None:
        graph = residual()
        module, dropping, _ = dropped(graph)
        module.train()
        names, keep = dict(names_of(module)), torch.tensor([1.0, 0, 1, 1, 0, 0])
        found = []
        for factors in ({}, {"w0": keep.expand(3, -1)}):
            dropping.use(factors)
            module.zero_grad()
            module(*in_torch(graph))[0].square().sum().backward()
            weights = [module.get_parameter(names[tensor]) for tensor in ("b.w", "d.w", "fc.w")]
            found.append(torch.stack([w.grad.abs().transpose(0, 1).flatten(1).sum(1) for w in weights]))
        assert bool((found[0] > 0).sum() >= 12)
        assert torch.equal(found[1] > 0, (found[0] > 0) & (keep > 0))

    def test_nothing_is_saved_and_the_module_can_be_copied(self) -> None:
        graph = residual()
        module, _, _ = dropped(graph)
        assert module.state_dict().keys() == lower(graph).state_dict().keys()
        assert [name for name, _ in module.named_buffers()] == [name for name, _ in lower(graph).named_buffers()]
        x = in_torch(graph)
        expected = outputs(module, x)[0]
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(outputs(other, x)[0], expected)

    def test_running_statistics_stay_in_eval_mode(self) -> None:
        analysis = analysis_of("reg_net")
        module = lower(analysis.graph)
        dropping = insert_drops(module, analysis)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        dropping.rates.update(dict.fromkeys(dropping.widths, 0.3))
        dropping.draw(3, seeded(0))
        outputs(module, in_torch(analysis.graph))
        assert not module.training
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[name])

    def test_images_may_have_their_channels_last(self) -> None:
        graph = gated()
        learners = []
        for last in (False, True):
            learner = Learner(graph, torch.device("cpu"))
            learner.keep(["y"])
            learner.use_channels_last(last)
            dropping = insert_drops(learner.module, analyze(graph))
            dropping.rates.update(dict.fromkeys(dropping.widths, 0.3))
            dropping.draw(3, seeded(0))
            learners.append(learner.said(learner.tensors(oracles.feeds_of(graph)["x"]))["y"])
        assert oracles.distance(learners[0].numpy(), learners[1].numpy()) < 1e-6

    def test_what_nothing_computes_any_more_has_no_place(self) -> None:
        """Of two heads one is kept: the other's width can be dropped, and that changes nothing."""
        rng = np.random.default_rng(0)
        weights = {f"{k}.w": some((4, 4), rng) for k in "abcd"}
        nodes = [
            node("MatMul", ["x", "a.w"], ["a"]), node("MatMul", ["a", "b.w"], ["one"]),
            node("MatMul", ["a", "c.w"], ["c"]), node("MatMul", ["c", "d.w"], ["two"]),
        ]  # fmt: skip
        graph = Graph(build(nodes, {"x": np.zeros((1, 4), np.float32)}, weights, ["one", "two"], 17, "batch"))
        learner = Learner(graph, torch.device("cpu"))
        learner.keep(["one"])
        dropping = insert_drops(learner.module, analyze(graph))
        assert list(dropping.widths) == ["w0", "w1"]
        x = learner.tensors(some((5, 4), rng))
        before = learner.said(x)["one"]
        dropping.rates["w1"] = 0.5
        dropping.draw(5, seeded(0))
        assert torch.equal(learner.said(x)["one"], before)

    def test_fused_attention_has_its_queries_dropped(self) -> None:
        """Where the code computes attention in one call, with the scale inside of it, nothing else is computed."""
        rng = np.random.default_rng(0)
        weights: Mapping[str, Array] = {
            **{f"{k}.w": some((6, 6), rng) for k in "qkvo"}, "scale": np.float32(0.3), "split": ints(0, 0, 2, 3),
            "join": ints(0, 0, 6),
        }  # fmt: skip
        nodes = [node("MatMul", ["x", f"{k}.w"], [k]) for k in "qkv"]
        nodes += [node("Reshape", [k, "split"], [f"{k}s"]) for k in "qkv"]
        nodes += [
            node("Transpose", ["qs"], ["qh"], perm=[0, 2, 1, 3]), node("Transpose", ["ks"], ["kh"], perm=[0, 2, 1, 3]),
            node("Transpose", ["kh"], ["kt"], perm=[0, 1, 3, 2]),
            node("Transpose", ["vs"], ["vh"], perm=[0, 2, 1, 3]), node("Mul", ["qh", "scale"], ["qm"]),
            node("MatMul", ["qm", "kt"], ["scores"]), node("Softmax", ["scores"], ["soft"], axis=-1),
            node("MatMul", ["soft", "vh"], ["mixed"]), node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
            node("Reshape", ["back", "join"], ["flat"]), node("MatMul", ["flat", "o.w"], ["y"]),
        ]  # fmt: skip
        graph = Graph(build(nodes, {"x": np.zeros((2, 4, 6), np.float32)}, weights, ["y"], 17, "batch"))
        module, dropping, analysis = dropped(graph)
        assert "scaled_dot_product_attention" in module.code
        assert not dropping.missing
        assert sorted(w.size for w in analysis.widths.values()) == [2, 3, 3]  # heads; of queries and keys; of values
        assert check_masks(analysis) > 1e-2
        assert check_masks(analysis, seed=4) > 1e-2


class TestWhatCannotBeDropped:
    def test_a_recurrent_layers_own_units(self) -> None:
        analysis = analysis_of("lstm")
        dropping = insert_drops(lower(analysis.graph), analysis)
        assert list(dropping.widths) == ["w0"]
        assert dropping.missing["w1"].endswith("sums over it inside")
        dropping.rates["w1"] = 0.1
        with pytest.raises(UsageError, match=r"width 'w1' cannot be dropped: LSTM .* sums over it inside"):
            dropping.draw(3, seeded(0))

    def test_what_is_summed_between_weights(self) -> None:
        """A small network that makes a table of biases out of constants, as in Swin V2."""
        rng = np.random.default_rng(0)
        weights = {k: some(shape, rng) for k, shape in {"t": (6, 2), "u": (2, 3), "v": (3, 4), "w": (4, 5)}.items()}
        weights["z"] = some((5, 2), rng)
        nodes = [
            node("MatMul", ["t", "u"], ["tu"]), node("Relu", ["tu"], ["r"]), node("MatMul", ["r", "v"], ["bias"]),
            node("Add", ["x", "bias"], ["a"]), node("MatMul", ["a", "w"], ["h"]), node("MatMul", ["h", "z"], ["y"]),
        ]  # fmt: skip
        graph = Graph(build(nodes, {"x": np.zeros((1, 6, 4), np.float32)}, weights, ["y"], 17, "batch"))
        _, dropping, analysis = dropped(graph)
        between = width_of(analysis, "v", 0)
        assert list(dropping.missing) == [between]
        assert "sums over it between weights" in dropping.missing[between]
        assert list(dropping.widths) == [width_of(analysis, "z", 0)]

    def test_what_a_width_never_meets_a_sum_in(self) -> None:
        rng = np.random.default_rng(0)
        nodes = [
            node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["a"]),
            node("ReduceMean", ["a"], ["y"], axes=[1]),
        ]  # fmt: skip
        weights = {"w": some((4, 3), rng), "b": some((3,), rng)}
        graph = Graph(build(nodes, {"x": np.zeros((1, 4), np.float32)}, weights, ["y"], 17, "batch"))
        _, dropping, _ = dropped(graph)
        assert dropping.missing == {"w0": "nothing sums over its channels"}

    def test_what_runs_outside_of_torch(self) -> None:
        """A tail begins where torch lacks an option: what is summed over there is not dropped elsewhere either."""
        rng = np.random.default_rng(0)
        shapes = {"a": (3, 2, 1, 1), "b": (4, 3, 1, 1), "c": (5, 4, 1, 1), "d": (2, 3, 1, 1), "e": (2, 5, 1, 1)}
        weights = {f"{name}.w": some(shape, rng) for name, shape in shapes.items()}
        weights["half"] = np.array([1, 1, 0.5, 0.5], np.float32)
        nodes = [
            node("Conv", ["x", "a.w"], ["a"]), node("Resize", ["a", "", "half"], ["s"], antialias=1, mode="linear"),
            node("Conv", ["s", "d.w"], ["late"], name="last"), node("Conv", ["a", "b.w"], ["b"]),
            node("Conv", ["b", "c.w"], ["c"]), node("Conv", ["c", "e.w"], ["y"]),
        ]  # fmt: skip
        graph = Graph(build(nodes, {"x": np.zeros((1, 2, 6, 6), np.float32)}, weights, ["y", "late"], 18, "batch"))
        module, dropping, _ = dropped(graph)
        assert "outside" in module.code
        assert dropping.missing == {"w0": "Conv 'last' runs outside of torch"}
        assert [m.extra_repr() for m in module.modules() if isinstance(m, Drop)] == ["w1", "w2"]
        assert [*dropping.widths.values()] == [4, 5]

    def test_what_is_summed_among_whole_numbers(self) -> None:
        rng = np.random.default_rng(0)
        one, zero = np.float32(0.1), np.uint8(128)
        whole = {n: rng.integers(-90, 90, shape).astype(np.int8) for n, shape in {"a": (4, 6), "b": (6, 3)}.items()}
        weights = {**whole, "s": one, "z": zero, "o": np.int8(0)}
        nodes = [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("QLinearMatMul", ["q", "s", "z", "a", "s", "o", "s", "z"], ["h"]),
            node("QLinearMatMul", ["h", "s", "z", "b", "s", "o", "s", "z"], ["r"]),
            node("DequantizeLinear", ["r", "s", "z"], ["y"]),
        ]
        graph = Graph(build(nodes, {"x": np.zeros((1, 4), np.float32)}, weights, ["y"], 17, "batch"))
        _, dropping, _ = dropped(graph)
        assert not dropping.widths
        assert dropping.missing["w0"].endswith("sums over it among whole numbers")

    def test_a_batch_that_is_baked_in_is_the_first_axis_or_is_not_known(self) -> None:
        rng = np.random.default_rng(0)
        weights = {"a.w": some((4, 3), rng), "b.w": some((3, 2), rng)}
        nodes = [
            node("MatMul", ["x", "a.w"], ["h"]), node("Transpose", ["h"], ["t"], perm=[1, 0, 2]),
            node("MatMul", ["t", "b.w"], ["y"]),
        ]  # fmt: skip
        for batch, positions, reachable in ((2, 5, False), (1, 5, False)):
            shape = {"x": np.zeros((batch, positions, 4), np.float32)}
            _, dropping, _ = dropped(Graph(build(nodes, shape, weights, ["y"], 17)))
            assert bool(dropping.widths) == reachable
            assert "it is not known which sample they are of" in dropping.missing["w0"]
        free = Graph(build(nodes, {"x": np.zeros((1, 5, 4), np.float32)}, weights, ["y"], 17, "batch"))
        module, dropping, _ = dropped(free)
        keep = torch.tensor([[1.0, 0, 1], [0, 1, 1], [1, 1, 0]])
        dropping.use({"w0": keep})
        x = in_torch(free)[0]
        expected = ((x @ torch.from_numpy(weights["a.w"])) * keep[:, None]).transpose(0, 1) @ torch.from_numpy(
            weights["b.w"]
        )
        assert torch.allclose(outputs(module, (x,))[0], expected, atol=1e-6)

    def test_a_baked_batch_along_the_first_axis_is_dropped_sample_by_sample(self) -> None:
        graph = residual()
        model = graph.proto()
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        fixed = Graph(model)
        rng = np.random.default_rng(0)
        x = torch.from_numpy(some((4, 2, 5, 5), rng))
        masks = {"w0": torch.from_numpy((rng.random((4, 6)) < 0.5).astype(np.float32))}
        found = []
        for some_graph in (graph, fixed):
            module, dropping, _ = dropped(some_graph)
            dropping.use(masks)
            found.append(outputs(module, (x,))[0])
        assert torch.equal(*found)


def residual() -> Graph:
    """A stem `a`, a block of `b` and `c` around which it goes on, `d` and a classifier that read the sum."""
    rng = np.random.default_rng(0)
    weights = {
        "a.w": some((6, 2, 3, 3), rng) / 4, "a.b": some((6,), rng), "b.w": some((5, 6, 3, 3), rng) / 7,
        "b.b": some((5,), rng), "c.w": some((6, 5, 3, 3), rng) / 7, "c.b": some((6,), rng),
        "d.w": some((4, 6, 1, 1), rng) / 3, "d.b": some((4,), rng), "fc.w": some((4, 6), rng) / 3,
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "a.w", "a.b"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["ra"]),
        node("Conv", ["ra", "b.w", "b.b"], ["b"], pads=[1, 1, 1, 1]),
        node("Relu", ["b"], ["rb"]),
        node("Conv", ["rb", "c.w", "c.b"], ["c"], pads=[1, 1, 1, 1]),
        node("Add", ["ra", "c"], ["s"]),
        node("Relu", ["s"], ["rs"]),
        node("Conv", ["rs", "d.w", "d.b"], ["d"]),
        node("GlobalAveragePool", ["d"], ["pd"]),
        node("Flatten", ["pd"], ["fd"]),
        node("GlobalAveragePool", ["rs"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "fc.w"], ["g"], transB=1),
        node("Add", ["g", "fd"], ["y"]),
    ]
    return Graph(build(nodes, {"x": np.zeros((1, 2, 5, 5), np.float32)}, weights, ["y"], 17, "batch"))


def gated() -> Graph:
    """Expansion, depthwise, squeeze and excitation, projection, a convolution of two groups, a classifier."""
    rng = np.random.default_rng(3)
    weights = {
        "up.w": some((8, 2, 1, 1), rng), "depth.w": some((8, 1, 3, 3), rng) / 3, "depth.b": some((8,), rng),
        "squeeze.w": some((3, 8), rng) / 3, "excite.w": some((8, 3), rng), "down.w": some((6, 8, 1, 1), rng) / 3,
        "down.b": some((6,), rng), "groups.w": some((10, 3, 3, 3), rng) / 5, "groups.b": some((10,), rng),
        "fc.w": some((4, 10), rng) / 3, "target": ints(0, -1, 1, 1),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "up.w"], ["u"]),
        node("Conv", ["u", "depth.w", "depth.b"], ["d"], pads=[1, 1, 1, 1], group=8),
        node("Relu", ["d"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "squeeze.w"], ["q"], transB=1),
        node("Relu", ["q"], ["rq"]),
        node("Gemm", ["rq", "excite.w"], ["e"], transB=1),
        node("Sigmoid", ["e"], ["se"]),
        node("Reshape", ["se", "target"], ["gate"]),
        node("Mul", ["r", "gate"], ["m"]),
        node("Conv", ["m", "down.w", "down.b"], ["o"]),
        node("Relu", ["o"], ["ro"]),
        node("Conv", ["ro", "groups.w", "groups.b"], ["g"], pads=[1, 1, 1, 1], group=2),
        node("Relu", ["g"], ["rg"]),
        node("GlobalAveragePool", ["rg"], ["pg"]),
        node("Flatten", ["pg"], ["fg"]),
        node("Gemm", ["fg", "fc.w"], ["y"], transB=1),
    ]
    return Graph(build(nodes, {"x": np.zeros((1, 2, 5, 5), np.float32)}, weights, ["y"], 17, "batch"))
