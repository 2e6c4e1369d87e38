"""When the parts of a job happened, in trio's time, and what the receipt says of them."""

import trio

from capanode.metering import Timing
from protocol.limits import CLOCK_SKEW_MAX_MS
from protocol.messages import Lease


class JobTimes:
    """Begins at the opening of the job. What never came is as late as the end."""

    def __init__(self) -> None:
        self.opened_at = trio.current_time()
        self._started_at: float | None = None
        self._first_output_at: float | None = None
        self._ended_at = self.opened_at

    def note_start(self) -> None:
        self._started_at = trio.current_time()

    def note_output(self) -> None:
        if self._first_output_at is None:
            self._first_output_at = trio.current_time()

    def note_end(self) -> None:
        self._ended_at = trio.current_time()

    @property
    def ran_ms(self) -> float | None:
        """How long the job had a slot; None if it never had one."""
        return None if self._started_at is None else 1000 * (self._ended_at - self._started_at)

    def timing(self) -> Timing:
        return Timing(
            queued_ms=self._since_open_ms(self._started_at),
            first_output_ms=self._since_open_ms(self._first_output_at),
            total_ms=self._since_open_ms(self._ended_at),
        )

    def _since_open_ms(self, at: float | None) -> int:
        return round(1000 * ((self._ended_at if at is None else at) - self.opened_at))


def work_deadline(lease: Lease, now_ms: int) -> float:
    """In trio's time, which no one can set back. Both stamps are the coordinator's: how long a job
    may take does not depend on whose clock is right. Opening late buys nothing, though: the hold
    does not wait for it, and work beyond would be for free."""
    whole_ms = lease.deadline_at_ms - lease.issued_at_ms
    left_ms = lease.deadline_at_ms + CLOCK_SKEW_MAX_MS - now_ms
    return trio.current_time() + min(whole_ms, left_ms) / 1000
