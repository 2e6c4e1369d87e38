"""How long a job may take counts from when it was first leased, by the coordinator's clock."""

from dataclasses import replace

import pytest

from coordinator.leasing.leased_jobs import LeasedJobs
from protocol.envelope import seal
from tests.protocol.makers import CLIENT, NOW_MS, make_request

TAKES_MS = 20_000


@pytest.mark.parametrize("client_is_ahead_ms", [-25_000, 0, 25_000])
def test_a_job_gets_its_whole_time_whatever_its_clients_clock_says(client_is_ahead_ms: int) -> None:
    issued_at_ms = NOW_MS + client_is_ahead_ms
    asked = replace(
        make_request(), issued_at_ms=issued_at_ms, deadline_at_ms=issued_at_ms + TAKES_MS
    )
    deadline_at_ms = LeasedJobs().deadline_at_ms(seal(CLIENT, asked), now_ms=NOW_MS)
    assert deadline_at_ms == NOW_MS + TAKES_MS
