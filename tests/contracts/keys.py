"""Keys of the people in these tests."""

from contracts.keccak import keccak
from contracts.vouchers import EvmKey


def make_key(name: str) -> EvmKey:
    """The same key for the same name in every run."""
    return EvmKey(keccak(name.encode()))
