"""A ledger without room: whoever asks is told, the coordinator lives on, and nothing is lost."""

import random
from typing import NoReturn

import pytest
import trio
from sqlalchemy import text
from trio.testing import MockClock

from coordinator.buyer.errors import JobFailed
from coordinator.errors import StorageError, StorageFullError
from protocol.errors import Code
from protocol.keys import SigningKey
from protocol.limits import RECEIPT_GRACE_MS
from tests.coordinator.small_market import Script, SmallMarket, give_credit, open_small_market

DEADLINE_S = 5.0
# The holds' time is over, and the sweep has looked several times.
PAST_THE_HOLDS_S = DEADLINE_S + RECEIPT_GRACE_MS / 1_000 + 30


def set_pages_max(market: SmallMarket, pages: int) -> None:
    """Below its present size, a database keeps that: SQLite then finds the disk full."""
    with market.database.transaction() as conn:
        conn.execute(text(f"PRAGMA max_page_count = {pages}"))


def fill(market: SmallMarket) -> None:
    """Until not even the pages that are there have room for another transfer."""
    set_pages_max(market, 1)
    rng = random.Random(5)
    try:
        while True:
            with market.database.transaction() as conn:
                stranger = SigningKey.generate(rng.randbytes).peer_id
                give_credit(conn, stranger, 1, market.clock.now_ms())
    except StorageFullError:
        return


def free(market: SmallMarket) -> None:
    set_pages_max(market, 1_000_000)


async def test_a_job_is_refused_and_the_next_one_works_when_there_is_room(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        fill(market)
        with pytest.raises(JobFailed) as refused:
            await market.buy()
        assert refused.value.code is Code.STORAGE_FULL
        assert market.nodes[0].jobs_opened == 0
        assert market.audit().is_green
        free(market)
        assert len(await market.buy()) == 4
        await trio.sleep(1)
        market.assert_books_are_closed()


async def test_a_receipt_that_finds_the_disk_full_comes_again(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        async with market.client.buy(market.spec(), market.buyer) as stream:
            fill(market)
            assert len([chunk async for chunk in stream]) == 4
        await trio.sleep(1)
        assert market.audit().held_nano > 0
        free(market)
        await trio.sleep(10)
        market.assert_books_are_closed()
        assert market.account(market.nodes[0].key.peer_id).posted_nano > 0


async def test_a_disk_that_fails_does_not_end_the_market(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not full, not busy: broken in a way that nobody foresaw."""
    async with open_small_market(Script.HANG) as market:
        with pytest.raises(JobFailed):
            await market.buy(deadline_s=DEADLINE_S)

        async def fail(*_args: object, **_options: object) -> NoReturn:
            raise StorageError("disk I/O error")

        with monkeypatch.context() as broken:
            broken.setattr(market.database, "write", fail)
            await trio.sleep(PAST_THE_HOLDS_S)
            assert market.audit().held_nano > 0
            with pytest.raises(JobFailed):
                await market.buy()
        await trio.sleep(PAST_THE_HOLDS_S)
        market.assert_books_are_closed()


async def test_holds_that_expire_while_the_disk_is_full_are_given_back_later(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.HANG) as market:
        with pytest.raises(JobFailed):
            await market.buy(deadline_s=DEADLINE_S)
        market.nodes[0].script = Script.ANSWER
        fill(market)
        await trio.sleep(PAST_THE_HOLDS_S)
        assert market.audit().held_nano > 0
        free(market)
        await trio.sleep(PAST_THE_HOLDS_S)
        market.assert_books_are_closed()
