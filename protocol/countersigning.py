"""What both sides sign beside request, lease, receipt and acceptance, and how it is checked.

    JobOpening (client)    I open this lease at this node; my links count from these anchors
    JobAdmission (node)    I count the input as this; my links count from this anchor
    Delivery (client)      the stream ended without a receipt, and this is what I got

`read_proof` turns what a receipt carries into bounds: what its client has certainly signed. Pricing
those bounds is settling's business.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from protocol.envelope import Signed, open_envelope
from protocol.errors import Code, RemoteProtocolError
from protocol.fields import check_stamps
from protocol.ids import Digest, LeaseId, PeerId, is_digest, parse_ulid, sha256_digest
from protocol.late_payloads import PayloadBinding, payload_of
from protocol.limits import SIGNED_BYTES_MAX
from protocol.messages import JobRequest, Lease, Receipt
from protocol.pricing import Units
from protocol.windows import LINK_BYTES, ChainReader, Countersigned, WindowTerms


@dataclass(frozen=True, slots=True)
class JobOpening:
    """Signed by the client, sent in JOB_OPEN: proof that it opened this lease at this node.
    `binding` names the payload if the request leaves it open."""

    KIND: ClassVar[str] = "job_opening"
    BYTES_MAX: ClassVar[int] = SIGNED_BYTES_MAX

    lease_digest: Digest
    client: PeerId
    node: PeerId
    input_anchor: bytes
    output_anchor: bytes
    issued_at_ms: int
    binding: PayloadBinding | None = None

    def __post_init__(self) -> None:
        if not is_digest(self.lease_digest):
            raise ValueError("the lease digest is not a sha256")
        if not len(self.input_anchor) == len(self.output_anchor) == LINK_BYTES:
            raise ValueError(f"an anchor has {LINK_BYTES} bytes")
        check_stamps(self.issued_at_ms)


@dataclass(frozen=True, slots=True)
class JobAdmission:
    """Signed by the node, sent in JOB_ACCEPTED: a receipt with another input contradicts it."""

    KIND: ClassVar[str] = "job_admission"
    BYTES_MAX: ClassVar[int] = SIGNED_BYTES_MAX

    lease_digest: Digest
    node: PeerId
    input_units: Units
    anchor: bytes
    issued_at_ms: int

    def __post_init__(self) -> None:
        if not is_digest(self.lease_digest):
            raise ValueError("the lease digest is not a sha256")
        if len(self.anchor) != LINK_BYTES:
            raise ValueError(f"an anchor has {LINK_BYTES} bytes")
        check_stamps(self.issued_at_ms)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Signed by the client when no receipt came: what it counted, and the code that says why the
    stream ended. It is the client's word on the job, as an acceptance would be."""

    KIND: ClassVar[str] = "delivery"
    BYTES_MAX: ClassVar[int] = SIGNED_BYTES_MAX

    lease_id: LeaseId
    lease_digest: Digest
    client: PeerId
    units: Units
    output_digest: Digest
    code: Code
    issued_at_ms: int

    def __post_init__(self) -> None:
        parse_ulid(self.lease_id)
        if not (is_digest(self.lease_digest) and is_digest(self.output_digest)):
            raise ValueError("a digest is not a sha256")
        check_stamps(self.issued_at_ms)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a client has certainly signed of a job, by its opening and its last links.

    `output_tokens` and `input_tokens_min` are the least that it has agreed to, `input_tokens_max`
    the most; `has_countersigned` is false before the first link. `units_max` is what it allowed for
    a payload that it named when it opened the lease.
    """

    is_opened: bool = False
    has_countersigned: bool = False
    input_tokens_min: int = 0
    input_tokens_max: int = 0
    output_tokens: int = 0
    units_max: Units | None = None


UNOPENED = Proof()


def nothing_of(lease: Signed[Lease], *, now_ms: int) -> Delivery:
    """Its client got nothing of a lease that an earlier process of it had under way."""
    return Delivery(
        lease_id=lease.message.lease_id,
        lease_digest=lease.digest,
        client=lease.message.client,
        units=Units(),
        output_digest=sha256_digest(b""),
        code=Code.CANCELLED,
        issued_at_ms=now_ms,
    )


def terms_of(lease: Lease) -> WindowTerms:
    return WindowTerms.of(lease.units_max, lease.window_tokens)


def check_opening(opening: Signed[JobOpening], lease: Signed[Lease]) -> None:
    """Raises RemoteProtocolError: WRONG_SIGNER, DIGEST_MISMATCH or WRONG_AUDIENCE."""
    said, granted = opening.message, lease.message
    if not opening.signer == said.client == granted.client:
        raise RemoteProtocolError(
            "the opening is not signed by the lease's client", code=Code.WRONG_SIGNER
        )
    if said.lease_digest != lease.digest:
        raise RemoteProtocolError("the opening is for another lease", code=Code.DIGEST_MISMATCH)
    if said.node != granted.node:
        raise RemoteProtocolError("the opening is for another node", code=Code.WRONG_AUDIENCE)


def check_payload_named(receipt: Receipt, lease: Lease, request: JobRequest) -> None:
    """That the evidence of a job names its payload: where the request leaves it open, the receipt's
    opening does, and the receipt keeps to what that allows. Raises RemoteProtocolError."""
    if not request.is_ahead:
        return
    if not receipt.opening:
        if receipt.amount_nano:
            raise RemoteProtocolError(
                "it charges for a payload that was never named", code=Code.RECEIPT_MISMATCH
            )
        return
    opening = open_envelope(receipt.opening, JobOpening).message
    if not receipt.units.fits_in(payload_of(request, lease, opening.binding).units_max):
        raise RemoteProtocolError(
            "the receipt bills more units than the opening allows", code=Code.RECEIPT_MISMATCH
        )


def check_admission(admission: JobAdmission, lease: Signed[Lease]) -> None:
    """That it is for this lease; who signed it is checked when it is used as evidence."""
    if admission.node != lease.message.node or admission.lease_digest != lease.digest:
        raise RemoteProtocolError("the admission is for another lease", code=Code.DIGEST_MISMATCH)


def check_delivery(delivery: Signed[Delivery], lease: Signed[Lease]) -> None:
    """Raises RemoteProtocolError: WRONG_SIGNER, DIGEST_MISMATCH, RECEIPT_MISMATCH."""
    said, granted = delivery.message, lease.message
    if not delivery.signer == said.client == granted.client:
        raise RemoteProtocolError(
            "the delivery is not signed by the lease's client", code=Code.WRONG_SIGNER
        )
    if (said.lease_id, said.lease_digest) != (granted.lease_id, lease.digest):
        raise RemoteProtocolError("the delivery is for another lease", code=Code.DIGEST_MISMATCH)
    if not said.units.fits_in(granted.units_max):
        raise RemoteProtocolError(
            "the delivery counts more units than were leased", code=Code.RECEIPT_MISMATCH
        )


def readers_of(opening: JobOpening, terms: WindowTerms) -> tuple[ChainReader, ChainReader]:
    """For the client's input chain and for its output chain."""
    return (
        ChainReader(opening.input_anchor, terms.input_links),
        ChainReader(opening.output_anchor, terms.output_links),
    )


def read_proof(receipt: Receipt, lease: Signed[Lease], *, is_accepted: bool = False) -> Proof:
    """What the receipt's opening and links prove. Costs the check of one signature. Raises
    RemoteProtocolError if what is there is not genuine; a client's acceptance (`is_accepted`) holds
    whatever its node made of them."""
    try:
        return _read_proof(receipt, lease)
    except RemoteProtocolError:
        if not is_accepted:
            raise
        return UNOPENED


def _read_proof(receipt: Receipt, lease: Signed[Lease]) -> Proof:
    if not receipt.opening:
        if receipt.countersigned is not None:
            raise RemoteProtocolError("links without an opening", code=Code.RECEIPT_MISMATCH)
        return UNOPENED
    opening = open_envelope(receipt.opening, JobOpening)
    check_opening(opening, lease)
    binding = opening.message.binding
    units_max = binding.units_max if binding is not None else None
    if receipt.countersigned is None:
        return Proof(is_opened=True, units_max=units_max)
    proof = _read_links(receipt.countersigned, opening.message, terms_of(lease.message))
    return replace(proof, units_max=units_max)


def _read_links(links: Countersigned, opening: JobOpening, terms: WindowTerms) -> Proof:
    input_reader, output_reader = readers_of(opening, terms)
    input_reader.advance(links.input_index, links.input_link)
    output_reader.advance(links.index, links.link)
    least, most = terms.signed_input(links.input_index)
    return Proof(
        is_opened=True,
        has_countersigned=links.index > 0,
        input_tokens_min=least,
        input_tokens_max=most,
        output_tokens=terms.signed_output(links.index),
    )
