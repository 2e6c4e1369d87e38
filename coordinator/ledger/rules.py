"""The rules that judge one transfer: its shape, whether it is a retry, whether its sums fit."""

import re

from coordinator.ledger.accounts import Account
from coordinator.ledger.transfers import RESOLVING_KINDS, Result, Transfer, TransferKind
from protocol.money import AMOUNT_NANO_MAX

# The fields of a resubmitted transfer in the order in which a difference is reported.
_DIFFERENCES = (
    ("kind", Result.EXISTS_WITH_DIFFERENT_KIND),
    ("pending_id", Result.EXISTS_WITH_DIFFERENT_PENDING_ID),
    ("timeout_at_ms", Result.EXISTS_WITH_DIFFERENT_TIMEOUT),
    ("debit", Result.EXISTS_WITH_DIFFERENT_DEBIT_ACCOUNT),
    ("credit", Result.EXISTS_WITH_DIFFERENT_CREDIT_ACCOUNT),
    ("amount_nano", Result.EXISTS_WITH_DIFFERENT_AMOUNT),
    ("code", Result.EXISTS_WITH_DIFFERENT_CODE),
    ("job_id", Result.EXISTS_WITH_DIFFERENT_JOB),
)

_match_id = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}").fullmatch


class Sums:
    """The balances of one account while a batch runs."""

    __slots__ = (
        "credits_pending",
        "credits_posted",
        "debits_pending",
        "debits_posted",
        "may_overdraw",
    )

    def __init__(self, account: Account) -> None:
        self.may_overdraw = account.may_overdraw
        self.debits_pending = account.debits_pending
        self.debits_posted = account.debits_posted
        self.credits_pending = account.credits_pending
        self.credits_posted = account.credits_posted


def check_shape(transfer: Transfer) -> Result | None:
    """What is wrong with the transfer whatever the books say."""
    if _match_id(transfer.id) is None:
        return Result.ID_MALFORMED
    if not 0 <= transfer.amount_nano <= AMOUNT_NANO_MAX:
        return Result.AMOUNT_OUT_OF_RANGE
    if transfer.debit == transfer.credit:
        return Result.ACCOUNTS_MUST_BE_DIFFERENT
    resolves = transfer.kind in RESOLVING_KINDS
    if not resolves and transfer.pending_id is not None:
        return Result.PENDING_ID_MUST_BE_EMPTY
    if resolves and transfer.pending_id is None:
        return Result.PENDING_ID_MUST_NOT_BE_EMPTY
    is_pending = transfer.kind is TransferKind.PENDING
    if not is_pending and transfer.timeout_at_ms is not None:
        return Result.TIMEOUT_RESERVED_FOR_PENDING_TRANSFER
    if is_pending and transfer.timeout_at_ms is None:
        return Result.TIMEOUT_MUST_NOT_BE_EMPTY
    return None


def compare(known: Transfer, submitted: Transfer) -> Result:
    """EXISTS for the same transfer again, else the first difference."""
    if known == submitted:
        return Result.EXISTS
    for field, result in _DIFFERENCES:
        if getattr(known, field) != getattr(submitted, field):
            return result
    raise AssertionError("transfers that differ in no field are equal")


def check_sums(debit: Sums, credit: Sums, amount_nano: int) -> Result:
    """Whether a new debit and credit of this size fit. Resolving a hold never needs this: it adds
    no more than the hold had reserved."""
    debits_nano = debit.debits_pending + debit.debits_posted + amount_nano
    if debits_nano > AMOUNT_NANO_MAX:
        return Result.OVERFLOWS_DEBITS
    if credit.credits_pending + credit.credits_posted + amount_nano > AMOUNT_NANO_MAX:
        return Result.OVERFLOWS_CREDITS
    if not debit.may_overdraw and debits_nano > debit.credits_posted:
        return Result.EXCEEDS_CREDITS
    return Result.CREATED
