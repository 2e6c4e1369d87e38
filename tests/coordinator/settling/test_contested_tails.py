"""A node whose receipts differ from what its clients count loses the tails of its texts."""

from dataclasses import replace

import pytest
from trio.testing import MockClock

from coordinator.leasing.registry import LeaseRegistry
from coordinator.leasing.restoring import restore_clients
from coordinator.leasing.tails import SUSPECT_MIN
from protocol.envelope import seal
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.messages import Constraints, Lease
from tests.coordinator.lease_requests import signed_request
from tests.coordinator.small_market import Script, SmallMarket, give_credit, open_small_market

BUYERS = [SigningKey(bytes([number + 1]) * 32) for number in range(SUSPECT_MIN)]


async def buy_at(market: SmallMarket, node: PeerId, buyer: SigningKey) -> None:
    spec = replace(market.spec(), constraints=Constraints(only=(node,)))
    async with market.coordinator.client.buy(spec, buyer) as stream:
        async for _ in stream:
            pass
    await market.coordinator.client.wait_settled()


async def lease_at(market: SmallMarket, node: PeerId) -> Lease:
    asked = signed_request(market, BUYERS[0]).message
    request = seal(BUYERS[0], replace(asked, constraints=Constraints(only=(node,))))
    granted = await market.coordinator.lease_service.lease(request)
    return granted.lease.message


@pytest.mark.parametrize(
    ("script", "pays_tails"), [(Script.OVERCHARGE, False), (Script.ANSWER, True)]
)
async def test_only_a_node_that_differs_with_several_clients_loses_its_tails(
    autojump_clock: MockClock, script: Script, pays_tails: bool
) -> None:
    async with open_small_market(Script.ANSWER, script) as market:
        honest, other = (node.key.peer_id for node in market.nodes)
        with market.database.transaction() as conn:
            for buyer in BUYERS:
                give_credit(conn, buyer.peer_id, 10**9, market.clock.now_ms())
        assert (await lease_at(market, other)).pays_tails
        for buyer in BUYERS:
            await buy_at(market, honest, buyer)
            await buy_at(market, other, buyer)
        leases = [await lease_at(market, node) for node in (honest, other)]
        assert [lease.pays_tails for lease in leases] == [True, pays_tails]
        assert leases[1].client_standing > 0, "its clients are believed"
        restarted = LeaseRegistry(market.coordinator.market)
        await restore_clients(market.database, restarted, now_ms=market.clock.now_ms())
        assert restarted.tails.is_suspect(other) is not pays_tails, "also after a restart"
        assert not restarted.tails.is_suspect(honest)
