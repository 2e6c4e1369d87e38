"""A refused posting as an error: what the ledger's result means to whoever asked for it."""

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
    """The hold was already captured, released or expired, by someone else's posting."""

    code = Code.EXPIRED


_HOLD_ENDED = {
    Result.PENDING_TRANSFER_ALREADY_POSTED: "was already captured",
    Result.PENDING_TRANSFER_ALREADY_VOIDED: "was already released",
    Result.PENDING_TRANSFER_ALREADY_EXPIRED: "has expired",
}


def refusal(chain: Chain, outcome: ChainResult) -> PostingRefusedError:
    """The error for a chain that did not happen."""
    result = outcome.result
    transfer = chain.transfers[outcome.position]
    if result is Result.EXCEEDS_CREDITS:
        amount = format_credits(transfer.amount_nano)
        return OutOfFundsError(
            f"account {transfer.debit} has less than {amount} credits available: add credit, "
            "or wait for running jobs to release theirs",
            result,
            transfer,
        )
    if result in (Result.DEBIT_ACCOUNT_NOT_FOUND, Result.CREDIT_ACCOUNT_NOT_FOUND):
        is_debit = result is Result.DEBIT_ACCOUNT_NOT_FOUND
        account_id = transfer.debit if is_debit else transfer.credit
        return UnknownAccountError(f"there is no account {account_id}", result, transfer)
    if result in _HOLD_ENDED:
        return HoldEndedError(f"hold {transfer.pending_id} {_HOLD_ENDED[result]}", result, transfer)
    return PostingRefusedError(
        f"the ledger refused transfer {transfer.id} ({transfer.code.value}): {result.value}",
        result,
        transfer,
    )
