"""The coordinator of a simulated world: the real one, on a machine that can be switched off. Its
disk outlives the process."""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager

import trio

from coordinator.app import Coordinator, MarketRules
from coordinator.db.engine import Connection
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.net.memory import MemoryNetwork
from protocol.programs.runtime import Runtime
from sim.disk import SimDisk
from sim.host import Host, Process
from sim.machine_clock import MachineClock

COORDINATOR_NAME = "coordinator"
# Other parties get ports from 1 on.
COORDINATOR_PORT = 4100


def address_of(coordinator: PeerId) -> str:
    """Where everybody finds it."""
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
        clock: MachineClock | None = None,
    ) -> None:
        self.key = key
        # Of its machine; None if nothing shall happen to it.
        self.clock = clock
        self.host = Host(COORDINATOR_NAME, key, network, self._boot)
        self.disk = SimDisk(rng)
        self._program: Coordinator | None = None
        self._network = network
        self._rules = rules
        self._make_runtime = make_runtime

    @property
    def current(self) -> Coordinator | None:
        """The running program; None while it is down or not ready."""
        return self._program if self.host.is_up else None

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
            program = Coordinator(
                self.key,
                self._network.transport(self.key, port=COORDINATOR_PORT),
                database,
                self._rules,
                self._make_runtime(),
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(program.run)
                self._program = program
        finally:
            self._program = None
            database.close()
