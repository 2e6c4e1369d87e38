"""The coordinator's wall clock jumps: money and answers must not notice."""

import pytest
import trio
from trio.testing import MockClock

from coordinator.clock_check import ClockError, check_clock
from coordinator.db.engine import Connection
from coordinator.db.writer import post_one
from coordinator.ledger.postings import hold
from protocol.clock import Clock
from tests.clocks import SkewedClock
from tests.coordinator.ledger_makers import (
    HOUR_MS,
    START_MS,
    Ulids,
    funds_of,
    memory_books,
)
from tests.coordinator.small_market import WORDS, Script, open_small_market


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS])
async def test_an_hours_jump_for_five_seconds_costs_nobody_anything(
    autojump_clock: MockClock, jump_ms: int
) -> None:
    walls: list[SkewedClock] = []

    def settable(clock: Clock) -> Clock:
        walls.append(SkewedClock(clock))
        return walls[0]

    async with open_small_market(Script.ANSWER, coordinator_clock=settable) as market:
        (wall,) = walls
        async with market.client.buy(market.spec(deadline_s=60), market.buyer) as stream:
            first = await anext(aiter(stream))
            wall.ahead_ms = jump_ms
            await trio.sleep(5)
            rest = [chunk.text async for chunk in stream]
            wall.ahead_ms = 0
        assert first.text + "".join(rest) == "".join(WORDS)
        assert "".join(chunk.text for chunk in await market.buy()) == "".join(WORDS)
        await market.client.wait_settled()
        amounts = [receipt.message.amount_nano for receipt in market.nodes[0].receipts]
        assert market.account(market.nodes[0].key.peer_id).posted_nano > 0
        assert len(amounts) == 2
        market.assert_books_are_closed()


def hold_at(conn: Connection, now_ms: int) -> None:
    chain = hold(funds_of(Ulids()()), timeout_at_ms=now_ms + HOUR_MS)
    post_one(conn, chain, now_ms=now_ms)


def test_a_clock_that_agrees_with_the_books_is_taken() -> None:
    with memory_books() as database, database.transaction() as conn:
        hold_at(conn, START_MS)
        for now_ms in (START_MS - 60_000, START_MS, START_MS + 8 * HOUR_MS):
            check_clock(conn, now_ms=now_ms)


def test_a_clock_days_ahead_of_open_holds_is_refused_until_it_is_confirmed() -> None:
    with memory_books() as database, database.transaction() as conn:
        later_ms = START_MS + 25 * HOUR_MS
        check_clock(conn, now_ms=later_ms)
        hold_at(conn, START_MS)
        with pytest.raises(ClockError, match="--accept-clock"):
            check_clock(conn, now_ms=later_ms)


def test_a_clock_behind_the_books_is_refused_until_it_is_confirmed() -> None:
    with (
        memory_books() as database,
        database.transaction() as conn,
        pytest.raises(ClockError, match="--accept-clock"),
    ):
        check_clock(conn, now_ms=START_MS - HOUR_MS)
