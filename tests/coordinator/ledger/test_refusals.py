"""What a refused posting tells whoever asked."""

import pytest

from coordinator.ledger.machine import Chain, ChainResult
from coordinator.ledger.refusals import (
    REFUSALS,
    ApiKeyRevokedError,
    BudgetExceededError,
    HoldEndedError,
    IdTakenError,
    OutOfFundsError,
    PostingRefusedError,
    TimeoutPassedError,
    UnknownAccountError,
    refusal,
)
from coordinator.ledger.transfers import Result, TransferKind
from protocol.errors import Code
from tests.coordinator.ledger_makers import Ulids, pending, posted, resolving


def chain_with(position: int) -> Chain:
    ulid = Ulids()
    hold = pending(ulid(), "alice", "escrow", 1_500_000_000)
    return Chain((hold, resolving(ulid(), hold, TransferKind.POST))[: position + 1])


@pytest.mark.parametrize(
    ("result", "error", "code", "words"),
    [
        (Result.EXCEEDS_CREDITS, OutOfFundsError, Code.OUT_OF_FUNDS, "less than 1.5 credits"),
        (Result.DEBIT_ACCOUNT_NOT_FOUND, UnknownAccountError, Code.UNKNOWN_ACCOUNT, "alice"),
        (Result.CREDIT_ACCOUNT_NOT_FOUND, UnknownAccountError, Code.UNKNOWN_ACCOUNT, "escrow"),
        (Result.PENDING_TRANSFER_ALREADY_POSTED, HoldEndedError, Code.EXPIRED, "captured"),
        (Result.PENDING_TRANSFER_ALREADY_VOIDED, HoldEndedError, Code.EXPIRED, "released"),
        (Result.PENDING_TRANSFER_ALREADY_EXPIRED, HoldEndedError, Code.EXPIRED, "expired"),
        (Result.ID_ALREADY_FAILED, IdTakenError, Code.ALREADY_EXISTS, "id_already_failed"),
        (Result.TIMEOUT_IN_THE_PAST, TimeoutPassedError, Code.DEADLINE_EXCEEDED, "deadline"),
        (Result.EXCEEDS_BUDGET, BudgetExceededError, Code.BUDGET_EXCEEDED, "budget"),
        (Result.API_KEY_REVOKED, ApiKeyRevokedError, Code.UNKNOWN_API_KEY, "revoked"),
    ],
)
def test_a_refusal_names_what_happened_and_has_a_wire_code(
    result: Result, error: type[PostingRefusedError], code: Code, words: str
) -> None:
    chain = chain_with(position=1)
    refused = refusal(chain, ChainResult(result, 1))
    assert type(refused) is error
    assert refused.code is code
    assert refused.result is result
    assert refused.transfer is chain.transfers[1]
    assert words in str(refused)


def test_every_failure_has_its_own_error_and_words() -> None:
    chain = Chain((posted(Ulids()(), "alice", "bob", 1),))
    failures = {result for result in Result if not result.is_success}
    assert REFUSALS.keys() == failures
    for result in failures:
        assert str(refusal(chain, ChainResult(result)))
    assert PostingRefusedError not in REFUSALS.values(), "a catch-all names nothing"
