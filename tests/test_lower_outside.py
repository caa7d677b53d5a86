"""What has no torch form runs in onnxruntime inside of the lowered module, and never stands in the way of the rest."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.errors import UnsupportedOp, UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import from_torch, lower
from conet_onnx.torch_backend.lower import names_of, untrained_of, untrained_weights_of
from tests.onnx_parity import Array, assert_same, build, run_lowered, run_reference, some

RNG = np.random.default_rng(2)
X = some((2, 3, 8, 8), RNG)
NODE = helper.make_node


def detector(outputs: Sequence[str] = ("scores", "boxes", "kept")) -> onnx.ModelProto:
    """A trunk, two heads, and non-maximum suppression of what they say."""
    rng = np.random.default_rng(2)
    weights = {
        "w": some((6, 3, 3, 3), rng), "ws": some((4, 6, 1, 1), rng), "wb": some((4, 6, 1, 1), rng),
        "to_scores": np.array([0, 4, -1]), "to_boxes": np.array([0, 4, -1]), "k": np.array(5), "iou": np.float32(0.4),
        "least": np.float32(0.5),
    }  # fmt: skip
    nodes = [
        NODE("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1], strides=[2, 2]),
        NODE("Relu", ["h"], ["r"]),
        NODE("Conv", ["r", "ws"], ["s"]),
        NODE("Conv", ["r", "wb"], ["b"]),
        NODE("Reshape", ["s", "to_scores"], ["s2"]),
        NODE("Sigmoid", ["s2"], ["scores"]),
        NODE("Reshape", ["b", "to_boxes"], ["b2"]),
        NODE("Transpose", ["b2"], ["boxes"], perm=[0, 2, 1]),
        NODE("NonMaxSuppression", ["boxes", "scores", "k", "iou", "least"], ["chosen"], name="suppression"),
        NODE("Cast", ["chosen"], ["kept"], to=TensorProto.FLOAT),
    ]
    return build(nodes, {"x": X}, weights, list(outputs), 17, "batch")


class TestTails:
    def test_all_outputs_are_onnxruntimes(self) -> None:
        assert_same(run_lowered(detector(), {"x": X}), run_reference(detector(), {"x": X}))

    def test_the_other_outputs_are_trained(self) -> None:
        graph = Graph(detector())
        module = lower(graph)
        assert list(untrained_of(module)) == ["kept"]
        assert "NonMaxSuppression 'suppression'" in untrained_of(module)["kept"]
        scores, boxes, kept = module(torch.from_numpy(X))
        assert scores.requires_grad
        assert boxes.requires_grad
        assert not kept.requires_grad
        (scores.sum() + boxes.square().sum()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        with torch.no_grad():
            next(module.parameters()).mul_(1.5)
        trained = from_torch(graph, module)
        wanted = run_reference(trained.proto(), {"x": X})
        assert_same([t.detach().numpy() for t in module(torch.from_numpy(X))], wanted)

    def test_gradients_pass_what_only_chooses(self) -> None:
        """The boxes that suppression keeps: they come out of the layers, whichever they are."""
        model = detector(["scores"])
        places = [numpy_helper.from_array(np.array(value), name) for name, value in (("two", [2]), ("axis", 1))]
        model.graph.initializer.extend([*places, numpy_helper.from_array(np.array(0), "zero")])
        model.graph.node.extend(
            [
                NODE("Gather", ["chosen", "two"], ["which"], axis=1),
                NODE("Squeeze", ["which"], ["row"]),
                NODE("Gather", ["boxes", "zero"], ["first"], axis=0),
                NODE("Gather", ["first", "row"], ["picked"], axis=0),
            ]
        )
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info("picked", TensorProto.FLOAT, [None, 4]))
        one = {"x": X[:1]}
        module = lower(Graph(model))
        assert untrained_of(module) == {}
        (expected,) = run_reference(model, one)
        made = module(torch.from_numpy(one["x"]))
        assert_same([made.detach().numpy()], [expected])
        made.square().sum().backward()
        trained = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        assert {"w", "wb"} <= trained.keys()
        assert all(trained[name].abs().sum() > 0 for name in ("w", "wb"))

    def test_weights_that_only_a_tail_depends_on_are_named(self) -> None:
        """Read by it, or by a layer that torch computes for it; not those that the other outputs depend on too."""
        model = detector(["scores", "kept"])
        weights = {"own": some((1, 3), RNG), "unused": some((3, 3), RNG), "last": np.array([1])}
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
        model.graph.node[-1].output[0] = "numbers"
        model.graph.node.extend(
            [
                NODE("Unique", ["boxes"], ["values"], name="sorted"),
                NODE("Unsqueeze", ["values", "last"], ["column"]),
                NODE("MatMul", ["column", "own"], ["kept"]),
            ]
        )
        found = untrained_weights_of(lower(Graph(model)))
        assert found.keys() == {"wb", "own"}
        assert all("Unique 'sorted'" in why for why in found.values())
        assert untrained_weights_of(lower(Graph(detector()))) == {}

    def test_weights_that_gradients_reach_only_through_a_choice_are_named(self) -> None:
        """Of the boxes that suppression chooses from, say; what follows it in torch is trained."""
        model = detector(["scores", "kept"])
        model.graph.initializer.append(numpy_helper.from_array(some((3, 3), RNG), "own"))
        model.graph.node[-1].output[0] = "numbers"
        model.graph.node.append(NODE("MatMul", ["numbers", "own"], ["kept"]))
        module = lower(Graph(model))
        assert list(untrained_weights_of(module)) == ["wb"]
        sum(made.square().sum() for made in module(torch.from_numpy(X))).backward()
        assert {name for name, p in module.named_parameters() if p.grad is not None} == {"w", "ws", "own"}

    def test_nothing_left_to_train_is_refused(self) -> None:
        with pytest.raises(UnsupportedOp, match="NonMaxSuppression 'suppression'"):
            lower(Graph(detector(["kept"])))

    def test_a_tail_that_no_output_needs_is_left_out(self) -> None:
        module = lower(Graph(detector(["scores"])))
        assert untrained_of(module) == {}
        assert list(module.children()) == []

    def test_modules_are_copied_and_pickled(self) -> None:
        module = lower(Graph(detector()))
        with torch.no_grad():
            wanted = module(torch.from_numpy(X))
            for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
                assert list(untrained_of(other)) == ["kept"]
                assert all(torch.equal(a, b) for a, b in zip(other(torch.from_numpy(X)), wanted, strict=True))

    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # likewise
    def test_a_compiler_leaves_it_alone(self) -> None:
        module = pickle.loads(pickle.dumps(lower(Graph(detector()))))
        wanted = module(torch.from_numpy(X))
        for got, one in zip(torch.compile(module, backend="eager")(torch.from_numpy(X)), wanted, strict=True):
            assert torch.equal(got, one)

    def test_control_flow_captures_what_torch_makes(self) -> None:
        """An If that reads a trained value and a weight from outside of its branches."""
        branches = [
            helper.make_graph([NODE("Add", ["h", c], [f"{c}_y"])], c, [],
                              [helper.make_tensor_value_info(f"{c}_y", TensorProto.FLOAT, None)])
            for c in ("c0", "c1")
        ]  # fmt: skip
        weights = {"w": some((3, 4), RNG), "c0": np.float32([1, 2, 3, 4]), "c1": np.float32([5, 6, 7, 8]),
                   "zero": np.float32(0), "v": some((4, 2), RNG)}  # fmt: skip
        nodes = [
            NODE("MatMul", ["x", "w"], ["h"]),
            NODE("ReduceMax", ["h"], ["m"], keepdims=0),
            NODE("Greater", ["m", "zero"], ["is"]),
            NODE("If", ["is"], ["y"], name="choice", then_branch=branches[0], else_branch=branches[1]),
            NODE("MatMul", ["h", "v"], ["z"]),
        ]
        x = some((2, 3), RNG)
        model = build(nodes, {"x": x}, weights, ["y", "z"], 17)
        for given in (x, -x, x * 0):
            assert_same(run_lowered(model, {"x": given}), run_reference(model, {"x": given}))
        assert list(untrained_of(lower(Graph(model)))) == ["y"]

    def test_control_flow_captures_what_the_tail_makes(self) -> None:
        branches = [
            helper.make_graph([NODE(op, ["h"], [f"{op}_y"])], op, [],
                              [helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, None)])
            for op in ("Neg", "Abs")
        ]  # fmt: skip
        nodes = [
            NODE("MatMul", ["x", "w"], ["z"]),
            NODE("Unique", ["z"], ["h"]),
            NODE("If", ["is"], ["y"], then_branch=branches[0], else_branch=branches[1]),
        ]
        x = some((2, 3), RNG)
        model = build(nodes, {"x": x}, {"w": some((3, 4), RNG), "is": np.array(True)}, ["y", "z"], 17)
        assert_same(run_lowered(model, {"x": x}), run_reference(model, {"x": x}))

    def test_quantised_numbers_leave_as_bytes(self) -> None:
        """Within the lowered module they are floats."""
        weights = {"w": some((3, 4), RNG), "s": np.float32(0.1), "z": np.uint8(7)}
        nodes = [
            NODE("MatMul", ["x", "w"], ["h"]),
            NODE("QuantizeLinear", ["h", "s", "z"], ["q"]),
            NODE("BitShift", ["q", "z"], ["y"], direction="RIGHT", name="shift"),
        ]
        x = some((2, 3), RNG)
        model = build(nodes, {"x": x}, weights, ["y", "h"], 17)
        assert_same(run_lowered(model, {"x": x}), run_reference(model, {"x": x}))


class TestHeads:
    def model(self) -> tuple[onnx.ModelProto, Array]:
        """Words to numbers to rows of a table that is trained."""
        words = np.array([["cat", "dog"], ["bird", "cat"], ["dog", "dog"]], dtype=object)
        labels: dict[str, Any] = {"keys_strings": ["cat", "dog"], "values_int64s": [1, 2], "default_int64": 0}
        nodes = [
            NODE("LabelEncoder", ["x"], ["ids"], domain="ai.onnx.ml", name="words", **labels),
            NODE("Gather", ["table", "ids"], ["rows"]),
            NODE("ReduceMean", ["rows"], ["y"], axes=[1], keepdims=0),
        ]
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.STRING, ["batch", 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
            [onnx.numpy_helper.from_array(some((3, 4), RNG), "table")],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 4)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8), words

    def test_what_comes_after_a_head_is_trained(self) -> None:
        model, words = self.model()
        module = lower(Graph(model))
        assert untrained_of(module) == {}
        assert [name for name, _ in names_of(module)] == ["table"]
        y = module(words)
        assert_same([y.detach().numpy()], run_reference(model, {"x": words}))
        y.sum().backward()
        (table,) = module.parameters()
        assert table.grad is not None
        assert table.grad.sum() != 0

    def test_a_head_takes_the_nodes_before_it(self) -> None:
        """Unique of an input times a constant: torch has the product, and onnxruntime needs it too."""
        nodes = [
            NODE("Mul", ["x", "two"], ["twice"]),
            NODE("Unique", ["twice"], ["u", "", "inverse", ""], name="unique"),
            NODE("Cast", ["inverse"], ["i"], to=TensorProto.FLOAT),
            NODE("MatMul", ["i", "w"], ["y"]),
        ]
        x = np.float32([3, 1, 3, 2, 2])
        model = build(nodes, {"x": x}, {"two": np.float32(2), "w": some((5, 2), RNG)}, ["y"], 17)
        assert_same(run_lowered(model, {"x": x}), run_reference(model, {"x": x}))


def test_other_modules_have_no_such_outputs() -> None:
    with pytest.raises(UsageError, match="not a lowered model"):
        untrained_of(torch.nn.Linear(2, 2))
