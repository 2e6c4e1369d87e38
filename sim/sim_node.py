"""A node of a simulated world: the real composition of `capanode.node`, with workers without
processes, on a machine that can be switched off. Its disk is what outlives the process: the outbox
and the measured speeds."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import trio

from capanode.benchmark import SpeedCache
from capanode.control import ControlLine
from capanode.errors import OutboxError
from capanode.node import Node, NodeRules
from capanode.outbox_store import OutboxStore
from capanode.served import ServedModel
from capanode.settings import CoordinatorAddress
from capanode.worker.jobs import WorkerState
from capanode.workers import ModelPlan
from protocol.envelope import open_envelope
from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId, sha256_digest
from protocol.keys import SigningKey
from protocol.manifest import ModelFile, ModelManifest, manifest_digest
from protocol.messages import Acceptance, IsolationTier, Receipt, Task
from protocol.net.memory import MemoryNetwork
from protocol.net.rpc import RpcClient
from protocol.offers import Hardware
from protocol.programs.runtime import Runtime
from protocol.services import Method, ReceiptAsk, SettleReply
from sim.auditor import Auditor
from sim.disk import CutPlan, CutPoint
from sim.host import Host, Process
from sim.machine_clock import MachineClock
from sim.options import SimMachine
from sim.sim_worker import CONTEXT_TOKENS, QUANTIZATION, Ailments, SimWorker
from sim.workload import MODELS

R = TypeVar("R")

_MEMORY_BYTES = 8 * 1024**3
_REGION = "virtual"


class SimNode:
    """A machine with a key and a disk; `host` switches it on and off."""

    def __init__(
        self,
        name: str,
        key: SigningKey,
        machine: SimMachine,
        network: MemoryNetwork,
        clock: MachineClock,
        *,
        rng: random.Random,
        tasks: Sequence[Task],
        coordinator: CoordinatorAddress,
        auditor: Auditor,
        ailments: Ailments,
    ) -> None:
        self.name = name
        self.key = key
        self.ailments = ailments
        self.host = Host(name, key, network, self._boot)
        self.store = OutboxStore(None)
        self.cuts = CutPlan()
        self.workers: list[SimWorker] = []
        self._machine = machine
        self._network = network
        self.clock = clock
        self._rng = rng
        self._plans = tuple(_plan(task, machine) for task in tasks)
        self._coordinator = coordinator
        self._auditor = auditor
        self._speeds = SpeedCache(None)
        self._node: Node | None = None

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """What it serves now."""
        if self._node is None or not self.host.is_up:
            return ()
        return tuple(self._node.models.values())

    @property
    def is_owed(self) -> bool:
        """A receipt on its disk waits for the coordinator's last word."""
        return any(each.coordinator == self._coordinator.peer for each in self.store.load())

    @property
    def live_jobs(self) -> int:
        """Jobs at its workers; below zero if it is off."""
        return sum(worker.live_jobs for worker in self.workers) if self.host.is_up else -1

    def worker(self, plan: ModelPlan, *, on_state: Callable[[WorkerState], None]) -> SimWorker:
        """As `capanode.workers.WorkerPool`."""
        worker = SimWorker(plan.manifest.task, self._machine, self.ailments, on_state=on_state)
        self.workers.append(worker)
        return worker

    async def _boot(self, process: Process) -> None:
        self.workers.clear()
        self.clock.jump_ms = 0
        self._node = self._make_node(process)
        await self._node.run()

    def _make_node(self, process: Process) -> Node:
        rules = NodeRules(
            coordinators=(self._coordinator,),
            isolation=IsolationTier.BWRAP,
            hardware=Hardware("cpu", self._machine.name, _MEMORY_BYTES, 1),
            software="capanode/sim",
            region=_REGION,
            queue_max=self._machine.queue_max,
        )
        return _WatchedNode(
            self._auditor,
            self.key,
            self._network.transport(self.key),
            self,
            self._plans,
            rules,
            store=self.store,
            speeds=self._speeds,
            runtime=Runtime(
                self.clock,
                self._rng.randbytes,
                random.Random(self._rng.getrandbits(64)),
                _Disk(process, self.cuts),
            ),
        )


class _Disk:
    """Where an outbox is written: in place, and not at all once its process is dead, whatever the
    tasks of that do while they are unwound."""

    def __init__(self, process: Process, cuts: CutPlan) -> None:
        self._process = process
        self._cuts = cuts

    async def run_read(self, call: Callable[[], R]) -> R:
        await trio.lowlevel.checkpoint()
        self._check_power()
        return call()

    async def run_write(self, call: Callable[[], R]) -> R:
        await trio.lowlevel.checkpoint()
        self._check_power()
        planned = self._cuts.count()
        if planned is not None and planned.point is CutPoint.BEFORE:
            planned.cut()
        self._check_power()
        result = call()
        if planned is not None:
            planned.cut()
        self._check_power()
        return result

    def _check_power(self) -> None:
        if self._process.is_dead:
            raise OutboxError("the process is gone")


class _WatchedNode(Node):
    """A node whose hand-ins the auditor sees, with what was answered."""

    def __init__(self, auditor: Auditor, *args: Any, **kwargs: Any) -> None:
        self._auditor = auditor
        super().__init__(*args, **kwargs)

    def _make_lines(self, rpc: RpcClient) -> tuple[ControlLine, ...]:
        return super()._make_lines(_WatchedRpc(rpc, self._auditor))


class _WatchedRpc(RpcClient):
    def __init__(self, rpc: RpcClient, auditor: Auditor) -> None:
        super().__init__(rpc.pool)
        self._auditor = auditor

    async def call(
        self,
        peer: PeerId,
        method: str,
        ask: Any,
        reply: type[R],
        *,
        timeout_s: float,
        addresses: Sequence[str] = (),
    ) -> R:
        answer = super().call(peer, method, ask, reply, timeout_s=timeout_s, addresses=addresses)
        if method != Method.RECEIPT:
            return await answer
        assert isinstance(ask, ReceiptAsk)
        receipt = open_envelope(ask.receipt, Receipt)
        self._auditor.receipted(receipt)
        if ask.acceptance:
            self._auditor.accepted(open_envelope(ask.acceptance, Acceptance))
        try:
            settled = await answer
        except RemoteProtocolError as error:
            self._auditor.refused(receipt, error.code)
            raise
        assert isinstance(settled, SettleReply)
        self._auditor.answered(receipt, settled.state, settled.amount_nano)
        return settled


def _plan(task: Task, machine: SimMachine) -> ModelPlan:
    name = MODELS[task]
    manifest = ModelManifest(
        name=name,
        task=task,
        architecture="Simulated",
        files=(ModelFile("config.json", sha256_digest(name.encode()), 1),),
        dtype=QUANTIZATION,
        quantization=QUANTIZATION,
        context_tokens=CONTEXT_TOKENS,
        licence="apache-2.0",
        source="file:sim",
    )
    return ModelPlan(
        name,
        manifest_digest(manifest),
        manifest,
        Path(name),
        slots=machine.slots,
        threads=1,
        price=machine.price,
    )
