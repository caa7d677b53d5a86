"""Control flow and sequences in torch: onnxruntime's numbers, and gradients through them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.errors import UnsupportedOp
from conet_onnx.graph import Graph
from conet_onnx.runtime import run
from conet_onnx.torch_backend.lower import from_torch, lower, names_of, untrained_of, untrained_weights_of

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
n = helper.make_node


def value(name: str, kind: int = FLOAT, shape: Sequence[Any] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Any], ranks: Mapping[str, int] = {"y": 2}) -> Graph:
    """The first node makes h of the input by a trained matrix; outputs of these ranks."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((4, 6)).astype(np.float32), **weights}
    graph = helper.make_graph(
        [n("MatMul", ["x", "w"], ["h"]), *nodes],
        "flow",
        [value("x", shape=["n", 4])],
        [value(name, shape=[None] * rank) for name, rank in ranks.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return Graph(made)


def agrees(graph: Graph, *inputs: np.ndarray) -> torch.fx.GraphModule:
    """The module computes what onnxruntime does; a copy through pickle too; and the weights come back."""
    module = lower(graph)
    for x in inputs:
        expected = run(graph, {"x": x}, provider="cpu", threads=1, optimise=False, exact=True)
        for some in (module, pickle.loads(pickle.dumps(module))):
            made = some(torch.from_numpy(x))
            for name, got in zip(expected, made if isinstance(made, tuple) else (made,), strict=True):
                assert got.detach().numpy().shape == expected[name].shape
                np.testing.assert_allclose(got.detach().numpy(), expected[name], rtol=1e-5, atol=1e-6)
    assert from_torch(graph, module).model.SerializeToString() == graph.model.SerializeToString()
    return module


def gradient(module: torch.fx.GraphModule, x: np.ndarray) -> torch.Tensor:
    """Of the trained matrix."""
    made = module(torch.from_numpy(x))
    (made if isinstance(made, torch.Tensor) else made[0]).square().sum().backward()
    found = dict(module.named_parameters())["w"].grad
    assert found is not None
    return found


X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)


def branching() -> Graph:
    """Twice the layer, or a product with the outer matrix and one of the branch's own."""
    own = numpy_helper.from_array(np.random.default_rng(2).standard_normal((6, 6)).astype(np.float32), "own")
    then = helper.make_graph([n("Add", ["h", "h"], ["then_y"])], "then", [], [value("then_y", shape=[None, None])])
    otherwise = helper.make_graph(
        [
            n("MatMul", ["x", "w"], ["again"]),
            n("MatMul", ["again", "own"], ["turned"]),
            n("Mul", ["turned", "scale"], ["else_y"]),
        ],
        "otherwise",
        [],
        [value("else_y", shape=[None, None])],
        [own],
    )
    nodes = [
        n("ReduceMean", ["x"], ["mean"], keepdims=0),
        n("Greater", ["mean", "zero"], ["positive"]),
        n("If", ["positive"], ["y"], then_branch=then, else_branch=otherwise),
    ]
    return model(nodes, {"zero": np.float32(0), "scale": np.float32(0.5)})


def test_either_branch_of_an_if() -> None:
    graph = branching()
    module = agrees(graph, abs(X), -abs(X), X[:1])
    assert [name for name, _ in module.named_parameters()] == ["w"]  # a branch's own stay as they are
    assert {name for name, _ in names_of(module)} <= {"w", "zero", "scale"}
    assert not untrained_of(module)
    assert untrained_weights_of(module) == {"own": "If 'y' holds it in a graph of its own, which is only read."}


@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_pass_an_if(sign: int) -> None:
    module = lower(branching())
    x = sign * abs(X)
    found = gradient(module, x)
    weight = dict(module.named_parameters())["w"].detach().clone().requires_grad_(True)
    h = torch.from_numpy(x) @ weight
    own = torch.from_numpy(np.random.default_rng(2).standard_normal((6, 6)).astype(np.float32))
    (2 * h if sign > 0 else 0.5 * h @ own).square().sum().backward()
    torch.testing.assert_close(found, weight.grad)


def looping(most: int | None, until: float | None = None) -> Graph:
    """h becomes tanh(h @ v) as often as is said, or while its sum is above a number; each turn's is kept."""
    body = helper.make_graph(
        [
            n("MatMul", ["state", "v"], ["product"]),
            n("Tanh", ["product"], ["next"]),
            n("ReduceSum", ["next"], ["total"], keepdims=0),
            *([n("Identity", ["go"], ["goes"])] if until is None else [n("Greater", ["total", "floor"], ["goes"])]),
            n("Cast", ["turn"], ["number"], to=FLOAT),
            n("Add", ["next", "number"], ["kept"]),
        ],
        "body",
        [value("turn", INT, []), value("go", BOOL, []), value("state", shape=["n", 6])],
        [value("goes", BOOL, []), value("next", shape=["n", 6]), value("kept", shape=["n", 6])],
    )
    v = (0.9 * np.eye(6) + 0.1).astype(np.float32)
    names = ["most" if most is not None else "", "yes" if until is not None else "", "h"]
    weights = {"v": v} | ({} if most is None else {"most": np.int64(most)})
    weights |= {} if until is None else {"floor": np.float32(until), "yes": np.array(True)}
    return model([n("Loop", names, ["y", "all"], body=body)], weights, {"y": 2, "all": 3})


@pytest.mark.parametrize(("most", "until"), [(1, None), (4, None), (10, 3.0), (None, 3.0)])
def test_turns_of_a_loop(most: int | None, until: float | None) -> None:
    module = agrees(looping(most, until), abs(X), X[:2])
    assert gradient(module, abs(X)).abs().max() > 0
    assert dict(module.named_parameters()).keys() == {"w", "v"}
    assert not untrained_weights_of(module)


@pytest.mark.parametrize("most", [1, 3])
def test_a_weight_that_only_a_body_reads_is_trained(most: int) -> None:
    graph = looping(most)
    module = lower(graph)
    gradient(module, X)
    parameters = dict(module.named_parameters())
    w, v = (parameters[name].detach().clone().requires_grad_(True) for name in ("w", "v"))
    state = torch.from_numpy(X) @ w
    for _ in range(most):
        state = torch.tanh(state @ v)
    state.square().sum().backward()
    torch.testing.assert_close(parameters["w"].grad, w.grad)
    torch.testing.assert_close(parameters["v"].grad, v.grad)
    with torch.no_grad():
        parameters["v"].mul_(0.5)
    trained = from_torch(graph, module)
    np.testing.assert_array_equal(trained.array("v"), graph.array("v") / 2)
    agrees(trained, X)


def test_what_sets_how_a_body_works_is_not_trained() -> None:
    body = helper.make_graph(
        [
            n("Clip", ["state", "low"], ["cut"]),
            n("Div", ["cut", "one"], ["even"]),
            n("Mul", ["even", "scales"], ["next"]),
            n("Identity", ["go"], ["goes"]),
        ],
        "body",
        [value("turn", INT, []), value("go", BOOL, []), value("state", shape=["n", 6])],
        [value("goes", BOOL, []), value("next", shape=["n", 6])],
    )
    weights = {
        "most": np.int64(2),
        "low": np.float32(-1),
        "one": np.full(1, 2, np.float32),
        "scales": np.linspace(0.5, 1, 6, dtype=np.float32),
    }
    module = agrees(model([n("Loop", ["most", "", "h"], ["y"], body=body)], weights), X)
    assert dict(module.named_parameters()).keys() == {"w", "scales"}


def test_a_loop_without_a_turn_keeps_its_state() -> None:
    body = helper.make_graph(
        [n("Relu", ["state"], ["next"]), n("Identity", ["go"], ["goes"])],
        "body",
        [value("turn", INT, []), value("go", BOOL, []), value("state", shape=["n", 6])],
        [value("goes", BOOL, []), value("next", shape=["n", 6])],
    )
    agrees(model([n("Loop", ["most", "", "h"], ["y"], body=body)], {"most": np.int64(0)}), X)


SEQUENCES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], int]] = {
    "one after the other": (
        [
            n("SequenceEmpty", [], ["s0"]),
            n("SequenceInsert", ["s0", "h"], ["s1"]),
            n("Tanh", ["h"], ["t"]),
            n("SequenceInsert", ["s1", "t", "first"], ["s2"]),
            n("Neg", ["h"], ["minus"]),
            n("SequenceInsert", ["s2", "minus", "last"], ["s3"]),
            n("ConcatFromSequence", ["s3"], ["y"], axis=1),
        ],
        {"first": np.int64(0), "last": np.int64(-1)},
        2,
    ),
    "as a new axis": (
        [
            n("Tanh", ["h"], ["t"]),
            n("SequenceConstruct", ["h", "t", "h"], ["s"]),
            n("SequenceErase", ["s", "first"], ["s1"]),
            n("SequenceErase", ["s1"], ["s2"]),
            n("SequenceInsert", ["s2", "h"], ["s3"]),
            n("ConcatFromSequence", ["s3"], ["y"], axis=-1, new_axis=1),
        ],
        {"first": np.int64(0)},
        3,
    ),
    "single pieces": (
        [
            n("SplitToSequence", ["h"], ["s"], axis=1, keepdims=0),
            n("SequenceAt", ["s", "k"], ["a"]),
            n("SequenceLength", ["s"], ["count"]),
            n("Cast", ["count"], ["number"], to=FLOAT),
            n("Mul", ["a", "number"], ["y"]),
        ],
        {"k": np.int64(-2)},
        1,
    ),
    "single pieces with their axis": (
        [n("SplitToSequence", ["h"], ["s"], axis=1), n("SequenceAt", ["s", "k"], ["y"])],
        {"k": np.int64(3)},
        2,
    ),
    "what asks for a rank, behind a sequence": (
        [
            n("SplitToSequence", ["h", "sizes"], ["s"], axis=1),
            n("SequenceAt", ["s", "k"], ["piece"]),
            n("Shape", ["piece"], ["shape"]),
            n("Cast", ["shape"], ["numbers"], to=FLOAT),
            n("ReduceSum", ["numbers"], ["number"], keepdims=0),
            n("ReduceMean", ["piece"], ["mean"], axes=[-1]),
            n("Mul", ["mean", "number"], ["y"]),
        ],
        {"sizes": np.array([2, 4]), "k": np.int64(1)},
        2,
    ),
    "pieces of one size": (
        [n("SplitToSequence", ["h", "size"], ["s"], axis=1), n("SequenceAt", ["s", "k"], ["y"])],
        {"size": np.int64(4), "k": np.int64(1)},
        2,
    ),
    "pieces of these sizes": (
        [n("SplitToSequence", ["h", "sizes"], ["s"], axis=-1), n("SequenceAt", ["s", "k"], ["y"])],
        {"sizes": np.array([1, 3, 2]), "k": np.int64(1)},
        2,
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str) -> None:
    nodes, weights, rank = SEQUENCES[name]
    graph = model(nodes, weights, {"y": rank})
    assert gradient(agrees(graph, X, X[:1]), X).abs().max() > 0


def test_where_something_else_is_trained_a_loop_stays_outside() -> None:
    """A detector's post-processing: no gradient passes it, and the output says so."""
    graph = looping(2)
    graph.model.graph.node.append(n("Tanh", ["h"], ["scores"]))
    graph.model.graph.output.append(value("scores", shape=[None, None]))
    module = lower(Graph(graph.model))
    assert untrained_of(module).keys() == {"y", "all"}
    assert "Loop" in untrained_of(module)["y"]
    assert untrained_weights_of(module) == {"v": untrained_of(module)["y"]}


def test_what_no_graph_can_hold_is_refused_with_its_first_reason() -> None:
    body = helper.make_graph(
        [n("RandomNormalLike", ["state"], ["next"]), n("Identity", ["go"], ["goes"])],
        "body",
        [value("turn", INT, []), value("go", BOOL, []), value("state", shape=[None, None])],
        [value("goes", BOOL, []), value("next", shape=[None, None])],
    )
    graph = model([n("Loop", ["most", "", "h"], ["y"], body=body)], {"most": np.int64(1)})
    with pytest.raises(UnsupportedOp, match=r"^Loop 'y' \(opset 17\): no lowering is known for it"):
        lower(graph)
