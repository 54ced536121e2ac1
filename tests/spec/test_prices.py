"""The rate card and the arithmetic of dollars."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.core.prices import PriceUnknown, Rate, RateCard, _shipped, cost_microusd, usd


def test_the_shipped_prices_are_plausible():
    table = _shipped()
    assert len(table) > 100
    assert {region for region, _ in table} == {"us-east-1", "us-west-2", "eu-west-1"}
    for (_, instance_type), rate in table.items():
        assert instance_type.startswith("ml.")
        assert 0 < rate.usd_per_hour < 200
        assert rate.basis in {"list", "billed", "derived"}
        assert rate.as_of[:4].isdigit()
        assert Decimal(rate.microusd_per_hour) / 1_000_000 == rate.usd_per_hour, "no rate loses digits"


def test_a_rate_carries_its_basis_and_date():
    assert RateCard().rate("ml.g5.xlarge", "us-east-1") == Rate(Decimal("1.4084"), "list", "2025-02-03")
    assert RateCard().rate("ml.g5.xlarge", "eu-west-1").basis == "billed"


def test_prices_of_the_study_file_replace_those_of_the_table():
    card = RateCard({"ml.g5.xlarge": Decimal("1.41"), "ml.new.large": Decimal(9)})
    assert card.rate("ml.g5.xlarge", "us-east-1") == Rate(Decimal("1.41"), "study file", "")
    assert card.rate("ml.new.large", "mars-1").microusd_per_hour == 9_000_000
    assert card.rate("ml.m5.xlarge", "us-east-1").basis == "list"


def test_an_unknown_price_says_what_to_write():
    with pytest.raises(PriceUnknown, match=r"ml\.zz9\.large in us-east-1: .* prices: \{ml\.zz9\.large: 1\.23\}"):
        RateCard().rate("ml.zz9.large", "us-east-1")


@pytest.mark.parametrize(
    ("billable_s", "count", "rate", "microusd"),
    [
        (3600, 1, 1_408_400, 1_408_400),
        (100, 2, 1_408_400, 78_244),  # 78,244.44…
        (0, 4, 1_408_400, 0),
        (1800, 1, 1, 0),  # half a micro-dollar goes to even
        (1800, 1, 3, 2),
        (1800, 1, 5, 2),
    ],
)
def test_cost_is_rounded_half_to_even_once(billable_s: int, count: int, rate: int, microusd: int):
    assert cost_microusd(billable_s, count, rate) == microusd


@given(st.integers(0, 10**8), st.integers(1, 1000), st.integers(1, 10**9))
def test_cost_is_never_off_by_more_than_half(billable_s: int, count: int, rate: int):
    exact = Fraction(billable_s * count * rate, 3600)
    assert abs(cost_microusd(billable_s, count, rate) - exact) <= Fraction(1, 2)


@pytest.mark.parametrize(
    ("microusd", "text"),
    [
        (0, "$0.00"),
        (1_690_000, "$1.69"),
        (1_234_567_890_000, "$1,234,567.89"),
        (4_100, "$0.0041"),
        (-2_500_000, "-$2.50"),
        (999_960, "$1.0000"),
    ],
)
def test_amounts_are_shown_as_people_read_them(microusd: int, text: str):
    assert usd(microusd) == text
