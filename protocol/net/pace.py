"""How much work the frames of one connection may make us do.

A frame of ten bytes may open a stream or a conversation, and cost what a thousand bytes of data do
not; ten megabytes of them a second would leave no time for other peers. So each has a cost, and a
connection that spends faster than it may is not read for a while: TCP makes its peer wait. Frames
that carry data cost nothing here, as their bytes are paced by their consumers.
"""

import trio

from protocol.pace import Pace
from protocol.token_buckets import Rate

# What is lawful stays far below: a link at full speed returns credit six hundred times a second,
# and a node or coordinator gets some hundreds of jobs.
WORK = Rate(per_s=8_000.0, burst=20_000)

FRAME_COST = 1
CHANNEL_COST = 8
# Its protocol is agreed on by the library, which takes more than a millisecond.
STREAM_COST = 64


class WorkPace:
    """The work of one connection. It may go into debt by what was read at once."""

    __slots__ = ("_pace", "_spent")

    def __init__(self) -> None:
        self._pace = Pace(WORK)
        self._spent = 0

    def spend(self, cost: int) -> None:
        self._spent += cost

    async def wait(self) -> None:
        """Before reading on. Returns at once, without a checkpoint, while there is no debt."""
        if not self._spent:
            return
        pause_s = self._pace.pause_s(self._spent, trio.current_time())
        self._spent = 0
        if pause_s:
            await trio.sleep(pause_s)
