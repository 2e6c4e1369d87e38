import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.limits import TOKENS_MAX
from protocol.money import (
    AMOUNT_NANO_MAX,
    BASIS_POINTS,
    divide_up,
    format_credits,
    parse_credits,
    split_fee,
)
from protocol.pricing import PRICE_NANO_MAX, PriceSheet, Units, cost_nano

amounts = st.integers(min_value=0, max_value=AMOUNT_NANO_MAX)
prices = st.integers(min_value=0, max_value=PRICE_NANO_MAX)
tokens = st.integers(min_value=0, max_value=TOKENS_MAX)


@given(amounts)
def test_amounts_survive_text(amount_nano: int) -> None:
    assert parse_credits(format_credits(amount_nano)) == amount_nano


@pytest.mark.parametrize(
    ("text", "amount_nano"),
    [
        ("0", 0),
        ("1", 10**9),
        ("1.5", 1_500_000_000),
        ("0.000000001", 1),
        (" 12.50 ", 12_500_000_000),
    ],
)
def test_credits_are_read_exactly(text: str, amount_nano: int) -> None:
    assert parse_credits(text) == amount_nano


@pytest.mark.parametrize(
    "text", ["", "1.", ".5", "-1", "1e3", "nan", "1,5", "0.0000000001", "9" * 11, "٣"]
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="credits"):
        parse_credits(text)


def test_negative_balances_are_printed_with_their_sign() -> None:
    assert format_credits(-1_500_000_000) == "-1.5"


@given(amounts, st.integers(min_value=0, max_value=BASIS_POINTS))
def test_a_fee_and_its_rest_are_the_whole(amount_nano: int, fee_bps: int) -> None:
    provider_nano, fee_nano = split_fee(amount_nano, fee_bps)
    assert provider_nano + fee_nano == amount_nano
    assert provider_nano >= 0
    assert fee_nano >= 0
    # The remainder goes to the fee: never more than one nano above the exact share.
    assert 0 <= fee_nano * BASIS_POINTS - amount_nano * fee_bps < BASIS_POINTS


def test_a_fee_above_the_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="basis points"):
        split_fee(1, BASIS_POINTS + 1)


@given(amounts, st.integers(min_value=1, max_value=10**9))
def test_division_rounds_up_and_by_less_than_one(numerator: int, denominator: int) -> None:
    quotient = divide_up(numerator, denominator)
    assert 0 <= quotient * denominator - numerator < denominator


def test_twenty_tokens_at_two_cents_a_million_are_exact() -> None:
    assert cost_nano(PriceSheet(input_nano_per_mtok=20_000_000), Units(input_tokens=20)) == 400


def test_a_charge_rounds_up_once_per_job() -> None:
    sheet = PriceSheet(input_nano_per_mtok=1, output_nano_per_mtok=1)
    assert cost_nano(sheet, Units(input_tokens=1, output_tokens=1)) == 1
    assert cost_nano(sheet, Units()) == 0


@given(prices, prices, tokens, tokens)
def test_more_units_never_cost_less(p_in: int, p_out: int, n_in: int, n_out: int) -> None:
    sheet = PriceSheet(input_nano_per_mtok=p_in, output_nano_per_mtok=p_out)
    small = Units(input_tokens=n_in // 2, output_tokens=n_out // 2)
    assert cost_nano(sheet, small) <= cost_nano(sheet, Units(n_in, n_out))


def test_units_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="units"):
        Units(output_tokens=TOKENS_MAX + 1)
    with pytest.raises(ValueError, match="price"):
        PriceSheet(request_nano=-1)


def test_units_fit_only_if_each_fits() -> None:
    assert Units(1, 2, 3).fits_in(Units(1, 2, 3))
    assert not Units(2, 0, 0).fits_in(Units(1, 9, 9))
