"""Prove that one model is another one resized by a plan, from the files and the plan's JSON alone.

Nothing here is shared with what plans or rewrites: the plan is read as CONTRACT's JSON, and the resized model is
compared field by field, weight by weight, integer by integer, and then run against the masked source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conet_onnx.errors import VerificationFailed
from conet_onnx.graph import Graph
from conet_onnx.runtime import resolve
from conet_onnx.verification.plans import Plan, Planned, read
from conet_onnx.verification.proof import Check, Proof
from conet_onnx.verification.running import check_model, compare_runs
from conet_onnx.verification.structure import compare_structure
from conet_onnx.verification.values import compare_integers, compare_weights

__all__ = ["Check", "Plan", "Proof", "verify"]


def verify(
    source: Graph,
    resized: Graph,
    plan: Plan | Mapping[str, Any],
    *,
    provider: str = "auto",
    seed: int = 0,
    tolerance: float = 1e-4,
) -> Proof:
    """Prove that `resized` is `source` resized by `plan`.

    Structure: every field outside the plan is equal. Weights: each is take(source)/divide, bit for bit (one unit in
    the last place where it was divided). Integers: as planned. It passes the checker and strict shape inference, runs,
    and gives outputs of the source's shapes and types. Function: its outputs are those of the source whose contracted
    weights are zero outside the kept indices, to `tolerance` relative to the largest output.

    Raises VerificationFailed with the first thing that differs, UsageError for a plan that cannot be read.
    """
    planned = read(plan)
    provider = resolve(provider, exact=True)
    checks: list[Check | None] = []
    try:
        checks.append(_check_source(source, planned))
        pairs = compare_structure(source, resized, planned)
        checks.append(Check("structure", f"{len(pairs)} nodes and every field outside the plan are the source's"))
        checks.append(compare_weights(source, resized, planned, pairs))
        checks.append(compare_integers(source, resized, planned, pairs))
        checked, unchecked = check_model(source, resized)
        ran, not_run, difference = compare_runs(source, resized, planned, provider, seed, tolerance)
    except VerificationFailed as error:
        names = resized.file or "the resized model", source.file or "the source"
        raise VerificationFailed(f"{names[0]} is not {names[1]} resized by this plan: {error}") from error
    values = Check("values", "the plan says that they were changed: shapes and types are proved, float values are not")
    skipped = [unchecked, values if planned.changed else None, *not_run]
    proved = tuple(check for check in (*checks, checked, *ran) if check)
    return Proof(proved, tuple(check for check in skipped if check), difference)


def _check_source(source: Graph, planned: Planned) -> Check:
    if planned.sha256 != source.sha256:
        raise VerificationFailed(
            f"the plan is for {planned.file or 'another model'} (sha256 {planned.sha256[:12]}...), and "
            f"{source.file or 'the source'} has {source.sha256[:12]}...; name the source that the plan was made for "
            "(freed of its batch if `resize --free-batch` wrote the plan)."
        )
    return Check("source", f"the plan was made for this file (sha256 {source.sha256[:12]}...)")
