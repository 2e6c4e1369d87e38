"""The real transport keeps the contract, on loopback sockets."""

import pytest
import trio

from protocol.keys import SigningKey
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.libp2p import Libp2pTransport
from protocol.net.relay_places import RelayLimits
from tests.protocol.net.contract import TransportContract, key_of

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


class Libp2pWorld:
    def make(
        self, key: SigningKey, *, relay: RelayLimits | None = None, is_dialable: bool = True
    ) -> Libp2pTransport:
        listen = LOOPBACK if is_dialable else ()
        return Libp2pTransport(
            key, listen, policy=ALLOW_LOOPBACK, relay=relay, does_without_relays=False
        )


class TestLibp2pTransport(TransportContract):
    @pytest.fixture
    def world(self) -> Libp2pWorld:
        return Libp2pWorld()


@pytest.mark.parametrize("listen", ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"])
async def test_both_ends_know_where_the_other_one_is(nursery: trio.Nursery, listen: str) -> None:
    """Dial-backs, fair shares and circuits rest on it."""
    node = Libp2pTransport(key_of(1), (listen,), policy=ALLOW_LOOPBACK)
    buyer = Libp2pTransport(key_of(2), (), policy=ALLOW_LOOPBACK)
    await nursery.start(node.run)
    await nursery.start(buyer.run)
    await buyer.connect(node.addresses[0], timeout_s=5)
    host = listen.split("/")[2]
    assert buyer.observed_host(node.peer_id) == host
    assert buyer.place_of(node.peer_id) == node.addresses[0].partition("/p2p/")[0]
    with trio.fail_after(5):
        while buyer.peer_id not in node.connected_peers():  # noqa: ASYNC110 - no event for it
            await trio.sleep(0.01)
    assert node.observed_host(buyer.peer_id) == host
