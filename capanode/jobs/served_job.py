"""One leased job, from its opening to its receipt.

A job is one task. It listens to its client, while its worker's events come as plain calls
(`_on_event`) and go straight into the channel: a token costs no task switch here. Whatever ends
the job (worker, client, deadline, shutdown) calls `end`, and the task then frees the seat, signs,
makes the receipt durable and sends it, in that order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
import trio

from capanode.admission import Admission, Ticket
from capanode.engines.base import Completed, EngineEvent, Produced, Started
from capanode.jobs.closing import send_last_word, wait_acceptance, wait_durable
from capanode.jobs.ending import (
    DRAINED,
    LATE,
    SIGN_WITHIN_S,
    UNEXPECTED,
    UNSIGNED,
    JobEnding,
    JobFailure,
)
from capanode.jobs.times import JobTimes, work_deadline
from capanode.jobs.upload import receive_payload
from capanode.metering import Meter, chunks_of
from capanode.outbox import Outbox, Pending
from capanode.worker.allowance import RunTerms
from protocol.clock import Clock
from protocol.endings import Finish
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.job_frames import Outgoing
from protocol.keys import SigningKey
from protocol.messages import Receipt
from protocol.net.channels import Channel
from protocol.net.errors import NetError
from protocol.node_session import CancelRequested, Countersignature, NodeJob
from protocol.payload import derive_seed
from protocol.pricing import Units
from protocol.programs.log import bind_job

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JobService:
    """What the jobs of a node share."""

    key: SigningKey
    admission: Admission
    outbox: Outbox
    clock: Clock
    on_change: Callable[[], None]
    on_failure: Callable[[JobFailure], None]


class ServedJob:
    """One channel, so one job: `run` it, then `wait_acceptance`."""

    def __init__(self, service: JobService, channel: Channel) -> None:
        self._service = service
        self._channel = channel
        self._job = NodeJob(service.key)
        self._times = JobTimes()
        self._meter: Meter | None = None
        self._ticket: Ticket | None = None
        self._payload = b""
        self._queue_position = 0
        self._is_accepted = False
        self._is_client_gone = False
        self._owes_acceptance = False
        self._ending: JobEnding | None = None
        # How the job ends once the client has signed for what is held back.
        self._outcome: JobEnding | None = None
        # One scope for both deadlines: each costs as much as a check of a signature.
        self._work = trio.CancelScope()
        self._work_until = self._signed_until = math.inf

    async def run(self) -> None:
        """Serve the job, up to its last word to the client. Raises only what is a bug."""
        durable: Pending | None = None
        try:
            await self._serve()
        finally:
            receipt = self._leave()
            if receipt is not None:
                durable = self._service.outbox.add(receipt)
        if receipt is not None and receipt.message.amount_nano and durable is not None:
            await wait_durable(durable)
        self._say_last_word(receipt)

    def end(self, ending: JobEnding) -> None:
        """The first reason counts."""
        if self._ending is not None:
            return
        self._ending = ending if self._is_accepted else ending.before_acceptance()
        self._times.note_end()
        self._work.cancel()

    async def wait_acceptance(self) -> None:
        """The client signs for the receipt, if it got one."""
        if self._owes_acceptance:
            await wait_acceptance(self._channel, self._job, self._service.outbox)

    # What the client says.

    async def _serve(self) -> None:
        """Until something has called `end`, or the node is stopped for good."""
        try:
            with self._work:
                self._payload = await receive_payload(
                    self._channel, self._job, on_frame=self._take_frame
                )
                self._enter_queue()
                await self._listen()
        except RemoteProtocolError as error:
            # The client broke the protocol, or sent an ERROR: once the job runs that is a cancel by
            # another name, and not free.
            finish = Finish.CANCELLED if self._is_accepted else Finish.FAILED
            self.end(JobEnding.of_error(error, finish))
        except NetError as error:
            self._lose_client(error)
        except trio.Cancelled:
            self.end(DRAINED)
            raise
        if self._ending is None:
            self.end(LATE if self._work_until <= self._signed_until else UNSIGNED)

    def _take_frame(self, is_whole: bool, due_at: float) -> None:
        """A part of the payload came. Raises RemoteProtocolError."""
        if self._meter is None:
            self._admit(is_whole)
        if self._ticket is not None:
            self._ticket.upload_due_at = due_at

    def _admit(self, is_whole: bool) -> None:
        """Judge the lease as soon as it is known. Raises RemoteProtocolError."""
        terms = self._job.terms
        if terms is None:
            raise RemoteProtocolError("a job starts with JOB_OPEN", code=Code.UNEXPECTED_FRAME)
        request, lease = terms.request, terms.lease
        # This task is this job's alone, so that all it logs from here on may carry the id.
        bind_job(request.message.job_id)
        now_ms = self._service.clock.now_ms()
        admission = self._service.admission
        admission.check_evidence(request, lease, now_ms=now_ms)
        # From here on the lease is ours, so that every ending owes a receipt, if only of nothing.
        self._meter = Meter(lease, self._job)
        upload_bytes = 0 if is_whole else terms.payload.payload_bytes
        self._ticket = admission.admit(request, lease, upload_bytes=upload_bytes, now_ms=now_ms)
        self._ticket.evict = self._give_way
        self._work.deadline = self._work_until = work_deadline(lease.message, now_ms)
        if not is_whole:
            self._service.on_change()

    def _give_way(self) -> None:
        message = "the payload came slowly, and other clients need the room"
        self.end(JobEnding.of_error(RemoteProtocolError(message, code=Code.BUSY)))

    def _give_way_to_live(self) -> None:
        """A job that is not of a batch waits for this one's slot. What was delivered is paid, and a
        text goes on later, as its purchase's next part."""
        message = "a batch job gives way to one that is waited for"
        self.end(JobEnding.of_error(RemoteProtocolError(message, code=Code.BUSY)))

    async def _listen(self) -> None:
        """While the job waits or runs. Raises RemoteProtocolError, NetError."""
        while True:
            frame = await self._channel.receive()
            event = self._job.receive(frame.type, frame.body)
            if isinstance(event, CancelRequested):
                self.end(JobEnding(Finish.CANCELLED))
                return
            if isinstance(event, Countersignature):
                self._send_all(event.frames)

    def _lose_client(self, error: NetError) -> None:
        """As if cancelled, with no client to tell."""
        self._is_client_gone = True
        self.end(JobEnding(Finish.CANCELLED, message=str(error)))

    # The worker: its queue, and its events. Those are calls from its reader: quick, never raising.

    def _enter_queue(self) -> None:
        assert self._ticket is not None
        self._service.admission.take_seat(self._ticket)
        seats = self._ticket.model.seats
        terms = self._job.terms
        assert terms is not None
        self._queue_position = seats.enter(
            self._ticket.lease_id,
            self._start,
            give_way=self._give_way_to_live if self._ticket.is_batch else None,
        )
        self._service.on_change()

    def _start(self) -> None:
        """A slot is ours: hand the job to the worker."""
        assert self._ticket is not None
        self._times.note_start()
        payload, self._payload = self._payload, b""
        try:
            self._ticket.model.worker.submit(
                self._ticket.lease_id, payload, self._on_event, terms=self._run_terms()
            )
        except RemoteProtocolError as error:
            self.end(JobEnding.of_error(error))

    def _run_terms(self) -> RunTerms:
        terms = self._job.terms
        assert terms is not None
        lease = terms.lease.message
        return RunTerms(
            lease.job_id,
            lease.client,
            terms.payload.units_max.output_tokens,
            seed=derive_seed(terms.request.digest),
        )

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
                self.end(JobEnding(Finish.FAILED, event.code, event.message))
        except RemoteProtocolError as error:
            self.end(JobEnding.of_error(error))
        except NetError as error:
            self._lose_client(error)

    def _accept(self, event: Started) -> None:
        assert self._meter is not None
        assert self._ticket is not None
        info = self._ticket.model.worker.info
        self._meter.accept(event, profile=info.profile if info is not None else "")
        self._is_accepted = True
        accepted = self._job.accepted(
            self._meter.units,
            queue_position=self._queue_position,
            now_ms=self._service.clock.now_ms(),
        )
        self._send_all([accepted])

    def _pass_on(self, event: Produced) -> None:
        assert self._meter is not None
        assert self._ticket is not None
        self._times.note_output()
        for chunk in chunks_of(event):
            if not self._meter.has_room_for(chunk):
                self._finish(JobEnding(Finish.LENGTH))
                return
            self._send_all(self._job.output(chunk))
        self._ticket.model.output_tokens_done += len(event.token_ids)

    def _close_counts(self, event: Completed) -> None:
        assert self._meter is not None
        self._meter.end(event)
        assert self._ticket is not None
        made = self._meter.produced
        if replace(event.units, cached_tokens=made.cached_tokens) != made:
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
            self._wait_signature_until(math.inf)
            if self._outcome is not None:
                self.end(self._outcome)
        elif self._signed_until == math.inf or frames:
            self._wait_signature_until(trio.current_time() + SIGN_WITHIN_S)

    def _wait_signature_until(self, deadline: float) -> None:
        if deadline != self._signed_until:
            self._signed_until = deadline
            self._work.deadline = min(self._work_until, deadline)

    def _finish(self, ending: JobEnding) -> None:
        """The answer is complete: the slot is free, and the job ends when all of it is sent."""
        if not self._job.window.is_blocked:
            self.end(ending)
            return
        self._outcome = ending
        self._times.note_end()
        self._free()

    # The end.

    def _leave(self) -> Signed[Receipt] | None:
        """Free what the job holds, and sign for what it was given; None if no lease was ours."""
        # Without an ending there is a bug on its way up.
        self.end(UNEXPECTED)
        assert self._ending is not None
        ending, self._payload = self._ending, b""
        self._free()
        self._record(ending)
        if self._meter is None:
            return None
        return self._meter.sign(
            self._service.key,
            ending.finish,
            code=ending.code or "",
            timing=self._times.timing(),
            now_ms=self._service.clock.now_ms(),
        )

    def _free(self) -> None:
        """Give slot and seat back, once and now: the next job starts in here."""
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            return
        ticket.model.worker.cancel(ticket.lease_id)
        ran_ms = self._times.ran_ms
        if ran_ms is not None:
            ticket.model.jobs_done += 1
        self._service.admission.release(ticket, ran_ms=ran_ms)
        self._service.on_change()

    def _record(self, ending: JobEnding) -> None:
        """One line per job in the log, and failures for `capanode status`."""
        terms = self._job.terms
        job_id = terms.request.message.job_id if terms is not None else ""
        units = self._meter.units if self._meter is not None else Units()
        log.info(
            # Without a lease of ours anyone can cause this line (`protocol.programs.log_limits`).
            "job_ended" if self._meter is not None else "job_turned_away",
            job_id=job_id,
            finish=ending.finish.value,
            code=ending.code,
            reason=ending.message,
            input_tokens=units.input_tokens,
            output_tokens=units.output_tokens,
            total_ms=self._times.timing().total_ms,
        )
        if ending.code is not None and ending.is_failure:
            now_ms = self._service.clock.now_ms()
            self._service.on_failure(JobFailure(now_ms, job_id, ending.code, ending.message))

    def _say_last_word(self, receipt: Signed[Receipt] | None) -> None:
        assert self._ending is not None
        if self._is_client_gone:
            return
        is_heard = send_last_word(self._channel, self._job, self._ending, receipt)
        self._owes_acceptance = is_heard and receipt is not None
