"""One attempt at one job, from the opened channel to the countersigned receipt.

An `Attempt` counts what arrives through `protocol.client_session`, turns every way of ending into
either an `AttemptResult` or a `JobFailed`, and never waits past the deadline. What follows a
failure is decided in `purchase`.

Output is passed on up to the last token that shows a text. What came after it waits for the next
one: another node, which is given the tokens, sends text without tokens of its own once more.
"""

import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace

import trio

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.result import AttemptResult, PurchasePart
from protocol.blame import Observation, blame_for, may_node_say
from protocol.client_session import Admitted, ClientEvent, ClientJob, Ended, Refused, WindowReached
from protocol.clock import Clock
from protocol.countersigning import Delivery
from protocol.endings import FINISH_RULES, Finish
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import Frame
from protocol.grants import Granted
from protocol.ids import Digest, JobId, PeerId
from protocol.job_frames import Outgoing
from protocol.net.errors import NetError, NetTimeout
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
    # Words of `protocol.features`: what the model can do at this node.
    features: tuple[str, ...] = ()


# A node's word, which ends up in the client's `Retry-After`.
RETRY_AFTER_MAX_MS = 60_000
# So many frames that have arrived are taken without a pause: then other tasks have their turn. A
# wait costs 70 µs of CPU, and the last frames of an answer come together.
_FRAMES_IN_A_ROW = 16


class Attempt:
    """One lease of a job at one node. Iterate over it for the chunks, then read `result`.

    `deadline` is a trio time; the job is abandoned then. An answer that `is_whole` is passed on
    when all of it is there. `needs_state` is a job that goes on from rows that a node has kept, and
    the only one for which a node may say that it does not have them.
    """

    def __init__(
        self,
        job: ClientJob,
        channel: Channel,
        granted: Granted,
        *,
        clock: Clock,
        deadline: float,
        is_whole: bool = False,
        needs_state: bool = False,
    ) -> None:
        self._job = job
        self._channel = channel
        self._granted = granted
        self._clock = clock
        self._deadline = deadline
        self._started_at = trio.current_time()
        self._first_output_at: float | None = None
        self._is_whole = is_whole
        self._frames_in_a_row = 0
        self._needs_state = needs_state
        self._ready: deque[Chunk] = deque()
        self._tokens_used = 0
        # What waits for a text.
        self._pending: list[Chunk] = []
        self._accepted = Admitted(Units(), 0)
        self._failure: JobFailed | None = None
        self._is_given_up = False
        self._is_late = False
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
        if self._ready:
            return self._ready.popleft()
        if self._failure is not None:
            raise self._failure
        if self.result is not None:
            raise StopAsyncIteration
        await self._receive_output()
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.popleft()

    async def wait_first_output(self, *, attempts: int, lease_ms: float) -> None:
        """Returns when there is something to show: a first chunk, or the end of an answer without
        one. Raises JobFailed; then nothing was delivered and another node may be tried."""
        await self._receive_output()
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
            features=_features_of(self._granted),
        )

    @property
    def input_units(self) -> Units:
        """How the node counts the input; nothing before it has said so."""
        return self._accepted.input_units

    @property
    def has_output(self) -> bool:
        """Whether it has delivered anything that counts."""
        return self._first_output_at is not None or self._job.units.output_tokens > 0

    def take_pending(self, *, is_last: bool = False) -> list[Chunk]:
        """After a failure: the counted tokens that wait for a text, with what belongs to them.
        Another node begins after them; if nothing follows, what has no token comes, too. Of a node
        that broke the protocol it is not taken."""
        if self._failure is not None and self._failure.is_breach:
            self._pending.clear()
        while not is_last and self._pending and not self._pending[-1].token_ids:
            self._pending.pop()
        self._release()
        taken = list(self._ready)
        self._ready.clear()
        return taken

    def part(self) -> PurchasePart:
        """What it delivered, and the most that we are charged for it."""
        code = self._failure.code if self._failure is not None else None
        if self.result is not None:
            return PurchasePart.of(self.result, tokens_used=self._tokens_used, code=code)
        lease, owed = self._granted.lease.message, self._job.units_owed
        # A cancelled job costs the most that these units may.
        amount_nano = charge_nano(lease.price, owed, Finish.CANCELLED)
        return PurchasePart(lease.node, owed, amount_nano, self._tokens_used, code=code)

    def fail_late(self) -> None:
        """There is no output within `max_latency`: as with any failure before it, nothing is owed,
        which a job that its buyer cancels would."""
        self._fail("the node had no output within max_latency", Code.DEADLINE_EXCEEDED)

    async def cancel_and_wait_end(self, *, within_s: float) -> None:
        """Free the node's slot at once, then collect the receipt for what was delivered."""
        self._is_given_up = True
        with trio.move_on_after(within_s), suppress(NetError, JobFailed):
            # A node knows the deadline, too, and what it ends by itself without output is free.
            if self.has_output or not self._is_late:
                self.send(self._job.cancel())
            # If no receipt comes the node hands it in by itself, or the hold expires.
            while self.result is None:
                await self._receive()

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

    async def _receive_output(self) -> None:
        """Returns when there is something to pass on, or at a clean end. Raises JobFailed."""
        while not self._ready:
            event = await self._receive()
            if isinstance(event, Chunk):
                if self._first_output_at is None and (event.text or event.data):
                    self._first_output_at = trio.current_time()
                self._pending.append(event)
                is_shown = bool(event.token_ids and event.text)
                if is_shown and not self._is_whole:
                    self._release()
            elif isinstance(event, Ended):
                self._release()
                return

    def _release(self) -> None:
        """Pass on what was pending. Bare tokens come with the chunk that follows them."""
        bare: tuple[int, ...] = ()
        for chunk in self._pending:
            self._tokens_used += len(chunk.token_ids)
            if not (chunk.text or chunk.data):
                bare += chunk.token_ids
                continue
            if bare:
                chunk = replace(chunk, token_ids=(*bare, *chunk.token_ids))
                bare = ()
            self._ready.append(chunk)
        if bare:
            self._ready.append(Chunk(bare))
        self._pending.clear()

    async def _receive(self) -> ClientEvent:
        """One event from the node. Raises JobFailed, and remembers it."""
        frame = await self._receive_frame()
        try:
            event = self._job.receive(frame.type, frame.body)
        except RemoteProtocolError as error:
            raise self._fail(
                f"the node broke the protocol: {error}", error.code, is_breach=True
            ) from error
        if isinstance(event, Chunk):
            return event
        if isinstance(event, Admitted):
            self._accepted = event
        elif isinstance(event, WindowReached):
            if not self._is_given_up:
                self._sign_window(event)
        elif isinstance(event, Ended):
            self._countersign(event)
            finish = event.receipt.message.finish
            if not (FINISH_RULES[finish].is_answer or self._is_given_up):
                reason = f"the node says that the job ended as {finish}"
                raise self._fail(reason, Code.NODE_LOST)
        elif isinstance(event, Refused):
            if event.ended is not None:
                self._countersign(event.ended)
            # We sign whatever there is to sign; after output a slow reader of ours may have waited.
            if self._is_false(event.code) or not may_node_say(event.code):
                reason = f"the node ended the job by {event.code}, which is not its to say"
                raise self._fail(reason, Code.INTERNAL, is_breach=True)
            raise self._fail(event.message, event.code, event.retry_after_ms)
        return event

    def _is_false(self, code: Code) -> bool:
        """Whether a node ends a job by what cannot be the case."""
        if code is Code.STATE_MISSING:
            return not self._needs_state
        return code is Code.UNSIGNED and self._first_output_at is None

    async def _receive_frame(self) -> Frame:
        silent_until, deadline = self._silent_until(), self._deadline
        if self._is_given_up:
            # For its receipt we wait past the deadline, as long as our caller says.
            deadline = math.inf
        until = min(deadline, silent_until)
        try:
            if self._may_take_at_once() and trio.current_time() < until:
                return self._channel.receive_nowait()
            return await self._channel.receive(by=until)
        except NetTimeout:
            pass
        except NetError as error:
            raise self._fail(f"the node is gone: {error}", Code.NODE_LOST) from error
        except RemoteProtocolError as error:
            raise self._fail(str(error), error.code, error.retry_after_ms) from error
        self._is_given_up = True
        if silent_until < deadline:
            raise self._fail("the node is silent for too long", Code.NODE_LOST)
        self._is_late = True
        raise self._fail("the deadline has passed", Code.DEADLINE_EXCEEDED)

    def _may_take_at_once(self) -> bool:
        self._frames_in_a_row += 1
        if self._channel.buffered_bytes and self._frames_in_a_row < _FRAMES_IN_A_ROW:
            return True
        self._frames_in_a_row = 0
        return False

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
        if self._failure is not None and self._is_given_up:
            return self._failure
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


def _features_of(granted: Granted) -> tuple[str, ...]:
    digest = granted.lease.message.model_digest
    offered = (m for m in granted.offer.message.models if m.manifest_digest == digest)
    return next((model.features for model in offered), ())
