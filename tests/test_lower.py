"""Lowered models compute, train and return like the models that they come from."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from conet_onnx.errors import UnsupportedOp, UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import from_torch, lower
from conet_onnx.torch_backend.lower import names_of
from conet_onnx.torch_backend.names import Names
from tests import zoo
from tests.onnx_parity import Array, build, ints, run_reference, some

PARITY = 1e-4  # of the largest absolute output
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"dynamic_batch": True}) for name in zoo.MODELS),
    *((name, {"keep_norms": True}) for name in zoo.MODELS),
    ("shufflenet_v2_x0_5", {"exporter": "dynamo", "dynamic_batch": True, "keep_norms": True}),
    ("deeplabv3_mobilenet_v3_large", {"exporter": "dynamo", "dynamic_batch": True}),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(module: nn.Module, x: Array) -> Array:
    with torch.no_grad():
        made: Array = module(torch.from_numpy(x)).numpy()
    return made


def relative(got: Array, wanted: Array) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def small_model(**weights: Array) -> onnx.ModelProto:
    """x [batch, 2] -> Gemm -> Relu -> Gemm -> y; weights w, b, v by default seeded."""
    rng = np.random.default_rng(0)
    have = {"w": some((3, 2), rng), "b": some((3,), rng), "v": some((2, 3), rng), **weights}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"], transB=1),
    ]
    return build(nodes, {"x": some((4, 2), rng)}, have, ["y"], 17, "batch")


class WithNorms(nn.Module):
    """Every place that a norm can have: after convolutions of one and two axes, and after a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6, momentum=0.3, eps=1e-3)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, stride=2)
        self.norm2 = nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 5)
        self.norm3 = nn.BatchNorm1d(5)
        for tensor in (*self.parameters(), *self.buffers()):  # exporters merge what is equal
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.norm2(self.depthwise(x))).mean((2, 3))
        return self.norm3(self.linear(x))


def exported(module: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    return zoo._legacy(module, x, dynamic_batch=True, keep_norms=True)


class TestZoo:
    @pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
    def test_agrees_with_onnxruntime_and_returns_every_bit(self, name: str, options: dict[str, Any]) -> None:
        model = zoo.onnx_model(name, **options)
        graph = zoo.graph(name, **options)
        module = lower(graph)
        x = zoo.example(name, 3 if options.get("dynamic_batch") else 2)
        wanted = run_reference(model, {"x": x})[0]
        assert relative(run(module, x), wanted) < PARITY
        assert relative(wanted[1], wanted[0]) > 1e-2, "the model's signal is dead, so equality says nothing"
        assert from_torch(graph, module).proto() == model

    @pytest.mark.parametrize("name", zoo.MODELS)
    def test_a_static_export_takes_any_batch(self, name: str) -> None:
        module = lower(zoo.graph(name))
        x = zoo.example(name, 5)
        assert relative(run(module, x)[:2], run(module, x[:2])) < PARITY

    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0"])
    def test_every_trainable_weight_gets_a_gradient_and_is_written_back(self, name: str) -> None:
        graph = zoo.graph(name, keep_norms=True)
        module = lower(graph).train()
        module(torch.from_numpy(zoo.example(name, 4))).square().sum().backward()
        parameters = dict(module.named_parameters())
        for key, parameter in parameters.items():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.add_(1)
        back = from_torch(graph, module)
        names = {attribute: weight for weight, attribute in names_of(module)}
        for key, parameter in parameters.items():
            np.testing.assert_array_equal(back.array(names[key]), parameter.detach().numpy())
        if name in ("resnet18", "shufflenet_v2_x0_5"):  # the others' equal biases are merged by the exporter
            learned = sum(p.numel() for p in zoo.module(name).parameters())
            assert sum(p.numel() for p in parameters.values()) == learned

    def test_generated_code_calls_torch_directly(self) -> None:
        module = lower(zoo.graph("resnet18", keep_norms=True))
        assert isinstance(module, fx.GraphModule)
        convolutions = [n for n in module.graph.nodes if n.target is torch.conv2d]
        assert len(convolutions) == 20
        assert {type(n.args[4]) for n in convolutions} == {tuple}
        assert not [n for n in module.graph.nodes if n.op == "call_function" and "conet" in n.target.__module__]


class TestTraining:
    def test_a_step_in_training_mode_is_the_original_step(self) -> None:
        torch.manual_seed(0)
        original = WithNorms().eval()
        batches = [torch.randn(4, 3, 6, 6) * 2 + 1 for _ in range(3)]
        graph = Graph(exported(original, batches[0]))
        module = lower(graph).train()
        original.train()
        for net in (original, module):
            optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
            for x in batches:
                optimizer.zero_grad()
                net(x).square().mean().backward()
                optimizer.step()
        trained = from_torch(graph, module)
        state = {k: v for k, v in original.state_dict().items() if "num_batches" not in k}
        assert set(state) <= set(graph.weights)
        for key, value in state.items():
            np.testing.assert_allclose(trained.array(key), value.numpy(), rtol=1e-5, atol=1e-6)
            if key not in ("depthwise.bias", "linear.bias"):  # the norms after them take any bias away
                assert not np.array_equal(trained.array(key), graph.array(key)), f"{key} did not change"
        x = batches[0].numpy()
        assert relative(run(original.eval(), x), run_reference(trained.model, {"x": x})[0]) < PARITY
        assert relative(run(module.eval(), x), run_reference(trained.model, {"x": x})[0]) < PARITY

    def test_a_new_module_is_in_inference_mode(self) -> None:
        graph = zoo.graph("resnet18", keep_norms=True)
        module = lower(graph)
        run(module, zoo.example("resnet18"))
        assert from_torch(graph, module).model == graph.model

    def test_dropout_drops_in_training_only(self) -> None:
        node = helper.make_node("Dropout", ["x", "ratio"], ["y"])
        x = np.ones((100, 100), np.float32)
        module = lower(Graph(build([node], {"x": x}, {"ratio": np.float32(0.25)}, ["y"], 13)))
        np.testing.assert_array_equal(run(module, x), x)
        dropped = run(module.train(), x)
        assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
        assert abs((dropped == 0).mean() - 0.25) < 0.03

    def test_a_norm_in_training_mode_of_its_own_ignores_the_modules(self) -> None:
        rng = np.random.default_rng(0)
        weights = {name: np.abs(some((3,), rng)) for name in "sbmv"}
        node = helper.make_node("BatchNormalization", ["x", *weights], ["y", "", ""], training_mode=1)
        x = some((4, 3, 5), rng)
        model = build([node], {"x": x}, weights, ["y"], 15)
        model.graph.node[0].output[:] = ["y", "rm", "rv"]  # onnxruntime wants them named
        graph = Graph(model)
        for module in (lower(graph), lower(graph).train()):
            np.testing.assert_allclose(run(module, x), run_reference(model, {"x": x})[0], rtol=1e-4, atol=1e-5)
            assert from_torch(graph, module).model == model

    def test_statistics_that_layers_share_are_left_alone(self) -> None:
        rng = np.random.default_rng(0)
        weights = {name: np.abs(some((3,), rng)) for name in "sbmvw"}
        nodes = [
            helper.make_node("Identity", ["m"], ["m2"]),
            helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["h"]),
            helper.make_node("BatchNormalization", ["h", "s", "b", "m2", "w"], ["y"]),
        ]
        x = some((4, 3, 5), rng)
        graph = Graph(build(nodes, {"x": x}, weights, ["y"], 15))
        module = lower(graph)
        inference = run(module, x)
        np.testing.assert_array_equal(run(module.train(), x), inference)
        assert from_torch(graph, module).model == graph.model

    def test_statistics_under_another_name_are_updated_and_written_back(self) -> None:
        rng = np.random.default_rng(0)
        weights = {name: np.abs(some((3,), rng)) for name in "sbmv"}
        nodes = [
            helper.make_node("Identity", ["m"], ["m2"]),
            helper.make_node("BatchNormalization", ["x", "s", "b", "m2", "v"], ["y"], momentum=0.75),
        ]
        x = some((4, 3, 5), rng)
        graph = Graph(build(nodes, {"x": x}, weights, ["y"], 15))
        module = lower(graph).train()
        run(module, x)
        expected = 0.75 * weights["m"] + 0.25 * x.mean((0, 2))
        np.testing.assert_allclose(from_torch(graph, module).array("m"), expected, rtol=1e-5)

    def test_copies_and_pickles_behave_alike(self) -> None:
        torch.manual_seed(0)
        x = torch.randn(4, 3, 6, 6)
        graph = Graph(exported(WithNorms().eval(), x))
        module = lower(graph)
        stream = io.BytesIO()
        torch.save(module, stream)
        stream.seek(0)
        for other in (copy.deepcopy(module), torch.load(stream, weights_only=False)):
            np.testing.assert_array_equal(run(other, x.numpy()), run(module, x.numpy()))
            np.testing.assert_array_equal(run(other.train(), x.numpy()), run(copy.deepcopy(module).train(), x.numpy()))
            back = from_torch(graph, other)
            assert not np.array_equal(back.array("norm.running_mean"), graph.array("norm.running_mean"))

    def test_helpers_of_ours_survive_pickling(self) -> None:
        x = some((2, 3, 7, 5), np.random.default_rng(0))
        nodes = [
            helper.make_node("MaxPool", ["x"], ["h"], kernel_shape=[3, 3], pads=[0, 1, 2, 1], strides=[2, 2]),
            helper.make_node("Resize", ["h", "", "s"], ["y"], mode="nearest"),
        ]
        model = build(nodes, {"x": x}, {"s": np.array([1, 1, 1.7, 1.7], np.float32)}, ["y"], 13, "all")
        stream = io.BytesIO()
        torch.save(lower(Graph(model)), stream)
        stream.seek(0)
        module = torch.load(stream, weights_only=False)
        for height in (7, 9, 12):
            other = some((1, 3, height, 6), np.random.default_rng(1))
            np.testing.assert_allclose(run(module, other), run_reference(model, {"x": other})[0], rtol=1e-6)


class TestFusion:
    """What is fused or overwritten must not be read by anybody else."""

    STEPS: tuple[list[tuple[str, list[str]]], ...] = (
        [("Relu", ["c"]), ("Add", ["0", "c"])],
        [("Relu", ["c"]), ("Clip", ["0", "", "one"]), ("Add", ["1", "0"])],
        [("Sigmoid", ["c"]), ("Mul", ["c", "0"]), ("Add", ["1", "0"])],
        [("Sigmoid", ["c"]), ("Mul", ["c", "0"])],
        [("Sigmoid", ["c"]), ("Mul", ["0", "x"])],
        [("Add", ["c", "c"]), ("Relu", ["0"]), ("Mul", ["1", "1"])],
        [("Dropout", ["c"]), ("Relu", ["0"]), ("Add", ["1", "c"])],
    )

    @pytest.mark.parametrize("steps", STEPS, ids=lambda steps: "-".join(f"{op}({','.join(i)})" for op, i in steps))
    def test_keeps_the_function_and_its_gradient(self, steps: list[tuple[str, list[str]]]) -> None:
        rng = np.random.default_rng(0)
        x = some((2, 3, 4, 4), rng)
        weights = {"w": some((3, 3, 1, 1), rng), "one": np.float32(0.5)}
        nodes = [helper.make_node(op, inputs, [str(i)]) for i, (op, inputs) in enumerate(steps)]
        nodes.insert(0, helper.make_node("Conv", ["x", "w"], ["c"]))
        model = build(nodes, {"x": x}, weights, [str(len(steps) - 1)], 13)
        module = lower(Graph(model))
        np.testing.assert_allclose(run(module, x), run_reference(model, {"x": x})[0], rtol=1e-5, atol=1e-6)
        (parameter,) = module.double().parameters()
        inputs = torch.from_numpy(x).double()
        module(inputs).sum().backward()
        step = torch.full_like(parameter, 1e-6)
        with torch.no_grad():
            above, below = (parameter.add_(s) is parameter and module(inputs).sum() for s in (step, -2 * step))
        assert parameter.grad is not None
        assert float((above - below) / 2e-6) == pytest.approx(float(parameter.grad.sum()), rel=1e-4)


class TestWeights:
    def test_a_shared_initializer_is_one_parameter(self) -> None:
        rng = np.random.default_rng(0)
        nodes = [
            helper.make_node("Identity", ["w"], ["again"]),
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("MatMul", ["h", "again"], ["y"]),
        ]
        x = some((4, 3), rng)
        graph = Graph(build(nodes, {"x": x}, {"w": some((3, 3), rng)}, ["y"], 17))
        module = lower(graph)
        (parameter,) = module.parameters()
        module(torch.from_numpy(x)).sum().backward()
        with torch.no_grad():
            parameter.copy_(torch.eye(3))
        np.testing.assert_array_equal(run_reference(from_torch(graph, module).model, {"x": x})[0], x)

    def test_weights_in_constant_nodes_are_trained_and_written_back(self) -> None:
        rng = np.random.default_rng(0)
        nodes = [
            helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(some((3, 2), rng), "inner")),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ]
        graph = Graph(build(nodes, {"x": some((4, 3), rng)}, {}, ["y"], 17))
        module = lower(graph)
        (parameter,) = module.parameters()
        with torch.no_grad():
            parameter.zero_()
        back = from_torch(graph, module)
        np.testing.assert_array_equal(numpy_helper.to_array(back.model.graph.node[0].attribute[0].t), np.zeros((3, 2)))

    def test_what_holds_nothing_keeps_its_other_sizes(self) -> None:
        """As exporters slice a mask of windows where there is nothing to shift."""
        rng = np.random.default_rng(0)
        weights = {"k": ints(*range(12)), "to": ints(3, 2, 2), "start": ints(0), "end": ints(0), "axes": ints(0)}
        nodes = [
            helper.make_node("Reshape", ["k", "to"], ["square"]),
            helper.make_node("Slice", ["square", "start", "end", "axes"], ["none"]),
            helper.make_node("Concat", ["none", "square"], ["whole"], axis=0),
            helper.make_node("Cast", ["whole"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["x", "real"], ["y"]),
        ]
        x = some((3, 2, 2), rng)
        model = build(nodes, {"x": x}, weights, ["y"], 17)
        made = lower(Graph(model))(torch.from_numpy(x))
        assert np.array_equal(made.numpy(), run_reference(model, {"x": x})[0])

    def test_single_numbers_bounds_and_the_preparation_of_the_input_are_not_trained(self) -> None:
        rng = np.random.default_rng(0)
        weights = {
            "mean": some((3, 1, 1), rng), "scale": np.float32(0.5), "one": np.array([2], np.float32),
            "low": np.float32(-1), "high": np.float32(1), "pad": ints(0, 0, 1, 1, 0, 0, 1, 1), "fill": np.float32(3),
            "gain": some((3, 1, 1), rng), "slope": np.array([0.1], np.float32), "filter": some((3, 3, 1, 1), rng),
        }  # fmt: skip
        steps = [
            ("Sub", ["x", "mean"]), ("Div", ["0", "one"]), ("Pad", ["1", "pad", "fill"]), ("Conv", ["2", "filter"]),
            ("Mul", ["3", "scale"]), ("Clip", ["4", "low", "high"]), ("PRelu", ["5", "slope"]), ("Mul", ["6", "gain"]),
        ]  # fmt: skip
        nodes = [helper.make_node(op, inputs, [str(i)]) for i, (op, inputs) in enumerate(steps)]
        x = some((2, 3, 4, 4), rng)
        model = build(nodes, {"x": x}, weights, ["7"], 16)
        module = lower(Graph(model))
        trained = {names_of(module).initializers[key] for key, _ in module.named_parameters()}
        assert trained == {"gain", "slope", "filter"}
        np.testing.assert_allclose(run(module, x), run_reference(model, {"x": x})[0], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    def test_other_floating_point_types_return_every_bit(self, dtype: Any) -> None:
        rng = np.random.default_rng(0)
        weights = {"w": rng.standard_normal((3, 2)).astype(dtype), "b": rng.standard_normal(2).astype(dtype)}
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
        x = rng.standard_normal((4, 3)).astype(dtype)
        model = build(nodes, {"x": x}, weights, ["y"], 17)
        graph = Graph(model)
        module = lower(graph)
        assert run(module, x).dtype == dtype
        assert relative(run(module, x), run_reference(model, {"x": x})[0]) < 1e-3
        assert from_torch(graph, module).model == model

    def test_bfloat16_weights_return_every_bit(self) -> None:
        bits = np.arange(-32768, 32767, 7, dtype=np.int16)[:9000].reshape(3000, 3)
        bfloat16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
        model = small_model(
            w=bits[:3, :2].copy().view(bfloat16), b=bits[3, :3].view(bfloat16), v=np.ones((2, 3), bfloat16)
        )
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
        graph = Graph(model)
        module = lower(graph)
        assert next(module.parameters()).dtype == torch.bfloat16
        assert from_torch(graph, module).model == model

    def test_weights_are_not_the_files_memory(self) -> None:
        graph = Graph(small_model())
        before = graph.model.SerializeToString()
        module = lower(graph)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(7)
        assert graph.model.SerializeToString() == before
        assert from_torch(graph, module).array("w").max() == 7

    def test_other_modules_are_not_written_back(self) -> None:
        graph = Graph(small_model())
        with pytest.raises(UsageError, match="not a lowered model"):
            from_torch(graph, nn.Linear(2, 2))
        wider = {"w": np.ones((9, 2), np.float32), "b": np.ones(9, np.float32), "v": np.ones((2, 9), np.float32)}
        other = lower(Graph(small_model(**wider)))
        with pytest.raises(UsageError, match=r"'w' has shape \(3, 2\), the module's \(9, 2\)"):
            from_torch(graph, other)


class TestNames:
    NASTY = (
        *("a.b/c:0", "a_b_c_0", "a.b.c.0", "a_b_c_0_1", "a__b", "1", "w_1", "", " ", "_", "ü", "ň"),
        *("class", "None", "self", "x", "torch", "forward", "training", "T_destination", "initializer_names"),
        *("constant_0", "batchnormalization_0"),
    )

    def test_are_one_to_one_and_legal(self) -> None:
        names = Names.of(self.NASTY)
        assert len(set(names.attributes.values())) == len(self.NASTY)
        assert [names.initializers[names.attributes[name]] for name in self.NASTY] == list(self.NASTY)
        module = nn.Module()
        for _, attribute in names:
            assert attribute.isidentifier()
            module.register_parameter(attribute, nn.Parameter(torch.zeros(1)))

    def test_of_weights_may_be_anything(self) -> None:
        names = [name for name in self.NASTY if name]
        nodes = [helper.make_node("Add", ["x" if i == 0 else f"h{i - 1}", name if name != "x" else "x "], [f"h{i}"])
                 for i, name in enumerate(names)]  # fmt: skip
        weights = {name if name != "x" else "x ": np.full(5, i, np.float32) for i, name in enumerate(names)}
        x = np.zeros((2, 5), np.float32)
        graph = Graph(build(nodes, {"x": x}, weights, [f"h{len(names) - 1}"], 17))
        module = lower(graph)
        assert run(module, x)[0, 0] == sum(range(len(names)))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.neg_()
        back = from_torch(graph, module)
        for i, name in enumerate(weights):
            assert back.array(name)[0] == -i, name

    def test_read_like_the_originals(self) -> None:
        assert Names.of(["layer1.0.conv1.weight"]).attributes["layer1.0.conv1.weight"] == "layer1_0_conv1_weight"


class TestRefusals:
    def test_control_flow(self) -> None:
        inner = helper.make_node("RandomNormalLike", ["x"], ["out"])
        branch = helper.make_graph([inner], "b", [], [onnx.ValueInfoProto(name="out")])
        node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
        model = build([node], {"x": np.ones(2, np.float32), "c": np.array(True)}, {}, ["y"], 17)
        with pytest.raises(UnsupportedOp, match=r"If 'choice' \(opset 17\): no lowering is known"):
            lower(Graph(model))

    def test_other_domains(self) -> None:
        model = small_model()
        model.graph.node[1].domain = "com.acme"
        model.opset_import.append(helper.make_opsetid("com.acme", 1))
        with pytest.raises(UnsupportedOp, match=r"com\.acme\.Relu 'r'"):
            lower(Graph(model))

    @pytest.mark.parametrize("opset", [6, 99])
    def test_opsets_that_were_not_looked_at(self, opset: int) -> None:
        model = small_model()
        model.opset_import[0].version = opset
        with pytest.raises(UnsupportedOp, match=f"opset {opset}; the torch backend knows 7 to"):
            lower(Graph(model))
