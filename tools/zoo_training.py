"""Lower one model to torch: does it compute what onnxruntime computes, and do gradients reach its weights?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracles

import conet_onnx as co
from conet_onnx.errors import ModelError, UnsupportedOp
from conet_onnx.graph import REALS, Graph
from conet_onnx.runtime import run, session
from conet_onnx.torch_backend.stepped import stepped_weights

__all__ = ["examine"]

PARITY = 1e-4  # relative to an output's largest element; or three times what rounding does to it; or each node alone


def examine(file: Path) -> dict[str, Any]:
    """What the table says of a model's training; `verdict` is "passed", "refused", "failed" or "not compared"."""
    record: dict[str, Any] = {"verdict": "failed"}
    try:
        _examine(file, record)
    except UnsupportedOp as error:
        record |= {"verdict": "refused", "message": _reason(error)}
    except Exception as error:  # whatever goes wrong with a valid model is a finding
        record["message"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return record


def _examine(file: Path, record: dict[str, Any]) -> None:
    import torch

    from conet_onnx.torch_backend.lower import untrained_of

    graph = co.load(file)
    began = time.perf_counter()
    module = co.to_torch(graph)
    record["seconds"] = time.perf_counter() - began
    untrained = untrained_of(module)
    record["untrained"] = {name: _reason(why) for name, why in untrained.items()}
    try:
        session(graph, provider="cpu", threads=1)
    except ModelError:
        record |= {"verdict": "not compared", "message": "onnxruntime does not run the source here"}
        return
    feeds = oracles.feeds_of(graph)
    given = [torch.from_numpy(np.array(array)) for array in feeds.values()]
    expected = run(graph, feeds, provider="cpu", threads=1, optimise=False, exact=True)
    made = module(*given)
    outputs = dict(zip(expected, made if isinstance(made, tuple) else (made,), strict=True))
    errors = {}
    for name, wanted in expected.items():
        got = outputs[name].detach().numpy()
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            record["message"] = f"{name}: {got.dtype}{got.shape}, expected {wanted.dtype}{wanted.shape}"
            return
        if wanted.dtype.kind == "f":
            errors[name] = oracles.distance(got, wanted)
    record["worst"] = max(errors.values(), default=0.0)
    record["trained"] = _reached(graph, outputs, module)
    far = {name: error for name, error in errors.items() if not error <= PARITY}
    if far:
        noise = oracles.rounding(graph)
        record["noise"] = max(noise.get(name, 0.0) for name in far)
        wrong = [name for name, error in far.items() if not error <= 3 * noise.get(name, 0.0)]
        if wrong and not _amplified(graph, module, feeds, given, wrong, record):
            record["message"] = f"{wrong[0]} is off by {far[wrong[0]]:.1e}; {record['message']}"
            return
    record["verdict"] = "passed"


def _amplified(
    graph: Graph,
    module: Any,
    feeds: dict[str, Any],
    given: Sequence[Any],
    far: Sequence[str],
    record: dict[str, Any],
) -> bool:
    """Whether every node agrees where it is given what onnxruntime gives it, so that only rounding can be amplified.

    The record says how far the worst value is off then (`alone`), and how far rounding alone moves what is too `far`.
    """
    from tools.zoo_nodes import each_alone, moved_by_rounding

    ends = [value.name for value in graph.outputs]
    errors = each_alone(module, given, oracles.in_single(graph, feeds), ends)
    worst = max(errors, key=lambda name: (np.isnan(errors[name]), errors[name]))
    record["alone"] = {"worst": errors[worst], "at": str(graph.producer(worst)), "values": len(errors)}
    if not errors[worst] <= PARITY:
        record["message"] = f"given the same inputs, {graph.producer(worst)} is off by {errors[worst]:.0e}"
        return False
    moved = dict(zip(ends, moved_by_rounding(module, given), strict=True))
    record["alone"]["moved"] = max(moved[name] for name in far)
    record["message"] = (
        f"rounding amplified: every node agrees to {errors[worst]:.0e} given the same inputs ({len(errors)} values); "
        f"moving each value to a neighbouring float moves these outputs by {record['alone']['moved']:.0e}"
    )
    return True


def _reached(graph: Graph, outputs: dict[str, Any], module: Any) -> float:
    """The share of the floating-point parameters of two axes or more that some output's gradient reaches."""
    from conet_onnx.torch_backend.lower import names_of

    total = sum(out.square().mean() for out in outputs.values() if out.requires_grad and out.is_floating_point())
    if not hasattr(total, "backward"):
        return 0.0
    total.backward()
    parameters = dict(module.named_parameters())
    learned = {
        name: parameters[at].numel()
        for name, at in names_of(module)
        if at in parameters and parameters[at].grad is not None
    }
    stepped = stepped_weights(graph)
    kinds = {n for n, t in graph.weights.items() if (t.data_type in REALS or n in stepped) and len(t.dims) > 1}
    whole = {name: int(np.prod(graph.weights[name].dims)) for name in kinds}
    return sum(learned.get(name, 0) for name in whole) / max(1, sum(whole.values()))


def _reason(error: object) -> str:
    """What stands in the way, without what to do about it."""
    return " ".join(str(error).partition(". The torch backend")[0].split())[:300]
