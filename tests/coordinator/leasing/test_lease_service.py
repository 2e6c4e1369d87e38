"""What a service does with jobs that an earlier process has leased."""

import dataclasses

import pytest
from trio.testing import MockClock

from protocol.codec import encode
from protocol.endings import Finish
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import JobId, new_ulid
from protocol.keys import SigningKey
from protocol.messages import JobRequest
from protocol.payload import OutputDigest, salted_digest
from protocol.pricing import Units
from protocol.receipts import draft_receipt
from tests.coordinator.small_market import (
    Script,
    SmallMarket,
    give_credit,
    open_small_market,
    restarted_service,
)
from tests.protocol.makers import SALT, STRANGER, make_request


def a_request(market: SmallMarket, key: SigningKey) -> Signed[JobRequest]:
    spec = market.spec()
    payload = encode(spec.job_input)
    now_ms = market.clock.now_ms()
    request = dataclasses.replace(
        make_request(key, payload),
        job_id=JobId(new_ulid(now_ms, b"0123456789")),
        coordinator=market.coordinator.key.peer_id,
        model=spec.model,
        payload_digest=salted_digest(payload, SALT),
        units_max=spec.units_max,
        units_expected=spec.units_expected,
        issued_at_ms=now_ms,
        deadline_at_ms=now_ms + 60_000,
    )
    return seal(key, request)


async def lease_and_refuse(market: SmallMarket, request: Signed[JobRequest]) -> None:
    """A first attempt, whose lease is closed by a receipt of nothing."""
    granted = await market.coordinator.lease_service.lease(request)
    terms = granted.lease.message
    (node,) = (node for node in market.nodes if node.key.peer_id == terms.node)
    receipt = draft_receipt(
        granted.lease,
        Units(),
        Finish.REFUSED,
        output_digest=OutputDigest(SALT).hexdigest(),
        issued_at_ms=market.clock.now_ms(),
        code=Code.BUSY.value,
    )
    await market.coordinator.receipts.accept(seal(node.key, receipt), None)
    assert terms.attempt == 0


async def test_a_job_goes_on_after_a_restart_between_its_attempts(
    autojump_clock: MockClock,
) -> None:
    """Found by seed 753 of the simulator: the client was told that its own retry is a replay."""
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        request = a_request(market, market.buyer)
        await lease_and_refuse(market, request)
        service = restarted_service(market)
        second = await service.lease(request)
        assert second.lease.message.attempt == 1
        third = await service.lease(request)
        assert third.lease.message.attempt == 2
        assert third.lease.message.deadline_at_ms == second.lease.message.deadline_at_ms


async def test_another_client_may_choose_the_same_job_id(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        request = a_request(market, market.buyer)
        await lease_and_refuse(market, request)
        with market.database.transaction() as conn:
            give_credit(conn, STRANGER.peer_id, 10**9, market.clock.now_ms())
        theirs = a_request(market, STRANGER)
        assert theirs.message.job_id == request.message.job_id
        granted = await restarted_service(market).lease(theirs)
        assert granted.lease.message.attempt == 0


async def refusal_of(market: SmallMarket, key: SigningKey, entropy: bytes) -> RemoteProtocolError:
    request = dataclasses.replace(
        a_request(market, key).message, job_id=JobId(new_ulid(market.clock.now_ms(), entropy))
    )
    with pytest.raises(RemoteProtocolError) as caught:
        await market.coordinator.lease_service.lease(seal(key, request))
    return caught.value


async def test_money_that_is_only_held_is_worth_coming_back_for(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.HANG, Script.HANG) as market:
        first = await market.coordinator.lease_service.lease(a_request(market, market.buyer))
        ceiling_nano = first.lease.message.ceiling_nano
        with market.database.transaction() as conn:
            give_credit(conn, STRANGER.peer_id, ceiling_nano * 3 // 2, market.clock.now_ms())
        await market.coordinator.lease_service.lease(a_request(market, STRANGER))
        refused = await refusal_of(market, STRANGER, b"abcdefghij")
        assert refused.code is Code.OUT_OF_FUNDS
        assert refused.retry_after_ms is not None
        assert 250 <= refused.retry_after_ms <= 60_000


async def test_money_that_is_not_there_is_not_waited_for(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.HANG) as market:
        with market.database.transaction() as conn:
            give_credit(conn, STRANGER.peer_id, 1, market.clock.now_ms())
        refused = await refusal_of(market, STRANGER, b"abcdefghij")
        assert (refused.code, refused.retry_after_ms) == (Code.OUT_OF_FUNDS, None)
