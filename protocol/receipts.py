"""The chain of evidence: request → lease → receipt → acceptance, checked by pure functions.

Every party runs the same checks: a node before it works, a client before it accepts, a coordinator
before it pays, and anyone later with nothing but the four signed messages (`verify_chain`).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from protocol.countersigning import (
    Delivery,
    Proof,
    check_delivery,
    check_payload_named,
    read_proof,
)
from protocol.endings import FINISH_RULES, Finish
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest, PeerId, is_digest
from protocol.limits import CLOCK_SKEW_MAX_MS
from protocol.messages import Acceptance, JobRequest, Lease, Receipt
from protocol.pricing import PriceSheet, Units, cost_nano


def _require(condition: bool, message: str, code: Code) -> None:
    if not condition:
        raise RemoteProtocolError(message, code=code)


def check_fresh(issued_at_ms: int, expires_at_ms: int, *, now_ms: int, what: str) -> None:
    """Raises EXPIRED or NOT_YET_VALID; both sides of the window forgive CLOCK_SKEW_MAX_MS."""
    _require(
        issued_at_ms <= now_ms + CLOCK_SKEW_MAX_MS,
        f"the {what} was issued {issued_at_ms - now_ms} ms in the future: check the clocks",
        Code.NOT_YET_VALID,
    )
    _require(
        now_ms < expires_at_ms + CLOCK_SKEW_MAX_MS,
        f"the {what} expired {now_ms - expires_at_ms} ms ago",
        Code.EXPIRED,
    )


def check_request(signed: Signed[JobRequest], *, coordinator: PeerId, now_ms: int) -> None:
    """A request that this coordinator may lease: signed by its client, meant for us, fresh."""
    request = signed.message
    _require(
        signed.signer == request.client,
        "the request is not signed by the client that it names",
        Code.WRONG_SIGNER,
    )
    _require(
        request.coordinator == coordinator,
        "the request is meant for another coordinator",
        Code.WRONG_AUDIENCE,
    )
    check_fresh(request.issued_at_ms, request.deadline_at_ms, now_ms=now_ms, what="request")


def check_lease(
    lease: Signed[Lease],
    request: Signed[JobRequest],
    *,
    node: PeerId,
    coordinators: Collection[PeerId],
    now_ms: int,
) -> None:
    """A lease that this node may work under, for exactly this request."""
    granted, asked = lease.message, request.message
    _require(
        lease.signer in coordinators,
        f"this node takes no leases from {lease.signer}",
        Code.UNTRUSTED_COORDINATOR,
    )
    _check_lease_names(lease, request)
    _require(granted.node == node, "the lease is for another node", Code.WRONG_AUDIENCE)
    _require(
        granted.units_max.fits_in(asked.units_max),
        "the lease allows more units than the request",
        Code.MALFORMED,
    )
    check_fresh(granted.issued_at_ms, granted.open_before_ms, now_ms=now_ms, what="lease")


def _check_lease_names(lease: Signed[Lease], request: Signed[JobRequest]) -> None:
    granted, asked = lease.message, request.message
    _require(
        request.signer == asked.client == granted.client,
        "request and lease name different clients",
        Code.WRONG_SIGNER,
    )
    _require(
        lease.signer == granted.coordinator == asked.coordinator,
        "the lease is not signed by the coordinator that the request names",
        Code.WRONG_SIGNER,
    )
    _require(
        granted.request_digest == request.digest and granted.job_id == asked.job_id,
        "the lease is for another request",
        Code.DIGEST_MISMATCH,
    )
    _require(
        granted.model_digest == asked.model or not is_digest(asked.model),
        "the lease is for another model than the one that the request pins",
        Code.DIGEST_MISMATCH,
    )
    _require(
        cost_nano(granted.price, granted.units_max) <= granted.ceiling_nano,
        "the lease's ceiling is below the price of its units",
        Code.PRICE_MISMATCH,
    )


def charge_nano(price: PriceSheet, units: Units, finish: Finish) -> int:
    """What a job costs. Nothing was delivered, nothing is charged: a refusal is free, and so are a
    failure before the first output token and, by whatever name it ends, a job without any units.
    Otherwise a node could refuse and still earn its price per request."""
    rule = FINISH_RULES[finish]
    is_charged = rule.charges_output if units.output_tokens else rule.charges_input_alone
    if not is_charged or units == Units():
        return 0
    return cost_nano(price, units)


def draft_receipt(
    lease: Signed[Lease],
    units: Units,
    finish: Finish,
    *,
    output_digest: Digest,
    issued_at_ms: int,
    code: str = "",
    **details: Any,
) -> Receipt:
    """A receipt with the names of its lease, charged as `charge_nano` does. `details` are fields
    of what else a node says of a job: times, the client's opening and last signature."""
    granted = lease.message
    times = {"queued_ms": 0, "first_output_ms": 0, "total_ms": 0}
    return Receipt(
        lease_id=granted.lease_id,
        lease_digest=lease.digest,
        job_id=granted.job_id,
        node=granted.node,
        client=granted.client,
        coordinator=granted.coordinator,
        model_digest=granted.model_digest,
        units=units,
        amount_nano=charge_nano(granted.price, units, finish),
        output_digest=output_digest,
        finish=finish,
        code=code,
        issued_at_ms=issued_at_ms,
        **(times | details),
    )


def check_receipt(receipt: Signed[Receipt], lease: Signed[Lease]) -> None:
    """A receipt that belongs to this lease and charges exactly what its units cost."""
    billed, granted = receipt.message, lease.message
    _require(
        receipt.signer == billed.node == granted.node,
        "the receipt is not signed by the leased node",
        Code.WRONG_SIGNER,
    )
    _require(
        billed.lease_digest == lease.digest and billed.lease_id == granted.lease_id,
        "the receipt is for another lease",
        Code.DIGEST_MISMATCH,
    )
    names = (billed.job_id, billed.client, billed.coordinator, billed.model_digest)
    _require(
        names == (granted.job_id, granted.client, granted.coordinator, granted.model_digest),
        "the receipt names another job, client, coordinator or model than the lease",
        Code.RECEIPT_MISMATCH,
    )
    _require(
        billed.units.fits_in(granted.units_max),
        "the receipt bills more units than were leased",
        Code.RECEIPT_MISMATCH,
    )
    _require(
        billed.amount_nano == charge_nano(granted.price, billed.units, billed.finish),
        "the receipt's amount is not the price of its units",
        Code.RECEIPT_MISMATCH,
    )


def check_acceptance(acceptance: Signed[Acceptance], receipt: Signed[Receipt]) -> None:
    """A countersignature by the receipt's client, consistent with its own verdict."""
    counted, billed = acceptance.message, receipt.message
    _require(
        acceptance.signer == counted.client == billed.client,
        "the acceptance is not signed by the receipt's client",
        Code.WRONG_SIGNER,
    )
    _require(
        counted.receipt_digest == receipt.digest and counted.lease_id == billed.lease_id,
        "the acceptance is for another receipt",
        Code.DIGEST_MISMATCH,
    )
    same = (counted.units, counted.output_digest) == (billed.units, billed.output_digest)
    _require(
        counted.agrees == same,
        "the acceptance's verdict contradicts its own counts",
        Code.RECEIPT_MISMATCH,
    )


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was ever signed about one lease. The client's last word is an acceptance of the
    receipt, or a delivery without one; either may be missing."""

    request: Signed[JobRequest]
    lease: Signed[Lease]
    receipt: Signed[Receipt]
    acceptance: Signed[Acceptance] | None = None
    delivery: Signed[Delivery] | None = None


def verify_chain(evidence: Evidence) -> Proof:
    """Check a finished job offline, years later: signatures were checked when the envelopes were
    opened, this checks that they belong together. Returns what the client signed while the text
    streamed. Raises RemoteProtocolError on the first break."""
    _check_lease_names(evidence.lease, evidence.request)
    _require(
        evidence.lease.message.units_max.fits_in(evidence.request.message.units_max),
        "the lease allows more units than the request",
        Code.MALFORMED,
    )
    check_receipt(evidence.receipt, evidence.lease)
    if evidence.acceptance is not None:
        check_acceptance(evidence.acceptance, evidence.receipt)
    if evidence.delivery is not None:
        check_delivery(evidence.delivery, evidence.lease)
    is_accepted = evidence.acceptance is not None
    check_payload_named(evidence.receipt.message, evidence.lease.message, evidence.request.message)
    return read_proof(evidence.receipt.message, evidence.lease, is_accepted=is_accepted)
