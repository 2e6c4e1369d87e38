"""The client of the market: sign a request, lease, open the job at the node, stream, countersign.

The gateway, the command line and the simulator all buy through this class; none has a shorter path.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from coordinator.buyer.ahead.pool import LeasePool
from coordinator.buyer.leaser import Leaser
from coordinator.buyer.opener import Opener
from coordinator.buyer.parts import RequestStamps, sign_part
from coordinator.buyer.purchase import Purchase
from coordinator.buyer.settlements import SETTLED_WITHIN_S, Settlements
from coordinator.buyer.spec import JobSpec
from protocol.clock import Clock, Entropy
from protocol.ids import ULID_ENTROPY_BYTES, JobId, new_ulid
from protocol.keys import SigningKey
from protocol.limits import SALT_BYTES
from protocol.net.pool import StreamPool


class MarketClient:
    """Buys inference in the name of any key. One per process; `run` must be running. Of each class
    of jobs that is in demand it keeps up to `leases_ahead` leases, for the next ones."""

    def __init__(
        self,
        pool: StreamPool,
        leaser: Leaser,
        *,
        clock: Clock,
        entropy: Entropy,
        leases_ahead: int = 0,
    ) -> None:
        self._settlements = Settlements(leaser)
        self._opener = Opener(pool, leaser, self._settlements, clock=clock)
        self._entropy = entropy
        self.leases = LeasePool(leaser, self._opener, entropy=entropy, leases_max=leases_ahead)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand receipts in and keep leases ahead, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._settlements.run)
            await nursery.start(self.leases.run)
            task_status.started()

    async def wait_settled(self, *, within_s: float = SETTLED_WITHIN_S) -> None:
        """Returns when every receipt is handed in and every unused lease given back, or the time is
        over: for a buyer that stops."""
        self.leases.close()
        await self._settlements.wait_settled(within_s=within_s)

    @asynccontextmanager
    async def buy(self, spec: JobSpec, key: SigningKey) -> AsyncIterator[Purchase]:
        """Run a job; enters when its first output has arrived. Leaving early cancels the job.

        Raises JobFailed if no node could be found, or none delivered anything.
        """
        purchase = self._purchase(spec, key)
        try:
            await purchase.open()
            self.leases.note_opened(purchase.granted, spec, key)
            yield purchase
        finally:
            purchase.leave()

    def _purchase(self, spec: JobSpec, key: SigningKey) -> Purchase:
        leased = self.leases.take(spec, key)
        if leased is not None:
            return Purchase(leased.part, key=key, opener=self._opener, leased=leased)
        now_ms = self._opener.clock.now_ms()
        name = spec.name
        stamps = RequestStamps(
            job_id=name.id if name is not None else spec.job_id or self._new_job_id(now_ms),
            salt=self._entropy(SALT_BYTES),
            coordinator=self._opener.leaser.coordinator,
            now_ms=now_ms,
            part=name.next_part() if name is not None else 0,
        )
        return Purchase(sign_part(spec, key, stamps), key=key, opener=self._opener)

    def _new_job_id(self, now_ms: int) -> JobId:
        return JobId(new_ulid(now_ms, self._entropy(ULID_ENTROPY_BYTES)))
