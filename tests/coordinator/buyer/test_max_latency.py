"""`max_latency` is kept while a job runs, not only expected when its node is chosen."""

from dataclasses import replace

import pytest
from trio.testing import MockClock

from coordinator.buyer.errors import JobFailed
from protocol.errors import Code
from tests.coordinator.small_market import (
    OPENING_CREDIT_NANO,
    Script,
    SmallMarket,
    open_small_market,
)


async def buy(market: SmallMarket, max_latency_ms: int) -> str:
    constraints = replace(market.spec().constraints, max_latency_ms=max_latency_ms)
    spec = replace(market.spec(), constraints=constraints)
    async with market.client.buy(spec, market.buyer) as purchase:
        return "".join([chunk.text async for chunk in purchase])


async def test_a_node_without_output_in_time_is_left_and_costs_nothing(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.HANG, Script.HANG) as market:
        with pytest.raises(JobFailed, match="max_latency") as caught:
            await buy(market, 200)
        assert caught.value.code is Code.NO_NODE_FITS
        assert caught.value.amount_nano == 0
        assert caught.value.job_id is not None
        await market.client.wait_settled()
        balance = await market.leaser.balance()
        # The hold ends with the node's receipt, which is worth nothing now, or by itself.
        assert balance.spent_nano == 0
        assert balance.available_nano + balance.held_nano == OPENING_CREDIT_NANO


async def test_an_answer_that_began_in_time_takes_as_long_as_it_takes(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        assert await buy(market, 5_000) == "Hello, world!"
