"""A node of a simulated world: the real composition of `capanode.node`, with workers without
processes, on a machine that can be switched off.

Being killed is meant as SIGKILL: connections break, nothing more is written or logged, and what is
left is the disk.
"""

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
from capanode.runtime import Runtime
from capanode.served import ServedModel
from capanode.settings import CoordinatorAddress
from capanode.worker.jobs import WorkerState
from capanode.workers import ModelPlan
from protocol.clock import Clock
from protocol.envelope import open_envelope
from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId, sha256_digest
from protocol.keys import SigningKey
from protocol.manifest import ModelFile, ModelManifest, manifest_digest
from protocol.messages import Acceptance, Hardware, IsolationTier, Receipt, Task
from protocol.net.memory import MemoryNetwork
from protocol.net.rpc import RpcClient
from protocol.services import Method, ReceiptAsk, SettleReply
from sim.auditor import Auditor
from sim.options import Machine
from sim.sim_worker import CONTEXT_TOKENS, QUANTIZATION, Ailments, SimWorker
from sim.trace import Voice
from sim.workload import MODELS

R = TypeVar("R")

_MEMORY_BYTES = 8 * 1024**3
_REGION = "virtual"


class SimNode:
    """A machine with a key and a disk. `run` switches it on, and again whenever it is revived."""

    def __init__(
        self,
        name: str,
        key: SigningKey,
        machine: Machine,
        network: MemoryNetwork,
        clock: Clock,
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
        self.store = OutboxStore(None)
        self.workers: list[SimWorker] = []
        self._machine = machine
        self._network = network
        self._clock = clock
        self._rng = rng
        self._plans = tuple(_plan(task, machine) for task in tasks)
        self._coordinator = coordinator
        self._auditor = auditor
        self._speeds = SpeedCache(None)
        self._process: _Process | None = None
        self._power = trio.Event()
        self._power.set()

    @property
    def is_up(self) -> bool:
        return self._process is not None

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """What it serves now."""
        return tuple(self._process.node.models.values()) if self._process is not None else ()

    @property
    def live_jobs(self) -> int:
        """Jobs at its workers; below zero if it is off."""
        return sum(worker.live_jobs for worker in self.workers) if self.is_up else -1

    def kill(self) -> None:
        """Killing the dead changes nothing."""
        self._power = trio.Event()
        if self._process is not None:
            self._process.is_dead = self._process.voice.is_mute = True
            self._network.kill(self.key.peer_id)
            self._process.life.cancel()
            self._process = None

    def revive(self) -> None:
        self._power.set()

    async def run(self) -> None:
        """Until cancelled: start whenever there is power."""
        while True:
            await self._power.wait()
            process = self._process = _Process(self.name)
            self.workers.clear()
            with process.voice.speaking(), process.life:
                process.node = self._make_node(process)
                await process.node.run()

    def worker(self, plan: ModelPlan, *, on_state: Callable[[WorkerState], None]) -> SimWorker:
        """As `capanode.workers.WorkerPool`."""
        worker = SimWorker(plan.manifest.task, self._machine, self.ailments, on_state=on_state)
        self.workers.append(worker)
        return worker

    def _make_node(self, process: "_Process") -> Node:
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
                self._clock,
                self._rng.randbytes,
                random.Random(self._rng.getrandbits(64)),
                outbox_runner=process,
            ),
        )


class _Process:
    """One incarnation of a node's program. It is also where its outbox is written: in place, and
    not at all once it is dead, whatever its tasks do while they are unwound."""

    node: Node

    def __init__(self, name: str) -> None:
        self.voice = Voice(name)
        self.life = trio.CancelScope()
        self.is_dead = False

    async def run(self, call: Callable[[], R]) -> R:
        await trio.lowlevel.checkpoint()
        if self.is_dead:
            raise OutboxError("the process is gone")
        return call()


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


def _plan(task: Task, machine: Machine) -> ModelPlan:
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
