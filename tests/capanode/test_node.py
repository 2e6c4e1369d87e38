"""A whole node, without a process: in-memory network, virtual time, a worker that is none."""

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from capanode.benchmark import SpeedCache
from capanode.control import (
    LONGEST_PAUSE_S,
    RESTART_PAUSE_S,
    RESTART_WITHIN_S,
    LineState,
)
from capanode.errors import NodeError, NothingToServeError
from capanode.load_cache import LoadCache
from capanode.milestones import Milestone
from capanode.node import Node, NodeRules
from capanode.outbox_store import OutboxStore
from capanode.pauses import PauseReason
from capanode.reach import ReachState
from capanode.settings import CoordinatorAddress
from capanode.worker.jobs import WorkerState
from capanode.workers import ModelPlan
from protocol.client_session import ClientJob, Ended, Refused, WindowReached
from protocol.codec import encode
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.generation import GenerationInput
from protocol.ids import JobId, LeaseId, PeerId, derive_ulid, new_ulid
from protocol.limits import OFFER_INTERVAL_MIN_MS, OFFER_REFRESH_MS
from protocol.manifest import manifest_digest
from protocol.messages import IsolationTier, JobRequest, Lease, Receipt
from protocol.net.channels import Channel
from protocol.net.clock import VirtualClock
from protocol.net.link import serve_channels
from protocol.net.memory import MemoryNetwork, MemoryTransport
from protocol.net.pool import StreamPool
from protocol.net.relay_places import RelayLimits
from protocol.net.rpc import RpcServer
from protocol.net.transport import Stream
from protocol.offers import Hardware, LoadReport, NodeOffer
from protocol.payload import SaltedPayload
from protocol.pricing import PriceSheet, Units, cost_nano
from protocol.programs.runners import InlineRunner
from protocol.programs.runtime import Runtime
from protocol.reach import DialBackAsk, DialBackReply, Dialled, DialResult
from protocol.services import (
    CONTROL_PROTOCOL,
    JOB_PROTOCOL,
    OFFER_SHARDS,
    AttachAsk,
    AttachReply,
    LoadAck,
    Method,
    Notice,
    ReceiptAsk,
    SettleReply,
    offer_topic,
)
from tests.capanode.fakes import HARDWARE, STEP_S, UNITS_MAX, FakeWorker, make_manifest
from tests.protocol.makers import (
    CLIENT,
    COORDINATOR,
    NODE,
    SALT,
    STRANGER,
    make_lease,
    make_request,
)

PAYLOAD = encode(GenerationInput(max_tokens=5, prompt="hello"))
PRICE = PriceSheet(input_nano_per_mtok=1_000_000, output_nano_per_mtok=9_000_000)


class FakeCoordinator:
    """Takes what nodes say on their control streams, and listens to gossip."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.attached: list[Signed[NodeOffer]] = []
        self.gossiped: list[Signed[NodeOffer]] = []
        self.loads: list[LoadReport] = []
        self.receipts: list[ReceiptAsk] = []
        self.answer: Callable[[], SettleReply] = lambda: SettleReply("settled", 1)
        self.notices: tuple[Notice, ...] = ()
        self.dialled: list[DialBackAsk] = []
        # What comes of a dial; None for a coordinator that cannot dial back.
        self.dial: Callable[[str], Dialled] | None = None
        self.rpc = RpcServer()
        self.rpc.register(Method.ATTACH, AttachAsk, self._attach)
        self.rpc.register(Method.LOAD, LoadReport, self._load)
        self.rpc.register(Method.RECEIPT, ReceiptAsk, self._receipt)
        self.rpc.register(Method.DIAL_BACK, DialBackAsk, self._dial_back)
        transport.handle(CONTROL_PROTOCOL, self._serve)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            for shard in range(OFFER_SHARDS):
                nursery.start_soon(self._follow, shard)
            await nursery.start(self.transport.run)
            task_status.started()

    async def _serve(self, stream: Stream) -> None:
        await serve_channels(stream, self.rpc.serve_channel, role="coordinator")

    async def _follow(self, shard: int) -> None:
        topic = offer_topic(shard)
        channel = self.transport.subscribe(topic, lambda data, via: True, queue_max=100)
        async for gossip in channel:
            self.gossiped.append(open_envelope(gossip.data, NodeOffer))

    async def _attach(self, _node: PeerId, ask: AttachAsk) -> AttachReply:
        self.attached.append(open_envelope(ask.offer, NodeOffer))
        self.loads.append(ask.load)
        return AttachReply(5_000)

    async def _load(self, _node: PeerId, report: LoadReport) -> LoadAck:
        self.loads.append(report)
        return LoadAck(self.notices)

    async def _dial_back(self, _node: PeerId, ask: DialBackAsk) -> DialBackReply:
        if self.dial is None:
            raise RemoteProtocolError("there is no method 'dial_back'", code=Code.NOT_FOUND)
        self.dialled.append(ask)
        results = tuple(DialResult(address, self.dial(address)) for address in ask.addresses)
        return DialBackReply("memory", results)

    async def _receipt(self, _node: PeerId, ask: ReceiptAsk) -> SettleReply:
        self.receipts.append(ask)
        return self.answer()


class FakePool:
    """Makes workers without processes; those that are listed as broken never start."""

    def __init__(self, *, broken: tuple[str, ...] = ()) -> None:
        self.workers: dict[str, FakeWorker] = {}
        self.on_state: dict[str, Callable[[WorkerState], None]] = {}
        self._broken = broken

    def worker(self, plan: ModelPlan, *, on_state: Callable[[WorkerState], None]) -> FakeWorker:
        worker: FakeWorker = FakeWorker(slots=plan.slots)
        if plan.name in self._broken:
            worker = BrokenWorker()
        self.workers[plan.name] = worker
        self.on_state[plan.name] = on_state
        return worker


class BrokenWorker(FakeWorker):
    async def run(self, *, task_status: object = None) -> None:
        await trio.sleep(1)
        raise NodeError("the model did not load")


@dataclass
class World:
    node: Node
    coordinator: FakeCoordinator
    network: MemoryNetwork
    pool: FakePool
    clock: VirtualClock
    store: OutboxStore
    jobs: StreamPool
    milestones: list[Milestone]
    node_scope: trio.CancelScope
    _numbers: list[int] = field(default_factory=list)

    @property
    def worker(self) -> FakeWorker:
        return self.pool.workers["a-model"]

    def line_states(self) -> list[LineState]:
        return [line.status.state for line in self.node.lines]

    def grant(
        self, payload: bytes, *, name: str = "", offer: Signed[NodeOffer] | None = None
    ) -> tuple[Signed[JobRequest], Signed[Lease]]:
        """Of the first model, unless one is named, on the latest offer."""
        now_ms = self.clock.now_ms()
        offer = offer or self.coordinator.attached[-1]
        model = next(m for m in offer.message.models if name in ("", m.name))
        self._numbers.append(1)
        job_id = JobId(new_ulid(now_ms, len(self._numbers).to_bytes(10, "big")))
        request = seal(
            CLIENT,
            replace(
                make_request(CLIENT, payload),
                job_id=job_id,
                units_max=UNITS_MAX,
                issued_at_ms=now_ms,
                deadline_at_ms=now_ms + 60_000,
            ),
        )
        lease = replace(
            make_lease(request),
            lease_id=LeaseId(derive_ulid(job_id, "lease/0")),
            offer_digest=offer.digest,
            model_digest=model.manifest_digest,
            price=model.price,
            units_max=UNITS_MAX,
            ceiling_nano=cost_nano(model.price, UNITS_MAX),
            issued_at_ms=now_ms,
            open_before_ms=now_ms + 30_000,
            deadline_at_ms=now_ms + 60_000,
        )
        return request, seal(COORDINATOR, lease)

    async def run_job(self, tokens: int = 5, *, accept: bool = True) -> Ended | Refused:
        payload = encode(GenerationInput(max_tokens=tokens, prompt="hello"))
        opened = await self.open_job(*self.grant(payload), payload=payload)
        return await self.finish_job(opened, accept=accept)

    async def open_job(
        self, request: Signed[JobRequest], lease: Signed[Lease], *, payload: bytes = PAYLOAD
    ) -> tuple[ClientJob, Channel]:
        channel = await self.jobs.open_channel(
            NODE.peer_id, addresses=self.node.transport.addresses, timeout_s=5
        )
        job = ClientJob(request, lease, SaltedPayload(payload, SALT), CLIENT)
        for frame in job.open(now_ms=self.clock.now_ms()):
            channel.send_nowait(*frame)
        return job, channel

    async def finish_job(
        self, opened: tuple[ClientJob, Channel], *, accept: bool = True
    ) -> Ended | Refused:
        job, channel = opened
        while True:
            frame_in = await channel.receive()
            event = job.receive(frame_in.type, frame_in.body)
            if isinstance(event, Ended):
                if accept:
                    acceptance = job.acceptance(event, now_ms=self.clock.now_ms())
                    channel.send_nowait(FrameType.JOB_ACCEPTANCE, acceptance.raw)
                return event
            if isinstance(event, Refused):
                return event
            if isinstance(event, WindowReached):
                for frame in event.frames:
                    channel.send_nowait(*frame)


def make_plan(name: str, price: PriceSheet | None = PRICE) -> ModelPlan:
    manifest = make_manifest(name)
    return ModelPlan(name, manifest_digest(manifest), manifest, Path("/nowhere"), 2, 1, price)


@asynccontextmanager
async def open_world(
    *,
    broken: tuple[str, ...] = (),
    names: tuple[str, ...] = ("a-model",),
    price: PriceSheet | None = PRICE,
    with_coordinator: bool = True,
    store: OutboxStore | None = None,
    dial: Callable[[str], Dialled] | None = None,
    is_relay: bool = False,
    pool: FakePool | None = None,
    plans: Sequence[ModelPlan] | None = None,
    room: Mapping[str, int] | None = None,
    hardware: Hardware = HARDWARE,
    loads: LoadCache | None = None,
    speeds: SpeedCache | None = None,
) -> AsyncIterator[World]:
    clock = VirtualClock()
    network = MemoryNetwork(random.Random(1))
    relay = RelayLimits() if is_relay else None
    coordinator = FakeCoordinator(network.transport(COORDINATOR, relay=relay))
    coordinator.dial = dial
    client = network.transport(CLIENT)
    jobs = StreamPool(client, JOB_PROTOCOL, role="client", rng=random.Random(2))
    pool = pool or FakePool(broken=broken)
    own_store = store or OutboxStore(None)
    milestones: list[Milestone] = []
    async with trio.open_nursery() as nursery:
        for run in (client.run, jobs.run):
            await nursery.start(run)
        if with_coordinator:
            await nursery.start(coordinator.run)
        address = f"/memory/1/p2p/{COORDINATOR.peer_id}"
        node = Node(
            NODE,
            network.transport(NODE),
            pool,
            plans or [make_plan(name, price) for name in names],
            NodeRules(
                coordinators=(CoordinatorAddress(COORDINATOR.peer_id, address),),
                isolation=IsolationTier.BWRAP,
                hardware=hardware,
                software="capanode/test",
                region="eu",
                drain_s=2.0,
                model_room=room or {},
            ),
            store=own_store,
            speeds=speeds or SpeedCache(None),
            loads=loads,
            runtime=Runtime(clock, random.Random(5).randbytes, random.Random(6), InlineRunner()),
            on_milestone=milestones.append,
        )
        scope = trio.CancelScope()

        async def run_node(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await node.run(task_status=task_status)

        await nursery.start(run_node)
        await trio.sleep(0.1)
        yield World(node, coordinator, network, pool, clock, own_store, jobs, milestones, scope)
        nursery.cancel_scope.cancel()
    if store is None:
        own_store.close()


async def test_a_node_measures_prices_announces_and_attaches(autojump_clock: MockClock) -> None:
    async with open_world(price=None) as world:
        offer = world.coordinator.attached[0].message
        (model,) = offer.models
        assert offer.node == NODE.peer_id
        assert (offer.region, offer.isolation) == ("eu", IsolationTier.BWRAP)
        assert offer.addresses == world.node.transport.addresses
        assert model.decode_tps == pytest.approx(1 / STEP_S, rel=0.1)
        assert model.prefill_tps > 0
        assert model.price.output_nano_per_mtok > 0
        assert [milestone.name for milestone in world.milestones] == [
            "model_loading",
            "model_measuring",
            "model_ready",
            "ready",
        ]


async def test_a_job_through_the_whole_node_is_paid(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        ended = await world.run_job()
        assert isinstance(ended, Ended)
        assert ended.agrees
        await trio.sleep(1)
        (handed_in,) = world.coordinator.receipts
        assert handed_in.receipt == ended.receipt.raw
        assert handed_in.acceptance
        (earning,) = await world.node.outbox.earnings()
        assert (earning.state, earning.jobs) == ("settled", 1)


async def test_a_receipt_is_handed_in_until_it_is_acknowledged_and_then_no_more(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:

        def busy() -> SettleReply:
            raise RemoteProtocolError("later", code=Code.STORAGE_FULL)

        world.coordinator.answer = busy
        await world.run_job()
        await trio.sleep(20)
        tries = len(world.coordinator.receipts)
        assert tries >= 2
        assert len({ask.receipt for ask in world.coordinator.receipts}) == 1
        world.coordinator.answer = lambda: SettleReply("settled", 1)
        await trio.sleep(60)
        acknowledged = len(world.coordinator.receipts)
        await trio.sleep(600)
        assert len(world.coordinator.receipts) == acknowledged == tries + 1
        (earning,) = await world.node.outbox.earnings()
        assert (earning.state, earning.jobs) == ("settled", 1)


async def test_a_receipt_that_the_coordinator_rejects_is_kept_but_not_repeated(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:

        def reject() -> SettleReply:
            raise RemoteProtocolError("no such lease", code=Code.NOT_FOUND)

        world.coordinator.answer = reject
        await world.run_job()
        await trio.sleep(600)
        assert len(world.coordinator.receipts) == 1
        (earning,) = await world.node.outbox.earnings()
        assert earning.state == "refused"


async def test_a_pending_receipt_is_asked_about_until_it_is_paid(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        world.coordinator.answer = lambda: SettleReply("pending", 1)
        await world.run_job(accept=False)
        await trio.sleep(10)
        assert [e.state for e in await world.node.outbox.earnings()] == ["pending"]
        assert len(world.coordinator.receipts) == 1
        world.coordinator.answer = lambda: SettleReply("settled", 1)
        await trio.sleep(600)
        (earning,) = await world.node.outbox.earnings()
        assert (earning.state, earning.jobs) == ("settled", 1)
        assert len(world.coordinator.receipts) == 2


async def test_receipts_wait_for_a_coordinator_that_is_away(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.network.partition([COORDINATOR.peer_id], [NODE.peer_id, CLIENT.peer_id])
        assert isinstance(await world.run_job(), Ended)
        await trio.sleep(120)
        assert not world.coordinator.receipts
        assert world.line_states() == [LineState.LOST]
        assert world.node.lines[0].status.error
        world.network.heal()
        await trio.sleep(120)
        assert len(world.coordinator.receipts) == 1
        assert world.line_states() == [LineState.ATTACHED]


async def test_what_is_earned_is_counted_after_the_fee(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        for share_nano, paid_nano in ((95, 95), (None, 95 + 100)):
            world.coordinator.answer = partial(SettleReply, "settled", 100, share_nano)
            await world.run_job()
            await trio.sleep(5)
            totals = await world.node.outbox.paid()
            assert (totals.today_nano, totals.all_nano) == (paid_nano, paid_nano)


async def test_a_paused_node_finishes_what_runs_takes_no_more_and_comes_back(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        ends: list[Ended | Refused] = []

        async def run() -> None:
            ends.append(await world.run_job(50))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.sleep(0.1)
            world.node.pauses.set(PauseReason.OWNER, "paused")
            world.node.pauses.set(PauseReason.HEAT, "hot")
            refused = await world.run_job()
        assert isinstance(refused, Refused)
        assert refused.code is Code.DRAINING
        assert isinstance(ends[0], Ended)
        await trio.sleep(OFFER_INTERVAL_MIN_MS / 1000 + 1)
        assert world.coordinator.gossiped[-1].message.models == ()
        away = [world.coordinator.loads[-1].draining]
        for reason in (PauseReason.OWNER, PauseReason.HEAT):
            world.node.pauses.clear(reason)
            await trio.sleep(OFFER_INTERVAL_MIN_MS / 1000 + 1)
            away.append(world.coordinator.loads[-1].draining)
        assert away == [True, True, False], "until the last reason has gone"
        assert isinstance(await world.run_job(), Ended)


async def test_a_new_price_is_asked_of_new_jobs_and_leases_keep_theirs(
    autojump_clock: MockClock,
) -> None:
    """Case G6: no lease that was granted on the old price is refused, however late it is opened."""
    dearer = replace(PRICE, output_nano_per_mtok=2 * PRICE.output_nano_per_mtok)
    async with open_world() as world:
        waiting = [world.grant(PAYLOAD) for _ in range(3)]
        opened = await world.open_job(*waiting[0])
        world.node.change(replace(world.node.rules, queue_max=3), {"a-model": dearer})
        assert isinstance(await world.finish_job(opened), Ended)
        old = await world.finish_job(await world.open_job(*waiting[1]))
        assert isinstance(old, Ended)
        await trio.sleep(OFFER_INTERVAL_MIN_MS / 1000 + 1)
        offered = world.coordinator.attached[-1].message.models[0]
        assert (offered.price, offered.queue_max) == (dearer, 3)
        late = await world.finish_job(await world.open_job(*waiting[2]))
        assert isinstance(late, Ended)
        new = await world.run_job()
        assert isinstance(new, Ended)
        assert late.receipt.message.amount_nano == old.receipt.message.amount_nano
        assert new.receipt.message.amount_nano > old.receipt.message.amount_nano


async def test_load_is_reported_when_it_changes_and_as_a_sign_of_life(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        before = len(world.coordinator.loads)
        await trio.sleep(20.2)
        idle = world.coordinator.loads[before:]
        assert 3 <= len(idle) <= 5
        assert all(report.models[0].running == 0 for report in idle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(world.run_job, 50))
            nursery.start_soon(partial(world.run_job, 50))
        busy = world.coordinator.loads[before + len(idle) :]
        assert max(report.models[0].running for report in busy) == 2
        await trio.sleep(1)
        assert world.coordinator.loads[-1].models[0].running == 0


async def test_an_offer_is_refreshed_rarely_and_changed_soon(autojump_clock: MockClock) -> None:
    async with open_world(names=("a-model", "b-model")) as world:
        await trio.sleep(10 * OFFER_REFRESH_MS / 1000)
        refreshed = len(world.coordinator.gossiped)
        assert 8 <= refreshed <= 12
        assert len(world.coordinator.gossiped[-1].message.models) == 2
        world.pool.workers["b-model"].state = WorkerState.UNAVAILABLE
        world.pool.on_state["b-model"](WorkerState.UNAVAILABLE)
        await trio.sleep(OFFER_INTERVAL_MIN_MS / 1000 + 1)
        changed = world.coordinator.gossiped[-1].message
        assert len(world.coordinator.gossiped) == refreshed + 1
        assert [model.name for model in changed.models] == ["a-model"]
        assert world.coordinator.attached[-1].message.sequence == changed.sequence


async def test_a_worker_that_restarts_is_reported_away_but_stays_offered(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        gossiped = len(world.coordinator.gossiped)
        world.worker.crash()
        world.pool.on_state["a-model"](WorkerState.RESTARTING)
        await trio.sleep(5)
        assert not world.coordinator.loads[-1].models[0].available
        assert len(world.coordinator.gossiped) == gossiped


async def test_a_model_that_does_not_start_is_left_out(autojump_clock: MockClock) -> None:
    async with open_world(names=("a-model", "b-model"), broken=("b-model",)) as world:
        offer = world.coordinator.attached[0].message
        assert [model.name for model in offer.models] == ["a-model"]
        assert "model_failed" in {milestone.name for milestone in world.milestones}


async def test_a_node_with_nothing_to_serve_says_so(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(NothingToServeError, flatten_subgroups=True):
        async with open_world(broken=("a-model",)):
            pass


async def test_stopping_finishes_jobs_tells_everybody_and_hands_in(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        ends: list[Ended | Refused] = []

        async def run() -> None:
            ends.append(await world.run_job(50))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.sleep(0.1)
            world.node.stop()
        assert isinstance(ends[0], Ended)
        await trio.sleep(5)
        assert world.coordinator.loads[-1].draining
        assert world.coordinator.gossiped[-1].message.models == ()
        assert len(world.coordinator.receipts) == 1
        assert NODE.peer_id not in world.coordinator.transport.connected_peers()


async def test_a_node_killed_with_a_job_running_still_has_its_receipt(
    autojump_clock: MockClock,
) -> None:
    store = OutboxStore(None)
    async with open_world(store=store) as world:

        async def run() -> None:
            await world.run_job(50)

        with pytest.RaisesGroup(pytest.RaisesExc(Exception), allow_unwrapped=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await trio.sleep(0.3)
                world.node_scope.cancel()
    (stored,) = store.load()
    receipt = open_envelope(stored.receipt, Receipt, signer=NODE.peer_id).message
    assert receipt.units.output_tokens > 0
    assert receipt.code == Code.DRAINING
    store.close()


async def test_a_node_without_a_coordinator_keeps_trying_with_patience(
    autojump_clock: MockClock,
) -> None:
    async with open_world(with_coordinator=False) as world:
        await trio.sleep(2 * RESTART_WITHIN_S)
        assert world.line_states() == [LineState.LOST]
        async with trio.open_nursery() as nursery:
            await nursery.start(world.coordinator.run)
            await trio.sleep(2 * LONGEST_PAUSE_S)
            assert world.line_states() == [LineState.ATTACHED]
            assert world.coordinator.attached
            nursery.cancel_scope.cancel()


async def test_a_node_that_starts_before_its_coordinator_attaches_within_a_second_of_it(
    autojump_clock: MockClock,
) -> None:
    async with open_world(with_coordinator=False) as world:
        await trio.sleep(30)
        assert world.line_states() == [LineState.LOST]
        async with trio.open_nursery() as nursery:
            await nursery.start(world.coordinator.run)
            await trio.sleep(RESTART_PAUSE_S + 0.1)
            assert world.line_states() == [LineState.ATTACHED]
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("away_s", [0.1, 3.0, 20.0, 100.0])
async def test_a_node_is_back_within_a_second_of_its_coordinator(
    autojump_clock: MockClock, away_s: float
) -> None:
    async with open_world(with_coordinator=False) as world:
        async with trio.open_nursery() as nursery:
            await nursery.start(world.coordinator.run)
            await trio.sleep(2 * LONGEST_PAUSE_S)
            world.network.kill(COORDINATOR.peer_id)
            nursery.cancel_scope.cancel()
        await trio.sleep(away_s)
        assert world.line_states() == [LineState.LOST]
        again = FakeCoordinator(world.network.transport(COORDINATOR, port=1))
        async with trio.open_nursery() as nursery:
            await nursery.start(again.run)
            await trio.sleep(RESTART_PAUSE_S + 0.1)
            assert world.line_states() == [LineState.ATTACHED]
            nursery.cancel_scope.cancel()


async def test_someone_who_runs_a_copy_of_our_key_is_noticed(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        await trio.sleep(1)
        assert world.node.announcer.current is not None
        ours = world.node.announcer.current.message
        twin = replace(
            ours,
            incarnation_ms=ours.incarnation_ms + 500,
            issued_at_ms=world.clock.now_ms(),
            sequence=1,
        )
        await world.coordinator.transport.publish(world.node.announcer.topic, seal(NODE, twin).raw)
        await trio.sleep(1)
        assert world.node.announcer.twin_seen


async def test_units_of_a_job_reach_the_status(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        await world.run_job(7)
        (model,) = world.node.models.values()
        assert (model.jobs_done, model.output_tokens_done) == (1, 7)
        assert Units(output_tokens=7).fits_in(UNITS_MAX)


def reached(_address: str) -> Dialled:
    return Dialled.REACHED


def timed_out(_address: str) -> Dialled:
    return Dialled.TIMED_OUT


async def test_the_first_offer_lists_only_what_was_seen_to_work(autojump_clock: MockClock) -> None:
    async with open_world(dial=reached) as world:
        (ask,) = world.coordinator.dialled
        assert ask.addresses == world.node.transport.addresses
        assert world.coordinator.attached[0].message.addresses == ask.addresses
        assert world.node.reach.state is ReachState.DIRECT
    async with open_world(dial=timed_out) as world:
        assert world.coordinator.attached[0].message.addresses == ()
        assert world.node.reach.state is ReachState.UNREACHABLE
        assert world.node.reach.status().tried[0].outcome is Dialled.TIMED_OUT


async def test_a_coordinator_that_cannot_dial_is_given_what_the_node_believes(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        offered = world.coordinator.attached[0].message.addresses
        assert offered == world.node.transport.addresses
        assert world.node.reach.state is ReachState.UNKNOWN


async def test_a_notice_makes_the_node_look_again_and_offer_anew(
    autojump_clock: MockClock,
) -> None:
    async with open_world(dial=reached) as world:
        world.coordinator.dial = timed_out
        world.coordinator.notices = (Notice.DIAL_BACK,)
        await trio.sleep(10)
        assert world.coordinator.attached[-1].message.addresses == ()
        world.coordinator.dial = reached
        await trio.sleep(10)
        assert world.coordinator.attached[-1].message.addresses == world.node.transport.addresses


async def test_a_machine_that_changes_its_network_offers_its_new_address_within_ten_seconds(
    autojump_clock: MockClock,
) -> None:
    async with open_world(dial=reached) as world:
        transport = world.node.transport
        assert isinstance(transport, MemoryTransport)
        before = transport.addresses
        transport.move(77)
        await trio.sleep(10)
        offered = world.coordinator.attached[-1].message.addresses
        assert offered == transport.addresses != before
        assert world.line_states() == [LineState.ATTACHED]
        gossiped = world.coordinator.gossiped[-1].message
        assert gossiped.addresses == offered


async def test_a_node_is_told_of_its_twin_and_outranks_one_that_is_gone(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        announcer = world.node.announcer
        began = announcer.incarnation_ms
        world.coordinator.notices = (Notice.TWIN,)
        await trio.sleep(6)
        assert announcer.twin_seen
        world.coordinator.notices = (Notice.OUTRANKED,)
        await trio.sleep(6)
        assert announcer.incarnation_ms == began, "its twin was heard a moment ago"
        await trio.sleep(14)
        assert announcer.incarnation_ms > began
        world.coordinator.notices = ()
        await trio.sleep(6)
        assert world.coordinator.attached[-1].message.incarnation_ms == announcer.incarnation_ms
        assert world.coordinator.loads[-1].incarnation_ms == announcer.incarnation_ms
        await trio.sleep(60)
        assert not announcer.twin_seen


async def test_words_of_a_later_version_are_no_concern(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.coordinator.notices = (Notice("moon_phase"), Notice.DIAL_BACK)
        await trio.sleep(12)
        assert world.line_states() == [LineState.ATTACHED]


async def test_a_node_that_nothing_can_dial_offers_a_relay_until_something_can(
    autojump_clock: MockClock,
) -> None:
    async with open_world(dial=timed_out, is_relay=True) as world:
        await trio.sleep(5)
        assert world.node.reach.status().state is ReachState.RELAYED
        (address,) = world.coordinator.attached[-1].message.addresses
        assert "/p2p-circuit/" in address
        client = world.network.transport(STRANGER)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            assert await client.connect(address, timeout_s=5) == NODE.peer_id
            nursery.cancel_scope.cancel()
        world.coordinator.dial = reached
        await trio.sleep(70)
        assert world.node.reach.status().state is ReachState.DIRECT
        assert world.coordinator.attached[-1].message.addresses == world.node.transport.addresses
        assert not world.node.reach.status().relays
