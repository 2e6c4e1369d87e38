"""Transfers: the only way money moves. Immutable values and the results of submitting them.

A transfer debits one account and credits another by the same amount. PENDING reserves it, and
exactly one POST (up to that amount), VOID or EXPIRE resolves the reservation.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from coordinator.ledger.accounts import AccountId
from protocol.ids import JobId, TransferId


class TransferKind(StrEnum):
    """What a transfer does to balances."""

    POSTED = "posted"  # moves money at once
    PENDING = "pending"  # reserves it until it is resolved, at the latest at its timeout
    POST = "post"  # resolves: moves `amount_nano`, releases the rest
    VOID = "void"  # resolves: releases all
    EXPIRE = "expire"  # resolves: releases all, legal only after the timeout


RESOLVING_KINDS = frozenset({TransferKind.POST, TransferKind.VOID, TransferKind.EXPIRE})


class TransferCode(StrEnum):
    """Why money moved, for statements and audits; the ledger's rules do not read it."""

    CREDIT = "credit"
    WITHDRAW = "withdraw"
    HOLD = "hold"
    CAPTURE = "capture"
    CAPTURE_NODE = "capture_node"
    CAPTURE_FEE = "capture_fee"
    RELEASE = "release"
    EXPIRE = "expire"
    GOODWILL = "goodwill"


class Transfer(NamedTuple):
    """One transfer as its submitter states it; the ledger adds sequence and time.

    A NamedTuple because it is on the hot path: it costs a quarter of a frozen dataclass, compares
    in C (the EXISTS check), and already is the row that is written.
    """

    id: TransferId
    debit: AccountId
    credit: AccountId
    amount_nano: int
    kind: TransferKind
    code: TransferCode
    pending_id: TransferId | None = None  # what a POST, VOID or EXPIRE resolves
    timeout_at_ms: int | None = None  # of a PENDING
    job_id: JobId | None = None


@dataclass(frozen=True, slots=True)
class RecordedTransfer:
    """A transfer in the books. Sequences are dense from 1; times strictly increase, in nanoseconds
    because a busy millisecond holds hundreds of transfers. `chain_hash` is as it is stored."""

    sequence: int
    created_at_ns: int
    transfer: Transfer
    chain_hash: bytes


class Result(StrEnum):
    """What became of a transfer. The names are TigerBeetle's; a chain's result is that of the
    first of its transfers that failed.

    When several apply, the one that stands first here is reported: shape, then identity, then
    accounts, then the pending transfer, then the payer's API key, then sums.
    """

    CREATED = "created"
    ID_MALFORMED = "id_malformed"
    AMOUNT_OUT_OF_RANGE = "amount_out_of_range"
    ACCOUNTS_MUST_BE_DIFFERENT = "accounts_must_be_different"
    PENDING_ID_MUST_BE_EMPTY = "pending_id_must_be_empty"
    PENDING_ID_MUST_NOT_BE_EMPTY = "pending_id_must_not_be_empty"
    TIMEOUT_RESERVED_FOR_PENDING_TRANSFER = "timeout_reserved_for_pending_transfer"
    TIMEOUT_MUST_NOT_BE_EMPTY = "timeout_must_not_be_empty"
    EXISTS_WITH_DIFFERENT_KIND = "exists_with_different_kind"
    EXISTS_WITH_DIFFERENT_PENDING_ID = "exists_with_different_pending_id"
    EXISTS_WITH_DIFFERENT_TIMEOUT = "exists_with_different_timeout"
    EXISTS_WITH_DIFFERENT_DEBIT_ACCOUNT = "exists_with_different_debit_account"
    EXISTS_WITH_DIFFERENT_CREDIT_ACCOUNT = "exists_with_different_credit_account"
    EXISTS_WITH_DIFFERENT_AMOUNT = "exists_with_different_amount"
    EXISTS_WITH_DIFFERENT_CODE = "exists_with_different_code"
    EXISTS_WITH_DIFFERENT_JOB = "exists_with_different_job"
    EXISTS = "exists"
    CHAIN_EXISTS_IN_PART = "chain_exists_in_part"
    ID_ALREADY_FAILED = "id_already_failed"
    DEBIT_ACCOUNT_NOT_FOUND = "debit_account_not_found"
    CREDIT_ACCOUNT_NOT_FOUND = "credit_account_not_found"
    PENDING_TRANSFER_NOT_FOUND = "pending_transfer_not_found"
    PENDING_TRANSFER_NOT_PENDING = "pending_transfer_not_pending"
    PENDING_TRANSFER_ALREADY_POSTED = "pending_transfer_already_posted"
    PENDING_TRANSFER_ALREADY_VOIDED = "pending_transfer_already_voided"
    PENDING_TRANSFER_ALREADY_EXPIRED = "pending_transfer_already_expired"
    PENDING_TRANSFER_HAS_DIFFERENT_DEBIT_ACCOUNT = "pending_transfer_has_different_debit_account"
    PENDING_TRANSFER_HAS_DIFFERENT_CREDIT_ACCOUNT = "pending_transfer_has_different_credit_account"
    PENDING_TRANSFER_HAS_DIFFERENT_AMOUNT = "pending_transfer_has_different_amount"
    EXCEEDS_PENDING_TRANSFER_AMOUNT = "exceeds_pending_transfer_amount"
    PENDING_TRANSFER_NOT_YET_EXPIRED = "pending_transfer_not_yet_expired"
    TIMEOUT_IN_THE_PAST = "timeout_in_the_past"
    API_KEY_REVOKED = "api_key_revoked"
    EXCEEDS_BUDGET = "exceeds_budget"
    OVERFLOWS_DEBITS = "overflows_debits"
    OVERFLOWS_CREDITS = "overflows_credits"
    EXCEEDS_CREDITS = "exceeds_credits"

    @property
    def is_success(self) -> bool:
        return self is Result.CREATED or self is Result.EXISTS


# What another transfer could cure. An id that failed this way stays failed, so that a submitter who
# was told "no" cannot be charged by a late duplicate of the same message. NOT_YET_EXPIRED is not
# among them: a sweep that ran early (two coordinators, two clocks) must be able to run again under
# the same id. Nor does a PENDING transfer that was refused count: strangers ask for those, and an
# unfunded ask must leave no row; its client may ask again once it has funds.
TRANSIENT_RESULTS = frozenset(
    {
        Result.DEBIT_ACCOUNT_NOT_FOUND,
        Result.CREDIT_ACCOUNT_NOT_FOUND,
        Result.PENDING_TRANSFER_NOT_FOUND,
        Result.OVERFLOWS_DEBITS,
        Result.OVERFLOWS_CREDITS,
        Result.EXCEEDS_CREDITS,
    }
)
