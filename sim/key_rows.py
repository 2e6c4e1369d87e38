"""The API keys of a coordinator's books, by plain SQL: what they were charged, and what they may
still spend. No code of the ledger or of the database is used.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sim.book_rows import BookRows, Sql, TransferRow


@dataclass(frozen=True, slots=True)
class KeyRow:
    """`counted_nano` is what its open holds count against its budget; None is no limit."""

    id: str
    budget_nano: int | None
    spent_nano: int
    counted_nano: int


@dataclass(frozen=True, slots=True)
class KeyedLease:
    """An open lease that an API key pays for."""

    lease_id: str
    job_id: str


def read_keys(conn: Sql) -> tuple[KeyRow, ...]:
    rows = conn.exec_driver_sql(
        "SELECT id, budget_nano, spent_nano, (SELECT coalesce(sum(counted_nano), 0) "
        "FROM open_holds WHERE api_key_id = api_keys.id) FROM api_keys ORDER BY id"
    )
    return tuple(KeyRow(*row) for row in rows)


def read_open_leases(conn: Sql) -> tuple[KeyedLease, ...]:
    rows = conn.exec_driver_sql(
        "SELECT lease_id, job_id FROM leases "
        "WHERE state = 'open' AND api_key_id IS NOT NULL ORDER BY lease_id"
    )
    return tuple(KeyedLease(*row) for row in rows)


def check_budgets(keys: Sequence[KeyRow]) -> Iterator[str]:
    """What was charged to a key, and what it may still be charged, fits into its budget."""
    for key in keys:
        if key.budget_nano is not None and key.spent_nano + key.counted_nano > key.budget_nano:
            yield (
                f"API key {key.id} was charged {key.spent_nano} and has {key.counted_nano} held, "
                f"of {key.budget_nano}"
            )


def check_charges(
    rows: BookRows, keys: Sequence[KeyRow], revoked_after: Mapping[str, int]
) -> Iterator[str]:
    """What a key was charged is the sum of its captured holds, and was never more than its budget;
    `revoked_after` has the last transfer before each revocation."""
    key_of_hold = {
        lease.hold_id: lease.api_key_id
        for lease in rows.leases.values()
        if lease.api_key_id is not None
    }
    charged_nano: defaultdict[str, int] = defaultdict(int)
    previous: TransferRow | None = None
    for row in rows.transfers:
        key_id = key_of_hold.get(_charged_hold(row, previous) or "")
        previous = row
        if key_id is not None:
            charged_nano[key_id] += row.amount_nano
        holder = key_of_hold.get(row.id)
        if holder is not None and row.sequence > revoked_after.get(holder, row.sequence):
            yield f"API key {holder} made hold {row.id} after it was revoked"
    for key in keys:
        if key.spent_nano != charged_nano[key.id]:
            yield f"API key {key.id} has spent {key.spent_nano}, was charged {charged_nano[key.id]}"
        if key.budget_nano is not None and charged_nano[key.id] > key.budget_nano:
            yield f"API key {key.id} was charged {charged_nano[key.id]} of {key.budget_nano}"


def _charged_hold(row: TransferRow, previous: TransferRow | None) -> str | None:
    """The hold that a charge takes: the one that it posts, or that has expired right before."""
    if row.code != "capture":
        return None
    if row.pending_id is not None:
        return row.pending_id
    return previous.pending_id if previous is not None else None
