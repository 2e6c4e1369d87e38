import pytest

from protocol.net.dial_policy import ALLOW_LOOPBACK, PUBLIC_ONLY, DialPolicy, parse_networks
from protocol.net.errors import AddressForbidden

PUBLIC = ("1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "2a00:1450::1")
NOT_PUBLIC = {
    "loopback": ("127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1"),
    "private": ("10.0.0.1", "172.16.0.1", "192.168.1.1", "fc00::1", "fd12:3456::1"),
    "link-local": ("169.254.169.254", "fe80::1"),
    "site-local": ("fec0::1", "feff::1"),
    "not assigned": ("4000::1", "5f00::1", "fe00::1"),
    "shared by a carrier": ("100.64.0.1",),
    "unspecified": ("0.0.0.0", "::", "0.1.2.3"),
    "multicast": ("224.0.0.1", "239.1.1.1", "ff02::1", "ff0e::1"),
    "broadcast and reserved": ("255.255.255.255", "240.0.0.1"),
    "documentation": ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"),
    "benchmarks": ("198.18.0.1",),
    "protocol assignments": ("192.0.0.9", "192.88.99.1"),
    "IPv4 inside IPv6": (
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::1",
        "2001:0:7f00:1::",
        "::127.0.0.1",
    ),
    "no address": ("", "localhost", "127.1", "0x7f.0.0.1", "2130706433", "1.1.1.1/32", "[::1]"),
}


@pytest.mark.parametrize("host", PUBLIC)
def test_an_address_of_the_internet_is_dialled(host: str) -> None:
    assert PUBLIC_ONLY.allows(host)


@pytest.mark.parametrize(
    ("kind", "host"), [(kind, host) for kind, hosts in NOT_PUBLIC.items() for host in hosts]
)
def test_any_other_address_is_not(kind: str, host: str) -> None:
    assert not PUBLIC_ONLY.allows(host), kind


def test_the_operator_can_allow_networks() -> None:
    policy = DialPolicy(parse_networks(["loopback", "192.168.0.0/16"]))
    assert all(map(policy.allows, ("127.0.0.1", "::1", "::ffff:127.0.0.1", "192.168.7.7")))
    assert not policy.allows("10.0.0.1")
    assert ALLOW_LOOPBACK.allows("127.0.0.1")


def test_what_is_no_network_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="local"):
        parse_networks(["local"])


def test_a_name_is_judged_by_what_it_resolves_to() -> None:
    place = "/dns4/evil.example/tcp/80"
    assert PUBLIC_ONLY.check_hosts(place, ["127.0.0.1", "1.1.1.1", "1.1.1.1"]) == ["1.1.1.1"]
    with pytest.raises(AddressForbidden, match="dial_private"):
        PUBLIC_ONLY.check_hosts(place, ["127.0.0.1", "10.0.0.1"])


def test_an_address_that_the_operator_configured_is_dialled_wherever_it_leads() -> None:
    policy = PUBLIC_ONLY.with_trusted(["/ip4/127.0.0.1/tcp/4100/p2p/12D3KooWabc"])
    assert policy.check_hosts("/ip4/127.0.0.1/tcp/4100", ["127.0.0.1"]) == ["127.0.0.1"]
    with pytest.raises(AddressForbidden):
        policy.check_hosts("/ip4/127.0.0.1/tcp/22", ["127.0.0.1"])


@pytest.mark.parametrize(
    ("place", "announced"),
    [
        ("/ip4/1.1.1.1/tcp/4101", True),
        ("/ip4/10.0.0.1/tcp/4101", False),
        ("/ip6/::1/tcp/4101", False),
        ("/dns4/node.example/tcp/4101", True),
        ("/memory/7", True),
    ],
)
def test_places_are_judged_by_their_address(place: str, announced: bool) -> None:
    assert PUBLIC_ONLY.allows_place(place) is announced
