"""A gateway beside its users, over real coordinators on an in-memory network."""

import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from coordinator.app import Coordinator, MarketRules
from coordinator.buyer.errors import JobFailed
from coordinator.db.engine import InlineRunner, open_database
from coordinator.db.jobs import list_jobs
from coordinator.edge.keys import GatewayKeys
from coordinator.edge.serve import Edge
from coordinator.gateway.caller import Caller
from coordinator.gateway.market_side.market import Health
from protocol.codec import encode
from protocol.endings import Finish
from protocol.envelope import open_envelope
from protocol.errors import Code
from protocol.generation import GenerationInput
from protocol.grants import Payer
from protocol.ids import PeerId, sha256_digest
from protocol.keys import SigningKey
from protocol.messages import JobRequest, Objective
from protocol.net.memory_wire import Conditions, MemoryStream
from protocol.pricing import Units
from protocol.programs.runtime import Runtime
from protocol.programs.shutdown import open_stages
from protocol.receipts import charge_nano
from tests.coordinator.small_market import (
    INPUT_UNITS,
    MODEL,
    PRICE,
    WORDS,
    Script,
    ScriptedNode,
    SmallMarket,
    give_credit,
    open_small_market,
)

COST_NANO = charge_nano(PRICE, Units(INPUT_UNITS.input_tokens, len(WORDS)), Finish.STOP)
SECRET_WORDS = "The patient's name is Ada Lovelace, born in 1815."


@dataclass
class OpenEdge:
    edge: Edge
    keys: GatewayKeys
    key: SigningKey

    def caller(self, key_id: str = "local") -> Caller:
        return Caller(key_id, self.key)

    async def buy(self, market: SmallMarket, *, key_id: str = "local", **changes: object) -> str:
        spec = replace(market.spec(), payer=Payer(key_id), **changes)  # type: ignore[arg-type]
        async with self.edge.market.open_job(self.caller(key_id), spec) as job:
            return "".join([chunk.text async for chunk in job])


@asynccontextmanager
async def open_edge(
    market: SmallMarket,
    folder: Path,
    *more: Coordinator,
    no_keys: bool = True,
) -> AsyncIterator[OpenEdge]:
    """With a key of its own that has money at every coordinator."""
    rng = random.Random(7)
    key = SigningKey.generate(rng.randbytes)
    coordinators = (market.coordinator, *more)
    for coordinator in coordinators:
        with coordinator.database.transaction() as conn:
            give_credit(conn, key.peer_id, 10**9, market.clock.now_ms())
    keys = GatewayKeys(folder / "keys.sqlite")
    edge = Edge(
        key,
        market.network.transport(key),
        tuple(coordinator.transport.addresses[0] for coordinator in coordinators),
        keys,
        Runtime(market.clock, rng.randbytes, rng, monotonic_s=lambda: market.clock.now_ms() / 1e3),
        files_dir=folder / "files",
        no_keys=no_keys,
    )
    async with open_stages() as stages:
        await edge.start(stages)
        yield OpenEdge(edge, keys, key)
        await edge.wait_settled()


@asynccontextmanager
async def another_coordinator(market: SmallMarket) -> AsyncIterator[Coordinator]:
    """With one node, on the same network."""
    rng = random.Random(11)
    key, node_key = SigningKey.generate(rng.randbytes), SigningKey.generate(rng.randbytes)
    database = open_database("sqlite://", InlineRunner())
    coordinator = Coordinator(
        key,
        market.network.transport(key),
        database,
        MarketRules(),
        Runtime(market.clock, rng.randbytes, rng, monotonic_s=lambda: market.clock.now_ms() / 1e3),
    )
    node = ScriptedNode(node_key, market.network.transport(node_key), market.clock)
    async with trio.open_nursery() as nursery:
        await nursery.start(coordinator.run)
        await nursery.start(node.run, coordinator.transport.addresses[0])
        yield coordinator
        nursery.cancel_scope.cancel()
    database.close()


async def test_only_the_node_sees_what_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Every byte on every wire, by who received it."""
    received: dict[PeerId, bytearray] = defaultdict(bytearray)
    send_all = MemoryStream.send_all

    async def record(stream: MemoryStream, data: bytes) -> None:
        received[stream.peer] += data
        await send_all(stream, data)

    monkeypatch.setattr(MemoryStream, "send_all", record)
    async with open_small_market(Script.ANSWER) as market, open_edge(market, tmp_path) as edge:
        job_input = GenerationInput(max_tokens=8, prompt=SECRET_WORDS)
        assert await edge.buy(market, job_input=job_input) == "".join(WORDS)
        await edge.edge.wait_settled()
    coordinator, node = market.coordinator.key.peer_id, market.nodes[0].key.peer_id
    assert SECRET_WORDS.encode() in received[node]
    seen_there = bytes(received[coordinator])
    assert len(seen_there) > 500
    assert not [
        word for word in SECRET_WORDS.split() if len(word) > 4 and word.encode() in seen_there
    ]
    # Nor what was answered, in text: the receipt has a digest of it.
    assert not [word for word in WORDS if len(word) > 4 and word.encode() in seen_there]
    assert encode(job_input) not in seen_there


async def test_a_prompt_cannot_be_guessed_from_its_digest(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The same prompt twice has two digests: each has a salt that only the node gets."""
    async with open_small_market(Script.ANSWER) as market, open_edge(market, tmp_path) as edge:
        for _ in range(2):
            await edge.buy(market)
        with market.database.transaction() as conn:
            requests = [open_envelope(job.request, JobRequest) for job in list_jobs(conn, limit=9)]
    digests = {request.message.payload_digest for request in requests}
    assert len(digests) == 2
    assert sha256_digest(encode(market.spec().job_input)) not in digests


async def test_it_lists_what_the_market_offers(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        open_small_market(Script.ANSWER, Script.ANSWER) as market,
        open_edge(market, tmp_path) as edge,
    ):
        (info,) = edge.edge.market.models()
        assert (info.name, info.nodes, info.context_tokens) == (MODEL, 2, 2_048)
        assert info.price_from == info.price_to == PRICE
        assert edge.edge.market.model(info.digest) == info
        assert edge.edge.market.model("unheard-of") is None
        # Also of a coordinator that restarts right now, and then knows no model for a moment.
        assert edge.edge.market.is_expected(MODEL)
        assert not edge.edge.market.is_expected("unheard-of")
        assert edge.edge.market.health() == Health(2)


async def test_another_coordinator_serves_while_the_first_is_away(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        open_small_market(Script.ANSWER) as market,
        another_coordinator(market) as second,
        open_edge(market, tmp_path, second) as edge,
    ):
        assert edge.edge.market.health() == Health(2)
        market.network.kill(market.coordinator.key.peer_id)
        for _ in range(3):
            assert await edge.buy(market) == "".join(WORDS)
        await trio.sleep(10)
        assert edge.edge.market.health() == Health(1)


async def test_a_stream_outlives_its_coordinator_and_the_next_job_says_when_to_come_back(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_small_market(Script.ANSWER) as market, open_edge(market, tmp_path) as edge:
        spec = market.spec()
        async with edge.edge.market.open_job(edge.caller(), spec) as job:
            text = (await anext(aiter(job))).text
            market.network.kill(market.coordinator.key.peer_id)
            text += "".join([chunk.text async for chunk in job])
        assert text == "".join(WORDS)
        started_at = trio.current_time()
        with pytest.raises(JobFailed) as failed:
            await edge.buy(market)
        assert failed.value.code is Code.COORDINATOR_LOST
        assert failed.value.retry_after_ms
        assert 5 < trio.current_time() - started_at < 15
        # It still says what was offered, and that it cannot be bought.
        assert edge.edge.market.model(MODEL) is not None
        assert edge.edge.market.health() == Health(0, "no coordinator answers")


async def test_a_key_spends_its_budget_and_no_more(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        open_small_market(Script.ANSWER) as market,
        open_edge(market, tmp_path, no_keys=False) as edge,
    ):
        ceiling = charge_nano(PRICE, market.spec().units_max, Finish.STOP)
        budget = ceiling + COST_NANO
        secret, key = edge.keys.create(
            "ada", now_ms=1, entropy=random.Random(3).randbytes, budget_nano=budget
        )
        caller = await edge.edge.market.authenticate(secret)
        assert caller is not None
        assert caller.key_id == key.id
        # Another user of the same account: what is kept for one is not for the other.
        other = await edge.edge.market.authenticate(
            edge.keys.create("bob", now_ms=1, entropy=random.Random(4).randbytes)[0]
        )
        assert other is not None
        assert other.owner != caller.owner
        assert await edge.edge.market.authenticate("sk-capa-another") is None
        failures = []
        for _ in range(4):
            try:
                await edge.buy(market, key_id=key.id)
            except JobFailed as failed:
                failures.append(failed.code)
            await edge.edge.wait_settled()
        spent = edge.keys.find(key.id)
        assert spent is not None
        assert COST_NANO <= spent.spent_nano <= budget
        assert failures
        assert set(failures) == {Code.BUDGET_EXCEEDED}
        assert spent.spent_nano == (4 - len(failures)) * COST_NANO


async def test_two_jobs_at_once_do_not_both_get_the_rest_of_a_budget(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        open_small_market(Script.ANSWER, Script.ANSWER) as market,
        open_edge(market, tmp_path, no_keys=False) as edge,
    ):
        ceiling = charge_nano(PRICE, market.spec().units_max, Finish.STOP)
        _, key = edge.keys.create(
            "ada", now_ms=1, entropy=random.Random(3).randbytes, budget_nano=ceiling
        )
        codes: list[Code | None] = []

        async def try_buy() -> None:
            try:
                await edge.buy(market, key_id=key.id)
            except JobFailed as failed:
                codes.append(failed.code)
            else:
                codes.append(None)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(try_buy)
        assert sorted(map(str, codes)) == sorted(["None", *["budget_exceeded"] * 3])


async def test_a_job_that_is_left_early_spends_what_it_delivered(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        open_small_market(Script.ANSWER) as market,
        open_edge(market, tmp_path, no_keys=False) as edge,
    ):
        _, key = edge.keys.create(
            "ada", now_ms=1, entropy=random.Random(3).randbytes, budget_nano=10**9
        )
        spec = replace(market.spec(), payer=Payer(key.id))
        async with edge.edge.market.open_job(edge.caller(key.id), spec) as job:
            await anext(aiter(job))
        await edge.edge.wait_settled()
        spent = edge.keys.find(key.id)
        assert spent is not None
        assert 0 < spent.spent_nano <= COST_NANO


async def test_the_nearest_node_is_the_nearest_to_the_gateway(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The coordinator is beside the first node, the gateway beside the second."""
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        near_market, near_us = (node.key.peer_id for node in market.nodes)
        async with open_edge(market, tmp_path) as edge:
            far = Conditions(latency_s=0.2)
            market.network.set_conditions(edge.key.peer_id, near_market, far)
            market.network.set_conditions(market.coordinator.key.peer_id, near_us, far)
            market.coordinator.market.book.set_rtt(near_market, 0.1)
            market.coordinator.market.book.set_rtt(near_us, 400.0)
            await edge.edge.round_trips.measure()
            assert {trip.node for trip in edge.edge.round_trips.advice()} == {near_market, near_us}
            for _ in range(5):
                await edge.buy(market, objective=Objective.LATENCY)
        assert market.nodes[1].jobs_opened == 5
