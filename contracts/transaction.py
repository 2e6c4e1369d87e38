"""Signed transactions of type 2 (EIP-1559), made and read.

eth-account does this too, but importing it raises Python's recursion limit to 100,000 (py_ecc), and
then a stranger's deeply nested JSON overflows the C stack of the process. A test compares the two.
"""

from dataclasses import dataclass

import rlp

from contracts.keccak import keccak
from contracts.units import Address, address_bytes, address_from_bytes
from contracts.vouchers import EvmKey, recover

_TYPE = b"\x02"
_FIELDS = 12


@dataclass(frozen=True, slots=True)
class Transaction:
    """A call without ether; `to` is None for a deployment."""

    chain_id: int
    nonce: int
    tip_wei: int
    fee_wei: int
    gas: int
    to: Address | None
    data: bytes

    def _fields(self) -> list[object]:
        to = address_bytes(self.to) if self.to else b""
        numbers = [self.chain_id, self.nonce, self.tip_wei, self.fee_wei, self.gas]
        # Then the value in ether, the data, and an empty list of storage accesses.
        return [*numbers, to, 0, self.data, []]

    def sign(self, key: EvmKey) -> bytes:
        """The bytes to broadcast. The same transaction and key give the same bytes."""
        fields = self._fields()
        signature = key.sign_digest(keccak(_TYPE + rlp.encode(fields)))
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:64])
        return _TYPE + bytes(rlp.encode([*fields, signature[64] - 27, r, s]))


def transaction_hash(raw: bytes) -> str:
    return "0x" + keccak(raw).hex()


def parse_transaction(raw: bytes) -> tuple[Transaction, Address]:
    """The transaction and who signed it. Raises ValueError on another type, BadSignatureError."""
    fields = rlp.decode(raw[1:]) if raw[:1] == _TYPE else []
    if len(fields) != _FIELDS:
        raise ValueError("not a signed transaction of type 2")
    chain_id, nonce, tip_wei, fee_wei, gas = (int.from_bytes(field) for field in fields[:5])
    to = address_from_bytes(fields[5]) if fields[5] else None
    signature = fields[10].rjust(32, b"\0") + fields[11].rjust(32, b"\0")
    parity = int.from_bytes(fields[9])
    digest = keccak(_TYPE + rlp.encode(fields[:9]))
    signer = recover(digest, signature + bytes([27 + parity]))
    return Transaction(chain_id, nonce, tip_wei, fee_wei, gas, to, fields[7]), signer
