"""How much a worker may use: resource limits that it sets on itself before it imports anything
large, and the one reading that the node's watchdog takes of it.
"""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

_KIB = 1024
_MIB = 1024 * _KIB
_GIB = 1024 * _MIB

# Python, torch and a tokenizer take about 0.4 GiB; the rest is room for activations.
_BASE_MEMORY_BYTES = 3 * _GIB // 2

# While it loads, a model may exist twice (the file's pages and the converted weights), and then
# its key-value cache grows to about its own size.
_MEMORY_PER_MODEL_BYTE = 3

# With a GPU: CUDA's libraries, its context's half in this process and pinned buffers come on top,
# and its driver starts threads of its own. Estimates: not seen on a GPU yet.
_GPU_MEMORY_BYTES = 5 * _GIB // 2
_GPU_PROCESSES = 32
# A program that only starts CUDA was seen with 32 descriptors, torch beside gloo with 26.
GPU_FILES_MAX = 256

# Reserved but never touched: thread stacks, malloc arenas, shared libraries. `import torch` alone
# reserves 0.65 GiB with two threads.
_UNTOUCHED_ADDRESS_SPACE_BYTES = 4 * _GIB

# An engine that compiles kernels while it starts, and keeps them in its scratch folder: vLLM. All
# estimates: not seen yet. Each card beyond the first is a process with its own libraries.
_OPEN_SCRATCH_BYTES = 4 * _GIB
_OPEN_FILE_BYTES = _GIB
_OPEN_SHARED_BYTES = 2 * _GIB
_OPEN_PROCESSES = 1_024
_OPEN_FILES = 4_096
_OPEN_MEMORY_BYTES = 8 * _GIB
_CARD_MEMORY_BYTES = 4 * _GIB

# How far a worker stands back when the processor is busy: at 5 the node's event loop has three
# times the weight of each of its threads (1024 to 335). Measured: at 10 (110) a worker beside four
# busy programs did not load its model within 40 s. On an idle machine it loses nothing.
NICE_DEFAULT = 5
NICE_MAX = 19

# Added to its chance of being chosen when the machine is out of memory.
_VICTIM_SCORE = "500"

# Seven numbers.
_STATM_BYTES = 256
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Limits:
    """`memory_bytes` is watched from outside, the others are the kernel's to enforce."""

    memory_bytes: int
    # None with a GPU: CUDA reserves more address space than any machine has memory.
    address_space_bytes: int | None
    # Threads count as processes here, and real processes are refused by the filter.
    processes_max: int = 64
    files_max: int = 64
    # The largest file that may be written; the scratch directory below bounds their sum.
    file_bytes_max: int = 64 * _MIB
    scratch_bytes: int = 64 * _MIB
    shared_memory_bytes: int = 16 * _MIB
    # Of every thread; without privileges it only rises. Where the kernel shares out the processor
    # by sessions (autogroup), the worker's session has the weight of the node's, however many
    # threads it has.
    nice: int = NICE_DEFAULT


def limits_for_model(
    model_bytes: int, *, gpu: bool = False, threads: int = 2, nice: int = NICE_DEFAULT
) -> Limits:
    """Limits that a well-behaved engine with this much on disk stays under."""
    memory_bytes = _BASE_MEMORY_BYTES + _MEMORY_PER_MODEL_BYTE * model_bytes
    if gpu:
        return Limits(
            memory_bytes=memory_bytes + _GPU_MEMORY_BYTES,
            address_space_bytes=None,
            processes_max=48 + 8 * threads + _GPU_PROCESSES,
            files_max=GPU_FILES_MAX,
            nice=nice,
        )
    return Limits(
        memory_bytes=memory_bytes,
        address_space_bytes=memory_bytes + _UNTOUCHED_ADDRESS_SPACE_BYTES,
        # Two thread pools of torch's, and what the runtime starts on its own.
        processes_max=48 + 8 * threads,
        nice=nice,
    )


def with_open_start(limits: Limits, *, cards: int = 1) -> Limits:
    """The same for an engine whose sandbox is open while it starts (`sandbox.opening`)."""
    return replace(
        limits,
        memory_bytes=limits.memory_bytes + _OPEN_MEMORY_BYTES + (cards - 1) * _CARD_MEMORY_BYTES,
        address_space_bytes=None,
        processes_max=_OPEN_PROCESSES,
        files_max=_OPEN_FILES,
        file_bytes_max=_OPEN_FILE_BYTES,
        scratch_bytes=_OPEN_SCRATCH_BYTES,
        shared_memory_bytes=_OPEN_SHARED_BYTES,
    )


def apply_limits(limits: Limits) -> None:
    """Bind this process, for good: soft and hard limits alike. Core dumps would hold prompts."""
    # Before any thread is started, since each has a nice value of its own.
    os.setpriority(os.PRIO_PROCESS, 0, max(limits.nice, os.getpriority(os.PRIO_PROCESS, 0)))
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: limits.processes_max,
        resource.RLIMIT_NOFILE: limits.files_max,
        resource.RLIMIT_FSIZE: limits.file_bytes_max,
        # 20 minus the lowest value that may be taken: no thread takes back what it gave up.
        resource.RLIMIT_NICE: 0,
    }
    if limits.address_space_bytes is not None:
        bounds[resource.RLIMIT_AS] = limits.address_space_bytes
    for kind, wanted in bounds.items():
        _, ceiling = resource.getrlimit(kind)
        bound = wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
        resource.setrlimit(kind, (bound, bound))


@contextlib.contextmanager
def open_resident(pid: int) -> Iterator[Callable[[], int]]:
    """A reading of what the process holds in memory now, in bytes; 0 once it is gone.

    The file stays open: the reading is taken many times a second for as long as a node runs.
    """
    try:
        descriptor = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield lambda: 0
        return
    try:
        yield partial(_read_resident, descriptor)
    finally:
        os.close(descriptor)


def _read_resident(descriptor: int) -> int:
    try:
        fields = os.pread(descriptor, _STATM_BYTES, 0).split()
    except OSError:
        return 0
    return int(fields[1]) * _PAGE_BYTES if len(fields) > 1 else 0


def resident_bytes_of_all(pid: int) -> int:
    """Of the process and of all that it has started."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        with open_resident(one) as read:
            total += read()
        # Children are listed by the thread that made them.
        for listed in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError, ValueError):
                waiting += map(int, listed.read_text().split())
    return total


def prefer_as_victim(pid: int) -> None:
    """Let the worker be the first to go when the machine is out of memory: the node and its
    receipts should outlive it."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(_VICTIM_SCORE)


def tasks_of_user(user_id: int) -> int:
    """Threads that a user runs now: without a user namespace of its own, the worker's process
    limit counts those too."""
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == user_id:
                    count += len(os.listdir(f"/proc/{entry.name}/task"))
            except OSError:
                continue  # It ended while we looked.
    return count
