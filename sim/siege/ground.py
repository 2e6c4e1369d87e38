"""The market that is attacked: a real coordinator on loopback, and its books.

Nodes and clients are started by each attack and end with it; the coordinator outlives them. Where
an attack needs a coordinator with other settings, it starts another one.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import trio

from coordinator.endpoint import Endpoint, read_endpoint
from sim.network import (
    COORDINATOR_READY_WITHIN_S,
    LocalNetwork,
    NetworkError,
    open_network,
)
from sim.processes import ChildProcess
from sim.siege.books import SiegeBooks
from sim.siege.gateway_user import GatewayUser

MIB = 2**20
# The model store of the real node, below the siege's folder.
NODE_STORE = "node-models"
_POLL_EVERY_S = 0.1


class Ground:
    """What attacks act on."""

    def __init__(self, network: LocalNetwork, model_store: Path) -> None:
        """`model_store` has the demo's models; it is only read."""
        self.network = network
        self.model_store = model_store
        self.books = SiegeBooks(network.coordinator_dir)

    @property
    def endpoint(self) -> Endpoint:
        return self.network.endpoint

    @property
    def folder(self) -> Path:
        return self.network.folder

    async def open_gateway_account(self, *, budget_nano: int | None = None) -> GatewayUser:
        """A user of the gateway with a credit."""
        found = await self.books.open_custodial(budget_nano=budget_nano)
        return GatewayUser(self.endpoint.http, *found)

    async def restart_coordinator(self) -> None:
        """Kill it as a power cut would, and start it again on the same books and ports."""
        await self.network.coordinator.kill()
        await self.network.start_coordinator()

    # The coordinator's process, as its operator sees it.

    @property
    def coordinator_pid(self) -> int:
        return self.network.coordinator.pid

    def cpu_s(self) -> float:
        times = psutil.Process(self.coordinator_pid).cpu_times()
        return float(times.user + times.system)


def memory_mib(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / MIB


@asynccontextmanager
async def open_ground(folder: Path, model_store: Path) -> AsyncIterator[Ground]:
    """A running coordinator without nodes; it ends with the block."""
    async with open_network(folder, folder / NODE_STORE) as network:
        await network.start_coordinator()
        yield Ground(network, model_store)
        # No goodbye: attackers have left it streams that it would wait for.
        await network.coordinator.kill()


@asynccontextmanager
async def open_other_coordinator(
    folder: Path, *arguments: str, module: str = "coordinator"
) -> AsyncIterator[tuple[Endpoint, SiegeBooks]]:
    """A second coordinator below `folder`, with other settings or another main module."""
    data_dir = folder / "other"
    process = ChildProcess(
        "other coordinator",
        module,
        [
            "start",
            f"--data-dir={data_dir}",
            "--listen=/ip4/127.0.0.1/tcp/0",
            "--http=127.0.0.1:0",
            "--log-format=json",
            *arguments,
        ],
        log_path=folder / "other.log",
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        yield await _wait_endpoint(process, data_dir), SiegeBooks(data_dir)
        await process.kill()


async def _wait_endpoint(process: ChildProcess, data_dir: Path) -> Endpoint:
    with trio.move_on_after(COORDINATOR_READY_WITHIN_S):
        while True:
            endpoint = read_endpoint(data_dir / "endpoint.json")
            if endpoint is not None:
                return endpoint
            await trio.sleep(_POLL_EVERY_S)
    raise NetworkError(f"{process.name} did not start:\n{process.log_tail()}")


class PeakMemory:
    """The most memory that a process had while it was watched, and how much it had before."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before_mib = self.peak_mib = memory_mib(pid)

    @property
    def grown_mib(self) -> float:
        return self.peak_mib - self.before_mib

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            self.peak_mib = max(self.peak_mib, memory_mib(self._pid))
            await trio.sleep(_POLL_EVERY_S)


@asynccontextmanager
async def watched_memory(pid: int) -> AsyncIterator[PeakMemory]:
    peak = PeakMemory(pid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peak.watch)
        yield peak
        nursery.cancel_scope.cancel()
