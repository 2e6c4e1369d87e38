"""Every transfer, read once in order and judged by those before it; their fold is what all else is
compared with."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from coordinator.audit.findings import Check, Finding
from coordinator.db.engine import Connection
from coordinator.db.heads import iterate_heads
from coordinator.db.transfers import iterate_transfers
from coordinator.ledger.accounts import Account, AccountId
from coordinator.ledger.hash_chain import GENESIS, LedgerHead, next_hash
from coordinator.ledger.transfers import RecordedTransfer, Transfer, TransferCode, TransferKind
from protocol.errors import RemoteProtocolError
from protocol.ids import JobId, PeerId, TransferId, parse_ulid
from protocol.money import AMOUNT_NANO_MAX, format_credits


@dataclass(slots=True)
class Balance:
    debits_pending: int = 0
    debits_posted: int = 0
    credits_pending: int = 0
    credits_posted: int = 0

    @property
    def available_nano(self) -> int:
        return self.credits_posted - self.debits_posted - self.debits_pending


@dataclass(slots=True)
class Fold:
    """What the transfers read so far add up to."""

    sequence: int = 0
    at_ns: int = 0
    chain_hash: bytes = GENESIS
    previous: Transfer | None = None
    # What the last charge has brought into escrow and its legs have not taken out, and whose it is.
    unpaid_nano: int = 0
    unpaid_job: JobId | None = None
    balances: dict[AccountId, Balance] = field(default_factory=dict)
    open: dict[TransferId, Transfer] = field(default_factory=dict)

    def balance(self, account_id: AccountId) -> Balance:
        return self.balances.setdefault(account_id, Balance())


def check_transfers(
    conn: Connection, fold: Fold, accounts: dict[AccountId, Account], signer: PeerId | None
) -> Iterator[Finding]:
    """Read every transfer once, in order, and judge each by those before it."""
    heads = {head.sequence: head for head in iterate_heads(conn)}
    for recorded in iterate_transfers(conn):
        transfer = recorded.transfer
        yield from _check_order(fold, recorded)
        head = heads.pop(recorded.sequence, None)
        if head is not None:
            yield from _check_head(head, recorded.chain_hash, signer)
        yield from _check_legs(fold, transfer)
        fault = _find_fault(transfer)
        if fault is not None:
            yield Finding(Check.TRANSFER_MALFORMED, transfer.id, fault)
        yield from _apply(fold, recorded)
        if not _has_hold(transfer, fold.previous):
            yield Finding(
                Check.CAPTURE_WITHOUT_HOLD, transfer.id, "no hold that allows it expires before it"
            )
        fold.previous = transfer
        for account_id in (transfer.debit, transfer.credit):
            if account_id not in accounts:
                yield Finding(
                    Check.ACCOUNT_MISSING, account_id, f"transfer {transfer.id} names this account"
                )
        debtor = accounts.get(transfer.debit)
        available_nano = fold.balance(transfer.debit).available_nano
        if debtor and not debtor.may_overdraw and available_nano < 0:
            yield Finding(
                Check.ACCOUNT_OVERDRAWN,
                transfer.debit,
                f"transfer {transfer.id} leaves {format_credits(available_nano)}",
            )
    for sequence in heads:
        yield Finding(
            Check.HEAD_CONTRADICTS_CHAIN, f"number {sequence}", "it was signed, and is missing"
        )
    if fold.unpaid_nano:
        message = f"its legs leave {fold.unpaid_nano} of it in escrow"
        yield Finding(Check.CAPTURE_LEGS_DIFFER, fold.unpaid_job or "", message)


def _check_head(head: LedgerHead, chain_hash: bytes, signer: PeerId | None) -> Iterator[Finding]:
    subject = f"number {head.sequence}"
    if not head.is_signed or signer not in (None, head.signer):
        yield Finding(Check.HEAD_CONTRADICTS_CHAIN, subject, "the coordinator did not sign it")
    elif head.chain_hash != chain_hash:
        message = "the transfers up to this one are not those that were signed"
        yield Finding(Check.HEAD_CONTRADICTS_CHAIN, subject, message)


def _check_legs(fold: Fold, transfer: Transfer) -> Iterator[Finding]:
    """A charge brings money into escrow; its legs, right behind it, take out all of it, for the
    same job."""
    is_leg = transfer.code in _LEGS
    if is_leg:
        fold.unpaid_nano -= transfer.amount_nano
    is_wrong = transfer.job_id != fold.unpaid_job or fold.unpaid_nano < 0
    if is_wrong if is_leg else fold.unpaid_nano > 0:
        yield Finding(
            Check.CAPTURE_LEGS_DIFFER,
            transfer.id,
            f"it follows a charge for job {fold.unpaid_job} whose legs leave {fold.unpaid_nano}",
        )
        fold.unpaid_nano = 0
    if transfer.code in _CHARGES and transfer.kind in (TransferKind.POST, TransferKind.POSTED):
        fold.unpaid_nano, fold.unpaid_job = transfer.amount_nano, transfer.job_id


_CHARGES = (TransferCode.CAPTURE, TransferCode.GOODWILL)
_LEGS = (TransferCode.CAPTURE_NODE, TransferCode.CAPTURE_FEE)


def _check_order(fold: Fold, recorded: RecordedTransfer) -> Iterator[Finding]:
    transfer_id = recorded.transfer.id
    if recorded.sequence != fold.sequence + 1:
        yield Finding(
            Check.SEQUENCE_HAS_GAP,
            transfer_id,
            f"sequence {recorded.sequence} follows {fold.sequence}",
        )
    if recorded.created_at_ns <= fold.at_ns:
        yield Finding(
            Check.TIME_GOES_BACKWARDS,
            transfer_id,
            f"{recorded.created_at_ns} ns follows {fold.at_ns} ns",
        )
    expected = next_hash(
        fold.chain_hash, recorded.sequence, recorded.created_at_ns, recorded.transfer
    )
    if recorded.chain_hash != expected:
        yield Finding(
            Check.HASH_CHAIN_BROKEN,
            transfer_id,
            f"it is not the transfer that was recorded as number {recorded.sequence}, or the one "
            "before it is not",
        )
    fold.sequence, fold.at_ns = recorded.sequence, recorded.created_at_ns
    # As stored, so that one damaged transfer is one finding.
    fold.chain_hash = recorded.chain_hash


def _find_fault(transfer: Transfer) -> str | None:
    """What is wrong with a transfer on its own."""
    try:
        parse_ulid(transfer.id)
    except RemoteProtocolError:
        return "its id is not a ULID"
    if not 0 <= transfer.amount_nano <= AMOUNT_NANO_MAX:
        return f"its amount of {transfer.amount_nano} is out of range"
    if transfer.debit == transfer.credit:
        return "it debits and credits the same account"
    resolves = transfer.kind in (TransferKind.POST, TransferKind.VOID, TransferKind.EXPIRE)
    if resolves != (transfer.pending_id is not None):
        return f"a {transfer.kind.value} transfer names the hold {transfer.pending_id}"
    if (transfer.kind is TransferKind.PENDING) != (transfer.timeout_at_ms is not None):
        return f"a {transfer.kind.value} transfer has the timeout {transfer.timeout_at_ms}"
    return None


def _apply(fold: Fold, recorded: RecordedTransfer) -> Iterator[Finding]:
    transfer = recorded.transfer
    debit, credit = fold.balance(transfer.debit), fold.balance(transfer.credit)
    amount = transfer.amount_nano
    if transfer.kind is TransferKind.PENDING:
        debit.debits_pending += amount
        credit.credits_pending += amount
        fold.open[transfer.id] = transfer
        return
    if transfer.kind is not TransferKind.POSTED and transfer.pending_id is not None:
        hold = fold.open.pop(transfer.pending_id, None)
        fault = _find_resolution_fault(hold, recorded)
        if fault is not None:
            yield Finding(Check.HOLD_RESOLVED_WRONGLY, transfer.id, fault)
        if hold is not None:
            fold.balance(hold.debit).debits_pending -= hold.amount_nano
            fold.balance(hold.credit).credits_pending -= hold.amount_nano
    if transfer.kind in (TransferKind.POSTED, TransferKind.POST):
        debit.debits_posted += amount
        credit.credits_posted += amount


def _find_resolution_fault(hold: Transfer | None, recorded: RecordedTransfer) -> str | None:
    """What is wrong with how a transfer resolves its hold."""
    transfer = recorded.transfer
    if hold is None:
        return f"hold {transfer.pending_id} does not exist, or is resolved before"
    if (hold.debit, hold.credit) != (transfer.debit, transfer.credit):
        return f"hold {hold.id} is between other accounts"
    if transfer.amount_nano > hold.amount_nano:
        return f"{transfer.amount_nano} is more than the {hold.amount_nano} of hold {hold.id}"
    if transfer.kind is not TransferKind.POST and transfer.amount_nano != hold.amount_nano:
        return f"it releases {transfer.amount_nano} of the {hold.amount_nano} of hold {hold.id}"
    # Only this way round: stamps may run ahead of the clock that judges timeouts, never behind it.
    is_early = recorded.created_at_ns // 1_000_000 < (hold.timeout_at_ms or 0)
    if is_early and transfer.kind is TransferKind.EXPIRE:
        return f"it comes before the timeout of hold {hold.id}"
    return None


def _has_hold(transfer: Transfer, previous: Transfer | None) -> bool:
    """Whether a client was charged from a hold. A capture resolves one; if the hold had timed out
    before the receipt could be paid, it follows the expiry in the same chain instead."""
    if transfer.code is not TransferCode.CAPTURE or transfer.kind is not TransferKind.POSTED:
        return True
    return (
        previous is not None
        and previous.kind is TransferKind.EXPIRE
        and (previous.debit, previous.credit) == (transfer.debit, transfer.credit)
        and previous.job_id == transfer.job_id
        and transfer.amount_nano <= previous.amount_nano
    )
