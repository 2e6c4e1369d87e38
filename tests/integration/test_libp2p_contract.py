"""The real transport keeps the contract, on loopback sockets."""

import pytest

from protocol.keys import SigningKey
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.libp2p import Libp2pTransport
from protocol.net.relay_places import RelayLimits
from tests.protocol.net.contract import TransportContract

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
