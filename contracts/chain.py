"""Sending transactions so that each happens once: nonces, fee bumps, reorganisations, crashes.

One `Sender` per account is the only writer of its nonces. `send` names what it does with a key; the
same key again, in this process or after a crash, continues the same transaction.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import trio

from contracts.errors import (
    BadConfigurationError,
    ChainUnreachableError,
    NonceTakenError,
    NotConfirmedError,
    RevertedError,
)
from contracts.journal import Journal, Sent
from contracts.node import ChainNode
from contracts.receipts import TransactionReceipt
from contracts.rpc import Rpc, parse_hex
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
    # EIP-7825: no transaction takes more, so a larger estimate is a mistake or a lie.
    gas_max: int = 2**24


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
        on_signed: Callable[[Sent], None] | None = None,
    ) -> None:
        """`on_signed` hears of each transaction before `send` waits for it."""
        self._node = ChainNode(rpc)
        self._key = key
        self._chain_id = chain_id
        self._journal = journal
        self._policy = policy or Policy()
        self._on_signed = on_signed
        self._allocation = trio.Lock()
        # Nonces that `send` waits for now; one is listed twice while two tasks wait for it.
        self._waiting: list[int] = []

    @property
    def address(self) -> Address:
        return self._key.address

    async def send(self, key: str, call: Call) -> TransactionReceipt:
        """Make it happen once and wait until it is confirmed.

        Raises RevertedError (before or after mining) and NonceTakenError, after which only another
        key can try again; NotConfirmedError, ChainUnreachableError and RpcError (the node does not
        take the bytes, for want of ether perhaps), after which the same key goes on where this
        stopped.
        """
        receipt: TransactionReceipt | None = None
        with trio.move_on_after(self._policy.timeout_s):
            entry = await self._entry(key, call)
            if self._on_signed is not None:
                self._on_signed(entry)
            receipt = await self.confirm(entry)
        if receipt is None:
            obstacle = await self._obstacle(key)
            raise NotConfirmedError(f"{key} waits since {self._policy.timeout_s:.0f} s{obstacle}")
        if not receipt.succeeded:
            # As far as the state before its block shows it.
            before = receipt.block - 1
            reason = await self._node.refusal(self.address, call.to, call.data, before)
            raise RevertedError(reason, transaction=receipt.transaction)
        return receipt

    async def resume(self) -> None:
        """Broadcast again what a crash may have kept from leaving. Call it once at the start."""
        if not self._journal.open_entries():
            return
        count = await self._node.count(self.address)
        for entry in self._journal.open_entries():
            if entry.nonce >= count:
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
        return entry

    async def _sign_new(self, key: str, call: Call) -> Sent:
        count = await self._node.count(self.address)
        gas = await self._estimate(call)
        tip_wei, fee_wei = await self._fees()
        entry = Sent(
            key=key,
            nonce=max(count, self._journal.next_nonce()),
            to=call.to,
            data=call.data.hex(),
            gas=gas,
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
        gas = await self._node.estimate_gas(self.address, call.to, call.data)
        if gas > self._policy.gas_max:
            raise RevertedError(f"it would take {gas} gas, and no transaction may")
        return min(gas * self._policy.gas_percent // 100, self._policy.gas_max)

    async def _fees(self) -> tuple[int, int]:
        tip_wei, base_wei = await self._node.fees()
        fee_wei = base_wei * self._policy.base_fee_factor + tip_wei
        if fee_wei > self._policy.fee_wei_max:
            raise NotConfirmedError(f"gas costs {fee_wei} wei, which is over the limit: wait")
        return tip_wei, fee_wei

    async def _broadcast(self, entry: Sent) -> None:
        # It may have arrived all the same; `confirm` finds out, and sends again if it has not.
        with suppress(ChainUnreachableError):
            await self._node.broadcast(bytes.fromhex(entry.raw[-1]))

    async def confirm(self, entry: Sent) -> TransactionReceipt:
        self._waiting.append(entry.nonce)
        try:
            return await self._look_until_deep(entry.key)
        finally:
            self._waiting.remove(entry.nonce)

    async def _look_until_deep(self, key: str) -> TransactionReceipt:
        waited_s = 0.0
        count: int | None = None
        taken_at: int | None = None
        while True:
            entry = self._known(key)
            try:
                receipt = await self._receipt(entry)
                if receipt is not None:
                    waited_s = 0.0
                    if await self._is_deep(receipt):
                        if not entry.done:
                            self._journal.write(entry.finished())
                        return receipt
                else:
                    before, count = count, await self._node.count(self.address)
                    if count != before:
                        waited_s = 0.0  # The line moved, so what is first now has not waited yet.
                    taken_at = await self._check_nonce(entry, count, taken_at)
                    if await self._push(entry, count, waited_s):
                        waited_s = 0.0
            except ChainUnreachableError:
                pass  # The deadline of `send` bounds this; until then, keep looking.
            await trio.sleep(self._policy.poll_s)
            waited_s += self._policy.poll_s

    async def _push(self, entry: Sent, count: int, waited_s: float) -> bool:
        """Broadcast it at every look: a reorganisation or a full pool may have dropped it.

        What is first in line may be left over from a crash, with no other task to wait for it. Only
        that one can be mined, so a higher fee goes there; the answer is whether it was raised.
        """
        if entry.nonce > min(self._waiting):
            await self._broadcast(entry)
            return False
        first = next((e for e in self._journal.open_entries() if e.nonce >= count), entry)
        is_late = waited_s >= self._policy.bump_after_s and first.nonce == count
        if is_late:
            first = self._bumped(first)
        for key in dict.fromkeys((first.key, entry.key)):
            await self._broadcast(self._known(key))
        return is_late

    def _bumped(self, entry: Sent) -> Sent:
        factor = 100 + self._policy.bump_percent
        fee_wei = entry.fee_wei * factor // 100 + 1
        if fee_wei > self._policy.fee_wei_max:
            return entry
        dearer = replace(entry, fee_wei=fee_wei, tip_wei=entry.tip_wei * factor // 100 + 1)
        signed = self._signed(dearer)
        self._journal.write(signed)
        return signed

    async def _receipt(self, entry: Sent) -> TransactionReceipt | None:
        for transaction in reversed(entry.hashes):
            found = await self._node.receipt(transaction)
            if found is not None:
                return found
        return None

    async def _is_deep(self, receipt: TransactionReceipt) -> bool:
        if await self._node.head() - receipt.block + 1 < self._policy.confirmations:
            return False
        return await self._node.block_hash(receipt.block) == parse_hex(receipt.block_hash)

    async def _check_nonce(self, entry: Sent, count: int, taken_at: int | None) -> int | None:
        """The block since which another transaction has the nonce; NonceTakenError when deep."""
        if count <= entry.nonce:
            return None
        head = await self._node.head()
        taken_at = head if taken_at is None else taken_at
        if head - taken_at >= self._policy.confirmations:
            # It can never happen now, so it is not to be sent again after a restart.
            self._journal.write(entry.finished())
            raise NonceTakenError(f"nonce {entry.nonce} went to another transaction")
        return taken_at

    async def _obstacle(self, key: str) -> str:
        """Why it can still not be mined, if that is a nonce that will not be used."""
        entry = self._journal.find(key)
        try:
            count = await self._node.count(self.address)
        except ChainUnreachableError:
            return ", and the chain's node does not answer"
        used = {waiting.nonce for waiting in self._journal.open_entries()}
        if entry is None or entry.nonce <= count or count in used:
            return ""
        return (
            f": it has nonce {entry.nonce}, and nonce {count} comes first, of which the journal "
            "knows nothing. Send a transaction with that nonce, or ask another node if it is true"
        )

    def _known(self, key: str) -> Sent:
        """As it is now: while we waited, another task may have raised its fee."""
        entry = self._journal.find(key)
        assert entry is not None, "what is waited for was written first"
        return entry
