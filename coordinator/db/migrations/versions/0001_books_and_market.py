"""The first schema: the books, the market's jobs, and the keys of its users."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _create_accounts()
    _create_transfers()
    _create_holds()
    _create_keys()
    _create_market()


def _create_accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        _flag("may_overdraw"),
        _amount("debits_pending"),
        _amount("debits_posted"),
        _amount("credits_pending"),
        _amount("credits_posted"),
        sa.Column("label", sa.Text, nullable=False),
        _stamp("created_at_ms"),
        _sha256("digest", nullable=True),
        sa.CheckConstraint("kind IN ('client', 'node', 'system')", name="kind_known"),
        sa.CheckConstraint(
            "may_overdraw = 1 OR debits_pending + debits_posted <= credits_posted",
            name="not_overdrawn",
        ),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO accounts (id, kind, may_overdraw, debits_pending, debits_posted, "
        "credits_pending, credits_posted, label, created_at_ms) VALUES "
        "('issuance', 'system', 1, 0, 0, 0, 0, '', 0), "
        "('escrow', 'system', 0, 0, 0, 0, 0, '', 0), "
        "('operator', 'system', 0, 0, 0, 0, 0, '', 0), "
        "('goodwill', 'system', 1, 0, 0, 0, 0, '', 0)"
    )


def _create_transfers() -> None:
    op.create_table(
        "transfers",
        sa.Column("sequence", INT64, primary_key=True, autoincrement=False),
        _stamp("created_at_ns"),
        _ulid("id"),
        sa.Column("debit", sa.Text, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("credit", sa.Text, sa.ForeignKey("accounts.id"), nullable=False),
        _amount("amount_nano"),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("pending_id", sa.Text),
        _stamp("timeout_at_ms", nullable=True),
        sa.Column("job_id", sa.Text),
        _sha256("chain_hash"),
        sa.CheckConstraint("debit <> credit", name="accounts_differ"),
        sa.CheckConstraint(
            "CASE kind WHEN 'posted' THEN pending_id IS NULL AND timeout_at_ms IS NULL "
            "WHEN 'pending' THEN pending_id IS NULL AND timeout_at_ms IS NOT NULL "
            "WHEN 'post' THEN pending_id IS NOT NULL AND timeout_at_ms IS NULL "
            "WHEN 'void' THEN pending_id IS NOT NULL AND timeout_at_ms IS NULL "
            "WHEN 'expire' THEN pending_id IS NOT NULL AND timeout_at_ms IS NULL "
            "ELSE FALSE END",
            name="kind_has_its_fields",
        ),
        sqlite_strict=True,
    )
    op.create_index("uq_transfers_id", "transfers", ["id"], unique=True)
    _create_partial_index(
        "uq_transfers_pending_id", "transfers", "pending_id", "pending_id IS NOT NULL", unique=True
    )
    if op.get_context().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER transfers_refuse_{verb.lower()} BEFORE {verb} ON transfers "
                "BEGIN SELECT RAISE(ABORT, 'transfers are immutable'); END"
            )
    op.create_table(
        "ledger_heads",
        sa.Column("sequence", INT64, primary_key=True, autoincrement=False),
        _sha256("chain_hash"),
        _stamp("signed_at_ms"),
        sa.Column("signer", sa.Text, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )


def _create_holds() -> None:
    _create_small_table(
        "open_holds",
        sa.Column("transfer_id", sa.Text, primary_key=True),
        _stamp("timeout_at_ms"),
        _amount("counted_nano"),
        sa.Column("api_key_id", sa.Text),
    )
    _create_partial_index(
        "ix_open_holds_api_key_id", "open_holds", "api_key_id", "api_key_id IS NOT NULL"
    )
    _create_small_table(
        "failed_ids", sa.Column("id", sa.Text, primary_key=True), _stamp("failed_at_ms")
    )


def _create_keys() -> None:
    op.create_table(
        "api_keys",
        _ulid("id", primary_key=True),
        sa.Column("account", sa.Text, sa.ForeignKey("accounts.id"), nullable=False),
        _sha256("key_hash"),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        _stamp("created_at_ms"),
        _stamp("revoked_at_ms", nullable=True),
        _amount("budget_nano", nullable=True),
        _amount("spent_nano"),
        _amount("requests_per_minute", nullable=True),
        _sha256("digest"),
        sqlite_strict=True,
    )
    op.create_index("ix_api_keys_account", "api_keys", ["account"])
    op.create_index("uq_api_keys_key_hash", "api_keys", ["key_hash"], unique=True)
    op.create_table(
        "custodial_keys",
        sa.Column("account", sa.Text, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("sealed_seed", sa.LargeBinary, nullable=False),
        _stamp("created_at_ms"),
        _sha256("digest"),
        sqlite_strict=True,
    )


def _create_market() -> None:
    _create_jobs()
    _create_leases()
    _create_receipts()


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("client", sa.Text, sa.ForeignKey("accounts.id"), nullable=False),
        _ulid("job_id"),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("model_digest", sa.Text, nullable=False),
        sa.Column("objective", sa.Text, nullable=False),
        _stamp("created_at_ms"),
        _sha256("digest"),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        _stamp("ended_at_ms", nullable=True),
        sa.Column("error_code", sa.Text),
        sa.PrimaryKeyConstraint("client", "job_id"),
        sqlite_strict=True,
    )
    op.create_index("ix_jobs_job_id", "jobs", ["job_id"])


def _create_leases() -> None:
    op.create_table(
        "leases",
        _ulid("lease_id", primary_key=True),
        _ulid("job_id"),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("client", sa.Text, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("coordinator", sa.Text, nullable=False),
        _stamp("node_incarnation_ms"),
        _amount("window_tokens"),
        sa.Column("api_key_id", sa.Text, sa.ForeignKey("api_keys.id")),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        _ulid("hold_id", sa.ForeignKey("transfers.id")),
        _amount("ceiling_nano"),
        _stamp("created_at_ms"),
        _stamp("expires_at_ms"),
        _sha256("digest"),
        sa.Column("state", sa.Text, nullable=False),
        _stamp("ended_at_ms", nullable=True),
        sa.Column("delivery", sa.LargeBinary),
        sa.ForeignKeyConstraint(["client", "job_id"], ["jobs.client", "jobs.job_id"]),
        sa.CheckConstraint(
            "state IN ('open', 'settled', 'released', 'expired')", name="state_known"
        ),
        sa.CheckConstraint("(state = 'open') = (ended_at_ms IS NULL)", name="ended_unless_open"),
        sqlite_strict=True,
    )
    op.create_index(
        "uq_leases_client_job_id_attempt", "leases", ["client", "job_id", "attempt"], unique=True
    )
    _create_partial_index("ix_leases_open", "leases", "expires_at_ms", "state = 'open'")


def _create_receipts() -> None:
    op.create_table(
        "receipts",
        _ulid("lease_id", sa.ForeignKey("leases.lease_id"), primary_key=True),
        sa.Column("client", sa.Text, nullable=False),
        _ulid("job_id"),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("receipt", sa.LargeBinary, nullable=False),
        sa.Column("acceptance", sa.LargeBinary),
        _amount("amount_nano"),
        _amount("input_tokens"),
        _amount("output_tokens"),
        _amount("images"),
        sa.Column("state", sa.Text, nullable=False),
        _stamp("settled_at_ms", nullable=True),
        _sha256("digest"),
        _stamp("received_at_ms"),
        sa.CheckConstraint("state IN ('pending', 'settled', 'disputed')", name="state_known"),
        sa.CheckConstraint(
            "(state = 'settled') = (settled_at_ms IS NOT NULL)", name="stamped_if_settled"
        ),
        sqlite_strict=True,
    )
    op.create_index("ix_receipts_client_job_id", "receipts", ["client", "job_id"])


def _create_small_table(name: str, *columns: sa.Column[Any]) -> None:
    op.create_table(name, *columns, sqlite_strict=True, sqlite_with_rowid=False)


def _create_partial_index(
    name: str, table: str, column: str, where: str, *, unique: bool = False
) -> None:
    condition = sa.text(where)
    op.create_index(
        name, table, [column], unique=unique, sqlite_where=condition, postgresql_where=condition
    )


def _amount(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(
        name,
        INT64,
        sa.CheckConstraint(f"{name} BETWEEN 0 AND {2**62}", name=f"{name}_in_range"),
        nullable=nullable,
    )


def _stamp(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, INT64, nullable=nullable)


def _ulid(name: str, *args: sa.ForeignKey, primary_key: bool = False) -> sa.Column[str]:
    check = sa.CheckConstraint(f"length({name}) = 26", name=f"{name}_is_ulid")
    return sa.Column(name, sa.Text, *args, check, primary_key=primary_key, nullable=False)


def _flag(name: str) -> sa.Column[int]:
    check = sa.CheckConstraint(f"{name} IN (0, 1)", name=f"{name}_is_flag")
    return sa.Column(name, sa.Integer, check, nullable=False)


def _sha256(name: str, *, nullable: bool = False) -> sa.Column[bytes]:
    check = sa.CheckConstraint(f"length({name}) = 32", name=f"{name}_is_sha256")
    return sa.Column(name, sa.LargeBinary, check, nullable=nullable)
