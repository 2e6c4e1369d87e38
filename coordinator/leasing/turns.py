"""A fair queue for each model: who gets the next seat when all fitting nodes are busy.

A request that finds no free seat waits for its turn instead of being sent away, up to a deadline.
Turns go round among clients: the client that was granted least while the queue lasted is next, and
within one client the request that came first. Requests of batches come after all others. A request
that cannot wait longer is told when a seat should be free, from how often one became free lately.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId

T = TypeVar("T")

# A waiting request keeps its body in memory at the gateway; more would only wait in vain.
WAITING_MAX = 2_000
WAITING_PER_CLIENT_MAX = 256
# Seats also become free without our doing: a node reports less load, or a new one attaches.
POLL_S = 0.25
# When a seat is free, so many are asked in turn whether they can use it: the first may want a
# node that is still busy.
_ASKED_PER_SEAT = 8
_RETRY_MIN_MS = 500
_RETRY_MAX_MS = 60_000
# The weight of the latest interval between two grants in their mean.
_INTERVAL_GAIN = 0.2


@dataclass(slots=True, eq=False)
class _Waiter:
    client: PeerId
    number: int
    is_batch: bool
    asked_in: int = -1
    turn: trio.Event = field(default_factory=trio.Event)


class _ModelQueue:
    """Those who wait for one model."""

    def __init__(self) -> None:
        self._waiting: dict[PeerId, OrderedDict[int, _Waiter]] = {}
        self._granted: dict[PeerId, int] = {}
        self._entered = 0
        self._round = 0
        self._asked = 0
        self._began_at = trio.current_time()
        self._last_grant_at: float | None = None
        self._interval_s: float | None = None

    def __len__(self) -> int:
        return sum(len(waiters) for waiters in self._waiting.values())

    def enter(self, client: PeerId, *, is_batch: bool) -> _Waiter:
        """Raises RemoteProtocolError (RATE_LIMITED)."""
        waiters = self._waiting.setdefault(client, OrderedDict())
        if len(waiters) >= WAITING_PER_CLIENT_MAX or len(self) >= WAITING_MAX:
            raise RemoteProtocolError(
                f"{len(self)} requests wait for this model already",
                code=Code.RATE_LIMITED,
                retry_after_ms=self.retry_after_ms(),
            )
        self._entered += 1
        waiter = waiters[self._entered] = _Waiter(client, self._entered, is_batch)
        return waiter

    def leave(self, waiter: _Waiter) -> None:
        waiters = self._waiting[waiter.client]
        del waiters[waiter.number]
        if not waiters:
            del self._waiting[waiter.client]

    def is_next(self, waiter: _Waiter) -> bool:
        return self._next(self._round + 1) is waiter

    def wake(self) -> None:
        """A seat may be free."""
        self._round += 1
        self._asked = 0
        self.pass_on()

    def pass_on(self) -> None:
        """The one that was asked has taken a seat, or could not: ask the next."""
        waiter = self._next(self._round) if self._asked < _ASKED_PER_SEAT else None
        if waiter is not None:
            self._asked += 1
            waiter.asked_in = self._round
            waiter.turn.set()

    def note_grant(self, client: PeerId) -> None:
        self._granted[client] = self._granted.get(client, 0) + 1
        now = trio.current_time()
        if self._last_grant_at is not None:
            latest_s = now - self._last_grant_at
            mean_s = self._interval_s if self._interval_s is not None else latest_s
            self._interval_s = mean_s + (latest_s - mean_s) * _INTERVAL_GAIN
        self._last_grant_at = now

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

    def _next(self, before_round: int) -> _Waiter | None:
        """The first of the client that was granted least, among those not yet asked; of batches,
        when no other waits."""
        best: tuple[bool, int, int] | None = None
        chosen = None
        for client, waiters in self._waiting.items():
            unasked = (w for w in waiters.values() if w.asked_in < before_round)
            waiter = min(unasked, key=lambda w: w.is_batch, default=None)
            if waiter is None:
                continue
            rank = (waiter.is_batch, self._granted.get(client, 0), waiter.number)
            if best is None or rank < best:
                best, chosen = rank, waiter
        return chosen


class Turns:
    """The queues of all models for which a client waits now."""

    def __init__(self) -> None:
        self._queues: dict[str, _ModelQueue] = {}

    def waiting(self, model: str) -> int:
        """How many requests wait for this model."""
        queue = self._queues.get(model)
        return len(queue) if queue is not None else 0

    @property
    def is_anyone_waiting(self) -> bool:
        return bool(self._queues)

    def wake(self) -> None:
        """A seat was given back somewhere."""
        for queue in list(self._queues.values()):
            queue.wake()

    async def take(
        self,
        model: str,
        client: PeerId,
        grant: Callable[[], Awaitable[T]],
        *,
        within_s: float,
        is_choosy: bool = False,
        is_batch: bool = False,
    ) -> T:
        """What `grant` returns, once it is this client's turn and `grant` finds a seat.

        `grant` raises NO_NODE_FITS with a time to retry while all seats are taken; any other error
        passes through. `is_choosy` if the request names its nodes: those may be idle although
        others wait for the model, so it is tried at once. A batch waits until no other request
        does. Raises RemoteProtocolError.
        """
        gives_up_at = trio.current_time() + within_s
        refusal = None
        if is_choosy or model not in self._queues:
            try:
                return await grant()
            except RemoteProtocolError as error:
                if not _is_passing(error, within_s):
                    raise
                refusal = error
        queue = self._queues.setdefault(model, _ModelQueue())
        waiter = queue.enter(client, is_batch=is_batch)
        try:
            while await _wait_turn(queue, waiter, gives_up_at):
                try:
                    granted = await grant()
                except RemoteProtocolError as error:
                    if not _is_passing(error, within_s):
                        raise
                    refusal = error
                    queue.pass_on()
                else:
                    queue.note_grant(client)
                    return granted
            raise _out_of_time(queue, refusal)
        finally:
            queue.leave(waiter)
            if len(queue):
                queue.pass_on()
            else:
                del self._queues[model]


async def _wait_turn(queue: _ModelQueue, waiter: _Waiter, gives_up_at: float) -> bool:
    """Returns False when the time is over. Only waiting is cut short, never a grant under way."""
    while trio.current_time() < gives_up_at:
        until = min(trio.current_time() + POLL_S, gives_up_at)
        with trio.move_on_at(until):
            await waiter.turn.wait()
        if waiter.turn.is_set():
            waiter.turn = trio.Event()
            return True
        if queue.is_next(waiter) and trio.current_time() < gives_up_at:
            return True
    return False


def _is_passing(error: RemoteProtocolError, within_s: float) -> bool:
    """Whether waiting for so long may help."""
    if error.code is not Code.NO_NODE_FITS or error.retry_after_ms is None:
        return False
    return error.retry_after_ms <= 1_000 * within_s


def _out_of_time(queue: _ModelQueue, refusal: RemoteProtocolError | None) -> RemoteProtocolError:
    otherwise_ms = refusal.retry_after_ms if refusal is not None else None
    reason = str(refusal) if refusal is not None else "all nodes with this model are busy"
    return RemoteProtocolError(
        f"{reason}; {len(queue)} requests wait for this model",
        code=Code.NO_NODE_FITS,
        retry_after_ms=queue.retry_after_ms(otherwise_ms=otherwise_ms),
    )
