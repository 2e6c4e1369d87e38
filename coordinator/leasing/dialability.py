"""Which attached nodes a buyer can dial, kept up to date: looked at when a node attaches, when it
asks, and when buyers say that they could not.

`DialBack` dials; this decides when, tells the book, and remembers which nodes have to hear of it.
"""

import trio

from coordinator.leasing.dial_back import DialBack
from coordinator.market.market import Market
from protocol.clock import Clock
from protocol.ids import PeerId
from protocol.net.transport import Transport
from protocol.reach import DialBackAsk, DialBackReply

# How often complaints of buyers are looked at.
LOOK_EVERY_S = 1.0
# A node that was just dialled is not dialled again for one more buyer.
COMPLAINT_FRESH_S = 5.0
# What failed is soon dialled again: it may have been a busy moment of either side.
LOOK_AGAIN_AFTER_S = (2.0, 4.0, 8.0, 16.0)
# Within a look, whatever else asks for one.
DIALLED_JUST_NOW_S = 1.0


class Dialability:
    """`run` must be running."""

    def __init__(self, transport: Transport, market: Market, *, clock: Clock) -> None:
        self._transport = transport
        self._market = market
        self._clock = clock
        self._dial_back = DialBack(transport)
        # Those that are looked at, each with what makes the next dial come at once.
        self._looking: dict[PeerId, trio.Event] = {}
        self._untold: set[PeerId] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Dial nodes back until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    await trio.sleep(LOOK_EVERY_S)
                    for node in self._market.unreached.take_due(self._clock.now_ms()):
                        self._untold.add(node)
                        self._look_soon(node, fresh_s=COMPLAINT_FRESH_S)
        finally:
            self._nursery = None

    def note_attached(self, node: PeerId) -> None:
        """Its offer is new, or is looked at again after a while."""
        self._look_soon(node, fresh_s=None)

    def take_untold(self, node: PeerId) -> bool:
        """Whether the node should ask to be dialled; says so once."""
        was_untold = node in self._untold
        self._untold.discard(node)
        return was_untold

    def forget(self, node: PeerId) -> None:
        """It has no control line any more."""
        self._untold.discard(node)

    async def answer(self, node: PeerId, ask: DialBackAsk) -> DialBackReply:
        """Raises RemoteProtocolError (RATE_LIMITED)."""
        results = await self._dial_back.answer(node, ask)
        self._judge(node)
        now_ms = self._clock.now_ms()
        buyers = self._market.unreached.buyers(node, now_ms=now_ms)
        return DialBackReply(self._transport.observed_host(node), results, failed_buyers=buyers)

    def _look_soon(self, node: PeerId, *, fresh_s: float | None) -> None:
        if node in self._looking:
            self._looking[node].set()
        elif self._nursery is not None:
            self._looking[node] = trio.Event()
            self._nursery.start_soon(self._look, node, fresh_s)

    async def _look(self, node: PeerId, fresh_s: float | None) -> None:
        """Dial until it is reached, a few times. One that was reached before loses its buyers only
        when two dials in a row have failed."""
        try:
            is_spared = self._was_reached(node)
            if await self._reaches(node, fresh_s):
                return
            for pause_s in LOOK_AGAIN_AFTER_S:
                if not is_spared:
                    self._judge(node)
                is_spared = False
                with trio.move_on_after(pause_s):
                    await self._looking[node].wait()
                self._looking[node] = trio.Event()
                if await self._reaches(node, DIALLED_JUST_NOW_S):
                    return
            self._judge(node)
        finally:
            del self._looking[node]

    async def _reaches(self, node: PeerId, fresh_s: float | None) -> bool:
        """Whether there is no reason to dial it again: it was reached, or it is gone."""
        entry = self._market.book.get(node)
        if entry is None:
            return True
        addresses = entry.offer.addresses
        await self._dial_back.look_at(node, addresses, fresh_s=fresh_s)
        is_dialable = self._dial_back.is_dialable(addresses)
        if is_dialable:
            self._judge(node)
        return is_dialable

    def _was_reached(self, node: PeerId) -> bool:
        entry = self._market.book.get(node)
        return entry is not None and self._dial_back.was_reached(entry.offer.addresses)

    def _judge(self, node: PeerId) -> None:
        entry = self._market.book.get(node)
        if entry is None:
            return
        is_dialable = self._dial_back.is_dialable(entry.offer.addresses)
        if entry.is_dialable and not is_dialable:
            self._untold.add(node)
        self._market.book.set_dialable(node, is_dialable=is_dialable)
