"""The coordinator signs the head of its books by itself: each minute, or after many transfers."""

import trio
from trio.testing import MockClock

from coordinator.db.heads import find_last_head
from coordinator.db.writer import Posting, post
from coordinator.head_signer import LOOK_EVERY_S, LOOKS_MAX, TRANSFERS_MAX, sign_heads_forever
from coordinator.ledger.accounts import account_of
from coordinator.ledger.machine import Chain
from coordinator.ledger.postings import credit
from protocol.ids import TransferId
from protocol.keys import SigningKey
from tests.clocks import HandClock
from tests.coordinator.ledger_makers import ALICE, START_MS, Ulids, memory_books

KEY = SigningKey(b"\7" * 32)
MINUTE_S = LOOKS_MAX * LOOK_EVERY_S


def credits_of(count: int) -> list[Chain]:
    ulid = Ulids(1_000)
    return [credit(TransferId(ulid()), account_of(ALICE), 1) for _ in range(count)]


async def test_what_has_changed_is_signed_within_a_minute(autojump_clock: MockClock) -> None:
    with memory_books() as database:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sign_heads_forever, database, KEY, HandClock())
            await trio.sleep(MINUTE_S + 1)
            first = await database.read(find_last_head)
            assert first is not None
            assert first.is_signed
            assert first.signer == KEY.peer_id
            await trio.sleep(MINUTE_S)
            assert await database.read(find_last_head) == first, "nothing has changed since"
            nursery.cancel_scope.cancel()


async def test_after_many_transfers_the_head_is_signed_at_the_next_look(
    autojump_clock: MockClock,
) -> None:
    with memory_books() as database:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sign_heads_forever, database, KEY, HandClock())
            await trio.sleep(MINUTE_S + 1)
            before = await database.read(find_last_head)
            with database.transaction() as conn:
                post(conn, [Posting(chain) for chain in credits_of(TRANSFERS_MAX)], now_ms=START_MS)
            await trio.sleep(LOOK_EVERY_S)
            after = await database.read(find_last_head)
            assert before is not None
            assert after is not None
            assert after.sequence == before.sequence + TRANSFERS_MAX
            nursery.cancel_scope.cancel()
