"""Valid messages to start from; tests change one field and watch it being refused."""

from dataclasses import dataclass, replace
from random import Random

from protocol.countersigning import JobOpening, terms_of
from protocol.endings import Finish
from protocol.envelope import Signed, seal
from protocol.ids import Digest, JobId, LeaseId, derive_ulid, new_ulid, sha256_digest
from protocol.keys import SigningKey
from protocol.messages import (
    NO_CONSTRAINTS,
    Acceptance,
    JobRequest,
    Lease,
    Objective,
    Receipt,
    Task,
)
from protocol.payload import OutputDigest, SaltedPayload, salted_digest
from protocol.pricing import PriceSheet, Units
from protocol.receipts import draft_receipt
from protocol.windows import ClientChains, Countersigned, parse_countersign

NOW_MS = 1_770_000_000_000
PRICE = PriceSheet(input_nano_per_mtok=20_000_000, output_nano_per_mtok=60_000_000)
UNITS_USED = Units(input_tokens=10, output_tokens=2)
UNITS_MAX = Units(input_tokens=100, output_tokens=50)
MODEL = sha256_digest(b"a model")
OFFER = sha256_digest(b"an offer")
PAYLOAD = b"\x81\xa3key\x01 a payload"
SALT = b"salt of 16 bytes"
SALTED = SaltedPayload(PAYLOAD, SALT)

_rng = Random(7)
CLIENT = SigningKey.generate(_rng.randbytes)
NODE = SigningKey.generate(_rng.randbytes)
COORDINATOR = SigningKey.generate(_rng.randbytes)
STRANGER = SigningKey.generate(_rng.randbytes)
JOB_ID = JobId(new_ulid(NOW_MS, b"j" * 10))
LEASE_ID = LeaseId(derive_ulid(JOB_ID, "lease/0"))


def make_request(key: SigningKey = CLIENT, payload: bytes = PAYLOAD) -> JobRequest:
    return JobRequest(
        job_id=JOB_ID,
        client=key.peer_id,
        coordinator=COORDINATOR.peer_id,
        model="a-model",
        task=Task.CAUSAL_LM,
        payload_digest=salted_digest(payload, SALT),
        payload_bytes=len(payload),
        units_max=UNITS_MAX,
        units_expected=Units(input_tokens=25, output_tokens=50),
        objective=Objective.BALANCED,
        constraints=NO_CONSTRAINTS,
        issued_at_ms=NOW_MS,
        deadline_at_ms=NOW_MS + 60_000,
    )


def make_lease(request: Signed[JobRequest]) -> Lease:
    return Lease(
        lease_id=LEASE_ID,
        request_digest=request.digest,
        job_id=request.message.job_id,
        attempt=0,
        client=request.message.client,
        node=NODE.peer_id,
        coordinator=COORDINATOR.peer_id,
        offer_digest=OFFER,
        model_digest=MODEL,
        price=PRICE,
        units_max=UNITS_MAX,
        ceiling_nano=5_000,
        issued_at_ms=NOW_MS,
        open_before_ms=NOW_MS + 30_000,
        deadline_at_ms=NOW_MS + 60_000,
    )


def countersigned(lease: Signed[Lease], units: Units, key: SigningKey = CLIENT) -> Countersigned:
    """The client's links for these units, as a receipt carries them."""
    chains = ClientChains(key, lease.digest, terms_of(lease.message))
    body = chains.countersign(units.input_tokens, units.output_tokens)
    return Countersigned(*parse_countersign(body))


def make_opening(lease: Signed[Lease], key: SigningKey = CLIENT) -> JobOpening:
    chains = ClientChains(key, lease.digest, terms_of(lease.message))
    return JobOpening(
        lease_digest=lease.digest,
        client=key.peer_id,
        node=lease.message.node,
        input_anchor=chains.input_anchor,
        output_anchor=chains.output_anchor,
        issued_at_ms=lease.message.issued_at_ms,
    )


def make_receipt(
    lease: Signed[Lease],
    units: Units = UNITS_USED,
    digest: Digest | None = None,
    finish: Finish = Finish.STOP,
) -> Receipt:
    receipt = draft_receipt(
        lease,
        units,
        finish,
        output_digest=digest or OutputDigest(SALT).hexdigest(),
        issued_at_ms=NOW_MS + 20,
    )
    return replace(receipt, first_output_ms=5, total_ms=20)


def make_acceptance(receipt: Signed[Receipt]) -> Acceptance:
    billed = receipt.message
    return Acceptance(
        receipt_digest=receipt.digest,
        lease_id=billed.lease_id,
        client=billed.client,
        units=billed.units,
        output_digest=billed.output_digest,
        agrees=True,
        issued_at_ms=NOW_MS + 25,
    )


@dataclass(frozen=True)
class Chain:
    request: Signed[JobRequest]
    lease: Signed[Lease]
    receipt: Signed[Receipt]
    acceptance: Signed[Acceptance]


def make_chain() -> Chain:
    request = seal(CLIENT, make_request())
    lease = seal(COORDINATOR, make_lease(request))
    receipt = seal(NODE, make_receipt(lease))
    return Chain(request, lease, receipt, seal(CLIENT, make_acceptance(receipt)))
