"""One run: a market of real processes, twenty clients, and the blows of a plan.

The run is the service manager: it starts again what ends, and it holds the socket of the HTTP API
open, so that clients of a coordinator that restarts wait in its queue (`docs/operating.md`).
"""

import os
import signal
import socket
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from capanode.models.store import ModelStore
from sim.chaos.books import judge_books, waiting_receipts
from sim.chaos.load import Load
from sim.chaos.market import open_recital_market
from sim.chaos.model import add_recital
from sim.chaos.plan import Blow, PlannedBlow, Victim, draw_plan
from sim.chaos.report import ChaosResult, Restart
from sim.network import LocalNetwork, LocalNode, open_network
from sim.processes import ChildProcess, ProcessFailed

NODES = 4
# For what is in flight when the load ends: answers, nodes that start, receipts to hand in.
QUIET_WITHIN_S = 120.0
_POLL_S = 0.25
_BACKLOG = 1_024
_BUG = "Traceback"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """`folder` takes everything that the run makes; `lasts_s` is how long clients begin to ask."""

    folder: Path
    seed: int
    lasts_s: float
    nodes: int = NODES


async def run_chaos(options: ChaosOptions, say: Say) -> ChaosResult:
    """Start the market, hit it while it is asked, let it come to rest, and judge its books."""
    add_recital(ModelStore(options.folder / "models"))
    mishaps: list[str] = []

    def lost(failed: ProcessFailed) -> None:
        mishaps.append(str(failed))

    store = options.folder / "models"
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener:
        async with open_network(options.folder, store, on_node_lost=lost) as network:
            load = await open_recital_market(
                network, nodes=options.nodes, seed=options.seed, listener=listener
            )
            run = _Run(network, load, say, listener)
            blows = draw_plan(options.seed, lasts_s=options.lasts_s)
            say(f"{len(blows)} blows in {options.lasts_s:.0f} s")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load.run)
                await run.strike(blows, lasts_s=options.lasts_s)
                load.stop()
            say(f"{len(load.questions)} questions; waiting for receipts")
            await _wait_handed_in(network)
    mishaps += _logged_bugs(options.folder / "logs")
    answered = [question.job_id for question in load.questions if question.job_id]
    outboxes = {node.peer_id: _outbox(node) for node in network.nodes}
    books = judge_books(network.coordinator_dir / "books.sqlite", outboxes, answered)
    return ChaosResult(options.seed, blows, run.restarts, load.questions, books, mishaps)


@dataclass(slots=True)
class _Run:
    """Hits the processes of a network, and starts again what it killed."""

    network: LocalNetwork
    load: Load
    say: Say
    listener: socket.socket
    restarts: list[Restart] = field(default_factory=list)
    # One blow at a time for each process; a blow that finds it busy waits.
    _locks: dict[str, trio.Lock] = field(default_factory=dict)

    async def strike(self, blows: list[PlannedBlow], *, lasts_s: float) -> None:
        """Returns when the time is over and everything runs again."""
        began_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for planned in blows:
                await trio.sleep_until(began_at + planned.at_s)
                nursery.start_soon(self._strike, planned)
            await trio.sleep_until(began_at + lasts_s)

    async def _strike(self, planned: PlannedBlow) -> None:
        node = self.network.nodes[planned.victim % len(self.network.nodes)]
        is_node = planned.target is Victim.NODE
        name = node.plan.name if is_node else planned.target.value
        async with self._locks.setdefault(name, trio.Lock()):
            self.say(f"  {planned.at_s:6.1f} s  {planned.blow.value} {name}")
            if planned.blow is Blow.FREEZE:
                process = node.process if is_node else self.network.coordinator
                await _freeze(process, planned.lasts_s)
            elif is_node:
                await node.process.kill()
                await self.network.restart_node(node)
            else:
                await self._restart_coordinator()

    async def _restart_coordinator(self) -> None:
        killed_at = trio.current_time()
        await self.network.coordinator.kill()
        self.restarts.append(Restart(killed_at, trio.current_time()))
        await self.network.start_coordinator(listener=self.listener)


async def _freeze(process: ChildProcess, lasts_s: float) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        await trio.sleep(lasts_s)
    finally:
        if process.is_running:
            os.kill(process.pid, signal.SIGCONT)


async def _wait_handed_in(network: LocalNetwork) -> None:
    """Until no node has a receipt that its coordinator does not know, or the time is over: what is
    missing then is found in the books."""
    for _ in range(int(QUIET_WITHIN_S / _POLL_S)):
        if not any([await trio.to_thread.run_sync(_has_waiting, node) for node in network.nodes]):
            return
        await trio.sleep(_POLL_S)


def _has_waiting(node: LocalNode) -> bool:
    try:
        return waiting_receipts(_outbox(node)) > 0
    except sqlite3.OperationalError:
        return True  # The node writes, or has not made its outbox yet.


def _outbox(node: LocalNode) -> Path:
    return node.data_dir / "outbox.sqlite"


def _logged_bugs(logs: Path) -> list[str]:
    return [
        f"{path.name} has a stack trace"
        for path in sorted(logs.glob("*.log"))
        if _BUG in path.read_text(errors="replace")
    ]
