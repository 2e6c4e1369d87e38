"""Fairness of a full book, and the networks that nodes claim to be in."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.market.offers.crowd import Crowd, network_of
from tests.coordinator.market_makers import node


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("/ip4/192.0.2.77/tcp/4001/p2p/12D3", "192.0.2.0/24"),
        ("/ip6/2001:db8:1:2::9/tcp/4001", "2001:db8:1::/48"),
        ("/dns4/Node.Example.org/tcp/4001", "node.example.org"),
        ("/ip4/relay/tcp/1", ""),
        ("/ip4/999.1.1.1/tcp/1", ""),
        ("nonsense", ""),
    ],
)
def test_an_address_tells_its_network(address: str, network: str) -> None:
    assert network_of((address,)) == network


def test_no_address_is_a_network_of_its_own() -> None:
    assert network_of(()) == ""


def test_the_largest_group_gives_up_its_oldest() -> None:
    crowd = Crowd()
    for number in range(3):
        crowd.add(node(number), "flood")
    crowd.add(node(3), "lone")
    assert crowd.victim("newcomer") == node(0)
    assert crowd.victim("lone") == node(0)
    assert crowd.victim("flood") is None, "a flood finds no room but its own"


def test_an_empty_crowd_has_no_victim() -> None:
    crowd = Crowd()
    crowd.add(node(1), "a")
    crowd.remove(node(1), "a")
    crowd.remove(node(1), "a")
    crowd.remove(node(2), "b")
    assert crowd.victim("a") is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 11)), max_size=60))
def test_the_victim_is_always_from_a_largest_group(steps: list[tuple[bool, int]]) -> None:
    crowd = Crowd()
    members: set[int] = set()
    for is_added, number in steps:
        group = str(number % 3)
        if is_added and number not in members:
            crowd.add(node(number), group)
            members.add(number)
        elif not is_added:
            crowd.remove(node(number), group)
            members.discard(number)
        sizes = Counter(number % 3 for number in members)
        victim = crowd.victim("elsewhere")
        if not members:
            assert victim is None
        else:
            victims_group = next(n for n in members if node(n) == victim) % 3
            assert sizes[victims_group] == max(sizes.values())
