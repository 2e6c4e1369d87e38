"""One lease whose job has not been settled: what the coordinator keeps in memory of it.

How long a lease's receipt is taken is decided here. Its hold sets the time; a coordinator that was
away, and could take none, adds some to it when it is back. All leases together are in `registry`.
"""

from dataclasses import dataclass
from enum import Enum, auto

from coordinator.ledger.postings import LeaseFunds
from coordinator.market.market import NO_PROBE, Probe
from coordinator.market.matching.claim import Claim
from protocol.endings import Finish
from protocol.envelope import Signed
from protocol.limits import RECEIPT_GRACE_MS
from protocol.messages import Lease
from protocol.pricing import Units
from protocol.receipts import charge_nano

# A client countersigns within milliseconds; fifteen seconds forgive a sleeping laptop.
ACCEPTANCE_WITHIN_MS = 15_000


class Opening(Enum):
    """What is known of a lease's opening at its node."""

    AWAITED = auto()  # no report of it so far; counts against its client
    UNKNOWN = auto()  # not watched: our own gateway's, or restored after a restart
    REPORTED = auto()  # by the node, by our own client, or by a receipt
    FORGONE = auto()  # not reported, and its client has signed that it got nothing of it
    MISSED = auto()  # it can be opened no more
    NEVER = auto()  # our own client leased it, and did not open it


@dataclass(slots=True)
class OpenLease:
    """`api_key_id` is whose budget it counts against, if the gateway asked for it; `is_judged` once
    the node's reputation has taken this job in, so that it counts once; `delivered` is what its
    client signed that it got of a job that ended without a receipt; `has_receipt` once one
    is durable that waits for its client, and is paid whatever becomes of the hold meanwhile;
    `is_arriving` while its node reports that the payload is not whole; `restored_at_ms` is set if
    an earlier process granted it; `probe` is what `reserve` took of the breakers; `is_ahead` if its
    client leased it before it had a job, and then `has_yielded` once its seat went to others."""

    lease: Signed[Lease]
    api_key_id: str | None
    claim: Claim | None = None
    opening: Opening = Opening.AWAITED
    is_judged: bool = False
    delivered: Units | None = None
    has_receipt: bool = False
    is_arriving: bool = False
    restored_at_ms: int = 0
    probe: Probe = NO_PROBE
    is_batch: bool = False
    is_ahead: bool = False
    has_yielded: bool = False

    @property
    def funds(self) -> LeaseFunds:
        granted = self.lease.message
        return LeaseFunds(granted.lease_id, granted.job_id, granted.client, granted.ceiling_nano)

    @property
    def most_nano(self) -> int:
        """The most that it can still cost."""
        granted = self.lease.message
        if self.delivered is None:
            return granted.ceiling_nano
        # A cancelled job costs the most that these units may: each of them is paid.
        return charge_nano(granted.price, self.delivered, Finish.CANCELLED)

    @property
    def hold_expires_at_ms(self) -> int:
        """A receipt for a job that met its deadline has this long to arrive."""
        return self.lease.message.deadline_at_ms + RECEIPT_GRACE_MS

    @property
    def receipts_until_ms(self) -> int:
        """After an outage nodes get the time that they have after a deadline."""
        return max(self.hold_expires_at_ms, self.restored_at_ms + RECEIPT_GRACE_MS)

    @property
    def was_cut_by_us(self) -> bool:
        """Our own gateway bought it, in a process that has ended since: its client got at most a
        part of the answer, and no buyer is left to sign for it."""
        is_of_before = self.restored_at_ms > 0 and self.api_key_id is not None
        return is_of_before and self.delivered is None

    @property
    def is_watched_by_us(self) -> bool:
        """Our own gateway bought it in this process, and tells how it goes (`observe`)."""
        return self.api_key_id is not None and not self.restored_at_ms

    @property
    def is_over(self) -> bool:
        """Whether its job runs no more at its node, although it is not paid."""
        return self.has_receipt or self.delivered is not None or self.was_cut_by_us

    @property
    def lone_receipt_due_ms(self) -> int:
        """When a receipt may be paid without its client's word: not while the job may still run,
        and not before its client had some time to hand its word in. Our own client's word, once
        it is there, is the last: nothing is left to wait for."""
        if self.delivered is not None:
            return 0
        over_ms = max(self.lease.message.deadline_at_ms, self.restored_at_ms)
        return over_ms + ACCEPTANCE_WITHIN_MS

    def is_payable(self, now_ms: int) -> bool:
        """Whether a receipt that comes now is paid; without one, the hold is given back."""
        return self.has_receipt or now_ms < self.receipts_until_ms
