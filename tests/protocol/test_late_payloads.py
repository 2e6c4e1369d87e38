"""Leases that are taken ahead of their jobs: who may ask for one, and how its payload is named."""

from dataclasses import replace
from typing import Any

import pytest

from protocol.client_session import Admitted, ClientJob
from protocol.codec import encode
from protocol.countersigning import check_payload_named
from protocol.endings import Finish
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.features import Feature
from protocol.framing import FrameType
from protocol.job_frames import OpenBody
from protocol.late_payloads import PayloadBinding, payload_of
from protocol.messages import Constraints, JobRequest, Lease, Receipt
from protocol.node_session import NodeJob, Opened
from protocol.payload import SaltedPayload
from protocol.pricing import Units
from protocol.receipts import Evidence, charge_nano, verify_chain
from tests.protocol.makers import (
    CLIENT,
    COORDINATOR,
    NODE,
    NOW_MS,
    PAYLOAD,
    SALT,
    SALTED,
    STRANGER,
    UNITS_MAX,
    make_acceptance,
    make_lease,
    make_opening,
    make_receipt,
    make_request,
)

AHEAD = Constraints(features=(Feature.LATE_PAYLOAD,))
ALLOWED = Units(input_tokens=20, output_tokens=5)
BINDING = PayloadBinding(SALTED.digest, len(PAYLOAD), ALLOWED)


def request_ahead(**changes: Any) -> Signed[JobRequest]:
    asked = replace(make_request(), payload_digest=None, payload_bytes=1_000, constraints=AHEAD)
    return seal(CLIENT, replace(asked, **changes))


REQUEST = request_ahead()
LEASE = seal(COORDINATOR, make_lease(REQUEST))


def open_job(
    binding: PayloadBinding | None = BINDING,
    *,
    request: Signed[JobRequest] = REQUEST,
    lease: Signed[Lease] = LEASE,
    payload: SaltedPayload = SALTED,
) -> tuple[ClientJob, NodeJob, Opened]:
    client = ClientJob(request, lease, payload, CLIENT, binding=binding)
    node = NodeJob(NODE)
    events = [node.receive(*frame) for frame in client.open(now_ms=NOW_MS)]
    assert isinstance(events[-1], Opened)
    return client, node, events[-1]


def code_of(call: Any, *args: Any, **kwargs: Any) -> Code:
    with pytest.raises(RemoteProtocolError) as caught:
        call(*args, **kwargs)
    return caught.value.code


def test_the_opening_of_a_lease_ahead_names_the_payload() -> None:
    client, node, opened = open_job()
    assert opened.payload == PAYLOAD
    assert node.terms is not None
    assert node.terms.payload == BINDING
    admission = node.accepted(Units(input_tokens=20), queue_position=0, now_ms=NOW_MS)
    assert client.receive(*admission) == Admitted(Units(input_tokens=20), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"constraints": make_request().constraints},
        {"part": 1},
        {"is_batch": True},
        {"affinity": (bytes(16),)},
    ],
)
def test_a_request_that_cannot_be_ahead_has_to_pin_its_payload(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has to pin its payload"):
        request_ahead(**changes)


@pytest.mark.parametrize(
    ("binding", "request_"),
    [
        (None, REQUEST),
        (BINDING, seal(CLIENT, make_request())),
        (replace(BINDING, units_max=replace(UNITS_MAX, output_tokens=51)), REQUEST),
        (replace(BINDING, units_max=replace(ALLOWED, images=1)), REQUEST),
        (BINDING, request_ahead(payload_bytes=len(PAYLOAD) - 1)),
    ],
    ids=["no binding", "named twice", "more output", "another unit", "larger payload"],
)
def test_a_node_refuses_an_opening_that_does_not_fit_its_request(
    binding: PayloadBinding | None, request_: Signed[JobRequest]
) -> None:
    lease = seal(COORDINATOR, make_lease(request_))
    assert code_of(open_job, binding, request=request_, lease=lease) is Code.MALFORMED


def test_a_node_refuses_another_payload_than_was_bound() -> None:
    other = SaltedPayload(bytes(len(PAYLOAD)), SALT)
    assert code_of(open_job, payload=other) is Code.DIGEST_MISMATCH


@pytest.mark.parametrize(
    ("key", "changes", "code"),
    [
        (STRANGER, {}, Code.WRONG_SIGNER),
        (CLIENT, {"lease_digest": REQUEST.digest}, Code.DIGEST_MISMATCH),
        (CLIENT, {"node": STRANGER.peer_id}, Code.WRONG_AUDIENCE),
    ],
)
def test_a_binding_of_another_client_lease_or_node_is_refused(
    key: Any, changes: dict[str, Any], code: Code
) -> None:
    opening = seal(key, replace(make_opening(LEASE, key), binding=BINDING, **changes))
    body = OpenBody(REQUEST.raw, LEASE.raw, opening.raw, SALT, PAYLOAD)
    assert code_of(NodeJob(NODE).receive, FrameType.JOB_OPEN, encode(body)) is code


def test_the_client_holds_its_node_to_what_the_opening_allows() -> None:
    client, node, _ = open_job()
    more = node.accepted(Units(input_tokens=21), queue_position=0, now_ms=NOW_MS)
    assert code_of(client.receive, *more) is Code.RECEIPT_MISMATCH


def receipt_of(units: Units, *, binding: PayloadBinding | None = BINDING) -> Receipt:
    opening = seal(CLIENT, replace(make_opening(LEASE), binding=binding))
    return replace(make_receipt(LEASE, units), opening=opening.raw)


def test_the_chain_of_evidence_names_the_payload() -> None:
    receipt = seal(NODE, receipt_of(ALLOWED))
    acceptance = seal(CLIENT, make_acceptance(receipt))
    proof = verify_chain(Evidence(REQUEST, LEASE, receipt, acceptance))
    assert proof.units_max == ALLOWED


@pytest.mark.parametrize(
    ("receipt", "code"),
    [
        (receipt_of(ALLOWED, binding=None), Code.MALFORMED),
        (receipt_of(replace(ALLOWED, output_tokens=6)), Code.RECEIPT_MISMATCH),
        (make_receipt(LEASE), Code.RECEIPT_MISMATCH),
    ],
    ids=["no payload named", "more than allowed", "never opened"],
)
def test_evidence_that_names_no_payload_or_breaks_its_bounds_is_refused(
    receipt: Receipt, code: Code
) -> None:
    signed = seal(NODE, receipt)
    acceptance = seal(CLIENT, make_acceptance(signed))
    assert code_of(verify_chain, Evidence(REQUEST, LEASE, signed, acceptance)) is code


def test_a_lease_ahead_that_was_never_opened_needs_no_payload() -> None:
    receipt = make_receipt(LEASE, Units(), finish=Finish.REFUSED)
    assert charge_nano(LEASE.message.price, Units(), Finish.REFUSED) == receipt.amount_nano == 0
    check_payload_named(receipt, LEASE.message, REQUEST.message)


def test_what_a_request_pins_is_its_payload_within_the_lease() -> None:
    request = make_request()
    lease = replace(LEASE.message, units_max=ALLOWED)
    named = payload_of(request, lease, None)
    assert (named.payload_digest, named.units_max) == (request.payload_digest, ALLOWED)
