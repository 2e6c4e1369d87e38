"""API keys of a gateway's own: stored as hashes in one small SQLite file, each with its budget.

They bound what each user of this gateway may spend of the one account that pays. The books are the
coordinator's; what is counted here are the words that we sign.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.edge.errors import KeysError
from protocol.clock import Entropy
from protocol.ids import ULID_ENTROPY_BYTES, new_ulid
from protocol.programs.api_key_secret import ApiKeySecret, hash_secret
from protocol.programs.sqlite import (
    BEGIN_WRITE,
    BUSY_TIMEOUT_S,
    configure_connection,
    keep_database_private,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS gateway_keys (
    id TEXT PRIMARY KEY,
    key_hash BLOB NOT NULL UNIQUE,
    prefix TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    revoked_at_ms INTEGER,
    budget_nano INTEGER CHECK (budget_nano >= 0),
    spent_nano INTEGER NOT NULL DEFAULT 0 CHECK (spent_nano >= 0),
    requests_per_minute INTEGER CHECK (requests_per_minute > 0)
) STRICT
"""
_COLUMNS = (
    "id, prefix, name, created_at_ms, revoked_at_ms, budget_nano, spent_nano, requests_per_minute"
)


@dataclass(frozen=True, slots=True)
class GatewayKey:
    """What is stored of a key. `budget_nano` and `requests_per_minute` are None for no limit."""

    id: str
    prefix: str
    name: str
    created_at_ms: int
    revoked_at_ms: int | None
    budget_nano: int | None
    spent_nano: int
    requests_per_minute: int | None


class GatewayKeys:
    """The file at `path`, made if it is missing; each call is one transaction.

    Methods raise KeysError if the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            keep_database_private(path)
        except OSError as error:
            raise KeysError(str(error)) from None
        with self._transaction() as conn:
            conn.execute(_SCHEMA)

    def create(
        self,
        name: str,
        *,
        now_ms: int,
        entropy: Entropy,
        budget_nano: int | None = None,
        requests_per_minute: int | None = None,
    ) -> tuple[str, GatewayKey]:
        """Returns the secret, which is not stored, and what is."""
        secret = ApiKeySecret.new(entropy)
        key = GatewayKey(
            id=new_ulid(now_ms, entropy(ULID_ENTROPY_BYTES)),
            prefix=secret.prefix,
            name=name,
            created_at_ms=now_ms,
            revoked_at_ms=None,
            budget_nano=budget_nano,
            spent_nano=0,
            requests_per_minute=requests_per_minute,
        )
        with self._transaction() as conn:
            conn.execute(
                "INSERT INTO gateway_keys (id, key_hash, prefix, name, created_at_ms, budget_nano,"
                " requests_per_minute) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    key.id,
                    hash_secret(secret.text),
                    key.prefix,
                    name,
                    now_ms,
                    budget_nano,
                    requests_per_minute,
                ),
            )
        return secret.text, key

    def authenticate(self, secret: str) -> GatewayKey | None:
        """None for a key that is unknown or revoked. The lookup is by hash: its time tells an
        attacker nothing about a key."""
        found = self._select("WHERE key_hash = ? AND revoked_at_ms IS NULL", (hash_secret(secret),))
        return found[0] if found else None

    def find(self, key_id: str) -> GatewayKey | None:
        found = self._select("WHERE id = ?", (key_id,))
        return found[0] if found else None

    def all_keys(self) -> list[GatewayKey]:
        return self._select("ORDER BY id", ())

    def revoke(self, key_id: str, *, now_ms: int) -> bool:
        """Whether there was such a key that was not revoked before."""
        with self._transaction() as conn:
            done = conn.execute(
                "UPDATE gateway_keys SET revoked_at_ms = ? WHERE id = ? AND revoked_at_ms IS NULL",
                (now_ms, key_id),
            )
            return done.rowcount == 1

    def spend(self, key_id: str, amount_nano: int) -> None:
        with self._transaction() as conn:
            conn.execute(
                "UPDATE gateway_keys SET spent_nano = spent_nano + ? WHERE id = ?",
                (amount_nano, key_id),
            )

    def _select(self, condition: str, values: tuple[object, ...]) -> list[GatewayKey]:
        with self._transaction() as conn:
            # Every condition is a literal of this module.
            query = f"SELECT {_COLUMNS} FROM gateway_keys {condition}"  # noqa: S608
            return [GatewayKey(*row) for row in conn.execute(query, values)]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S)) as conn:
                configure_connection(conn)
                conn.execute(BEGIN_WRITE)
                yield conn
                conn.execute("COMMIT")
        except sqlite3.Error as error:
            raise KeysError(f"cannot use the API keys at {self._path}: {error}") from None
