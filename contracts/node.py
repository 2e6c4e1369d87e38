"""What a sender asks a chain's node, with types. What it makes of the answers is in `chain.py`."""

from collections.abc import Mapping
from typing import Any

from contracts.abi import revert_reason
from contracts.errors import ChainUnreachableError, RevertedError, RpcError
from contracts.receipts import TransactionReceipt, parse_receipt
from contracts.rpc import Rpc, nonsense, parse_hex, parse_quantity
from contracts.units import Address

# What nodes say to bytes that they have, or had: the receipts tell the rest.
_HARMLESS = (
    "already known",
    "already imported",
    "nonce too low",
    "underpriced",
    "known transaction",
)


class ChainNode:
    """Every method raises ChainUnreachableError if there is no answer, or none that makes sense."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def count(self, account: Address) -> int:
        """How many of the account's transactions are mined: the next one's nonce."""
        return parse_quantity(await self._rpc.call("eth_getTransactionCount", account, "latest"))

    async def head(self) -> int:
        return parse_quantity(await self._rpc.call("eth_blockNumber"))

    async def block_hash(self, number: int) -> bytes:
        """Empty if there is no such block, or none any more."""
        fields = await self._block(hex(number))
        return b"" if fields is None else parse_hex(fields.get("hash"))

    async def fees(self) -> tuple[int, int]:
        """The tip that is usual now, and the base fee of the newest block, in wei."""
        tip_wei = parse_quantity(await self._rpc.call("eth_maxPriorityFeePerGas"))
        fields = await self._block("latest") or {}
        return tip_wei, parse_quantity(fields.get("baseFeePerGas"))

    async def estimate_gas(self, sender: Address, to: Address | None, data: bytes) -> int:
        """On top of what already waits: an approval and its deposit may be sent together.

        Raises RevertedError if the contract would refuse.
        """
        fields = _call_fields(sender, to, data)
        try:
            return parse_quantity(await self._rpc.call("eth_estimateGas", fields, "pending"))
        except RpcError as error:
            raise RevertedError(revert_reason(error)) from error

    async def broadcast(self, raw: bytes) -> None:
        """Raises RpcError if the node does not take the bytes, and never had them."""
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
        except RpcError as error:
            if not is_harmless(error):
                raise

    async def receipt(self, transaction: str) -> TransactionReceipt | None:
        found = await self._rpc.call("eth_getTransactionReceipt", transaction)
        return None if found is None else parse_receipt(found)

    async def refusal(self, sender: Address, to: Address | None, data: bytes, block: int) -> str:
        """Why a call is refused on top of a block; empty if it is not, or the reason is unknown."""
        try:
            await self._rpc.call("eth_call", _call_fields(sender, to, data), hex(block))
        except RpcError as error:
            return revert_reason(error)
        except ChainUnreachableError:
            pass  # It was refused all the same.
        return ""

    async def _block(self, number: str) -> Mapping[str, Any] | None:
        fields = await self._rpc.call("eth_getBlockByNumber", number, False)
        if fields is not None and not isinstance(fields, dict):
            raise nonsense("a block", fields)
        return fields


def is_harmless(error: RpcError) -> bool:
    """Whether a refused broadcast may still end well."""
    return any(words in str(error).lower() for words in _HARMLESS)


def _call_fields(sender: Address, to: Address | None, data: bytes) -> dict[str, str]:
    fields = {"from": sender, "data": "0x" + data.hex()}
    return fields if to is None else fields | {"to": to}
