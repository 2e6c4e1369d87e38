"""One dial per peer at a time, however many callers want the peer."""

from collections.abc import Awaitable, Callable

import trio

from protocol.ids import PeerId


class Dials:
    """The dials that are under way."""

    def __init__(self) -> None:
        self._under_way: dict[PeerId, trio.Event] = {}

    async def ensure(
        self, peer: PeerId, is_connected: Callable[[], bool], dial: Callable[[], Awaitable[None]]
    ) -> None:
        """Return when `is_connected`; raises what the caller's own `dial` raises.

        A caller that waited for another's dial in vain tries its own: its address may be better.
        """
        await trio.lowlevel.checkpoint()
        while not is_connected():
            done = self._under_way.get(peer)
            if done is not None:
                await done.wait()
                continue
            done = self._under_way[peer] = trio.Event()
            try:
                await dial()
            finally:
                del self._under_way[peer]
                done.set()
