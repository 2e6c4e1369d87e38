"""The client of the market: sign a request, lease, open the job at the node, stream, countersign.

The gateway, the command line and the simulator all buy through this class; none has a shorter path.
Retries are invisible until the first output: a node that refuses or falls silent before it costs
the buyer nothing but time. What follows the first output comes from that one node; a cut is told.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import trio

from coordinator.buyer.job_stream import JobFailed, JobStream, Outcome
from coordinator.buyer.leaser import Leaser
from protocol.blame import Observation, blame_for
from protocol.clock import Clock, Entropy
from protocol.codec import encode
from protocol.envelope import Signed, seal
from protocol.errors import RETRYABLE_ELSEWHERE, RETRYABLE_LATER, Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.grants import Granted, Payer, check_terms
from protocol.ids import ULID_ENTROPY_BYTES, JobId, PeerId, new_ulid, sha256_digest
from protocol.keys import SigningKey
from protocol.limits import PAYLOAD_BYTES_MAX
from protocol.messages import (
    NO_CONSTRAINTS,
    Constraints,
    JobRequest,
    Objective,
    Receipt,
    Task,
)
from protocol.net.errors import NetError
from protocol.net.pool import StreamPool
from protocol.payload import JobInput
from protocol.pricing import Units
from protocol.session import ClientJob

log = structlog.get_logger(__name__)

# With five candidates dead, the market has a problem that a sixth attempt only hides.
ATTEMPTS_MAX = 5
# A dial over a relay takes tens of milliseconds; a node that needs seconds is no use to anyone.
OPEN_WITHIN_S = 5.0
# After a cancel the node owes a receipt at once: what it does not send now, it hands in itself.
RECEIPT_WITHIN_S = 5.0
# Settlements waiting for a coordinator that is away. Nodes hand theirs in too, so none is lost.
SETTLEMENTS_MAX = 10_000
SETTLE_TRIES = 5
# A command that has printed its answer waits this long for its receipt to be handed in.
SETTLED_WITHIN_S = 5.0
# Several hand-ins at once let the ledger commit them as one group.
SETTLERS = 8


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What to run, and what it may cost. `units_expected` guides matching only; `payer` is
    whose budget the job counts against, where the coordinator is in the same process."""

    model: str
    task: Task
    job_input: JobInput
    units_max: Units
    units_expected: Units
    objective: Objective = Objective.BALANCED
    constraints: Constraints = NO_CONSTRAINTS
    deadline_s: float = 120.0
    payer: Payer | None = None


@dataclass(slots=True)
class _Attempts:
    """What earlier attempts at one request left behind."""

    exclude: list[PeerId] = field(default_factory=list)
    receipts: list[Signed[Receipt]] = field(default_factory=list)
    last_failure: JobFailed | None = None


class MarketClient:
    """Buys inference in the name of any key. One per process; `run` must be running."""

    def __init__(self, pool: StreamPool, leaser: Leaser, *, clock: Clock, entropy: Entropy) -> None:
        self._pool = pool
        self._leaser = leaser
        self._clock = clock
        self._entropy = entropy
        self._settlements, self._to_settle = trio.open_memory_channel[Outcome](SETTLEMENTS_MAX)
        self._background: trio.Nursery | None = None
        self._unsettled = 0
        self._settled = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand receipts in and collect those of abandoned jobs, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._background = nursery
            for _ in range(SETTLERS):
                nursery.start_soon(self._settle_forever)
            task_status.started()

    async def wait_settled(self, *, within_s: float = SETTLED_WITHIN_S) -> None:
        """Returns when every receipt is handed in, or the time is over: for a short-lived buyer."""
        with trio.move_on_after(within_s):
            while self._unsettled:
                await self._settled.park()

    @asynccontextmanager
    async def open_job(self, spec: JobSpec, key: SigningKey) -> AsyncIterator[JobStream]:
        """Run a job; enters when its first output has arrived. Leaving early cancels the job.

        Raises JobFailed if no node could be found, or none delivered anything.
        """
        stream = await self._open(spec, key)
        try:
            yield stream
        finally:
            self._leave(stream)

    async def _open(self, spec: JobSpec, key: SigningKey) -> JobStream:
        payload = encode(spec.job_input)
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise JobFailed(
                f"the input has {len(payload)} bytes; up to {PAYLOAD_BYTES_MAX} can go",
                code=Code.INPUT_TOO_LARGE,
            )
        request = self._sign_request(spec, key, payload)
        try:
            return await self._attempt(spec, key, request, payload)
        except JobFailed as failure:
            failure.job_id = request.message.job_id
            raise

    async def _attempt(
        self, spec: JobSpec, key: SigningKey, request: Signed[JobRequest], payload: bytes
    ) -> JobStream:
        """Lease and open, at one node after another, until there is output. Raises JobFailed."""
        deadline = trio.current_time() + spec.deadline_s
        attempts = _Attempts()
        while True:
            started_at = trio.current_time()
            granted = await self._lease(request, attempts, deadline, spec.payer)
            lease_ms = 1000 * (trio.current_time() - started_at)
            try:
                stream = await self._open_at(granted, request, payload, key, deadline)
            except JobFailed as failure:
                # A node that cannot be reached must not be chosen again and again.
                self._leaser.observe(granted.lease, _unopened(failure, started_at))
                self._note_failure(attempts, granted, failure)
                continue
            try:
                await stream.wait_first_output(
                    attempts=len(attempts.exclude) + 1, lease_ms=lease_ms
                )
            except JobFailed as failure:
                self._leave(stream)
                if stream.outcome is not None:
                    attempts.receipts.append(stream.outcome.receipt)
                self._note_failure(attempts, granted, failure)
            except trio.Cancelled:
                self._leave(stream)
                raise
            else:
                return stream

    def _sign_request(self, spec: JobSpec, key: SigningKey, payload: bytes) -> Signed[JobRequest]:
        now_ms = self._clock.now_ms()
        return seal(
            key,
            JobRequest(
                job_id=JobId(new_ulid(now_ms, self._entropy(ULID_ENTROPY_BYTES))),
                client=key.peer_id,
                coordinator=self._leaser.coordinator,
                model=spec.model,
                task=spec.task,
                payload_digest=sha256_digest(payload),
                payload_bytes=len(payload),
                units_max=spec.units_max,
                units_expected=spec.units_expected,
                objective=spec.objective,
                constraints=spec.constraints,
                issued_at_ms=now_ms,
                deadline_at_ms=now_ms + int(1000 * spec.deadline_s),
            ),
        )

    async def _lease(
        self,
        request: Signed[JobRequest],
        attempts: _Attempts,
        deadline: float,
        payer: Payer | None,
    ) -> Granted:
        """Raises JobFailed: what the coordinator says, or what the last node said."""
        if len(attempts.exclude) >= ATTEMPTS_MAX and attempts.last_failure is not None:
            raise attempts.last_failure
        try:
            with trio.fail_at(deadline):
                granted = await self._leaser.lease(
                    request,
                    exclude=tuple(attempts.exclude),
                    receipts=tuple(attempts.receipts),
                    payer=payer,
                )
            check_terms(granted, request)
        except trio.TooSlowError:
            raise JobFailed("no lease before the deadline", code=Code.DEADLINE_EXCEEDED) from None
        except NetError as error:
            raise JobFailed(
                f"the coordinator is gone: {error}", code=Code.COORDINATOR_LOST
            ) from error
        except RemoteProtocolError as error:
            # "Nothing else fits" says less than why the nodes that did fit have failed.
            if attempts.last_failure is not None and error.code is Code.NO_NODE_FITS:
                raise attempts.last_failure from error
            raise JobFailed(
                str(error), code=error.code, retry_after_ms=error.retry_after_ms
            ) from error
        return granted

    async def _open_at(
        self,
        granted: Granted,
        request: Signed[JobRequest],
        payload: bytes,
        key: SigningKey,
        deadline: float,
    ) -> JobStream:
        lease, offer = granted.lease, granted.offer.message
        try:
            channel = await self._pool.open_channel(
                lease.message.node, addresses=offer.addresses, timeout_s=OPEN_WITHIN_S
            )
        except NetError as error:
            raise JobFailed(f"the node cannot be reached: {error}", code=Code.NODE_LOST) from error
        job = ClientJob(request, lease, payload)
        stream = JobStream(job, channel, granted, key=key, clock=self._clock, deadline=deadline)
        try:
            stream.send(job.open())
        except NetError as error:
            channel.close()
            raise JobFailed(f"the node takes no jobs: {error}", code=Code.NODE_LOST) from error
        return stream

    def _note_failure(self, attempts: _Attempts, granted: Granted, failure: JobFailed) -> None:
        """Remember a failed attempt. Raises the failure if no other node can do better."""
        node = granted.lease.message.node
        log.info(
            "attempt_failed",
            job_id=granted.lease.message.job_id,
            node=node,
            code=failure.code,
            attempt=granted.lease.message.attempt,
        )
        if not (failure.is_breach or failure.code in RETRYABLE_ELSEWHERE):
            raise failure
        attempts.exclude.append(node)
        attempts.last_failure = failure

    def _leave(self, stream: JobStream) -> None:
        """Let go of a job: settle what ended, cancel what did not."""
        self._unsettled += 1
        if stream.has_ended:
            self._wrap_up(stream)
        elif self._background is not None:
            self._background.start_soon(self._abandon, stream)

    async def _abandon(self, stream: JobStream) -> None:
        await stream.cancel_and_wait_end(within_s=RECEIPT_WITHIN_S)
        self._wrap_up(stream)

    def _wrap_up(self, stream: JobStream) -> None:
        self._leaser.observe(stream.granted.lease, stream.observation())
        outcome = stream.outcome
        if outcome is None:
            self._note_settled()
        else:
            self._hand_in(stream, outcome)
        stream.close()

    def _hand_in(self, stream: JobStream, outcome: Outcome) -> None:
        """To the node at once, and to the coordinator soon: either alone would do."""
        job_id = outcome.receipt.message.job_id
        try:
            stream.send([(FrameType.JOB_ACCEPTANCE, outcome.acceptance.raw)])
        except NetError:
            log.info("acceptance_not_sent", job_id=job_id)
        try:
            self._settlements.send_nowait(outcome)
        except trio.WouldBlock:
            log.warning("settlements_full", job_id=job_id)
            self._note_settled()

    def _note_settled(self) -> None:
        self._unsettled -= 1
        if not self._unsettled:
            self._settled.unpark_all()

    async def _settle_forever(self) -> None:
        async for outcome in self._to_settle:
            await self._settle(outcome)
            self._note_settled()

    async def _settle(self, outcome: Outcome) -> None:
        job_id = outcome.receipt.message.job_id
        for attempt in range(SETTLE_TRIES):
            try:
                await self._leaser.settle(outcome.receipt, outcome.acceptance)
            except (NetError, RemoteProtocolError) as error:
                if isinstance(error, RemoteProtocolError) and error.code not in RETRYABLE_LATER:
                    log.warning("settlement_refused", job_id=job_id, code=error.code)
                    return
                log.info("settlement_delayed", job_id=job_id, error=str(error))
                await trio.sleep(2.0**attempt)
            else:
                return


def _unopened(failure: JobFailed, started_at: float) -> Observation:
    """What there is to say of a node that was leased and did not take the job."""
    return Observation(
        code=failure.code,
        blame=blame_for(failure.code),
        first_output_ms=None,
        total_ms=1000 * (trio.current_time() - started_at),
        delivered=Units(),
        has_receipt=False,
    )
