"""A second opinion on the money, from evidence alone.

The auditor sees what the parties of a market saw: leases as clients got them, receipts as nodes
signed them, acceptances, and what the coordinator answered to each hand-in. From that it keeps its
own books and at the end compares them with the balances that the coordinator reports, as plain
numbers. It never imports the ledger or the database, and computes charges and shares anew: a
mistake in either is not made twice. What one lease's evidence must look like is in `evidence`.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from protocol.countersigning import Delivery
from protocol.envelope import Signed
from protocol.errors import Code
from protocol.ids import JobId, LeaseId, PeerId
from protocol.messages import Acceptance, Lease, Receipt
from sim.book_rows import Acknowledgement
from sim.evidence import (
    PENDING,
    BrokenRule,
    Case,
    HandInAnswer,
    Rule,
    breaches,
    captured_nano,
    gift_breaches,
)

_BASIS_POINTS = 10_000


@dataclass(frozen=True, slots=True)
class Balances:
    """What the coordinator says at the end, in nano-credits by account: what is there, and how much
    of it is held. `gifts` are the leases that the operator paid for, `spent_nano` is by API key."""

    posted_nano: Mapping[str, int]
    held_nano: Mapping[str, int]
    operator_nano: int
    escrow_nano: int
    goodwill_nano: int = 0
    gifts: Collection[str] = frozenset()
    spent_nano: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Capture:
    """Money that moved because of one lease. If it is a gift, the operator has paid it."""

    client: PeerId
    node: PeerId
    amount_nano: int
    share_nano: int
    api_key_id: str | None
    is_gift: bool


@dataclass(frozen=True, slots=True)
class TakenAhead:
    """A lease that was there before its job: the job's id, as the lease brings it, and what was
    captured."""

    job_id: JobId
    captured_nano: int
    is_of_gateway: bool


class Auditor:
    """Collects evidence in any order; `audit` judges it."""

    def __init__(self, coordinator: PeerId, *, fee_bps: int) -> None:
        self._coordinator = coordinator
        self._fee_bps = fee_bps
        self._credited: defaultdict[str, int] = defaultdict(int)
        self._cases: defaultdict[LeaseId, Case] = defaultdict(Case)
        self._process = 0

    # Evidence.

    def credited(self, account: str, amount_nano: int) -> None:
        """The world put money in."""
        self._credited[account] += amount_nano

    def coordinator_started(self) -> None:
        """What its own client bought in an earlier process is cut."""
        self._process += 1

    def leased(
        self, lease: Signed[Lease], *, api_key_id: str | None = None, is_ahead: bool = False
    ) -> None:
        """A client got a lease, `is_ahead` before it had the job; the coordinator's own client for
        an API key."""
        case = self._cases[lease.message.lease_id]
        case.lease, case.api_key_id, case.process = lease, api_key_id, self._process
        case.is_ahead = is_ahead

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
        if is_declared:
            case.declared = delivery.raw

    def answered(self, receipt: Signed[Receipt], state: str, amount_nano: int) -> None:
        """The coordinator acknowledged a hand-in."""
        self.receipted(receipt)
        case = self._cases[receipt.message.lease_id]
        case.answers.append(HandInAnswer(receipt.digest, state, amount_nano, self._process))

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

    def taken_ahead(self) -> dict[LeaseId, TakenAhead]:
        """The leases that clients took before they had jobs for them."""
        return {
            lease_id: TakenAhead(
                case.lease.message.job_id,
                captured_nano(case) if case.answers else 0,
                is_of_gateway=case.api_key_id is not None,
            )
            for lease_id, case in self._cases.items()
            if case.lease is not None and case.is_ahead
        }

    def job_ids(self, *, but_of: PeerId) -> tuple[JobId, ...]:
        """Those that all other clients have chosen."""
        leases = (case.lease.message for case in self._cases.values() if case.lease is not None)
        return tuple(lease.job_id for lease in leases if lease.client != but_of)

    def jobs_at(self, node: PeerId) -> dict[int, list[JobId]]:
        """The jobs that a node was leased, once for each lease, by process of the coordinator."""
        jobs: dict[int, list[JobId]] = {}
        for case in self._cases.values():
            if case.lease is not None and case.lease.message.node == node:
                jobs.setdefault(case.process, []).append(case.lease.message.job_id)
        return jobs

    def promises(self) -> Iterable[Acknowledgement]:
        """What the coordinator has acknowledged."""
        for lease_id, case in self._cases.items():
            for answer in case.answers:
                raw = case.receipts[answer.receipt].raw
                yield Acknowledgement(lease_id, raw, answer.state != PENDING, answer.amount_nano)

    def declared(self) -> dict[str, bytes]:
        """The words of clients that the coordinator has acknowledged, by lease."""
        words = ((lease_id, case.declared) for lease_id, case in self._cases.items())
        return {lease_id: word for lease_id, word in words if word is not None}

    @property
    def credited_nano(self) -> int:
        return sum(self._credited.values())

    def captured_nano(self, gifts: Collection[str] = ()) -> int:
        """What clients have paid, by the evidence; the operator has paid for `gifts`."""
        return sum(c.amount_nano for c in self._captures(gifts) if not c.is_gift)

    def audit(self, reported: Balances) -> tuple[BrokenRule, ...]:
        """Every breach that the evidence or the reported balances show; empty if all is well."""
        found: list[BrokenRule] = []
        for lease_id, case in self._cases.items():
            is_gift = lease_id in reported.gifts
            found += [
                BrokenRule(rule, f"{lease_id}: {what}")
                for rule, what in (
                    *breaches(case, self._coordinator),
                    *gift_breaches(case, is_gift=is_gift, now=self._process),
                )
            ]
        found += self._compare(reported)
        return tuple(found)

    def _captures(self, gifts: Collection[str]) -> Iterable[_Capture]:
        """The money that must have moved, by the evidence."""
        for lease_id, case in self._cases.items():
            if case.lease is None or not case.answers:
                continue
            amount_nano = captured_nano(case)
            granted = case.lease.message
            share_nano = amount_nano * (_BASIS_POINTS - self._fee_bps) // _BASIS_POINTS
            yield _Capture(
                granted.client,
                granted.node,
                amount_nano,
                share_nano,
                case.api_key_id,
                is_gift=lease_id in gifts,
            )

    def _compare(self, reported: Balances) -> Iterable[BrokenRule]:
        """Our books against the coordinator's."""
        paid: defaultdict[str, int] = defaultdict(int)
        earned: defaultdict[str, int] = defaultdict(int)
        spent: defaultdict[str, int] = defaultdict(int)
        fees_nano = given_nano = 0
        for capture in self._captures(reported.gifts):
            charged_nano = 0 if capture.is_gift else capture.amount_nano
            paid[capture.client] += charged_nano
            given_nano += capture.amount_nano - charged_nano
            if capture.api_key_id is not None:
                spent[capture.api_key_id] += charged_nano
            earned[capture.node] += capture.share_nano
            fees_nano += capture.amount_nano - capture.share_nano
        yield from _compare_keys(spent, reported.spent_nano)
        if reported.goodwill_nano != -given_nano:
            detail = f"it gave {-reported.goodwill_nano}, of its cuts {given_nano}"
            yield BrokenRule(Rule.OPERATOR_PAYS_CUTS, detail)
        accounts = {*self._credited, *reported.posted_nano, *earned}
        for account in sorted(accounts):
            yield from self._compare_account(account, reported, paid[account], earned[account])
        if reported.operator_nano != fees_nano:
            detail = f"the operator has {reported.operator_nano}, fees were {fees_nano}"
            yield BrokenRule(Rule.FEE_IS_REMAINDER, detail)
        everything = sum(reported.posted_nano.values()) + reported.operator_nano
        everything += reported.goodwill_nano
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


def _compare_keys(spent: Mapping[str, int], reported: Mapping[str, int]) -> Iterable[BrokenRule]:
    for key_id in {**spent, **reported}:
        if spent.get(key_id, 0) != reported.get(key_id, 0):
            detail = f"{key_id} spent {reported.get(key_id)}, by the evidence {spent.get(key_id)}"
            yield BrokenRule(Rule.KEY_IS_CHARGED, detail)
