"""Every table of the coordinator, in one place; the migrations must arrive at exactly this.

Traps, each met before:

- SQLite turns 2^63 - 1 + 1 into a REAL without a word. STRICT tables refuse that, and every sum is
  bounded to 0..2^62, so that no sum of two columns leaves int64.
- STRICT knows INTEGER, TEXT and BLOB only: no VARCHAR, BOOLEAN or BIGINT there.
- `Numeric` is stored as REAL by SQLite and loses digits: never use it.
- Foreign keys are off in SQLite unless each connection asks for them (`coordinator.db.sqlite`).
- An index on the accounts of transfers halves the ledger's rate. A statement scans instead.
- A CHECK cannot be changed in SQLite without rebuilding its table. So only closed vocabularies have
  one; codes, tasks and job states grow with the protocol and are parsed on the way out.
"""

from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    event,
    text,
)

from coordinator.ledger.accounts import AccountKind
from protocol.endings import LeaseState, ReceiptState
from protocol.money import AMOUNT_NANO_MAX

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# 64 bits on every database; SQLite's INTEGER already has them.
Int64 = BigInteger().with_variant(Integer(), "sqlite")


def _one_of(column: str, values: Iterable[StrEnum], *, name: str) -> CheckConstraint:
    listed = ", ".join(f"'{value.value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=name)


def _amount(name: str, *, nullable: bool = False) -> Column[int]:
    """Nano-credits or a count: 0..2^62."""
    return Column(
        name,
        Int64,
        CheckConstraint(f"{name} BETWEEN 0 AND {AMOUNT_NANO_MAX}", name=f"{name}_in_range"),
        nullable=nullable,
    )


def _stamp(name: str, *, nullable: bool = False) -> Column[int]:
    """A time; the name says the unit."""
    return Column(name, Int64, nullable=nullable)


def _ulid(name: str, *args: ForeignKey, primary_key: bool = False) -> Column[str]:
    check = CheckConstraint(f"length({name}) = 26", name=f"{name}_is_ulid")
    return Column(name, Text, *args, check, primary_key=primary_key, nullable=False)


accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("may_overdraw", Integer, nullable=False),
    # A cache: the fold of all transfers, as `coordinator ledger audit` proves.
    _amount("debits_pending"),
    _amount("debits_posted"),
    _amount("credits_pending"),
    _amount("credits_posted"),
    Column("label", Text, nullable=False),
    _stamp("created_at_ms"),
    _one_of("kind", AccountKind, name="kind_known"),
    CheckConstraint("may_overdraw IN (0, 1)", name="may_overdraw_is_flag"),
    CheckConstraint(
        "may_overdraw = 1 OR debits_pending + debits_posted <= credits_posted",
        name="not_overdrawn",
    ),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

transfers = Table(
    "transfers",
    metadata,
    Column("sequence", Int64, primary_key=True, autoincrement=False),
    _stamp("created_at_ns"),
    _ulid("id"),
    Column("debit", Text, ForeignKey("accounts.id"), nullable=False),
    Column("credit", Text, ForeignKey("accounts.id"), nullable=False),
    _amount("amount_nano"),
    Column("kind", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("pending_id", Text),
    _stamp("timeout_at_ms", nullable=True),
    # Not a foreign key: the books outlive the jobs, which may be pruned one day.
    Column("job_id", Text),
    CheckConstraint("debit <> credit", name="accounts_differ"),
    # One CASE: written with IN, it doubled the cost of an insert, because SQLite makes a table of
    # every IN list each time.
    CheckConstraint(
        "CASE kind WHEN 'posted' THEN pending_id IS NULL AND timeout_at_ms IS NULL "
        "WHEN 'pending' THEN pending_id IS NULL AND timeout_at_ms IS NOT NULL "
        "WHEN 'post' THEN pending_id IS NOT NULL AND timeout_at_ms IS NULL "
        "WHEN 'void' THEN pending_id IS NOT NULL AND timeout_at_ms IS NULL "
        "WHEN 'expire' THEN pending_id IS NOT NULL AND timeout_at_ms IS NULL "
        "ELSE FALSE END",
        name="kind_has_its_fields",
    ),
    Index("uq_transfers_id", "id", unique=True),
    # Only what resolves a hold is in this index, and unique: a hold ends at most once.
    Index(
        "uq_transfers_pending_id",
        "pending_id",
        unique=True,
        sqlite_where=text("pending_id IS NOT NULL"),
        postgresql_where=text("pending_id IS NOT NULL"),
    ),
    sqlite_strict=True,
)

# Pending transfers without a resolution: a cache like the balances, so that neither a capture nor
# the sweep searches the history. No index on the timeout: the table only holds jobs in flight.
open_holds = Table(
    "open_holds",
    metadata,
    Column("transfer_id", Text, primary_key=True),
    _stamp("timeout_at_ms"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

failed_ids = Table(
    "failed_ids",
    metadata,
    Column("id", Text, primary_key=True),
    _stamp("failed_at_ms"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

api_keys = Table(
    "api_keys",
    metadata,
    _ulid("id", primary_key=True),
    Column("account", Text, ForeignKey("accounts.id"), nullable=False, index=True),
    # sha256 of the key. Keys carry 256 random bits, so there is nothing to guess and no salt.
    Column(
        "key_hash",
        LargeBinary,
        CheckConstraint("length(key_hash) = 32", name="key_hash_is_sha256"),
        nullable=False,
    ),
    Column("prefix", Text, nullable=False),
    Column("name", Text, nullable=False),
    _stamp("created_at_ms"),
    _stamp("revoked_at_ms", nullable=True),
    _amount("budget_nano", nullable=True),
    _amount("spent_nano"),
    _amount("requests_per_minute", nullable=True),
    Index("uq_api_keys_key_hash", "key_hash", unique=True),
    sqlite_strict=True,
)

# Keys that the gateway signs with for users who only have an API key. Sealed: a copy of the
# database alone must not let anyone sign.
custodial_keys = Table(
    "custodial_keys",
    metadata,
    Column("account", Text, ForeignKey("accounts.id"), primary_key=True),
    Column("sealed_seed", LargeBinary, nullable=False),
    _stamp("created_at_ms"),
    sqlite_strict=True,
)

jobs = Table(
    "jobs",
    metadata,
    _ulid("job_id", primary_key=True),
    Column("client", Text, ForeignKey("accounts.id"), nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("model_digest", Text, nullable=False),
    Column("objective", Text, nullable=False),
    Column("api_key_id", Text, ForeignKey("api_keys.id")),
    _stamp("created_at_ms"),
    _stamp("ended_at_ms", nullable=True),
    # A wire code (`protocol.errors.Code`); a newer node may name one that we do not know.
    Column("error_code", Text),
    Index("ix_jobs_client_job_id", "client", "job_id"),
    sqlite_strict=True,
)

leases = Table(
    "leases",
    metadata,
    _ulid("lease_id", primary_key=True),
    _ulid("job_id", ForeignKey("jobs.job_id")),
    Column("attempt", Integer, nullable=False),
    Column("client", Text, ForeignKey("accounts.id"), nullable=False),
    Column("node", Text, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    _ulid("hold_id", ForeignKey("transfers.id")),
    _amount("ceiling_nano"),
    _stamp("created_at_ms"),
    _stamp("expires_at_ms"),
    Column("state", Text, nullable=False),
    _stamp("ended_at_ms", nullable=True),
    _one_of("state", LeaseState, name="state_known"),
    CheckConstraint("(state = 'open') = (ended_at_ms IS NULL)", name="ended_unless_open"),
    Index("ix_leases_job_id", "job_id"),
    # What a restarted coordinator has to pick up again.
    Index(
        "ix_leases_open",
        "expires_at_ms",
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
    sqlite_strict=True,
)

receipts = Table(
    "receipts",
    metadata,
    _ulid("lease_id", ForeignKey("leases.lease_id"), primary_key=True),
    _ulid("job_id"),
    Column("node", Text, nullable=False),
    Column("receipt", LargeBinary, nullable=False),
    Column("acceptance", LargeBinary),
    _amount("amount_nano"),
    _amount("input_tokens"),
    _amount("output_tokens"),
    _amount("images"),
    Column("state", Text, nullable=False),
    _stamp("received_at_ms"),
    _stamp("settled_at_ms", nullable=True),
    _one_of("state", ReceiptState, name="state_known"),
    CheckConstraint("(state = 'settled') = (settled_at_ms IS NOT NULL)", name="stamped_if_settled"),
    Index("ix_receipts_job_id", "job_id"),
    Index(
        "ix_receipts_pending",
        "received_at_ms",
        sqlite_where=text("state = 'pending'"),
        postgresql_where=text("state = 'pending'"),
    ),
    sqlite_strict=True,
)

# The books are append-only even for someone with a database shell. A correction is a new transfer.
for _verb in ("UPDATE", "DELETE"):
    event.listen(
        transfers,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]  # its annotations end at the constructor
            f"CREATE TRIGGER transfers_refuse_{_verb.lower()} BEFORE {_verb} ON transfers "
            "BEGIN SELECT RAISE(ABORT, 'transfers are immutable'); END"
        ).execute_if(dialect="sqlite"),
    )
