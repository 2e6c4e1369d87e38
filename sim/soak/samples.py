"""What each program of a market holds at one moment: memory, descriptors, threads and tasks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx
import psutil
import trio

from capanode.errors import NodeError
from capanode.status_socket import ask_status
from sim.network import LocalNetwork, LocalNode

# Of the coordinator's metrics: tasks of trio and of asyncio.
_TASKS = "capacloud_tasks{"
_STATUS_SOCKET = "status.sock"


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one program. `tasks` is None of a worker, which has none."""

    at_s: float
    memory_bytes: int
    descriptors: int
    threads: int
    tasks: int | None


async def take_samples(
    network: LocalNetwork, client: httpx.AsyncClient, *, at_s: float
) -> Mapping[str, Sample]:
    """By the names of programs. One that is gone, or does not answer just now, is left out."""
    tasks = {"coordinator": await _coordinator_tasks(client)}
    for node in network.nodes:
        tasks[node.plan.name] = await trio.to_thread.run_sync(_node_tasks, node)
    return dict(_look(network, tasks, at_s))


def _look(
    network: LocalNetwork, tasks: Mapping[str, int | None], at_s: float
) -> Iterator[tuple[str, Sample]]:
    programs = {"coordinator": network.coordinator.pid}
    programs |= {node.plan.name: node.process.pid for node in network.nodes}
    for name, pid in programs.items():
        try:
            process = psutil.Process(pid)
            yield name, _sample(process, at_s, tasks[name])
            # Below a node are its sandbox's own processes, and the largest is the worker.
            below = [_sample(child, at_s, None) for child in process.children(recursive=True)]
        except psutil.Error:
            continue
        if below:
            yield f"{name} worker", max(below, key=lambda sample: sample.memory_bytes)


def _sample(process: psutil.Process, at_s: float, tasks: int | None) -> Sample:
    with process.oneshot():
        return Sample(
            at_s,
            process.memory_info().rss,
            process.num_fds(),
            process.num_threads(),
            tasks,
        )


async def _coordinator_tasks(client: httpx.AsyncClient) -> int | None:
    try:
        metrics = await client.get("/metrics")
    except httpx.HTTPError:
        return None
    return sum_tasks(metrics.text)


def sum_tasks(metrics: str) -> int | None:
    """None if the text tells of no tasks."""
    lines = [line for line in metrics.splitlines() if line.startswith(_TASKS)]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines)) if lines else None


def _node_tasks(node: LocalNode) -> int | None:
    try:
        return int(ask_status(node.data_dir / _STATUS_SOCKET)["tasks"])
    except NodeError:
        return None
