"""A second opinion on the money, from evidence alone.

The auditor sees what the parties of a market saw: leases as clients got them, receipts as nodes
signed them, acceptances, and what the coordinator answered to each hand-in. From that it keeps its
own books and at the end compares them with the balances that the coordinator reports, as plain
numbers. It never imports the ledger or the database, and computes charges and shares anew: a
mistake in either is not made twice.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from protocol.countersigning import Delivery
from protocol.endings import Finish
from protocol.envelope import Signed
from protocol.errors import RETRYABLE_LATER, Code
from protocol.ids import Digest, JobId, LeaseId, PeerId
from protocol.messages import Acceptance, Lease, Receipt
from sim.book_rows import Acknowledgement
from sim.worth import charge_nano, lone_nano, word_nano

_BASIS_POINTS = 10_000

# What a coordinator answers when a receipt is durable but its client may still object.
_PENDING = "pending"


class Rule(StrEnum):
    """What must hold of every market whose parties are honest."""

    LEASE_IS_SIGNED = "a lease is signed by the coordinator and allows what it costs"
    RECEIPT_FITS_LEASE = "a receipt is its leased node's and bills what was leased"
    CHARGE_IS_PRICE = "a receipt's amount is the lease's price of its units"
    ONE_RECEIPT = "a lease is billed once"
    COUNTS_AGREE = "client and node count the same output"
    ONE_CAPTURE = "a lease is captured at most once"
    CAPTURE_IS_EARNED = "what is captured is what both sides signed for"
    WORK_IS_PAID = "a receipt of work is not refused for good"
    ANSWERS_AGREE = "the coordinator tells everybody the same of a receipt"
    CLIENT_PAYS_RECEIPTS = "a client pays exactly its captured receipts"
    NODE_IS_PAID = "a node gets its share of each captured receipt"
    FEE_IS_REMAINDER = "the operator gets what is left of each captured receipt"
    MONEY_IS_CONSERVED = "all balances add up to what was credited"
    NOTHING_HELD = "no money is held when no job runs"
    NO_STRANGERS = "only parties of the market have money"


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """One breach of a rule, with what it concerns."""

    rule: Rule
    detail: str

    def __str__(self) -> str:
        return f"{self.rule.name}: {self.rule.value}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Balances:
    """What the coordinator says at the end, in nano-credits by account: what is there, and how much
    of it is held."""

    posted_nano: Mapping[str, int]
    held_nano: Mapping[str, int]
    operator_nano: int
    escrow_nano: int


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the coordinator said to one hand-in."""

    receipt: Digest
    state: str
    amount_nano: int


@dataclass(slots=True)
class _Case:
    """All that was seen of one lease. `delivery` is the client's word without a receipt, and
    `is_declared` once the coordinator has acknowledged it."""

    lease: Signed[Lease] | None = None
    receipts: dict[Digest, Signed[Receipt]] = field(default_factory=dict)
    acceptances: dict[Digest, Signed[Acceptance]] = field(default_factory=dict)
    delivery: Delivery | None = None
    is_declared: bool = False
    answers: list[_Answer] = field(default_factory=list)
    refusals: list[tuple[Digest, Code]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Capture:
    """Money that moved because of one lease."""

    client: PeerId
    node: PeerId
    amount_nano: int
    share_nano: int


class Auditor:
    """Collects evidence in any order; `audit` judges it."""

    def __init__(self, coordinator: PeerId, *, fee_bps: int) -> None:
        self._coordinator = coordinator
        self._fee_bps = fee_bps
        self._credited: defaultdict[str, int] = defaultdict(int)
        self._cases: defaultdict[LeaseId, _Case] = defaultdict(_Case)

    # Evidence.

    def credited(self, account: PeerId, amount_nano: int) -> None:
        """The world put money in."""
        self._credited[account] += amount_nano

    def leased(self, lease: Signed[Lease]) -> None:
        """A client got a lease."""
        self._cases[lease.message.lease_id].lease = lease

    def receipted(self, receipt: Signed[Receipt]) -> None:
        """A node signed a receipt, or a client got one."""
        self._cases[receipt.message.lease_id].receipts[receipt.digest] = receipt

    def accepted(self, acceptance: Signed[Acceptance]) -> None:
        """A client countersigned."""
        case = self._cases[acceptance.message.lease_id]
        case.acceptances[acceptance.message.receipt_digest] = acceptance

    def delivered(self, delivery: Signed[Delivery], *, is_declared: bool = False) -> None:
        """A client signed for what it got without a receipt, and perhaps was told that its word is
        durable."""
        case = self._cases[delivery.message.lease_id]
        case.delivery = delivery.message
        case.is_declared = case.is_declared or is_declared

    def answered(self, receipt: Signed[Receipt], state: str, amount_nano: int) -> None:
        """The coordinator acknowledged a hand-in."""
        self.receipted(receipt)
        case = self._cases[receipt.message.lease_id]
        case.answers.append(_Answer(receipt.digest, state, amount_nano))

    def refused(self, receipt: Signed[Receipt], code: Code) -> None:
        """The coordinator refused a hand-in."""
        self.receipted(receipt)
        self._cases[receipt.message.lease_id].refusals.append((receipt.digest, code))

    # Judgement.

    @property
    def leases_seen(self) -> int:
        return len(self.leases())

    def leases(self) -> tuple[LeaseId, ...]:
        """Those that clients have got."""
        return tuple(lease_id for lease_id, case in self._cases.items() if case.lease is not None)

    def job_ids(self) -> tuple[JobId, ...]:
        """Those that clients have chosen."""
        cases = self._cases.values()
        return tuple(case.lease.message.job_id for case in cases if case.lease is not None)

    def leases_of(self, party: PeerId) -> int:
        """How many a node has got."""
        cases = self._cases.values()
        return sum(case.lease.message.node == party for case in cases if case.lease is not None)

    def promises(self) -> Iterable[Acknowledgement]:
        """What the coordinator has acknowledged."""
        for lease_id, case in self._cases.items():
            for answer in case.answers:
                raw = case.receipts[answer.receipt].raw
                yield Acknowledgement(lease_id, raw, answer.state != _PENDING, answer.amount_nano)

    @property
    def credited_nano(self) -> int:
        return sum(self._credited.values())

    def captured_nano(self) -> int:
        """What clients have paid, by the evidence."""
        return sum(capture.amount_nano for capture in self._captures())

    def audit(self, reported: Balances) -> tuple[BrokenRule, ...]:
        """Every breach that the evidence or the reported balances show; empty if all is well."""
        found: list[BrokenRule] = []
        for lease_id, case in self._cases.items():
            found += [BrokenRule(rule, f"{lease_id}: {what}") for rule, what in self._judge(case)]
        found += self._compare(reported)
        return tuple(found)

    def _judge(self, case: _Case) -> Iterable[tuple[Rule, str]]:
        """What is wrong with the evidence of one lease."""
        if case.lease is None:
            if case.receipts:
                yield Rule.RECEIPT_FITS_LEASE, "there is a receipt, but no client got this lease"
            return
        yield from self._judge_lease(case.lease)
        billed = {d for d, receipt in case.receipts.items() if receipt.message.amount_nano}
        if len(billed) > 1:
            yield Rule.ONE_RECEIPT, f"{len(billed)} receipts bill it"
        for receipt in case.receipts.values():
            yield from _judge_receipt(receipt, case.lease)
        for digest, acceptance in case.acceptances.items():
            if digest not in case.receipts or not acceptance.message.agrees:
                yield Rule.COUNTS_AGREE, f"the client counted {acceptance.message.units}"
        yield from _judge_answers(case)

    def _judge_lease(self, lease: Signed[Lease]) -> Iterable[tuple[Rule, str]]:
        granted = lease.message
        if lease.signer != self._coordinator or granted.coordinator != self._coordinator:
            yield Rule.LEASE_IS_SIGNED, f"signed by {lease.signer}"
        if granted.ceiling_nano < charge_nano(granted.price, granted.units_max):
            yield Rule.LEASE_IS_SIGNED, f"its ceiling is {granted.ceiling_nano}"

    def _captures(self) -> Iterable[_Capture]:
        """The money that must have moved, by the evidence."""
        for case in self._cases.values():
            if case.lease is None or not case.answers:
                continue
            amount_nano = _captured_nano(case)
            granted = case.lease.message
            share_nano = amount_nano * (_BASIS_POINTS - self._fee_bps) // _BASIS_POINTS
            yield _Capture(granted.client, granted.node, amount_nano, share_nano)

    def _compare(self, reported: Balances) -> Iterable[BrokenRule]:
        """Our books against the coordinator's."""
        paid: defaultdict[str, int] = defaultdict(int)
        earned: defaultdict[str, int] = defaultdict(int)
        fees_nano = 0
        for capture in self._captures():
            paid[capture.client] += capture.amount_nano
            earned[capture.node] += capture.share_nano
            fees_nano += capture.amount_nano - capture.share_nano
        accounts = {*self._credited, *reported.posted_nano, *earned}
        for account in sorted(accounts):
            yield from self._compare_account(account, reported, paid[account], earned[account])
        if reported.operator_nano != fees_nano:
            detail = f"the operator has {reported.operator_nano}, fees were {fees_nano}"
            yield BrokenRule(Rule.FEE_IS_REMAINDER, detail)
        everything = sum(reported.posted_nano.values()) + reported.operator_nano
        if everything + reported.escrow_nano != sum(self._credited.values()):
            detail = f"credited {sum(self._credited.values())}, found {everything}"
            yield BrokenRule(Rule.MONEY_IS_CONSERVED, detail)
        held = {account: nano for account, nano in reported.held_nano.items() if nano}
        if held or reported.escrow_nano:
            detail = f"{held or 'nothing'} held, {reported.escrow_nano} in escrow"
            yield BrokenRule(Rule.NOTHING_HELD, detail)

    def _compare_account(
        self, account: str, reported: Balances, paid_nano: int, earned_nano: int
    ) -> Iterable[BrokenRule]:
        actual_nano = reported.posted_nano.get(account, 0)
        expected_nano = self._credited.get(account, 0) - paid_nano + earned_nano
        if actual_nano == expected_nano:
            return
        detail = f"{account} has {actual_nano}, by the evidence {expected_nano}"
        if account in self._credited:
            yield BrokenRule(Rule.CLIENT_PAYS_RECEIPTS, detail)
        elif earned_nano:
            yield BrokenRule(Rule.NODE_IS_PAID, detail)
        else:
            yield BrokenRule(Rule.NO_STRANGERS, detail)


def _judge_receipt(receipt: Signed[Receipt], lease: Signed[Lease]) -> Iterable[tuple[Rule, str]]:
    billed, granted = receipt.message, lease.message
    if receipt.signer != granted.node or billed.lease_digest != lease.digest:
        yield Rule.RECEIPT_FITS_LEASE, f"signed by {receipt.signer} for {billed.lease_digest[:12]}"
    if (billed.client, billed.job_id) != (granted.client, granted.job_id):
        yield Rule.RECEIPT_FITS_LEASE, "it names another client or job"
    if not billed.units.fits_in(granted.units_max) or billed.amount_nano > granted.ceiling_nano:
        yield Rule.RECEIPT_FITS_LEASE, f"it bills {billed.units} for {billed.amount_nano}"
    is_free = billed.finish is Finish.REFUSED or (
        billed.finish is Finish.FAILED and not billed.units.output_tokens
    )
    due_nano = 0 if is_free else charge_nano(granted.price, billed.units)
    if billed.amount_nano != due_nano:
        yield Rule.CHARGE_IS_PRICE, f"{billed.amount_nano} instead of {due_nano}"


def _judge_answers(case: _Case) -> Iterable[tuple[Rule, str]]:
    """What the coordinator said of one lease's receipts, against what was signed."""
    final = {(a.receipt, a.amount_nano) for a in case.answers if a.state != _PENDING}
    if len({receipt for receipt, amount_nano in final if amount_nano}) > 1:
        yield Rule.ONE_CAPTURE, "two of its receipts were paid"
    elif len(final) > 1:
        yield Rule.ANSWERS_AGREE, f"its receipt was settled for {sorted(n for _, n in final)}"
    paid = {receipt for receipt, _ in final}
    for digest, code in case.refusals:
        if digest in paid and code not in RETRYABLE_LATER:
            yield Rule.ANSWERS_AGREE, f"its receipt was both settled and refused ({code})"
    if not final:
        yield from _judge_refusals(case)
    for answer in case.answers:
        billed_nano = case.receipts[answer.receipt].message.amount_nano
        is_pending = answer.state == _PENDING
        earned_nano = billed_nano if is_pending else _earned_nano(case, answer.receipt)
        if answer.amount_nano not in (earned_nano, _undeclared_nano(case, answer)):
            yield Rule.CAPTURE_IS_EARNED, f"{answer.amount_nano} paid for {earned_nano}"


def _judge_refusals(case: _Case) -> Iterable[tuple[Rule, str]]:
    """Of a lease of which nothing was paid."""
    for digest, code in case.refusals:
        if _earned_nano(case, digest) and code not in RETRYABLE_LATER:
            yield Rule.WORK_IS_PAID, f"its receipt was refused ({code}), and nothing was paid"


def _earned_nano(case: _Case, digest: Digest) -> int:
    """The charge that node and client both signed for."""
    billed = case.receipts[digest].message
    acceptance = case.acceptances.get(digest)
    if case.lease is None or (acceptance is not None and acceptance.message.agrees):
        return billed.amount_nano
    if acceptance is None and case.delivery is not None and case.is_declared:
        return word_nano(billed, case.lease.message, case.delivery.units)
    if acceptance is None:
        return lone_nano(billed, case.lease.message)
    counted_nano = charge_nano(case.lease.message.price, acceptance.message.units)
    return min(billed.amount_nano, counted_nano)


def _undeclared_nano(case: _Case, answer: _Answer) -> int:
    """What a receipt is worth if the coordinator took its client's word, but could not tell it."""
    if answer.state == _PENDING or case.lease is None or case.delivery is None:
        return answer.amount_nano if answer.state == _PENDING else -1
    billed = case.receipts[answer.receipt].message
    return word_nano(billed, case.lease.message, case.delivery.units)


def _captured_nano(case: _Case) -> int:
    """What left the client's hold: once something is acknowledged it is owed, sooner or later."""
    final = [answer.amount_nano for answer in case.answers if answer.state != _PENDING]
    return max(final or (_earned_nano(case, answer.receipt) for answer in case.answers))
