"""Typed calls of the settlement contract, and what it says: state and events.

`SettlementCalls` makes the data of transactions and touches no network; `SettlementReader` asks a
chain's node. Amounts are token units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eth_abi.exceptions import DecodingError

from contracts.abi import as_address, load_artifact
from contracts.chain import Call
from contracts.merkle_sum import Leaf
from contracts.receipts import Log, parse_log
from contracts.rpc import Rpc, nonsense
from contracts.state import (
    ChallengeState,
    EscrowChannel,
    EstateState,
    OperatorState,
    RootState,
    Terms,
)
from contracts.units import Address
from contracts.views import ask
from contracts.vouchers import Promise, SignedVoucher

# What the contract takes in one call.
VOUCHERS_MAX = 256

# Public nodes answer for a few thousand blocks at once, and refuse more.
_EVENT_BLOCKS = 2_000


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the contract logged, with the names and fields of its ABI."""

    name: str
    fields: Mapping[str, Any]
    block: int
    index: int
    transaction: str


class SettlementCalls:
    """The data of every transaction, for the contract at `address`."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def deposit(self, client: Address, operator: Address, amount: int) -> Call:
        return self._call("deposit", client, operator, amount)

    def deposit_with_permit(
        self, client: Address, operator: Address, amount: int, *, deadline: int, signature: bytes
    ) -> Call:
        return self._call(
            "deposit_with_permit",
            client,
            operator,
            amount,
            deadline,
            signature[64],
            signature[:32],
            signature[32:64],
        )

    def redeem(self, vouchers: Sequence[SignedVoucher]) -> Call:
        """At most VOUCHERS_MAX. A contract wallet that changed its mind refuses the whole batch."""
        rows = [
            (item.voucher.client, item.voucher.ceiling, item.charged, item.signature)
            for item in vouchers
        ]
        return self._call("redeem", rows)

    def redeem_from_wallet(self, item: SignedVoucher) -> Call:
        """For a contract wallet's voucher: a signature of any form, up to 1,024 bytes."""
        voucher = item.voucher
        return self._call(
            "redeem_from_wallet", voucher.client, voucher.ceiling, item.charged, item.signature
        )

    def request_exit(self, operator: Address) -> Call:
        return self._call("request_exit", operator)

    def exit(self, operator: Address) -> Call:
        return self._call("exit", operator)

    def stake(self, amount: int) -> Call:
        return self._call("stake", amount)

    def request_unstake(self) -> Call:
        return self._call("request_unstake")

    def unstake(self) -> Call:
        return self._call("unstake")

    def post_root(self, epoch: int, root: bytes, total: int, ledger_root: bytes) -> Call:
        return self._call("post_root", epoch, root, total, ledger_root)

    def challenge(self, promise: Promise, signature: bytes = b"") -> Call:
        """Without a signature if `promise.cumulative` was paid already: that needs no evidence."""
        return self._call(
            "challenge",
            promise.operator,
            promise.payee,
            promise.epoch,
            promise.cumulative,
            signature,
        )

    def respond(self, operator: Address, leaf: Leaf) -> Call:
        return self._call("respond", operator, *_leaf_row(leaf))

    def resolve(self, operator: Address, payee: Address) -> Call:
        return self._call("resolve", operator, payee)

    def reclaim_bond(self, operator: Address, epoch: int, payee: Address) -> Call:
        return self._call("reclaim_bond", operator, epoch, payee)

    def finalize(self, operator: Address) -> Call:
        return self._call("finalize", operator)

    def claim(self, operator: Address, leaf: Leaf) -> Call:
        return self._call("claim", operator, *_leaf_row(leaf))

    def claim_many(self, operator: Address, leaves: Sequence[Leaf]) -> Call:
        return self._call("claim_many", operator, [_leaf_row(leaf) for leaf in leaves])

    def declare_stale(self, operator: Address) -> Call:
        return self._call("declare_stale", operator)

    def file_promise(self, promise: Promise, signature: bytes) -> Call:
        return self._call(
            "file_promise",
            promise.operator,
            promise.payee,
            promise.epoch,
            promise.cumulative,
            signature,
        )

    def claim_stale(self, operator: Address, payee: Address) -> Call:
        return self._call("claim_stale", operator, payee)

    def claim_remainder(self, operator: Address) -> Call:
        return self._call("claim_remainder", operator)

    def withdraw(self, account: Address) -> Call:
        return self._call("withdraw", account)

    def set_paused(self, paused: bool) -> Call:
        """For the owner, as the next three: stop or resume new deposits."""
        return self._call("set_paused", paused)

    def propose_owner(self, candidate: Address) -> Call:
        return self._call("propose_owner", candidate)

    def accept_ownership(self) -> Call:
        return self._call("accept_ownership")

    def renounce_ownership(self) -> Call:
        return self._call("renounce_ownership")

    def _call(self, function: str, *args: Any) -> Call:
        return Call(self.address, load_artifact("Settlement").encode(function, *args))


class SettlementReader:
    """The contract's state, as the node sees it in `block` (a tag or a hex number)."""

    def __init__(self, rpc: Rpc, address: Address, *, block: str = "latest") -> None:
        self._rpc = rpc
        self._address = address
        self._block = block

    async def token(self) -> Address:
        return as_address(await self._value("token"))

    async def terms(self) -> Terms:
        return Terms(*await self._value("terms"))

    async def channel(self, client: Address, operator: Address) -> EscrowChannel:
        return EscrowChannel(*await self._value("channel", client, operator))

    async def operator(self, operator: Address) -> OperatorState:
        return OperatorState(*await self._value("operators", operator))

    async def active_root(self, operator: Address) -> RootState:
        return RootState(*await self._value("active_root", operator))

    async def pending_root(self, operator: Address) -> RootState:
        return RootState(*await self._value("pending_root", operator))

    async def challenge(self, operator: Address, epoch: int, payee: Address) -> ChallengeState:
        challenger, cumulative, deadline = await self._value("challenges", operator, epoch, payee)
        return ChallengeState(as_address(challenger), cumulative, deadline)

    async def paid(self, operator: Address, payee: Address) -> int:
        return int(await self._value("paid", operator, payee))

    async def owed(self, account: Address) -> int:
        return int(await self._value("owed", account))

    async def estate(self, operator: Address) -> EstateState:
        return EstateState(*await self._value("estates", operator))

    async def weight(self, operator: Address, payee: Address) -> int:
        """What was filed for a payee of a stale operator, and not paid yet."""
        return int(await self._value("weights", operator, payee))

    async def owner(self) -> Address:
        return as_address(await self._value("owner"))

    async def candidate(self) -> Address:
        """Who may take the owner's switch; the zero address if it is not on offer."""
        return as_address(await self._value("candidate"))

    async def is_paused(self) -> bool:
        return bool(await self._value("paused"))

    async def events(self, first_block: int, last_block: int) -> list[Event]:
        """Everything that the contract logged in these blocks, in order."""
        found: list[Event] = []
        for first in range(first_block, last_block + 1, _EVENT_BLOCKS):
            last = min(first + _EVENT_BLOCKS - 1, last_block)
            wanted = {"address": self._address, "fromBlock": hex(first), "toBlock": hex(last)}
            logs = await self._rpc.call("eth_getLogs", wanted)
            if not isinstance(logs, list):
                raise nonsense("a list of logs", logs)
            found += decode_events([parse_log(log) for log in logs], self._address)
        return found

    async def _value(self, function: str, *args: Any) -> Any:
        artifact = load_artifact("Settlement")
        return await ask(self._rpc, artifact, self._address, function, *args, block=self._block)


def decode_events(logs: Sequence[Log], address: Address) -> list[Event]:
    """The settlement contract's events among `logs`; those of other contracts are left out.

    Raises ChainUnreachableError if the chain's node made one up.
    """
    found = []
    for log in logs:
        # First: any token or wallet in the same transaction can log our topics with nonsense.
        if log.address != address:
            continue
        try:
            event = load_artifact("Settlement").decode_event(log.topics, log.data)
        except (DecodingError, OverflowError):
            raise nonsense("an event", log.data) from None
        if event is not None:
            found.append(Event(event[0], event[1], log.block, log.index, log.transaction))
    return found


def _leaf_row(leaf: Leaf) -> tuple[Address, int, int, list[tuple[bytes, int]]]:
    proof = [(node.hash, node.sum) for node in leaf.proof]
    return leaf.payee, leaf.cumulative, leaf.index, proof
