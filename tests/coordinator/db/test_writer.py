"""Group commit: what a submitter may rely on, whoever else submits, cancels or breaks."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from sqlalchemy import bindparam, text, update

import coordinator.db.writer
from coordinator.audit.books import audit
from coordinator.db.bulk import BulkInsert, BulkUpdate, Record
from coordinator.db.engine import Connection, Database, ThreadRunner
from coordinator.db.schema import accounts, failed_ids
from coordinator.db.transfers import list_transfers
from coordinator.db.writer import LedgerWriter, post_one
from coordinator.errors import (
    ConstraintError,
    InvalidRowError,
    LedgerBusyError,
    LedgerClosedError,
    StorageError,
    StorageFullError,
)
from coordinator.ledger.accounts import AccountId
from coordinator.ledger.machine import Chain
from coordinator.ledger.postings import capture, credit, hold, release
from coordinator.ledger.refusals import OutOfFundsError, UnknownAccountError
from coordinator.ledger.transfers import Result, Transfer
from protocol.errors import Code
from protocol.ids import PeerId, TransferId
from tests.clocks import HandClock
from tests.coordinator.ledger_makers import (
    ALICE,
    BOB,
    HOUR_MS,
    NODE,
    START_MS,
    GatedRunner,
    Ulids,
    account,
    file_books,
    funds_of,
    memory_books,
    opened,
    posted,
)

TIMEOUT_MS = START_MS + HOUR_MS

# Any table serves to see whether a row was written with a posting.
NOTE = BulkInsert(failed_ids, ("id", "failed_at_ms"))


def note(name: str) -> tuple[Record, ...]:
    return (Record(NOTE, (name, 0)),)


def notes(conn: Connection) -> set[str]:
    return set(conn.scalars(text("SELECT id FROM failed_ids")))


def pay(number: str, amount_nano: int = 1) -> Chain:
    return Chain((posted(number, ALICE, BOB, amount_nano),))


async def available_nano(database: Database, party: PeerId = ALICE) -> int:
    return (await database.read(account, party)).available_nano


@pytest.fixture
def ulid() -> Ulids:
    return Ulids()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def runner() -> GatedRunner:
    return GatedRunner()


@pytest.fixture
def database(runner: GatedRunner) -> Iterator[Database]:
    """Alice and Bob have 1000 each. Writes wait for `runner.gate`; afterwards the books balance."""
    with memory_books(runner) as database:
        yield database
        with database.transaction() as conn:
            report = audit(conn)
        assert report.is_green, report.findings


async def started(nursery: trio.Nursery, database: Database, clock: HandClock) -> LedgerWriter:
    writer = LedgerWriter(database, clock)
    await nursery.start(writer.run)
    return writer


async def test_a_lone_posting_is_committed_at_once(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    runner.gate.set()
    writer = await started(nursery, database, clock)
    assert await writer.submit(pay(ulid(), 30)) is Result.CREATED
    assert await available_nano(database) == 970


async def test_what_queues_during_a_commit_shares_the_next(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    writer = await started(nursery, database, clock)
    async with trio.open_nursery() as submitters:
        submitters.start_soon(writer.submit, pay(ulid()))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(200):
            submitters.start_soon(writer.submit, pay(ulid()))
        await trio.testing.wait_all_tasks_blocked()
        runner.gate.set()
    assert runner.writes == 2
    assert await available_nano(database) == 1_000 - 201


async def test_a_batch_has_a_size(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    writer = LedgerWriter(database, clock, batch_max=10)
    await nursery.start(writer.run)
    async with trio.open_nursery() as submitters:
        for _ in range(35):
            submitters.start_soon(writer.submit, pay(ulid()))
        await trio.testing.wait_all_tasks_blocked()
        runner.gate.set()
    assert runner.writes == 4


async def test_a_full_queue_is_refused_at_once(
    database: Database,
    runner: GatedRunner,
    clock: HandClock,
    ulid: Ulids,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordinator.db.writer, "_QUEUE_MAX", 3)
    writer = await started(nursery, database, clock)
    async with trio.open_nursery() as submitters:
        submitters.start_soon(writer.submit, pay(ulid()))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            submitters.start_soon(writer.submit, pay(ulid()))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(LedgerBusyError) as refused:
            await writer.submit(pay(ulid()))
        assert refused.value.code is Code.BUSY
        runner.gate.set()
    assert await available_nano(database) == 1_000 - 4


async def test_submitters_get_their_own_answers(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    writer = await started(nursery, database, clock)
    again = pay(ulid(), 10)
    answers: dict[str, object] = {}

    async def submit(name: str, chain: Chain) -> None:
        try:
            answers[name] = await writer.submit(chain)
        except (OutOfFundsError, UnknownAccountError) as error:
            answers[name] = type(error)

    async with trio.open_nursery() as submitters:
        for name, chain in (
            ("first", again),
            ("second", again),
            ("too dear", pay(ulid(), 5_000)),
            ("no such account", Chain((posted(ulid(), "ghost", BOB, 1),))),
        ):
            submitters.start_soon(submit, name, chain)
            await trio.testing.wait_all_tasks_blocked()
        runner.gate.set()
    assert answers == {
        "first": Result.CREATED,
        "second": Result.EXISTS,
        "too dear": OutOfFundsError,
        "no such account": UnknownAccountError,
    }


async def test_concurrent_holds_cannot_overdraw(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    writer = await started(nursery, database, clock)
    results: list[bool] = []

    async def try_hold() -> None:
        try:
            await writer.submit(hold(funds_of(ulid()), timeout_at_ms=TIMEOUT_MS))
        except OutOfFundsError:
            results.append(False)
        else:
            results.append(True)

    async with trio.open_nursery() as submitters:
        for _ in range(15):
            submitters.start_soon(try_hold)
        await trio.testing.wait_all_tasks_blocked()
        runner.gate.set()
    assert results.count(True) == 10
    assert await available_nano(database) == 0


async def test_rows_are_written_with_the_posting_that_happens_and_only_then(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    runner.gate.set()
    writer = await started(nursery, database, clock)
    chain = pay(ulid())
    await writer.submit(chain, note("with money"))
    assert await writer.submit(chain, note("with a retry")) is Result.EXISTS
    with pytest.raises(OutOfFundsError):
        await writer.submit(pay(ulid(), 5_000), note("without funds"))
    await writer.submit(Chain(()), note("without money"))
    found = await database.read(notes)
    assert {name for name in found if " " in name} == {"with money", "without money"}


async def test_a_row_that_is_refused_takes_its_own_posting_with_it_and_no_other(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    writer = await started(nursery, database, clock)
    touch = BulkUpdate(
        update(accounts)
        .values(label=bindparam("new_label"))
        .where(accounts.c.id == bindparam("account")),
        ("new_label", "account"),
    )
    errors: dict[str, object] = {}

    async def submit(name: str, chain: Chain, records: tuple[Record, ...]) -> None:
        try:
            await writer.submit(chain, records)
        except StorageError as error:
            errors[name] = type(error)

    async with trio.open_nursery() as submitters:
        for name, records in (
            ("fine", note("a")),
            ("duplicate", note("a")),
            ("fine too", note("b")),
            ("nothing to update", (Record(touch, ("x", "ghost")),)),
            ("too large", (Record(NOTE, ("c", 2**63)),)),
            ("not text", (Record(NOTE, ("\ud800", 0)),)),
            ("not storable", (Record(NOTE, (object(), 0)),)),
        ):
            submitters.start_soon(submit, name, pay(ulid(), 1), records)
            await trio.testing.wait_all_tasks_blocked()
        runner.gate.set()
    assert errors == {
        "duplicate": ConstraintError,
        "nothing to update": ConstraintError,
        "too large": InvalidRowError,
        "not text": InvalidRowError,
        "not storable": StorageError,
    }
    assert await database.read(notes) == {"a", "b"}
    assert await available_nano(database) == 1_000 - 2


async def test_cancelling_a_queued_submitter_posts_nothing(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    writer = await started(nursery, database, clock)
    async with trio.open_nursery() as submitters:
        submitters.start_soon(writer.submit, pay(ulid(), 1))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0) as scope:
            await writer.submit(pay(ulid(), 500))
        assert scope.cancelled_caught
        runner.gate.set()
    assert await available_nano(database) == 999


async def test_a_submitter_that_leaves_at_once_costs_no_commit(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    runner.gate.set()
    writer = await started(nursery, database, clock)
    with trio.CancelScope() as scope:
        scope.cancel()
        await writer.submit(pay(ulid()))
    await trio.testing.wait_all_tasks_blocked()
    assert runner.writes == 0


async def test_cancelling_a_submitter_whose_posting_is_being_committed_waits_for_the_answer(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    writer = await started(nursery, database, clock)
    answers: list[Result] = []

    async def submit(scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await writer.submit(pay(ulid(), 500)))

    scope = trio.CancelScope()
    async with trio.open_nursery() as submitters:
        submitters.start_soon(submit, scope)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert answers == []
        runner.gate.set()
    assert answers == [Result.CREATED]
    assert await available_nano(database) == 500


async def test_shutting_down_answers_everyone(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids
) -> None:
    writer = LedgerWriter(database, clock)
    answers: dict[str, object] = {}

    async def submit(name: str, amount_nano: int) -> None:
        try:
            answers[name] = await writer.submit(pay(ulid(), amount_nano))
        except LedgerClosedError as error:
            answers[name] = error.code

    async with trio.open_nursery() as submitters, trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        submitters.start_soon(submit, "in the commit", 100)
        await trio.testing.wait_all_tasks_blocked()
        submitters.start_soon(submit, "in the queue", 200)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        await trio.lowlevel.cancel_shielded_checkpoint()
        runner.gate.set()
    await submit("after the end", 300)
    assert answers == {
        "in the commit": Result.CREATED,
        "in the queue": Code.COORDINATOR_LOST,
        "after the end": Code.COORDINATOR_LOST,
    }
    assert await available_nano(database) == 900


async def test_before_it_runs_nothing_is_taken(
    database: Database, clock: HandClock, ulid: Ulids
) -> None:
    with pytest.raises(LedgerClosedError):
        await LedgerWriter(database, clock).submit(pay(ulid()))


async def test_a_mistake_of_ours_stops_the_writer_and_leaves_nobody_waiting(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids
) -> None:
    class Broken:
        rank = (False, 0)

        def run(self, conn: Connection, rows: object) -> None:
            raise ZeroDivisionError

    writer = LedgerWriter(database, clock)
    runner.gate.set()
    closed: list[Code] = []

    async def submit() -> None:
        try:
            await writer.submit(pay(ulid()), (Record(Broken(), ()),))
        except LedgerClosedError as error:
            closed.append(error.code)

    with pytest.RaisesGroup(pytest.RaisesGroup(ZeroDivisionError)):
        async with trio.open_nursery() as submitters, trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            for _ in range(3):
                submitters.start_soon(submit)
    assert closed == [Code.COORDINATOR_LOST] * 3
    assert await available_nano(database) == 1_000


async def test_another_program_may_post_to_the_same_file(
    clock: HandClock, ulid: Ulids, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """As the command line does: the writer must not rely on balances that it has seen before."""
    path = tmp_path / "capa.db"
    with file_books(path, ThreadRunner()) as database, opened(f"sqlite:///{path}") as other:
        writer = await started(nursery, database, clock)
        await writer.submit(pay(ulid(), 1_000))
        with pytest.raises(OutOfFundsError):
            await writer.submit(pay(ulid(), 1))
        topping_up = credit(TransferId(ulid()), AccountId(ALICE), 50)
        await other.write(post_one, topping_up, now_ms=START_MS)
        await writer.submit(pay(ulid(), 50))
        assert await available_nano(other) == 0
        history = await other.read(list_transfers)
        assert [recorded.sequence for recorded in history] == [5, 4, 3, 2, 1]
        assert (await other.read(audit)).is_green
        nursery.cancel_scope.cancel()


async def test_due_holds_are_swept_and_those_that_are_not_stay(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    runner.gate.set()
    writer = await started(nursery, database, clock)
    due, kept = funds_of(ulid()), funds_of(ulid(), client=BOB)
    await writer.submit(hold(due, timeout_at_ms=START_MS + 10))
    await writer.submit(hold(kept, timeout_at_ms=TIMEOUT_MS))
    assert await writer.expire_holds() == []
    clock.wall_ms += 10

    async def notes_of(pending: Transfer) -> tuple[Record, ...]:
        return note(f"expired {pending.id}")

    (expired,) = await writer.expire_holds(notes_of)
    assert expired.id == due.hold_id
    assert await database.read(notes) == {f"expired {due.hold_id}"}
    assert await available_nano(database, ALICE) == 1_000
    assert await available_nano(database, BOB) == 900
    assert await writer.expire_holds() == []


async def test_a_sweep_that_meets_a_capture_leaves_it_alone(
    runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """The capture comes in time, but its commit is slow; meanwhile the sweep finds the hold due."""
    runner.gate.set()
    with file_books(tmp_path / "capa.db", runner) as database:
        writer = await started(nursery, database, clock)
        funds = funds_of(ulid())
        await writer.submit(hold(funds, timeout_at_ms=START_MS + 10))
        swept: list[list[Transfer]] = []

        async def sweep() -> None:
            swept.append(await writer.expire_holds())

        runner.gate = trio.Event()
        async with trio.open_nursery() as submitters:
            submitters.start_soon(writer.submit, capture(funds, 60, NODE, fee_bps=0))
            await trio.testing.wait_all_tasks_blocked()
            clock.wall_ms += 10
            submitters.start_soon(sweep)
            await trio.testing.wait_all_tasks_blocked()
            runner.gate.set()
        assert swept == [[]]
        assert await available_nano(database, NODE) == 60
        nursery.cancel_scope.cancel()


async def test_a_released_lease_may_be_told_again(
    database: Database, runner: GatedRunner, clock: HandClock, ulid: Ulids, nursery: trio.Nursery
) -> None:
    runner.gate.set()
    writer = await started(nursery, database, clock)
    funds = funds_of(ulid())
    await writer.submit(hold(funds, timeout_at_ms=TIMEOUT_MS))
    assert await writer.submit(release(funds)) is Result.CREATED
    assert await writer.submit(release(funds)) is Result.EXISTS


def limit_pages(conn: Connection, more: int) -> None:
    pages = conn.scalar(text("PRAGMA page_count"))
    conn.exec_driver_sql(f"PRAGMA max_page_count = {pages + more}").all()


async def test_a_full_disk_is_a_typed_error_and_the_next_posting_works(
    clock: HandClock, ulid: Ulids, nursery: trio.Nursery, tmp_path: Path
) -> None:
    with file_books(tmp_path / "capa.db", ThreadRunner()) as database:
        writer = await started(nursery, database, clock)
        await database.write(limit_pages, more=0)
        big = (Record(NOTE, ("x" * 50_000, 0)),)
        with pytest.raises(StorageFullError, match="free some space") as refused:
            await writer.submit(chain := pay(ulid(), 10), big)
        assert refused.value.code is Code.STORAGE_FULL
        assert await available_nano(database) == 1_000
        assert (await database.read(audit)).is_green
        await database.write(limit_pages, more=1_000)
        assert await writer.submit(chain, big) is Result.CREATED, "the same posting, sent again"
        assert await available_nano(database) == 990
        assert (await database.read(audit)).is_green
        nursery.cancel_scope.cancel()


async def test_a_failing_write_to_the_disk_is_a_typed_error_and_the_next_posting_works(
    clock: HandClock, ulid: Ulids, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """The kernel refuses to let any file of ours grow, which SQLite meets as an I/O error."""
    with file_books(tmp_path / "capa.db", ThreadRunner()) as database:
        writer = await started(nursery, database, clock)
        await writer.submit(pay(ulid()))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
        try:
            with pytest.raises(StorageError, match=r"I/O error|full"):
                await writer.submit(chain := pay(ulid(), 10))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert await available_nano(database) == 999
        assert await writer.submit(chain) is Result.CREATED
        assert await available_nano(database) == 989
        assert (await database.read(audit)).is_green
        nursery.cancel_scope.cancel()
