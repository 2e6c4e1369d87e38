"""The books of the market that is attacked: its accounts and keys, and what is durable in it."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import trio

from coordinator.accounts import create_account, credit_account
from coordinator.cli.options import write_books
from coordinator.db.api_keys import create_api_key, revoke_api_key
from coordinator.db.engine import Connection
from coordinator.ledger.accounts import Account, account_of
from coordinator.settings import CoordinatorConfig
from coordinator.vault import Vault
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.money import NANO_PER_CREDIT
from protocol.net.clock import SystemClock
from protocol.programs.keyfile import load_or_create_key_file
from sim.network import NetworkError, run_command

_POLL_EVERY_S = 0.1

_COUNTS = (
    "SELECT count(*) FROM accounts",
    "SELECT count(*) FROM transfers",
    "SELECT count(*) FROM open_holds",
    "SELECT count(*) FROM failed_ids",
    "SELECT count(*) FROM jobs",
    "SELECT count(*) FROM leases",
    "SELECT count(*) FROM receipts",
)


class SiegeBooks:
    """Beside a running coordinator, as its operator's commands are."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._config = CoordinatorConfig.resolve(flags={"data_dir": data_dir})
        self._accounts = 0

    # Accounts.

    async def open_custodial(self, *, budget_nano: int | None = None) -> tuple[str, PeerId, str]:
        """An account with a credit, and an API key for it. Returns the key, its owner, its id."""

        def create() -> tuple[str, PeerId, str]:
            with write_books(self._config) as conn:
                account = self._open(conn, None, NANO_PER_CREDIT)
                secret, key = create_api_key(
                    conn,
                    account.id,
                    "siege",
                    now_ms=SystemClock().now_ms(),
                    entropy=os.urandom,
                    budget_nano=budget_nano,
                )
                return secret, PeerId(account.id), key.id

        return await trio.to_thread.run_sync(create)

    async def open_own(self, amount_nano: int = NANO_PER_CREDIT) -> SigningKey:
        """An account whose owner signs with a key of its own."""
        key = SigningKey.generate(os.urandom)

        def create() -> None:
            with write_books(self._config) as conn:
                self._open(conn, key.peer_id, amount_nano)

        await trio.to_thread.run_sync(create)
        return key

    async def revoke(self, key_id: str) -> None:
        """As `coordinator keys revoke` does."""

        def revoke() -> None:
            with write_books(self._config) as conn:
                revoke_api_key(conn, key_id, now_ms=SystemClock().now_ms())

        await trio.to_thread.run_sync(revoke)

    def _open(self, conn: Connection, peer_id: PeerId | None, amount_nano: int) -> Account:
        self._accounts += 1
        clock, vault = SystemClock(), Vault(load_or_create_key_file(self._config.key_path))
        name = f"siege-{self._accounts}"
        account = create_account(
            conn, name, peer_id=peer_id, vault=vault, clock=clock, entropy=os.urandom
        )
        return credit_account(
            conn, account.id, amount_nano, transfer_id=None, clock=clock, entropy=os.urandom
        )

    # What is durable, whatever the coordinator says.

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        uri = f"file:{self._data_dir / 'books.sqlite'}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as books:
            return books.execute(query, values).fetchall()

    def owned_nano(self, peer: PeerId) -> int:
        """What an account has, held or not; 0 if there is no such account."""
        query = "SELECT credits_posted - debits_posted FROM accounts WHERE id = ?"
        found = self.rows(query, account_of(peer))
        return int(found[0][0]) if found else 0

    def lease_count(self, client: PeerId) -> int:
        """Of all leases that it ever got."""
        return int(self.rows("SELECT count(*) FROM leases WHERE client = ?", client)[0][0])

    def row_count(self) -> int:
        """Rows of all tables that a request can write to."""
        return sum(int(self.rows(query)[0][0]) for query in _COUNTS)

    async def is_audit_green(self) -> bool:
        """What `coordinator ledger audit` says."""
        command = ("coordinator", "ledger", "audit", f"--data-dir={self._data_dir}")
        try:
            await trio.to_thread.run_sync(run_command, *command)
        except NetworkError:
            return False
        return True

    async def wait_no_holds(self, peer: PeerId, *, within_s: float = 30.0) -> bool:
        """Whether all leases of an account were settled, released or expired in time."""
        query = "SELECT count(*) FROM leases WHERE client = ? AND state = 'open'"
        with trio.move_on_after(within_s):
            while self.rows(query, peer)[0][0]:  # noqa: ASYNC110 - another process's rows
                await trio.sleep(_POLL_EVERY_S)
            return True
        return False
