"""What recurrent layers say about their axes: their hidden sizes are widths, in all forms and as torch exports them."""

from __future__ import annotations

import functools
import random
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import oracles
import pytest
import torch
from onnx import TensorProto
from strategies import Builder
from test_rules import HEIGHT, WIDTH, Build, Case, check, dense, grid
from torch import nn

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph
from conet_onnx.planning import plan, select
from conet_onnx.rewriting import rewrite
from conet_onnx.rules.recurrent import GATES
from conet_onnx.verification import verify

HIDDEN, STEPS = 5, HEIGHT * WIDTH


def steps_of(b: Builder, x: str) -> str:
    """A map [N, C, H, W] as a sequence [T, N, C]."""
    n, c, h, w = b.shapes[x]
    return b.transpose(b.reshape(x, (n, c, h * w)), (2, 0, 1))


def layer(
    b: Builder,
    op: str,
    x: str,
    *,
    bias: bool = True,
    lengths: bool = False,
    states: Sequence[str] = (),
    peepholes: bool = False,
    outputs: Sequence[int] = (0,),
    hidden: int = HIDDEN,
    **attributes: Any,
) -> list[str]:
    """One node, which reads [T, N, C], or [N, T, C] in layout 1; those of its outputs that are asked for."""
    gates, both = GATES[op], 2 if attributes.get("direction") == "bidirectional" else 1
    first, second, c = b.shapes[x]
    by_batch = bool(attributes.get("layout"))
    n, steps = (first, second) if by_batch else (second, first)
    inputs = [x, b.weight(b.floats(both, gates * hidden, c, scale=1 / np.sqrt(c)))]
    inputs.append(b.weight(b.floats(both, gates * hidden, hidden, scale=1 / np.sqrt(hidden))))
    inputs.append(b.weight(b.floats(both, 2 * gates * hidden, scale=0.3)) if bias else "")
    inputs.append(b.weight(np.resize([steps, 2, 1], n).astype(np.int32)) if lengths else "")
    inputs += [*states, *([""] * (2 - len(states)))]
    inputs.append(b.weight(b.floats(both, 3 * hidden)) if peepholes else "")
    while not inputs[-1]:
        inputs.pop()
    state = (n, both, hidden) if by_batch else (both, n, hidden)
    shapes = [(n, steps, both, hidden) if by_batch else (steps, both, n, hidden), state, state]
    made = b.node_of(op, inputs, shapes[: max(outputs) + 1], hidden_size=hidden, **attributes)
    b.nodes[-1].output[:] = [name if k in outputs else "" for k, name in enumerate(made)]
    return [made[k] for k in outputs]


def as_map(b: Builder, y: str) -> str:
    """Y [T, D, N, h] as [N, D·h, T], a state [D, N, h] as [N, D·h]: the directions side by side, as torch has them."""
    shape = b.shapes[y]
    *steps, both, n, h = shape
    if not steps:
        return b.reshape(b.transpose(y, (1, 0, 2)), (n, both * h))
    y = b.reshape(b.transpose(y, (2, 0, 1, 3)), (n, steps[0], both * h))
    return b.transpose(y, (0, 2, 1))


def recurrent(op: str, *, from_data: int = 0, **settings: Any) -> Build:
    """A layer over the places of a map; `from_data` of its states are made from the map."""

    def build(b: Builder, x: str) -> list[str]:
        n = b.shapes[x][0]
        both = 2 if settings.get("direction") == "bidirectional" else 1
        states = []
        for _ in range(from_data):
            start = dense(b, b.squeeze(b.mean(x, [2, 3]), [2, 3]), both * HIDDEN)
            states.append(b.transpose(b.reshape(start, (n, both, HIDDEN)), (1, 0, 2)))
        return [as_map(b, y) for y in layer(b, op, steps_of(b, x), states=states, **settings)]

    return build


def stored_states(b: Builder, x: str) -> str:
    """Two layers that start from one stored state: it ties their hidden sizes."""
    n = b.shapes[x][0]
    start = b.weight(b.floats(1, n, HIDDEN))
    for _ in range(2):
        (y,) = layer(b, "GRU", steps_of(b, x) if len(b.shapes[x]) == 4 else x, states=[start])
        x = b.squeeze(y, [1])
    return b.transpose(x, (1, 2, 0))


def zeros(how: str) -> Build:
    """A layer that starts from zeros, as many as the batch: the hidden size is a literal among computed sizes."""

    def build(b: Builder, x: str) -> list[str]:
        n = b.shapes[x][0]
        batch = b.node("Slice", [b.node("Shape", [x], (4,)), b.integers([0]), b.integers([1])], (1,))
        size = b.integers([HIDDEN])
        if how == "scalar":
            size = b.unsqueeze(b.weight(np.array(HIDDEN, np.int32)), [0])
            size = b.node("Cast", [size], (1,), to=TensorProto.INT64)
        target = b.node("Concat", [b.integers([2]), batch, size], (3,), axis=0)
        if how == "nested":
            pair = b.node("Concat", [batch, size], (2,), axis=0)
            target = b.node("Concat", [b.integers([2]), pair], (3,), axis=0)
        if how == "Expand":
            states = [b.node("Expand", [b.weight(np.float32(0.5).reshape(())), target], (2, n, HIDDEN))]
        else:
            states = [b.node("ConstantOfShape", [target], (2, n, HIDDEN))]
        if how == "read twice":
            states.append(b.node("ConstantOfShape", [target], (2, n, HIDDEN)))
        return [as_map(b, y) for y in layer(b, "LSTM", steps_of(b, x), states=states, direction=BOTH)]

    return build


def stacked(b: Builder, x: str) -> str:
    """Two layers, the first in both directions."""
    (y,) = layer(b, "LSTM", steps_of(b, x), direction="bidirectional", hidden=3)
    y = b.transpose(as_map(b, y), (2, 0, 1))
    return as_map(b, layer(b, "LSTM", y)[0])


def residual(b: Builder, x: str) -> str:
    """A layer as wide as what it reads, added to it: the input is the hidden size."""
    x = steps_of(b, x)
    (y,) = layer(b, "LSTM", x, hidden=b.shapes[x][2])
    return b.transpose(b.node("Add", [x, b.squeeze(y, [1])], b.shapes[x]), (1, 2, 0))


def along_channels(b: Builder, x: str) -> str:
    """The channels are the steps."""
    n, c, h, w = b.shapes[x]
    y = b.transpose(b.reshape(x, (n, c, h * w)), (1, 0, 2))
    return as_map(b, layer(b, "GRU", y)[0])


def embedded(b: Builder, x: str) -> str:
    """Words by number, through a layer, added to the map as one number a channel."""
    n, c, h, w = b.shapes[x]
    words = b.node("Gather", [b.weight(b.floats(9, 4)), b.weight(np.array([[7], [0], [3]]))], (3, 1, 4))
    (y,) = layer(b, "LSTM", words, outputs=(1,))
    y = dense(b, b.reshape(y, (1, HIDDEN)), c)
    return b.node("Add", [x, b.unsqueeze(y, [2, 3])], (n, c, h, w))


BOTH = "bidirectional"
OPSETS = (11, 14, 22)
TWO = {"activations": ["Relu", "HardSigmoid", "Softsign"] * 2, "direction": BOTH}
CASES = [
    *(
        Case(f"{op}, {way}", recurrent(op, direction=way), [6, 5], opsets=OPSETS)
        for op in GATES
        for way in ("forward", "reverse", BOTH)
    ),
    *(Case(f"{op} without bias", recurrent(op, bias=False), [6, 5], opsets=OPSETS) for op in GATES),
    *(
        Case(f"{op} with lengths", recurrent(op, lengths=True, direction=BOTH), [6, 5], (), OPSETS, dynamic=(False,))
        for op in GATES
    ),
    *(Case(f"{op} with a state", recurrent(op, from_data=1, direction=BOTH), [6, 5], opsets=OPSETS) for op in GATES),
    *(Case(f"{op}, last state", recurrent(op, outputs=(1,), direction=BOTH), [6, 5], opsets=(14,)) for op in GATES),
    *(Case(f"{op}, all outputs", recurrent(op, outputs=(0, 1)), [6, 5], opsets=(14,)) for op in GATES),
    Case("LSTM with both states", recurrent("LSTM", from_data=2), [6, 5], opsets=OPSETS),
    Case("LSTM with its cell", recurrent("LSTM", outputs=(2,), direction=BOTH), [6, 5], opsets=(14, 22)),
    Case("LSTM, all outputs and cell", recurrent("LSTM", outputs=(0, 1, 2)), [6, 5], opsets=(14, 22)),
    Case("LSTM with peepholes", recurrent("LSTM", peepholes=True, direction=BOTH), [6, 5], opsets=OPSETS),
    Case("LSTM with everything", recurrent("LSTM", from_data=2, peepholes=True, clip=0.7), [6, 5], opsets=(14, 22)),
    Case("LSTM, forgetting what it reads", recurrent("LSTM", input_forget=1), [6, 5], opsets=(14,)),
    Case("LSTM with other activations", recurrent("LSTM", **TWO), [6, 5], opsets=(14,)),
    Case("GRU, linear before reset", recurrent("GRU", linear_before_reset=1, direction=BOTH), [6, 5], opsets=OPSETS),
    Case("RNN of Relu", recurrent("RNN", activations=["Relu"]), [6, 5], opsets=(14,)),
    Case("two layers", stacked, [6, 3, 5], opsets=OPSETS),
    Case("two layers with one state", stored_states, [6, 5], opsets=(14,), dynamic=(False,)),
    *(Case(f"zeros, {how}", zeros(how), [6, 5], opsets=(14,)) for how in ("plain", "Expand", "nested")),
    Case("zeros, scalar", zeros("scalar"), [6, 5], opsets=(13, 14)),
    Case("zeros, read twice", zeros("read twice"), [6], opsets=(14,), dynamic=(True,), frozen=("computed target",)),
    Case("a layer and what it reads", residual, [6], opsets=(14,)),
    Case("channels as steps", along_channels, [5], frozen=("steps",), opsets=(14,)),
    Case("words", embedded, [6, 5], frozen=("picked",), opsets=(14,)),
]


@pytest.mark.parametrize(("case", "opset", "dynamic"), grid(CASES))
def test_the_hidden_size_is_a_width(case: Case, opset: int, dynamic: bool) -> None:
    check(case, opset, dynamic)


@pytest.mark.parametrize("op", GATES)
def test_gates_are_the_outermost_factor(op: str) -> None:
    model = alone(op, direction=BOTH, peepholes=op == "LSTM")
    analysis = analyze(Graph(model))
    (width,) = analysis.widths.values()
    axes = {(m.tensor, m.axis) for m in width.members if m.tensor in node_of(model).input}
    inputs = dict(zip(("x", "w", "r", "b", "", "", "", "p"), node_of(model).input, strict=False))
    expected = {(inputs["w"], 1), (inputs["r"], 1), (inputs["r"], 2), (inputs["b"], 1)}
    assert axes == expected | ({(inputs["p"], 1)} if op == "LSTM" else set())
    h, g = width.dim, GATES[op]
    for name, axis, factors in (("w", 1, (g, h)), ("r", 1, (g, h)), ("b", 1, (2 * g, h)), ("p", 1, (3, h))):
        if name in inputs:
            (segment,) = analysis.axis(analysis.shapes[inputs[name]][axis]).segments
            assert segment.factors == tuple(f for f in factors if f != 1)
    index = next(n.index for n in analysis.graph.nodes if n.op == op)
    parts = [part for facing in analysis.contractions if facing.node == index for part in facing.parts]
    assert [(part.tensor, part.axis) for part in parts] == [(inputs["w"], 2), (inputs["r"], 2)]


@pytest.mark.parametrize("direction", ["forward", "reverse", BOTH])
@pytest.mark.parametrize("op", GATES)
def test_with_the_batch_first_the_same_weights_come_out(op: str, direction: str) -> None:
    """onnxruntime does not run layout 1: what is made of it is compared with what is made of layout 0."""
    settings: dict[str, Any] = {"direction": direction, "outputs": (0, 1), "peepholes": op == "LSTM"}
    first, last = (analyze(Graph(alone(op, layout=layout, **settings))) for layout in (1, 0))
    assert [(w.size, w.members) for w in first.widths.values()] == [(w.size, w.members) for w in last.widths.values()]
    assert first.costs.source == last.costs.source
    rng = np.random.default_rng(0)
    for selections in (oracles.shrunk(last, rng), oracles.doubled(last, rng)):
        one, other = (rewrite(a.graph, select(a, selections)) for a in (first, last))
        assert one.proto().graph.initializer == other.proto().graph.initializer
        onnx.shape_inference.infer_shapes(one.proto(), check_type=True, strict_mode=True, data_prop=True)
        (size,) = (len(s.indices) for s in selections.values())
        assert [n.attributes["hidden_size"] for n in one.nodes if n.op == op] == [size]


def test_a_hidden_size_that_is_not_its_weights_is_frozen() -> None:
    model = alone("GRU")
    for attribute in node_of(model).attribute:
        if attribute.name == "hidden_size":
            attribute.i = HIDDEN + 1
    assert not analyze(Graph(model)).widths


def test_without_the_attribute_there_is_nothing_to_edit() -> None:
    model = alone("GRU")
    kept = [a for a in node_of(model).attribute if a.name != "hidden_size"]
    del node_of(model).attribute[:]
    node_of(model).attribute.extend(kept)
    analysis = analyze(Graph(model))
    assert not plan(analysis, {"w0": 2}).integers


class Reader(nn.Module):
    """Words, two recurrent layers in both directions, and a linear layer on the last step."""

    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool, hidden: int) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.layers = kind(4, hidden, num_layers=2, bidirectional=True, batch_first=batch_first)
        self.last = nn.Linear(2 * hidden, 3)
        self.batch_first = batch_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made, _ = self.layers(self.words(x))
        return self.last(made[:, -1] if self.batch_first else made[-1])


@functools.cache
def exported(kind: str, exporter: str, *, batch_first: bool, dynamic: bool, hidden: int = 6) -> onnx.ModelProto:
    """As torch writes it, for 3 samples of 4 words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Reader(getattr(nn, kind), batch_first=batch_first, hidden=hidden).eval()
    x = torch.arange(12).reshape((3, 4) if batch_first else (4, 3)) % 9
    batch = 0 if batch_first else 1
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters warn of what they do themselves
        path = f"{folder}/model.onnx"
        if exporter == "legacy":
            axes = {"x": {batch: "batch"}, "y": {0: "batch"}} if dynamic else None
            torch.onnx.export(model, (x,), path, dynamo=False, dynamic_axes=axes, **names)
        else:
            shapes = ({batch: torch.export.Dim("batch")},) if dynamic else None
            torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
        return onnx.load(path)


def laws_of(model: onnx.ModelProto, coverage: float) -> None:
    """All laws, and what `verify` says of half as many units."""
    verdict = oracles.keep_all_laws(model)
    assert verdict.moved > 0.05
    assert verdict.coverage > coverage
    analysis = analyze(Graph(model))
    halved = plan(analysis, {name: width.size // 2 for name, width in analysis.widths.items()})
    proof = verify(analysis.graph, rewrite(analysis.graph, halved), halved)
    assert not proof.skipped
    assert proof.difference is not None


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_that_torchscript_exports_resize_exactly(kind: str, batch_first: bool, dynamic: bool) -> None:
    laws_of(exported(kind, "legacy", batch_first=batch_first, dynamic=dynamic), 0.85)


@pytest.mark.parametrize(
    ("kind", "batch_first", "dynamic"),
    [("LSTM", True, True), ("GRU", False, True), ("GRU", True, False), ("RNN", True, True)],
)
def test_layers_that_dynamo_exports_resize_exactly(kind: str, batch_first: bool, dynamic: bool) -> None:
    laws_of(exported(kind, "dynamo", batch_first=batch_first, dynamic=dynamic), 0.85)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gates_that_the_graph_itself_puts_in_order_are_followed(kind: str) -> None:
    """Dynamo joins the gates of large layers by nodes: each weight is a sum of slices of two others."""
    model = exported(kind, "dynamo", batch_first=True, dynamic=True, hidden=160)
    joined = {node.output[0] for node in model.graph.node if node.op_type == "Concat"}
    assert any(node.input[2] in joined for node in model.graph.node if node.op_type == kind)
    laws_of(model, 0.99)


def alone(op: str, *, layout: int = 0, **settings: Any) -> onnx.ModelProto:
    """One layer, and a product over its units for each of its outputs; x is [N, T, C] in both layouts."""
    b = Builder(random.Random(3), opset=14, batch=2)
    b.tidy = True
    x = b.input("x", (2, 4, 3))
    moves = [(0, 1, 2), (0, 1, 2), (0, 1, 2, 3)] if layout else [(1, 0, 2), (1, 0, 2), (2, 0, 1, 3)]
    made = layer(b, op, b.transpose(x, moves[0]), layout=layout, **settings)
    made = [b.transpose(y, moves[len(b.shapes[y]) - 2]) for y in made]
    return b.model([dense(b, y, 2) for y in made])


def node_of(model: onnx.ModelProto) -> onnx.NodeProto:
    """The recurrent node."""
    return next(node for node in model.graph.node if node.op_type in GATES)
