"""Sizes as polynomials in the widths: evaluate any number of candidates at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conet_onnx.coupling import Coupling
from conet_onnx.dims import Axis, Dim, Segment

__all__ = ["Polynomial", "Polynomials", "Table"]

Polynomial = Mapping[tuple[int, ...], int]  # {(width index, ...): coefficient}; () is the constant term


@dataclass(frozen=True, slots=True)
class Table:
    """Some polynomials, compiled: row p is the sum of its monomials."""

    monomials: NDArray[np.intp]  # [M, degree]: width indices, padded with that of a one
    weights: Any  # [M, P], coefficients

    def __call__(self, widths: NDArray[Any]) -> NDArray[np.float64]:
        """[trials, widths] -> [trials, polynomials]; exact up to 2^53."""
        ones = np.ones((len(widths), 1))
        values = np.hstack([np.asarray(widths, dtype=np.float64), ones])
        product = np.ones((len(widths), len(self.monomials)))
        for column in self.monomials.T:
            product *= values[:, column]
        return np.asarray(product @ self.weights)


class Polynomials:
    """Makes polynomials of one analysis; resizable dims are its variables, in the order of `coupling.widths`."""

    def __init__(self, coupling: Coupling) -> None:
        self._solver = coupling.solver
        self._index: dict[Dim | None, int] = {w.dim: k for k, w in enumerate(coupling.widths.values())}
        self._batch = _batch(coupling)
        self._known: dict[Dim, Polynomial] = {}

    def of(self, ax: Axis | Segment) -> Polynomial:
        """The size of an axis at batch one."""
        made: dict[tuple[int, ...], int] = {}
        for segment in self._solver.resolve(ax).segments:
            if (index := self._index.get(segment.lone)) is not None:  # nearly all parts of a long concatenation
                made[index,] = made.get((index,), 0) + 1
                continue
            for monomial, coefficient in self._product(segment).items():
                made[monomial] = made.get(monomial, 0) + coefficient
        return made

    def product(self, *axes: Axis | Segment) -> Polynomial:
        """The product of the sizes of some axes."""
        made: Polynomial = {(): 1}
        plain = 1
        for ax in axes:
            if ax.dims:
                made = multiply(made, self.of(ax))
            else:
                plain *= ax.size[0]
        return made if plain == 1 else multiply(made, {(): plain})

    def _product(self, segment: Segment) -> Polynomial:
        made: Polynomial = {(): 1}
        for factor in segment.factors:
            made = multiply(made, {(): factor} if isinstance(factor, int) else self._dim(factor))
        return made

    def _dim(self, dim: Dim) -> Polynomial:
        if self._solver.is_composite(dim):
            if dim not in self._known:
                self._known[dim] = self.of(self._solver.resolve_dim(dim))
            return self._known[dim]
        if dim in self._index:
            return {(self._index[dim],): 1}
        a, b = dim.size
        first, second = self._batch
        follows_batch = a != b and a * second == b * first and a % first == 0
        return {(): a // first if follows_batch else a}


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """The product of two polynomials."""
    if len(a) == 1 and () in a:
        a, b = b, a
    if len(b) == 1 and () in b:
        return a if b[()] == 1 else {m: c * b[()] for m, c in a.items()}
    made: dict[tuple[int, ...], int] = {}
    for m, c in a.items():
        for n, d in b.items():
            key = tuple(sorted((*m, *n)))
            made[key] = made.get(key, 0) + c * d
    return made


def compile_table(polynomials: list[Polynomial], widths: int) -> Table:
    """Compile polynomials for evaluation; equal monomials are evaluated once."""
    index: dict[tuple[int, ...], int] = {}
    for polynomial in polynomials:
        for monomial in polynomial:
            index.setdefault(monomial, len(index))
    degree = max((len(m) for m in index), default=0)
    monomials = np.full((len(index), degree), widths, dtype=np.intp)
    for monomial, row in index.items():
        monomials[row, : len(monomial)] = monomial
    weights = np.zeros((len(index), len(polynomials)))
    for column, polynomial in enumerate(polynomials):
        for monomial, coefficient in polynomial.items():
            weights[index[monomial], column] = coefficient
    return Table(monomials, weights)


def _batch(coupling: Coupling) -> tuple[int, int]:
    """The sizes that were assumed for a symbolic batch."""
    for value in coupling.graph.inputs:
        sizes = coupling.graph.sizes(value.name)
        if sizes and sizes[0][0] != sizes[0][1]:
            return sizes[0]
    return 1, 1
