"""Who sits at one model: jobs that run, and jobs that wait for a slot in order of arrival.

Jobs of batches wait behind all others, and one that runs is told to give way to a job that would
have to wait for its slot. So they keep no other job out: only among themselves do they share the
seats that are left.

A seat is taken when a job's payload has arrived as a whole: an upload, which its client can make as
slow as it likes, keeps no other client out. Synchronous and without I/O; deadlines are the jobs'
own.
"""

from collections.abc import Callable

from protocol.errors import Code, RemoteProtocolError
from protocol.ids import LeaseId

# What a busy node tells clients before it knows how long its jobs take.
_DURATION_GUESS_MS = 2_000.0
# How much the newest job counts in the mean: the mix of jobs changes within tens of jobs.
_NEWEST_WEIGHT = 0.1
# Sooner than this no client gets through, later than this is no advice.
_RETRY_MS_MIN, _RETRY_MS_MAX = 100, 30_000


class Seats:
    """`slots` jobs run at once and `queue_max` wait; the next one is refused."""

    def __init__(self, *, slots: int, queue_max: int) -> None:
        self.slots = slots
        self.queue_max = queue_max
        self._taken: set[LeaseId] = set()
        self._batch: set[LeaseId] = set()
        self._running: set[LeaseId] = set()
        self._waiting: dict[LeaseId, Callable[[], None]] = {}
        self._batch_waiting: dict[LeaseId, Callable[[], None]] = {}
        # How those that run, or wait, are told to give way; the last one that started goes first.
        self._give_way: dict[LeaseId, Callable[[], None]] = {}
        self._duration_ms = _DURATION_GUESS_MS

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        """Waiting for a slot."""
        return len(self._taken) - len(self._running)

    @property
    def retry_after_ms(self) -> int:
        """When a slot should be free, from how long jobs took lately."""
        expected_ms = self._duration_ms * (self.queued + 1) / self.slots
        return int(min(max(expected_ms, _RETRY_MS_MIN), _RETRY_MS_MAX))

    def check_room(self, *, is_batch: bool = False) -> None:
        """Raises RemoteProtocolError (BUSY) when all seats are taken."""
        ahead = len(self._taken) - (0 if is_batch else len(self._batch))
        if ahead >= self.slots + self.queue_max:
            raise RemoteProtocolError(
                f"{self.running} jobs run and {self.queued} wait here",
                code=Code.BUSY,
                retry_after_ms=self.retry_after_ms,
            )

    def take(self, lease_id: LeaseId, *, is_batch: bool = False) -> None:
        """Raises RemoteProtocolError (BUSY) when all seats are taken."""
        self.check_room(is_batch=is_batch)
        self._taken.add(lease_id)
        if is_batch:
            self._batch.add(lease_id)

    def enter(
        self,
        lease_id: LeaseId,
        start: Callable[[], None],
        *,
        give_way: Callable[[], None] | None = None,
    ) -> int:
        """Call `start` as soon as a slot is free; returns the place in the queue, 0 if there was no
        need to queue. `start` must be quick and must not raise; it may be called at once.

        A job of a batch has `give_way`, called at most once, to leave soon or to ignore it."""
        assert lease_id in self._taken, "a job enters the seat that it took"
        if len(self._running) < self.slots:
            self._running.add(lease_id)
            if give_way is not None:
                self._give_way[lease_id] = give_way
            start()
            return 0
        if give_way is not None:
            self._batch_waiting[lease_id] = start
            self._give_way[lease_id] = give_way
            return len(self._waiting) + len(self._batch_waiting)
        self._waiting[lease_id] = start
        place = len(self._waiting)
        yielding = next((id_ for id_ in reversed(self._give_way) if id_ in self._running), None)
        if yielding is not None:
            self._give_way.pop(yielding)()
        return place

    def leave(self, lease_id: LeaseId, *, ran_ms: float | None = None) -> None:
        """Free the seat, and start who waits longest. Leaving twice does nothing."""
        if lease_id not in self._taken:
            return
        self._taken.discard(lease_id)
        self._batch.discard(lease_id)
        self._waiting.pop(lease_id, None)
        self._batch_waiting.pop(lease_id, None)
        self._give_way.pop(lease_id, None)
        self._running.discard(lease_id)
        if ran_ms is not None:
            self._duration_ms += _NEWEST_WEIGHT * (ran_ms - self._duration_ms)
        while len(self._running) < self.slots and (queue := self._waiting or self._batch_waiting):
            following = next(iter(queue))
            self._running.add(following)
            queue.pop(following)()
