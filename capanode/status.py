"""What a running node says about itself, and the local socket at which it says so.

A program that connects gets one JSON object and the end of the stream. Only the operator's own user
can connect; nothing secret is said, and nothing can be commanded.
"""

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from capanode.measurements import Speed
from capanode.node import Node
from capanode.outbox_store import Earning
from capanode.served import ServedModel
from capanode.status_socket import ANSWER_WITHIN_S, CONNECTIONS_MAX, listen_at
from capanode.worker.jobs import WorkerState
from protocol.ids import Digest
from protocol.offers import Hardware
from protocol.pricing import PriceSheet

# Long enough to be steady, short enough to show a job that began a moment ago.
_RATE_WINDOW_S = 10.0
_SAMPLE_EVERY_S = 1.0


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


@dataclass(frozen=True, slots=True)
class CoordinatorStatus:
    peer_id: str
    state: str
    error: str
    receipts_handed_in: int


@dataclass(frozen=True, slots=True)
class FailureStatus:
    at_ms: int
    job_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """All that `capanode status` shows. `uploading` are jobs whose payloads still arrive;
    `warnings` want something from the operator."""

    peer_id: str
    software: str
    started_at_ms: int
    draining: bool
    uploading: int
    addresses: tuple[str, ...]
    region: str
    isolation: str
    hardware: Hardware
    models: tuple[ModelStatus, ...]
    coordinators: tuple[CoordinatorStatus, ...]
    earnings: tuple[Earning, ...]
    failures: tuple[FailureStatus, ...]
    warnings: tuple[str, ...]


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
        )
        for model in node.models.values()
    )
    lines = (line.status for line in node.lines)
    return NodeStatus(
        peer_id=node.key.peer_id,
        software=node.rules.software,
        started_at_ms=node.started_at_ms,
        draining=node.admission.is_draining,
        uploading=node.admission.uploading,
        addresses=node.transport.addresses,
        region=node.rules.region,
        isolation=node.rules.isolation.value,
        hardware=node.rules.hardware,
        models=models,
        coordinators=tuple(
            CoordinatorStatus(
                line.coordinator, line.state.value, line.error, line.receipts_handed_in
            )
            for line in lines
        ),
        earnings=tuple(await node.outbox.earnings()),
        failures=tuple(
            FailureStatus(failure.at_ms, failure.job_id, failure.code.value, failure.message)
            for failure in node.jobs.failures
        ),
        warnings=tuple(_warnings(node)),
    )


class StatusServer:
    """Answers at the socket, and keeps the samples that rates are made of."""

    def __init__(self, node: Node, path: Path) -> None:
        self.rates = Rates(node)
        self._node = node
        self._path = path

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
        status = await read_status(self._node, self.rates)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(json.dumps(asdict(status)).encode())

    async def _sample_forever(self) -> None:
        while True:
            await trio.sleep(_SAMPLE_EVERY_S)
            self.rates.sample()


def _warnings(node: Node) -> Iterator[str]:
    if node.outbox.failure:
        yield f"no jobs are taken: {node.outbox.failure}"
    if node.announcer.twin_seen:
        yield "another node runs with this node's key: stop it, or give it a key of its own"
    if not node.lines:
        yield "no coordinator is listed, so no job can come: set `coordinators`"
    for model in node.models.values():
        why = _last_ending(model) or "see the log"
        if not model.is_offered:
            yield f"{model.name} is not offered: its worker ended too often, the last time: {why}"
        elif model.worker.state is WorkerState.RESTARTING:
            yield f"{model.name} is being started again: {why}"


def _last_ending(model: ServedModel) -> str:
    ending = model.worker.last_ending
    return "" if ending is None else ending.message
