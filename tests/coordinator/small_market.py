"""A coordinator, scripted nodes and a buyer on an in-memory network: one process, no models.

The coordinator and the client are the real ones. A `ScriptedNode` speaks the real protocol and does
what its script says: answer, refuse, fall silent, cut the stream, lie about what it delivered.
"""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TypeVar

import trio

from coordinator.app import Coordinator, MarketRules
from coordinator.audit.books import AuditReport, audit
from coordinator.buyer.client import MarketClient
from coordinator.buyer.remote import RemoteLeaser
from coordinator.buyer.spec import Continuation, JobSpec
from coordinator.db.accounts import find_account
from coordinator.db.engine import Connection, Database, InlineRunner, open_database
from coordinator.db.writer import post_one
from coordinator.leasing.granting import LeaseService
from coordinator.leasing.registry import LeaseRegistry
from coordinator.ledger.accounts import Account, AccountKind, account_of
from coordinator.ledger.postings import credit
from protocol.client_session import EMPTY_TOKENS_MAX
from protocol.clock import Clock
from protocol.codec import decode
from protocol.endings import Finish
from protocol.envelope import Signed, seal
from protocol.errors import Code
from protocol.features import Feature
from protocol.generation import GenerationInput
from protocol.ids import LeaseId, PeerId, TransferId, new_ulid, sha256_digest
from protocol.job_frames import Outgoing
from protocol.keys import SigningKey
from protocol.messages import IsolationTier, Lease, Receipt, Task
from protocol.money import NANO_PER_CREDIT
from protocol.net.channels import Channel
from protocol.net.errors import NetError
from protocol.net.link import serve_channels
from protocol.net.memory import MemoryNetwork, MemoryTransport
from protocol.net.pool import StreamPool
from protocol.net.relay_places import RelayLimits
from protocol.net.rpc import RpcClient
from protocol.net.transport import Stream
from protocol.node_session import (
    Accepted,
    CancelRequested,
    Countersignature,
    NodeEvent,
    NodeJob,
    Opened,
)
from protocol.offers import Hardware, LoadReport, ModelLoad, ModelOffer, NodeOffer
from protocol.payload import Chunk, OutputDigest
from protocol.pricing import PriceSheet, Units
from protocol.programs.runtime import Runtime
from protocol.receipts import draft_receipt
from protocol.services import (
    CONTROL_PROTOCOL,
    JOB_PROTOCOL,
    LEASE_PROTOCOL,
    AttachAsk,
    AttachReply,
    Method,
    ReceiptAsk,
    SettleReply,
)
from tests.clocks import MovableClock

R = TypeVar("R")

MODEL = "tiny"
DIGEST = sha256_digest(b"tiny")
WORDS = ("Hello", ",", " world", "!")
INPUT_UNITS = Units(input_tokens=7)
PRICE = PriceSheet(input_nano_per_mtok=20_000_000_000, output_nano_per_mtok=60_000_000_000)
OPENING_CREDIT_NANO = NANO_PER_CREDIT
FEE_BPS = 1_000


class Script(Enum):
    """What a node does with a job."""

    ANSWER = auto()
    REFUSE = auto()  # busy, with a signed receipt of zero
    REFUSE_BARE = auto()  # busy, without a receipt
    BAD_INPUT = auto()  # the client's fault
    LATER_CODE = auto()  # refuses with a code of a later version
    STATE_MISSING = auto()  # says that it lacks rows, of a job that needs none
    VANISH_AT_ONCE = auto()  # drops the channel before any output
    VANISH_MIDWAY = auto()  # drops it after two chunks
    CRASH_MIDWAY = auto()  # after two chunks an error, with a receipt for them
    YIELD_MIDWAY = auto()  # as if a live job wanted the slot
    SIGN_FAILURE_MIDWAY = auto()  # after two chunks a receipt that says that it failed
    OVERCHARGE = auto()  # bills a token more than it sent
    HANG = auto()  # accepts, then says nothing until it is cancelled
    BILL_AND_STALL = auto()  # hands a receipt for the whole ceiling in, then says nothing
    TEXTLESS = auto()  # sends tokens that show no text
    STALL_MIDWAY = auto()  # after two chunks says nothing until it is cancelled


# With a signed receipt of zero.
_REFUSALS = {
    Script.REFUSE: Code.BUSY,
    Script.BAD_INPUT: Code.PROMPT_TOO_LONG,
    Script.LATER_CODE: Code("moon_phase"),
    Script.STATE_MISSING: Code.STATE_MISSING,
}


_MIDWAY_ERRORS = {Script.CRASH_MIDWAY: Code.WORKER_CRASHED, Script.YIELD_MIDWAY: Code.BUSY}


@dataclass
class ScriptedNode:
    """A node that obeys. `receipts` are those that it signed."""

    key: SigningKey
    transport: MemoryTransport
    clock: MovableClock
    price: PriceSheet = PRICE
    features: tuple[str, ...] = (Feature.LATE_PAYLOAD,)
    script: Script = Script.ANSWER
    # What it says of itself, if that is not where it listens.
    listed: tuple[str, ...] | None = None
    receipts: list[Signed[Receipt]] = field(default_factory=list)
    jobs_opened: int = 0
    cancels_seen: int = 0
    incarnation_ms: int = 0
    # How many tokens of each job's input were answered elsewhere before.
    prefixes: dict[LeaseId, int] = field(default_factory=dict)

    async def run(
        self, coordinator: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen, attach, and serve until cancelled."""
        self.transport.handle(JOB_PROTOCOL, self._serve)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.transport.run)
            self.pool = StreamPool(
                self.transport, CONTROL_PROTOCOL, role="node", rng=random.Random(1)
            )
            await nursery.start(self.pool.run)
            await self.transport.connect(coordinator, timeout_s=5)
            # Of a network in memory; others listen where they can be dialled.
            if not getattr(self.transport, "is_dialable", True):
                self.listed = await _reserve(self.transport, coordinator)
            self.coordinator = PeerId(coordinator.rpartition("/p2p/")[2])
            self.incarnation_ms = self.clock.now_ms()
            await self.call(Method.ATTACH, AttachAsk(self.offer().raw, self.load()), AttachReply)
            task_status.started()
            await trio.sleep_forever()

    async def call(self, method: Method, ask: object, reply: type[R]) -> R:
        """Ask the coordinator on the control protocol."""
        return await RpcClient(self.pool).call(self.coordinator, method, ask, reply, timeout_s=5)

    def offer(self, **changes: object) -> Signed[NodeOffer]:
        now_ms = self.clock.now_ms()
        offer = NodeOffer(
            node=self.key.peer_id,
            incarnation_ms=self.incarnation_ms,
            sequence=0,
            issued_at_ms=now_ms,
            expires_at_ms=now_ms + 200_000,
            addresses=self.transport.addresses if self.listed is None else self.listed,
            region="here",
            isolation=IsolationTier.BWRAP,
            hardware=Hardware("cpu", "test", 2**30, 1),
            models=(
                ModelOffer(
                    MODEL,
                    DIGEST,
                    Task.CAUSAL_LM,
                    "bf16",
                    2_048,
                    4,
                    4,
                    1_000,
                    100,
                    self.price,
                    features=self.features,
                ),
            ),
            software="test",
        )
        return seal(self.key, replace(offer, **changes))  # type: ignore[arg-type]  # tests break it

    def load(self, running: int = 0) -> LoadReport:
        return LoadReport(self.incarnation_ms, False, (ModelLoad(DIGEST, running, 0, True),))

    async def _serve(self, stream: Stream) -> None:
        await serve_channels(stream, self.serve_job, role="node")

    async def serve_job(self, channel: Channel) -> None:
        job = NodeJob(self.key)
        opened = await _receive_opened(job, channel)
        if opened is None:
            # A lease that its client gives back.
            receipt = self.sign(job, (), Finish.REFUSED, code=Code.CANCELLED.value)
            channel.send_nowait(*job.receipt(receipt))
            await self._wait_acceptance(job, channel)
            return
        self.jobs_opened += 1
        job_input = decode(GenerationInput, opened.payload)
        self.prefixes[opened.lease.message.lease_id] = len(job_input.prefix_tokens)
        if self.script is Script.VANISH_AT_ONCE:
            return
        if self.script is Script.REFUSE_BARE:
            channel.send_nowait(*job.error(Code.BUSY, "full", receipt=None))
            return
        code = _REFUSALS.get(self.script)
        if code is not None:
            receipt = self.sign(job, (), Finish.REFUSED, code=code.value)
            channel.send_nowait(*job.error(code, "no", receipt=receipt))
            await self._wait_acceptance(job, channel)
            return
        channel.send_nowait(*self.admit(job))
        if self.script is Script.BILL_AND_STALL:
            most = opened.lease.message.units_max.output_tokens
            await self.hand_in(self.sign(job, (Chunk((1,) * most, "x"),), Finish.STOP))
            await trio.sleep(600)
        if self.script is Script.HANG:
            await self._wait_cancel(job, channel, opened)
            return
        sent: list[Chunk] = []
        try:
            await self._answer(job, channel, opened, sent)
        except NetError:
            # The client is gone: what it had got is billed, and handed in by ourselves.
            self.sign(job, tuple(sent), Finish.CANCELLED)

    async def _answer(
        self, job: NodeJob, channel: Channel, opened: Opened, sent: list[Chunk]
    ) -> None:
        done = self.prefixes[opened.lease.message.lease_id]
        for number, word in enumerate(WORDS[done:], start=done):
            is_midway = len(sent) == 2
            if is_midway and self.script is Script.VANISH_MIDWAY:
                return
            if is_midway and self.script is Script.STALL_MIDWAY:
                await self._wait_cancel(job, channel, opened, tuple(sent))
                return
            if is_midway and self.script is Script.SIGN_FAILURE_MIDWAY:
                channel.send_nowait(*job.receipt(self.sign(job, tuple(sent), Finish.FAILED)))
                await self._wait_acceptance(job, channel)
                return
            if is_midway and self.script in _MIDWAY_ERRORS:
                code = _MIDWAY_ERRORS[self.script]
                receipt = self.sign(job, tuple(sent), Finish.FAILED, code.value)
                channel.send_nowait(*job.error(code, "broke off", receipt=receipt))
                await self._wait_acceptance(job, channel)
                return
            sent.append(Chunk((number,), word))
            if self.script is Script.TEXTLESS:
                sent[-1] = Chunk(tuple(range(1 + EMPTY_TOKENS_MAX // len(WORDS))))
            for frame in job.output(sent[-1]):
                channel.send_nowait(*frame)
            await trio.sleep(0.01)
            if read_countersignatures(job, channel):
                channel.send_nowait(*job.receipt(self.sign(job, tuple(sent), Finish.CANCELLED)))
                await self._wait_acceptance(job, channel)
                return
        if self.script is Script.OVERCHARGE:
            sent.append(Chunk((99,), "never sent"))
        channel.send_nowait(*job.receipt(self.sign(job, tuple(sent), Finish.STOP)))
        await self._wait_acceptance(job, channel)

    async def _wait_cancel(
        self, job: NodeJob, channel: Channel, opened: Opened, sent: tuple[Chunk, ...] = ()
    ) -> None:
        while not isinstance(await _receive(job, channel), CancelRequested):
            pass
        self.cancels_seen += 1
        channel.send_nowait(*job.receipt(self.sign(job, sent, Finish.CANCELLED)))
        await self._wait_acceptance(job, channel)

    async def _wait_acceptance(self, job: NodeJob, channel: Channel) -> None:
        with trio.move_on_after(1), suppress(NetError):
            while not isinstance(await _receive(job, channel), Accepted):
                pass

    def admit(self, job: NodeJob) -> Outgoing:
        assert job.terms is not None
        input_units = self.input_of(job.terms.lease.message)
        return job.accepted(input_units, queue_position=0, now_ms=self.clock.now_ms())

    def input_of(self, lease: Lease) -> Units:
        """The prompt, and what was answered elsewhere before."""
        return Units(INPUT_UNITS.input_tokens + self.prefixes.get(lease.lease_id, 0))

    def sign(
        self, job: NodeJob, chunks: tuple[Chunk, ...], finish: Finish, code: str = ""
    ) -> Signed[Receipt]:
        """A receipt with what its client has signed."""
        assert job.terms is not None
        plain = self._receipt(job.terms.lease, chunks, finish, code, job.terms.salt)
        receipt = replace(
            plain, opening=job.terms.opening.raw, countersigned=job.window.countersigned
        )
        self.receipts.append(seal(self.key, receipt))
        return self.receipts[-1]

    def sign_unopened(
        self, lease: Signed[Lease], chunks: tuple[Chunk, ...], finish: Finish, code: str = ""
    ) -> Signed[Receipt]:
        """A receipt without any word of its client."""
        self.receipts.append(seal(self.key, self._receipt(lease, chunks, finish, code, bytes(16))))
        return self.receipts[-1]

    def _receipt(
        self,
        lease: Signed[Lease],
        chunks: tuple[Chunk, ...],
        finish: Finish,
        code: str,
        salt: bytes,
    ) -> Receipt:
        digest = OutputDigest(salt)
        for chunk in chunks:
            digest.add(chunk)
        used = Units(
            input_tokens=(
                0 if finish is Finish.REFUSED else self.input_of(lease.message).input_tokens
            ),
            output_tokens=sum(len(chunk.token_ids) for chunk in chunks),
        )
        receipt = draft_receipt(
            lease,
            used,
            finish,
            output_digest=digest.hexdigest(),
            issued_at_ms=self.clock.now_ms(),
            code=code,
        )
        return replace(receipt, first_output_ms=1, total_ms=2)

    async def hand_in(self, receipt: Signed[Receipt], acceptance: bytes = b"") -> SettleReply:
        """As a node's outbox does."""
        return await self.call(Method.RECEIPT, ReceiptAsk(receipt.raw, acceptance), SettleReply)


async def _reserve(transport: MemoryTransport, relay: str) -> tuple[str, ...]:
    """Our addresses at a relay, once there are any."""
    answered = trio.Event()
    place = transport.reserve(relay, answered.set)
    await answered.wait()
    assert place.addresses, place.failure
    return place.addresses


async def _receive(job: NodeJob, channel: Channel) -> NodeEvent | None:
    frame = await channel.receive()
    return job.receive(frame.type, frame.body)


def read_countersignatures(job: NodeJob, channel: Channel) -> bool:
    """What the client has signed by now; what it lets go is sent. Whether it cancels the job."""
    with suppress(trio.WouldBlock):
        while True:
            frame = channel.receive_nowait()
            event = job.receive(frame.type, frame.body)
            if isinstance(event, CancelRequested):
                return True
            if isinstance(event, Countersignature):
                for released in event.frames:
                    channel.send_nowait(*released)
    return False


async def _receive_opened(job: NodeJob, channel: Channel) -> Opened | None:
    while True:
        frame = await channel.receive()
        event = job.receive(frame.type, frame.body)
        if isinstance(event, CancelRequested):
            return None
        if isinstance(event, Opened):
            return event


@dataclass
class SmallMarket:
    """What a test acts on. `client` buys over the network with `buyer`'s key."""

    network: MemoryNetwork
    clock: MovableClock
    database: Database
    coordinator: Coordinator
    nodes: list[ScriptedNode]
    buyer: SigningKey
    client: MarketClient
    leaser: RemoteLeaser
    nursery: trio.Nursery

    def spec(
        self,
        max_tokens: int = 8,
        deadline_s: float = 30.0,
        continuation: Continuation = Continuation.OFF,
    ) -> JobSpec:
        """Most tests are about one attempt: they see how it ends, as nothing goes on after it."""
        units = Units(input_tokens=16, output_tokens=max_tokens)
        job_input = GenerationInput(max_tokens=max_tokens, prompt="Say hello")
        return JobSpec(
            MODEL,
            Task.CAUSAL_LM,
            job_input,
            units,
            units,
            deadline_s=deadline_s,
            continuation=continuation,
        )

    async def buy(self, **changes: object) -> list[Chunk]:
        """One job, read to its end."""
        async with self.client.buy(self.spec(**changes), self.buyer) as stream:  # type: ignore[arg-type]  # keywords of `spec`
            return [chunk async for chunk in stream]

    def account(self, peer: PeerId) -> Account:
        with self.database.transaction() as conn:
            found = find_account(conn, account_of(peer))
        assert found is not None
        return found

    def audit(self) -> AuditReport:
        with self.database.transaction() as conn:
            return audit(conn)

    def assert_books_are_closed(self) -> None:
        """Green, nothing held, nothing lost."""
        report = self.audit()
        assert report.is_green, report.findings
        assert report.held_nano == 0


def restarted_service(market: SmallMarket) -> LeaseService:
    """One that knows what a new process knows: of leases that have ended, nothing."""
    coordinator = market.coordinator
    return LeaseService(
        coordinator.key,
        coordinator.market,
        LeaseRegistry(coordinator.market),
        coordinator.receipts,
        coordinator.writer,
        database=market.database,
        clock=market.clock,
    )


def give_credit(conn: Connection, peer: PeerId, amount_nano: int, now_ms: int) -> None:
    opens = Account(account_of(peer), AccountKind.CLIENT, created_at_ms=now_ms)
    transfer_id = TransferId(new_ulid(now_ms, peer.encode()[-10:]))
    chain = credit(transfer_id, account_of(peer), amount_nano, opens=opens)
    post_one(conn, chain, now_ms=now_ms)


@asynccontextmanager
async def open_small_market(
    *scripts: Script,
    seed: int = 0,
    credit_nano: int = OPENING_CREDIT_NANO,
    adjust: Callable[[list[ScriptedNode]], None] = lambda nodes: None,
    coordinator_clock: Callable[[Clock], Clock] = lambda clock: clock,
    asks_per_minute: int = 6_000,
    leases_ahead: int = 0,
) -> AsyncIterator[SmallMarket]:
    """A market with a node per script and a buyer with money; `adjust` may change the nodes."""
    rng = random.Random(seed)
    network, clock = MemoryNetwork(rng), MovableClock()
    database = open_database("sqlite://", InlineRunner())
    keys = [SigningKey.generate(rng.randbytes) for _ in range(len(scripts) + 2)]
    coordinator = Coordinator(
        keys[0],
        network.transport(keys[0], relay=RelayLimits()),
        database,
        MarketRules(fee_bps=FEE_BPS, client_asks_per_minute=asks_per_minute),
        Runtime(
            coordinator_clock(clock),
            rng.randbytes,
            rng,
            stopwatch_ns=lambda: 0,
            # A test that moves the market's clock lets time pass.
            monotonic_s=lambda: clock.now_ms() / 1_000,
        ),
    )
    buyer = keys[1]
    if credit_nano:
        with database.transaction() as conn:
            give_credit(conn, buyer.peer_id, credit_nano, clock.now_ms())
    nodes = [
        ScriptedNode(key, network.transport(key), clock, script=script)
        for key, script in zip(keys[2:], scripts, strict=True)
    ]
    adjust(nodes)
    transport = network.transport(buyer)
    leases = StreamPool(transport, LEASE_PROTOCOL, role="client", rng=rng)
    jobs = StreamPool(transport, JOB_PROTOCOL, role="client", rng=rng)
    async with trio.open_nursery() as nursery:
        await nursery.start(coordinator.run)
        address = coordinator.transport.addresses[0]
        for node in nodes:
            await nursery.start(node.run, address)
        await nursery.start(transport.run)
        await nursery.start(leases.run)
        await nursery.start(jobs.run)
        leaser = RemoteLeaser(leases, coordinator.key.peer_id, addresses=(address,))
        client = MarketClient(
            jobs, leaser, clock=clock, entropy=rng.randbytes, leases_ahead=leases_ahead
        )
        await nursery.start(client.run)
        yield SmallMarket(
            network, clock, database, coordinator, nodes, buyer, client, leaser, nursery
        )
        nursery.cancel_scope.cancel()
    database.close()
