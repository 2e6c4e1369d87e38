"""What needs no network: replay memory and counting. Refusals are tested whole in test_jobs."""

from dataclasses import replace
from functools import partial

import pytest

from capanode.admission import (
    UPLOAD_BYTES_MAX,
    UPLOAD_BYTES_PER_CLIENT_MAX,
    SpentLeases,
    Ticket,
)
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import LeaseId
from protocol.keys import SigningKey
from protocol.limits import CLOCK_SKEW_MAX_MS, PAYLOAD_BYTES_MAX
from protocol.messages import JobRequest, Lease
from tests.capanode.fakes import Market, Setup, open_market
from tests.protocol.makers import (
    CLIENT,
    COORDINATOR,
    NODE,
    NOW_MS,
    STRANGER,
    make_lease,
    make_request,
)


def make(number: int) -> Lease:
    lease = make_lease(seal(CLIENT, make_request()))
    return replace(lease, lease_id=LeaseId(f"{number:026d}"))


def code_of(spent: SpentLeases, lease: Lease, now_ms: int) -> Code:
    with pytest.raises(RemoteProtocolError) as caught:
        spent.spend(lease, now_ms=now_ms)
    return caught.value.code


def test_a_lease_is_remembered_for_as_long_as_it_could_be_opened() -> None:
    spent = SpentLeases()
    lease = make(1)
    spent.spend(lease, now_ms=NOW_MS)
    last_ms = lease.open_before_ms + CLOCK_SKEW_MAX_MS - 1
    assert code_of(spent, lease, last_ms) is Code.REPLAYED


def test_memory_of_leases_is_bounded_and_never_forgets_one_that_is_still_good() -> None:
    spent = SpentLeases(remembered_max=2)
    spent.spend(make(1), now_ms=NOW_MS)
    spent.spend(make(2), now_ms=NOW_MS)
    assert code_of(spent, make(3), NOW_MS) is Code.BUSY
    assert code_of(spent, make(1), NOW_MS) is Code.REPLAYED
    later_ms = make(1).open_before_ms + CLOCK_SKEW_MAX_MS
    spent.spend(make(3), now_ms=later_ms)


def signed(
    market: Market, payload: bytes, key: SigningKey = CLIENT
) -> tuple[Signed[JobRequest], Signed[Lease]]:
    request = seal(key, market.request(payload, key=key))
    return request, seal(COORDINATOR, market.lease(request))


def admit(
    market: Market, payload: bytes, key: SigningKey = CLIENT, *, is_whole: bool = False
) -> Ticket:
    request, lease = signed(market, payload, key)
    now_ms = market.clock.now_ms()
    upload_bytes = 0 if is_whole else request.message.payload_bytes
    return market.admission.admit(request, lease, upload_bytes=upload_bytes, now_ms=now_ms)


async def test_one_client_gets_a_share_of_the_room_for_uploads() -> None:
    async with open_market() as market:
        payload = bytes(PAYLOAD_BYTES_MAX)
        for _ in range(UPLOAD_BYTES_PER_CLIENT_MAX // PAYLOAD_BYTES_MAX):
            admit(market, payload)
        with pytest.raises(RemoteProtocolError) as caught:
            admit(market, payload)
        assert caught.value.code is Code.BUSY
        admit(market, payload, STRANGER)
        admit(market, b"a whole payload is no upload", is_whole=True)


async def test_uploads_keep_nobody_from_the_seats() -> None:
    async with open_market(Setup(slots=1, queue_max=0)) as market:
        upload = admit(market, bytes(PAYLOAD_BYTES_MAX))
        whole = admit(market, b"x", STRANGER, is_whole=True)
        market.admission.take_seat(whole)
        with pytest.raises(RemoteProtocolError) as caught:
            market.admission.take_seat(upload)
        assert caught.value.code is Code.BUSY
        market.admission.release(upload, ran_ms=None)
        assert market.admission.uploading == 0


async def test_uploads_of_all_clients_together_are_bounded() -> None:
    fits = UPLOAD_BYTES_MAX // PAYLOAD_BYTES_MAX
    async with open_market(Setup(slots=fits + 1)) as market:
        payload = bytes(PAYLOAD_BYTES_MAX)
        tickets = [
            admit(market, payload, key)
            for key in (CLIENT, STRANGER, NODE, COORDINATOR)
            for _ in range(fits // 4)
        ]
        with pytest.raises(RemoteProtocolError) as caught:
            admit(market, payload)
        assert caught.value.code is Code.BUSY
        market.admission.take_seat(tickets[0])
        admit(market, payload)
        for ticket in tickets:
            market.admission.release(ticket, ran_ms=None)
        assert market.admission.uploading == 1


async def test_the_slowest_upload_of_the_largest_client_gives_way_to_a_newcomer() -> None:
    """Four accounts with payloads that trickled kept every other upload out for half a minute."""
    fits = UPLOAD_BYTES_MAX // PAYLOAD_BYTES_MAX
    async with open_market(Setup(slots=fits + 4)) as market:
        payload = bytes(PAYLOAD_BYTES_MAX)
        evicted: list[int] = []
        for number in range(fits):
            key = (CLIENT, STRANGER, NODE, COORDINATOR)[number // (fits // 4)]
            ticket = admit(market, payload, key)
            ticket.upload_due_at = 100.0 - number
            ticket.evict = partial(evicted.append, number)
        newcomer = SigningKey(b"n" * 32)
        for _ in range(2):
            admit(market, payload, newcomer)
        assert len(evicted) == 2
        assert len({number // (fits // 4) for number in evicted}) == 2, "one of each client"
        assert {number % (fits // 4) for number in evicted} == {fits // 4 - 1}, "the slowest"
        admit(market, b"a whole payload is no upload", newcomer, is_whole=True)


async def test_a_lease_past_its_deadline_is_not_seated() -> None:
    async with open_market() as market:
        request, lease = signed(market, b"x")
        late_ms = lease.message.deadline_at_ms + CLOCK_SKEW_MAX_MS
        with pytest.raises(RemoteProtocolError) as caught:
            market.admission.admit(request, lease, upload_bytes=0, now_ms=late_ms)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert market.model.seats.queued == 0
