"""A baked batch is freed, or the model stays as it is with a reason; what is freed computes sample by sample."""

from __future__ import annotations

import math
import random
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import strategies
import torch
from cli_support import call, only_line
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from conet_onnx.analysis import analyze
from conet_onnx.batches import Freed, freed
from conet_onnx.batches.editing import Place
from conet_onnx.batches.proving import prove
from conet_onnx.graph import Graph
from conet_onnx.loading import load
from conet_onnx.planning import plan, scaled
from conet_onnx.rewriting import rewrite
from conet_onnx.torch_backend import from_torch
from conet_onnx.torch_backend.lower import lower
from conet_onnx.verification import verify

SIZES = (1, 4)
INT_MAX = 2**63 - 1

Array = np.ndarray[Any, Any]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def floats(*shape: int, seed: int = 0) -> Array:
    return rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    made = outputs.split()
    return helper.make_node(op, [name.strip("_") for name in inputs.split()], made, f"{op} {made[0]}", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str] | None],
    weights: Mapping[str, Array],
    *,
    opset: int = 17,
    kinds: Mapping[str, int] | None = None,
) -> Graph:
    def values(shapes: Mapping[str, Any]) -> list[onnx.ValueInfoProto]:
        types = {name: (kinds or {}).get(name, TensorProto.FLOAT) for name in shapes}
        return [helper.make_tensor_value_info(name, types[name], shape) for name, shape in shapes.items()]

    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), "made", values(inputs), values(outputs), tensors)
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    made = onnx.shape_inference.infer_shapes(made)  # exporters record shapes: they must not stay as they were
    onnx.checker.check_model(made)
    return Graph(made)


def run(graph: Graph, feeds: Mapping[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(graph.proto().SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, dict(feeds)
    )


def check(made: Freed, *, count: int = 7, axes: Mapping[str, int] | None = None, along: int = 0) -> Freed:
    """Run by a batch that the proof has not run, and compare with the source, one batch of its own after the other."""
    assert not made.reason
    onnx.checker.check_model(made.graph.proto(), full_check=True)
    whole = -(-count // made.size) * made.size
    feeds = {}
    for value in made.source.inputs:
        shape = list(value.shape)
        if value.name in made.inputs:
            shape[(axes or {}).get(value.name, 0)] = whole
        shape = [9 if isinstance(size, str) else size for size in shape]
        feeds[value.name] = (
            rng(1).integers(0, 2, shape) if value.dtype.kind == "i" else floats(*shape, seed=1)
        ).astype(value.dtype)

    def part(start: int, stop: int) -> dict[str, Array]:
        cut = {n: a.take(range(start, stop), (axes or {}).get(n, 0)) for n, a in feeds.items() if n in made.inputs}
        return {**feeds, **cut}

    expected = [run(made.source, part(k, k + made.size)) for k in range(0, whole, made.size)]
    actual = run(made.graph, part(0, count))
    for at, value in enumerate(made.source.outputs):
        if value.name in made.outputs:
            wanted = np.concatenate([found[at] for found in expected], along).take(range(count), along)
            np.testing.assert_allclose(actual[at], wanted, rtol=1e-4, atol=1e-5)
    assert [made.graph.tensor(n).SerializeToString() for n in weights_of(made.source)] == [
        made.source.tensor(n).SerializeToString() for n in weights_of(made.source)
    ]
    return made


def weights_of(graph: Graph) -> list[str]:
    return [name for name in graph.weights if graph.array(name).dtype.kind == "f"]


def target(made: Freed, name: str) -> list[int]:
    """The constant target of the node that makes a value."""
    producer = made.graph.producer(name)
    assert producer is not None
    return [int(v) for v in made.graph.array(producer.inputs[1])]


# Kinds of graphs


def reshaped(size: int, to: Sequence[int], **attributes: Any) -> Graph:
    nodes = [node("Reshape", "x to", "flat", **attributes), node("Gemm", "flat w b", "y")]
    weights = {"to": ints(*to), "w": floats(12, 5), "b": floats(5)}
    return model(nodes, {"x": [size, 3, 4]}, {"y": [size, 5]}, weights)


class TestReshape:
    @pytest.mark.parametrize("size", SIZES)
    def test_a_literal_becomes_minus_one(self, size: int) -> None:
        made = check(freed(reshaped(size, [size, 12])))
        assert target(made, "flat") == [0, 12]
        assert "to" not in made.graph.weights  # which nothing reads any more
        assert made.graph.inputs[0].shape == ("batch", 3, 4)
        assert made.graph.outputs[0].shape == ("batch", 5)
        assert made.exact

    @pytest.mark.parametrize("size", SIZES)
    def test_what_another_size_computes_is_left_alone(self, size: int) -> None:
        for to in ([-1, 12], [0, 12], [0, -1]):
            made = check(freed(reshaped(size, to)))
            assert made.edits == ()
            assert target(made, "flat") == to

    @pytest.mark.parametrize("size", SIZES)
    def test_the_only_minus_one_stays_elsewhere(self, size: int) -> None:
        assert target(check(freed(reshaped(size, [size, -1]))), "flat") == [0, -1]

    @pytest.mark.parametrize("size", SIZES)
    def test_a_zero_copies_nothing_where_it_means_zero(self, size: int) -> None:
        made = check(freed(reshaped(size, [size, 12], allowzero=1)))
        assert target(made, "flat") == [-1, 12]

    @pytest.mark.parametrize("size", SIZES)
    def test_a_zero_copies_only_the_batch(self, size: int) -> None:
        """Behind a transpose the first axis is another one."""
        nodes = [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("Reshape", "t to", "r"),
            node("Transpose", "r", "b", perm=[1, 0, 2]),
            node("Reshape", "b back", "flat"),
            node("Gemm", "flat w", "y"),
        ]
        weights = {"to": ints(6, size, 2), "back": ints(size, -1), "w": floats(12, 5)}
        graph = model(nodes, {"x": [size, 6, 2]}, {"y": [size, 5]}, weights)
        made = check(freed(graph))
        assert target(made, "r") == [6, 0, 2]

    def test_samples_of_a_shared_target_are_told_apart_from_a_one(self) -> None:
        """One constant, read by a batch and by a weight."""
        nodes = [
            node("Reshape", "x to", "a"),
            node("Reshape", "w to", "c"),
            node("Add", "a c", "y"),
        ]
        graph = model(nodes, {"x": [1, 3, 4]}, {"y": [1, 12]}, {"to": ints(1, 12), "w": floats(4, 3)})
        made = check(freed(graph))
        assert target(made, "c") == [1, 12]
        assert "to" in made.graph.weights

    @pytest.mark.parametrize("size", SIZES)
    def test_flatten_needs_no_edit(self, size: int) -> None:
        nodes = [node("Flatten", "x", "flat", axis=1), node("Gemm", "flat w", "y")]
        graph = model(nodes, {"x": [size, 3, 2, 2]}, {"y": [size, 5]}, {"w": floats(12, 5)})
        assert check(freed(graph)).edits == ()

    def test_a_flatten_of_everything_in_one_sample_is_that_of_each(self) -> None:
        nodes = [node("Reshape", "x to", "flat"), node("Gemm", "flat w", "y")]
        graph = model(nodes, {"x": [1, 3, 4]}, {"y": [1, 5]}, {"to": ints(1, -1), "w": floats(12, 5)})
        assert target(check(freed(graph)), "flat") == [0, -1]

    @pytest.mark.parametrize("size", SIZES)
    def test_a_target_is_computed_but_for_a_literal(self, size: int) -> None:
        """The length is symbolic: view(size, length, 2, 3)."""
        nodes = [
            node("Shape", "x", "s"),
            node("Gather", "s one", "t", axis=0),
            node("Concat", "n t rest", "to", axis=0),
            node("Reshape", "x to", "r"),
            node("ReduceSum", "r three", "y", keepdims=0),
        ]
        weights = {"one": ints(1), "n": ints(size), "rest": ints(2, 3), "three": ints(3)}
        graph = model(nodes, {"x": [size, "T", 6]}, {"y": [size, "T", 2]}, weights)
        made = check(freed(graph))
        assert made.graph.inputs[0].shape == ("batch", "T", 6)

    @pytest.mark.parametrize("size", SIZES)
    def test_two_open_sizes_are_computed(self, size: int) -> None:
        """The length takes the only -1, and no 0 would copy the batch."""
        nodes = [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("Reshape", "t to", "r"),
            node("Transpose", "r", "back", perm=[1, 0, 2]),
            node("Reshape", "back two", "y"),
        ]
        weights = {"to": ints(-1, 3 * size, 2), "two": ints(size, 3, -1, 2)}
        graph = model(nodes, {"x": [size, "T", 6]}, {"y": [size, 3, "T", 2]}, weights)
        made = check(freed(graph))
        assert {n.op for n in made.graph.nodes} >= {"Where", "Mul", "Shape"}

    @pytest.mark.parametrize("size", SIZES)
    def test_channels_are_shuffled(self, size: int) -> None:
        nodes = [
            node("Reshape", "x split", "a"),
            node("Transpose", "a", "b", perm=[0, 2, 1, 3, 4]),
            node("Reshape", "b join", "c"),
            node("Conv", "c w", "y"),
        ]
        weights = {"split": ints(size, 2, 3, 5, 5), "join": ints(size, -1, 5, 5), "w": floats(4, 6, 3, 3)}
        check(freed(model(nodes, {"x": [size, 6, 5, 5]}, {"y": [size, 4, 3, 3]}, weights)))

    @pytest.mark.parametrize("size", SIZES)
    def test_windows_count_beside_the_batch(self, size: int) -> None:
        nodes = [
            node("Reshape", "x cut", "a"),
            node("Transpose", "a", "b", perm=[0, 1, 3, 2, 4, 5]),
            node("Reshape", "b windows", "c"),
            node("MatMul", "c w", "d"),
            node("Softmax", "d", "e", axis=1),
            node("Reshape", "e apart", "f"),
            node("Transpose", "f", "g", perm=[0, 1, 3, 2, 4, 5]),
            node("Reshape", "g whole", "y"),
        ]
        weights = {
            "cut": ints(size, 2, 3, 2, 3, 4),
            "windows": ints(4 * size, 9, 4),
            "w": floats(4, 4),
            "apart": ints(size, 2, 2, 3, 3, -1),
            "whole": ints(size, 6, 6, 4),
        }
        made = check(freed(model(nodes, {"x": [size, 6, 6, 4]}, {"y": [size, 6, 6, 4]}, weights)))
        assert target(made, "c") == [-1, 9, 4]


def attention(size: int, length: int = 5, heads: int = 2, each: int = 3, *, is_open: bool = False) -> Graph:
    """Self-attention as torch writes it: length first, and heads beside the batch."""
    width = heads * each
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2])]
    for name in "qkv":
        nodes += [
            node("Reshape", "t rows", f"{name}0"),
            node("Gemm", f"{name}0 w{name}", f"{name}1"),
            node("Reshape", f"{name}1 heads", f"{name}2"),
            node("Transpose", f"{name}2", name, perm=[1, 2, 0] if name == "k" else [1, 0, 2]),
        ]
    nodes += [
        node("MatMul", "q k", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "p v", "mixed"),
        node("Transpose", "mixed", "m", perm=[1, 0, 2]),
        node("Reshape", "m rows", "flat"),
        node("Gemm", "flat wo", "o"),
        node("Reshape", "o whole", "last"),
        node("Transpose", "last", "y", perm=[1, 0, 2]),
    ]
    weights = {f"w{name}": floats(width, width, seed=k) for k, name in enumerate("qkvo")}
    weights |= {
        "rows": ints(length * size, width),
        "heads": ints(length, size * heads, -1 if is_open else each),
        "whole": ints(length, size, width),
    }
    return model(nodes, {"x": [size, length, width]}, {"y": [size, length, width]}, weights)


class TestChoices:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("is_open", [True, False])
    def test_heads_beside_the_batch_and_length_before_it(self, size: int, *, is_open: bool) -> None:
        made = check(freed(attention(size, is_open=is_open)))
        assert target(made, "q2") == [5, -1, 3]
        assert target(made, "flat") == [-1, 6]

    @pytest.mark.parametrize("size", SIZES)
    def test_heads_of_one(self, size: int) -> None:
        check(freed(attention(size, heads=1)))

    def test_a_zero_that_copied_a_batch_of_one_is_a_one(self) -> None:
        """[1, samples, 6] for a recurrent layer; as [samples, 1, 6] every sample would be a step of one sequence."""
        nodes = [node("Reshape", "x to", "r"), node("GRU", "r w u", "out last", hidden_size=3)]
        nodes += [node("Squeeze", "last first", "y")]
        weights = {"to": ints(0, 1, 6), "w": floats(1, 9, 6), "u": floats(1, 9, 3), "first": ints(0)}
        made = check(freed(model(nodes, {"x": [1, 6]}, {"y": [1, 3]}, weights)))
        assert target(made, "r") == [1, -1, 6]

    def test_heads_and_length_of_one(self) -> None:
        check(freed(attention(1, length=1, heads=1)))

    def test_a_wrong_choice_far_behind_is_taken_back(self) -> None:
        """Rows of [samples·tokens, width] or [tokens, samples·width]: two activations later, a product tells."""
        nodes = [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("Reshape", "t rows", "r"),
            node("Relu", "r", "a"),
            node("Sigmoid", "a", "b"),
            node("MatMul", "b w", "m"),
            node("Reshape", "m back", "o"),
            node("Transpose", "o", "y", perm=[1, 0, 2]),
        ]
        weights = {"rows": ints(5, 6), "w": floats(6, 4), "back": ints(5, 1, 4)}
        made = check(freed(model(nodes, {"x": [1, 5, 6]}, {"y": [1, 5, 4]}, weights)))
        assert target(made, "r") == [-1, 6]


class TestConstants:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("expand", [True, False])
    def test_a_class_token_is_given_to_every_sample(self, size: int, *, expand: bool) -> None:
        token = floats(1, 1, 6)
        nodes = [node("Expand", "token to", "tokens")] if expand else []
        nodes += [node("Concat", "tokens x", "j", axis=1), node("Add", "j table", "k"), node("MatMul", "k w", "y")]
        weights = {"table": floats(1, 5, 6), "w": floats(6, 3)}
        weights |= {"token": token, "to": ints(size, 1, 6)} if expand else {"tokens": np.repeat(token, size, 0)}
        made = check(freed(model(nodes, {"x": [size, 4, 6]}, {"y": [size, 5, 3]}, weights)))
        expands = [n for n in made.graph.nodes if n.op == "Expand"]
        assert len(expands) == 1  # the exporter's own is asked for more, and none is put behind it

    def test_a_table_that_is_the_same_for_every_sample(self) -> None:
        nodes = [node("Add", "x table", "a"), node("MatMul", "a w", "y")]
        weights = {"table": np.repeat(floats(1, 5, 6), 4, 0), "w": floats(6, 3)}
        made = check(freed(model(nodes, {"x": [4, 5, 6]}, {"y": [4, 5, 3]}, weights)))
        assert made.graph.array("table").shape == (4, 5, 6)

    def test_what_broadcasts_is_left_alone(self) -> None:
        nodes = [node("Add", "x table", "y")]
        made = check(freed(model(nodes, {"x": [1, 6]}, {"y": [1, 6]}, {"table": floats(1, 6)})))
        assert made.edits == ()
        assert len(made.graph.nodes) == 1

    @pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("zeros", [True, False])
    def test_states_to_start_from(self, op: str, size: int, *, zeros: bool) -> None:
        gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 3
        states = "h c" if op == "LSTM" else "h"
        nodes = [node("ConstantOfShape", f"{s}.to", s) for s in states.split()] if zeros else []
        nodes += [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node(op, f"t w r _ _ {states}", "out last", hidden_size=hidden, direction="bidirectional"),
            node("Transpose", "last", "l", perm=[1, 0, 2]),
            node("Reshape", "l flat", "y"),
        ]
        nodes[-3].input[3:5] = ["", ""]
        weights = {"w": floats(2, gates * hidden, 6), "r": floats(2, gates * hidden, hidden), "flat": ints(size, 6)}
        for state in states.split():
            start = np.repeat(floats(2, 1, hidden, seed=len(weights)), size, 1)
            weights |= {f"{state}.to": ints(2, size, hidden)} if zeros else {state: start}
        graph = model(nodes, {"x": [size, 5, 6]}, {"y": [size, 6]}, weights)
        made = check(freed(graph))
        assert {s.op for s in made.graph.nodes} >= {"ConstantOfShape"} if zeros else {"Expand"}

    @pytest.mark.parametrize("size", SIZES)
    def test_states_that_are_inputs_have_samples_along_their_second_axis(self, size: int) -> None:
        nodes = [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("GRU", "t w r b l h", "out last", hidden_size=3),
            node("Squeeze", "out one", "o"),
            node("Transpose", "o", "y", perm=[1, 0, 2]),
        ]
        nodes[1].input[3:5] = ["", ""]
        weights = {"w": floats(1, 9, 6), "r": floats(1, 9, 3), "one": ints(1)}
        graph = model(nodes, {"x": [size, 5, 6], "h": [1, size, 3]}, {"y": [size, 5, 3], "last": [1, size, 3]}, weights)
        made = freed(graph)
        assert made.graph.inputs[1].shape == (1, "batch", 3)
        assert made.graph.outputs[1].shape == (1, "batch", 3)
        one = Freed(**{**{k: getattr(made, k) for k in made.__slots__}, "outputs": ("y",)})
        check(one, axes={"h": 1})

    @pytest.mark.parametrize("behind", [False, True])
    def test_trained_weights_go_back_to_every_copy(self, *, behind: bool) -> None:
        nodes = [node("Neg", "tokens", "t")] if behind else []
        nodes += [node("Concat", "t x" if behind else "tokens x", "j", axis=1), node("MatMul", "j w", "m")]
        nodes += [node("Mul", "m scale", "y")]
        weights = {"tokens": np.repeat(floats(1, 1, 6), 4, 0), "w": floats(6, 4), "scale": np.ones(4, np.float32)}
        graph = model(nodes, {"x": [4, 4, 6]}, {"y": [4, 5, 4]}, weights)
        made = check(freed(graph))
        moved = graph.array("tokens").copy()
        moved[0] += 1  # the only row that has a gradient
        scale = floats(4)  # all ones are alike as well, and are no rows of samples
        trained = made.graph.with_arrays({"tokens": moved, "w": graph.array("w") * 2, "scale": scale})
        back = made.returned(trained)
        feeds = {"x": floats(4, 4, 6)}
        np.testing.assert_allclose(run(back, feeds)[0], run(trained, feeds)[0], rtol=1e-6)
        assert back.inputs == graph.inputs
        assert made.returned(made.graph) is graph


class TestSizes:
    @pytest.mark.parametrize("size", SIZES)
    def test_a_slice_ends_where_there_is_no_more(self, size: int) -> None:
        nodes = [node("Slice", "x starts ends", "a"), node("Gemm", "a w", "y")]
        weights = {"starts": ints(0, 1), "ends": ints(size, 5), "w": floats(4, 3)}
        made = check(freed(model(nodes, {"x": [size, 6]}, {"y": [size, 3]}, weights)))
        found = made.graph.producer("a")
        assert found is not None
        assert list(made.graph.array(found.inputs[2])) == [INT_MAX, 5]

    def test_an_expand_leaves_the_batch_to_broadcasting(self) -> None:
        nodes = [node("Expand", "x to", "a"), node("Mul", "a w", "y")]
        weights = {"to": ints(4, 5, 6), "w": floats(5, 6)}
        made = check(freed(model(nodes, {"x": [4, 1, 6]}, {"y": [4, 5, 6]}, weights)))
        assert target(made, "a") == [1, 5, 6]

    @pytest.mark.parametrize("size", SIZES)
    def test_a_resize_is_asked_for_as_many_samples(self, size: int) -> None:
        nodes = [
            node("Resize", "x _ _ to", "a", mode="nearest"),
            node("Conv", "a w", "y"),
        ]
        nodes[0].input[1:3] = ["", ""]
        weights = {"to": ints(size, 3, 8, 8), "w": floats(4, 3, 3, 3)}
        check(freed(model(nodes, {"x": [size, 3, 4, 4]}, {"y": [size, 4, 6, 6]}, weights)))


class TestInputsAndOutputs:
    def test_what_is_no_output_of_a_sample_stays(self) -> None:
        nodes = [node("Gemm", "x w", "y"), node("Identity", "table", "anchors"), node("ReduceMean", "y", "mean")]
        nodes[-1].attribute.append(helper.make_attribute("keepdims", 0))
        weights = {"w": floats(6, 3), "table": floats(7, 4)}
        outputs: dict[str, list[int | str]] = {"y": [4, 3], "anchors": [7, 4], "mean": []}
        made = check(freed(model(nodes, {"x": [4, 6]}, outputs, weights)))
        assert made.outputs == ("y",)
        assert made.others == ("anchors", "mean")
        assert [value.shape for value in made.graph.outputs] == [("batch", 3), (7, 4), ()]

    @pytest.mark.parametrize("size", SIZES)
    def test_inputs_become_symbolic_together(self, size: int) -> None:
        nodes = [node("Gather", "table ids", "a"), node("Mul", "a mask", "b"), node("ReduceSum", "b one", "y")]
        nodes[-1].attribute.append(helper.make_attribute("keepdims", 0))
        weights = {"table": floats(9, 6), "one": ints(1)}
        graph = model(
            nodes,
            {"ids": [size, 5], "mask": [size, 5, 1]},
            {"y": [size, 6]},
            weights,
            kinds={"ids": TensorProto.INT64},
        )
        made = check(freed(graph))
        assert made.inputs == ("ids", "mask")

    def test_an_input_that_is_no_batch_stays(self) -> None:
        """Both have two rows; the second one's are summed over."""
        nodes = [node("MatMul", "x m", "y")]
        graph = model(nodes, {"x": [2, 2], "m": [2, 3]}, {"y": [2, 3]}, {"unused": floats(1)})
        made = freed(graph)
        assert made.inputs == ("x",)
        assert [value.shape for value in made.graph.inputs] == [("batch", 2), (2, 3)]

    def test_the_symbol_is_a_new_name(self) -> None:
        nodes = [node("MatMul", "x w", "y")]
        graph = model(nodes, {"x": [1, "batch", 6]}, {"y": [1, "batch", 3]}, {"w": floats(6, 3)})
        made = check(freed(graph))
        assert made.graph.inputs[0].shape == ("batch_size", "batch", 6)

    def test_recorded_shapes_follow(self) -> None:
        made = freed(reshaped(4, [4, 12]))
        shapes = {v.name: v.type.tensor_type.shape.dim[0] for v in made.graph.model.graph.value_info}
        assert shapes["flat"].dim_param == "batch"

    def test_what_is_symbolic_already_is_left(self) -> None:
        graph = model([node("Relu", "x", "y")], {"x": ["N", 3]}, {"y": ["N", 3]}, {"unused": floats(1)})
        made = freed(graph)
        assert made.graph is graph
        assert "symbolic already" in made.reason


# Refusals


def refused(nodes: Sequence[onnx.NodeProto], size: int, weights: Mapping[str, Array], **more: Any) -> str:
    graph = model(nodes, {"x": [size, 6]}, {"y": more.pop("y", None)}, {"unused": floats(1), **weights}, **more)
    made = freed(graph)
    assert made.graph is graph
    assert made.lines() == [f"The batch stays as it is: {made.reason}"]
    return made.reason


class TestRefusals:
    @pytest.mark.parametrize("size", SIZES)
    def test_a_softmax_over_the_batch(self, size: int) -> None:
        reason = refused([node("Relu", "x", "a"), node("Softmax", "a", "y", axis=0)], size, {}, y=[size, 6])
        assert "Softmax 'Softmax y' mixes the samples of a batch" in reason

    @pytest.mark.parametrize("size", SIZES)
    def test_a_mean_over_the_batch_that_is_subtracted(self, size: int) -> None:
        nodes = [node("ReduceMean", "x", "m", axes=[0]), node("Sub", "x m", "d"), node("Add", "d one", "y")]
        reason = refused(nodes, size, {"one": floats(6)}, y=[size, 6])
        assert "ReduceMean 'ReduceMean m'" in reason

    @pytest.mark.parametrize("size", SIZES)
    def test_a_norm_with_the_statistics_of_the_batch(self, size: int) -> None:
        nodes = [node("BatchNormalization", "x s b m v", "y mean var", training_mode=1)]
        weights = {name: np.abs(floats(6)) + 1 for name in "sbmv"}
        reason = refused(nodes, size, weights, y=[size, 6])
        assert "BatchNormalization 'BatchNormalization y'" in reason

    @pytest.mark.parametrize("size", SIZES)
    def test_a_product_of_samples(self, size: int) -> None:
        nodes = [node("Transpose", "x", "t"), node("MatMul", "x t", "y")]
        assert "MatMul 'MatMul y' has the batch in 2 axes" in refused(nodes, size, {}, y=[size, size])

    @pytest.mark.parametrize("size", SIZES)
    def test_attention_across_the_samples(self, size: int) -> None:
        nodes = [
            node("Transpose", "x", "t"),
            node("MatMul", "x t", "s"),
            node("Softmax", "s", "p"),
            node("MatMul", "p x", "y"),
        ]
        assert "combines samples" in refused(nodes, size, {}, y=[size, 6])

    def test_a_weight_that_has_the_batch_in_its_size(self) -> None:
        nodes = [node("Reshape", "x to", "r"), node("Gemm", "r w", "y")]
        weights = {"to": ints(1, 24), "w": floats(24, 3)}
        assert "Gemm 'Gemm y'" in refused(nodes, 4, weights, y=[1, 3])

    def test_a_table_with_a_row_for_each_sample(self) -> None:
        assert "Add 'Add y'" in refused([node("Add", "x table", "y")], 4, {"table": floats(4, 6)}, y=[4, 6])

    @pytest.mark.parametrize("size", SIZES)
    def test_one_sample_is_taken(self, size: int) -> None:
        reason = refused([node("Gather", "x first", "y", axis=0)], size, {"first": ints(0)}, y=[1, 6])
        assert "Gather 'Gather y'" in reason

    def test_an_output_that_only_looks_like_one_of_samples(self) -> None:
        """A mean over the batch beside what is of each sample: of a batch of one they look alike."""
        nodes = [node("Relu", "x", "y"), node("ReduceMean", "x", "m", axes=[0])]
        graph = model(nodes, {"x": [1, 6]}, {"y": [1, 6], "m": [1, 6]}, {"unused": floats(1)})
        assert "output 'm' has one row whatever the batch: ReduceMean 'ReduceMean m'" in freed(graph).reason

    def test_a_total(self) -> None:
        nodes = [node("ReduceSum", "x", "y", keepdims=0)]
        assert "no output has something for each sample: ReduceSum 'ReduceSum y'" in refused(nodes, 4, {}, y=[])

    def test_a_batch_of_one_that_is_squeezed(self) -> None:
        nodes = [node("Squeeze", "x zero", "a"), node("Unsqueeze", "a zero", "y")]
        assert "Squeeze 'Squeeze a'" in refused(nodes, 1, {"zero": ints(0)}, y=[1, 6])

    def test_samples_turned_around(self) -> None:
        weights = {"start": ints(-1), "end": ints(-INT_MAX), "axis": ints(0), "step": ints(-1)}
        reason = refused([node("Slice", "x start end axis step", "y")], 4, weights, y=[4, 6])
        assert "own batch" in reason or "mixes the samples" in reason

    def test_control_flow(self) -> None:
        then = helper.make_graph(
            [node("Relu", "x", "inner")], "then", [], [helper.make_tensor_value_info("inner", 1, [4, 6])]
        )
        other = helper.make_graph(
            [node("Neg", "x", "outer")], "other", [], [helper.make_tensor_value_info("outer", 1, [4, 6])]
        )
        nodes = [helper.make_node("If", ["yes"], ["y"], "choice", then_branch=then, else_branch=other)]
        assert "If 'choice'" in refused(nodes, 4, {"yes": np.array(True)}, y=[4, 6])

    def test_scales_of_the_whole_batch(self) -> None:
        nodes = [
            node("DynamicQuantizeLinear", "x", "q s z"),
            node("DequantizeLinear", "q s z", "y"),
        ]
        assert refused(nodes, 4, {}, y=[4, 6])


class TestProof:
    """The oracle by itself, on edits that are wrong: nothing of what finds edits takes part."""

    def proved(self, source: Graph, other: Graph) -> str:
        found = prove(
            source, other, inputs={"x": 0}, outputs={"y": Place(0)}, places={}, lost={}, size=source.inputs[0].shape[0]
        )
        return found.reason

    def test_a_wrong_order_of_samples_and_channels_is_seen(self) -> None:
        """[batch, 12] of [batch, 3, 4], and [12, batch] turned around: the same at batch 1."""
        source = reshaped(1, [1, 12])
        nodes = [
            node("Reshape", "x to", "a"),
            node("Transpose", "a", "flat"),
            node("Gemm", "flat w b", "y"),
        ]
        weights = {"to": ints(12, -1), "w": source.array("w"), "b": source.array("b")}
        wrong = model(nodes, {"x": ["batch", 3, 4]}, {"y": ["batch", 5]}, weights)
        assert "mixes the samples" in self.proved(source, wrong)
        assert self.proved(source, freed(source).graph) == ""

    def test_an_edit_that_was_missed_is_seen(self) -> None:
        source = reshaped(4, [4, 12])
        wrong = model(
            [node("Reshape", "x to", "flat"), node("Gemm", "flat w b", "y")],
            {"x": ["batch", 3, 4]},
            {"y": ["batch", 5]},
            {"to": ints(4, 12), "w": source.array("w"), "b": source.array("b")},
        )
        assert "at batch 1" in self.proved(source, wrong)

    def test_outputs_of_the_whole_batch_are_held_against_the_sources_at_its_own(self) -> None:
        def made(first: int | str, op: str) -> Graph:
            nodes = [node("Relu", "x", "y"), node(op, "x", "all", keepdims=0)]
            return model(nodes, {"x": [first, 6]}, {"y": [first, 6], "all": []}, {"unused": floats(1)})

        assert self.proved(made(4, "ReduceMax"), made("batch", "ReduceMax")) == ""
        assert "own batch of 4" in self.proved(made(4, "ReduceMax"), made("batch", "ReduceMin"))

    def test_outputs_that_no_sample_moves_prove_nothing(self) -> None:
        nodes = [node("Mul", "x zero", "a"), node("Add", "a one", "y")]
        graph = model(nodes, {"x": [1, 6]}, {"y": [1, 6]}, {"zero": np.zeros(6, np.float32), "one": floats(6)})
        assert "cannot be shown" in freed(graph).reason

    def test_networks_that_were_never_trained_are_proved_with_livelier_weights(self) -> None:
        nodes = [node("Gemm", "x w", "h"), node("Softmax", "h", "y", axis=0)]
        zero = {"w": np.zeros((6, 3), np.float32)}
        mixing = freed(model(nodes, {"x": [1, 6]}, {"y": [1, 3]}, zero))
        assert "mixes the samples" in mixing.reason
        nodes = [node("Gemm", "x w", "h"), node("Softmax", "h", "y", axis=1)]
        check(freed(model(nodes, {"x": [1, 6]}, {"y": [1, 3]}, zero)))


# Exports


class Shuffling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, groups=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.last(x).mean((2, 3)))


class Convolving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Linear(8 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().view(x.shape[0], -1))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.table = nn.Parameter(torch.randn(1, 5, 8))
        self.attention = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.table
        for layer in self.attention:
            x = x + layer(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x)[:, 0])


class Recurring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(24, 6, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x.flatten(2).flatten(1).view(x.shape[0], 8, 24))[0][:, -1])


MODULES = {"cnn": Convolving, "shuffle": Shuffling, "vit": Attending, "lstm": Recurring}


def exported(name: str, size: int) -> Graph:
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated, and its tracer warns of every Python integer
        path = Path(folder, "model.onnx")
        torch.onnx.export(
            module, (torch.randn(size, 3, 8, 8),), path, dynamo=False, input_names=["x"], output_names=["y"]
        )
        return Graph(load(path).proto())


class TestExports:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("name", MODULES)
    def test_networks_of_torch_are_freed(self, name: str, size: int) -> None:
        made = check(freed(exported(name, size)))
        assert made.exact
        assert made.graph.inputs[0].shape == ("batch", 3, 8, 8)
        assert "The batch is free" in made.lines()[0]

    @pytest.mark.parametrize("name", MODULES)
    def test_what_is_free_resizes_and_can_be_verified(self, name: str) -> None:
        made = freed(exported(name, 1)).graph
        analysis = analyze(made)
        resize = plan(analysis, scaled(analysis, 0.5)[0])
        resized = rewrite(made, resize)
        assert verify(made, resized, resize)
        assert resized.inputs[0].shape == ("batch", 3, 8, 8)
        assert math.prod(resized.array(weights_of(resized)[0]).shape) > 0

    @pytest.mark.parametrize("name", MODULES)
    def test_what_is_free_trains_in_torch_at_any_batch(self, name: str) -> None:
        made = freed(exported(name, 4))
        module = lower(made.graph)
        x = floats(7, 3, 8, 8)
        found = module(torch.from_numpy(x))
        np.testing.assert_allclose(found.detach().numpy(), run(made.graph, {"x": x})[0], rtol=1e-3, atol=1e-5)
        found.square().sum().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.01 * parameter.grad if parameter.grad is not None else 0
        back = made.returned(from_torch(made.graph, module))
        trained = module(torch.from_numpy(x[:4])).detach().numpy()
        np.testing.assert_allclose(run(back, {"x": x[:4]})[0], trained, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("name", MODULES)
    def test_a_free_model_has_the_widths_of_the_source(self, name: str) -> None:
        source = exported(name, 1)
        before, after = analyze(source), analyze(freed(source).graph)
        assert sorted(w.size for w in after.widths.values()) == sorted(w.size for w in before.widths.values())


@pytest.mark.parametrize("grammar", strategies.GRAMMARS)
def test_random_graphs_are_freed_and_right_or_left_as_they_are(grammar: str) -> None:
    free = 0
    for k in range(12):
        made = strategies.random_model(random.Random(f"batch {grammar} {k}"), steps=5, grammar=grammar)
        symbolic = {d.dim_param for v in made.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param}
        for value in (*made.graph.input, *made.graph.output):
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.dim_param == "N" and axis == 0:
                    dim.dim_value = 2  # as the exporter bakes it
        if symbolic - {"N"}:
            continue
        result = freed(Graph(made))
        if result.reason:
            assert result.graph is result.source
        else:
            free += 1
            check(result, count=3)
    assert free >= 6


class TestCommands:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        exported("shuffle", 1).save(tmp_path / "model.onnx")
        nodes = [node("Relu", "x", "a"), node("Softmax", "a", "y", axis=0)]
        model(nodes, {"x": [4, 6]}, {"y": [4, 6]}, {"unused": floats(1)}).save(tmp_path / "mixing.onnx")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_the_resized_file_takes_any_batch_and_is_proved(self, folder: Path) -> None:
        result = call("resize model.onnx -o out.onnx --scale 0.5 --plan plan.json --free-batch")
        assert (result.code, result.err) == (0, "")
        assert "The batch is free (it was 1): x [batch, 3, 8, 8]" in result.out
        assert "conet-onnx verify model.onnx out.onnx --plan plan.json --free-batch" in result.out
        small = load("out.onnx")
        assert small.inputs[0].shape == ("batch", 3, 8, 8)
        assert small.outputs[0].shape == ("batch", 5)
        assert run(small, {"x": floats(3, 3, 8, 8)})[0].shape == (3, 5)
        proved = call("verify model.onnx out.onnx --plan plan.json --free-batch")
        assert (proved.code, proved.err) == (0, "")
        assert "The batch is free" in proved.out

    def test_the_proof_wants_to_know_of_it(self, folder: Path) -> None:
        assert call("resize model.onnx -o out.onnx --scale 0.5 --plan plan.json --free-batch").code == 0
        result = call("verify model.onnx out.onnx --plan plan.json")
        assert result.code == 5
        assert "--free-batch" in only_line(result)

    def test_a_batch_that_cannot_be_freed_is_an_error(self, folder: Path) -> None:
        result = call("resize mixing.onnx -o out.onnx --scale 1 --free-batch")
        assert result.code == 2
        assert "Softmax 'Softmax y' mixes the samples" in only_line(result)
        assert not Path("out.onnx").exists()
