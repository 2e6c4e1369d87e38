"""What is remembered of nodes beyond their current offers: when they were seen, how they did."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, bindparam, literal_column, select, update

from coordinator.db.bulk import BulkInsert, BulkUpdate, Record
from coordinator.db.schema import nodes
from protocol.ids import PeerId


class NodeCounter(StrEnum):
    """What a node's record counts."""

    COMPLETED = "jobs_completed"
    FAILED = "jobs_failed"
    REFUSED = "jobs_refused"
    LOST = "jobs_lost"
    DISPUTED = "receipts_disputed"


@dataclass(frozen=True, slots=True)
class StoredNode:
    """`incarnation_ms` is the newest that was seen: an older one is a ghost or a thief."""

    peer_id: PeerId
    first_seen_ms: int
    last_seen_ms: int
    incarnation_ms: int
    jobs_completed: int
    jobs_failed: int
    jobs_refused: int
    jobs_lost: int
    receipts_disputed: int


_COLUMNS = [nodes.c[field] for field in StoredNode.__slots__]

_SEE = BulkInsert(
    nodes,
    ("peer_id", "first_seen_ms", "last_seen_ms", "incarnation_ms"),
    on_conflict="ON CONFLICT (peer_id) DO UPDATE SET last_seen_ms = excluded.last_seen_ms, "
    "incarnation_ms = excluded.incarnation_ms "
    "WHERE excluded.incarnation_ms >= nodes.incarnation_ms",
)
_COUNT = {
    counter: BulkUpdate(
        update(nodes)
        .values({counter.value: nodes.c[counter.value] + literal_column("1")})
        .where(nodes.c.peer_id == bindparam("node")),
        ("node",),
    )
    for counter in NodeCounter
}


def record_sighting(peer_id: PeerId, *, incarnation_ms: int, now_ms: int) -> Record:
    """A node made itself known; the sighting of an older incarnation changes nothing."""
    return Record(_SEE, (peer_id, now_ms, now_ms, incarnation_ms))


def record_count(peer_id: PeerId, counter: NodeCounter) -> Record:
    """Count one more. The node must have been seen."""
    return Record(_COUNT[counter], (peer_id,))


def find_node(conn: Connection, peer_id: PeerId) -> StoredNode | None:
    row = conn.execute(select(*_COLUMNS).where(nodes.c.peer_id == peer_id)).first()
    return None if row is None else _node(row)


def list_nodes(
    conn: Connection, *, after: PeerId | None = None, limit: int = 100
) -> list[StoredNode]:
    """One page in order of ids, starting behind `after`."""
    query = select(*_COLUMNS).order_by(nodes.c.peer_id).limit(limit)
    if after is not None:
        query = query.where(nodes.c.peer_id > after)
    return [_node(row) for row in conn.execute(query)]


def _node(row: Sequence[Any]) -> StoredNode:
    return StoredNode(*row)
