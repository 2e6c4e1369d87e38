"""Answers that go on at another node after a cut: nothing is lost, doubled, or paid twice."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.result import PurchaseResult
from coordinator.buyer.spec import Continuation
from coordinator.buyer.tries import YIELDS_MAX
from coordinator.market.first_outputs import LATEST_MIN
from protocol.endings import Finish
from protocol.errors import Code
from protocol.limits import ATTEMPTS_MAX
from protocol.payload import Chunk
from protocol.pricing import Units
from protocol.receipts import charge_nano
from protocol.services import LoadAck, Method
from tests.coordinator.small_market import (
    INPUT_UNITS,
    OPENING_CREDIT_NANO,
    PRICE,
    WORDS,
    Script,
    ScriptedNode,
    SmallMarket,
    open_small_market,
)

LONG = tuple(f" w{number}" for number in range(9))
GO_ON = {"continuation": Continuation.CONTINUE}


def cost_of(output_tokens: int, *, prefix_tokens: int = 0) -> int:
    units = Units(INPUT_UNITS.input_tokens + prefix_tokens, output_tokens)
    return charge_nano(PRICE, units, Finish.STOP)


async def read(market: SmallMarket, **changes: object) -> tuple[list[Chunk], PurchaseResult]:
    spec = market.spec(**{**GO_ON, **changes})  # type: ignore[arg-type]  # keywords of `spec`
    async with market.client.buy(spec, market.buyer) as stream:
        chunks = [chunk async for chunk in stream]
    return chunks, stream.ended()[1]


async def read_via(
    market: SmallMarket, *nodes: int, **changes: object
) -> tuple[list[Chunk], PurchaseResult]:
    """Like `read`, from these nodes in this order."""
    spec = market.spec(**{**GO_ON, **changes})  # type: ignore[arg-type]  # keywords of `spec`
    order = tuple(market.nodes[number].key.peer_id for number in nodes)
    spec = replace(spec, constraints=replace(spec.constraints, order=order))
    async with market.client.buy(spec, market.buyer) as stream:
        chunks = [chunk async for chunk in stream]
    return chunks, stream.ended()[1]


def spent(market: SmallMarket) -> int:
    return OPENING_CREDIT_NANO - market.account(market.buyer.peer_id).posted_nano


def assert_is_whole(chunks: list[Chunk], words: tuple[str, ...]) -> None:
    assert "".join(chunk.text for chunk in chunks) == "".join(words)
    assert [token for chunk in chunks for token in chunk.token_ids] == list(range(len(words)))


@pytest.mark.parametrize(
    "script",
    [
        Script.VANISH_MIDWAY,
        Script.CRASH_MIDWAY,
        Script.STALL_MIDWAY,
        Script.SIGN_FAILURE_MIDWAY,
    ],
    ids=lambda script: script.name,
)
async def test_an_answer_that_breaks_off_goes_on_at_the_next_node(
    script: Script, autojump_clock: MockClock
) -> None:
    async with open_small_market(script, Script.ANSWER) as market:
        chunks, result = await read_via(market, 0, 1)
        assert_is_whole(chunks, WORDS)
        assert result.finish is Finish.STOP
        assert result.units == Units(INPUT_UNITS.input_tokens, len(WORDS))
        assert [part.node for part in result.parts] == [n.key.peer_id for n in market.nodes]
        first, second = cost_of(2), cost_of(2, prefix_tokens=2)
        assert [part.amount_nano for part in result.parts] == [first, second]
        assert result.amount_nano == first + second
        await market.client.wait_settled()
        # A node that vanished has not handed its receipt in: what it may charge is bounded.
        assert spent(market) == second + (0 if script is Script.VANISH_MIDWAY else first)
        await trio.sleep(200)
        market.assert_books_are_closed()


async def test_an_answer_survives_several_deaths(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.coordinator.small_market.WORDS", LONG)
    dying = [Script.VANISH_MIDWAY, Script.CRASH_MIDWAY, Script.CRASH_MIDWAY]
    async with open_small_market(*dying, Script.ANSWER) as market:
        chunks, result = await read_via(market, 0, 1, 2, 3, max_tokens=20)
        assert_is_whole(chunks, LONG)
        assert [part.units.output_tokens for part in result.parts] == [2, 2, 2, 3]
        assert result.amount_nano == sum(part.amount_nano for part in result.parts)


async def test_a_node_that_failed_is_tried_again_if_no_other_is_left(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.coordinator.small_market.WORDS", LONG)
    async with open_small_market(Script.CRASH_MIDWAY) as market:
        chunks, result = await read(market, max_tokens=20)
        assert_is_whole(chunks, LONG)
        assert len(result.parts) == 5


async def test_nodes_that_fail_after_a_token_or_two_are_not_tried_for_ever(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.coordinator.small_market.WORDS", (" word",) * 100)
    async with open_small_market(Script.CRASH_MIDWAY) as market:
        with pytest.raises(JobFailed) as caught:
            await read(market, max_tokens=100)
        assert caught.value.code is Code.WORKER_CRASHED
        assert market.nodes[0].jobs_opened == ATTEMPTS_MAX
        assert caught.value.amount_nano == sum(
            cost_of(2, prefix_tokens=2 * number) for number in range(ATTEMPTS_MAX)
        )
        await market.client.wait_settled()
        assert spent(market) == caught.value.amount_nano
        market.assert_books_are_closed()


async def read_batch(market: SmallMarket, max_tokens: int) -> tuple[list[Chunk], PurchaseResult]:
    spec = market.spec(max_tokens, deadline_s=120.0, continuation=Continuation.CONTINUE)
    async with market.client.buy(replace(spec, is_batch=True), market.buyer) as stream:
        chunks = [chunk async for chunk in stream]
    return chunks, stream.ended()[1]


async def test_a_text_of_a_batch_goes_on_after_each_live_job_that_took_its_slot(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (" word",) * 2 * ATTEMPTS_MAX + (" last",)
    monkeypatch.setattr("tests.coordinator.small_market.WORDS", words)
    async with open_small_market(Script.YIELD_MIDWAY) as market:
        chunks, result = await read_batch(market, 30)
        assert_is_whole(chunks, words)
        assert len(result.parts) == ATTEMPTS_MAX + 1
        await market.client.wait_settled()
        assert spent(market) == result.amount_nano
        market.assert_books_are_closed()


async def be_full_for(
    node: ScriptedNode, seconds: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Jobs of another coordinator take all slots; then the node does as it should."""
    await node.call(Method.LOAD, node.load(running=5), LoadAck)
    task_status.started()
    for _ in range(seconds // 5):
        await trio.sleep(5)
        await node.call(Method.LOAD, node.load(running=5), LoadAck)
    node.script = Script.ANSWER
    await be_idle(node)


async def be_idle(node: ScriptedNode) -> None:
    while True:
        await node.call(Method.LOAD, node.load(), LoadAck)
        await trio.sleep(5)


async def test_a_node_that_always_takes_its_slot_back_is_paid_for_so_many_prompts_at_most(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.coordinator.small_market.WORDS", (" word",) * 100)
    # An offer of this market is good for three minutes.
    monkeypatch.setattr("coordinator.buyer.tries._YIELD_PAUSE_MAX_S", 8.0)
    async with open_small_market(Script.YIELD_MIDWAY) as market:
        began_at = trio.current_time()
        market.nursery.start_soon(be_idle, market.nodes[0])
        with pytest.raises(JobFailed) as caught:
            await read_batch(market, 100)
        assert caught.value.code is Code.BUSY
        assert market.nodes[0].jobs_opened == YIELDS_MAX
        # Each time it left the slot to others for longer.
        assert trio.current_time() - began_at > 60


async def test_waiting_for_an_idle_seat_takes_nothing_of_a_batchs_time(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.YIELD_MIDWAY) as market:
        node = market.nodes[0]
        spec = market.spec(deadline_s=30.0, continuation=Continuation.CONTINUE)
        spec = replace(spec, is_batch=True)
        async with market.client.buy(spec, market.buyer) as stream:
            chunks = [await anext(stream)]
            await market.nursery.start(be_full_for, node, 100)
            chunks += [chunk async for chunk in stream]
        result = stream.ended()[1]
        assert_is_whole(chunks, WORDS)
        assert result.finish is Finish.STOP
        assert [part.tokens_used for part in result.parts] == [2, 2]


async def test_a_cut_after_the_last_token_needs_no_other_node(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.VANISH_MIDWAY, Script.ANSWER) as market:
        chunks, result = await read_via(market, 0, 1, max_tokens=2)
        assert_is_whole(chunks, WORDS[:2])
        assert result.finish is Finish.LENGTH
        assert market.nodes[1].jobs_opened == 0
        assert result.amount_nano == cost_of(2)


async def test_an_answer_that_no_node_has_room_for_ends_where_it_is(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.CRASH_MIDWAY, Script.BAD_INPUT, Script.BAD_INPUT) as market:
        chunks, result = await read_via(market, 0, 1, 2)
        assert_is_whole(chunks, WORDS[:2])
        assert (result.finish, result.reason) == (Finish.LENGTH, None)
        assert result.amount_nano == cost_of(2)


async def test_tokens_that_show_no_text_yet_count_as_delivered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a character, or what may become a stop string."""
    words = ("a", "", "bc", "", "d")
    monkeypatch.setattr("tests.coordinator.small_market.WORDS", words)
    async with open_small_market(Script.CRASH_MIDWAY, Script.ANSWER) as market:
        chunks, result = await read_via(market, 0, 1)
        assert_is_whole(chunks, words)
        assert [part.units.output_tokens for part in result.parts] == [2, 3]


async def test_the_deadline_gives_what_there_is(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.STALL_MIDWAY) as market:
        chunks, result = await read(market, deadline_s=3.0)
        assert_is_whole(chunks, WORDS[:2])
        assert (result.finish, result.reason) == (Finish.LENGTH, Code.DEADLINE_EXCEEDED)
        assert result.amount_nano == cost_of(2)
        assert market.nodes[0].cancels_seen == 1
        await market.client.wait_settled()
        assert spent(market) == cost_of(2)
        market.assert_books_are_closed()


async def test_a_deadline_before_any_output_charges_nothing(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.HANG) as market:
        with pytest.raises(JobFailed) as caught:
            await read(market, deadline_s=1.0)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert caught.value.amount_nano == 0


@pytest.mark.parametrize("is_hedged", [True, False])
async def test_a_hedged_purchase_does_not_wait_for_a_late_node(
    is_hedged: bool, autojump_clock: MockClock
) -> None:
    async with open_small_market(Script.HANG, Script.ANSWER) as market:
        order = tuple(node.key.peer_id for node in market.nodes)
        spec = market.spec(continuation=Continuation.CONTINUE)
        constraints = replace(spec.constraints, order=order)
        began_at = trio.current_time()
        spec = replace(spec, hedge=is_hedged, constraints=constraints)
        async with market.client.buy(spec, market.buyer) as stream:
            waited_s = trio.current_time() - began_at
            assert_is_whole([chunk async for chunk in stream], WORDS)
        assert (waited_s < 3) is is_hedged
        assert [node.jobs_opened for node in market.nodes] == [1, 1]
        await market.client.wait_settled()
        assert market.nodes[0].cancels_seen == 1
        market.assert_books_are_closed()


async def test_a_node_whose_usual_times_are_known_is_hedged_when_it_is_later_than_those(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        # The coordinator's own gateway, whose measurements count.
        client = market.coordinator.client
        order = tuple(node.key.peer_id for node in market.nodes)
        spec = replace(market.spec(), hedge=True)
        spec = replace(spec, constraints=replace(spec.constraints, order=order))
        for _ in range(LATEST_MIN):
            async with client.buy(spec, market.buyer) as stream:
                assert [chunk async for chunk in stream]
            await client.wait_settled()
        market.nodes[0].script = Script.HANG
        began_at = trio.current_time()
        async with client.buy(spec, market.buyer) as stream:
            waited_s = trio.current_time() - began_at
            assert_is_whole([chunk async for chunk in stream], WORDS)
        assert market.nodes[1].jobs_opened == 1
        assert waited_s < 0.2


async def test_a_hedged_purchase_whose_first_node_comes_first_is_paid_once(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        spec = replace(market.spec(), hedge=True)
        async with market.client.buy(spec, market.buyer) as stream:
            assert_is_whole([chunk async for chunk in stream], WORDS)
        await market.client.wait_settled()
        assert sum(node.jobs_opened for node in market.nodes) == 1
        assert spent(market) == cost_of(len(WORDS))
        market.assert_books_are_closed()


async def test_a_hedged_purchase_fails_as_its_first_node_does(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.HANG) as market:
        with pytest.raises(JobFailed) as caught:
            async with market.client.buy(replace(market.spec(), hedge=True), market.buyer):
                pass
        assert caught.value.code is Code.NODE_LOST
        await market.client.wait_settled()
        market.assert_books_are_closed()


async def test_an_answer_that_may_not_go_on_tells_the_failure_and_its_charge(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.CRASH_MIDWAY, Script.ANSWER) as market:
        with pytest.raises(JobFailed) as caught:
            await read_via(market, 0, 1, continuation=Continuation.OFF)
        assert caught.value.code is Code.WORKER_CRASHED
        assert caught.value.delivered
        assert caught.value.amount_nano == cost_of(2)


async def test_an_answer_that_is_shown_whole_may_begin_anew(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.CRASH_MIDWAY, Script.ANSWER) as market:
        order = tuple(node.key.peer_id for node in market.nodes)
        spec = market.spec(continuation=Continuation.RESTART)
        spec = replace(
            spec,
            is_shown_whole=True,
            constraints=replace(spec.constraints, order=order),
        )
        async with market.client.buy(spec, market.buyer) as stream:
            chunks = [chunk async for chunk in stream]
        assert_is_whole(chunks, WORDS)
        result = stream.ended()[1]
        assert [part.amount_nano for part in result.parts] == [cost_of(2), cost_of(len(WORDS))]
        assert [node.jobs_opened for node in market.nodes] == [1, 1]


async def test_all_parts_together_cost_no_more_than_the_request_allows(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.CRASH_MIDWAY, Script.ANSWER) as market:
        spec = market.spec(continuation=Continuation.CONTINUE)
        order = tuple(node.key.peer_id for node in market.nodes)
        # Enough for the first part as it begins; then its tokens are spent.
        limit_nano = charge_nano(PRICE, spec.units_max, Finish.STOP)
        capped = replace(spec.constraints, order=order, max_cost_nano=limit_nano)
        spec = replace(spec, constraints=capped, deadline_s=100.0)
        began_at = trio.current_time()
        with pytest.raises(JobFailed, match="max_cost leaves") as caught:
            async with market.client.buy(spec, market.buyer) as stream:
                _ = [chunk async for chunk in stream]
        assert caught.value.amount_nano == cost_of(2)
        assert market.nodes[1].jobs_opened == 0
        # Waiting for a node would not help.
        assert trio.current_time() - began_at < 2


async def test_an_account_that_is_spent_is_told_at_once(autojump_clock: MockClock) -> None:
    spec_units = Units(input_tokens=16, output_tokens=8)
    credit_nano = charge_nano(PRICE, spec_units, Finish.STOP)
    scripts = (Script.CRASH_MIDWAY, Script.ANSWER)
    async with open_small_market(*scripts, credit_nano=credit_nano) as market:
        began_at = trio.current_time()
        with pytest.raises(JobFailed) as caught:
            await read_via(market, 0, 1)
        assert caught.value.code is Code.OUT_OF_FUNDS
        assert caught.value.amount_nano == cost_of(2)
        assert trio.current_time() - began_at < 2


async def test_money_that_a_dead_nodes_lease_holds_is_waited_for(autojump_clock: MockClock) -> None:
    spec_units = Units(input_tokens=16, output_tokens=8)
    ceiling_nano = charge_nano(PRICE, spec_units, Finish.STOP)
    scripts = (Script.VANISH_MIDWAY, Script.ANSWER)
    async with open_small_market(*scripts, credit_nano=2 * ceiling_nano - 1) as market:
        node = market.nodes[0]

        async def hand_in_later() -> None:
            await trio.sleep(10)
            lease = next(iter(market.coordinator.leases)).lease
            await node.hand_in(node.sign_unopened(lease, (), Finish.FAILED, "drained"))

        market.nursery.start_soon(hand_in_later)
        chunks, _ = await read_via(market, 0, 1)
        assert_is_whole(chunks, WORDS)
