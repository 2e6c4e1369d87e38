"""A client of a simulated market: the real client library on its own key, clock and transport.

It reports what became of each job, and lets the auditor see what passes between it and the
coordinator.
"""

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import trio

from coordinator.buyer.client import MarketClient
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.leaser import Leaser
from coordinator.buyer.purchase import Purchase
from coordinator.buyer.remote import RemoteLeaser
from coordinator.buyer.result import PurchaseResult
from coordinator.buyer.spec import JobSpec
from protocol.blame import Observation
from protocol.countersigning import Delivery
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.grants import NO_ATTEMPTS, EarlierAttempts, Granted, Payer
from protocol.ids import JobId, PeerId
from protocol.keys import SigningKey
from protocol.messages import Acceptance, JobRequest, Lease, Receipt
from protocol.net.pool import StreamPool
from protocol.net.transport import Transport
from protocol.payload import Chunk
from protocol.programs.runtime import child_rng
from protocol.programs.steady_clock import SteadyClock
from protocol.services import (
    JOB_PROTOCOL,
    LEASE_PROTOCOL,
    NodesAsk,
    NodesReply,
    QuoteAsk,
    QuoteReply,
    SettleReply,
)
from sim.auditor import Auditor
from sim.machine_clock import MachineClock
from sim.workload import PlannedJob

ROLE = "client"


class End(StrEnum):
    """How a job looked to its buyer."""

    ANSWERED = "answered"
    CANCELLED = "cancelled"
    FAILED = "failed"  # nothing was delivered
    CUT = "cut"  # the answer broke off


@dataclass(slots=True)
class JobReport:
    """What one client got for one job, by its own count. Times are virtual milliseconds."""

    planned: PlannedJob
    end: End = End.FAILED
    code: Code | None = None
    message: str = ""
    job_id: JobId | None = None
    node: PeerId | None = None
    nodes: tuple[PeerId, ...] = ()
    attempts: int = 0
    first_output_ms: float | None = None
    total_ms: float = 0.0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    data: bytes = b""
    chunks: int = 0
    outcome: PurchaseResult | None = None

    def take(self, chunk: Chunk) -> None:
        self.chunks += 1
        self.token_ids += chunk.token_ids
        self.text += chunk.text
        self.data += chunk.data

    def take_terms(self, job: Purchase) -> None:
        assert job.terms is not None, "a job that was opened says where it runs"
        self.job_id, self.node = job.terms.job_id, job.terms.node
        self.nodes = (*(part.node for part in job.parts), self.node)
        self.attempts = job.terms.attempts


class SimClient:
    """A key with its own clock and transport, that leases at one coordinator. `run` must be running
    while it does."""

    def __init__(
        self,
        name: str,
        key: SigningKey,
        transport: Transport,
        clock: MachineClock,
        *,
        rng: random.Random,
        coordinator: PeerId,
        addresses: tuple[str, ...],
        auditor: Auditor,
    ) -> None:
        self.name = name
        self.key = key
        self.clock = clock
        self.steady = SteadyClock(clock, trio.current_time)
        self.auditor = auditor
        self._transport = transport
        self._lease_pool = StreamPool(transport, LEASE_PROTOCOL, role=ROLE, rng=child_rng(rng))
        self.job_pool = StreamPool(transport, JOB_PROTOCOL, role=ROLE, rng=child_rng(rng))
        self.leaser = WatchedLeaser(
            RemoteLeaser(self._lease_pool, coordinator, addresses=addresses), auditor
        )

    @property
    def channels_open(self) -> int:
        """Conversations under way, with nodes and the coordinator."""
        pools = (self._lease_pool, self.job_pool)
        return sum(pool.statistics().channels for pool in pools)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        # A machine that starts has asked a time server; its clock is set wrong later, if at all.
        self.steady.now_ms()
        async with trio.open_nursery() as nursery:
            for part in (self._transport, self._lease_pool, self.job_pool):
                await nursery.start(part.run)
            await self._start(nursery)
            task_status.started()

    async def _start(self, nursery: trio.Nursery) -> None:
        """What else runs as long as it does."""


class Buyer(SimClient):
    """An honest client."""

    # What may come of its jobs is what may come of those of all.
    honest_codes: frozenset[Code] = frozenset()

    def __init__(
        self, *args: Any, rng: random.Random, leases_ahead: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(*args, rng=rng, **kwargs)
        self._market = MarketClient(
            self.job_pool,
            self.leaser,
            clock=self.steady,
            entropy=child_rng(rng).randbytes,
            leases_ahead=leases_ahead,
        )

    @property
    def leases_ready(self) -> int:
        """Leases that wait for a job."""
        return self._market.leases.counts().ready

    async def _start(self, nursery: trio.Nursery) -> None:
        await nursery.start(self._market.run)

    async def buy(self, planned: PlannedJob) -> JobReport:
        """Run a job to whatever end it has."""
        report = JobReport(planned)
        started_at = trio.current_time()
        try:
            await self._consume(planned.spec, report, started_at)
        except JobFailed as failure:
            report.code, report.message, report.job_id = failure.code, str(failure), failure.job_id
            report.end = End.CUT if failure.delivered else End.FAILED
        report.total_ms = 1000 * (trio.current_time() - started_at)
        return report

    async def _consume(self, spec: JobSpec, report: JobReport, started_at: float) -> None:
        enough = report.planned.cancel_after
        async with self._market.buy(spec, self.key) as job:
            report.first_output_ms = 1000 * (trio.current_time() - started_at)
            report.take_terms(job)
            try:
                async for chunk in job:
                    if report.chunks == enough:
                        report.end = End.CANCELLED
                        return
                    report.take(chunk)
                report.end = End.ANSWERED
                report.outcome = job.result
            finally:
                report.take_terms(job)


class WatchedLeaser:
    """A leaser that shows the auditor what was signed and what was answered."""

    def __init__(self, inner: Leaser, auditor: Auditor) -> None:
        self._inner = inner
        self._auditor = auditor

    @property
    def coordinator(self) -> PeerId:
        return self._inner.coordinator

    @property
    def is_local(self) -> bool:
        return self._inner.is_local

    async def lease(
        self,
        request: Signed[JobRequest],
        *,
        earlier: EarlierAttempts = NO_ATTEMPTS,
        payer: Payer | None = None,
    ) -> Granted:
        for delivery in earlier.deliveries:
            self._auditor.delivered(delivery)
        granted = await self._inner.lease(request, earlier=earlier, payer=payer)
        self._auditor.leased(
            granted.lease,
            api_key_id=payer.api_key_id if payer else None,
            is_ahead=request.message.is_ahead,
        )
        return granted

    async def settle(self, receipt: Signed[Receipt], acceptance: Signed[Acceptance]) -> SettleReply:
        self._auditor.receipted(receipt)
        self._auditor.accepted(acceptance)
        try:
            reply = await self._inner.settle(receipt, acceptance)
        except RemoteProtocolError as error:
            self._auditor.refused(receipt, error.code)
            raise
        self._auditor.answered(receipt, reply.state, reply.amount_nano)
        return reply

    async def declare(self, delivery: Signed[Delivery]) -> None:
        self._auditor.delivered(delivery)
        await self._inner.declare(delivery)
        self._auditor.delivered(delivery, is_declared=True)

    def observe(self, lease: Signed[Lease], observation: Observation) -> None:
        self._inner.observe(lease, observation)

    async def free_nano(self, client: PeerId, payer: Payer | None) -> int:
        return await self._inner.free_nano(client, payer)

    async def quote(self, ask: QuoteAsk) -> QuoteReply:
        return await self._inner.quote(ask)

    async def nodes(self, ask: NodesAsk) -> NodesReply:
        return await self._inner.nodes(ask)
