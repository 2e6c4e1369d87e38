"""A party with a key, money and no manners: speaks the protocol, or breaks it, over real libp2p."""

import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from coordinator.buyer.client import MarketClient
from coordinator.buyer.remote import RemoteLeaser
from coordinator.buyer.spec import JobSpec
from coordinator.buyer.units import units_of
from protocol.clock import Clock
from protocol.codec import decode, encode
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import Code, ErrorBody, RemoteProtocolError
from protocol.framing import Frame, FrameDecoder, FrameType, encode_frame
from protocol.generation import ChatMessage, GenerationInput
from protocol.ids import ULID_ENTROPY_BYTES, JobId, PeerId, new_ulid
from protocol.job_frames import JobErrorBody, OpenBody
from protocol.keys import SigningKey
from protocol.messages import NO_CONSTRAINTS, JobRequest, Lease, Objective, Task
from protocol.net.clock import SystemClock
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.errors import StreamReset
from protocol.net.frames import Hello
from protocol.net.libp2p import Libp2pTransport
from protocol.net.pool import StreamPool
from protocol.net.transport import Stream
from protocol.offers import NodeOffer
from protocol.payload import salted_digest
from protocol.services import JOB_PROTOCOL, LEASE_PROTOCOL, NodesAsk
from tests.integration.frail_market import CHAT, FrailMarket
from tests.protocol.makers import SALT, make_opening

SOON_S = 15.0
ROLE = "client"
INPUT = GenerationInput(max_tokens=4, messages=(ChatMessage("user", "Hello!"),), temperature=0.0)
PAYLOAD = encode(INPUT)
STRANGER = SigningKey.generate(random.Random(23).randbytes)


@dataclass(frozen=True)
class Stranger:
    """What tests act with. `pools` make job and lease channels; `offers` are the nodes' own."""

    key: SigningKey
    transport: Libp2pTransport
    leases: StreamPool
    jobs: StreamPool
    leaser: RemoteLeaser
    client: MarketClient
    offers: dict[PeerId, NodeOffer]

    @property
    def coordinator(self) -> PeerId:
        return self.leaser.coordinator

    async def buy(self) -> None:
        """A good job, from the lease to the countersigned receipt."""
        units_max, units_expected = units_of(INPUT)
        spec = JobSpec(CHAT, Task.CAUSAL_LM, INPUT, units_max, units_expected, deadline_s=60)
        with trio.fail_after(60):
            async with self.client.buy(spec, self.key) as stream:
                assert [chunk async for chunk in stream]
            assert stream.ended()[1].units.output_tokens > 0
            await self.client.wait_settled()

    def request(self, **changes: object) -> JobRequest:
        now_ms = SystemClock().now_ms()
        units_max, units_expected = units_of(INPUT)
        fields: dict[str, object] = {
            "job_id": JobId(new_ulid(now_ms, os.urandom(ULID_ENTROPY_BYTES))),
            "client": self.key.peer_id,
            "coordinator": self.coordinator,
            "model": CHAT,
            "task": Task.CAUSAL_LM,
            "payload_digest": salted_digest(PAYLOAD, SALT),
            "payload_bytes": len(PAYLOAD),
            "units_max": units_max,
            "units_expected": units_expected,
            "objective": Objective.BALANCED,
            "constraints": NO_CONSTRAINTS,
            "issued_at_ms": now_ms,
            "deadline_at_ms": now_ms + 30_000,
        }
        return JobRequest(**(fields | changes))  # type: ignore[arg-type]  # tests break it

    async def lease(self) -> tuple[Signed[JobRequest], Signed[Lease]]:
        """A real one."""
        request = seal(self.key, self.request())
        return request, (await self.leaser.lease(request)).lease

    async def open_at(
        self, node: PeerId, request: bytes, lease: bytes, payload: bytes = PAYLOAD
    ) -> Code | None:
        """What the node says to a job: its error's code, or None if it takes the job."""
        addresses = self.offers[node].addresses
        with trio.fail_after(SOON_S):
            channel = await self.jobs.open_channel(node, addresses=addresses, timeout_s=SOON_S)
            try:
                opening = seal(self.key, make_opening(open_envelope(lease, Lease), self.key))
                body = OpenBody(request, lease, opening.raw, SALT, payload)
                channel.send_nowait(FrameType.JOB_OPEN, encode(body))
                frame = await channel.receive()
            except RemoteProtocolError as error:
                return error.code
            finally:
                channel.close()
        if frame.type is FrameType.JOB_ERROR:
            return decode(JobErrorBody, frame.body).code
        assert frame.type is FrameType.JOB_ACCEPTED, frame
        return None


@asynccontextmanager
async def open_stranger(
    frail: FrailMarket, *, key: SigningKey = STRANGER, clock: Clock | None = None
) -> AsyncIterator[Stranger]:
    """Connected to the coordinator, and with every node's address."""
    transport, rng = Libp2pTransport(key, (), policy=ALLOW_LOOPBACK), random.Random(1)
    leases, jobs = (
        StreamPool(transport, protocol, role=ROLE, rng=rng)
        for protocol in (LEASE_PROTOCOL, JOB_PROTOCOL)
    )
    endpoint = frail.network.endpoint
    leaser = RemoteLeaser(leases, PeerId(endpoint.peer_id), addresses=endpoint.addresses)
    client = MarketClient(jobs, leaser, clock=clock or SystemClock(), entropy=os.urandom)
    async with trio.open_nursery() as nursery:
        for part in (transport, leases, jobs, client):
            await nursery.start(part.run)
        page = await leaser.nodes(NodesAsk())
        offers = {s.node: open_envelope(s.offer, NodeOffer).message for s in page.nodes}
        yield Stranger(key, transport, leases, jobs, leaser, client, offers)
        nursery.cancel_scope.cancel()


# Streams without the library of ours that would refuse to send such things.


def frame(frame_type: FrameType, channel: int, body: bytes) -> bytes:
    return encode_frame(Frame(frame_type, channel, body))


GREETING = frame(FrameType.HELLO, 0, encode(Hello((1,), ROLE)))


async def say(
    stranger: Stranger,
    peer: PeerId,
    protocol: str,
    data: bytes,
    *,
    until: Callable[[list[Frame]], bool] = lambda frames: False,
) -> list[Frame]:
    """Send bytes and no more; returns the frames that come back until the stream ends, or until
    `until` is satisfied."""
    if peer not in stranger.transport.connected_peers():
        offer = stranger.offers[peer]
        await stranger.transport.connect(offer.addresses[0], timeout_s=SOON_S)
    stream = await stranger.transport.open_stream(peer, protocol, timeout_s=SOON_S)
    with trio.fail_after(SOON_S):
        await stream.send_all(data)
        return await _read(stream, until)


async def _read(stream: Stream, until: Callable[[list[Frame]], bool]) -> list[Frame]:
    decoder, frames = FrameDecoder(), list[Frame]()
    with suppress(StreamReset):
        while not until(frames) and (data := await stream.receive_some()):
            decoder.feed(data)
            while (found := decoder.next_frame()) is not None:
                frames.append(found)
    await stream.reset()
    return frames


def code_of(found: Frame) -> Code:
    """The code in an ERROR or JOB_ERROR frame."""
    if found.type is FrameType.JOB_ERROR:
        return decode(JobErrorBody, found.body).code
    assert found.type is FrameType.ERROR, found
    return decode(ErrorBody, found.body).code
