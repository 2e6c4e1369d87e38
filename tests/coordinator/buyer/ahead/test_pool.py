"""A buyer that leases ahead, in a small market."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.job_name import JobName
from coordinator.buyer.spec import Continuation, JobSpec
from coordinator.db.jobs import list_jobs
from coordinator.db.own_jobs import find_own_evidence, list_own_jobs
from protocol.envelope import open_envelope
from protocol.errors import Code
from protocol.ids import JobId, new_ulid
from protocol.messages import JobRequest, Lease, Receipt
from protocol.receipts import Evidence, verify_chain
from tests.coordinator.lease_requests import signed_request
from tests.coordinator.leasing.test_openings import busy_seats
from tests.coordinator.small_market import WORDS, Script, SmallMarket, open_small_market

MOST = 8


async def buy(market: SmallMarket, spec: JobSpec | None = None) -> tuple[str, JobId, bool]:
    """The text, the job's id, and whether it took a lease that was there."""
    before = market.client.leases.counts().hits
    async with market.client.buy(spec or market.spec(), market.buyer) as job:
        text = "".join([chunk.text async for chunk in job])
        terms, _ = job.ended()
    return text, terms.job_id, market.client.leases.counts().hits > before


async def warm_up(market: SmallMarket) -> None:
    for _ in range(2):
        _, _, is_hit = await buy(market)
        assert not is_hit
    await trio.sleep(0.1)
    assert market.client.leases.counts().ready


async def test_a_job_opens_a_warm_lease_without_asking_the_coordinator(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, leases_ahead=MOST) as market:
        await warm_up(market)
        text, job_id, is_hit = await buy(market)
        assert (text, is_hit) == ("".join(WORDS), True)
        await trio.sleep(0.1)
        with market.database.transaction() as conn:
            found = find_own_evidence(conn, market.buyer.peer_id, job_id, "")
        assert found is not None
        request = open_envelope(found.request, JobRequest)
        assert request.message.is_ahead
        receipt = open_envelope(found.receipt, Receipt)
        verify_chain(Evidence(request, open_envelope(found.lease, Lease), receipt))


async def test_each_lease_serves_one_job(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, leases_ahead=MOST) as market:
        await warm_up(market)
        bought: list[tuple[str, JobId, bool]] = []

        async def buy_one() -> None:
            bought.append(await buy(market))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(buy_one)
        assert {text for text, _, _ in bought} == {"".join(WORDS)}
        assert len({job_id for _, job_id, _ in bought}) == 4
        assert market.client.leases.counts().hits >= 2


async def test_what_is_not_used_is_given_back_at_once_and_listed_nowhere(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, leases_ahead=MOST) as market:
        await warm_up(market)
        ready = market.client.leases.counts().ready
        assert market.account(market.buyer.peer_id).held_nano > 0
        await trio.sleep(10)
        counts = market.client.leases.counts()
        assert (counts.ready, counts.unused) == (0, ready)
        assert busy_seats(market) == 0
        market.assert_books_are_closed()
        with market.database.transaction() as conn:
            assert len(list_jobs(conn)) == 2 + ready
            listed = list_own_jobs(conn, market.buyer.peer_id, before="", limit=50)
        assert len(listed.jobs) == 2
        assert market.nodes[0].jobs_opened == 2


async def test_a_buyer_that_stops_gives_its_leases_back(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, leases_ahead=MOST) as market:
        await warm_up(market)
        await market.client.wait_settled()
        assert market.client.leases.counts().ready == 0
        market.assert_books_are_closed()
        _, _, is_hit = await buy(market)
        assert not is_hit


async def test_leases_ahead_hold_a_small_share_of_the_money(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, leases_ahead=MOST) as market:
        for _ in range(30):
            await buy(market)
            await trio.sleep(0.01)
            held = market.account(market.buyer.peer_id).held_nano
            free = market.account(market.buyer.peer_id).available_nano
            assert market.client.leases.counts().ready <= MOST
            assert held <= (free + held) / 20 + 1
        poor = open_small_market(Script.ANSWER, credit_nano=20_000_000, leases_ahead=MOST)
    async with poor as market:
        await buy(market)
        await buy(market)
        await trio.sleep(1)
        assert market.client.leases.counts().ready == 0
        assert market.account(market.buyer.peer_id).held_nano == 0


async def test_leases_ahead_keep_no_other_client_from_a_seat(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, leases_ahead=MOST) as market:
        await warm_up(market)
        assert busy_seats(market) >= 2
        started_at = trio.current_time()
        for _ in range(4):
            await market.leaser.lease(signed_request(market, market.buyer))
        assert trio.current_time() == started_at


async def test_a_lease_that_comes_to_nothing_is_followed_by_an_ordinary_one(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER, leases_ahead=MOST) as market:
        await warm_up(market)
        market.nodes[0].script = Script.REFUSE
        hits = []
        for _ in range(4):
            text, job_id, is_hit = await buy(market)
            assert text == "".join(WORDS)
            hits += [job_id] if is_hit else []
        with market.database.transaction() as conn:
            attempts = [job.attempt for job in list_jobs(conn) if job.job_id in hits]
        assert 1 in attempts


async def test_an_answer_that_breaks_off_goes_on_elsewhere(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER, leases_ahead=MOST) as market:
        await warm_up(market)
        for node in market.nodes:
            node.script = Script.VANISH_MIDWAY
        spec = replace(market.spec(), continuation=Continuation.CONTINUE)
        before = market.client.leases.counts().hits
        async with market.client.buy(spec, market.buyer) as job:
            for node in market.nodes:
                node.script = Script.ANSWER
            text = "".join([chunk.text async for chunk in job])
        assert text == "".join(WORDS)
        assert market.client.leases.counts().hits == before + 1


async def test_a_job_whose_id_was_told_is_leased_as_always(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, leases_ahead=MOST) as market:
        await warm_up(market)
        told = JobName(JobId(new_ulid(market.clock.now_ms(), bytes(10))))
        said = told.tell()
        _, job_id, is_hit = await buy(market, replace(market.spec(), name=told))
        assert (job_id, is_hit) == (said, False)
        untold = JobName(JobId(new_ulid(market.clock.now_ms(), bytes([1] * 10))))
        _, job_id, is_hit = await buy(market, replace(market.spec(), name=untold))
        assert (job_id, is_hit) == (untold.tell(), True)


async def test_limits_of_a_job_hold_with_a_lease_that_was_there(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, leases_ahead=MOST) as market:
        await warm_up(market)
        spec = market.spec()
        cheap = replace(spec.constraints, max_cost_nano=1)
        with pytest.raises(JobFailed) as caught:
            await buy(market, replace(spec, constraints=cheap))
        assert caught.value.code is Code.NO_NODE_FITS
        for other in (replace(spec, deadline_s=100.0), replace(spec, hedge=True)):
            _, _, is_hit = await buy(market, other)
            assert not is_hit


async def test_a_conversation_goes_back_to_its_node(autojump_clock: MockClock) -> None:
    async with open_small_market(*[Script.ANSWER] * 4, leases_ahead=MOST) as market:
        spec = replace(market.spec(), session="a user")
        nodes = set()
        for _ in range(12):
            async with market.client.buy(spec, market.buyer) as job:
                nodes.add(job.granted.lease.message.node)
                async for _ in job:
                    pass
            await trio.sleep(0.2)
        assert len(nodes) == 1


async def test_a_buyer_without_a_pool_leases_nothing_ahead(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, leases_ahead=0) as market:
        for _ in range(5):
            _, _, is_hit = await buy(market)
            assert not is_hit
        assert market.client.leases.counts().ready == 0
