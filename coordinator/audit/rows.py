"""The audit of everything beside the transfers: what the rows say must follow from the transfers,
and must be what was written."""

from collections.abc import Iterator

from coordinator.audit.findings import Check, Finding
from coordinator.db import audits
from coordinator.db.accounts import damaged_accounts
from coordinator.db.api_keys import damaged_api_keys
from coordinator.db.custodial_keys import damaged_custodial_keys
from coordinator.db.engine import Connection
from coordinator.db.heads import structural_damage
from coordinator.db.jobs import damaged_jobs
from coordinator.db.key_routings import damaged_key_routings
from coordinator.db.leases import damaged_leases
from coordinator.db.receipts import damaged_receipts

_DAMAGED = (
    ("account", damaged_accounts),
    ("API key", damaged_api_keys),
    ("routing of API key", damaged_key_routings),
    ("custodial key of account", damaged_custodial_keys),
    ("job", damaged_jobs),
    ("lease", damaged_leases),
    ("receipt of lease", damaged_receipts),
)


def check_rows(conn: Connection) -> Iterator[Finding]:
    for damage in structural_damage(conn, thorough=True):
        yield Finding(Check.FILE_DAMAGED, "", damage)
    for what, damaged in _DAMAGED:
        for subject in damaged(conn):
            yield Finding(Check.ROW_DAMAGED, subject, f"this {what} is not as it was written")
    yield from _check_ids(conn)
    yield from _check_leases(conn)
    yield from _check_receipts(conn)
    yield from _check_jobs(conn)
    yield from _check_spending(conn)


def _check_ids(conn: Connection) -> Iterator[Finding]:
    for transfer_id in audits.repeated_ids(conn):
        yield Finding(Check.ID_USED_TWICE, transfer_id, "two transfers have this id")
    for transfer_id in audits.failed_ids_that_happened(conn):
        yield Finding(
            Check.FAILED_ID_HAPPENED, transfer_id, "its submitter was told that it had failed"
        )


def _check_leases(conn: Connection) -> Iterator[Finding]:
    for lease in audits.contradicting_leases(conn):
        ended = f"ended by {lease.resolution}" if lease.resolution else "still open"
        yield Finding(
            Check.LEASE_CONTRADICTS_HOLD,
            lease.lease_id,
            f"the lease is {lease.state}, its hold {lease.hold_id} is {ended}",
        )
    for lease_id in audits.leases_with_foreign_holds(conn):
        yield Finding(
            Check.LEASE_CONTRADICTS_HOLD,
            lease_id,
            "its hold is for another client, another job, another amount or another timeout",
        )


def _check_receipts(conn: Connection) -> Iterator[Finding]:
    for receipt in audits.contradicting_receipts(conn):
        yield Finding(
            Check.RECEIPT_CONTRADICTS_CAPTURE,
            receipt.lease_id,
            f"the receipt says {receipt.amount_nano}, {receipt.captured_nano} was captured",
        )


def _check_jobs(conn: Connection) -> Iterator[Finding]:
    for job in audits.contradicting_jobs(conn):
        yield Finding(
            Check.JOB_CONTRADICTS_LEASES,
            job.job_id,
            f"client {job.client}'s job is {job.state}, its last lease is {job.lease_state or '-'}",
        )


def _check_spending(conn: Connection) -> Iterator[Finding]:
    for key in audits.contradicting_spending(conn):
        yield Finding(
            Check.SPENDING_IS_NOT_CAPTURES,
            key.api_key_id,
            f"the key has spent {key.spent_nano}, {key.captured_nano} was captured for it",
        )
