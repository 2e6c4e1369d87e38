"""So many jobs of batches at once, shared out between accounts: the next place is for the account
that has the fewest."""

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class AccountPlaces:
    """`places` in all; one account has at most half of them, so that others need not wait."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._each_max = max(1, places // 2)
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[trio.Event, str] = OrderedDict()

    @asynccontextmanager
    async def place(self, account: str) -> AsyncIterator[None]:
        await self._take(account)
        try:
            yield
        finally:
            self._give_back(account)

    async def _take(self, account: str) -> None:
        turn = trio.Event()
        self._waiting[turn] = account
        self._hand_out()
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():
                self._give_back(account)
            else:
                del self._waiting[turn]
            raise

    def _give_back(self, account: str) -> None:
        self._free += 1
        self._held[account] -= 1
        if not self._held[account]:
            del self._held[account]
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and (turn := self._next()) is not None:
            account = self._waiting.pop(turn)
            self._free -= 1
            self._held[account] += 1
            turn.set()

    def _next(self) -> trio.Event | None:
        """The first that waits of the account that has the fewest."""
        fits = (
            turn for turn, account in self._waiting.items() if self._held[account] < self._each_max
        )
        return min(fits, key=lambda turn: self._held[self._waiting[turn]], default=None)
