"""Unification: what is equal resolves alike, what is bound was unbound, and nothing changes its size."""

from __future__ import annotations

import random
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conet_onnx.dims import ONE, Axis, Dim, Segment, axis, product, total
from conet_onnx.solving import Conflict, Reason, Solver


def dims(**sizes: int) -> tuple[Dim, ...]:
    return tuple(Dim(name, (size, size)) for name, size in sizes.items())


def shown(solver: Solver, *axes: Axis | Segment) -> list[list[int]]:
    """The sizes of the segments that axes resolve to."""
    return [[s.size[0] for s in solver.resolve(ax).segments] for ax in axes]


def test_equal_sums_are_cut_at_the_nearer_boundary():
    """24 + 40 against 30 + 34 gives 24 + 6 + 34."""
    a, b, c, d = dims(a=24, b=40, c=30, d=34)
    solver = Solver()
    left, right = total((product(a), product(b))), total((product(c), product(d)))
    solver.equate(left, right, "node")
    assert shown(solver, left, right) == [[24, 6, 34], [24, 6, 34]]
    assert solver.resolve(left) == solver.resolve(right)
    assert shown(solver, product(b), product(c)) == [[6, 34], [24, 6]]


def test_two_groups_over_a_concat():
    """8 + 12 + 4 in two groups: the outer factor is a plain two, and the inner is cut into 8 + 4."""
    a, b, c, g, i = dims(a=8, b=12, c=4, g=2, i=12)
    solver = Solver()
    solver.equate(total((product(a), product(b), product(c))), axis(g, i), "conv")
    assert solver.resolve(product(g)) == axis(2)
    assert shown(solver, product(i), product(b)) == [[8, 4], [4, 8]]
    left, right = solver.resolve(product(i)).dims
    assert solver.resolve(product(a)) == axis(left)
    assert solver.resolve(product(c)) == axis(right)
    assert solver.resolve(product(b)) == total((product(right), product(left)))


def test_a_multiple_is_factored():
    """m = 2·k by a Reshape, and the cut of 2·k in the middle."""
    m, k, p, q = dims(m=12, k=6, p=6, q=6)
    solver = Solver()
    solver.equate(product(m), product(2, k), "reshape")
    assert solver.resolve(product(m)) == axis(2, k)
    solver.equate(product(m), total((product(p), product(q))), "split")
    assert solver.resolve(product(p)) == solver.resolve(product(q)) == solver.resolve(product(k))


def test_a_cut_inside_a_repeated_block():
    """3·k with k = 8 cut at 10: k = 2 + 6, and 10 = 8 + 2."""
    k, p, q = dims(k=8, p=10, q=14)
    solver = Solver()
    solver.equate(axis(3, k), total((product(p), product(q))), "split")
    assert shown(solver, product(k), product(p), product(q)) == [[2, 6], [2, 6, 2], [6, 2, 6]]


def test_products_are_aligned_factor_by_factor():
    """24 = a·b with a = 4 against c·d with c = 2: a = 2·2."""
    a, b, c, d = dims(a=4, b=6, c=2, d=12)
    solver = Solver()
    solver.equate(product(a, b), product(c, d), "reshape")
    assert solver.resolve(product(a, b)) == solver.resolve(product(c, d))
    assert [f.size[0] for f in solver.resolve(product(a)).dims] == [2, 2]


def test_what_does_not_nest_is_frozen_with_the_node():
    """2·3 against 3·2: rows of three and rows of two share no boundary."""
    a, b, c, d = dims(a=2, b=3, c=3, d=2)
    solver = Solver()
    solver.equate(product(a, b), product(c, d), "Reshape 'r'")
    assert all(solver.resolve(product(x)).fixed for x in (a, b, c, d))
    reason = solver.reason(product(a))
    assert reason is not None
    assert reason.kind == "misaligned"
    assert "Reshape 'r'" in reason.detail


def test_reasons_survive_any_number_of_equations():
    chain = dims(**{f"d{k}": 8 for k in range(20)})
    solver = Solver()
    for a, b in pairwise(chain[:10]):
        solver.equate(product(a), product(b), "add")
    why = Reason("gather", "g", "Gather 'g' picks channels by data")
    solver.freeze(product(chain[4]), why)
    for a, b in pairwise(chain[9:]):
        solver.equate(product(a), product(b), "add")
    assert all(solver.resolve(product(d)) == axis(8) for d in chain)
    assert {solver.reason(product(d)) for d in chain} == {why}


def test_the_first_reason_is_kept():
    (a,) = dims(a=5)
    solver = Solver()
    solver.freeze(product(a), Reason("first", "n", "one"))
    solver.freeze(product(a), Reason("second", "n", "two"))
    assert solver.reason(product(a)).kind == "first"


def test_the_batch_is_never_bound_to_a_number_cut_or_factored():
    n = Dim("n", (3, 5), rigid=True)
    m = Dim("m", (6, 10))
    (c,) = dims(c=2)
    solver = Solver()
    solver.freeze(product(n, c), Reason("x", "x", "x"))
    assert solver.resolve(product(n)) == axis(n)
    assert solver.resolve(product(c)) == axis(2)
    solver.equate(product(m), product(n, 2), "reshape")
    assert solver.resolve(product(m)) == axis(n, 2)
    p, q = Dim("p", (1, 2)), Dim("q", (2, 3))
    with pytest.raises(Conflict, match="cannot cut n"):
        solver.equate(product(n), total((product(p), product(q))), "split")
    assert solver.resolve(product(n)) == axis(n)


def test_a_rigid_size_may_be_a_sum_of_such():
    """A token in front of a sequence: its length is one and that of the sequence, or as much counted anew."""
    t, longer = Dim("t", (16, 12), rigid=True), Dim("longer", (17, 13), rigid=True)
    (c,) = dims(c=2)
    for flip in (False, True):
        solver = Solver()
        sides = total((ONE, product(t))), product(longer)
        solver.equate(*(reversed(sides) if flip else sides), "concat")
        assert solver.resolve(product(longer)) == axis(longer)
        solver.equate(product(longer, c), product(longer, 2), "reshape")
        assert solver.resolve(product(c)) == axis(2)


def test_a_width_moves_through_the_batch_and_back():
    n = Dim("n", (3, 5), rigid=True)
    (c,) = dims(c=6)
    folded, back = Dim("nc", (18, 30)), Dim("c2", (6, 6))
    solver = Solver()
    solver.equate(product(n, c), product(folded), "reshape")
    solver.equate(product(folded), product(n, back), "reshape")
    assert solver.resolve(product(back)) == solver.resolve(product(c))


def test_axes_of_different_size_are_a_conflict():
    a, b = dims(a=4, b=6)
    with pytest.raises(Conflict, match="size"):
        Solver().equate(product(a), product(b), "add")


def test_sums_behind_a_product_are_resolved_apart():
    """h·(a + b) with an unfixed h stays composite, and what is equal to it has the same leaves."""
    h, a, b, e, f = dims(h=4, a=3, b=5, e=8, f=8)
    solver = Solver()
    solver.equate(product(e), total((product(a), product(b))), "concat")
    solver.equate(product(h, e), product(h, f), "add")
    assert len(solver.resolve(product(h, e)).segments) == 1
    assert set(solver.leaves(product(h, f))) == {h, a, b}


# Random equations


class Equations:
    """A pool of dims, and equations between axes of equal size made from it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.pool: list[Dim] = []

    def equation(self) -> tuple[Axis, Axis]:
        size = self.chance.choice((6, 8, 12, 16, 18, 24, 30, 36))
        return self.axis(size), self.axis(size)

    def axis(self, size: int) -> Axis:
        parts = []
        while size:
            part = size if self.chance.random() < 0.5 else self.chance.randrange(1, size + 1)
            parts.append(self.segment(part))
            size -= part
        return total(parts)

    def segment(self, size: int) -> Segment:
        factors = []
        while size > 1:
            ways = [d for d in range(2, size + 1) if size % d == 0]
            n = size if self.chance.random() < 0.5 else self.chance.choice(ways)
            factors.append(self.factor(n))
            size //= n
        return product(*factors)

    def factor(self, size: int) -> Dim | int:
        known = [d for d in self.pool if d.size[0] == size]
        if known and self.chance.random() < 0.5:
            return self.chance.choice(known)
        if self.chance.random() < 0.15:
            return size
        self.pool.append(Dim(f"d{len(self.pool)}", (size, size)))
        return self.pool[-1]


def check_invariants(solver: Solver, pool: list[Dim], equations: list[tuple[Axis, Axis]]) -> None:
    for dim in pool:
        resolved = solver.resolve(product(dim))
        assert resolved.size == dim.size
        assert sum(s.size[0] for s in resolved.segments) == dim.size[0]
        for leaf in solver.leaves(product(dim)):
            assert not solver.is_composite(leaf)
            assert solver.resolve_dim(leaf) == axis(leaf)
    rng = np.random.default_rng(0)
    leaves = {leaf for dim in pool for leaf in solver.leaves(product(dim))}
    chosen = {leaf: rng.integers(0, leaf.size[0], rng.integers(1, 2 * leaf.size[0])) for leaf in leaves}
    view = SimpleNamespace(solver=solver)
    for left, right in equations:  # whatever the leaves become, both sides have the same elements in the same order
        assert np.array_equal(oracles.positions(view, left, chosen), oracles.positions(view, right, chosen))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_both_sides_of_every_equation_have_the_same_elements_at_any_resize(chance):
    made = Equations(chance)
    solver = Solver()
    equations = []
    for _ in range(chance.randrange(1, 8)):
        equation = made.equation()
        solver.equate(*equation, "node")  # asserts that what it binds was unbound, and of the same size
        equations.append(equation)
        if chance.random() < 0.1:
            solver.freeze(equation[0], Reason("asked", "node", "because"))
    check_invariants(solver, made.pool, equations)


@pytest.mark.parametrize("seed", range(40))
def test_many_equations_over_few_dims(seed):
    made = Equations(random.Random(seed))
    solver = Solver()
    equations = []
    for _ in range(25):
        equations.append(made.equation())
        solver.equate(*equations[-1], "node")
    check_invariants(solver, made.pool, equations)
