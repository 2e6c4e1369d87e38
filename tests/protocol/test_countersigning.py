"""What a receipt's opening and links prove of its client's word."""

from dataclasses import replace

import pytest

from protocol.countersigning import (
    UNOPENED,
    Delivery,
    JobAdmission,
    JobOpening,
    Proof,
    check_admission,
    check_delivery,
    read_proof,
    terms_of,
)
from protocol.envelope import seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import sha256_digest
from protocol.keys import SigningKey
from protocol.messages import Receipt
from protocol.pricing import Units
from protocol.windows import ClientChains
from tests.protocol.makers import CLIENT, NODE, NOW_MS, STRANGER, countersigned, make_chain

CHAIN = make_chain()
LEASE = CHAIN.lease
TERMS = terms_of(LEASE.message)
CHAINS = ClientChains(CLIENT, LEASE.digest, TERMS)
OPENING = JobOpening(
    lease_digest=LEASE.digest,
    client=CLIENT.peer_id,
    node=NODE.peer_id,
    input_anchor=CHAINS.input_anchor,
    output_anchor=CHAINS.output_anchor,
    issued_at_ms=NOW_MS,
)
LINKS = countersigned(LEASE, Units(input_tokens=10, output_tokens=33))


def receipt_with(opening: JobOpening, key: SigningKey = CLIENT, **changes: object) -> Receipt:
    fields = {"opening": seal(key, opening).raw, "countersigned": LINKS, **changes}
    return replace(CHAIN.receipt.message, **fields)  # type: ignore[arg-type]  # tests break it


def code_of(receipt: Receipt) -> Code:
    with pytest.raises(RemoteProtocolError) as caught:
        read_proof(receipt, LEASE)
    return caught.value.code


def test_links_prove_whole_windows_and_the_input_within_a_step() -> None:
    proof = read_proof(receipt_with(OPENING), LEASE)
    assert proof == Proof(
        is_opened=True,
        has_countersigned=True,
        input_tokens_min=1,
        input_tokens_max=16,
        output_tokens=32,
    )


def test_an_opening_alone_proves_that_the_client_came() -> None:
    assert read_proof(receipt_with(OPENING, countersigned=None), LEASE) == Proof(is_opened=True)


def test_a_receipt_without_an_opening_proves_nothing() -> None:
    assert read_proof(CHAIN.receipt.message, LEASE) == UNOPENED
    assert code_of(replace(receipt_with(OPENING), opening=b"")) is Code.RECEIPT_MISMATCH


def test_an_opening_of_another_party_lease_or_node_is_refused() -> None:
    assert code_of(receipt_with(OPENING, STRANGER)) is Code.WRONG_SIGNER
    other = replace(OPENING, client=STRANGER.peer_id)
    assert code_of(receipt_with(other, STRANGER)) is Code.WRONG_SIGNER
    other_lease = replace(OPENING, lease_digest=sha256_digest(b"another"))
    assert code_of(receipt_with(other_lease)) is Code.DIGEST_MISMATCH
    assert code_of(receipt_with(replace(OPENING, node=STRANGER.peer_id))) is Code.WRONG_AUDIENCE


def test_links_that_the_client_did_not_reveal_are_refused() -> None:
    forged = replace(LINKS, index=LINKS.index + 1)
    assert code_of(receipt_with(OPENING, countersigned=forged)) is Code.BAD_SIGNATURE
    forged = replace(LINKS, input_index=LINKS.input_index + 1)
    assert code_of(receipt_with(OPENING, countersigned=forged)) is Code.BAD_SIGNATURE


def test_an_admission_names_its_lease_and_node() -> None:
    admission = JobAdmission(LEASE.digest, NODE.peer_id, Units(10), bytes(32), NOW_MS)
    check_admission(admission, LEASE)
    for other in (
        replace(admission, node=STRANGER.peer_id),
        replace(admission, lease_digest=sha256_digest(b"another")),
    ):
        with pytest.raises(RemoteProtocolError):
            check_admission(other, LEASE)


DELIVERY = Delivery(
    lease_id=LEASE.message.lease_id,
    lease_digest=LEASE.digest,
    client=CLIENT.peer_id,
    units=Units(10, 5),
    output_digest=sha256_digest(b"output"),
    code=Code.NODE_LOST,
    issued_at_ms=NOW_MS,
)


def test_a_delivery_is_the_word_of_the_leases_client() -> None:
    check_delivery(seal(CLIENT, DELIVERY), LEASE)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"client": STRANGER.peer_id}, Code.WRONG_SIGNER),
        ({"lease_digest": sha256_digest(b"another")}, Code.DIGEST_MISMATCH),
        ({"units": Units(10, 51)}, Code.RECEIPT_MISMATCH),
    ],
)
def test_a_delivery_that_does_not_fit_its_lease_is_refused(
    change: dict[str, object], code: Code
) -> None:
    changed = replace(DELIVERY, **change)  # type: ignore[arg-type]  # tests break it
    with pytest.raises(RemoteProtocolError) as caught:
        check_delivery(seal(CLIENT, changed), LEASE)
    assert caught.value.code is code
