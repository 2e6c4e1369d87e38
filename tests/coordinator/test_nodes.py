"""What is remembered of nodes."""

from collections.abc import Iterator

import pytest

from coordinator.db.bulk import run_records
from coordinator.db.engine import Connection
from coordinator.db.nodes import (
    NodeCounter,
    StoredNode,
    find_node,
    list_nodes,
    record_count,
    record_sighting,
)
from coordinator.errors import ConstraintError
from protocol.ids import PeerId
from tests.coordinator.ledger_makers import NODE, START_MS, memory_books


@pytest.fixture
def conn() -> Iterator[Connection]:
    with memory_books() as database, database.transaction() as conn:
        yield conn


def see(conn: Connection, node: str = NODE, *, incarnation_ms: int = 5, now_ms: int = 10) -> None:
    sighting = record_sighting(PeerId(node), incarnation_ms=incarnation_ms, now_ms=now_ms)
    run_records(conn, [sighting])


def test_a_node_is_remembered_from_its_first_sighting_to_its_last(conn: Connection) -> None:
    assert find_node(conn, NODE) is None
    see(conn, now_ms=START_MS)
    see(conn, now_ms=START_MS + 7, incarnation_ms=6)
    assert find_node(conn, NODE) == StoredNode(NODE, START_MS, START_MS + 7, 6, 0, 0, 0, 0, 0)


def test_an_older_incarnation_changes_nothing(conn: Connection) -> None:
    see(conn, incarnation_ms=9, now_ms=10)
    see(conn, incarnation_ms=8, now_ms=20)
    found = find_node(conn, NODE)
    assert found is not None
    assert (found.incarnation_ms, found.last_seen_ms) == (9, 10)


def test_each_counter_counts_for_itself(conn: Connection) -> None:
    see(conn)
    for times, counter in enumerate(NodeCounter, start=1):
        run_records(conn, [record_count(NODE, counter)] * times)
    found = find_node(conn, NODE)
    assert found is not None
    assert [getattr(found, counter.value) for counter in NodeCounter] == [1, 2, 3, 4, 5]


def test_a_node_that_was_never_seen_is_not_counted(conn: Connection) -> None:
    with pytest.raises(ConstraintError):
        run_records(conn, [record_count(NODE, NodeCounter.LOST)])


def test_nodes_are_listed_in_pages(conn: Connection) -> None:
    for name in "abc":
        see(conn, name)
    first = list_nodes(conn, limit=2)
    assert [node.peer_id for node in first] == ["a", "b"]
    assert [node.peer_id for node in list_nodes(conn, after=first[-1].peer_id)] == ["c"]
