"""The rules of the books as one pure function: what is known, chains in; results, new balances out.

Invariants that hold after every call, whatever is submitted:

- debits equal credits, posted and pending, because every transfer changes both sides alike;
- an account that may not overdraw keeps debits_pending + debits_posted <= credits_posted;
- a chain happens wholly or not at all; an id happens at most once; a hold is resolved at most once;
- sums stay within 0..AMOUNT_NANO_MAX, so that no sum of two of them leaves int64.

Storage, time and concurrency are the writer's business (`coordinator.db.writer`).
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator.ledger.accounts import Account, AccountId
from coordinator.ledger.hash_chain import GENESIS
from coordinator.ledger.key_budgets import KeyBudgets, KeyedHold, KeyFunds
from coordinator.ledger.rules import Sums, check_shape, check_sums, compare
from coordinator.ledger.transfers import TRANSIENT_RESULTS, Result, Transfer, TransferKind
from protocol.ids import TransferId

_NS_PER_MS = 1_000_000

_PENDING = TransferKind.PENDING
_POSTED = TransferKind.POSTED
_POST = TransferKind.POST

_ALREADY = {
    TransferKind.POST: Result.PENDING_TRANSFER_ALREADY_POSTED,
    TransferKind.VOID: Result.PENDING_TRANSFER_ALREADY_VOIDED,
    TransferKind.EXPIRE: Result.PENDING_TRANSFER_ALREADY_EXPIRED,
}


class Chain(NamedTuple):
    """Transfers that happen together or not at all. `opens` are accounts to open first, if they do
    not exist yet; they too exist only if the chain happens. `api_key_id` is the key whose budget
    pays for the chain's hold; what is captured from that hold counts as spent by the key."""

    transfers: tuple[Transfer, ...]
    opens: tuple[Account, ...] = ()
    api_key_id: str | None = None


class ChainResult(NamedTuple):
    """`position` is the transfer that `result` is about: the first that failed."""

    result: Result
    position: int = 0


@dataclass(frozen=True, slots=True)
class OpenedHold:
    """A pending transfer that a batch leaves open, and the API key that it counts against."""

    transfer: Transfer
    api_key_id: str | None


@dataclass(frozen=True, slots=True)
class Book:
    """What storage knows about everything that a batch of chains mentions.

    `existing` holds the transfers with submitted ids, and those that a POST, VOID or EXPIRE points
    at without finding them in `holds`, the pending transfers still open. `resolutions` says how the
    latter ended. `keys` has the API keys that pay for new holds, `keyed_holds` the open holds with
    one. `last_sequence`, `last_at_ns` and `last_hash` are those of the newest transfer, or of none.
    """

    accounts: Mapping[AccountId, Account]
    existing: Mapping[TransferId, Transfer]
    holds: Mapping[TransferId, Transfer]
    resolutions: Mapping[TransferId, TransferKind]
    failed_ids: Set[TransferId]
    last_sequence: int
    last_at_ns: int
    last_hash: bytes = GENESIS
    keys: Mapping[str, KeyFunds] = field(default_factory=dict)
    keyed_holds: Mapping[TransferId, KeyedHold] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch changed. Transfers are in order; the first has `first_sequence` and
    `first_at_ns`, and each following one has one more of both; `previous_hash` is that of the
    transfer before. `accounts` are new or changed; `spent` is what each API key has spent more."""

    results: list[ChainResult]
    transfers: list[Transfer]
    first_sequence: int
    first_at_ns: int
    previous_hash: bytes
    accounts: list[Account]
    opened_holds: list[OpenedHold]
    closed_holds: list[TransferId]
    failed_ids: list[TransferId]
    spent: dict[str, int]


def apply_chains(book: Book, chains: Sequence[Chain], *, now_ms: int) -> Applied:
    """Submit chains one after another to what `book` knows; each sees those before it.

    Timeouts are judged by `now_ms` alone. The stamps of transfers never go back, so one transfer of
    a program whose clock was ahead moves all later stamps ahead; it must not expire any hold.
    """
    first_at_ns = max(now_ms * _NS_PER_MS, book.last_at_ns + 1)
    batch = _Batch(book, now_ms)
    results = [batch.submit(chain) for chain in chains]
    return Applied(
        results=results,
        transfers=[transfer for transfer, *_ in batch.log],
        first_sequence=book.last_sequence + 1,
        first_at_ns=first_at_ns,
        previous_hash=book.last_hash,
        accounts=batch.changed_accounts(),
        opened_holds=[
            OpenedHold(hold, batch.keys.key_of(hold_id))
            for hold_id, hold in batch.holds.items()
            if hold_id not in book.holds
        ],
        closed_holds=[key for key in book.holds if key not in batch.holds],
        failed_ids=batch.failed_ids,
        spent=batch.keys.spent(),
    )


class _Batch:
    """Working copies of a book. Nothing is copied that no chain touches."""

    def __init__(self, book: Book, now_ms: int) -> None:
        self._accounts = book.accounts
        self._now_ms = now_ms
        self._api_key_id: str | None = None
        self._sums: dict[AccountId, Sums] = {}
        self._existing = dict(book.existing)
        self._resolutions = dict(book.resolutions)
        self._failed = set(book.failed_ids)
        self.holds = dict(book.holds)
        self.keys = KeyBudgets(book.keys, book.keyed_holds)
        self.opened: dict[AccountId, Account] = {}
        self.failed_ids: list[TransferId] = []
        # What happened, each with the hold that it resolved, and the one that its charge counts
        # against: enough to undo it.
        self.log: list[tuple[Transfer, Transfer | None, Transfer | None]] = []
        # The last hold that the chain at hand has resolved.
        self._ended: Transfer | None = None

    def submit(self, chain: Chain) -> ChainResult:
        start = len(self.log)
        opened = self._open(chain.opens)
        self._api_key_id, self._ended = chain.api_key_id, None
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
            if result in TRANSIENT_RESULTS and transfer.kind is not _PENDING:
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
                self._sums[account.id] = Sums(account)
                opened.append(account.id)
        return opened

    def _undo(self, start: int, opened: list[AccountId]) -> None:
        for transfer, hold, charged in reversed(self.log[start:]):
            self._move(transfer, hold, sign=-1)
            if charged is not None:
                self.keys.spend(charged.id, -transfer.amount_nano)
            del self._existing[transfer.id]
            if hold is not None:
                self.holds[hold.id] = hold
                del self._resolutions[hold.id]
                self.keys.end(hold.id, sign=-1)
            elif transfer.kind is _PENDING:
                del self.holds[transfer.id]
                self.keys.forget(transfer.id)
        del self.log[start:]
        for account_id in opened:
            del self.opened[account_id], self._sums[account_id]

    def _apply(self, transfer: Transfer) -> None:
        hold = None
        if transfer.pending_id is not None:
            hold = self._ended = self.holds.pop(transfer.pending_id)
            self._resolutions[hold.id] = transfer.kind
            self.keys.end(hold.id, sign=1)
        elif transfer.kind is _PENDING:
            self.holds[transfer.id] = transfer
            if self._api_key_id is not None:
                self.keys.hold(self._api_key_id, transfer.id, transfer.amount_nano)
        self._existing[transfer.id] = transfer
        self._move(transfer, hold, sign=1)
        charged = self._charged_hold(transfer)
        if charged is not None:
            self.keys.spend(charged.id, transfer.amount_nano)
        self.log.append((transfer, hold, charged))

    def _charged_hold(self, transfer: Transfer) -> Transfer | None:
        """The hold that reserved what this transfer takes: the one that it posts, or, if that had
        timed out, the one that its chain has expired just before."""
        ended = self._ended
        if ended is None or transfer.kind not in (_POST, _POSTED):
            return None
        return ended if (transfer.debit, transfer.credit) == (ended.debit, ended.credit) else None

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

    def _find(self, account_id: AccountId) -> Sums | None:
        sums = self._sums.get(account_id)
        if sums is None and (account := self._accounts.get(account_id)) is not None:
            sums = self._sums[account_id] = Sums(account)
        return sums

    def _check(self, transfer: Transfer) -> Result:
        """What submitting this transfer alone would give; the order is that of `Result`."""
        if (malformed := check_shape(transfer)) is not None:
            return malformed
        known = self._existing.get(transfer.id)
        if known is not None:
            return compare(known, transfer)
        if transfer.id in self._failed:
            return Result.ID_ALREADY_FAILED
        debit, credit = self._find(transfer.debit), self._find(transfer.credit)
        if debit is None:
            return Result.DEBIT_ACCOUNT_NOT_FOUND
        if credit is None:
            return Result.CREDIT_ACCOUNT_NOT_FOUND
        if transfer.pending_id is not None:
            return self._check_resolution(transfer, transfer.pending_id)
        if transfer.timeout_at_ms is not None:
            if transfer.timeout_at_ms <= self._now_ms:
                return Result.TIMEOUT_IN_THE_PAST
            if self._api_key_id is not None:
                checked = self.keys.check(self._api_key_id, transfer.amount_nano)
                if checked is not Result.CREATED:
                    return checked
        return check_sums(debit, credit, transfer.amount_nano)

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
