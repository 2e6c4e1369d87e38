"""Typed calls of the settlement contract, and what it says: state and events.

`SettlementCalls` makes the data of transactions and touches no network; `SettlementReader` asks a
chain's node. Amounts are token units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.abi import as_address, load_artifact, revert_reason
from contracts.chain import Call
from contracts.errors import RevertedError, RpcError
from contracts.merkle_sum import Leaf
from contracts.receipts import Log, parse_log
from contracts.rpc import Rpc, parse_hex
from contracts.units import Address
from contracts.vouchers import Promise, SignedVoucher

# What the contract takes in one call.
VOUCHERS_MAX = 256
CLAIMS_MAX = 32

# Public nodes answer for a few thousand blocks at once, and refuse more.
_EVENT_BLOCKS = 2_000


@dataclass(frozen=True, slots=True)
class Terms:
    """A deployment's delays and amounts; `docs/settlement.md` gives the reasons."""

    window_s: int
    response_s: int
    exit_delay_s: int
    stale_after_s: int
    collection_s: int
    stake_min: int
    bond: int


@dataclass(frozen=True, slots=True)
class Channel:
    balance: int
    redeemed: int
    exit_at: int


@dataclass(frozen=True, slots=True)
class OperatorState:
    stake: int
    credit: int
    claimed: int
    next_epoch: int
    fresh_at: int
    unstake_epoch: int
    stale_at: int


@dataclass(frozen=True, slots=True)
class RootState:
    root: bytes
    total: int
    epoch: int
    posted_at: int
    disputes: int


@dataclass(frozen=True, slots=True)
class ChallengeState:
    challenger: Address
    cumulative: int
    deadline: int


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

    async def channel(self, client: Address, operator: Address) -> Channel:
        return Channel(*await self._value("channel", client, operator))

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

    async def is_paused(self) -> bool:
        return bool(await self._value("paused"))

    async def events(self, first_block: int, last_block: int) -> list[Event]:
        """Everything that the contract logged in these blocks, in order."""
        found: list[Event] = []
        for first in range(first_block, last_block + 1, _EVENT_BLOCKS):
            last = min(first + _EVENT_BLOCKS - 1, last_block)
            wanted = {"address": self._address, "fromBlock": hex(first), "toBlock": hex(last)}
            logs = await self._rpc.call("eth_getLogs", wanted)
            found += decode_events([parse_log(log) for log in logs], self._address)
        return found

    async def _value(self, function: str, *args: Any) -> Any:
        artifact = load_artifact("Settlement")
        request = {"to": self._address, "data": "0x" + artifact.encode(function, *args).hex()}
        try:
            answer = parse_hex(await self._rpc.call("eth_call", request, self._block))
        except RpcError as error:
            raise RevertedError(revert_reason(error)) from error
        if not answer:
            raise RevertedError(f"there is no settlement contract at {self._address}")
        return artifact.decode_result(function, answer)[0]


def decode_events(logs: Sequence[Log], address: Address) -> list[Event]:
    """The settlement contract's events among `logs`; those of other contracts are left out."""
    found = []
    for log in logs:
        event = load_artifact("Settlement").decode_event(log.topics, log.data)
        if event is not None and log.address == address:
            found.append(Event(event[0], event[1], log.block, log.index, log.transaction))
    return found


def _leaf_row(leaf: Leaf) -> tuple[Address, int, int, list[tuple[bytes, int]]]:
    proof = [(node.hash, node.sum) for node in leaf.proof]
    return leaf.payee, leaf.cumulative, leaf.index, proof
