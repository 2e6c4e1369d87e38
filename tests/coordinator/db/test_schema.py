"""The schema: where the migrations arrive, and what the database itself refuses."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

import coordinator.db.migrations
from coordinator.db.engine import Connection, Database, InlineRunner, open_database
from coordinator.db.migrations import HEAD, schema_revision, upgrade_schema
from coordinator.db.schema import metadata
from coordinator.errors import ConstraintError, SchemaVersionError, StorageError
from protocol.money import AMOUNT_NANO_MAX
from tests.coordinator.ledger_makers import Ulids, memory_books, opened

MIGRATIONS = Path(coordinator.db.migrations.__file__).parent


@pytest.fixture
def database() -> Iterator[Database]:
    with memory_books() as database:
        yield database


def definitions(conn: Connection) -> dict[str, str]:
    """Every table, index and trigger as SQLite keeps it."""
    rows = conn.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    return {name: " ".join(sql.split()) for name, sql in rows if name != "alembic_version"}


def test_the_migrations_arrive_at_the_schema(database: Database) -> None:
    with database.transaction() as conn:
        migrated = definitions(conn)
    engine = create_engine("sqlite://")
    with engine.begin() as conn:
        metadata.create_all(conn)
        declared = definitions(conn)
    engine.dispose()
    assert migrated == declared


def test_head_is_the_newest_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_every_table_is_strict(database: Database) -> None:
    with database.transaction() as conn:
        rows = conn.execute(text("SELECT name, strict FROM pragma_table_list WHERE type = 'table'"))
        tables = {name: strict for name, strict in rows if name in metadata.tables}
    assert tables == dict.fromkeys(metadata.tables, 1)


def test_upgrading_again_changes_nothing(database: Database) -> None:
    with database.transaction() as conn:
        before = definitions(conn)
        upgrade_schema(conn)
        assert definitions(conn) == before
        assert schema_revision(conn) == HEAD


def test_a_database_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'capa.db'}"
    with opened(url) as database, database.transaction() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaVersionError, match="newer version"):
        open_database(url, InlineRunner())


def test_an_upgrade_that_fails_leaves_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'capa.db'}"
    engine = create_engine(url)
    with engine.begin() as conn:
        # The last table that the first revision makes.
        conn.execute(text("CREATE TABLE receipts (something_else TEXT)"))
    with pytest.raises(StorageError, match="receipts already exists"):
        open_database(url, InlineRunner())
    with engine.begin() as conn:
        assert definitions(conn).keys() == {"receipts"}
        conn.execute(text("DROP TABLE receipts"))
    engine.dispose()
    with opened(url) as database, database.transaction() as conn:
        assert schema_revision(conn) == HEAD


@pytest.mark.slow
def test_two_programs_may_make_the_database_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'capa.db'}"
    code = (
        "from coordinator.db.engine import InlineRunner, open_database\n"
        f"open_database({url!r}, InlineRunner()).close()"
    )
    programs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [program.wait(30) for program in programs] == [0, 0, 0]


def insert_transfer(conn: Connection, ulid: str, **changes: object) -> None:
    row: dict[str, object] = {
        "sequence": 100,
        "created_at_ns": 1,
        "id": ulid,
        "debit": "issuance",
        "credit": "alice",
        "amount_nano": 1,
        "kind": "posted",
        "code": "credit",
        "pending_id": None,
        "timeout_at_ms": None,
        "job_id": None,
        "chain_hash": bytes(32),
        **changes,
    }
    columns = ", ".join(row)
    binds = ", ".join(f":{name}" for name in row)
    conn.execute(text(f"INSERT INTO transfers ({columns}) VALUES ({binds})"), row)


@pytest.mark.parametrize(
    "changes",
    [
        {"amount_nano": -1},
        {"amount_nano": AMOUNT_NANO_MAX + 1},
        {"amount_nano": 1.5},
        {"amount_nano": "1 credit"},
        {"amount_nano": None},
        {"debit": "alice"},
        {"debit": "nobody"},
        {"id": "too short"},
        {"kind": "gift"},
        {"kind": "pending"},
        {"kind": "void"},
        {"kind": "post", "pending_id": "x", "timeout_at_ms": 1},
        {"pending_id": "x"},
        {"timeout_at_ms": 1},
        {"sequence": 1},
        {"chain_hash": b"short"},
    ],
    ids=str,
)
def test_the_database_refuses_impossible_transfers(
    database: Database, changes: dict[str, object]
) -> None:
    with pytest.raises(ConstraintError), database.transaction() as conn:
        insert_transfer(conn, Ulids()(), **changes)
    with database.transaction() as conn:
        insert_transfer(conn, Ulids()())


def test_a_hold_cannot_be_resolved_twice_behind_the_ledgers_back(database: Database) -> None:
    ulid = Ulids()
    with database.transaction() as conn:
        insert_transfer(conn, hold := ulid(), kind="pending", timeout_at_ms=1)
        insert_transfer(conn, ulid(), kind="void", pending_id=hold, sequence=101)
    with pytest.raises(ConstraintError), database.transaction() as conn:
        insert_transfer(conn, ulid(), kind="post", pending_id=hold, sequence=102)


@pytest.mark.parametrize(
    "change", ["UPDATE transfers SET amount_nano = 2", "DELETE FROM transfers"]
)
def test_transfers_cannot_be_changed_or_deleted(database: Database, change: str) -> None:
    with pytest.raises(ConstraintError, match="immutable"), database.transaction() as conn:
        conn.execute(text(change))


@pytest.mark.parametrize(
    "change",
    [
        "debits_posted = credits_posted + 1",
        "debits_pending = -1",
        "credits_posted = 4611686018427387905",
        "credits_posted = 9223372036854775807 + 1",
    ],
)
def test_balances_cannot_leave_their_bounds(database: Database, change: str) -> None:
    with pytest.raises(ConstraintError), database.transaction() as conn:
        conn.execute(text(f"UPDATE accounts SET {change} WHERE id = 'alice'"))
