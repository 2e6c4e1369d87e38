"""How a database of any earlier version becomes one of this version.

Revisions live in `versions/`, numbered; a published one is never edited. After a change to
`coordinator.db.schema`, add the next number and raise HEAD: a test compares where the revisions
arrive with the schema.
"""

from pathlib import Path

from sqlalchemy import Connection, column, inspect, select, table

from coordinator.errors import SchemaVersionError

# The newest revision, here so that a start-up that finds it need not import Alembic (0.2 s).
HEAD = "0005"

_VERSION_TABLE = "alembic_version"


def upgrade_schema(connection: Connection) -> None:
    """Apply the missing revisions inside the caller's transaction: all of them or none.

    Raises SchemaVersionError if the database is at a revision that this program does not know.
    """
    revision = schema_revision(connection)
    if revision == HEAD:
        return
    if revision is not None and not revision < HEAD:
        raise SchemaVersionError(
            f"the database has schema {revision}, this program knows up to {HEAD}: "
            "run the newer version of the program that wrote it"
        )
    from alembic import command  # noqa: PLC0415 - see HEAD
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)


def schema_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None for an empty one."""
    if not inspect(connection).has_table(_VERSION_TABLE):
        return None
    revision = connection.scalar(select(column("version_num")).select_from(table(_VERSION_TABLE)))
    return None if revision is None else str(revision)
