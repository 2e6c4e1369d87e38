"""Nodes on their control streams: who is alive, how busy, and the receipts that they hand in.

A node that attaches reports its load every REPORT_EVERY_MS; one that is silent for three reports,
or whose connection breaks, gets no jobs until it is back. Round trips are measured from here, so
that no node can claim to be near.
"""

import random
from collections import Counter
from collections.abc import Iterator

import structlog
import trio

from coordinator.leasing.dialability import Dialability
from coordinator.leasing.lease_server import ROLE
from coordinator.leasing.receipts import ReceiptTaker
from coordinator.leasing.registry import LeaseRegistry
from coordinator.leasing.twins import Twins
from coordinator.market.market import Market
from protocol.clock import Clock
from protocol.envelope import open_envelope
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId
from protocol.messages import Acceptance, Receipt
from protocol.net.errors import NetError
from protocol.net.link import ASKING_LIMITS, serve_channels
from protocol.net.rpc import RpcServer
from protocol.net.transport import Stream, Transport
from protocol.offers import LoadReport
from protocol.reach import DialBackAsk
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
from protocol.token_buckets import Rate, TokenBuckets

log = structlog.get_logger(__name__)

# Nodes report at once when their load changes; this is the pulse of those where nothing does.
REPORT_EVERY_MS = 5_000
# Three missed reports: one may be lost to a pause, two to bad luck.
SILENT_AFTER_S = 3 * REPORT_EVERY_MS / 1_000
# A node with a running job is alive: one core that computes a long prompt may not get to report. A
# connection that is really gone is noticed by its own pings.
BUSY_SILENT_AFTER_S = 60.0
# A round trip changes slowly; each node is measured about this often.
PING_EVERY_S = 20.0
PING_WITHIN_S = 5.0
# How a node stands takes some milliseconds to find out.
STANDINGS = Rate(per_s=0.1, burst=2)
NODES_ASKING_MAX = 10_000
# While two processes with one key report, each report renews this.
TWINS_REST_MS = 15_000
OUTRANKED = (Code.OFFER_REGRESSED, Code.OFFER_CONFLICT)
# Pings in flight at once: with ten thousand nodes, five hundred a second.
PINGS_AT_ONCE = 32


class ControlServer:
    """The active set: nodes with a live control stream."""

    def __init__(
        self,
        transport: Transport,
        market: Market,
        leases: LeaseRegistry,
        receipts: ReceiptTaker,
        *,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._transport = transport
        self._market = market
        self._leases = leases
        self._receipts = receipts
        self._clock = clock
        self._rng = rng
        self._dialability = Dialability(transport, market, clock=clock)
        self._twins = Twins()
        # Nodes whose later process is gone: what they offer anew is not held against them.
        self._outranked: set[PeerId] = set()
        self._standings = TokenBuckets(keys_max=NODES_ASKING_MAX)
        self._heard_at: dict[PeerId, float] = {}
        self._lines: Counter[PeerId] = Counter()
        self._rpc = RpcServer()
        self._rpc.register(Method.ATTACH, AttachAsk, self._attach)
        self._rpc.register(Method.LOAD, LoadReport, self._load)
        self._rpc.register(Method.RECEIPT, ReceiptAsk, self._receipt)
        self._rpc.register(Method.DIAL_BACK, DialBackAsk, self._dialability.answer)
        self._rpc.register(Method.STANDING, StandingAsk, self._standing)

    @property
    def attached(self) -> int:
        return len(self._heard_at)

    async def handle(self, stream: Stream) -> None:
        """Serve a node until its stream ends; with its last one it is gone until it attaches again.

        A node that comes back may have two for a moment, of which the old one ends last.
        """
        self._lines[stream.peer] += 1
        try:
            await serve_channels(stream, self._rpc.serve_channel, role=ROLE, limits=ASKING_LIMITS)
        finally:
            self._lines[stream.peer] -= 1
            if not self._lines[stream.peer]:
                del self._lines[stream.peer]
                self._detach(stream.peer, "control_stream_ended")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Measure round trips and drop the silent, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._dialability.run)
            nursery.start_soon(self._drop_silent_forever)
            nursery.start_soon(self._ping_forever)
            task_status.started()

    async def _attach(self, node: PeerId, ask: AttachAsk) -> AttachReply:
        # Gossip hands on the offers of others; a node attaches with its own. Its size and its
        # repetitions are looked at before its signature, as in gossip.
        verdict = self._market.book.accept(
            ask.offer, now_ms=self._clock.now_ms(), via=node, signer=node
        )
        self._twins.hear(node, ask.load.incarnation_ms, now=trio.current_time())
        if verdict.code in OUTRANKED:
            # Of two, the one that is left shall offer anew.
            code = Code.OFFER_REGRESSED if self._note_older(node) else verdict.code
            raise RemoteProtocolError(verdict.message, code=code)
        if verdict.code not in (None, Code.REPLAYED):
            raise RemoteProtocolError(verdict.message, code=verdict.code)
        if verdict.is_news and node in self._outranked:
            self._outranked.discard(node)
            self._market.book.reinstate(node)
        entry = self._market.book.get(node)
        if entry is not None:
            # By the offer, which is signed and whose changes are few: by its load report a node
            # could free its seats as often as it likes.
            self._leases.note_attached(node, entry.offer.incarnation_ms)
        # A node attaches again with each offer that it signs.
        is_back = node not in self._heard_at
        self._hear(node, ask.load)
        self._dialability.note_attached(node)
        # Measured at once: a node without a round trip is taken for one across an ocean.
        await self._measure(node)
        if is_back:
            log.info("node_attached", node=node)
        return AttachReply(REPORT_EVERY_MS)

    async def _load(self, node: PeerId, report: LoadReport) -> LoadAck:
        if node not in self._heard_at:
            raise RemoteProtocolError("attach first", code=Code.UNEXPECTED_FRAME)
        self._hear(node, report)
        return LoadAck(tuple(self._notices(node, report)))

    async def _receipt(self, node: PeerId, ask: ReceiptAsk) -> SettleReply:
        # A job's client is usually first, and what it settled needs no second look.
        settled = await self._receipts.recall(ask.receipt)
        if settled is not None:
            return settled
        receipt = open_envelope(ask.receipt, Receipt, signer=node)
        acceptance = open_envelope(ask.acceptance, Acceptance) if ask.acceptance else None
        return await self._receipts.accept(receipt, acceptance)

    async def _standing(self, node: PeerId, ask: StandingAsk) -> StandingReply:
        wait_s = self._standings.take(node, STANDINGS, now_s=trio.current_time()).wait_s
        if wait_s:
            raise RemoteProtocolError(
                "a node may ask how it stands once in ten seconds",
                code=Code.RATE_LIMITED,
                retry_after_ms=max(1, round(1_000 * wait_s)),
            )
        return self._market.standing_of(node)

    def _hear(self, node: PeerId, report: LoadReport) -> None:
        self._heard_at[node] = now = trio.current_time()
        self._twins.hear(node, report.incarnation_ms, now=now)
        if self._twins.are_two(node, now=now):
            self._market.book.suspend(node, now_ms=self._clock.now_ms(), for_ms=TWINS_REST_MS)
        self._market.book.apply_load(node, report)
        self._leases.note_report(node, opened=report.opened, arriving=report.arriving)

    def _notices(self, node: PeerId, report: LoadReport) -> Iterator[Notice]:
        entry = self._market.book.get(node)
        if self._twins.are_two(node, now=trio.current_time()):
            yield Notice.TWIN
        else:
            is_older = entry is not None and report.incarnation_ms < entry.offer.incarnation_ms
            if is_older and self._note_older(node):
                yield Notice.OUTRANKED
        if self._dialability.take_untold(node):
            yield Notice.DIAL_BACK

    def _note_older(self, node: PeerId) -> bool:
        """An earlier process of a node is here. Whether it is the one that is left: the later one
        has been silent for too long."""
        entry, now = self._market.book.get(node), trio.current_time()
        if entry is None or self._twins.is_heard(node, entry.offer.incarnation_ms, now=now):
            return False
        self._outranked.add(node)
        return True

    def _detach(self, node: PeerId, why: str) -> None:
        self._twins.forget(node)
        self._dialability.forget(node)
        self._outranked.discard(node)
        if self._heard_at.pop(node, None) is not None:
            self._market.lose(node)
            log.info("node_detached", node=node, why=why)

    async def _drop_silent_forever(self) -> None:
        while True:
            await trio.sleep(REPORT_EVERY_MS / 1_000)
            for node in self._silent_nodes(trio.current_time()):
                self._detach(node, "silent")

    def _silent_nodes(self, now: float) -> list[PeerId]:
        """Those that are idle and silent, and those that have been silent for long."""
        silent = [n for n, heard_at in self._heard_at.items() if heard_at < now - SILENT_AFTER_S]
        return [
            node
            for node in silent
            if self._heard_at[node] < now - BUSY_SILENT_AFTER_S or not self._leases.runs_at(node)
        ]

    async def _ping_forever(self) -> None:
        limiter = trio.CapacityLimiter(PINGS_AT_ONCE)
        while True:
            await trio.sleep(PING_EVERY_S * self._rng.uniform(0.8, 1.2))
            async with trio.open_nursery() as nursery:
                for node in list(self._heard_at):
                    await limiter.acquire_on_behalf_of(node)
                    nursery.start_soon(self._measure_within, node, limiter)

    async def _measure_within(self, node: PeerId, limiter: trio.CapacityLimiter) -> None:
        try:
            await self._measure(node)
        finally:
            limiter.release_on_behalf_of(node)

    async def _measure(self, node: PeerId) -> None:
        try:
            rtt_s = await self._transport.ping(node, timeout_s=PING_WITHIN_S)
        except NetError as error:
            log.info("ping_failed", node=node, error=str(error))
        else:
            self._market.book.set_rtt(node, 1_000 * rtt_s)
