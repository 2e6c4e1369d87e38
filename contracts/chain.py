"""Sending transactions so that each happens once: nonces, fee bumps, reorganisations, crashes.

One `Sender` per account is the only writer of its nonces. `send` names what it does with a key; the
same key again, in this process or after a crash, continues the same transaction.
"""

from dataclasses import dataclass, replace

import trio

from contracts.abi import revert_reason
from contracts.errors import (
    BadConfigurationError,
    ChainUnreachableError,
    NonceTakenError,
    NotConfirmedError,
    RevertedError,
    RpcError,
)
from contracts.journal import Journal, Sent
from contracts.receipts import Receipt, parse_receipt
from contracts.rpc import Rpc, parse_quantity
from contracts.transaction import Transaction, transaction_hash
from contracts.units import Address
from contracts.vouchers import EvmKey


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient and generous a sender is. The defaults suit a rollup with two-second blocks."""

    # A transaction counts when this many blocks hold it, its own included.
    confirmations: int = 5
    poll_s: float = 1.0
    # Blocks come faster than this; a transaction that still waits pays too little.
    bump_after_s: float = 30.0
    # Nodes replace a waiting transaction only for at least 10 % more.
    bump_percent: int = 25
    timeout_s: float = 600.0
    # What the base fee may grow to before the first bump, and what we never pay more than.
    base_fee_factor: int = 2
    fee_wei_max: int = 500 * 10**9
    # An estimate is for the state of now; the transaction meets a later one.
    gas_percent: int = 120


@dataclass(frozen=True, slots=True)
class Call:
    """What a transaction does; `to` is None for a deployment."""

    to: Address | None
    data: bytes


class Sender:
    """The one writer of an account's transactions on one chain."""

    def __init__(
        self,
        rpc: Rpc,
        key: EvmKey,
        chain_id: int,
        *,
        journal: Journal,
        policy: Policy | None = None,
    ) -> None:
        self._rpc = rpc
        self._key = key
        self._chain_id = chain_id
        self._journal = journal
        self._policy = policy or Policy()
        self._allocation = trio.Lock()

    @property
    def address(self) -> Address:
        return self._key.address

    async def send(self, key: str, call: Call) -> Receipt:
        """Make it happen once and wait until it is confirmed.

        Raises RevertedError (before or after mining) and NonceTakenError, after which only another
        key can try again; NotConfirmedError and ChainUnreachableError, after which the same key
        goes on where this stopped.
        """
        entry = await self._entry(key, call)
        receipt: Receipt | None = None
        with trio.move_on_after(self._policy.timeout_s):
            receipt = await self._confirm(entry)
        if receipt is None:
            raise NotConfirmedError(f"{key} waits since {self._policy.timeout_s:.0f} s")
        if not receipt.succeeded:
            reason = await self._replay(call, receipt.block)
            raise RevertedError(reason, transaction=receipt.transaction)
        return receipt

    async def resume(self) -> None:
        """Broadcast again what a crash may have kept from leaving. Call it once at the start."""
        for entry in self._journal.open_entries():
            await self._broadcast(entry)

    async def _entry(self, key: str, call: Call) -> Sent:
        # Signing and writing are one step: two tasks must not take one nonce.
        async with self._allocation:
            entry = self._journal.find(key)
            if entry is None:
                entry = await self._sign_new(key, call)
                self._journal.write(entry)
            elif entry.data != call.data.hex() or entry.to != call.to:
                raise BadConfigurationError(f"the key {key!r} was used for another transaction")
        if not entry.done:
            await self._broadcast(entry)
        return entry

    async def _sign_new(self, key: str, call: Call) -> Sent:
        count = await self._rpc.call("eth_getTransactionCount", self.address, "latest")
        gas = await self._estimate(call)
        tip_wei, fee_wei = await self._fees()
        entry = Sent(
            key=key,
            nonce=max(parse_quantity(count), self._journal.next_nonce()),
            to=call.to,
            data=call.data.hex(),
            gas=gas * self._policy.gas_percent // 100,
            tip_wei=tip_wei,
            fee_wei=fee_wei,
            raw=(),
            hashes=(),
        )
        return self._signed(entry)

    def _signed(self, entry: Sent) -> Sent:
        transaction = Transaction(
            self._chain_id,
            entry.nonce,
            entry.tip_wei,
            entry.fee_wei,
            entry.gas,
            entry.to,
            bytes.fromhex(entry.data),
        )
        raw = transaction.sign(self._key)
        return replace(
            entry,
            raw=(*entry.raw, raw.hex()),
            hashes=(*entry.hashes, transaction_hash(raw)),
        )

    async def _estimate(self, call: Call) -> int:
        fields = {"from": self.address, "data": "0x" + call.data.hex()}
        if call.to is not None:
            fields["to"] = call.to
        try:
            # On top of what already waits: an approval and its deposit may be sent together.
            return parse_quantity(await self._rpc.call("eth_estimateGas", fields, "pending"))
        except RpcError as error:
            raise RevertedError(revert_reason(error)) from error

    async def _fees(self) -> tuple[int, int]:
        tip_wei = parse_quantity(await self._rpc.call("eth_maxPriorityFeePerGas"))
        block = await self._rpc.call("eth_getBlockByNumber", "latest", False)
        base_wei = parse_quantity(block["baseFeePerGas"])
        fee_wei = base_wei * self._policy.base_fee_factor + tip_wei
        if fee_wei > self._policy.fee_wei_max:
            raise NotConfirmedError(f"gas costs {fee_wei} wei, which is over the limit: wait")
        return tip_wei, fee_wei

    async def _broadcast(self, entry: Sent) -> None:
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + entry.raw[-1])
        except ChainUnreachableError:
            return  # It may have arrived; `_confirm` finds out, and sends again if it has not.
        except RpcError as error:
            if not is_harmless(error):
                raise

    async def _confirm(self, entry: Sent) -> Receipt:
        waited_s = 0.0
        taken_at: int | None = None
        while True:
            try:
                receipt = await self._receipt(entry)
                if receipt is not None:
                    waited_s = 0.0
                    if await self._is_deep(receipt):
                        if not entry.done:
                            self._journal.write(entry.finished())
                        return receipt
                else:
                    taken_at = await self._check_nonce(entry, taken_at)
                    if waited_s >= self._policy.bump_after_s:
                        entry, waited_s = self._bumped(entry), 0.0
                    # Again at every look: a reorganisation or a full pool may have dropped it.
                    await self._broadcast(entry)
            except ChainUnreachableError:
                pass  # The deadline of `send` bounds this; until then, keep looking.
            await trio.sleep(self._policy.poll_s)
            waited_s += self._policy.poll_s

    def _bumped(self, entry: Sent) -> Sent:
        factor = 100 + self._policy.bump_percent
        fee_wei = entry.fee_wei * factor // 100 + 1
        if fee_wei > self._policy.fee_wei_max:
            return entry
        dearer = replace(entry, fee_wei=fee_wei, tip_wei=entry.tip_wei * factor // 100 + 1)
        signed = self._signed(dearer)
        self._journal.write(signed)
        return signed

    async def _receipt(self, entry: Sent) -> Receipt | None:
        for transaction in reversed(entry.hashes):
            found = await self._rpc.call("eth_getTransactionReceipt", transaction)
            if found is not None:
                return parse_receipt(found)
        return None

    async def _is_deep(self, receipt: Receipt) -> bool:
        if await self._head() - receipt.block + 1 < self._policy.confirmations:
            return False
        block = await self._rpc.call("eth_getBlockByNumber", hex(receipt.block), False)
        return block is not None and block["hash"] == receipt.block_hash

    async def _check_nonce(self, entry: Sent, taken_at: int | None) -> int | None:
        """The block since which another transaction has the nonce; NonceTakenError when deep."""
        count = await self._rpc.call("eth_getTransactionCount", self.address, "latest")
        if parse_quantity(count) <= entry.nonce:
            return None
        head = await self._head()
        taken_at = head if taken_at is None else taken_at
        if head - taken_at >= self._policy.confirmations:
            # It can never happen now, so it is not to be sent again after a restart.
            self._journal.write(entry.finished())
            raise NonceTakenError(f"nonce {entry.nonce} went to another transaction")
        return taken_at

    async def _head(self) -> int:
        return parse_quantity(await self._rpc.call("eth_blockNumber"))

    async def _replay(self, call: Call, block: int) -> str:
        """The reason of a mined refusal, as far as the state before its block shows it."""
        fields = {"from": self.address, "to": call.to, "data": "0x" + call.data.hex()}
        try:
            await self._rpc.call("eth_call", fields, hex(block - 1))
        except RpcError as error:
            return revert_reason(error)
        return ""


# What nodes say to bytes that they have, or had: the receipts tell the rest.
_HARMLESS = (
    "already known",
    "already imported",
    "nonce too low",
    "underpriced",
    "known transaction",
)


def is_harmless(error: RpcError) -> bool:
    """Whether a refused broadcast may still end well."""
    return any(words in str(error).lower() for words in _HARMLESS)
