"""Where the blocking calls of a program run: threads in production, in place in a simulation.

A thread would race a virtual clock.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import outcome
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
        self._read_limiter = trio.CapacityLimiter(READERS_MAX)
        self._is_writing = False
        self._writers = trio.lowlevel.ParkingLot()

    async def run_read(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._read_limiter)

    async def run_write(self, call: Callable[[], T]) -> T:
        # What a first token waits for: `trio.to_thread` takes three times the calls of this, and a
        # turn of the loop more for its limiter.
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._is_writing:
            await self._writers.park()
        self._is_writing = True
        try:
            return await _run_in_thread(call)
        finally:
            self._is_writing = False
            self._writers.unpark()


async def _run_in_thread(call: Callable[[], T]) -> T:
    """Not cancelled once it has begun."""
    token, task = trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()

    def deliver(result: outcome.Outcome[object]) -> None:
        token.run_sync_soon(trio.lowlevel.reschedule, task, result)

    trio.lowlevel.start_thread_soon(call, deliver)
    result: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
    return result


class InlineRunner:
    """In place, for simulations and for commands that have nothing else to do meanwhile."""

    async def run_read(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return call()

    async def run_write(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return call()
