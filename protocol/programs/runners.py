"""Where the blocking calls of a program run: threads in production, in place in a simulation.

A thread would race a virtual clock.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

T = TypeVar("T")

# Reads are short and mostly cached; more threads would only contend for the interpreter.
READERS_MAX = 4


class Runner(Protocol):
    """Runs transactions. One that has begun runs to its end, even if its caller is cancelled."""

    async def run_read(self, call: Callable[[], T]) -> T: ...

    async def run_write(self, call: Callable[[], T]) -> T:
        """At most one of these runs at a time."""
        ...


class ThreadRunner:
    """Worker threads: one for writes, because SQLite has one write lock, and a few for reads."""

    def __init__(self) -> None:
        self._write_limiter = trio.CapacityLimiter(1)
        self._read_limiter = trio.CapacityLimiter(READERS_MAX)

    async def run_read(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._read_limiter)

    async def run_write(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._write_limiter)


class InlineRunner:
    """In place, for simulations and for commands that have nothing else to do meanwhile."""

    async def run_read(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return call()

    async def run_write(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return call()
