"""Two oracles for resized models, which know the axes of each tensor and nothing of how plans are made.

Masking: a resized model is its source with the dropped channels hidden from every sum, and duplication: copies of
channels are equal to what they are copies of. Both are one comparison: every tensor of the resized model against the
masked source's tensor, taken along its axes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from oracles_double import TIGHT, in_double
from oracles_fused import fused_macs, fused_sums
from oracles_quantised import INTEGER, WEIGHT, hidden

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.contrib import apart_from_onnx
from conet_onnx.dims import Axis, Dim, Segment
from conet_onnx.folding import Use
from conet_onnx.graph import Graph, Node
from conet_onnx.planning import Selection, WidthPlan, plan, select
from conet_onnx.rewriting import rewrite
from conet_onnx.runtime import run_all, run_session, session

TOLERANCE = 2e-5
LEAST = 0.05  # tensors whose largest element is below this are compared as if it were this
CONTRACTED = {"Conv": 1, "ConvTranspose": 1, "MatMul": -1, **INTEGER}  # the axis of the first input that is summed over
STEPS = ("Ceil", "Floor", "Round", "Sign")
RECURRENT = ("GRU", "LSTM", "RNN")

Tensors = Mapping[str, np.ndarray]
Chosen = Mapping[Dim, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What a comparison found: how many tensors agree, the worst of them, and what the mask did to the outputs."""

    compared: int
    worst: float
    moved: float  # largest change of an output by the mask, relative to its largest element; 0 without a mask


# Which source elements are in a resized tensor


def positions(analysis: Analysis, ax: Axis | Segment, chosen: Chosen) -> np.ndarray:
    """The source positions along an axis, in the order of the resized one: blocks of a reshaped range are taken."""
    solver = analysis.solver
    resolved = solver.resolve(ax)
    rest, parts = np.arange(resolved.size[0]), []
    for segment in resolved.segments:
        block, rest = np.split(rest, [segment.size[0]])
        block = block.reshape([f if isinstance(f, int) else f.size[0] for f in segment.factors])
        for k, factor in enumerate(segment.factors):
            if not isinstance(factor, Dim):
                continue
            if factor in chosen:
                block = np.take(block, chosen[factor], axis=k)
            elif solver.is_composite(factor):
                block = np.take(block, positions(analysis, solver.resolve_dim(factor), chosen), axis=k)
        parts.append(block.ravel())
    return np.concatenate(parts) if parts else rest


def shares(analysis: Analysis, ax: Axis | Segment, factors: Chosen) -> np.ndarray:
    """What the elements along a resized axis are multiplied by, given the factors of the channels of each dim."""
    solver = analysis.solver
    parts = [np.ones(0)]
    for segment in solver.resolve(ax).segments:
        block = np.ones(1)
        for factor in segment.factors:
            if not isinstance(factor, Dim):
                own = np.ones(factor)
            elif factor in factors:
                own = factors[factor]
            elif solver.is_composite(factor):
                own = shares(analysis, solver.resolve_dim(factor), factors)
            else:
                own = np.ones(factor.size[0])
            block = np.outer(block, own).ravel()
        parts.append(block)
    return np.concatenate(parts)


def shared(analysis: Analysis, array: np.ndarray, shape: Sequence[Segment], factors: Chosen) -> np.ndarray:
    """A resized tensor times the factors of its channels."""
    for axis, segment in enumerate(shape):
        share = shares(analysis, segment, factors)
        if (share != 1).any():
            array = array * share.reshape([-1 if k == axis else 1 for k in range(array.ndim)]).astype(array.dtype)
    return array


def taken(analysis: Analysis, array: np.ndarray, shape: Sequence[Segment], chosen: Chosen) -> np.ndarray:
    """A source tensor along each of its axes."""
    for axis, segment in enumerate(shape):
        where = positions(analysis, segment, chosen)
        if not np.array_equal(where, np.arange(array.shape[axis])):
            array = np.take(array, where, axis=axis)
    return array


# The masked source


def masked(analysis: Analysis, chosen: Chosen) -> Graph | None:
    """The source whose contractions see zeros in place of the dropped channels; None where nothing is dropped.

    The sum over i of w[i]·x[i] with w zeroed outside the kept i is that with x zeroed there: so each contraction's
    first input is multiplied by a mask, whatever way the weight takes to get there, and however it is grouped. What a
    recurrent layer sums over from step to step is inside of it: there the weights are multiplied.
    """
    graph = analysis.graph
    model = graph.proto()
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node, proto in zip(graph.nodes, list(model.graph.node), strict=True):
        for which, axis in fused_sums(node) if node.domain else summed_axes(node.op, node.attributes):
            shape = shape_of(analysis, node.index, which)
            if shape is None:
                continue
            mask = np.zeros(shape[axis].size[0], graph.dtype(node.inputs[which]))
            mask[positions(analysis, shape[axis], chosen)] = 1
            if not mask.all():
                name = f"mask of {node.name}, {which}"
                mask = mask.reshape([-1 if k == axis % len(shape) else 1 for k in range(len(shape))])
                if node.op in INTEGER and not node.domain:
                    steps, constants = hidden(proto, mask, mask.dtype, name)
                else:
                    steps = [helper.make_node("Mul", [proto.input[which], name], [f"{name}, applied"])]
                    constants = [numpy_helper.from_array(mask, name)]
                model.graph.initializer.extend(constants)
                nodes.extend(steps)
                proto.input[which] = f"{name}, applied"
                count += 1
        nodes.append(proto)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return Graph(model, input_shapes=graph.input_shapes) if count else None


def summed_axis(op: str, attributes: Mapping[str, object]) -> int | None:
    """The axis of a contraction's first input that it sums over; None for other operators."""
    if op == "Einsum":
        (first, second), output = _letters(attributes)
        return next((k for k, letter in enumerate(first) if letter in second and letter not in output), None)
    return (0 if attributes.get("transA", 0) else 1) if op == "Gemm" else CONTRACTED.get(op)


def summed_axes(op: str, attributes: Mapping[str, object]) -> tuple[tuple[int, int], ...]:
    """The inputs to mask, and along which axis, so that nothing is summed that has been dropped."""
    if op in RECURRENT:
        return (0, 2), (2, 2)
    axis = summed_axis(op, attributes)
    return () if axis is None else ((0, axis),)


def _letters(attributes: Mapping[str, object]) -> tuple[list[str], str]:
    left, output = str(attributes["equation"]).replace(" ", "").split("->")
    return left.split(","), output


def shape_of(analysis: Analysis, node: int, index: int) -> tuple[Segment, ...] | None:
    """The axes of a node's input, as that node reads it."""
    uses: dict[tuple[int, int], Use] = {(u.node, u.input): u for u in analysis.uses}
    if (node, index) in uses:
        return uses[node, index].shape
    return analysis.shapes.get(analysis.graph.nodes[node].inputs[index])


# Running and comparing


def feeds_of(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal inputs (small integers for integer inputs) at the sizes that the analysis assumed."""
    rng = np.random.default_rng(seed)
    made = {}
    for value in graph.inputs:
        shape = [a for a, _ in graph.sizes(value.name) or ()]
        floating = np.issubdtype(value.dtype, np.floating)
        made[value.name] = (rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)).astype(value.dtype)
    return made


def constant_values(graph: Graph) -> set[str]:
    """Values that no model input reaches."""
    found = set(graph.weights)
    for node in graph.nodes:
        if all(not name or name in found for name in (*node.inputs, *node.captured)):
            found.update(node.outputs)
    return found


def through_json(plan: WidthPlan) -> WidthPlan:
    """A plan as it comes back from its file."""
    import json

    return WidthPlan.from_json(json.loads(json.dumps(plan.as_json())))


def compare(
    analysis: Analysis,
    selections: Mapping[str, Selection],
    *,
    feeds: Tensors | None = None,
    tolerance: float = TOLERANCE,
    noise: Mapping[str, float] | None = None,
) -> Outcome:
    """Resize by these selections and compare every tensor with the masked source. Raises AssertionError."""
    resized = rewrite(analysis.graph, through_json(select(analysis, selections)))
    return compare_with(analysis, resized, selections, feeds=feeds, tolerance=tolerance, noise=noise)


def compare_with(
    analysis: Analysis,
    resized: Graph,
    selections: Mapping[str, Selection],
    *,
    feeds: Tensors | None = None,
    tolerance: float = TOLERANCE,
    noise: Mapping[str, float] | None = None,
    apart: Collection[str] = (),
    double: bool = False,
) -> Outcome:
    """Compare every tensor of a resized model with the masked source's, taken along its axes.

    Two activations that are multiplied share their copies: there a tensor may be divided, if only the model's outputs
    are not. Where `noise` (see `rounding`) is above a third of the tolerance, three times it is allowed. Tensors that
    are set `apart` (see `undecided`) are not compared. With `double` both are computed in double precision, by onnx's
    reference evaluator, and nothing is allowed for rounding: weights must not have been rounded (`halved_shares`).
    """
    tolerance, noise = (TIGHT, None) if double else (tolerance, noise)
    tensors_of = in_double if double else in_single
    graph = analysis.graph
    feeds = feeds_of(graph) if feeds is None else feeds
    chosen = {analysis.widths[name].dim: s.indices for name, s in selections.items()}
    hidden = masked(analysis, chosen)
    expected = tensors_of(hidden or graph, feeds)
    got = tensors_of(resized, feeds)
    constants = constant_values(graph)
    outputs = {value.name for value in graph.outputs}
    factors = {
        w.dim: 1 / np.sqrt(s.divide) if w.dim in analysis.growth.shared else np.ones(len(s.indices))
        for w, s in ((analysis.widths[name], s) for name, s in selections.items())
    }
    grown = any(len(set(c.tolist())) < len(c) for c in chosen.values())
    compared, worst = 0, 0.0
    for node in graph.nodes:
        for name in node.outputs:
            if not name or node.index in analysis.region.nodes or (grown and name in constants):
                continue  # integers that carry sizes; weights whose copies are divided
            if name in apart or (name not in expected and name not in got):
                continue
            if name in constants and analysis.graph.producer(name).op == "Constant":  # type: ignore[union-attr]  # constants have producers
                continue
            if name in constants and analysis.is_alias(node):
                continue  # a second name of a scale or bias that has been unshared
            reference, value = expected[name], got[name]
            if name in analysis.shapes:
                reference = taken(analysis, reference, analysis.shapes[name], chosen)
            assert value.shape == reference.shape, f"{node} makes {name}: {value.shape}, expected {reference.shape}"
            if not double:  # the evaluator makes float32 of some
                assert value.dtype == reference.dtype, f"{node} makes {name}: {value.dtype}, expected {reference.dtype}"
            error = distance(value, reference)
            if grown and error > tolerance and name in analysis.shapes and name not in outputs:
                error = min(error, distance(value, shared(analysis, reference, analysis.shapes[name], factors)))
            allowed = max(tolerance, 3 * (noise or {}).get(name, 0.0))
            assert error <= allowed, f"{node} makes {name} {value.shape}, off by {error:.2g}, allowed {allowed:.2g}"
            compared, worst = compared + 1, max(worst, error)
    moved = 0.0
    if hidden is not None:
        plain = tensors_of(graph, feeds)
        produced = [v.name for v in graph.outputs if v.name in plain]
        moved = max((distance(expected[name], plain[name]) for name in produced), default=0.0)
    return Outcome(compared, worst, moved)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the largest element of b; not-a-numbers must be in the same places."""
    if not b.size:
        return 0.0
    if not np.issubdtype(b.dtype, np.floating):
        return float((a != b).any())
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not np.isfinite(b).all():
        return 0.0 if np.array_equal(a, b, equal_nan=True) else np.inf
    return float(np.abs(a - b).max() / max(np.abs(b).max(), LEAST))


def rounding(graph: Graph, feeds: Tensors | None = None, seed: int = 5) -> dict[str, float]:
    """How far each tensor moves when every weight of two axes or more moves to a neighbouring float, up or down.

    Sums over twice as many terms are rounded otherwise, and deep random networks amplify that: this says by how much.
    """
    before, after = nudged(graph, feeds, seed)
    floats = {name: array for name, array in before.items() if array.dtype.kind == "f"}
    same = {name: after[name].shape == array.shape for name, array in floats.items()}
    return {name: distance(after[name], array) if same[name] else np.inf for name, array in floats.items()}


def undecided(graph: Graph, seeds: Iterable[int], noise: Mapping[str, float] | None = None) -> frozenset[str]:
    """Tensors that hang on a choice which rounding decides: whole numbers and truth values that are others when weights
    move to neighbouring floats (the order of nearly equal scores, say), and all that is computed from them.

    With `noise`, so are those that are others when a node's inputs differ by as much as a comparison allows them to.
    """
    found: set[str] = set()
    for seed in seeds:
        before, after = nudged(graph, None, seed)
        whole = {name: array for name, array in before.items() if array.dtype.kind != "f"}
        found.update(name for name, array in whole.items() if not np.array_equal(array, after[name]))
    feeds = feeds_of(graph)
    values = {**in_single(graph, feeds), **feeds} if noise is not None else {}
    for node in graph.nodes:
        if not found.isdisjoint((*node.inputs, *node.captured)):
            found.update(node.outputs)
        elif noise is not None and not node.domain and _chooses(node, values):
            found.update(_wavering(graph, node, values, noise))
    return frozenset(found - {""})


def _chooses(node: Node, values: Tensors) -> bool:
    """Whether a node makes whole numbers, or truth values, of numbers that depend on the input."""
    reals = any(values[name].dtype.kind == "f" for name in node.inputs if name in values)
    whole = any(values[name].dtype.kind != "f" for name in node.outputs if name in values)
    return reals and (whole or node.op in STEPS) and not node.has_subgraph


def _wavering(graph: Graph, node: Node, values: Tensors, noise: Mapping[str, float]) -> list[str]:
    """The whole outputs of one node that are others where its inputs differ by what is allowed, zeros excepted: they
    are seldom chance. Signs are drawn sixteen times."""
    rng = np.random.default_rng(0)
    feeds = {name: values[name] if name in values else graph.array(name) for name in node.inputs if name}
    whole = [name for name in node.outputs if name in values and (values[name].dtype.kind != "f" or node.op in STEPS)]
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    inputs = [helper.make_tensor_value_info(name, kinds[name], array.shape) for name, array in feeds.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in whole]
    alone = helper.make_graph([graph.model.graph.node[node.index]], "one", inputs, outputs)
    model = helper.make_model(alone, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
    started = session(model, provider="cpu", threads=1, optimise=False)
    found = set()
    for _ in range(16):
        near = dict(feeds)
        for name, array in feeds.items():
            if name in values and array.dtype.kind == "f" and array.size:
                most = max(TOLERANCE, 3 * noise.get(name, 0.0)) * max(np.abs(array).max(), LEAST)
                moved = array + most * rng.choice((-1, 1), array.shape) * (array != 0)
                near[name] = np.asarray(moved, array.dtype)  # a scalar is no array
        made = run_session(started, near, whole)
        found.update(name for name in whole if not np.array_equal(made[name], values[name], equal_nan=True))
    return sorted(found)


def nudged(graph: Graph, feeds: Tensors | None, seed: int) -> tuple[Tensors, Tensors]:
    """Every tensor, and every tensor when every weight of two axes or more moves to a neighbouring float."""
    feeds = feeds_of(graph) if feeds is None else feeds
    rng = np.random.default_rng(seed)

    def neighbour(array: np.ndarray) -> np.ndarray:
        return np.nextafter(array, np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(array.dtype))

    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    floats = {n: graph.array(n) for n, t in graph.weights.items() if t.data_type in kinds and len(t.dims) > 1}
    moved = graph.with_arrays({name: neighbour(array) for name, array in floats.items()})
    before, after = (in_single(some, feeds) for some in (graph, moved))
    return before, after


def in_single(graph: Graph, feeds: Tensors) -> Tensors:
    """Every tensor that a node makes; a sequence is none, and what is taken out of it is."""
    return {name: value for name, value in run_all(graph, feeds, threads=1).items() if isinstance(value, np.ndarray)}


# Selections


def shrunk(analysis: Analysis, rng: np.random.Generator, only: Sequence[str] | None = None) -> dict[str, Selection]:
    """Random kept channels, in order, for every width without statistics across it: about half of each."""
    made = {}
    for name, width in analysis.widths.items():
        if width.exact and (only is None or name in only) and width.size > 1:
            kept = np.sort(rng.permutation(width.size)[: max(1, width.size // 2)])
            made[name] = Selection(kept, np.ones(len(kept)))
    return made


def single(analysis: Analysis) -> dict[str, Selection]:
    """One channel in every width without statistics across it: sizes of one are where broadcasting begins."""
    return {n: Selection(np.array([w.size - 1]), np.ones(1)) for n, w in analysis.widths.items() if w.exact}


def doubled(analysis: Analysis, rng: np.random.Generator) -> dict[str, Selection]:
    """Every width a random permutation of itself twice, in uneven shares; but for those in lopsided averages."""
    return {
        name: uneven(rng.permutation(np.tile(np.arange(w.size), 2)), rng)
        for name, w in analysis.widths.items()
        if w.dim not in lopsided(analysis)
    }


def lopsided(analysis: Analysis) -> set[Dim]:
    """Dims that must not be doubled: those that cannot grow, and those averaged over together with such as do not."""
    solver = analysis.solver
    free = {w.dim for w in analysis.widths.values() if w.max is None}
    while True:
        found = set()
        for _, segment in analysis.mixes:
            ax = solver.resolve(segment)
            times = {sum(d in free for d in s.dims) for s in ax.segments}
            if len(times) > 1 or any(solver.is_composite(d) for d in ax.dims):
                found |= free & set(solver.leaves(ax))
        if not found:
            return {w.dim for w in analysis.widths.values()} - free
        free -= found


def resized_at_random(analysis: Analysis, rng: np.random.Generator) -> dict[str, Selection]:
    """Some widths smaller (down to one), some larger, in any order; mixed ones all twice or all as they are."""
    made = {}
    fixed, twice = lopsided(analysis), rng.random() < 0.5
    for name, width in analysis.widths.items():
        way = rng.integers(4 if width.max is None else 2)
        if not width.exact:
            if width.dim in fixed or not twice:
                continue
            made[name] = uneven(rng.permutation(np.tile(np.arange(width.size), 2)), rng)
        elif way == 0:
            continue
        elif way == 1:
            size = int(rng.integers(1, width.size + 1))
            made[name] = Selection(rng.permutation(width.size)[:size], np.ones(size))
        elif way == 2:
            extra = rng.integers(0, width.size, int(rng.integers(1, width.size + 3)))
            made[name] = uneven(rng.permutation(np.concatenate([np.arange(width.size), extra])), rng)
        else:  # fewer channels, some of them twice
            kept = rng.permutation(width.size)[: int(rng.integers(1, width.size + 1))]
            made[name] = uneven(np.concatenate([kept, rng.choice(kept, int(rng.integers(0, 3)))]), rng)
    return made


def uneven(indices: np.ndarray, rng: np.random.Generator) -> Selection:
    """Copies with divisors such that those of one channel satisfy sum(1/divide) = 1."""
    shares = rng.uniform(0.3, 1.0, len(indices))
    totals = np.zeros(int(indices.max()) + 1)
    np.add.at(totals, indices, shares)
    return Selection(np.asarray(indices, dtype=np.int64), totals[indices] / shares)


def halved_shares(selections: Mapping[str, Selection]) -> dict[str, Selection]:
    """The same channels, their copies in shares of 1/2, 1/4 ... 1/2ⁿ, 1/2ⁿ: dividing by them rounds nothing."""
    made = {}
    for name, selection in selections.items():
        indices = selection.indices
        order = np.argsort(indices, kind="stable")
        _, starts, counts = np.unique(indices[order], return_index=True, return_counts=True)
        place = np.empty(len(indices), np.int64)
        place[order] = np.arange(len(indices)) - np.repeat(starts, counts)
        copies = counts[np.searchsorted(indices[order][starts], indices)]
        made[name] = Selection(indices, 2.0 ** np.minimum(place + 1, copies - 1))
    return made


# Counting


def counted(graph: Graph) -> tuple[int, int, int]:
    """Elements of the floating-point weights of rank one or more, and of the 8-bit ones of rank two or more, MACs at
    batch one, bytes of the initializers."""
    small = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
    params = sum(
        int(np.prod(t.dims))
        for t in graph.weights.values()
        if len(t.dims) > (t.data_type in small) and t.data_type in kinds | small
    )
    raw = sum(numpy_helper.to_array(t).nbytes for t in graph.proto().graph.initializer)
    return params, macs(graph), raw


def macs(graph: Graph) -> int:
    """Multiply-accumulates of one sample, from the shapes of what each contraction reads and makes."""
    batch = batch_of(graph)
    constants = constant_values(graph)
    total = 0
    for node in graph.nodes:
        if (fused := fused_macs(graph, node)) is not None:
            total += fused // batch
            continue
        if node.op not in (*CONTRACTED, "Einsum", "Gemm", *RECURRENT) or node.domain:
            continue
        weight = node.inputs[WEIGHT.get(node.op, 1)]
        known = [graph.sizes(n) for n in (node.inputs[0], weight, next(filter(None, node.outputs)))]
        if None in known:
            continue  # behind a Loop, say: nobody knows how large it is
        x, w, y = ([a for a, _ in sizes or ()] for sizes in known)
        if node.op in RECURRENT:  # every weight once a step and sample
            count = x[0] * x[1] * sum(int(np.prod([a for a, _ in graph.sizes(n)])) for n in node.inputs[1:3])
        elif node.op in ("Conv", "ConvInteger", "QLinearConv"):
            count = int(np.prod(w)) * y[0] * int(np.prod(y[2:]))
        elif node.op == "ConvTranspose":
            count = int(np.prod(w)) * x[0] * int(np.prod(x[2:]))
        elif node.op == "Einsum":
            sizes = dict(zip("".join(_letters(node.attributes)[0]), (*x, *w), strict=True))
            count = int(np.prod([*sizes.values()])) if summed_axis("Einsum", node.attributes) is not None else 0
        else:
            inner = x[summed_axis(node.op, node.attributes)]
            count = int(np.prod(y)) * inner
        total += count if constants.intersection(filter(None, node.outputs)) else count // batch
    return total


def batch_of(graph: Graph) -> int:
    """The batch size that MACs are divided by: the first size of the inputs, where they and an output agree on one."""
    inputs, outputs = ([(graph.sizes(v.name) or ((1, 1),))[:1] for v in some] for some in (graph.inputs, graph.outputs))
    first = inputs[0][0] if inputs[0] else (1, 1)
    if first[0] != first[1]:
        return first[0]
    return first[0] if all(f == inputs[0] for f in inputs) and inputs[0] in outputs else 1


# Structure


def assert_valid(graph: Graph, source: Graph | None = None) -> None:
    """The checker, strict shape inference and an optimising onnxruntime session accept the model.

    With a source: its inputs and outputs are unchanged, and its nodes are the same but for integers.
    """
    model = graph.proto()
    for tensor in model.graph.initializer:
        onnx.checker.check_tensor(tensor)
    without_large(model)
    apart_from_onnx(model)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    recorded = {v.name: v for v in inferred.graph.value_info}
    for value in graph.model.graph.value_info:  # what the file says must be what follows from it
        sizes = graph.shape(value.name)
        if sizes is not None and value.name in recorded:
            said = [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
            assert all(a is None or b is None or a == b for a, b in zip(said, sizes, strict=True)), value
    session(graph, provider="cpu", threads=1)
    fresh = Graph(graph.proto())  # what the view says is what the model says
    assert graph.nodes == fresh.nodes
    assert [str(node.attributes) for node in graph.nodes] == [str(node.attributes) for node in fresh.nodes]
    assert graph.weights.keys() == fresh.weights.keys()
    if source is not None:
        names = {t.name for t in source.model.graph.initializer}
        assert [v for v in graph.model.graph.input if v.name not in names] == [
            v for v in source.model.graph.input if v.name not in names
        ]
        assert list(graph.model.graph.output) == list(source.model.graph.output)
        assert [(n.op_type, n.name, list(n.output)) for n in graph.model.graph.node] == [
            (n.op_type, n.name, list(n.output)) for n in source.model.graph.node
        ]


def without_large(model: onnx.ModelProto) -> None:
    """Turn large weights into inputs: the checker and inference read their types only, and copy them several times."""
    listed = {value.name for value in model.graph.input}
    for index in reversed(range(len(model.graph.initializer))):
        tensor = model.graph.initializer[index]
        if np.prod(tensor.dims) > 4096:
            if tensor.name not in listed:
                model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            del model.graph.initializer[index]


def initializer_bytes(graph: Graph) -> dict[str, bytes]:
    """Every initializer as it is serialised."""
    return {t.name: t.SerializeToString(deterministic=True) for t in graph.proto().graph.initializer}


# All laws at once


@dataclass(frozen=True)
class Verdict:
    """What was found while a model kept all laws."""

    widths: int
    coverage: float  # share of the parameters that can be resized
    moved: float  # what the mask of a halved model did to its outputs
    compared: int


def keep_all_laws(model: onnx.ModelProto, seed: int = 0, tolerance: float = TOLERANCE) -> Verdict:
    """Check DESIGN's six laws on one model. Raises AssertionError, or whatever a law that does not hold leads to."""
    rng = np.random.default_rng(seed)
    analysis = analyze(Graph(model))
    same = {n: Selection(np.arange(w.size), np.ones(w.size)) for n, w in analysis.widths.items()}
    unchanged = rewrite(analysis.graph, through_json(select(analysis, same)))
    assert unchanged.proto().SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    assert tuple(analysis.costs.source) == counted(analysis.graph)
    assert tuple(analysis.costs.price({})) == counted(analysis.graph)
    smaller = shrunk(analysis, rng)
    noise = rounding(analysis.graph)
    first = None
    for selections in (smaller, doubled(analysis, rng), single(analysis), resized_at_random(analysis, rng)):
        plan_ = through_json(select(analysis, selections))
        resized = rewrite(analysis.graph, plan_)
        outcome = compare_with(analysis, resized, selections, tolerance=tolerance, noise=noise)
        first = first or outcome
        assert_valid(resized, analysis.graph)
        sizes = {n: len(s.indices) for n, s in selections.items()}
        if any(size != analysis.widths[n].size for n, size in sizes.items()):
            assert tuple(analysis.costs.price(sizes)) == counted(resized)
    assert_composes(analysis, rng)
    assert first is not None
    return Verdict(len(analysis.widths), analysis.costs.coverage.params, first.moved, first.compared)


def assert_composes(analysis: Analysis, rng: np.random.Generator) -> None:
    """Two resizes in a row are one: of the same widths by indices, and of different widths by scores."""
    one, two, both = {}, {}, {}
    for name, width in analysis.widths.items():
        a = np.sort(rng.permutation(width.size)[: max(min(2, width.size), width.size * 3 // 4)])
        b = rng.permutation(len(a))[: max(1, len(a) // 2)]
        one[name] = Selection(a, np.ones(len(a)))
        two[name] = Selection(b, np.ones(len(b)))
        both[name] = Selection(a[b], np.ones(len(b)))
    halfway = analyze(rewrite(analysis.graph, select(analysis, one)))
    assert [(w.id, w.size) for w in halfway.widths.values()] == [(n, len(s.indices)) for n, s in one.items()]
    stepwise = rewrite(halfway.graph, select(halfway, two))
    assert_same(stepwise, rewrite(analysis.graph, select(analysis, both)))

    scores = {n: rng.random(w.size) for n, w in analysis.widths.items()}
    sizes = {n: max(1, w.size - 1) for n, w in analysis.widths.items() if w.size > 2}
    a = {n: s for k, (n, s) in enumerate(sizes.items()) if k % 2}
    b = {n: s for n, s in sizes.items() if n not in a}
    halfway = analyze(rewrite(analysis.graph, plan(analysis, a, scores)))
    stepwise = rewrite(halfway.graph, plan(halfway, b, scores))
    assert_same(stepwise, rewrite(analysis.graph, plan(analysis, sizes, scores)))


def assert_same(a: Graph, b: Graph) -> None:
    """The same nodes and, by name, the same initializers, byte for byte; sizes may have any name.

    A constant of sizes that several nodes read stays that of the last of them that is left.
    """
    (nodes, weights), (others, theirs) = by_content(a), by_content(b)
    assert nodes == others
    assert weights == theirs


def by_content(graph: Graph) -> tuple[list[onnx.NodeProto], dict[str, bytes]]:
    """Nodes that name the whole numbers they read by their values, and the bytes of the other initializers."""
    stored = initializer_bytes(graph)
    whole = {n for n, t in graph.weights.items() if t.data_type == TensorProto.INT64 and len(t.dims) <= 1}
    names = {name: f"{list(graph.weights[name].dims)} {graph.array(name).tolist()}" for name in whole & stored.keys()}
    nodes = []
    for proto in graph.model.graph.node:
        made = onnx.NodeProto()
        made.CopyFrom(proto)
        for k, name in enumerate(proto.input):
            made.input[k] = names.get(name, name)
        nodes.append(made)
    return nodes, {name: data for name, data in stored.items() if name not in names}
