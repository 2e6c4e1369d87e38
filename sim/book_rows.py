"""The rows of a coordinator's books, by plain SQL: compared with each other, and with what the
coordinator has promised. No code of the ledger or of the database is used, so that a mistake there
is not made twice.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from protocol.envelope import open_envelope
from protocol.messages import Receipt

_PENDING = "pending"
_OPEN = "open"
# How a hold of a lease in this state was resolved: by a transfer of one of these kinds.
_ENDINGS = {
    "settled": {"post", "expire"},
    "released": {"void"},
    "expired": {"expire"},
}
# What takes money out of escrow because of a receipt.
_LEGS = ("capture_node", "capture_fee")


class Sql(Protocol):
    """As SQLAlchemy's connection."""

    def exec_driver_sql(self, statement: str) -> Iterable[Sequence[Any]]: ...


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What a coordinator acknowledged of a receipt; `is_final` if that was its last word."""

    lease_id: str
    receipt: bytes
    is_final: bool
    amount_nano: int


@dataclass(frozen=True, slots=True)
class TransferRow:
    id: str
    sequence: int
    debit: str
    credit: str
    amount_nano: int
    kind: str
    code: str
    pending_id: str | None
    job_id: str | None


@dataclass(frozen=True, slots=True)
class LeaseRow:
    lease_id: str
    job_id: str
    client: str
    hold_id: str
    ceiling_nano: int
    state: str
    api_key_id: str | None = None
    delivery: bytes | None = None


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    lease_id: str
    job_id: str
    receipt: bytes
    amount_nano: int
    state: str


@dataclass(frozen=True, slots=True)
class AccountRow:
    id: str
    sums: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class BookRows:
    """All rows that say something of money."""

    transfers: tuple[TransferRow, ...]
    leases: Mapping[str, LeaseRow]
    receipts: Mapping[str, ReceiptRow]
    accounts: tuple[AccountRow, ...]
    open_holds: frozenset[str]
    running_jobs: tuple[str, ...]


def read_rows(conn: Sql) -> BookRows:
    transfers = conn.exec_driver_sql(
        "SELECT id, sequence, debit, credit, amount_nano, kind, code, pending_id, job_id "
        "FROM transfers ORDER BY sequence"
    )
    leases = conn.exec_driver_sql(
        "SELECT lease_id, job_id, client, hold_id, ceiling_nano, state, api_key_id, delivery "
        "FROM leases"
    )
    receipts = conn.exec_driver_sql(
        "SELECT lease_id, job_id, receipt, amount_nano, state FROM receipts"
    )
    accounts = conn.exec_driver_sql(
        "SELECT id, debits_pending, debits_posted, credits_pending, credits_posted FROM accounts"
    )
    holds = conn.exec_driver_sql("SELECT transfer_id FROM open_holds")
    running = conn.exec_driver_sql("SELECT job_id FROM jobs WHERE ended_at_ms IS NULL")
    return BookRows(
        tuple(TransferRow(*row) for row in transfers),
        {row[0]: LeaseRow(*row) for row in leases},
        {row[0]: ReceiptRow(*row) for row in receipts},
        tuple(AccountRow(row[0], tuple(row[1:])) for row in accounts),
        frozenset(row[0] for row in holds),
        tuple(row[0] for row in running),
    )


def read_gifts(conn: Sql) -> frozenset[str]:
    """The leases that the operator has paid for instead of the client."""
    rows = conn.exec_driver_sql(
        "SELECT lease_id FROM receipts JOIN leases USING (lease_id) "
        "WHERE receipts.state <> 'pending' AND receipts.amount_nano > 0 "
        "AND leases.state IN ('released', 'expired')"
    )
    return frozenset(row[0] for row in rows)


def check_promises(
    rows: BookRows,
    leases: Iterable[str],
    promises: Iterable[Acknowledgement],
    deliveries: Mapping[str, bytes],
) -> Iterator[str]:
    """What was told to a client or node is in the books, whatever has happened since. `deliveries`
    are the acknowledged words of clients that got no receipt, by lease."""
    for lease_id in leases:
        if lease_id not in rows.leases:
            yield f"lease {lease_id} was granted, and is not in the books"
    for lease_id, delivery in deliveries.items():
        lease = rows.leases.get(lease_id)
        if lease is None or lease.delivery != delivery:
            yield f"the client's word on {lease_id} was acknowledged, and is not in the books"
    for promise in promises:
        row = rows.receipts.get(promise.lease_id)
        if row is None:
            yield f"a receipt of {promise.lease_id} was acknowledged, and is not in the books"
        elif promise.is_final and not _is_same(row.receipt, promise.receipt):
            yield f"another receipt of {promise.lease_id} is in the books than was acknowledged"
        elif promise.is_final and row.amount_nano != promise.amount_nano:
            yield f"{promise.lease_id} was settled for {promise.amount_nano}, not {row.amount_nano}"
        elif promise.is_final and row.state == _PENDING:
            yield f"the receipt of {promise.lease_id} was settled, and waits again"


def check_rows(rows: BookRows) -> Iterator[str]:
    """What must hold of the rows at any time."""
    yield from _check_sequence(rows.transfers)
    yield from _check_accounts(rows)
    resolved = defaultdict(list)
    for transfer in rows.transfers:
        if transfer.pending_id is not None:
            resolved[transfer.pending_id].append(transfer)
    holds = {row.id: row for row in rows.transfers if row.kind == _PENDING}
    for lease in rows.leases.values():
        yield from _check_lease(lease, holds.get(lease.hold_id), resolved[lease.hold_id], rows)
    yield from _check_payments(rows)


def check_ended(rows: BookRows) -> Iterator[str]:
    """What must hold of them once nothing runs."""
    for job_id in rows.running_jobs:
        yield f"job {job_id} has not ended in the books"
    for lease in rows.leases.values():
        if lease.state == _OPEN:
            yield f"lease {lease.lease_id} is open in the books"
    for hold_id in rows.open_holds:
        yield f"hold {hold_id} is open in the books"


def _check_sequence(transfers: Sequence[TransferRow]) -> Iterator[str]:
    for number, transfer in enumerate(transfers, 1):
        if transfer.sequence != number:
            yield f"transfer {number} is missing"
            return


def _check_accounts(rows: BookRows) -> Iterator[str]:
    """The balances are the fold of the transfers."""
    sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    held = {row.id: row.amount_nano for row in rows.transfers if row.kind == _PENDING}
    for row in rows.transfers:
        debit, credit = sums[row.debit], sums[row.credit]
        if row.pending_id is not None:
            freed_nano = held.get(row.pending_id, 0)
            debit[0] -= freed_nano
            credit[2] -= freed_nano
        if row.kind == _PENDING:
            debit[0] += row.amount_nano
            credit[2] += row.amount_nano
        elif row.kind in ("posted", "post"):
            debit[1] += row.amount_nano
            credit[3] += row.amount_nano
    for account in rows.accounts:
        if account.sums != tuple(sums.pop(account.id, (0, 0, 0, 0))):
            yield f"the balances of {account.id} are not the sums of its transfers"
    for account_id in sums:
        yield f"{account_id} has transfers and no account"


def _check_lease(
    lease: LeaseRow, hold: TransferRow | None, endings: Sequence[TransferRow], rows: BookRows
) -> Iterator[str]:
    name = f"lease {lease.lease_id} ({lease.state})"
    if hold is None or (hold.debit, hold.amount_nano) != (lease.client, lease.ceiling_nano):
        yield f"{name} has no hold of its ceiling"
    if len(endings) > 1:
        yield f"the hold of {name} ended {len(endings)} times"
    if (lease.state == _OPEN) != (lease.hold_id in rows.open_holds):
        yield f"{name} and its hold have not ended together"
    kinds = {ending.kind for ending in endings}
    if kinds and not kinds <= _ENDINGS.get(lease.state, set()):
        yield f"the hold of {name} ended by {', '.join(sorted(kinds))}"
    if lease.state != _OPEN and not kinds:
        yield f"the hold of {name} has not ended"
    receipt = rows.receipts.get(lease.lease_id)
    if receipt is not None and receipt.state == _PENDING and lease.state != _OPEN:
        yield f"the receipt of {name} waits for a hold that has ended"
    if lease.state == "settled" and (receipt is None or receipt.state == _PENDING):
        yield f"{name} was paid without a receipt"


def _check_payments(rows: BookRows) -> Iterator[str]:
    """Each job's receipts, what was charged for it, and what was paid out, are one sum. A lease
    whose hold was not captured is paid by the operator."""
    billed: Counter[str] = Counter()
    billed_as_gift: Counter[str] = Counter()
    for receipt in rows.receipts.values():
        lease = rows.leases.get(receipt.lease_id)
        if receipt.state != _PENDING:
            is_gift = lease is not None and lease.state != "settled"
            (billed_as_gift if is_gift else billed)[receipt.job_id] += receipt.amount_nano
    moved: dict[str, Counter[str]] = {code: Counter() for code in ("capture", "goodwill", *_LEGS)}
    for row in rows.transfers:
        if row.kind in ("posted", "post") and row.job_id is not None and row.code in moved:
            moved[row.code][row.job_id] += row.amount_nano
    charged, given = moved["capture"], moved["goodwill"]
    paid = moved["capture_node"] + moved["capture_fee"]
    for job_id in {**billed, **billed_as_gift, **charged, **given, **paid}:
        if billed[job_id] != charged[job_id]:
            yield f"job {job_id} has receipts of {billed[job_id]}, charges of {charged[job_id]}"
        if billed_as_gift[job_id] != given[job_id]:
            told = (
                f"receipts of {billed_as_gift[job_id]} for the operator, who gave {given[job_id]}"
            )
            yield f"job {job_id} has {told}"
        if charged[job_id] + given[job_id] != paid[job_id]:
            told = f"charges of {charged[job_id] + given[job_id]}, payments of {paid[job_id]}"
            yield f"job {job_id} has {told}"


def _is_same(stored: bytes, shown: bytes) -> bool:
    """The same signed words may come in other wrapping."""
    if stored == shown:
        return True
    return open_envelope(stored, Receipt).digest == open_envelope(shown, Receipt).digest
