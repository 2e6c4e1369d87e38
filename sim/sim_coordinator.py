"""The coordinator of a simulated world: the real one, with its books in memory, on a machine that
can be switched off. The books are its disk: they outlive the process."""

from collections.abc import Callable

import trio

from coordinator.app import Coordinator, MarketRules
from coordinator.db.engine import InlineRunner, open_database
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.net.memory import MemoryNetwork
from protocol.programs.runtime import Runtime
from sim.host import Host, Process

COORDINATOR_NAME = "coordinator"
# Other parties get ports from 1 on.
COORDINATOR_PORT = 4100


def address_of(coordinator: PeerId) -> str:
    """Where everybody finds it."""
    return f"/memory/{COORDINATOR_PORT}/p2p/{coordinator}"


class SimCoordinator:
    """`current` is the running program; None while it is down or not ready."""

    def __init__(
        self,
        key: SigningKey,
        network: MemoryNetwork,
        rules: MarketRules,
        make_runtime: Callable[[], Runtime],
    ) -> None:
        self.key = key
        self.host = Host(COORDINATOR_NAME, key, network, self._boot)
        self.database = open_database("sqlite://", InlineRunner())
        self.current: Coordinator | None = None
        self._network = network
        self._rules = rules
        self._make_runtime = make_runtime

    async def _boot(self, process: Process) -> None:
        program = Coordinator(
            self.key,
            self._network.transport(self.key, port=COORDINATOR_PORT),
            self.database,
            self._rules,
            self._make_runtime(),
        )
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(program.run)
                self.current = program
        finally:
            self.current = None
