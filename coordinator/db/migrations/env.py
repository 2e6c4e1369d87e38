"""Alembic's entry: it always runs inside a transaction that `upgrade_schema`'s caller began."""

from alembic import context

from coordinator.db.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite rolls back DDL as well as rows: a revision that fails halfway leaves nothing.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
