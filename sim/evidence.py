"""All that was seen of one lease, what is wrong with it, and what was earned by it.

The auditor gathers cases and keeps the books; what one lease's evidence must look like is here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from protocol.countersigning import Delivery
from protocol.endings import Finish
from protocol.envelope import Signed
from protocol.errors import RETRYABLE_LATER, Code
from protocol.ids import Digest, PeerId
from protocol.messages import Acceptance, Lease, Receipt
from sim.worth import charge_nano, exceeds_binding, lone_nano, word_nano

# What a coordinator answers when a receipt is durable but its client may still object.
PENDING = "pending"


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
    ANSWERS_AGREE = "the coordinator tells all parties the same of a receipt"
    CLIENT_PAYS_RECEIPTS = "a client pays exactly its captured receipts"
    NODE_IS_PAID = "a node gets its share of each captured receipt"
    OPERATOR_PAYS_CUTS = "the operator pays exactly for what its own end has cut"
    KEY_IS_CHARGED = "an API key is charged the captures of its leases"
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
class HandInAnswer:
    """What the coordinator said to one hand-in, and in which of its processes."""

    receipt: Digest
    state: str
    amount_nano: int
    process: int = 0


@dataclass(slots=True)
class Case:
    """All that was seen of one lease. `delivery` is the client's word without a receipt, and
    `declared` the envelope that the coordinator has acknowledged. Its own client bought it for
    an `api_key_id`, in one of its processes."""

    lease: Signed[Lease] | None = None
    api_key_id: str | None = None
    process: int = 0
    is_ahead: bool = False
    receipts: dict[Digest, Signed[Receipt]] = field(default_factory=dict)
    acceptances: dict[Digest, Signed[Acceptance]] = field(default_factory=dict)
    delivery: Delivery | None = None
    declared: bytes | None = None
    answers: list[HandInAnswer] = field(default_factory=list)
    refusals: list[tuple[Digest, Code]] = field(default_factory=list)

    def is_cut(self, now: int) -> bool:
        """The process that bought it had ended when it was settled; a node that has left does not
        hear of that, and then it is settled at the latest in process `now`."""
        final = [answer.process for answer in self.answers if answer.state != PENDING]
        return self.api_key_id is not None and self.process < min(final, default=now)

    @property
    def is_signed(self) -> bool:
        """Its client has said what it got, although perhaps not to the coordinator."""
        return bool(self.acceptances) or self.delivery is not None


def breaches(case: Case, coordinator: PeerId) -> Iterable[tuple[Rule, str]]:
    """What is wrong with the evidence of one lease."""
    if case.lease is None:
        if case.receipts:
            yield Rule.RECEIPT_FITS_LEASE, "there is a receipt, but no client got this lease"
        return
    yield from _judge_lease(case.lease, coordinator)
    billed = {d for d, receipt in case.receipts.items() if receipt.message.amount_nano}
    if len(billed) > 1:
        yield Rule.ONE_RECEIPT, f"{len(billed)} receipts bill it"
    for receipt in case.receipts.values():
        yield from _judge_receipt(receipt, case.lease)
    for digest, acceptance in case.acceptances.items():
        if digest not in case.receipts or not acceptance.message.agrees:
            yield Rule.COUNTS_AGREE, f"the client counted {acceptance.message.units}"
    yield from _judge_answers(case)


def gift_breaches(case: Case, *, is_gift: bool, now: int) -> Iterable[tuple[Rule, str]]:
    """What is wrong with who has paid for a lease, in process `now` of the coordinator."""
    is_cut = case.is_cut(now)
    is_paid = bool(case.answers) and captured_nano(case) > 0
    if is_gift and (not is_cut or case.declared is not None):
        what = "it is given away, and was not cut or its client's word was acknowledged"
        yield Rule.OPERATOR_PAYS_CUTS, what
    if not is_gift and is_cut and is_paid and not case.is_signed:
        yield Rule.OPERATOR_PAYS_CUTS, "it was cut, and its client pays"


def captured_nano(case: Case) -> int:
    """What left the client's hold: once something is acknowledged it is owed, sooner or later."""
    final = [answer.amount_nano for answer in case.answers if answer.state != PENDING]
    return max(final or (_earned_nano(case, answer.receipt) for answer in case.answers))


def _judge_lease(lease: Signed[Lease], coordinator: PeerId) -> Iterable[tuple[Rule, str]]:
    granted = lease.message
    if lease.signer != coordinator or granted.coordinator != coordinator:
        yield Rule.LEASE_IS_SIGNED, f"signed by {lease.signer}"
    if granted.ceiling_nano < charge_nano(granted.price, granted.units_max):
        yield Rule.LEASE_IS_SIGNED, f"its ceiling is {granted.ceiling_nano}"


def _judge_receipt(receipt: Signed[Receipt], lease: Signed[Lease]) -> Iterable[tuple[Rule, str]]:
    billed, granted = receipt.message, lease.message
    if receipt.signer != granted.node or billed.lease_digest != lease.digest:
        yield Rule.RECEIPT_FITS_LEASE, f"signed by {receipt.signer} for {billed.lease_digest[:12]}"
    if (billed.client, billed.job_id) != (granted.client, granted.job_id):
        yield Rule.RECEIPT_FITS_LEASE, "it names another client or job"
    if not billed.units.fits_in(granted.units_max) or billed.amount_nano > granted.ceiling_nano:
        yield Rule.RECEIPT_FITS_LEASE, f"it bills {billed.units} for {billed.amount_nano}"
    if exceeds_binding(billed):
        yield Rule.RECEIPT_FITS_LEASE, f"it bills {billed.units}, more than its opening allows"
    is_free = billed.finish is Finish.REFUSED or (
        billed.finish is Finish.FAILED and not billed.units.output_tokens
    )
    due_nano = 0 if is_free else charge_nano(granted.price, billed.units)
    if billed.amount_nano != due_nano:
        yield Rule.CHARGE_IS_PRICE, f"{billed.amount_nano} instead of {due_nano}"


def _judge_answers(case: Case) -> Iterable[tuple[Rule, str]]:
    """What the coordinator said of one lease's receipts, against what was signed."""
    final = {(a.receipt, a.amount_nano) for a in case.answers if a.state != PENDING}
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
        is_pending = answer.state == PENDING
        earned_nano = billed_nano if is_pending else _earned_nano(case, answer.receipt)
        possible = (earned_nano, _undeclared_nano(case, answer), _cut_nano(case, answer))
        if answer.amount_nano not in possible:
            yield Rule.CAPTURE_IS_EARNED, f"{answer.amount_nano} paid for {earned_nano}"


def _judge_refusals(case: Case) -> Iterable[tuple[Rule, str]]:
    """Of a lease of which nothing was paid."""
    for digest, code in case.refusals:
        if _earned_nano(case, digest) and code not in RETRYABLE_LATER:
            yield Rule.WORK_IS_PAID, f"its receipt was refused ({code}), and nothing was paid"


def _earned_nano(case: Case, digest: Digest) -> int:
    """The charge that node and client both signed for."""
    billed = case.receipts[digest].message
    acceptance = case.acceptances.get(digest)
    if case.lease is None or (acceptance is not None and acceptance.message.agrees):
        return billed.amount_nano
    if acceptance is None and case.delivery is not None and case.declared is not None:
        return word_nano(billed, case.lease.message, case.delivery.units)
    if acceptance is None:
        return lone_nano(billed, case.lease.message)
    counted_nano = charge_nano(case.lease.message.price, acceptance.message.units)
    return min(billed.amount_nano, counted_nano)


def _undeclared_nano(case: Case, answer: HandInAnswer) -> int:
    """What a receipt is worth if the coordinator took its client's word, but could not tell it."""
    if answer.state == PENDING or case.lease is None or case.delivery is None:
        return answer.amount_nano if answer.state == PENDING else -1
    billed = case.receipts[answer.receipt].message
    return word_nano(billed, case.lease.message, case.delivery.units)


def _cut_nano(case: Case, answer: HandInAnswer) -> int:
    """What a receipt is worth if its client's process has ended before its word reached anyone."""
    if case.lease is None or case.declared is not None or not case.is_cut(answer.process):
        return -1
    return lone_nano(case.receipts[answer.receipt].message, case.lease.message)
