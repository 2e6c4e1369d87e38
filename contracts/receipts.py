"""What a mined transaction left behind: its receipt and its logs, parsed from JSON-RPC."""

from dataclasses import dataclass
from typing import Any

from contracts.rpc import parse_hex, parse_quantity
from contracts.units import Address, parse_address


@dataclass(frozen=True, slots=True)
class Log:
    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    block: int
    index: int
    transaction: str


@dataclass(frozen=True, slots=True)
class Receipt:
    transaction: str
    block: int
    block_hash: str
    succeeded: bool
    gas_used: int
    contract: Address | None
    logs: tuple[Log, ...]


def parse_receipt(fields: dict[str, Any]) -> Receipt:
    created = fields.get("contractAddress")
    return Receipt(
        transaction=fields["transactionHash"],
        block=parse_quantity(fields["blockNumber"]),
        block_hash=fields["blockHash"],
        succeeded=parse_quantity(fields["status"]) == 1,
        gas_used=parse_quantity(fields["gasUsed"]),
        contract=parse_address(created) if created else None,
        logs=tuple(map(parse_log, fields["logs"])),
    )


def parse_log(fields: dict[str, Any]) -> Log:
    return Log(
        address=parse_address(fields["address"]),
        topics=tuple(map(parse_hex, fields["topics"])),
        data=parse_hex(fields["data"]),
        block=parse_quantity(fields["blockNumber"]),
        index=parse_quantity(fields["logIndex"]),
        transaction=fields["transactionHash"],
    )
