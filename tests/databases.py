"""Migrations take most of the time of a test that opens a new database. So they run once in a test
process, and each new database is a copy of what they made. They have tests of their own in
`coordinator/db/test_schema.py`."""

from collections.abc import Iterator
from functools import cache

import pytest

import coordinator.db.engine
from coordinator.db.engine import Connection, Database, InlineRunner
from coordinator.db.migrations import schema_revision, upgrade_schema

_NOT_OF_THE_SCHEMA = ("BEGIN TRANSACTION;", "COMMIT;")


@pytest.fixture(scope="session", autouse=True)
def new_databases_are_copies() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator.db.engine, "upgrade_schema", _copy_or_upgrade)
        yield


def _copy_or_upgrade(connection: Connection) -> None:
    if schema_revision(connection) is not None:
        upgrade_schema(connection)
        return
    for statement in _statements():
        connection.exec_driver_sql(statement)


@cache
def _statements() -> tuple[str, ...]:
    """What the migrations make of an empty database, rows included."""
    database = Database("sqlite://", InlineRunner())
    try:
        with database.transaction() as connection:
            upgrade_schema(connection)
            driver = connection.connection.driver_connection
            assert driver is not None
            return tuple(line for line in driver.iterdump() if line not in _NOT_OF_THE_SCHEMA)
    finally:
        database.close()
