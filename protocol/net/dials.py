"""One dial per address at a time, however many callers want its peer."""

from collections.abc import Awaitable, Callable

import trio


class Dials:
    """The dials that are under way."""

    def __init__(self) -> None:
        self._under_way: dict[str, trio.Event] = {}

    async def ensure(
        self, address: str, is_connected: Callable[[], bool], dial: Callable[[], Awaitable[None]]
    ) -> None:
        """Return when `is_connected`; raises what the caller's own `dial` raises.

        A caller that waited for another's dial in vain tries its own: that one may have been
        cancelled.
        """
        await trio.lowlevel.checkpoint()
        while not is_connected():
            done = self._under_way.get(address)
            if done is not None:
                await done.wait()
                continue
            done = self._under_way[address] = trio.Event()
            try:
                await dial()
            finally:
                del self._under_way[address]
                done.set()
