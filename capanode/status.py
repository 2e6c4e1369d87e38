"""What a running node says about itself, and the answers at its local socket.

How the socket is asked is in `capanode.status_socket`. Nothing secret is said.
"""

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from capanode.device_status import DeviceStatus, devices_of
from capanode.errors import OwnerCommandError
from capanode.measurements import Speed
from capanode.node import Node
from capanode.outbox import PaidTotals
from capanode.outbox_store import Earning
from capanode.owner_commands import OwnerCommands
from capanode.reach import ReachState, ReachStatus
from capanode.reach.status import NOT_TRIED
from capanode.served import ServedModel
from capanode.status_socket import ANSWER_WITHIN_S, CONNECTIONS_MAX, listen_at
from capanode.swapping import TRY_AGAIN_AFTER_S
from capanode.worker.jobs import WorkerState
from protocol.errors import CapaError
from protocol.ids import Digest
from protocol.offers import Hardware
from protocol.pricing import PriceSheet
from protocol.standing import StandingReply

# Long enough to be steady, short enough to show a job that began a moment ago.
_RATE_WINDOW_S = 10.0
_SAMPLE_EVERY_S = 1.0
# Who connects says at once what it wants.
_ASK_WITHIN_S = 1.0
_ASK_BYTES_MAX = 4 * 1024


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """`tokens_per_s` is what was streamed over the last seconds; `last_ending` why the worker's
    process last ended, empty if it never did."""

    name: str
    digest: Digest
    state: str
    last_ending: str
    running: int
    queued: int
    slots: int
    jobs_done: int
    output_tokens_done: int
    tokens_per_s: float
    speed: Speed
    price: PriceSheet
    # How long a job would wait for it to be loaded; 0 while it is in memory.
    load_ms: int = 0


@dataclass(frozen=True, slots=True)
class CoordinatorStatus:
    peer_id: str
    state: str
    error: str
    receipts_handed_in: int
    # How it sees this node, and why jobs went elsewhere; None if it was not asked, or cannot say.
    standing: StandingReply | None = None


@dataclass(frozen=True, slots=True)
class FailureStatus:
    at_ms: int
    job_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """All that `capanode status` shows. `paused` is why no jobs are taken for now, empty if they
    are; `tasks` are those of the node's own program; `uploading` are jobs whose payloads still
    arrive; `paid` is after the coordinators' fees; `warnings` want something from the operator."""

    peer_id: str
    software: str
    started_at_ms: int
    draining: bool
    paused: str
    tasks: int
    uploading: int
    listen: tuple[str, ...]
    addresses: tuple[str, ...]
    region: str
    isolation: str
    hardware: Hardware
    devices: tuple[DeviceStatus, ...]
    models: tuple[ModelStatus, ...]
    coordinators: tuple[CoordinatorStatus, ...]
    earnings: tuple[Earning, ...]
    paid: PaidTotals
    failures: tuple[FailureStatus, ...]
    warnings: tuple[str, ...]
    reach: ReachStatus = NOT_TRIED


class Rates:
    """Tokens per second by model, from samples of their counters."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._samples: deque[tuple[float, dict[Digest, int]]] = deque()

    def sample(self) -> None:
        now = trio.current_time()
        counters = {m.digest: m.output_tokens_done for m in self._node.models.values()}
        self._samples.append((now, counters))
        while self._samples[0][0] < now - _RATE_WINDOW_S:
            self._samples.popleft()

    def tokens_per_s(self, digest: Digest) -> float:
        if len(self._samples) < 2:
            return 0.0
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return round((last.get(digest, 0) - first.get(digest, 0)) / (ended - began), 1)


async def read_status(node: Node, rates: Rates) -> NodeStatus:
    """Look at a node that runs in this process."""
    models = tuple(
        ModelStatus(
            name=model.name,
            digest=model.digest,
            state=model.worker.state.value,
            last_ending=_last_ending(model),
            running=model.seats.running,
            queued=model.seats.queued,
            slots=model.seats.slots,
            jobs_done=model.jobs_done,
            output_tokens_done=model.output_tokens_done,
            tokens_per_s=rates.tokens_per_s(model.digest),
            speed=model.speed,
            price=model.price,
            load_ms=model.load_ms,
        )
        for model in node.models.values()
    )
    for line in node.lines:
        line.want_standing()
    lines = (line.status for line in node.lines)
    return NodeStatus(
        peer_id=node.key.peer_id,
        software=node.rules.software,
        started_at_ms=node.started_at_ms,
        draining=node.is_stopping,
        paused=node.pauses.words,
        tasks=trio.lowlevel.current_statistics().tasks_living,
        uploading=node.admission.uploading,
        listen=node.rules.listen,
        addresses=node.transport.addresses,
        region=node.rules.region,
        isolation=node.rules.isolation.value,
        hardware=node.hardware,
        devices=devices_of(node.loaded_plans, node.hardware),
        models=models,
        coordinators=tuple(
            CoordinatorStatus(
                line.coordinator,
                line.state.value,
                line.error,
                line.receipts_handed_in,
                line.standing,
            )
            for line in lines
        ),
        earnings=tuple(await node.outbox.earnings()),
        paid=await node.outbox.paid(),
        failures=tuple(
            FailureStatus(failure.at_ms, failure.job_id, failure.code.value, failure.message)
            for failure in node.jobs.failures
        ),
        warnings=tuple(_warnings(node)),
        reach=node.reach.status(),
    )


class StatusServer:
    """Answers at the socket, and keeps the samples that rates are made of."""

    def __init__(self, node: Node, path: Path, commands: OwnerCommands) -> None:
        self.rates = Rates(node)
        self._node = node
        self._path = path
        self._commands = commands

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Raises SocketError if the socket cannot be made."""
        self.rates.sample()
        limiter = trio.CapacityLimiter(CONNECTIONS_MAX)

        async def answer(stream: trio.SocketStream) -> None:
            async with stream, limiter:
                with trio.move_on_after(ANSWER_WITHIN_S):
                    await self._answer(stream)

        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listen_at(self._path)))
        try:
            async with listener, trio.open_nursery() as nursery:
                nursery.start_soon(self._sample_forever)
                task_status.started()
                await trio.serve_listeners(answer, [listener])
        finally:
            os.unlink(self._path)

    async def _answer(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            asked = await _read_line(stream)
            try:
                answer = await self._do(asked)
            except CapaError as error:
                answer = {"error": str(error)}
            await stream.send_all(json.dumps(answer).encode())

    async def _do(self, asked: bytes) -> dict[str, Any]:
        """Raises CapaError with a reason for the owner."""
        command = _parse_command(asked)
        if command["do"] == "status":
            return asdict(await read_status(self._node, self.rates))
        return self._commands.run(command["do"], command)

    async def _sample_forever(self) -> None:
        while True:
            await trio.sleep(_SAMPLE_EVERY_S)
            self.rates.sample()


async def _read_line(stream: trio.SocketStream) -> bytes:
    """What was asked, or what came of it until the program stopped talking."""
    line = b""
    with trio.move_on_after(_ASK_WITHIN_S):
        while not line.endswith(b"\n") and len(line) < _ASK_BYTES_MAX:
            piece = await stream.receive_some(_ASK_BYTES_MAX)
            if not piece:
                break
            line += piece
    return line


def _parse_command(asked: bytes) -> dict[str, Any]:
    """A program that says nothing wants the status. Raises OwnerCommandError."""
    try:
        command = json.loads(asked or b'{"do": "status"}')
    except ValueError:
        command = None
    if not isinstance(command, dict) or not isinstance(command.get("do"), str):
        raise OwnerCommandError('ask with one line such as {"do": "status"}')
    return command


def _warnings(node: Node) -> Iterator[str]:
    if node.outbox.failure:
        yield f"no jobs are taken: {node.outbox.failure}"
    if node.notice:
        yield node.notice
    if node.announcer.twin_seen:
        yield "another node runs with this node's key: stop it, or give it a key of its own"
    if node.reach.state is ReachState.UNREACHABLE:
        yield "; ".join(("nothing can dial this node", *node.reach.status().advice))
    if not node.lines:
        yield "no coordinator is listed, so no job can come: set `coordinators`"
    for model in node.models.values():
        if model.notice:
            yield f"{model.name}: {model.notice}"
        why = _last_ending(model) or "see the log"
        if model.worker.state is WorkerState.DEVICE_LOST:
            yield f"{model.name} is not offered until its GPU works again: {why}"
        elif model.worker.state is WorkerState.LOAD_FAILED:
            minutes = round(TRY_AGAIN_AFTER_S / 60)
            yield f"{model.name} is not offered for {minutes} minutes, it did not load: {why}"
        elif not model.is_offered:
            yield f"{model.name} is not offered: its worker ended too often, the last time: {why}"
        elif model.worker.state is WorkerState.RESTARTING:
            yield f"{model.name} is being started again: {why}"


def _last_ending(model: ServedModel) -> str:
    ending = model.worker.last_ending
    return "" if ending is None else ending.message
