"""What the world outside gives a program: time, chance, and where blocking calls run.

The defaults suit a simulation, which also brings its own clock and random sources.
"""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from protocol.clock import Clock, Entropy
from protocol.net.clock import SystemClock
from protocol.programs.runners import InlineRunner, Runner, ThreadRunner
from protocol.programs.steady_clock import SteadyClock


def trio_stopwatch_ns() -> int:
    """trio's clock, which is virtual in a simulation. Only for trio tasks."""
    return round(1e9 * trio.current_time())


@dataclass(frozen=True, slots=True)
class Runtime:
    """`entropy` makes ids and keys, `rng` only spreads load; `stopwatch_ns` measures ourselves;
    `runner` keeps blocking calls out of the event loop; `monotonic_s` is seconds that only grow."""

    clock: Clock
    entropy: Entropy
    rng: random.Random
    runner: Runner = field(default_factory=InlineRunner)
    stopwatch_ns: Callable[[], int] = trio_stopwatch_ns
    monotonic_s: Callable[[], float] = trio.current_time

    def steadied(self) -> "Runtime":
        """The same with a clock that does not jump: for a program's composition root."""
        return replace(self, clock=SteadyClock(self.clock, self.monotonic_s))

    def child_rng(self) -> random.Random:
        return child_rng(self.rng)


def child_rng(rng: random.Random) -> random.Random:
    """A source of its own for each part, so that one part's draws do not shift another's."""
    return random.Random(rng.getrandbits(64))  # noqa: S311 - spreads load, guards nothing


def system_runtime() -> Runtime:
    """The real thing."""
    return Runtime(
        SystemClock(),
        os.urandom,
        random.SystemRandom(),
        ThreadRunner(),
        time.perf_counter_ns,
        partial(time.clock_gettime, _SINCE_BOOT),
    )


# Counts the time that the machine is suspended, which trio's clock does not on Linux.
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
