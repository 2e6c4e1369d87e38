"""One leased job in the database: the messages are those of `tests.protocol.makers`."""

from collections.abc import Iterator
from contextlib import contextmanager

from coordinator.db.accounts import open_account
from coordinator.db.engine import Connection
from coordinator.db.jobs import record_job
from coordinator.db.leases import LeaseTerms, record_lease
from coordinator.db.writer import post_one
from coordinator.ledger.accounts import Account, AccountKind, account_of
from coordinator.ledger.postings import LeaseFunds, credit, hold
from protocol.ids import TransferId, derive_ulid
from tests.coordinator.ledger_makers import memory_books
from tests.protocol.makers import CLIENT, MODEL, NOW_MS, make_chain

CHAIN = make_chain()
LEASE = CHAIN.lease.message
FUNDS = LeaseFunds(LEASE.lease_id, LEASE.job_id, LEASE.client, LEASE.ceiling_nano)
EXPIRES_AT_MS = LEASE.deadline_at_ms + 1_000
TERMS = LeaseTerms(FUNDS.hold_id, EXPIRES_AT_MS, node_incarnation_ms=7, window_tokens=16)


@contextmanager
def leased() -> Iterator[Connection]:
    """Books in which the job is leased and its hold is open."""
    with memory_books() as database, database.transaction() as conn:
        client = account_of(CLIENT.peer_id)
        open_account(conn, Account(client, AccountKind.CLIENT))
        transfer_id = TransferId(derive_ulid(LEASE.job_id, "test credit"))
        post_one(conn, credit(transfer_id, client, 10_000), now_ms=NOW_MS)
        rows = (
            record_job(CHAIN.request, model_digest=MODEL, attempt=0, now_ms=NOW_MS),
            record_lease(CHAIN.lease, TERMS),
        )
        post_one(conn, hold(FUNDS, timeout_at_ms=EXPIRES_AT_MS), rows, now_ms=NOW_MS)
        yield conn
