"""Receipts and batches count input tokens that came from a node's prefix cache."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    int64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    for table in ("receipts", "batches"):
        check = sa.CheckConstraint(
            f"cached_tokens BETWEEN 0 AND {2**62}", name="cached_tokens_in_range"
        )
        column = sa.Column("cached_tokens", int64, check, nullable=False, server_default="0")
        op.add_column(table, column)
