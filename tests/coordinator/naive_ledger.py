"""A ledger as simple as it can be written, for the real one to be compared with.

It keeps the transfers that happened and nothing else. Every question is answered by reading them
all again; nothing is cached, undone or shared with `coordinator.ledger.machine`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.ledger.machine import Chain
from coordinator.ledger.transfers import Result, Transfer, TransferKind
from protocol.money import AMOUNT_NANO_MAX

R = Result
PENDING, POSTED, POST = TransferKind.PENDING, TransferKind.POSTED, TransferKind.POST
VOID, EXPIRE = TransferKind.VOID, TransferKind.EXPIRE

# Debits pending, debits posted, credits pending, credits posted.
Balances = tuple[int, int, int, int]


@dataclass
class NaiveLedger:
    accounts: set[str]
    may_overdraw: set[str]
    history: list[Transfer] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)

    def submit(self, chain: Chain, now_ms: int) -> tuple[Result, int]:
        """What the chain gives, and which of its transfers decided."""
        trial = list(self.history)
        known = {transfer.id for transfer in self.history}
        is_retry = bool(chain.transfers) and chain.transfers[0].id in known
        for position, transfer in enumerate(chain.transfers):
            result = self.judge(trial, transfer, now_ms)
            if result in (R.CREATED, R.EXISTS) and (result is R.EXISTS) != is_retry:
                result = R.CHAIN_EXISTS_IN_PART
            if result is R.CREATED:
                trial.append(transfer)
            elif result is not R.EXISTS:
                if transfer.kind is not PENDING and result in (
                    R.DEBIT_ACCOUNT_NOT_FOUND,
                    R.CREDIT_ACCOUNT_NOT_FOUND,
                    R.PENDING_TRANSFER_NOT_FOUND,
                    R.OVERFLOWS_DEBITS,
                    R.OVERFLOWS_CREDITS,
                    R.EXCEEDS_CREDITS,
                ):
                    self.failed.add(transfer.id)
                return result, position
        self.history = trial
        return (R.EXISTS if is_retry else R.CREATED), 0

    def judge(self, history: list[Transfer], new: Transfer, now_ms: int) -> Result:
        """The first rule, in the documented order, that the transfer breaks."""
        for is_broken, result in self.rules(history, new, now_ms):
            if is_broken:
                return result
        return R.CREATED

    def rules(
        self, history: list[Transfer], new: Transfer, now_ms: int
    ) -> Iterable[tuple[bool, Result]]:
        resolves = new.kind in (POST, VOID, EXPIRE)
        yield not 0 <= new.amount_nano <= AMOUNT_NANO_MAX, R.AMOUNT_OUT_OF_RANGE
        yield new.debit == new.credit, R.ACCOUNTS_MUST_BE_DIFFERENT
        yield not resolves and new.pending_id is not None, R.PENDING_ID_MUST_BE_EMPTY
        yield resolves and new.pending_id is None, R.PENDING_ID_MUST_NOT_BE_EMPTY
        has_timeout = new.timeout_at_ms is not None
        yield new.kind is not PENDING and has_timeout, R.TIMEOUT_RESERVED_FOR_PENDING_TRANSFER
        yield new.kind is PENDING and not has_timeout, R.TIMEOUT_MUST_NOT_BE_EMPTY
        for old in history:
            if old.id == new.id:
                yield old.kind != new.kind, R.EXISTS_WITH_DIFFERENT_KIND
                yield old.pending_id != new.pending_id, R.EXISTS_WITH_DIFFERENT_PENDING_ID
                yield old.timeout_at_ms != new.timeout_at_ms, R.EXISTS_WITH_DIFFERENT_TIMEOUT
                yield old.debit != new.debit, R.EXISTS_WITH_DIFFERENT_DEBIT_ACCOUNT
                yield old.credit != new.credit, R.EXISTS_WITH_DIFFERENT_CREDIT_ACCOUNT
                yield old.amount_nano != new.amount_nano, R.EXISTS_WITH_DIFFERENT_AMOUNT
                yield old.code != new.code, R.EXISTS_WITH_DIFFERENT_CODE
                yield True, R.EXISTS
        yield new.id in self.failed, R.ID_ALREADY_FAILED
        yield new.debit not in self.accounts, R.DEBIT_ACCOUNT_NOT_FOUND
        yield new.credit not in self.accounts, R.CREDIT_ACCOUNT_NOT_FOUND
        if resolves:
            yield from self.resolution_rules(history, new, now_ms)
            return
        yield new.kind is PENDING and (new.timeout_at_ms or 0) <= now_ms, R.TIMEOUT_IN_THE_PAST
        debits_pending, debits_posted, _, credits_posted = self.balances(new.debit, history)
        debits = debits_pending + debits_posted + new.amount_nano
        yield debits > AMOUNT_NANO_MAX, R.OVERFLOWS_DEBITS
        _, _, in_pending, in_posted = self.balances(new.credit, history)
        yield in_pending + in_posted + new.amount_nano > AMOUNT_NANO_MAX, R.OVERFLOWS_CREDITS
        yield new.debit not in self.may_overdraw and debits > credits_posted, R.EXCEEDS_CREDITS

    def resolution_rules(
        self, history: list[Transfer], new: Transfer, now_ms: int
    ) -> Iterable[tuple[bool, Result]]:
        named = [old for old in history if old.id == new.pending_id]
        yield not named, R.PENDING_TRANSFER_NOT_FOUND
        (hold,) = named
        yield hold.kind is not PENDING, R.PENDING_TRANSFER_NOT_PENDING
        ends = [old.kind for old in history if old.pending_id == hold.id]
        yield POST in ends, R.PENDING_TRANSFER_ALREADY_POSTED
        yield VOID in ends, R.PENDING_TRANSFER_ALREADY_VOIDED
        is_over = (hold.timeout_at_ms or 0) <= now_ms
        yield (
            EXPIRE in ends or (is_over and new.kind is not EXPIRE),
            R.PENDING_TRANSFER_ALREADY_EXPIRED,
        )
        yield hold.debit != new.debit, R.PENDING_TRANSFER_HAS_DIFFERENT_DEBIT_ACCOUNT
        yield hold.credit != new.credit, R.PENDING_TRANSFER_HAS_DIFFERENT_CREDIT_ACCOUNT
        yield (
            new.kind is not POST and new.amount_nano != hold.amount_nano,
            R.PENDING_TRANSFER_HAS_DIFFERENT_AMOUNT,
        )
        yield new.amount_nano > hold.amount_nano, R.EXCEEDS_PENDING_TRANSFER_AMOUNT
        yield new.kind is EXPIRE and not is_over, R.PENDING_TRANSFER_NOT_YET_EXPIRED

    def balances(self, account: str, history: list[Transfer] | None = None) -> Balances:
        history = self.history if history is None else history
        ended = {old.pending_id for old in history}
        held = [old for old in history if old.kind is PENDING and old.id not in ended]
        moved = [old for old in history if old.kind in (POSTED, POST)]
        return (
            sum(old.amount_nano for old in held if old.debit == account),
            sum(old.amount_nano for old in moved if old.debit == account),
            sum(old.amount_nano for old in held if old.credit == account),
            sum(old.amount_nano for old in moved if old.credit == account),
        )
