"""What the tests of the command line share: calls in this process, small models, and what a folder holds."""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.cli.main import main

__all__ = ["Result", "call", "listing", "only_line", "save", "small_model"]


LOGGED = ("Training ", "Measuring ", "Evaluating ", "Inputs: ", "Searching ", "reading the model and the data")


@dataclass(frozen=True)
class Result:
    """What one call left."""

    code: int
    out: str
    err: str


def call(line: str = "", *more: str | Path) -> Result:
    """`conet-onnx LINE MORE...` in this process; the line is split into words, the others are words."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*shlex.split(line), *map(str, more)])
    return Result(code, out.getvalue(), err.getvalue())


def only_line(result: Result) -> str:
    """The one line on stderr that says what is wrong. It is the last one; what stands before it tells what was done."""
    lines = result.err.splitlines()
    assert "Traceback" not in result.err
    assert [line.startswith("conet-onnx: ") for line in lines] == [False] * (len(lines) - 1) + [True], result.err
    assert all(line.startswith(LOGGED) for line in lines[:-1]), result.err
    assert lines[-1].startswith("conet-onnx: error: ")
    return lines[-1]


def listing(folder: Path) -> Mapping[str, bytes | None]:
    """Every path below a folder (hidden ones too), with the bytes of its files."""
    return {
        os.path.relpath(path, folder): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def small_model(*, classes: int = 10, size: int = 8, seed: int = 0) -> onnx.ModelProto:
    """Two convolutions, a pooled Gemm: input x [batch, 1, size, size], widths 6 and 8, logits y [batch, classes]."""
    rng = np.random.default_rng(seed)
    shapes = {
        "c1.w": (6, 1, 3, 3),
        "c1.b": (6,),
        "c2.w": (8, 6, 3, 3),
        "c2.b": (8,),
        "fc.w": (classes, 8),
        "fc.b": (classes,),
    }
    weights = [numpy_helper.from_array(rng.normal(0, 0.3, s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "c1.w", "c1.b"], ["a"], "c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "r1"),
        helper.make_node("Conv", ["b", "c2.w", "c2.b"], ["c"], "c2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"], "r2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["y"], "fc", transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes])
    graph = helper.make_graph(nodes, "small", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def save(model: onnx.ModelProto, file: Path) -> Path:
    """Write a model, and give back where."""
    file.write_bytes(model.SerializeToString())
    return file
