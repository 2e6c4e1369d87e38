"""The ledger's rules, one by one; their combinations are in test_machine_model.py."""

from dataclasses import replace

import pytest

from coordinator.ledger.accounts import Account, AccountId, AccountKind
from coordinator.ledger.machine import Applied, Book, Chain, ChainResult, apply_chains
from coordinator.ledger.transfers import Result, Transfer, TransferCode, TransferKind
from protocol.ids import JobId, TransferId
from protocol.money import AMOUNT_NANO_MAX
from tests.coordinator.ledger_makers import (
    HOUR_MS,
    START_MS,
    Ulids,
    pending,
    posted,
    resolving,
)

POST, VOID, EXPIRE = TransferKind.POST, TransferKind.VOID, TransferKind.EXPIRE


def rich_book(*others: Transfer) -> Book:
    """Alice has 100, Bob nothing, the bank may overdraw. `others` happened before, unaccounted."""
    accounts = (
        Account(AccountId("alice"), AccountKind.CLIENT, credits_posted=100),
        Account(AccountId("bob"), AccountKind.CLIENT),
        Account(AccountId("bank"), AccountKind.SYSTEM, may_overdraw=True, debits_posted=100),
    )
    return Book(
        accounts={account.id: account for account in accounts},
        existing={transfer.id: transfer for transfer in others},
        holds={},
        resolutions={},
        failed_ids=frozenset(),
        last_sequence=7,
        last_at_ns=START_MS * 1_000_000,
    )


def submit(book: Book, *transfers: Transfer, now_ms: int = START_MS) -> Applied:
    """Each transfer as a chain of its own, in one batch."""
    return apply_chains(book, [Chain((transfer,)) for transfer in transfers], now_ms=now_ms)


def results(applied: Applied) -> list[Result]:
    return [result.result for result in applied.results]


def balances(applied: Applied) -> dict[str, tuple[int, int, int, int]]:
    return {
        account.id: (
            account.debits_pending,
            account.debits_posted,
            account.credits_pending,
            account.credits_posted,
        )
        for account in applied.accounts
    }


@pytest.fixture
def ulid() -> Ulids:
    return Ulids()


def test_a_posted_transfer_moves_money_at_once(ulid: Ulids) -> None:
    applied = submit(rich_book(), posted(ulid(), "alice", "bob", 30))
    assert results(applied) == [Result.CREATED]
    assert balances(applied) == {"alice": (0, 30, 0, 100), "bob": (0, 0, 0, 30)}


def test_sequences_are_dense_and_times_increase(ulid: Ulids) -> None:
    applied = submit(rich_book(), *(posted(ulid(), "alice", "bob", 1) for _ in range(3)))
    assert len(applied.transfers) == 3
    assert applied.first_sequence == 8
    assert applied.first_at_ns == START_MS * 1_000_000 + 1, "the clock stood still, the books not"


def test_a_clock_set_back_does_not_turn_the_books_back(ulid: Ulids) -> None:
    applied = submit(rich_book(), posted(ulid(), "alice", "bob", 1), now_ms=START_MS - HOUR_MS)
    assert applied.first_at_ns == START_MS * 1_000_000 + 1


def test_an_account_cannot_spend_more_than_it_has(ulid: Ulids) -> None:
    applied = submit(
        rich_book(), posted(ulid(), "alice", "bob", 101), posted(ulid(), "alice", "bob", 100)
    )
    assert results(applied) == [Result.EXCEEDS_CREDITS, Result.CREATED]


def test_held_money_cannot_be_spent_again_and_incoming_holds_do_not_count(ulid: Ulids) -> None:
    applied = submit(
        rich_book(),
        pending(ulid(), "alice", "bob", 60),
        posted(ulid(), "alice", "bob", 41),
        posted(ulid(), "bob", "alice", 1),
    )
    assert results(applied) == [Result.CREATED, Result.EXCEEDS_CREDITS, Result.EXCEEDS_CREDITS]


def test_an_account_that_may_overdraw_does(ulid: Ulids) -> None:
    applied = submit(rich_book(), posted(ulid(), "bank", "bob", 5_000))
    assert balances(applied) == {"bank": (0, 5_100, 0, 0), "bob": (0, 0, 0, 5_000)}


def test_posting_less_than_was_held_releases_the_rest(ulid: Ulids) -> None:
    hold = pending(ulid(), "alice", "bob", 60)
    applied = submit(rich_book(), hold, resolving(ulid(), hold, POST, 25))
    assert results(applied) == [Result.CREATED, Result.CREATED]
    assert balances(applied) == {"alice": (0, 25, 0, 100), "bob": (0, 0, 0, 25)}
    assert applied.opened_holds == []


@pytest.mark.parametrize("kind", [VOID, EXPIRE])
def test_voiding_or_expiring_releases_everything(ulid: Ulids, kind: TransferKind) -> None:
    hold = pending(ulid(), "alice", "bob", 60)
    book = replace(rich_book(), holds={hold.id: hold})
    book = replace(
        book,
        accounts={
            **book.accounts,
            AccountId("alice"): book.accounts[AccountId("alice")]._replace(debits_pending=60),
            AccountId("bob"): book.accounts[AccountId("bob")]._replace(credits_pending=60),
        },
    )
    now_ms = START_MS + (HOUR_MS if kind is EXPIRE else 0)
    applied = submit(book, resolving(ulid(), hold, kind), now_ms=now_ms)
    assert results(applied) == [Result.CREATED]
    assert balances(applied) == {"alice": (0, 0, 0, 100), "bob": (0, 0, 0, 0)}
    assert applied.closed_holds == [hold.id]


def test_a_hold_is_resolved_at_most_once(ulid: Ulids) -> None:
    hold = pending(ulid(), "alice", "bob", 60)
    applied = submit(
        rich_book(),
        hold,
        resolving(ulid(), hold, VOID),
        resolving(ulid(), hold, POST, 10),
        resolving(ulid(), hold, VOID),
    )
    assert results(applied)[2:] == [Result.PENDING_TRANSFER_ALREADY_VOIDED] * 2


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        (POST, Result.PENDING_TRANSFER_ALREADY_POSTED),
        (VOID, Result.PENDING_TRANSFER_ALREADY_VOIDED),
        (EXPIRE, Result.PENDING_TRANSFER_ALREADY_EXPIRED),
    ],
)
def test_the_result_says_how_an_old_hold_ended(
    ulid: Ulids, kind: TransferKind, result: Result
) -> None:
    hold = pending(ulid(), "alice", "bob", 60)
    book = replace(rich_book(hold), resolutions={hold.id: kind})
    assert results(submit(book, resolving(ulid(), hold, POST, 10))) == [result]


def test_a_hold_is_over_at_its_timeout_even_before_the_sweep(ulid: Ulids) -> None:
    hold = pending(ulid(), "alice", "bob", 60, timeout_at_ms=START_MS + 10)
    book = replace(rich_book(), holds={hold.id: hold})
    late = submit(book, resolving(ulid(), hold, POST, 10), now_ms=START_MS + 10)
    assert results(late) == [Result.PENDING_TRANSFER_ALREADY_EXPIRED]
    early = submit(book, resolving(ulid(), hold, EXPIRE), now_ms=START_MS + 9)
    assert results(early) == [Result.PENDING_TRANSFER_NOT_YET_EXPIRED]
    assert early.failed_ids == [], "the sweep must be able to come again"


def test_a_hold_cannot_begin_in_the_past(ulid: Ulids) -> None:
    hold = pending(ulid(), "alice", "bob", 60, timeout_at_ms=START_MS)
    assert results(submit(rich_book(), hold)) == [Result.TIMEOUT_IN_THE_PAST]


def test_a_resolution_must_match_its_hold(ulid: Ulids) -> None:
    hold = pending(ulid(), "alice", "bob", 60)
    right = resolving(ulid(), hold, POST, 10)
    applied = submit(
        rich_book(),
        hold,
        right._replace(debit=AccountId("bank")),
        right._replace(credit=AccountId("bank")),
        right._replace(amount_nano=61),
        right._replace(kind=VOID, amount_nano=59),
        right._replace(pending_id=TransferId(ulid())),
        posted(money := ulid(), "alice", "bob", 1),
        right._replace(id=TransferId(ulid()), pending_id=TransferId(money)),
    )
    assert results(applied)[1:] == [
        Result.PENDING_TRANSFER_HAS_DIFFERENT_DEBIT_ACCOUNT,
        Result.PENDING_TRANSFER_HAS_DIFFERENT_CREDIT_ACCOUNT,
        Result.EXCEEDS_PENDING_TRANSFER_AMOUNT,
        Result.PENDING_TRANSFER_HAS_DIFFERENT_AMOUNT,
        Result.PENDING_TRANSFER_NOT_FOUND,
        Result.CREATED,
        Result.PENDING_TRANSFER_NOT_PENDING,
    ]


def test_the_same_transfer_again_exists_and_changes_nothing(ulid: Ulids) -> None:
    transfer = posted(ulid(), "alice", "bob", 30)
    applied = submit(rich_book(), transfer, transfer)
    assert results(applied) == [Result.CREATED, Result.EXISTS]
    assert len(applied.transfers) == 1


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({"debit": AccountId("bank")}, Result.EXISTS_WITH_DIFFERENT_DEBIT_ACCOUNT),
        ({"credit": AccountId("bank")}, Result.EXISTS_WITH_DIFFERENT_CREDIT_ACCOUNT),
        ({"amount_nano": 31}, Result.EXISTS_WITH_DIFFERENT_AMOUNT),
        ({"code": TransferCode.WITHDRAW}, Result.EXISTS_WITH_DIFFERENT_CODE),
        ({"job_id": JobId("job")}, Result.EXISTS_WITH_DIFFERENT_JOB),
        (
            {"kind": TransferKind.PENDING, "timeout_at_ms": START_MS + 1},
            Result.EXISTS_WITH_DIFFERENT_KIND,
        ),
    ],
)
def test_a_used_id_with_other_fields_is_refused(
    ulid: Ulids, change: dict[str, object], result: Result
) -> None:
    transfer = posted(ulid(), "alice", "bob", 30)
    other = transfer._replace(**change)  # type: ignore[arg-type]  # parametrized
    assert results(submit(rich_book(), transfer, other)) == [Result.CREATED, result]


def test_other_timeouts_and_holds_differ_too(ulid: Ulids) -> None:
    hold, second = pending(ulid(), "alice", "bob", 1), pending(ulid(), "alice", "bob", 1)
    void = resolving(ulid(), hold, VOID)
    applied = submit(
        rich_book(),
        hold,
        hold._replace(timeout_at_ms=START_MS + 1),
        second,
        void,
        void._replace(pending_id=second.id),
    )
    assert results(applied)[1] is Result.EXISTS_WITH_DIFFERENT_TIMEOUT
    assert results(applied)[4] is Result.EXISTS_WITH_DIFFERENT_PENDING_ID


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({"id": TransferId("short")}, Result.ID_MALFORMED),
        ({"id": TransferId("u" * 26)}, Result.ID_MALFORMED),
        ({"amount_nano": -1}, Result.AMOUNT_OUT_OF_RANGE),
        ({"amount_nano": AMOUNT_NANO_MAX + 1}, Result.AMOUNT_OUT_OF_RANGE),
        ({"credit": AccountId("alice")}, Result.ACCOUNTS_MUST_BE_DIFFERENT),
        ({"pending_id": TransferId("x" * 26)}, Result.PENDING_ID_MUST_BE_EMPTY),
        ({"kind": POST}, Result.PENDING_ID_MUST_NOT_BE_EMPTY),
        ({"timeout_at_ms": 1}, Result.TIMEOUT_RESERVED_FOR_PENDING_TRANSFER),
        ({"kind": TransferKind.PENDING}, Result.TIMEOUT_MUST_NOT_BE_EMPTY),
        ({"debit": AccountId("ghost")}, Result.DEBIT_ACCOUNT_NOT_FOUND),
        ({"credit": AccountId("ghost")}, Result.CREDIT_ACCOUNT_NOT_FOUND),
    ],
)
def test_what_makes_no_sense_is_named(
    ulid: Ulids, change: dict[str, object], result: Result
) -> None:
    transfer = posted(ulid(), "alice", "bob", 30)._replace(**change)  # type: ignore[arg-type]
    assert results(submit(rich_book(), transfer)) == [result]


def test_sums_never_leave_their_range(ulid: Ulids) -> None:
    applied = submit(
        rich_book(),
        posted(ulid(), "bank", "bob", AMOUNT_NANO_MAX - 100),
        posted(ulid(), "bank", "alice", 1),
        posted(ulid(), "bob", "alice", AMOUNT_NANO_MAX - 100),
        posted(ulid(), "alice", "bob", 1),
    )
    assert results(applied) == [
        Result.CREATED,
        Result.OVERFLOWS_DEBITS,
        Result.CREATED,
        Result.CREATED,
    ]
    full = submit(
        rich_book(),
        posted(ulid(), "bank", "bob", AMOUNT_NANO_MAX - 100),
        posted(ulid(), "alice", "bob", 100),
        pending(ulid(), "alice", "bob", 0),
        posted(ulid(), "bob", "alice", 1),
        posted(ulid(), "alice", "bob", 1),
    )
    assert results(full)[4] is Result.OVERFLOWS_CREDITS


def test_a_chain_happens_wholly_or_not_at_all(ulid: Ulids) -> None:
    hold = pending(ulid(), "alice", "bob", 60)
    chain = Chain(
        (
            hold,
            resolving(ulid(), hold, POST, 60),
            posted(ulid(), "bob", "bank", 60),
            posted(ulid(), "bob", "bank", 1),
        ),
        (Account(AccountId("carol"), AccountKind.NODE),),
    )
    applied = apply_chains(rich_book(), [chain], now_ms=START_MS)
    assert applied.results == [ChainResult(Result.EXCEEDS_CREDITS, 3)]
    assert applied.transfers == []
    assert applied.accounts == []
    assert applied.opened_holds == []
    assert applied.closed_holds == []
    assert applied.failed_ids == [chain.transfers[3].id]


def test_a_failed_chain_leaves_no_trace_for_the_next(ulid: Ulids) -> None:
    hold = pending(ulid(), "alice", "bob", 60)
    first, second = ulid(), ulid()
    broken = Chain((hold, resolving(first, hold, VOID), posted(second, "ghost", "bob", 1)))
    lonely = Chain((resolving(ulid(), hold, POST, 10),))
    whole = Chain((hold, resolving(first, hold, POST, 10)))
    applied = apply_chains(rich_book(), [broken, lonely, whole], now_ms=START_MS)
    assert [result.result for result in applied.results] == [
        Result.DEBIT_ACCOUNT_NOT_FOUND,
        Result.PENDING_TRANSFER_NOT_FOUND,
        Result.CREATED,
    ]
    assert balances(applied) == {"alice": (0, 10, 0, 100), "bob": (0, 0, 0, 10)}


def test_a_chain_again_exists_as_a_whole(ulid: Ulids) -> None:
    chain = Chain((posted(ulid(), "alice", "bob", 5), posted(ulid(), "bob", "bank", 5)))
    applied = apply_chains(rich_book(), [chain, chain], now_ms=START_MS)
    assert applied.results == [ChainResult(Result.CREATED), ChainResult(Result.EXISTS)]


def test_a_chain_that_mixes_old_and_new_is_refused(ulid: Ulids) -> None:
    old, new = posted(ulid(), "alice", "bob", 5), posted(ulid(), "bob", "bank", 5)
    applied = apply_chains(
        rich_book(),
        [Chain((old,)), Chain((old, new)), Chain((new, old))],
        now_ms=START_MS,
    )
    assert applied.results[1:] == [
        ChainResult(Result.CHAIN_EXISTS_IN_PART, 1),
        ChainResult(Result.CHAIN_EXISTS_IN_PART, 1),
    ]
    assert applied.transfers == [old]


def test_an_id_that_failed_for_lack_of_funds_never_succeeds(ulid: Ulids) -> None:
    dear = posted(ulid(), "bob", "alice", 10)
    applied = submit(rich_book(), dear, posted(ulid(), "alice", "bob", 10), dear)
    assert results(applied) == [Result.EXCEEDS_CREDITS, Result.CREATED, Result.ID_ALREADY_FAILED]
    assert applied.failed_ids == [dear.id]
    later = replace(rich_book(), failed_ids={dear.id})
    assert results(submit(later, dear)) == [Result.ID_ALREADY_FAILED]


def test_a_hold_that_was_refused_leaves_no_row_and_may_be_asked_for_again(ulid: Ulids) -> None:
    """Strangers ask for holds: an unfunded ask must cost the books nothing for good."""
    dear, ghostly = pending(ulid(), "bob", "alice", 10), pending(ulid(), "ghost", "alice", 10)
    applied = submit(rich_book(), dear, ghostly, posted(ulid(), "alice", "bob", 10), dear)
    assert results(applied) == [
        Result.EXCEEDS_CREDITS,
        Result.DEBIT_ACCOUNT_NOT_FOUND,
        Result.CREATED,
        Result.CREATED,
    ]
    assert applied.failed_ids == []


def test_a_stamp_from_a_clock_that_was_ahead_expires_nothing(ulid: Ulids) -> None:
    hold = pending(ulid(), "alice", "bob", 60, timeout_at_ms=START_MS + 10)
    hour_ahead_ns = (START_MS + HOUR_MS) * 1_000_000
    book = replace(rich_book(), holds={hold.id: hold}, last_at_ns=hour_ahead_ns)
    applied = submit(book, resolving(ulid(), hold, POST, 10), now_ms=START_MS + 9)
    assert results(applied) == [Result.CREATED]
    assert applied.first_at_ns == hour_ahead_ns + 1, "stamps never go back all the same"


def test_a_chain_opens_accounts_only_if_it_happens(ulid: Ulids) -> None:
    carol = Account(AccountId("carol"), AccountKind.NODE, label="Carol")
    paid = Chain((posted(ulid(), "alice", "carol", 5),), (carol,))
    unpaid = Chain((posted(ulid(), "bob", "carol", 5),), (carol,))
    applied = apply_chains(rich_book(), [unpaid, paid, paid], now_ms=START_MS)
    assert [result.result for result in applied.results] == [
        Result.EXCEEDS_CREDITS,
        Result.CREATED,
        Result.EXISTS,
    ]
    assert carol._replace(credits_posted=5) in applied.accounts


def test_an_empty_chain_happens() -> None:
    applied = apply_chains(rich_book(), [Chain(())], now_ms=START_MS)
    assert applied.results == [ChainResult(Result.CREATED)]
    assert applied.accounts == []


def test_a_book_is_not_changed_by_what_is_applied_to_it(ulid: Ulids) -> None:
    hold = pending(ulid(), "alice", "bob", 60)
    book = replace(rich_book(), holds={hold.id: hold})
    submit(book, resolving(ulid(), hold, VOID), posted(ulid(), "bob", "alice", 1))
    assert book == replace(rich_book(), holds={hold.id: hold})
