"""The coordinator's composition root: what it is made of, and in which order that starts and stops.

`Coordinator` has no HTTP and no process: the simulator builds the same one on an in-memory network,
under virtual time. `coordinator.serve` puts the gateway and the signals around it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from coordinator.bounds import DEFAULT_BOUNDS, MarketBounds
from coordinator.buyer.client import MarketClient
from coordinator.buyer.leaser import Leaser
from coordinator.db.engine import Database
from coordinator.db.heads import check_books
from coordinator.db.writer import LedgerWriter
from coordinator.errors import CoordinatorError
from coordinator.head_signer import sign_heads_forever
from coordinator.in_process.shelf import DurableShelf
from coordinator.leasing.clients import Clients
from coordinator.leasing.control import ControlServer
from coordinator.leasing.granting import LeaseService
from coordinator.leasing.lease_server import ROLE, LeaseServer
from coordinator.leasing.own_records import OwnRecords
from coordinator.leasing.registry import LeaseRegistry
from coordinator.leasing.restoring import restore_clients, restore_leases, restore_records
from coordinator.market.market import Market
from coordinator.market.offers import OfferBook
from coordinator.market.reputation import Reputation
from coordinator.settling.payments import Payments
from coordinator.settling.receipt_service import ReceiptService
from protocol.ids import Digest, PeerId
from protocol.keys import SigningKey
from protocol.net.pool import StreamPool
from protocol.net.transport import Gossip, Transport
from protocol.programs.runtime import Runtime
from protocol.programs.shutdown import open_stages
from protocol.services import (
    CONTROL_PROTOCOL,
    JOB_PROTOCOL,
    LEASE_PROTOCOL,
    OFFER_SHARDS,
    offer_topic,
)

log = structlog.get_logger(__name__)

# A refresh of a thousand nodes in one shard may arrive at once.
GOSSIP_QUEUE_MAX = 4_096
# Receipts are handed in to ourselves: longer than this, and the database is in trouble.
SETTLED_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class MarketRules:
    """What the operator of this market decides."""

    fee_bps: int = 500
    # The manifest digests that may answer to a model's name; names that are not here are free.
    catalogue: Mapping[str, frozenset[Digest]] = field(default_factory=dict)
    # A job takes two: a lease and a settlement. So fifty jobs a second, and a minute's worth at
    # once.
    client_asks_per_minute: int = 6_000
    # Leases that our own gateway takes ahead of its jobs, of each class of jobs in demand.
    leases_ahead: int = 0


class Coordinator:
    """Everything but HTTP. `run` is its life; `client` buys in the name of any key."""

    def __init__(
        self,
        key: SigningKey,
        transport: Transport,
        database: Database,
        rules: MarketRules,
        runtime: Runtime,
        *,
        bounds: MarketBounds = DEFAULT_BOUNDS,
    ) -> None:
        runtime = runtime.steadied()
        clock = runtime.clock
        self.key = key
        self.transport = transport
        self.database = database
        self.writer = LedgerWriter(database, clock, batch_max=bounds.batch_max)
        reputation = Reputation(rng=runtime.child_rng())
        self.market = Market(
            OfferBook(reputation, catalogue=rules.catalogue),
            reputation,
            clock=clock,
            rng=runtime.child_rng(),
            stopwatch_ns=runtime.stopwatch_ns,
        )
        self.leases = LeaseRegistry(
            self.market, Clients(bounds.windows, clients_max=bounds.clients_remembered_max)
        )
        payments = Payments(database, self.writer, clock=clock, fee_bps=rules.fee_bps)
        self.receipts = ReceiptService(
            database,
            self.leases,
            payments,
            clock=clock,
            sweep_max=bounds.sweep_max,
            remembered_max=bounds.receipts_remembered_max,
        )
        self.lease_service = LeaseService(
            key,
            self.market,
            self.leases,
            self.receipts,
            self.writer,
            database=database,
            clock=clock,
            open_within_ms=bounds.lease_open_within_ms,
        )
        self.records = OwnRecords(database)
        self._lease_server = LeaseServer(
            self.lease_service, self.records, asks_per_minute=rules.client_asks_per_minute
        )
        self.control = ControlServer(
            transport, self.market, self.leases, self.receipts, clock=clock, rng=runtime.child_rng()
        )
        self.pool = StreamPool(transport, JOB_PROTOCOL, role=ROLE, rng=runtime.child_rng())
        self.client = MarketClient(
            self.pool,
            self._leaser(),
            clock=clock,
            entropy=runtime.entropy,
            leases_ahead=rules.leases_ahead,
        )
        self.shelf = DurableShelf(key, database, clock, runtime.entropy)
        self._clock = clock
        self._bounds = bounds
        self._stopping = trio.Event()
        transport.handle(LEASE_PROTOCOL, self._lease_server.handle)
        transport.handle(CONTROL_PROTOCOL, self.control.handle)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop` or cancelled; `started` when leases can be granted.

        The books open first and close last: every client that is served can be charged.
        """
        # Before anything is built on it.
        await self.database.read(check_books, signer=self.key.peer_id)
        async with open_stages() as stages:
            await stages.start("books", self.writer.run)
            await stages.start("books", self._sign_heads)
            await self._restore()
            await stages.start("network", self._take_offers)
            for part in (self.transport, self.pool, self.client, self.control):
                await stages.start("network", part.run)
            await stages.start("network", self._sweep_forever)
            await stages.start("network", self._sweep_shelf)
            log.info("coordinator_started", peer_id=self.key.peer_id)
            task_status.started()
            await self._stopping.wait()
            await self.client.wait_settled(within_s=SETTLED_WITHIN_S)

    async def _restore(self) -> None:
        """Take up what an earlier process left behind."""
        now_ms, bounds = self._clock.now_ms(), self._bounds
        await restore_records(
            self.database, self.market, now_ms=now_ms, answers_max=bounds.answers_restored_max
        )
        await restore_clients(
            self.database, self.leases, now_ms=now_ms, ended_max=bounds.leases_restored_max
        )
        await restore_leases(self.database, self.leases, now_ms=now_ms)

    def _leaser(self) -> Leaser:
        """Where our own client leases and settles."""
        return self.lease_service

    def stop(self) -> None:
        """End `run` when the receipts of our own client are handed in."""
        self._stopping.set()

    async def _sign_heads(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await sign_heads_forever(self.database, self.key, self._clock)

    async def _take_offers(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            for topic in map(offer_topic, range(OFFER_SHARDS)):
                offers = self.transport.subscribe(
                    topic, partial(self._take_offer, topic), queue_max=GOSSIP_QUEUE_MAX
                )
                nursery.start_soon(_drain, offers)
            task_status.started()

    def _take_offer(self, topic: str, data: bytes, via: PeerId) -> bool:
        """Judge gossip once, as it comes: what is not news to us is not passed on either."""
        now_ms = self._clock.now_ms()
        verdict = self.market.book.accept(data, now_ms=now_ms, via=via, topic=topic)
        # What an attaching node brought before gossip did names no node: it is known.
        if verdict.is_news and verdict.node is not None:
            log.info("offer", node=verdict.node, outcome=verdict.outcome.value)
        return verdict.is_news

    async def _sweep_forever(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        while True:
            await trio.sleep(self._bounds.sweep_every_s)
            now_ms = self._clock.now_ms()
            self.market.book.expire(now_ms)
            self.leases.jobs.forget(now_ms)
            self.leases.yield_seats(now_ms)
            try:
                while await self.receipts.sweep() == self._bounds.sweep_max:
                    pass
                while await self.receipts.expire():
                    pass
                await self.receipts.release_unopened()
            except CoordinatorError as error:
                # What is due stays due: a database in trouble must not end the whole market.
                log.error("sweep_failed", error=str(error))

    async def _sweep_shelf(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await self.shelf.sweep_forever()


async def _drain(offers: trio.MemoryReceiveChannel[Gossip]) -> None:
    """They were taken when they were judged."""
    async for _ in offers:
        pass
