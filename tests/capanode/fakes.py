"""A worker without a process, and a market of one node on the in-memory network."""

import dataclasses
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from capanode.admission import Admission, AdmissionRules
from capanode.announce import OwnOffers
from capanode.engines.base import Completed, EngineInfo, Failed, Produced, Started
from capanode.jobs import JobServer
from capanode.measurements import Speed
from capanode.outbox import Outbox
from capanode.outbox_store import OutboxStore
from capanode.seats import Seats
from capanode.served import ServedModel
from capanode.worker.allowance import DEFAULT_TERMS, RunTerms
from capanode.worker.jobs import EventSink, JobBook, WorkerExit, WorkerState
from protocol.client_session import ClientEvent, ClientJob, Ended, Refused, WindowReached
from protocol.codec import encode
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.generation import GenerationInput
from protocol.ids import Digest, JobId, LeaseId, PeerId, derive_ulid, new_ulid, sha256_digest
from protocol.keys import SigningKey
from protocol.manifest import ModelFile, ModelManifest, manifest_digest
from protocol.messages import Acceptance, DataCollection, IsolationTier, JobRequest, Lease, Task
from protocol.net.channels import Channel
from protocol.net.clock import VirtualClock
from protocol.net.memory import MemoryNetwork
from protocol.net.pool import StreamPool
from protocol.offers import Hardware, NodeOffer
from protocol.payload import SaltedPayload
from protocol.pricing import PriceSheet, Units, cost_nano
from protocol.programs.runners import InlineRunner, Runner
from protocol.services import JOB_PROTOCOL
from protocol.tasks import decode_input
from tests.protocol.makers import CLIENT, COORDINATOR, NODE, PRICE, SALT, make_lease, make_request

T = TypeVar("T")

STEP_S = 0.01
HARDWARE = Hardware("cpu", "a test machine", 8 * 1024**3, 1)
UNITS_MAX = Units(input_tokens=100, output_tokens=50)


def make_manifest(name: str = "a-model", task: Task = Task.CAUSAL_LM) -> ModelManifest:
    file = ModelFile("config.json", sha256_digest(name.encode()), 1)
    return ModelManifest(name, task, "Fake", (file,), "bf16", "bf16", 2048, "mit", "file:fake")


class SlowDisk(InlineRunner):
    """A runner whose writes take a second."""

    async def run_write(self, call: Callable[[], T]) -> T:
        await trio.sleep(1)
        return call()


class FakeWorker:
    """Answers one token a step for each job. Honours the contract of `JobWorker`: events arrive
    between steps, never from inside `submit` or `cancel`."""

    def __init__(self, *, slots: int = 2, task: Task = Task.CAUSAL_LM) -> None:
        self.info: EngineInfo | None = EngineInfo(task, slots, 2048, "bf16")
        self.state = WorkerState.READY
        self.last_ending: WorkerExit | None = None
        self.book = JobBook()
        self.live: dict[str, tuple[GenerationInput, int]] = {}
        self.most_live = 0
        self.terms: list[RunTerms] = []
        self.work = trio.Event()

    def submit(
        self, job_id: str, payload: bytes, sink: EventSink, *, terms: RunTerms = DEFAULT_TERMS
    ) -> None:
        if self.state is not WorkerState.READY:
            raise RemoteProtocolError("not ready", code=Code.MODEL_UNAVAILABLE)
        self.book.add(job_id, sink)
        self.terms.append(terms)
        job_input = decode_input(Task.CAUSAL_LM, payload)
        assert isinstance(job_input, GenerationInput)
        self.live[job_id] = (job_input, -1)
        self.most_live = max(self.most_live, len(self.live))
        self.work.set()

    def cancel(self, job_id: str) -> None:
        self.live.pop(job_id, None)
        self.book.remove(job_id)

    async def run(
        self, *, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED
    ) -> None:
        assert self.info is not None
        task_status.started(self.info)
        while True:
            await self.work.wait()
            self.work = trio.Event()
            while self.live:
                await trio.sleep(STEP_S)
                self.step()

    def step(self) -> None:
        for job_id, (job_input, done) in tuple(self.live.items()):
            if job_id not in self.live:
                continue
            self.live[job_id] = (job_input, done + 1)
            if done < 0:
                units = Units(input_tokens=len(job_input.prompt or ""))
                self.book.deliver([Started(job_id, units)])
            elif done < job_input.max_tokens:
                self.book.deliver([Produced(job_id, (done,), f"t{done} ")])
            else:
                del self.live[job_id]
                units = Units(len(job_input.prompt or ""), done)
                self.book.deliver([Completed(job_id, "length", units)])

    def crash(self, code: Code = Code.WORKER_CRASHED) -> None:
        self.state = WorkerState.RESTARTING
        self.live.clear()
        self.book.fail_all(code, "killed by SIGSEGV in /secret/place")

    def fail(self, job_id: str, code: Code) -> None:
        del self.live[job_id]
        self.book.deliver([Failed(job_id, code, "no", Units())])


@dataclass
class Market:
    """One node with one model, a client's pool, and a coordinator's key to sign leases with."""

    clock: VirtualClock
    worker: FakeWorker
    model: ServedModel
    admission: Admission
    server: JobServer
    outbox: Outbox
    store: OutboxStore
    offer: Signed[NodeOffer]
    pool: StreamPool
    network: MemoryNetwork
    address: str
    changes: list[int] = field(default_factory=list)
    leases: list[Signed[Lease]] = field(default_factory=list)
    _numbers: int = 0

    def request(self, payload: bytes, *, key: SigningKey = CLIENT, **changes: Any) -> JobRequest:
        now_ms = self.clock.now_ms()
        self._numbers += 1
        entropy = self._numbers.to_bytes(10, "big")
        request = dataclasses.replace(
            make_request(key, payload),
            job_id=JobId(new_ulid(now_ms, entropy)),
            units_max=UNITS_MAX,
            issued_at_ms=now_ms,
            deadline_at_ms=now_ms + 60_000,
        )
        return dataclasses.replace(request, **changes)

    def lease(self, request: Signed[JobRequest], **changes: Any) -> Lease:
        asked = request.message
        now_ms = self.clock.now_ms()
        lease = dataclasses.replace(
            make_lease(request),
            lease_id=LeaseId(derive_ulid(asked.job_id, "lease/0")),
            offer_digest=self.offer.digest,
            model_digest=self.model.digest,
            price=self.model.price,
            units_max=asked.units_max,
            ceiling_nano=cost_nano(self.model.price, asked.units_max),
            issued_at_ms=now_ms,
            open_before_ms=now_ms + 30_000,
            deadline_at_ms=asked.deadline_at_ms,
        )
        return dataclasses.replace(lease, **changes)

    async def channel(self) -> Channel:
        return await self.pool.open_channel(NODE.peer_id, addresses=(self.address,), timeout_s=5.0)

    async def open(self, tokens: int = 5, *, prompt: str = "hello", **lease: Any) -> "Client":
        """A job under an ordinary lease; `lease` changes fields of it before it is signed."""
        payload = encode(GenerationInput(max_tokens=tokens, prompt=prompt))
        request = seal(CLIENT, self.request(payload))
        self.leases.append(seal(COORDINATOR, self.lease(request, **lease)))
        return await self.open_as(request, self.leases[-1], payload)

    async def open_as(
        self, request: Signed[JobRequest], lease: Signed[Lease], payload: bytes
    ) -> "Client":
        job = ClientJob(request, lease, SaltedPayload(payload, SALT), CLIENT)
        client = Client(job, await self.channel(), self.clock)
        client.open()
        # Jobs that arrive in the same instant are served in any order.
        await trio.sleep(STEP_S / 10)
        return client


@dataclass
class Client:
    """The client's side of one job, checked by the protocol's own client session."""

    job: ClientJob
    channel: Channel
    clock: VirtualClock
    events: list[ClientEvent] = field(default_factory=list)
    signs: bool = True

    def open(self) -> None:
        for frame in self.job.open(now_ms=self.clock.now_ms()):
            self.channel.send_nowait(*frame)

    async def next(self) -> ClientEvent:
        frame = await self.channel.receive()
        event = self.job.receive(frame.type, frame.body)
        self.events.append(event)
        if isinstance(event, WindowReached) and self.signs:
            for reply in event.frames:
                self.channel.send_nowait(*reply)
        return event

    async def end(self) -> Ended | Refused:
        """Read to the end."""
        with trio.fail_after(600):
            while True:
                event = await self.next()
                if isinstance(event, Ended | Refused):
                    return event

    def cancel(self) -> None:
        for frame in self.job.cancel():
            self.channel.send_nowait(*frame)

    def accept(self, ended: Ended) -> Signed[Acceptance]:
        acceptance = self.job.acceptance(ended, now_ms=self.clock.now_ms())
        self.channel.send_nowait(FrameType.JOB_ACCEPTANCE, acceptance.raw)
        return acceptance


@dataclass(frozen=True)
class Setup:
    slots: int = 2
    queue_max: int = 2
    per_client_max: int = 64
    isolation: IsolationTier = IsolationTier.BWRAP
    data_collection: DataCollection = DataCollection.DENY
    coordinators: frozenset[PeerId] = frozenset({COORDINATOR.peer_id})
    receipts_max: int = 100
    disk: Runner = field(default_factory=InlineRunner)


@asynccontextmanager
async def open_market(setup: Setup = Setup()) -> AsyncIterator[Market]:
    clock = VirtualClock()
    manifest = make_manifest()
    worker = FakeWorker(slots=setup.slots)
    model = make_model(manifest, worker, queue_max=setup.queue_max)
    store = OutboxStore(None)
    outbox = Outbox(store, clock=clock, runner=setup.disk, receipts_max=setup.receipts_max)
    offers = OwnOffers()
    offer = seal(NODE, make_offer(model, clock.now_ms()))
    offers.remember(offer)
    admission = Admission(
        AdmissionRules(
            node=NODE.peer_id,
            coordinators=setup.coordinators,
            isolation=setup.isolation,
            data_collection=setup.data_collection,
            per_client_max=setup.per_client_max,
        ),
        {model.digest: model},
        offers,
        storage_failure=lambda: outbox.failure,
    )
    changes: list[int] = []
    server = JobServer(
        NODE, admission, outbox, clock=clock, on_change=lambda: changes.append(model.seats.running)
    )
    network = MemoryNetwork(random.Random(1))
    node, client = network.transport(NODE), network.transport(CLIENT)
    node.handle(JOB_PROTOCOL, server.serve)
    pool = StreamPool(client, JOB_PROTOCOL, role="client", rng=random.Random(2))
    async with trio.open_nursery() as nursery:
        for run in (outbox.run, worker.run, node.run, client.run, pool.run):
            await nursery.start(run)
        yield Market(
            clock,
            worker,
            model,
            admission,
            server,
            outbox,
            store,
            offer,
            pool,
            network,
            node.addresses[0],
            changes,
        )
        nursery.cancel_scope.cancel()
    store.close()


def make_model(
    manifest: ModelManifest,
    worker: FakeWorker,
    *,
    queue_max: int = 2,
    price: PriceSheet = PRICE,
) -> ServedModel:
    assert worker.info is not None
    return ServedModel(
        name=manifest.name,
        digest=Digest(manifest_digest(manifest)),
        manifest=manifest,
        worker=worker,
        seats=Seats(slots=worker.info.slots, queue_max=queue_max),
        speed=Speed(100, 10, 50),
        price=price,
    )


def make_offer(model: ServedModel, now_ms: int) -> NodeOffer:
    return NodeOffer(
        node=NODE.peer_id,
        incarnation_ms=now_ms,
        sequence=1,
        issued_at_ms=now_ms,
        expires_at_ms=now_ms + 240_000,
        addresses=(),
        region="eu",
        isolation=IsolationTier.BWRAP,
        hardware=HARDWARE,
        models=(model.offer(),),
        software="capanode/test",
    )
