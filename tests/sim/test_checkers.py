from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from capanode.seats import Seats
from capanode.served import ServedModel
from coordinator.buyer.result import AttemptResult, PurchasePart, PurchaseResult
from coordinator.leasing.open_lease import OpenLease
from coordinator.market.offers import OfferBook
from coordinator.market.reputation import Reputation
from protocol.endings import Finish
from protocol.envelope import seal
from protocol.errors import Code
from protocol.ids import JobId, LeaseId, derive_ulid
from protocol.limits import RECEIPT_GRACE_MS
from protocol.messages import Task
from protocol.pricing import PriceSheet, Units
from sim.auditor import TakenAhead
from sim.buyer import End, JobReport
from sim.checkers import (
    HONEST_SHARES,
    LEASES_OF_BAD_NODE_MAX,
    LOST_AT_BAD_NODE_MAX,
    check_bad_client,
    check_bad_node,
    check_book,
    check_channels,
    check_holds,
    check_idle,
    check_job,
    check_model,
    check_pool,
    check_shares,
    check_taken_ahead,
    honest_shares,
)
from sim.options import NO_FAULTS, SimMachine, WorldOptions
from sim.sim_worker import Ailments, SimWorker, text_of
from sim.vices import Habit, Vice
from sim.workload import PlannedJob, plan_probes
from tests.coordinator.market_makers import NOW_MS, node_offer, sealed
from tests.protocol.makers import (
    CLIENT,
    COORDINATOR,
    JOB_ID,
    LEASE_ID,
    make_chain,
    make_lease,
    make_request,
)

PLANNED: PlannedJob = plan_probes(WorldOptions(), Random(1))[0]


def test_a_lease_ahead_serves_one_job_and_costs_nothing_without_one() -> None:
    report = answered()
    report.job_id, other = JOB_ID, JobId(derive_ulid(JOB_ID, "other"))
    taken = {
        LEASE_ID: TakenAhead(JOB_ID, 7, is_of_gateway=False),
        LeaseId(derive_ulid(LEASE_ID, "1")): TakenAhead(other, 0, is_of_gateway=False),
        LeaseId(derive_ulid(LEASE_ID, "2")): TakenAhead(other, 7, is_of_gateway=True),
    }
    assert list(check_taken_ahead(taken, [report])) == []
    assert len(list(check_taken_ahead(taken, []))) == 1
    (twice,) = check_taken_ahead(taken, [report, report])
    assert JOB_ID in twice
    assert list(check_pool("client-1", 0)) == []
    assert len(list(check_pool("client-1", 2))) == 1


def answered() -> JobReport:
    """What a client has after a job that went well."""
    chain = make_chain()
    answer = PLANNED.answer
    return JobReport(
        PLANNED,
        end=End.ANSWERED,
        attempts=1,
        token_ids=answer.token_ids,
        text=answer.text,
        chunks=len(answer.token_ids),
        outcome=PurchaseResult.over(
            [
                PurchasePart.of(
                    AttemptResult(
                        Finish(answer.reason), answer.units, 5, chain.receipt, chain.acceptance
                    ),
                    tokens_used=answer.units.output_tokens,
                )
            ],
            Finish(answer.reason),
        ),
    )


def failed(code: Code, *, chunks: int = 0, is_bad: bool = False) -> JobReport:
    end = End.CUT if chunks else End.FAILED
    planned = replace(PLANNED, is_bad=is_bad)
    report = JobReport(planned, end=end, code=code, chunks=chunks)
    report.token_ids = PLANNED.answer.token_ids[:chunks]
    report.text = "".join(f"w{token} " for token in report.token_ids)
    return report


@pytest.mark.parametrize(
    "report",
    [
        answered(),
        failed(Code.NODE_LOST),
        failed(Code.WORKER_CRASHED, chunks=2),
        failed(Code.INPUT_TOO_LARGE, is_bad=True),
    ],
)
def test_an_honest_end_is_no_violation(report: JobReport) -> None:
    assert list(check_job(report)) == []


def lose_a_token(report: JobReport) -> None:
    report.token_ids = report.token_ids[:1] + report.token_ids[2:]


def double_a_token(report: JobReport) -> None:
    report.token_ids = report.token_ids[:1] + report.token_ids


def swap_tokens(report: JobReport) -> None:
    first, second, *rest = report.token_ids
    report.token_ids = (second, first, *rest)


def stop_short(report: JobReport) -> None:
    report.token_ids = report.token_ids[:-1]
    report.text = "".join(f"w{token} " for token in report.token_ids)


def lose_text(report: JobReport) -> None:
    report.text = report.text[1:]


def lose_the_receipt(report: JobReport) -> None:
    report.outcome = None


def bill_another_count(report: JobReport) -> None:
    assert report.outcome is not None
    report.outcome = replace(report.outcome, units=Units(1, 1))


def end_otherwise(report: JobReport) -> None:
    assert report.outcome is not None
    report.outcome = replace(report.outcome, finish=Finish.FAILED)


def answer_a_bad_input(report: JobReport) -> None:
    report.planned = replace(report.planned, is_bad=True)


@pytest.mark.parametrize(
    "spoil",
    [
        lose_a_token,
        double_a_token,
        swap_tokens,
        stop_short,
        lose_text,
        lose_the_receipt,
        bill_another_count,
        end_otherwise,
        answer_a_bad_input,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_a_wrong_answer_is_a_violation(spoil: Callable[[JobReport], None]) -> None:
    report = answered()
    spoil(report)
    assert list(check_job(report))


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.REPLAYED, Code.EXPIRED, Code.INPUT_TOO_LARGE])
def test_a_code_that_no_honest_party_earns_is_a_violation(code: Code) -> None:
    assert list(check_job(failed(code)))


@pytest.mark.parametrize(
    ("deadline_s", "waited_s", "is_honest"),
    [(20.0, 20.0, True), (20.0, 19.0, False), (60.0, 60.0, False)],
)
def test_a_deadline_is_neither_early_nor_the_end_of_a_forgotten_job(
    deadline_s: float, waited_s: float, is_honest: bool
) -> None:
    report = failed(Code.DEADLINE_EXCEEDED)
    report.planned = replace(PLANNED, spec=replace(PLANNED.spec, deadline_s=deadline_s))
    report.total_ms = 1000 * waited_s
    assert (not list(check_job(report))) is is_honest


def test_a_code_that_is_more_frequent_than_faults_explain_is_a_violation() -> None:
    reports = [answered()] * 70 + [failed(Code.BUSY)] * 20
    assert list(check_shares(reports, HONEST_SHARES)) == []
    reports += [failed(Code.BUSY)] * 20
    (violation,) = check_shares(reports, HONEST_SHARES)
    assert "40 of 110 jobs failed with busy" in violation
    together = replace(failed(Code.BUSY), planned=replace(PLANNED, run="run-1"))
    assert list(check_shares([answered()] * 70 + [together] * 40, HONEST_SHARES)) == []


def test_a_bad_machine_costs_a_bounded_number_of_leases_and_jobs() -> None:
    most = LEASES_OF_BAD_NODE_MAX
    jobs = [derive_ulid(LEASE_ID, f"job/{number}") for number in range(most + 1)]
    leased = list(map(JobId, jobs))
    lost = [replace(failed(Code.NODE_LOST), job_id=job_id) for job_id in leased]

    def check(leases: int, losses: int, vice: Vice = Vice.STALLING) -> list[str]:
        return list(check_bad_node("bad", vice, {1: leased[:leases]}, lost[:losses]))

    assert not check(most, LOST_AT_BAD_NODE_MAX)
    assert check(most + 1, 0)
    assert check(most, LOST_AT_BAD_NODE_MAX + 1)
    assert not check(most + 1, most + 1, Vice.GARBAGE)
    twice = {1: leased[:most], 2: leased[:most]}
    assert not list(check_bad_node("bad", Vice.SILENT, twice, lost[:1]))


def test_a_client_may_choose_the_job_id_of_another() -> None:
    taken = [Code.BUSY, Code.REPLAYED]
    assert list(check_bad_client("bad", Habit.SQUATTING, taken))
    assert not list(check_bad_client("bad", Habit.SQUATTING, [Code.BUSY]))
    assert not list(check_bad_client("bad", Habit.REPLAYING, taken))


def test_a_full_disk_is_honest_only_where_a_disk_was_full() -> None:
    report = failed(Code.STORAGE_FULL)
    assert list(check_job(report, honest=honest_shares(NO_FAULTS)))
    assert not list(check_job(report, honest=honest_shares(replace(NO_FAULTS, disk_fulls=1))))


def test_tokens_that_a_bad_node_makes_up_are_only_counted() -> None:
    report = answered()
    swap_tokens(report)
    report.text = "".join(map(text_of, report.token_ids))
    assert list(check_job(report))
    assert not list(check_job(report, is_garbled=True))


def test_a_failure_that_delivered_is_a_violation() -> None:
    report = failed(Code.NODE_LOST)
    report.chunks = 1
    assert list(check_job(report))


def model(*, running: int, queued: int, most_live: int) -> ServedModel:
    machine = SimMachine("test", 1, 1, 0.0, 2, 1, PriceSheet())
    worker = SimWorker(Task.CAUSAL_LM, machine, Ailments(1.0), on_state=lambda state: None)
    worker.most_live = most_live
    seats = SimpleNamespace(slots=2, queue_max=1, running=running, queued=queued)
    return cast(ServedModel, SimpleNamespace(seats=cast(Seats, seats), worker=worker))


def test_slots_and_queue_are_bounded() -> None:
    assert not list(check_model("m", model(running=2, queued=1, most_live=2)))
    assert list(check_model("m", model(running=3, queued=0, most_live=0)))
    assert list(check_model("m", model(running=0, queued=0, most_live=3)))
    assert list(check_model("m", model(running=2, queued=2, most_live=2)))


def test_what_still_runs_when_no_job_is_left_is_a_violation() -> None:
    assert not list(check_idle("m", model(running=0, queued=0, most_live=2)))
    assert list(check_idle("m", model(running=1, queued=0, most_live=2)))
    assert list(check_idle("m", model(running=0, queued=1, most_live=2)))


def test_a_lease_that_the_book_keeps_is_a_violation() -> None:
    book = OfferBook(Reputation(rng=Random(1)))
    signed = sealed(1, node_offer(1))
    book.insert(signed, now_ms=NOW_MS)
    (digest,) = (model.manifest_digest for model in signed.message.models)
    assert not list(check_book(book))
    node = signed.message.node
    book.grant(LEASE_ID, node, digest, expires_at_ms=NOW_MS + 1_000)
    assert len(list(check_book(book))) == 1
    book.release(LEASE_ID)
    assert not list(check_book(book))


def test_channels_are_bounded() -> None:
    assert not list(check_channels("c", 2 * 256, 2))
    assert list(check_channels("c", 2 * 256 + 1, 2))


def test_holds_belong_to_open_leases_and_end_in_time() -> None:
    lease = seal(COORDINATOR, make_lease(seal(CLIENT, make_request())))
    leases = [OpenLease(lease, None)]
    ends_ms = lease.message.deadline_at_ms + RECEIPT_GRACE_MS
    ceiling_nano = lease.message.ceiling_nano

    def check(held_nano: int, now_ms: int) -> list[str]:
        held: dict[str, Any] = {CLIENT.peer_id: held_nano}
        return list(check_holds(leases, held, now_ms=now_ms, late_ms=1_000))

    assert check(ceiling_nano, ends_ms) == []
    assert check(0, ends_ms + 1_000) == []
    assert len(check(ceiling_nano + 1, ends_ms)) == 1
    assert len(check(ceiling_nano, ends_ms + 1_001)) == 1
    leases.clear()
    assert len(check(1, ends_ms)) == 1
