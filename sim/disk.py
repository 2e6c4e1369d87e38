"""The disk of a simulated coordinator: real SQLite files, and what a power cut leaves of them.

A commit that was synced is durable when it returns; that is the boundary between volatile and
durable. A cut between two writes loses everything that was not synced. A cut in the middle of a
write loses it, or leaves any part of its sectors (they reach a disk in any order), or leaves all of
it although its writer was never told. The next process opens what is left, with SQLite's recovery.
"""

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TypeVar

import trio

from coordinator.db.engine import Connection, Database, InlineRunner, open_database
from coordinator.errors import CoordinatorError, StorageError, StorageFullError
from sim.host import Process

T = TypeVar("T")

# Files in memory: a sync costs nothing, and nothing wears out.
_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder inside gets a name of its own
_NAME = "books.sqlite"
_WAL = "books.sqlite-wal"
_SECTOR_BYTES = 512
# SQLite syncs the head of a log that it begins anew before it writes what comes after.
_WAL_HEAD_BYTES = 32
# PRAGMA synchronous: FULL. Below it, a commit returns before it is durable.
_SYNCED = 2
# Of a quick disk: most reads are cached, a write waits for its sync.
_READ_S_MAX = 0.005
_WRITE_S_MAX = 0.005
# What SQLite itself takes for unlimited.
_PAGES_MAX = 0x3FFFFFFF

Files = Mapping[str, bytes]


class CutPoint(StrEnum):
    """When the power fails, as seen from one write."""

    BEFORE = "before"  # nothing of it was written
    TORN = "torn"  # some of its sectors were
    AFTER = "after"  # it is durable, and its writer is not told


@dataclass(frozen=True, slots=True)
class PlannedCut:
    """A power cut at one point of one write; `cut` ends the process."""

    point: CutPoint
    cut: Callable[[], None]


class CutPlan:
    """Counts writes, and says which one the power fails at."""

    def __init__(self) -> None:
        self.writes = 0
        self._planned: tuple[int, PlannedCut] | None = None

    def plan(self, after_writes: int, point: CutPoint, cut: Callable[[], None]) -> None:
        """Cut at the write that so many others come before."""
        self._planned = (self.writes + after_writes, PlannedCut(point, cut))

    def forget(self) -> bool:
        """Plan no cut any more. Returns whether there was one left."""
        planned, self._planned = self._planned, None
        return planned is not None

    def count(self) -> PlannedCut | None:
        """One more write; the cut that hits it, if one does."""
        self.writes += 1
        if self._planned is None or self.writes <= self._planned[0]:
            return None
        (_, planned), self._planned = self._planned, None
        return planned


class SimDisk:
    """One machine's disk. It outlives processes; `close` removes it."""

    def __init__(self, rng: random.Random) -> None:
        self.cuts = CutPlan()
        self.is_full = False
        # Writes that were refused because it was full.
        self.refusals = 0
        # Looks at what a cut has left, before anything else does.
        self.inspect: Callable[[Connection], None] = lambda conn: None
        self._rng = rng
        place = _MEMORY if _MEMORY.is_dir() else None
        self._root = tempfile.TemporaryDirectory(prefix="capacloud-sim-", dir=place)
        self._restores = 0
        self._operator: Database | None = None
        self._folder = self._restore({_NAME: _empty_books()})
        # What survives a cut although nothing was synced since.
        self._durable: Files = {}
        self._is_synced = True

    def open(self, process: Process) -> Database:
        """The books, as the process that has just been started sees them."""
        self._durable = self._files()
        runner = _PoweredRunner(self, process)
        database = open_database(self._url, runner)
        runner.database = database
        with database.transaction() as conn:
            self._is_synced = _pragma(conn, "synchronous") >= _SYNCED
        return database

    @contextmanager
    def books(self) -> Iterator[Connection]:
        """A transaction of another program on the same machine: the operator's, or a checker's."""
        if self._operator is None:
            self._operator = open_database(self._url, InlineRunner())
        with self._operator.transaction() as conn:
            yield conn

    def cut_power(self) -> None:
        """Between two writes: what was not synced is lost."""
        self._leave(self._files() if self._is_synced else self._durable)

    def close(self) -> None:
        self._close_operator()
        self._root.cleanup()

    # For processes.

    def write(self, call: Callable[[], T]) -> T:
        """Carry a transaction out. Raises StorageError if the power is cut meanwhile."""
        planned = self.cuts.count()
        if planned is None:
            try:
                return call()
            except StorageFullError:
                self.refusals += 1
                raise
        left = before = self._files()
        if planned.point is not CutPoint.BEFORE:
            # A refusal changes nothing on the disk, and is told to no one.
            with suppress(CoordinatorError):
                call()
            left = self._files()
        if planned.point is CutPoint.TORN:
            left = _tear(before, left, self._rng)
        planned.cut()
        self._leave(left if self._is_synced else self._durable)
        raise _off()

    def pause_s(self, limit_s: float) -> float:
        """How long the disk takes for something that takes at most `limit_s`."""
        return self._rng.uniform(0.0, limit_s)

    # The files.

    @property
    def _url(self) -> str:
        return f"sqlite:///{self._folder / _NAME}"

    def _files(self) -> Files:
        """What is in them now. SQLite makes its third file, an index of the log, anew."""
        paths = (self._folder / name for name in (_NAME, _WAL))
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    def _leave(self, files: Files) -> None:
        """From now on these are the files. A process that still has the others open finds out that
        it is dead before it writes to them."""
        self._close_operator()
        self._durable = files
        self._folder = self._restore(files)
        with self.books() as conn:
            self.inspect(conn)

    def _restore(self, files: Files) -> Path:
        self._restores += 1
        folder = Path(self._root.name) / str(self._restores)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return folder

    def _close_operator(self) -> None:
        operator, self._operator = self._operator, None
        if operator is not None:
            operator.close()


class _PoweredRunner:
    """Runs a process's transactions in place, as long as its machine has power."""

    def __init__(self, disk: SimDisk, process: Process) -> None:
        self.database: Database | None = None
        self._disk = disk
        self._process = process
        self._pages_max = _PAGES_MAX
        self._lock = trio.Lock()

    async def run_read(self, call: Callable[[], T]) -> T:
        await trio.sleep(self._disk.pause_s(_READ_S_MAX))
        self._check_power()
        return call()

    async def run_write(self, call: Callable[[], T]) -> T:
        await self._keep_room()
        async with self._lock:
            return await self._write(call)

    async def _write(self, call: Callable[[], T]) -> T:
        await trio.sleep(self._disk.pause_s(_WRITE_S_MAX))
        self._check_power()
        result = self._disk.write(call)
        # It is durable, and cannot be taken back; its caller learns that a moment later.
        with trio.CancelScope(shield=True):
            await trio.sleep(self._disk.pause_s(_WRITE_S_MAX))
        self._check_power()
        return result

    def _check_power(self) -> None:
        if self._process.is_dead:
            raise _off()

    async def _keep_room(self) -> None:
        """A disk that is full takes what fits into pages that SQLite has already, and no more."""
        is_limited = self._pages_max != _PAGES_MAX
        if self._disk.is_full == is_limited or self.database is None:
            return
        # Set first: the limit is set by a transaction, which comes through here as well.
        self._pages_max = 1 if self._disk.is_full else _PAGES_MAX
        await self.database.write(_pragma, f"max_page_count = {self._pages_max}")


def _tear(before: Files, after: Files, rng: random.Random) -> Files:
    """What a cut in the middle of a write leaves. The log is durable before its pages are copied
    from there into the database: only one of the two files is torn."""
    torn = _NAME if before[_NAME] != after[_NAME] and rng.random() < 0.5 else _WAL
    if torn == _NAME:
        return {**after, _NAME: _mix(before[_NAME], after[_NAME], rng)}
    log = bytearray(_mix(before.get(_WAL, b""), after.get(_WAL, b""), rng))
    log[:_WAL_HEAD_BYTES] = after.get(_WAL, b"")[:_WAL_HEAD_BYTES]
    return {_NAME: before[_NAME], _WAL: bytes(log)}


def _mix(before: bytes, after: bytes, rng: random.Random) -> bytes:
    """Some of the sectors that differ as they became, the others as they were."""
    mixed = bytearray(before.ljust(len(after), b"\0"))
    written = rng.random()
    for at in range(0, len(after), _SECTOR_BYTES):
        sector = slice(at, at + _SECTOR_BYTES)
        if after[sector] != mixed[sector] and rng.random() < written:
            mixed[sector] = after[sector]
    return bytes(mixed)


@cache
def _empty_books() -> bytes:
    """A database without accounts: the same for every world, and too slow to make for each."""
    with tempfile.TemporaryDirectory(prefix="capacloud-sim-") as folder:
        path = Path(folder) / _NAME
        open_database(f"sqlite:///{path}", InlineRunner()).close()
        return path.read_bytes()


def _pragma(conn: Connection, name: str) -> int:
    value: int = conn.exec_driver_sql(f"PRAGMA {name}").scalar_one()
    return value


def _off() -> StorageError:
    return StorageError("the machine has no power")
