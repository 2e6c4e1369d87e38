"""The deadlines of a link's receivers, watched by one task.

A cancel scope around each wait was a fifth of what a streamed token costs its receiver. Nearly
always a frame comes first, so a deadline is a number here, which is looked at only when the
earliest one that is known is due.
"""

import math
from typing import Protocol

import trio


class _Waiting(Protocol):
    """What waits: it looks at the time by itself when it is woken."""

    def wake(self) -> None: ...


class Deadlines:
    """trio's times by which those who wait are woken; `run` must be running."""

    def __init__(self) -> None:
        self._due_at: dict[_Waiting, float] = {}
        self._next_at = math.inf
        self._sleep = trio.CancelScope()

    def add(self, waiting: _Waiting, due_at: float) -> None:
        self._due_at[waiting] = due_at
        if due_at < self._next_at:
            self._next_at = self._sleep.deadline = due_at

    def remove(self, waiting: _Waiting) -> None:
        del self._due_at[waiting]

    async def run(self) -> None:
        """Wake those whose time has come, until cancelled."""
        while True:
            self._sleep = trio.CancelScope(deadline=self._next_at)
            with self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            for waiting, due_at in self._due_at.items():
                if due_at <= now:
                    waiting.wake()
            # Those that were woken have not run yet, and leave by themselves.
            later = (due_at for due_at in self._due_at.values() if due_at > now)
            self._next_at = min(later, default=math.inf)
