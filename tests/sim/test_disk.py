"""A disk that loses what was not synced, and worlds whose coordinator lives on it."""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import trio

import coordinator.db.sqlite
from coordinator.db.engine import Connection, Database
from coordinator.db.heads import structural_damage
from coordinator.errors import StorageError, StorageFullError
from coordinator.settling.payments import Payments
from protocol.errors import RemoteProtocolError
from protocol.programs.sqlite import configure_connection
from sim.disk import CutPoint, SimDisk
from sim.host import Process
from sim.options import WorldOptions, draw_options
from sim.world import run_world


@pytest.fixture
def disk() -> Iterator[SimDisk]:
    disk = SimDisk(Random(1))
    yield disk
    disk.close()


def add_note(conn: Connection, name: str, *, size: int = 1) -> None:
    conn.exec_driver_sql("INSERT INTO failed_ids VALUES (?, 1)", (f"{name} {'x' * size}",))


def notes(disk: SimDisk) -> set[str]:
    with disk.books() as conn:
        return {row[0].split()[0] for row in conn.exec_driver_sql("SELECT id FROM failed_ids")}


def start(disk: SimDisk) -> tuple[Database, Process]:
    process = Process("test")
    return disk.open(process), process


async def test_what_was_committed_survives_a_cut(disk: SimDisk) -> None:
    database, _ = start(disk)
    await database.write(add_note, "first")
    disk.cut_power()
    database.close()
    assert notes(disk) == {"first"}


async def test_a_dead_process_writes_nothing(disk: SimDisk) -> None:
    database, process = start(disk)
    process.is_dead = True
    with pytest.raises(StorageError, match="no power"):
        await database.write(add_note, "late")
    with pytest.raises(StorageError, match="no power"):
        await database.read(structural_damage, thorough=False)
    database.close()
    assert notes(disk) == set()


@pytest.mark.parametrize(
    ("point", "survives"), [(CutPoint.BEFORE, {"first"}), (CutPoint.AFTER, {"first", "second"})]
)
async def test_a_cut_hits_the_write_that_it_is_planned_for(
    disk: SimDisk, point: CutPoint, survives: set[str]
) -> None:
    database, process = start(disk)
    disk.cuts.plan(1, point, lambda: setattr(process, "is_dead", True))
    await database.write(add_note, "first")
    with pytest.raises(StorageError, match="no power"):
        await database.write(add_note, "second")
    database.close()
    assert notes(disk) == survives
    assert not disk.cuts.forget()


@pytest.mark.parametrize("seed", range(12))
async def test_a_torn_write_is_there_as_a_whole_or_not_at_all(seed: int) -> None:
    """Large enough that SQLite also copies its log into the database in the middle of it."""
    disk = SimDisk(Random(seed))
    database, process = start(disk)
    for number in range(6):
        await database.write(add_note, f"before-{number}", size=900_000)
    disk.cuts.plan(0, CutPoint.TORN, lambda: setattr(process, "is_dead", True))
    with pytest.raises(StorageError, match="no power"):
        await database.write(add_note, "torn", size=900_000)
    database.close()
    assert notes(disk) - {"torn"} == {f"before-{number}" for number in range(6)}
    with disk.books() as conn:
        assert not list(structural_damage(conn, thorough=True))
    disk.close()


async def test_a_full_disk_takes_nothing_until_there_is_room_again(disk: SimDisk) -> None:
    database, _ = start(disk)
    disk.is_full = True
    with pytest.raises(StorageFullError):
        await database.write(add_note, "large", size=100_000)
    disk.is_full = False
    await database.write(add_note, "large", size=100_000)
    database.close()
    assert notes(disk) == {"large"}


def unsynced(connection: sqlite3.Connection, *, read_only: bool = False) -> None:
    configure_connection(connection, read_only=read_only)
    connection.execute("PRAGMA synchronous = NORMAL")


async def test_a_commit_without_a_sync_is_lost(
    disk: SimDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator.db.sqlite, "configure_connection", unsynced)
    database, _ = start(disk)
    await database.write(add_note, "first")
    disk.cut_power()
    database.close()
    assert notes(disk) == set()


# Worlds.


def one_cut(seed: int) -> WorldOptions:
    options = draw_options(seed)
    faults = replace(options.faults, power_cuts=3, coordinator_kills=0, disk_fulls=0)
    return replace(options, chaos_s=20.0, faults=faults)


@pytest.mark.slow
def test_a_world_notices_that_commits_are_not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator.db.sqlite, "configure_connection", unsynced)
    result = run_world(1, options=one_cut(1))
    assert result.events["power_cut"]
    assert any("is not in the books" in violation for violation in result.violations)


@pytest.mark.slow
def test_a_world_notices_a_receipt_that_is_acknowledged_before_it_is_durable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pay = Payments.pay

    async def pay_later(self: Payments, *args: Any, **kwargs: Any) -> None:
        async def post() -> None:
            await trio.sleep(2.0)
            with suppress(RemoteProtocolError):
                await pay(self, *args, **kwargs)

        trio.lowlevel.spawn_system_task(post)

    monkeypatch.setattr(Payments, "pay", pay_later)
    result = run_world(1, options=one_cut(1))
    assert any("was acknowledged, and is not in the books" in v for v in result.violations)
