"""A party behind a router keeps places at two relays that work."""

import random

import pytest
import trio

from protocol.net.memory import MemoryNetwork, MemoryTransport
from protocol.net.relay_places import RelayLimits
from protocol.net.relay_roster import RelayRoster
from tests.protocol.net.contract import SOON_S, key_of
from tests.protocol.net.virtual import virtual_time


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork(random.Random(1))


@pytest.fixture
async def relays(network: MemoryNetwork, nursery: trio.Nursery) -> list[MemoryTransport]:
    relays = [network.transport(key_of(30 + n), relay=RelayLimits()) for n in range(3)]
    for relay in relays:
        await nursery.start(relay.run)
    return relays


@pytest.fixture
async def hidden(network: MemoryNetwork, nursery: trio.Nursery) -> MemoryTransport:
    hidden = network.transport(key_of(9), is_dialable=False)
    await nursery.start(hidden.run)
    return hidden


class Roster(RelayRoster):
    """Counts the changes that it tells."""

    def __init__(self, hidden: MemoryTransport, candidates: list[str]) -> None:
        super().__init__(hidden, candidates, self._count)
        self.changes = 0

    def _count(self) -> None:
        self.changes += 1

    def relays(self) -> list[str]:
        return [str(place.relay) for place in self.places if place.addresses]


@virtual_time
async def test_two_relays_are_enough(
    hidden: MemoryTransport, relays: list[MemoryTransport]
) -> None:
    roster = Roster(hidden, [relay.addresses[0] for relay in relays])
    roster.adjust(is_needed=True)
    await trio.sleep(1)
    assert roster.relays() == [relays[0].peer_id, relays[1].peer_id]
    assert len(hidden.announced) == 2
    assert roster.changes == 2
    assert relays[2].statistics().reservations == 0


@virtual_time
async def test_another_relay_serves_while_one_is_gone(
    hidden: MemoryTransport,
    relays: list[MemoryTransport],
    network: MemoryNetwork,
    nursery: trio.Nursery,
) -> None:
    roster = Roster(hidden, [relay.addresses[0] for relay in relays])
    roster.adjust(is_needed=True)
    await trio.sleep(1)
    network.kill(relays[0].peer_id)
    await trio.sleep(1)
    assert set(roster.relays()) == {relays[1].peer_id, relays[2].peer_id}
    assert [place.failure for place in roster.places if not place.addresses]
    back = network.transport(key_of(30), relay=RelayLimits())
    await nursery.start(back.run)
    await trio.sleep(70)
    assert set(roster.relays()) == {relays[0].peer_id, relays[1].peer_id}
    assert len(hidden.announced) == 2


@virtual_time
async def test_an_address_that_is_none_is_passed_over(
    hidden: MemoryTransport, relays: list[MemoryTransport]
) -> None:
    unusable = f"/ip4/5.0.0.1/tcp/1/p2p/{key_of(50).peer_id}"
    roster = Roster(hidden, [unusable, relays[0].addresses[0], relays[0].addresses[0]])
    roster.adjust(is_needed=True)
    await trio.sleep(1)
    assert roster.relays() == [relays[0].peer_id]


@virtual_time
async def test_places_are_released_when_they_are_needed_no_more(
    hidden: MemoryTransport, relays: list[MemoryTransport]
) -> None:
    roster = Roster(hidden, [relay.addresses[0] for relay in relays])
    roster.adjust(is_needed=True)
    await trio.sleep(SOON_S)
    assert roster.addresses == hidden.announced != ()
    roster.adjust(is_needed=False)
    await trio.sleep(1)
    assert roster.addresses == hidden.announced == ()
