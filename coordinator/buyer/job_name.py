"""The id of a job that others may have been told before the job is bought."""

import threading

from protocol.ids import JobId


class JobName:
    """An id that can be exchanged for that of a lease which was taken ahead, until it is told.

    A gateway tells it on the thread of its clients, and the market exchanges it on its own.
    """

    def __init__(self, job_id: JobId) -> None:
        self._id = job_id
        self._is_told = False
        self._parts = 0
        self._lock = threading.Lock()

    @property
    def id(self) -> JobId:
        """As it is now; only `tell` makes it last."""
        return self._id

    def tell(self) -> JobId:
        """The id, which will not change any more."""
        with self._lock:
            self._is_told = True
            return self._id

    def adopt(self, job_id: JobId) -> bool:
        """Take another id; False if the old one was told already."""
        with self._lock:
            if self._is_told:
                return False
            self._id, self._is_told = job_id, True
            self._parts = 1
            return True

    def next_part(self) -> int:
        """The number of the next request with this id: part 0 of an id that was adopted was its
        lease's."""
        with self._lock:
            part = self._parts
            self._parts += part > 0
            return part
