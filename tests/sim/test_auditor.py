"""The auditor agrees with an honest market, and catches every way in which one could cheat."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sim.auditor
import sim.evidence
import sim.worth
from protocol.countersigning import Delivery
from protocol.endings import Finish
from protocol.envelope import Signed, seal
from protocol.errors import Code
from protocol.ids import LeaseId, derive_ulid
from protocol.keys import SigningKey
from protocol.late_payloads import PayloadBinding
from protocol.messages import Acceptance, Lease, Receipt
from protocol.pricing import Units
from sim.auditor import Auditor, Balances
from sim.evidence import Rule
from tests.protocol.makers import (
    CLIENT,
    COORDINATOR,
    JOB_ID,
    NODE,
    STRANGER,
    countersigned,
    make_acceptance,
    make_lease,
    make_opening,
    make_receipt,
    make_request,
)

FEE_BPS = 1_000
CREDIT_NANO = 1_000_000
# 7 x 20 + 11 x 60 nano-credits, of which a tenth is the fee.
UNITS = Units(input_tokens=7, output_tokens=11)
CHARGE_NANO = 800
SHARE_NANO = 720


@dataclass(frozen=True)
class Job:
    """The evidence of one job."""

    lease: Signed[Lease]
    receipt: Signed[Receipt]
    acceptance: Signed[Acceptance]


def make_job(
    number: int,
    *,
    finish: Finish = Finish.STOP,
    lease_key: SigningKey = COORDINATOR,
    receipt_key: SigningKey = NODE,
    bound: Units | None = None,
    **receipt: Any,
) -> Job:
    """Honest but for what is changed: the signers, and fields of the receipt. `bound` is what its
    client allows for a payload that it names in the opening."""
    lease_id = LeaseId(derive_ulid(JOB_ID, f"lease/{number}"))
    terms = make_lease(seal(CLIENT, make_request()))
    lease = seal(lease_key, replace(terms, lease_id=lease_id))
    links = countersigned(lease, UNITS)
    binding = PayloadBinding(lease.digest, 1, bound) if bound is not None else None
    evidence: dict[str, Any] = {
        "opening": seal(CLIENT, replace(make_opening(lease), binding=binding)).raw,
        "countersigned": links,
    }
    billed = replace(make_receipt(lease, UNITS, finish=finish), **(evidence | receipt))
    signed = seal(receipt_key, billed)
    return Job(lease, signed, seal(CLIENT, make_acceptance(signed)))


def show(auditor: Auditor, job: Job, *, state: str = "settled", is_accepted: bool = True) -> None:
    """What the auditor sees of a job from lease to acknowledgement."""
    auditor.leased(job.lease)
    auditor.receipted(job.receipt)
    if is_accepted:
        auditor.accepted(job.acceptance)
    auditor.answered(job.receipt, state, job.receipt.message.amount_nano)


def make_auditor() -> Auditor:
    auditor = Auditor(COORDINATOR.peer_id, fee_bps=FEE_BPS)
    auditor.credited(CLIENT.peer_id, CREDIT_NANO)
    return auditor


def balances(*, jobs: int = 1) -> Balances:
    """What an honest coordinator reports after so many paid jobs."""
    return Balances(
        posted_nano={
            CLIENT.peer_id: CREDIT_NANO - jobs * CHARGE_NANO,
            NODE.peer_id: jobs * SHARE_NANO,
        },
        held_nano={CLIENT.peer_id: 0, NODE.peer_id: 0},
        operator_nano=jobs * (CHARGE_NANO - SHARE_NANO),
        escrow_nano=0,
    )


def rules_of(auditor: Auditor, reported: Balances) -> set[Rule]:
    return {finding.rule for finding in auditor.audit(reported)}


def test_a_lone_receipt_earns_what_its_client_signed() -> None:
    """Without an opening nothing; before the first link a window, and no more."""
    for changes, earned_nano in (({"opening": b""}, 0), ({"countersigned": None}, 7 * 20 + 9 * 60)):
        auditor = make_auditor()
        job = make_job(0, **changes)
        auditor.leased(job.lease)
        auditor.receipted(job.receipt)
        auditor.answered(job.receipt, "disputed", earned_nano)
        assert auditor.captured_nano() == earned_nano
        assert Rule.CAPTURE_IS_EARNED not in rules_of(auditor, balances(jobs=0))


@pytest.mark.parametrize(
    ("bound", "earned_nano"), [(UNITS, CHARGE_NANO), (Units(7, 10), 0), (Units(6, 11), 0)]
)
def test_a_lone_receipt_that_bills_beyond_its_openings_binding_earns_nothing(
    bound: Units, earned_nano: int
) -> None:
    auditor = make_auditor()
    job = make_job(0, bound=bound)
    auditor.leased(job.lease)
    auditor.answered(job.receipt, "settled" if earned_nano else "disputed", earned_nano)
    found = rules_of(auditor, balances(jobs=1 if earned_nano else 0))
    assert Rule.CAPTURE_IS_EARNED not in found
    assert (Rule.RECEIPT_FITS_LEASE in found) == (not earned_nano)
    auditor.answered(job.receipt, "settled", CHARGE_NANO - earned_nano)
    assert Rule.CAPTURE_IS_EARNED in rules_of(auditor, balances())


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_clients_word_without_a_receipt_decides_once_it_was_acknowledged(
    is_declared: bool,
) -> None:
    """Until then the coordinator may have taken it or not."""
    job = make_job(0, countersigned=None)
    said = Delivery(
        job.lease.message.lease_id,
        job.lease.digest,
        CLIENT.peer_id,
        Units(input_tokens=7, output_tokens=2),
        job.receipt.message.output_digest,
        Code.NODE_LOST,
        issued_at_ms=0,
    )
    for paid_nano, is_right in ((7 * 20 + 2 * 60, True), (7 * 20 + 9 * 60, not is_declared)):
        auditor = make_auditor()
        auditor.leased(job.lease)
        auditor.delivered(seal(CLIENT, said), is_declared=is_declared)
        auditor.answered(job.receipt, "disputed", paid_nano)
        found = rules_of(auditor, balances())
        assert (Rule.CAPTURE_IS_EARNED not in found) == is_right


@pytest.mark.parametrize("module", [sim.auditor, sim.evidence, sim.worth])
def test_the_auditor_knows_neither_ledger_nor_database(module: ModuleType) -> None:
    tree = ast.parse(Path(module.__file__ or "").read_text())
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    }
    assert not {name for name in modules if name.startswith(("coordinator", "capanode"))}


def test_an_honest_market_has_no_findings() -> None:
    auditor = make_auditor()
    show(auditor, make_job(0))
    # The client vanished: acknowledged, and paid when its time to object was over.
    show(auditor, make_job(1), state="pending", is_accepted=False)
    # First the node, then the client; the node asks again because an answer was lost.
    both = make_job(2)
    show(auditor, both, state="pending", is_accepted=False)
    show(auditor, both)
    show(auditor, both)
    # Refused: nothing is owed.
    show(auditor, make_job(3, finish=Finish.REFUSED))
    # Leased and never opened; billed for nothing, and too late.
    auditor.leased(make_job(4).lease)
    late = make_job(5, finish=Finish.REFUSED)
    auditor.leased(late.lease)
    auditor.refused(late.receipt, Code.EXPIRED)
    # Refused because the disk was full, and taken later.
    again = make_job(6)
    auditor.refused(again.receipt, Code.STORAGE_FULL)
    show(auditor, again)
    assert auditor.audit(balances(jobs=4)) == ()
    assert auditor.captured_nano() == 4 * CHARGE_NANO
    assert auditor.leases_seen == 7
    assert auditor.credited_nano == CREDIT_NANO


def moved(amount_nano: int, source: SigningKey, target: SigningKey) -> Balances:
    """One paid job, and then money went from one account to another."""
    honest = balances()
    posted = dict(honest.posted_nano)
    posted[source.peer_id] = posted.get(source.peer_id, 0) - amount_nano
    posted[target.peer_id] = posted.get(target.peer_id, 0) + amount_nano
    return replace(honest, posted_nano=posted)


WRONG_BALANCES = {
    "captured twice": (balances(jobs=2), {Rule.CLIENT_PAYS_RECEIPTS, Rule.NODE_IS_PAID}),
    "never captured": (balances(jobs=0), {Rule.CLIENT_PAYS_RECEIPTS, Rule.NODE_IS_PAID}),
    "client pays one nano more": (moved(1, CLIENT, NODE), {Rule.CLIENT_PAYS_RECEIPTS}),
    "node is paid one nano less": (moved(1, NODE, CLIENT), {Rule.NODE_IS_PAID}),
    "fee is one nano too high": (
        replace(
            moved(0, NODE, CLIENT),
            posted_nano={
                CLIENT.peer_id: CREDIT_NANO - CHARGE_NANO,
                NODE.peer_id: SHARE_NANO - 1,
            },
            operator_nano=CHARGE_NANO - SHARE_NANO + 1,
        ),
        {Rule.FEE_IS_REMAINDER, Rule.NODE_IS_PAID},
    ),
    "money from nowhere": (
        replace(balances(), operator_nano=CHARGE_NANO - SHARE_NANO + 1),
        {Rule.MONEY_IS_CONSERVED, Rule.FEE_IS_REMAINDER},
    ),
    "a stranger has money": (moved(1, CLIENT, STRANGER), {Rule.NO_STRANGERS}),
    "a hold is left": (replace(balances(), held_nano={CLIENT.peer_id: 1}), {Rule.NOTHING_HELD}),
    "escrow keeps money": (
        replace(balances(), escrow_nano=5),
        {Rule.NOTHING_HELD, Rule.MONEY_IS_CONSERVED},
    ),
    "an account is missing": (replace(balances(), posted_nano={}), {Rule.CLIENT_PAYS_RECEIPTS}),
}


@pytest.mark.parametrize("name", WRONG_BALANCES)
def test_wrong_balances_are_caught(name: str) -> None:
    reported, expected = WRONG_BALANCES[name]
    auditor = make_auditor()
    show(auditor, make_job(0))
    assert rules_of(auditor, balances()) == set()
    assert expected <= rules_of(auditor, reported)


KEY = "key-1"


def cut(auditor: Auditor, *, is_accepted: bool = False, is_declared: bool = False) -> Job:
    """A job that the coordinator's own client bought in a process that ended before the receipt."""
    job = make_job(0)
    auditor.leased(job.lease, api_key_id=KEY)
    if is_declared:
        said = Delivery(
            job.lease.message.lease_id,
            job.lease.digest,
            CLIENT.peer_id,
            UNITS,
            job.receipt.message.output_digest,
            Code.NODE_LOST,
            issued_at_ms=0,
        )
        auditor.delivered(seal(CLIENT, said), is_declared=True)
    auditor.coordinator_started()
    if is_accepted:
        auditor.accepted(job.acceptance)
    auditor.answered(job.receipt, "settled", job.receipt.message.amount_nano)
    return job


def given(job: Job) -> Balances:
    """The operator has paid for it."""
    paid = balances()
    posted = {**paid.posted_nano, CLIENT.peer_id: CREDIT_NANO}
    return replace(
        paid,
        posted_nano=posted,
        goodwill_nano=-CHARGE_NANO,
        gifts=frozenset({job.lease.message.lease_id}),
    )


def charged() -> Balances:
    """Its API key has paid for it."""
    return replace(balances(), spent_nano={KEY: CHARGE_NANO})


def test_the_operator_pays_for_what_its_own_end_has_cut() -> None:
    auditor = make_auditor()
    job = cut(auditor)
    assert rules_of(auditor, given(job)) == set()
    assert rules_of(auditor, charged()) == {Rule.OPERATOR_PAYS_CUTS}
    too_little = replace(given(job), goodwill_nano=-CHARGE_NANO + 1)
    assert Rule.OPERATOR_PAYS_CUTS in rules_of(auditor, too_little)
    assert auditor.captured_nano(given(job).gifts) == 0


@pytest.mark.parametrize("word", ["is_accepted", "is_declared"])
def test_an_answer_that_its_client_signed_for_is_charged_to_its_key(word: str) -> None:
    auditor = make_auditor()
    job = cut(auditor, **{word: True})
    assert rules_of(auditor, charged()) == set()
    assert Rule.KEY_IS_CHARGED in rules_of(auditor, balances())
    if word == "is_declared":
        assert Rule.OPERATOR_PAYS_CUTS in rules_of(auditor, given(job))


def no_lease(auditor: Auditor) -> None:
    job = make_job(1)
    auditor.answered(job.receipt, "settled", job.receipt.message.amount_nano)


def foreign_lease(auditor: Auditor) -> None:
    show(auditor, make_job(1, lease_key=STRANGER))


def low_ceiling(auditor: Auditor) -> None:
    job = make_job(1)
    auditor.leased(seal(COORDINATOR, replace(job.lease.message, ceiling_nano=1)))


def foreign_receipt(auditor: Auditor) -> None:
    show(auditor, make_job(1, receipt_key=STRANGER))


def receipt_for_another_client(auditor: Auditor) -> None:
    show(auditor, make_job(1, client=STRANGER.peer_id))


def more_than_leased(auditor: Auditor) -> None:
    units = Units(input_tokens=7, output_tokens=51)
    show(auditor, make_job(1, units=units, amount_nano=140 + 51 * 60))


def more_than_bound(auditor: Auditor) -> None:
    show(auditor, make_job(1, bound=Units(input_tokens=7, output_tokens=10)))


def wrong_charge(auditor: Auditor) -> None:
    show(auditor, make_job(1, amount_nano=CHARGE_NANO + 1))


def charged_refusal(auditor: Auditor) -> None:
    show(auditor, make_job(1, finish=Finish.REFUSED, amount_nano=CHARGE_NANO))


def two_bills(auditor: Auditor) -> None:
    show(auditor, make_job(1))
    auditor.receipted(make_job(1, total_ms=21).receipt)


def two_captures(auditor: Auditor) -> None:
    show(auditor, make_job(1))
    show(auditor, make_job(1, total_ms=21))


def paid_more_than_billed(auditor: Auditor) -> None:
    job = make_job(1)
    show(auditor, job)
    auditor.answered(job.receipt, "settled", CHARGE_NANO + 1)


def paid_less_than_billed(auditor: Auditor) -> None:
    job = make_job(1)
    auditor.leased(job.lease)
    auditor.answered(job.receipt, "settled", CHARGE_NANO - 1)


def paid_and_refused(auditor: Auditor) -> None:
    job = make_job(1)
    show(auditor, job)
    auditor.refused(job.receipt, Code.EXPIRED)


def refused_for_good(auditor: Auditor) -> None:
    job = make_job(1)
    auditor.leased(job.lease)
    auditor.refused(job.receipt, Code.EXPIRED)


def other_count(auditor: Auditor) -> None:
    job = make_job(1)
    counted = replace(job.acceptance.message, units=Units(7, 10), agrees=False)
    auditor.leased(job.lease)
    auditor.accepted(seal(CLIENT, counted))
    auditor.answered(job.receipt, "disputed", CHARGE_NANO - 60)


WRONG_EVIDENCE: dict[Callable[[Auditor], None], Rule] = {
    no_lease: Rule.RECEIPT_FITS_LEASE,
    foreign_lease: Rule.LEASE_IS_SIGNED,
    low_ceiling: Rule.LEASE_IS_SIGNED,
    foreign_receipt: Rule.RECEIPT_FITS_LEASE,
    receipt_for_another_client: Rule.RECEIPT_FITS_LEASE,
    more_than_leased: Rule.RECEIPT_FITS_LEASE,
    more_than_bound: Rule.RECEIPT_FITS_LEASE,
    wrong_charge: Rule.CHARGE_IS_PRICE,
    charged_refusal: Rule.CHARGE_IS_PRICE,
    two_bills: Rule.ONE_RECEIPT,
    two_captures: Rule.ONE_CAPTURE,
    paid_more_than_billed: Rule.CAPTURE_IS_EARNED,
    paid_less_than_billed: Rule.CAPTURE_IS_EARNED,
    paid_and_refused: Rule.ANSWERS_AGREE,
    refused_for_good: Rule.WORK_IS_PAID,
    other_count: Rule.COUNTS_AGREE,
}


@pytest.mark.parametrize("corrupt", WRONG_EVIDENCE, ids=lambda corrupt: corrupt.__name__)
def test_wrong_evidence_is_caught(corrupt: Callable[[Auditor], None]) -> None:
    auditor = make_auditor()
    show(auditor, make_job(0))
    corrupt(auditor)
    assert WRONG_EVIDENCE[corrupt] in rules_of(auditor, balances())


def test_a_disputed_receipt_pays_the_smaller_count() -> None:
    """The one thing that honest parties never do; the money still has to follow the rule."""
    auditor = make_auditor()
    other_count(auditor)
    paid_nano = CHARGE_NANO - 60
    share_nano = paid_nano * 9 // 10
    reported = Balances(
        posted_nano={CLIENT.peer_id: CREDIT_NANO - paid_nano, NODE.peer_id: share_nano},
        held_nano={},
        operator_nano=paid_nano - share_nano,
        escrow_nano=0,
    )
    assert rules_of(auditor, reported) == {Rule.COUNTS_AGREE}


def test_findings_say_what_they_found() -> None:
    auditor = make_auditor()
    (finding,) = auditor.audit(replace(balances(jobs=0), held_nano={CLIENT.peer_id: 7}))
    assert str(finding).startswith("NOTHING_HELD: no money is held when no job runs: ")
    assert CLIENT.peer_id in finding.detail
