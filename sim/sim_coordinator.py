"""The coordinator of a simulated world: the real one, on a machine that can be switched off. Its
disk outlives the process."""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import trio

from coordinator.app import Coordinator, MarketRules
from coordinator.bounds import DEFAULT_BOUNDS, MarketBounds
from coordinator.buyer.leaser import Leaser
from coordinator.db.engine import Connection
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.net.memory import MemoryNetwork
from protocol.programs.runtime import Runtime
from sim.auditor import Auditor
from sim.buyer import WatchedLeaser
from sim.disk import SimDisk
from sim.host import Host, Process
from sim.machine_clock import MachineClock
from sim.sim_gateway import SimGateway

COORDINATOR_NAME = "coordinator"
# Other parties get ports from 1 on.
COORDINATOR_PORT = 4100


def address_of(coordinator: PeerId) -> str:
    """Where other parties find it."""
    return f"/memory/{COORDINATOR_PORT}/p2p/{coordinator}"


class SimCoordinator:
    """A machine with the key and the books of a market; `host` switches it on."""

    def __init__(
        self,
        key: SigningKey,
        network: MemoryNetwork,
        rules: MarketRules,
        make_runtime: Callable[[], Runtime],
        *,
        rng: random.Random,
        auditor: Auditor,
        clock: MachineClock | None = None,
        bounds: MarketBounds = DEFAULT_BOUNDS,
    ) -> None:
        self.key = key
        # Of its machine; None if nothing shall happen to it.
        self.clock = clock
        self.host = Host(COORDINATOR_NAME, key, network, self._boot)
        self.disk = SimDisk(rng)
        # Virtual time of the last start.
        self.started_at = 0.0
        self._program: Coordinator | None = None
        self._gateway: SimGateway | None = None
        self._auditor = auditor
        self._network = network
        self._rules = rules
        self._bounds = bounds
        self._make_runtime = make_runtime

    @property
    def current(self) -> Coordinator | None:
        """The running program; None while it is down or not ready."""
        return self._program if self.host.is_up else None

    @property
    def gateway(self) -> SimGateway | None:
        """The running program's; None while it is down or not ready."""
        return self._gateway if self.host.is_up else None

    def books(self) -> AbstractContextManager[Connection]:
        """A transaction of the operator's, whether the program runs or not."""
        return self.disk.books()

    @property
    def state(self) -> str:
        """What its program does."""
        if not self.host.is_up:
            return "off"
        return "starting" if self._program is None else "serving"

    def kill(self) -> None:
        """Cut its power. Its network and its disk lose what was not sent or synced."""
        if self.host.is_up:
            self.host.kill()
            self.disk.cut_power()

    async def _boot(self, process: Process) -> None:
        if self.clock is not None:
            self.clock.jump_ms = 0
        database = self.disk.open(process)
        try:
            self._auditor.coordinator_started()
            program = _WatchedCoordinator(
                self._auditor,
                self.key,
                self._network.transport(self.key, port=COORDINATOR_PORT),
                database,
                self._rules,
                self._make_runtime(),
                bounds=self._bounds,
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(program.run)
                self.started_at = trio.current_time()
                self._program = program
                self._gateway = SimGateway(program, process, nursery)
        finally:
            self._program = self._gateway = None
            database.close()


class _WatchedCoordinator(Coordinator):
    """A coordinator whose own client's leases and hand-ins the auditor sees."""

    def __init__(self, auditor: Auditor, *args: Any, **kwargs: Any) -> None:
        self._auditor = auditor
        super().__init__(*args, **kwargs)

    def _leaser(self) -> Leaser:
        return WatchedLeaser(super()._leaser(), self._auditor)
