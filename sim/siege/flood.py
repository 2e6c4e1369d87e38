"""D3, D4, D6: floods of offers, bodies, requests and chunks, counted by what they make us keep."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import trio

from protocol.codec import encode
from protocol.envelope import Signed, seal
from protocol.framing import FrameType
from protocol.ids import Digest
from protocol.keys import SigningKey
from protocol.limits import MIB
from protocol.messages import IsolationTier, Task
from protocol.net.clock import SystemClock
from protocol.net.descriptors import raise_descriptor_limit
from protocol.offers import Hardware, ModelOffer, NodeOffer
from protocol.payload import Chunk
from protocol.pricing import PriceSheet
from protocol.services import offer_topic, shard_of
from sim.siege.attack import Attack, AttackResult
from sim.siege.gateway_user import GatewayUser, SlowRequest
from sim.siege.ground import Ground, watched_memory
from sim.siege.peer import open_peer
from sim.siege.staged_job import StagedJob, answer
from sim.siege.staged_node import StagedNode, staged

_ASKS = 4
_OFFERS = 600
_MODELS_PER_OFFER = 50
# The coordinator lets nodes without a record take 32 MiB.
_OFFER_MEMORY_MIB_MAX = 48
_GOSSIP_JOINS_WITHIN_S = 3.0
_OFFER_LIFETIME_MS = 200_000

_BODIES = 5
_BODY_BYTES = 11 * MIB
# Five bodies as they arrived; parsed, each would take a third of a gigabyte.
_BODY_MEMORY_MIB_MAX = 150

_SCRAPES = 40
_SCRAPE_CPU_S_MAX = 2.0

# As many places as the gateway has, and some more.
_HOARDED = 4_200
_KEPT_DESCRIPTORS = 300
_OPENED_AT_ONCE = 64
_BODIES_LAST_S = 6.0

_EMPTY_CHUNKS_MAX = 5_000
_EMPTY_MEMORY_MIB_MAX = 32


async def offer_flood(ground: Ground) -> AttackResult:
    """A stranger gossips large offers of keys that cost nothing."""
    user = await ground.open_gateway_account()
    async with (
        staged(ground.endpoint, StagedNode("d3", answer)),
        open_peer(ground.endpoint) as first,
        open_peer(ground.endpoint) as second,
    ):
        before = await user.ask_honestly("d3", _ASKS)
        offers = [_large_offer(number) for number in range(_OFFERS)]
        await trio.sleep(_GOSSIP_JOINS_WITHIN_S)
        async with watched_memory(ground.coordinator_pid) as memory:
            # From two strangers, as each may have so much looked at.
            for number, offer in enumerate(offers):
                topic = offer_topic(shard_of(offer.message.node))
                await (first, second)[number % 2].transport.publish(topic, offer.raw)
                await trio.sleep(0.005)
            under = await user.ask_honestly("d3", _ASKS)
    return AttackResult(
        held=before.is_whole and under.is_whole and memory.grown_mib <= _OFFER_MEMORY_MIB_MAX,
        honest_before=f"{before}, {memory.before_mib:.0f} MiB",
        honest_under=f"{under}, {memory.grown_mib:+.0f} MiB by {_OFFERS} offers",
    )


def _large_offer(number: int) -> Signed[NodeOffer]:
    key, now_ms = SigningKey.generate(os.urandom), SystemClock().now_ms()
    models = tuple(
        ModelOffer(
            name=f"{os.urandom(2).hex()}-{each}",
            manifest_digest=Digest(os.urandom(32).hex()),
            task=Task.CAUSAL_LM,
            quantization="q",
            context_tokens=1,
            slots=1,
            queue_max=0,
            prefill_tps=1,
            decode_tps=1,
            price=PriceSheet(),
        )
        for each in range(_MODELS_PER_OFFER)
    )
    address = f"/ip4/10.{number // 250}.{number % 250}.1/tcp/1/p2p/{key.peer_id}"
    return seal(
        key,
        NodeOffer(
            node=key.peer_id,
            incarnation_ms=now_ms,
            sequence=0,
            issued_at_ms=now_ms,
            expires_at_ms=now_ms + _OFFER_LIFETIME_MS,
            addresses=(address,),
            region="",
            isolation=IsolationTier.BWRAP,
            hardware=Hardware("cpu", "", 1, 1),
            models=models,
            software="",
        ),
    )


async def json_amplification(ground: Ground) -> AttackResult:
    """Bodies of tiny values, which take thirty times as much memory when they are parsed."""
    user, attacker = await ground.open_gateway_account(), await ground.open_gateway_account()
    head = b'{"model": "d4", "prompt": "hello", "max_tokens": 8, "z": ['
    body = head + b"{}," * ((_BODY_BYTES - len(head)) // 3 - 1) + b"{}]}"
    statuses: list[int] = []

    async def send() -> None:
        statuses.append((await attacker.post_bytes("/v1/completions", body)).status)

    async with staged(ground.endpoint, StagedNode("d4", answer)):
        before = await user.ask_honestly("d4", _ASKS)
        async with watched_memory(ground.coordinator_pid) as memory, trio.open_nursery() as sending:
            for _ in range(_BODIES):
                sending.start_soon(send)
            under = await user.ask_honestly("d4", _ASKS)
    return AttackResult(
        held=before.is_whole
        and under.is_whole
        and memory.grown_mib <= _BODY_MEMORY_MIB_MAX
        and 200 not in statuses,
        honest_before=f"{before}, {memory.before_mib:.0f} MiB",
        honest_under=f"{under}, {memory.grown_mib:+.0f} MiB; the bodies met "
        f"{sorted(set(statuses))}",
    )


async def metrics_scrape(ground: Ground) -> AttackResult:
    """A stranger behind the operator's proxy asks for /metrics without pause."""
    user = await ground.open_gateway_account()
    statuses: set[int] = set()

    async def scrape(client: httpx.AsyncClient) -> None:
        reply = await client.get("/metrics", headers={"X-Forwarded-For": "203.0.113.7"})
        statuses.add(reply.status_code)

    async with staged(ground.endpoint, StagedNode("d4-metrics", answer)):
        before = await user.ask_honestly("d4-metrics", _ASKS)
        cpu_s = ground.cpu_s()
        base_url = ground.endpoint.http
        async with (
            httpx.AsyncClient(base_url=base_url, trust_env=False) as client,
            trio.open_nursery() as scraping,
        ):
            for _ in range(_SCRAPES):
                scraping.start_soon(scrape, client)
        spent_s = ground.cpu_s() - cpu_s
        under = await user.ask_honestly("d4-metrics", _ASKS)
    return AttackResult(
        held=under.is_whole and 200 not in statuses and spent_s <= _SCRAPE_CPU_S_MAX,
        honest_before=str(before),
        honest_under=f"{under}; {_SCRAPES} strangers met {sorted(statuses)} and cost {spent_s:.2f} "
        "s of CPU",
    )


async def hoarded_places(ground: Ground) -> AttackResult:
    """One key holds all places of the gateway with bodies that do not end."""
    user, hoarder = await ground.open_gateway_account(), await ground.open_gateway_account()
    wanted = min(_HOARDED, raise_descriptor_limit() - _KEPT_DESCRIPTORS)
    async with staged(ground.endpoint, StagedNode("d6", answer)):
        before = await user.ask_honestly("d6", _ASKS)
        async with _hoard(hoarder, wanted) as held:
            under = await user.ask_honestly("d6", _ASKS, within_s=_BODIES_LAST_S)
    return AttackResult(
        held=before.is_whole and under.is_whole,
        honest_before=str(before),
        honest_under=f"{under}, beside {len(held):,} requests of one key",
    )


@asynccontextmanager
async def _hoard(user: GatewayUser, count: int) -> AsyncIterator[list[SlowRequest]]:
    held: list[SlowRequest] = []
    limiter = trio.CapacityLimiter(_OPENED_AT_ONCE)

    async def open_one() -> None:
        async with limiter:
            body = {"model": "d6", "prompt": "Say hello", "max_tokens": 8}
            held.append(await user.open_slowly("/v1/completions", body))

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(open_one)
        yield held
    finally:
        for request in held:
            await request.drop()


async def empty_chunks(ground: Ground) -> AttackResult:
    """A node answers with chunks that hold nothing, without end."""
    sent = 0

    async def send_empties(job: StagedJob) -> None:
        nonlocal sent
        job.accept()
        while True:
            await job.channel.send(FrameType.JOB_CHUNK, encode(Chunk()))
            sent += 1

    user = await ground.open_gateway_account()
    honest, thief = StagedNode("d6-full", answer), StagedNode("d6-empty", send_empties)
    async with staged(ground.endpoint, honest, thief):
        before = await user.ask_honestly("d6-full", 1)
        async with watched_memory(ground.coordinator_pid) as memory:
            reply = await user.complete("d6-empty", max_tokens=1_000)
    return AttackResult(
        held=reply.status not in (0, 200)
        and sent <= _EMPTY_CHUNKS_MAX
        and memory.grown_mib <= _EMPTY_MEMORY_MIB_MAX,
        honest_before=str(before),
        honest_under=f"status {reply.status} after {reply.took_s:.1f} s and {sent:,} empty chunks",
    )


ATTACKS = (
    Attack("offer-flood", "D3", "gossip large offers of new keys", offer_flood),
    Attack("json-amplification", "D4", "send bodies of tiny values", json_amplification),
    Attack("metrics-scrape", "D4", "ask for /metrics through a proxy", metrics_scrape),
    Attack("hoarded-places", "D6", "hold every place of the gateway", hoarded_places),
    Attack("empty-chunks", "D6", "answer with nothing, without end", empty_chunks),
)
