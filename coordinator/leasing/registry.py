"""The one owner of every lease's life: grant, bound, end, restore.

A lease takes a seat at its node, counts against its client and perhaps against the budget of an API
key, and its outcome goes into the node's reputation. This registry alone tells them, so that what a
lease took is given back exactly once, however the lease ends. It does no I/O: `granting` writes the
holds, `settling` the payments, and the database has the leases too (`restore`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import structlog
import trio

from coordinator.leasing.budgets import Budgets
from coordinator.leasing.leased_jobs import LeasedJobs
from coordinator.leasing.open_lease import OpenLease
from coordinator.leasing.turns import Turns
from coordinator.market.market import Market
from protocol.blame import Observation
from protocol.endings import Finish
from protocol.ids import LeaseId, PeerId, TransferId
from protocol.limits import RECEIPT_GRACE_MS
from protocol.receipts import charge_nano

log = structlog.get_logger(__name__)


class LeaseRegistry:
    """All open leases by id, and what they have taken of the market, of clients and of budgets."""

    def __init__(self, market: Market) -> None:
        self.budgets = Budgets(trio.current_time)
        self.jobs = LeasedJobs()
        self.turns = Turns()
        self._market = market
        self._by_id: dict[LeaseId, OpenLease] = {}
        self._counts: Counter[PeerId] = Counter()

    # Reading.

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[OpenLease]:
        return iter(self._by_id.values())

    def get(self, lease_id: LeaseId) -> OpenLease | None:
        return self._by_id.get(lease_id)

    def count_of(self, client: PeerId) -> int:
        """How many leases this client has open."""
        return self._counts[client]

    def by_hold(self) -> dict[TransferId, OpenLease]:
        return {opened.funds.hold_id: opened for opened in self._by_id.values()}

    # Beginnings.

    def grant(self, opened: OpenLease) -> None:
        """Count a lease against its node, its client and its budget from now on. Its hold need not
        be durable yet: a burst would otherwise all be matched to the same node."""
        self._add(opened)
        self._market.reserve(opened.lease.message, expires_at_ms=opened.hold_expires_at_ms)

    def restore(self, leases: Iterable[OpenLease], *, now_ms: int) -> None:
        """Take up what an earlier process left open, in order of attempts. Nodes could not hand
        their receipts in while it was away: they get the time that they have after a deadline."""
        restored = list(leases)
        for opened in restored:
            opened.grace_until_ms = now_ms + RECEIPT_GRACE_MS
            self._add(opened)
            # Their seats are taken, although no node has offered us any yet.
            granted = opened.lease.message
            self._market.book.grant(
                granted.lease_id,
                granted.node,
                granted.model_digest,
                expires_at_ms=opened.hold_expires_at_ms,
            )
        if restored:
            log.info("leases_restored", count=len(restored))

    # What happens while it is open.

    def observe(self, lease_id: LeaseId, observation: Observation) -> None:
        """Our own client says how its job went: the seat is free, and no more than what it got
        will be charged."""
        opened = self._by_id.get(lease_id)
        if opened is not None:
            if not observation.has_receipt:
                self._bound(opened, observation)
            self._judge(opened, observation)
        self._leave_seat(lease_id)

    # Ends.

    def end(
        self, opened: OpenLease, *, paid_nano: int = 0, observation: Observation | None = None
    ) -> bool:
        """Forget a lease that was refused, settled, released or expired, and free what it took.
        Returns False if it had ended before: then nothing changes."""
        granted = opened.lease.message
        if self._by_id.get(granted.lease_id) is not opened:
            return False
        del self._by_id[granted.lease_id]
        self._counts[granted.client] -= 1
        if not self._counts[granted.client]:
            del self._counts[granted.client]
        if opened.api_key_id is not None:
            self.budgets.end(opened.api_key_id, granted.lease_id, paid_nano)
        self._leave_seat(granted.lease_id)
        if observation is not None:
            self._judge(opened, observation)
        return True

    # Below: what the above share.

    def _add(self, opened: OpenLease) -> None:
        granted = opened.lease.message
        self._by_id[granted.lease_id] = opened
        self._counts[granted.client] += 1
        if opened.api_key_id is not None:
            self.budgets.hold(opened.api_key_id, granted.lease_id, granted.ceiling_nano)
        self.jobs.note(granted)

    def _leave_seat(self, lease_id: LeaseId) -> None:
        self._market.book.release(lease_id)
        self.turns.wake()

    def _bound(self, opened: OpenLease, observation: Observation) -> None:
        opened.delivered = observation.delivered
        granted = opened.lease.message
        if opened.api_key_id is not None:
            # A cancelled job costs the most that these units may: each of them is paid.
            most_nano = charge_nano(granted.price, observation.delivered, Finish.CANCELLED)
            self.budgets.bound(opened.api_key_id, granted.lease_id, most_nano)

    def _judge(self, opened: OpenLease, observation: Observation) -> None:
        """Take the job's outcome into its node's reputation, once."""
        if not opened.is_judged:
            opened.is_judged = True
            self._market.judge(opened.lease.message, opened.claim, observation)
