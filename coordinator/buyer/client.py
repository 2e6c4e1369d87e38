"""The client of the market: sign a request, lease, open the job at the node, stream, countersign.

The gateway, the command line and the simulator all buy through this class; none has a shorter path.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from coordinator.buyer.affinity import affinity_of
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.leaser import Leaser
from coordinator.buyer.purchase import Purchase
from coordinator.buyer.settlements import SETTLED_WITHIN_S, Settlements
from coordinator.buyer.spec import JobSpec
from protocol.clock import Clock, Entropy
from protocol.codec import encode
from protocol.envelope import Signed, seal
from protocol.errors import Code
from protocol.ids import ULID_ENTROPY_BYTES, JobId, new_ulid
from protocol.keys import SigningKey
from protocol.limits import PAYLOAD_BYTES_MAX, SALT_BYTES
from protocol.messages import JobRequest
from protocol.net.pool import StreamPool
from protocol.payload import SaltedPayload


class MarketClient:
    """Buys inference in the name of any key. One per process; `run` must be running."""

    def __init__(self, pool: StreamPool, leaser: Leaser, *, clock: Clock, entropy: Entropy) -> None:
        self._pool = pool
        self._leaser = leaser
        self._settlements = Settlements(leaser)
        self._clock = clock
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
        payload = SaltedPayload(encode(spec.job_input), self._entropy(SALT_BYTES))
        if len(payload.data) > PAYLOAD_BYTES_MAX:
            raise JobFailed(
                f"the input has {len(payload.data)} bytes; up to {PAYLOAD_BYTES_MAX} can go",
                code=Code.INPUT_TOO_LARGE,
            )
        return Purchase(
            self._sign_request(spec, key, payload),
            payload,
            spec,
            key=key,
            pool=self._pool,
            leaser=self._leaser,
            settlements=self._settlements,
            clock=self._clock,
        )

    def _sign_request(
        self, spec: JobSpec, key: SigningKey, payload: SaltedPayload
    ) -> Signed[JobRequest]:
        now_ms = self._clock.now_ms()
        return seal(
            key,
            JobRequest(
                job_id=spec.job_id or JobId(new_ulid(now_ms, self._entropy(ULID_ENTROPY_BYTES))),
                client=key.peer_id,
                coordinator=self._leaser.coordinator,
                model=spec.model,
                task=spec.task,
                payload_digest=payload.digest,
                payload_bytes=len(payload.data),
                units_max=spec.units_max,
                units_expected=spec.units_expected,
                objective=spec.objective,
                constraints=spec.constraints,
                issued_at_ms=now_ms,
                deadline_at_ms=now_ms + int(1000 * spec.deadline_s),
                is_batch=spec.is_batch,
                affinity=affinity_of(spec.job_input, spec.session, key),
            ),
        )
