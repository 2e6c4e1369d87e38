"""The line to one coordinator: who we are, how busy we are, and what we are owed.

Attaching hands over the current offer, ahead of gossip. While attached, load goes out on change and
as the sign of life that the coordinator asked for, and receipts go out from the outbox. When the
line breaks, everything here ends, and after a pause it starts again from attaching.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

import structlog
import trio

from capanode.announce import Announcer
from capanode.opened_leases import OpenedLeases
from capanode.outbox import Outbox
from capanode.outbox_store import PENDING, OutboxReceipt
from capanode.reach import Reachability
from capanode.reach.asking import ask_dial_back
from protocol.clock import Clock
from protocol.errors import RETRYABLE_LATER, Code, RemoteProtocolError, leaves
from protocol.ids import PeerId
from protocol.net.errors import NetError, StreamClosed
from protocol.net.rpc import RpcClient
from protocol.net.serve import describe
from protocol.offers import LoadReport
from protocol.services import (
    AttachAsk,
    AttachReply,
    LoadAck,
    Method,
    Notice,
    ReceiptAsk,
    SettleReply,
)
from protocol.standing import StandingAsk, StandingReply

log = structlog.get_logger(__name__)

R = TypeVar("R")

# A control call is small and its answer a durable write at most.
CALL_WITHIN_S = 10.0

# Reports on change: fresh enough for choosing between two nodes, and at most four a second.
REPORT_INTERVAL_MIN_S = 0.25
# What a coordinator may ask for, whatever it asks for.
REPORT_EVERY_MS_MIN, REPORT_EVERY_MS_MAX = 250, 60_000

# Pauses between attempts to attach double up to the longest; jitter spreads nodes that lost the
# same coordinator.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
# A coordinator that was lost just now most likely restarts, and its clients wait for us. A dial to
# a closed port costs little: it is tried at least once a second for some minutes.
RESTART_PAUSE_S = 1.0
RESTART_WITHIN_S = 300.0

# What a coordinator may ask us to wait; a number that no column holds would end the node.
WANTED_MS_MAX = 15 * 60_000

# A coordinator answers once in ten seconds.
STANDING_EVERY_S = 15.0
# Receipts under way at once: enough for the ledger to commit them as one group.
RECEIPTS_AT_ONCE = 64
# A receipt that comes alone is handed in at once; after that, those of so long a time go together:
# both sides wake once for all of them, where every receipt cost a round of its own.
HAND_IN_EVERY_S = 0.1
# A receipt that the coordinator could not take for now comes again after this, doubled per try.
RECEIPT_RETRY_MS = 2_000
RECEIPT_RETRY_MS_MAX = 15 * 60_000
# One that is pending is asked about after this, likewise doubled: clients get some seconds.
RECEIPT_PENDING_MS = 20_000


class LineState(StrEnum):
    """What `capanode status` says about a coordinator."""

    CONNECTING = "connecting"
    ATTACHED = "attached"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class LineStatus:
    coordinator: PeerId
    state: LineState
    error: str
    receipts_handed_in: int
    # How the coordinator sees us; None before it was asked, and if it cannot say.
    standing: StandingReply | None


class ControlLine:
    """One coordinator that the operator listed. `load` is asked for whenever a report goes out."""

    def __init__(
        self,
        rpc: RpcClient,
        coordinator: PeerId,
        addresses: Sequence[str],
        *,
        announcer: Announcer,
        outbox: Outbox,
        load: Callable[[], LoadReport],
        opened: OpenedLeases,
        reach: Reachability,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.coordinator = coordinator
        self._rpc = rpc
        self._addresses = tuple(addresses)
        self._announcer = announcer
        self._outbox = outbox
        self._load = load
        self._opened = opened
        self._reach = reach
        self._clock = clock
        self._rng = rng
        self._state = LineState.CONNECTING
        self._error = ""
        self._handed_in = 0
        self._load_changed = trio.Event()
        self._reported: LoadReport | None = None
        self._standing: StandingReply | None = None
        self._standing_wanted = trio.Event()

    @property
    def status(self) -> LineStatus:
        return LineStatus(
            self.coordinator, self._state, self._error, self._handed_in, self._standing
        )

    def want_standing(self) -> None:
        """The owner is looking: how the coordinator sees us is asked for soon."""
        self._standing_wanted.set()

    def load_changed(self) -> None:
        """A job started or ended."""
        self._load_changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Attach, stay attached, come back; until cancelled. A node is up without coordinators, so
        it is `started` at once."""
        task_status.started()
        # A power cut may have ended both: a node that starts takes its coordinator for lost, too.
        failures, pause_s, lost_at = 0, FIRST_PAUSE_S, trio.current_time()
        while True:
            try:
                await self._stay_attached()
            except* (NetError, RemoteProtocolError) as group:
                error = leaves(group)[0]
                if self._state is LineState.ATTACHED:
                    failures, lost_at = 0, trio.current_time()
                failures += 1
                pause_s = self._pause_s(failures, error, lost_at=lost_at)
                self._state, self._error = LineState.LOST, str(error)
                # A coordinator that restarts is tried every second: that is said once.
                tell = log.debug if failures > 1 and pause_s <= RESTART_PAUSE_S else log.warning
                tell(
                    "coordinator_lost",
                    coordinator=self.coordinator,
                    error=describe(group),
                    retry_in_s=round(pause_s, 2),
                )
            await trio.sleep(pause_s)

    def _pause_s(self, failures: int, error: BaseException, *, lost_at: float) -> float:
        may_restart = trio.current_time() < lost_at + RESTART_WITHIN_S
        is_gone = isinstance(error, NetError) and may_restart
        longest_s = RESTART_PAUSE_S if is_gone else LONGEST_PAUSE_S
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), longest_s)
        wanted_ms = error.retry_after_ms if isinstance(error, RemoteProtocolError) else None
        wanted_ms = min(wanted_ms or 0, WANTED_MS_MAX)
        return max(pause_s * self._rng.uniform(0.5, 1.0), wanted_ms / 1000)

    async def _stay_attached(self) -> None:
        """Raises NetError or RemoteProtocolError, alone or in a group."""
        # First where we can be dialled, so that the offer says it. A coordinator that is back has
        # its clients wait for us, and asks a moment later.
        is_new = not self._reach.has_word_of(self.coordinator)
        if is_new:
            await ask_dial_back(self._call, self._reach, self.coordinator)
            await self._announcer.renew_if_changed()
        reply = await self._attach()
        every_ms = min(max(reply.report_every_ms, REPORT_EVERY_MS_MIN), REPORT_EVERY_MS_MAX)
        self._state, self._error = LineState.ATTACHED, ""
        log.info("coordinator_attached", coordinator=self.coordinator, report_every_ms=every_ms)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notice_end)
            nursery.start_soon(self._report_forever, every_ms / 1000)
            nursery.start_soon(self._renew_forever)
            nursery.start_soon(self._be_dialled_forever, is_new)
            nursery.start_soon(self._hand_in_forever)
            nursery.start_soon(self._ask_standing_forever)

    async def _attach(self) -> AttachReply:
        offer = self._announcer.current
        assert offer is not None, "the announcer starts before the control lines"
        load = self._report()
        try:
            reply = await self._call(Method.ATTACH, AttachAsk(offer.raw, load), AttachReply)
        except RemoteProtocolError as error:
            if error.code is Code.OFFER_REGRESSED:
                self._announcer.note_outranked()
            elif error.code is Code.OFFER_CONFLICT:
                self._announcer.note_twin()
            raise
        self._opened.told(self.coordinator, load.opened)
        return reply

    async def _be_dialled_forever(self, was_dialled: bool) -> None:
        while True:
            if was_dialled:
                await self._reach.wait_look_again()
            await ask_dial_back(self._call, self._reach, self.coordinator)
            was_dialled = True

    async def _ask_standing_forever(self) -> None:
        """Whenever the owner looks, and not too often: the answer takes a coordinator work."""
        while True:
            await self._standing_wanted.wait()
            try:
                self._standing = await self._call(Method.STANDING, StandingAsk(), StandingReply)
            except RemoteProtocolError as error:
                log.debug("standing_not_told", coordinator=self.coordinator, error=str(error))
            await trio.sleep(STANDING_EVERY_S)
            self._standing_wanted = trio.Event()

    def _heed(self, notice: Notice) -> None:
        """What the coordinator has to tell us."""
        if notice is Notice.TWIN:
            self._announcer.note_twin()
        elif notice is Notice.OUTRANKED:
            self._announcer.note_outranked()
        elif notice is Notice.DIAL_BACK:
            self._reach.look_again()

    async def _notice_end(self) -> None:
        """A coordinator that restarts breaks the line: come back at once, not at the next report.
        Raises StreamClosed."""
        await self._rpc.pool.wait_closed(self.coordinator)
        raise StreamClosed("the coordinator closed the line")

    def _report(self) -> LoadReport:
        return replace(
            self._load(),
            opened=self._opened.untold(self.coordinator),
            arriving=self._opened.arriving(self.coordinator),
        )

    async def _renew_forever(self) -> None:
        """A new offer takes the direct way as well as gossip's."""
        while True:
            await self._announcer.wait_new_offer()
            try:
                await self._attach()
            except RemoteProtocolError as error:
                # Another process has our key. We stay, so that it shows when that one ends.
                if error.code not in (Code.OFFER_REGRESSED, Code.OFFER_CONFLICT):
                    raise

    async def _report_forever(self, every_s: float) -> None:
        while True:
            await trio.sleep(REPORT_INTERVAL_MIN_S)
            with trio.move_on_after(every_s - REPORT_INTERVAL_MIN_S):
                await self._wait_news()
            self._load_changed = trio.Event()
            report = self._report()
            ack = await self._call(Method.LOAD, report, LoadAck)
            self._opened.told(self.coordinator, report.opened)
            self._reported = replace(report, opened=())
            for notice in ack.notices:
                self._heed(notice)

    async def _wait_news(self) -> None:
        """Until the load is another than the one reported: a job that came and went is none."""
        while True:
            await self._load_changed.wait()
            report = self._report()
            if report.opened or report != self._reported:
                return
            self._load_changed = trio.Event()

    async def _hand_in_forever(self) -> None:
        while True:
            due = await self._outbox.wait_due(self.coordinator, limit=RECEIPTS_AT_ONCE)
            async with trio.open_nursery() as nursery:
                for stored in due:
                    nursery.start_soon(self._hand_in, stored)
            if len(due) < RECEIPTS_AT_ONCE:
                await trio.sleep(HAND_IN_EVERY_S)

    async def _hand_in(self, stored: OutboxReceipt) -> None:
        """Raises NetError when the line is gone; the receipt stays due then."""
        ask = ReceiptAsk(stored.receipt, stored.acceptance)
        try:
            reply = await self._call(Method.RECEIPT, ask, SettleReply)
        except RemoteProtocolError as error:
            if error.code in RETRYABLE_LATER:
                due_ms = self._retry_at_ms(stored, RECEIPT_RETRY_MS, error.retry_after_ms or 0)
                self._outbox.postpone(stored, due_ms=due_ms)
            else:
                self._outbox.refuse(stored, reason=f"{error.code}: {error}")
        else:
            self._handed_in += 1
            if reply.state == PENDING:
                due_ms = self._retry_at_ms(stored, RECEIPT_PENDING_MS, RECEIPT_PENDING_MS)
                self._outbox.postpone(stored, due_ms=due_ms, state=PENDING)
            else:
                # A coordinator of an older version does not say what its fee is.
                paid_nano = reply.amount_nano if reply.node_nano is None else reply.node_nano
                self._outbox.acknowledge(stored, state=reply.state, paid_nano=paid_nano)

    def _retry_at_ms(self, stored: OutboxReceipt, first_ms: int, least_ms: int) -> int:
        wait_ms = min(first_ms << min(stored.tries, 16), RECEIPT_RETRY_MS_MAX)
        least_ms = min(least_ms, WANTED_MS_MAX)
        wait_ms = max(round(wait_ms * self._rng.uniform(0.5, 1.0)), least_ms)
        return self._clock.now_ms() + wait_ms

    async def _call(self, method: Method, ask: object, reply: type[R]) -> R:
        return await self._rpc.call(
            self.coordinator,
            method,
            ask,
            reply,
            timeout_s=CALL_WITHIN_S,
            addresses=self._addresses,
        )
