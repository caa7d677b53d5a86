"""Hold one model to the laws of resizing: every way that the zoo resizes it, and what it says of itself."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import oracles

import conet_onnx as co
from conet_onnx.analysis import Analysis
from conet_onnx.errors import ModelError
from conet_onnx.graph import Graph
from conet_onnx.planning import Selection, select
from conet_onnx.runtime import session
from tools.measuring import high_water

__all__ = ["examine"]

LARGE = 400e6  # bytes: models above are analysed and halved only
DRAWS = range(5, 8)  # seeds of what rounding does
CHAOS = 1e-2  # of a tensor's largest element: where rounding does that much, a comparison says little
ALIVE = 1e-4  # a mask that moves no output by this much proves little


def examine(file: Path) -> dict[str, Any]:
    """What the table says of a model; `verdict` is "passed" or "failed", with the message of what went wrong."""
    record: dict[str, Any] = {"verdict": "failed", "seconds": {}}
    try:
        _examine(file, record)
    except Exception as error:  # whatever goes wrong with a valid model is a finding
        record["message"] = f"{record.pop('stage', '')}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return record
    record.pop("stage")
    if record["exact"] and record.get("moved", 1) < ALIVE:
        record["message"] = "the mask moves no output: halving is compared on tensors that say little"
    record["verdict"] = "passed"
    return record


def _examine(file: Path, record: dict[str, Any]) -> None:
    seconds: dict[str, float] = record["seconds"]

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        record["stage"] = name
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began

    _warm_up()
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f"{file.stem}.half-") as folder:
        with high_water() as risen:
            with stage("load"):
                graph = co.load(file)
            with stage("shapes"):
                _ = graph.inference
            with stage("analysis"):
                analysis = co.analyze(graph)
                _ = analysis.widths, analysis.frozen, analysis.costs
            record |= _facts(graph, analysis)
            halves = {name: max(1, w.size // 2) for name, w in analysis.widths.items()}
            with stage("resize"):
                plan = co.plan(analysis, halves, co.importance(graph, "l2", analysis=analysis))
                co.rewrite(graph, plan).save(Path(folder, "half.onnx"))
            record["peak"] = risen() / record["bytes"]
        half = co.load(Path(folder, "half.onnx"))
        record["half"] = co.analyze(half).costs.source.params / max(analysis.costs.source.params, 1)
        with stage("verify"):
            co.verify(graph, half, plan, provider="cpu")
            if runs := record["bytes"] <= LARGE and _runs(graph):
                oracles.assert_valid(half, graph)
    if record["bytes"] > LARGE:
        record["message"] = "too large for more than halving"
        return
    if not runs:
        record["message"] = "onnxruntime does not run the source here: no tensors were compared"
        return
    rng = np.random.default_rng(0)
    with stage("rounding"):
        noise = _noise(graph)
    if (most := max(noise.values(), default=0.0)) > CHAOS:
        record["message"] = f"chaotic: rounding alone moves a tensor by {most:.0e}"
    record["worst"], record["compared"] = 0.0, 0
    ways = {
        "halved": oracles.shrunk(analysis, rng),
        "shrunk at random": _random(analysis, rng),
        "grown by a quarter": _quarter(analysis, rng),
        "doubled": oracles.doubled(analysis, rng),
    }
    for name, selections in ways.items():
        with stage(name):
            if not selections:
                continue
            resized = co.rewrite(graph, oracles.through_json(select(analysis, selections)))
            outcome = _compare(analysis, resized, selections, noise)
            oracles.assert_valid(resized, graph)
            sizes = {n: len(s.indices) for n, s in selections.items()}
            assert analysis.costs.price(sizes).params == oracles.counted(resized)[0], "the price is not what is there"
            record["worst"] = max(record["worst"], outcome.worst)
            record["compared"] += outcome.compared
            if name == "halved":
                record["moved"] = outcome.moved


def _noise(graph: Graph) -> dict[str, float]:
    """What rounding does to each tensor: the most of three draws."""
    draws = [oracles.rounding(graph, seed=seed) for seed in DRAWS]
    return {name: max(draw[name] for draw in draws) for name in draws[0]}


def _compare(
    analysis: Analysis, resized: Graph, selections: dict[str, Selection], noise: dict[str, float]
) -> oracles.Outcome:
    """Compare every tensor. Where that fails by the source's noise, the masked source's counts as well: a division by
    what few channels are left in may round worse than it did by all of them. What is chosen by numbers so near to each
    other that rounding decides (a detector's candidates) is left out then, and what follows from it. What fails even so
    is decided in double precision, where nothing is allowed for rounding, with shares that round no weights."""
    try:
        return oracles.compare_with(analysis, resized, selections, noise=noise)
    except AssertionError:
        own, apart = _rounded(analysis, selections, noise)
    try:
        return oracles.compare_with(analysis, resized, selections, noise=own, apart=apart)
    except AssertionError as error:
        even = oracles.halved_shares(selections)
        resized = co.rewrite(analysis.graph, oracles.through_json(select(analysis, even)))
        try:
            return oracles.compare_with(analysis, resized, even, double=True)
        except NotImplementedError:  # of an operator that onnx's evaluator does not know
            raise error from None


def _rounded(
    analysis: Analysis, selections: dict[str, Selection], noise: dict[str, float]
) -> tuple[dict[str, float], frozenset[str]]:
    """What rounding does to the source or the masked one, whichever is more, and the tensors that it decides."""
    graph = analysis.graph
    hidden = oracles.masked(analysis, {analysis.widths[name].dim: s.indices for name, s in selections.items()})
    if hidden is None:
        return noise, oracles.undecided(graph, DRAWS, noise)
    own = _noise(hidden)
    most = {name: max(value, own.get(name, 0.0)) for name, value in noise.items()}
    return most, oracles.undecided(graph, DRAWS, most) | oracles.undecided(hidden, DRAWS, most)


def _facts(graph: Graph, analysis: Analysis) -> dict[str, Any]:
    params, macs = analysis.costs.coverage
    return {
        "opset": graph.opset,
        "nodes": len(graph.nodes),
        "bytes": sum(data.nbytes for data in graph.arrays.values()) + graph.model.ByteSize(),
        "widths": len(analysis.widths),
        "exact": sum(width.exact for width in analysis.widths.values()),
        "params": params,
        "macs": macs,
        "millions": analysis.costs.source.params / 1e6,
        "frozen": _frozen(analysis),
    }


def _runs(graph: Graph) -> bool:
    try:
        session(graph, provider="cpu", threads=1)
    except ModelError:
        return False
    return True


def _random(analysis: Analysis, rng: np.random.Generator) -> dict[str, Selection]:
    """Exact widths, each to a random size."""
    made = {}
    for name, width in analysis.widths.items():
        if width.exact:
            kept = np.sort(rng.permutation(width.size)[: rng.integers(1, width.size + 1)])
            made[name] = Selection(kept, np.ones(len(kept)))
    return made


def _quarter(analysis: Analysis, rng: np.random.Generator) -> dict[str, Selection]:
    """Exact widths grown by a quarter, at least one; the copies take uneven shares."""
    made = {}
    for name, width in analysis.widths.items():
        if width.exact and width.max is None:
            extra = rng.integers(0, width.size, max(1, width.size // 4))
            made[name] = oracles.uneven(np.concatenate([np.arange(width.size), extra]), rng)
    return made


def _frozen(analysis: Analysis) -> list[tuple[str, str, float]]:
    """Reasons for which whole weights cannot be resized: kind, the first such reason, share of the parameters."""
    graph, total = analysis.graph, max(analysis.costs.source.params, 1)
    free = {
        use.tensor
        for use in analysis.every_use
        for s in use.shape
        if set(analysis.solver.leaves(s)) & analysis.resizable
    }
    share: Counter[str] = Counter()
    example: dict[str, str] = {}
    seen = set()
    for axis in analysis.frozen:
        if axis.tensor in free or axis.tensor in seen:
            continue
        seen.add(axis.tensor)
        share[axis.reason.kind] += int(np.prod(graph.weights[axis.tensor].dims))
        example.setdefault(axis.reason.kind, f"{axis.tensor}: {axis.reason.detail}"[:240])
    return [(kind, example[kind], count / total) for kind, count in share.most_common(5)]


def _warm_up() -> None:
    """What is imported and built on first use is not this model's memory or time."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w2"], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy")
    second = numpy_helper.from_array(np.ones((4, 4), np.float32), "w2")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight, second]))
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder, "m.onnx"))
        graph = co.load(Path(folder, "m.onnx"))
        analysis = co.analyze(graph)
        plan = co.plan(analysis, dict.fromkeys(analysis.widths, 2))
        co.rewrite(graph, plan).save(Path(folder, "n.onnx"))
