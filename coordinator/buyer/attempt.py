"""One attempt at one job, from the opened channel to the countersigned receipt.

An `Attempt` counts what arrives through `protocol.client_session`, turns every way of ending into
either an `AttemptResult` or a `JobFailed`, and never waits past the deadline. What follows a
failure is decided in `purchase`.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, replace

import trio

from coordinator.buyer.errors import JobFailed
from protocol.blame import Observation, blame_for, may_node_say
from protocol.client_session import Admitted, ClientEvent, ClientJob, Ended, Refused, WindowReached
from protocol.clock import Clock
from protocol.countersigning import Delivery
from protocol.endings import Finish
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import Frame
from protocol.grants import Granted
from protocol.ids import Digest, JobId, PeerId
from protocol.job_frames import Outgoing
from protocol.messages import Acceptance, Receipt
from protocol.net.errors import NetError
from protocol.net.pool import Channel
from protocol.payload import Chunk
from protocol.pricing import PriceSheet, Units
from protocol.receipts import charge_nano


@dataclass(frozen=True, slots=True)
class AttemptTerms:
    """Where an attempt runs and under which terms; known from its first output on."""

    job_id: JobId
    node: PeerId
    attempts: int
    model_digest: Digest
    price: PriceSheet
    ceiling_nano: int
    input_units: Units
    queue_position: int
    lease_ms: float
    match_us: int


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """How an attempt ended, with the node's signed receipt as the evidence. Where counts differ,
    `units` and `amount_nano` are what we counted, which is the most that we are charged."""

    finish: Finish
    units: Units
    amount_nano: int
    receipt: Signed[Receipt]
    acceptance: Signed[Acceptance]


# A node's word, which ends up in the client's `Retry-After`.
RETRY_AFTER_MAX_MS = 60_000


class Attempt:
    """One lease of a job at one node. Iterate over it for the chunks, then read `result`.

    `started_at` and `deadline` are trio times; the job is abandoned at the deadline.
    """

    def __init__(
        self,
        job: ClientJob,
        channel: Channel,
        granted: Granted,
        *,
        clock: Clock,
        deadline: float,
    ) -> None:
        self._job = job
        self._channel = channel
        self._granted = granted
        self._clock = clock
        self._deadline = deadline
        self._started_at = trio.current_time()
        self._first_output_at: float | None = None
        self._held_back: Chunk | None = None
        self._accepted = Admitted(Units(), 0)
        self._failure: JobFailed | None = None
        self._is_given_up = False
        self.result: AttemptResult | None = None
        self.terms: AttemptTerms | None = None

    @property
    def granted(self) -> Granted:
        return self._granted

    @property
    def has_ended(self) -> bool:
        """Whether the node has nothing more to say; of one that fell silent we still want a
        receipt."""
        if self.result is not None:
            return True
        return self._failure is not None and not self._is_given_up

    def send(self, frames: list[Outgoing]) -> None:
        for frame_type, body in frames:
            self._channel.send_nowait(frame_type, body)

    def __aiter__(self) -> "Attempt":
        return self

    async def __anext__(self) -> Chunk:
        """The next piece of the answer. Raises JobFailed if the stream is cut."""
        if self._held_back is not None:
            chunk, self._held_back = self._held_back, None
            return chunk
        if self._failure is not None:
            raise self._failure
        if self.result is not None:
            raise StopAsyncIteration
        event = await self._next_output()
        if event is None:
            raise StopAsyncIteration
        return event

    async def wait_first_output(self, *, attempts: int, lease_ms: float) -> None:
        """Returns when there is something to show: a first chunk, or the end of an answer without
        one. Raises JobFailed; then nothing was delivered and another node may be tried."""
        self._held_back = await self._next_output()
        lease = self._granted.lease.message
        self.terms = AttemptTerms(
            job_id=lease.job_id,
            node=lease.node,
            attempts=attempts,
            model_digest=lease.model_digest,
            price=lease.price,
            ceiling_nano=lease.ceiling_nano,
            input_units=self._accepted.input_units,
            queue_position=self._accepted.queue_position,
            lease_ms=lease_ms,
            match_us=self._granted.match_us,
        )

    async def cancel_and_wait_end(self, *, within_s: float) -> None:
        """Free the node's slot at once, then collect the receipt for what was delivered."""
        self._is_given_up = True
        try:
            self.send(self._job.cancel())
            with trio.move_on_after(within_s):
                while self.result is None:
                    await self._receive()
        except (NetError, JobFailed):
            pass  # The node hands its receipt in by itself, or the hold expires.

    def close(self) -> None:
        self._channel.close()

    def delivery(self) -> Signed[Delivery]:
        """Our word on an attempt that ended without a receipt."""
        code = self._failure.code if self._failure is not None else Code.CANCELLED
        return self._job.delivery(code, now_ms=self._clock.now_ms())

    def observation(self) -> Observation:
        """How the node did, by our own clock."""
        first_ms = None
        if self._first_output_at is not None:
            first_ms = 1000 * (self._first_output_at - self._started_at)
        code = self._failure.code if self._failure is not None else None
        return Observation(
            code=code,
            blame=blame_for(code) if code is not None else None,
            first_output_ms=first_ms,
            total_ms=1000 * (trio.current_time() - self._started_at),
            delivered=self._job.units if self.result is not None else self._job.units_owed,
            has_receipt=self.result is not None,
            retry_after_ms=self._failure.retry_after_ms if self._failure is not None else None,
        )

    async def _next_output(self) -> Chunk | None:
        """The next chunk, or None at a clean end. Tokens before the first text come with it: until
        there is something to show, another node may be tried."""
        silent: list[int] = []
        while True:
            event = await self._receive()
            if isinstance(event, Chunk):
                if self._first_output_at is None and not (event.text or event.data):
                    silent.extend(event.token_ids)
                    continue
                if self._first_output_at is None:
                    self._first_output_at = trio.current_time()
                if silent:
                    event = replace(event, token_ids=(*silent, *event.token_ids))
                return event
            if isinstance(event, Ended):
                return Chunk(tuple(silent)) if silent else None

    async def _receive(self) -> ClientEvent:
        """One event from the node. Raises JobFailed, and remembers it."""
        frame = await self._receive_frame()
        try:
            event = self._job.receive(frame.type, frame.body)
        except RemoteProtocolError as error:
            raise self._fail(
                f"the node broke the protocol: {error}", error.code, is_breach=True
            ) from error
        if isinstance(event, Admitted):
            self._accepted = event
        elif isinstance(event, WindowReached):
            self._sign_window(event)
        elif isinstance(event, Ended):
            self._countersign(event)
        elif isinstance(event, Refused):
            if event.ended is not None:
                self._countersign(event.ended)
            # We sign whatever there is to sign; after output a slow reader of ours may have waited.
            is_false = event.code is Code.UNSIGNED and self._first_output_at is None
            if is_false or not may_node_say(event.code):
                reason = f"the node ended the job by {event.code}, which is not its to say"
                raise self._fail(reason, Code.INTERNAL, is_breach=True)
            raise self._fail(event.message, event.code, event.retry_after_ms)
        return event

    async def _receive_frame(self) -> Frame:
        silent_until = self._silent_until()
        try:
            with trio.fail_at(min(self._deadline, silent_until)):
                return await self._channel.receive()
        except trio.TooSlowError:
            if silent_until < self._deadline:
                self._is_given_up = True
                raise self._fail("the node is silent for too long", Code.NODE_LOST) from None
            raise self._fail("the deadline has passed", Code.DEADLINE_EXCEEDED) from None
        except NetError as error:
            raise self._fail(f"the node is gone: {error}", Code.NODE_LOST) from error
        except RemoteProtocolError as error:
            raise self._fail(str(error), error.code, error.retry_after_ms) from error

    def _silent_until(self) -> float:
        """When to give the node up. A gap counts from when we ask for more: a slow reader of ours
        is not the node's fault."""
        if self._is_given_up:
            return math.inf
        if self._first_output_at is None:
            return self._started_at + self._granted.first_output_within_ms / 1_000
        return trio.current_time() + self._granted.gap_within_ms / 1_000

    def _fail(
        self,
        message: str,
        code: Code,
        retry_after_ms: int | None = None,
        *,
        is_breach: bool = False,
    ) -> JobFailed:
        self._failure = JobFailed(
            message,
            code=code,
            retry_after_ms=None
            if retry_after_ms is None
            else min(max(retry_after_ms, 0), RETRY_AFTER_MAX_MS),
            delivered=self._first_output_at is not None,
            is_breach=is_breach,
        )
        self._failure.job_id = self._granted.lease.message.job_id
        return self._failure

    def _sign_window(self, reached: WindowReached) -> None:
        # What a node has sent before it went is still to be received.
        with suppress(NetError):
            self.send(list(reached.frames))

    def _countersign(self, ended: Ended) -> None:
        acceptance = self._job.acceptance(ended, now_ms=self._clock.now_ms())
        billed, counted = ended.receipt.message, acceptance.message
        units, amount_nano = billed.units, billed.amount_nano
        if not counted.agrees:
            price = self._granted.lease.message.price
            units = counted.units
            amount_nano = min(amount_nano, charge_nano(price, units, billed.finish))
        self.result = AttemptResult(billed.finish, units, amount_nano, ended.receipt, acceptance)
