"""What an account may see of itself over the network: its own, and nothing of others."""

import pytest
from trio.testing import MockClock

from coordinator.buyer.remote import RemoteLeaser
from protocol.envelope import open_envelope
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import JobId
from protocol.messages import Receipt
from protocol.services import DAY_MS, EvidenceAsk, JobAsk, JobsAsk, UsageAsk
from tests.coordinator.small_market import MODEL, Script, SmallMarket, open_small_market


async def bought(market: SmallMarket, times: int) -> None:
    for _ in range(times):
        async with market.client.buy(market.spec(), market.buyer) as purchase:
            async for _ in purchase:
                pass
    await market.client.wait_settled()


async def test_a_client_sees_its_jobs_page_by_page(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        await bought(market, 3)
        leaser: RemoteLeaser = market.leaser
        first = await leaser.jobs(JobsAsk(limit=2))
        rest = await leaser.jobs(JobsAsk(first.next_before, limit=2))
        ids = [job.job_id for job in (*first.jobs, *rest.jobs)]
        assert len(set(ids)) == 3
        assert rest.next_before == ""
        newest = first.jobs[0]
        assert (newest.model, newest.state) == (MODEL, "settled")
        assert newest.amount_nano > 0
        assert newest.units.input_tokens > 0


async def test_a_job_has_every_attempt_and_its_evidence(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.REFUSE, Script.ANSWER) as market:
        await bought(market, 1)
        leaser: RemoteLeaser = market.leaser
        (job,) = (await leaser.jobs(JobsAsk())).jobs
        found = await leaser.job(JobAsk(job.job_id))
        assert found.job == job
        answered = found.attempts[-1]
        assert (answered.finish, answered.receipt_state) == ("stop", "settled")
        assert sum(attempt.amount_nano for attempt in found.attempts) == job.amount_nano
        evidence = await leaser.evidence(EvidenceAsk(job.job_id))
        receipt = open_envelope(evidence.receipt, Receipt)
        assert receipt.digest == answered.receipt_digest
        assert receipt.message.lease_id == answered.lease_id


async def test_usage_adds_up_by_day_and_model(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        await bought(market, 2)
        leaser: RemoteLeaser = market.leaser
        today = market.clock.now_ms() // DAY_MS
        (row,) = (await leaser.usage(UsageAsk(today))).rows
        jobs = (await leaser.jobs(JobsAsk())).jobs
        assert (row.day, row.model, row.jobs) == (today, MODEL, 2)
        assert row.amount_nano == sum(job.amount_nano for job in jobs)
        assert row.units.output_tokens == sum(job.units.output_tokens for job in jobs)
        assert (await leaser.usage(UsageAsk(today - 1))).rows == ()
        balance = await leaser.balance()
        assert balance.spent_nano == row.amount_nano
        assert balance.available_nano == balance.credited_nano - balance.spent_nano


async def test_what_others_have_bought_is_not_there(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        await bought(market, 1)
        (job,) = (await market.leaser.jobs(JobsAsk())).jobs
        records, stranger = market.coordinator.records, market.nodes[0].key.peer_id
        assert (await records.jobs(stranger, JobsAsk())).jobs == ()
        for asked in (
            records.job(stranger, JobAsk(job.job_id)),
            records.evidence(stranger, EvidenceAsk(job.job_id)),
            records.job(market.buyer.peer_id, JobAsk(JobId("0" * 26))),
        ):
            with pytest.raises(RemoteProtocolError) as caught:
                await asked
            assert caught.value.code is Code.NOT_FOUND
