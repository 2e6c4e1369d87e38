"""Receipts as stored: the node's and the client's signed words, and what was paid on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from coordinator.db.bulk import BulkInsert, Record
from coordinator.db.digests import row_digest
from coordinator.db.leases import is_of_hold, recent_holds
from coordinator.db.schema import leases, receipts
from protocol.endings import ReceiptState
from protocol.envelope import Signed
from protocol.ids import JobId, LeaseId, PeerId
from protocol.messages import Acceptance, Receipt
from protocol.pricing import Units


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """`receipt` and `acceptance` are envelopes as signed; `amount_nano` is, or will be, paid."""

    lease_id: LeaseId
    client: PeerId
    job_id: JobId
    node: PeerId
    receipt: bytes
    acceptance: bytes | None
    amount_nano: int
    units: Units
    state: ReceiptState
    received_at_ms: int
    settled_at_ms: int | None


_FIELDS = (
    "lease_id",
    "client",
    "job_id",
    "node",
    "receipt",
    "acceptance",
    "amount_nano",
    "input_tokens",
    "output_tokens",
    "images",
    "state",
    "settled_at_ms",
)
# Counts that came later, in their order: see `_digest_of`.
_ADDED = ("tensor_elements", "cached_tokens")
_COLUMNS = [receipts.c[field] for field in (*_FIELDS, "received_at_ms", *_ADDED)]

# A receipt is first stored while its client has its say, and again when it is paid. The words that
# were paid are the ones to keep: a node may have signed others before.
_UPSERT = BulkInsert(
    receipts,
    (*_FIELDS, "digest", "received_at_ms", *_ADDED),
    on_conflict=(
        "ON CONFLICT (lease_id) DO UPDATE SET receipt = excluded.receipt, "
        "acceptance = excluded.acceptance, amount_nano = excluded.amount_nano, "
        "input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens, "
        "images = excluded.images, tensor_elements = excluded.tensor_elements, "
        "cached_tokens = excluded.cached_tokens, state = excluded.state, "
        "settled_at_ms = excluded.settled_at_ms, digest = excluded.digest "
        "WHERE receipts.state = 'pending'"
    ),
)


def record_receipt(
    receipt: Signed[Receipt],
    acceptance: Signed[Acceptance] | None,
    *,
    state: ReceiptState,
    amount_nano: int,
    now_ms: int,
) -> Record:
    """A receipt, or what became of one that was pending."""
    billed = receipt.message
    values = (
        billed.lease_id,
        billed.client,
        billed.job_id,
        billed.node,
        receipt.raw,
        acceptance.raw if acceptance is not None else None,
        amount_nano,
        billed.units.input_tokens,
        billed.units.output_tokens,
        billed.units.images,
        state.value,
        now_ms if state is ReceiptState.SETTLED else None,
    )
    added = tuple(getattr(billed.units, name) for name in _ADDED)
    return Record(_UPSERT, (*values, _digest_of(values, added), now_ms, *added))


def find_receipt(conn: Connection, lease_id: LeaseId) -> StoredReceipt | None:
    row = conn.execute(select(*_COLUMNS).where(receipts.c.lease_id == lease_id)).first()
    return None if row is None else _receipt(row)


def list_receipts_of(conn: Connection, client: PeerId, job_id: JobId) -> list[StoredReceipt]:
    """One per lease of a client's job that ended with one, in order of attempts."""
    query = (
        select(*_COLUMNS)
        .join(leases, leases.c.lease_id == receipts.c.lease_id)
        .where(receipts.c.client == client, receipts.c.job_id == job_id)
        .order_by(leases.c.attempt)
    )
    return [_receipt(row) for row in conn.execute(query)]


def list_settled_receipts(
    conn: Connection, *, since_ms: int, limit: int
) -> list[tuple[StoredReceipt, bool]]:
    """Those of the last `limit` leases since then that both sides signed and that were paid, in
    order of their grants; and of each whether our own gateway bought it."""
    holds = recent_holds(since_ms=since_ms, limit=limit)
    query = (
        select(*_COLUMNS, leases.c.api_key_id.is_not(None))
        .join(leases, leases.c.lease_id == receipts.c.lease_id)
        .join(holds, is_of_hold(holds))
        .where(receipts.c.settled_at_ms.is_not(None))
        .where(receipts.c.acceptance.is_not(None))
        .order_by(holds.c.sequence)
    )
    return [(_receipt(row[:-1]), bool(row[-1])) for row in conn.execute(query)]


def damaged_receipts(conn: Connection) -> Iterator[LeaseId]:
    """Receipts that are not as they were written."""
    columns = [receipts.c[field] for field in (*_FIELDS, *_ADDED)]
    for digest, *row in conn.execute(select(receipts.c.digest, *columns)):
        values, added = row[: len(_FIELDS)], row[len(_FIELDS) :]
        if digest != _digest_of(values, added):
            yield values[0]


def _digest_of(values: Sequence[Any], added: Sequence[int]) -> bytes:
    """Without the counts that are 0 up to the end, so that a row of the time before a count came
    keeps its digest."""
    counted = list(added)
    while counted and not counted[-1]:
        counted.pop()
    return row_digest("receipts", *values, *counted)


def _receipt(row: Sequence[Any]) -> StoredReceipt:
    lease_id, client, job_id, node, receipt, acceptance, amount_nano = row[:7]
    state, settled, received, elements, cached = row[10:]
    return StoredReceipt(
        lease_id,
        client,
        job_id,
        node,
        receipt,
        acceptance,
        amount_nano,
        Units(row[7], row[8], row[9], elements, cached),
        ReceiptState(state),
        received,
        settled,
    )
