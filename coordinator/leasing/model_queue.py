"""Who waits for one model, and who is asked when a seat is free.

Turns go round among clients: the client that was granted least while the queue lasted is next, and
within one client the request that came first. Requests of batches come after all others.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

import trio

from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId

# Seats also become free without our doing: a node reports less load, or a new one attaches.
POLL_S = 0.25
# When seats are free, so many are asked in vain before the search is over: the first may want a
# node that is still busy.
_REFUSED_MAX = 8
# A look at seats that nothing told us of asks one, and as seats are found up to so many at once: a
# hold takes milliseconds to be durable, and hundreds may wait.
_POLLED_AT_ONCE = 8
_RETRY_MIN_MS = 500
_RETRY_MAX_MS = 60_000
# The weight of the latest interval between two grants in their mean.
_INTERVAL_GAIN = 0.2


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits. `number` counts all that ever waited."""

    client: PeerId
    number: int
    is_batch: bool
    asked_in: int = -1
    # From when it is asked until it has a seat or was refused one.
    is_asked: bool = False
    is_turn: bool = False
    is_evicted: bool = False
    woken: trio.Event = field(default_factory=trio.Event)

    def evict(self) -> None:
        """Its place is needed for another client's request."""
        self.is_evicted = True
        self.woken.set()


Line = OrderedDict[int, Waiter]


class ModelQueue:
    """Those who wait for one model."""

    def __init__(self) -> None:
        self._lines: dict[PeerId, Line] = {}
        self._batch_lines: dict[PeerId, Line] = {}
        self._size = 0
        # Seats that each client was granted, or is asked about.
        self._granted: Counter[PeerId] = Counter()
        # A round begins when seats may be free; in each, every waiter is asked once at most.
        self._round = 0
        self._asked = 0
        self._refused = 0
        self._found = 0
        self._seats_left = 0
        self._is_polled = False
        # One waiter looks for seats that became free unnoticed, for all of them.
        self._watcher: Waiter | None = None
        self._began_at = trio.current_time()
        self._last_grant_at: float | None = None
        self._interval_s: float | None = None

    def __len__(self) -> int:
        return self._size

    def enter(self, waiter: Waiter, *, is_resumed: bool) -> None:
        """The rest of an answer that broke off is first in its client's line."""
        lines = self._batch_lines if waiter.is_batch else self._lines
        line = lines.setdefault(waiter.client, OrderedDict())
        line[waiter.number] = waiter
        if is_resumed:
            line.move_to_end(waiter.number, last=False)
        self._size += 1

    def leave(self, waiter: Waiter) -> None:
        """It was granted a seat, or gave up: then it may have had the turn, which is passed on."""
        lines = self._batch_lines if waiter.is_batch else self._lines
        line = lines[waiter.client]
        del line[waiter.number]
        if not line:
            del lines[waiter.client]
        self._size -= 1
        self._end_ask(waiter)
        if self._watcher is waiter:
            self._watcher = None
            self._wake_a_watcher()
        self._ask()

    def wake(self) -> None:
        """A seat is free."""
        self._seats_left += 1
        self._begin_round()

    async def wait_turn(self, waiter: Waiter, *, until: float) -> bool:
        """Returns False when the time is over. Raises RemoteProtocolError (RATE_LIMITED) if it was
        evicted."""
        while trio.current_time() < until:
            self._watcher = self._watcher or waiter
            is_watching = self._watcher is waiter
            wakes_at = min(trio.current_time() + POLL_S, until) if is_watching else until
            with trio.move_on_at(wakes_at):
                await waiter.woken.wait()
            if waiter.woken.is_set():
                waiter.woken = trio.Event()
            if waiter.is_evicted:
                raise self.refusal("requests of other clients needed the place of this one")
            if waiter.is_turn:
                waiter.is_turn = False
                return True
            if is_watching and trio.current_time() < until:
                # Any number of seats may be free: ask as long as seats are found.
                self._is_polled = True
                self._begin_round()
        return False

    def note_refusal(self, waiter: Waiter) -> None:
        """It was asked, and found no seat that it can use."""
        self._end_ask(waiter)
        self._refused += 1
        self._ask()

    def note_grant(self, waiter: Waiter) -> None:
        self._granted[waiter.client] += 1
        self._seats_left = max(self._seats_left - 1, 0)
        self._found += 1
        self._refused = 0
        now = trio.current_time()
        if self._last_grant_at is not None:
            latest_s = now - self._last_grant_at
            mean_s = self._interval_s if self._interval_s is not None else latest_s
            self._interval_s = mean_s + (latest_s - mean_s) * _INTERVAL_GAIN
        self._last_grant_at = now

    def refusal(self, why: str) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"{why}; {len(self)} requests wait for this model",
            code=Code.RATE_LIMITED,
            retry_after_ms=self.retry_after_ms(),
        )

    def retry_after_ms(self, *, otherwise_ms: int | None = None) -> int:
        """When all who wait now should have had their turn, by the pace of the latest grants. A
        wait without any says that the next one takes as long at least."""
        since = self._began_at if self._last_grant_at is None else self._last_grant_at
        waited_s = trio.current_time() - since
        if self._interval_s is None:
            wait_ms = max(float(otherwise_ms or _RETRY_MIN_MS), 1_000 * waited_s)
        else:
            wait_ms = 1_000 * max(self._interval_s, waited_s) * (len(self) + 1)
        return int(min(max(wait_ms, _RETRY_MIN_MS), _RETRY_MAX_MS))

    def _begin_round(self) -> None:
        self._round += 1
        self._refused = self._found = 0
        self._ask()

    def _ask(self) -> None:
        """Ask as many as seats may be free for; without any under way, the search is over."""
        at_once = self._seats_left
        if self._is_polled:
            at_once = max(at_once, min(1 + self._found, _POLLED_AT_ONCE))
        while self._asked < at_once and self._refused < _REFUSED_MAX:
            waiter = self._next()
            if waiter is None:
                break
            self._asked += 1
            self._granted[waiter.client] += 1
            waiter.asked_in, waiter.is_asked, waiter.is_turn = self._round, True, True
            waiter.woken.set()
        if not self._asked:
            self._seats_left, self._is_polled = 0, False

    def _end_ask(self, waiter: Waiter) -> None:
        self._asked -= waiter.is_asked
        self._granted[waiter.client] -= waiter.is_asked
        waiter.is_asked = waiter.is_turn = False

    def _wake_a_watcher(self) -> None:
        for line in (*self._lines.values(), *self._batch_lines.values()):
            next(iter(line.values())).woken.set()
            return

    def _next(self) -> Waiter | None:
        """The first of the client that was granted least, among those not yet asked; of batches,
        when no other waits."""
        for lines in (self._lines, self._batch_lines):
            best: tuple[int, int] | None = None
            chosen = None
            for client, line in lines.items():
                waiter = next((w for w in line.values() if self._may_be_asked(w)), None)
                if waiter is None:
                    continue
                rank = (self._granted[client], waiter.number)
                if best is None or rank < best:
                    best, chosen = rank, waiter
            if chosen is not None:
                return chosen
        return None

    def _may_be_asked(self, waiter: Waiter) -> bool:
        return waiter.asked_in < self._round and not waiter.is_asked
