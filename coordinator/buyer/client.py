"""The client of the market: sign a request, lease, open the job at the node, stream, countersign.

The gateway, the command line and the simulator all buy through this class; none has a shorter path.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

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
    """Buys inference in the name of any key. One per process; `run` must be running."""

    def __init__(self, pool: StreamPool, leaser: Leaser, *, clock: Clock, entropy: Entropy) -> None:
        self._settlements = Settlements(leaser)
        self._opener = Opener(pool, leaser, self._settlements, clock=clock)
        self._entropy = entropy

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand receipts in, until cancelled."""
        await self._settlements.run(task_status=task_status)

    async def wait_settled(self, *, within_s: float = SETTLED_WITHIN_S) -> None:
        """Returns when every receipt is handed in, or the time is over: for a short-lived buyer."""
        await self._settlements.wait_settled(within_s=within_s)

    @asynccontextmanager
    async def buy(self, spec: JobSpec, key: SigningKey) -> AsyncIterator[Purchase]:
        """Run a job; enters when its first output has arrived. Leaving early cancels the job.

        Raises JobFailed if no node could be found, or none delivered anything.
        """
        purchase = self._purchase(spec, key)
        try:
            await purchase.open()
            yield purchase
        finally:
            purchase.leave()

    def _purchase(self, spec: JobSpec, key: SigningKey) -> Purchase:
        now_ms = self._opener.clock.now_ms()
        stamps = RequestStamps(
            job_id=spec.job_id or JobId(new_ulid(now_ms, self._entropy(ULID_ENTROPY_BYTES))),
            salt=self._entropy(SALT_BYTES),
            coordinator=self._opener.leaser.coordinator,
            now_ms=now_ms,
        )
        return Purchase(sign_part(spec, key, stamps), key=key, opener=self._opener)
