"""Lowered LSTM, GRU and RNN compute what onnxruntime computes, in all their forms, and can be trained."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from conet_onnx.errors import UnsupportedOp
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import lower
from conet_onnx.torch_backend.lower import names_of
from conet_onnx.torch_backend.ops.recurrent import ORDER, PLAIN, Activation, Recurrent
from tests.onnx_parity import Array, assert_same, build, run_lowered, run_reference

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
T, N, SEEN, H = 5, 3, 4, 6
LENGTHS = np.array([5, 1, 3], np.int32)


def made(
    op: str,
    direction: str = "forward",
    *,
    opset: int = 14,
    bias: bool = True,
    lengths: Array | None = None,
    states: bool = False,
    peepholes: bool = False,
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """One layer whose X and lengths are the model's inputs, and its X."""
    rng = np.random.default_rng(3)
    d, gates = (2 if direction == "bidirectional" else 1), GATES[op]

    def weight(*shape: int) -> Array:
        return (0.6 * rng.standard_normal(shape)).astype(np.float32)

    first = attributes.get("layout", 0)
    weights = {"w": weight(d, gates * H, SEEN), "r": weight(d, gates * H, H)}
    weights |= {"b": weight(d, 2 * gates * H)} if bias else {}
    if states:
        weights |= {"h": weight(N, d, H) if first else weight(d, N, H)}
        weights |= {"c": weight(N, d, H) if first else weight(d, N, H)} if op == "LSTM" else {}
    weights |= {"p": weight(d, 3 * H)} if peepholes else {}
    inputs = {"x": weight(N, T, SEEN) if first else weight(T, N, SEEN)}
    inputs |= {} if lengths is None else {"lengths": lengths}
    there = {*weights, *inputs}
    names = [name if name in there else "" for name in ("x", "w", "r", "b", "lengths", "h", "c", "p")]
    names = names[: 8 if op == "LSTM" else 6]
    outputs = ["y", "y_h", "y_c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, names, outputs, name="layer", hidden_size=H, direction=direction, **attributes)
    return build([node], inputs, weights, outputs, opset), inputs


CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (op, direction, dict(bias=bias, states=states, lengths=lengths, **reset))
        for op, direction in itertools.product(GATES, ["forward", "reverse", "bidirectional"])
        for bias, states, lengths in [(True, False, None), (False, True, None), (True, True, LENGTHS)]
        for reset in ([{"linear_before_reset": 0}, {"linear_before_reset": 1}] if op == "GRU" else [{}])
    ),
    *((op, "forward", {"opset": opset}) for op in GATES for opset in (7, 22)),
    ("LSTM", "forward", {"peepholes": True}),
    ("LSTM", "bidirectional", {"peepholes": True, "lengths": LENGTHS}),
    ("LSTM", "forward", {"input_forget": 1}),
    *((op, "forward", {"clip": 0.3}) for op in GATES),
    ("LSTM", "forward", {"clip": 0.3, "peepholes": True}),
    ("GRU", "forward", {"clip": 0.3, "linear_before_reset": 1}),
    ("RNN", "forward", {"activations": ["Relu"]}),
    ("RNN", "bidirectional", {"activations": ["Relu", "Tanh"]}),
    ("LSTM", "forward", {"activations": ["HardSigmoid", "Softplus", "Softsign"]}),
    ("GRU", "forward", {"activations": ["HardSigmoid", "Tanh"], "activation_alpha": [0.3], "activation_beta": [0.4]}),
    ("GRU", "reverse", {"activations": ["Sigmoid", "LeakyRelu"], "activation_alpha": [0.2]}),
    ("LSTM", "forward", {"activations": ["sigmoid", "Elu", "ThresholdedRelu"], "activation_alpha": [0.7, 0.1]}),
    *(("RNN", "forward", {"activations": [name]}) for name in ("LeakyRelu", "Elu", "Softplus")),
    ("RNN", "forward", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]}),
    ("RNN", "forward", {"activations": ["ScaledTanh"], "activation_alpha": [1.5], "activation_beta": [0.7]}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "direction", "settings"), CASES, ids=lambda x: str(x).replace(" ", ""))
def test_layers_compute_what_onnxruntime_computes(op: str, direction: str, settings: dict[str, Any]) -> None:
    model, inputs = made(op, direction, **settings)
    assert_same(run_lowered(model, inputs), run_reference(model, inputs))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_the_batch_first_is_the_same_with_axes_moved(op: str, direction: str) -> None:
    """onnxruntime has no kernel for it."""
    model, inputs = made(op, direction, states=True, layout=1)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    (node,) = model.graph.node
    moved = {n: np.swapaxes(a, 0, 1) for n, a in weights.items() if n in "hc"}
    plain = helper.make_node(op, list(node.input), list(node.output), hidden_size=H, direction=direction)
    steps_first = {"x": np.swapaxes(inputs["x"], 0, 1)}
    y, *states = run_reference(build([plain], steps_first, weights | moved, list(node.output), 14), steps_first)
    wanted = [np.transpose(y, (2, 0, 1, 3)), *(np.swapaxes(state, 0, 1) for state in states)]
    assert_same(run_lowered(model, inputs), wanted)


@pytest.mark.parametrize("op", GATES)
def test_by_steps_is_at_once(op: str) -> None:
    """torch's own layer is taken wherever it can be: the equations must agree with it, gradients included."""
    rng = torch.Generator().manual_seed(0)
    d, gates = 2, len(ORDER[op])

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()

    given = [weight(T, N, SEEN), weight(d, gates * H, SEEN), weight(d, gates * H, H), weight(d, 2 * gates * H)]
    module = Recurrent(op, (False, True), [Activation(name) for name in PLAIN[op] * 2], resets_after=True)
    assert module.known_to_torch
    results = []
    for fast in (True, False):
        module.known_to_torch = fast
        outputs = module(*given)
        results.append([*outputs[:2], *torch.autograd.grad(outputs[0].square().sum() + outputs[1].sum(), given)])
    for at_once, by_steps in zip(*results, strict=True):
        torch.testing.assert_close(at_once, by_steps)


@pytest.mark.parametrize(("op", "after"), [("LSTM", False), ("GRU", False), ("GRU", True), ("RNN", False)])
def test_gradients_are_those_of_finite_differences(op: str, after: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    gates, units = len(ORDER[op]), 2
    shapes = [(3, 2, 2), (1, gates * units, 2), (1, gates * units, units), (1, 2 * gates * units), (1, 2, units)]
    x, w, r, b, h = (torch.randn(s, generator=rng, dtype=torch.float64, requires_grad=True) for s in shapes)
    module = Recurrent(op, (True,), [Activation(name) for name in PLAIN[op]], resets_after=after)

    def apply(*given: torch.Tensor) -> torch.Tensor:
        *weights, hidden = given
        return module(*weights, torch.tensor([3, 1]), hidden)[0]

    assert torch.autograd.gradcheck(apply, (x, w, r, b, h))


def test_weights_are_trained_and_states_are_not() -> None:
    model, _ = made("LSTM", states=True, peepholes=True)
    module = lower(Graph(model))
    attributes = dict(names_of(module))
    assert {name for name, _ in module.named_parameters()} == {attributes[n] for n in ("w", "r", "b", "p")}


def test_layers_are_copied_and_pickled() -> None:
    model, inputs = made("GRU", "bidirectional", lengths=LENGTHS)
    module = lower(Graph(model))
    given = [torch.from_numpy(array) for array in inputs.values()]
    with torch.no_grad():
        wanted = module(*given)[0]
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(other(*given)[0], wanted)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"activations": ["Gelu"]}, "'gelu'"),
        ({"activations": ["Affine"]}, "without its alpha"),
        ({"activations": ["ThresholdedRelu"]}, "without its alpha"),
        ({"activations": ["Tanh", "Tanh"]}, "2 activations for 1"),
    ],
)
def test_what_is_not_known_is_refused(settings: dict[str, Any], why: str) -> None:
    model, _ = made("RNN", **settings)
    with pytest.raises(UnsupportedOp, match=rf"RNN 'layer' \(opset 14\).*{why}"):
        lower(Graph(model))
