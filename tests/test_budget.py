"""Budgets: what is a fraction, what is absolute, and what is neither."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conet_onnx.errors import BudgetUnreachable, UsageError
from conet_onnx.latency.pricing import TimedPrice
from conet_onnx.searching.budget import Budget, Limits


@dataclass(frozen=True)
class Cost:
    params: int
    macs: int
    bytes: int


SOURCE = Cost(params=80_000, macs=12_000_000, bytes=320_000)


class TestParsing:
    @pytest.mark.parametrize(
        ("text", "limit"),
        [
            ("macs=0.5", 6_000_000),
            ("macs=1", 12_000_000),
            ("macs=10", 120_000_000),
            ("macs=.25", 3_000_000),
            ("macs=5e-1", 6_000_000),
            ("macs=5M", 5_000_000),
            ("macs=1.001k", 1001),
            ("macs=2 G", 2_000_000_000),
            ("params=40k", 40_000),
        ],
    )
    def test_a_bare_number_is_a_fraction_and_a_unit_makes_it_absolute(self, text: str, limit: float) -> None:
        assert Budget.parse([text]).resolve(SOURCE).by_kind == {text.partition("=")[0]: limit}

    @pytest.mark.parametrize(
        ("text", "limit"), [("4MB", 4e6), ("4kB", 4e3), ("0.1GB", 1e8), ("4M", 4e6), ("512B", 512), ("0.5", 160_000)]
    )
    def test_byte_units_are_powers_of_ten(self, text: str, limit: float) -> None:
        assert Budget(bytes=text).resolve(SOURCE).by_kind == {"bytes": limit}

    def test_numbers_and_their_text_mean_the_same(self) -> None:
        assert Budget(macs=0.5).resolve(SOURCE) == Budget.parse(["macs=0.5"]).resolve(SOURCE)
        assert str(Budget(macs=0.5, bytes="4MB")) == "macs=0.5 bytes=4MB"

    @pytest.mark.parametrize(
        "text",
        ["macs", "macs=", "=0.5", "flops=0.5", "macs=-1", "macs=0", "macs=0.0M", "macs=nan", "macs=inf", "macs=half",
         "macs=50%", "macs=4MB", "macs=40m", "macs=5ms", "bytes=4mb", "macs=1e999", "macs=0x10", "macs=1_0",
         "latency=5M", "latency=50", "latency=0ms", "macs=٣"],
    )  # fmt: skip
    def test_nonsense_is_a_usage_error(self, text: str) -> None:
        with pytest.raises(UsageError, match="budget"):
            Budget.parse([text])

    @pytest.mark.parametrize("value", ["11", "40000000", "10.5"])
    def test_a_large_number_without_a_unit_asks_for_one(self, value: str) -> None:
        with pytest.raises(UsageError, match="ends in one of k, M, G"):
            Budget.parse([f"macs={value}"])

    def test_a_kind_given_twice_is_a_usage_error(self) -> None:
        with pytest.raises(UsageError, match="twice"):
            Budget.parse(["macs=0.5", "macs=0.4"])

    def test_no_limit_at_all_is_a_usage_error(self) -> None:
        with pytest.raises(UsageError, match="at least one"):
            Budget.parse([])

    @pytest.mark.parametrize(
        ("text", "time"),
        [("0.5", (0.5, True)), ("5ms", (0.005, False)), ("250us", (0.00025, False)), ("1.5 s", (1.5, False))],
    )
    def test_latency_is_seconds_or_a_share_and_no_price(self, text: str, time: tuple[float, bool]) -> None:
        budget = Budget.parse([f"latency={text}", "macs=0.5"])
        assert budget.time == time
        assert budget.resolve(SOURCE).by_kind == {"macs": 6_000_000}
        assert str(budget) == f"macs=0.5 latency={text}"
        assert Budget(macs=0.5).time is None

    @pytest.mark.parametrize(("text", "limit"), [("0.5", 4.0), ("5ms", 5.0), ("250us", 0.25), ("1.5s", 1500.0)])
    def test_where_it_is_predicted_it_is_a_price_in_milliseconds(self, text: str, limit: float) -> None:
        limits = Budget.parse([f"latency={text}", "macs=0.5"]).resolve(TimedPrice(1, 12_000_000, 1, 8.0))
        assert limits.by_kind == {"macs": 6_000_000, "latency": pytest.approx(limit)}
        assert limits.fits(TimedPrice(1, 6_000_000, 1, limit))
        assert not limits.fits(TimedPrice(1, 1, 1, 1.001 * limit))
        assert limits.scaled(0.5, "latency").by_kind == {"macs": 6_000_000, "latency": pytest.approx(limit / 2)}
        rows = np.array([[1, 6_000_000, 1, limit / 2], [1, 3_000_000, 1, 2 * limit]])
        assert limits.utilisations(rows) == pytest.approx([1, 2])

    @pytest.mark.parametrize("least", [0.0123456, 5.4321, 987.65432])
    def test_the_nearest_latency_that_the_error_names_can_be_met(self, least: float) -> None:
        smallest, source = TimedPrice(1, 1, 1, least), TimedPrice(9, 9, 9, 1000.0)
        error = Limits({"latency": least / 2}).unreachable(smallest, source)
        (named,) = [word for word in str(error).split() if "=" in word]
        assert Budget.parse([named]).resolve(source).fits(smallest)


class TestLimits:
    def test_several_limits_hold_together(self) -> None:
        limits = Budget(macs=0.5, params=0.5).resolve(SOURCE)
        assert limits.fits(Cost(40_000, 6_000_000, 320_000))
        assert not limits.fits(Cost(40_001, 1, 1))
        assert not limits.fits(Cost(1, 6_000_001, 1))

    def test_the_source_fits_a_budget_of_one(self) -> None:
        assert Budget(macs=1, params=1, bytes=1).resolve(SOURCE).fits(SOURCE)

    @given(st.lists(st.tuples(*[st.integers(1, 10**12)] * 3), min_size=1))
    def test_many_prices_agree_with_one(self, prices: list[tuple[int, int, int]]) -> None:
        limits = Limits({"bytes": 1e5, "macs": 7e6})
        one_by_one = [limits.utilisation(Cost(*price)) for price in prices]
        assert limits.utilisations(np.array(prices)) == pytest.approx(one_by_one, rel=1e-15)

    @given(st.integers(2, 10**13))
    def test_the_nearest_that_the_error_names_can_be_met(self, smallest: int) -> None:
        price = Cost(smallest, smallest, smallest)
        error = Limits({"macs": smallest / 2, "bytes": smallest / 2}).unreachable(price, SOURCE)
        assert isinstance(error, BudgetUnreachable)
        named = [word for word in str(error).replace(",", " ").split() if "=" in word]
        assert len(named) == 2
        for text in named:
            limits = Budget.parse([text]).resolve(SOURCE)
            assert limits.fits(price)
            assert limits.utilisation(price) > 0.99 or smallest < 1000


@pytest.mark.parametrize(("milliseconds", "text"), [(0.8518041, "0.852ms"), (0.05, "50us"), (1500.0, "1.5s")])
def test_a_limit_on_latency_reads_as_a_budget_takes_it(milliseconds: float, text: str) -> None:
    assert str(Limits({"latency": milliseconds})) == f"latency {text}"
