"""Strangers with bad bytes, bad evidence and wrong clocks, at a running node and coordinator.

Each gets an error that names the fault; whoever behaves is served right after.
"""

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.spec import JobSpec
from coordinator.buyer.units import units_of
from coordinator.market.offers.intake import OFFERS
from protocol.codec import encode
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import HEADER, VERSION, Frame, FrameType
from protocol.ids import ULID_ENTROPY_BYTES, LeaseId, PeerId, new_ulid, sha256_digest
from protocol.keys import SigningKey
from protocol.limits import FRAME_BYTES_MAX, OFFER_BYTES_MAX
from protocol.messages import JobRequest, Lease, Task
from protocol.net.clock import SystemClock
from protocol.net.frames import Hello
from protocol.net.pool import StreamPool
from protocol.net.rpc import RequestBody, RpcClient
from protocol.offers import LoadReport, NodeOffer
from protocol.programs.keyfile import load_key_file
from protocol.services import (
    CONTROL_PROTOCOL,
    JOB_PROTOCOL,
    LEASE_PROTOCOL,
    AttachAsk,
    AttachReply,
    BalanceAsk,
    LeaseAsk,
    LeaseGrant,
    LoadAck,
    Method,
    NodesAsk,
    NodeSummary,
    ReceiptAsk,
    SettleReply,
    offer_topic,
    shard_of,
)
from tests.clocks import SkewedClock
from tests.integration.frail_market import CHAT, FrailMarket
from tests.integration.stranger import (
    GREETING,
    INPUT,
    PAYLOAD,
    SOON_S,
    STRANGER,
    Stranger,
    code_of,
    frame,
    open_stranger,
    say,
)
from tests.protocol.makers import make_chain

pytestmark = [pytest.mark.models, pytest.mark.slow]

BALANCE = encode(RequestBody(Method.BALANCE, encode(BalanceAsk())))
TWO_MINUTES_MS = 120_000
FLOOD = 200


@pytest.fixture(scope="module")
def account(shared_frail: FrailMarket) -> None:
    """The stranger has money, so that nothing fails for want of it."""
    shared_frail.market.command(
        "accounts", "create", "stranger", f"--peer-id={STRANGER.peer_id}", "--credit=1"
    )


@pytest.fixture
def paid(frail: FrailMarket, account: None) -> FrailMarket:
    return frail


@asynccontextmanager
async def stranger_in(frail: FrailMarket) -> AsyncIterator[Stranger]:
    """At the end, one good job at each of the parties, and sound books."""
    async with open_stranger(frail) as stranger:
        yield stranger
        await stranger.buy()
    await trio.to_thread.run_sync(frail.assert_sound)


def parties(stranger: Stranger, frail: FrailMarket) -> list[tuple[PeerId, str]]:
    return [
        (PeerId(frail.nodes[0].peer_id), JOB_PROTOCOL),
        (stranger.coordinator, LEASE_PROTOCOL),
        (stranger.coordinator, CONTROL_PROTOCOL),
    ]


# Bytes.


async def test_bytes_that_are_no_frames_end_the_stream_with_a_reason(paid: FrailMarket) -> None:
    rubbish = {
        Code.UNKNOWN_VERSION: GREETING + HEADER.pack(9, FrameType.REQUEST, 1, 0),
        Code.FRAME_TOO_LARGE: GREETING
        + HEADER.pack(VERSION, FrameType.REQUEST, 1, FRAME_BYTES_MAX + 1),
        Code.UNEXPECTED_FRAME: GREETING + GREETING,
    }
    async with stranger_in(paid) as stranger:
        for peer, protocol in parties(stranger, paid):
            for code, data in rubbish.items():
                greeting, last = await say(stranger, peer, protocol, data)
                assert greeting.type is FrameType.HELLO
                assert (last.channel, code_of(last)) == (0, code)


async def test_a_wrong_greeting_ends_the_stream(paid: FrailMarket) -> None:
    greetings = {
        Code.UNEXPECTED_FRAME: frame(FrameType.REQUEST, 1, BALANCE),
        Code.UNKNOWN_VERSION: frame(FrameType.HELLO, 0, encode(Hello((9,), "client"))),
        Code.MALFORMED: frame(FrameType.HELLO, 0, b"\xc1"),
        Code.TRAILING_BYTES: frame(FrameType.HELLO, 0, encode(Hello((1,), "client")) + b"\xc0"),
    }
    async with stranger_in(paid) as stranger:
        for peer, protocol in parties(stranger, paid):
            for code, data in greetings.items():
                frames = await say(stranger, peer, protocol, data)
                assert [code_of(f) for f in frames if f.type is FrameType.ERROR] == [code]


async def test_a_stream_that_ends_within_a_frame_harms_nobody(paid: FrailMarket) -> None:
    async with stranger_in(paid) as stranger:
        for peer, protocol in parties(stranger, paid):
            if peer not in stranger.transport.connected_peers():
                await stranger.transport.connect(
                    stranger.offers[peer].addresses[0], timeout_s=SOON_S
                )
            stream = await stranger.transport.open_stream(peer, protocol, timeout_s=SOON_S)
            await stream.send_all(GREETING + HEADER.pack(VERSION, FrameType.REQUEST, 1, 100) + b"x")
            await stream.send_eof()
            with trio.fail_after(SOON_S):
                received = b""
                while data := await stream.receive_some():
                    received += data
            assert b"truncated" in received


async def test_bad_bodies_end_their_conversation_only(paid: FrailMarket) -> None:
    """All on one stream, each channel with an error of its own, and a good one among them."""
    async with stranger_in(paid) as stranger:
        bad = {
            1: (frame(FrameType.REQUEST, 1, b"\xc1"), Code.MALFORMED),
            2: (frame(FrameType.REQUEST, 2, BALANCE + b"\xc0"), Code.TRAILING_BYTES),
            3: (frame(FrameType.JOB_OPEN, 3, b""), Code.UNEXPECTED_FRAME),
            4: (frame(FrameType.REQUEST, 4, encode(RequestBody("rob", b""))), Code.NOT_FOUND),
        }
        data = GREETING + b"".join(sent for sent, _ in bad.values())
        data += frame(FrameType.REQUEST, 5, BALANCE)

        def is_answered(frames: list[Frame]) -> bool:
            return sum(f.type is FrameType.CLOSE for f in frames) == 5

        frames = await say(stranger, stranger.coordinator, LEASE_PROTOCOL, data, until=is_answered)
        codes = {f.channel: code_of(f) for f in frames if f.type is FrameType.ERROR}
        assert codes == {channel: code for channel, (_, code) in bad.items()}
        assert [f.channel for f in frames if f.type is FrameType.REPLY] == [5]

        bad = {
            1: (frame(FrameType.JOB_OPEN, 1, b"\xc1"), Code.MALFORMED),
            2: (frame(FrameType.REQUEST, 2, BALANCE), Code.UNEXPECTED_FRAME),
            3: (frame(FrameType.JOB_DATA, 3, b"payload"), Code.UNEXPECTED_FRAME),
            4: (frame(FrameType.JOB_CANCEL, 4, b""), Code.UNEXPECTED_FRAME),
        }
        data = GREETING + b"".join(sent for sent, _ in bad.values())
        node = PeerId(paid.nodes[0].peer_id)
        frames = await say(
            stranger,
            node,
            JOB_PROTOCOL,
            data,
            until=lambda frames: sum(f.type is FrameType.CLOSE for f in frames) == 4,
        )
        codes = {f.channel: code_of(f) for f in frames if f.type is FrameType.JOB_ERROR}
        assert codes == {channel: code for channel, (_, code) in bad.items()}


async def test_a_flood_of_channels_is_answered_channel_by_channel(paid: FrailMarket) -> None:
    count = 1_000
    flood = GREETING + b"".join(frame(FrameType.JOB_CANCEL, n + 1, b"") for n in range(count))
    async with stranger_in(paid) as stranger:
        for peer, protocol in parties(stranger, paid):
            frames = await say(
                stranger,
                peer,
                protocol,
                flood,
                until=lambda frames: sum(f.type is FrameType.CLOSE for f in frames) == count,
            )
            errors = [f for f in frames if f.type in (FrameType.ERROR, FrameType.JOB_ERROR)]
            assert len({f.channel for f in errors}) == count
            assert {code_of(f) for f in errors} <= {Code.UNEXPECTED_FRAME, Code.BUSY}


# Evidence, at the node.


async def test_a_node_refuses_false_leases(paid: FrailMarket) -> None:
    coordinator_key = load_key_file(paid.network.coordinator_dir / "coordinator.key")
    other_key = SigningKey.generate(os.urandom)
    async with stranger_in(paid) as stranger:
        request, lease = await stranger.lease()
        node = lease.message.node
        other = next(peer for peer in stranger.offers if peer != node)

        async def try_lease(
            *,
            key: SigningKey = coordinator_key,
            asked: Signed[JobRequest] = request,
            payload: bytes = PAYLOAD,
            **changes: Any,
        ) -> Code | None:
            """As if the coordinator itself had signed it, unless `key` is another's."""
            lease_id = LeaseId(new_ulid(lease.message.issued_at_ms, os.urandom(ULID_ENTROPY_BYTES)))
            terms: Lease = replace(lease.message, lease_id=lease_id, **changes)
            return await stranger.open_at(node, asked.raw, seal(key, terms).raw, payload)

        assert await stranger.open_at(other, request.raw, lease.raw) is Code.WRONG_AUDIENCE
        flipped = bytearray(lease.raw)
        flipped[-1] ^= 1
        assert await stranger.open_at(node, request.raw, bytes(flipped)) is Code.BAD_SIGNATURE
        assert await stranger.open_at(node, lease.raw, request.raw) is Code.MALFORMED
        assert await try_lease(key=stranger.key) is Code.UNTRUSTED_COORDINATOR
        forged = replace(lease.message, coordinator=other_key.peer_id)
        code = await stranger.open_at(node, request.raw, seal(other_key, forged).raw)
        assert code is Code.UNTRUSTED_COORDINATOR

        stolen = seal(other_key, request.message)
        assert await try_lease(asked=stolen) is Code.WRONG_SIGNER
        another = seal(stranger.key, stranger.request())
        assert await try_lease(asked=another) is Code.DIGEST_MISMATCH
        price = replace(lease.message.price, request_nano=1)
        dearer: dict[str, Any] = {"price": price, "ceiling_nano": lease.message.ceiling_nano + 1}
        assert await try_lease(**dearer) is Code.PRICE_MISMATCH
        assert await try_lease(ceiling_nano=0) is Code.PRICE_MISMATCH
        assert await try_lease(offer_digest=sha256_digest(b"none")) is Code.PRICE_MISMATCH
        assert await try_lease(model_digest=sha256_digest(b"none")) is Code.UNKNOWN_MODEL
        units_max = replace(request.message.units_max, output_tokens=10**6)
        greedy: dict[str, Any] = {"units_max": units_max, "ceiling_nano": 10**12}
        assert await try_lease(**greedy) is Code.MALFORMED
        assert await try_lease(payload=PAYLOAD[:-1] + b"?") is Code.DIGEST_MISMATCH
        assert await try_lease(payload=PAYLOAD + b"?") is Code.DIGEST_MISMATCH
        for skew_ms, code in (
            (TWO_MINUTES_MS, Code.NOT_YET_VALID),
            (-TWO_MINUTES_MS, Code.EXPIRED),
        ):
            stamps = {
                name: getattr(lease.message, name) + skew_ms
                for name in ("issued_at_ms", "open_before_ms", "deadline_at_ms")
            }
            assert await try_lease(**stamps) is code

        # None of that has spent the lease: it is good for one job, and for one only.
        assert await stranger.open_at(node, request.raw, lease.raw) is None
        assert await stranger.open_at(node, request.raw, lease.raw) is Code.REPLAYED


# Evidence, at the coordinator.


async def test_a_coordinator_refuses_false_requests(paid: FrailMarket) -> None:
    other_key = SigningKey.generate(os.urandom)
    async with stranger_in(paid) as stranger:

        async def try_request(key: SigningKey = stranger.key, **changes: Any) -> Code:
            request = seal(key, stranger.request(**changes))
            with pytest.raises(RemoteProtocolError) as refused:
                await stranger.leaser.lease(request)
            return refused.value.code

        now_ms = SystemClock().now_ms()
        ahead: dict[str, Any] = {
            "issued_at_ms": now_ms + TWO_MINUTES_MS,
            "deadline_at_ms": now_ms + 2 * TWO_MINUTES_MS,
        }
        behind: dict[str, Any] = {
            "issued_at_ms": now_ms - 2 * TWO_MINUTES_MS,
            "deadline_at_ms": now_ms - TWO_MINUTES_MS,
        }
        assert await try_request(other_key) is Code.WRONG_SIGNER
        assert await try_request(client=other_key.peer_id) is Code.WRONG_SIGNER
        assert await try_request(coordinator=other_key.peer_id) is Code.WRONG_AUDIENCE
        assert await try_request(model="nobody-has-this") is Code.UNKNOWN_MODEL
        assert await try_request(**ahead) is Code.NOT_YET_VALID
        assert await try_request(**behind) is Code.EXPIRED
        rpc = RpcClient(stranger.leases)
        for raw, code in ((b"\xc1", Code.MALFORMED), (PAYLOAD, Code.MALFORMED)):
            with pytest.raises(RemoteProtocolError) as refused:
                await rpc.call(
                    stranger.coordinator,
                    Method.LEASE,
                    LeaseAsk(raw),
                    LeaseGrant,
                    timeout_s=SOON_S,
                )
            assert refused.value.code is code
    async with open_stranger(paid, key=other_key) as poor:
        with pytest.raises(RemoteProtocolError) as refused:
            await poor.lease()
        assert refused.value.code in (Code.UNKNOWN_ACCOUNT, Code.OUT_OF_FUNDS)


async def test_a_coordinator_refuses_false_nodes(paid: FrailMarket) -> None:
    async with stranger_in(paid) as stranger, trio.open_nursery() as nursery:
        pool = StreamPool(stranger.transport, CONTROL_PROTOCOL, role="node", rng=_rng())
        await nursery.start(pool.run)

        async def tell(method: Method, ask: object, reply: type[object]) -> Code:
            with pytest.raises(RemoteProtocolError) as refused:
                await RpcClient(pool).call(
                    stranger.coordinator, method, ask, reply, timeout_s=SOON_S
                )
            return refused.value.code

        load = LoadReport(0, False, ())
        page = await stranger.leaser.nodes(NodesAsk())
        theirs = page.nodes[0].offer
        offer = stranger.offers[page.nodes[0].node]
        assert await tell(Method.LOAD, load, LoadAck) is Code.UNEXPECTED_FRAME
        assert await tell(Method.ATTACH, AttachAsk(theirs, load), AttachReply) is Code.WRONG_SIGNER
        for forged, code in (
            (offer, Code.WRONG_SIGNER),
            (_own(stranger, offer, skew_ms=TWO_MINUTES_MS), Code.NOT_YET_VALID),
            (_own(stranger, offer, skew_ms=-3 * TWO_MINUTES_MS), Code.EXPIRED),
            (
                replace(_own(stranger, offer), expires_at_ms=offer.expires_at_ms + 10**9),
                Code.OFFER_IMPLAUSIBLE,
            ),
        ):
            ask = AttachAsk(seal(stranger.key, forged).raw, load)
            assert await tell(Method.ATTACH, ask, AttachReply) is code
        chain = make_chain()
        receipt = ReceiptAsk(chain.receipt.raw, b"")
        assert await tell(Method.RECEIPT, receipt, SettleReply) is Code.WRONG_SIGNER
        own = seal(stranger.key, replace(chain.receipt.message, node=stranger.key.peer_id))
        assert await tell(Method.RECEIPT, ReceiptAsk(own.raw, b""), SettleReply) is Code.NOT_FOUND
        nursery.cancel_scope.cancel()


async def test_a_flood_of_offers_leaves_the_market_open(paid: FrailMarket) -> None:
    """Bytes that are no offers, offers too large, forged or in others' names, and one's own that
    change all the time: more than a coordinator would ever hear of an honest neighbour."""
    async with stranger_in(paid) as stranger:
        me, honest = stranger.key.peer_id, set(stranger.offers)
        topic = offer_topic(shard_of(me))
        template = next(iter(stranger.offers.values()))
        forged = seal(stranger.key, template).raw
        junk = [os.urandom(200), bytes(OFFER_BYTES_MAX + 1), forged, forged[:-1] + b"\0"]

        async def publish(number: int) -> None:
            changing = replace(_own(stranger, template), sequence=number)
            await stranger.transport.publish(topic, seal(stranger.key, changing).raw)

        async def listed() -> dict[PeerId, NodeSummary]:
            page = await stranger.leaser.nodes(NodesAsk())
            return {summary.node: summary for summary in page.nodes}

        began = trio.current_time()
        with trio.fail_after(SOON_S):  # until the gossip reaches the coordinator
            while me not in await listed():
                await publish(0)
                await trio.sleep(0.5)
        for number in range(1, FLOOD):
            await publish(number)
            await stranger.transport.publish(topic, junk[number % len(junk)] + bytes([number]))
        summaries = await listed()
        assert set(summaries) == honest | {me}
        assert all(summaries[node].attached for node in honest)
        mine = open_envelope(summaries[me].offer, NodeOffer).message
        taken_max = OFFERS.burst + OFFERS.per_s * (trio.current_time() - began)
        assert mine.sequence <= taken_max < FLOOD


async def test_a_client_with_a_wrong_clock_is_told_so(paid: FrailMarket) -> None:
    units_max, expected = units_of(INPUT)
    spec = JobSpec(CHAT, Task.CAUSAL_LM, INPUT, units_max, expected, deadline_s=60)
    for skew_ms, code in (
        (TWO_MINUTES_MS, Code.NOT_YET_VALID),
        (-TWO_MINUTES_MS, Code.EXPIRED),
    ):
        async with open_stranger(paid, clock=SkewedClock(SystemClock(), skew_ms)) as stranger:
            with pytest.raises(JobFailed) as failed:
                async with stranger.client.buy(spec, stranger.key):
                    pass
            assert failed.value.code is code
            assert not failed.value.delivered
    async with stranger_in(paid):
        pass


def _own(stranger: Stranger, offer: NodeOffer, *, skew_ms: int = 0) -> NodeOffer:
    """The same offer in the stranger's name, by a clock that is off."""
    return replace(
        offer,
        node=stranger.key.peer_id,
        incarnation_ms=offer.incarnation_ms + skew_ms,
        issued_at_ms=offer.issued_at_ms + skew_ms,
        expires_at_ms=offer.expires_at_ms + skew_ms,
    )


def _rng() -> random.Random:
    return random.Random(1)
