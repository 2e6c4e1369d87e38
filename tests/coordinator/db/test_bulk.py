"""Statements for many rows: every size, and what they refuse."""

from collections.abc import Iterator

import pytest
from sqlalchemy import bindparam, delete, select, update

from coordinator.db.bulk import BulkInsert, BulkQuery, BulkUpdate, Record, run_records
from coordinator.db.engine import Connection, InlineRunner, open_database
from coordinator.db.schema import failed_ids, open_holds
from coordinator.errors import ConstraintError

INSERT = BulkInsert(failed_ids, ("id", "failed_at_ms"))
INSERT_NEW = BulkInsert(
    failed_ids, ("id", "failed_at_ms"), on_conflict="ON CONFLICT (id) DO NOTHING"
)
SELECT = BulkQuery(select(failed_ids.c.id, failed_ids.c.failed_at_ms), failed_ids.c.id)
DELETE = BulkQuery(delete(failed_ids), failed_ids.c.id)
TOUCH = (
    update(failed_ids)
    .values(failed_at_ms=bindparam("time"))
    .where(failed_ids.c.id == bindparam("failed"))
)
UPDATE = BulkUpdate(TOUCH, ("time", "failed"))


@pytest.fixture
def conn() -> Iterator[Connection]:
    database = open_database("sqlite://", InlineRunner())
    with database.transaction() as conn:
        yield conn
    database.close()


def stored(conn: Connection) -> list[tuple[str, int]]:
    query = select(failed_ids.c.id, failed_ids.c.failed_at_ms).order_by(failed_ids.c.id)
    return [(row[0], row[1]) for row in conn.execute(query)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 255, 256, 257, 777, 2_500])
def test_any_number_of_rows_goes_in_comes_out_and_goes_away(conn: Connection, count: int) -> None:
    rows = [(f"{number:06d}", number) for number in range(count)]
    INSERT.run(conn, rows)
    assert stored(conn) == rows
    keys = [key for key, _ in rows]
    assert sorted(tuple(row) for row in SELECT.select(conn, [*keys, "absent"])) == rows
    DELETE.delete(conn, keys)
    assert stored(conn) == []


def test_a_duplicate_row_is_refused() -> None:
    database = open_database("sqlite://", InlineRunner())
    with pytest.raises(ConstraintError, match="UNIQUE"), database.transaction() as conn:
        INSERT.run(conn, [("a", 1), ("b", 1), ("a", 2)])
    with database.transaction() as conn:
        assert stored(conn) == []
    database.close()


def test_a_duplicate_row_may_be_ignored(conn: Connection) -> None:
    INSERT.run(conn, [("a", 1)])
    INSERT_NEW.run(conn, [("b", 5), ("a", 6), ("b", 7)])
    assert stored(conn) == [("a", 1), ("b", 5)]


def test_deleting_what_is_gone_is_refused(conn: Connection) -> None:
    INSERT.run(conn, [("a", 1)])
    with pytest.raises(ConstraintError, match="1 of 2 rows are already gone"):
        DELETE.delete(conn, ["a", "b"])


def test_an_update_must_hit_every_row(conn: Connection) -> None:
    INSERT.run(conn, [("a", 1), ("b", 1)])
    UPDATE.run(conn, [(7, "a"), (8, "b")])
    assert stored(conn) == [("a", 7), ("b", 8)]
    with pytest.raises(ConstraintError, match="1 of 2 rows of failed_ids cannot change"):
        UPDATE.run(conn, [(9, "a"), (9, "absent")])


def test_an_update_that_may_miss_does(conn: Connection) -> None:
    BulkUpdate(TOUCH, ("time", "failed"), must_hit=False).run(conn, [(9, "absent")])
    assert stored(conn) == []


def test_records_insert_before_they_update_whatever_their_order(conn: Connection) -> None:
    run_records(
        conn,
        [Record(UPDATE, (5, "a")), Record(INSERT, ("a", 1)), Record(INSERT, ("b", 1))],
    )
    assert stored(conn) == [("a", 5), ("b", 1)]


def test_statements_rank_inserts_first_and_parents_before_children() -> None:
    holds = BulkInsert(open_holds, ("transfer_id", "timeout_at_ms"))
    assert max(INSERT.rank, holds.rank) < UPDATE.rank
