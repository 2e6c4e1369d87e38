"""How attempts end: collect their receipts, countersign, and hand both in.

An attempt that its buyer leaves early is cancelled, and its receipt collected in the background. A
receipt goes to the node at once and to the coordinator soon; either alone would do.
"""

import structlog
import trio

from coordinator.buyer.attempt import Attempt, AttemptResult
from coordinator.buyer.leaser import Leaser
from protocol.errors import RETRYABLE_LATER, RemoteProtocolError
from protocol.framing import FrameType
from protocol.net.errors import NetError

log = structlog.get_logger(__name__)

# After a cancel the node owes a receipt at once: what it does not send now, it hands in itself.
RECEIPT_WITHIN_S = 5.0
# Settlements waiting for a coordinator that is away. Nodes hand theirs in too, so none is lost.
SETTLEMENTS_MAX = 10_000
SETTLE_TRIES = 5
# A command that has printed its answer waits this long for its receipt to be handed in.
SETTLED_WITHIN_S = 5.0
# Several hand-ins at once let the ledger commit them as one group.
SETTLERS = 8


class Settlements:
    """Takes attempts that their buyers are done with. `run` must be running."""

    def __init__(self, leaser: Leaser) -> None:
        self._leaser = leaser
        self._results, self._to_settle = trio.open_memory_channel[AttemptResult](SETTLEMENTS_MAX)
        self._background: trio.Nursery | None = None
        self._unsettled = 0
        self._settled = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand receipts in and collect those of abandoned attempts, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._background = nursery
            for _ in range(SETTLERS):
                nursery.start_soon(self._settle_forever)
            task_status.started()

    async def wait_settled(self, *, within_s: float = SETTLED_WITHIN_S) -> None:
        """Returns when every receipt is handed in, or the time is over."""
        with trio.move_on_after(within_s):
            while self._unsettled:
                await self._settled.park()

    def leave(self, attempt: Attempt) -> None:
        """Let go of an attempt: settle it if it has ended, cancel it if not."""
        self._unsettled += 1
        if attempt.has_ended:
            self._wrap_up(attempt)
        elif self._background is not None:
            self._background.start_soon(self._abandon, attempt)

    async def _abandon(self, attempt: Attempt) -> None:
        await attempt.cancel_and_wait_end(within_s=RECEIPT_WITHIN_S)
        self._wrap_up(attempt)

    def _wrap_up(self, attempt: Attempt) -> None:
        self._leaser.observe(attempt.granted.lease, attempt.observation())
        if attempt.result is None:
            self._note_settled()
        else:
            self._hand_in(attempt, attempt.result)
        attempt.close()

    def _hand_in(self, attempt: Attempt, result: AttemptResult) -> None:
        job_id = result.receipt.message.job_id
        try:
            attempt.send([(FrameType.JOB_ACCEPTANCE, result.acceptance.raw)])
        except NetError:
            log.info("acceptance_not_sent", job_id=job_id)
        try:
            self._results.send_nowait(result)
        except trio.WouldBlock:
            log.warning("settlements_full", job_id=job_id)
            self._note_settled()

    def _note_settled(self) -> None:
        self._unsettled -= 1
        if not self._unsettled:
            self._settled.unpark_all()

    async def _settle_forever(self) -> None:
        async for result in self._to_settle:
            await self._settle(result)
            self._note_settled()

    async def _settle(self, result: AttemptResult) -> None:
        job_id = result.receipt.message.job_id
        for attempt in range(SETTLE_TRIES):
            try:
                await self._leaser.settle(result.receipt, result.acceptance)
            except (NetError, RemoteProtocolError) as error:
                if isinstance(error, RemoteProtocolError) and error.code not in RETRYABLE_LATER:
                    log.warning("settlement_refused", job_id=job_id, code=error.code)
                    return
                log.info("settlement_delayed", job_id=job_id, error=str(error))
                await trio.sleep(2.0**attempt)
            else:
                return
