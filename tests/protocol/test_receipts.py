from dataclasses import replace
from typing import Any

import pytest

from protocol.countersigning import Delivery
from protocol.endings import Finish
from protocol.envelope import seal
from protocol.errors import Code, RemoteProtocolError
from protocol.limits import CLOCK_SKEW_MAX_MS
from protocol.pricing import Units, cost_nano
from protocol.receipts import (
    Evidence,
    charge_nano,
    check_acceptance,
    check_lease,
    check_receipt,
    check_request,
    verify_chain,
)
from tests.protocol.makers import (
    CLIENT,
    COORDINATOR,
    NODE,
    NOW_MS,
    PRICE,
    STRANGER,
    countersigned,
    make_acceptance,
    make_chain,
    make_opening,
    make_request,
)

CHAIN = make_chain()


def code_of(call: Any, *args: Any, **kwargs: Any) -> Code:
    with pytest.raises(RemoteProtocolError) as caught:
        call(*args, **kwargs)
    return caught.value.code


def lease_code(now_ms: int = NOW_MS, node: str = NODE.peer_id, **changes: Any) -> Code:
    lease = seal(COORDINATOR, replace(CHAIN.lease.message, **changes))
    coordinators = {COORDINATOR.peer_id}
    return code_of(
        check_lease, lease, CHAIN.request, node=node, coordinators=coordinators, now_ms=now_ms
    )


def receipt_code(**changes: Any) -> Code:
    return code_of(
        check_receipt, seal(NODE, replace(CHAIN.receipt.message, **changes)), CHAIN.lease
    )


def test_an_honest_chain_passes_every_check() -> None:
    check_request(CHAIN.request, coordinator=COORDINATOR.peer_id, now_ms=NOW_MS)
    check_lease(
        CHAIN.lease,
        CHAIN.request,
        node=NODE.peer_id,
        coordinators=[COORDINATOR.peer_id],
        now_ms=NOW_MS,
    )
    verify_chain(Evidence(CHAIN.request, CHAIN.lease, CHAIN.receipt, CHAIN.acceptance))
    verify_chain(Evidence(CHAIN.request, CHAIN.lease, CHAIN.receipt))


def evidence_with(opening: bytes, **changes: Any) -> Evidence:
    """The usual chain with links in its receipt."""
    links = countersigned(CHAIN.lease, Units(10, 16))
    billed = replace(CHAIN.receipt.message, opening=opening, countersigned=links)
    receipt = seal(NODE, billed)
    return Evidence(CHAIN.request, CHAIN.lease, receipt, **changes)


def test_what_the_client_signed_while_the_text_streamed_is_verified_too() -> None:
    proof = verify_chain(evidence_with(seal(CLIENT, make_opening(CHAIN.lease)).raw))
    assert (proof.is_opened, proof.output_tokens) == (True, 16)
    forged = evidence_with(seal(STRANGER, make_opening(CHAIN.lease)).raw)
    assert code_of(verify_chain, forged) is Code.WRONG_SIGNER
    accepted = seal(CLIENT, make_acceptance(forged.receipt))
    verify_chain(replace(forged, acceptance=accepted))


def test_a_delivery_of_another_client_is_no_evidence() -> None:
    evidence = evidence_with(seal(CLIENT, make_opening(CHAIN.lease)).raw)
    for key in (CLIENT, STRANGER):
        said = Delivery(
            CHAIN.lease.message.lease_id,
            CHAIN.lease.digest,
            CLIENT.peer_id,
            Units(10, 5),
            CHAIN.receipt.message.output_digest,
            Code.NODE_LOST,
            issued_at_ms=NOW_MS,
        )
        told = replace(evidence, delivery=seal(key, said))
        if key is CLIENT:
            verify_chain(told)
        else:
            assert code_of(verify_chain, told) is Code.WRONG_SIGNER


def test_a_request_must_be_signed_by_its_client_for_this_coordinator() -> None:
    foreign = seal(STRANGER, make_request())
    us = COORDINATOR.peer_id
    assert code_of(check_request, foreign, coordinator=us, now_ms=NOW_MS) is Code.WRONG_SIGNER
    assert (
        code_of(check_request, CHAIN.request, coordinator=STRANGER.peer_id, now_ms=NOW_MS)
        is Code.WRONG_AUDIENCE
    )


@pytest.mark.parametrize(
    ("now_ms", "code"),
    [
        (NOW_MS - CLOCK_SKEW_MAX_MS - 1, Code.NOT_YET_VALID),
        (NOW_MS + 60_000 + CLOCK_SKEW_MAX_MS, Code.EXPIRED),
    ],
)
def test_a_clock_outside_the_window_is_refused(now_ms: int, code: Code) -> None:
    assert (
        code_of(check_request, CHAIN.request, coordinator=COORDINATOR.peer_id, now_ms=now_ms)
        is code
    )


def test_a_clock_inside_the_window_is_forgiven() -> None:
    for now_ms in (NOW_MS - CLOCK_SKEW_MAX_MS, NOW_MS + 60_000 + CLOCK_SKEW_MAX_MS - 1):
        check_request(CHAIN.request, coordinator=COORDINATOR.peer_id, now_ms=now_ms)


def test_a_lease_is_refused_for_each_wrong_field() -> None:
    assert lease_code(node=STRANGER.peer_id) is Code.WRONG_AUDIENCE
    assert lease_code(client=STRANGER.peer_id) is Code.WRONG_SIGNER
    assert lease_code(request_digest=CHAIN.receipt.digest) is Code.DIGEST_MISMATCH
    assert lease_code(ceiling_nano=1) is Code.PRICE_MISMATCH
    assert lease_code(units_max=Units(101, 50), ceiling_nano=10**9) is Code.MALFORMED
    assert lease_code(now_ms=NOW_MS + 30_000 + CLOCK_SKEW_MAX_MS) is Code.EXPIRED


def evidence_for(model: str) -> Evidence:
    """The usual chain under a request for `model`."""
    request = seal(CLIENT, replace(CHAIN.request.message, model=model))
    lease = seal(COORDINATOR, replace(CHAIN.lease.message, request_digest=request.digest))
    receipt = replace(CHAIN.receipt.message, lease_digest=lease.digest)
    return Evidence(request, lease, seal(NODE, receipt))


def test_a_pinned_model_is_the_one_that_is_leased() -> None:
    verify_chain(evidence_for(CHAIN.lease.message.model_digest))
    assert code_of(verify_chain, evidence_for("0" * 64)) is Code.DIGEST_MISMATCH


def test_a_lease_of_an_unlisted_coordinator_is_refused() -> None:
    lease = seal(STRANGER, CHAIN.lease.message)
    listed = {COORDINATOR.peer_id}
    assert (
        code_of(
            check_lease,
            lease,
            CHAIN.request,
            node=NODE.peer_id,
            coordinators=listed,
            now_ms=NOW_MS,
        )
        is Code.UNTRUSTED_COORDINATOR
    )
    both = {COORDINATOR.peer_id, STRANGER.peer_id}
    assert (
        code_of(
            check_lease, lease, CHAIN.request, node=NODE.peer_id, coordinators=both, now_ms=NOW_MS
        )
        is Code.WRONG_SIGNER
    )


def test_a_receipt_is_refused_for_each_wrong_field() -> None:
    assert receipt_code(lease_digest=CHAIN.request.digest) is Code.DIGEST_MISMATCH
    assert receipt_code(model_digest=CHAIN.request.digest) is Code.RECEIPT_MISMATCH
    assert receipt_code(units=Units(101, 2)) is Code.RECEIPT_MISMATCH
    assert receipt_code(amount_nano=CHAIN.receipt.message.amount_nano + 1) is Code.RECEIPT_MISMATCH
    assert receipt_code(node=STRANGER.peer_id) is Code.WRONG_SIGNER
    foreign = seal(STRANGER, CHAIN.receipt.message)
    assert code_of(check_receipt, foreign, CHAIN.lease) is Code.WRONG_SIGNER


def test_an_acceptance_must_fit_its_receipt_and_itself() -> None:
    def code(key: Any = CLIENT, **changes: Any) -> Code:
        acceptance = seal(key, replace(CHAIN.acceptance.message, **changes))
        return code_of(check_acceptance, acceptance, CHAIN.receipt)

    assert code(key=STRANGER) is Code.WRONG_SIGNER
    assert code(receipt_digest=CHAIN.lease.digest) is Code.DIGEST_MISMATCH
    assert code(units=Units(10, 1)) is Code.RECEIPT_MISMATCH
    assert code(agrees=False) is Code.RECEIPT_MISMATCH
    honest = replace(CHAIN.acceptance.message, units=Units(10, 1), agrees=False)
    check_acceptance(seal(CLIENT, honest), CHAIN.receipt)


def test_what_delivered_nothing_is_free() -> None:
    used = Units(input_tokens=100)
    assert charge_nano(PRICE, used, Finish.REFUSED) == 0
    assert charge_nano(PRICE, used, Finish.FAILED) == 0
    assert charge_nano(PRICE, used, Finish.CANCELLED) == 2_000
    assert charge_nano(PRICE, Units(100, 1), Finish.FAILED) == 2_060


@pytest.mark.parametrize("finish", Finish)
def test_no_units_cost_nothing_not_even_the_price_per_request(finish: Finish) -> None:
    assert charge_nano(replace(PRICE, request_nano=7), Units(), finish) == 0
    assert cost_nano(replace(PRICE, request_nano=7), Units(input_tokens=1)) == 27


def test_a_request_that_may_use_nothing_is_refused() -> None:
    """Its hold would be of nothing, at every price."""
    with pytest.raises(ValueError, match="anything"):
        replace(make_request(), units_max=Units(), units_expected=Units())
