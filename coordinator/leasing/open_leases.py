"""Leases whose jobs have not been settled: what the coordinator keeps in memory of each.

The database has them too; `restore` brings them back after a restart, without what only the old
process knew: the claim that matching made.

How long a lease's receipt is taken is decided here. Its hold sets the time; a coordinator that was
away, and could take none, adds some to it when it is back.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from coordinator.leasing.budgets import Budgets
from coordinator.ledger.postings import LeaseFunds
from coordinator.market.market import Market
from coordinator.market.matching.claim import Claim
from protocol.blame import Observation
from protocol.envelope import Signed
from protocol.ids import Digest, JobId, LeaseId, PeerId, TransferId
from protocol.limits import RECEIPT_GRACE_MS
from protocol.messages import Finish, Lease
from protocol.pricing import Units
from protocol.receipts import charge_nano


@dataclass(slots=True)
class OpenLease:
    """`api_key_id` is whose budget it counts against, if the gateway asked for it; `is_judged` once
    the node's reputation has taken this job in, so that it counts once; `delivered` is what our own
    client counted of a job that ended without a receipt for it to countersign; `has_receipt` once
    one is durable that waits for its client, and is paid whatever becomes of the hold meanwhile;
    `grace_until_ms` is until when a receipt may come although the hold has timed out."""

    lease: Signed[Lease]
    api_key_id: str | None
    claim: Claim | None = None
    is_judged: bool = False
    delivered: Units | None = None
    has_receipt: bool = False
    grace_until_ms: int = 0

    @property
    def funds(self) -> LeaseFunds:
        granted = self.lease.message
        return LeaseFunds(granted.lease_id, granted.job_id, granted.client, granted.ceiling_nano)

    @property
    def hold_expires_at_ms(self) -> int:
        return hold_expiry_ms(self.lease.message)

    @property
    def receipts_until_ms(self) -> int:
        return max(self.hold_expires_at_ms, self.grace_until_ms)

    def judge(self, market: Market, observation: Observation) -> None:
        """Take the job's outcome into its node's reputation, once."""
        if not self.is_judged:
            self.is_judged = True
            market.judge(self.lease.message, self.claim, observation)

    def is_payable(self, now_ms: int) -> bool:
        """Whether a receipt that comes now is paid; without one, the hold is given back."""
        return self.has_receipt or now_ms < self.receipts_until_ms


def hold_expiry_ms(lease: Lease) -> int:
    """A receipt for a job that met its deadline has this long to arrive."""
    return lease.deadline_at_ms + RECEIPT_GRACE_MS


@dataclass(slots=True)
class _LeasedJob:
    """The one request that this job is, how often it was leased, and when it has to end."""

    request: Digest
    attempts: int
    deadline_at_ms: int


class OpenLeases:
    """By lease id, and how often each job was leased, until its request is too old for another."""

    def __init__(self) -> None:
        self.budgets = Budgets(trio.current_time)
        self._by_id: dict[LeaseId, OpenLease] = {}
        self._jobs: dict[JobId, _LeasedJob] = {}
        self._counts: Counter[PeerId] = Counter()

    def __len__(self) -> int:
        return len(self._by_id)

    def restore(self, leases: Iterable[OpenLease], *, now_ms: int) -> None:
        """Take up what an earlier process left open; in order of attempts. Nodes could not hand
        their receipts in while it was away: they get the time that they have after a deadline."""
        for opened in leases:
            opened.grace_until_ms = now_ms + RECEIPT_GRACE_MS
            self.add(opened)

    def add(self, opened: OpenLease) -> None:
        granted = opened.lease.message
        self._by_id[granted.lease_id] = opened
        self._counts[granted.client] += 1
        if opened.api_key_id is not None:
            self.budgets.hold(opened.api_key_id, granted.lease_id, granted.ceiling_nano)
        self.recall(granted)

    def get(self, lease_id: LeaseId) -> OpenLease | None:
        return self._by_id.get(lease_id)

    def count_of(self, client: PeerId) -> int:
        """How many leases this client has open."""
        return self._counts[client]

    def attempts(self, job_id: JobId) -> int:
        """How many leases this job has had, as far as this process knows."""
        known = self._jobs.get(job_id)
        return known.attempts if known is not None else 0

    def request_of(self, job_id: JobId) -> Digest | None:
        """The request that was leased under this id; None if none was."""
        known = self._jobs.get(job_id)
        return known.request if known is not None else None

    def deadline_at_ms(self, job_id: JobId) -> int | None:
        """When this job has to end by our own clock; None if it has had no lease yet."""
        known = self._jobs.get(job_id)
        return known.deadline_at_ms if known is not None else None

    def recall(self, last: Lease) -> None:
        """Go on counting a job's leases where an earlier process stopped."""
        self._jobs[last.job_id] = _LeasedJob(
            last.request_digest, last.attempt + 1, last.deadline_at_ms
        )

    def bound(self, opened: OpenLease, delivered: Units) -> None:
        """Our own client says what it got of a job that broke off: no more will be charged."""
        opened.delivered = delivered
        granted = opened.lease.message
        if opened.api_key_id is not None:
            # A cancelled job costs the most that these units may: each of them is paid.
            most_nano = charge_nano(granted.price, delivered, Finish.CANCELLED)
            self.budgets.bound(opened.api_key_id, granted.lease_id, most_nano)

    def end(self, lease_id: LeaseId, *, paid_nano: int = 0) -> None:
        """Forget a lease that was settled, released or expired."""
        opened = self._by_id.pop(lease_id, None)
        if opened is None:
            return
        client = opened.lease.message.client
        self._counts[client] -= 1
        if not self._counts[client]:
            del self._counts[client]
        if opened.api_key_id is not None:
            self.budgets.end(opened.api_key_id, lease_id, paid_nano)

    def by_hold(self) -> dict[TransferId, OpenLease]:
        return {opened.funds.hold_id: opened for opened in self._by_id.values()}

    def forget_attempts(self, now_ms: int) -> None:
        """Drop the counts of jobs whose requests are refused as expired anyway."""
        latest_ms = now_ms - RECEIPT_GRACE_MS
        over = [key for key, job in self._jobs.items() if job.deadline_at_ms <= latest_ms]
        for job_id in over:
            del self._jobs[job_id]
