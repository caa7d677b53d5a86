"""Hold the lowering to the node tests that ship in the onnx package, and write what came of it to docs/lowering.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

__all__ = ["PAGE", "Verdict", "main", "page", "verdicts"]

PAGE = ROOT / "docs" / "lowering.md"
PASSED, SETTINGS, OTHERWISE, REFUSED = "passed", "with constants", "as onnxruntime", "refused"
APART, FAILED = "not applicable", "failed"
RANDOM = ("test_training_dropout", "test_training_dropout_default")  # what is dropped there is drawn with numpy
RELATIVE, ABSOLUTE = 1e-3, 1e-5  # what onnx's own runner allows a backend (relative), and less for small numbers

HEAD = """# What the torch backend lowers

Made by `python tools/node_tests.py`; onnx {onnx}, torch {torch}.

Every operator of the table in `conet_onnx/torch_backend/ops` is run on its own node tests, which ship in the onnx
package.

- *passed*: the lowered node gives the outputs that the test lists (to 1e-3 relative or 1e-5);
- *with constants*: the test gives axes, bounds or other settings as inputs of the model, which is refused; it passes
  where they are constants of the file, as exporters write them;
- *as onnxruntime*: onnxruntime gives other numbers than the test, and the lowered node gives onnxruntime's;
- *refused*: `lower` raises UnsupportedOp, which names the node, the operator, the opset and the reason;
- *not applicable*: strings, sequences that a model takes or gives, element types that numpy cannot hand to torch, and
  numbers that are drawn at random;
- *failed*: wrong.
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one test."""

    op: str
    test: str
    verdict: str
    why: str = ""


def verdicts() -> Iterator[Verdict]:
    """Every node test of one node whose operator is lowered."""
    from onnx.backend.test.case.node import collect_testcases

    from conet_onnx.torch_backend.ops import FLOW, LOWER

    for case in collect_testcases(None):
        (node, *others) = case.model.graph.node
        if not others and not node.domain and node.op_type in LOWER | FLOW:
            yield _judged(node.op_type, case.name, case.model, case.data_sets)


def _judged(op: str, name: str, model: onnx.ModelProto, sets: Sequence[tuple[Any, Any]]) -> Verdict:
    from conet_onnx.errors import UnsupportedOp

    why = ""
    for verdict, constant in ((PASSED, False), (SETTINGS, True)):
        try:
            for inputs, outputs in sets:
                if not all(
                    isinstance(value, np.ndarray | np.generic | onnx.TensorProto) for value in (*inputs, *outputs)
                ):
                    return Verdict(op, name, APART)  # sequences
                given, wanted = (list(map(_array, values)) for values in (inputs, outputs))
                if name in RANDOM or any(
                    array.dtype.kind not in "fiub" or array.dtype.isbuiltin != 1 for array in (*given, *wanted)
                ):
                    return Verdict(op, name, APART)
                made = _with_constants(model, given, constant)
                if problem := _problem(*made, wanted):
                    theirs = _onnxruntime(model, given)
                    same = theirs is not None and not _problem(*made, theirs)
                    return Verdict(op, name, OTHERWISE if same else FAILED, problem)
            return Verdict(op, name, verdict, why)
        except UnsupportedOp as error:
            why = why or _reason(str(error))
    return Verdict(op, name, REFUSED, why)


def _array(value: Any) -> np.ndarray[Any, Any]:
    """Some tests give messages."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _with_constants(
    model: onnx.ModelProto, inputs: Sequence[np.ndarray[Any, Any]], constant: bool
) -> tuple[onnx.ModelProto, Sequence[np.ndarray[Any, Any]]]:
    """The model with all inputs but the first as weights."""
    if not constant:
        return model, inputs
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for value, array in zip(model.graph.input[1:], inputs[1:], strict=True):
        made.graph.initializer.append(numpy_helper.from_array(array, value.name))
    del made.graph.input[1:]
    return made, inputs[:1]


def _problem(model: onnx.ModelProto, inputs: Sequence[np.ndarray[Any, Any]], outputs: Sequence[Any]) -> str:
    """What is wrong with the outputs; empty where nothing is. Raises UnsupportedOp."""
    import torch

    from conet_onnx.graph import Graph
    from conet_onnx.torch_backend import lower

    module = lower(Graph(model))
    try:
        with torch.no_grad():  # not `module(...)`, which prints the code around an error
            made = type(module).forward(module, *(torch.from_numpy(np.array(array)) for array in inputs))
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    for got, wanted in zip(made if isinstance(made, tuple) else (made,), outputs, strict=True):
        array = got.numpy()
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            return f"{array.dtype}{list(array.shape)}, expected {wanted.dtype}{list(wanted.shape)}"
        if not np.allclose(array, wanted, RELATIVE, ABSOLUTE, equal_nan=True):
            return "other numbers"
    return ""


def _onnxruntime(model: onnx.ModelProto, inputs: Sequence[np.ndarray[Any, Any]]) -> list[Any] | None:
    """What onnxruntime makes of it; None where it has no kernel."""
    from conet_onnx.errors import ModelError
    from conet_onnx.runtime import run

    names = [value.name for value in model.graph.output]
    feeds = {value.name: array for value, array in zip(model.graph.input, inputs, strict=True)}
    try:
        made = run(model, feeds, names, provider="cpu", optimise=False)
    except ModelError:
        return None
    return [made[name] for name in names]


def _reason(message: str) -> str:
    """The middle of UnsupportedOp's message: what stands in the way."""
    return message.partition("): ")[2].partition(". The torch backend")[0] or message


def page(found: Sequence[Verdict]) -> str:
    """The whole of docs/lowering.md."""
    columns = (PASSED, SETTINGS, OTHERWISE, REFUSED, APART, FAILED)
    lines = [HEAD.format(onnx=metadata.version("onnx"), torch=metadata.version("torch").partition("+")[0])]
    lines += [f"| operator | {' | '.join(columns)} | why |", f"| --- |{' --- |' * (len(columns) + 1)}"]
    ops = sorted({verdict.op for verdict in found})
    for op in (*ops, "all"):
        own = [v for v in found if op in (v.op, "all")]
        counts = (sum(v.verdict == column for v in own) for column in columns)
        reasons = dict.fromkeys(_plain(v.why) for v in own if v.verdict in (REFUSED, FAILED) and op != "all")
        lines.append(f"| {op} | {' | '.join(str(n or '') for n in counts)} | {'; '.join(reasons)} |")
    return "\n".join(lines) + "\n"


def _plain(reason: str) -> str:
    return reason.replace("|", "\\|")


def main() -> int:
    """Write the page; 1 where a test fails."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    from tools.torchvision_schemas import define_missing_schemas

    define_missing_schemas()
    found = list(verdicts())
    PAGE.write_text(page(found))
    for verdict in found:
        if verdict.verdict == FAILED:
            print(f"{verdict.op} {verdict.test}: {verdict.why}")
    print(f"{PAGE.relative_to(ROOT)}: {len(found)} tests, {sum(v.verdict == FAILED for v in found)} failed.")
    return int(any(v.verdict == FAILED for v in found))


if __name__ == "__main__":
    raise SystemExit(main())
