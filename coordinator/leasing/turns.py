"""Fair turns for seats: who gets the next one when all fitting nodes are busy.

A request that finds no free seat waits for its turn instead of being sent away, up to a deadline.
A request that cannot wait longer is told when a seat should be free, from how often one became free
lately. How turns go round is in `model_queue`; how much may wait in all, and whose, is here.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from coordinator.leasing.model_queue import ModelQueue, Waiter
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId
from protocol.net.shares import Shares

T = TypeVar("T")

# All models together, and as many as the gateway has in flight: a waiting request is a task and a
# signed message here, some twenty kilobytes; the body that the gateway keeps counts there.
WAITING_MAX = 4_096


class Turns:
    """The queues of all models for which a client waits now. One client may fill the whole room;
    where there is none left, the latest requests of the client that has most give way to one that
    has fewer."""

    def __init__(self, *, waiting_max: int = WAITING_MAX) -> None:
        self._queues: dict[str, ModelQueue] = {}
        self._entered = 0
        self._places: Shares[Waiter] = Shares(waiting_max, rank=lambda waiter: -waiter.number)

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
        is_resumed: bool = False,
    ) -> T:
        """What `grant` returns, once it is this client's turn and `grant` finds a seat.

        `grant` raises NO_NODE_FITS with a time to retry while all seats are taken; any other error
        passes through. `is_choosy` if the request names its nodes: those may be idle although
        others wait for the model, so it is tried at once. A batch waits until no other request
        does; the rest of an answer that broke off (`is_resumed`) goes before all other requests of
        its client. Raises RemoteProtocolError.
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
        waiter = self._enter(model, client, is_batch=is_batch, is_resumed=is_resumed)
        queue = self._queues[model]
        try:
            while await queue.wait_turn(waiter, until=gives_up_at):
                # Only waiting is cut short, never a grant under way.
                try:
                    granted = await grant()
                except RemoteProtocolError as error:
                    if not _is_passing(error, within_s):
                        raise
                    refusal = error
                    queue.note_refusal(waiter)
                else:
                    queue.note_grant(waiter)
                    return granted
            raise _out_of_time(queue, refusal)
        finally:
            self._places.remove(waiter)
            queue.leave(waiter)
            if not len(queue):
                del self._queues[model]

    def _enter(self, model: str, client: PeerId, *, is_batch: bool, is_resumed: bool) -> Waiter:
        """Raises RemoteProtocolError (RATE_LIMITED)."""
        evicted = self._places.make_room(client)
        queue = self._queues.get(model) or ModelQueue()
        if evicted is None:
            raise queue.refusal(f"{len(self._places)} requests wait for seats already")
        self._entered += 1
        waiter = Waiter(client, self._entered, is_batch)
        self._places.add(waiter, client)
        self._queues[model] = queue
        queue.enter(waiter, is_resumed=is_resumed)
        for other in evicted:
            other.evict()
        return waiter


def _is_passing(error: RemoteProtocolError, within_s: float) -> bool:
    """Whether waiting for so long may help."""
    if error.code is not Code.NO_NODE_FITS or error.retry_after_ms is None:
        return False
    return error.retry_after_ms <= 1_000 * within_s


def _out_of_time(queue: ModelQueue, refusal: RemoteProtocolError | None) -> RemoteProtocolError:
    otherwise_ms = refusal.retry_after_ms if refusal is not None else None
    reason = str(refusal) if refusal is not None else "all nodes with this model are busy"
    return RemoteProtocolError(
        f"{reason}; {len(queue)} requests wait for this model",
        code=Code.NO_NODE_FITS,
        retry_after_ms=queue.retry_after_ms(otherwise_ms=otherwise_ms),
    )
