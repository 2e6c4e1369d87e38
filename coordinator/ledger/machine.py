"""The rules of the books as one pure function: what is known, chains in; results, new balances out.

Invariants that hold after every call, whatever is submitted:

- debits equal credits, posted and pending, because every transfer changes both sides alike;
- an account that may not overdraw keeps debits_pending + debits_posted <= credits_posted;
- a chain happens wholly or not at all; an id happens at most once; a hold is resolved at most once;
- sums stay within 0..AMOUNT_NANO_MAX, so that no sum of two of them leaves int64.

Storage, time and concurrency are the writer's business (`coordinator.db.writer`).
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from coordinator.ledger.accounts import Account, AccountId
from coordinator.ledger.transfers import (
    RESOLVING_KINDS,
    TRANSIENT_RESULTS,
    Result,
    Transfer,
    TransferKind,
)
from protocol.ids import TransferId
from protocol.money import AMOUNT_NANO_MAX

_NS_PER_MS = 1_000_000

_PENDING = TransferKind.PENDING
_POSTED = TransferKind.POSTED
_POST = TransferKind.POST

_ALREADY = {
    TransferKind.POST: Result.PENDING_TRANSFER_ALREADY_POSTED,
    TransferKind.VOID: Result.PENDING_TRANSFER_ALREADY_VOIDED,
    TransferKind.EXPIRE: Result.PENDING_TRANSFER_ALREADY_EXPIRED,
}

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


class Chain(NamedTuple):
    """Transfers that happen together or not at all. `opens` are accounts to open first, if they do
    not exist yet; they too exist only if the chain happens."""

    transfers: tuple[Transfer, ...]
    opens: tuple[Account, ...] = ()


class ChainResult(NamedTuple):
    """`position` is the transfer that `result` is about: the first that failed."""

    result: Result
    position: int = 0


@dataclass(frozen=True, slots=True)
class Book:
    """What storage knows about everything that a batch of chains mentions.

    `existing` holds the transfers with submitted ids, and those that a POST, VOID or EXPIRE points
    at without finding them in `holds`, the pending transfers still open. `resolutions` says how the
    latter ended. `last_sequence` and `last_at_ns` are those of the newest transfer, or 0.
    """

    accounts: Mapping[AccountId, Account]
    existing: Mapping[TransferId, Transfer]
    holds: Mapping[TransferId, Transfer]
    resolutions: Mapping[TransferId, TransferKind]
    failed_ids: Set[TransferId]
    last_sequence: int
    last_at_ns: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch changed. Transfers are in order; the first has `first_sequence` and
    `first_at_ns`, and each following one has one more of both. `accounts` are new or changed."""

    results: list[ChainResult]
    transfers: list[Transfer]
    first_sequence: int
    first_at_ns: int
    accounts: list[Account]
    opened_holds: list[Transfer]
    closed_holds: list[TransferId]
    failed_ids: list[TransferId]


def apply_chains(book: Book, chains: Sequence[Chain], *, now_ms: int) -> Applied:
    """Submit chains one after another to what `book` knows; each sees those before it."""
    # A clock that was set back must not revive an expired hold: the books' time never goes back.
    first_at_ns = max(now_ms * _NS_PER_MS, book.last_at_ns + 1)
    batch = _Batch(book, first_at_ns)
    results = [batch.submit(chain) for chain in chains]
    return Applied(
        results=results,
        transfers=[transfer for transfer, _ in batch.log],
        first_sequence=book.last_sequence + 1,
        first_at_ns=first_at_ns,
        accounts=batch.changed_accounts(),
        opened_holds=[hold for key, hold in batch.holds.items() if key not in book.holds],
        closed_holds=[key for key in book.holds if key not in batch.holds],
        failed_ids=batch.failed_ids,
    )


class _Sums:
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


class _Batch:
    """Working copies of a book. Nothing is copied that no chain touches."""

    def __init__(self, book: Book, first_at_ns: int) -> None:
        self._accounts = book.accounts
        self._first_at_ns = first_at_ns
        self._sums: dict[AccountId, _Sums] = {}
        self._existing = dict(book.existing)
        self._resolutions = dict(book.resolutions)
        self._failed = set(book.failed_ids)
        self.holds = dict(book.holds)
        self.opened: dict[AccountId, Account] = {}
        self.failed_ids: list[TransferId] = []
        # What happened, each with the hold that it resolved: enough to undo it.
        self.log: list[tuple[Transfer, Transfer | None]] = []

    @property
    def _now_ms(self) -> int:
        """The time that the next transfer will carry: the books show what judged it."""
        return (self._first_at_ns + len(self.log)) // _NS_PER_MS

    def submit(self, chain: Chain) -> ChainResult:
        start = len(self.log)
        opened = self._open(chain.opens)
        existing = 0
        for index, transfer in enumerate(chain.transfers):
            result = self._check(transfer)
            if result is Result.CREATED and not existing:
                self._apply(transfer)
                continue
            if result is Result.EXISTS and existing == index:
                existing += 1
                continue
            if result.is_success:
                # Chains happen wholly, so a chain of which only a part exists is another chain
                # under a used id, not a retry.
                result = Result.CHAIN_EXISTS_IN_PART
            self._undo(start, opened)
            if result in TRANSIENT_RESULTS:
                self._failed.add(transfer.id)
                self.failed_ids.append(transfer.id)
            return ChainResult(result, index)
        return ChainResult(Result.EXISTS if existing else Result.CREATED)

    def changed_accounts(self) -> list[Account]:
        """Accounts as they are now, as far as that is new."""
        changed = []
        for account_id, sums in self._sums.items():
            before = self._accounts.get(account_id)
            account = before or self.opened[account_id]
            after = Account(
                account.id,
                account.kind,
                account.may_overdraw,
                sums.debits_pending,
                sums.debits_posted,
                sums.credits_pending,
                sums.credits_posted,
                account.label,
                account.created_at_ms,
            )
            if after != before:
                changed.append(after)
        return changed

    def _open(self, accounts: tuple[Account, ...]) -> list[AccountId]:
        opened = []
        for account in accounts:
            if account.id not in self._accounts and account.id not in self.opened:
                assert account.is_empty, "money enters by transfers only"
                self.opened[account.id] = account
                self._sums[account.id] = _Sums(account)
                opened.append(account.id)
        return opened

    def _undo(self, start: int, opened: list[AccountId]) -> None:
        for transfer, hold in reversed(self.log[start:]):
            self._move(transfer, hold, sign=-1)
            del self._existing[transfer.id]
            if hold is not None:
                self.holds[hold.id] = hold
                del self._resolutions[hold.id]
            elif transfer.kind is _PENDING:
                del self.holds[transfer.id]
        del self.log[start:]
        for account_id in opened:
            del self.opened[account_id], self._sums[account_id]

    def _apply(self, transfer: Transfer) -> None:
        hold = None
        if transfer.pending_id is not None:
            hold = self.holds.pop(transfer.pending_id)
            self._resolutions[hold.id] = transfer.kind
        elif transfer.kind is _PENDING:
            self.holds[transfer.id] = transfer
        self._existing[transfer.id] = transfer
        self._move(transfer, hold, sign=1)
        self.log.append((transfer, hold))

    def _move(self, transfer: Transfer, hold: Transfer | None, *, sign: int) -> None:
        debit, credit = self._sums[transfer.debit], self._sums[transfer.credit]
        amount = transfer.amount_nano * sign
        if transfer.kind is _PENDING:
            debit.debits_pending += amount
            credit.credits_pending += amount
            return
        if hold is not None:
            debit.debits_pending -= hold.amount_nano * sign
            credit.credits_pending -= hold.amount_nano * sign
        if transfer.kind is _POSTED or transfer.kind is _POST:
            debit.debits_posted += amount
            credit.credits_posted += amount

    def _find(self, account_id: AccountId) -> _Sums | None:
        sums = self._sums.get(account_id)
        if sums is None and (account := self._accounts.get(account_id)) is not None:
            sums = self._sums[account_id] = _Sums(account)
        return sums

    def _check(self, transfer: Transfer) -> Result:
        """What submitting this transfer alone would give; the order is that of `Result`."""
        if (malformed := _check_shape(transfer)) is not None:
            return malformed
        known = self._existing.get(transfer.id)
        if known is not None:
            return _compare(known, transfer)
        if transfer.id in self._failed:
            return Result.ID_ALREADY_FAILED
        debit, credit = self._find(transfer.debit), self._find(transfer.credit)
        if debit is None:
            return Result.DEBIT_ACCOUNT_NOT_FOUND
        if credit is None:
            return Result.CREDIT_ACCOUNT_NOT_FOUND
        if transfer.pending_id is not None:
            return self._check_resolution(transfer, transfer.pending_id)
        if transfer.timeout_at_ms is not None and transfer.timeout_at_ms <= self._now_ms:
            return Result.TIMEOUT_IN_THE_PAST
        return _check_sums(debit, credit, transfer.amount_nano)

    def _check_resolution(self, transfer: Transfer, pending_id: TransferId) -> Result:
        hold = self.holds.get(pending_id)
        if hold is None:
            resolution = self._resolutions.get(pending_id)
            if resolution is not None:
                return _ALREADY[resolution]
            if pending_id in self._existing:
                return Result.PENDING_TRANSFER_NOT_PENDING
            return Result.PENDING_TRANSFER_NOT_FOUND
        assert hold.timeout_at_ms is not None
        is_expired = hold.timeout_at_ms <= self._now_ms
        if is_expired and transfer.kind is not TransferKind.EXPIRE:
            # Also before the sweep came by: what a timeout means must not depend on who is faster.
            return Result.PENDING_TRANSFER_ALREADY_EXPIRED
        if hold.debit != transfer.debit:
            return Result.PENDING_TRANSFER_HAS_DIFFERENT_DEBIT_ACCOUNT
        if hold.credit != transfer.credit:
            return Result.PENDING_TRANSFER_HAS_DIFFERENT_CREDIT_ACCOUNT
        if transfer.kind is _POST:
            if transfer.amount_nano > hold.amount_nano:
                return Result.EXCEEDS_PENDING_TRANSFER_AMOUNT
        elif transfer.amount_nano != hold.amount_nano:
            return Result.PENDING_TRANSFER_HAS_DIFFERENT_AMOUNT
        if transfer.kind is TransferKind.EXPIRE and not is_expired:
            return Result.PENDING_TRANSFER_NOT_YET_EXPIRED
        return Result.CREATED


def _check_shape(transfer: Transfer) -> Result | None:
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
    is_pending = transfer.kind is _PENDING
    if not is_pending and transfer.timeout_at_ms is not None:
        return Result.TIMEOUT_RESERVED_FOR_PENDING_TRANSFER
    if is_pending and transfer.timeout_at_ms is None:
        return Result.TIMEOUT_MUST_NOT_BE_EMPTY
    return None


def _compare(known: Transfer, submitted: Transfer) -> Result:
    """EXISTS for the same transfer again, else the first difference."""
    if known == submitted:
        return Result.EXISTS
    for field, result in _DIFFERENCES:
        if getattr(known, field) != getattr(submitted, field):
            return result
    raise AssertionError("transfers that differ in no field are equal")


def _check_sums(debit: _Sums, credit: _Sums, amount_nano: int) -> Result:
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
