"""Files of HTTP users, and batches of requests."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
AMOUNT_NANO_MAX = 2**62


def upgrade() -> None:
    op.create_table(
        "files",
        _ulid("id", primary_key=True),
        sa.Column("account", sa.Text, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        _amount("bytes"),
        _stamp("created_at_ms"),
        _stamp("expires_at_ms"),
        sqlite_strict=True,
    )
    op.create_index("ix_files_account_id", "files", ["account", "id"])
    op.create_index("ix_files_expires_at_ms", "files", ["expires_at_ms"])
    op.create_table(
        "batches",
        _ulid("id", primary_key=True),
        sa.Column("account", sa.Text, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("api_key_id", sa.Text, sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        _ulid("input_file_id"),
        _amount("output_lifetime_s", nullable=True),
        sa.Column("labels", sa.Text, nullable=False),
        _stamp("created_at_ms"),
        _stamp("expires_at_ms"),
        sa.Column("takes", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        _stamp("in_progress_at_ms", nullable=True),
        _stamp("finalizing_at_ms", nullable=True),
        _stamp("cancelling_at_ms", nullable=True),
        _stamp("ended_at_ms", nullable=True),
        _amount("total"),
        _amount("completed"),
        _amount("failed"),
        _amount("input_tokens"),
        _amount("output_tokens"),
        _amount("cost_nano"),
        sa.Column("errors", sa.Text, nullable=False),
        sa.Column("output_file_id", sa.Text),
        sa.Column("error_file_id", sa.Text),
        sqlite_strict=True,
    )
    op.create_index("ix_batches_account_id", "batches", ["account", "id"])
    op.create_index(
        "ix_batches_open",
        "batches",
        ["id"],
        sqlite_where=sa.text("ended_at_ms IS NULL"),
        postgresql_where=sa.text("ended_at_ms IS NULL"),
    )


def _amount(name: str, *, nullable: bool = False) -> sa.Column[int]:
    check = sa.CheckConstraint(f"{name} BETWEEN 0 AND {AMOUNT_NANO_MAX}", name=f"{name}_in_range")
    return sa.Column(name, INT64, check, nullable=nullable)


def _stamp(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, INT64, nullable=nullable)


def _ulid(name: str, *, primary_key: bool = False) -> sa.Column[str]:
    check = sa.CheckConstraint(f"length({name}) = 26", name=f"{name}_is_ulid")
    return sa.Column(name, sa.Text, check, primary_key=primary_key, nullable=False)
