"""What a mined transaction left behind: its receipt and its logs, parsed from JSON-RPC."""

from dataclasses import dataclass
from typing import Any

from contracts.rpc import nonsense, parse_hex, parse_quantity
from contracts.units import Address, parse_address

_HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Log:
    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    block: int
    index: int
    transaction: str


@dataclass(frozen=True, slots=True)
class TransactionReceipt:
    transaction: str
    block: int
    block_hash: str
    succeeded: bool
    gas_used: int
    contract: Address | None
    logs: tuple[Log, ...]


def parse_receipt(fields: Any) -> TransactionReceipt:
    """Raises ChainUnreachableError if it is not a receipt."""
    try:
        created = fields.get("contractAddress")
        return TransactionReceipt(
            transaction=_hash(fields["transactionHash"]),
            block=parse_quantity(fields["blockNumber"]),
            block_hash=_hash(fields["blockHash"]),
            succeeded=parse_quantity(fields["status"]) == 1,
            gas_used=parse_quantity(fields["gasUsed"]),
            contract=parse_address(created) if created else None,
            logs=tuple(map(parse_log, fields["logs"])),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise nonsense("a receipt", fields) from None


def parse_log(fields: Any) -> Log:
    """Raises ChainUnreachableError if it is not a log."""
    try:
        return Log(
            address=parse_address(fields["address"]),
            topics=tuple(map(parse_hex, fields["topics"])),
            data=parse_hex(fields["data"]),
            block=parse_quantity(fields["blockNumber"]),
            index=parse_quantity(fields["logIndex"]),
            transaction=_hash(fields["transactionHash"]),
        )
    except (KeyError, TypeError, ValueError):
        raise nonsense("a log", fields) from None


def _hash(value: Any) -> str:
    if len(parse_hex(value)) != _HASH_BYTES:
        raise ValueError("not a hash")
    return str(value)
