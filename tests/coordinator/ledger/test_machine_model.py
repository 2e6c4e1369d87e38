"""The ledger and its storage against a naive model of them: the same is said to both.

Two drivers share one vocabulary: plain seeds, which go far quickly, and hypothesis, which goes
less far but shrinks what it finds.
"""

from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from coordinator.audit.books import audit
from coordinator.db.accounts import find_accounts, open_account
from coordinator.db.engine import InlineRunner, open_database
from coordinator.db.writer import Posting, post
from coordinator.ledger.accounts import (
    SYSTEM_ACCOUNTS,
    Account,
    AccountId,
    AccountKind,
    SystemAccount,
)
from coordinator.ledger.machine import Chain
from coordinator.ledger.transfers import Transfer, TransferCode, TransferKind
from protocol.ids import TransferId, new_ulid
from protocol.money import AMOUNT_NANO_MAX
from tests.coordinator.ledger_makers import START_MS
from tests.coordinator.naive_ledger import NaiveLedger

ALICE, BOB, LATE, GHOST = map(AccountId, ("alice", "bob", "late", "ghost"))
ISSUANCE = SystemAccount.ISSUANCE
# LATE is opened on the way, GHOST never.
PARTIES = [ALICE, BOB, ISSUANCE, LATE]

POSTED, PENDING, POST = TransferKind.POSTED, TransferKind.PENDING, TransferKind.POST
RESOLVING = [POST, TransferKind.VOID, TransferKind.EXPIRE]
HUGE = [AMOUNT_NANO_MAX, AMOUNT_NANO_MAX - 60, AMOUNT_NANO_MAX // 2, -1, 2**63]


class Ledgers:
    """The real ledger on a database, and the naive one."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.database = open_database("sqlite://", InlineRunner())
        system = {account.id for account in SYSTEM_ACCOUNTS}
        self.naive = NaiveLedger(accounts={ALICE, BOB, *system}, may_overdraw={ISSUANCE})
        self.now_ms = START_MS
        self.count = 0
        self.said: list[Chain] = []
        with self.database.transaction() as conn:
            for party in (ALICE, BOB):
                open_account(conn, Account(party, AccountKind.CLIENT))
        self.say([self.credit(ALICE, 60), self.credit(BOB, 60)])

    def close(self) -> None:
        """The last word is the auditor's."""
        with self.database.transaction() as conn:
            report = audit(conn)
        self.database.close()
        assert report.is_green, report.findings
        assert report.transfers == len(self.naive.history)

    def say(self, chains: list[Chain]) -> None:
        """Submit one batch to both, and compare what they answer and what they hold."""
        expected = [self.naive.submit(chain, self.now_ms) for chain in chains]
        with self.database.transaction() as conn:
            answers = post(conn, [Posting(chain) for chain in chains], now_ms=self.now_ms)
            accounts = find_accounts(conn, PARTIES).values()
        assert [(answer.result, answer.position) for answer in answers] == expected
        for account in accounts:
            stored = account[3:7]
            assert stored == self.naive.balances(account.id), account.id
        assert sum(account.posted_nano for account in accounts) == 0, "money is conserved"
        self.said = (self.said + chains)[-10:]

    def credit(self, party: AccountId, amount: int) -> Chain:
        kind, code = POSTED, TransferCode.CREDIT
        return Chain((Transfer(self.new_id(), ISSUANCE, party, amount, kind, code),))

    def open_late(self) -> None:
        with self.database.transaction() as conn:
            open_account(conn, Account(LATE, AccountKind.NODE))
        self.naive.accounts.add(LATE)

    def chain(self) -> Chain:
        """One to four transfers that make sense after each other; about every fifth is garbled, so
        that each rule is broken while most transfers happen."""
        transfers: list[Transfer] = []
        for _ in range(self.rng.choice((1, 1, 2, 3, 4))):
            transfer = self.sensible(transfers)
            if self.rng.randrange(5) == 0:
                transfer = self.garbled(transfer, transfers)
            transfers.append(transfer)
        return Chain(tuple(transfers))

    def sensible(self, chain: list[Transfer]) -> Transfer:
        rng = self.rng
        known = [*self.naive.history, *chain]
        ended = {transfer.pending_id for transfer in known} if rng.randrange(5) else set()
        holds = [t for t in known if t.kind is PENDING and t.id not in ended][-6:]
        kind = rng.choice([POSTED, PENDING, PENDING, *(RESOLVING if holds else ())])
        if kind in RESOLVING:
            hold = rng.choice(holds)
            amount = hold.amount_nano
            return hold._replace(
                id=self.new_id(),
                kind=kind,
                amount_nano=rng.randint(0, amount + 1) if kind is POST and amount > 0 else amount,
                pending_id=hold.id,
                timeout_at_ms=None,
            )
        debit, credit = rng.sample(PARTIES, 2)
        return Transfer(
            self.new_id(),
            debit,
            credit,
            rng.randint(0, 25) if rng.randrange(12) else rng.choice(HUGE),
            kind,
            TransferCode.HOLD,
            timeout_at_ms=self.now_ms + rng.randint(1, 20) if kind is PENDING else None,
        )

    def garbled(self, transfer: Transfer, chain: list[Transfer]) -> Transfer:
        """The transfer with one field changed, often to that of another transfer."""
        rng = self.rng
        other = rng.choice([*self.naive.history[-8:], *chain, transfer])
        changes: list[dict[str, Any]] = [
            {"id": other.id},
            {**other._asdict(), rng.choice(["debit", "credit"]): rng.choice(PARTIES)},
            {**other._asdict(), "amount_nano": other.amount_nano + 1},
            {**other._asdict(), "code": TransferCode.CREDIT},
            {**other._asdict(), "pending_id": transfer.pending_id},
            {**other._asdict(), "timeout_at_ms": transfer.timeout_at_ms},
            {"pending_id": other.id},
            {"pending_id": None},
            {"timeout_at_ms": START_MS + rng.randint(0, 20)},
            {"timeout_at_ms": None},
            {"debit": rng.choice([*PARTIES, GHOST])},
            {"credit": rng.choice([*PARTIES, GHOST])},
            {"amount_nano": transfer.amount_nano + rng.choice([-1, 1])},
            {"kind": other.kind},
        ]
        return transfer._replace(**rng.choice(changes))

    def new_id(self) -> TransferId:
        self.count += 1
        return TransferId(new_ulid(START_MS, self.count.to_bytes(10)))


@pytest.mark.parametrize("seed", range(12))
def test_the_ledger_agrees_with_the_naive_one(seed: int) -> None:
    rng = Random(seed)
    ledgers = Ledgers(rng)
    for step in range(120):
        batch = [ledgers.chain() for _ in range(rng.randint(1, 3))]
        ledgers.say([*batch, rng.choice(batch)])
        if rng.randrange(4) == 0:
            ledgers.say([rng.choice(ledgers.said)])
        ledgers.now_ms += rng.randint(-4, 8)
        if step == 40:
            ledgers.open_late()
    ledgers.close()


class LedgersMachine(RuleBasedStateMachine):
    """The same, driven by hypothesis."""

    def __init__(self) -> None:
        super().__init__()
        self.ledgers = Ledgers(Random(0))

    def teardown(self) -> None:
        self.ledgers.close()

    @rule(rng=st.randoms(use_true_random=False), size=st.integers(1, 3))
    def submit(self, rng: Random, size: int) -> None:
        self.ledgers.rng = rng
        self.ledgers.say([self.ledgers.chain() for _ in range(size)])

    @rule(amount=st.integers(1, 60), party=st.sampled_from([ALICE, BOB]))
    def credit(self, amount: int, party: AccountId) -> None:
        self.ledgers.say([self.ledgers.credit(party, amount)])

    @rule(age=st.integers(1, 10))
    def repeat(self, age: int) -> None:
        self.ledgers.say(self.ledgers.said[-age:][:1])

    @rule(step_ms=st.integers(-5, 15))
    def wait(self, step_ms: int) -> None:
        """Clocks may also be set back."""
        self.ledgers.now_ms += step_ms

    @rule()
    def open_late(self) -> None:
        self.ledgers.open_late()


TestLedgersMachine = LedgersMachine.TestCase
TestLedgersMachine.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
