"""Which addresses a node asks its coordinators to dial."""

from capanode.reach.candidates import candidates, is_public_address
from protocol.limits import OFFER_ADDRESSES_MAX
from tests.protocol.makers import NODE

ID = NODE.peer_id
LAN = f"/ip4/192.168.1.7/tcp/4101/p2p/{ID}"
LOOPBACK = f"/ip4/127.0.0.1/tcp/4101/p2p/{ID}"
V6 = f"/ip6/2a00:1450::7/tcp/4101/p2p/{ID}"


def test_public_addresses_come_first_and_loopback_last() -> None:
    assert candidates((LAN, V6, LOOPBACK)) == (V6, LAN, LOOPBACK)


def test_each_port_is_tried_where_coordinators_see_the_node() -> None:
    found = candidates((LAN, LOOPBACK), observed_hosts=("8.8.8.8",))
    assert found[0] == f"/ip4/8.8.8.8/tcp/4101/p2p/{ID}"
    assert found[1:] == (LAN, LOOPBACK)
    assert candidates((LAN,), observed_hosts=("192.168.1.7",)) == (LAN,)
    assert candidates((LAN,), observed_hosts=("2a00::1", "memory", "")) == (LAN,)


def test_what_a_router_forwards_is_a_candidate() -> None:
    found = candidates((LAN,), mapped=("/ip4/8.8.8.8/tcp/50000",))
    assert found == (f"/ip4/8.8.8.8/tcp/50000/p2p/{ID}", LAN)


def test_there_are_no_more_than_an_offer_lists() -> None:
    many = tuple(f"/ip4/10.0.0.{n}/tcp/4101/p2p/{ID}" for n in range(20))
    assert len(candidates(many)) == OFFER_ADDRESSES_MAX
    assert candidates(()) == ()


def test_a_name_is_not_known_to_be_public() -> None:
    assert is_public_address(V6)
    assert not is_public_address(LAN)
    assert not is_public_address(f"/dns4/node.example/tcp/4101/p2p/{ID}")
