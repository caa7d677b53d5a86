"""Forget what a model has learned: weights as a new network of its kind would begin with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph, Node
from conet_onnx.torch_backend.known import Array
from conet_onnx.torch_backend.stepped import stepped_weights
from conet_onnx.torch_backend.weights import trainable

__all__ = ["fresh"]

Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape, Node], Array]  # the values of a weight that a node reads in this shape

TABLE = 0.02  # standard deviation of embeddings and tokens (Radford et al., 2018, section 4.1)
SLOPE = 0.25  # of PRelu (He et al., 2015, section 2.1)
LARGE = 1e4  # what reaches so far is a mask
MOVES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Flatten"})


def fresh(graph: Graph, seed: int) -> Graph:
    """The graph with new values in all learned weights and running statistics, by what reads them.

    Convolutions: normal with variance 2 / fan-in (He et al., 2015, arXiv:1502.01852, eq. 10); other products: with
    1 / fan-in (LeCun et al., 1998, Efficient BackProp, eq. 16); recurrent weights: uniform within 1 / sqrt(hidden), as
    torch has it; tables and tokens: normal, 0.02; scales of norms 1, biases 0, means 0, variances 1; slopes of PRelu
    0.25. Masks stay. Raises UsageError for weights of 8 bits, whose scales belong to what was learned, and for a weight
    of which the reader does not tell what it is.
    """
    if stepped := stepped_weights(graph):
        raise UsageError(
            f"{graph.file or 'the model'} holds weights of 8 bits ({next(iter(stepped))!r}); their scales belong to "
            "what was learned. Begin with the model as it was before it was quantised."
        )
    rng = np.random.default_rng(seed)
    learned = trainable(graph)
    made: dict[str, Array] = {}
    for name, tensor in graph.weights.items():
        statistic = any(n.op == "BatchNormalization" and k in (3, 4) for n, k, _ in _readers(graph, name))
        if name not in learned and not statistic:
            continue
        old = graph.array(name)
        if float(np.abs(old.astype(np.float32)).max(initial=0)) < LARGE:
            made[name] = _drawn(graph, name, rng).reshape(tuple(tensor.dims))
    return graph.with_arrays(made)


def _drawn(graph: Graph, name: str, rng: np.random.Generator) -> Array:
    for node, index, shape in _readers(graph, name):
        draw = _DRAWS.get(node.operator, {}).get(index)
        if draw is not None:
            return draw(rng, shape, node)
    node = next(iter(_readers(graph, name)))[0]
    raise UsageError(f"{name!r} is read by {node}, which does not tell how a new one begins; train it as it is.")


def _readers(graph: Graph, name: str, shape: Shape | None = None) -> Iterator[tuple[Node, int, Shape]]:
    """Who reads a weight, as which input, and in which shape, also behind what only moves its elements."""
    shape = tuple(graph.weights[name].dims) if shape is None else shape
    for node in graph.consumers(name):
        if node.operator in MOVES and node.inputs[0] == name:
            known = graph.shape(node.outputs[0]) or ()
            moved = tuple(size for size in known if size is not None)
            if math.prod(moved) == math.prod(shape):
                yield from _readers(graph, node.outputs[0], moved)
            continue
        for index, read in enumerate(node.inputs):
            if read == name:
                yield node, index, shape


def _convolution(rng: np.random.Generator, shape: Shape, _: Node) -> Array:
    return rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)


def _transposed(rng: np.random.Generator, shape: Shape, node: Node) -> Array:
    """[in, out / group, kernel ...]: each output sees one in `strides` of the kernel's positions."""
    seen = math.prod(shape[2:]) / math.prod(node.attributes.get("strides", (1,)))
    fan = shape[0] / node.attributes.get("group", 1) * seen
    return rng.normal(0, math.sqrt(2 / max(fan, 1)), shape)


def _product(axis: int) -> Draw:
    """A matrix that is summed over along an axis."""
    return lambda rng, shape, _: rng.normal(0, math.sqrt(1 / shape[max(axis, -len(shape))]), shape)


def _gemm(index: int) -> Draw:
    def draw(rng: np.random.Generator, shape: Shape, node: Node) -> Array:
        transposed = bool(node.attributes.get("transB" if index else "transA", 0))
        return rng.normal(0, math.sqrt(1 / shape[(1 - index) ^ transposed]), shape)

    return draw


def _recurrent(rng: np.random.Generator, shape: Shape, node: Node) -> Array:
    limit = 1 / math.sqrt(node.attributes["hidden_size"])
    return rng.uniform(-limit, limit, shape)


def _table(rng: np.random.Generator, shape: Shape, _: Node) -> Array:
    return rng.normal(0, TABLE, shape)


def _full(value: float) -> Draw:
    return lambda _rng, shape, _node: np.full(shape, value)


def _added(rng: np.random.Generator, shape: Shape, node: Node) -> Array:
    """A vector is a bias, what has more axes a table of positions or a token."""
    return _table(rng, shape, node) if sum(size > 1 for size in shape) > 1 else np.zeros(shape)


_NORM: Mapping[int, Draw] = {1: _full(1), 2: _full(0), 3: _full(0), 4: _full(1)}
_CONV: Mapping[int, Draw] = {1: _convolution, 2: _full(0)}
_GEMM: Mapping[int, Draw] = {0: _gemm(0), 1: _gemm(1), 2: _full(0)}
_MATMUL: Mapping[int, Draw] = {0: _product(-1), 1: _product(-2)}
_RECURRENT: Mapping[int, Draw] = dict.fromkeys((1, 2, 3, 7), _recurrent)
_BIAS: Mapping[int, Draw] = {1: _full(0)}
_PIECE: Mapping[int, Draw] = dict.fromkeys(range(8), _table)
_FACTOR: Mapping[int, Draw] = {0: _full(1), 1: _full(1)}
_TERM: Mapping[int, Draw] = {0: _added, 1: _added}
_DRAWS: Mapping[str, Mapping[int, Draw]] = {
    **dict.fromkeys(("Conv", "com.microsoft.FusedConv"), _CONV),
    "ConvTranspose": {1: _transposed, 2: _full(0)},
    **dict.fromkeys(("Gemm", "com.microsoft.FusedGemm"), _GEMM),
    **dict.fromkeys(("MatMul", "com.microsoft.FusedMatMul"), _MATMUL),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
    **dict.fromkeys(
        (
            *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"),
            *("RMSNormalization", "SimplifiedLayerNormalization", "com.microsoft.GroupNorm"),
        ),
        _NORM,
    ),
    "com.microsoft.SkipLayerNormalization": {2: _full(1), 3: _full(0), 4: _full(0)},
    "com.microsoft.SkipSimplifiedLayerNormalization": {2: _full(1), 3: _full(0)},
    "com.microsoft.Attention": {1: _product(-2), 2: _full(0)},
    **dict.fromkeys(("com.microsoft.BiasGelu", "com.microsoft.FastGelu"), _BIAS),
    **dict.fromkeys(("Mul", "Div"), _FACTOR),
    **dict.fromkeys(("Add", "Sub"), _TERM),
    "Gather": {0: _table},
    **dict.fromkeys(("Concat", "Expand", "Tile", "Slice"), _PIECE),
    "PRelu": {1: _full(SLOPE)},
}
