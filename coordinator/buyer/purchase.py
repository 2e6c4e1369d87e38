"""One purchase: what a buyer asked for, through as many attempts as it takes.

Before the first output a node that refuses or falls silent costs the buyer nothing but time: the
same request is leased again. After it, a text goes on elsewhere as the purchase's next part, which
begins after the tokens that were delivered; its buyer sees one answer. What is decided about that
without I/O is in `continuation`.
"""

import math
from collections import deque
from collections.abc import Awaitable

import structlog
import trio

from coordinator.buyer.attempt import Attempt, AttemptTerms
from coordinator.buyer.continuation import (
    is_at_length,
    is_text,
)
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.hedging import Race
from coordinator.buyer.opener import Opener
from coordinator.buyer.parts import LeasedPart, SignedPart
from coordinator.buyer.progress import PurchaseProgress
from coordinator.buyer.result import PurchasePart, PurchaseResult
from coordinator.buyer.resuming import Resumption
from coordinator.buyer.tries import Tries
from protocol.endings import Finish
from protocol.errors import Code
from protocol.grants import Granted
from protocol.keys import SigningKey
from protocol.payload import Chunk

log = structlog.get_logger(__name__)

# A node that is cancelled at the deadline answers with its receipt at once, or is not waited for.
LATE_RECEIPT_WITHIN_S = 0.5
# A node counts the same deadline from its lease: it may be the first to say that it is over.
_DEADLINE_SLACK_S = 2.0


class Purchase:
    """Iterate over it for the chunks, then read `result`. Made by `MarketClient.buy`.

    `begun` is its first part, `leased` if that has a lease already, which was taken ahead. The
    purchase is given up when the time that its spec leaves is over; a text that has begun by then
    ends there. Of a batch that time is each part's own: waiting for an idle seat takes nothing of
    it.
    """

    def __init__(
        self,
        begun: SignedPart,
        *,
        key: SigningKey,
        opener: Opener,
        leased: LeasedPart | None = None,
    ) -> None:
        self._spec = begun.spec
        self._progress = PurchaseProgress(begun, key)
        self._leased = leased
        self._key = key
        self._opener = opener
        self._deadline = trio.current_time() + begun.spec.deadline_s
        self._first_output_by = math.inf
        self._tries = Tries()
        self._is_shown = False
        self._ready: deque[Chunk] = deque()
        self._attempt: Attempt | None = None
        # Attempts that delivered something, or may charge for it, before they were left.
        self._left: list[Attempt] = []
        self._terms: AttemptTerms | None = None
        self._result: PurchaseResult | None = None

    @property
    def terms(self) -> AttemptTerms | None:
        """Where the latest attempt runs; known from its first output on."""
        return self._terms

    @property
    def result(self) -> PurchaseResult | None:
        """None before the iteration has ended."""
        return self._result

    @property
    def parts(self) -> list[PurchasePart]:
        """What each node has delivered or charges so far. Of one that did neither only if it is the
        last."""
        attempts = [*self._left, self._attempt] if self._attempt is not None else self._left
        parts = [attempt.part() for attempt in attempts]
        paid = [part for part in parts if part.amount_nano or part.units.output_tokens]
        return paid or parts[-1:]

    @property
    def granted(self) -> Granted:
        """The lease of the present attempt."""
        assert self._attempt is not None, "the purchase was not opened"
        return self._attempt.granted

    def ended(self) -> tuple[AttemptTerms, PurchaseResult]:
        """Where it ran and how it ended, of a purchase that was read to its end."""
        assert self._terms is not None, "the purchase was not opened"
        assert self._result is not None, "the purchase was not read to its end"
        return self._terms, self._result

    def __aiter__(self) -> "Purchase":
        return self

    async def __anext__(self) -> Chunk:
        """The next chunk of the answer. Raises JobFailed if it cannot go on."""
        while not self._ready:
            attempt = self._attempt
            if self._result is not None or attempt is None:
                raise StopAsyncIteration
            try:
                chunk = await attempt.__anext__()
            except StopAsyncIteration:
                assert attempt.result is not None, "a stream that ended well has a receipt"
                self._end(attempt.result.finish)
                raise
            except JobFailed as failure:
                await self._go_on(attempt, failure)
                continue
            self._is_shown = True
            if self._progress.delivered is not None:
                self._progress.delivered.add(chunk)
            return chunk
        self._is_shown = True
        return self._ready.popleft()

    async def open(self) -> None:
        """Lease and open, at one node after another, until there is output; within the buyer's
        `max_latency`, if there is one. Raises JobFailed."""
        limit_ms = self._spec.constraints.max_latency_ms
        if limit_ms is None:
            await self._open_next()
            return
        self._first_output_by = trio.current_time() + limit_ms / 1_000
        with trio.move_on_at(self._first_output_by) as scope:
            await self._open_next()
        if scope.cancelled_caught:
            raise self._told(
                JobFailed(
                    f"no node had a first output within max_latency, {limit_ms} ms",
                    code=Code.NO_NODE_FITS,
                )
            )

    def leave(self) -> None:
        """Be done with it: cancels what has not ended."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            self._opener.settlements.leave(attempt)

    async def _go_on(self, attempt: Attempt, failure: JobFailed) -> None:
        """The answer broke off: let another node go on, or end it. Raises JobFailed."""
        self._attempt = None
        try:
            await self._take_over(attempt, failure)
        except JobFailed as final:
            raise self._told(final) from failure
        await self._open_next()

    async def _open_next(self) -> None:
        """Open attempts until one has output, or the answer is known to be over. Raises JobFailed,
        which tells what was charged."""
        try:
            while self._result is None and not await self._try_node():
                pass
        except JobFailed as failure:
            raise self._told(failure) from failure.__cause__

    async def _try_node(self) -> bool:
        """Whether an attempt has output now. Raises JobFailed if no other node can do better."""
        attempt, lease_ms = await self._open_attempt()
        if attempt is None:
            return False
        if self._spec.hedge and not self._progress.has_begun:
            return await self._race(attempt, lease_ms)
        try:
            await attempt.wait_first_output(attempts=self._tries.count, lease_ms=lease_ms)
        except JobFailed as failure:
            await self._take_over(attempt, failure)
            return False
        except trio.Cancelled:
            if trio.current_time() >= self._first_output_by:
                attempt.fail_late()
            self._opener.settlements.leave(attempt)
            raise
        self._attempt, self._terms = attempt, attempt.terms
        return True

    async def _race(self, first: Attempt, lease_ms: float) -> bool:
        """As `_try_node`, with a second attempt beside the first if that is late."""
        race = Race(attempts=lambda: self._tries.count)

        def open_second() -> Awaitable[tuple[Attempt | None, float]]:
            self._tries.avoid(first.granted.lease.message.node)
            return self._opener.open_attempt(
                self._progress.present, self._key, self._tries, deadline=self._deadline
            )

        is_over = False
        try:
            await race.run(first, lease_ms, open_second)
            is_over = True
        finally:
            if race.winner is not None and not is_over:
                self._opener.settlements.leave(race.winner)
            for attempt in race.losers:
                self._leave_failed(attempt)
            # What follows is decided by the first failure, if none has output.
            decides = is_over and race.winner is None
            for attempt, _ in race.failures[1 if decides else 0 :]:
                self._leave_failed(attempt)
        if race.winner is None:
            await self._take_over(*race.failures[0])
            return False
        self._attempt, self._terms = race.winner, race.winner.terms
        return True

    async def _open_attempt(self) -> tuple[Attempt | None, float]:
        """As `Opener.open_attempt`; once the answer has begun, wait for what may pass."""
        leased, self._leased = self._leased, None
        if leased is not None:
            attempt = await self._opener.open_ahead(
                leased, self._key, self._tries, deadline=self._deadline
            )
            return attempt, 0.0
        if self._progress.present.request.message.is_ahead:
            # The lease that was taken ahead came to nothing.
            self._progress.sign_anew(
                left_s=self._deadline - trio.current_time(),
                coordinator=self._opener.leaser.coordinator,
                now_ms=self._opener.clock.now_ms(),
            )
        is_batch = self._spec.is_batch
        if self._tries.yield_pause_s:
            self._deadline += self._tries.yield_pause_s
            await trio.sleep(self._tries.yield_pause_s)
        deadline = math.inf if is_batch else self._deadline
        wait = Resumption(deadline=deadline, is_patient=is_batch)
        while True:
            try:
                return await self._opener.open_attempt(
                    self._progress.present, self._key, self._tries, deadline=self._deadline
                )
            except JobFailed as failure:
                if self._ends_unopened(failure):
                    return None, 0.0
                if not self._progress.has_begun or self._tries.are_used_up:
                    raise
                self._progress.check_cost_max([a.granted.lease.message for a in self._left])
                if not wait.may_help(failure, by_node=failure is self._tries.last_failure):
                    raise
                if is_batch and self._is_half_over():
                    # The request itself would be too old for the time that its job may take.
                    self._sign_next_part(failure)
            await wait.pause()
            self._tries.forgive()

    async def _take_over(self, attempt: Attempt, failure: JobFailed) -> None:
        """Take what a failed attempt delivered, and prepare what follows. Raises JobFailed if
        nothing can."""
        is_late = self._is_late(failure)
        if is_late and is_text(self._spec) and (self._is_shown or attempt.has_output):
            await self._end_late(attempt)
            return
        if self._progress.delivered is not None:
            for chunk in attempt.take_pending():
                self._progress.delivered.add(chunk)
                self._ready.append(chunk)
        self._leave_failed(attempt)
        if self._is_over_by(failure):
            return
        if self._is_shown and self._progress.delivered is None:
            raise failure
        tokens = self._progress.tokens
        self._tries.note_failure(
            attempt.granted.lease.message,
            failure,
            delivered_tokens=tokens,
            has_yielded=self._spec.is_batch and failure.code is Code.BUSY,
        )
        if tokens:
            self._sign_next_part(failure)

    async def _end_late(self, attempt: Attempt) -> None:
        """Time is over: the answer is what there is, and the node is paid for that."""
        try:
            await attempt.cancel_and_wait_end(within_s=LATE_RECEIPT_WITHIN_S)
        finally:
            self._ready.extend(attempt.take_pending(is_last=True))
            self._leave_failed(attempt)
        self._end(Finish.LENGTH, reason=Code.DEADLINE_EXCEEDED)

    def _leave_failed(self, attempt: Attempt) -> None:
        self._tries.note_word(self._opener.settlements.leave(attempt))
        self._left.append(attempt)
        self._terms = self._terms or attempt.terms
        self._progress.note_left(attempt)

    def _is_late(self, failure: JobFailed) -> bool:
        slack_s = self._deadline - trio.current_time()
        return failure.code is Code.DEADLINE_EXCEEDED and slack_s < _DEADLINE_SLACK_S

    def _is_over_by(self, failure: JobFailed) -> bool:
        """Whether the answer that broke off was complete all the same, or no node has room for more
        of it; then it ends here."""
        if self._progress.first is None or self._progress.delivered is None:
            return False
        is_refused = failure.code is Code.PROMPT_TOO_LONG and self._tries.was_input_blamed
        if is_refused or is_at_length(
            self._spec, self._progress.first, len(self._progress.delivered)
        ):
            self._end(Finish.LENGTH)
        return self._result is not None

    def _ends_unopened(self, failure: JobFailed) -> bool:
        """Whether the answer ends where no further attempt can be opened. It does at the deadline,
        and if the only node that is left finds that there is no room for more."""
        if not (self._is_shown or self._ready):
            return False
        if self._is_late(failure):
            self._end(Finish.LENGTH, reason=Code.DEADLINE_EXCEEDED)
        elif failure.code is Code.PROMPT_TOO_LONG and self._progress.first is not None:
            self._end(Finish.LENGTH)
        return self._result is not None

    def _sign_next_part(self, failure: JobFailed) -> None:
        """Raises the failure if there can be no more parts."""
        if self._spec.is_batch:
            self._deadline = trio.current_time() + self._spec.deadline_s
        self._progress.sign_next(
            failure,
            spent_nano=sum(part.amount_nano for part in self.parts),
            left_s=self._deadline - trio.current_time(),
            coordinator=self._opener.leaser.coordinator,
            now_ms=self._opener.clock.now_ms(),
        )
        asked = self._progress.present.request.message
        log.info("purchase_goes_on", job_id=asked.job_id, part=asked.part, code=failure.code)

    def _is_half_over(self) -> bool:
        return self._deadline - trio.current_time() < self._spec.deadline_s / 2

    def _end(self, finish: Finish, *, reason: Code | None = None) -> None:
        self._result = PurchaseResult.over(self.parts, finish, reason=reason)

    def _told(self, failure: JobFailed) -> JobFailed:
        """The failure with what its buyer has to know: which job, and what was charged."""
        failure.job_id = self._progress.begun.request.message.job_id
        failure.amount_nano = sum(part.amount_nano for part in self.parts)
        failure.delivered = self._is_shown or failure.amount_nano > 0
        return failure
