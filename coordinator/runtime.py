"""What the world outside gives the coordinator: time and chance. A simulation brings its own."""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from protocol.clock import Clock, Entropy
from protocol.net.clock import SystemClock


@dataclass(frozen=True, slots=True)
class Runtime:
    """`entropy` makes ids and keys, `rng` only spreads load; `stopwatch_ns` measures ourselves."""

    clock: Clock
    entropy: Entropy
    rng: random.Random
    stopwatch_ns: Callable[[], int]


def system_runtime() -> Runtime:
    """The real thing."""
    return Runtime(SystemClock(), os.urandom, random.SystemRandom(), time.perf_counter_ns)
