"""What a client takes from a coordinator, and what it does not."""

from dataclasses import replace
from typing import Any

import pytest

from protocol.envelope import seal
from protocol.errors import Code, RemoteProtocolError
from protocol.grants import Granted, check_terms
from protocol.messages import JobRequest
from protocol.pricing import PriceSheet, Units
from tests.coordinator.market_makers import key, model_offer, node_offer, sealed
from tests.protocol.makers import CLIENT, COORDINATOR, make_lease, make_request

OFFER = sealed(1, node_offer(1, model_offer()))
MODEL = OFFER.message.models[0]
REQUEST = seal(CLIENT, replace(make_request(), model=MODEL.name))


def granted(**changes: Any) -> Granted:
    lease = replace(
        make_lease(REQUEST),
        node=key(1).peer_id,
        offer_digest=OFFER.digest,
        model_digest=MODEL.manifest_digest,
        price=MODEL.price,
    )
    return Granted(seal(COORDINATOR, replace(lease, **changes)), OFFER, match_us=0)


def test_terms_as_asked_and_offered_are_taken() -> None:
    check_terms(granted(), REQUEST)


def test_a_batch_pays_the_batch_price_and_no_other() -> None:
    request = seal(CLIENT, replace(REQUEST.message, is_batch=True))
    half = MODEL.asked_price(is_batch=True)
    check_terms(granted(request_digest=request.digest, price=half), request)
    for price, asked in ((MODEL.price, request), (half, REQUEST)):
        with pytest.raises(RemoteProtocolError) as caught:
            check_terms(granted(request_digest=asked.digest, price=price), asked)
        assert caught.value.code is Code.PRICE_MISMATCH


def test_a_coordinator_that_knows_no_cached_tokens_leases_without_their_price() -> None:
    price = replace(MODEL.price, cached_nano_per_mtok=1)
    models = (replace(MODEL, price=price),)
    offer = seal(key(1), replace(OFFER.message, models=models))
    for leased in (price, price.without_cached):
        lease = granted(offer_digest=offer.digest, price=leased).lease
        check_terms(Granted(lease, offer, match_us=0), REQUEST)
    lease = granted(offer_digest=offer.digest, price=replace(price, cached_nano_per_mtok=0)).lease
    with pytest.raises(RemoteProtocolError):
        check_terms(Granted(lease, offer, match_us=0), REQUEST)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"offer_digest": "0" * 64}, Code.DIGEST_MISMATCH),
        ({"node": key(2).peer_id}, Code.DIGEST_MISMATCH),
        ({"request_digest": "0" * 64}, Code.DIGEST_MISMATCH),
        ({"coordinator": CLIENT.peer_id}, Code.DIGEST_MISMATCH),
        ({"price": PriceSheet()}, Code.PRICE_MISMATCH),
        ({"model_digest": "0" * 64}, Code.DIGEST_MISMATCH),
        ({"units_max": Units(input_tokens=500_000)}, Code.PRICE_MISMATCH),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_terms_are_refused(changes: dict[str, Any], code: Code) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check_terms(granted(**changes), REQUEST)
    assert caught.value.code is code


@pytest.mark.parametrize("model", ["another-name", "0" * 64])
def test_a_lease_for_another_model_is_refused(model: str) -> None:
    request = seal(CLIENT, replace(REQUEST.message, model=model))
    with pytest.raises(RemoteProtocolError) as caught:
        check_terms(granted(request_digest=request.digest), request)
    assert caught.value.code is Code.DIGEST_MISMATCH


def test_a_pinned_digest_is_not_a_name_that_looks_like_it() -> None:
    offer = sealed(1, node_offer(1, model_offer(name="0" * 64)))
    request = seal(CLIENT, replace(REQUEST.message, model="0" * 64))
    lease = granted(request_digest=request.digest, offer_digest=offer.digest).lease
    with pytest.raises(RemoteProtocolError) as caught:
        check_terms(Granted(lease, offer, match_us=0), request)
    assert caught.value.code is Code.DIGEST_MISMATCH


def test_a_lease_above_the_clients_limit_is_refused() -> None:
    constraints = replace(REQUEST.message.constraints, max_cost_nano=4_999)
    asked: JobRequest = replace(REQUEST.message, constraints=constraints)
    request = seal(CLIENT, asked)
    with pytest.raises(RemoteProtocolError) as caught:
        check_terms(granted(request_digest=request.digest), request)
    assert caught.value.code is Code.PRICE_MISMATCH


def test_a_node_that_the_client_has_ruled_out_is_refused() -> None:
    """Whatever its coordinator says: constraints decide who sees the prompt."""
    constraints = replace(REQUEST.message.constraints, ignore=(key(1).peer_id,))
    request = seal(CLIENT, replace(REQUEST.message, constraints=constraints))
    with pytest.raises(RemoteProtocolError, match="only, ignore or order") as caught:
        check_terms(granted(request_digest=request.digest), request)
    assert caught.value.code is Code.DIGEST_MISMATCH
