"""Turns at something that costs CPU: so many at once, and groups take turns."""

from collections import OrderedDict, deque

import trio


class Turn:
    """Leave to go on. Ending it twice does nothing."""

    __slots__ = ("_turns",)

    def __init__(self, turns: "GroupTurns") -> None:
        self._turns: GroupTurns | None = turns

    def end(self) -> None:
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.pass_on()


class GroupTurns:
    """At most `at_once` turns. Waiters of one group are served in order, groups in rotation: many
    waiters of one group delay only each other."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: OrderedDict[str, deque[trio.Event]] = OrderedDict()

    async def wait(self, group: str) -> Turn:
        """Cancelling this gives up the place in the queue."""
        if self._free and not self._waiting:
            self._free -= 1
            await trio.lowlevel.cancel_shielded_checkpoint()
            return Turn(self)
        called = trio.Event()
        self._waiting.setdefault(group, deque()).append(called)
        try:
            await called.wait()
        except trio.Cancelled:
            if called.is_set():
                self.pass_on()
            else:
                self._forget(group, called)
            raise
        return Turn(self)

    def pass_on(self) -> None:
        """A turn has ended: the next group's first waiter goes on."""
        if not self._waiting:
            self._free += 1
            return
        group, waiters = next(iter(self._waiting.items()))
        waiters.popleft().set()
        if waiters:
            self._waiting.move_to_end(group)
        else:
            del self._waiting[group]

    def _forget(self, group: str, called: trio.Event) -> None:
        waiters = self._waiting[group]
        waiters.remove(called)
        if not waiters:
            del self._waiting[group]
