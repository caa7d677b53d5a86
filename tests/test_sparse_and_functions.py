"""Models whose weights are stored sparse, and models with functions of their own."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import oracles
import pytest
from onnx import TensorProto, helper, numpy_helper

import conet_onnx as co
from conet_onnx.analysis import analyze
from conet_onnx.errors import ModelError
from conet_onnx.graph import Graph
from conet_onnx.planning import scaled
from conet_onnx.runtime import run

WEIGHTS = {"first": (6, 3, 3, 3), "second": (5, 6, 1, 1), "third": (5, 4)}


def weights(names: Collection[str] = tuple(WEIGHTS)) -> dict[str, np.ndarray]:
    """Weights of which 3 in 5 are zero."""
    rng = np.random.default_rng(0)
    made = {n: rng.standard_normal(s) * (rng.random(s) < 0.4) for n, s in WEIGHTS.items()}
    return {n: made[n].astype(np.float32) for n in names}


def sparsely(array: np.ndarray, name: str) -> onnx.SparseTensorProto:
    where = np.flatnonzero(array)
    values = numpy_helper.from_array(array.ravel()[where], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(where, f"{name} at"), array.shape)


def network(
    nodes: list[onnx.NodeProto], stored: list[onnx.TensorProto], sparse: list[onnx.SparseTensorProto]
) -> onnx.ModelProto:
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 5, 5]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored, sparse_initializer=sparse)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def layers() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", ["x", "first"], ["a"], "c1", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], "c2"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "third"], ["y"], "m"),
    ]


def with_sparse(names: Collection[str], how: str) -> onnx.ModelProto:
    """Some of the weights are sparse: initializers, or in nodes."""
    arrays = weights()
    dense = [numpy_helper.from_array(a, n) for n, a in arrays.items() if n not in names]
    if how == "initializer":
        return network(layers(), dense, [sparsely(arrays[n], n) for n in names])
    nodes = [helper.make_node("Constant", [], [n], sparse_value=sparsely(arrays[n], "")) for n in names]
    return network([*nodes, *layers()], dense, [])


class TestSparseWeights:
    @pytest.mark.parametrize("how", ["initializer", "Constant"])
    @pytest.mark.parametrize(("name", "left"), [("first", [5]), ("second", []), ("third", [6])])
    def test_their_axes_are_frozen_and_all_else_resizes(self, tmp_path: Path, name: str, left: list[int], how: str):
        model = with_sparse([name], how)
        onnx.save(model, tmp_path / "sparse.onnx")
        source = co.load(tmp_path / "sparse.onnx")
        analysis = analyze(source)
        assert [w.size for w in analysis.widths.values()] == left
        reasons = {f.reason.detail for f in analysis.frozen if f.reason.kind == "sparse"}
        assert reasons == {f"weight {name!r} is sparse: where its elements stand is not followed"}
        assert analysis.costs.source.macs == oracles.macs(source) > 0
        if how == "initializer":  # onnxruntime does not give the value of a sparse Constant
            rng = np.random.default_rng(0)
            oracles.compare(analysis, oracles.shrunk(analysis, rng))
            oracles.compare(analysis, oracles.doubled(analysis, rng))
        for scale in (0.5, 2):
            decided = co.plan(analysis, scaled(analysis, scale)[0])
            resized = co.rewrite(source, decided)
            assert not co.verify(source, resized, decided, provider="cpu").skipped
            resized.save(tmp_path / "resized.onnx")
            again = co.load(tmp_path / "resized.onnx")
            assert list(again.model.graph.sparse_initializer) == list(model.graph.sparse_initializer)

    def test_a_sum_with_a_larger_one_has_its_shape(self):
        """onnx's shape inference takes a sparse initializer for a scalar."""
        nodes = [*layers()[:-1], helper.make_node("MatMul", ["e", "third"], ["z"])]
        nodes.append(helper.make_node("Add", ["z", "bias"], ["y"]))
        stored = [numpy_helper.from_array(a, n) for n, a in weights().items()]
        model = network(nodes, stored, [sparsely(np.ones((3, 1, 4), np.float32), "bias")])
        assert Graph(model).shape("y") == (3, None, 4)

    def test_a_model_of_sparse_weights_alone_is_refused(self, tmp_path: Path):
        onnx.save(with_sparse(list(WEIGHTS), "initializer"), tmp_path / "sparse.onnx")
        with pytest.raises(ModelError, match="nothing to resize"):
            co.load(tmp_path / "sparse.onnx")

    def test_one_that_is_malformed_is_refused(self, tmp_path: Path):
        model = with_sparse(["first"], "initializer")
        model.graph.sparse_initializer[0].dims[0] = 1
        onnx.save(model, tmp_path / "sparse.onnx")
        with pytest.raises(ModelError, match="not a valid ONNX model"):
            co.load(tmp_path / "sparse.onnx")


def with_functions(inner: bool, own_weight: bool) -> onnx.ModelProto:
    """A block of a convolution and an activation, called twice; the activation may be a function of another domain."""
    version = helper.make_opsetid("", 17)
    model = network(layers(), [numpy_helper.from_array(a, n) for n, a in weights().items()], [])
    large = np.random.default_rng(1).standard_normal((6, 6, 6, 6)).astype(np.float32)  # 1,296 elements: kept apart
    body = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    if own_weight:
        body[0].attribute[0].ints[:] = [2, 2, 3, 3]
        body.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(large)))
    body.append(helper.make_node("Swish" if inner else "Sigmoid", ["y"], ["z"], domain="org.activations" * inner))
    imports = [version, *([helper.make_opsetid("org.activations", 3)] if inner else [])]
    model.functions.append(
        helper.make_function("org.blocks", "Block", ["x", *([] if own_weight else ["w"])], ["z"], body, imports)
    )
    swish = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
    if inner:
        model.functions.append(helper.make_function("org.activations", "Swish", ["x"], ["y"], swish, [version]))
        model.opset_import.append(helper.make_opsetid("org.activations", 3))
    model.opset_import.append(helper.make_opsetid("org.blocks", 1))
    calls = [helper.make_node("Block", ["x", "first"], ["a"], "one", domain="org.blocks")]
    if own_weight:
        calls = [layers()[0], helper.make_node("Block", ["a"], ["a2"], "one", domain="org.blocks")]
    after = layers()[1:]
    after[0].input[0] = "a2" if own_weight else "a"
    del model.graph.node[:]
    model.graph.node.extend([*calls, *after])
    return model


class TestFunctions:
    @pytest.mark.parametrize("inner", [False, True])
    @pytest.mark.parametrize("own_weight", [False, True])
    def test_what_they_hold_is_resized(self, tmp_path: Path, inner: bool, own_weight: bool):
        onnx.save(with_functions(inner, own_weight), tmp_path / "functions.onnx")
        source = co.load(tmp_path / "functions.onnx")
        analysis = analyze(source)
        sizes = [6, 6, 5] if own_weight else [6, 5]
        assert [w.size for w in analysis.widths.values()] == sizes
        assert "function" not in {f.reason.kind for f in analysis.frozen}
        verdict = oracles.keep_all_laws(source.proto())
        assert verdict.moved > 1e-3
        decided = co.plan(analysis, scaled(analysis, 0.5)[0])
        resized = co.rewrite(source, decided)
        assert not co.verify(source, resized, decided, provider="cpu").skipped

    def test_the_file_that_is_written_has_none(self, tmp_path: Path):
        """Calls are replaced by what the functions do, in the file that is read already: it computes the same."""
        given = with_functions(inner=True, own_weight=True)
        onnx.save(given, tmp_path / "functions.onnx")
        source = co.load(tmp_path / "functions.onnx")
        feeds = oracles.feeds_of(source)
        source.save(tmp_path / "same.onnx")
        written = onnx.load(tmp_path / "same.onnx")
        assert not written.functions
        assert not any(node.domain for node in written.graph.node)
        onnx.checker.check_model(written, full_check=True)
        expected, actual = (run(tmp_path / f"{name}.onnx", feeds, ["y"])["y"] for name in ("functions", "same"))
        assert np.array_equal(expected, actual)
