"""Receipts count elements of tensors."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    int64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    check = sa.CheckConstraint(
        f"tensor_elements BETWEEN 0 AND {2**62}", name="tensor_elements_in_range"
    )
    column = sa.Column("tensor_elements", int64, check, nullable=False, server_default="0")
    op.add_column("receipts", column)
