"""Answers that may be fetched again, and what API keys say of routing."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "key_routings",
        sa.Column("api_key_id", sa.Text, sa.ForeignKey("api_keys.id"), primary_key=True),
        sa.Column("provider", sa.Text, nullable=False),
        _sha256("digest"),
        sqlite_strict=True,
    )
    op.create_table(
        "kept_answers",
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        _sha256("request_digest"),
        sa.Column(
            "job_id",
            sa.Text,
            sa.CheckConstraint("length(job_id) = 26", name="job_id_is_ulid"),
            nullable=False,
        ),
        sa.Column("sealed", sa.LargeBinary),
        sa.Column(
            "bytes",
            INT64,
            sa.CheckConstraint(f"bytes BETWEEN 0 AND {2**62}", name="bytes_in_range"),
            nullable=False,
        ),
        sa.Column("created_at_ms", INT64, nullable=False),
        sa.Column("expires_at_ms", INT64, nullable=False),
        sa.PrimaryKeyConstraint("account", "name"),
        sqlite_strict=True,
    )
    op.create_index("ix_kept_answers_expires_at_ms", "kept_answers", ["expires_at_ms"])
    op.create_index(
        "ix_kept_answers_account", "kept_answers", ["account", "created_at_ms", "bytes"]
    )


def _sha256(name: str) -> sa.Column[bytes]:
    check = sa.CheckConstraint(f"length({name}) = 32", name=f"{name}_is_sha256")
    return sa.Column(name, sa.LargeBinary, check, nullable=False)
