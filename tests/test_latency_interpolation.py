"""Times between measured sizes: exact at the points, power laws everywhere, stairs where sizes are rounded."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conet_onnx.latency.interpolation import surface

TIMES = st.floats(1e-7, 1.0)


@given(st.dictionaries(st.integers(1, 4096), TIMES, min_size=1, max_size=6))
def test_of_one_size_it_meets_all_points(points: dict[int, float]) -> None:
    made = surface({(float(size),): seconds for size, seconds in points.items()})
    assert made(np.array(list(points))[:, None]) == pytest.approx(list(points.values()), rel=1e-9)


@given(st.lists(TIMES, min_size=6, max_size=6))
def test_of_two_sizes_it_meets_all_points(times: list[float]) -> None:
    grid = list(product((16.0, 32.0, 64.0), (8.0, 64.0)))
    made = surface(dict(zip(grid, times, strict=True)))
    assert made(np.array(grid)) == pytest.approx(times, rel=1e-9)


@given(st.integers(16, 10_000), st.integers(4, 10_000))
def test_power_laws_are_met_between_and_above(a: int, b: int) -> None:
    def law(x: float, y: float) -> float:
        return 1e-9 * x**1.5 * y**0.5

    made = surface({(x, y): law(x, y) for x in (16.0, 64.0, 256.0) for y in (4.0, 32.0)})
    assert made(np.array([[a, b]]))[0] == pytest.approx(law(a, b), rel=1e-6)


def test_between_two_points_it_is_their_geometric_mean_in_the_middle() -> None:
    made = surface({(16.0,): 1e-3, (64.0,): 4e-3, (256.0,): 4e-3})
    assert made(np.array([[32], [128]])) == pytest.approx([2e-3, 4e-3])


@given(st.integers(1, 15), st.integers(1, 10_000))
def test_below_the_first_point_noise_is_not_carried_on(a: int, b: int) -> None:
    made = surface({(16.0, 16.0): 1e-6, (32.0, 16.0): 1e-7, (16.0, 32.0): 1e-7, (32.0, 32.0): 1e-6})
    assert made(np.array([[a, b]]))[0] == pytest.approx(made(np.array([[16, max(b, 16)]]))[0])


def test_holes_of_a_grid_are_filled_along_its_lines() -> None:
    law = {(x, y): 1e-6 * x * y for x in (1.0, 2.0, 4.0) for y in (1.0, 2.0, 4.0)}
    del law[2.0, 2.0]
    assert surface(law)(np.array([[2, 2]]))[0] == pytest.approx(4e-6)


def test_single_points_of_nothing_in_common_still_give_a_number() -> None:
    assert np.isfinite(surface({(1.0, 2.0): 1e-3, (4.0, 8.0): 2e-3})(np.array([[2, 2], [9, 9]]))).all()


def test_without_sizes_it_is_a_constant() -> None:
    assert surface({(): 3e-6})(np.zeros((4, 0))) == pytest.approx([3e-6] * 4)


def test_no_time_is_nothing() -> None:
    assert surface({(1.0,): 0.0, (2.0,): -1.0})(np.array([[1], [2]])).min() > 0
