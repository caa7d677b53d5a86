"""What exporters split is one call again, and what only looks like it is left alone; either computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch.nn import functional as F

from conet_onnx.graph import Graph
from conet_onnx.torch_backend import from_torch, lower
from tests.onnx_parity import Array, assert_same, build, run_lowered, run_reference, some

NODE = helper.make_node
ROOT = np.float32(np.sqrt(2))


def single(value: Any) -> Array:
    return np.array(value, np.float32)


def compare(
    nodes: Sequence[onnx.NodeProto], inputs: dict[str, Array], weights: dict[str, Array], *, fused: bool, into: Any
) -> Graph:
    """Lower, look whether a call is there, and compare with onnxruntime."""
    graph = Graph(onnx.shape_inference.infer_shapes(build(nodes, inputs, weights, ["y"], 17, "batch")))
    targets = [node.target for node in lower(graph).graph.nodes]
    assert (into in targets) == fused, targets
    assert_same(run_lowered(graph.model, inputs), run_reference(graph.model, inputs))
    return graph


def gelu(*, divisor: Any = ROOT, shift: Any = 1, half: Any = 0.5, last: bool = True, flip: bool = False) -> Any:
    """x · (1 + erf(x / divisor)) · half, with the half at the end or at x."""
    x = ["x", "half"] if not last else None
    pair = ["g", "s"] if not last else ["x", "s"]
    nodes = [
        NODE("Div", ["x", "divisor"], ["d"]),
        NODE("Erf", ["d"], ["e"]),
        NODE("Add", ["one", "e"] if flip else ["e", "one"], ["s"]),
        *([NODE("Mul", x, ["g"])] if x else []),
        NODE("Mul", pair[::-1] if flip else pair, ["p" if last else "y"]),
        *([NODE("Mul", ["half", "p"] if flip else ["p", "half"], ["y"])] if last else []),
    ]
    return nodes, {"divisor": single(divisor), "one": single(shift), "half": single(half)}


class TestGelu:
    @pytest.mark.parametrize("last", [True, False])
    @pytest.mark.parametrize("flip", [True, False])
    def test_by_its_error_function(self, last: bool, flip: bool) -> None:
        nodes, weights = gelu(last=last, flip=flip)
        compare(nodes, {"x": some((4, 6), np.random.default_rng(0))}, weights, fused=True, into=F.gelu)

    @pytest.mark.parametrize("wrong", [{"divisor": 1.5}, {"shift": 2}, {"half": 0.25}])
    @pytest.mark.parametrize("last", [True, False])
    def test_other_numbers(self, wrong: dict[str, float], last: bool) -> None:
        nodes, weights = gelu(last=last, **wrong)
        compare(nodes, {"x": some((4, 6), np.random.default_rng(0))}, weights, fused=False, into=F.gelu)

    def test_another_factor_than_its_argument(self) -> None:
        nodes, weights = gelu()
        nodes[3].input[0] = "z"
        rng = np.random.default_rng(0)
        compare(nodes, {"x": some((4, 6), rng), "z": some((4, 6), rng)}, weights, fused=False, into=F.gelu)

    def test_a_part_that_is_read_elsewhere(self) -> None:
        nodes, weights = gelu()
        nodes[-1].output[0] = "g"
        nodes.append(NODE("Add", ["g", "e"], ["y"]))
        compare(nodes, {"x": some((4, 6), np.random.default_rng(0))}, weights, fused=False, into=F.gelu)


class TestBias:
    @pytest.mark.parametrize("turned", [True, False])
    @pytest.mark.parametrize("flip", [True, False])
    @pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (2, 3, 5, 6)])
    def test_after_a_matrix_of_weights(self, turned: bool, flip: bool, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        weights = {"w": some((7, 6) if turned else (6, 7), rng), "b": some((7,), rng)}
        nodes = [
            *([NODE("Transpose", ["w"], ["t"], perm=[1, 0])] if turned else []),
            NODE("MatMul", ["x", "t" if turned else "w"], ["m"]),
            NODE("Add", ["b", "m"] if flip else ["m", "b"], ["y"]),
        ]
        graph = compare(nodes, {"x": some(shape, rng)}, weights, fused=True, into=F.linear)
        module = lower(graph)
        x = torch.from_numpy(some(shape, rng))
        module(x).square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(2)
        assert np.array_equal(from_torch(graph, module).array("w"), 2 * weights["w"])

    @pytest.mark.parametrize("bias", [(1,), (5, 7), (1, 7)])
    def test_what_is_added_otherwise(self, bias: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        nodes = [NODE("MatMul", ["x", "w"], ["m"]), NODE("Add", ["m", "b"], ["y"])]
        weights = {"w": some((6, 7), rng), "b": some(bias, rng)}
        compare(nodes, {"x": some((5, 6), rng)}, weights, fused=False, into=F.linear)

    def test_a_square_matrix_behind_a_transpose_of_no_axes(self) -> None:
        """A permutation that leaves the axes is none; the bias would fit either way."""
        rng = np.random.default_rng(0)
        nodes = [
            NODE("Transpose", ["w"], ["t"], perm=[0, 1]),
            NODE("MatMul", ["x", "t"], ["m"]),
            NODE("Add", ["m", "b"], ["y"]),
        ]
        weights = {"w": some((6, 6), rng), "b": some((6,), rng)}
        graph = Graph(build(nodes, {"x": some((5, 6), rng)}, weights, ["y"], 17, "batch"))
        x = {"x": some((5, 6), rng)}
        assert_same(run_lowered(graph.model, x), run_reference(graph.model, x))

    def test_a_weight_on_the_left(self) -> None:
        rng = np.random.default_rng(0)
        nodes = [NODE("MatMul", ["w", "x"], ["m"]), NODE("Add", ["m", "b"], ["y"])]
        weights = {"w": some((7, 6), rng), "b": some((5,), rng)}
        compare(nodes, {"x": some((6, 5), rng)}, weights, fused=False, into=F.linear)


def attention(
    *, scales: tuple[float, float, float, float] = (1, 1, 1, 1), axis: int = -1, perm: Sequence[int] = (0, 1, 3, 2)
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """softmax(((q·a) @ (kᵀ·b, or (k·c)ᵀ)) / d) @ v."""
    nodes = [
        NODE("Mul", ["q", "a"], ["qa"]),
        NODE("Mul", ["k", "c"], ["kc"]),
        NODE("Transpose", ["kc"], ["t"], perm=perm),
        NODE("Mul", ["b", "t"], ["tb"]),
        NODE("MatMul", ["qa", "tb"], ["m"]),
        NODE("Div", ["m", "d"], ["s"]),
        NODE("Softmax", ["s"], ["p"], axis=axis),
        NODE("MatMul", ["p", "v"], ["y"]),
    ]
    return nodes, {name: single(value) for name, value in zip("abcd", scales, strict=True)}


def heads(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {"q": some(q, rng), "k": some(k, rng), "v": some(v, rng)}


SDPA = F.scaled_dot_product_attention


class TestAttention:
    @pytest.mark.parametrize("scales", [(1, 1, 1, 1), (0.5, 1, 1, 1), (0.5, 0.25, 3, 2), (1, 1, 1, 8), (-1, 1, 1, 1)])
    @pytest.mark.parametrize("axis", [-1, 3])
    def test_whatever_it_is_scaled_by(self, scales: tuple[float, float, float, float], axis: int) -> None:
        nodes, weights = attention(scales=scales, axis=axis)
        inputs = heads((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4))
        compare(nodes, inputs, weights, fused=True, into=SDPA)

    def test_a_scale_that_is_learned_or_has_an_axis_stays(self) -> None:
        nodes, weights = attention()
        weights["a"] = some((6, 1, 1), np.random.default_rng(1))
        graph = compare(nodes, heads((2, 6, 5, 8), (2, 6, 7, 8), (2, 6, 7, 4)), weights, fused=True, into=SDPA)
        assert len(list(lower(graph).parameters())) == 1

    def test_a_mask(self) -> None:
        nodes, weights = attention()
        nodes[6].input[0] = "masked"
        nodes.insert(6, NODE("Add", ["s", "mask"], ["masked"]))
        weights["mask"] = np.where(np.tri(5, 7), 0, -1e9).astype(np.float32)
        compare(nodes, heads((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)), weights, fused=False, into=SDPA)

    def test_over_another_axis(self) -> None:
        nodes, weights = attention(axis=2)
        compare(nodes, heads((2, 3, 5, 8), (2, 3, 5, 8), (2, 3, 5, 4)), weights, fused=False, into=SDPA)

    def test_heads_that_are_shared(self) -> None:
        nodes, weights = attention()
        compare(nodes, heads((2, 3, 5, 8), (2, 1, 7, 8), (2, 1, 7, 4)), weights, fused=False, into=SDPA)

    def test_another_permutation(self) -> None:
        nodes, weights = attention(perm=(0, 2, 3, 1))
        compare(nodes, heads((2, 3, 5, 8), (2, 7, 3, 8), (2, 3, 7, 4)), weights, fused=False, into=SDPA)

    def test_scores_that_are_read_elsewhere(self) -> None:
        nodes, weights = attention()
        nodes[-1].output[0] = "o"
        nodes += [NODE("ReduceMax", ["p"], ["top"], axes=[3], keepdims=1), NODE("Add", ["o", "top"], ["y"])]
        compare(nodes, heads((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)), weights, fused=False, into=SDPA)


def test_gates() -> None:
    rng = np.random.default_rng(0)
    for op, into in (("Sigmoid", F.silu), ("HardSigmoid", F.hardswish)):
        attributes = {"alpha": 1 / 6} if op == "HardSigmoid" else {}
        nodes = [NODE(op, ["x"], ["g"], **attributes), NODE("Mul", ["g", "x"], ["y"])]
        compare(nodes, {"x": some((4, 6), rng)}, {}, fused=True, into=into)
