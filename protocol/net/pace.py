"""How much work the frames of one connection may make us do.

A frame of ten bytes may open a stream or a conversation, and cost what a thousand bytes of data do
not; ten megabytes of them a second would leave no time for other peers. So each has a cost, and a
connection that spends faster than it may is not read for a while: TCP makes its peer wait. Frames
that carry data cost nothing here, as their bytes are paced by their consumers.
"""

import trio

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

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: Rate = WORK) -> None:
        self._rate = rate
        self._left = float(rate.burst)
        self._at = 0.0

    def spend(self, cost: int) -> None:
        self._left -= cost

    async def wait(self) -> None:
        """Before reading on. Returns at once, without a checkpoint, while there is no debt."""
        if self._left >= 0.0:
            return
        now_s = trio.current_time()
        earned = (now_s - self._at) * self._rate.per_s
        self._left = min(float(self._rate.burst), self._left + earned)
        self._at = now_s
        if self._left < 0.0:
            await trio.sleep(-self._left / self._rate.per_s)
