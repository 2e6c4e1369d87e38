"""A party with a key of its own that speaks to the coordinator over libp2p, honestly or not."""

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from coordinator.buyer.client import MarketClient
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.remote import RemoteLeaser
from coordinator.buyer.spec import JobSpec
from coordinator.buyer.units import units_of
from coordinator.endpoint import Endpoint
from protocol.client_session import ClientJob, Ended, WindowReached
from protocol.codec import encode
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.generation import GenerationInput
from protocol.ids import ULID_ENTROPY_BYTES, JobId, PeerId, new_ulid
from protocol.keys import SigningKey
from protocol.limits import SALT_BYTES
from protocol.messages import Constraints, JobRequest, Lease, Objective, Task
from protocol.net.channels import Channel
from protocol.net.clock import SystemClock
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.libp2p import Libp2pTransport
from protocol.net.pool import StreamPool
from protocol.offers import NodeOffer
from protocol.payload import EmbeddingInput, SaltedPayload
from protocol.pricing import Units
from protocol.services import JOB_PROTOCOL, LEASE_PROTOCOL, NodesAsk

ROLE = "client"
INPUT = GenerationInput(max_tokens=8, prompt="Say hello", temperature=0.0)
_SALT = bytes(SALT_BYTES)
_CONNECT_WITHIN_S = 10.0
_DEADLINE_S = 20.0
# A channel that is closed drops what waits to be sent.
_LAST_FRAME_TRAVELS_S = 0.2


@dataclass(frozen=True, slots=True)
class Wish:
    """What a peer asks for; `job_id` is a new one by default. `units` is what it says that it will
    need, whatever the input is."""

    model: str
    job_input: GenerationInput | EmbeddingInput = INPUT
    units: Units | None = None
    job_id: JobId | None = None
    only: tuple[PeerId, ...] = ()
    deadline_s: float = _DEADLINE_S

    @property
    def payload(self) -> SaltedPayload:
        return SaltedPayload(encode(self.job_input), _SALT)


@dataclass(frozen=True, slots=True)
class Peer:
    """`client` buys as our own programs do; `lease` only asks."""

    key: SigningKey
    transport: Libp2pTransport
    jobs: StreamPool
    leaser: RemoteLeaser
    client: MarketClient

    async def lease(self, wish: Wish) -> tuple[Signed[JobRequest], Signed[Lease]]:
        """Raises RemoteProtocolError as the coordinator refuses, NetError."""
        request = seal(self.key, self._request(wish))
        return request, (await self.leaser.lease(request)).lease

    async def try_lease(self, wish: Wish) -> Code | None:
        """The refusal's code, or None if there is a lease now."""
        try:
            await self.lease(wish)
        except RemoteProtocolError as error:
            return error.code
        return None

    async def ask_again(self, request: Signed[JobRequest]) -> Code | None:
        """Lease what was leased before, as after a failed attempt."""
        try:
            await self.leaser.lease(request)
        except RemoteProtocolError as error:
            return error.code
        return None

    async def buy(self, model: str, job_input: GenerationInput = INPUT) -> str:
        """The text of a whole answer. Raises JobFailed."""
        units_max, units_expected = units_of(job_input)
        spec = JobSpec(
            model, Task.CAUSAL_LM, job_input, units_max, units_expected, deadline_s=_DEADLINE_S
        )
        async with self.client.buy(spec, self.key) as purchase:
            text = "".join([chunk.text async for chunk in purchase])
        await self.client.wait_settled()
        return text

    async def tries_to_buy(self, model: str, job_input: GenerationInput = INPUT) -> bool:
        """Whether there was an answer."""
        try:
            return bool(await self.buy(model, job_input))
        except JobFailed:
            return False

    async def run_unsettled(self, model: str) -> Signed[JobRequest]:
        """Take a whole answer and countersign it, but only to the node: nothing is handed in."""
        async with self.opened_job(Wish(model)) as opened:
            while True:
                arrived = await opened.channel.receive()
                event = opened.job.receive(arrived.type, arrived.body)
                if isinstance(event, WindowReached):
                    for frame in event.frames:
                        opened.channel.send_nowait(*frame)
                if isinstance(event, Ended):
                    acceptance = opened.job.acceptance(event, now_ms=SystemClock().now_ms())
                    opened.channel.send_nowait(FrameType.JOB_ACCEPTANCE, acceptance.raw)
                    await trio.sleep(_LAST_FRAME_TRAVELS_S)
                    return opened.request

    @asynccontextmanager
    async def opened_job(
        self, wish: Wish, *, is_whole: bool = True
    ) -> AsyncIterator["OpenedByHand"]:
        """A job at the node that was leased, whose frames are ours to send and to read. Unless
        `is_whole`, only the first piece of its payload is sent. Raises RemoteProtocolError,
        NetError."""
        request, lease = await self.lease(wish)
        job = ClientJob(request, lease, wish.payload, self.key)
        channel = await self._open_at_node(lease.message.node, wish.model)
        try:
            frames = job.open(now_ms=SystemClock().now_ms())
            for frame in frames if is_whole else frames[:1]:
                await channel.send(*frame)
            yield OpenedByHand(request, job, channel)
        finally:
            channel.close()

    async def _open_at_node(self, node: PeerId, model: str) -> Channel:
        """A channel for a job. Raises NetError."""
        page = await self.leaser.nodes(NodesAsk(model))
        [summary] = [summary for summary in page.nodes if summary.node == node]
        addresses = open_envelope(summary.offer, NodeOffer).message.addresses
        return await self.jobs.open_channel(node, addresses=addresses, timeout_s=_CONNECT_WITHIN_S)

    def _request(self, wish: Wish) -> JobRequest:
        now_ms = SystemClock().now_ms()
        units_max, units_expected = units_of(wish.job_input)
        if wish.units is not None:
            units_max = units_expected = wish.units
        is_text = isinstance(wish.job_input, GenerationInput)
        payload = wish.payload
        return JobRequest(
            job_id=wish.job_id or JobId(new_ulid(now_ms, os.urandom(ULID_ENTROPY_BYTES))),
            client=self.key.peer_id,
            coordinator=self.leaser.coordinator,
            model=wish.model,
            task=Task.CAUSAL_LM if is_text else Task.EMBEDDING,
            payload_digest=payload.digest,
            payload_bytes=len(payload.data),
            units_max=units_max,
            units_expected=units_expected,
            objective=Objective.BALANCED,
            constraints=Constraints(only=wish.only),
            issued_at_ms=now_ms,
            deadline_at_ms=now_ms + int(1_000 * wish.deadline_s),
        )


@dataclass(frozen=True, slots=True)
class OpenedByHand:
    """A job that was opened, with the client's half of its session."""

    request: Signed[JobRequest]
    job: ClientJob
    channel: Channel


@asynccontextmanager
async def open_peer(endpoint: Endpoint, key: SigningKey | None = None) -> AsyncIterator[Peer]:
    """Connected to the coordinator; with a new key, unless one is given."""
    key = key or SigningKey.generate(os.urandom)
    transport, rng = Libp2pTransport(key, (), policy=ALLOW_LOOPBACK), random.Random(1)
    leases, jobs = (
        StreamPool(transport, protocol, role=ROLE, rng=rng)
        for protocol in (LEASE_PROTOCOL, JOB_PROTOCOL)
    )
    leaser = RemoteLeaser(leases, PeerId(endpoint.peer_id), addresses=endpoint.addresses)
    client = MarketClient(jobs, leaser, clock=SystemClock(), entropy=os.urandom)
    async with trio.open_nursery() as nursery:
        for part in (transport, leases, jobs, client):
            await nursery.start(part.run)
        await transport.connect(endpoint.addresses[0], timeout_s=_CONNECT_WITHIN_S)
        yield Peer(key, transport, jobs, leaser, client)
        nursery.cancel_scope.cancel()
