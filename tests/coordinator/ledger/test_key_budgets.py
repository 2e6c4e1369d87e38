"""Budgets of API keys are enforced where the money is held, whatever the asker has read before."""

import random
from collections.abc import Iterator

import pytest

from coordinator.db.api_keys import ApiKey, create_api_key, list_api_keys, revoke_api_key
from coordinator.db.bulk import run_records
from coordinator.db.engine import Connection
from coordinator.db.transfers import record_hold_bound
from coordinator.db.writer import Posting, post, post_one
from coordinator.ledger.accounts import account_of
from coordinator.ledger.postings import LeaseFunds, capture, capture_late, expire, hold, release
from coordinator.ledger.refusals import ApiKeyRevokedError, BudgetExceededError, OutOfFundsError
from coordinator.ledger.transfers import Result
from tests.coordinator.ledger_makers import (
    ALICE,
    HOUR_MS,
    NODE,
    START_MS,
    Ulids,
    funds_of,
    memory_books,
)

TIMEOUT_MS = START_MS + HOUR_MS
BUDGET_NANO = 250
ULID = Ulids()


@pytest.fixture
def conn() -> Iterator[Connection]:
    with memory_books() as database, database.transaction() as conn:
        yield conn


def make_key(conn: Connection, budget_nano: int | None = BUDGET_NANO) -> ApiKey:
    entropy = random.Random(ULID()).randbytes
    return create_api_key(
        conn, account_of(ALICE), "", now_ms=START_MS, entropy=entropy, budget_nano=budget_nano
    )[1]


def reserve(conn: Connection, key: ApiKey, ceiling_nano: int = 100) -> LeaseFunds:
    funds = funds_of(ULID(), ceiling_nano=ceiling_nano)
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS, api_key_id=key.id), now_ms=START_MS)
    return funds


def spent_nano(conn: Connection, key: ApiKey) -> int:
    (spent,) = (found.spent_nano for found in list_api_keys(conn) if found.id == key.id)
    return spent


def test_holds_add_up_against_the_budget_until_they_end(conn: Connection) -> None:
    key = make_key(conn)
    first, second = reserve(conn, key), reserve(conn, key)
    with pytest.raises(BudgetExceededError):
        reserve(conn, key, 51)
    reserve(conn, key, 50)
    post_one(conn, release(first), now_ms=START_MS)
    reserve(conn, key, 100)
    post_one(conn, capture(second, 30, NODE, fee_bps=500), now_ms=START_MS)
    assert spent_nano(conn, key) == 30
    with pytest.raises(BudgetExceededError):
        reserve(conn, key, 71)
    reserve(conn, key, 70)


def test_holds_of_one_group_commit_share_one_budget(conn: Connection) -> None:
    key = make_key(conn)
    chains = [hold(funds_of(ULID()), timeout_at_ms=TIMEOUT_MS, api_key_id=key.id) for _ in range(5)]
    answers = post(conn, [Posting(chain) for chain in chains], now_ms=START_MS)
    results = [answer.result for answer in answers]
    assert results == [Result.CREATED] * 2 + [Result.EXCEEDS_BUDGET] * 3


def test_what_a_capture_frees_in_the_same_commit_may_be_held_again(conn: Connection) -> None:
    key = make_key(conn, 100)
    funds = reserve(conn, key)
    again = hold(funds_of(ULID(), ceiling_nano=70), timeout_at_ms=TIMEOUT_MS, api_key_id=key.id)
    more = hold(funds_of(ULID(), ceiling_nano=1), timeout_at_ms=TIMEOUT_MS, api_key_id=key.id)
    chains = [capture(funds, 30, NODE, fee_bps=500), again, more]
    answers = post(conn, [Posting(chain) for chain in chains], now_ms=START_MS)
    assert [answer.result for answer in answers] == [
        Result.CREATED,
        Result.CREATED,
        Result.EXCEEDS_BUDGET,
    ]


def test_a_late_capture_counts_as_spent_too_and_once(conn: Connection) -> None:
    key = make_key(conn)
    funds = reserve(conn, key)
    late = capture_late(funds, 30, NODE, fee_bps=500)
    for _ in range(2):
        post_one(conn, late, now_ms=TIMEOUT_MS)
    assert spent_nano(conn, key) == 30


def test_a_hold_that_ran_out_costs_the_key_nothing(conn: Connection) -> None:
    key = make_key(conn, 100)
    funds = reserve(conn, key)
    pending = hold(funds, timeout_at_ms=TIMEOUT_MS).transfers[0]
    post_one(conn, expire(pending), now_ms=TIMEOUT_MS)
    assert spent_nano(conn, key) == 0
    again = hold(funds_of(ULID()), timeout_at_ms=TIMEOUT_MS + 1, api_key_id=key.id)
    assert post_one(conn, again, now_ms=TIMEOUT_MS) is Result.CREATED


def test_a_revoked_key_holds_nothing_and_its_open_holds_are_still_paid(conn: Connection) -> None:
    key = make_key(conn, None)
    funds = reserve(conn, key)
    revoke_api_key(conn, key.id, now_ms=START_MS)
    with pytest.raises(ApiKeyRevokedError):
        reserve(conn, key)
    post_one(conn, capture(funds, 30, NODE, fee_bps=500), now_ms=START_MS)
    assert spent_nano(conn, key) == 30


def test_a_job_that_can_cost_no_more_frees_the_rest_of_its_budget(conn: Connection) -> None:
    key = make_key(conn, 100)
    funds = reserve(conn, key)
    run_records(conn, [record_hold_bound(funds.hold_id, 40), record_hold_bound(funds.hold_id, 90)])
    with pytest.raises(BudgetExceededError):
        reserve(conn, key, 61)
    reserve(conn, key, 60)
    chains = [
        capture(funds, 40, NODE, fee_bps=500),
        hold(funds_of(ULID(), ceiling_nano=1), timeout_at_ms=TIMEOUT_MS, api_key_id=key.id),
    ]
    answers = post(conn, [Posting(chain) for chain in chains], now_ms=START_MS)
    assert answers[1].result is Result.EXCEEDS_BUDGET, "the end of a hold frees what it counted"


def test_a_refused_hold_takes_nothing_from_the_budget(conn: Connection) -> None:
    key = make_key(conn, 10_000)
    with pytest.raises(OutOfFundsError):
        reserve(conn, key, 1_001)
    reserve(conn, key, 1_000)


def test_many_random_batches_never_overspend_a_budget(conn: Connection) -> None:
    rng = random.Random(4)
    key = make_key(conn, 400)
    open_funds: list[LeaseFunds] = []
    for _ in range(60):
        new = [funds_of(ULID(), ceiling_nano=rng.randint(1, 90)) for _ in range(3)]
        ending = [open_funds.pop() for _ in range(min(len(open_funds), rng.randint(0, 2)))]
        chains = [
            capture(funds, rng.randint(0, funds.ceiling_nano), NODE, fee_bps=500)
            for funds in ending
        ]
        chains += [hold(f, timeout_at_ms=TIMEOUT_MS, api_key_id=key.id) for f in new]
        answers = post(conn, [Posting(chain) for chain in chains], now_ms=START_MS)
        made = [answer.result is Result.CREATED for answer in answers[len(ending) :]]
        open_funds += [funds for funds, is_made in zip(new, made, strict=True) if is_made]
        held_nano = sum(funds.ceiling_nano for funds in open_funds)
        assert spent_nano(conn, key) + held_nano <= 400
