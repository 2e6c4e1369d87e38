"""Which job holds which row of the cache, kept so that decoding rows are always 0..n.

Attention then reads one strided batch with no gaps. The price is a copy of one row when a job in
the middle ends, about a millisecond for a few hundred tokens.
"""

from capanode.engines.attending import JobCache
from capanode.engines.generation import Generation


class Slots:
    """Rows 0..len(decoding) decode; prefilling jobs hold any other rows."""

    def __init__(self, cache: JobCache, count: int) -> None:
        self._cache = cache
        self._owners: list[Generation | None] = [None] * count
        self.decoding: list[Generation] = []  # the job in row i is decoding[i]
        self.prefilling: list[Generation] = []  # in order of admission

    @property
    def is_full(self) -> bool:
        return len(self.decoding) + len(self.prefilling) == len(self._owners)

    @property
    def is_empty(self) -> bool:
        return not self.decoding and not self.prefilling

    @property
    def token_count(self) -> int:
        """Tokens that the cache holds or is about to hold."""
        return sum(self.room_of(job) for job in (*self.decoding, *self.prefilling))

    def room_of(self, job: Generation) -> int:
        """Tokens that a job takes or is about to take, with what its last page has too many."""
        granule = self._cache.granule_tokens
        return -(-len(job.tokens) // granule) * granule

    def admit(self, job: Generation) -> None:
        """Give a waiting job a free row (see `is_full`)."""
        job.row = self._owners.index(None)
        job.cached = 0
        self._owners[job.row] = job
        self.prefilling.append(job)

    def activate(self, job: Generation) -> None:
        """A prefilled job joins the decoding rows."""
        target = len(self.decoding)
        occupant = self._owners[target]
        if occupant is None:
            self._cache.move(job.row, target, job.cached, 0)
            self._owners[job.row] = None
        elif occupant is not job:
            self._cache.swap(job.row, job.cached, target, occupant.cached)
            self._owners[job.row], occupant.row = occupant, job.row
        self._owners[target] = job
        job.row = target
        self.prefilling.remove(job)
        self.decoding.append(job)

    def vacate(self, job: Generation) -> None:
        """Take a job's row away and free its memory."""
        row, cached = job.row, job.cached
        self._owners[row] = None
        job.row, job.cached = -1, 0
        if job in self.prefilling:
            self.prefilling.remove(job)
            self._cache.release(row, cached)
            return
        last = self.decoding.pop()
        if last is job:
            self._cache.release(row, cached)
            return
        self._cache.move(last.row, row, last.cached, cached)
        self._owners[last.row] = None
        self._owners[row] = self.decoding[row] = last
        last.row = row
