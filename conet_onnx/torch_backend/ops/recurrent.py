"""Lower recurrent layers: torch's own where they compute the same, step by step where ONNX knows more."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from conet_onnx.torch_backend.building import Builder, Node, Result
from conet_onnx.torch_backend.ops.registry import lowers

__all__ = ["Activation", "Recurrent"]

Tensor = torch.Tensor
Weights = tuple[Tensor, Tensor | None, Sequence[Tensor] | None]  # of one direction: R, its bias, peepholes

PLAIN = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # torch's gates, by their places among ONNX's
ALPHA = {"leakyrelu": 0.01, "hardsigmoid": 0.2, "elu": 1.0, "affine": None, "scaledtanh": None, "thresholdedrelu": None}
BETA = {"hardsigmoid": 0.5, "affine": None, "scaledtanh": None}
# Defaults; None: there is none, or (ThresholdedRelu) onnxruntime takes another than the operator of that name has.
FUNCTIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "relu": lambda x, alpha, beta: torch.relu(x),
    "tanh": lambda x, alpha, beta: torch.tanh(x),
    "sigmoid": lambda x, alpha, beta: torch.sigmoid(x),
    "softsign": lambda x, alpha, beta: F.softsign(x),
    "softplus": lambda x, alpha, beta: F.softplus(x),
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "leakyrelu": lambda x, alpha, beta: F.leaky_relu(x, alpha),
    "thresholdedrelu": lambda x, alpha, beta: torch.where(x >= alpha, x, 0),
    "scaledtanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "hardsigmoid": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "elu": lambda x, alpha, beta: F.elu(x, alpha),
}


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of a gate, with its settings where it has any."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Element by element."""
        return FUNCTIONS[self.name](x, self.alpha, self.beta)


class Recurrent(nn.Module):
    """One LSTM, GRU or RNN of ONNX in its directions; the weights are the lowered module's."""

    def __init__(
        self,
        op: str,
        backward: Sequence[bool],
        activations: Sequence[Activation],
        *,
        clip: float = 0.0,
        coupled: bool = False,
        resets_after: bool = False,
    ) -> None:
        super().__init__()
        self.op, self.backward, self.activations = op, tuple(backward), tuple(activations)
        self.clip, self.coupled, self.resets_after = clip, coupled, resets_after
        names = tuple(activation.name for activation in activations)
        plain = names == PLAIN[op] * len(self.backward) or (op == "RNN" and set(names) == {"relu"})
        self.known_to_torch = plain and not clip and not coupled and (op != "GRU" or resets_after)

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        bias: Tensor | None = None,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
        cell: Tensor | None = None,
        peepholes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """X (T, N, i), W (D, G·h, i), R (D, G·h, h), B (D, 2·G·h), states (D, N, h), P (D, 3·h).

        Returns Y (T, D, N, h) and the last states. Sequences that are shorter than T (`lengths`, of N) keep their
        state when they have ended, and what they would put out are zeros.
        """
        start = x.new_zeros(w.size(0), x.size(1), r.size(2))
        hidden, cell = start if hidden is None else hidden, start if cell is None else cell
        if self.known_to_torch and lengths is None and peepholes is None:
            return self._at_once(x, w, r, bias, hidden, cell)
        return self._step_by_step(x, w, r, bias, lengths, hidden, cell, peepholes)

    def extra_repr(self) -> str:
        """What the constructor was given."""
        names = ", ".join(activation.name for activation in self.activations)
        return f"{self.op}, backward={self.backward}, {names}"

    def _at_once(
        self, x: Tensor, w: Tensor, r: Tensor, bias: Tensor | None, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, ...]:
        weights: list[Tensor] = []
        for way in range(w.size(0)):
            weights += [self._as_torch(w[way]), self._as_torch(r[way])]
            if bias is not None:
                weights += map(self._as_torch, bias[way].chunk(2))
        reverse = self.backward == (True,)
        x = x.flip(0) if reverse else x
        settings = (weights, bias is not None, 1, 0.0, False, w.size(0) > 1, False)
        if self.op == "LSTM":
            y, *states = torch.lstm(x, (hidden, cell), *settings)
        elif self.op == "GRU":
            y, *states = torch.gru(x, hidden, *settings)
        else:
            function = torch.rnn_relu if self.activations[0].name == "relu" else torch.rnn_tanh
            y, *states = function(x, hidden, *settings)
        y = y.reshape(*y.shape[:2], w.size(0), r.size(2)).transpose(1, 2)
        return (y.flip(0) if reverse else y, *states)

    def _as_torch(self, stacked: Tensor) -> Tensor:
        """The gates, which are stacked along the first axis, in torch's order."""
        order = ORDER[self.op]
        gates = stacked.chunk(len(order))
        return torch.cat([gates[k] for k in order])

    def _step_by_step(
        self,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        bias: Tensor | None,
        lengths: Tensor | None,
        hidden: Tensor,
        cell: Tensor,
        peepholes: Tensor | None,
    ) -> tuple[Tensor, ...]:
        step = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.op]
        each = len(PLAIN[self.op])
        outputs, last = [], []
        for way, reverse in enumerate(self.backward):
            wb, rb = (None, None) if bias is None else bias[way].chunk(2)
            own: Weights = r[way], rb, None if peepholes is None else peepholes[way].chunk(3)
            activations = self.activations[way * each : (way + 1) * each]
            gates, h, c = F.linear(x, w[way], wb), hidden[way], cell[way]
            made = [h] * len(gates)
            for t in range(len(gates))[:: -1 if reverse else 1]:
                if lengths is None:
                    h, c = step(gates[t], h, c, own, activations)
                    made[t] = h
                else:
                    runs = (t < lengths)[:, None]
                    new_h, new_c = step(gates[t], h, c, own, activations)
                    h, c = torch.where(runs, new_h, h), torch.where(runs, new_c, c)
                    made[t] = torch.where(runs, new_h, 0)
            outputs.append(torch.stack(made))
            last.append((h, c))
        return (torch.stack(outputs, 1), *(torch.stack(states) for states in zip(*last, strict=True)))

    def _lstm(
        self, x: Tensor, h: Tensor, c: Tensor, own: Weights, activations: Sequence[Activation]
    ) -> tuple[Tensor, Tensor]:
        (r, rb, p), (f, g, out) = own, activations
        i, o, forget, new = (x + F.linear(h, r, rb)).chunk(4, -1)
        if p is not None:
            i, forget = i + p[0] * c, forget + p[2] * c
        i, new = f(self._clipped(i)), g(self._clipped(new))
        c = (1 - i if self.coupled else f(self._clipped(forget))) * c + i * new
        o = o if p is None else o + p[1] * c
        return f(self._clipped(o)) * out(c), c

    def _gru(
        self, x: Tensor, h: Tensor, c: Tensor, own: Weights, activations: Sequence[Activation]
    ) -> tuple[Tensor, Tensor]:
        (r, rb, _), (f, g), units = own, activations, h.size(-1)
        first, second = (None, None) if rb is None else (rb[: 2 * units], rb[2 * units :])
        (xz, xr, new), (hz, hr) = x.chunk(3, -1), F.linear(h, r[: 2 * units], first).chunk(2, -1)
        z, reset = f(self._clipped(xz + hz)), f(self._clipped(xr + hr))
        if self.resets_after:
            new = new + reset * F.linear(h, r[2 * units :], second)
        else:
            new = new + F.linear(reset * h, r[2 * units :], second)
        return (1 - z) * g(self._clipped(new)) + z * h, c

    def _rnn(
        self, x: Tensor, h: Tensor, c: Tensor, own: Weights, activations: Sequence[Activation]
    ) -> tuple[Tensor, Tensor]:
        return activations[0](self._clipped(x + F.linear(h, *own[:2]))), c

    def _clipped(self, x: Tensor) -> Tensor:
        return x.clamp(-self.clip, self.clip) if self.clip else x


@lowers("LSTM", "GRU", "RNN")
def recurrent(b: Builder, node: Node) -> Result:
    """With layout = 1 the batch comes first everywhere. GRU's default resets before its product, torch's after."""
    attributes = node.attributes
    backward = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[
        attributes.get("direction", "forward")
    ]
    module = Recurrent(
        node.op,
        backward,
        _activations(b, node, len(backward)),
        clip=attributes.get("clip", 0.0),
        coupled=bool(attributes.get("input_forget", 0)),
        resets_after=bool(attributes.get("linear_before_reset", 0)),
    )
    x, w, r, bias, lengths, hidden, cell, peepholes = (b.optional(node, k) for k in range(8))
    batch_first = bool(attributes.get("layout", 0))
    if batch_first:
        x, hidden, cell = (None if t is None else b.call(torch.transpose, t, 0, 1) for t in (x, hidden, cell))
    made = b.module(module, x, w, r, bias, lengths, hidden, cell, peepholes)
    y, *states = (b.call(operator.getitem, made, k) for k in range(3 if node.op == "LSTM" else 2))
    if batch_first:
        y = b.call(torch.permute, y, (2, 0, 1, 3))
        states = [b.call(torch.transpose, state, 0, 1) for state in states]
    return [y, *states][: len(node.outputs)]


def _activations(b: Builder, node: Node, directions: int) -> tuple[Activation, ...]:
    """Each direction's functions in turn; alphas and betas are given in the order of those that have them."""
    given = node.attributes.get("activations") or PLAIN[node.op] * directions
    alphas, betas = (list(node.attributes.get(f"activation_{name}", ())) for name in ("alpha", "beta"))
    made = []
    for name in map(str.lower, given):
        if name not in FUNCTIONS:
            raise b.unsupported(node, f"activation {name!r}")
        alpha = alphas.pop(0) if name in ALPHA and alphas else ALPHA.get(name, 0.0)
        beta = betas.pop(0) if name in BETA and betas else BETA.get(name, 0.0)
        if alpha is None or beta is None:
            raise b.unsupported(node, f"activation {name!r} without its alpha or beta")
        made.append(Activation(name, alpha, beta))
    if len(made) != len(PLAIN[node.op]) * directions:
        raise b.unsupported(node, f"{len(made)} activations for {directions} direction(s)")
    return tuple(made)
