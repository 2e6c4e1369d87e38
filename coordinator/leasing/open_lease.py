"""One lease whose job has not been settled: what the coordinator keeps in memory of it.

How long a lease's receipt is taken is decided here. Its hold sets the time; a coordinator that was
away, and could take none, adds some to it when it is back. All leases together are in `registry`.
"""

from dataclasses import dataclass

from coordinator.ledger.postings import LeaseFunds
from coordinator.market.matching.claim import Claim
from protocol.envelope import Signed
from protocol.limits import RECEIPT_GRACE_MS
from protocol.messages import Lease
from protocol.pricing import Units


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
        """A receipt for a job that met its deadline has this long to arrive."""
        return self.lease.message.deadline_at_ms + RECEIPT_GRACE_MS

    @property
    def receipts_until_ms(self) -> int:
        return max(self.hold_expires_at_ms, self.grace_until_ms)

    def is_payable(self, now_ms: int) -> bool:
        """Whether a receipt that comes now is paid; without one, the hold is given back."""
        return self.has_receipt or now_ms < self.receipts_until_ms
