"""Budgets of a gateway's own API keys, where every lease and every word on one passes: around the
leaser of each coordinator.

A lease holds its ceiling against its key until we sign what it came to, or until it can no longer
run. A gateway that is killed forgets its holds; what it has signed for is on its disk.
"""

from dataclasses import dataclass

import trio

from coordinator.buyer.leaser import Leaser
from coordinator.edge.keys import GatewayKeys
from protocol.blame import Observation
from protocol.clock import Clock
from protocol.countersigning import Delivery
from protocol.endings import Finish
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.grants import NO_ATTEMPTS, EarlierAttempts, Granted, Payer
from protocol.ids import LeaseId, PeerId
from protocol.limits import RECEIPT_GRACE_MS
from protocol.messages import Acceptance, JobRequest, Lease, Receipt
from protocol.money import format_credits
from protocol.pricing import Units
from protocol.programs.runners import Runner
from protocol.receipts import charge_nano
from protocol.services import NodesAsk, NodesReply, QuoteAsk, QuoteReply, SettleReply


@dataclass(frozen=True, slots=True)
class _LeaseHold:
    key_id: str
    lease: Lease


class Budgets:
    """What each key has left. One per gateway, shared by the leasers of all its coordinators."""

    def __init__(self, keys: GatewayKeys, runner: Runner, *, clock: Clock) -> None:
        self._keys = keys
        self._runner = runner
        self._clock = clock
        self._holds: dict[LeaseId, _LeaseHold] = {}
        # Spent, and not yet in the file.
        self._unwritten: dict[str, int] = {}

    async def check_left(self, key_id: str) -> None:
        """Before a lease is asked for. Raises RemoteProtocolError (BUDGET_EXCEEDED, …)."""
        left = await self.left_nano(key_id)
        if left is not None and left <= 0:
            raise RemoteProtocolError(
                "nothing is left of this API key's budget, or running jobs hold all of it",
                code=Code.BUDGET_EXCEEDED,
            )

    async def check_held(self, key_id: str, lease: Lease) -> None:
        """With the lease's own hold counted. Raises RemoteProtocolError (BUDGET_EXCEEDED, …)."""
        left = await self.left_nano(key_id)
        if left is not None and left < 0:
            raise RemoteProtocolError(
                f"the job may cost {format_credits(lease.ceiling_nano)} credits, and this API key "
                f"has {format_credits(max(lease.ceiling_nano + left, 0))} left of its budget",
                code=Code.BUDGET_EXCEEDED,
            )

    def hold(self, key_id: str, lease: Lease) -> None:
        self._forget_expired()
        self._holds[lease.lease_id] = _LeaseHold(key_id, lease)

    def drop(self, lease_id: LeaseId) -> None:
        self._holds.pop(lease_id, None)

    async def book(self, lease_id: LeaseId, units: Units, finish: Finish) -> None:
        """Turn a hold into what was signed for, once."""
        held = self._holds.pop(lease_id, None)
        if held is None:
            return
        amount_nano = charge_nano(held.lease.price, units, finish)
        if not amount_nano:
            return
        key_id = held.key_id
        self._unwritten[key_id] = self._unwritten.get(key_id, 0) + amount_nano
        # Shielded: what was spent stays spent, also while the gateway stops.
        with trio.CancelScope(shield=True):
            await self._runner.run_write(lambda: self._keys.spend(key_id, amount_nano))
        self._unwritten[key_id] -= amount_nano

    async def left_nano(self, key_id: str) -> int | None:
        """None is no limit. Raises RemoteProtocolError (UNKNOWN_API_KEY)."""
        key = await self._runner.run_read(lambda: self._keys.find(key_id))
        if key is None or key.revoked_at_ms is not None:
            raise RemoteProtocolError("this API key was revoked", code=Code.UNKNOWN_API_KEY)
        if key.budget_nano is None:
            return None
        return key.budget_nano - key.spent_nano - self._counted_nano(key_id)

    def _counted_nano(self, key_id: str) -> int:
        held = sum(
            hold.lease.ceiling_nano for hold in self._holds.values() if hold.key_id == key_id
        )
        return held + self._unwritten.get(key_id, 0)

    def _forget_expired(self) -> None:
        """Leases that were never opened, and never spoken of."""
        now_ms = self._clock.now_ms()
        for lease_id, held in list(self._holds.items()):
            if held.lease.deadline_at_ms + RECEIPT_GRACE_MS >= now_ms:
                # In order of their grants, and a later grant has a later deadline by and large.
                return
            del self._holds[lease_id]


class BudgetLeaser:
    """A `Leaser` that counts what a gateway's keys spend at another one."""

    def __init__(self, leaser: Leaser, budgets: Budgets) -> None:
        self._leaser = leaser
        self._budgets = budgets

    @property
    def coordinator(self) -> PeerId:
        return self._leaser.coordinator

    @property
    def is_local(self) -> bool:
        """The budget is asked once more after a lease was granted."""
        return False

    async def lease(
        self,
        request: Signed[JobRequest],
        *,
        earlier: EarlierAttempts = NO_ATTEMPTS,
        payer: Payer | None = None,
    ) -> Granted:
        assert payer is not None, "every job of a gateway has a key that pays"
        await self._budgets.check_left(payer.api_key_id)
        granted = await self._leaser.lease(request, earlier=earlier)
        lease = granted.lease.message
        # Held before the check: two jobs at once cannot both have what is left.
        self._budgets.hold(payer.api_key_id, lease)
        try:
            await self._budgets.check_held(payer.api_key_id, lease)
        except RemoteProtocolError:
            # It is never opened: its hold at the coordinator lapses within half a minute.
            self._budgets.drop(lease.lease_id)
            raise
        return granted

    async def settle(self, receipt: Signed[Receipt], acceptance: Signed[Acceptance]) -> SettleReply:
        counted = acceptance.message
        await self._budgets.book(counted.lease_id, counted.units, receipt.message.finish)
        return await self._leaser.settle(receipt, acceptance)

    async def declare(self, delivery: Signed[Delivery]) -> None:
        got = delivery.message
        await self._budgets.book(got.lease_id, got.units, Finish.FAILED)
        await self._leaser.declare(delivery)

    def observe(self, lease: Signed[Lease], observation: Observation) -> None:
        self._leaser.observe(lease, observation)

    async def free_nano(self, client: PeerId, payer: Payer | None) -> int:
        free = await self._leaser.free_nano(client, payer)
        left = await self._budgets.left_nano(payer.api_key_id) if payer is not None else None
        return free if left is None else max(min(free, left), 0)

    async def quote(self, ask: QuoteAsk) -> QuoteReply:
        return await self._leaser.quote(ask)

    async def nodes(self, ask: NodesAsk) -> NodesReply:
        return await self._leaser.nodes(ask)
