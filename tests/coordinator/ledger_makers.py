"""Books, parties and leases for the ledger's tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import trio

from coordinator.db.accounts import find_account, open_account
from coordinator.db.engine import Connection, Database, InlineRunner, Runner, open_database
from coordinator.db.writer import post_one
from coordinator.ledger.accounts import Account, AccountId, AccountKind, account_of
from coordinator.ledger.postings import LeaseFunds, credit
from coordinator.ledger.transfers import Transfer, TransferCode, TransferKind
from protocol.ids import JobId, LeaseId, PeerId, TransferId, new_ulid

T = TypeVar("T")

START_MS = 1_767_225_600_000
HOUR_MS = 3_600_000

ALICE = PeerId("alice")
BOB = PeerId("bob")
NODE = PeerId("node")


@dataclass
class Ulids:
    """Identifiers that are different each time and the same in every run."""

    count: int = 0

    def __call__(self) -> str:
        self.count += 1
        return new_ulid(START_MS, self.count.to_bytes(10))


@dataclass
class GatedRunner:
    """Writes begin only while the gate is open; counts them."""

    runner: Runner = field(default_factory=InlineRunner)
    gate: trio.Event = field(default_factory=trio.Event)
    writes: int = 0

    async def run_read(self, call: Callable[[], T]) -> T:
        return await self.runner.run_read(call)

    async def run_write(self, call: Callable[[], T]) -> T:
        # What waits at the gate has begun: it is not cancelled. A test that fails before it opens
        # the gate would never end.
        with trio.fail_after(10, shield=True):
            await self.gate.wait()
            self.writes += 1
            return await self.runner.run_write(call)


@contextmanager
def memory_books(runner: Runner | None = None, *, credit_nano: int = 1_000) -> Iterator[Database]:
    """Books in memory, in which Alice and Bob have `credit_nano` each."""
    with opened("sqlite://", runner) as database:
        fund(database, credit_nano)
        yield database


@contextmanager
def file_books(
    path: Path, runner: Runner | None = None, *, credit_nano: int = 1_000
) -> Iterator[Database]:
    """The same on disk."""
    with opened(f"sqlite:///{path}", runner) as database:
        fund(database, credit_nano)
        yield database


@contextmanager
def opened(url: str, runner: Runner | None = None) -> Iterator[Database]:
    database = open_database(url, runner or InlineRunner())
    try:
        yield database
    finally:
        database.close()


def fund(database: Database, credit_nano: int) -> None:
    with database.transaction() as conn:
        for number, party in enumerate((ALICE, BOB)):
            open_account(conn, Account(account_of(party), AccountKind.CLIENT))
            transfer_id = TransferId(new_ulid(START_MS, b"funds" + number.to_bytes(5)))
            post_one(conn, credit(transfer_id, account_of(party), credit_nano), now_ms=START_MS)


def funds_of(lease: str, *, client: PeerId = ALICE, ceiling_nano: int = 100) -> LeaseFunds:
    return LeaseFunds(LeaseId(lease), JobId(lease), client, ceiling_nano)


def account(conn: Connection, account_id: str) -> Account:
    found = find_account(conn, AccountId(account_id))
    assert found is not None
    return found


def posted(
    transfer_id: str,
    debit: str,
    credit: str,
    amount_nano: int,
    code: TransferCode = TransferCode.CREDIT,
) -> Transfer:
    """A transfer that moves money at once."""
    return Transfer(
        TransferId(transfer_id),
        AccountId(debit),
        AccountId(credit),
        amount_nano,
        TransferKind.POSTED,
        code,
    )


def pending(
    transfer_id: str,
    debit: str,
    credit: str,
    amount_nano: int,
    *,
    timeout_at_ms: int | None = START_MS + HOUR_MS,
) -> Transfer:
    return Transfer(
        TransferId(transfer_id),
        AccountId(debit),
        AccountId(credit),
        amount_nano,
        TransferKind.PENDING,
        TransferCode.HOLD,
        timeout_at_ms=timeout_at_ms,
    )


def resolving(
    transfer_id: str, hold: Transfer, kind: TransferKind, amount_nano: int | None = None
) -> Transfer:
    """A POST, VOID or EXPIRE of a hold, for all of it unless told otherwise."""
    return hold._replace(
        id=TransferId(transfer_id),
        kind=kind,
        code=TransferCode.CAPTURE,
        pending_id=hold.id,
        timeout_at_ms=None,
        amount_nano=hold.amount_nano if amount_nano is None else amount_nano,
    )
