"""How long batches take on a day of idle seats: the coordinator's own service, in virtual time,
before a market whose seats are mostly taken by others.

What others take follows the hour: a fifth of the seats at night, nearly all of them at the busiest
time, with noise. A job of a batch gets a seat that is idle, and gives it back when others want it.
"""

import json
import math
import random
import statistics
from collections.abc import AsyncIterator, Container, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from coordinator.batches.blobs import SealedFolder
from coordinator.batches.book_rows import BookFiling
from coordinator.batches.service import BatchService
from coordinator.buyer.attempt import AttemptTerms
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.result import PurchaseResult
from coordinator.buyer.spec import JobSpec
from coordinator.db.accounts import open_account
from coordinator.db.api_keys import create_api_key
from coordinator.db.engine import InlineRunner, open_database
from coordinator.db.filing_rows import StoredBatch
from coordinator.gateway.caller import Caller
from coordinator.gateway.market_side.filing import BatchRequest
from coordinator.gateway.market_side.market import ModelInfo
from coordinator.ledger.accounts import Account, AccountKind, account_of
from protocol.clock import Clock
from protocol.endings import Finish
from protocol.errors import Code
from protocol.ids import JobId, sha256_digest
from protocol.keys import SigningKey
from protocol.net.clock import VirtualClock
from protocol.payload import Chunk
from protocol.pricing import PriceSheet, Units
from protocol.programs.runtime import Runtime
from sim.determinism import run_deterministically

DAY_S = 86_400
# Three small machines.
SEATS = 16
SEED = 8
_ENDPOINT = "/v1/chat/completions"
_MODEL = "m"
# A short answer; a long one on a small machine.
_JOB_S = (1.0, 6.0)
_LOAD_EVERY_S = 10.0
_BUSIEST_HOUR = 14
_LEAST, _MOST = 0.2, 0.9
# A coordinator lets a request wait for its turn for so long.
_TURN_S = 30.0
_ACCOUNTS = 3


@dataclass(frozen=True, slots=True)
class DaySize:
    """Batches come at random through the day; most are small, some are large."""

    batches: int = 60
    lines_median: int = 120
    lines_max: int = 5_000
    spread: float = 1.2


WHOLE_DAY = DaySize()


@dataclass(eq=False)
class DayJob:
    """A `RunningJob` that has run."""

    terms: AttemptTerms
    result: PurchaseResult | None = None

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        yield Chunk((1,), "done")


@dataclass
class DayMarket:
    """Seats of which others take most. A `JobMarket`."""

    rng: random.Random
    others: int = 0
    running: dict[int, trio.CancelScope] = field(default_factory=dict)
    jobs: int = 0
    gave_way: int = 0
    idle_s: float = 0.0
    used_s: float = 0.0
    freed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """What others take, through the day."""
        task_status.started()
        while True:
            hour = trio.current_time() / 3_600 % 24
            wave = 0.5 + 0.5 * math.cos((hour - _BUSIEST_HOUR) / 24 * 2 * math.pi)
            share = _LEAST + (_MOST - _LEAST) * wave + self.rng.gauss(0, 0.1)
            self.others = min(SEATS, max(0, round(SEATS * share)))
            while self.others + len(self.running) > SEATS:
                _, scope = self.running.popitem()
                scope.cancel()
            self.idle_s += _LOAD_EVERY_S * (SEATS - self.others)
            self.freed.unpark(count=max(0, SEATS - self.others - len(self.running)))
            await trio.sleep(_LOAD_EVERY_S)

    def model(self, name: str) -> ModelInfo | None:
        return None

    def is_expected(self, name: str) -> bool:
        return False

    @asynccontextmanager
    async def open_job(self, caller: Caller, spec: JobSpec) -> AsyncIterator[DayJob]:
        """Raises JobFailed."""
        with trio.move_on_after(_TURN_S):
            while self.others + len(self.running) >= SEATS:
                await self.freed.park()
        if self.others + len(self.running) >= SEATS:
            raise JobFailed("all seats are taken", code=Code.NO_NODE_FITS)
        self.jobs += 1
        number, seconds = self.jobs, self.rng.uniform(*_JOB_S)
        started_at = trio.current_time()
        with trio.CancelScope() as scope:
            self.running[number] = scope
            try:
                await trio.sleep(seconds)
            finally:
                self.running.pop(number, None)
                self.freed.unpark()
                self.used_s += trio.current_time() - started_at
        if scope.cancelled_caught:
            self.gave_way += 1
            raise JobFailed("another needs the seat", code=Code.BUSY)
        assert spec.job_id is not None
        yield _answered(spec.job_id, caller)


def run_day(folder: Path, size: DaySize) -> dict[str, float]:
    """Turnarounds in minutes, how much of the idle time was used, and how often a job gave way."""
    return run_deterministically(lambda rng: _day(folder, size, rng), SEED)


async def _day(folder: Path, size: DaySize, rng: random.Random) -> dict[str, float]:
    clock = VirtualClock()
    database = open_database("sqlite://", InlineRunner())
    try:
        callers: dict[str, Caller] = {}
        with database.transaction() as conn:
            for _ in range(_ACCOUNTS):
                key = SigningKey.generate(rng.randbytes)
                account = account_of(key.peer_id)
                open_account(conn, Account(account, AccountKind.CLIENT))
                _, api_key = create_api_key(
                    conn, account, "day", now_ms=clock.now_ms(), entropy=rng.randbytes
                )
                callers[api_key.id] = Caller(api_key.id, key)
        market = DayMarket(random.Random(rng.getrandbits(64)))
        service = BatchService(
            BookFiling(database),
            SealedFolder(folder, SigningKey.generate(rng.randbytes), rng.randbytes),
            market,  # type: ignore[arg-type]  # batches ask no more of it
            _NoLeftovers(),
            _Callers(callers),
            Runtime(clock, rng.randbytes, rng),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(market.run)
            await nursery.start(service.run)
            minutes = await _through_the_day(service, list(callers.values()), size, rng, clock)
            nursery.cancel_scope.cancel()
        used = market.used_s / market.idle_s
    finally:
        database.close()
    return {
        "day_median_min": statistics.median(minutes),
        "day_within_hour": sum(m <= 60 for m in minutes) / len(minutes),
        "day_slowest_min": max(minutes),
        "day_batches": len(minutes),
        "day_jobs": market.jobs,
        "day_gave_way": market.gave_way,
        "day_idle_used": used,
    }


async def _through_the_day(
    service: BatchService, callers: list[Caller], size: DaySize, rng: random.Random, clock: Clock
) -> list[float]:
    minutes: list[float] = []

    async def one(arrives_s: float, lines: int, caller: Caller) -> None:
        await trio.sleep(arrives_s)
        upload = await service.begin_upload(caller)
        upload.write(b"".join(_lines(lines)))
        stored = await service.finish_upload(
            caller, upload, filename="day.jsonl", purpose="batch", lifetime_s=None
        )
        batch = await service.create_batch(caller, BatchRequest(stored.id, _ENDPOINT, {}, None))
        while "completed" not in batch.stamps_ms and "expired" not in batch.stamps_ms:
            await trio.sleep(5)
            found = await service.find_batch(caller, batch.id)
            assert found is not None
            batch = found
        minutes.append((clock.now_ms() - batch.created_at_ms) / 60_000)

    async with trio.open_nursery() as nursery:
        for _ in range(size.batches):
            lines = round(size.lines_median * rng.lognormvariate(0, size.spread))
            lines = min(max(lines, 1), size.lines_max)
            nursery.start_soon(one, rng.uniform(0, DAY_S), lines, rng.choice(callers))
    return minutes


def _lines(count: int) -> Iterator[bytes]:
    for number in range(count):
        body = {"model": _MODEL, "messages": [{"role": "user", "content": f"line {number}"}]}
        line = {"custom_id": str(number), "method": "POST", "url": _ENDPOINT, "body": body}
        yield json.dumps(line).encode() + b"\n"


def _answered(job_id: JobId, caller: Caller) -> DayJob:
    terms = AttemptTerms(
        job_id=job_id,
        node=caller.signing_key.peer_id,
        attempts=1,
        model_digest=sha256_digest(b"m"),
        price=PriceSheet(),
        ceiling_nano=0,
        input_units=Units(1),
        queue_position=0,
        lease_ms=1.0,
        match_us=1,
    )
    return DayJob(terms, PurchaseResult(Finish.STOP, Units(1, 1), 0, ()))


@dataclass
class _Callers:
    by_id: dict[str, Caller]

    async def caller_of(self, api_key_id: str) -> Caller | None:
        return self.by_id.get(api_key_id)


class _NoLeftovers:
    """Nothing is left of an earlier process."""

    async def disown(self, batches: Sequence[StoredBatch], answered: Container[str]) -> None:
        pass
