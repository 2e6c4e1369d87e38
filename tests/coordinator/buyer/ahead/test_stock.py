from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coordinator.buyer.ahead.stock import DEMAND_WITHIN_S, LeaseAhead, LeaseStock
from protocol.envelope import Signed, seal
from protocol.grants import Granted
from protocol.ids import JobId, new_ulid
from protocol.messages import JobRequest, Lease
from protocol.offers import NodeOffer
from tests.protocol.makers import CLIENT, COORDINATOR, NODE, NOW_MS, make_lease, make_request
from tests.protocol.test_protocol_vectors import make_offer

MOST = 8
OFFER: Signed[NodeOffer] = seal(NODE, make_offer())


def lease_number(number: int, *, asked_at: float) -> LeaseAhead:
    job_id = JobId(new_ulid(NOW_MS, number.to_bytes(10)))
    request: Signed[JobRequest] = seal(CLIENT, replace(make_request(), job_id=job_id))
    lease: Signed[Lease] = seal(COORDINATOR, make_lease(request))
    return LeaseAhead.taken(request, Granted(lease, OFFER, 0), asked_at=asked_at)


LEASES = [lease_number(number, asked_at=0.0) for number in range(64)]
STEPS = st.lists(
    st.tuples(st.sampled_from(["job", "tend", "grant", "refuse"]), st.floats(0.0, 4.0)),
    max_size=60,
)


@given(STEPS)
def test_a_stock_is_bounded_fresh_and_gives_each_lease_once(
    steps: list[tuple[str, float]],
) -> None:
    stock, now, asked = LeaseStock(most=MOST), 0.0, 0
    granted, gone = 0, []
    for step, wait_s in steps:
        now += wait_s
        if step == "job":
            stock.note_arrival(now)
            found = stock.find(now, lambda lease: True)
            if found is not None:
                assert now < found.usable_until
                stock.remove(found)
                gone.append(found)
        elif step == "tend":
            gone += stock.take_unwanted(now)
            assert all(now < lease.usable_until for lease in stock.leases)
            count = stock.missing(now)
            stock.ask_for(count)
            asked += count
        elif asked and step == "grant":
            asked -= 1
            stock.add(replace(LEASES[granted], usable_until=now + 5.0))
            granted += 1
        elif asked:
            asked -= 1
            stock.note_refused(now)
        assert len(stock) + asked <= MOST
    assert len(set(map(id, gone))) == len(gone)
    assert not set(map(id, gone)) & set(map(id, stock.leases))


def test_a_lease_that_the_node_may_refuse_as_too_old_is_given_back_and_serves_no_job() -> None:
    stock = LeaseStock(most=MOST)
    for now in (1.0, 2.0):
        stock.note_arrival(now)
    stock.ask_for(2)
    old, fresh = (replace(LEASES[n], usable_until=until) for n, until in enumerate((2.5, 9.0)))
    stock.add(old)
    stock.add(fresh)
    assert stock.find(2.4, lambda lease: True) is old
    assert stock.find(2.5, lambda lease: True) is fresh
    assert stock.take_unwanted(2.5) == [old]


def test_one_job_is_no_demand_and_silence_ends_it() -> None:
    stock = LeaseStock(most=MOST)
    stock.note_arrival(1.0)
    assert stock.missing(1.0) == 0
    stock.note_arrival(2.0)
    assert stock.missing(2.0) == 2
    stock.ask_for(2)
    stock.add(LEASES[0])
    assert stock.take_unwanted(2.0 + DEMAND_WITHIN_S - 1.5) == []
    assert stock.take_unwanted(2.0 + DEMAND_WITHIN_S + 0.1) == [LEASES[0]]
    assert not len(stock)


def test_more_jobs_a_second_keep_more_leases() -> None:
    slow, fast = LeaseStock(most=MOST), LeaseStock(most=MOST)
    for number in range(20):
        slow.note_arrival(number / 4)
        fast.note_arrival(number / 100)
    assert slow.wanted(4.75) == 4
    assert fast.wanted(0.19) == MOST


def test_new_leases_are_asked_for_when_half_are_gone() -> None:
    stock = LeaseStock(most=MOST)
    for number in range(100):
        stock.note_arrival(number / 100)
    stock.ask_for(MOST)
    for lease in LEASES[:MOST]:
        stock.add(lease)
    missing = []
    for lease in LEASES[:MOST]:
        stock.remove(lease)
        missing.append(stock.missing(1.0))
    assert missing == [0, 0, 0, 4, 5, 6, 7, 8]


def test_a_coordinator_that_grants_some_is_asked_for_no_more() -> None:
    stock = LeaseStock(most=MOST)
    for number in range(100):
        stock.note_arrival(number / 100)
    stock.ask_for(MOST)
    for lease in LEASES[:3]:
        stock.add(lease)
        stock.note_refused(1.0)
    stock.note_refused(1.0)
    stock.note_refused(1.0)
    assert stock.missing(1.0) == 0
    stock.remove(LEASES[0])
    stock.remove(LEASES[1])
    assert stock.missing(1.0) == 2


def test_a_refused_stock_waits_longer_each_time() -> None:
    stock, now, waits = LeaseStock(most=MOST), 0.0, []
    for _ in range(8):
        for _ in range(2):
            stock.note_arrival(now)
        stock.ask_for(stock.missing(now))
        asked_at = now
        while not stock.is_idle:
            stock.note_refused(now)
        while not stock.missing(now):
            now += 0.5
            stock.note_arrival(now)
        waits.append(now - asked_at)
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(waits) == 60.0
