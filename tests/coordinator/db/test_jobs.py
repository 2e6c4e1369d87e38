"""Jobs as stored."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from coordinator.db.bulk import run_records
from coordinator.db.engine import Connection
from coordinator.db.jobs import StoredJob, find_job, list_jobs, record_job_state
from coordinator.errors import ConstraintError
from protocol.ids import JobId, PeerId
from protocol.job_state import JobState
from protocol.messages import Objective, Task
from tests.coordinator.evidence import CHAIN, LEASE, leased
from tests.protocol.makers import CLIENT, MODEL, NOW_MS


@pytest.fixture
def conn() -> Iterator[Connection]:
    with leased() as conn:
        yield conn


def test_a_job_is_found_with_the_request_as_it_was_signed(conn: Connection) -> None:
    assert find_job(conn, LEASE.job_id) == StoredJob(
        job_id=LEASE.job_id,
        client=CLIENT.peer_id,
        request=CHAIN.request.raw,
        state=JobState.LEASED,
        task=Task.CAUSAL_LM,
        model_digest=MODEL,
        objective=Objective.BALANCED,
        api_key_id=None,
        created_at_ms=NOW_MS,
        ended_at_ms=None,
        error_code=None,
    )
    assert find_job(conn, JobId("0" * 26)) is None


def test_a_job_moves_on(conn: Connection) -> None:
    ended = record_job_state(
        LEASE.job_id, JobState.EXPIRED, ended_at_ms=NOW_MS + 9, error_code="node_lost"
    )
    run_records(conn, [ended])
    job = find_job(conn, LEASE.job_id)
    assert job is not None
    assert (job.state, job.ended_at_ms, job.error_code) == (
        JobState.EXPIRED,
        NOW_MS + 9,
        "node_lost",
    )


def test_a_job_that_does_not_exist_cannot_move(conn: Connection) -> None:
    with pytest.raises(ConstraintError):
        run_records(conn, [record_job_state(JobId("0" * 26), JobState.SETTLED)])


def test_jobs_are_listed_newest_first_by_client_and_state(conn: Connection) -> None:
    for number in (1, 2, 3):
        conn.execute(
            text(
                "INSERT INTO jobs SELECT :id, client, request, 'settled', task, model_digest, "
                "objective, api_key_id, created_at_ms, ended_at_ms, error_code FROM jobs LIMIT 1"
            ),
            {"id": f"7{number:025d}"},
        )
    listed = [job.job_id for job in list_jobs(conn)]
    assert listed == [f"7{3:025d}", f"7{2:025d}", f"7{1:025d}", LEASE.job_id]
    settled = list_jobs(conn, client=CLIENT.peer_id, state=JobState.SETTLED, limit=2)
    assert [job.job_id for job in settled] == listed[:2]
    rest = list_jobs(conn, before=settled[-1].job_id)
    assert [job.job_id for job in rest] == listed[2:]
    assert list_jobs(conn, client=PeerId("ghost")) == []
