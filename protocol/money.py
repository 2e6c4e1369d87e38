"""Money is an int of nano-credits (10^-9 of a credit); one credit is priced like one US dollar.

All rounding of the project happens here: charges round up once per job, shares round down and the
operator's fee is the remainder, so that no unit appears or disappears.
"""

import re
from collections.abc import Sequence

NANO_PER_CREDIT = 1_000_000_000

# Two such amounts still add up inside a signed 64-bit column.
AMOUNT_NANO_MAX = 2**62

BASIS_POINTS = 10_000

_CREDITS_PATTERN = re.compile(r"([0-9]{1,30})(?:\.([0-9]{1,9}))?")


def parse_credits(text: str) -> int:
    """Nano-credits of a decimal such as `12.5`. Raises ValueError, also on a tenth decimal."""
    match = _CREDITS_PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text[:50]!r} is not an amount of credits: write a number such as 12.5, "
            "without a sign and with up to nine decimals"
        )
    whole, fraction = match.group(1), match.group(2) or ""
    amount_nano = int(whole) * NANO_PER_CREDIT + int(fraction.ljust(9, "0"))
    if amount_nano > AMOUNT_NANO_MAX:
        raise ValueError(f"{text!r} credits are more than the ledger can hold")
    return amount_nano


def format_credits(amount_nano: int) -> str:
    """The shortest exact decimal: 1500000000 is `1.5`, -1 is `-0.000000001`."""
    sign = "-" if amount_nano < 0 else ""
    whole, fraction = divmod(abs(amount_nano), NANO_PER_CREDIT)
    decimals = f"{fraction:09d}".rstrip("0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def divide_up(numerator: int, denominator: int) -> int:
    """Integer division that rounds up: the one rounding of a charge."""
    return -(-numerator // denominator)


def split_by_weight(amount: int, weights: Sequence[int]) -> list[int]:
    """Shares of an amount in proportion to weights, which add up to it exactly: each share is what
    the weights up to it entitle to, rounded down, less all shares before it."""
    total, passed, given = sum(weights), 0, 0
    shares = []
    for number, weight in enumerate(weights, 1):
        passed += weight
        # Without any weight, all count alike.
        due = amount * passed // total if total else amount * number // len(weights)
        shares.append(due - given)
        given = due
    return shares


def split_fee(amount_nano: int, fee_bps: int) -> tuple[int, int]:
    """Split a charge into (provider's share rounded down, operator's fee as the remainder)."""
    if not 0 <= fee_bps <= BASIS_POINTS:
        raise ValueError(f"a fee lies between 0 and {BASIS_POINTS} basis points, not {fee_bps}")
    provider_nano = amount_nano * (BASIS_POINTS - fee_bps) // BASIS_POINTS
    return provider_nano, amount_nano - provider_nano
