"""One flipped bit anywhere in the database file: a start or an audit notices it, if it matters."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from coordinator.accounts import create_account
from coordinator.audit.books import audit
from coordinator.db.api_keys import create_api_key
from coordinator.db.bulk import run_records
from coordinator.db.engine import Connection, Database, InlineRunner, open_database
from coordinator.db.heads import check_books, store_head
from coordinator.db.jobs import record_job, record_job_end
from coordinator.db.leases import record_lease, record_lease_end
from coordinator.db.receipts import record_receipt
from coordinator.db.schema import metadata
from coordinator.db.writer import post_one
from coordinator.errors import StorageError
from coordinator.ledger.accounts import account_of
from coordinator.ledger.postings import capture, credit, hold
from coordinator.vault import Vault
from protocol.endings import LeaseState, ReceiptState
from protocol.ids import TransferId, derive_ulid
from protocol.job_state import JobState
from tests.clocks import HandClock
from tests.coordinator.evidence import CHAIN, EXPIRES_AT_MS, FUNDS, LEASE, TERMS
from tests.coordinator.ledger_makers import file_books
from tests.protocol.makers import CLIENT, COORDINATOR, MODEL, NOW_MS

FLIPS = 150

# What a person reads and no rule does: when something was noted, and notes on a lease that is over.
MEANINGLESS = {
    "accounts": {"created_at_ms"},
    "jobs": {"ended_at_ms", "error_code"},
    "leases": {"ended_at_ms"},
    "receipts": {"received_at_ms"},
    "failed_ids": {"failed_at_ms"},
}


def write_books(path: Path) -> None:
    """A paid job, its lease and receipt, a named account with its keys, and a signed head."""
    amount_nano = CHAIN.receipt.message.amount_nano
    rng = random.Random(5)
    with file_books(path) as database, database.transaction() as conn:
        created = create_account(
            conn,
            "buyer",
            peer_id=CLIENT.peer_id,
            vault=Vault(COORDINATOR),
            clock=HandClock(NOW_MS),
            entropy=rng.randbytes,
        )
        kept = create_account(
            conn,
            "kept",
            peer_id=None,
            vault=Vault(COORDINATOR),
            clock=HandClock(NOW_MS),
            entropy=rng.randbytes,
        )
        create_api_key(
            conn, kept.id, "key", now_ms=NOW_MS, entropy=rng.randbytes, budget_nano=10**9
        )
        transfer_id = TransferId(derive_ulid(LEASE.job_id, "test credit"))
        post_one(conn, credit(transfer_id, created.id, 10_000), now_ms=NOW_MS)
        rows = (
            record_job(CHAIN.request, model_digest=MODEL, attempt=0, now_ms=NOW_MS),
            record_lease(CHAIN.lease, TERMS),
        )
        post_one(conn, hold(FUNDS, timeout_at_ms=EXPIRES_AT_MS), rows, now_ms=NOW_MS)
        post_one(conn, capture(FUNDS, amount_nano, LEASE.node, fee_bps=500), now_ms=NOW_MS)
        ends = [
            record_receipt(
                CHAIN.receipt,
                CHAIN.acceptance,
                state=ReceiptState.SETTLED,
                amount_nano=amount_nano,
                now_ms=NOW_MS,
            ),
            record_lease_end(LEASE.lease_id, LeaseState.SETTLED, now_ms=NOW_MS),
            record_job_end(LEASE, JobState.SETTLED, ended_at_ms=NOW_MS),
        ]
        run_records(conn, ends)
        assert account_of(CLIENT.peer_id) == created.id
        store_head(conn, COORDINATOR, now_ms=NOW_MS)
        assert audit(conn, signer=COORDINATOR.peer_id).is_green


def meaning(database: Database) -> dict[str, list[Any]]:
    """Everything that the tables say, without MEANINGLESS."""
    with database.transaction() as conn:
        return {table.name: list(rows_of(conn, table.name)) for table in metadata.sorted_tables}


def rows_of(conn: Connection, name: str) -> Iterator[Any]:
    table = metadata.tables[name]
    columns = [c for c in table.c if c.name not in MEANINGLESS.get(name, set())]
    for row in conn.execute(select(*columns).order_by(*table.primary_key.columns)):
        yield tuple(row)


def is_noticed(database: Database) -> bool:
    with database.transaction() as conn:
        check_books(conn, signer=COORDINATOR.peer_id)
        return not audit(conn, signer=COORDINATOR.peer_id).is_green


def flip(good: bytes, rng: random.Random, page_bytes: int) -> tuple[bytes, int]:
    """One bit of a byte that is in use: half of a page is nothing but zeros."""
    while True:
        page = rng.randrange(len(good) // page_bytes)
        at = page * page_bytes + rng.randrange(page_bytes)
        if good[at]:
            break
    damaged = bytearray(good)
    damaged[at] ^= 1 << rng.randrange(8)
    return bytes(damaged), at


def test_a_flipped_bit_that_changes_a_value_is_noticed(tmp_path: Path) -> None:
    path, copy = tmp_path / "books.sqlite", tmp_path / "copy.sqlite"
    write_books(path)
    good = path.read_bytes()
    page_bytes = int.from_bytes(good[16:18])
    database = open_database(f"sqlite:///{path}", InlineRunner())
    expected = meaning(database)
    database.close()
    rng = random.Random(11)
    noticed, missed = 0, []
    for _ in range(FLIPS):
        damaged, at = flip(good, rng, page_bytes)
        copy.write_bytes(damaged)
        for suffix in ("-wal", "-shm"):
            copy.with_name(copy.name + suffix).unlink(missing_ok=True)
        try:
            database = open_database(f"sqlite:///{copy}", InlineRunner())
        except StorageError:
            noticed += 1
            continue
        try:
            if is_noticed(database):
                noticed += 1
            elif meaning(database) != expected:
                missed.append(at)
        except StorageError:
            noticed += 1
        finally:
            database.close()
    assert missed == []
    assert noticed > FLIPS // 3


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_the_books_are_their_owners_alone_in_a_folder_that_is_not(
    tmp_path: Path, suffix: str
) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "books.sqlite"
    with file_books(path) as database:
        with database.transaction() as conn:
            conn.exec_driver_sql("SELECT 1")
        mode = path.with_name(path.name + suffix).stat().st_mode
        assert mode & 0o077 == 0
    path.chmod(0o644)
    with open_database(f"sqlite:///{path}", InlineRunner()).transaction():
        assert path.with_name(path.name + suffix).stat().st_mode & 0o077 == 0
