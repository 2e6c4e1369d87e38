"""Runs a trio program so that one seed decides everything: task order, time and randomness.

trio shuffles runnable tasks with a private random source. Both private names are touched here and
nowhere else, and a test runs one seed twice, so that a trio upgrade cannot break this in silence.
"""

import gc
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
import trio._core._run as trio_run
from trio.testing import MockClock

T = TypeVar("T")


def run_deterministically(main: Callable[[random.Random], Awaitable[T]], seed: int) -> T:
    """Run `main(rng)` under virtual time that jumps to the next deadline whenever all tasks wait.

    No thread may take part: the clock would not wait for it. A trio program in another thread that
    has nothing to do with this one does not disturb it.
    """
    with _deterministic_scheduling(f"scheduler {seed}"), _no_garbage_collection():
        rng = random.Random(f"world {seed}")
        return trio.run(main, rng, clock=MockClock(autojump_threshold=0))


class _OwnThreadsShuffle(random.Random):
    """Seeded for the thread that made it. Programs in other threads, which find it in the same
    module-wide place, get from `others` what they would have got without it."""

    def __init__(self, seed: str, others: random.Random) -> None:
        super().__init__(seed)
        self._others = others
        self._thread = threading.get_ident()

    def shuffle(self, x: Any) -> None:
        if threading.get_ident() == self._thread:
            super().shuffle(x)
        else:
            self._others.shuffle(x)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """When cycles are collected, and so when what they held is closed, depends on everything else
    that the process ever made. A world is small: it can wait until it is over."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _deterministic_scheduling(seed: str) -> Iterator[None]:
    shuffle = _OwnThreadsShuffle(seed, others=trio_run._r)
    changes = {"_ALLOW_DETERMINISTIC_SCHEDULING": True, "_r": shuffle}
    before = {name: getattr(trio_run, name) for name in changes}
    for name, value in changes.items():
        setattr(trio_run, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(trio_run, name, value)
