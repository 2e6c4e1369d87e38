"""How fast money is held and captured durably, beside what the disk can do at the same moment.

A disk's rate of fdatasync swings by an order of magnitude with its neighbours, so the two are
measured in turns within one run, and their ratio is what counts.
"""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from coordinator.audit.books import audit
from coordinator.db.accounts import open_account
from coordinator.db.engine import Connection, Database, ThreadRunner, open_database
from coordinator.db.writer import LedgerWriter, post_one
from coordinator.ledger.accounts import Account, AccountKind, account_of
from coordinator.ledger.postings import LeaseFunds, capture, credit, hold
from protocol.ids import JobId, LeaseId, PeerId, TransferId, derive_ulid, new_ulid
from protocol.money import NANO_PER_CREDIT
from protocol.net.clock import SystemClock

_SUBMITTERS = 100
_NODES = 50
_ROUNDS = 6
_FDATASYNC_S = 0.7
_PAIRS_S = 2.5
_LONE_SUBMITS = 150
_FEE_BPS = 500
_CEILING_NANO = 1_000
_AMOUNT_NANO = 777
_TIMEOUT_MS = 10 * 60_000
_BLOCK = bytes(4096)


def run() -> dict[str, Any]:
    """Measure for about half a minute in a folder below the current one, and clean it up."""
    folder = Path(tempfile.mkdtemp(prefix="ledger-bench-", dir="."))
    try:
        return trio.run(_run, folder)
    finally:
        shutil.rmtree(folder)


async def _run(folder: Path) -> dict[str, Any]:
    database = open_database(f"sqlite:///{folder / 'ledger.db'}", ThreadRunner())
    bench = _Bench(database, folder)
    await database.write(bench.fund)
    rounds: list[tuple[float, float]] = []
    lone_ms: list[float] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.writer.run)
        await bench.pairs_per_s(0.3)  # caches, statements, the first checkpoint
        for _ in range(_ROUNDS):
            fdatasync_per_s = bench.fdatasync_per_s()
            rounds.append((await bench.pairs_per_s(_PAIRS_S), fdatasync_per_s))
            lone_ms += await bench.lone_submits_ms()
        nursery.cancel_scope.cancel()
    report = await database.read(audit)
    database.close()
    if not report.is_green:
        raise RuntimeError(f"the books do not balance after the benchmark: {report.findings[0]}")
    lone_ms.sort()
    return {
        "pairs_per_s": round(statistics.median(pairs for pairs, _ in rounds)),
        "fdatasync_per_s": round(statistics.median(syncs for _, syncs in rounds)),
        "pairs_per_fdatasync": round(statistics.median(p / s for p, s in rounds), 2),
        "lone_submit_ms_p50": round(lone_ms[len(lone_ms) // 2], 3),
        "lone_submit_ms_p99": round(lone_ms[len(lone_ms) * 99 // 100], 3),
    }


class _Bench:
    """A ledger with funded clients, and the two loads on its disk."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.writer = LedgerWriter(database, SystemClock())
        self._clock = SystemClock()
        self._folder = folder
        self._clients = [PeerId(f"client-{number:044d}") for number in range(_SUBMITTERS)]
        self._nodes = [PeerId(f"node-{number:046d}") for number in range(_NODES)]
        self._count = 0
        self._pairs = 0

    def fund(self, conn: Connection) -> None:
        for client in self._clients:
            open_account(conn, Account(account_of(client), AccountKind.CLIENT))
            transfer_id = TransferId(new_ulid(self._clock.now_ms(), os.urandom(10)))
            chain = credit(transfer_id, account_of(client), 10**6 * NANO_PER_CREDIT)
            post_one(conn, chain, now_ms=self._clock.now_ms())

    def fdatasync_per_s(self) -> float:
        """Appends of 4 KiB, each made durable: what one commit costs at the least."""
        path = self._folder / "raw"
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        count = 0
        start = time.perf_counter()
        while (elapsed_s := time.perf_counter() - start) < _FDATASYNC_S:
            os.write(file, _BLOCK)
            os.fdatasync(file)
            count += 1
        os.close(file)
        return count / elapsed_s

    async def pairs_per_s(self, duration_s: float) -> float:
        """Every submitter holds and captures, one pair after the other."""
        self._pairs = 0
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for client in self._clients:
                nursery.start_soon(self._submit_until, client, start + duration_s)
        return self._pairs / (time.perf_counter() - start)

    async def lone_submits_ms(self) -> list[float]:
        """The latency of holds that nothing else waits beside: what a first token pays."""
        latencies_ms = []
        for number in range(_LONE_SUBMITS):
            funds = self._funds(self._clients[number % _SUBMITTERS])
            start = time.perf_counter()
            await self.writer.submit(hold(funds, timeout_at_ms=self._timeout_at_ms()))
            latencies_ms.append((time.perf_counter() - start) * 1_000)
            await self._capture(funds)
        return latencies_ms

    async def _submit_until(self, client: PeerId, end: float) -> None:
        while time.perf_counter() < end:
            funds = self._funds(client)
            await self.writer.submit(hold(funds, timeout_at_ms=self._timeout_at_ms()))
            await self._capture(funds)
            self._pairs += 1

    async def _capture(self, funds: LeaseFunds) -> None:
        node = self._nodes[self._count % _NODES]
        await self.writer.submit(capture(funds, _AMOUNT_NANO, node, fee_bps=_FEE_BPS))

    def _funds(self, client: PeerId) -> LeaseFunds:
        self._count += 1
        lease_id = new_ulid(self._clock.now_ms(), os.urandom(10))
        return LeaseFunds(
            LeaseId(lease_id), JobId(derive_ulid(lease_id, "job")), client, _CEILING_NANO
        )

    def _timeout_at_ms(self) -> int:
        return self._clock.now_ms() + _TIMEOUT_MS
