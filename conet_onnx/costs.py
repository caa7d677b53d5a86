"""Price any widths without rewriting: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from conet_onnx.collecting import collector_paused
from conet_onnx.coupling import Coupling
from conet_onnx.dims import Axis, Dim
from conet_onnx.errors import UsageError
from conet_onnx.graph import FLOATS, REALS
from conet_onnx.sites import Place, places
from conet_onnx.sizes import Polynomial, Polynomials, Table, compile_table

__all__ = ["Costs", "Coverage", "Price", "Share"]


class Price(NamedTuple):
    """Parameters (elements of floating-point weights, and of 8-bit ones of two axes or more, which are no zero points),
    MACs at batch one, raw bytes of the initializers."""

    params: int
    macs: int
    bytes: int


class Share(NamedTuple):
    """What a width's channels touch."""

    params: int
    macs: int


class Coverage(NamedTuple):
    """Share of the parameters and MACs with at least one resizable axis, 0..1."""

    params: float
    macs: float


_NONE = frozenset[Dim]()


class Costs:
    """The cost polynomials of one analysed graph."""

    @collector_paused()
    def __init__(self, coupling: Coupling) -> None:
        self._coupling = coupling
        self._polynomials = Polynomials(coupling)
        self._ids = {name: k for k, name in enumerate(coupling.widths)}
        self._sizes = np.array([w.size for w in coupling.widths.values()], dtype=np.int64)
        self._uses = [
            (use, self._polynomials.product(*use.shape), self._dims(*use.shape)) for use in coupling.distinct_uses
        ]
        batch = _static_batch(coupling)
        macs = [(f.node, coupling.axis(f.contraction.macs)) for f in coupling.contractions]
        self._products = [
            (
                _per_sample(self._polynomials.of(ax), batch if coupling.follows_input(node) else 1),
                self._dims(ax),
            )
            for node, ax in macs
        ]

    @cached_property
    def source(self) -> Price:
        """The price of the graph as it is: counted, not computed."""
        graph = self._coupling.graph
        params = sum(_count(t) for name, t in graph.weights.items() if self._counts(name))
        raw = sum(_count(t) * _itemsize(t) for t in graph.model.graph.initializer)
        macs = self._evaluate([macs for macs, _ in self._products])
        return Price(params, macs, raw)

    def price(self, widths: Mapping[str, int]) -> Price:
        """The price at some widths; those not named keep their size. Raises UsageError for an unknown id."""
        return Price(*(int(v) for v in self.price_many(self.row(widths)[None])[0]))

    def row(self, widths: Mapping[str, int]) -> NDArray[np.int64]:
        """Sizes as `price_many` takes them; widths not named keep theirs. Raises UsageError for an unknown id."""
        row = self._sizes.copy()
        for name, size in widths.items():
            if name not in self._ids:
                raise UsageError(f"{name!r} is not a width of this model; it has {', '.join(self._ids) or 'none'}.")
            row[self._ids[name]] = size
        return row

    def price_many(self, widths: NDArray[Any]) -> NDArray[np.int64]:
        """[trials, widths in the order of coupling.widths] -> [trials, (params, MACs, bytes)]."""
        widths = np.atleast_2d(np.asarray(widths, dtype=np.int64))
        made = np.rint(self._table(widths)).astype(np.int64)
        edited = {place: _edited(place, table, widths) for place, table in self._new_constants}
        for place, mask in edited.items():
            made[:, 2] += np.where(mask, place.itemsize * len(place.values), 0)
        for raw, readers in self._left_over:
            made[:, 2] -= np.where(np.all([edited[place] for place in readers], axis=0), raw, 0)
        unchanged = (widths == self._sizes).all(axis=1)
        made[unchanged] = self.source
        return made

    def terms(self, kind: str) -> list[tuple[tuple[int, ...], Callable[[NDArray[Any]], NDArray[np.float64]]]]:
        """Params, macs or bytes as a sum of terms: which widths, by their places in `row`, and what they cost.

        A term takes the sizes of its widths, [n, widths] -> [n]; the one of no widths is what is there in any case. The
        sum is the price, but for the bytes of integers that a resize writes anew or leaves out: there it is no more
        than the price. Raises UsageError for another kind.
        """
        if kind not in Price._fields:
            raise UsageError(
                f"{kind!r} is no cost that is known from the widths; it is one of {', '.join(Price._fields)}."
            )
        column, ones = Price._fields.index(kind), len(self._ids)
        found: dict[tuple[int, ...], list[int]] = {(): []}
        for row in np.flatnonzero(self._table.weights[:, column]).tolist():
            widths = {w for w in self._table.monomials[row].tolist() if w != ones}
            found.setdefault(tuple(sorted(widths)), []).append(row)
        made: list[tuple[tuple[int, ...], Callable[[NDArray[Any]], NDArray[np.float64]]]] = []
        for scope, rows in found.items():
            places = np.searchsorted(scope, self._table.monomials[rows])
            left_out = sum(raw for raw, _ in self._left_over) if kind == "bytes" and not scope else 0
            made.append((scope, partial(_term, Table(places, self._table.weights[rows, column]), -float(left_out))))
        return made

    def share(self, width: str) -> Share:
        """Parameters and MACs that a width's channels touch."""
        dim = self._coupling.widths[width].dim
        # A scale that several layers share counts once: the file holds it once.
        weights = {use.tensor: size for use, size, dims in self._uses if dim in dims and self._counts(use.tensor)}
        return Share(
            self._evaluate(list(weights.values())),
            self._evaluate([macs for macs, dims in self._products if dim in dims]),
        )

    @cached_property
    def coverage(self) -> Coverage:
        """How much of the model can be resized at all."""
        free = self._coupling.resizable
        weights = {use.tensor for use, _, dims in self._uses if dims & free and self._counts(use.tensor)}
        params = sum(_count(self._coupling.graph.weights[name]) for name in weights)
        macs = self._evaluate([macs for macs, dims in self._products if dims & free])
        return Coverage(params / max(self.source.params, 1), macs / max(self.source.macs, 1))

    # Compiled on first use

    @cached_property
    def _table(self) -> Table:
        """Parameters, MACs, bytes. A Constant node is no initializer, but copies of it for other readers are."""
        weights = self._coupling.graph.weights
        initializers = {t.name: _itemsize(t) for t in self._coupling.graph.model.graph.initializer}
        params = _total([size for use, size, _ in self._uses if self._counts(use.tensor)])
        first = {use.tensor: use for use, _, _ in reversed(self._uses)}
        own = {u: _itemsize(weights[u.tensor]) if u is not first[u.tensor] else 0 for u, _, _ in self._uses}
        raw = _total([_scale(size, initializers.get(u.tensor, own[u])) for u, size, _ in self._uses])
        graph = self._coupling.graph
        numbers = [graph.constant(graph.nodes[node].inputs[k]) for node, k in self._coupling.settled]
        settled = [number for number in numbers if number is not None]
        params = _total([params, {(): sum(number.size for number in settled if number.ndim)}])
        raw = _total([raw, {(): sum(number.nbytes for number in settled)}])
        unread = set(weights) - {use.tensor for use, _, _ in self._uses}
        params = _total([params, {(): sum(_count(weights[n]) for n in unread if self._counts(n))}])
        raw = _total([raw, {(): sum(_count(weights[n]) * initializers.get(n, 0) for n in unread)}])
        return compile_table([params, _total([m for m, _ in self._products]), raw], len(self._ids))

    @cached_property
    def _new_constants(self) -> tuple[tuple[Place, Table], ...]:
        """Places whose integers would need an initializer of their own, with the sizes that decide it."""
        fresh = [p for p in places(self._coupling) if p.fresh]
        return tuple((p, compile_table([self._size(ax) for ax in p.sizes], len(self._ids))) for p in fresh)

    @cached_property
    def _left_over(self) -> list[tuple[int, list[Place]]]:
        """Initializers that nobody reads once some places have constants of their own: bytes, and those places."""
        graph = self._coupling.graph
        readers: dict[str, list[Place]] = {}
        for place, _ in self._new_constants:
            readers.setdefault(place.tensor, []).append(place)
        found = []
        for tensor in graph.model.graph.initializer:
            mine = readers.get(tensor.name, [])
            if mine and len(mine) == graph.readings(tensor.name):
                found.append((_count(tensor) * _itemsize(tensor), mine))
        return found

    def _size(self, ax: Axis | None) -> Polynomial:
        return {(): 0} if ax is None else self._polynomials.of(ax)

    def _counts(self, tensor: str) -> bool:
        weight = self._coupling.graph.weights[tensor]
        return weight.data_type in FLOATS and len(weight.dims) > (weight.data_type not in REALS)

    def _dims(self, *segments: Any) -> frozenset[Dim]:
        leaves = self._coupling.solver.leaves
        found = [d for s in segments if s.dims for d in leaves(s)]
        return frozenset(found) if found else _NONE

    def _evaluate(self, polynomials: list[Polynomial]) -> int:
        return int(np.rint(compile_table([_total(polynomials)], len(self._ids))(self._sizes[None])[0, 0]))


def _term(table: Table, more: float, sizes: NDArray[Any]) -> NDArray[np.float64]:
    """What a table of one column makes of some sizes, and so much more."""
    return table(sizes) + more


def _static_batch(coupling: Coupling) -> int:
    """The batch size that is fixed in the file: the first size of every input, where they and an output agree."""
    graph = coupling.graph

    def first(name: str) -> int:
        shape = graph.shape(name)
        return (shape[0] or 1) if shape else 1

    sizes = {first(v.name) for v in graph.inputs}
    return sizes.pop() if len(sizes) == 1 and sizes & {first(v.name) for v in graph.outputs} else 1


def _per_sample(macs: Polynomial, batch: int) -> Polynomial:
    """MACs at batch one; those of a product without a batch axis are what they are."""
    whole = all(c % batch == 0 for c in macs.values())
    return {m: c // batch for m, c in macs.items()} if whole else macs


def _edited(place: Place, table: Table, widths: NDArray[Any]) -> NDArray[np.bool_]:
    sizes = np.rint(table(widths)).astype(np.int64)
    governed = [k for k, ax in enumerate(place.sizes) if ax is not None and ax.size[0] == ax.size[1]]
    old = np.array([place.values[k] if place.values[k] is not None else -1 for k in governed])
    signs = np.array([place.signs[k] for k in governed])
    return np.asarray((sizes[:, governed] * signs != old).any(axis=1) | place.always)


def _total(polynomials: list[Polynomial]) -> Polynomial:
    made: dict[tuple[int, ...], int] = {}
    for polynomial in polynomials:
        for monomial, coefficient in polynomial.items():
            made[monomial] = made.get(monomial, 0) + coefficient
    return made


def _scale(polynomial: Polynomial, by: int) -> Polynomial:
    return {m: c * by for m, c in polynomial.items()}


def _count(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _itemsize(tensor: onnx.TensorProto) -> int:
    return int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
