"""Dims, segments and axes: normal forms, sizes, and how they print."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conet_onnx.dims import ONE, Dim, Segment, axis, product, total

A, B, C = (Dim(name, (size, size)) for name, size in (("a", 4), ("b", 6), ("c", 10)))
BATCH = Dim("n", (3, 5), rigid=True)
UNIT = Dim("u", (1, 1))


def test_a_product_drops_ones_and_multiplies_neighbouring_integers():
    assert product(2, 1, 3, A, UNIT, 5, 2).factors == (6, A, 10)
    assert product(UNIT, 1) == ONE
    assert ONE.size == (1, 1)
    assert product(product(A, 2), product(3, B)).factors == (A, 6, B)


def test_a_sum_merges_neighbours_that_differ_in_a_leading_integer():
    assert total((product(2, A), product(A))) == axis(3, A)
    assert total((product(24), product(8))) == axis(32)
    assert total((product(A), product(B), product(A))).segments == (product(A), product(B), product(A))
    assert total((product(2, A), product(3, B))).segments == (product(2, A), product(3, B))
    assert total(()).size == (0, 0)


def test_a_size_of_one_is_the_empty_product_and_counts_in_a_sum():
    assert total((product(A), product(UNIT))).segments == (product(A), ONE)
    assert total((ONE, ONE, product(UNIT))) == axis(3)


def test_sizes_multiply_and_add_at_both_assignments():
    assert product(BATCH, A, 2).size == (24, 40)
    assert total((product(BATCH), product(B))).size == (9, 11)


def test_a_size_of_one_at_one_assignment_only_is_no_unit():
    odd = Dim("odd", (1, 2))
    assert product(odd).factors == (odd,)


def test_they_print_as_they_are_written():
    assert str(total((product(A, 2), product(B)))) == "a·2 + b"
    assert str(ONE) == "1"
    assert str(total(())) == "0"


def test_dims_are_equal_only_to_themselves():
    assert Dim("a", (4, 4)) != A
    assert product(A, B) == product(A, B)
    assert product(A, B) != product(B, A)


def test_lone_and_fixed():
    assert axis(A).lone is A
    assert axis(A, 2).lone is None
    assert total((product(A), product(B))).lone is None
    assert axis(12).fixed
    assert axis(12).lone is None
    assert not axis(A, 2).fixed
    assert total((product(A, 2), product(B, A))).dims == (A, B, A)


factors = st.sampled_from([A, B, C, BATCH, UNIT, 1, 2, 3, 7])


@given(st.lists(factors, max_size=6))
def test_the_normal_form_of_a_product_is_its_own_normal_form(items):
    made = product(*items)
    assert product(made) == made == product(*made.factors)
    for which in (0, 1):
        expected = 1
        for item in items:
            expected *= item if isinstance(item, int) else item.size[which]
        assert made.size[which] == expected


@given(st.lists(st.lists(factors, max_size=3), max_size=5))
def test_the_normal_form_of_a_sum_is_its_own_normal_form(parts):
    segments = [product(*items) for items in parts]
    made = total(segments)
    assert total(made.segments) == made
    assert made.size == tuple(sum(s.size[k] for s in segments) for k in (0, 1))
    assert all(isinstance(s, Segment) for s in made.segments)
