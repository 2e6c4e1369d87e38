"""How long a job may take counts from when it was first leased, by the coordinator's clock."""

from dataclasses import replace

import pytest

from coordinator.leasing.leased_jobs import LeasedJobs
from protocol.envelope import seal
from tests.protocol.makers import CLIENT, NOW_MS, make_lease, make_request

TAKES_MS = 20_000


@pytest.mark.parametrize("client_is_ahead_ms", [-25_000, 0, 25_000])
def test_a_job_gets_its_whole_time_whatever_its_clients_clock_says(client_is_ahead_ms: int) -> None:
    issued_at_ms = NOW_MS + client_is_ahead_ms
    asked = replace(
        make_request(), issued_at_ms=issued_at_ms, deadline_at_ms=issued_at_ms + TAKES_MS
    )
    deadline_at_ms = LeasedJobs().deadline_at_ms(seal(CLIENT, asked), now_ms=NOW_MS)
    assert deadline_at_ms == NOW_MS + TAKES_MS


def test_a_part_is_leased_by_a_coordinator_that_first_tried_the_lease_of_an_earlier_one() -> None:
    """A restarted process takes a job for a new one, and finds its part 0 leased in the books:
    it refused part 1 then, as if another request had the job's id."""
    jobs, first = LeasedJobs(), make_lease(seal(CLIENT, make_request()))
    part = seal(CLIENT, replace(make_request(), part=1))
    jobs.note(replace(first, request_digest=part.digest), part=1)
    jobs.note(first)
    assert jobs.next_attempt(part) == 1
