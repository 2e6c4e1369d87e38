"""What is remembered of nodes, how it fades, and what it does to their claims."""

import random

import numpy as np
import pytest

from coordinator.market.breaker import FAILURES_TO_OPEN, REFUSED_TO_COOL, BreakerState
from coordinator.market.reputation import NodeStanding, Reputation
from coordinator.market.standing_rows import HALF_LIFE_MS, Ratios
from coordinator.market.standings import PRIOR_RATIO, Standings
from protocol.blame import Blame, blame_by_receipt, blame_for
from protocol.endings import Finish
from protocol.errors import RETRYABLE_ELSEWHERE, Code
from tests.coordinator.market_makers import NOW_MS, SOURCE, node, record

HOUR_MS = 3_600_000


def fresh(*, nodes_max: int = 100) -> Reputation:
    return Reputation(rng=random.Random(3), nodes_max=nodes_max)


def standing(reputation: Reputation, number: int = 1, *, now_ms: int = NOW_MS) -> NodeStanding:
    found = reputation.standing(node(number), now_ms=now_ms)
    assert found is not None
    return found


def row(reputation: Reputation, number: int = 1, *, now_ms: int = NOW_MS) -> Standings:
    slot = reputation.pin(node(number))
    reputation.unpin(node(number))
    return reputation.standings(np.array([slot]), now_ms=now_ms)


def fail(reputation: Reputation, times: int, *, now_ms: int = NOW_MS, number: int = 1) -> None:
    for _ in range(times):
        record(reputation, node(number), Code.WORKER_CRASHED, now_ms=now_ms)


def test_a_stranger_is_believed_but_not_quite() -> None:
    reputation = fresh()
    assert reputation.standing(node(1), now_ms=NOW_MS) is None
    assert float(row(reputation).success()[0]) == pytest.approx(0.9)
    assert float(row(reputation).first_ratio()[0]) == pytest.approx(PRIOR_RATIO)


def test_success_and_failure_move_the_estimate() -> None:
    reputation = fresh()
    for _ in range(30):
        reputation.record_success(node(1), SOURCE, now_ms=NOW_MS)
    assert standing(reputation).success_rate > 0.97
    fail(reputation, 10)
    assert standing(reputation).success_rate < 0.8
    assert standing(reputation).last_code is Code.WORKER_CRASHED
    assert (standing(reputation).successes, standing(reputation).failures) == (30, 10)


def test_evidence_fades_back_to_the_prior() -> None:
    reputation = fresh()
    fail(reputation, 20)
    low = standing(reputation).success_rate
    half = standing(reputation, now_ms=NOW_MS + HALF_LIFE_MS).success_rate
    later = standing(reputation, now_ms=NOW_MS + 24 * HOUR_MS).success_rate
    assert low < half < later
    assert later == pytest.approx(0.9)


def test_failures_in_a_row_open_the_breaker_and_make_the_node_new_again() -> None:
    reputation = fresh()
    for _ in range(20):
        reputation.record_success(node(1), SOURCE, now_ms=NOW_MS)
    fail(reputation, FAILURES_TO_OPEN)
    assert standing(reputation).breaker is BreakerState.OPEN
    assert bool(row(reputation).is_open(NOW_MS)[0])
    assert float(row(reputation).familiar()[0]) == 0


def test_a_node_that_fails_every_other_job_is_caught_too() -> None:
    reputation = fresh()
    for _ in range(4):
        reputation.record_success(node(1), SOURCE, now_ms=NOW_MS)
        fail(reputation, 1)
    assert standing(reputation).breaker is BreakerState.OPEN


def test_a_probe_blocks_others_until_its_outcome() -> None:
    reputation = fresh()
    fail(reputation, FAILURES_TO_OPEN)
    later_ms = standing(reputation).blocked_until_ms
    assert not row(reputation, now_ms=later_ms).is_open(later_ms)[0]
    reputation.start_attempt(node(1), now_ms=later_ms)
    assert row(reputation, now_ms=later_ms).is_open(later_ms)[0]
    record(reputation, node(1), Code.CANCELLED, now_ms=later_ms)
    assert not row(reputation, now_ms=later_ms).is_open(later_ms)[0]
    reputation.start_attempt(node(1), now_ms=later_ms)
    reputation.record_success(node(1), SOURCE, now_ms=later_ms)
    assert standing(reputation, now_ms=later_ms).breaker is BreakerState.CLOSED


def test_refusals_cool_down_but_are_no_errors() -> None:
    reputation = fresh()
    for number in range(10):
        record(reputation, node(1), Code.BUSY, now_ms=NOW_MS + number * 120_000)
    now_ms = NOW_MS + 9 * 120_000
    assert standing(reputation, now_ms=now_ms).breaker is BreakerState.CLOSED
    assert row(reputation, now_ms=now_ms).is_cooling(now_ms)[0]
    assert standing(reputation, now_ms=now_ms).refusal_rate > 0.7
    assert standing(reputation, now_ms=now_ms).success_rate == pytest.approx(0.9)


def test_a_retry_after_is_honoured() -> None:
    reputation = fresh()
    for client in range(REFUSED_TO_COOL):
        record(
            reputation,
            node(1),
            Code.DRAINING,
            now_ms=NOW_MS,
            retry_after_ms=7_000,
            client=client,
        )
    assert standing(reputation).blocked_until_ms == NOW_MS + 7_000


def test_a_node_that_blames_every_client_cools_down() -> None:
    reputation = fresh()
    for client in range(5):
        record(reputation, node(1), Code.INVALID_INPUT, now_ms=NOW_MS, client=client)
    assert standing(reputation).blocked_until_ms == 0
    record(reputation, node(1), Code.INVALID_INPUT, now_ms=NOW_MS, client=5)
    assert standing(reputation).blocked_until_ms > NOW_MS


def test_one_client_cannot_make_a_node_look_as_if_it_blamed_everybody() -> None:
    reputation = fresh()
    for _ in range(100):
        record(reputation, node(1), Code.INVALID_INPUT, now_ms=NOW_MS, client=7)
    assert standing(reputation).blocked_until_ms == 0


def test_an_exaggerated_claim_is_corrected_within_a_few_jobs() -> None:
    reputation = fresh()
    for _ in range(4):
        reputation.record_success(node(1), SOURCE, now_ms=NOW_MS, ratios=Ratios(10.0, 5.0))
    assert standing(reputation).first_ratio > 6.0
    assert 3.0 < standing(reputation).decode_ratio < 5.0


def test_leaving_buys_no_clean_slate() -> None:
    reputation = fresh()
    reputation.pin(node(1))
    fail(reputation, FAILURES_TO_OPEN)
    reputation.unpin(node(1))
    slot = reputation.pin(node(1))
    assert reputation.standings(np.array([slot]), now_ms=NOW_MS).is_open(NOW_MS)[0]


def test_memory_is_bounded_and_bad_records_are_kept_longest() -> None:
    reputation = fresh(nodes_max=10)
    fail(reputation, FAILURES_TO_OPEN, number=0)
    for number in range(1, 200):
        reputation.record_success(node(number), SOURCE, now_ms=NOW_MS)
    assert len(reputation) == 10
    assert standing(reputation, 0).breaker is BreakerState.OPEN


def test_a_forgotten_slot_is_clean_for_the_next_node() -> None:
    reputation = fresh(nodes_max=1)
    fail(reputation, FAILURES_TO_OPEN, number=1)
    assert float(row(reputation, 2).success()[0]) == pytest.approx(0.9)
    assert reputation.standing(node(1), now_ms=NOW_MS) is None


def test_a_snapshot_lists_everyone_in_order() -> None:
    reputation = fresh()
    for number in (3, 1, 2):
        reputation.record_success(node(number), SOURCE, now_ms=NOW_MS)
    snapshot = reputation.snapshot(now_ms=NOW_MS)
    assert [s.node for s in snapshot] == sorted(node(n) for n in (1, 2, 3))
    assert snapshot[0] == reputation.standing(snapshot[0].node, now_ms=NOW_MS)


def test_the_same_seed_gives_the_same_jitter() -> None:
    first, second = fresh(), fresh()
    for reputation in (first, second):
        fail(reputation, 5)
        record(reputation, node(2), Code.BUSY, now_ms=NOW_MS)
    assert first.snapshot(now_ms=NOW_MS) == second.snapshot(now_ms=NOW_MS)


@pytest.mark.parametrize(
    ("code", "blame"),
    [
        (Code.BUSY, Blame.REFUSAL),
        (Code.WORKER_CRASHED, Blame.FAILURE),
        (Code.NODE_LOST, Blame.FAILURE),
        (Code.RECEIPT_MISMATCH, Blame.FAILURE),
        (Code.PROMPT_TOO_LONG, Blame.CLIENT),
        (Code.CANCELLED, Blame.NEUTRAL),
    ],
)
def test_codes_blame_whom_they_should(code: Code, blame: Blame) -> None:
    assert blame_for(code) is blame


@pytest.mark.parametrize("code", list(Code))
def test_a_receipt_alone_blames_no_node_for_what_its_client_may_have_done(code: Code) -> None:
    """All that a client can send, or fail to send in time, ends in one of these."""
    provoked = {
        *(Code.MALFORMED, Code.FRAME_TOO_LARGE, Code.TRUNCATED, Code.TRAILING_BYTES),
        *(Code.UNKNOWN_VERSION, Code.UNEXPECTED_FRAME, Code.BAD_SIGNATURE, Code.WRONG_SIGNER),
        *(Code.WRONG_AUDIENCE, Code.EXPIRED, Code.NOT_YET_VALID, Code.REPLAYED),
        *(Code.DIGEST_MISMATCH, Code.INVALID_INPUT, Code.PROMPT_TOO_LONG, Code.INPUT_TOO_LARGE),
        *(Code.INVALID_IMAGE, Code.IMAGE_TOO_LARGE, Code.POISON_INPUT),
    }
    refused = blame_by_receipt(code, Finish.REFUSED)
    if code in provoked or code is Code.DEADLINE_EXCEEDED:
        assert refused is Blame.CLIENT
    else:
        assert refused is blame_for(code)


def test_a_node_that_accepted_a_job_and_was_too_slow_has_failed() -> None:
    assert blame_by_receipt(Code.DEADLINE_EXCEEDED, Finish.FAILED) is Blame.FAILURE


def test_what_is_retried_elsewhere_counts_against_the_node() -> None:
    ours = {Code.COORDINATOR_LOST}
    for code in RETRYABLE_ELSEWHERE - ours:
        assert blame_for(code) in (Blame.FAILURE, Blame.REFUSAL), code


def test_silence_makes_no_stranger_of_a_node_with_a_record() -> None:
    reputation = fresh()
    for _ in range(3):
        reputation.record_success(node(1), SOURCE, now_ms=NOW_MS)
    tomorrow = NOW_MS + 24 * HOUR_MS
    assert reputation.is_proven(node(1), now_ms=tomorrow)
    fail(reputation, 1, now_ms=tomorrow)
    assert not reputation.is_proven(node(1), now_ms=tomorrow), "a failure does"
    assert reputation.had_a_record(node(1), at_ms=tomorrow, now_ms=tomorrow + 1)
    assert not reputation.had_a_record(node(1), at_ms=tomorrow + 1, now_ms=tomorrow + 1)
