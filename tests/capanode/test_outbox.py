import dataclasses
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
import trio
import trio.testing

from capanode.errors import OutboxError, OutboxFullError
from capanode.outbox import (
    ACCEPTANCE_WAIT_MS,
    FULL_RETRY_S,
    WRITTEN_WITHIN_S,
    Outbox,
)
from capanode.outbox_store import Change, OutboxStore, read_paid_days
from protocol.envelope import Signed, seal
from protocol.ids import LeaseId, new_ulid
from protocol.messages import Receipt
from protocol.net.clock import VirtualClock
from protocol.programs.runners import InlineRunner, ThreadRunner
from tests.protocol.makers import (
    CLIENT,
    COORDINATOR,
    NODE,
    NOW_MS,
    make_acceptance,
    make_chain,
    make_lease,
    make_receipt,
    make_request,
)

T = TypeVar("T")
_rng = Random(3)


def new_receipt() -> Signed[Receipt]:
    """A receipt for a lease of its own."""
    request = seal(CLIENT, make_request())
    lease_id = LeaseId(new_ulid(NOW_MS, _rng.randbytes(10)))
    lease = seal(COORDINATOR, dataclasses.replace(make_lease(request), lease_id=lease_id))
    return seal(NODE, make_receipt(lease))


class FullDisk(InlineRunner):
    """Fails like a full disk while `is_full`."""

    def __init__(self) -> None:
        self.is_full = False

    async def run_write(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        if self.is_full:
            raise OutboxFullError("the disk under the outbox is full")
        return call()


@pytest.fixture
def store() -> Iterator[OutboxStore]:
    store = OutboxStore(None)
    yield store
    store.close()


@asynccontextmanager
async def running(outbox: Outbox) -> AsyncIterator[Outbox]:
    async with trio.open_nursery() as nursery:
        await nursery.start(outbox.run)
        yield outbox
        nursery.cancel_scope.cancel()


def make_outbox(store: OutboxStore, *, receipts_max: int = 100) -> Outbox:
    return Outbox(store, clock=VirtualClock(), runner=InlineRunner(), receipts_max=receipts_max)


async def test_receipts_survive_a_restart(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    receipt = new_receipt()
    clock = VirtualClock()
    first = OutboxStore(tmp_path / "outbox.sqlite")
    async with running(Outbox(first, clock=clock, runner=InlineRunner())) as outbox:
        await outbox.add(receipt).wait()
    first.close()
    second = OutboxStore(tmp_path / "outbox.sqlite")
    async with running(Outbox(second, clock=clock, runner=InlineRunner())) as outbox:
        (stored,) = await outbox.wait_due(COORDINATOR.peer_id, limit=10)
    second.close()
    assert stored.receipt == receipt.raw
    assert stored.amount_nano == receipt.message.amount_nano


async def test_a_receipt_is_handed_in_at_once_when_its_acceptance_came(
    store: OutboxStore, autojump_clock: trio.testing.MockClock
) -> None:
    chain = make_chain()
    async with running(make_outbox(store)) as outbox:
        await outbox.add(chain.receipt).wait()
        outbox.attach_nowait(chain.acceptance, coordinator=COORDINATOR.peer_id)
        (stored,) = await outbox.wait_due(COORDINATOR.peer_id, limit=10)
        assert trio.current_time() == 0
        assert stored.acceptance == chain.acceptance.raw


async def test_a_receipt_waits_for_its_acceptance_but_not_for_ever(
    store: OutboxStore, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(make_outbox(store)) as outbox:
        await outbox.add(new_receipt()).wait()
        (stored,) = await outbox.wait_due(COORDINATOR.peer_id, limit=10)
        assert trio.current_time() == pytest.approx(ACCEPTANCE_WAIT_MS / 1000)
        assert stored.acceptance == b""


async def test_an_acknowledged_receipt_is_counted_once_and_gone(
    store: OutboxStore, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(make_outbox(store)) as outbox:
        await outbox.add(new_receipt()).wait()
        (stored,) = await outbox.wait_due(COORDINATOR.peer_id, limit=10)
        outbox.acknowledge(stored, state="settled", paid_nano=95)
        outbox.acknowledge(stored, state="settled", paid_nano=95)
        (earning,) = await outbox.earnings()
        assert (earning.state, earning.jobs) == ("settled", 1)
        assert earning.amount_nano == stored.amount_nano
        with trio.move_on_after(3600) as scope:
            await outbox.wait_due(COORDINATOR.peer_id, limit=10)
        assert scope.cancelled_caught


async def test_the_same_receipt_twice_is_one_receipt(store: OutboxStore) -> None:
    receipt = new_receipt()
    async with running(make_outbox(store)) as outbox:
        await outbox.add(receipt).wait()
        await outbox.add(receipt).wait()
        (earning,) = await outbox.earnings()
        assert (earning.state, earning.jobs) == ("waiting", 1)


async def test_a_failed_try_comes_back_when_it_is_due(
    store: OutboxStore, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(make_outbox(store)) as outbox:
        await outbox.add(new_receipt()).wait()
        (stored,) = await outbox.wait_due(COORDINATOR.peer_id, limit=10)
        outbox.postpone(stored, due_ms=stored.due_ms + 60_000)
        (again,) = await outbox.wait_due(COORDINATOR.peer_id, limit=10)
        assert trio.current_time() == pytest.approx(62.0)
        assert again.tries == 1


async def test_a_refused_receipt_stays_as_evidence_but_is_not_handed_in(
    store: OutboxStore, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(make_outbox(store)) as outbox:
        await outbox.add(new_receipt()).wait()
        (stored,) = await outbox.wait_due(COORDINATOR.peer_id, limit=10)
        outbox.refuse(stored, reason="receipt_mismatch")
        (earning,) = await outbox.earnings()
        assert (earning.state, earning.jobs) == ("refused", 1)
        with trio.move_on_after(3600) as scope:
            await outbox.wait_due(COORDINATOR.peer_id, limit=10)
        assert scope.cancelled_caught


async def test_other_coordinators_receipts_are_not_due(
    store: OutboxStore, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(make_outbox(store)) as outbox:
        await outbox.add(new_receipt()).wait()
        with trio.move_on_after(10) as scope:
            await outbox.wait_due(NODE.peer_id, limit=10)
        assert scope.cancelled_caught


async def test_a_full_outbox_takes_no_work_until_receipts_leave(
    store: OutboxStore, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(make_outbox(store, receipts_max=2)) as outbox:
        accepting = [outbox.is_accepting]
        for _ in range(2):
            await outbox.add(new_receipt()).wait()
            accepting.append(outbox.is_accepting)
        assert "coordinator" in outbox.failure
        (stored, _) = await outbox.wait_due(COORDINATOR.peer_id, limit=10)
        outbox.acknowledge(stored, state="disputed", paid_nano=1)
        assert [*accepting, outbox.is_accepting] == [True, True, False, True]


async def test_a_full_disk_is_told_survived_and_written_when_there_is_room(
    store: OutboxStore, autojump_clock: trio.testing.MockClock
) -> None:
    disk = FullDisk()
    outbox = Outbox(store, clock=VirtualClock(), runner=disk)
    async with running(outbox):
        disk.is_full = True
        with pytest.raises(OutboxFullError):
            await outbox.add(new_receipt()).wait()
        accepting = [outbox.is_accepting]
        assert "full" in outbox.failure
        disk.is_full = False
        await trio.sleep(FULL_RETRY_S + 1)
        assert [*accepting, outbox.is_accepting] == [False, True]
        (earning,) = await outbox.earnings()
        assert (earning.state, earning.jobs) == ("waiting", 1)


async def test_what_was_not_waited_for_is_written_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    store = OutboxStore(path)
    outbox = Outbox(store, clock=VirtualClock(), runner=ThreadRunner())
    async with running(outbox):
        outbox.add(new_receipt())
    store.close()
    again = OutboxStore(path)
    assert len(again.load()) == 1
    again.close()


async def test_a_burst_of_receipts_shares_transactions(
    store: OutboxStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    apply = store.apply

    def counted(changes: list[Change]) -> None:
        sizes.append(len(changes))
        apply(changes)

    monkeypatch.setattr(store, "apply", counted)
    async with running(make_outbox(store)) as outbox, trio.open_nursery() as nursery:
        for _ in range(32):
            nursery.start_soon(outbox.add(new_receipt()).wait)
    assert sum(sizes) == 32
    assert len(sizes) <= 3


def test_a_file_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(OutboxError, match=r"has schema 99, .* up to 2"):
        OutboxStore(path)


def test_a_file_that_cannot_be_read_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    path.mkdir()
    with pytest.raises(OutboxError, match="cannot be used") as caught:
        read_paid_days(path)
    assert not isinstance(caught.value, OutboxFullError)


def test_a_place_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    path.mkdir()
    with pytest.raises(OutboxError, match=str(path)):
        OutboxStore(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(OutboxError, match="cannot be used"):
        OutboxStore(path)


async def test_an_acceptance_without_its_receipt_changes_nothing(
    store: OutboxStore, autojump_clock: trio.testing.MockClock
) -> None:
    acceptance = seal(CLIENT, make_acceptance(new_receipt()))
    async with running(make_outbox(store)) as outbox:
        outbox.attach_nowait(acceptance, coordinator=COORDINATOR.peer_id)
        await trio.sleep(2 * WRITTEN_WITHIN_S)
    assert store.load() == []


async def test_what_became_of_a_receipt_costs_no_write_of_its_own(
    store: OutboxStore, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    apply = store.apply

    def counted(changes: list[Change]) -> None:
        sizes.append(len(changes))
        apply(changes)

    monkeypatch.setattr(store, "apply", counted)
    chain = make_chain()
    async with running(make_outbox(store)) as outbox:
        await outbox.add(chain.receipt).wait()
        outbox.attach_nowait(chain.acceptance, coordinator=COORDINATOR.peer_id)
        (stored,) = await outbox.wait_due(COORDINATOR.peer_id, limit=10)
        outbox.acknowledge(stored, state="settled", paid_nano=95)
        await outbox.add(new_receipt()).wait()
        # The receipt; then in one write the end of that one, and the next.
        assert sizes == [1, 2]
        await trio.sleep(2 * WRITTEN_WITHIN_S)
        assert len(sizes) == 2


async def test_what_no_job_waits_for_is_on_disk_within_its_time(
    store: OutboxStore, autojump_clock: trio.testing.MockClock
) -> None:
    chain = make_chain()
    async with running(make_outbox(store)) as outbox:
        await outbox.add(chain.receipt).wait()
        outbox.attach_nowait(chain.acceptance, coordinator=COORDINATOR.peer_id)
        await trio.sleep(WRITTEN_WITHIN_S + 0.1)
        (stored,) = store.load()
        assert stored.acceptance == chain.acceptance.raw


async def test_a_receipt_is_not_handed_in_before_it_is_on_disk(
    store: OutboxStore, autojump_clock: trio.testing.MockClock
) -> None:
    disk = FullDisk()
    chain = make_chain()
    async with running(Outbox(store, clock=VirtualClock(), runner=disk)) as outbox:
        disk.is_full = True
        outbox.add(chain.receipt)
        outbox.attach_nowait(chain.acceptance, coordinator=COORDINATOR.peer_id)
        await trio.sleep(1)
        disk.is_full = False
        (stored,) = await outbox.wait_due(COORDINATOR.peer_id, limit=10)
        assert trio.current_time() == pytest.approx(FULL_RETRY_S)
        assert stored.acceptance == chain.acceptance.raw


@pytest.mark.parametrize("is_new", [True, False])
def test_the_outbox_is_its_owners_alone_in_a_folder_that_is_not(
    tmp_path: Path, is_new: bool
) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "outbox.sqlite"
    if not is_new:
        OutboxStore(path).close()
        path.chmod(0o644)
    store = OutboxStore(path)
    modes = {file.name: file.stat().st_mode & 0o077 for file in tmp_path.iterdir()}
    store.close()
    assert set(modes.values()) == {0}, modes
