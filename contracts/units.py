"""Addresses, and money as the token counts it.

The ledger counts nano-credits; a token of `decimals` counts 10^-decimals of a credit. What is
signed and posted is cumulative, so flooring loses less than one token unit in all, not one a job.
"""

from typing import NewType

from eth_utils.address import is_checksum_address, to_checksum_address

Address = NewType("Address", str)

_NANO_DECIMALS = 9
_HEX_CHARS = 42


def parse_address(text: str) -> Address:
    """The checksummed form. Raises ValueError unless it is 20 hex bytes with a right checksum."""
    lower = text.lower()
    if len(text) != _HEX_CHARS or not lower.startswith("0x"):
        raise ValueError(f"{text[:64]!r} is not an address: 0x and 40 hex digits")
    int(text[2:], 16)
    if text not in (lower, "0x" + text[2:].upper()) and not is_checksum_address(text):
        raise ValueError(f"{text} has a wrong checksum: look for a typing error")
    return Address(to_checksum_address(lower))


def address_bytes(address: Address) -> bytes:
    return bytes.fromhex(address[2:])


def address_from_bytes(data: bytes) -> Address:
    """The address in the last 20 bytes, as in a padded word."""
    return Address(to_checksum_address(data[-20:]))


def token_units(cumulative_nano: int, decimals: int) -> int:
    """Token units of cumulative nano-credits, rounded down."""
    if decimals >= _NANO_DECIMALS:
        return cumulative_nano * _power_of_ten(decimals - _NANO_DECIMALS)
    return cumulative_nano // _power_of_ten(_NANO_DECIMALS - decimals)


def parse_tokens(text: str, decimals: int) -> int:
    """Token units of a decimal such as `12.5`. Raises ValueError if it has too many decimals."""
    whole, _, fraction = text.strip().partition(".")
    digits = whole + fraction
    if not digits.isascii() or not digits.isdecimal() or not whole or len(fraction) > decimals:
        raise ValueError(f"{text!r} is not an amount with up to {decimals} decimals")
    return int(whole) * _power_of_ten(decimals) + int(fraction.ljust(decimals, "0") or "0")


def format_tokens(units: int, decimals: int) -> str:
    """The shortest exact decimal."""
    whole, fraction = divmod(units, _power_of_ten(decimals))
    text = f"{fraction:0{decimals}d}".rstrip("0") if decimals else ""
    return f"{whole}.{text}" if text else str(whole)


def _power_of_ten(exponent: int) -> int:
    return int(10**exponent)
