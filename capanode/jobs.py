"""Serves jobs: one `ServedJob` per channel takes a leased job from its opening to its receipt.

A job is one task. It listens to its client, while its worker's events come as plain calls
(`_on_event`) and go straight into the channel: a token costs no task switch here. Whatever ends
the job (worker, client, deadline, shutdown) calls `_end`, and the task then frees the seat, signs,
makes the receipt durable and sends it, in that order.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import trio

from capanode.admission import Admission, Ticket
from capanode.engines.base import Completed, EngineEvent, Produced, Started
from capanode.errors import OutboxError
from capanode.metering import Meter, Timing, chunks_of
from capanode.outbox import Outbox, Pending
from capanode.worker.allowance import RunTerms
from protocol.clock import Clock
from protocol.endings import Finish
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.keys import SigningKey
from protocol.limits import CLOCK_SKEW_MAX_MS, KIB, LEASE_OPEN_WITHIN_MS
from protocol.messages import Lease, Receipt
from protocol.net.channels import Channel, serve_channels
from protocol.net.errors import NetError
from protocol.net.transport import Stream
from protocol.node_session import (
    Accepted,
    CancelRequested,
    Countersignature,
    NodeEvent,
    NodeJob,
    Opened,
)
from protocol.payload import derive_seed
from protocol.pricing import Units
from protocol.programs.log import bind_job
from protocol.session import Outgoing

log = structlog.get_logger(__name__)

ROLE = "node"

# A client countersigns within a round trip; its channel is not held open for longer than this.
ACCEPTANCE_WITHIN_S = 5.0
# Output that is held back waits this long for the client to sign for what it has.
SIGN_WITHIN_S = 30.0
# An upload may pause this long in all, and has to be this fast beside that.
UPLOAD_PAUSE_S = 5.0
UPLOAD_BYTES_PER_S_MIN = 128 * KIB
# After the drain's deadline jobs are cut: signing and one durable write need no more than this.
CUT_WITHIN_S = 5.0
ERRORS_REMEMBERED = 20

# What the outside is told of our own failures; the worker's words stay in our log.
_OUR_FAILURES = {
    Code.INTERNAL: "the node failed to run the job",
    Code.WORKER_CRASHED: "the model's process ended; it is being started again",
    Code.WORKER_HUNG: "the model's process stopped answering; it is being started again",
    Code.OUT_OF_MEMORY: "the model's process ran out of memory; it is being started again",
}


@dataclass(frozen=True, slots=True)
class JobEnding:
    """Why a job ended. `code` is None when it ended well, or as its client wished."""

    finish: Finish
    code: Code | None = None
    message: str = ""
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class JobFailure:
    """A job that did not end well, for `capanode status`."""

    at_ms: int
    job_id: str
    code: Code
    message: str


class JobServer:
    """Serves the streams of JOB_PROTOCOL. `on_change` hears when the load changed."""

    def __init__(
        self,
        key: SigningKey,
        admission: Admission,
        outbox: Outbox,
        *,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self.key = key
        self.admission = admission
        self.outbox = outbox
        self.clock = clock
        self.on_change = on_change
        self.failures: deque[JobFailure] = deque(maxlen=ERRORS_REMEMBERED)
        # A dictionary, not a set: a drain cuts jobs in the order in which they came.
        self._live: dict[ServedJob, None] = {}
        self._idle = trio.Event()

    @property
    def live_jobs(self) -> int:
        return len(self._live)

    async def serve(self, stream: Stream) -> None:
        """The transport's handler."""
        await serve_channels(stream, self.serve_channel, role=ROLE)

    async def serve_channel(self, channel: Channel) -> None:
        await ServedJob(self, channel).run()

    async def drain(self, *, within_s: float) -> None:
        """Take no more jobs; let those here finish, then cut what is left, each with a receipt."""
        self.admission.is_draining = True
        self.on_change()
        with trio.move_on_after(within_s):
            await self._wait_idle()
        for job in tuple(self._live):
            job.cut(JobEnding(Finish.FAILED, Code.DRAINING, "this node is shutting down"))
        with trio.move_on_after(CUT_WITHIN_S):
            await self._wait_idle()

    def enter(self, job: "ServedJob") -> None:
        self._live[job] = None

    def leave(self, job: "ServedJob") -> None:
        self._live.pop(job, None)
        if not self._live:
            self._idle.set()

    async def _wait_idle(self) -> None:
        while self._live:
            self._idle = trio.Event()
            await self._idle.wait()


class ServedJob:
    """One channel, so one job. `run` is its life."""

    def __init__(self, server: JobServer, channel: Channel) -> None:
        self._server = server
        self._channel = channel
        self._job = NodeJob(server.key)
        self._opened_at = trio.current_time()
        self._ended_at = self._opened_at
        self._started_at: float | None = None
        self._first_output_at: float | None = None
        self._meter: Meter | None = None
        self._ticket: Ticket | None = None
        self._payload = b""
        self._queue_position = 0
        self._is_accepted = False
        self._is_client_gone = False
        self._ending: JobEnding | None = None
        # How the job ends once the client has signed for what is held back.
        self._outcome: JobEnding | None = None
        self._work = trio.CancelScope()
        self._signing = trio.CancelScope()

    async def run(self) -> None:
        """Serve the job. Raises only what is a bug."""
        self._server.enter(self)
        durable: Pending | None = None
        try:
            try:
                await self._serve()
            finally:
                receipt = self._leave()
                if receipt is not None:
                    durable = self._server.outbox.add(receipt)
            if receipt is not None and receipt.message.amount_nano and durable is not None:
                await self._wait_durable(durable)
            self._send_end(receipt)
        finally:
            self._server.leave(self)
        if receipt is not None and not self._is_client_gone:
            await self._wait_acceptance()

    def cut(self, ending: JobEnding) -> None:
        """End the job from outside."""
        self._end(ending)

    # From opening to ending.

    async def _serve(self) -> None:
        """Until something has called `_end`, or the node is stopped for good."""
        try:
            with self._work:
                await self._wait_payload()
                self._enter_queue()
                await self._listen()
        except RemoteProtocolError as error:
            self._end_by_client(error)
        except NetError as error:
            self._lose_client(error)
        except trio.Cancelled:
            self._end(JobEnding(Finish.FAILED, Code.DRAINING, "this node is shutting down"))
            raise
        if self._ending is None:
            self._end(JobEnding(Finish.FAILED, Code.DEADLINE_EXCEEDED, "the deadline has passed"))

    async def _wait_payload(self) -> None:
        """Until an admitted job is here as a whole. Raises RemoteProtocolError, NetError."""
        arrived_bytes = 0
        with trio.move_on_after(LEASE_OPEN_WITHIN_MS / 1000) as scope:
            last_at = scope.deadline
            while True:
                frame = await self._channel.receive()
                event = self._job.receive(frame.type, frame.body)
                if self._meter is None:
                    self._admit(is_whole=isinstance(event, Opened))
                if isinstance(event, Opened):
                    self._payload = event.payload
                    return
                if isinstance(event, CancelRequested):
                    raise RemoteProtocolError("the client cancelled", code=Code.CANCELLED)
                arrived_bytes += len(frame.body)
                due_s = UPLOAD_PAUSE_S + arrived_bytes / UPLOAD_BYTES_PER_S_MIN
                scope.deadline = min(last_at, self._opened_at + due_s)
        raise RemoteProtocolError("the payload did not arrive", code=Code.DEADLINE_EXCEEDED)

    def _admit(self, *, is_whole: bool) -> None:
        """Judge the lease as soon as it is known. Raises RemoteProtocolError."""
        terms = self._job.terms
        if terms is None:
            raise RemoteProtocolError("a job starts with JOB_OPEN", code=Code.UNEXPECTED_FRAME)
        request, lease = terms.request, terms.lease
        # This task is this job's alone, so that all it logs from here on may carry the id.
        bind_job(request.message.job_id)
        now_ms = self._server.clock.now_ms()
        self._server.admission.check_evidence(request, lease, now_ms=now_ms)
        # From here on the lease is ours, so that every ending owes a receipt, if only of nothing.
        self._meter = Meter(lease, self._job)
        self._ticket = self._server.admission.admit(
            request, lease, is_whole=is_whole, now_ms=now_ms
        )
        self._work.deadline = _deadline(lease.message, now_ms)

    def _enter_queue(self) -> None:
        assert self._ticket is not None
        self._server.admission.take_seat(self._ticket)
        seats = self._ticket.model.seats
        self._queue_position = seats.enter(self._ticket.lease_id, self._start)
        self._server.on_change()

    def _start(self) -> None:
        """A slot is ours: hand the job to the worker."""
        assert self._ticket is not None
        self._started_at = trio.current_time()
        payload, self._payload = self._payload, b""
        try:
            self._ticket.model.worker.submit(
                self._ticket.lease_id, payload, self._on_event, terms=self._run_terms()
            )
        except RemoteProtocolError as error:
            self._end_with(error)

    def _run_terms(self) -> RunTerms:
        terms = self._job.terms
        assert terms is not None
        lease = terms.lease.message
        return RunTerms(
            lease.job_id,
            lease.client,
            lease.units_max.output_tokens,
            seed=derive_seed(terms.request.digest),
        )

    async def _listen(self) -> None:
        """What the client says while the job waits or runs. Raises as `_receive`."""
        with self._signing:
            while True:
                event = await self._receive()
                if isinstance(event, CancelRequested):
                    self._end(JobEnding(Finish.CANCELLED))
                    return
                if isinstance(event, Countersignature):
                    self._send_all(event.frames)
        if self._signing.cancelled_caught:
            message = f"the client signed for no output for {SIGN_WITHIN_S:g} s"
            self._end(JobEnding(Finish.CANCELLED, Code.UNSIGNED, message))

    async def _receive(self) -> NodeEvent | None:
        """Raises RemoteProtocolError, NetError."""
        frame = await self._channel.receive()
        return self._job.receive(frame.type, frame.body)

    # What the worker says. Called from its reader: quick, and never raising.

    def _on_event(self, event: EngineEvent) -> None:
        if self._ending is not None or self._outcome is not None:
            return
        try:
            if isinstance(event, Produced):
                self._pass_on(event)
            elif isinstance(event, Started):
                self._accept(event)
            elif isinstance(event, Completed):
                self._close_counts(event)
                self._finish(JobEnding(Finish(event.reason)))
            else:
                self._end(JobEnding(Finish.FAILED, event.code, event.message))
        except RemoteProtocolError as error:
            self._end_with(error)
        except NetError as error:
            self._lose_client(error)

    def _pass_on(self, event: Produced) -> None:
        assert self._meter is not None
        assert self._ticket is not None
        if self._first_output_at is None:
            self._first_output_at = trio.current_time()
        for chunk in chunks_of(event):
            if not self._meter.has_room_for(chunk):
                self._finish(JobEnding(Finish.LENGTH))
                return
            self._send_all(self._job.output(chunk))
        self._ticket.model.output_tokens_done += len(event.token_ids)

    def _accept(self, event: Started) -> None:
        assert self._meter is not None
        assert self._ticket is not None
        info = self._ticket.model.worker.info
        self._meter.accept(event, profile=info.profile if info is not None else "")
        self._is_accepted = True
        accepted = self._job.accepted(
            event.input_units,
            queue_position=self._queue_position,
            now_ms=self._server.clock.now_ms(),
        )
        self._send_all([accepted])

    def _close_counts(self, event: Completed) -> None:
        assert self._meter is not None
        self._meter.end(event)
        assert self._ticket is not None
        if event.units != self._meter.produced:
            log.error(
                "worker_miscounts",
                lease_id=self._ticket.lease_id,
                worker=str(event.units),
                streamed=str(self._meter.produced),
            )

    def _send_all(self, frames: Sequence[Outgoing]) -> None:
        """Send, and note whether output now waits for the client's signature."""
        for frame in frames:
            self._channel.send_nowait(*frame)
        if self._job.terms is None or not self._job.window.is_blocked:
            self._signing.deadline = math.inf
            if self._outcome is not None:
                self._end(self._outcome)
        elif self._signing.deadline == math.inf or frames:
            self._signing.deadline = trio.current_time() + SIGN_WITHIN_S

    def _finish(self, ending: JobEnding) -> None:
        """The answer is complete: the slot is free, and the job ends when all of it is sent."""
        if not self._job.window.is_blocked:
            self._end(ending)
            return
        self._outcome = ending
        self._ended_at = trio.current_time()
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._free(ticket)

    # Endings.

    def _end(self, ending: JobEnding) -> None:
        """The first reason counts. A job that nothing was done for is refused, and free."""
        if self._ending is not None:
            return
        if not self._is_accepted:
            code = ending.code or (Code.CANCELLED if ending.finish is Finish.CANCELLED else None)
            ending = JobEnding(Finish.REFUSED, code, ending.message, ending.retry_after_ms)
        self._ending = ending
        self._ended_at = trio.current_time()
        self._work.cancel()

    def _end_by_client(self, error: RemoteProtocolError) -> None:
        """The client broke the protocol, or sent an ERROR: once the job runs that is a cancel by
        another name, and not free."""
        finish = Finish.CANCELLED if self._is_accepted else Finish.FAILED
        self._end(JobEnding(finish, error.code, str(error), error.retry_after_ms))

    def _end_with(self, error: RemoteProtocolError) -> None:
        self._end(JobEnding(Finish.FAILED, error.code, str(error), error.retry_after_ms))

    def _lose_client(self, error: NetError) -> None:
        """Nobody listens any more: as if cancelled, with nobody to tell."""
        self._is_client_gone = True
        self._end(JobEnding(Finish.CANCELLED, message=str(error)))

    def _leave(self) -> Signed[Receipt] | None:
        """Free what the job holds, and sign for what it was given; None if no lease was ours."""
        # Without an ending there is a bug on its way up: the client learns that much.
        self._end(JobEnding(Finish.FAILED, Code.INTERNAL, "the job ended unexpectedly"))
        assert self._ending is not None
        ending, self._payload = self._ending, b""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._free(ticket)
        self._record(ending)
        if self._meter is None:
            return None
        return self._meter.sign(
            self._server.key,
            ending.finish,
            code=ending.code or "",
            timing=self._timing(),
            now_ms=self._server.clock.now_ms(),
        )

    def _free(self, ticket: Ticket) -> None:
        """Give slot and seat back, now: the next job starts in here."""
        ticket.model.worker.cancel(ticket.lease_id)
        ran_ms = None
        if self._started_at is not None:
            ran_ms = 1000 * (self._ended_at - self._started_at)
            ticket.model.jobs_done += 1
        self._server.admission.release(ticket, ran_ms=ran_ms)
        self._server.on_change()

    def _timing(self) -> Timing:
        """What never came is as late as the end."""

        def since_open_ms(at: float | None) -> int:
            return round(1000 * ((self._ended_at if at is None else at) - self._opened_at))

        return Timing(
            queued_ms=since_open_ms(self._started_at),
            first_output_ms=since_open_ms(self._first_output_at),
            total_ms=since_open_ms(self._ended_at),
        )

    @property
    def _job_id(self) -> str:
        terms = self._job.terms
        return terms.request.message.job_id if terms is not None else ""

    def _record(self, ending: JobEnding) -> None:
        """One line per job in the log, and failures for `capanode status`."""
        job_id = self._job_id
        units = self._meter.units if self._meter is not None else Units()
        log.info(
            "job_ended",
            job_id=job_id,
            finish=ending.finish.value,
            code=ending.code,
            reason=ending.message,
            input_tokens=units.input_tokens,
            output_tokens=units.output_tokens,
            total_ms=self._timing().total_ms,
        )
        if ending.code is not None and ending.code is not Code.CANCELLED:
            now_ms = self._server.clock.now_ms()
            self._server.failures.append(JobFailure(now_ms, job_id, ending.code, ending.message))

    async def _wait_durable(self, durable: Pending) -> None:
        # Shielded: a receipt that is signed shall not depend on how the node stops.
        with trio.move_on_after(CUT_WITHIN_S) as scope:
            scope.shield = True
            try:
                await durable.wait()
            except OutboxError as error:
                # The work is done; the client can still hand the receipt in for us.
                log.error("receipt_not_durable", error=str(error))

    def _send_end(self, receipt: Signed[Receipt] | None) -> None:
        """The last word, if there is anybody to hear it."""
        ending = self._ending
        assert ending is not None
        if self._is_client_gone:
            return
        try:
            # A client that cancelled wants the receipt, not an error.
            if receipt is not None and ending.code in (None, Code.CANCELLED):
                self._channel.send_nowait(*self._job.receipt(receipt))
            else:
                code = ending.code or Code.INTERNAL
                message = _OUR_FAILURES.get(code, ending.message)
                error = self._job.error(
                    code, message, receipt=receipt, retry_after_ms=ending.retry_after_ms
                )
                self._channel.send_nowait(*error)
        except NetError as error:
            self._is_client_gone = True
            log.info("receipt_not_sent", error=str(error))

    async def _wait_acceptance(self) -> None:
        """The client's countersignature goes into the outbox beside the receipt."""
        with trio.move_on_after(ACCEPTANCE_WITHIN_S):
            try:
                while True:
                    event = await self._receive()
                    if isinstance(event, Accepted):
                        self._server.outbox.attach_nowait(event.acceptance)
                        return
            except NetError:
                return
            except RemoteProtocolError as error:
                log.info("acceptance_refused", peer=self._channel.peer, code=error.code)


def _deadline(lease: Lease, now_ms: int) -> float:
    """In trio's time, which no one can set back. Both stamps are the coordinator's: how long a job
    may take does not depend on whose clock is right. Opening late buys nothing, though: the hold
    does not wait for it, and work beyond would be for free."""
    whole_ms = lease.deadline_at_ms - lease.issued_at_ms
    left_ms = lease.deadline_at_ms + CLOCK_SKEW_MAX_MS - now_ms
    return trio.current_time() + min(whole_ms, left_ms) / 1000
