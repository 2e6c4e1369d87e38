"""The market's vocabulary, posted to real books."""

from collections.abc import Iterator

import pytest

from coordinator.audit.books import audit
from coordinator.db.accounts import find_account
from coordinator.db.engine import Connection
from coordinator.db.transfers import list_due_holds, list_transfers
from coordinator.db.writer import post_one
from coordinator.ledger.accounts import Account, AccountId, AccountKind, SystemAccount
from coordinator.ledger.postings import (
    capture,
    capture_late,
    credit,
    expire,
    hold,
    release,
    withdraw,
)
from coordinator.ledger.refusals import HoldEndedError, OutOfFundsError, PostingRefusedError
from coordinator.ledger.transfers import Result, TransferCode
from protocol.ids import TransferId, ulid_time_ms
from tests.coordinator.ledger_makers import (
    ALICE,
    HOUR_MS,
    NODE,
    START_MS,
    Ulids,
    account,
    funds_of,
    memory_books,
)

TIMEOUT_MS = START_MS + HOUR_MS


@pytest.fixture
def conn() -> Iterator[Connection]:
    """Books in which Alice and Bob have 1000 each; what a test leaves must balance."""
    with memory_books() as database, database.transaction() as conn:
        yield conn
        report = audit(conn)
        assert report.is_green, report.findings


@pytest.fixture
def ulid() -> Ulids:
    return Ulids()


def posted_nano(conn: Connection, account_id: str) -> int:
    found = find_account(conn, AccountId(account_id))
    return found.posted_nano if found else 0


def test_a_hold_reserves_the_ceiling(conn: Connection, ulid: Ulids) -> None:
    post_one(conn, hold(funds_of(ulid()), timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    alice = account(conn, ALICE)
    assert (alice.available_nano, alice.held_nano, alice.posted_nano) == (900, 100, 1_000)


def test_a_capture_pays_node_and_operator_and_frees_the_rest(conn: Connection, ulid: Ulids) -> None:
    funds = funds_of(ulid())
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    post_one(conn, capture(funds, 77, NODE, fee_bps=500), now_ms=START_MS)
    assert posted_nano(conn, ALICE) == 1_000 - 77
    assert account(conn, ALICE).held_nano == 0
    assert posted_nano(conn, NODE) == 73, "95 % of 77, rounded down"
    assert posted_nano(conn, SystemAccount.OPERATOR) == 4
    assert posted_nano(conn, SystemAccount.ESCROW) == 0


def test_the_first_earning_opens_the_nodes_account(conn: Connection, ulid: Ulids) -> None:
    funds = funds_of(ulid())
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    post_one(conn, capture(funds, 10, NODE, fee_bps=0), now_ms=START_MS)
    node = account(conn, NODE)
    assert node.kind is AccountKind.NODE
    assert node.created_at_ms == ulid_time_ms(funds.lease_id)


@pytest.mark.parametrize(("fee_bps", "node_nano", "fee_nano"), [(0, 50, 0), (10_000, 0, 50)])
def test_a_leg_of_nothing_is_not_posted(
    conn: Connection, ulid: Ulids, fee_bps: int, node_nano: int, fee_nano: int
) -> None:
    funds = funds_of(ulid())
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    chain = capture(funds, 50, NODE, fee_bps=fee_bps)
    assert len(chain.transfers) == 2
    post_one(conn, chain, now_ms=START_MS)
    assert posted_nano(conn, NODE) == node_nano
    assert posted_nano(conn, SystemAccount.OPERATOR) == fee_nano


def test_capturing_nothing_is_a_release(ulid: Ulids) -> None:
    funds = funds_of(ulid())
    assert capture(funds, 0, NODE, fee_bps=500) == release(funds)


def test_a_release_gives_everything_back(conn: Connection, ulid: Ulids) -> None:
    funds = funds_of(ulid())
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    post_one(conn, release(funds), now_ms=START_MS)
    assert account(conn, ALICE).available_nano == 1_000


def test_a_job_that_costs_nothing_is_held_and_captured_all_the_same(
    conn: Connection, ulid: Ulids
) -> None:
    funds = funds_of(ulid(), ceiling_nano=0)
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    post_one(conn, capture(funds, 0, NODE, fee_bps=500), now_ms=START_MS)
    assert account(conn, ALICE).available_nano == 1_000


def test_every_posting_may_be_repeated(conn: Connection, ulid: Ulids) -> None:
    funds = funds_of(ulid())
    chains = (
        hold(funds, timeout_at_ms=TIMEOUT_MS),
        capture(funds, 60, NODE, fee_bps=500),
        credit(TransferId(ulid()), AccountId(ALICE), 5),
        withdraw(TransferId(ulid()), AccountId(ALICE), 5),
    )
    for chain in chains:
        assert post_one(conn, chain, now_ms=START_MS) is Result.CREATED
        assert post_one(conn, chain, now_ms=START_MS + HOUR_MS) is Result.EXISTS
    assert posted_nano(conn, ALICE) == 1_000 - 60


def test_a_repeated_capture_of_another_amount_is_refused(conn: Connection, ulid: Ulids) -> None:
    funds = funds_of(ulid())
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    post_one(conn, capture(funds, 60, NODE, fee_bps=500), now_ms=START_MS)
    with pytest.raises(PostingRefusedError) as refused:
        post_one(conn, capture(funds, 61, NODE, fee_bps=500), now_ms=START_MS)
    assert refused.value.result is Result.EXISTS_WITH_DIFFERENT_AMOUNT


def test_nobody_is_charged_more_than_the_ceiling(conn: Connection, ulid: Ulids) -> None:
    funds = funds_of(ulid())
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    with pytest.raises(PostingRefusedError) as refused:
        post_one(conn, capture(funds, 101, NODE, fee_bps=500), now_ms=START_MS)
    assert refused.value.result is Result.EXCEEDS_PENDING_TRANSFER_AMOUNT
    assert find_account(conn, AccountId(NODE)) is None, "the node's account was not opened either"


def test_a_lease_is_captured_or_released_not_both(conn: Connection, ulid: Ulids) -> None:
    funds = funds_of(ulid())
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    post_one(conn, release(funds), now_ms=START_MS)
    with pytest.raises(HoldEndedError, match="already released"):
        post_one(conn, capture(funds, 60, NODE, fee_bps=500), now_ms=START_MS)


def test_an_expired_hold_is_given_back_by_name_of_the_hold_alone(
    conn: Connection, ulid: Ulids
) -> None:
    funds = funds_of(ulid())
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    assert list_due_holds(conn, TIMEOUT_MS - 1, limit=10) == []
    (due,) = list_due_holds(conn, TIMEOUT_MS, limit=10)
    post_one(conn, expire(due), now_ms=TIMEOUT_MS)
    assert account(conn, ALICE).available_nano == 1_000
    assert list_due_holds(conn, TIMEOUT_MS, limit=10) == []
    with pytest.raises(HoldEndedError, match="has expired"):
        post_one(conn, capture(funds, 60, NODE, fee_bps=500), now_ms=TIMEOUT_MS)


def test_a_capture_after_the_timeout_pays_like_one_before(conn: Connection, ulid: Ulids) -> None:
    funds, late = funds_of(ulid()), TIMEOUT_MS + 5
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    chain = capture_late(funds, 77, NODE, fee_bps=500)
    assert post_one(conn, chain, now_ms=late) is Result.CREATED
    assert post_one(conn, chain, now_ms=late) is Result.EXISTS
    assert account(conn, ALICE).available_nano == posted_nano(conn, ALICE) == 1_000 - 77
    assert posted_nano(conn, NODE) == 73
    assert posted_nano(conn, SystemAccount.OPERATOR) == 4


def test_a_late_capture_finds_the_money_that_its_own_hold_frees(
    conn: Connection, ulid: Ulids
) -> None:
    funds = funds_of(ulid(), ceiling_nano=1_000)
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    assert account(conn, ALICE).available_nano == 0
    post_one(conn, capture_late(funds, 1_000, NODE, fee_bps=500), now_ms=TIMEOUT_MS)
    assert posted_nano(conn, ALICE) == 0


def test_a_late_capture_of_nothing_is_an_expiry(conn: Connection, ulid: Ulids) -> None:
    funds = funds_of(ulid())
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    (due,) = list_due_holds(conn, TIMEOUT_MS, limit=10)
    assert capture_late(funds, 0, NODE, fee_bps=500) == expire(due)


def test_a_late_capture_before_the_timeout_is_refused(conn: Connection, ulid: Ulids) -> None:
    funds = funds_of(ulid())
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    with pytest.raises(PostingRefusedError) as refused:
        post_one(conn, capture_late(funds, 60, NODE, fee_bps=500), now_ms=TIMEOUT_MS - 1)
    assert refused.value.result is Result.PENDING_TRANSFER_NOT_YET_EXPIRED
    post_one(conn, capture(funds, 60, NODE, fee_bps=500), now_ms=TIMEOUT_MS - 1)


def test_a_lease_is_captured_in_time_or_late_or_given_back(conn: Connection, ulid: Ulids) -> None:
    captured, returned = funds_of(ulid()), funds_of(ulid())
    for funds in (captured, returned):
        post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    post_one(conn, capture(captured, 60, NODE, fee_bps=500), now_ms=START_MS)
    (due,) = list_due_holds(conn, TIMEOUT_MS, limit=10)
    post_one(conn, expire(due), now_ms=TIMEOUT_MS)
    for funds in (captured, returned):
        with pytest.raises(PostingRefusedError):
            post_one(conn, capture_late(funds, 60, NODE, fee_bps=500), now_ms=TIMEOUT_MS + 1)
    assert posted_nano(conn, ALICE) == 1_000 - 60


def test_credit_may_open_the_account(conn: Connection, ulid: Ulids) -> None:
    carol = Account(AccountId("carol"), AccountKind.CLIENT, label="Carol")
    post_one(conn, credit(TransferId(ulid()), carol.id, 5, opens=carol), now_ms=START_MS)
    assert account(conn, "carol") == carol._replace(credits_posted=5)


def test_a_withdrawal_takes_only_what_is_there(conn: Connection, ulid: Ulids) -> None:
    with pytest.raises(OutOfFundsError):
        post_one(conn, withdraw(TransferId(ulid()), AccountId(ALICE), 1_001), now_ms=START_MS)
    post_one(conn, withdraw(TransferId(ulid()), AccountId(ALICE), 1_000), now_ms=START_MS)
    assert account(conn, ALICE).available_nano == 0


def test_a_jobs_transfers_are_found_by_its_lease(conn: Connection, ulid: Ulids) -> None:
    funds = funds_of(ulid())
    post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
    (found,) = list_transfers(conn, limit=1)
    assert found.transfer.id == funds.hold_id
    assert found.transfer.code is TransferCode.HOLD
    assert found.transfer.job_id == funds.job_id


def test_ids_of_different_leases_and_legs_never_meet(ulid: Ulids) -> None:
    ids = [
        transfer.id
        for _ in range(50)
        for funds in [funds_of(ulid())]
        for chain in (
            hold(funds, timeout_at_ms=TIMEOUT_MS),
            capture(funds, 50, NODE, fee_bps=500),
            release(funds),
            expire(hold(funds, timeout_at_ms=TIMEOUT_MS).transfers[0]),
        )
        for transfer in chain.transfers
    ]
    assert len(set(ids)) == len(ids) == 50 * 6
