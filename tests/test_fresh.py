"""`--init fresh` forgets everything that was learned, and begins as new networks do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zoo
from cli_support import call, save, small_model
from onnx import helper
from test_train import accuracy, network, problem, train

from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend.fresh import fresh
from conet_onnx.torch_backend.weights import trainable
from tests.onnx_parity import Array, build, some

NODE = helper.make_node


def one(nodes: Sequence[onnx.NodeProto], x: Array, weights: dict[str, Array], outputs: Sequence[str] = ("y",)) -> Graph:
    return Graph(build(nodes, {"x": x}, weights, outputs, 17, "batch"))


class TestEachKind:
    """The spread of what is drawn, for each operator that reads it."""

    @pytest.mark.parametrize(
        ("op", "shape", "x", "attributes", "expected"),
        [
            ("Conv", (64, 32, 3, 3), (1, 32, 8, 8), {}, np.sqrt(2 / (32 * 9))),
            ("Conv", (256, 1, 5, 5), (1, 256, 8, 8), {"group": 256}, np.sqrt(2 / 25)),
            ("ConvTranspose", (64, 32, 4, 4), (1, 64, 8, 8), {"strides": [2, 2]}, np.sqrt(2 / (64 * 4))),
            ("Gemm", (200, 50), (1, 50), {"transB": 1}, np.sqrt(1 / 50)),
            ("Gemm", (50, 200), (1, 50), {}, np.sqrt(1 / 50)),
            ("MatMul", (50, 200), (1, 50), {}, np.sqrt(1 / 50)),
        ],
    )
    def test_products(
        self, op: str, shape: tuple[int, ...], x: tuple[int, ...], attributes: Any, expected: float
    ) -> None:
        rng = np.random.default_rng(0)
        graph = one([NODE(op, ["x", "w"], ["y"], **attributes)], some(x, rng), {"w": 9 + some(shape, rng)})
        made = fresh(graph, 1).array("w")
        assert made.mean() == pytest.approx(0, abs=0.05 * expected)
        assert made.std() == pytest.approx(expected, rel=0.05)
        assert made.dtype == np.float32

    def test_a_weight_behind_a_transpose(self) -> None:
        rng = np.random.default_rng(0)
        nodes = [NODE("Transpose", ["w"], ["t"], perm=[1, 0]), NODE("MatMul", ["x", "t"], ["y"])]
        graph = one(nodes, some((1, 40), rng), {"w": some((300, 40), rng)})
        assert fresh(graph, 1).array("w").std() == pytest.approx(np.sqrt(1 / 40), rel=0.05)

    def test_norms_biases_statistics_and_slopes(self) -> None:
        rng = np.random.default_rng(0)
        names = ("s", "b", "m", "v")
        weights = {"w": some((6, 3, 1, 1), rng), "c": some((6,), rng), "p": some((6, 1, 1), rng)}
        weights |= {name: np.abs(some((6,), rng)) for name in names}
        nodes = [
            NODE("Conv", ["x", "w", "c"], ["a"]),
            NODE("BatchNormalization", ["a", *names], ["n"]),
            NODE("PRelu", ["n", "p"], ["y"]),
        ]
        made = fresh(one(nodes, some((1, 3, 4, 4), rng), weights), 1)
        for name, value in {"c": 0, "s": 1, "b": 0, "m": 0, "v": 1, "p": 0.25}.items():
            assert (made.array(name) == value).all(), name

    def test_recurrent_weights(self) -> None:
        rng = np.random.default_rng(0)
        weights = {"w": some((1, 256, 10), rng), "r": some((1, 256, 64), rng), "b": some((1, 512), rng)}
        made = fresh(
            one([NODE("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=64)], some((5, 1, 10), rng), weights), 1
        )
        for name in weights:
            assert np.abs(made.array(name)).max() == pytest.approx(1 / 8, rel=0.02)
            assert made.array(name).std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.05)

    def test_gains_shifts_tables_and_masks(self) -> None:
        rng = np.random.default_rng(0)
        weights = {
            "gain": some((8,), rng), "shift": some((8,), rng), "place": some((5, 8), rng),
            "mask": np.where(np.tri(8), 0, -1e9).astype(np.float32)[:5],
        }  # fmt: skip
        nodes = [
            NODE("Mul", ["x", "gain"], ["a"]),
            NODE("Add", ["a", "shift"], ["b"]),
            NODE("Add", ["b", "place"], ["c"]),
            NODE("Add", ["c", "mask"], ["y"]),
        ]
        graph = one(nodes, some((1, 5, 8), rng), weights)
        made = fresh(graph, 1)
        assert (made.array("gain") == 1).all()
        assert (made.array("shift") == 0).all()
        assert made.array("place").std() == pytest.approx(0.02, rel=0.4)
        np.testing.assert_array_equal(made.array("mask"), weights["mask"])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_real_networks_forget_everything_and_still_compute(name: str) -> None:
    graph = zoo.graph(name, dynamic_batch=True)
    made = fresh(graph, 3)
    learned = [n for n in trainable(graph) if graph.array(n).any()]
    assert len(learned) > 30
    assert all(not np.array_equal(made.array(n), graph.array(n)) for n in learned)
    assert made.model.graph.node == graph.model.graph.node
    again, other = fresh(graph, 3), fresh(graph, 4)
    assert all(np.array_equal(made.array(n), again.array(n)) for n in learned)
    assert any(not np.array_equal(made.array(n), other.array(n)) for n in learned)


def test_a_network_learns_from_scratch() -> None:
    taught = train(network(), problem(), epochs=6).graph
    anew = train(taught, problem(), epochs=0, init="fresh").graph
    again = train(taught, problem(), epochs=8, init="fresh", lr=0.05).graph
    data = problem(200, seed=1)
    assert accuracy(taught, data) > 0.95
    assert accuracy(anew, data) < 0.6
    assert accuracy(again, data) > 0.95


def test_inserted_norms_normalise() -> None:
    """In a new network they are no identity: what leaves a convolution has mean 0 and deviation 1."""
    graph = Graph(small_model(classes=4, size=6))
    fitted = train(graph, problem(), epochs=0, init="fresh", batchnorm="reinsert").graph
    made = onnx.ModelProto()
    made.CopyFrom(fitted.proto())
    made.graph.output.append(helper.make_empty_tensor_value_info("a"))
    from onnx.reference import ReferenceEvaluator

    from tests.test_train import normalise

    inner = ReferenceEvaluator(made).run(["a"], {"x": normalise(problem().images[:])})[0]
    np.testing.assert_allclose(inner.mean((0, 2, 3)), 0, atol=0.2)
    np.testing.assert_allclose(inner.std((0, 2, 3)), 1, atol=0.2)


def test_what_cannot_be_forgotten_is_said() -> None:
    rng = np.random.default_rng(0)
    graph = one([NODE("Max", ["x", "w"], ["y"])], some((1, 12), rng), {"w": some((12,), rng)})
    with pytest.raises(UsageError, match="'w' is read by Max"):
        fresh(graph, 0)


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(small_model(classes=4), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    np.savez("d.npz", x_train=rng.normal(0, 1, (60, 1, 8, 8)).astype(np.float32), y_train=rng.integers(0, 4, 60))
    line = "finetune model.onnx --data d.npz --mean 0 --std 1 --threads 1 --provider cpu --epochs 1 --lr 1e-9"
    line += " --batchnorm none"
    assert call(f"{line} -o a.onnx --init fresh --seed 1").code == 0
    assert call(f"{line} -o b.onnx --init fresh --seed 2").code == 0
    assert call(f"{line} -o c.onnx").code == 0
    a, b, c, source = (Graph(onnx.load(name)).array("c2.w") for name in ("a.onnx", "b.onnx", "c.onnx", "model.onnx"))
    assert np.abs(a - b).max() > 0.1
    assert np.abs(a - source).max() > 0.1
    assert np.abs(c - source).max() < 1e-6
