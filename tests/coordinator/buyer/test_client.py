"""Buying, from the buyer's side: answers, invisible retries, visible cuts, and what they cost."""

from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from coordinator.buyer.errors import JobFailed
from protocol.blame import Blame, Observation
from protocol.endings import Finish
from protocol.errors import Code
from protocol.ids import PeerId
from protocol.limits import PAYLOAD_BYTES_MAX
from protocol.messages import Task
from protocol.money import split_fee
from protocol.net.errors import Backpressure
from protocol.net.pool import Channel, StreamPool
from protocol.payload import Chunk, ImageInput
from protocol.pricing import Units
from protocol.receipts import charge_nano
from tests.coordinator.small_market import (
    FEE_BPS,
    INPUT_UNITS,
    OPENING_CREDIT_NANO,
    PRICE,
    WORDS,
    Script,
    SmallMarket,
    open_small_market,
)


def cost_of(output_tokens: int) -> int:
    return charge_nano(PRICE, Units(INPUT_UNITS.input_tokens, output_tokens), Finish.STOP)


def assert_paid(market: SmallMarket, node: int, amount_nano: int) -> None:
    """The buyer paid exactly this, and the node got its share of it."""
    provider_nano, _ = split_fee(amount_nano, FEE_BPS)
    spent_nano = OPENING_CREDIT_NANO - market.account(market.buyer.peer_id).posted_nano
    assert spent_nano == amount_nano
    assert market.account(market.nodes[node].key.peer_id).posted_nano == provider_nano


async def buy_into(received: list[str], market: SmallMarket) -> None:
    """Keeps what arrived before the stream broke."""
    async with market.client.buy(market.spec(), market.buyer) as stream:
        async for chunk in stream:
            received.append(chunk.text)  # noqa: PERF401 - a comprehension would lose it


async def test_an_answer_arrives_whole_and_is_paid_exactly(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        async with market.client.buy(market.spec(), market.buyer) as stream:
            assert stream.terms is not None
            assert stream.terms.node == market.nodes[0].key.peer_id
            assert stream.terms.input_units == INPUT_UNITS
            text = [chunk.text async for chunk in stream]
        assert text == list(WORDS)
        _, outcome = stream.ended()
        assert outcome.finish is Finish.STOP
        assert outcome.agrees
        assert outcome.amount_nano == cost_of(len(WORDS))
        await market.client.wait_settled()
        assert_paid(market, 0, cost_of(len(WORDS)))
        market.assert_books_are_closed()


@pytest.mark.parametrize(
    "script", [Script.REFUSE, Script.REFUSE_BARE, Script.VANISH_AT_ONCE], ids=lambda s: s.name
)
async def test_a_node_that_delivers_nothing_is_replaced_unseen(
    script: Script, autojump_clock: MockClock
) -> None:
    async with open_small_market(script, Script.ANSWER) as market:
        only_first = market.nodes[0].key.peer_id
        for _ in range(20):  # until matching has tried the bad node first
            chunks = await market.buy()
            assert [chunk.text for chunk in chunks] == list(WORDS)
            if market.nodes[0].jobs_opened:
                break
        assert market.nodes[0].jobs_opened
        assert all(r.message.amount_nano == 0 for r in market.nodes[0].receipts)
        await market.client.wait_settled()
        await trio.sleep(200)  # a hold without a receipt lives until its lease is over
        market.assert_books_are_closed()
        assert market.coordinator.market.book.get(only_first) is not None


async def test_a_node_whose_tokens_show_no_text_is_replaced_unseen(
    autojump_clock: MockClock,
) -> None:
    """Its tokens were passed on as a first output, so that no other node was tried."""
    async with open_small_market(Script.TEXTLESS, Script.ANSWER) as market:
        bad = market.nodes[0]
        for _ in range(20):
            chunks = await market.buy()
            assert [chunk.text for chunk in chunks] == list(WORDS)
            if bad.jobs_opened:
                break
        assert bad.jobs_opened
        standing = market.coordinator.market.reputation.standing(
            bad.key.peer_id, now_ms=market.clock.now_ms()
        )
        assert standing is None or standing.successes == 0


async def test_tokens_before_the_first_text_come_with_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.coordinator.small_market.WORDS", ("", "", *WORDS))
    async with open_small_market(Script.ANSWER) as market:
        chunks = await market.buy()
        assert [chunk.text for chunk in chunks] == list(WORDS)
        assert chunks[0].token_ids == (0, 1, 2)
        await market.client.wait_settled()
        assert_paid(market, 0, cost_of(2 + len(WORDS)))


async def test_an_answer_that_only_a_stop_string_ended_is_whole(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.coordinator.small_market.WORDS", ("", ""))
    async with open_small_market(Script.ANSWER) as market:
        assert await market.buy() == [Chunk((0, 1))]
        await market.client.wait_settled()
        assert_paid(market, 0, cost_of(2))


async def test_the_clients_own_mistake_is_one_if_a_second_node_finds_it_too(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(*[Script.BAD_INPUT] * 3) as market:
        with pytest.raises(JobFailed, match="no") as caught:
            await market.buy()
        assert caught.value.code is Code.PROMPT_TOO_LONG
        assert not caught.value.delivered
        assert sum(node.jobs_opened for node in market.nodes) == 2
        await market.client.wait_settled()
        market.assert_books_are_closed()


@pytest.mark.parametrize("script", [Script.LATER_CODE, Script.STATE_MISSING])
async def test_a_node_that_refuses_for_no_reason_of_the_job_is_left_for_another(
    autojump_clock: MockClock, script: Script
) -> None:
    """With a word of a later version, or with one that only other jobs can meet."""
    async with open_small_market(script, Script.ANSWER) as market:
        for _ in range(4):
            assert [chunk.text for chunk in await market.buy()] == list(WORDS)
        assert market.nodes[0].jobs_opened, "or the test shows nothing"
        await market.client.wait_settled()
        market.assert_books_are_closed()


async def test_an_input_that_fits_only_without_its_wrapping_is_told_so(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        image = ImageInput(bytes(PAYLOAD_BYTES_MAX - 1), top_k=1)
        spec = replace(market.spec(), task=Task.IMAGE_CLASSIFICATION, job_input=image)
        with pytest.raises(JobFailed) as caught:
            async with market.client.buy(spec, market.buyer):
                pass
        assert caught.value.code is Code.INPUT_TOO_LARGE
        assert not market.nodes[0].jobs_opened
        assert len(await market.buy()) == 4


async def test_a_node_that_accepts_and_then_says_nothing_is_left_for_another(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.HANG, Script.ANSWER) as market:
        started_at = trio.current_time()
        assert len(await market.buy()) == 4
        assert market.nodes[1].jobs_opened == 1
        assert trio.current_time() - started_at < 6, "and far before any deadline"
        await market.client.wait_settled()


async def test_a_node_that_falls_silent_midway_is_given_up_before_the_deadline(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.STALL_MIDWAY) as market:
        started_at = trio.current_time()
        with pytest.raises(JobFailed, match="silent") as caught:
            await market.buy(deadline_s=300.0)
        assert caught.value.delivered
        assert trio.current_time() - started_at < 10
        await market.client.wait_settled()
        assert_paid(market, 0, cost_of(2))
        market.assert_books_are_closed()


async def test_when_every_node_fails_the_last_reason_is_told(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.REFUSE, Script.REFUSE, Script.REFUSE) as market:
        with pytest.raises(JobFailed) as caught:
            await market.buy()
        assert caught.value.code is Code.BUSY
        assert sum(node.jobs_opened for node in market.nodes) == 3
        await market.client.wait_settled()
        market.assert_books_are_closed()


async def test_our_own_bound_of_what_goes_to_one_node_is_not_blamed_on_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_channel = StreamPool.open_channel
    seen: list[Observation] = []

    async with open_small_market(Script.ANSWER) as market:

        async def open_few(pool: StreamPool, peer: PeerId, **options: Any) -> Channel:
            if peer == market.nodes[0].key.peer_id:
                raise Backpressure("256 channels are open")
            return await open_channel(pool, peer, **options)

        monkeypatch.setattr(StreamPool, "open_channel", open_few)
        monkeypatch.setattr(market.leaser, "observe", lambda _, seen_: seen.append(seen_))
        with pytest.raises(JobFailed) as caught:
            await market.buy()
        assert caught.value.code is Code.BUSY
    assert [observation.blame for observation in seen] == [Blame.NEUTRAL]


async def test_a_cut_after_the_first_output_is_told_and_not_joined_with_another_answer(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.VANISH_MIDWAY) as market:
        received: list[str] = []
        with pytest.raises(JobFailed) as caught:
            await buy_into(received, market)
        assert received == list(WORDS[:2])
        assert caught.value.code is Code.NODE_LOST
        assert caught.value.delivered
        await trio.sleep(200)
        market.assert_books_are_closed()


async def test_a_crash_midway_is_paid_for_what_was_delivered(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.CRASH_MIDWAY) as market:
        with pytest.raises(JobFailed) as caught:
            await market.buy()
        assert caught.value.code is Code.WORKER_CRASHED
        await market.client.wait_settled()
        assert_paid(market, 0, cost_of(2))
        market.assert_books_are_closed()


async def test_an_overcharge_is_disputed_and_the_smaller_charge_is_paid(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.OVERCHARGE) as market:
        async with market.client.buy(market.spec(), market.buyer) as stream:
            assert [chunk.text async for chunk in stream] == list(WORDS)
        _, outcome = stream.ended()
        assert not outcome.agrees
        assert outcome.receipt is not None
        assert outcome.receipt.message.amount_nano == cost_of(len(WORDS) + 1)
        assert outcome.units.output_tokens == len(WORDS)
        assert outcome.amount_nano == cost_of(len(WORDS))
        await market.client.wait_settled()
        assert_paid(market, 0, cost_of(len(WORDS)))
        market.assert_books_are_closed()


async def test_leaving_early_cancels_the_job_at_the_node(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.HANG) as market:
        with trio.move_on_after(1):
            await market.buy()
        await market.client.wait_settled()
        assert market.nodes[0].cancels_seen == 1
        market.assert_books_are_closed()


async def test_a_job_is_given_up_at_its_deadline(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.HANG) as market:
        began_at = trio.current_time()
        with pytest.raises(JobFailed) as caught:
            await market.buy(deadline_s=5.0)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert trio.current_time() - began_at == pytest.approx(5.0, abs=0.5)


async def test_a_buyer_without_money_is_told_so(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, credit_nano=1) as market:
        with pytest.raises(JobFailed, match="credits available") as caught:
            await market.buy()
        assert caught.value.code is Code.OUT_OF_FUNDS
        assert not market.nodes[0].jobs_opened
        assert len(market.coordinator.leases) == 0
        market.assert_books_are_closed()


async def test_a_buyer_without_an_account_is_told_so(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, credit_nano=0) as market:
        with pytest.raises(JobFailed) as caught:
            await market.buy()
        assert caught.value.code is Code.UNKNOWN_ACCOUNT


async def test_many_jobs_at_once_are_all_answered_and_paid(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        answers: list[list[str]] = []

        async def buy_one() -> None:
            answers.append([chunk.text for chunk in await market.buy()])

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(buy_one)
        assert answers == [list(WORDS)] * 8
        await market.client.wait_settled()
        spent = OPENING_CREDIT_NANO - market.account(market.buyer.peer_id).posted_nano
        assert spent == 8 * cost_of(len(WORDS))
        market.assert_books_are_closed()
