"""Addresses, and money as the token counts it.

The ledger counts nano-credits; a token of `decimals` counts 10^-decimals of a credit. What is
signed and posted is cumulative, so flooring loses less than one token unit in all, not one a job.
"""

import re
from functools import lru_cache
from typing import NewType

from contracts.keccak import keccak

Address = NewType("Address", str)

# What the contract packs into one word with two more numbers.
UNITS_MAX = 2**104 - 1

# No sum of 104 bits has more, with leading zeros to spare.
_DIGITS_MAX = 64
_ADDRESS = re.compile("0x[0-9a-fA-F]{40}")


def parse_address(text: str) -> Address:
    """The checksummed form. Raises ValueError unless it is 20 hex bytes with a right checksum."""
    if not _ADDRESS.fullmatch(text):
        raise ValueError(f"{text[:64]!r} is not an address: 0x and 40 hex digits")
    address, digits = _checksummed(bytes.fromhex(text[2:])), text[2:]
    # Programs that know no checksum write one case only.
    if text != address and digits not in (digits.lower(), digits.upper()):
        raise ValueError(f"{text} has a wrong checksum: look for a typing error")
    return address


def address_bytes(address: Address) -> bytes:
    return bytes.fromhex(address[2:])


def address_from_bytes(data: bytes) -> Address:
    """The address in the last 20 bytes, as in a padded word."""
    return _checksummed(data[-20:])


def parse_tokens(text: str, decimals: int) -> int:
    """Token units of a decimal such as `12.5`.

    Raises ValueError if it has too many decimals, or is more than a channel can hold.
    """
    whole, _, fraction = text.strip().partition(".")
    digits = whole + fraction
    if not digits.isascii() or not digits.isdecimal() or not whole or len(fraction) > decimals:
        raise ValueError(f"{text!r} is not an amount with up to {decimals} decimals")
    if len(digits) > _DIGITS_MAX:
        raise ValueError(f"an amount of {len(digits)} digits is more than all tokens there are")
    units = int(whole) * _power_of_ten(decimals) + int(fraction.ljust(decimals, "0") or "0")
    if units > UNITS_MAX:
        raise ValueError(f"{text} is more than the {UNITS_MAX} units that a channel can hold")
    return units


def format_tokens(units: int, decimals: int) -> str:
    """The shortest exact decimal."""
    whole, fraction = divmod(units, _power_of_ten(decimals))
    text = f"{fraction:0{decimals}d}".rstrip("0") if decimals else ""
    return f"{whole}.{text}" if text else str(whole)


@lru_cache(maxsize=4096)
def _checksummed(data: bytes) -> Address:
    """EIP-55: a letter is a capital where the hash of all digits has a nibble of at least 8."""
    digits = data.hex()
    nibbles = keccak(digits.encode()).hex()
    cased = (c.upper() if n >= "8" else c for c, n in zip(digits, nibbles, strict=False))
    return Address("0x" + "".join(cased))


def _power_of_ten(exponent: int) -> int:
    return int(10**exponent)
