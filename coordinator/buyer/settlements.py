"""How attempts end: collect their receipts, countersign, and hand both in; sign for what came if
there is no receipt.

An attempt that its buyer leaves early is cancelled, and its receipt collected in the background. A
receipt goes to the node at once and to the coordinator soon; either alone would do.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVarTuple, Unpack

import structlog
import trio

from coordinator.buyer.attempt import Attempt
from coordinator.buyer.leaser import Leaser
from coordinator.buyer.result import AttemptResult
from protocol.blame import Observation
from protocol.countersigning import Delivery
from protocol.envelope import Signed
from protocol.errors import RETRYABLE_LATER, RemoteProtocolError
from protocol.framing import FrameType
from protocol.ids import LeaseId
from protocol.messages import Lease
from protocol.net.errors import NetError

Ts = TypeVarTuple("Ts")

log = structlog.get_logger(__name__)

# After a cancel the node owes a receipt at once: what it does not send now, it hands in itself.
RECEIPT_WITHIN_S = 3.0
# Settlements waiting for a coordinator that is away. Nodes hand theirs in too, so none is lost.
SETTLEMENTS_MAX = 10_000
SETTLE_TRIES = 5
# A command that has printed its answer, or that was interrupted, waits this long for its word to be
# handed in: longer than for the receipt of a job that it has left.
SETTLED_WITHIN_S = 5.0
# Several hand-ins at once let the ledger commit them as one group.
SETTLERS = 8


# The client's last word on a lease: its countersignature of a receipt, or what it got without one.
Word = AttemptResult | Signed[Delivery]


class Settlements:
    """Takes attempts that their buyers are done with. `run` must be running."""

    def __init__(self, leaser: Leaser) -> None:
        self._leaser = leaser
        self._words, self._to_settle = trio.open_memory_channel[Word](SETTLEMENTS_MAX)
        self._background: trio.Nursery | None = None
        self._unsettled = 0
        self._settled = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand receipts in and collect those of abandoned attempts, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._background = nursery
            try:
                for _ in range(SETTLERS):
                    nursery.start_soon(self._settle_forever)
                task_status.started()
                await trio.sleep_forever()
            finally:
                # Before the nursery closes: a closed one refuses new tasks with a crash.
                self._background = None

    async def wait_settled(self, *, within_s: float = SETTLED_WITHIN_S) -> None:
        """Returns when every word is handed in, or the time is over."""
        with trio.move_on_after(within_s):
            while self._unsettled:
                await self._settled.park()

    def leave(self, attempt: Attempt) -> Word | None:
        """Let go of an attempt: settle it if it has ended, cancel it if not. Returns the client's
        last word on it, unless its node has yet to answer."""
        self._unsettled += 1
        if attempt.has_ended:
            return self._wrap_up(attempt)
        if self._background is not None:
            self._background.start_soon(self._abandon, attempt)
        return None

    def leave_unopened(
        self, lease: Signed[Lease], observation: Observation, delivery: Signed[Delivery]
    ) -> None:
        """Let go of a lease that its node was never asked to run, or could not be."""
        self._unsettled += 1
        self._leaser.observe(lease, observation)
        self._hand_in(delivery)

    def run_soon(self, task: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts) -> None:
        """Run what ends a lease; it is waited for as for a word."""
        self._unsettled += 1

        async def run() -> None:
            await task(*args)
            self._note_settled()

        if self._background is not None:
            self._background.start_soon(run)

    async def _abandon(self, attempt: Attempt) -> None:
        await attempt.cancel_and_wait_end(within_s=RECEIPT_WITHIN_S)
        self._wrap_up(attempt)

    def _wrap_up(self, attempt: Attempt) -> Word:
        self._leaser.observe(attempt.granted.lease, attempt.observation())
        if attempt.result is not None:
            with suppress(NetError):
                attempt.send([(FrameType.JOB_ACCEPTANCE, attempt.result.acceptance.raw)])
        word = attempt.result or attempt.delivery()
        self._hand_in(word)
        attempt.close()
        return word

    def _hand_in(self, word: Word) -> None:
        try:
            self._words.send_nowait(word)
        except trio.WouldBlock:
            log.warning("settlements_full", lease_id=_lease_id(word))
            self._note_settled()

    def _note_settled(self) -> None:
        self._unsettled -= 1
        if not self._unsettled:
            self._settled.unpark_all()

    async def _settle_forever(self) -> None:
        async for word in self._to_settle:
            await self._settle(word)
            self._note_settled()

    async def _settle(self, word: Word) -> None:
        lease_id = _lease_id(word)
        for attempt in range(SETTLE_TRIES):
            try:
                if isinstance(word, AttemptResult):
                    await self._leaser.settle(word.receipt, word.acceptance)
                else:
                    await self._leaser.declare(word)
            except (NetError, RemoteProtocolError) as error:
                if isinstance(error, RemoteProtocolError) and error.code not in RETRYABLE_LATER:
                    log.warning("settlement_refused", lease_id=lease_id, code=error.code)
                    return
                log.info("settlement_delayed", lease_id=lease_id, error=str(error))
                await trio.sleep(2.0**attempt)
            else:
                return


def _lease_id(word: Word) -> LeaseId:
    signed = word.receipt if isinstance(word, AttemptResult) else word
    return signed.message.lease_id
