"""Denormal numbers: set to zero and counted where training changed a tensor, reported elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cli_support import call
from onnx import TensorProto, helper, numpy_helper

import conet_onnx as co
from conet_onnx.denormals import SMALLEST, _count, denormal, denormals
from conet_onnx.slicing import Slices
from conet_onnx.torch_backend.lower import returned

TINY = np.array([1e-39, -1e-45, 1.1754942e-38, -9e-40], dtype=np.float32)  # the last number below the normal ones too


def model(folder: Path) -> Path:
    """Pixels through two layers; the first has denormal weights at pixel 0, which is black in every digit."""
    rng = np.random.default_rng(0)
    first = rng.normal(0, 0.2, (12, 64)).astype(np.float32)
    first[:4, 0] = TINY
    second = rng.normal(0, 0.2, (10, 12)).astype(np.float32)
    weights = {"first": first, "second": second, "bias": np.array([*TINY, *np.zeros(8)], dtype=np.float32)}
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "first", "bias"], ["hidden"], "one", transB=1),
        helper.make_node("Relu", ["hidden"], ["positive"], "relu"),
        helper.make_node("Gemm", ["positive", "second"], ["y"], "two", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    onnx.save(made, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (0, 2)])
def test_denormal_is_what_lies_between_zero_and_the_smallest_normal_number(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, shape, dtype=np.uint64).astype(np.uint32)
    for array in (bits & 0x80FFFFFF, bits):  # mostly denormal, and hardly ever
        numbers = np.asarray(array, dtype=np.uint32).view(np.float32).reshape(shape)
        expected = (np.abs(numbers.astype(np.float64)) < SMALLEST) & (numbers != 0)
        assert np.array_equal(denormal(numbers), expected)
    assert not denormal(np.array([1e-310, 1.0])).any()
    assert not denormal(np.array([SMALLEST, -SMALLEST, 0.0, -0.0, np.inf, np.nan], dtype=np.float32)).any()


def test_each_weight_has_its_count(tmp_path: Path) -> None:
    assert denormals(co.load(model(tmp_path))) == {"first": 4, "bias": 4}


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 18) + 3])
def test_counting_is_the_sum_of_what_is_denormal(size: int) -> None:
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2**32, size, dtype=np.uint64).astype(np.uint32)
    bits[::3] &= 0x80FFFFFF
    numbers = bits.view(np.float32)
    assert _count(numbers) == int(denormal(numbers).sum())
    assert _count(np.array([SMALLEST, -SMALLEST, 0.0, -0.0, np.inf, np.nan], dtype=np.float32)) == 0


def test_what_a_rewrite_makes_later_is_counted_and_not_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weights = {"a": rng.normal(size=(64, 64)).astype(np.float32), "b": rng.normal(size=(10, 64)).astype(np.float32)}
    weights["a"][:, :] *= np.float32(1e-38)
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["hidden"], "one", transB=1),
        helper.make_node("Gemm", ["hidden", "b"], ["y"], "two", transB=1),
    ]
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 64), ("y", 10))]
    inits = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], inits)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]), tmp_path / "m.onnx")
    source = co.load(tmp_path / "m.onnx")
    analysis = co.analyze(source)
    small = co.rewrite(source, co.plan(analysis, dict.fromkeys(analysis.widths, 40)))
    before = small.arrays["a"]
    assert isinstance(before, Slices)
    found = denormals(small)
    assert before._whole is None
    assert found == {"a": int(denormal(small.array("a")).sum())}


def test_in_tensors_that_changed_they_are_zero_and_counted_and_others_keep_their_bytes(tmp_path: Path) -> None:
    graph = co.load(model(tmp_path))
    module = co.to_torch(graph)
    assert returned(graph, module)[1] == 0
    with torch.no_grad():
        next(p for p in module.parameters() if p.shape == (12, 64))[5, 5] += 1.0
    trained, flushed = returned(graph, module)
    assert flushed == 4
    expected = graph.array("first").copy()
    expected[:4, 0] = 0
    expected[5, 5] += 1
    assert trained.array("first").tobytes() == expected.tobytes()
    assert trained.array("bias").tobytes() == graph.array("bias").tobytes()


class TestCommands:
    def test_finetune_says_how_many(self, tmp_path: Path) -> None:
        file, out = model(tmp_path), tmp_path / "out.onnx"
        line = f"finetune {file} -o {out} --data digits --epochs 1 --mean 0 --std 1"
        made = call(line)
        assert made.code == 0, made.err
        before, after = co.load(file).array("first"), co.load(out).array("first")
        assert not np.array_equal(before, after)
        assert denormals(co.load(out)) == {}
        assert "denormal numbers in trained weights were set to zero." in made.out
        made = call(f"{line.replace(str(out), str(tmp_path / 'again.onnx'))} --json -")
        assert json.loads(made.out)["flushed"] >= 4

    def test_search_says_how_many(self, tmp_path: Path) -> None:
        file = model(tmp_path)
        line = (
            f"search {file} --data digits --budget macs=0.9 --trials 1 --epochs-per-trial 1 --epochs 0 --mean 0 --std 1"
        )
        made = call(f"{line} --algorithm compound --out {tmp_path / 'run'}")
        assert made.code == 0, made.err
        document = json.loads((tmp_path / "run" / "run.json").read_text())
        assert document["best"]["flushed"] > 0
        assert f"{document['best']['flushed']} denormal number" in made.out
        assert denormals(co.load(tmp_path / "run" / "best.onnx")) == {}

    def test_analyze_reports_them(self, tmp_path: Path) -> None:
        made = call(f"analyze {model(tmp_path)}")
        assert made.code == 0, made.err
        assert "8 weights in 2 tensors (such as first) are denormal" in made.out
        document = json.loads(call(f"analyze {model(tmp_path)} --json -").out)
        assert document["denormals"] == {"first": 4, "bias": 4}
        made = call(f"analyze {Path(__file__).parent.parent}/models/digits_resnet8.onnx")
        assert "denormal" not in made.out

    def test_resize_reports_them_and_leaves_them(self, tmp_path: Path) -> None:
        made = call(f"resize {model(tmp_path)} -o {tmp_path / 'out.onnx'} --scale 1")
        assert made.code == 0, made.err
        assert "8 weights of the source in 2 tensors (such as first) are denormal" in made.out
        assert denormals(co.load(tmp_path / "out.onnx")) == {"first": 4, "bias": 4}
        made = call(
            f"resize {Path(__file__).parent.parent}/models/digits_resnet8.onnx -o {tmp_path / 'b.onnx'} --scale 1"
        )
        assert "denormal" not in made.out
