"""The gateway's shelves: what both promise, and that the durable one shows nothing to a thief."""

import random
from collections.abc import Iterator

import pytest
from sqlalchemy import select, update

from coordinator.db.engine import Database
from coordinator.db.schema import kept_answers
from coordinator.gateway.market_side.answers import AnswerShelf, MemoryShelf
from coordinator.in_process.shelf import DurableShelf
from protocol.ids import JobId, derive_ulid
from tests.clocks import HandClock
from tests.coordinator.ledger_makers import memory_books
from tests.coordinator.market_makers import NOW_MS, key, node

DIGEST, JOB = b"d" * 32, JobId(derive_ulid("0" * 26, "test"))


@pytest.fixture
def clock() -> HandClock:
    return HandClock(NOW_MS)


@pytest.fixture
def database() -> Iterator[Database]:
    with memory_books() as database:
        yield database


def durable(database: Database, clock: HandClock, owner: int = 1) -> DurableShelf:
    return DurableShelf(key(owner), database, clock, random.Random(1).randbytes)


@pytest.fixture(params=["memory", "durable"])
def shelf(request: pytest.FixtureRequest, clock: HandClock, database: Database) -> AnswerShelf:
    if request.param == "memory":
        return MemoryShelf(lambda: clock.now_ms() / 1_000, bytes_max=100)
    return durable(database, clock)


async def test_an_answer_is_found_under_its_name_until_its_time_is_over(
    shelf: AnswerShelf, clock: HandClock
) -> None:
    assert await shelf.claim(node(1), "a", DIGEST, JOB, for_s=5) is None
    waiting = await shelf.claim(node(1), "a", DIGEST, JOB, for_s=5)
    assert waiting is not None
    assert (waiting.data, waiting.request_digest, waiting.job_id) == (None, DIGEST, JOB)
    await shelf.put(node(1), "a", b"answer", for_s=10)
    found = await shelf.find(node(1), "a")
    assert found is not None
    assert found.data == b"answer"
    assert await shelf.find(node(2), "a") is None
    clock.pass_s(10)
    assert await shelf.find(node(1), "a") is None


async def test_a_name_that_is_dropped_is_free(shelf: AnswerShelf) -> None:
    await shelf.claim(node(1), "a", DIGEST, JOB, for_s=5)
    await shelf.drop(node(1), "a")
    assert await shelf.claim(node(1), "a", DIGEST, JOB, for_s=5) is None


async def test_memory_is_bounded_by_bytes(clock: HandClock) -> None:
    shelf = MemoryShelf(lambda: clock.now_ms() / 1_000, bytes_max=100)
    for name in "ab":
        await shelf.claim(node(1), name, DIGEST, JOB, for_s=5)
        await shelf.put(node(1), name, bytes(60), for_s=5)
    assert await shelf.find(node(1), "a") is None
    assert await shelf.find(node(1), "b") is not None


async def test_a_copy_of_the_books_shows_no_answer(database: Database, clock: HandClock) -> None:
    shelf = durable(database, clock)
    for name in "ab":
        await shelf.claim(node(1), name, DIGEST, JOB, for_s=5)
        await shelf.put(node(1), name, b"a secret answer", for_s=5)
    with database.transaction() as conn:
        sealed = dict(conn.execute(select(kept_answers.c.name, kept_answers.c.sealed)).all())
        assert all(b"secret" not in blob for blob in sealed.values())
        # Put in another's place, it is no answer.
        conn.execute(
            update(kept_answers).where(kept_answers.c.name == "b").values(sealed=sealed["a"])
        )
    swapped = await shelf.find(node(1), "b")
    assert swapped is not None
    assert swapped.data is None
    other = await durable(database, clock, owner=2).find(node(1), "a")
    assert other is not None
    assert other.data is None
    assert await shelf.sweep() == 0
    clock.pass_s(5)
    assert await shelf.sweep() == 2
