"""The market that is attacked: one real coordinator on loopback, its books, and its accounts.

Nodes and clients are started by each attack and end with it; the coordinator outlives them.
"""

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import psutil
import trio

from coordinator.accounts import create_account, credit_account
from coordinator.cli.options import write_books
from coordinator.db.api_keys import create_api_key, revoke_api_key
from coordinator.endpoint import Endpoint
from coordinator.ledger.accounts import account_of
from coordinator.settings import CoordinatorConfig
from coordinator.vault import Vault
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.money import NANO_PER_CREDIT
from protocol.net.clock import SystemClock
from protocol.programs.keyfile import load_or_create_key_file
from sim.network import LocalNetwork, NetworkError, open_network, run_command
from sim.processes import ChildProcess
from sim.siege.gateway_user import GatewayUser

MIB = 2**20
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


class Ground:
    """What attacks act on."""

    def __init__(self, network: LocalNetwork, model_store: Path) -> None:
        self.network = network
        self.model_store = model_store
        self._accounts = 0

    @property
    def endpoint(self) -> Endpoint:
        return self.network.endpoint

    @property
    def folder(self) -> Path:
        return self.network.folder

    @property
    def coordinator(self) -> ChildProcess:
        return self.network.coordinator

    @property
    def coordinator_id(self) -> PeerId:
        return PeerId(self.endpoint.peer_id)

    async def restart_coordinator(self) -> None:
        """Kill it as a power cut would, and start it again on the same books and ports."""
        await self.coordinator.kill()
        await self.network.start_coordinator()

    # Accounts.

    async def open_gateway_account(
        self, credit_nano: int = NANO_PER_CREDIT, *, budget_nano: int | None = None
    ) -> GatewayUser:
        """An account with money, and an API key for it."""

        def create() -> tuple[PeerId, str, str]:
            with write_books(self._config()) as conn:
                clock = SystemClock()
                vault = Vault(load_or_create_key_file(self._config().key_path))
                account = create_account(
                    conn,
                    self._next_name(),
                    peer_id=None,
                    vault=vault,
                    clock=clock,
                    entropy=os.urandom,
                )
                credit_account(
                    conn,
                    account.id,
                    credit_nano,
                    transfer_id=None,
                    clock=clock,
                    entropy=os.urandom,
                )
                secret, key = create_api_key(
                    conn,
                    account.id,
                    "siege",
                    now_ms=clock.now_ms(),
                    entropy=os.urandom,
                    budget_nano=budget_nano,
                )
                return PeerId(account.id), secret, key.id

        peer_id, secret, key_id = await trio.to_thread.run_sync(create)
        return GatewayUser(self.endpoint.http, secret, peer_id, key_id)

    async def open_key_account(self, amount_nano: int = NANO_PER_CREDIT) -> SigningKey:
        """An account whose owner signs with a key of its own."""
        key = SigningKey.generate(os.urandom)

        def create() -> None:
            with write_books(self._config()) as conn:
                clock = SystemClock()
                account = create_account(
                    conn,
                    self._next_name(),
                    peer_id=key.peer_id,
                    vault=Vault(load_or_create_key_file(self._config().key_path)),
                    clock=clock,
                    entropy=os.urandom,
                )
                credit_account(
                    conn,
                    account.id,
                    amount_nano,
                    transfer_id=None,
                    clock=clock,
                    entropy=os.urandom,
                )

        await trio.to_thread.run_sync(create)
        return key

    # The books, as its operator sees them.

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the books directly: what is durable, whatever the coordinator says."""
        uri = f"file:{self.network.coordinator_dir / 'books.sqlite'}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as books:
            return books.execute(query, values).fetchall()

    def owned_nano(self, peer: PeerId) -> int:
        """What an account has, held or not; 0 if there is no such account."""
        query = "SELECT credits_posted - debits_posted FROM accounts WHERE id = ?"
        found = self.rows(query, account_of(peer))
        return int(found[0][0]) if found else 0

    def row_count(self) -> int:
        """Rows of all tables that a request can write to."""
        return sum(int(self.rows(query)[0][0]) for query in _COUNTS)

    async def is_audit_green(self) -> bool:
        """What `coordinator ledger audit` says."""
        data_dir = f"--data-dir={self.network.coordinator_dir}"
        try:
            await trio.to_thread.run_sync(run_command, "coordinator", "ledger", "audit", data_dir)
        except NetworkError:
            return False
        return True

    async def revoke(self, user: GatewayUser) -> None:
        """As `coordinator keys revoke` does."""

        def revoke() -> None:
            with write_books(self._config()) as conn:
                revoke_api_key(conn, user.key_id, now_ms=SystemClock().now_ms())

        await trio.to_thread.run_sync(revoke)

    async def wait_no_holds(self, peer: PeerId, *, within_s: float = 30.0) -> bool:
        """Whether all leases of an account were settled, released or expired in time."""
        query = "SELECT count(*) FROM leases WHERE client = ? AND state = 'open'"
        with trio.move_on_after(within_s):
            while self.rows(query, peer)[0][0]:  # noqa: ASYNC110 - another process's rows
                await trio.sleep(_POLL_EVERY_S)
            return True
        return False

    # The coordinator's process, as its operator sees it.

    def memory_mib(self) -> float:
        return float(psutil.Process(self.coordinator.pid).memory_info().rss) / MIB

    def cpu_s(self) -> float:
        times = psutil.Process(self.coordinator.pid).cpu_times()
        return float(times.user + times.system)

    def _config(self) -> CoordinatorConfig:
        return CoordinatorConfig.resolve(flags={"data_dir": self.network.coordinator_dir})

    def _next_name(self) -> str:
        self._accounts += 1
        return f"siege-{self._accounts}"


@asynccontextmanager
async def open_ground(folder: Path, model_store: Path) -> AsyncIterator[Ground]:
    """A running coordinator without nodes; it ends with the block."""
    async with open_network(folder, model_store) as network:
        await network.start_coordinator()
        yield Ground(network, model_store)
        # No goodbye: attackers have left it streams that it would wait for.
        await network.coordinator.kill()
