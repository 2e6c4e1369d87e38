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
- SQLite notices a flipped bit only where it breaks the structure of a page. So each transfer has
  the hash of all transfers up to it, and a row of another table a digest of the columns that never
  change (`coordinator.db.digests`); an audit recomputes both.
"""

from sqlalchemy import (
    DDL,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    event,
    text,
)

from coordinator.db.columns import Int64, amount, flag, one_of, sha256, stamp, ulid
from coordinator.ledger.accounts import AccountKind
from protocol.endings import LeaseState, ReceiptState

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    flag("may_overdraw"),
    # A cache: the fold of all transfers, as `coordinator ledger audit` proves.
    amount("debits_pending"),
    amount("debits_posted"),
    amount("credits_pending"),
    amount("credits_posted"),
    Column("label", Text, nullable=False),
    stamp("created_at_ms"),
    # Of an account that an operator opened or named; one that its first earning opened has no name.
    sha256("digest", nullable=True),
    one_of("kind", AccountKind, name="kind_known"),
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
    stamp("created_at_ns"),
    ulid("id"),
    Column("debit", Text, ForeignKey("accounts.id"), nullable=False),
    Column("credit", Text, ForeignKey("accounts.id"), nullable=False),
    amount("amount_nano"),
    Column("kind", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("pending_id", Text),
    stamp("timeout_at_ms", nullable=True),
    # Not a foreign key: the books outlive the jobs, which may be pruned one day.
    Column("job_id", Text),
    # Of this transfer and all before it (`coordinator.ledger.hash_chain`).
    sha256("chain_hash"),
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

# What a coordinator signed of the hash chain: the transfers up to `sequence` are exactly these.
ledger_heads = Table(
    "ledger_heads",
    metadata,
    Column("sequence", Int64, primary_key=True, autoincrement=False),
    sha256("chain_hash"),
    stamp("signed_at_ms"),
    Column("signer", Text, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    sqlite_strict=True,
)

# Pending transfers without a resolution: a cache like the balances, so that neither a capture nor
# the sweep searches the history. No index on the timeout: the table only holds jobs in flight.
open_holds = Table(
    "open_holds",
    metadata,
    Column("transfer_id", Text, primary_key=True),
    stamp("timeout_at_ms"),
    # With how much it counts against the budget of whose API key: its amount, or the most that its
    # job can still cost. Not a foreign key: checking one costs each hold a look-up.
    amount("counted_nano"),
    Column("api_key_id", Text),
    Index(
        "ix_open_holds_api_key_id",
        "api_key_id",
        sqlite_where=text("api_key_id IS NOT NULL"),
        postgresql_where=text("api_key_id IS NOT NULL"),
    ),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

failed_ids = Table(
    "failed_ids",
    metadata,
    Column("id", Text, primary_key=True),
    stamp("failed_at_ms"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

api_keys = Table(
    "api_keys",
    metadata,
    ulid("id", primary_key=True),
    Column("account", Text, ForeignKey("accounts.id"), nullable=False, index=True),
    # sha256 of the key. Keys carry 256 random bits, so there is nothing to guess and no salt.
    sha256("key_hash"),
    Column("prefix", Text, nullable=False),
    Column("name", Text, nullable=False),
    stamp("created_at_ms"),
    stamp("revoked_at_ms", nullable=True),
    amount("budget_nano", nullable=True),
    amount("spent_nano"),
    amount("requests_per_minute", nullable=True),
    sha256("digest"),
    Index("uq_api_keys_key_hash", "key_hash", unique=True),
    sqlite_strict=True,
)

# What an API key says of routing where a request does not: a `provider` object as JSON.
key_routings = Table(
    "key_routings",
    metadata,
    Column("api_key_id", Text, ForeignKey("api_keys.id"), primary_key=True),
    Column("provider", Text, nullable=False),
    sha256("digest"),
    sqlite_strict=True,
)

# Keys that the gateway signs with for users who only have an API key. Sealed: a copy of the
# database alone must not let anyone sign.
custodial_keys = Table(
    "custodial_keys",
    metadata,
    Column("account", Text, ForeignKey("accounts.id"), primary_key=True),
    Column("sealed_seed", LargeBinary, nullable=False),
    stamp("created_at_ms"),
    sha256("digest"),
    sqlite_strict=True,
)

# Clients choose the ids of their jobs: only client and id together name one.
jobs = Table(
    "jobs",
    metadata,
    Column("client", Text, ForeignKey("accounts.id"), nullable=False),
    ulid("job_id"),
    Column("request", LargeBinary, nullable=False),
    Column("task", Text, nullable=False),
    Column("model_digest", Text, nullable=False),
    Column("objective", Text, nullable=False),
    stamp("created_at_ms"),
    sha256("digest"),
    # The last attempt that was leased; what becomes of an earlier one cannot change `state`, unless
    # it is paid (`coordinator.db.jobs`).
    Column("attempt", Integer, nullable=False),
    Column("state", Text, nullable=False),
    stamp("ended_at_ms", nullable=True),
    # A wire code (`protocol.errors.Code`); a newer node may name one that we do not know.
    Column("error_code", Text),
    PrimaryKeyConstraint("client", "job_id"),
    Index("ix_jobs_job_id", "job_id"),
    sqlite_strict=True,
)

leases = Table(
    "leases",
    metadata,
    ulid("lease_id", primary_key=True),
    ulid("job_id"),
    Column("attempt", Integer, nullable=False),
    Column("client", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("coordinator", Text, nullable=False),
    # Of the node's offer that was leased: a younger incarnation does not know this lease.
    stamp("node_incarnation_ms"),
    amount("window_tokens"),
    Column("api_key_id", Text, ForeignKey("api_keys.id")),
    Column("envelope", LargeBinary, nullable=False),
    ulid("hold_id", ForeignKey("transfers.id")),
    amount("ceiling_nano"),
    stamp("created_at_ms"),
    stamp("expires_at_ms"),
    sha256("digest"),
    Column("state", Text, nullable=False),
    stamp("ended_at_ms", nullable=True),
    # What its client signed if the job ended without a receipt. What it signed while the text
    # streamed is in the node's receipt.
    Column("delivery", LargeBinary),
    ForeignKeyConstraint(["client", "job_id"], ["jobs.client", "jobs.job_id"]),
    one_of("state", LeaseState, name="state_known"),
    CheckConstraint("(state = 'open') = (ended_at_ms IS NULL)", name="ended_unless_open"),
    Index("uq_leases_client_job_id_attempt", "client", "job_id", "attempt", unique=True),
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
    ulid("lease_id", ForeignKey("leases.lease_id"), primary_key=True),
    Column("client", Text, nullable=False),
    ulid("job_id"),
    Column("node", Text, nullable=False),
    Column("receipt", LargeBinary, nullable=False),
    Column("acceptance", LargeBinary),
    amount("amount_nano"),
    amount("input_tokens"),
    amount("output_tokens"),
    amount("images"),
    Column("state", Text, nullable=False),
    stamp("settled_at_ms", nullable=True),
    sha256("digest"),
    stamp("received_at_ms"),
    amount("tensor_elements", default=0),
    # Of the input tokens.
    amount("cached_tokens", default=0),
    one_of("state", ReceiptState, name="state_known"),
    CheckConstraint("(state = 'settled') = (settled_at_ms IS NOT NULL)", name="stamped_if_settled"),
    Index("ix_receipts_client_job_id", "client", "job_id"),
    sqlite_strict=True,
)

# Files of HTTP users. Their bytes are sealed and lie in a folder (`coordinator.batches.blobs`).
files = Table(
    "files",
    metadata,
    ulid("id", primary_key=True),
    Column("account", Text, ForeignKey("accounts.id"), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    amount("bytes"),
    stamp("created_at_ms"),
    stamp("expires_at_ms"),
    Index("ix_files_account_id", "account", "id"),
    Index("ix_files_expires_at_ms", "expires_at_ms"),
    sqlite_strict=True,
)

# What a batch asks for, then how far it is. Which of its lines are answered stands in its log
# (`coordinator.batches.line_log`); the counts here are a cache of that.
batches = Table(
    "batches",
    metadata,
    ulid("id", primary_key=True),
    Column("account", Text, ForeignKey("accounts.id"), nullable=False),
    Column("api_key_id", Text, ForeignKey("api_keys.id"), nullable=False),
    Column("endpoint", Text, nullable=False),
    # Not a foreign key: a file may be deleted when its batch has ended.
    ulid("input_file_id"),
    amount("output_lifetime_s", nullable=True),
    Column("labels", Text, nullable=False),
    stamp("created_at_ms"),
    stamp("expires_at_ms"),
    # How often a process has taken it up: the ids of its jobs differ from those of an earlier one.
    Column("takes", Integer, nullable=False),
    Column("status", Text, nullable=False),
    stamp("in_progress_at_ms", nullable=True),
    stamp("finalizing_at_ms", nullable=True),
    stamp("cancelling_at_ms", nullable=True),
    stamp("ended_at_ms", nullable=True),
    amount("total"),
    amount("completed"),
    amount("failed"),
    amount("input_tokens"),
    amount("output_tokens"),
    amount("cost_nano"),
    Column("errors", Text, nullable=False),
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    amount("cached_tokens", default=0),
    Index("ix_batches_account_id", "account", "id"),
    Index(
        "ix_batches_open",
        "id",
        sqlite_where=text("ended_at_ms IS NULL"),
        postgresql_where=text("ended_at_ms IS NULL"),
    ),
    sqlite_strict=True,
)

# Answers of the gateway that a client may fetch again, sealed. `name` says by what: an idempotency
# key's hash, or the id of a generation. The seal proves the row, so it has no digest.
kept_answers = Table(
    "kept_answers",
    metadata,
    Column("account", Text, nullable=False),
    Column("name", Text, nullable=False),
    # Of the request: another one under the same name is refused.
    sha256("request_digest"),
    ulid("job_id"),
    # None while the answer is not there.
    Column("sealed", LargeBinary),
    amount("bytes"),
    stamp("created_at_ms"),
    stamp("expires_at_ms"),
    PrimaryKeyConstraint("account", "name"),
    Index("ix_kept_answers_expires_at_ms", "expires_at_ms"),
    # With the bytes, so that adding them up reads no answer.
    Index("ix_kept_answers_account", "account", "created_at_ms", "bytes"),
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
