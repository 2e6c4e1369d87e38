"""C1: attacks of a worker that was taken over on its node and its host."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

import sim
from capanode.sandbox.bwrap import bwrap_candidates
from capanode.sandbox.landlock import VERSION_MIN, landlock_version
from capanode.sandbox.limits import limits_for_model
from capanode.sandbox.probe import probe_sandbox
from capanode.sandbox.spawn import Program, Sandbox
from capanode.sandbox.view import own_packages
from capanode.worker.jobs import WorkerState
from capanode.worker.spec import WorkerSpec
from capanode.worker.supervisor import RestartPolicy, WorkerStartError, WorkerSupervisor
from protocol.messages import IsolationTier
from sim.siege.attack import Attack, AttackResult
from sim.siege.ground import Ground

_PACKAGES = (*own_packages(), Path(sim.__file__ or "").parent)
_LIMITS = limits_for_model(0)
_ANSWER_WITHIN_S = 30.0
_SIGNAL = signal.SIGUSR1
_SIGNALS_TRAVEL_S = 0.3

_FLOODS = ("frames", "lines", "descriptors")
_STARTS_WITHIN_S = 30.0
_FLOOD_S = 3.0
_TICK_S = 0.01
_LATE_S = 0.1
_DESCRIPTORS_GROWN_MAX = 32
# A worker that misbehaves once is not started again.
_NO_RESTART = RestartPolicy(first_pause_s=0.05, longest_pause_s=0.1, short_runs_max=1)


@dataclass(slots=True)
class SiegedHost:
    """What the host's own sockets and the node received from a worker."""

    order: dict[str, str]
    sockets: list[socket.socket]
    signals: int = 0

    def received(self) -> int:
        """Messages and signals so far."""
        messages = 0
        for each in self.sockets:
            with suppress(BlockingIOError):
                while each.recv(100):
                    messages += 1
        return messages + self.signals


async def escapes(ground: Ground) -> AttackResult:
    """Datagrams to the host's sockets, and signals to the node, from each kind of sandbox."""
    boxes = await trio.to_thread.run_sync(_working_sandboxes)
    with _host(ground.folder) as host:
        await trio.to_thread.run_sync(_run_free, host.order)
        await trio.sleep(_SIGNALS_TRAVEL_S)
        control = host.received()
        host.signals = 0
        ways = 0
        for box in boxes:
            ways += len(_run_confined(box, host.order))
        await trio.sleep(_SIGNALS_TRAVEL_S)
        got_out = host.received()
    names = ", ".join(sorted({box.tier.value for box in boxes})) or "no sandbox works here"
    return AttackResult(
        held=bool(boxes) and control > 0 and ways > 0 and got_out == 0,
        honest_before=f"host and node receive {control} messages and signals without a sandbox",
        honest_under=f"{got_out} by {ways} attempts in sandboxes ({names})",
    )


async def flood_parent(ground: Ground) -> AttackResult:
    """A worker sends frames, log lines and descriptors without end."""
    boxes = await trio.to_thread.run_sync(_working_sandboxes)
    if not boxes:
        return AttackResult(False, "-", "no sandbox works here")
    before, _, _ = await _run_worker(boxes[0], "quiet")
    told, held = [], True
    for behaviour in _FLOODS:
        share, ending, grown = await _run_worker(boxes[0], behaviour)
        told.append(f"{behaviour}: {share:.0%}, {ending}")
        held = held and share >= before - 0.2 and grown <= _DESCRIPTORS_GROWN_MAX
    return AttackResult(
        held=held,
        honest_before=f"the node's loop is on time in {before:.0%} of its turns",
        honest_under="; ".join(told),
    )


async def _run_worker(box: Sandbox, behaviour: str) -> tuple[float, str, int]:
    """The share of the loop's turns that are on time, how the worker ended, and how many more
    descriptors there were at most."""
    on_time = turns = 0
    before = most = _descriptor_count()
    with _model_folder(behaviour) as folder:
        spec = WorkerSpec(
            engine="sim.siege.flood_engine:FloodEngine",
            model_dir=folder,
            limits=_LIMITS,
            slots=1,
            threads=1,
            packages=_PACKAGES,
        )
        worker = WorkerSupervisor(box, spec, rng=random.Random(1), policy=_NO_RESTART)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_run_to_its_end, worker)
            with trio.fail_after(_STARTS_WITHIN_S):
                while worker.state is WorkerState.STARTING:  # noqa: ASYNC110 - it tells by state
                    await trio.sleep(_TICK_S)
            until = trio.current_time() + _FLOOD_S
            while (due := trio.current_time() + _TICK_S) < until:
                await trio.sleep_until(due)
                turns += 1
                on_time += trio.current_time() - due < _LATE_S
                most = max(most, _descriptor_count())
            nursery.cancel_scope.cancel()
    ending = "goes on" if worker.last_ending is None else worker.last_ending.message
    return on_time / turns, ending, most - before


async def _run_to_its_end(worker: WorkerSupervisor) -> None:
    with suppress(WorkerStartError):
        await worker.run()


def _working_sandboxes() -> list[Sandbox]:
    candidates = [Sandbox(IsolationTier.BWRAP, path) for path in bwrap_candidates()[:1]]
    if landlock_version() >= VERSION_MIN:
        candidates.append(Sandbox(IsolationTier.LANDLOCK))
    return [box for box in candidates if all(fact.ok for fact in probe_sandbox(box))]


@contextmanager
def _host(folder: Path) -> Iterator[SiegedHost]:
    """Datagram sockets that any process may send to, and a handler for signals."""
    with tempfile.TemporaryDirectory(prefix="capa-siege-") as public:
        path = Path(public) / "socket"
        Path(public).chmod(0o755)
        abstract = f"capa-siege-{os.getpid()}"
        by_path = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        by_name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with by_path, by_name:
            by_path.bind(str(path))
            path.chmod(0o777)
            by_name.bind("\0" + abstract)
            for each in (by_path, by_name):
                each.setblocking(False)
            order = {
                "node_pid": str(os.getpid()),
                "signal": str(int(_SIGNAL)),
                "path": str(path),
                "abstract": abstract,
            }
            host = SiegedHost(order, [by_path, by_name])

            def note(number: int, frame: object) -> None:
                host.signals += 1

            earlier = signal.signal(_SIGNAL, note)
            try:
                yield host
            finally:
                signal.signal(_SIGNAL, earlier)


def _run_free(order: dict[str, str]) -> None:
    """The same program without a sandbox: what it reaches shows that the attempts are real."""
    free = json.dumps(order | {"is_free": "yes"})
    subprocess.run(
        [sys.executable, "-m", "sim.siege.escapes", free],
        check=True,
        capture_output=True,
        timeout=_ANSWER_WITHIN_S,
    )


def _run_confined(box: Sandbox, order: dict[str, str]) -> dict[str, str]:
    """What each attempt met. The process is killed before this returns."""
    with _model_folder("") as folder:
        program = Program(
            "sim.siege.escapes",
            limits=_LIMITS,
            arguments=(json.dumps(order),),
            model_dir=folder,
            packages=_PACKAGES,
        )
        process = box.spawn(program)
        try:
            process.channel.settimeout(_ANSWER_WITHIN_S)
            answer = b""
            while not answer.endswith(b"\n") and (part := process.channel.recv(65_536)):
                answer += part
        finally:
            process.kill()
            process.popen.wait()
            process.close()
    found: dict[str, str] = json.loads(answer or b"{}")
    return found


@contextmanager
def _model_folder(behaviour: str) -> Iterator[Path]:
    """A model that every user may read."""
    with tempfile.TemporaryDirectory(prefix="capa-siege-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "behaviour").write_text(behaviour)
        yield folder


def _descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


ATTACKS = (
    Attack("escapes", "C1", "reach the host from a sandbox", escapes),
    Attack("flood-parent", "C1", "talk to the node without end", flood_parent),
)
