"""BatchNormalization comes back for training: the identity where it is inserted, and folded away to the last digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from conet_onnx.data import Split
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import from_torch, lower
from conet_onnx.torch_backend.norms import Reinsert, calibrate, fold, insert, wanted
from conet_onnx.torch_backend.train import fit
from tests import zoo
from tests.onnx_parity import build, run_reference, some

NODE = helper.make_node


def network(*, norm: bool = False) -> Graph:
    """Plain, grouped and squeezing convolutions, one without a bias, two with one weight, and a classifier."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": some((8, 3, 3, 3), rng), "b1": some((8,), rng), "w2": some((8, 4, 3, 3), rng), "b2": some((8,), rng),
        "w3": some((8, 8, 1, 1), rng), "shared": some((8, 8, 1, 1), rng), "b4": some((8,), rng), "b5": some((8,), rng),
        "se": some((8, 8, 1, 1), rng), "se_b": some((8,), rng), "fc": some((8, 4), rng),
        **{name: np.abs(some((8,), rng)) + 0.5 for name in ("g", "b", "m", "v")},
    }  # fmt: skip
    nodes = [
        NODE("Conv", ["x", "w1", "b1"], ["h1"], pads=[1, 1, 1, 1]),
        NODE("Relu", ["h1"], ["r1"]),
        NODE("Conv", ["r1", "w2", "b2"], ["h2"], pads=[1, 1, 1, 1], group=2),
        NODE("Add", ["h2", "r1"], ["s"]),
        NODE("Relu", ["s"], ["r2"]),
        NODE("Conv", ["r2", "w3"], ["h3"]),
        NODE("Conv", ["h3", "shared", "b4"], ["h4"]),
        NODE("Conv", ["h4", "shared", "b5"], ["h5"]),
        NODE("GlobalAveragePool", ["h5"], ["p"]),
        NODE("Conv", ["p", "se", "se_b"], ["q"]),
        *([NODE("BatchNormalization", ["q", "g", "b", "m", "v"], ["n"])] if norm else []),
        NODE("Flatten", ["n" if norm else "q"], ["f"]),
        NODE("MatMul", ["f", "fc"], ["y"]),
    ]
    return Graph(build(nodes, {"x": some((4, 3, 6, 6), rng)}, weights, ["y"], 17, "batch"))


def batches(count: int = 3, *, size: int = 16, seed: int = 1) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(some((size, 3, 6, 6), rng) * 2 + 1) for _ in range(count)]


def norms(module: torch.nn.Module) -> list[Reinsert]:
    return [part for part in module.modules() if isinstance(part, Reinsert)]


class TestInserting:
    def test_after_convolutions_with_a_weight_and_a_bias_of_their_own(self) -> None:
        module = lower(network())
        assert insert(module) == 3
        after = [node.args[0].args[1].target for node in module.graph.nodes if "reinserted" in str(node.target)]
        assert after == ["w1", "w2", "se"]

    def test_where_a_batch_has_too_few_positions_they_go_again(self) -> None:
        module = lower(network())
        insert(module)
        assert calibrate(module, zip(batches())) == 2
        assert len(norms(module)) == 2

    def test_none_before_a_norm_that_is_there(self) -> None:
        assert insert(lower(network(norm=True))) == 2

    def test_they_begin_as_the_identity(self) -> None:
        plain, module = lower(network()), lower(network())
        insert(module)
        calibrate(module, zip(batches()))
        (x,) = batches(1, seed=9)
        with torch.no_grad():
            before, after = plain(x), module(x)
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * float(before.abs().max()))

    def test_statistics_are_those_of_the_batches(self) -> None:
        module = lower(network())
        insert(module)
        data = batches()
        calibrate(module, zip(data))
        w, b = (dict(module.named_parameters())[name] for name in ("w1", "b1"))
        made = torch.nn.functional.conv2d(torch.cat(data), w, b, padding=1).detach().transpose(0, 1).flatten(1)
        torch.testing.assert_close(norms(module)[0].running_mean, made.mean(1))
        torch.testing.assert_close(norms(module)[0].running_var, made.var(1, correction=0))

    def test_what_else_differs_in_training_is_left_alone(self) -> None:
        module = lower(network(norm=True)).train()
        before = {name: tensor.clone() for name, tensor in module.named_buffers()}
        insert(module)
        calibrate(module, zip(batches()))
        assert module.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.named_buffers() if name in before)

    def test_a_channel_that_never_changes_is_no_trouble(self) -> None:
        module = lower(network())
        with torch.no_grad():
            dict(module.named_parameters())["w1"][2] = 0
            dict(module.named_parameters())["b1"][2] = 1e7 / 3  # whose square has more digits than even a double
        insert(module)
        calibrate(module, zip(batches()))
        module.train()(batches(1)[0]).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


class TestFolding:
    def test_the_folded_network_is_the_unfolded(self) -> None:
        """After training has moved everything: to 1e-5 of the output."""
        graph = network()
        module = lower(graph)
        insert(module)
        calibrate(module, zip(batches()))
        optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2)
        module.train()
        for x in batches(5, seed=3):
            optimiser.zero_grad()
            module(x).square().mean().backward()
            optimiser.step()
        module.eval()
        (x,) = batches(1, seed=9)
        with torch.no_grad():
            unfolded = module(x)
            fold(module)
            folded = module(x)
        assert norms(module) == []
        limit = 1e-5 * float(unfolded.abs().max())
        torch.testing.assert_close(folded, unfolded, rtol=0, atol=limit)
        back = from_torch(graph, module)
        assert [n.op_type for n in back.model.graph.node] == [n.op_type for n in graph.model.graph.node]
        assert back.weights.keys() == graph.weights.keys()
        (stored,) = run_reference(back.proto(), {"x": x.numpy()})
        np.testing.assert_allclose(stored, unfolded.numpy(), rtol=0, atol=limit)

    def test_untrained_nothing_changes_but_rounding(self) -> None:
        graph = network()
        module = lower(graph)
        insert(module)
        calibrate(module, zip(batches()))
        fold(module)
        back = from_torch(graph, module)
        for name in graph.weights:
            np.testing.assert_allclose(back.array(name), graph.array(name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_real_networks_get_them_back(name: str) -> None:
    graph = zoo.graph(name, dynamic_batch=True)
    assert wanted(graph, "auto")
    module = lower(graph)
    rng = np.random.default_rng(0)
    size = graph.inputs[0].shape[2]
    data = [torch.from_numpy(some((4, 3, size, size), rng)) for _ in range(2)]
    insert(module)
    made = [graph.shape(node.outputs[0]) for node in graph.nodes if node.op == "Conv"]
    assert calibrate(module, zip(data)) == sum(shape is not None and shape[2:] != (1, 1) for shape in made) > 10
    with torch.no_grad():
        before, after = lower(graph)(data[0]), module(data[0])
        fold(module)
        folded = module(data[0])
    scale = float(before.abs().max())
    assert float((after - before).abs().max()) < 1e-4 * scale
    assert float((folded - after).abs().max()) < 1e-4 * scale


class TestWanted:
    def test_auto_asks_for_convolutions_without_any_norm(self) -> None:
        assert wanted(network(), "auto")
        assert not wanted(network(norm=True), "auto")
        linear = build([NODE("MatMul", ["x", "w"], ["y"])], {"x": np.ones((2, 3), np.float32)},
                       {"w": np.ones((3, 4), np.float32)}, ["y"], 17)  # fmt: skip
        assert not wanted(Graph(linear), "auto")

    @pytest.mark.parametrize(("how", "expected"), [("reinsert", True), ("none", False)])
    def test_what_is_asked_for_is_done(self, how: Any, expected: bool) -> None:
        assert wanted(network(norm=True), how) is expected
        assert wanted(network(), how) is expected


class TestFitting:
    def data(self) -> Split:
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 4, 96)
        images = some((96, 3, 6, 6), rng) + labels[:, None, None, None].astype(np.float32)
        return Split(images, labels)

    def fitted(self, how: Any, **settings: Any) -> Graph:
        return fit(network(), self.data(), epochs=2, batch=16, lr=1e-3, batchnorm=how, threads=1, **settings).graph

    def test_it_is_used_where_it_is_wanted(self) -> None:
        auto, reinserted, plain = (self.fitted(how) for how in ("auto", "reinsert", "none"))
        assert np.array_equal(auto.array("w1"), reinserted.array("w1"))
        assert not np.array_equal(auto.array("w1"), plain.array("w1"))
        assert [n.op_type for n in auto.model.graph.node] == [n.op_type for n in network().model.graph.node]

    def test_what_is_returned_is_what_was_trained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (x,) = batches(1, seed=9)
        unfolded = []

        def noted(module: torch.fx.GraphModule) -> None:
            with torch.no_grad():
                unfolded.append(module.eval()(x)[0].numpy())
            fold(module)

        monkeypatch.setattr("conet_onnx.torch_backend.train.fold", noted)
        graph = self.fitted("reinsert")
        (wanted,), (got,) = unfolded, run_reference(graph.proto(), {"x": x.numpy()})
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())

    def test_the_same_seed_gives_the_same_bits(self) -> None:
        first, again = (self.fitted("reinsert", seed=5) for _ in range(2))
        assert all(first.array(name).tobytes() == again.array(name).tobytes() for name in first.weights)

    def test_another_word_is_refused(self) -> None:
        with pytest.raises(UsageError, match="batchnorm 'back'"):
            self.fitted("back")
