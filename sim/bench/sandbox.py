"""What the sandbox costs: the time until a program is up, and the time that its work takes then.

The same program runs confined and bare, one at a time and in turns, so that the machine's other
load falls on both alike; the figures are medians, of each pair's ratio for the steady state.
"""

import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import sim
from capanode.sandbox.errors import SandboxError
from capanode.sandbox.limits import limits_for_model
from capanode.sandbox.probe import probe_isolation
from capanode.sandbox.spawn import Program, Sandbox
from capanode.sandbox.view import own_packages, plan_view
from sim.bench.sandbox_load import MESSAGE_BYTES, ROUND

_MODULE = "sim.bench.sandbox_load"
_REPOSITORY = Path(sim.__file__ or "").parent.parent
# Both at the same nice value: the sandbox's cost is measured, not how a worker stands back.
_LIMITS = limits_for_model(0, nice=0)
_START_PAIRS = 12
_TORCH_PAIRS = 4
_ROUNDS_PER_PAIR = 40
_THREADS = 1

# A loaded machine takes several times longer; then fewer pairs must do, but two of each at least.
_PAIRS_MIN = 2
_START_BUDGET_S, _STEADY_BUDGET_S = 8.0, 30.0

# From the start of a process to its first word, on a loaded machine.
_TIMEOUT_S = 30.0

# Wall and CPU seconds.
_Spent = tuple[float, float]
_Start = Callable[[int], AbstractContextManager[socket.socket]]


@dataclass(frozen=True, slots=True)
class _Started:
    start_ms: float
    channel: socket.socket


def run() -> dict[str, float]:
    """Measure for about half a minute. Raises SandboxError where nothing isolates."""
    sandbox = probe_isolation().sandbox
    if sandbox is None:
        raise SandboxError("no isolation works here, so it has no cost: `capanode doctor`")
    found = sandbox

    def confined(threads: int) -> AbstractContextManager[socket.socket]:
        return _confined(found, threads)

    return {**_measure_start(confined), **_measure_steady(confined)}


def _measure_start(confined: _Start) -> dict[str, float]:
    pairs = []
    for number in _pairs(_START_PAIRS, _START_BUDGET_S):
        with _both(confined, 0, confined_first=number % 2 == 1) as (bare, boxed):
            pairs.append((bare.start_ms, boxed.start_ms))
    return _start_figures("startup", pairs)


def _measure_steady(confined: _Start) -> dict[str, float]:
    """Several pairs of processes: where a process happens to lie in memory changes its speed by
    some percent for as long as it lives."""
    starts = []
    rounds = []
    for number in _pairs(_TORCH_PAIRS, _STEADY_BUDGET_S):
        with _both(confined, _THREADS, confined_first=number % 2 == 1) as (bare, boxed):
            starts.append((bare.start_ms, boxed.start_ms))
            rounds += [_round_of_both(bare, boxed, turn) for turn in range(_ROUNDS_PER_PAIR)]
    return {
        **_start_figures("torch_startup", starts),
        "steady_ratio": statistics.median(after[0] / before[0] for before, after in rounds),
        "steady_cpu_ratio": statistics.median(after[1] / before[1] for before, after in rounds),
        "steady_bare_round_ms": statistics.median(before[0] for before, _ in rounds) * 1_000,
        "steady_confined_round_ms": statistics.median(after[0] for _, after in rounds) * 1_000,
    }


def _pairs(count: int, budget_s: float) -> Iterator[int]:
    began_s = time.perf_counter()
    for number in range(count):
        if number >= _PAIRS_MIN and time.perf_counter() - began_s > budget_s:
            return
        yield number


def _round_of_both(bare: _Started, boxed: _Started, turn: int) -> tuple[_Spent, _Spent]:
    """Who goes first alternates: a burst of other load then favours neither."""
    if turn % 2:
        after, before = _round(boxed.channel), _round(bare.channel)
    else:
        before, after = _round(bare.channel), _round(boxed.channel)
    return before, after


def _start_figures(name: str, pairs: list[tuple[float, float]]) -> dict[str, float]:
    return {
        f"{name}_added_ms": statistics.median(
            after_ms - before_ms for before_ms, after_ms in pairs
        ),
        f"{name}_bare_ms": statistics.median(before_ms for before_ms, _ in pairs),
        f"{name}_confined_ms": statistics.median(after_ms for _, after_ms in pairs),
    }


@contextmanager
def _both(
    confined: _Start, threads: int, *, confined_first: bool
) -> Iterator[tuple[_Started, _Started]]:
    """The program bare and confined, both up and idle; each was started alone."""
    with ExitStack() as stack:
        started = {}
        for is_confined in (confined_first, not confined_first):
            began_s = time.perf_counter()
            channel = stack.enter_context((confined if is_confined else _bare)(threads))
            start_ms = (time.perf_counter() - began_s) * 1_000
            started[is_confined] = _Started(start_ms, channel)
        yield started[False], started[True]


def _round(channel: socket.socket) -> _Spent:
    """One round, as the program measured it."""
    channel.sendall(b"g")
    received = b""
    while len(received) < MESSAGE_BYTES:
        received += _receive(channel, MESSAGE_BYTES - len(received))
    wall_s, cpu_s = ROUND.unpack(received[-ROUND.size :])
    return wall_s, cpu_s


def _receive(channel: socket.socket, size: int) -> bytes:
    data = channel.recv(size)
    if not data:
        raise SandboxError("the measured program ended: is torch installed?")
    return data


@contextmanager
def _confined(sandbox: Sandbox, threads: int) -> Iterator[socket.socket]:
    """A confined program that has said that it is up."""
    process = sandbox.spawn(
        Program(
            _MODULE,
            limits=_LIMITS,
            arguments=("confined", str(threads)),
            packages=(*own_packages(), _REPOSITORY / "sim"),
            threads=_THREADS,
        )
    )
    try:
        process.channel.settimeout(_TIMEOUT_S)
        _receive(process.channel, 1)
        yield process.channel
    finally:
        process.kill()
        process.popen.wait()
        process.close()


@contextmanager
def _bare(threads: int) -> Iterator[socket.socket]:
    """The same program with the same settings, unconfined."""
    view = plan_view((), None)
    ours, theirs = socket.socketpair()
    environment = {
        **{name: value for name, value in os.environ.items() if name.startswith("OPENBLAS")},
        "PYTHONPATH": ":".join([str(_REPOSITORY), *(site.source for site in view.sites)]),
        "OMP_NUM_THREADS": str(_THREADS),
        "OMP_WAIT_POLICY": "PASSIVE",
        "OPENBLAS_NUM_THREADS": str(_THREADS),
        "CAPANODE_CHANNEL_FD": str(theirs.fileno()),
        "CAPANODE_MODEL_DIR": "",
        "CAPANODE_SCRATCH_DIR": "",
        "CAPANODE_LIMITS": json.dumps(asdict(_LIMITS)),
    }
    command = [view.python, "-s", "-P", "-B", "-m", _MODULE, "bare", str(threads)]
    process = subprocess.Popen(command, env=environment, pass_fds=(theirs.fileno(),))
    theirs.close()
    try:
        ours.settimeout(_TIMEOUT_S)
        _receive(ours, 1)
        yield ours
    finally:
        process.kill()
        process.wait()
        ours.close()
