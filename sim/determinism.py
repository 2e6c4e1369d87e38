"""Runs a trio program so that one seed decides everything: task order, time and randomness.

trio shuffles runnable tasks with a private random source. Both private names are touched here and
nowhere else, and a test runs one seed twice, so that a trio upgrade cannot break this in silence.
"""

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
import trio._core._run as trio_run
from trio.testing import MockClock

T = TypeVar("T")


def run_deterministically(main: Callable[[random.Random], Awaitable[T]], seed: int) -> T:
    """Run `main(rng)` under virtual time that jumps to the next deadline whenever all tasks wait.

    No thread may take part: the clock would not wait for it.
    """
    shuffle_before = trio_run._r
    allowed_before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_run._r = random.Random(f"scheduler {seed}")
    try:
        rng = random.Random(f"world {seed}")
        return trio.run(main, rng, clock=MockClock(autojump_threshold=0))
    finally:
        trio_run._r = shuffle_before
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = allowed_before
