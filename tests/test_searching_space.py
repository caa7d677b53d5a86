"""Widths a search may choose: bounds, steps, and the projection onto a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searching_fakes import FakeAnalysis, FakeWidth, chain

from conet_onnx.errors import BudgetUnreachable
from conet_onnx.searching.budget import Budget, Limits
from conet_onnx.searching.space import WidthSpace

SIZES = st.sampled_from([1, 2, 3, 5, 8, 12, 16, 24, 32, 48, 64, 96, 100, 128, 256])
WIDTHS = st.builds(
    lambda times, multiple, exact: FakeWidth(times * multiple, multiple=multiple, exact=exact),
    SIZES,
    st.sampled_from([1, 1, 1, 2, 3, 4]),
    st.booleans(),
)
ANALYSES = st.lists(WIDTHS, min_size=1, max_size=6).map(lambda ws: FakeAnalysis({f"w{i}": w for i, w in enumerate(ws)}))


def wishes(space: WidthSpace) -> st.SearchStrategy[Mapping[str, float]]:
    return st.fixed_dictionaries({name: st.floats(0.1 * size, 4 * size) for name, size in space.source.items()})


class TestSnapping:
    def test_the_source_is_allowed(self) -> None:
        space = WidthSpace(chain(16, 24, 100, 64, 17, 3))
        assert space.snap(space.source) == space.source

    @pytest.mark.parametrize(
        ("settings", "allowed"),
        [
            ({"size": 64}, [1, 2, 4, *range(8, 129, 8)]),
            ({"size": 100}, [1, 2, 4, *range(8, 97, 8), 100, *range(104, 201, 8)]),
            ({"size": 40}, [1, 2, *range(4, 81, 4)]),
            ({"size": 24}, [1, *range(2, 49, 2)]),
            ({"size": 17}, [1, *range(2, 17, 2), 17, *range(18, 35, 2)]),
            ({"size": 3}, [1, 2, 3, 4, 5, 6]),
            ({"size": 32, "exact": False, "min": 5}, [5, *range(8, 33, 4)]),
            ({"size": 9, "multiple": 3}, [3, 6, 9, 12, 15, 18]),
            ({"size": 16, "multiple": 16}, [16, 32]),
            ({"size": 20, "max": 20}, [1, *range(2, 21, 2)]),
        ],
    )
    def test_widths_are_multiples_of_at_most_eight_and_an_eighth_of_the_source_or_small_powers_of_two(
        self, settings: dict[str, Any], allowed: list[int]
    ) -> None:
        space = WidthSpace(chain(settings.pop("size"), **settings))
        assert sorted({space.snap({"w0": wish / 8})["w0"] for wish in range(1, 1700)}) == allowed
        up = [allowed[0]]
        while (above := space.above({"w0": up[-1]})["w0"]) > up[-1]:
            up.append(above)
        down = [allowed[-1]]
        while (below := space.below({"w0": down[-1]})["w0"]) < down[-1]:
            down.append(below)
        assert up == down[::-1] == allowed

    def test_a_multiple_of_one_allows_every_width(self) -> None:
        space = WidthSpace(chain(128), multiple=1)
        assert [space.snap({"w0": w})["w0"] for w in range(1, 257)] == list(range(1, 257))

    @given(st.data())
    def test_snapping_keeps_bounds_multiples_and_order(self, data: st.DataObject) -> None:
        analysis = data.draw(ANALYSES)
        space = WidthSpace(analysis)
        less = data.draw(wishes(space))
        more = {name: wish * data.draw(st.floats(1, 2)) for name, wish in less.items()}
        a, b = space.snap(less), space.snap(more)
        assert space.snap(a) == a
        for name, (low, high) in space.bounds.items():
            assert low <= a[name] <= b[name] <= high
            assert a[name] % analysis.widths[name].multiple == 0
            assert analysis.widths[name].exact or high == analysis.widths[name].size


class TestAlignment:
    """Multiples of a width's own, in place of the space's."""

    @pytest.mark.parametrize("multiple", [1, 4, 12, 16, 24])
    def test_widths_are_multiples_and_below_the_first_powers_of_two(self, multiple: int) -> None:
        space = WidthSpace(chain(96, 96)).aligned({"w0": multiple}, {})
        below = [2**k for k in range(multiple.bit_length()) if 2**k < multiple]
        expected = {1, 96, *below, *range(multiple, 193, multiple)}
        assert space.levels["w0"].tolist() == sorted(expected)
        assert space.levels["w1"].tolist() == WidthSpace(chain(96, 96)).levels["w1"].tolist()

    def test_what_lies_before_the_first_multiple_is_not_rounded_beyond_it(self) -> None:
        space = WidthSpace(chain(48, exact=False)).aligned({"w0": 25}, {})
        assert [space.snap({"w0": wish})["w0"] for wish in (16, 20, 24, 25, 30)] == [16, 16, 25, 25, 25]

    @given(st.data(), st.integers(1, 40))
    def test_snapping_keeps_bounds_multiples_and_order(self, data: st.DataObject, multiple: int) -> None:
        analysis = data.draw(ANALYSES)
        plain = WidthSpace(analysis)
        least = {name: data.draw(st.integers(1, 32)) for name in plain.names}
        space = plain.aligned(dict.fromkeys(plain.names, multiple), least)
        less = data.draw(wishes(plain))
        more = {name: wish * data.draw(st.floats(1, 2)) for name, wish in less.items()}
        a, b = space.snap(less), space.snap(more)
        assert space.snap(a) == a
        for name, (low, high) in space.bounds.items():
            assert low <= a[name] <= b[name] <= high
            assert low >= min(least[name], analysis.widths[name].size)
            assert a[name] % analysis.widths[name].multiple == 0

    def test_none_is_below_the_least_where_the_source_s_is_not(self) -> None:
        space = WidthSpace(chain(64, 8)).aligned({"w0": 16, "w1": 16}, {"w0": 16, "w1": 16})
        assert space.bounds == {"w0": (16, 128), "w1": (8, 16)}
        assert WidthSpace(chain(64)).aligned({"w0": 12}, {"w0": 16}).bounds == {"w0": (24, 120)}

    def test_the_space_that_it_comes_from_is_as_it_was(self) -> None:
        space = WidthSpace(chain(64))
        before = space.levels["w0"].tolist()
        assert space.aligned({"w0": 16}, {"w0": 16}).levels["w0"].tolist() == [16, 32, 48, 64, 80, 96, 112, 128]
        assert WidthSpace(chain(64)).levels["w0"].tolist() == space.levels["w0"].tolist() == before


class TestProjection:
    @settings(max_examples=200)
    @given(st.data(), st.floats(0.02, 4))
    def test_what_is_projected_fits_and_uses_what_it_may(self, data: st.DataObject, fraction: float) -> None:
        space = WidthSpace(data.draw(ANALYSES))
        limits = Budget(macs=fraction, params=1.5 * fraction).resolve(space.price(space.source))
        wish = data.draw(wishes(space))
        smallest = {name: low for name, (low, _) in space.bounds.items()}
        if not limits.fits(space.price(smallest)):
            with pytest.raises(BudgetUnreachable):
                space.project(wish, limits)
            return
        widths = space.project(wish, limits)
        assert limits.fits(space.price(widths))
        assert space.snap(widths) == widths
        assert space.project(wish, limits) == widths
        # One step more of every width that is not at its upper bound would be too much.
        more = space.above(widths)
        assert more == widths or not limits.fits(space.price(more))

    def test_proportions_are_kept_where_rounding_allows(self) -> None:
        space = WidthSpace(chain(256, 512, 128), multiple=1)
        limits = Budget(macs=0.5).resolve(space.price(space.source))
        widths = space.project(space.source, limits)
        ratios = [widths[name] / size for name, size in space.source.items()]
        assert max(ratios) / min(ratios) < 1.02
        assert limits.utilisation(space.price(widths)) > 0.99

    def test_a_larger_budget_is_filled_within_the_growth_bound(self) -> None:
        space = WidthSpace(chain(16, 32), growth=1.5)
        price = space.price(space.source)
        assert space.project(space.source, Budget(macs=10).resolve(price)) == {"w0": 24, "w1": 48}
        grown = space.project(space.source, Budget(macs=1.3).resolve(price))
        assert price.macs < space.price(grown).macs <= 1.3 * price.macs

    def test_an_unreachable_budget_names_one_that_can_be_met(self) -> None:
        space = WidthSpace(chain(16, 32, min=4))
        price = space.price(space.source)
        with pytest.raises(BudgetUnreachable) as caught:
            space.project(space.source, Budget(macs=0.001).resolve(price))
        nearest = next(word for word in str(caught.value).split() if word.startswith("macs="))
        limits = Budget.parse([nearest]).resolve(price)
        assert space.project(space.source, limits) == {"w0": 4, "w1": 4}

    def test_a_network_without_widths_is_its_own_projection_or_none(self) -> None:
        space = WidthSpace(FakeAnalysis({}))
        assert space.project({}, Limits({"macs": 30})) == {}
        with pytest.raises(BudgetUnreachable):
            space.project({}, Limits({"macs": 29}))


def test_shares_say_what_a_percent_of_each_width_costs() -> None:
    space = WidthSpace(chain(256, 256, 256), multiple=1)
    limits = Budget(macs=1).resolve(space.price(space.source))
    shares = space.shares(space.source, limits)
    price = space.price(space.source).macs
    for share, name in zip(shares, space.names, strict=True):
        more = space.price({**space.source, name: 260}).macs
        assert share == pytest.approx(math.log(more / price) / math.log(260 / 256), rel=0.02)
    assert np.all(shares > 0)
