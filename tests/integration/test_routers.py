"""Parties behind real routers: namespaces of Linux with nftables between them.

Each test starts a handful of processes, so there are few of them: `sim bench reach` tries more.
"""

import pytest

from sim.reach.lab import Meeting, measure, survive
from sim.reach.routers import RouterKind, missing

# A node on a changed network may cost buyers so much.
SURVIVED_WITHIN_S = 10.0

PAIRS = (
    (RouterKind.PORTS_KEPT, RouterKind.PORTS_KEPT),
    (RouterKind.DOUBLE, RouterKind.NONE),
    (RouterKind.SYMMETRIC, RouterKind.NONE),
    (RouterKind.SYMMETRIC, RouterKind.SYMMETRIC),
)

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "everything is there")


@pytest.fixture(scope="module")
def meetings() -> dict[tuple[RouterKind, RouterKind], Meeting]:
    return {(each.node, each.buyer): each for each in measure(PAIRS)}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_node_behind_routers_is_reached_through_a_relay(
    meetings: dict[tuple[RouterKind, RouterKind], Meeting], pair: tuple[RouterKind, RouterKind]
) -> None:
    assert meetings[pair].error == ""
    assert meetings[pair].began_relayed


@pytest.mark.parametrize("pair", PAIRS[:3])
def test_two_parties_do_without_the_relay_where_their_routers_let_them(
    meetings: dict[tuple[RouterKind, RouterKind], Meeting], pair: tuple[RouterKind, RouterKind]
) -> None:
    assert meetings[pair].direct_after_s is not None


def test_the_relay_goes_on_where_both_routers_change_ports(
    meetings: dict[tuple[RouterKind, RouterKind], Meeting],
) -> None:
    assert meetings[RouterKind.SYMMETRIC, RouterKind.SYMMETRIC].direct_after_s is None


def test_a_node_keeps_a_place_elsewhere_when_its_relay_is_gone() -> None:
    assert survive("lose_relay") < SURVIVED_WITHIN_S


@pytest.mark.parametrize("what", ["node", "router"])
def test_a_node_whose_network_changes_is_reached_again(what: str) -> None:
    assert survive("change_network", what) < SURVIVED_WITHIN_S


def test_parties_without_ipv4_reach_each_other_and_a_relay() -> None:
    assert survive("be_on_ipv6") < SURVIVED_WITHIN_S
