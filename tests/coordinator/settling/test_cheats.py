"""What a node or a client may try on the way from a lease to a receipt, and what it gets for it."""

from collections.abc import Callable
from dataclasses import replace

import msgpack
import pytest
import trio
from trio.testing import MockClock

from coordinator.buyer.attempt import RETRY_AFTER_MAX_MS
from coordinator.buyer.errors import JobFailed
from coordinator.market.breaker import BreakerState
from coordinator.market.market import NODES_PAGE
from protocol.codec import encode
from protocol.endings import Finish
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.ids import JobId, new_ulid, sha256_digest
from protocol.job_frames import JobErrorBody
from protocol.keys import SigningKey
from protocol.limits import FRAME_BYTES_MAX, OFFER_BYTES_MAX
from protocol.messages import NO_CONSTRAINTS, JobRequest, Objective, Task
from protocol.net.channels import Channel
from protocol.net.errors import NetTimeout
from protocol.node_session import NodeJob
from protocol.offers import ModelOffer
from protocol.pricing import PriceSheet, Units
from protocol.receipts import check_request
from protocol.services import NodesAsk
from tests.coordinator.small_market import (
    MODEL,
    OPENING_CREDIT_NANO,
    PRICE,
    WORDS,
    Script,
    ScriptedNode,
    SmallMarket,
    _receive_opened,
    give_credit,
    open_small_market,
)


def spent(market: SmallMarket) -> int:
    return OPENING_CREDIT_NANO - market.account(market.buyer.peer_id).posted_nano


def make_request(
    market: SmallMarket, key: SigningKey, job_id: JobId | None = None, *, output_tokens: int = 8
) -> Signed[JobRequest]:
    now_ms = market.clock.now_ms()
    units = Units(input_tokens=16, output_tokens=output_tokens)
    request = JobRequest(
        job_id=job_id or JobId(new_ulid(now_ms, bytes(10))),
        client=key.peer_id,
        coordinator=market.coordinator.key.peer_id,
        model=MODEL,
        task=Task.CAUSAL_LM,
        payload_digest=sha256_digest(b"payload"),
        payload_bytes=7,
        units_max=units,
        units_expected=units,
        objective=Objective.BALANCED,
        constraints=NO_CONSTRAINTS,
        issued_at_ms=now_ms,
        deadline_at_ms=now_ms + 30_000,
    )
    signed = seal(key, request)
    check_request(signed, coordinator=request.coordinator, now_ms=now_ms)
    return signed


async def code_of_lease(market: SmallMarket, request: Signed[JobRequest]) -> Code:
    with pytest.raises(RemoteProtocolError) as caught:
        await market.coordinator.lease_service.lease(request)
    return caught.value.code


def break_protocol(nodes: list[ScriptedNode]) -> None:
    node = nodes[0]

    async def serve(channel: Channel) -> None:
        await _receive_opened(NodeJob(node.key), channel)
        node.jobs_opened += 1
        channel.send_nowait(FrameType.JOB_CHUNK, b"\xc1 is no msgpack")
        await trio.sleep(1)

    node.serve_job = serve  # type: ignore[method-assign]  # a script of its own


async def test_a_node_that_breaks_the_protocol_is_replaced_unseen(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER, adjust=break_protocol) as market:
        for _ in range(20):  # until matching has tried the bad node first
            assert [chunk.text for chunk in await market.buy()] == list(WORDS)
            if market.nodes[0].jobs_opened:
                break
        assert market.nodes[0].jobs_opened


def answer_a_cancel_with_nonsense(nodes: list[ScriptedNode]) -> None:
    node = nodes[0]

    async def serve(channel: Channel) -> None:
        job = NodeJob(node.key)
        await _receive_opened(job, channel)
        channel.send_nowait(*node.admit(job))
        await channel.receive()
        channel.send_nowait(FrameType.JOB_CHUNK, msgpack.packb({"token_ids": [-1]}))
        await trio.sleep(1)

    node.serve_job = serve  # type: ignore[method-assign]  # a script of its own


async def test_nothing_that_a_node_says_to_a_buyer_who_left_ends_the_market(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.HANG, adjust=answer_a_cancel_with_nonsense) as market:
        with trio.move_on_after(1):
            await market.buy()
        await market.client.wait_settled()
        assert (await market.leaser.balance()).held_nano > 0


def bill_a_refusal(nodes: list[ScriptedNode]) -> None:
    node = nodes[0]

    async def serve(channel: Channel) -> None:
        job = NodeJob(node.key)
        await _receive_opened(job, channel)
        channel.send_nowait(*node.admit(job))
        receipt = node.sign(job, (), Finish.CANCELLED)
        body = JobErrorBody(Code.INVALID_INPUT, "no", None, receipt.raw)
        channel.send_nowait(FrameType.JOB_ERROR, encode(body))
        await trio.sleep(1)

    node.serve_job = serve  # type: ignore[method-assign]  # a script of its own


async def test_a_node_is_not_paid_for_input_that_it_never_answered(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, adjust=bill_a_refusal) as market:
        with pytest.raises(JobFailed):
            await market.buy()
        await market.client.wait_settled()
        assert market.nodes[0].receipts[0].message.amount_nano > 0
        assert spent(market) == 0
        market.assert_books_are_closed()


async def test_a_node_that_takes_no_jobs_is_not_chosen_again_and_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is attached and sounds well, but its door is shut: nobody but the client notices."""
    async with open_small_market(Script.ANSWER) as market:
        coordinator = market.coordinator

        async def shut(*_args: object, **_options: object) -> Channel:
            raise NetTimeout("no answer")

        monkeypatch.setattr(coordinator.pool, "open_channel", shut)
        for _ in range(3):
            with pytest.raises(JobFailed):
                async with coordinator.client.buy(market.spec(), market.buyer):
                    pass
        node = market.nodes[0].key.peer_id
        now_ms = market.clock.now_ms()
        standing = coordinator.market.reputation.standing(node, now_ms=now_ms)
        assert standing is not None
        assert standing.breaker is BreakerState.OPEN
        assert standing.success_rate < 1


async def test_a_client_that_learns_a_job_id_cannot_touch_its_owners_job(
    autojump_clock: MockClock,
) -> None:
    """Such as one that ran the job: its lease of that id is a lease of its own."""
    async with open_small_market(Script.ANSWER) as market:
        mine = make_request(market, market.buyer)
        granted = await market.coordinator.lease_service.lease(mine)
        thief = SigningKey.generate(lambda size: bytes(range(size)))
        with market.database.transaction() as conn:
            give_credit(conn, thief.peer_id, OPENING_CREDIT_NANO, market.clock.now_ms())
        stolen = await market.coordinator.lease_service.lease(
            make_request(market, thief, mine.message.job_id)
        )
        assert stolen.lease.message.attempt == 0
        assert stolen.lease.message.lease_id != granted.lease.message.lease_id
        again = await market.coordinator.lease_service.lease(mine)
        assert again.lease.message.attempt == 1
        other = make_request(market, market.buyer, mine.message.job_id, output_tokens=9)
        assert await code_of_lease(market, other) is Code.ALREADY_EXISTS
        await trio.sleep(200)
        market.assert_books_are_closed()


async def test_a_lease_that_was_refused_leaves_nothing_in_the_way_of_the_next(
    autojump_clock: MockClock,
) -> None:
    """The first attempt found no money, and so never came as far as a lease."""
    async with open_small_market(Script.ANSWER, credit_nano=1) as market:
        request = make_request(market, market.buyer)
        assert await code_of_lease(market, request) is Code.OUT_OF_FUNDS
        await trio.sleep(0.01)
        with market.database.transaction() as conn:
            give_credit(conn, market.buyer.peer_id, OPENING_CREDIT_NANO, market.clock.now_ms())
        granted = await market.coordinator.lease_service.lease(request)
        assert granted.lease.message.attempt == 0
        await trio.sleep(200)
        market.assert_books_are_closed()


async def test_offers_as_large_as_they_may_be_still_fit_a_page(autojump_clock: MockClock) -> None:
    """Otherwise twenty such nodes would keep everybody from listing any."""

    def enlarge(nodes: list[ScriptedNode]) -> None:
        models = tuple(
            ModelOffer(
                f"{number:02}" + "x" * 60,
                sha256_digest(bytes([number])),
                Task.CAUSAL_LM,
                "bf16",
                2_048,
                4,
                4,
                1_000,
                100,
                PRICE,
            )
            for number in range(38)
        )
        for node in nodes:
            small = node.offer
            node.offer = lambda _small=small, **changes: _small(  # type: ignore[method-assign]
                **{"models": models, **changes}
            )

    async with open_small_market(*[Script.ANSWER] * 21, adjust=enlarge) as market:
        size = len(market.nodes[0].offer().raw)
        assert FRAME_BYTES_MAX // NODES_PAGE < size <= OFFER_BYTES_MAX
        found: list[str] = []
        after = ""
        while True:
            page = await market.leaser.nodes(NodesAsk(after=after))
            found += [node.node for node in page.nodes]
            after = page.next_after
            if not after:
                break
        assert found == sorted(node.key.peer_id for node in market.nodes)


async def test_a_client_cannot_break_a_nodes_name(autojump_clock: MockClock) -> None:
    """What it sends is signed for by the node, as malformed, late or wrong: that is not the node's
    doing, and it costs the client nothing to repeat."""
    async with open_small_market(Script.REFUSE) as market:
        node = market.nodes[0]
        for code in (Code.MALFORMED, Code.DIGEST_MISMATCH, Code.DEADLINE_EXCEEDED) * 4:
            now_ms = market.clock.now_ms()
            job_id = JobId(new_ulid(now_ms, market.network.rng.randbytes(10)))
            request = make_request(market, market.buyer, job_id)
            granted = await market.coordinator.lease_service.lease(request)
            signed = node.sign_unopened(granted.lease, (), Finish.REFUSED).message
            await node.hand_in(seal(node.key, replace(signed, code=code.value)))
        standing = market.coordinator.market.reputation.standing(
            node.key.peer_id, now_ms=market.clock.now_ms()
        )
        assert standing is not None
        assert standing.breaker is BreakerState.CLOSED
        assert standing.blocked_until_ms == 0
        node.script = Script.ANSWER
        assert len(await market.buy()) == 4
        await market.client.wait_settled()
        market.assert_books_are_closed()


async def test_a_client_that_asks_without_end_is_slowed_down(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, asks_per_minute=6) as market:
        for _ in range(6):
            await market.leaser.nodes(NodesAsk())
        with pytest.raises(RemoteProtocolError) as caught:
            await market.leaser.nodes(NodesAsk())
        assert caught.value.code is Code.RATE_LIMITED
        assert caught.value.retry_after_ms == pytest.approx(10_000, abs=500)
        await trio.sleep(10)
        await market.leaser.nodes(NodesAsk())


async def test_a_client_cannot_open_leases_without_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nodes work for nothing, no money bounds them."""
    monkeypatch.setattr("coordinator.leasing.granting.LEASES_PER_CLIENT_MAX", 2)

    def give_away(nodes: list[ScriptedNode]) -> None:
        nodes[0].price = PriceSheet()

    async with open_small_market(Script.ANSWER, adjust=give_away) as market:
        service, now_ms = market.coordinator.lease_service, market.clock.now_ms()

        async def lease(number: int) -> None:
            job_id = JobId(new_ulid(now_ms, bytes([number] * 10)))
            await service.lease(make_request(market, market.buyer, job_id))

        await lease(1)
        await lease(2)
        with pytest.raises(RemoteProtocolError) as caught:
            await lease(3)
        assert caught.value.code is Code.RATE_LIMITED
        await trio.sleep(200)
        market.assert_books_are_closed()
        assert len(market.coordinator.leases) == 0
        assert market.coordinator.leases.count_of(market.buyer.peer_id) == 0


async def test_the_words_of_a_paid_receipt_count_only_with_their_nodes_signature(
    autojump_clock: MockClock,
) -> None:
    """Found by the JavaScript client when the node had handed its receipt in first."""
    async with open_small_market(Script.ANSWER) as market:
        await market.buy()
        await market.client.wait_settled()
        receipt = market.nodes[0].receipts[-1]
        with pytest.raises(RemoteProtocolError) as caught:
            await market.coordinator.receipts.accept(seal(market.buyer, receipt.message), None)
        assert caught.value.code is Code.WRONG_SIGNER


def end_all_jobs_by(code: Code) -> Callable[[list[ScriptedNode]], None]:
    """The first node, which is the cheapest one, says so of every job."""

    def adjust(nodes: list[ScriptedNode]) -> None:
        node = nodes[0]
        node.price = PriceSheet(1, 1)

        async def serve(channel: Channel) -> None:
            job = NodeJob(node.key)
            await _receive_opened(job, channel)
            node.jobs_opened += 1
            channel.send_nowait(*job.error(code, "no", receipt=None))
            await trio.sleep(1)

        node.serve_job = serve  # type: ignore[method-assign]  # a script of its own

    return adjust


@pytest.mark.parametrize(("said_ms", "told_ms"), [(2**62, RETRY_AFTER_MAX_MS), (-5, 0)])
async def test_a_node_does_not_send_a_client_away_for_ever(
    autojump_clock: MockClock, said_ms: int, told_ms: int
) -> None:
    def adjust(nodes: list[ScriptedNode]) -> None:
        async def serve(channel: Channel) -> None:
            job = NodeJob(nodes[0].key)
            await _receive_opened(job, channel)
            frame = job.error(Code.BUSY, "no", receipt=None, retry_after_ms=said_ms)
            channel.send_nowait(*frame)
            await trio.sleep(1)

        nodes[0].serve_job = serve  # type: ignore[method-assign]  # a script of its own

    async with open_small_market(Script.ANSWER, adjust=adjust) as market:
        with pytest.raises(JobFailed) as caught:
            await market.buy()
        assert caught.value.retry_after_ms == told_ms


@pytest.mark.parametrize(
    "code",
    [Code.INVALID_INPUT, Code.OUT_OF_FUNDS, Code.CANCELLED, Code.UNKNOWN_API_KEY, Code.UNSIGNED],
)
async def test_a_node_cannot_lay_its_failure_at_the_clients_door(
    autojump_clock: MockClock, code: Code
) -> None:
    """One cheap node ended every request of a market by such a word, and nothing counted against
    it."""
    adjust = end_all_jobs_by(code)
    async with open_small_market(Script.ANSWER, Script.ANSWER, adjust=adjust) as market:
        for _ in range(6):
            assert len(await market.buy()) == len(WORDS)
        assert market.nodes[0].jobs_opened > 0


async def test_a_node_that_calls_an_input_poison_is_left_alone_by_its_client(
    autojump_clock: MockClock,
) -> None:
    """It is not tried elsewhere, so each such word costs the client a request."""
    adjust = end_all_jobs_by(Code.POISON_INPUT)
    async with open_small_market(Script.ANSWER, Script.ANSWER, adjust=adjust) as market:
        lost = 0
        for _ in range(10):
            try:
                async with market.coordinator.client.buy(market.spec(), market.buyer) as answer:
                    assert [chunk.text async for chunk in answer] == list(WORDS)
            except JobFailed:
                lost += 1
        assert lost == market.nodes[0].jobs_opened <= 5
