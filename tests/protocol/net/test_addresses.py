import pytest

from protocol.net.addresses import check_tcp, host_of, split_peer_id
from protocol.net.errors import AddressInvalid
from tests.protocol.net.contract import key_of

PEER = key_of(1).peer_id


def test_an_address_is_a_place_and_a_peer() -> None:
    assert split_peer_id(f"/ip4/10.0.0.1/tcp/4001/p2p/{PEER}") == ("/ip4/10.0.0.1/tcp/4001", PEER)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/",
        PEER,
        f"/p2p/{PEER}",
        "/ip4/10.0.0.1/tcp/4001",
        "/ip4/1.1.1.1/tcp/1/p2p/x",
    ],
)
def test_address_without_a_peer_is_invalid(address: str) -> None:
    with pytest.raises(AddressInvalid):
        split_peer_id(address)


@pytest.mark.parametrize(
    "place",
    ["/ip4/10.0.0.1/tcp/4001", "/ip6/::1/tcp/0", "/dns4/node.example.org/tcp/65535"],
)
def test_tcp_places_are_fine(place: str) -> None:
    check_tcp(place)


@pytest.mark.parametrize(
    "place",
    [
        "",
        "/ip4/10.0.0.1",
        "/ip4/10.0.0.1/udp/4001",
        "/ip4/10.0.0.1/udp/4001/quic-v1",
        "/ip4/10.0.0.1/tcp/4001/ws",
        "/ip4//tcp/4001",
        "/ip4/10.0.0.1/tcp/",
        "/ip4/10.0.0.1/tcp/-1",
        "/ip4/10.0.0.1/tcp/65536",
        "/ip4/10.0.0.1/tcp/¼",
        "/unix/tmp/tcp/1",
        "ip4/10.0.0.1/tcp/4001",
    ],
)
def test_anything_else_is_not(place: str) -> None:
    with pytest.raises(AddressInvalid):
        check_tcp(place)


def test_the_host_of_an_address_is_its_first_part() -> None:
    assert host_of("/ip4/203.0.113.7/tcp/4101/p2p/ID") == "203.0.113.7"
    assert host_of("/dns4/node.example/tcp/4101") == "node.example"
    assert host_of("/memory/7/p2p/ID") == "memory"
    assert host_of("") == ""
