"""Check and run two models: alike in shapes and types, and the same function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from conet_onnx.contrib import apart_from_onnx
from conet_onnx.errors import ModelError, UsageError, VerificationFailed
from conet_onnx.graph import Graph
from conet_onnx.runtime import random_feeds, run_session, session
from conet_onnx.storing import PROTOBUF_LIMIT
from conet_onnx.verification.masking import masked_model, masked_operands, meetings, mixers
from conet_onnx.verification.plans import Planned
from conet_onnx.verification.proof import Check

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["CHAOS", "check_model", "compare_runs", "sensitivity"]

LARGE = 1024  # elements: larger weights stay out of the model that the checker reads
DISAGREE = 1e-3  # share of a whole-number output (a class, say) that rounding may flip
ROUNDING = 16  # units of the output type's precision that are always granted
CHAOS = 4  # times what rounding the source's own weights does to its outputs
ENOUGH, MOST = 16_384, 16  # elements of random input, and runs, that are enough

Array = np.ndarray[Any, Any]


def check_model(source: Graph, resized: Graph) -> tuple[Check | None, Check | None]:
    """The checker and strict shape inference accept it; a source that they refuse is not the plan's fault."""
    name = "checker"
    if (problem := _problem(resized.model)) is None:
        return Check(name, "onnx.checker and strict shape inference accept it"), None
    if (own := _problem(source.model)) is not None:
        return None, Check(name, f"the source itself is refused: {own}")
    raise VerificationFailed(f"the ONNX checker refuses it: {problem}")


def _problem(model: onnx.ModelProto) -> str | None:
    """What the checker has against a model; large and sparse weights are taken for inputs: their types matter."""
    light = onnx.ModelProto(ir_version=model.ir_version, domain=model.domain, functions=model.functions)
    light.opset_import.extend(model.opset_import)
    declared = {value.name for value in model.graph.input}
    for descriptor, value in model.graph.ListFields():
        if descriptor.name == "initializer":
            for tensor in value:
                if np.prod(tensor.dims, dtype=np.int64) <= LARGE:
                    light.graph.initializer.add().CopyFrom(tensor)
                elif tensor.name not in declared:
                    light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        elif descriptor.name == "sparse_initializer":  # onnx's shape inference takes them for scalars
            types = ((sparse.values.name, sparse.values.data_type, sparse.dims) for sparse in value)
            light.graph.input.extend(helper.make_tensor_value_info(*t) for t in types if t[0] not in declared)
        elif descriptor.is_repeated:
            getattr(light.graph, descriptor.name).extend(value)
        else:
            setattr(light.graph, descriptor.name, value)
    apart_from_onnx(light)
    if light.ByteSize() > PROTOBUF_LIMIT:
        return None  # constants of gigabytes inside nodes; the session will tell
    try:
        onnx.checker.check_model(light, full_check=True)
        onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        return " ".join(str(error).split())
    return None


def compare_runs(
    source: Graph, resized: Graph, planned: Planned, provider: str, seed: int, tolerance: float
) -> tuple[list[Check], list[Check], float | None]:
    """Both run, alike in shapes and types, and the resized one computes what the masked source computes."""
    start = partial(session, provider=provider, exact=True, optimise=not _is_quantised(source))
    try:
        feeds = _feeds(source, seed)
        expected = _outputs(start(source), feeds)
    except (ModelError, UsageError) as error:
        return [], [Check("run", f"the source itself does not run here: {error}")], None
    try:
        actual = _outputs(start(resized), feeds)
    except ModelError as error:
        raise VerificationFailed(f"it does not run, and the source does: {error}") from error
    for old, new in zip(expected, actual, strict=True):
        for name in old:
            _compare_output(old[name], new[name], f"output {name!r}")
    checks = [
        Check("run", f"onnxruntime ({provider}) gives {len(source.outputs)} outputs of the source's shapes and types")
    ]
    if planned.changed:
        return checks, [Check("function", "the plan says that values were changed")], None
    met = meetings(source, resized)
    operands, excuses = masked_operands(source, planned, makers=bool(met))
    masked, hidden, is_masked = expected, set[str](), bool(operands)
    if is_masked:
        inner = sorted({name for meeting in met for name, _ in meeting.operands})
        runs = _outputs(start(masked_model(source, operands), outputs=inner), feeds)
        masked = [{name: run[name] for name in expected[0]} for run in runs]
        hidden = {meeting.node.name for meeting in met if meeting.is_hidden(runs)}
    del operands  # as large as the source's weights
    if met and not np.isfinite(_difference(expected, masked)):
        excuses.append("what is made of zeros is not finite")
    difference = _difference(masked, actual)
    whose = "the masked source's" if is_masked else "the source's"
    allowed = max(tolerance, ROUNDING * _precision(masked[0]))
    if not difference <= allowed:
        allowed = max(allowed, CHAOS * sensitivity(source, feeds, expected, provider, seed))
    if not difference <= allowed:
        excuses += mixers(source, resized, hidden)
        if not excuses:
            raise VerificationFailed(
                f"outputs differ from {whose} by {difference:.1e} of the largest; rounding is {allowed:.0e} at most."
            )
        reason = f"outputs differ from {whose} by {difference:.1e}, as they may: {'; '.join(excuses[:3])}"
        return checks, [Check("function", reason)], difference
    if is_masked and (moved := _difference(expected, masked)) <= 10 * difference:
        reason = f"the mask moves the outputs by {moved:.1e} only: their agreement ({difference:.1e}) says little"
        return checks, [Check("function", reason)], difference
    checks.append(Check("function", f"outputs are {whose} to {difference:.1e}"))
    return checks, [], difference


def _outputs(started: ort.InferenceSession, feeds: Sequence[dict[str, Array]]) -> list[dict[str, Any]]:
    """What a session gives for each feed. Nobody keeps the session: it holds another copy of all weights."""
    return [run_session(started, feed) for feed in feeds]


def _is_quantised(graph: Graph) -> bool:
    """Whether it must run as it stands: kernels that onnxruntime fuses may saturate in one of two models only."""
    return any(node.op in ("QuantizeLinear", "DequantizeLinear") for node in graph.nodes)


def _compare_output(old: Any, new: Any, where: str) -> None:
    if not isinstance(old, np.ndarray) or not isinstance(new, np.ndarray):
        return  # a sequence or a map, which no planned axis reaches
    if old.shape != new.shape or old.dtype != new.dtype:
        raise VerificationFailed(
            f"{where} is {new.dtype.name}{list(new.shape)}, the source's is {old.dtype.name}{list(old.shape)}."
        )
    if old.dtype.kind == "f" and (np.isfinite(old) & ~np.isfinite(new)).any():
        raise VerificationFailed(f"{where} is not finite where the source's is.")


def _feeds(source: Graph, seed: int) -> list[dict[str, Array]]:
    """Random inputs: of one sample too, since a batch that was frozen by mistake fits one size at most.

    Small inputs come several times: a channel that a Relu happens to silence in one hides a mistake.
    """
    feeds = [random_feeds(source, seed)]
    elements = sum(array.size for array in feeds[0].values())
    feeds += [random_feeds(source, seed + i) for i in range(1, min(ENOUGH // max(elements, 1), MOST))]
    if any(value.shape and not isinstance(value.shape[0], int) for value in source.inputs):
        feeds.append(random_feeds(source, seed, batch=1))
    return feeds


def _difference(expected: Sequence[Mapping[str, Any]], actual: Sequence[Mapping[str, Any]]) -> float:
    """The largest difference of any output in any run, relative to that output's largest magnitude."""
    found = [0.0]
    pairs = [(a[name], b[name]) for a, b in zip(expected, actual, strict=True) for name in a]
    for a, b in pairs:
        if not isinstance(a, np.ndarray) or not a.size:
            continue
        if a.dtype.kind != "f":
            share = float(np.mean(a != b))
            found.append(share if share > DISAGREE else 0.0)
            continue
        finite = np.isfinite(a)
        largest = float(np.max(np.abs(a), where=finite, initial=0))
        gap = float(np.max(np.abs(a.astype(np.float64) - b), where=finite, initial=0))
        found.append(gap / largest if largest else gap)
    return float(np.max(found))  # NaN where one of them is


def sensitivity(
    source: Graph, feeds: Sequence[dict[str, Array]], expected: Sequence[Mapping[str, Any]], provider: str, seed: int
) -> float:
    """How far the source's outputs move when its weights move by a unit in their last place or less.

    Only weights of two axes or more do: vectors and single numbers may be what sizes are computed from.
    """
    rng = np.random.default_rng(seed)
    moved = {}
    for name, tensor in source.weights.items():
        array = source.array(name) if len(tensor.dims) > 1 else np.zeros(0, bool)
        if array.dtype.kind == "f":
            by = 1 + np.finfo(array.dtype).eps * rng.uniform(-1, 1, array.shape)
            moved[name] = (array * by).astype(array.dtype)  # at once: together they would take twice as much memory
    plain = _is_quantised(source)
    started = session(source.with_arrays(moved), provider=provider, exact=True, optimise=not plain)
    return _difference(expected, _outputs(started, feeds))


def _precision(outputs: Mapping[str, Any]) -> float:
    floats = [a.dtype for a in outputs.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    return max((float(np.finfo(dtype).eps) for dtype in floats), default=0.0)
