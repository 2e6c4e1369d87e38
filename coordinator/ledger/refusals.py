"""A refused posting as an error: what the ledger's result means to the party that asked for it.

Every result that is no success has its class, and so its wire code, in one table.
"""

from coordinator.errors import LedgerError
from coordinator.ledger.machine import Chain, ChainResult
from coordinator.ledger.transfers import Result, Transfer
from protocol.errors import Code
from protocol.money import format_credits


class PostingRefusedError(LedgerError):
    """The ledger's rules forbid the posting. `result` is the rule, `transfer` what broke it."""

    def __init__(self, message: str, result: Result, transfer: Transfer) -> None:
        super().__init__(message)
        self.result = result
        self.transfer = transfer


class OutOfFundsError(PostingRefusedError):
    """The account has less available than the posting takes."""

    code = Code.OUT_OF_FUNDS


class UnknownAccountError(PostingRefusedError):
    """No money was ever credited to that account."""

    code = Code.UNKNOWN_ACCOUNT


class HoldEndedError(PostingRefusedError):
    """The hold was already captured, released or expired, by an earlier posting."""

    code = Code.EXPIRED


class IdTakenError(PostingRefusedError):
    """Another posting has used this id, or one under this id has failed before."""

    code = Code.ALREADY_EXISTS


class TimeoutPassedError(PostingRefusedError):
    """The hold would time out before it begins: the job's deadline has passed."""

    code = Code.DEADLINE_EXCEEDED


class BudgetExceededError(PostingRefusedError):
    """The API key's budget leaves less than the hold takes."""

    code = Code.BUDGET_EXCEEDED


class ApiKeyRevokedError(PostingRefusedError):
    """The API key was revoked before its job could begin."""

    code = Code.UNKNOWN_API_KEY


class MalformedPostingError(PostingRefusedError):
    """The posting contradicts itself or the hold that it names: a bug of its submitter."""

    code = Code.INTERNAL


class PostingTooLargeError(PostingRefusedError):
    """An amount, or a sum that it leads to, is more than an account can hold."""

    code = Code.INVALID_INPUT


class HoldMissingError(PostingRefusedError):
    """There is no hold with the id that the posting names."""

    code = Code.NOT_FOUND


class HoldStillOpenError(PostingRefusedError):
    """The hold has not timed out yet: expire it later."""

    code = Code.NOT_YET_VALID


_HOLD_ENDED = {
    Result.PENDING_TRANSFER_ALREADY_POSTED: "was already captured",
    Result.PENDING_TRANSFER_ALREADY_VOIDED: "was already released",
    Result.PENDING_TRANSFER_ALREADY_EXPIRED: "has expired",
}


_R = Result

REFUSALS: dict[Result, type[PostingRefusedError]] = {
    _R.EXCEEDS_CREDITS: OutOfFundsError,
    _R.EXCEEDS_BUDGET: BudgetExceededError,
    _R.API_KEY_REVOKED: ApiKeyRevokedError,
    _R.TIMEOUT_IN_THE_PAST: TimeoutPassedError,
    **dict.fromkeys((_R.DEBIT_ACCOUNT_NOT_FOUND, _R.CREDIT_ACCOUNT_NOT_FOUND), UnknownAccountError),
    **dict.fromkeys(_HOLD_ENDED, HoldEndedError),
    **dict.fromkeys(
        (_R.PENDING_TRANSFER_NOT_FOUND, _R.PENDING_TRANSFER_NOT_PENDING), HoldMissingError
    ),
    _R.PENDING_TRANSFER_NOT_YET_EXPIRED: HoldStillOpenError,
    **dict.fromkeys(
        (
            _R.EXISTS_WITH_DIFFERENT_KIND,
            _R.EXISTS_WITH_DIFFERENT_PENDING_ID,
            _R.EXISTS_WITH_DIFFERENT_TIMEOUT,
            _R.EXISTS_WITH_DIFFERENT_DEBIT_ACCOUNT,
            _R.EXISTS_WITH_DIFFERENT_CREDIT_ACCOUNT,
            _R.EXISTS_WITH_DIFFERENT_AMOUNT,
            _R.EXISTS_WITH_DIFFERENT_CODE,
            _R.EXISTS_WITH_DIFFERENT_JOB,
            _R.CHAIN_EXISTS_IN_PART,
            _R.ID_ALREADY_FAILED,
        ),
        IdTakenError,
    ),
    **dict.fromkeys(
        (_R.AMOUNT_OUT_OF_RANGE, _R.OVERFLOWS_DEBITS, _R.OVERFLOWS_CREDITS), PostingTooLargeError
    ),
    **dict.fromkeys(
        (
            _R.ID_MALFORMED,
            _R.ACCOUNTS_MUST_BE_DIFFERENT,
            _R.PENDING_ID_MUST_BE_EMPTY,
            _R.PENDING_ID_MUST_NOT_BE_EMPTY,
            _R.TIMEOUT_RESERVED_FOR_PENDING_TRANSFER,
            _R.TIMEOUT_MUST_NOT_BE_EMPTY,
            _R.PENDING_TRANSFER_HAS_DIFFERENT_DEBIT_ACCOUNT,
            _R.PENDING_TRANSFER_HAS_DIFFERENT_CREDIT_ACCOUNT,
            _R.PENDING_TRANSFER_HAS_DIFFERENT_AMOUNT,
            _R.EXCEEDS_PENDING_TRANSFER_AMOUNT,
        ),
        MalformedPostingError,
    ),
}


def refusal(chain: Chain, outcome: ChainResult) -> PostingRefusedError:
    """The error for a chain that did not happen."""
    result = outcome.result
    transfer = chain.transfers[outcome.position]
    return REFUSALS[result](_message(result, transfer), result, transfer)


def _message(result: Result, transfer: Transfer) -> str:
    amount = format_credits(transfer.amount_nano)
    if result in _HOLD_ENDED:
        return f"hold {transfer.pending_id} {_HOLD_ENDED[result]}"
    match result:
        case Result.EXCEEDS_CREDITS:
            return (
                f"account {transfer.debit} has less than {amount} credits available: add credit, "
                "or wait for running jobs to release theirs"
            )
        case Result.EXCEEDS_BUDGET:
            return (
                f"the API key's budget leaves less than the {amount} credits that this may cost: "
                "raise the budget, or wait for running jobs to release theirs"
            )
        case Result.API_KEY_REVOKED:
            return "the API key is unknown or was revoked"
        case Result.TIMEOUT_IN_THE_PAST:
            return "the job's deadline has passed before its money was held"
        case Result.DEBIT_ACCOUNT_NOT_FOUND:
            return f"there is no account {transfer.debit}"
        case Result.CREDIT_ACCOUNT_NOT_FOUND:
            return f"there is no account {transfer.credit}"
        case _:
            return (
                f"the ledger refused transfer {transfer.id} ({transfer.code.value}): {result.value}"
            )
