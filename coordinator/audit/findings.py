"""What an audit can find to be wrong."""

from dataclasses import dataclass
from enum import StrEnum


class Check(StrEnum):
    """What was found to be wrong."""

    FILE_DAMAGED = "file_damaged"
    ROW_DAMAGED = "row_damaged"
    ROW_UNREADABLE = "row_unreadable"
    HASH_CHAIN_BROKEN = "hash_chain_broken"
    HEAD_CONTRADICTS_CHAIN = "head_contradicts_chain"
    SEQUENCE_HAS_GAP = "sequence_has_gap"
    TIME_GOES_BACKWARDS = "time_goes_backwards"
    TRANSFER_MALFORMED = "transfer_malformed"
    ACCOUNT_MISSING = "account_missing"
    ACCOUNT_OVERDRAWN = "account_overdrawn"
    HOLD_RESOLVED_WRONGLY = "hold_resolved_wrongly"
    CAPTURE_WITHOUT_HOLD = "capture_without_hold"
    CAPTURE_LEGS_DIFFER = "capture_legs_differ"
    ID_USED_TWICE = "id_used_twice"
    FAILED_ID_HAPPENED = "failed_id_happened"
    BALANCE_IS_NOT_FOLD = "balance_is_not_fold"
    DEBITS_ARE_NOT_CREDITS = "debits_are_not_credits"
    ESCROW_KEEPS_MONEY = "escrow_keeps_money"
    OPEN_HOLDS_DIFFER = "open_holds_differ"
    LEASE_CONTRADICTS_HOLD = "lease_contradicts_hold"
    RECEIPT_CONTRADICTS_CAPTURE = "receipt_contradicts_capture"
    JOB_CONTRADICTS_LEASES = "job_contradicts_leases"
    SPENDING_IS_NOT_CAPTURES = "spending_is_not_captures"
    MORE_FINDINGS = "more_findings"


@dataclass(frozen=True, slots=True)
class Finding:
    """One error. `subject` is the id of the account, transfer or lease that it is about."""

    check: Check
    subject: str
    message: str
