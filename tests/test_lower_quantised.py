"""Lowered quantised operators compute what onnxruntime computes; their weights are trained, then stored in steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from test_quantised_models import NETWORKS, by_onnxruntime

from conet_onnx.errors import UnsupportedOp
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import from_torch, lower
from conet_onnx.torch_backend.lower import names_of
from conet_onnx.torch_backend.ops.quantise import from_steps, to_steps
from conet_onnx.torch_backend.stepped import STEPS, stepped_weights
from tests.onnx_parity import Array, Case, assert_same, build, check, run_lowered, run_reference, some

RNG = np.random.default_rng(11)
X = (3 * RNG.standard_normal((2, 4, 5))).astype(np.float32)
ROW = np.array([0.02, 0.5, 0.013, 0.1], np.float32)


def bytes_(*shape: int, dtype: Any = np.int8) -> Array:
    low, high = STEPS[np.dtype(dtype)]
    return RNG.integers(max(low, -(2**15)), min(high, 2**15), shape).astype(dtype)


U8, I8 = np.uint8, np.int8
CASES = [  # weights of seven bits: with eight, onnxruntime's sums of 16 bits may overflow on some processors
    *(Case("QuantizeLinear", opset, [X], [np.float32(0.05), zero]) for opset in (10, 13, 19, 21, 23, 25)
      for zero in (U8(100), I8(-3))),
    Case("QuantizeLinear", 13, [X], [np.float32(0.05)]),
    Case("QuantizeLinear", 13, [X * 100], [np.float32(0.05), U8(7)]),
    Case("QuantizeLinear", 13, [np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 1e30, -np.inf, np.inf], np.float32)],
         [np.float32(1), I8(0)]),
    *(Case("QuantizeLinear", 13, [X], [ROW if axis != 0 else ROW[:2], np.zeros(4 if axis != 0 else 2, I8)],
           {"axis": axis}) for axis in (1, -2, 0)),
    Case("QuantizeLinear", 21, [X], [np.float32(0.05)], {"output_dtype": TensorProto.INT16}),
    Case("QuantizeLinear", 21, [X], [np.abs(some((2, 2, 5), RNG)) + 0.01, np.zeros((2, 2, 5), I8)],
         {"axis": 1, "block_size": 2}),
    *(Case("DequantizeLinear", opset, [bytes_(2, 4, 5, dtype=dtype)], [np.float32(0.05), dtype(3)])
      for opset in (10, 13, 21) for dtype in (U8, I8)),
    Case("DequantizeLinear", 10, [bytes_(2, 4, 5, dtype=np.int32)], [np.float32(0.05)]),
    Case("DequantizeLinear", 21, [bytes_(2, 4, 5, dtype=np.int16)], [np.float32(0.05), np.int16(-9)]),
    Case("DequantizeLinear", 13, [bytes_(2, 4, 5)], [ROW, bytes_(4)], {"axis": 1}),
    Case("DequantizeLinear", 21, [bytes_(2, 4, 5)], [np.abs(some((2, 2, 5), RNG)), bytes_(2, 2, 5)],
         {"axis": 1, "block_size": 2}),
    Case("DynamicQuantizeLinear", 11, [X], outputs=3),
    Case("DynamicQuantizeLinear", 11, [np.abs(X)], outputs=3),
    Case("DynamicQuantizeLinear", 11, [-np.abs(X)], outputs=3),
    Case("DynamicQuantizeLinear", 11, [0 * X], outputs=3),
    Case("ConvInteger", 10, [bytes_(2, 4, 7, 6, dtype=U8)], [bytes_(6, 2, 3, 3, dtype=U8), U8(120), U8(9)],
         {"group": 2, "pads": [1, 0, 1, 2], "strides": [2, 1]}),
    Case("ConvInteger", 10, [bytes_(2, 4, 7, 6, dtype=U8)], [bytes_(6, 4, 3, 3, dtype=U8)]),
    Case("MatMulInteger", 10, [bytes_(2, 3, 4, dtype=U8)], [bytes_(4, 5), U8(100), bytes_(5)]),
    Case("MatMulInteger", 10, [bytes_(3, 4, dtype=U8), bytes_(4, 5, dtype=U8)]),
    *(Case("QLinearConv", 10, [bytes_(2, 4, 7, 6, dtype=U8)],
           [np.float32(0.02), U8(120), bytes_(6, 2, 3, 3) // 4, w_scale, zero, np.float32(0.3), U8(99), *bias],
           {"group": 2, "pads": [1, 0, 1, 2]})
      for w_scale, zero in ((np.float32(0.03), I8(4)), (np.array([0.01, 0.02, 0.005, 0.1, 0.03, 1], np.float32),
                                                        np.zeros(6, I8)))
      for bias in ((), (bytes_(6, dtype=np.int32),))),
    *(Case("QLinearMatMul", 10, [bytes_(2, 3, 4, dtype=U8)],
           [np.float32(0.02), U8(120), bytes_(4, 5, dtype=U8), scale, zero, np.float32(0.3), U8(99)])
      for scale, zero in ((np.float32(0.03), U8(4)), (np.array([0.01, 0.02, 0.005, 0.1, 0.03], np.float32),
                                                      bytes_(5, dtype=U8)))),
]  # fmt: skip


@pytest.mark.parametrize("symbolic", ["none", "all"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lowered_node_computes_what_onnxruntime_computes(case: Case, symbolic: str) -> None:
    check(case, symbolic)


def test_zero_points_of_rows() -> None:
    """onnxruntime has no kernel for them."""
    a, b, rows, columns = bytes_(3, 4, dtype=U8), bytes_(4, 5), bytes_(3, dtype=U8), bytes_(5)
    node = helper.make_node("MatMulInteger", ["x", "b", "az", "bz"], ["y"])
    model = build([node], {"x": a}, {"b": b, "az": rows, "bz": columns}, ["y"], 10)
    wanted = (a.astype(int) - rows[:, None]) @ (b.astype(int) - columns)
    np.testing.assert_array_equal(run_lowered(model, {"x": a})[0], wanted)
    weights = {"as": np.float32(0.5), "az": rows, "b": b, "bs": np.float32(0.25), "bz": columns}
    weights |= {"ys": np.float32(64), "yz": U8(100)}
    node = helper.make_node("QLinearMatMul", ["x", *weights], ["y"])
    (got,) = run_lowered(build([node], {"x": a}, weights, ["y"], 10), {"x": a})
    np.testing.assert_array_equal(got, np.clip(np.round(wanted / 512) + 100, 0, 255))


def pair(x: Array, w: Array, scale: Array, zero: Array | None = None, axis: int = 0) -> onnx.ModelProto:
    """x [batch, n] through quantisation and a product with a quantised weight [m, n]."""
    weights = {"s": np.float32(0.05), "z": U8(128), "w": w, "ws": scale, **({} if zero is None else {"wz": zero})}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", *(["wz"] if zero is not None else [])], ["v"], axis=axis),
        helper.make_node("Gemm", ["d", "v"], ["y"], transB=1),
    ]
    return build(nodes, {"x": x}, weights, ["y"], 17, "batch")


class TestTraining:
    def test_gradients_pass_rounding_and_stop_where_it_saturates(self) -> None:
        x = torch.tensor([-0.4, 0.2, 0.74, 30.0, -30.0], requires_grad=True)
        scale, zero = torch.tensor(0.1), torch.tensor(3, dtype=torch.int8)
        steps = to_steps(x, scale, zero, -128, 127)
        assert steps.tolist() == [-1, 5, 10, 127, -128]
        y = from_steps(steps, scale, zero)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient, torch.tensor([1.0, 1, 1, 0, 0]))

    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
    def test_nothing_trained_nothing_changed(self, dtype: Any) -> None:
        """To the byte, though scales are no powers of two and a bias has more digits than a float."""
        w = RNG.integers(-(2**30), 2**30, (3, 4)).astype(dtype)
        zero = None if dtype == np.int32 else np.array([3, 0, 7], dtype)
        graph = Graph(pair(some((2, 4), RNG), w, ROW[:3], zero))
        assert list(stepped_weights(graph)) == ["w"]
        back = from_torch(graph, lower(graph))
        assert back.array("w").tobytes() == w.tobytes()

    @pytest.mark.parametrize("axis", [0, 1])
    def test_weights_move_by_whole_steps(self, axis: int) -> None:
        w, scale = bytes_(3, 4), ROW[:3] if axis == 0 else ROW
        zero = bytes_(len(scale))
        x = some((2, 4), RNG)
        graph = Graph(pair(x, w, scale, zero, axis))
        module = lower(graph)
        (attribute,) = (a for n, a in names_of(module) if n == "w")
        parameter = dict(module.named_parameters())[attribute]
        wide = scale[:, None] if axis == 0 else scale
        origin = (zero[:, None] if axis == 0 else zero).astype(np.float32)
        np.testing.assert_allclose(parameter.detach().numpy(), (w - origin) * wide, rtol=1e-6)
        with torch.no_grad():  # by three steps and a bit, by less than half a step, and far beyond the range
            parameter[0] += torch.from_numpy(np.broadcast_to(3.3 * wide, w.shape)[0].copy())
            parameter[1] += torch.from_numpy(np.broadcast_to(0.4 * wide, w.shape)[1].copy())
            parameter[2] = 1e6
        back = from_torch(graph, module)
        expected = np.stack([np.minimum(w[0].astype(int) + 3, 127), w[1], np.full(4, 127)])
        np.testing.assert_array_equal(back.array("w"), expected)
        given = torch.from_numpy(x)
        with torch.no_grad():  # what was trained is what is stored
            torch.testing.assert_close(module(given), lower(back)(given))

    def test_what_is_trained_learns(self) -> None:
        """A quantised layer fitted to another: the gradient is that of the real numbers."""
        torch.manual_seed(0)
        x = torch.randn(256, 4)
        target = x @ torch.randn(4, 3)
        graph = Graph(pair(x.numpy(), bytes_(3, 4) // 8, np.float32([0.02, 0.02, 0.02])))
        module = lower(graph)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        losses = []
        for _ in range(100):
            loss = (module(x) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.01 * losses[0]

    def test_weights_that_stand_for_several_things_are_not_trained(self) -> None:
        """A second scale, a reader of the steps themselves, an output."""
        model = pair(some((2, 4), RNG), bytes_(3, 4), ROW[:3])
        assert set(stepped_weights(Graph(model))) == {"w"}
        again = onnx.helper.make_node("DequantizeLinear", ["w", "s"], ["other"])
        for change in (
            lambda m: m.graph.node.append(again),
            lambda m: m.graph.node.append(helper.make_node("Cast", ["w"], ["other"], to=TensorProto.FLOAT)),
            lambda m: m.graph.output.append(helper.make_tensor_value_info("w", TensorProto.INT8, [3, 4])),
        ):
            changed = onnx.ModelProto.FromString(model.SerializeToString())
            change(changed)
            assert stepped_weights(Graph(changed)) == {}

    def test_scales_and_zero_points_are_not_trained(self) -> None:
        module = lower(Graph(pair(some((2, 4), RNG), bytes_(3, 4), ROW[:3], bytes_(3))))
        attributes = dict(names_of(module))
        assert {name for name, _ in module.named_parameters()} == {attributes["w"]}


@pytest.mark.parametrize("operators", [False, True])
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_models_that_onnxruntime_quantises(kind: str, channels: bool, unsigned: bool, operators: bool) -> None:
    model = by_onnxruntime(kind, channels=channels, unsigned=unsigned, operators=operators)
    graph = Graph(model)
    x = some((2, 3, 6, 6) if kind == "convolutions" else (2, 6), np.random.default_rng(5))
    if any(node.domain for node in graph.nodes):
        with pytest.raises(UnsupportedOp, match=r"QGemm|QLinearGlobalAveragePool"):
            lower(graph)
        return
    assert_same(run_lowered(model, {"x": x}), run_reference(model, {"x": x}))
    module = lower(graph)
    trained = {name for name, attribute in names_of(module) if attribute in dict(module.named_parameters())}
    layers = [w for w in graph.weights.values() if len(w.dims) > 1]
    assert trained >= {w.name for w in layers}
    module(torch.from_numpy(x)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


class TestBetween:
    """What stands between quantisation and its reverse."""

    def model(self, *between: onnx.NodeProto, output: str = "y") -> tuple[onnx.ModelProto, dict[str, Array]]:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            *between,
            helper.make_node("DequantizeLinear", ["m", "s", "z"], ["y"]),
        ]
        inputs = {"x": some((2, 4, 6, 6), np.random.default_rng(3))}
        return build(nodes, inputs, {"s": np.float32(0.05), "z": U8(100)}, [output], 17, "batch"), inputs

    @pytest.mark.parametrize(
        "between",
        [
            [helper.make_node("MaxPool", ["q"], ["m"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
            [helper.make_node("Transpose", ["q"], ["t"], perm=[0, 2, 3, 1]), helper.make_node("Relu", ["t"], ["m"])],
            [helper.make_node("Concat", ["q", "q"], ["m"], axis=1)],
            [helper.make_node("Identity", ["q"], ["i"]), helper.make_node("Flatten", ["i"], ["m"])],
        ],
        ids=lambda nodes: nodes[0].op_type,
    )
    def test_numbers_are_moved(self, between: list[onnx.NodeProto]) -> None:
        if between[-1].op_type == "Relu":  # onnxruntime has none of unsigned bytes
            between = between[:1]
            between[0].output[0] = "m"
        for output in ("y", "m"):
            model, inputs = self.model(*between, output=output)
            assert_same(run_lowered(model, inputs), run_reference(model, inputs))

    def test_arithmetic_is_refused(self) -> None:
        """Bytes are floats here: their sum would not overflow as it should."""
        model, _ = self.model(helper.make_node("Add", ["q", "q"], ["m"], name="sum"))
        with pytest.raises(UnsupportedOp, match=r"Add 'sum'.*arithmetic with quantised numbers"):
            lower(Graph(model))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"output_dtype": TensorProto.FLOAT8E4M3FN}, "steps of type float8"),
        ({"output_dtype": TensorProto.INT4}, "steps of type int4"),
        ({"precision": TensorProto.FLOAT16}, "a precision of its own"),
    ],
)
def test_what_is_not_known_is_refused(change: dict[str, int], why: str) -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], name="the_node", **change)
    with pytest.raises(UnsupportedOp, match=f"QuantizeLinear 'the_node' .*{why}"):
        lower(Graph(build([node], {"x": X}, {"s": np.float32(1)}, ["y"], 23)))
