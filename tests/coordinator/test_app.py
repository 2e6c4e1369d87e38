"""How a coordinator ends: what it owes is booked before its books close."""

import trio
from trio.testing import MockClock

from coordinator.buyer.client import MarketClient
from tests.coordinator.small_market import Script, SmallMarket, open_small_market


async def buy_and_stop(market: SmallMarket, client: MarketClient) -> None:
    """Read an answer to its end, and tell the coordinator to stop in the same instant."""
    async with client.buy(market.spec(), market.buyer) as purchase:
        async for _ in purchase:
            pass
    market.coordinator.stop()


async def test_receipts_of_our_own_client_are_handed_in_before_the_books_close(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        await buy_and_stop(market, market.coordinator.client)
        await trio.sleep(60)
        market.assert_books_are_closed()
        assert market.account(market.nodes[0].key.peer_id).posted_nano > 0
