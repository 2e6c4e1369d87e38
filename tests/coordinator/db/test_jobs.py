"""Jobs as stored."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import pytest
from sqlalchemy import text

from coordinator.db.accounts import open_account
from coordinator.db.bulk import Record, run_records
from coordinator.db.engine import Connection
from coordinator.db.jobs import (
    StoredJob,
    find_jobs,
    list_jobs,
    record_job,
    record_job_end,
)
from coordinator.ledger.accounts import Account, AccountKind, account_of
from protocol.envelope import seal
from protocol.ids import PeerId
from protocol.job_state import JobState
from protocol.messages import Objective, Task
from tests.coordinator.evidence import CHAIN, LEASE, leased
from tests.protocol.makers import CLIENT, MODEL, NODE, NOW_MS


@pytest.fixture
def conn() -> Iterator[Connection]:
    with leased() as conn:
        yield conn


def its_job(conn: Connection) -> StoredJob:
    (found,) = list_jobs(conn, client=LEASE.client)
    return found


def leased_again(attempt: int) -> Record:
    return record_job(CHAIN.request, model_digest=MODEL, attempt=attempt, now_ms=NOW_MS)


def ended(attempt: int, state: JobState) -> Record:
    lease = replace(LEASE, attempt=attempt)
    return record_job_end(lease, state, ended_at_ms=NOW_MS + attempt, error_code=f"code_{attempt}")


def test_a_job_is_found_with_the_request_as_it_was_signed(conn: Connection) -> None:
    assert its_job(conn) == StoredJob(
        client=CLIENT.peer_id,
        job_id=LEASE.job_id,
        request=CHAIN.request.raw,
        task=Task.CAUSAL_LM,
        model_digest=MODEL,
        objective=Objective.BALANCED,
        created_at_ms=NOW_MS,
        attempt=0,
        state=JobState.LEASED,
        ended_at_ms=None,
        error_code=None,
    )


def test_two_clients_may_choose_the_same_id(conn: Connection) -> None:
    open_account(conn, Account(account_of(NODE.peer_id), AccountKind.CLIENT))
    other = seal(NODE, replace(CHAIN.request.message, client=NODE.peer_id))
    run_records(conn, [record_job(other, model_digest=MODEL, attempt=0, now_ms=NOW_MS)])
    run_records(conn, [ended(0, JobState.REFUSED)])
    assert {job.client: job.state for job in find_jobs(conn, LEASE.job_id)} == {
        CLIENT.peer_id: JobState.REFUSED,
        NODE.peer_id: JobState.LEASED,
    }


def test_a_job_moves_on(conn: Connection) -> None:
    run_records(conn, [ended(0, JobState.EXPIRED)])
    job = its_job(conn)
    assert (job.state, job.ended_at_ms, job.error_code) == (JobState.EXPIRED, NOW_MS, "code_0")


def test_an_answered_and_paid_job_does_not_expire_with_its_first_hold(conn: Connection) -> None:
    run_records(conn, [leased_again(1)])
    run_records(conn, [ended(1, JobState.SETTLED)])
    run_records(conn, [ended(0, JobState.EXPIRED)])
    assert its_job(conn).state is JobState.SETTLED


ENDS = (JobState.EXPIRED, JobState.REFUSED, JobState.SETTLED)


@pytest.mark.parametrize("ends", [(a, b, c) for a in ENDS for b in ENDS for c in ENDS], ids=str)
def test_the_order_in_which_attempts_end_does_not_matter(
    conn: Connection, ends: tuple[JobState, ...]
) -> None:
    """Settled if any attempt was, else what became of the last."""
    expected = JobState.SETTLED if JobState.SETTLED in ends else ends[-1]
    for order in permutations(range(3)):
        conn.execute(text("SAVEPOINT one_order"))
        for attempt in (1, 2):
            run_records(conn, [leased_again(attempt)])
        for attempt in order:
            run_records(conn, [ended(attempt, ends[attempt])])
        assert its_job(conn).state is expected, order
        conn.execute(text("ROLLBACK TO one_order"))


def test_a_job_that_was_refused_is_leased_again_unless_it_is_settled(conn: Connection) -> None:
    run_records(conn, [ended(0, JobState.REFUSED)])
    run_records(conn, [leased_again(1)])
    job = its_job(conn)
    assert (job.state, job.attempt, job.ended_at_ms) == (JobState.LEASED, 1, None)
    run_records(conn, [ended(1, JobState.SETTLED)])
    run_records(conn, [leased_again(2)])
    assert its_job(conn).state is JobState.SETTLED


def test_jobs_are_listed_newest_first_by_client_and_state(conn: Connection) -> None:
    for number in (1, 2, 3):
        conn.execute(
            text(
                "INSERT INTO jobs SELECT client, :id, request, task, model_digest, objective, "
                "created_at_ms, digest, attempt, 'settled', ended_at_ms, error_code "
                "FROM jobs LIMIT 1"
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
